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
"""Images and labels in folders: in a sub-folder for each label, with a metadata table, or in .parquet or .tar files.

`datasets` gets paths and label numbers, never a folder: given a folder, it would guess splits from words in the names
of files and folders, take the last folder of a path as the label, and interpret names as patterns.
"""

import functools
import glob
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, load_dataset

from hf_twins._utils.files import check_is_apart
from hf_twins._utils.image_folders import (
    SPLIT_WORDS,
    Listing,
    archive_hint,
    data_files,
    list_folder,
    list_labeled_images,
    listed,
    metadata_file,
    one_line,
    said_splits,
    split_files,
    split_folders,
    visible_folders,
    warn_of_others,
)
from hf_twins._utils.shards import check_tar


logger = logging.getLogger(__name__)
# The times and sizes of the files. This is not a column, but is part of the fingerprint.
VERSIONS = "versions"
# Name of the column with the split of each row of a table.
SPLIT_COLUMN = "split"
# Maximum number of shards of a stream, which workers and processes divide among themselves.
NUM_SHARDS = 1024
BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True)
class FolderPart:
    """A folder of images, or its .parquet or .tar files that form one split.

    Attributes:
        folder: the folder.
        files: the .parquet or .tar files.
        split: the value of `SPLIT_COLUMN` in the rows of the tables to use; None for all rows.
        known: the listing of the folder, if it was already listed.
    """

    folder: Path
    files: tuple[Path, ...] = ()
    split: str | None = None
    known: Listing | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def listing(self) -> Listing:
        """The listing of the folder, made once, since it takes seconds for a million images."""
        return self.known or list_folder(self.folder)

    def check_output(self, output_dir: str | Path) -> None:
        """Raise a ValueError if files written to `output_dir` could replace images, or be read as images by the next run."""
        check_is_apart(output_dir, self.files or [self.listing])

    def load(self, streaming: bool = False) -> Any:
        """Load the images and all other columns.

        Raises:
            ValueError: if there are no images, or a table does not match them.
        """
        if self.files:
            for file in self.files:
                # `datasets` silently reads only the intact beginning of a damaged archive.
                if file.suffix.lower() == ".tar":
                    check_tar(file)
            builder = BUILDERS[self.files[0].suffix.lower()]
            # Names may contain pattern characters.
            files = [glob.escape(str(file.absolute())) for file in self.files]
            images = load_dataset(builder, data_files={"train": files}, split="train", streaming=streaming)
            if self.split is None:
                return images
            rows = images.filter(lambda text: said_split(text) == self.split, input_columns=SPLIT_COLUMN)
            return rows.remove_columns(SPLIT_COLUMN)
        metadata = metadata_file(self.folder)
        if metadata is not None:
            table = read_metadata(metadata, self.listing)
            if self.split is not None:
                is_meant = [said_split(text) == self.split for text in split_column(table, self.folder)]
                table = table.filter(pa.array(is_meant))
                table = table.drop_columns([name for name in table.column_names if name == SPLIT_COLUMN])
            columns = {name: table[name].to_pylist() for name in table.column_names}
            types = Features.from_arrow_schema(table.schema)
            features = Features({name: Image() if name == "image" else types[name] for name in columns})
        else:
            files, numbers, names = list_labeled_images(self.listing)
            folder = self.folder.absolute()
            # Joining by `pathlib` takes ten times as long.
            columns = {"image": [f"{folder}{os.sep}{file}" for file in files], "label": numbers}
            features = Features({"image": Image(), "label": ClassLabel(names=names)})
        return from_columns(columns, features, streaming)


