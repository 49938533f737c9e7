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
"""Folders of images: which files are used, with which labels, and warnings about those that are left out."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import LASTING, check_is_apart, is_read_error
from .images import is_image_file, unsupported_format


logger = logging.getLogger(__name__)
# Maps words in names of folders and files to splits.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
# Tables of image names and further columns, with the file names that `datasets` recognizes.
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
OTHER_TABLES = ("metadata.tsv", "metadata.xls", "metadata.xlsx")
# Files that operating systems put into folders, which are ignored without a warning.
SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
# Maximum number of names in a message.
MAX_NAMES = 10

HIDDEN = "hidden (names that begin with a dot, and __MACOSX)"
BROKEN = "links that lead nowhere"
CIRCULAR = "links to a folder that they are in"
SPECIAL = "neither files nor folders"
NOT_SEARCHED = "sub-folders, which are not searched"
UNSUPPORTED = "{} images, which are not supported: convert them to JPEG or PNG"
OTHER = "without the extension of an image"
IN_ROOT = "images directly in it, not in a label folder"
EMPTY = "folders without images, which are not labels"
NOT_TEXT = "images whose names are not UTF-8: rename them"


@dataclass
class Listing:
    """The image files of a folder.

    Attributes:
        folder: the folder.
        files: paths of the images below the folder, with `/` between their parts, sorted.
        folders: names of the folders directly in it that were searched, sorted.
        left_out: paths of files and folders that were left out, by reason.
        links: paths of the links to folders and images that were followed.
    """

    folder: str
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)

    def copy(self) -> "Listing":
        left_out = {reason: list(paths) for reason, paths in self.left_out.items()}
        return Listing(self.folder, list(self.files), list(self.folders), left_out, list(self.links))

    def leave_out(self, reason: str, path: str) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def leave_out_unreadable_names(self) -> None:
        """Leave out images whose paths are not valid text, which cannot be written into tables."""
        for path in self.files:
            if not is_text(path):
                self.leave_out(NOT_TEXT, path)
        self.files = [path for path in self.files if is_text(path)]

    def reasons(self) -> str:
        """Describe what is left out, with counts and names."""
        return "; ".join(f"{len(paths)} {reason} ({listed(paths)})" for reason, paths in self.left_out.items())

    def warn(self) -> None:
        """Log what is left out, if anything."""
        if self.left_out:
            logger.warning(f"Left out of {one_line(self.folder)}: {self.reasons()}.")


def listed(names: Sequence[Any]) -> str:
    """List the first names, and the number of the others."""
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*(one_line(str(name)) for name in names[:MAX_NAMES]), *more])


def printable(text: str) -> str:
    """Convert a file name, which may contain invalid UTF-8, to valid text."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    """Make a name safe for a message, without line breaks and terminal codes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in printable(text))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or was created by a file manager or notebook."""
    return name.startswith(".") or name == "__MACOSX"


def list_folder(folder: str | Path, recursive: bool = True) -> Listing:
    """List the image files in a folder, recognized by extension. Links are followed, except into a folder that contains them.

    Args:
        folder: the folder.
        recursive: whether sub-folders are searched too.

    Raises:
        OSError: if a folder cannot be read.
    """
    listing = Listing(str(folder))
    pending: list[tuple[str, str, frozenset]] = [(str(folder), "", frozenset())]
    while pending:
        parent, path, above = pending.pop()
        status = Path(parent).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            listing.leave_out(CIRCULAR, path)
            continue
        if path and "/" not in path:
            listing.folders.append(path)
        with os.scandir(parent) as entries:
            for entry in entries:
                entry_path = f"{path}/{entry.name}" if path else entry.name
                kind = kind_of(entry)
                if kind == "folder" and not recursive:
                    listing.leave_out(NOT_SEARCHED, entry_path)
                elif kind == "folder":
                    pending.append((entry.path, entry_path, above | {identity}))
                elif kind == "image":
                    listing.files.append(entry_path)
                elif kind is not None:
                    listing.leave_out(kind, entry_path)
                if entry.is_symlink() and (kind == "image" or (kind == "folder" and recursive)):
                    listing.links.append(entry.path)
    listing.files.sort()
    listing.folders.sort()
    for paths in listing.left_out.values():
        paths.sort()
    return listing


def kind_of(entry: os.DirEntry) -> str | None:
    """Return "folder", "image", the reason why an entry is left out, or None if it is ignored without a warning."""
    is_link = entry.is_symlink()
    try:
        if is_link:
            entry.stat()
        is_folder = entry.is_dir()
        is_image = not is_folder and is_image_file(entry.name)
        if is_hidden(entry.name):
            return HIDDEN if is_folder or is_image else None
        if is_folder:
            return "folder"
        if not is_image:
            unsupported = unsupported_format(entry.name)
            if unsupported is not None:
                return UNSUPPORTED.format(unsupported)
            return None if entry.name in SYSTEM_FILES else OTHER
        return "image" if entry.is_file() else SPECIAL
    # Circular links also raise an OSError.
    except OSError as error:
        if not is_link or (is_read_error(error) and error.errno not in LASTING):
            raise
        return BROKEN


def list_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Return the paths of the image files in a folder, including the folder's path, sorted. Log what is left out."""
    listing = list_folder(folder, recursive)
    listing.warn()
    return [Path(folder, file) for file in listing.files]


