# Copyright 2026 The hf_twins team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import itertools
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hostile_files import write_unusable_images
from PIL import ExifTags, Image, ImageOps

from hf_twins.training.semantic_segmentation.arguments import DataArguments
from hf_twins.training.semantic_segmentation.data import (
    IGNORE_INDEX,
    ImageMaskPairs,
    Preparation,
    class_numbers,
    inferred_names,
    load_folder,
    load_pairs,
)


def write_pair(folder: Path, name: str, mask: np.ndarray, image: Image.Image | None = None, **options) -> None:
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if image is None:
        image = Image.new("RGB", mask.shape[::-1])
    image.save(folder / "images" / f"{name}.png", **options)
    Image.fromarray(mask).save(folder / "annotations" / f"{name}.png")


def mask_of(*numbers: int, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    """Create a mask with rows of these classes and a height and width of `size`."""
    return np.resize(np.repeat(np.array(numbers), size[1]), size).astype(np.uint8)


def exif_of(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    return exif


def write_turned_pairs(folder: Path, annotated: str, orientations: dict[str, int], side: int = 6) -> None:
    """Write images whose pixels are 100 times the numbers in their masks, in the orientation of the annotation tool."""
    for name, number in orientations.items():
        stored = Image.fromarray(np.random.default_rng(ord(name[0])).integers(0, 3, (4, side), dtype=np.uint8))
        image = stored.point(lambda value: 100 * value)
        image.info["exif"] = exif_of(number).tobytes()
        mask = stored if annotated == "stored" else ImageOps.exif_transpose(with_exif(stored, number))
        write_pair(folder, name, np.asarray(mask), image, exif=exif_of(number))


def with_exif(image: Image.Image, number: int) -> Image.Image:
    image = image.copy()
    image.getexif()[ExifTags.Base.Orientation] = number
    return image


def load(folder: Path, **options) -> tuple[dict[str, ImageMaskPairs], list[str]]:
    arguments = DataArguments(train_dir=str(folder), **{"validation_dir": str(folder)} | options)
    return load_pairs(arguments, seed=0)


def fits(pairs: ImageMaskPairs) -> bool:
    return all(np.array_equal(np.asarray(pair["image"]), 100 * np.asarray(pair["label"])) for pair in pairs)


@pytest.mark.parametrize("annotated", ["stored", "upright"])
@pytest.mark.parametrize("number", range(2, 9))
def test_image_is_turned_to_match_its_mask(annotated, number, tmp_path, caplog):
    """The sizes decide or, if they fit both conventions, the other images."""
    write_turned_pairs(tmp_path, annotated, {"a": number, "b": 6, "c": 1})
    pairs, _ = load(tmp_path)
    assert [len(pairs["train"]), fits(pairs["train"]), "left out" in caplog.text] == [3, True, False]
    assert fits(pairs["train"].select([0]))


@pytest.mark.parametrize("annotated", ["stored", "upright"])
def test_option_decides_if_sizes_do_not(annotated, tmp_path, caplog):
    # The images are a half turn and a turned square.
    write_turned_pairs(tmp_path, annotated, {"a": 3, "plain": 1})
    write_turned_pairs(tmp_path, annotated, {"b": 6}, side=4)
    pairs, _ = load(tmp_path)
    assert [len(pairs["train"]), fits(pairs["train"])] == [1, True]
    assert "2 images of train are left out: " in caplog.text
    for name in ("a", "b"):
        assert f"{name}.png (EXIF orientation, where the size does not tell whether" in caplog.text
    pairs, _ = load(tmp_path, exif=annotated)
    assert [len(pairs["train"]), fits(pairs["train"])] == [3, True]
    pairs, _ = load(tmp_path, exif="stored" if annotated == "upright" else "upright")
    assert [len(pairs["train"]), fits(pairs["train"])] == [3, False]


def test_images_of_both_conventions_are_recognized_by_their_sizes(tmp_path, caplog):
    write_turned_pairs(tmp_path, "stored", {"a": 6, "b": 8})
    write_turned_pairs(tmp_path, "upright", {"c": 6, "d": 3})
    pairs, _ = load(tmp_path)
    assert [len(pairs["train"]), fits(pairs["train"])] == [3, True]
    assert "d.png (EXIF orientation" in caplog.text
    pairs, _ = load(tmp_path, exif="stored")
    assert len(pairs["train"]) == 3
    assert "c.png (mask of (4, 6), which fits the image with --exif upright, not stored)" in caplog.text


def test_unchecked_pair_is_refused_by_name(tmp_path):
    write_turned_pairs(tmp_path, "upright", {"a": 3, "b": 6})
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    pairs, _ = load(tmp_path, check_images=False, class_names_file=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match=r"a\.png and its mask do not fit: EXIF orientation, .* give --exif"):
        pairs["train"][0]
    assert fits(pairs["train"].select([1]))


@pytest.mark.parametrize(("number", "usable"), [(6, True), (8, False)])
def test_orientation_of_a_mask_must_match_its_image(number, usable, tmp_path, caplog):
    write_turned_pairs(tmp_path, "stored", {"a": 6})
    write_turned_pairs(tmp_path, "stored", {"plain": 1})
    with Image.open(tmp_path / "annotations" / "a.png") as mask:
        mask.load()
    mask.save(tmp_path / "annotations" / "a.png", exif=exif_of(number))
    pairs, _ = load(tmp_path)
    assert [len(pairs["train"]), fits(pairs["train"])] == [1 + usable, True]
    assert ("a.png (mask with an EXIF orientation of its own)" in caplog.text) is not usable


def test_turned_tiff_is_refused_by_name(tmp_path, caplog):
    """Pillow turns TIFFs on reading, so that the stored pixels are not available."""
    write_pair(tmp_path, "a", mask_of(0, 1))
    for name, number in (("b", 6), ("c", 1)):
        write_pair(tmp_path, name, mask_of(0, 1))
        (tmp_path / "images" / f"{name}.png").unlink()
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{name}.tif", tiffinfo={274: number})
    pairs, _ = load(tmp_path)
    assert len(pairs["train"]) == 2
    assert "b.tif is a TIFF with an orientation, which cannot be read as stored" in caplog.text


UNUSABLE_NUMBERS = {
    "0 and 255": ([(0, 255)], r"no class but 0, beside 255, .* with 1 for a foreground"),
    "only 255 and 1": ([(1, 255)], "no class but 1"),
    "one class": ([(0, 0)], "no class but 0"),
    "0 and 128": ([(0, 128)], r"use 2 of the numbers 0 to 128: 0, 128\. Number the classes 0, 1, 2"),
    "gray levels": ([(0, 85), (170, 0)], "use 3 of the numbers 0 to 170"),
    "smooth": ([range(120), range(120, 240)], "use 240 of the numbers 0 to 239: if these are classes, name them"),
    "0 and 254": ([(0, 254)], "use 2 of the numbers 0 to 254"),
}


@pytest.mark.parametrize(("masks", "message"), UNUSABLE_NUMBERS.values(), ids=UNUSABLE_NUMBERS)
def test_numbers_that_are_probably_not_classes_are_refused(masks, message, tmp_path):
    for index, numbers in enumerate(masks):
        write_pair(tmp_path, str(index), mask_of(*numbers, size=(max(len(numbers), 4), 6)))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_classes_without_pixels_are_named_if_names_are_given(tmp_path, caplog):
    write_pair(tmp_path, "a", mask_of(0, 255))
    (tmp_path / "names.txt").write_text("background\ncat\ndog\n")
    _, names = load(tmp_path, class_names_file=str(tmp_path / "names.txt"))
    assert names == ["background", "cat", "dog"]
    assert "2 of 3 classes have no pixel in the masks (255 means no class): cat, dog" in caplog.text


def test_class_names_of_the_model_are_used_only_for_the_same_number_of_classes(caplog):
    names = ["sky", "road", "tree"]
    assert inferred_names({0, 2}, names) == names
    assert caplog.text == ""
    assert inferred_names({0, 1}, names) == ["0", "1"]
    assert "The model knows 3 classes and the masks have 2: it gets a new head" in caplog.text
    assert inferred_names({0, 1, 3}, names) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("extension", ["png", "PNG", "tif", "TIFF", "bmp", "gif"])
def test_masks_of_every_lossless_format_are_found(extension, tmp_path):
    write_pair(tmp_path, "a", mask_of(0, 1))
    with Image.open(tmp_path / "annotations" / "a.png") as mask:
        mask.load()
    (tmp_path / "annotations" / "a.png").unlink()
    mask.save(tmp_path / "annotations" / f"a.{extension}")
    pairs, names = load(tmp_path)
    assert [len(pairs["train"]), names] == [1, ["0", "1"]]


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [
        (Image.fromarray(mask_of(0, 1).astype(bool)), [0, 1]),
        (Image.fromarray(mask_of(0, 7)), [0, 7]),
        (Image.fromarray(mask_of(0, 2).astype(np.uint16)), [0, 2]),
        (Image.fromarray(mask_of(0, 255).astype(np.int32)), [0, 255]),
        (Image.fromarray(mask_of(0, 3).astype(np.float32)), [0, 3]),
        (Image.fromarray(mask_of(0, 1)).convert("P"), [0, 1]),
    ],
    ids=["1", "L", "I;16", "I", "F", "P"],
)
def test_numbers_of_a_mask_are_read_in_every_mode(mask, numbers):
    assert np.unique(class_numbers(mask, False)).tolist() == numbers


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(np.array([[0, 256]], np.uint16)),
        Image.fromarray(np.array([[0, 299]], np.int32)),
        Image.fromarray(np.array([[-1, 0]], np.int32)),
        Image.fromarray(np.array([[0, 0.5]], np.float32)),
        Image.fromarray(np.array([[0, np.nan]], np.float32)),
    ],
    ids=["256", "299", "-1", "half", "NaN"],
)
# NumPy warns about converting NaN to an integer.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_invalid_class_numbers_are_refused(mask, reduce):
    with pytest.raises(ValueError, match="whole numbers from 0 to 255, which means no class, got"):
        class_numbers(mask, reduce)
    with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
        Preparation(None, reduce)({"image": Image.new("RGB", mask.size), "label": mask}, 0)


