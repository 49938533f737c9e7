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
"""The training and evaluation images in a folder, and their labels."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_twins._utils import image_folders
from hf_twins.training.data import check_is_no_image_folder, load_hub_splits
from hf_twins.training.image_classification import folders
from hf_twins.training.image_classification.arguments import DataArguments
from hf_twins.training.image_classification.data import load_images
from hf_twins.training.image_classification.folders import evaluation_part, folder_parts, load_folder


def write(folder: Path, *names: str) -> Path:
    """Write images whose brightness is the last digit in their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        brightness = int(next((digit for digit in reversed(name) if digit.isdecimal()), "0"))
        PILImage.new("L", (9, 8), brightness).save(folder / name, "PNG")
    return folder


def write_table(file: Path, rows: int, **columns: list) -> Path:
    """Write a .parquet file of images and labels, with a column that names the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    PILImage.new("L", (9, 8)).save(png, "PNG")
    images = [{"bytes": png.getvalue(), "path": f"{file.stem}.png"}] * rows
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"image": images, "label": [0, 1] * (rows // 2)}, features=features).to_parquet(file)
    return file.parent


def paths(split: Any) -> list[str]:
    return [image["path"] for image in split.cast_column("image", Image(decode=False))["image"]]


def load(folder: Path, **options: Any) -> dict[str, Any]:
    return load_images(DataArguments(train_dir=str(folder), **options), seed=0)


def evaluated(folder: Path, split: str | None = None) -> Any:
    return evaluation_part(str(folder), folder_parts(str(folder)), split).load()


def test_splits_of_folders_are_used_for_training_and_evaluation(tmp_path, caplog):
    for split, count in (("Train", 4), ("val", 2), ("test", 3)):
        write(tmp_path / split, *(f"{label}/{index}.png" for label in ("cat", "dog") for index in range(count)))
    splits = load(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "validation": 4}
    assert all(f"{tmp_path}/Train/" in path for path in paths(splits["train"]))
    assert splits["train"].features["label"].names == ["cat", "dog"]
    assert len(evaluated(tmp_path)) == 4
    assert len(evaluated(tmp_path, "test")) == 6
    assert f"{tmp_path} is divided into train, test, validation, as its names say." in caplog.text or (
        "is divided into" in caplog.text
    )
    with pytest.raises(ValueError, match=r"--split must be a split of .*, which has the splits .*, got dev\."):
        evaluated(tmp_path, "dev")
    with pytest.raises(ValueError, match=r"which is not divided into splits, got test\."):
        evaluated(tmp_path / "val", "test")


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_test_data_is_never_trained_on(streaming, tmp_path, caplog):
    folder = write_table(tmp_path / "train-00000-of-00002.parquet", 10)
    write_table(tmp_path / "train-00001-of-00002.parquet", 10)
    write_table(tmp_path / "test-00000-of-00001.parquet", 6)
    write_table(tmp_path / "VAL[1].parquet", 4)
    splits = load(folder, streaming=streaming)
    assert Counter(paths(splits["validation"])) == {"VAL[1].png": 4}
    train = splits["train"].cast_column("image", Image(decode=False))
    trained = [row["image"]["path"] for row in train]
    assert Counter(trained) == {"train-00000-of-00002.png": 10, "train-00001-of-00002.png": 10}
    (folder / "VAL[1].parquet").unlink()
    assert Counter(paths(load(folder)["validation"])) == {"test-00000-of-00001.png": 6}
    assert "Evaluating on the test images of" in caplog.text
    for file in folder.glob("train*"):
        file.unlink()
    with pytest.raises(ValueError, match="must hold training images, got only images of test, going by its names"):
        load(folder)
    assert len(evaluated(folder)) == 6


def test_tables_in_split_folders_are_the_splits(tmp_path):
    write_table(tmp_path / "train" / "0.parquet", 8)
    write_table(tmp_path / "test" / "0.parquet", 2)
    assert {name: len(split) for name, split in load(tmp_path).items()} == {"train": 8, "validation": 2}


def test_images_to_evaluate_on_are_not_trained_on(tmp_path, caplog):
    write(tmp_path, *(f"{label}/{index}.png" for label in ("cat", "dog", "val/cat", "val/dog") for index in range(3)))
    with pytest.raises(
        ValueError, match=f"--validation_dir must not be in --train_dir, .*, got {tmp_path}/val in {tmp_path}:"
    ):
        load(tmp_path, validation_dir=str(tmp_path / "val"))
    (tmp_path / "link").symlink_to(tmp_path / "val")
    with pytest.raises(ValueError, match="--validation_dir must not be in --train_dir"):
        load(tmp_path, validation_dir=str(tmp_path / "link"))
    load(tmp_path / "val", validation_dir=str(tmp_path / "val"))
    assert f"The evaluation images are the training images, all of {tmp_path}/val." in caplog.messages
    # Splits of one folder are next to each other.
    write(tmp_path / "split", *(f"{name}/1.png" for name in ("train/cat", "train/dog", "val/cat", "val/dog")))
    splits = load(tmp_path / "split", validation_dir=str(tmp_path / "split" / "val"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "validation": 2}


def test_label_with_only_corrupt_images_is_named(tmp_path, caplog):
    write(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "3.png").write_text("no image")
    load(tmp_path, validation_dir=str(tmp_path))
    assert "1 labels have no training images: cow." in caplog.messages


def test_files_next_to_tables_are_named(tmp_path, caplog):
    write(write_table(tmp_path / "0.parquet", 8), "cat/1.png")
    (tmp_path / "1.tar").touch()
    assert len(load_folder(str(tmp_path))) == 8
    assert f"Only the .parquet files of {tmp_path} are read, not what is beside them: cat, 1.tar." in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_truncated_between_two_images_is_refused(streaming, tmp_path):
    write(tmp_path / "images", "1.png", "2.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.png", "2.png"):
            archive.add(tmp_path / "images" / name, name)
    with tarfile.open(tmp_path / "a.tar") as archive:
        start = archive.getmembers()[1].offset
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:start])
    with pytest.raises(
        ValueError, match=rf"a\.tar is broken: it is truncated or damaged at byte {start}, after 1 members"
    ):
        load_folder(str(tmp_path), streaming)


def test_names_of_tar_files_determine_the_splits(tmp_path):
    for name, count in (("data-train-000.tar", 4), ("data-train-[1].tar", 4), ("data-test-000.tar", 2)):
        with tarfile.open(tmp_path / name, "w") as archive:
            for index in range(count):
                image = io.BytesIO()
                PILImage.new("RGB", (9, 8)).save(image, "PNG")
                for suffix, content in (("png", image.getvalue()), ("cls", b"%d" % (index % 2))):
                    member = tarfile.TarInfo(f"{name}{index}.{suffix}".replace(".tar", "_"))
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    splits = load(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "validation": 2}
    assert splits["train"].features["label"].names == ["0", "1"]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_names_with_patterns_and_splits_are_all_read(streaming, tmp_path):
    names = [
        f"{label}/{file}" for label in ("img[1]", "x test", "100%") for file in ("train-1.png", "a*2.png", "b?3.png")
    ]
    write(tmp_path, *names)
    split = load_folder(str(tmp_path), streaming)
    labels = split.features["label"].names
    assert labels == ["100%", "img[1]", "x test"]
    assert Counter(labels[row["label"]] for row in split) == dict.fromkeys(labels, 3)
    # The content of each image matches its path.
    assert sorted(row["image"].getpixel((0, 0)) for row in split) == sorted([1, 2, 3] * 3)


def test_long_stream_is_read_in_shards_of_all_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "NUM_SHARDS", 4)
    write(tmp_path, *(f"{label}/{index}.png" for label in ("cat", "dog") for index in range(8)))
    stream = load_folder(str(tmp_path), streaming=True)
    assert stream.num_shards == 4
    labels = [row["label"] for row in stream]
    assert Counter(labels) == {0: 8, 1: 8}
    assert labels != sorted(labels)
    # The shards are the same in every process.
    assert labels == [row["label"] for row in load_folder(str(tmp_path), streaming=True)]


def test_folder_that_was_changed_is_read_again(tmp_path):
    write(tmp_path, "cat/1.png", "dog/2.png")
    first = load(tmp_path, validation_dir=str(tmp_path))["train"]
    assert load(tmp_path, validation_dir=str(tmp_path))["train"]._fingerprint == first._fingerprint
    (tmp_path / "cat" / "1.png").write_text("no image")
    assert len(load(tmp_path, validation_dir=str(tmp_path))["train"]) == 1


@pytest.mark.slow
def test_a_thousand_labels_are_read(tmp_path):
    for index in range(1000):
        (tmp_path / f"n{index:08}").mkdir()
        (tmp_path / f"n{index:08}" / "ILSVRC2012_val_00000001.JPEG").touch()
    split = load_folder(str(tmp_path))
    assert split["label"][:] == list(range(1000))


METADATA = {
    "csv": ("metadata.csv", "file_name,kind,note\nimg/1.png,cat,a\nimg/2.png,dog,\nimg/3.png,,c\n"),
    "csv of Excel": ("metadata.csv", "\ufefffile_name,kind\r\nimg/1.png,cat\r\nimg/2.png,dog\r\n"),
    "jsonl": (
        "metadata.jsonl",
        '{"file_name": "img/1.png", "kind": "cat"}\n{"file_name": "./img/2.png", "kind": "dog"}\n',
    ),
    "jsonl of Notepad": (
        "metadata.jsonl",
        '\ufeff{"file_name":"img/1.png","kind":"cat"}\n{"file_name":"img/2.png","kind":"dog"}',
    ),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_keeps_its_meaning(kind, streaming, tmp_path, caplog):
    name, text = METADATA[kind]
    write(tmp_path, "img/1.png", "img/2.png", "img/3.png", "4.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    split = load_folder(str(tmp_path), streaming)
    rows = [(row["image"].getpixel((0, 0)), row["kind"]) for row in split]
    assert rows[:2] == [(1, "cat"), (2, "dog")]
    assert f"images of {tmp_path} are not named in {name} and are left out: 4.png" in caplog.text
    if not streaming:
        images = load(tmp_path, validation_dir=str(tmp_path), label_column_name="kind")["train"]
        assert (images.features["label"].names, images["label"][:]) == (["cat", "dog"], [0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,kind\n1.png,a\n", "must have one column file_name and others of other names, got file, kind"),
        ("file_name\n1.png\n", "must have a column with the labels beside file_name"),
        ("file_name,kind\n../1.png,a\n", r"must name files in its folder or below, got \.\./1.png"),
        ("file_name,kind\n/etc/1.png,a\n", "must name files in its folder or below, got /etc/1.png"),
        ("file_name,image\n1.png,a\n", "must have no column image"),
        ("file_name,kind\n1.png,a,b\n", "metadata.csv cannot be read: CSV parse error"),
        ("file_name,kind\n..\\1.png,a\n", r"must name files in its folder or below, got \.\.\\1.png"),
        ("file_name,kind\nx\\1.png,a\n", "got none that is there, such as x/1.png, and 1.png is not named"),
        ("file_name,kind\n", "must name images by their paths below its folder, got none that is there, and 1.png"),
        ("file_name,kind\n1.png,a\n./1.png,b\n", "must have one row for each image, got different ones for 1.png"),
        (b"file_name,kind\n1.png,caf\xe9\n", "must be UTF-8 text: save it as such"),
    ],
)
def test_ambiguous_or_invalid_metadata_is_refused(text, message, tmp_path):
    write(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_folder(str(tmp_path))


def test_missing_images_named_in_metadata_are_listed(tmp_path, caplog):
    write(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,0\n2.png,1\n3.png,1\n")
    assert len(load_folder(str(tmp_path))) == 2
    assert f"1 images that {tmp_path / 'metadata.csv'} names are not there and are left out: 3.png." in caplog.text


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["folders", "column"])
def test_split_column_of_metadata_determines_the_splits(kind, streaming, tmp_path, caplog):
    lines = ["file_name,label,split" if kind == "column" else "file_name,label"]
    for index, split in enumerate(["train", "train", "test"] * 2):
        name = f"images/{index}.png" if kind == "column" else f"{split}/{index}.png"
        write(tmp_path, name)
        lines.append(f"{name},{index % 2},{split}" if kind == "column" else f"{name},{index % 2}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    splits = folders.load_folders(str(tmp_path), streaming=streaming)
    numbers = {name: sorted(row["image"].getpixel((0, 0)) for row in split) for name, split in splits.items()}
    assert numbers == {"train": [0, 1, 3, 4], "validation": [2, 5]}
    assert set(splits["train"].features) == {"image", "label"}
    assert f"{tmp_path} is divided into train, test, as its names say." in caplog.messages


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_split_column_of_parquet_determines_the_splits(streaming, tmp_path):
    write_table(tmp_path / "0.parquet", 6)
    table = pq.read_table(tmp_path / "0.parquet")
    for values, expected in (
        (["Training", "train", "Test", "test", "train", "train"], {"train": 4, "validation": 2}),
        (["a", "b", "a", "b", "a", "b"], None),
        (
            ["train", "train", "test", "other", "train", "train"],
            "must say train, validation or test in every row, got other",
        ),
    ):
        pq.write_table(table.append_column("split", [values]), tmp_path / "0.parquet")
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                load(tmp_path, streaming=streaming)
        elif expected is None:
            assert list(folder_parts(str(tmp_path))) == ["all"]
        else:
            splits = load(tmp_path, streaming=streaming)
            assert {name: len([*split]) for name, split in splits.items()} == expected


def test_evaluation_images_that_are_training_images_are_named(tmp_path, caplog):
    tables = write_table(tmp_path / "tables" / "0.parquet", 40)
    load(tables, validation_dir=str(tables))
    assert f"The evaluation images are the training images, all of {tables}." in caplog.messages
    write(tmp_path / "data", *(f"{label}/{index}.png" for label in ("cat", "dog") for index in range(3)))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "cat").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "links" / "0.parquet").symlink_to(tables / "0.parquet")
    load(tables, validation_dir=str(tmp_path / "links"))
    assert f"Some evaluation images are training images, too, those of {tables}/0.parquet." in caplog.messages
    (tmp_path / "links" / "0.parquet").unlink()
    load(tmp_path / "data", validation_dir=str(tmp_path / "links"))
    assert f"Some evaluation images are training images, too, those of {tmp_path}/data/cat." in caplog.messages


def test_unlabeled_test_images_are_left_out_and_others_held_out(tmp_path, caplog):
    write(tmp_path, *(f"train/{label}/{index}.png" for label in ("cat", "dog") for index in range(8)), "test/1.png")
    (tmp_path / "val").mkdir()
    splits = load(tmp_path)
    assert sum(map(len, splits.values())) == 16
    assert f"Left out of {tmp_path} because they have no label folders: test, val." in caplog.messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_name,kind\nimg\\1.png,a\n.\\img\\2.png,b\n", ["a", "b"]),
        ("file_name,kind\nimg/1.png,a\nimg/./1.png,a\nimg/2.png,b\n", ["a", "b"]),
        ("file_name,kind\nimg/1.png,NA\nimg/2.png,null\n", ["NA", "null"]),
        ("file_name,kind\nimg/1.png,01\nimg/2.png,1\n", ["01", "1"]),
        ("file_name,kind\nimg/1.png,007\nimg/2.png,NA\n", ["007", None]),
        ("file_name,kind\nimg/1.png,-1\nimg/2.png,\n", [-1, None]),
    ],
    ids=["backslashes", "repeated", "null", "zeros", "zeros and gaps", "numbers"],
)
def test_metadata_is_read_as_it_is_written(text, expected, tmp_path, caplog):
    write(tmp_path, "img/1.png", "img/2.png")
    (tmp_path / "Metadata.CSV").write_text(text)
    assert load_folder(str(tmp_path))["kind"][:] == expected
    assert ("1 rows of" in caplog.text) == ("./1" in text)


@pytest.mark.parametrize("kind", ["file", "zip", "missing", "home"])
def test_path_that_is_not_a_folder_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.zip").touch()
    (tmp_path / "1.png").touch()
    name = {"file": "1.png", "zip": "cats.zip", "missing": "nowhere", "home": "~/images"}[kind]
    with pytest.raises(ValueError, match=f"{name} must be a folder, of images") as error:
        load_folder(name)
    assert ("Unpack cats.zip first" in str(error.value)) == (kind == "zip")


def test_folder_of_images_is_refused_as_a_dataset_name(tmp_path):
    write(tmp_path / "images", "bullet train/1.png", "dog/2.png")
    with pytest.raises(
        ValueError, match="images is a folder of images: give it as --train_dir instead of --dataset_name"
    ):
        load_hub_splits(str(tmp_path / "images"))
    (tmp_path / "images" / "README.md").write_text("---\nlicense: mit\n---\n")
    check_is_no_image_folder(str(tmp_path / "images"), "--train_dir")
    check_is_no_image_folder(str(write_table(tmp_path / "tables" / "train.parquet", 2)), "--train_dir")
    check_is_no_image_folder("someone/images", "--train_dir")


def test_names_of_dataset_splits_determine_their_use(tmp_path, caplog):
    for split, count in (("train", 4), ("test", 2), ("dev", 6)):
        write_table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", count)
    card = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"data/{s}-*"} for s in ("train", "test", "dev")],
            }
        ]
    }
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    splits = load_hub_splits(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "validation": 6}
    assert "Evaluating on the dev split of" in caplog.text


LAYOUTS = {
    "labels": (("cat/a.png", "dog/b.png", "cat/deep/c.png"), ""),
    "splits": (("train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png"), ""),
    "metadata": (("a.png", "deep/b.png", "c.png"), "file_name,label\na.png,0\ndeep/b.png,1\nc.png,0\n"),
}


@pytest.mark.parametrize(("names", "table"), LAYOUTS.values(), ids=LAYOUTS)
def test_folder_is_listed_once_for_images_and_links(names, table, tmp_path, monkeypatch):
    """Listing a million images takes seconds."""
    folder, output = tmp_path / "images", tmp_path / "elsewhere"
    write(folder, *names)
    write(output, "x.png")
    label = Path(names[0]).parent
    (folder / label / "link.png").symlink_to(output / "x.png")
    if table:
        (folder / "metadata.csv").write_text(table)
    listed: Counter[str] = Counter()
    search = image_folders.list_folder

    def counted(path: str | Path, recursive: bool = True) -> image_folders.Listing:
        listing = search(path, recursive)
        listed.update(f"{path}/{file}" for file in listing.files)
        return listing

    for module in (image_folders, folders):
        monkeypatch.setattr(module, "list_folder", counted)
    with pytest.raises(ValueError, match=f"--output_dir must be another folder than {output}, where the input is"):
        folders.load_folders(str(folder), output_dir=output)
    listed.clear()
    splits = folders.load_folders(str(folder), output_dir=tmp_path / "run")
    assert sum(map(len, splits.values())) >= len(names)
    # The first label folder is also listed, to decide whether folders are splits.
    assert all(count == 1 or "train/cat" in path or "val/cat" in path for path, count in listed.items()), listed
    assert len(listed) == len(names) + 1
