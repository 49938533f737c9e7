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
"""The Trainer of recipes evaluates all images, and refuses options without effect, or that make a run fail after training."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import parse_arguments

import pytest
import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_twins.training.object_detection.arguments import DetectionRecipe
from hf_twins.training.runs import Run
from hf_twins.training.trainer import (
    OFF,
    TRAINER_DEFAULTS,
    EpochSampler,
    NoLastEvaluation,
    RecipeArguments,
    RecipeTrainer,
    best_checkpoint,
    refuse_options,
)


def trainer_arguments(output_dir: Path, options: str = "") -> TrainingArguments:
    words = ["--output_dir", str(output_dir), "--use_cpu", "true", *options.split()]
    (args,) = parse_arguments(TrainingArguments, defaults=TRAINER_DEFAULTS, arguments=words)
    return args


@pytest.fixture
def trainer(tmp_path) -> Any:
    """A function that creates a trainer with the given options, for ten examples, five of which are evaluated."""

    def create(options: str) -> RecipeTrainer:
        examples = [{"pixel_values": torch.zeros(1)}] * 10
        return RecipeTrainer(
            nn.Linear(1, 1),
            trainer_arguments(tmp_path, options),
            train_dataset=examples,
            eval_dataset=examples[:5],
            recipe=RecipeArguments(),
            sampler=EpochSampler(10, 0),
            run=Run(tmp_path, {}),
        )

    return create


@pytest.mark.parametrize("name", OFF)
def test_option_without_effect_is_refused(name, tmp_path):
    """Options that would make a run fail after training are refused before it."""
    args = trainer_arguments(tmp_path)
    refuse_options(args, RecipeArguments())
    kind = {each.name: each for each in fields(TrainingArguments)}[name]
    setattr(args, name, ["x"] if "list" in str(kind.type) else 0.5 if "float" in str(kind.type) else True)
    with pytest.raises(ValueError, match=f"^--{name} must be left out: .*; got "):
        refuse_options(args, RecipeArguments())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data_seed 0", "--data_seed must be left out: the order of the examples follows --seed; got 0."),
        ("--eval_do_concat_batches false", "--eval_do_concat_batches must be true: results are measured over all"),
        ("--auto_find_batch_size", "--auto_find_batch_size and --scale_learning_rate contradict each other"),
        (
            "--load_best_model_at_end --eval_strategy steps --save_strategy steps --eval_steps 1 --save_steps 2",
            "--load_best_model_at_end needs a checkpoint of each evaluation: --save_steps must be --eval_steps, got 2 and 1.",
        ),
    ],
)
def test_options_that_contradict_others_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        refuse_options(trainer_arguments(tmp_path, options), RecipeArguments(scale_learning_rate=True))


def test_auto_find_batch_size_works_if_the_learning_rate_is_not_scaled(tmp_path):
    args = trainer_arguments(tmp_path, "--auto_find_batch_size")
    refuse_options(args, RecipeArguments())
    refuse_options(args, DetectionRecipe(decay_epochs=[]))
    with pytest.raises(ValueError, match=r"^--auto_find_batch_size and --decay_epochs contradict each other"):
        refuse_options(args, DetectionRecipe(decay_epochs=[8, 11]))


def test_last_batch_is_dropped_only_in_training(trainer):
    sizes = "--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --dataloader_drop_last true"
    created = trainer(sizes)
    assert len(created.get_train_dataloader()) == 2
    for loader in (created.get_eval_dataloader(), created.get_test_dataloader(created.eval_dataset)):
        assert [len(batch["pixel_values"]) for batch in loader] == [4, 1]
    assert created.args.dataloader_drop_last


def test_dropping_the_only_batch_is_refused(trainer):
    with pytest.raises(
        ValueError, match=r"^--dataloader_drop_last leaves no batch of 10 training images: give a small"
    ):
        trainer("--per_device_train_batch_size 11 --dataloader_drop_last true").get_train_dataloader()
    assert len(trainer("--per_device_train_batch_size 11").get_train_dataloader()) == 1


@pytest.mark.parametrize(
    ("options", "leaves_out"),
    [("", True), ("--load_best_model_at_end true", False), ("--save_strategy best", False)],
)
def test_last_evaluation_is_skipped_unless_a_checkpoint_depends_on_it(trainer, options, leaves_out):
    created = trainer(f"{options} --metric_for_best_model accuracy")
    assert any(isinstance(each, NoLastEvaluation) for each in created.callback_handler.callbacks) is leaves_out


def test_checkpoint_that_was_evaluated_is_named(trainer, capsys):
    created = trainer("--load_best_model_at_end true")
    created.state.epoch, created.state.global_step = 3.0, 48
    created.state.best_model_checkpoint = "/elsewhere/checkpoint-16"
    results = created.log_result({"eval_loss": 2.0})
    assert results == {"eval_loss": 2.0, "epoch": 3.0, "steps": 48, "evaluated_checkpoint": "checkpoint-16"}
    assert capsys.readouterr().out == "checkpoint-16, the best one, evaluation: loss 2\n"
    # As the evaluation of the last epoch, it would be wrong.
    assert created.state.log_history == []
    created = trainer("")
    assert created.log_result({"eval_loss": 2.0}).keys() == {"eval_loss", "epoch", "steps"}
    assert "loss 2" in capsys.readouterr().out


IDENTITY = {"options": {"seed": 1, "num_train_epochs": 2}, "labels": [], "data": {}, "model": "", "num_processes": 1}


def write_run(folder: Path, **options: int) -> Path:
    """Write two checkpoints, of which the first is better; return the second."""
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


def test_best_checkpoint_of_a_copied_run_is_in_the_copy(tmp_path):
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
def test_missing_best_checkpoint_gives_one_sentence(change, tmp_path):
    # The checkpoint alone is resumed in an empty folder.
    checkpoint = shutil.copytree(write_run(tmp_path / "x"), tmp_path / "copy" / "checkpoint-4")
    assert best_checkpoint(checkpoint, tmp_path / "z") == tmp_path / "x" / "checkpoint-2"
    if change == "damaged":
        (tmp_path / "x" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    else:
        shutil.rmtree(tmp_path / "x")
    if change == "of another run":
        write_run(tmp_path / "x", seed=2)
    with pytest.raises(
        ValueError, match=rf"^{checkpoint} needs the best checkpoint of its run, checkpoint-2, but there is"
    ):
        best_checkpoint(checkpoint, tmp_path / "z")