@pytest.mark.parametrize("part", ["images", "annotations"])
@pytest.mark.parametrize("extension", ["bmp", "tif"])
def test_two_files_with_the_same_name_are_refused(part, extension, tmp_path):
    write_pair(tmp_path, "a", mask_of(0, 1))
    Image.new("L", (6, 4)).save(tmp_path / part / f"a.{extension}")
    with pytest.raises(
        ValueError, match=rf"Which image has which mask\? .*{part} has a\.\w+, a\.\w+: images and masks need"
    ):
        load_folder(str(tmp_path))


def test_lossy_masks_are_left_out(tmp_path, caplog):
    for name in ("a", "b"):
        write_pair(tmp_path, name, mask_of(0, 1))
    (tmp_path / "annotations" / "a.png").unlink()
    Image.fromarray(mask_of(0, 1)).save(tmp_path / "annotations" / "a.jpg")
    assert len(load_folder(str(tmp_path))) == 1
    assert "1 images without a mask of the same name, a lossless one such as PNG (a.png)" in caplog.text
    assert (
        "1 in formats that may blur the numbers of classes, which need a lossless one such as PNG (a.jpg)"
        in caplog.text
    )


def test_masks_without_an_image_are_named(tmp_path, caplog):
    for name in ("a", "b"):
        write_pair(tmp_path, name, mask_of(0, 1))
    (tmp_path / "images" / "b.png").unlink()
    assert len(load_folder(str(tmp_path))) == 1
    assert "1 masks without an image of the same name (b.png)" in caplog.text


