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
"""Labels of a dataset, by name or by number; images without a label are left out and named."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array3D, ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_twins.training.data import only_column
from hf_twins.training.image_classification.arguments import DataArguments
from hf_twins.training.image_classification.data import Preparation, StreamedImages, load_images, with_columns
from hf_twins.training.image_classification.folders import load_folder
from hf_twins.training.image_classification.labels import with_label_names


def make_png(brightness: int = 0) -> bytes:
    file = io.BytesIO()
    PILImage.new("L", (9, 8), brightness).save(file, "PNG")
    return file.getvalue()


def table(labels: list[Any], feature: Any, **columns: Any) -> Dataset:
    """A dataset of images whose brightness is the number of their row."""
    images = [{"bytes": make_png(row), "path": f"{row}.png"} for row in range(len(labels))]
    features = Features({"image": Image(), "label": feature} | {name: each for name, (_, each) in columns.items()})
    values = {name: each for name, (each, _) in columns.items()}
    return Dataset.from_dict({"image": images, "label": labels} | values, features=features)


def load(folder: Path, **options: Any) -> dict[str, Any]:
    return load_images(DataArguments(train_dir=str(folder), validation_dir=str(folder), **options), seed=0)


def named(split: Dataset) -> dict[int, str]:
    """The label of each image, by its brightness."""
    names = split.features["label"].names
    return {row["image"].getpixel((0, 0)): names[row["label"]] for row in split}


COLUMNS = {
    "two ClassLabels and a text": (
        {"fine": ClassLabel(names=["a"]), "coarse": ClassLabel(names=["b"]), "text": Value("string")},
        None,
    ),
    "one ClassLabel and a text": ({"kind": ClassLabel(names=["a"]), "text": Value("string")}, "kind"),
    "two texts": ({"title": Value("string"), "kind": Value("string")}, None),
    "one of the name": ({"label": Value("string"), "fine": ClassLabel(names=["a"])}, "label"),
    "webdataset's own": ({"cls": Value("int64"), "__key__": Value("string"), "__url__": Value("string")}, "cls"),
    "lists": ({"onehot": List(Value("int64"))}, None),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_column_is_found_or_asked_for(kind):
    columns, expected = COLUMNS[kind]
    features = Features({"photo": Image()} | columns)
    if expected is not None:
        assert only_column(features, "label", (ClassLabel, Value)) == expected
        return
    with pytest.raises(
        ValueError, match=r"Which column is the label\? Set --label_column_name to one of photo, "
    ) as error:
        only_column(features, "label", (ClassLabel, Value))
    assert all(name in str(error.value) for name in columns)


def test_column_is_not_chosen_if_another_type_is_ambiguous():
    features = Features({"before": Image(), "after": Image(), "pixels": Array3D((2, 2, 3), "uint8")})
    with pytest.raises(
        ValueError, match=r"Which column is the image\? Set --image_column_name to one of before, after, pixels"
    ):
        only_column(features, "image", (Image, Array3D))


LABELS = {
    "ClassLabel": ([0, -1, 1, None, 0], ClassLabel(names=["b", "a"]), {0: "b", 2: "a", 4: "b"}),
    "text": (["b", None, "a", "", " b "], Value("string"), {0: "b", 2: "a", 4: "b"}),
    "int": ([3, None, 10, -1, 3], Value("int32"), {0: "3", 2: "10", 4: "3"}),
    "float": ([3.0, None, 10.0, float("nan"), 3.0], Value("float64"), {0: "3", 2: "10", 4: "3"}),
    "bool": ([True, None, False, None, True], Value("bool"), {0: "True", 2: "False", 4: "True"}),
    "signs": ([-1, 1, -1, 1, None], Value("int64"), {0: "-1", 1: "1", 2: "-1", 3: "1"}),
    "texts of numbers": (["-1", "7", "-1", None, "None"], Value("string"), {0: "-1", 1: "7", 2: "-1", 4: "None"}),
}


@pytest.mark.parametrize("kind", LABELS)
def test_image_without_a_label_is_left_out_and_named(kind, caplog):
    values, feature, expected = LABELS[kind]
    split = with_label_names({"train": table(values, feature)})["train"]
    assert named(split) == expected
    missing = [f"{row}.png" for row in range(5) if row not in expected]
    assert f"{len(missing)} images of train have no label and are left out: {', '.join(missing)}." in caplog.messages


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([[0, 1], [1, 0]], List(Value("int64")), "must have texts or numbers, one for each image"),
        ([0.25, 0.5], Value("float32"), r"must be texts or whole numbers, got 0\.25"),
        (
            [-1, -1],
            ClassLabel(names=["a", "b"]),
            "No image of train has a label: give another --label_column_name, or another",
        ),
        ([None, None], Value("string"), "No image of train has a label"),
        ([None, None], Value("null"), "No image of train has a label"),
        ([-1, -1], Value("int64"), "No image of train has a label"),
    ],
)
def test_column_without_labels_is_refused(values, feature, message):
    with pytest.raises(ValueError, match=message):
        with_label_names({"train": table(values, feature)})


@pytest.mark.parametrize("check_images", [True, False])
def test_row_without_an_image_is_left_out_and_named(check_images, tmp_path, caplog):
    images = [make_png(0), None, make_png(2), make_png(3)]
    images = [None if image is None else {"bytes": image, "path": None} for image in images]
    images.append({"bytes": None, "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    columns = pa.table({"image": images, "label": [0, 0, 1, -1, 1]}).cast(features.arrow_schema)
    pq.write_table(columns, tmp_path / "a.parquet")
    splits = load(tmp_path, check_images=check_images)
    for name, split in splits.items():
        assert named(split) == {0: "a", 2: "b"}
        assert f"1 images of {name} have no label and are left out: image 3." in caplog.messages
        assert f"2 images of {name} have no image and are left out: image 1, image 4." in caplog.messages


def test_arrays_and_columns_of_other_programs_are_read_as_images(tmp_path):
    features = Features({"image": Array3D((2, 2, 3), "uint8"), "label": ClassLabel(names=["a", "b"])})
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    arrays = Dataset.from_dict({"image": [pixels, None, pixels], "label": [0, 1, 1]}, features=features)
    assert with_label_names({"train": arrays})["train"]["label"][:] == [0, 1]
    for column in ([make_png(0), make_png(1), None], [{"bytes": make_png(0)}, {"bytes": make_png(1)}, None]):
        file = tmp_path / "a.parquet"
        pq.write_table(pa.table({"photo": column, "label": ["a", "b", "a"]}), file)
        splits = load(tmp_path, image_column_name="photo")
        assert named(splits["train"]) == {0: "a", 1: "b"}
    pq.write_table(pa.table({"photo": ["/etc/passwd", "b.png"], "label": ["a", "b"]}), file)
    with pytest.raises(ValueError, match="--image_column_name must be a column of images, got photo, a column of "):
        load(tmp_path, image_column_name="photo")
    with pytest.raises(ValueError, match="must be two columns, got label for both"):
        load(tmp_path, image_column_name="label", label_column_name="label")


def test_stream_leaves_out_rows_without_an_image_or_label(tmp_path, caplog):
    values = [0, -1, None, 1]
    one = table(values, ClassLabel(names=["a", "b"])).rename_columns({"image": "photo", "label": "kind"})
    one.to_parquet(tmp_path / "a.parquet")
    features = Features({"photo": Image(), "kind": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"photo": [None, make_png(7), b"broken"], "kind": [0, 1, 1]}, features=features).to_parquet(
        tmp_path / "b.parquet"
    )
    stream = with_label_names({"train": with_columns(load_folder(str(tmp_path), streaming=True), DataArguments())})[
        "train"
    ]
    images = StreamedImages(stream, Preparation(lambda image: image.getpixel((0, 0)), 1), 3, 3, 1)
    assert {(example["pixel_values"], example["labels"]) for example in images} == {(0, 0), (3, 1), (7, 1)}
    for message in (
        "it has no label: 1.png",
        "it has no label: 2.png",
        "there is no image: None",
        "it cannot be decoded: None",
    ):
        assert f"left out, because {message} (" in caplog.text


def write_names(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "names.txt").write_bytes(text.encode(encoding))
    return str(folder / "names.txt")


NAMES = {
    "another order": (["cat", "dog", "fish"], "fish\ndog\ncat\n", ["fish", "dog", "cat"]),
    "byte-order mark and carriage returns": (["cat", "dog"], "\ufeffcat\r\ndog\r\n", ["cat", "dog"]),
    "blank last lines": (["cat", "dog"], "cat\ndog \n\n  \n", ["cat", "dog"]),
    "characters that end lines elsewhere": (["cat", "dog"], "a\x0bb\u2028\ncat\ndog", None),
    "numbered folders": ([str(n) for n in range(11)], "\n".join("abcdefghijk"), list("abcdefghijk")),
    "zeros in front": (["00", "01", "02"], "a\nb\nc", ["a", "b", "c"]),
    "numbers as names": (["0", "1", "2"], "2\n1\n0", ["2", "1", "0"]),
    "accents of macOS": (
        ["cafe\N{COMBINING ACUTE ACCENT}", "dog"],
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}\ndog",
        ["café", "dog"],
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_a_file_belong_to_the_labels_of_their_name_or_number(kind, tmp_path):
    labels, text, expected = NAMES[kind]
    images = tmp_path / "images"
    for row, label in enumerate(labels):
        (images / label).mkdir(parents=True)
        (images / label / "1.png").write_bytes(make_png(row))
    options = {"class_names_file": write_names(tmp_path, text)}
    if expected is None:
        with pytest.raises(ValueError, match="got 3 for 2: no image has "):
            load(images, **options)
        return
    split = load(images, **options)["train"]
    assert split.features["label"].names == expected
    is_by_name = set(expected) == {label.replace("e\N{COMBINING ACUTE ACCENT}", "é") for label in labels}
    for row, label in named(split).items():
        assert label == (
            labels[row].replace("e\N{COMBINING ACUTE ACCENT}", "é") if is_by_name else expected[int(labels[row])]
        )


@pytest.mark.parametrize(
    ("labels", "text", "message"),
    [
        (["cat", "dog", "fish"], "a\nb\nc\n", "got no name for cat, dog, fish of train"),
        (["cat", "dog", "fish"], "cat\ndog\n", "got no name for fish of train"),
        (
            ["cat", "dog"],
            "cat\ndog\ncow\n",
            "must have the names of the dataset's labels, got 3 for 2: no image has cow",
        ),
        (["0", "1"], "a\nb\nc\n", "got 3 for 2: no image has c"),
        (["1", "2"], "a\nb\n", "a name for every label, counted from 0, got 2 names, and in train the labels 2"),
        (["1", "01"], "a\nb\nc\n", "got no name for 01, 1 of train"),
        (["cat", "1"], "a\nb\n", "got no name for 1, cat of train"),
        (["0", "1", "2", "3", "4"], "1\n2\n3\n4\n5\n", "got no name for 0 of train"),
        (["Cat", "dog"], "cat\ndog\n", "got no name for Cat of train"),
    ],
)
def test_mismatched_label_names_are_refused(labels, text, message, tmp_path):
    for label in labels:
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "1.png").write_bytes(make_png())
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "images", class_names_file=write_names(tmp_path, text))


def test_names_and_numbers_are_not_mixed(tmp_path):
    names = write_names(tmp_path, "1\n2\n3")
    splits = {"train": table([1, 2], Value("int64")), "validation": table([0], Value("int64"))}
    with pytest.raises(ValueError, match="got no name for 0 of train and validation"):
        with_label_names(splits, names)
    (tmp_path / "images").mkdir()
    table(["1", "0"], Value("string")).to_parquet(tmp_path / "images" / "a.parquet")
    stream = load_folder(str(tmp_path / "images"), streaming=True)
    with pytest.raises(ValueError, match="got no name for 0 of the stream"):
        list(with_label_names({"train": stream}, names, allow_unused=True)["train"])


def test_names_of_labels_without_images_are_listed(tmp_path, caplog):
    table([0, 2, 0, 2], Value("int64")).to_parquet(tmp_path / "a.parquet")
    names = write_names(tmp_path, "a\nb\nc")
    assert named(load(tmp_path, class_names_file=names)["train"]) == {0: "a", 1: "c", 2: "a", 3: "c"}
    assert f"No image has the label b of {names}." in caplog.messages
    assert f"The labels are numbers of lines of {names}, from 0: 0 = a, 2 = c." in caplog.messages
    with pytest.raises(ValueError, match="counted from 0, got 2 names, and in train the labels 2"):
        load(tmp_path, class_names_file=write_names(tmp_path, "a\nb"))


def test_evaluation_uses_the_label_numbers_of_training():
    train = table(["a", "b"], Value("string"))
    splits = with_label_names({"train": train, "validation": table([1, 0, 1], ClassLabel(names=["a", "b"]))})
    assert splits["validation"]["label"][:] == [1, 0, 1]
    # The labels have another order and another type.
    splits = with_label_names({"train": train, "validation": table([1, 0], ClassLabel(names=["b", "a"]))})
    assert named(splits["validation"]) == {0: "a", 1: "b"}
    with pytest.raises(ValueError, match="Evaluation images have labels that training images lack: c"):
        with_label_names({"train": train, "validation": table(["a", "c"], Value("string"))})


def test_stream_takes_names_and_numbers_from_a_file(tmp_path):
    names = write_names(tmp_path, "b\na\n3")
    (tmp_path / "images").mkdir()
    for values, feature, expected in (
        (["a", None, "b"], Value("string"), [1, -1, 0]),
        ([1, -1, 0], Value("int64"), [1, -1, 0]),
        ([0, None, 1], ClassLabel(names=["a", "b"]), [1, -1, 0]),
    ):
        table(values, feature).to_parquet(tmp_path / "images" / "a.parquet")
        stream = load_folder(str(tmp_path / "images"), streaming=True)
        split = with_label_names({"train": stream}, names, allow_unused=True)["train"]
        assert [row["label"] for row in split] == expected
    table(["a", "x"], Value("string")).to_parquet(tmp_path / "images" / "a.parquet")
    stream = load_folder(str(tmp_path / "images"), streaming=True)
    with pytest.raises(ValueError, match="got no name for x of the stream"):
        list(with_label_names({"train": stream}, names)["train"])
