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
"""Images and labels in folders: in a sub-folder for each label, beside a table of metadata, or in .parquet or .tar files.

`datasets` never sees a folder, but paths and numbers: it would guess splits from words in the names of files and folders, take
the last folder of a path for its label, and patterns for names.
"""

import glob
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, load_dataset

from hf_twins._utils.image_folders import (
    METADATA_NAMES,
    archive_hint,
    data_files,
    list_folder,
    list_labeled_images,
    listed,
    split_files,
    split_folders,
    visible_folders,
)


logger = logging.getLogger(__name__)
# The times and sizes of the files, no column but a part of the fingerprint.
VERSIONS = "versions"
# At most so many are the parts of a stream, which workers and processes divide among them.
NUM_SHARDS = 1024
BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class FolderPart:
    """A folder of images, or those of its .parquet or .tar files that are one split."""

    folder: Path
    files: tuple[Path, ...] = ()

    def load(self, streaming: bool = False) -> Any:
        """The images and whatever columns there are beside them.

        Raises:
            ValueError: if there are no images, or a table does not fit them.
        """
        if self.files:
            builder = BUILDERS[self.files[0].suffix.lower()]
            # A name may have characters of a pattern.
            files = [glob.escape(str(file.absolute())) for file in self.files]
            return load_dataset(builder, data_files={"train": files}, split="train", streaming=streaming)
        metadata = [self.folder / name for name in METADATA_NAMES if (self.folder / name).is_file()]
        if len(metadata) > 1:
            raise ValueError(f"{self.folder} must have one table of metadata, got {listed(metadata)}.")
        if metadata:
            table = read_metadata(metadata[0])
            columns = {name: table[name].to_pylist() for name in table.column_names}
            types = Features.from_arrow_schema(table.schema)
            features = Features({name: Image() if name == "image" else types[name] for name in columns})
        else:
            files, numbers, names = list_labeled_images(self.folder)
            columns = {"image": [str(self.folder.absolute() / file) for file in files], "label": numbers}
            features = Features({"image": Image(), "label": ClassLabel(names=names)})
        return from_columns(columns, features, streaming)


def load_folders(train_dir: str, validation_dir: str | None = None, streaming: bool = False) -> dict[str, Any]:
    """The images to train on, `train`, and, where there are some, those to evaluate on, `validation`.

    Args:
        train_dir: folder of the images to train on; if its names divide it into splits, of those to evaluate on, too.
        validation_dir: another folder of images to evaluate on.
        streaming: whether `train` is a stream.

    Raises:
        ValueError: if there is nothing to train on, or the images to evaluate on are among those to train on.
    """
    parts = folder_parts(train_dir)
    train = training_part(train_dir, parts)
    if validation_dir is not None:
        check_is_apart(train, Path(validation_dir))
    splits = {"train": train.load(streaming)}
    if validation_dir is not None:
        splits["validation"] = evaluation_part(validation_dir, folder_parts(validation_dir)).load()
    elif set(parts) & {"validation", "test"}:
        splits["validation"] = evaluation_part(train_dir, parts).load()
    return splits


def load_folder(folder: str, streaming: bool = False) -> Any:
    """The images of a folder to train on."""
    return training_part(folder, folder_parts(folder)).load(streaming)


