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
"""Short runs of the long checks: random kills, load, and coverage-guided fuzzing."""

import os
import subprocess
import sys
from pathlib import Path

import load
import pytest


pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    "names",
    [
        ("convert_twins_to_hf.py", "push", "evaluate", "predict"),
        ("run_trainer", "damaged checkpoints of image_classification/run_trainer"),
        ("run_accelerate", "damaged checkpoints of image_classification/run_accelerate"),
    ],
    ids=["conversion and prediction", "run_trainer", "run_accelerate"],
)
def test_killed_scripts_lose_and_repeat_nothing(names):
    """The check runs in a separate process, because it forks."""
    command = [sys.executable, TESTS / "kill_at_random.py", "--kills", "1", "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[2:4] for row in rows] == len(names) * [["1", "1"]]


def test_crash_is_not_mistaken_for_a_kill(tmp_path):
    """The check runs in a separate process, because it forks."""
    program = f"""if True:
        import os, signal, time
        from pathlib import Path
        import kill_at_random

        done = Path({str(tmp_path / "done")!r})

        def crash_the_second_time(output):
            if done.exists():
                os.kill(os.getpid(), signal.SIGUSR1)
            done.touch()
            time.sleep(1)

        job = kill_at_random.Job("crashing", crash_the_second_time, *3 * [lambda output: None])
        kill_at_random.torment(job, Path({str(tmp_path)!r}), kills=1, log=Path(os.devnull))
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
    )
    assert "AssertionError: crashing died of SIGUSR1 when it was to be killed by SIGKILL" in done.stderr


def test_simultaneous_clients_get_correct_answers_in_constant_memory(tmp_path):
    result = load.clients(tmp_path, num_clients=20, seconds=5)
    # Each client gets at least one answer, even on a slow machine.
    assert result["answers"] >= 20
    assert result["wrong"] == 0
    assert result["at the end"] < 1.25 * result["warm"]


def test_memory_of_a_short_run_is_known():
    with load.MemoryWatch(os.getpid(), seconds=60) as memory:
        pass
    assert len(memory.megabytes) == 1
    assert memory.growth() == {"warm": memory.megabytes[0], "at the end": memory.megabytes[0]}


def test_answers_that_differ_by_rounding_are_equal():
    assert load.are_alike(("digit 3", 0.98749), ("digit 3", 0.98751))
    assert not load.are_alike(("digit 3", 0.987), ("digit 3", 0.989))
    assert not load.are_alike(("digit 3", 0.987), ("digit 8", 0.987))


def test_models_are_switched_in_constant_memory(tmp_path):
    result = load.switching(tmp_path, switches=20)
    # Each switch loads one model, because the requested model is never in memory.
    assert result["loads"] == 20
    assert result["wrong"] == 0
    assert result["at the end"] < 1.1 * result["warm"]


def test_predictions_need_constant_memory(tmp_path):
    result = load.predictions(tmp_path, images=5_000)
    assert result["predicted"] == 5_000
    assert result["at the end"] < 1.1 * result["warm"]


@pytest.mark.parametrize("target", ["weights", "pickles", "images"])
def test_readers_withstand_any_bytes(target):
    command = [sys.executable, TESTS / "fuzz_readers.py", target, "--seconds", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
