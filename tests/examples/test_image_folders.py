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
"""All images of a folder are loaded, with the names of sub-folders as labels, regardless of words in the names."""

import re
from collections import Counter
from pathlib import Path

import evaluate_classification
import pytest
from classification_utils import save_start
from datasets import Image as ImageFeature
from PIL import Image

from hf_twins.training.image_classification.arguments import DataArguments
from hf_twins.training.image_classification.data import load_images
from hf_twins.training.image_classification.folders import load_folder


pytestmark = pytest.mark.usefixtures("one_process")
# Two of ImageNet's classes by their WordNet ids, and their numbers.
SYNSETS = {"n01440764": 0, "n15075141": 999}
LAYOUTS = {
    "imagenet_val": {
        "n01440764": ["ILSVRC2012_val_00000293.JPEG", "ILSVRC2012_val_00002138.JPEG"],
        "n15075141": ["ILSVRC2012_val_00001079.JPEG", "ILSVRC2012_val_00003019.JPEG"],
    },
    "imagenet_train": {
        "n01440764": ["n01440764_10026.JPEG", "n01440764_10027.JPEG"],
        "n15075141": ["n15075141_1.JPEG", "n15075141_10.JPEG"],
    },
    "splits_in_file_names": {
        "cat": ["train_1.png", "test_1.png", "val-1.png", "eval.1.png", "dev 1.png", "plain.png"],
        "dog": ["training.png", "my test.png", "validation0.png", "other.png"],
    },
    "one_split_in_file_names": {"cat": ["train_1.png", "other.png"], "dog": ["dog.png"]},
    "splits_as_labels": {"test images": ["1.png"], "train": ["1.png", "2.png"], "val": ["1.png"], "dog": ["1.png"]},
    "wildcards": {"[cat]": ["a*.png", "b?.png", "[c].png"], "{dog}": ["%41 #1.png", "d!.png"]},
    "logs": {"cat": ["1.png", "1.eval"], "dog": ["1.png"]},
    "single_label": {"cat": ["test.png", "train.png"]},
}


def write_images(folder: Path, layout: dict[str, list[str]]) -> Path:
    for label, names in layout.items():
        (folder / label).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (24, 20), "red").save(folder / label / name, format="PNG")
    return folder


def labels_of_files(split) -> dict[str, str]:
    """The label of each image, by the last two parts of its path."""
    names = split.features["label"].names
    rows = split.cast_column("image", ImageFeature(decode=False))
    return {
        str(Path(row["image"]["path"]).relative_to(Path(row["image"]["path"]).parents[1])): names[row["label"]]
        for row in rows
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("parent", ["data", "test [v1]", "val/train"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_labels_are_the_names_of_the_folders(name, parent, streaming, tmp_path):
    layout = LAYOUTS[name]
    split = load_folder(str(write_images(tmp_path / parent, layout)), streaming)
    expected = {f"{label}/{file}": label for label in layout for file in layout[label] if not file.endswith(".eval")}
    assert labels_of_files(split) == expected
    assert split.features["label"].names == sorted(layout)
    assert sum(1 for _ in split) == len(expected)


def test_folder_is_found_by_any_kind_of_path(tmp_path, monkeypatch):
    images = write_images(tmp_path / ".cache" / "__val__", LAYOUTS["imagenet_val"])
    (tmp_path / "link").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    for name in (".cache/__val__", "./.cache/__val__/", "link", ".cache/../link"):
        split = load_folder(name)
        assert Counter(split["label"]) == {0: 2, 1: 2}, name
        assert split.features["label"].names == list(SYNSETS), name
    monkeypatch.chdir(images)
    assert len(load_folder(".")) == 4


@pytest.mark.parametrize("content", ["nothing", "labels", "text", "broken links"])
def test_folder_without_images_is_named(content, tmp_path):
    folder = tmp_path / "images"
    (folder / ("cat" if content in ("labels", "text") else "")).mkdir(parents=True)
    if content == "text":
        (folder / "cat" / "readme.txt").write_text("none here")
    if content == "broken links":
        (folder / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    found = {
        "nothing": "none of them.",
        "labels": "1 folders without images, which are not labels (cat).",
        "text": "1 without the extension of an image (cat/readme.txt); 1 folders without images, which are not labels (cat).",
        "broken links": "1 links that lead nowhere (cat).",
    }
    message = f"images must hold images in a sub-folder for each label, .parquet or .tar files, got {found[content]}"
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        load_folder(str(folder))


def test_training_and_validation_images_come_from_their_folders(tmp_path):
    train = write_images(tmp_path / "train", LAYOUTS["imagenet_train"])
    validation = write_images(tmp_path / "val", LAYOUTS["imagenet_val"])
    splits = load_images(DataArguments(train_dir=str(train), validation_dir=str(validation)), seed=0)
    assert sorted(splits) == ["train", "validation"]
    for split in splits.values():
        assert split.features["label"].names == list(SYNSETS)
        assert Counter(split["label"]) == {0: 2, 1: 2}


def test_original_validation_files_of_imagenet_are_evaluated(tmp_path):
    folder = write_images(tmp_path / "val", LAYOUTS["imagenet_val"])
    start = save_start(tmp_path / "start", num_labels=1000)
    results = evaluate_classification.main(
        ["--model_name_or_path", str(start), "--dataset_dir", str(folder), "--dataloader_num_workers", "0"]
    )
    assert (results["images"], results["corrupt_images"]) == (4, 0)
    names = load_folder(str(folder)).features["label"].names
    id2label = {number: f"LABEL_{number}" for number in range(1000)}
    assert dict(zip(names, evaluate_classification.label_numbers(names, id2label))) == SYNSETS
