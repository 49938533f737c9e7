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
"""What a page leaves of its temporary files: nothing, whatever ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import handle_file
from space_server import SPACES, digit_image, serve
from twins_space import temporary_files

from hf_twins._utils.files import remove_left


PAGE = (
    "import os, signal, sys\n"
    "from pathlib import Path\n"
    "from twins_space.temporary_files import use_own_folder\n"
    "use_own_folder()\n"
    "Path(os.environ['GRADIO_TEMP_DIR'], 'upload.png').touch()\n"
    "signal.raise_signal(int(sys.argv[1])) if sys.argv[1:] else None\n"
)


def end_page(folder: Path, *ending: signal.Signals) -> int:
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder), "PYTHONPATH": f"{SPACES}:{SPACES.parent}"}
    command = [sys.executable, "-c", PAGE, *(str(int(number)) for number in ending)]
    return subprocess.run(command, env=environment, timeout=120).returncode


@pytest.mark.slow
def test_nothing_is_left(tmp_path):
    folder = tmp_path / "gradio"
    assert end_page(folder) == 0
    assert not list(folder.iterdir())
    # A page cannot remove anything if it is killed, but the next one does.
    assert end_page(folder, signal.SIGKILL) == -signal.SIGKILL
    assert [file.name for file in folder.rglob("*.png")] == ["upload.png"]
    assert end_page(folder, signal.SIGTERM) == -signal.SIGTERM
    assert not list(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("space", ["image_classification", "semantic_segmentation"])
def test_gradio_writes_only_to_the_folder(space, tmp_path):
    digit_image(3).save(tmp_path / "digit.png")
    endpoint = "/classify" if space == "image_classification" else "/segment"
    (tmp_path / "tmp").mkdir()
    with serve(SPACES / space, tmp_path / "log.txt", TMPDIR=str(tmp_path / "tmp"), GRADIO_TEMP_DIR="") as server:
        server.client().predict(handle_file(tmp_path / "digit.png"), api_name=endpoint)
        (folder,) = (tmp_path / "tmp").glob("twins-space-*")
        assert list(folder.rglob("digit.png"))
        written = [path.name for path in (tmp_path / "tmp").iterdir() if any(path.rglob("*.*"))]
        assert written == [folder.name]
    assert not folder.exists()


def test_folder_of_a_running_page_is_not_removed(tmp_path):
    folder = temporary_files.make_locked_folder(tmp_path)
    (tmp_path / f"{temporary_files.PREFIX}left").mkdir()
    remove_left(tmp_path, f"{temporary_files.PREFIX}*")
    assert list(tmp_path.iterdir()) == [folder]


def test_old_empty_folders_are_removed(tmp_path):
    for name in ("old", "new", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "digit.png").touch()
    for name in ("old", "full"):
        os.utime(tmp_path / name, (0, 0))
    temporary_files.remove_empty_folders(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "new"]
