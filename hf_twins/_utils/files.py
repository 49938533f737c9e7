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
"""Files and folders that are written atomically: a killed process or a full disk leaves no incomplete ones."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar


if TYPE_CHECKING:
    from .image_folders import Listing

Result = TypeVar("Result")

# Windows has no `fcntl` locks: there, files that a killed run left have to be removed by hand.
if sys.platform != "win32":
    import fcntl


# Maximum length of the name of a file on most file systems.
MAX_NAME_BYTES = 255
# Waits before a file is read again, in seconds.
READING_PAUSES = (0.1, 0.5, 2.0)
# Permanent errors, for which it does not help to wait.
LASTING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
ADVICE = {
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n), or use fewer workers",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "free memory, or use fewer workers",
}


# Folders in which partial files of killed runs were already removed.
SWEPT: set[Path] = set()


class ReadError(OSError):
    """The system cannot read a file, for reasons unrelated to its content: the disk, the network or a process limit."""


def read_again(read: Callable[[], Result], name: str | Path) -> Result:
    """Call `read`, and retry it after short pauses if the system fails to read the file.

    Args:
        read: reads everything needed from the file, starting at its beginning.
        name: name of the file for messages.

    Raises:
        ReadError: if the file still cannot be read.
        Exception: any other error that `read` raises, about the content of the file.
    """
    for pause in (*READING_PAUSES, None):
        try:
            return read()
        except OSError as error:
            if not is_read_error(error):
                raise
            if pause is None or error.errno in LASTING:
                raise ReadError(
                    describe_read_error(error, os.fsencode(name).decode("utf-8", "backslashreplace"))
                ) from error
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def describe_read_error(error: OSError, name: str) -> str:
    """Describe in a sentence why the system cannot read a file."""
    if error.errno == errno.ENOENT:
        return f"{name} does not exist."
    if error.errno in LASTING:
        return f"{name} cannot be read: {error.strerror}."
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return f"{name} could not be read in {len(READING_PAUSES) + 1} tries ({error.strerror}{advice}): start again when it can."


def is_read_error(error: Exception) -> bool:
    """Whether an error comes from the system, and not from seeking to an invalid offset that a corrupt file contains."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EOVERFLOW)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name, and rename it once it is complete.

    No other run uses the same temporary name. When a process writes its first file into a folder, it removes the
    temporary files that killed runs left there.

    Args:
        path: the file; an existing one is replaced.
        write: writes the file to the path that it is called with.
    """
    # Each folder is cleaned only once, because it may have a file for every image.
    if (folder := path.parent.absolute()) not in SWEPT:
        SWEPT.add(folder)
        remove_left(folder)
    with partial_output(path, is_folder=False) as partial:
        write(partial)
        use_default_permissions(partial)
        partial.replace(path)


def use_default_permissions(file: Path) -> None:
    """Give a file the default permissions of new files; safetensors writes files that only their owner can read."""
    if file.is_symlink() or file.is_dir() or file.stat().st_mode & 0o777 != 0o600:
        return
    # The umask can only be read by setting it. The strict value protects files that other threads create meanwhile.
    mask = os.umask(0o077)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Write JSON atomically; `options` are passed to `json.dumps`."""
    text = json.dumps(content, indent=2, **options) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def check_is_new(output: Path) -> None:
    """Raise a ValueError if `output` is an existing file or a folder that is not empty."""
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
    """Raise a ValueError if written files could replace input files, or be read as input by the next run.

    Args:
        output: folder to write into.
        inputs: folders that are read, their listings, or single files. None and names on the Hub are ignored. The
            targets of links in folders count as inputs, too.
        is_recursive: whether the folders are read with their sub-folders.
        option: name of the output in messages.
        follow_links: whether to list folders to find their links. If False, the check is fast, but must be repeated
            with the listings once they exist.
    """
    # Imported here, because it imports PyTorch, which processes that only write files do not need.
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
    """Context with an empty temporary folder or file next to `output`, which is renamed to `output` at the end.

    It is removed after an error. Temporary files that killed runs left for the same `output` are removed as well.

    Raises:
        ValueError: if `output` exists, also if another process creates it in the meantime.
    """
    check_is_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_left(output.parent, f"{glob.escape(partial_prefix(output))}*")
    with partial_output(output, is_folder) as partial:
        yield partial
        for file in partial.rglob("*") if is_folder else (partial,):
            use_default_permissions(file)
        move(partial, output)


