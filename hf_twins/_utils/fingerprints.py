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
"""Fingerprints of files, models and datasets, which identify the inputs of runs by content, regardless of names.

A fingerprint includes no times and no absolute paths, so that a copy of a folder has the fingerprint of the original.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from .files import read_again
from .progress import progress_bar


NUM_THREADS = 8
# Fields of a configuration or an image processor that depend on its origin. The dtype is hashed with the weights
# instead.
ORIGINS = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "code_revision",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
GENERIC = PreTrainedConfig().to_dict()
# Name of the last folder of a dataset downloaded by `datasets`, a commit of the Hub. For local files, it is longer.
COMMIT = re.compile("[0-9a-f]{40}")


def files_fingerprint(folder: str | Path, files: Iterable[str]) -> str:
    """The SHA-256 of the names and contents of files.

    Contents are read completely, because an image can be edited in place without changing the size, the beginning or the
    end of its file. This takes about as long as copying the files, and much less than decoding the images.

    Args:
        folder: the folder, whose path does not affect the fingerprint.
        files: paths below the folder, whose order matters.

    Raises:
        ReadError: if a file cannot be read.
    """
    files = list(files)
    digest = hashlib.sha256()
    # Each thread gets several files at a time, because passing a file to a thread takes as long as reading a small
    # file.
    chunks = [files[start : start + 64] for start in range(0, len(files), 64)]
    progress = progress_bar(desc="Comparing files", total=len(files), unit="file", delay=3, leave=False)
    with ThreadPoolExecutor(NUM_THREADS) as threads, progress:
        digests = threads.map(lambda chunk: [file_digest(Path(folder, file)) for file in chunk], chunks)
        for file, content in zip(files, itertools.chain.from_iterable(digests)):
            progress.update()
            name = os.fsencode(file.replace(os.sep, "/"))
            digest.update(b"%d %b %b" % (len(name), name, content.encode()))
    return digest.hexdigest()


def file_digest(file: str | Path) -> str:
    """The SHA-256 of an entire file.

    Raises:
        ReadError: if the file cannot be read.
    """

    def read() -> str:
        with Path(file).open("rb", buffering=0) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    return read_again(read, file)


def model_fingerprint(model: Any, processor: Any = None) -> str:
    """The SHA-256 of everything that determines a model's output: its configuration, weights and preprocessing.

    Args:
        model: model with a `config`.
        processor: image processor of the model, if the fingerprint includes it.
    """
    described = {
        "class": type(model).__name__,
        "config": comparable(model.config.to_dict()),
        "processor": None if processor is None else comparable(processor.to_dict()),
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        # Tensors are hashed as bytes, because NumPy does not support all of PyTorch's dtypes.
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def comparable(value: Any) -> Any:
    """Convert a configuration to JSON values, without fields that do not affect the model's output."""
    if isinstance(value, dict):
        # Leave out fields that all models have, since new versions of transformers add some.
        kept = {str(key): each for key, each in value.items() if key not in ORIGINS}
        return {key: comparable(each) for key, each in kept.items() if key not in GENERIC or GENERIC[key] != each}
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    return value


def dataset_fingerprint(split: Any) -> str:
    """The fingerprint of a split that `datasets` has loaded.

    For a dataset on the Hub, it covers the name, commit, configuration and split, the first row, and the values of number and
    text columns, because a column may have been renamed. For other data, it covers the names and contents of images, and all
    other values. For a stream, it covers its files and which columns are renamed.

    Args:
        split: `Dataset` or `IterableDataset`.

    Raises:
        ReadError: if a file that the split names cannot be read.
        TypeError: if the split is a stream of anything but files or lists.
    """
    from datasets import IterableDataset

    digest = hashlib.sha256(repr((str(split.split), split.column_names)).encode())
    files: list[str] = []
    if isinstance(split, IterableDataset):
        parts: Iterable[Any] = stream_parts(split._ex_iterable)
    elif cached := hub_files(split):
        # If rows were selected or shuffled, `_indices` has their numbers in the files.
        chosen = [] if split._indices is None else split._indices.column(0).to_pylist()
        parts = itertools.chain([cached, len(split), chosen], column_values(split))
    else:
        parts = (row for batch in split.with_format("arrow").iter(256) for row in batch.to_pylist())
    for part in parts:
        hash_value(digest, part, files)
    if files:
        folder = os.path.commonpath([Path(file).parent for file in files])
        digest.update(files_fingerprint(folder, [os.path.relpath(file, folder) for file in files]).encode())
    return digest.hexdigest()


def hub_files(split: Any) -> list[str]:
    """The files in `datasets`' cache of a split downloaded from the Hub, as name/configuration/version/commit/file."""
    files = [Path(each["filename"]) for each in split.cache_files]
    return ["/".join(file.parts[-5:]) for file in files] if all(COMMIT.fullmatch(f.parent.name) for f in files) else []


def column_values(split: Any) -> Iterator[Any]:
    """Yield the first row of a split, which distinguishes columns of images, and all values of number and text columns."""
    from pyarrow import types

    rows = split.with_format("arrow")
    yield rows[:1].to_pylist()
    small = [
        field.name
        for field in rows.features.arrow_schema
        if types.is_primitive(field.type) or types.is_string(field.type) or types.is_large_string(field.type)
    ]
    if small:
        yield from (batch.to_pydict() for batch in rows.select_columns(small).iter(10_000))


def stream_parts(examples: Any) -> Iterator[Any]:
    """Yield the sources of a stream's shards, files or arguments of a generator, and which columns are renamed."""
    renamed = getattr(getattr(examples, "function", None), "keywords", {}).get("column_mapping")
    if renamed is not None:
        yield renamed
    inner = getattr(examples, "ex_iterables", None) or [getattr(examples, "ex_iterable", None)]
    if hasattr(examples, "kwargs"):
        yield examples.kwargs
    elif inner == [None]:
        raise TypeError(f"a stream must be of files or of lists, got {type(examples).__name__}.")
    else:
        for each in inner:
            yield from stream_parts(each)


def hash_value(digest: Any, value: Any, files: list[str]) -> None:
    """Add a value to a digest, but collect absolute paths of files in `files` instead."""
    if isinstance(value, dict):
        # In an undecoded image of `datasets`, the path only says where its file was, so it is left out.
        if value.keys() == {"bytes", "path"} and value["bytes"] is not None:
            value = {"bytes": value["bytes"], "path": Path(value["path"] or "").name}
        digest.update(b"dict %d " % len(value))
        for key in sorted(value, key=str):
            digest.update(f"{key!r} ".encode())
            hash_value(digest, value[key], files)
    elif isinstance(value, list | tuple):
        digest.update(b"list %d " % len(value))
        for each in value:
            hash_value(digest, each, files)
    elif isinstance(value, bytes):
        digest.update(b"bytes %d " % len(value))
        digest.update(value)
    elif isinstance(value, str | os.PathLike) and Path(value).is_absolute() and Path(value).is_file():
        digest.update(b"file ")
        files.append(os.fspath(value))
    else:
        digest.update(f"{value!r} ".encode("utf-8", "backslashreplace"))
