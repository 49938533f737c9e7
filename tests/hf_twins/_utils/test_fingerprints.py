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
"""Fingerprints of models and data: they change with the content, and only with the content."""

import errno
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, NamedSplit, Value, load_dataset

from hf_twins import TwinsConfig, TwinsForImageClassification, TwinsImageProcessor
from hf_twins._utils import files as files_module
from hf_twins._utils.files import ReadError
from hf_twins._utils.fingerprints import (
    dataset_fingerprint,
    file_digest,
    files_fingerprint,
    model_fingerprint,
)
from hf_twins.training.data import renamed_columns


NAMES = ["a/1.png", "b/2.png", os.fsdecode(b"b/\xff.png")]


def write_folder(folder: Path, content: bytes = b"0" * 10) -> Path:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_files_fingerprint_of_a_copy_is_the_same_regardless_of_times(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "folder")
    expected = files_fingerprint(folder, NAMES)
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / NAMES[0], (0, 0))
    monkeypatch.chdir(tmp_path)
    assert files_fingerprint("copy", iter(NAMES)) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / NAMES[1]).write_bytes(b"0" * 9 + b"1"),
        lambda folder: (folder / NAMES[1]).write_bytes(b"0" * 11),
        lambda folder: (folder / NAMES[1]).write_bytes(b""),
        lambda folder: NAMES[:2],
        lambda folder: NAMES[::-1],
        lambda folder: (folder / NAMES[1]).rename(folder / "b/3.png") and [NAMES[0], "b/3.png", NAMES[2]],
    ],
    ids=["bytes", "size", "empty", "fewer", "order", "name"],
)
def test_files_fingerprint_depends_on_names_and_content(change, tmp_path):
    folder = write_folder(tmp_path)
    expected = files_fingerprint(folder, NAMES)
    changed = change(folder)
    assert files_fingerprint(folder, changed if isinstance(changed, list) else NAMES) != expected