@contextlib.contextmanager
def partial_output(output: Path, is_folder: bool) -> Iterator[Path]:
    """Context with an empty, locked temporary folder or file next to `output`, removed at the end unless it was renamed."""
    while True:
        partial = output.with_name(partial_prefix(output) + secrets.token_hex(4))
        # Files and folders of `tempfile` would be readable only by their owner.
        partial.mkdir() if is_folder else partial.touch(exist_ok=False)
        with locked(partial) as is_mine:
            # False if another run has just mistaken this file for one that a killed run left.
            if is_mine is False:
                continue
            try:
                yield partial
            finally:
                remove(partial)
            return


def partial_prefix(output: Path) -> str:
    """Beginning of the temporary names of an output, which leaves room for what follows if its own name is long."""
    name = os.fsencode(output.name)
    shown = output.name if len(name) <= MAX_NAME_BYTES // 2 else hashlib.sha256(name).hexdigest()
    return f".{shown}.partial-"


def check_name_lengths(inputs: Iterable[Path], output_name: Callable[[Path], str]) -> None:
    """Raise a ValueError if the output of an input, whose name `output_name` returns, would have too long a name."""
    # Imported here for the same reason as in `check_is_apart`.
    from .image_folders import listed

    too_long = [file.name for file in inputs if len(os.fsencode(output_name(file))) > MAX_NAME_BYTES]
    if too_long:
        raise ValueError(
            f"The outputs of {len(too_long)} images would have names of more than {MAX_NAME_BYTES} bytes, the most that file "
            f"systems allow: give shorter names to {listed(too_long)}."
        )


def remove_left(folder: Path, pattern: str = ".*.partial-" + "[0-9a-f]" * 8) -> None:
    """Remove the temporary files that killed runs left, but none that a run is still writing."""
    for left in folder.glob(pattern):
        with locked(left) as is_left:
            if is_left:
                remove(left)


def move(partial: Path, output: Path) -> None:
    with contextlib.suppress(OSError):
        # `rmdir` removes only an empty folder.
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


def check_can_be_folder(folder: Path) -> None:
    """Raise a ValueError if an output folder, or one of its parents, is a file or a broken link."""
    first = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not first.is_dir():
        what = "a file" if first.exists() else "a link that leads nowhere"
        raise ValueError(f"--output_dir must be an existing or new folder, but {first} is {what}: give another.")


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Context in which no other run can write to a folder.

    A killed run does not block the folder, and its temporary files are removed.

    Raises:
        ValueError: if another run is writing to the folder, or the path cannot be a folder.
    """
    check_can_be_folder(folder)
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder) as is_mine:
            if is_mine is False:
                raise ValueError(f"Another run is writing to {folder}: wait for it, or give another --output_dir.")
            remove_left(folder)
            yield
    finally:
        # `rmdir` removes only empty folders, which remain if the run was refused before it wrote anything.
        with contextlib.suppress(OSError):
            for each in new:
                each.rmdir()


# Open file descriptors of locked files.
LOCKED: set[int] = set()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder until the end of the `with` block, or of this process.

    Yields:
        True if it is locked now; False if another process has locked or removed it; None if locks are not supported.
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
        # Other errors occur on network file systems without locks.
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
    # Forked data loading processes inherit open descriptors, and would keep the lock after the main process was
    # killed.
    os.register_at_fork(after_in_child=close_locked)