def find_images(path: str | Path, output_dir: str | Path | None = None) -> list[Path]:
    """Return the image file at `path` or, if it is a folder, the image files in it.

    Raises:
        ValueError: if there are none, or files written to `output_dir` could replace them.
    """
    if Path(path).is_file():
        if output_dir is not None:
            check_is_apart(output_dir, [path])
        return [Path(path)]
    if not Path(path).is_dir():
        raise ValueError(f"--images must be an image or a folder of images, got {path}.")
    listing = list_folder(path, recursive=False)
    if not listing.files:
        raise ValueError(
            f"--images must be an image or a folder of images, got {path} with {listing.reasons() or 'nothing in it'}."
        )
    if output_dir is not None:
        check_is_apart(output_dir, [listing], is_recursive=False)
    listing.warn()
    return [Path(path, file) for file in listing.files]


def list_labeled_images(folder: str | Path | Listing) -> tuple[list[str], list[int], list[str]]:
    """List the images of a folder with a sub-folder for each label. Images may be at any depth in the label's folder.

    Images directly in the folder, hidden files and folders, and folders without images are left out, which is logged.

    Args:
        folder: the folder, or its listing.

    Returns:
        The paths of the images below the folder, sorted; the label number of each; and the names of the labels,
        sorted.

    Raises:
        ValueError: if no sub-folder has an image.
    """
    listing = folder.copy() if isinstance(folder, Listing) else list_folder(folder)
    folder = listing.folder
    listing.leave_out_unreadable_names()
    for file in listing.files:
        if "/" not in file:
            listing.leave_out(IN_ROOT, file)
    files = [file for file in listing.files if "/" in file]
    used = {file.partition("/")[0] for file in files}
    for name in listing.folders:
        if name not in used:
            listing.leave_out(EMPTY, name)
    if not files:
        raise ValueError(
            f"{folder} must hold images in a sub-folder for each label, .parquet or .tar files, got "
            f"{listing.reasons() or 'none of them'}.{archive_hint(listing.left_out.get(OTHER, []))}"
            f"{table_hint(folder)}"
        )
    listing.warn()
    names = sorted({label_name(name) for name in used})
    check_are_no_splits(folder, sorted(used), files)
    numbers = {name: names.index(label_name(name)) for name in used}
    return files, [numbers[file.partition("/")[0]] for file in files], names


def check_are_no_splits(folder: str | Path, labels: list[str], files: list[str]) -> None:
    """Warn if folders taken as labels look like splits, or like folders around the actual label folders.

    Raises:
        ValueError: if all folder names contain words for splits, as `seg_train` and `seg_test` do.
    """
    inner: dict[str, set[str]] = {label: set() for label in labels}
    for label, *below in (file.split("/", 2) for file in files):
        if len(below) > 1:
            inner[label].add(below[0])
    said = {label: said_splits(label) for label in labels}
    training = [label for label in labels if "train" in said[label] and inner[label]]
    splits = [label for label in labels if said[label]]
    if training and len(set().union(*said.values())) > 1:
        message = (
            f"{folder} has the folders {listed(splits)}: if they are splits, give "
            f"{one_line(str(Path(folder, training[0])))}"
        )
        if len(splits) == len(labels):
            raise ValueError(f"{message}; if they are labels, rename them.")
        logger.warning(f"{message}. They are taken as labels.")
        return
    shared = sorted(set.intersection(*inner.values()))
    if len(shared) > 1 and all(len(each) == len(shared) for each in inner.values()):
        inner_folder = one_line(str(Path(folder, labels[0])))
        if len(labels) == 1:
            logger.warning(
                f"{folder} has only one folder, {one_line(labels[0])}, whose folders ({listed(shared)}) are not labels: if "
                f"they should be, give {inner_folder}."
            )
        else:
            logger.warning(
                f"The labels {listed(labels)} of {folder} all have the folders {listed(shared)}, not taken as labels: "
                f"if they should be, give one folder that has them, such as {inner_folder}."
            )


def table_hint(folder: str | Path) -> str:
    """A hint for a message if the tables are in a sub-folder, as in a copy of a dataset on the Hub."""
    inner = [path for path in visible_folders(folder) if data_files(path)]
    return f" Give {listed(inner)}, which has {data_files(inner[0])[0].suffix} files." if inner else ""


