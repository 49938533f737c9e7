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
"""Files and folders that get their names when they are whole, whoever else writes the same ones, and whoever is killed."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


# Windows has no such locks: what a run that was killed left has to be removed by hand there.
if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def whole_output(output: Path, is_folder: bool = True) -> Iterator[Path]:
    """An empty folder or file beside `output`, this run's alone, which is put there in the end and removed after an error.

    What a run that was killed had begun to write at `output` is removed.

    Raises:
        ValueError: if there is something at `output` in the end.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name}.partial-"
    for left in output.parent.glob(f"{glob.escape(prefix)}*"):
        with claim(left) as is_left:
            if is_left:
                remove(left)
    while True:
        partial = output.with_name(prefix + secrets.token_hex(4))
        # Not `tempfile`, whose folders nobody else may read.
        partial.mkdir() if is_folder else partial.touch(exist_ok=False)
        with claim(partial) as is_mine:
            # False where another run, just now, took it for left.
            if is_mine is False:
                continue
            try:
                yield partial
                put(partial, output)
            finally:
                remove(partial)
            return


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder for as long as this process lives.

    Yields:
        True; False if another process has locked it, or it is gone; None where there are no locks.
    """
    if sys.platform == "win32":
        yield None
        return
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine: bool | None = path.exists()
    except OSError as error:
        # The others are those of network file systems.
        is_mine = False if error.errno in (errno.ENOENT, errno.EWOULDBLOCK) else None
    try:
        yield is_mine
    finally:
        if descriptor is not None:
            os.close(descriptor)


def put(partial: Path, output: Path) -> None:
    with contextlib.suppress(OSError):
        # Removes nothing but an empty folder.
        output.rmdir()
    try:
        # A folder is not put in the place of another one, but a file is in that of a file.
        if output.is_file():
            raise FileExistsError
        partial.rename(output)
    except OSError as error:
        if not output.exists():
            raise
        raise ValueError(
            f"{output} exists, another run has written it: remove it, or give another --output."
        ) from error


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
