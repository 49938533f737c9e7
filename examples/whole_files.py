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
"""Files that are whole where they are: a process that is killed, or a disk that is full, leaves none that is half written."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


# Windows has no locks of this kind.
if sys.platform != "win32":
    import fcntl


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let a file be written under another name, and give it its own when all of it is there.

    Args:
        path: of the file; what is there is replaced.
        write: writes a file of the path that it is called with, `path` with `.partial` at its end.
    """
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.replace(path)


def write_json(path: Path, content: Any, **options: Any) -> None:
    """`options` are those of `json.dumps`."""
    text = json.dumps(content, indent=2, **options) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs from writing into a folder meanwhile; one that is killed keeps nobody.

    Raises:
        ValueError: if another run writes into it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = lock(folder)
    try:
        yield
    finally:
        if descriptor in LOCKED:
            LOCKED.remove(descriptor)
            os.close(descriptor)
        if is_new:
            # Of a run that was refused before it wrote anything: only an empty folder is removed.
            with contextlib.suppress(OSError):
                folder.rmdir()


# What is open as long as its folder is locked.
LOCKED: set[int] = set()


def lock(folder: Path) -> int | None:
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"Another run writes to {folder}: wait for it, or give another --output_dir.") from None
    except OSError:
        # Some file systems of networks have no locks.
        pass
    LOCKED.add(descriptor)
    return descriptor


def close_locked() -> None:
    while LOCKED:
        os.close(LOCKED.pop())


if sys.platform != "win32":
    # Processes that load data are forked, with all that is open: they would keep the folder of a run that was killed.
    os.register_at_fork(after_in_child=close_locked)