def folder_parts(folder: str) -> dict[str, FolderPart]:
    """The splits `train`, `validation` and `test` of a folder, by the names of its folders or files, or all of it as `all`.

    Raises:
        ValueError: if it is no folder, or its names do not tell the splits apart.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(
            f"{folder} must be a folder, of images in a sub-folder for each label, of .parquet or of .tar files."
            + archive_hint([folder])
        )
    files = data_files(path)
    if files:
        parts = {name: FolderPart(path, tuple(part)) for name, part in split_files(files).items()}
        beside = [other.name for other in [*visible_folders(path), *path.glob("*.tar")] if other not in files]
        if beside:
            logger.warning(
                f"The {files[0].suffix} files of {folder} are read, and not what is beside them: {listed(beside)}."
            )
    elif any((path / name).is_file() for name in METADATA_NAMES):
        parts = {"all": FolderPart(path)}
    else:
        parts = {}
        for name, part in split_folders(path).items():
            files = data_files(part)
            parts[name] = FolderPart(part, tuple(files))
        parts = parts or {"all": FolderPart(path)}
    if "all" not in parts:
        logger.warning(f"{folder} is divided into {', '.join(parts)}, as its names say.")
    return parts


def check_is_apart(train: FolderPart, validation: Path) -> None:
    """Raise a ValueError if the images to evaluate on lie in a folder to train on; warn of it if they are the same."""
    if train.files or not validation.is_dir():
        return
    folder, validation = train.folder.resolve(), validation.resolve()
    if folder in validation.parents:
        raise ValueError(
            f"--validation_dir must not be in --train_dir, whose folders are labels to train on, got {validation} in {folder}: "
            "move it, or give the folder of the training images alone."
        )
    if folder == validation:
        logger.warning(f"The images to evaluate on are those to train on, all of {folder}.")


def training_part(folder: str, parts: dict[str, FolderPart]) -> FolderPart:
    """All of a folder, or what its names say is there to train on.

    Raises:
        ValueError: if there is nothing to train on.
    """
    if "all" not in parts and "train" not in parts:
        raise ValueError(
            f"{folder} must hold images to train on, got those of {' and '.join(parts)} alone, as its names say."
        )
    return parts["all" if "all" in parts else "train"]


def evaluation_part(folder: str, parts: dict[str, FolderPart], split: str | None = None) -> FolderPart:
    """What of a folder is there to evaluate on: the split that is asked for, else its validation part, or its test part.

    Raises:
        ValueError: if the split is not there.
    """
    if split is not None and split not in parts:
        found = "is not divided into splits" if "all" in parts else f"has the splits {', '.join(parts)}"
        raise ValueError(f"--split must be a split of {folder}, which {found}, got {split}.")
    name = split or next(name for name in ("all", "validation", "test", "train") if name in parts)
    if name != "all":
        logger.warning(f"The images of {folder} to evaluate on are those of {name}.")
    return parts[name]


def from_columns(columns: dict[str, list[Any]], features: Features, streaming: bool) -> Any:
    """A data set of these columns, in `datasets`' cache, where what is found out about its images stays, too."""
    if streaming:
        # `datasets` shuffles shards, and rows within a buffer: sorted by label, a shard would have one label alone.
        num_rows = len(columns["image"])
        is_mixed = num_rows > NUM_SHARDS
        order = np.random.default_rng(0).permutation(num_rows) if is_mixed else np.arange(num_rows)
        shards = [shard.tolist() for shard in np.array_split(order, min(num_rows, NUM_SHARDS))]
        # Lists are divided into shards, and tuples are not.
        parts = {name: [[column[row] for row in shard] for shard in shards] for name, column in columns.items()}
        return IterableDataset.from_generator(rows, features, gen_kwargs=parts)
    # A file that was changed is not the one that was checked.
    status = [Path(file).stat() for file in columns["image"]]
    versions = tuple((each.st_mtime_ns, each.st_size) for each in status)
    values = {name: (tuple(column),) for name, column in columns.items()}
    return Dataset.from_generator(rows, features, gen_kwargs=values | {VERSIONS: versions})


def rows(**columns: Any) -> Iterator[dict[str, Any]]:
    """The rows of shards, whose columns are sequences of values for each shard."""
    columns.pop(VERSIONS, None)
    for shard in zip(*columns.values()):
        for values in zip(*shard):
            yield dict(zip(columns, values))


def read_metadata(file: Path) -> pa.Table:
    """The rows of a table of metadata whose images are there, with the paths of the images in a column `image`.

    Raises:
        ValueError: if it cannot be read, has no column with the names of the files, or names files outside its folder.
    """
    try:
        if file.suffix == ".csv":
            options = pa.csv.ParseOptions(newlines_in_values=True)
            table = pa.csv.read_csv(file, parse_options=options)
        elif file.suffix == ".jsonl":
            # Notepad begins files with a byte-order mark.
            table = pa.json.read_json(pa.BufferReader(file.read_bytes().removeprefix(b"\xef\xbb\xbf")))
        else:
            table = pa.parquet.read_table(file)
    except pa.ArrowException as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    names = [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]
    if len(names) != 1 or len(set(table.column_names)) < table.num_columns:
        raise ValueError(
            f"{file} must have one column file_name and others of other names, got {', '.join(table.column_names)}."
        )
    if table.num_columns == 1:
        raise ValueError(f"{file} must have a column with the labels beside {names[0]}.")
    listing = list_folder(file.parent)
    found = set(listing.files)
    used: list[tuple[int, str]] = []
    missing: list[tuple[int, str]] = []
    for index, name in enumerate(table[names[0]].to_pylist()):
        path = os.path.normpath(str(name)).replace(os.sep, "/")
        if Path(path).is_absolute() or path.startswith("../"):
            raise ValueError(f"{file} must name files in its folder or below, got {name}.")
        (used if path in found else missing).append((index, path))
    if missing:
        names_of_missing = listed([path for _, path in missing])
        logger.warning(f"{len(missing)} images that {file} names are not there and are left out: {names_of_missing}.")
    unnamed = sorted(found - {path for _, path in used})
    if unnamed:
        logger.warning(
            f"{len(unnamed)} images of {file.parent} are not named in {file.name} and are left out: {listed(unnamed)}."
        )
    paths = [str(file.parent.absolute() / path) for _, path in used]
    table = table.take([index for index, _ in used]).drop_columns(names)
    if "image" in table.column_names:
        raise ValueError(f"{file} must have no column image, which is that of the images: rename it.")
    return table.append_column("image", [pa.array(paths, pa.string())])
