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
"""Files that two processes write at once, or whose writer is killed, are complete, and no partial files remain."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_twins._utils import files
from hf_twins._utils.files import check_name_lengths, exclusive_folder, locked, new_output, write_atomically
from hf_twins._utils.image_folders import list_folder


KINDS = pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
LOAD = f"""
import importlib.util
import sys
from pathlib import Path

# By its path: importing the package takes seconds.
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
"""
# Writes the first half, waits for input, and writes the second half.
PROGRAM = (
    LOAD
    + """
output, is_folder, text = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
try:
    with files.new_output(output, is_folder) as partial:
        first, second = (partial / "first", partial / "second") if is_folder else (partial, partial)
        first.write_text(text)
        print("writing", flush=True)
        sys.stdin.readline()
        with second.open("a") as file:
            file.write(text)
except ValueError as error:
    sys.exit(str(error))
"""
)


def start(output: Path, is_folder: bool, text: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(output), str(is_folder), text],
        env={"PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n", process.communicate()
    return process


def content(output: Path) -> str:
    return "".join(file.read_text() for file in (sorted(output.iterdir()) if output.is_dir() else [output]))


@KINDS
def test_second_of_two_writers_gets_an_error_and_the_output_of_the_first_is_complete(is_folder, tmp_path):
    output = tmp_path / "new" / "output[1]"
    first, second = (start(output, is_folder, text) for text in "ab")
    assert not output.exists()
    assert second.communicate("go\n")[0] == ""
    assert content(output) == "bb"
    error = first.communicate("go\n")[1].splitlines()[-1]
    assert (first.returncode, second.returncode) == (1, 0)
    assert error == f"{output} exists, another run has written it: remove it, or give another output."
    assert content(output) == "bb"
    assert list(output.parent.iterdir()) == [output]


@KINDS
def test_partial_files_of_killed_writers_are_removed_but_not_those_of_running_ones(is_folder, tmp_path):
    output = tmp_path / "output"
    killed, living = (start(output, is_folder, text) for text in "ab")
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(RuntimeError), new_output(output, is_folder):
        raise RuntimeError("of the third, which begins and fails")
    assert len(list(tmp_path.iterdir())) == 1
    assert living.communicate("go\n")[0] == ""
    assert list(tmp_path.iterdir()) == [output]
    assert content(output) == "bb"


def test_empty_output_folder_is_used_and_files_have_default_permissions(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "other").mkdir()
    with new_output(tmp_path / "output") as partial:
        (partial / "file").write_text("text")
    assert content(tmp_path / "output") == "text"
    assert (tmp_path / "output").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_without_locks_output_is_written_and_no_partial_files_are_removed(tmp_path, monkeypatch):
    (tmp_path / ".output.partial-0").mkdir()

    def refuse(*arguments):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with new_output(tmp_path / "output") as partial:
        (partial / "file").write_text("text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".output.partial-0", "output"]


def test_folder_is_unlocked_when_its_run_has_ended_or_was_killed(tmp_path):
    with exclusive_folder(tmp_path / "new"):
        pass
    # Nothing was written to the folder.
    assert not (tmp_path / "new").exists()

    program = (
        LOAD
        + """
with files.exclusive_folder(Path(sys.argv[1])):
    print("there", flush=True)
    sys.stdin.readline()
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    with pytest.raises(ValueError, match="Another run"), exclusive_folder(tmp_path):
        pass
    process.kill()
    process.communicate()
    with exclusive_folder(tmp_path):
        (tmp_path / "file").touch()
    assert (tmp_path / "file").exists()


# Python 3.12 and later warn about forking.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_data_loading_processes_do_not_keep_a_folder_locked(tmp_path):
    started, start = os.pipe()
    with exclusive_folder(tmp_path):
        loader = os.fork()
        if loader == 0:
            os.write(start, b"!")
            time.sleep(600)
            os._exit(0)
    os.read(started, 1)
    try:
        with exclusive_folder(tmp_path):
            pass
    finally:
        os.kill(loader, signal.SIGKILL)
        os.waitpid(loader, 0)