def load_folders(
    train_dir: str,
    validation_dir: str | None = None,
    streaming: bool = False,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Load the training images as `train` and, if there are any, the evaluation images as `validation`.

    Args:
        train_dir: folder of the training images and, if names in it denote splits, of the evaluation images.
        validation_dir: separate folder of evaluation images.
        streaming: whether `train` is a stream.
        output_dir: folder that the run writes to.

    Raises:
        ValueError: if there are no training images, or the evaluation images are among them, or files written to
            `output_dir` could replace any of them.
    """
    parts = folder_parts(train_dir)
    train = training_part(train_dir, parts)
    validation = None
    if validation_dir is not None:
        validation = evaluation_part(validation_dir, folder_parts(validation_dir))
        check_are_apart(train, validation)
    elif set(parts) & {"validation", "test"}:
        validation = evaluation_part(train_dir, parts)
    for part in (train, validation):
        if part is not None and output_dir is not None:
            part.check_output(output_dir)
    splits = {"train": train.load(streaming)}
    if validation is not None:
        splits["validation"] = validation.load()
    return splits


def load_folder(folder: str, streaming: bool = False) -> Any:
    """Load the training images of a folder."""
    return training_part(folder, folder_parts(folder)).load(streaming)


def folder_parts(folder: str) -> dict[str, FolderPart]:
    """Divide a folder into `train`, `validation` and `test` by the names in it, or return all of it as `all`.

    Raises:
        ValueError: if it is not a folder, or the names do not distinguish the splits clearly.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(
            f"{folder} must be a folder, of images in a sub-folder for each label, of .parquet or of .tar files."
            + archive_hint([folder])
        )
    files = data_files(path)
    metadata = None if files else metadata_file(path)
    if files:
        parts = {name: FolderPart(path, tuple(part)) for name, part in split_files(files).items()}
        warn_of_others(path, files)
        if "all" in parts and files[0].suffix.lower() == ".parquet":
            texts = [text for file in files for text in read_split_column(file)]
            parts = {split: FolderPart(path, tuple(files), split) for split in row_splits(texts, path)} or parts
    elif metadata is not None:
        listing = list_folder(path)
        texts = split_column(read_metadata(metadata, listing, is_said=False), path)
        parts = {split: FolderPart(path, split=split, known=listing) for split in row_splits(texts, path)} or {
            "all": FolderPart(path, known=listing)
        }
    else:
        parts = {}
        for name, part in split_folders(path).items():
            files = data_files(part)
            parts[name] = FolderPart(part, tuple(files))
        parts = parts or {"all": FolderPart(path)}
    if "all" not in parts:
        logger.warning(f"{folder} is divided into {', '.join(parts)}, as its names say.")
    return parts


def read_split_column(file: Path) -> list[Any]:
    """Read the column `SPLIT_COLUMN` of a .parquet file; empty if there is none, or its values are not text."""
    try:
        schema = pa.parquet.read_schema(file)
        is_there = SPLIT_COLUMN in schema.names and is_text_type(schema.field(SPLIT_COLUMN).type)
        return pa.parquet.read_table(file, columns=[SPLIT_COLUMN])[SPLIT_COLUMN].to_pylist() if is_there else []
    except pa.ArrowException as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def split_column(table: pa.Table, folder: Path) -> list[Any]:
    """Each metadata row's split, as text: the column `SPLIT_COLUMN` or, without it, the first folder of the image."""
    if SPLIT_COLUMN in table.column_names:
        return table[SPLIT_COLUMN].to_pylist() if is_text_type(table.schema.field(SPLIT_COLUMN).type) else []
    folders = [Path(path).relative_to(folder.absolute()).parts[0] for path in table["image"].to_pylist()]
    # A single folder does not divide the images, nor do label folders whose names merely contain words for splits.
    is_divided = len({*map(said_split, folders)}) > 1 and all(name.lower() in SPLIT_WORDS for name in {*folders})
    return folders if is_divided else []


def is_text_type(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def said_split(text: Any) -> str | None:
    """The split that a value of a table denotes, or None."""
    said = said_splits(str(text))
    return said.pop() if len(said) == 1 else None


def row_splits(texts: list[Any], folder: Path) -> list[str]:
    """The splits that the values of a table denote; empty if no value denotes one.

    Raises:
        ValueError: if only some of the values denote a split.
    """
    values = {text: said_split(text) for text in dict.fromkeys(texts)}
    others = [text for text, split in values.items() if split is None]
    if others and len(others) < len(values):
        raise ValueError(
            f"The column {SPLIT_COLUMN} of {folder} must say train, validation or test in every row, got {listed(others)}: "
            "correct it, or rename the column."
        )
    return list(dict.fromkeys(split for split in values.values() if split is not None))


def check_are_apart(train: FolderPart, validation: FolderPart) -> None:
    """Raise a ValueError if the evaluation images are in the training folder; warn if some images are in both."""
    folder, other = train.folder.resolve(), validation.folder.resolve()
    if not train.files and folder in other.parents:
        raise ValueError(
            f"--validation_dir must not be in --train_dir, whose folders are labels to train on, got {other} in {folder}: "
            "move it, or give the folder of the training images alone."
        )
    if train.files or validation.files:
        shared = {file.resolve() for file in train.files} & {file.resolve() for file in validation.files}
        is_same = bool(shared) and train.split == validation.split
    else:
        is_same = folder == other and train.split == validation.split
        shared = set()
        if folder != other:
            # Label folders may be links.
            shared = {path.resolve() for path in visible_folders(folder)} & {
                path.resolve() for path in visible_folders(other)
            }
    if is_same and folder == other:
        logger.warning(f"The evaluation images are the training images, all of {folder}.")
    elif shared and (is_same or not train.files):
        logger.warning(f"Some evaluation images are training images, too, those of {listed(sorted(shared))}.")


def training_part(folder: str, parts: dict[str, FolderPart]) -> FolderPart:
    """The training part of a folder, which is all of it if it is not divided into splits.

    Raises:
        ValueError: if there is no training part.
    """
    if "all" not in parts and "train" not in parts:
        raise ValueError(
            f"{folder} must hold training images, got only images of {' and '.join(parts)}, going by its names."
        )
    return parts["all" if "all" in parts else "train"]


def evaluation_part(folder: str, parts: dict[str, FolderPart], split: str | None = None) -> FolderPart:
    """The part of a folder to evaluate on: the requested split or, by default, its validation or test part.

    Raises:
        ValueError: if the requested split does not exist.
    """
    if split is not None and split not in parts:
        found = "is not divided into splits" if "all" in parts else f"has the splits {', '.join(parts)}"
        raise ValueError(f"--split must be a split of {folder}, which {found}, got {split}.")
    name = split or next(name for name in ("all", "validation", "test", "train") if name in parts)
    if name != "all":
        logger.warning(f"Evaluating on the {name} images of {folder}.")
    return parts[name]


def from_columns(columns: dict[str, list[Any]], features: Features, streaming: bool) -> Any:
    """Create a dataset of these columns, stored in `datasets`' cache together with the results of checking its images."""
    if streaming:
        # `datasets` shuffles shards, and rows within a buffer. Each shard must have several labels, though rows are
        # sorted by label.
        num_rows = len(columns["image"])
        is_mixed = num_rows > NUM_SHARDS
        order = np.random.default_rng(0).permutation(num_rows) if is_mixed else np.arange(num_rows)
        shards = [shard.tolist() for shard in np.array_split(order, min(num_rows, NUM_SHARDS))]
        # `datasets` divides lists into shards, but not tuples.
        parts = {name: [[column[row] for row in shard] for shard in shards] for name, column in columns.items()}
        return IterableDataset.from_generator(rows, features, gen_kwargs=parts)
    # A file that was changed must be checked again.
    status = [Path(file).stat() for file in columns["image"]]
    versions = tuple((each.st_mtime_ns, each.st_size) for each in status)
    values = {name: (tuple(column),) for name, column in columns.items()}
    return Dataset.from_generator(rows, features, gen_kwargs=values | {VERSIONS: versions})


def rows(**columns: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of shards, whose columns are sequences of values for each shard."""
    columns.pop(VERSIONS, None)
    for shard in zip(*columns.values()):
        for values in zip(*shard):
            yield dict(zip(columns, values))


def read_metadata(file: Path, listing: Listing, is_said: bool = True) -> pa.Table:
    """Read the rows of a metadata table whose images exist, with the paths of the images in a column `image`.

    Args:
        file: the table.
        listing: listing of the table's folder.
        is_said: whether to log which rows and images are left out.

    Raises:
        ValueError: if the table cannot be read, has no column of file names, names files outside its folder, names no
            existing file, or has different rows for one image.
    """
    try:
        if file.suffix.lower() == ".csv":
            table = read_csv(file)
        elif file.suffix.lower() == ".jsonl":
            # Windows Notepad starts files with a byte-order mark.
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
    found = set(listing.files)
    rows_of: dict[str, int] = {}
    missing: list[str] = []
    repeated: list[str] = []
    others = table.drop_columns(names)
    for index, name in enumerate(table[names[0]].to_pylist()):
        path = os.path.normpath(str(name)).replace(os.sep, "/")
        if path not in found:
            # Paths written on Windows have backslashes.
            path = os.path.normpath(str(name).replace("\\", "/")).replace(os.sep, "/")
        if Path(path).is_absolute() or path == ".." or path.startswith("../"):
            raise ValueError(f"{file} must name files in its folder or below, got {name}.")
        if path not in found:
            missing.append(path)
        elif path not in rows_of:
            rows_of[path] = index
        elif others.slice(rows_of[path], 1).to_pylist() == others.slice(index, 1).to_pylist():
            repeated.append(path)
        else:
            raise ValueError(
                f"{file} must have one row for each image, got different ones for {one_line(path)}: keep one of them."
            )
    if not rows_of:
        raise ValueError(
            f"{file} must name images by their paths below its folder, got none that is there"
            + (f", such as {listed(missing[:1])}" if missing else "")
            + (f", and {listed(sorted(found)[:1])} is not named." if found else ", and there are none.")
        )
    unnamed = sorted(found - rows_of.keys())
    if is_said and missing:
        logger.warning(f"{len(missing)} images that {file} names are not there and are left out: {listed(missing)}.")
    if is_said and repeated:
        logger.warning(f"{len(repeated)} rows of {file} repeat others and are left out: {listed(repeated)}.")
    if is_said and unnamed:
        logger.warning(
            f"{len(unnamed)} images of {file.parent} are not named in {file.name} and are left out: {listed(unnamed)}."
        )
    paths = [str(file.parent.absolute() / path) for path in rows_of]
    if "image" in others.column_names:
        raise ValueError(f"{file} must have no column image, a name kept for the images: rename it.")
    return others.take(list(rows_of.values())).append_column("image", [pa.array(paths, pa.string())])


def read_csv(file: Path) -> pa.Table:
    """Read a CSV file, with columns of numbers as numbers unless text says more: `01` is not `1`, and `NA` may be a label.

    Raises:
        ValueError: if the file is not UTF-8.
    """
    content = file.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text: save it as such. {error}") from error
    options = pa.csv.ParseOptions(newlines_in_values=True)
    table = pa.csv.read_csv(pa.BufferReader(content), parse_options=options)
    if len(set(table.column_names)) < table.num_columns:
        return table
    as_texts = pa.csv.ConvertOptions(column_types=dict.fromkeys(table.column_names, pa.string()))
    texts = pa.csv.read_csv(pa.BufferReader(content), parse_options=options, convert_options=as_texts)
    for place, (name, kind) in enumerate(zip(table.schema.names, table.schema.types)):
        column, text = table[name], texts[name]
        if pa.types.is_null(kind) and any(text.to_pylist()):
            table = table.set_column(place, name, text)
        elif pa.types.is_integer(kind):
            text = pa.compute.if_else(column.is_null(), None, text)
            if pa.compute.any(pa.compute.not_equal(text, column.cast(pa.string()))).as_py():
                table = table.set_column(place, name, text)
    return table
