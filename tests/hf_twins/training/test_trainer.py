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
"""Resuming with the Trainer: which checkpoint is the best one so far."""

import shutil
from pathlib import Path

import pytest
from transformers import TrainerState

from hf_twins.training.runs import Run
from hf_twins.training.trainer import best_checkpoint


IDENTITY = {"options": {"seed": 1, "num_train_epochs": 2}, "labels": [], "data": {}, "model": "", "num_processes": 1}


def write_run(folder: Path, **options: int) -> Path:
    """Two checkpoints, of which the first is the better one; returns the second."""
    folder.mkdir()
    run = Run(folder, IDENTITY | {"options": IDENTITY["options"] | options})
    for step in (2, 4):
        checkpoint = run.start_checkpoint(f"checkpoint-{step}")
        checkpoint.mkdir(parents=True)
        TrainerState(best_model_checkpoint=str(folder / "checkpoint-2")).save_to_json(
            checkpoint / "trainer_state.json"
        )
        run.finish_checkpoint(checkpoint.name)
    return checkpoint


def test_best_checkpoint_of_a_copy_is_its_own(tmp_path):
    original, output = tmp_path / "x", tmp_path / "z"
    checkpoint = write_run(original)
    assert best_checkpoint(original / "checkpoint-2", original) == original / "checkpoint-2"
    assert best_checkpoint(checkpoint, output) == original / "checkpoint-2"
    shutil.copytree(original, output)
    for change in ("none", "other run", "gone"):
        if change == "other run":
            shutil.rmtree(original)
            write_run(original, seed=2)
        elif change == "gone":
            shutil.rmtree(original)
        assert best_checkpoint(output / checkpoint.name, output) == output / "checkpoint-2"


@pytest.mark.parametrize("change", ["gone", "damaged", "of another run"])
def test_best_checkpoint_that_is_not_there_is_a_sentence(change, tmp_path):
    # Resumed alone, in an empty folder.
    checkpoint = shutil.copytree(write_run(tmp_path / "x"), tmp_path / "copy" / "checkpoint-4")
    assert best_checkpoint(checkpoint, tmp_path / "z") == tmp_path / "x" / "checkpoint-2"
    if change == "damaged":
        (tmp_path / "x" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    else:
        shutil.rmtree(tmp_path / "x")
    if change == "of another run":
        write_run(tmp_path / "x", seed=2)
    with pytest.raises(
        ValueError, match=rf"^{checkpoint} needs the best checkpoint of its run, checkpoint-2, which is"
    ):
        best_checkpoint(checkpoint, tmp_path / "z")
