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
"""The small file system is mounted by whoever may, and where nobody may, that is not passed over in silence on GitHub."""

import os
from pathlib import Path

import pytest
from testing_utils import small_file_system


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder of programs that are found before the system's."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def write_program(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_other_users_mount_by_sudo(programs, tmp_path, monkeypatch):
    write_program(programs / "sudo", f"printf '%s\\n' \"$*\" >> {tmp_path}/log")
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    monkeypatch.setattr(os, "getuid", lambda: 1001)
    folder = tmp_path / "small"
    with small_file_system(folder) as set_options:
        set_options("ro")
    assert (tmp_path / "log").read_text().splitlines() == [
        f"-n mount -t tmpfs -o size=256k,uid=1001 tmpfs {folder}",
        f"-n mount -o remount,ro {folder}",
        f"-n umount {folder}",
    ]


@pytest.mark.parametrize(("variable", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_where_it_may_not_be_mounted(variable, outcome, programs, tmp_path, monkeypatch):
    write_program(programs / "mount", "echo permission denied >&2; exit 1")
    write_program(programs / "sudo", 'shift; exec "$@"')
    monkeypatch.setenv("GITHUB_ACTIONS", variable)
    with pytest.raises(outcome, match="permission denied"), small_file_system(tmp_path / "small"):
        pass
