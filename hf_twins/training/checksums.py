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
"""Checksums of the files of a checkpoint, to detect damage, and to remove only its own files."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from hf_twins._utils.files import use_default_permissions, write_json
from hf_twins._utils.fingerprints import file_digest


CHECKSUMS_NAME = "checksums.json"


def write_checksums(checkpoint: Path) -> None:
    """Write the size and the SHA-256 of each file of a checkpoint into the checkpoint, as its last file."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != CHECKSUMS_NAME)
    for file in files:
        use_default_permissions(file)
    sums = {
        file.relative_to(checkpoint).as_posix(): {"size": file.stat().st_size, "sha256": file_digest(file)}
        for file in files
    }
    write_json(checkpoint / CHECKSUMS_NAME, sums)


def read_checksums(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    """The size and the SHA-256 of each file of a checkpoint; None if they are missing or damaged."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS_NAME).read_text(encoding="utf-8"))
        is_valid = all(is_inside(name) and each.keys() == {"size", "sha256"} for name, each in sums.items())
    except (OSError, ValueError, AttributeError):
        return None
    return sums if is_valid and sums else None


def find_damage(checkpoint: Path) -> str | None:
    """Say which file of a checkpoint is missing or was changed after it was written; None if it is complete."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    sums = read_checksums(checkpoint)
    if sums is None:
        return f"it has no valid {CHECKSUMS_NAME}, which is written last (older versions wrote none)"
    for name, expected in sums.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"] or file_digest(file) != expected["sha256"]:
            return f"{name} is not as it was written"
    return None


def remove_checkpoint(folder: Path) -> None:
    """Remove the files that a checkpoint lists or, if it was never complete, its entire folder."""
    if folder.is_symlink():
        folder.unlink()
        return
    sums = read_checksums(folder)
    # The checksums are removed first, so that an interrupted removal leaves an incomplete checkpoint.
    (folder / CHECKSUMS_NAME).unlink(missing_ok=True)
    if sums is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove_files(folder, sums)
        remove_empty_folders(folder)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files below a folder, and the folders that become empty. Links are not followed."""
    for name in names:
        parents = [folder / parent for parent in PurePosixPath(name).parents[:-1]]
        path = folder / name
        if any(parent.is_symlink() for parent in parents) or (path.is_dir() and not path.is_symlink()):
            continue
        path.unlink(missing_ok=True)
        for parent in parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def remove_empty_folders(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def is_inside(name: str) -> bool:
    """Whether a relative file name stays within its folder on every operating system."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and ":" not in name