@pytest.mark.parametrize("size", [1, 100_000, 1_000_000])
def test_files_fingerprint_depends_on_every_byte(size, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    digests = {files_fingerprint(tmp_path, ["file"])}
    positions = {0, size // 2, size - 1}
    for position in positions:
        content = bytearray(size)
        content[position] = 1
        file.write_bytes(content)
        digests.add(files_fingerprint(tmp_path, ["file"]))
    assert len(digests) == 1 + len(positions)


def test_digest_of_a_file_covers_the_entire_file(tmp_path):
    file = tmp_path / "file"
    digests = set()
    for middle in (b"0", b"1"):
        file.write_bytes(b"0" * 200_000 + middle + b"0" * 200_000)
        digests.add(file_digest(file))
    assert len(digests) == 2


def test_missing_file_is_named_without_retries(tmp_path):
    started = time.perf_counter()
    for read in (lambda: files_fingerprint(tmp_path, ["none.png"]), lambda: file_digest(tmp_path / "none.png")):
        with pytest.raises(ReadError, match=r"none\.png does not exist\.$"):
            read()
    assert time.perf_counter() - started < 0.3


def test_file_is_read_again_after_a_system_error(tmp_path, monkeypatch):
    folder = write_folder(tmp_path)
    expected = files_fingerprint(folder, NAMES)
    monkeypatch.setattr(files_module, "READING_PAUSES", (0.0, 0.0))
    faults = [errno.EIO, errno.ESTALE]
    digest = hashlib.file_digest

    def failing(*args):
        if faults:
            raise OSError(faults[-1], os.strerror(faults.pop()))
        return digest(*args)

    monkeypatch.setattr(hashlib, "file_digest", failing)
    assert files_fingerprint(folder, NAMES) == expected
    faults += [errno.EMFILE] * 3
    with pytest.raises(
        ReadError,
        match=r"1\.png could not be read in 3 tries \(Too many open files; raise the number.*\): start again",
    ):
        files_fingerprint(folder, NAMES[:1])


def tiny_config(**changes) -> TwinsConfig:
    return TwinsConfig(**{"hidden_sizes": [4, 4, 4, 4], "num_attention_heads": [1] * 4, "depths": [1] * 4} | changes)


def fingerprint_of(processor: TwinsImageProcessor | None = None, **changes) -> str:
    torch.manual_seed(0)
    return model_fingerprint(TwinsForImageClassification(tiny_config(**changes)), processor or TwinsImageProcessor())


def test_model_fingerprint_does_not_depend_on_saving_and_the_name_of_the_source(tmp_path):
    model = TwinsForImageClassification(tiny_config()).eval()
    expected = model_fingerprint(model, TwinsImageProcessor())
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
        TwinsImageProcessor().save_pretrained(tmp_path / name)
        loaded = TwinsForImageClassification.from_pretrained(tmp_path / name)
        assert model_fingerprint(loaded, TwinsImageProcessor.from_pretrained(tmp_path / name)) == expected
        model.config.architectures, model.config.transformers_version = ["B", "A"], "0"


def test_model_fingerprint_differs_for_every_change():
    with_other_labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    swapped = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"cat": 1, "dog": 0}}
    fingerprints = [
        fingerprint_of(),
        fingerprint_of(TwinsImageProcessor(size={"shortest_edge": 240})),
        fingerprint_of(hidden_act="relu"),
        fingerprint_of(layer_norm_eps=1e-3),
        fingerprint_of(**with_other_labels),
        fingerprint_of(**swapped),
        fingerprint_of(num_labels=3),
        model_fingerprint(TwinsForImageClassification(tiny_config())),
    ]
    torch.manual_seed(0)
    model = TwinsForImageClassification(tiny_config())
    model.classifier.bias.data[0] += 1
    fingerprints.append(model_fingerprint(model, TwinsImageProcessor()))
    fingerprints += [
        model_fingerprint(model.to(dtype), TwinsImageProcessor()) for dtype in (torch.half, torch.bfloat16)
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def image_rows(folder: Path) -> dict[str, list]:
    return {"image": [str(folder / name) for name in NAMES[:2]], "label": [0, 1]}


FEATURES = Features({"image": Image(), "label": Value("int64")})


def yield_rows(**columns):
    for values in zip(*columns.values()):
        yield dict(zip(columns, values))


@pytest.mark.parametrize("is_stream", [False, True], ids=["split", "stream"])
def test_fingerprint_of_images_in_a_copied_folder_is_the_same(is_stream, tmp_path):
    def load(folder: Path):
        columns = image_rows(folder)
        if is_stream:
            return IterableDataset.from_generator(yield_rows, FEATURES, gen_kwargs=columns).shuffle(seed=0).map(dict)
        return Dataset.from_dict(columns, FEATURES)

    folder = write_folder(tmp_path / "folder")
    copy = shutil.copytree(folder, tmp_path / "copy")
    expected = dataset_fingerprint(load(folder))
    assert dataset_fingerprint(load(copy)) == expected
    (copy / NAMES[0]).write_bytes(b"1" * 10)
    assert dataset_fingerprint(load(copy)) != expected


def test_fingerprint_of_tables_depends_on_their_rows(tmp_path):
    rows = {"image": [{"bytes": b"1", "path": "a.png"}, {"bytes": b"2", "path": None}], "label": [0, 1]}
    split = Dataset.from_dict(rows, FEATURES)
    moved = Dataset.from_dict(rows | {"image": [{"bytes": b"1", "path": "/x/a.png"}, rows["image"][1]]}, FEATURES)
    assert dataset_fingerprint(moved) == dataset_fingerprint(split)
    other = Dataset.from_dict(rows | {"image": [{"bytes": b"3", "path": "a.png"}, rows["image"][1]]}, FEATURES)
    changed = [split.select([0]), split.select([1, 0]), split.select_columns(["image"]), other]
    assert len({dataset_fingerprint(each) for each in [split, *changed]}) == 5


def test_fingerprint_of_a_table_depends_on_the_middle_of_a_large_image():
    digests = set()
    for middle in (b"0", b"1"):
        content = b"0" * 200_000 + middle + b"0" * 200_000
        split = Dataset.from_dict({"image": [{"bytes": content, "path": None}], "label": [0]}, FEATURES)
        digests.add(dataset_fingerprint(split))
    assert len(digests) == 2


def test_fingerprint_of_a_split_on_the_hub_depends_on_its_commit(tmp_path):
    split = Dataset.from_dict({"label": [0, 1, 2]}, split=NamedSplit("train"))

    def cached(cache: str, commit: str, config: str = "default") -> Dataset:
        folder = tmp_path / cache / f"me___pets/{config}/0.0.0/{commit}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((tmp_path / "saved").glob("*.arrow")), folder / "pets-train.arrow")
        return Dataset.from_file(str(folder / "pets-train.arrow"), split=NamedSplit("train"))

    split.save_to_disk(tmp_path / "saved")
    first = cached("one", "a" * 40)
    expected = dataset_fingerprint(first)
    assert dataset_fingerprint(cached("two", "a" * 40)) == expected
    others = [cached("one", "b" * 40), cached("one", "a" * 40, "large"), first.select([2, 0]), first.select([0, 2])]
    assert len({expected, *map(dataset_fingerprint, others)}) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_fingerprint_distinguishes_renamed_columns(streaming, tmp_path):
    rows = {"image": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}], "fine": [0, 1], "coarse": [0, 0]}
    rows["crop"] = [{"bytes": b"3", "path": None}, {"bytes": b"2", "path": None}]
    features = Features({"image": Image(), "fine": Value("int64"), "coarse": Value("int64"), "crop": Image()})
    table = Dataset.from_dict(rows, features)
    if streaming:
        table.to_parquet(tmp_path / "rows.parquet")
        files = {"train": str(tmp_path / "rows.parquet")}
        split = load_dataset("parquet", data_files=files, split="train", streaming=True)
    else:
        table.save_to_disk(tmp_path / "saved")
        folder = tmp_path / f"me___pets/default/0.0.0/{'a' * 40}"
        folder.mkdir(parents=True)
        shutil.copy(next((tmp_path / "saved").glob("*.arrow")), folder / "pets-train.arrow")
        split = Dataset.from_file(str(folder / "pets-train.arrow"), split=NamedSplit("train"))
    chosen = [("image", "fine"), ("image", "coarse"), ("crop", "fine"), ("image", "fine")]
    digests = [dataset_fingerprint(renamed_columns(split, *columns)) for columns in chosen]
    assert len(set(digests)) == 3
    assert digests[0] == digests[-1]


def test_fingerprint_of_a_stream_depends_on_its_files(tmp_path):
    def stream(folder: Path) -> IterableDataset:
        file = str(folder / "rows.parquet")
        return load_dataset("parquet", data_files={"train": [file]}, split="train", streaming=True)

    digests = []
    for name, rows in (("one", [1, 2]), ("two", [1, 2]), ("three", [1, 3])):
        (tmp_path / name).mkdir()
        Dataset.from_dict({"label": rows}).to_parquet(tmp_path / name / "rows.parquet")
        digests.append(dataset_fingerprint(stream(tmp_path / name)))
    assert digests[0] == digests[1] != digests[2]