def archive_hint(names: list[str]) -> str:
    archives = [name for name in names if name.lower().endswith((".zip", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"))]
    return f" Unpack {listed(archives)} first." if archives else ""


def label_name(name: str) -> str:
    """Normalize the name of a label: macOS stores accented letters of file names as several characters."""
    return unicodedata.normalize("NFC", name)


def is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def visible_folders(folder: str | Path) -> list[Path]:
    """The folders directly in a folder, including links to folders, without hidden ones, sorted."""
    return sorted(path for path in Path(folder).iterdir() if path.is_dir() and not is_hidden(path.name))


def said_splits(text: str) -> set[str]:
    """The splits that words in a name denote."""
    letters = "".join(character if character.isascii() and character.isalpha() else " " for character in text)
    return {SPLIT_WORDS[word] for word in letters.lower().split() if word in SPLIT_WORDS}


def split_folders(folder: str | Path) -> dict[str, Path]:
    """The folders `train`, `validation` and `test` of a dataset that is divided into them; empty if it is not.

    A dataset is divided if the names of all its folders with images or tables are words of `SPLIT_WORDS`, in any case,
    and the train folder has folders with images, a file of `METADATA_NAMES`, or .parquet or .tar files. Otherwise,
    these words are names of labels. Other splits without such content are left out, which is logged.

    Raises:
        ValueError: if two folders denote the same split.
    """
    folders = visible_folders(folder)
    if "train" not in [SPLIT_WORDS.get(path.name.lower()) for path in folders]:
        return {}
    splits: dict[str, Path] = {}
    empty = []
    for path in folders:
        split = SPLIT_WORDS.get(path.name.lower())
        if split is None:
            if holds_data_set(path) or list_folder(path).files:
                return {}
            empty.append(path.name)
            continue
        if split in splits:
            raise ValueError(
                f"{folder} has the folders {splits[split].name} and {path.name} for one split, {split}: keep one of them."
            )
        splits[split] = path
    if not holds_data_set(splits["train"]):
        logger.warning(
            f"{folder} has the folders {listed([path.name for path in folders])}, which are taken as labels, because "
            f"{splits['train'].name} holds no folders of labels."
        )
        return {}
    if empty:
        logger.warning(f"Left out of {one_line(str(folder))} because they have no images: {listed(empty)}.")
    unlabeled = [path.name for path in splits.values() if not holds_data_set(path)]
    if unlabeled:
        logger.warning(f"Left out of {one_line(str(folder))} because they have no label folders: {listed(unlabeled)}.")
    return {split: path for split, path in splits.items() if path.name not in unlabeled}


def holds_data_set(folder: Path) -> bool:
    """Whether a folder has folders with images, or files of a dataset."""
    if metadata_file(folder) is not None or data_files(folder):
        return True
    return any(list_folder(path).files for path in visible_folders(folder))


def metadata_file(folder: str | Path) -> Path | None:
    """The metadata table directly in a folder, named as in `METADATA_NAMES`, in any case; None if there is none.

    Raises:
        ValueError: if there are several tables, or one in another format.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    others = [path.name for path in files if path.name.lower() in OTHER_TABLES]
    if others:
        raise ValueError(
            f"{folder} must have its metadata as one of {', '.join(METADATA_NAMES)}, got {listed(others)}."
        )
    found = [path for path in files if path.name.lower() in METADATA_NAMES]
    if len(found) > 1:
        raise ValueError(f"{folder} must have one table of metadata, got {listed(found)}.")
    return found[0] if found else None


def data_files(folder: str | Path) -> list[Path]:
    """The .parquet files directly in a folder, or else the .tar files, sorted."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and not is_hidden(path.name))
    for suffix in (".parquet", ".tar"):
        found = [path for path in files if path.suffix.lower() == suffix and path.stem.lower() != "metadata"]
        if found:
            return found
    return []


def warn_of_others(folder: str | Path, files: Sequence[str | Path]) -> None:
    """Warn about images, archives and folders next to .parquet or .tar files, which are not read."""
    listing = list_folder(folder, recursive=False)
    known = {Path(file).name for file in files}
    archives = [
        name for name in listing.left_out.get(OTHER, []) if name.lower().endswith(".tar") and name not in known
    ]
    beside = [*listing.left_out.get(NOT_SEARCHED, []), *archives, *listing.files]
    if beside:
        logger.warning(
            f"Only the {Path(files[0]).suffix} files of {folder} are read, not what is beside them: {listed(beside)}."
        )


def split_files(files: list[Path]) -> dict[str, list[Path]]:
    """Group files by the split that their names denote; all files are the split "all" if no name denotes one.

    Raises:
        ValueError: if a name denotes two splits, or only some names denote one.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        said = said_splits(file.stem)
        if len(said) > 1:
            raise ValueError(
                f"The name of {file} says both {' and '.join(sorted(said))}: rename it, so that it says one split."
            )
        splits.setdefault(said.pop() if said else "all", []).append(file)
    if "all" in splits and len(splits) > 1:
        others = [name for name in splits if name != "all"]
        raise ValueError(
            f"The names of some files say which split they are ({', '.join(others)}), those of {listed(splits['all'])} do "
            "not: rename them, or move them elsewhere."
        )
    return splits
