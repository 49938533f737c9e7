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
"""Helpers of the tests of training scripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from hf_twins.training.runs import read_run


# The identity of a training run.
IDENTITY = {
    "options": {"seed": 1, "num_train_epochs": 2.0, "max_steps": -1},
    "labels": ["cat", "dog"],
    "data": {"train": {"images": 8, "fingerprint": "a" * 64}},
    "model": "b" * 64,
    "num_processes": 1,
}


def check_second_runs(main: Callable[[list[str]], Any], arguments: list[str], output: Path) -> None:
    """Start a short training several times in one folder, which must only work to resume or replace the run.

    Args:
        main: function `main` of the script.
        arguments: options of the script, which must save a checkpoint after a step.
        output: output folder in the options.
    """

    def start(*options: str) -> None:
        try:
            main([*arguments, *options])
        finally:
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()

    output.mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    start()
    expected = read_run(output)
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    # The record names all files that exist.
    rest = {name for name in written if name.partition("/")[0] not in expected.checkpoints}
    assert rest == {*expected.written_files(), "run.json", "notes.txt"}
    assert len(expected.checkpoints) == 1
    with pytest.raises(
        SystemExit, match=r"^error: \S+ has the files of a run: resume it with --resume_from_checkpoint lat"
    ):
        start()
    with pytest.raises(SystemExit, match=r"^error: \S+ is from a run that differs in --weight_decay \S+, now 0\.5\."):
        start("--resume_from_checkpoint", "latest", "--weight_decay", "0.5")
    assert read_run(output) == expected
    start("--resume_from_checkpoint", "latest")
    assert read_run(output).identity == expected.identity
    start("--overwrite_output_dir", "true", "--weight_decay", "0.5")
    assert read_run(output).identity["options"]["weight_decay"] == 0.5
    assert {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()} == written