@pytest.mark.parametrize(
    ("output", "source", "is_recursive", "is_refused"),
    [
        ("images", "images", True, True),
        ("images/", "./images", False, True),
        ("images/run", "images", True, True),
        ("images/a/b", "images", True, True),
        ("images/run", "images", False, False),
        ("link", "images", False, True),
        ("link/run", "images", True, True),
        ("images", "images/a.png", False, True),
        ("images/run", "images/a.png", True, False),
        ("images-2", "images", True, False),
        (".", "images", True, False),
        ("images", "user/name", True, False),
        ("images", None, True, False),
        # Links among the images lead to these folders.
        ("elsewhere/label/run", "images", True, True),
        ("elsewhere/label", "images", False, False),
        ("elsewhere/files", "images", False, True),
        ("elsewhere/files/run", "images", True, False),
        ("elsewhere/files", "images/linked.png", False, True),
        ("images", "images/linked.png", False, True),
    ],
)
def test_output_is_apart_from_input(output, source, is_recursive, is_refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "link").symlink_to("images")
    for folder in ("label", "files"):
        (tmp_path / "elsewhere" / folder).mkdir(parents=True)
    (tmp_path / "elsewhere" / "files" / "b.png").touch()
    (tmp_path / "images" / "label").symlink_to("../elsewhere/label")
    (tmp_path / "images" / "linked.png").symlink_to("../elsewhere/files/b.png")
    if is_refused:
        message = r"--output_dir must be another folder than .*(images|label|files), where the input is"
        with pytest.raises(ValueError, match=message):
            files.check_is_apart(output, [None, source], is_recursive)
    else:
        files.check_is_apart(output, [None, source], is_recursive)
    if source is not None and Path(source).is_dir():
        # The result must be the same in two steps: a quick check, and a check with the listing.
        calls = (
            lambda: files.check_is_apart(output, [source], is_recursive, follow_links=False),
            lambda: files.check_is_apart(output, [list_folder(source, is_recursive)], is_recursive),
        )
        refusals = []
        for call in calls:
            try:
                call()
            except ValueError as error:
                refusals.append(str(error))
        assert bool(refusals) == is_refused


def test_two_runs_that_write_the_same_file_use_different_partial_files(tmp_path):
    output = tmp_path / "output"

    def write_while_another_does(partial: Path) -> None:
        partial.write_text("a")
        write_atomically(output, lambda other: other.write_text("bb"))
        assert content(output) == "bb"
        with partial.open("a") as file:
            file.write("a")

    write_atomically(output, write_while_another_does)
    assert content(output) == "aa"
    assert list(tmp_path.iterdir()) == [output]


def test_first_file_of_a_run_removes_only_partial_files_of_killed_runs(tmp_path):
    left, living = (tmp_path / f".{name}.partial-0123abcd" for name in ("other", "living"))
    others = [tmp_path / name for name in (".notes.partial-of-mine", "file.partial")]
    for file in (left, living, *others):
        file.write_text("half")
    with locked(living):
        write_atomically(tmp_path / "output", lambda partial: partial.write_text("text"))
    assert sorted(tmp_path.iterdir()) == sorted([living, *others, tmp_path / "output"])


@KINDS
@pytest.mark.parametrize("name", ["n" * 255, "\N{CAT FACE}" * 63])
def test_output_may_have_the_longest_name_and_its_partial_files_are_removed(name, is_folder, tmp_path):
    left = tmp_path / f"{files.partial_prefix(tmp_path / name)}0123abcd"
    left.write_text("half")
    with new_output(tmp_path / name, is_folder) as partial:
        (partial / "file" if is_folder else partial).write_text("text")
    assert content(tmp_path / name) == "text"
    if not is_folder:
        write_atomically(tmp_path / name, lambda partial: partial.write_text("new"))
        assert content(tmp_path / name) == "new"
    left.write_text("half")
    files.remove_left(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_names_too_long_for_the_names_of_their_outputs_are_refused():
    inputs = [Path("a" * 251), Path("b" * 252), Path("\N{CAT FACE}" * 63)]
    check_name_lengths(inputs[:1], lambda file: f"{file}.png")
    message = r"The outputs of 2 images would have names of more than 255 bytes, .*: give shorter names to b+, \S+\.$"
    with pytest.raises(ValueError, match=message):
        check_name_lengths(inputs, lambda file: f"{file}.png")


def test_failed_write_keeps_the_old_file(tmp_path):
    output = tmp_path / "output"
    output.write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(output, fail)
    assert content(output) == "old"
    assert list(tmp_path.iterdir()) == [output]
    write_atomically(output, lambda partial: partial.write_text("new"))
    (tmp_path / "other").touch()
    # The file has the same permissions as other new files.
    assert output.stat().st_mode == (tmp_path / "other").stat().st_mode
