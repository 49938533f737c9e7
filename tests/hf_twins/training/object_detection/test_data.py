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
"""Data in COCO's format: what is read, what is left out, and how images and objects are augmented."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_utils import small_detector, write_scenes
from hostile_files import long_png, write_unusable_images
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from hf_twins.training.object_detection.annotations import decompressed_counts, segmentation_fault
from hf_twins.training.object_detection.arguments import DataArguments, DetectionRecipe
from hf_twins.training.object_detection.data import (
    CocoImages,
    EvaluationImages,
    TrainingImages,
    binary_mask,
    collate,
    collate_for_detr,
    load_coco,
    load_splits,
    training_transform,
)
from hf_twins.training.object_detection.models import DETECTORS, create_processor
from hf_twins.training.object_detection.reports import average_precision


@pytest.mark.usefixtures("accelerators_keep_their_random_numbers")
def test_image_depends_only_on_seed_epoch_and_index(scenes, start):
    processor = small_detector("detr", start).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks=True)
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=96, multi_scale=True)
    images = TrainingImages(split, training_transform(recipe, processor), needs_masks=True, seed=7)
    first = images[(2, 5)]
    torch.default_generator.manual_seed(123)
    state = torch.get_rng_state()
    again = images[(2, 5)]
    assert torch.equal(torch.get_rng_state(), state), "the model's own random numbers are not touched"
    assert torch.equal(again["pixel_values"], first["pixel_values"])
    assert all(torch.equal(value, first["labels"][name]) for name, value in again["labels"].items())
    shapes = {tuple(images[(epoch, 5)]["pixel_values"].shape) for epoch in range(12)}
    assert len(shapes) > 3, "scales and crops differ from epoch to epoch"


@pytest.mark.parametrize("multi_scale", [False, True])
def test_boxes_and_masks_follow_their_image(multi_scale, scenes, start):
    processor = small_detector("detr", start).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks=True)
    recipe = DetectionRecipe(shortest_edge=128, longest_edge=192, multi_scale=multi_scale, horizontal_flip=0.5)
    images = TrainingImages(split, training_transform(recipe, processor), needs_masks=True, seed=1)
    num_objects = 0
    for epoch in range(3):
        for index in range(len(images)):
            example = images[(epoch, index)]
            height, width = example["pixel_values"].shape[1:]
            labels = example["labels"]
            assert labels["masks"].shape == (len(labels["boxes"]), height, width)
            for box, mask in zip(labels["boxes"], labels["masks"]):
                # The ink of a cropped digit may not fill its cropped box.
                if mask.any():
                    num_objects += 1
                    ink = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
                    # After resizing masks twice, the nearest pixel may be a few pixels away.
                    assert (ink - box)[:2].min() >= -5
                    assert (ink - box)[2:].max() <= 5
                    # Digits are brighter than the background.
                    image = example["pixel_values"].mean(0)
                    assert image[mask.bool()].mean() > image.mean()
    assert num_objects > 60


@pytest.mark.parametrize("name", ["detr", "rt-detr", "retinanet"])
def test_images_are_evaluated_and_trained_on_as_the_processor_prepares_them(name, scenes, start):
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=192, horizontal_flip=0.0)
    processor = small_detector(name, start, recipe).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"))
    images = EvaluationImages(split, processor)
    training_images = TrainingImages(split, training_transform(recipe, processor))
    for index in range(2):
        with Image.open(scenes / split.images[index]["file_name"]) as image:
            expected = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            size = [image.height, image.width]
        example = images[index]
        assert torch.equal(example["pixel_values"], expected)
        assert (int(example["labels"]["image_id"]), example["labels"]["orig_size"].tolist()) == (index, size)
        torch.testing.assert_close(training_images[0, index]["pixel_values"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_training_and_evaluation_see_the_same_sizes_and_pixels(name):
    """Plain images of various shapes are compared, including those limited by the longest side."""
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=96, horizontal_flip=0.0)
    processor = create_processor(DETECTORS[name], recipe)
    transform = training_transform(recipe, processor)
    for size in [(48, 9), (77, 92), (43, 122), (101, 34), (60, 129), (84, 79), (64, 64), (66, 99)]:
        image = Image.new("RGB", size, (10, 120, 200))
        expected = processor(image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        boxes = tv_tensors.BoundingBoxes([[0.0, 0, 9, 9]], format="XYXY", canvas_size=(image.height, image.width))
        objects = {"boxes": boxes, "labels": torch.tensor([0])}
        trained, _ = transform(image, objects)
        torch.testing.assert_close(trained.as_subclass(torch.Tensor), expected, rtol=0, atol=1e-5)


def test_boxes_are_relative_to_their_image_only_for_detr():
    boxes = torch.tensor([[8.0, 4.0, 24.0, 12.0]])
    examples = [
        {"pixel_values": torch.ones(3, height, width), "labels": {"class_labels": torch.tensor([0]), "boxes": boxes}}
        for height, width in ((32, 64), (64, 32))
    ]
    batch = collate(examples)
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [32 * 64, 64 * 32]
    assert all(torch.equal(labels["boxes"], boxes) for labels in batch["labels"])
    relative = [labels["boxes"].tolist() for labels in collate_for_detr(examples)["labels"]]
    assert relative == [[[16 / 64, 8 / 32, 16 / 64, 8 / 32]], [[16 / 32, 8 / 64, 16 / 32, 8 / 64]]]
    assert all(torch.equal(example["labels"]["boxes"], boxes) for example in examples)


def test_images_with_16_bits_are_scaled_and_not_clipped(tmp_path):
    pixels = np.full((8, 9), 40000, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    split = CocoImages(tmp_path, [{"id": 0, "file_name": "a.png", "height": 8, "width": 9}], ["cat"])
    assert np.asarray(split.open(0))[0, 0].tolist() == 3 * [round(40000 / 257)]


def write_json(folder: Path, content: dict) -> Path:
    (folder / "other.json").write_text(json.dumps(content))
    return folder / "other.json"


def test_annotations_that_cannot_be_used_are_left_out_counted_and_named(scenes, caplog):
    content = json.loads((scenes / "annotations.json").read_text())
    good = content["annotations"][0]
    bad = {
        "a box of no area within the image": [{"bbox": [5, 5, 0, 9]}, {"bbox": [70, 5, 9, 9]}],
        "an unknown category": [
            {"category_id": 99},
            {"category_id": [3]},
            {"category_id": None},
            {"category_id": "3"},
        ],
        "an unknown image": [{"image_id": 1}, {"image_id": {}}],
        "no box of four numbers": [
            {"bbox": [1, 2, 3]},
            {"bbox": None},
            {"bbox": ["1", 2, 3, 4]},
            {"bbox": [1, 2, float("inf"), 3]},
            {"bbox": [float("nan"), 2, 3, 3]},
            {"bbox": [1, 2, 10**400, 3]},
            {"bbox": {"x": 1}},
        ],
        "an area that is no number": [{"area": "big"}, {"area": -1}, {"area": float("nan")}, {"area": True}],
        "an iscrowd that is neither 0 nor 1": [{"iscrowd": "0"}, {"iscrowd": 2}],
        "no segmentation": [{"segmentation": []}, {"segmentation": None}, {"segmentation": "polygon"}],
        "polygons that are not x and y of at least three corners": [
            {"segmentation": [[1, 1, 9, 9]]},
            {"segmentation": [[1, 1, 9, 9, 1, 9, 5]]},
            {"segmentation": [[1, 1, 9, 9, 1, None]]},
            {"segmentation": [[1, 1, 9, float("nan"), 1, 9]]},
            {"segmentation": [[1, 1, 9, float("inf"), 1, 9]]},
        ],
        "a segmentation that is no list of polygons, each a list of numbers": [
            {"segmentation": [1, 1, 9, 9, 1, 9]},
            {"segmentation": [{"x": 1, "y": 2}]},
        ],
        "polygons far outside the image": [
            {"segmentation": [[1, 1, 1e9, 1e9, 1, 9]]},
            {"segmentation": [[1, 1, 9, 9, 1, -65]]},
        ],
        "run lengths of another size than the image's": [
            {"segmentation": {"size": [9, 9], "counts": "04"}},
            {"segmentation": {"counts": "04"}},
        ],
        "run lengths that are no whole numbers": [
            {"segmentation": {"size": [64, 64], "counts": "~~"}},
            {"segmentation": {"size": [64, 64], "counts": None}},
            {"segmentation": {"size": [64, 64], "counts": [0.5, 4095.5]}},
            {"segmentation": {"size": [64, 64], "counts": [-1, 4097]}},
        ],
        "run lengths of fewer or more pixels than the image's": [
            {"segmentation": {"size": [64, 64], "counts": "04"}},
            {"segmentation": {"size": [64, 64], "counts": [0, 10**9]}},
        ],
    }
    num_good, next_id = len(content["annotations"]), 1000
    for changes in bad.values():
        for change in changes:
            content["annotations"].append(good | change | {"id": next_id})
            next_id += 1
    split = load_coco(str(scenes), str(write_json(scenes, content)), needs_masks=True)
    assert sum(map(len, split.annotations.values())) == num_good
    next_id = 1000
    for fault, changes in bad.items():
        ids = ", ".join(str(next_id + index) for index in range(len(changes)))
        assert f"{len(changes)} annotations of {scenes / 'other.json'} are left out" in caplog.text
        assert f"because they have {fault}: {ids}" in caplog.text
        next_id += len(changes)


def test_images_that_cannot_be_used_are_left_out_counted_and_named(tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(10))
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "5.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "7.png")
    (folder / "9.png").write_bytes(long_png())
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 8 * 7]
    file = str(write_json(folder, content))
    arguments = DataArguments(
        *(str(folder), file, str(folder), file),
    )
    splits = load_splits(arguments, seed=0)
    assert "4 images of train are left out: 3.png (cannot be decoded: it is broken or incomplete" in caplog.text
    assert "5.png (not there), 7.png (image of (9, 9), annotation of (64, 64)), 9.png (" in caplog.text
    assert "9.png is too long, 1 x 65535 pixels" in caplog.text
    assert "1 images of train show no object and are left out" in caplog.text
    assert [len(splits[name].images) for name in ("train", "validation")] == [5, 6]


def edited(folder: Path, **lists) -> str:
    """Write annotations with replaced lists."""
    content = json.loads((folder / "annotations.json").read_text())
    return str(write_json(folder, content | lists))


IMAGE = {"id": 0, "file_name": "0.png", "height": 64, "width": 64}
CATEGORY = {"id": 3, "name": "digit"}
REFUSED = {
    "image ids": (
        {"images": [IMAGE, IMAGE | {"file_name": "1.png"}]},
        "several images of the same id, got 0: renumber",
    ),
    "file names": ({"images": [IMAGE, IMAGE | {"id": 1}]}, "several images of the same file_name, got 0.png"),
    "same name": (
        {"images": [IMAGE, IMAGE | {"id": 1, "file_name": ".//0.png"}]},
        "several images of the same file_name, got 0.png",
    ),
    "annotation ids": ({"annotations": 2 * [{"id": 5}]}, "several annotations of the same id, got 5"),
    "number as annotation": ({"annotations": [5]}, "a JSON object for each of its annotations, got 5"),
    "category ids": ({"categories": [CATEGORY, CATEGORY | {"name": "x"}]}, "several categories of the same id, got 3"),
    "category names": (
        {"categories": [CATEGORY, CATEGORY | {"id": 4}]},
        "several categories of the same name, got digit",
    ),
    "no category": ({"categories": []}, "at least one category"),
    "category id of text": (
        {"categories": [CATEGORY | {"id": "3"}]},
        "a whole number as id and a name for each category",
    ),
    "category without a name": ({"categories": [CATEGORY | {"name": None}]}, "a name for each category"),
    "list as image id": ({"images": [IMAGE | {"id": [0]}]}, "a number as id and a file_name for each image"),
    "width of text": ({"images": [IMAGE | {"width": "64"}]}, "each image's width and height in pixels"),
    "no height": ({"images": [IMAGE | {"height": 0}]}, "width and height in pixels"),
    "half a pixel": ({"images": [IMAGE | {"height": 64.5}]}, "width and height in pixels"),
    "huge image": ({"images": [IMAGE | {"height": 10**6, "width": 10**6}]}, "width and height in pixels"),
    "null as name": ({"images": [IMAGE | {"file_name": None}]}, "a file_name for each image"),
    "parent folder": (
        {"images": [IMAGE | {"file_name": "../private.png"}]},
        r"names 1 files outside .*: \.\./private.png",
    ),
    "inner parent": ({"images": [IMAGE | {"file_name": "a/../../private.png"}]}, "names 1 files outside"),
    "parent of Windows": ({"images": [IMAGE | {"file_name": "..\\private.png"}]}, "names 1 files outside"),
    "absolute": ({"images": [IMAGE | {"file_name": "/etc/passwd"}]}, "names 1 files outside .*: /etc/passwd"),
    "link": ({"images": [IMAGE | {"file_name": "link.png"}]}, "names 1 files outside .*: link.png"),
    "linked folder": ({"images": [IMAGE | {"file_name": "up/private.png"}]}, "names 1 files outside"),
    "end of a text": ({"images": [IMAGE | {"file_name": "a\0.png"}]}, "names 1 files outside"),
}


@pytest.mark.parametrize(("lists", "message"), REFUSED.values(), ids=REFUSED)
def test_unusable_annotation_files_are_refused(lists, message, tmp_path):
    folder = write_scenes(tmp_path / "scenes", range(2))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "private.png")
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_coco(str(folder), edited(folder, **lists))


def test_deep_json_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text(100_000 * "[")
    with pytest.raises(ValueError, match=r"deep.json must be a JSON file in COCO's format: "):
        load_coco(str(tmp_path), str(tmp_path / "deep.json"))


def test_all_spellings_of_names_within_the_folder_are_read(tmp_path):
    folder = write_scenes(tmp_path / "real" / "scenes", range(3))
    (folder / "sub").mkdir()
    (folder / "1.png").rename(folder / "sub" / "1.png")
    (folder / "linked.png").symlink_to("2.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = tmp_path / "link" / "scenes"
    names = [str(linked / "0.png"), "sub\\1.png", "linked.png"]
    images = [IMAGE | {"id": 7 * index, "file_name": name} for index, name in enumerate(names)]
    split = load_coco(str(linked), edited(folder, images=images))
    assert [split.open(index).size for index in range(3)] == [(64, 64)] * 3


BOXES = {
    "corners": ([[2, 3, 30, 40], [20, 30, 60, 62]], "got 20, 30, 60, 62, as if left, top, right and bottom"),
    "relative": ([[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]], "got 0.1, 0.2, 0.5, 0.5, as if relative to the image"),
    "mostly relative": ([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.5], [2, 3, 30, 40]], "got 0, 0, 1, 1, as if relative"),
    "relative corners": ([[0.1, 0.2, 0.5, 0.9]], "as if relative"),
}


@pytest.mark.parametrize(("boxes", "message"), BOXES.values(), ids=BOXES)
def test_boxes_of_another_kind_are_refused(boxes, message, tmp_path):
    folder = write_scenes(tmp_path / "scenes", range(2))
    annotations = [{"id": index, "image_id": 0, "category_id": 3, "bbox": box} for index, box in enumerate(boxes)]
    with pytest.raises(ValueError, match=message):
        load_coco(str(folder), edited(folder, annotations=annotations))


def test_boxes_beyond_their_image_are_logged(tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(2))
    boxes = [[2, 3, 10, 10], [30, 2, 10, 80], [0, 0, 64.5, 64]]
    annotations = [{"id": index, "image_id": 0, "category_id": 3, "bbox": box} for index, box in enumerate(boxes)]
    load_coco(str(folder), edited(folder, annotations=annotations))
    assert "1 of 3 boxes of" in caplog.text
    assert "reach beyond their image: are they left, top, width and height" in caplog.text


def test_boxes_in_the_first_pixel_are_logged(tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(2))
    boxes = [[2, 3, 10, 10], [30, 2, 10, 8], [0.1, 0.2, 0.5, 0.4]]
    annotations = [{"id": index, "image_id": 0, "category_id": 3, "bbox": box} for index, box in enumerate(boxes)]
    load_coco(str(folder), edited(folder, annotations=annotations))
    assert "1 of 3 boxes of" in caplog.text
    assert (
        "in the first pixel of their image, such as 0.1, 0.2, 0.5, 0.4: are they relative to the image?" in caplog.text
    )


def test_boxes_without_area_are_left_out_and_not_mistaken_for_relative_ones(tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(2))
    annotations = [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 0, 0]}]
    assert load_coco(str(folder), edited(folder, annotations=annotations)).annotations == {}
    assert "a box of no area within the image: 0" in caplog.text


def test_byte_order_mark_in_annotations_is_ignored(tmp_path):
    folder = write_scenes(tmp_path / "scenes", range(2))
    file = folder / "annotations.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(load_coco(str(folder), str(file)).images) == 2


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([[1, 1, 9, 9, 5, 5]], "polygons of no area"),
        ([[1, 1, 1, 1, 1, 1], [1, 1, 9, 1, 9, 9]], None),
        ({"size": [8, 8], "counts": [64]}, "run lengths without a pixel of the object"),
        ({"size": [8, 8], "counts": [60, 4]}, None),
    ],
)
def test_masks_without_area_are_left_out(segmentation, fault):
    assert segmentation_fault(segmentation, 8, 8) == fault


def test_images_in_both_splits_are_logged(tmp_path, caplog):
    train, other = (write_scenes(tmp_path / name, range(3)) for name in ("train", "other"))
    arguments = {"train_dir": str(train), "train_annotations": str(train / "annotations.json")}
    load_splits(
        DataArguments(**arguments, validation_dir=str(other), validation_annotations=str(other / "annotations.json")),
        0,
    )
    assert "are training images" not in caplog.text
    arguments |= {"validation_dir": str(train), "validation_annotations": str(train / "annotations.json")}
    load_splits(DataArguments(**arguments), 0)
    assert "3 of 3 evaluation images are training images, too: 0.png, 1.png, 2.png" in caplog.text


def test_missing_area_and_iscrowd_get_defaults(tmp_path):
    folder = write_scenes(tmp_path / "scenes", range(2))
    good = {"image_id": 0, "category_id": 3, "bbox": [2, 3, 10, 20]}
    annotations = [good, good | {"area": None, "iscrowd": None}, good | {"area": 7.5, "iscrowd": True}]
    split = load_coco(str(folder), edited(folder, annotations=annotations))
    assert [(each["area"], each["iscrowd"]) for each in split.annotations[0]] == [(200, 0), (200, 0), (7.5, 1)]
    prediction = {"boxes": torch.tensor([[2.0, 3, 12, 23]]), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
    assert average_precision(split, {0: prediction})[0]["ap"] > 0


def test_compressed_run_lengths_are_decoded_as_by_pycocotools():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 300), (640, 480)):
        mask = np.asfortranarray(rng.random(shape) < 0.3).astype(np.uint8, order="F")
        mask[: shape[0] // 2] = 0
        counts = decompressed_counts(coco_mask.encode(mask)["counts"].decode())
        pixels = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(pixels, mask.flatten(order="F"))
    for broken in ("o", "é", " ", 9 * "o"):
        assert decompressed_counts(broken) is None


@pytest.mark.parametrize("annotated", ["stored", "upright"])
@pytest.mark.parametrize("number", [3, 6])
def test_image_is_turned_to_match_its_boxes(annotated, number, tmp_path, caplog):
    """A half turn follows the other images, and a quarter turn is recognized by its size.

    Without other images, a half turn cannot be decided, and the image is left out.
    """
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:10, 10:30] = 255
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    stored.save(tmp_path / "a.png", exif=exif)
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "b.png", exif=exif)
    images, annotations = [], []
    for index, orientation in enumerate((number, 6)):
        turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
        shown = stored if annotated == "stored" else stored.transpose(turn)
        left, top, right, bottom = shown.getbbox()
        name, (width, height) = "ab"[index] + ".png", shown.size
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations.append({"image_id": index, "category_id": 3, "bbox": [left, top, right - left, bottom - top]})
    for file, entries in (("both", images), ("alone", images[:1])):
        content = {"images": entries, "annotations": annotations, "categories": [CATEGORY]}
        (tmp_path / f"{file}.json").write_text(json.dumps(content))

    def usable(file: str, exif: str = "auto") -> CocoImages:
        annotations = str(tmp_path / f"{file}.json")
        arguments = DataArguments(str(tmp_path), annotations, str(tmp_path), annotations, exif=exif)
        split = load_splits(arguments, seed=0)["train"]
        for index, image in enumerate(split.images):
            (entry,) = split.annotations[image["id"]]
            left, top, width, height = entry["bbox"]
            shown = np.asarray(split.open(index))
            is_right = shown[top : top + height, left : left + width].min() == 255
            assert is_right == (exif in ("auto", annotated))
        return split

    assert len(usable("both").images) == 2
    assert "left out" not in caplog.text
    if number == 3:
        with pytest.raises(ValueError, match="No image of the split train"):
            usable("alone")
        assert "a.png (EXIF orientation, where the size does not tell whether the annotation is turned" in caplog.text
        for exif in ("stored", "upright"):
            assert len(usable("alone", exif).images) == 1
    else:
        assert len(usable("alone").images) == 1


# Pillow warns about large sizes before it refuses even larger ones.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("is_decoded", [True, False])
def test_unusable_images_are_left_out_and_named(is_decoded, tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(2))
    unusable = write_unusable_images(folder)
    # A link to a device leads outside the folder.
    (folder / "device.png").unlink()
    names = ["0.png", *(name for name in unusable if name != "device.png")]
    images = [IMAGE | {"id": index, "file_name": name} for index, name in enumerate(names)]
    annotations = [{"image_id": 0, "category_id": 3, "bbox": [1, 1, 9, 9]}]
    file = edited(folder, images=images, annotations=annotations)
    arguments = DataArguments(str(folder), file, str(folder), file, check_images=is_decoded)
    splits = load_splits(arguments, seed=0)
    left_out = names[1:] if is_decoded else ["pipe.png", "folder.png", "socket.png", "gone.png"]
    assert len(splits["validation"].images) == len(names) - len(left_out)
    assert f"{len(left_out)} images of validation are left out" in caplog.text
    assert all(f"{name} (" in caplog.text or len(left_out) > 10 for name in left_out)


def test_held_out_images_are_split_off(scenes):
    arguments = DataArguments(str(scenes), str(scenes / "annotations.json"), train_val_split=0.25, max_train_samples=8)
    splits = load_splits(arguments, seed=0)
    ids = [{image["id"] for image in splits[name].images} for name in ("train", "validation")]
    assert (len(ids[0]), len(ids[1])) == (8, 4)
    assert not ids[0] & ids[1]


def test_polygons_and_run_lengths_give_the_same_mask():
    expected = np.zeros((12, 20), np.uint8)
    expected[2:8, 5:15] = 1
    encoded = coco_mask.encode(np.asfortranarray(expected))
    counts, value = [], 0
    for pixel in [*expected.T.flatten().tolist(), None]:
        # Run lengths start with the number of zeros.
        if not counts or pixel != value:
            if counts or pixel == 1:
                value = pixel
            counts.append(0 if pixel is None else 1)
        else:
            counts[-1] += 1
    for segmentation in (
        [[5, 2, 15, 2, 15, 8, 5, 8]],
        {"size": [12, 20], "counts": counts[:-1]},
        {"size": [12, 20], "counts": encoded["counts"].decode()},
    ):
        assert np.array_equal(binary_mask(segmentation, 12, 20), expected)
