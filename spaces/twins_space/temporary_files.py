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
"""A folder for a page's temporary files, which is removed when the page ends."""

import atexit
import contextlib
import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from hf_twins._utils.files import locked, remove, remove_left


PREFIX = "twins-space-"
# Seconds between removals of empty folders, and the age of those that are removed.
SWEEP_SECONDS = 3600


def use_own_folder() -> None:
    """Let Gradio write the files of this process to a folder that is removed with it, inside `GRADIO_TEMP_DIR` if that is set.

    Gradio deletes a visitor's files, but never the folder that it makes for each of them, deletes nothing if it is
    terminated, and never what a page copies when it starts. Gradio reads the variable when it is imported, so this
    function has to be called before.
    """
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    # A page that was killed could not remove its folder.
    remove_left(parent, f"{PREFIX}*")
    folder = make_locked_folder(parent)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(remove, folder)

    def end(number: int, frame: FrameType | None) -> None:
        remove(folder)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=sweep, args=(folder,), daemon=True).start()


def make_locked_folder(parent: Path) -> Path:
    """Make a folder that remains locked until this process ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with ExitStack() as stack:
            # False if a page that starts has just mistaken this folder for one that was left.
            if stack.enter_context(locked(folder)) is not False:
                atexit.register(stack.pop_all().close)
                return folder


def sweep(folder: Path) -> None:
    while True:
        time.sleep(SWEEP_SECONDS)
        remove_empty_folders(folder)


def remove_empty_folders(folder: Path) -> None:
    """Remove the empty folders in a folder that have not changed for a while."""
    for child in folder.iterdir():
        with contextlib.suppress(OSError):
            if child.is_dir() and time.time() - child.stat().st_mtime > SWEEP_SECONDS:
                # `rmdir` removes only empty folders.
                child.rmdir()