def test_pairs_in_separate_folders_are_refused_and_the_content_is_named(tmp_path):
    for part in ("images", "annotations"):
        for split in ("training", "validation"):
            (tmp_path / part / split).mkdir(parents=True)
    with pytest.raises(
        ValueError,
        match=r"got in images 2 sub-folders, which are not searched \(training, validation\); in annotations 2 sub-",
    ):
        load_folder(str(tmp_path))


def test_images_in_both_splits_are_logged(tmp_path, caplog):
    for name in "abc":
        write_pair(tmp_path / "train", name, mask_of(0, 1))
    write_pair(tmp_path / "other", "d", mask_of(0, 1))
    load(tmp_path / "train", validation_dir=str(tmp_path / "other"))
    assert "are training images" not in caplog.text
    for part in ("images", "annotations"):
        (tmp_path / "other" / part / "c.png").symlink_to(tmp_path / "train" / part / "c.png")
    load(tmp_path / "train", validation_dir=str(tmp_path / "other"))
    assert "1 of 2 evaluation images are training images, too: c.png" in caplog.text


# Pillow warns about large sizes before it refuses even larger ones.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_images_are_left_out_and_named(tmp_path, caplog):
    write_pair(tmp_path, "whole", mask_of(0, 1))
    unusable = write_unusable_images(tmp_path / "images")
    for number, name in enumerate(unusable):
        (tmp_path / "images" / name).rename(tmp_path / "images" / f"{number}{name[name.rindex('.') :]}")
        Image.fromarray(mask_of(0, 1)).save(tmp_path / "annotations" / f"{number}.png")
    with caplog.at_level(logging.WARNING):
        pairs, _ = load(tmp_path)
    assert len(pairs["train"]) == 1
    for number in range(len(unusable)):
        assert re.search(rf"[/( ]{number}\.", caplog.text)


def test_pixels_equal_those_of_read_image(tmp_path, caplog):
    deep = Image.fromarray(np.full((4, 6), 40000, np.uint16))
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    for name, image in (("deep", deep), ("clear", clear), ("plain", Image.new("RGB", (6, 4)))):
        write_pair(tmp_path, name, mask_of(0, 1), image)
    pairs, _ = load(tmp_path)
    assert "1 images of train have more than 8 bits per pixel" in caplog.text
    assert "1 images of train are transparent" in caplog.text
    seen = [
        int(255 * Preparation(lambda *both: both, False)(pair, 0)["pixel_values"].float().mean() / 255)
        for pair in itertools.islice(pairs["train"], 3)
    ]
    assert seen == [255, 156, 0]
    assert IGNORE_INDEX == 255


def test_output_in_a_target_of_image_links_is_refused(tmp_path):
    write_pair(tmp_path / "data", "a", mask_of(0, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data" / "images" / "a.png").rename(elsewhere / "a.png")
    (tmp_path / "data" / "images" / "a.png").symlink_to(elsewhere / "a.png")
    arguments = DataArguments(train_dir=str(tmp_path / "data"), validation_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=f"--output_dir must be another folder than {elsewhere}, where the input is"):
        load_pairs(arguments, 0, output_dir=elsewhere)
    assert load_pairs(arguments, 0, output_dir=tmp_path / "run")[1] == ["0", "1"]
