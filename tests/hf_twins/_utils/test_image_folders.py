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
"""Which images of a folder are used, and which files are left out with a warning."""

import os
from pathlib import Path

import pytest

from hf_twins._utils.image_folders import (
    find_images,
    list_folder,
    list_images,
    list_labeled_images,
    listed,
    metadata_file,
    split_files,
    split_folders,
)


def touch(folder: Path, *names: str) -> Path:
    """Create empty files, since listing only uses their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def labels(folder: Path) -> dict[str, str]:
    files, numbers, names = list_labeled_images(folder)
    return {file: names[number] for file, number in zip(files, numbers)}


def test_images_of_a_folder_are_found_by_extension_and_sorted(tmp_path, caplog):
    touch(tmp_path, "b.png", "a/c.JPG", "a/note.txt", "x.pdf", ".d.webp", "Thumbs.db", ".DS_Store")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = [str(file.relative_to(tmp_path)) for file in list_images(tmp_path)]
    assert names == ["a/c.JPG", "b.png", "link/c.JPG"]
    assert caplog.messages == [
        f"Left out of {tmp_path}: 1 hidden (names that begin with a dot, and __MACOSX) (.d.webp); 3 without the extension of an "
        "image (a/note.txt, link/note.txt, x.pdf)."
    ]
    assert find_images(tmp_path) == [tmp_path / "b.png"]
    assert find_images(tmp_path / ".d.webp") == [tmp_path / ".d.webp"]
    with pytest.raises(ValueError, match=r"--images must be an image or a folder of images, got .*none"):
        find_images(tmp_path / "none")


@pytest.mark.parametrize(
    "label",
    [
        "bullet train",
        "test",
        "Validation",
        "cat.v2",
        "100%",
        "$x_1",
        "猫",
        "cat\N{GRINNING FACE}",
        "two\nlines",
        "img[1]",
        "a*?{b}",
        "#1",
        " blank ",
        "-1",
    ],
)
def test_label_is_the_first_folder_whatever_its_name(label, tmp_path):
    expected = {f"{label}/1.png": label, f"{label}/2021/train/x test 3.PNG": label, "dog/val.jpeg": "dog"}
    assert labels(touch(tmp_path, *expected)) == expected


def test_links_are_followed_except_circular_ones(tmp_path, caplog):
    root = touch(tmp_path / "root", "cat/1.png")
    touch(tmp_path / "elsewhere", "2.png", "deep/3.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "4.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "cat" / "up").symlink_to(root)
    (root / "round").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    assert labels(root) == {"cat/1.png": "cat", "cat/4.png": "cat", "dog/2.png": "dog", "dog/deep/3.png": "dog"}
    assert "2 links to a folder that they are in (cat/up, round)" in caplog.text
    assert "2 links that lead nowhere (cat/gone.png, self)" in caplog.text


def test_two_links_to_the_same_folder_are_not_circular(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "root").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "root" / label).symlink_to(tmp_path / "elsewhere")
    assert labels(tmp_path / "root") == {"cat/1.png": "cat", "dog/1.png": "dog"}


def test_files_that_are_not_labeled_images_are_counted_and_named(tmp_path, caplog):
    touch(tmp_path, "cat/1.png", "dog/2.png", "3.png", "4.jpg", "cat/.ipynb_checkpoints/1-checkpoint.png")
    touch(tmp_path, "__MACOSX/cat/._1.png", ".git/x", "dog/._2.png", "dog/photo.heic", "dog/photo", "empty/notes.md")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert labels(tmp_path) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    for part in (
        "2 images directly in it, not in a label folder (3.png, 4.jpg)",
        "4 hidden (names that begin with a dot, and __MACOSX) (.git, __MACOSX, cat/.ipynb_checkpoints, dog/._2.png)",
        "2 without the extension of an image (dog/photo, empty/notes.md)",
        "1 HEIC images, which are not supported: convert them to JPEG or PNG (dog/photo.heic)",
        "1 folders without images, which are not labels (empty)",
        "1 neither files nor folders (cat/pipe.png)",
    ):
        assert part in caplog.text


def test_only_the_image_whose_name_is_not_utf8_is_left_out(tmp_path, caplog):
    touch(tmp_path, "cat/1.png", "dog/2.png", os.fsdecode(b"cat/caf\xe9.png"), os.fsdecode(b"k\xf6ter/3.png"))
    assert labels(tmp_path) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert r"2 images whose names are not UTF-8: rename them (cat/caf\xe9.png, k\xf6ter/3.png)" in caplog.text
    assert len(list_folder(tmp_path).files) == 4


def test_accents_as_macos_stores_them_give_the_same_label(tmp_path):
    touch(tmp_path, "cafe\N{COMBINING ACUTE ACCENT}/1.png", "dog/2.png")
    assert set(labels(tmp_path).values()) == {"caf\N{LATIN SMALL LETTER E WITH ACUTE}", "dog"}


def test_folders_with_one_folder_around_them_are_named(tmp_path, caplog):
    assert set(labels(touch(tmp_path, "pets/cat/1.png", "pets/dog/2.png")).values()) == {"pets"}
    assert (
        f"has only one folder, pets, whose folders (cat, dog) are not labels: if they should be, give {tmp_path}/pets."
        in (caplog.text)
    )


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["cats.zip"], [".hidden/1.png"]])
def test_folder_without_labels_is_refused_and_its_content_is_named(names, tmp_path):
    expected = {
        "1.png": "2 images directly in it, not in a label folder (1.png, 2.png)",
        "cats.zip": "1 without the extension of an image (cats.zip). Unpack cats.zip first.",
        ".hidden/1.png": "1 hidden (names that begin with a dot, and __MACOSX) (.hidden)",
    }
    with pytest.raises(ValueError, match="must hold images in a sub-folder for each label") as error:
        labels(touch(tmp_path, *names))
    assert expected[names[0]] in str(error.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/cat/1.png", "val/cat/1.png", "test/cat/1.png"], ["train", "validation", "test"]),
        (["TRAIN/cat/1.png", "Valid/cat/1.png"], ["train", "validation"]),
        (["train/cat/2021/1.png", "validation/cat/1.png"], ["train", "validation"]),
        (["Training/cat/1.png", "Testing/cat/1.png"], ["test", "train"]),
        (["train/cat/1.png", "dev/cat/1.png"], ["train", "validation"]),
        (["train/cat/1.png", "eval/cat/1.png"], ["train", "validation"]),
        # A test folder without label folders, as on Kaggle, is not a split.
        (["train/cat/1.png", "test/1.png"], ["train"]),
        (["train/cat/1.png", "val/notes.txt"], ["train"]),
        # Folders without images are not labels.
        (["train/cat/1.png", "val/cat/1.png", "annotations/1.xml", "logs/run/1.log"], ["train", "validation"]),
        (["train/metadata.csv", "test/metadata.csv"], ["train", "test"]),
        (["train/0.parquet", "val/0.parquet"], ["train", "validation"]),
        # These are labels, because there is another folder, or train has no folders.
        (["train/cat/1.png", "val/cat/1.png", "dog/1.png"], []),
        (["train/1.png", "val/1.png"], []),
        (["val/cat/1.png", "test/cat/1.png"], []),
        (["train/cat/1.png", "trains/cat/1.png"], []),
        (["train/.ipynb_checkpoints/1.png", "val/cat/1.png"], []),
    ],
)
def test_folders_are_splits_if_all_have_such_names_and_train_has_labels(names, splits, tmp_path):
    touch(tmp_path, *names, ".cache/1.png")
    assert sorted(split_folders(tmp_path)) == sorted(splits)


def test_folders_that_are_not_part_of_the_splits_are_named(tmp_path, caplog):
    touch(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png", "val/notes.txt", "logs/1.log")
    assert list(split_folders(tmp_path)) == ["train"]
    assert f"Left out of {tmp_path} because they have no images: logs." in caplog.messages
    assert f"Left out of {tmp_path} because they have no label folders: test, val." in caplog.messages


@pytest.mark.parametrize("names", [["training_set", "test_set"], ["seg_train", "seg_test"], ["train2017", "val2017"]])
def test_folders_whose_names_have_words_of_splits_are_refused_as_labels(names, tmp_path):
    touch(tmp_path, *(f"{name}/{label}/1.png" for name in names for label in ("cat", "dog")))
    with pytest.raises(
        ValueError, match=f"if they are splits, give {tmp_path}/{names[0]}; if they are labels, rename"
    ):
        labels(tmp_path)
    # These are the folders of Intel's images of scenes, next to another folder.
    touch(tmp_path, "seg_pred/seg_pred/1.png")
    assert set(labels(tmp_path).values()) == {*names, "seg_pred"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train", "val", "dog"],
            "has the folders train, val: if they are splits, give {}/train. They are taken as labels.",
        ),
        (
            ["a", "b"],
            "The labels a, b of {} all have the folders cat, dog, not taken as labels: if they should be, give",
        ),
    ],
)
def test_labels_that_could_be_splits_are_named(names, message, tmp_path, caplog):
    touch(tmp_path, *(f"{name}/{label}/1.png" for name in names for label in ("cat", "dog")))
    assert set(labels(tmp_path).values()) == {*names}
    assert message.format(tmp_path) in caplog.text


def test_folder_with_tables_in_a_subfolder_is_named(tmp_path):
    touch(tmp_path, "README.md", "data/train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=rf"Give {tmp_path}/data, which has \.parquet files\.$"):
        labels(tmp_path)


def test_metadata_is_found_in_any_case_and_other_formats_are_refused(tmp_path):
    assert metadata_file(touch(tmp_path, "cat/1.png")) is None
    assert metadata_file(touch(tmp_path, "Metadata.CSV")) == tmp_path / "Metadata.CSV"
    with pytest.raises(ValueError, match=r"must have one table of metadata, got .*Metadata.CSV, .*metadata.jsonl"):
        metadata_file(touch(tmp_path, "metadata.jsonl"))
    with pytest.raises(ValueError, match=r"must have its metadata as one of metadata.csv, .*, got metadata.tsv"):
        metadata_file(touch(tmp_path, "metadata.tsv"))


def test_folders_that_might_be_splits_are_named(tmp_path, caplog):
    assert set(labels(touch(tmp_path, "train/1.png", "test/1.png")).values()) == {"train", "test"}
    assert split_folders(tmp_path) == {}
    assert (
        "has the folders test, train, which are taken as labels, because train holds no folders of labels"
        in caplog.text
    )
    touch(tmp_path, "train/cat/1.png", "val/cat/1.png", "valid/cat/1.png")
    with pytest.raises(ValueError, match="has the folders val and valid for one split, validation: keep one of them"):
        split_folders(tmp_path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], {"train": 1, "test": 1}),
        (["imagenet-train-0000.tar", "imagenet-train-0001.tar", "imagenet_val_0.tar"], {"train": 2, "validation": 1}),
        (["TRAIN0.parquet", "valid.parquet"], {"train": 1, "validation": 1}),
        (["0.parquet", "contest.parquet", "constraint.parquet"], {"all": 3}),
        (["training-0.parquet", "testing-0.parquet"], {"train": 1, "test": 1}),
        (["training.parquet", "dev.parquet"], {"train": 1, "validation": 1}),
        (["train.test.parquet"], "says both test and train: rename it"),
        (
            ["train.parquet", "more.parquet"],
            "some files say which split they are (train), those of more.parquet do not",
        ),
    ],
)
def test_names_of_files_determine_the_splits(names, splits):
    files = [Path(name) for name in names]
    if isinstance(splits, str):
        with pytest.raises(ValueError, match="split") as error:
            split_files(files)
        assert splits in str(error.value)
    else:
        assert {name: len(part) for name, part in split_files(files).items()} == splits


def test_long_lists_are_truncated_and_names_stay_on_one_line():
    assert listed(["a\nb\x1b[31m", *map(str, range(11))]) == r"a\nb\x1b[31m, 0, 1, 2, 3, 4, 5, 6, 7, 8, and 2 more"


@pytest.mark.parametrize(
    ("name", "found"), [("inner/a.png", "1 sub-folders, which are not searched"), ("a.txt", "1 without the")]
)
def test_folder_without_images_is_refused_and_its_content_is_named(name, found, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"--images must be an image or a folder of images, got .* with {found}"):
        find_images(tmp_path)
