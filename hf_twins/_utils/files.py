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
"""Files and folders that are written atomically: a killed process or a full disk leaves none that is half written."""

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .image_folders import Listing

# Windows has no locks of this kind: what a killed run left has to be removed by hand there.
if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, and rename it once it is complete.

    Args:
        path: the file; one that exists is replaced.
        write: writes the file whose path it is called with, `path` with `.partial` at its end.
    """
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.replace(path)


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Write JSON atomically; `options` are those of `json.dumps`."""
    text = json.dumps(content, indent=2, **options) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def check_is_new(output: Path) -> None:
    """Raise a ValueError if there is a file, or a folder with anything in it, at `output`."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise ValueError(f"{output} exists: remove it, or give another output.")


def check_is_apart(
    output: str | Path,
    inputs: "Iterable[str | Path | Listing | None]",
    is_recursive: bool = True,
    option: str = "--output_dir",
    follow_links: bool = True,
) -> None:
    """Raise a ValueError if what is written could replace what is read, or be read as input by the next run.

    Args:
        output: folder to write into.
        inputs: folders that are read, or their listings, or single files; None, and names on the Hub, count for nothing. Where
            links in them lead is read, too.
        is_recursive: whether the folders are read with their sub-folders.
        option: what the output is called.
        follow_links: whether folders are listed for their links. Without it, this is quick, and their listings, once there are
            some, have to be given too.
    """
    # Here, for processes that only write files: it imports PyTorch.
    from .image_folders import Listing, list_folder

    written = Path(output).resolve()
    for source in inputs:
        if isinstance(source, Listing):
            read, links = Path(source.folder), source.links
        elif source is None or not Path(source).exists():
            continue
        elif not Path(source).is_dir():
            read, links = Path(source).parent, [str(source)]
        else:
            read, links = Path(source), list_folder(source, is_recursive).links if follow_links else []
        is_folder = isinstance(source, Listing) or Path(source).is_dir()
        for real in dict.fromkeys(map(os.path.realpath, [str(read), *links])):
            path = Path(real)
            is_searched = is_folder and is_recursive and path.is_dir()
            folder = path if path.is_dir() else path.parent
            if written == folder or (is_searched and folder in written.parents):
                raise ValueError(
                    f"{option} must be another folder than {folder}, where the input is{', and not below it' * is_searched}: "
                    f"what is written there could replace input, or become input of the next run. Got {output}."
                )


@contextlib.contextmanager
def new_output(output: Path, is_folder: bool = True) -> Iterator[Path]:
    """An empty folder or file beside `output`, which is renamed to `output` at the end, and removed after an error.

    What a killed run had begun to write for `output` is removed.

    Raises:
        ValueError: if `output` exists, also if another process has written it meanwhile.
    """
    check_is_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name}.partial-"
    for left in output.parent.glob(f"{glob.escape(prefix)}*"):
        with locked(left) as is_left:
            if is_left:
                remove(left)
    while True:
        partial = output.with_name(prefix + secrets.token_hex(4))
        # Not `tempfile`, whose folders nobody else may read.
        partial.mkdir() if is_folder else partial.touch(exist_ok=False)
        with locked(partial) as is_mine:
            # False if another run just now took it for one that was left.
            if is_mine is False:
                continue
            try:
                yield partial
                move(partial, output)
            finally:
                remove(partial)
            return


def move(partial: Path, output: Path) -> None:
    with contextlib.suppress(OSError):
        # Removes nothing but an empty folder.
        output.rmdir()
    try:
        # Renaming replaces a file, but not a folder.
        if output.is_file():
            raise FileExistsError
        partial.rename(output)
    except OSError as error:
        if not output.exists():
            raise
        raise ValueError(f"{output} exists, another run has written it: remove it, or give another output.") from error


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder meanwhile; a killed run keeps nobody from it.

    Raises:
        ValueError: if another run writes to it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder) as is_mine:
            if is_mine is False:
                raise ValueError(f"Another run writes to {folder}: wait for it, or give another --output_dir.")
            yield
    finally:
        if is_new:
            # Of a run that was refused before it wrote anything: only an empty folder is removed.
            with contextlib.suppress(OSError):
                folder.rmdir()


# Descriptors that are open as long as their files are locked.
LOCKED: set[int] = set()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder until the end of the block, or of this process.

    Yields:
        True; False if another process has locked it, or it is gone; None where there are no locks.
    """
    if sys.platform == "win32":
        yield None
        return
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        LOCKED.add(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine: bool | None = path.exists()
    except OSError as error:
        # Other errors are those of network file systems without locks.
        is_mine = False if error.errno in (errno.ENOENT, errno.EWOULDBLOCK) else None
    try:
        yield is_mine
    finally:
        if descriptor in LOCKED:
            LOCKED.remove(descriptor)
            os.close(descriptor)


def close_locked() -> None:
    while LOCKED:
        os.close(LOCKED.pop())


if sys.platform != "win32":
    # Data loading processes are forked with all open descriptors: they would keep the lock of a run that was killed.
    os.register_at_fork(after_in_child=close_locked)
