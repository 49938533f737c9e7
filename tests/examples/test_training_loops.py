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
"""Both training scripts of image classification take the same steps with every option, and end for the same reasons."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import parse_arguments

import pytest
import run_accelerate
import run_trainer
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from classification_utils import digit_images, write_digit_folder, write_parquet
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainingArguments

from hf_twins.training import runs, trainer
from hf_twins.training.image_classification.arguments import ClassificationRecipe, DataArguments, ModelArguments
from hf_twins.training.image_classification.models import ClassificationLoss
from hf_twins.training.trainer import TRAINER_DEFAULTS


SCRIPTS = {"trainer": run_trainer, "accelerate": run_accelerate}
SAVE_EACH_STEP = ["--save_strategy", "steps", "--save_steps", "1"]
MIN_LR = """--lr_scheduler_kwargs {"min_lr":1e-5}"""
# Options that change training, with values to compare the scripts by.
FAST = [
    "--max_steps 1 --num_channels 1",
    "--max_grad_norm 0 --learning_rate 1e-2",
    # The last step of an epoch has fewer batches, and the last batch fewer images.
    "--gradient_accumulation_steps 4 --num_train_epochs 2 --max_grad_norm 0.01 --mixup_alpha 0.8 --seed 7",
    f"--lr_scheduler_type cosine_with_min_lr {MIN_LR} --layer_decay 0.5 --weight_decay 0.5 --max_grad_norm 5",
    "--ema_decay 0.9999 --num_train_epochs 1.5",
    "--class_weights loss --label_smoothing 0.3 --warmup_steps 1000",
]
SLOW = [
    "--recipe fine-tune",
    "--recipe imagenet-from-scratch",
    "--recipe linear-probe",
    "--recipe imagenet-from-scratch --gradient_accumulation_steps 2 --warmup_steps 0.4 --scale_learning_rate true",
    "--gradient_accumulation_steps 9 --cutmix_alpha 1.0 --num_train_epochs 3 --ema_decay 0.5",
    "--learning_rate 0 --early_stopping_patience 1 --num_train_epochs 4",
    "--max_steps 9 --warmup_steps 0",
    "--num_train_epochs 0.01 --warmup_steps 3",
    "--per_device_train_batch_size 7 --max_grad_norm 1",
    "--per_device_train_batch_size 64 --max_train_samples 9",
    "--lr_scheduler_type linear --weight_decay 0",
    "--lr_scheduler_type cosine --warmup_steps 0.4",
    "--lr_scheduler_type cosine_with_restarts",
    """--lr_scheduler_type polynomial --lr_scheduler_kwargs {"power":0.9,"lr_end":1e-6}""",
    "--lr_scheduler_type constant",
    "--lr_scheduler_type constant_with_warmup",
    "--lr_scheduler_type inverse_sqrt",
    """--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {"num_decay_steps":2}""",
    f"--lr_scheduler_type cosine_warmup_with_min_lr {MIN_LR}",
    "--class_weights sampling --layer_decay 1",
    "--rand_augment true --color_jitter 0.4 --random_erasing 0.5 --horizontal_flip 1 --min_crop_scale 0.9 --image_size 24",
    "--freeze_backbone true --train_val_split 0.5",
    "--mixed_precision bf16",
    "--activation_checkpointing true",
]
# Reasons why other options are not compared.
REASONS = {
    "drop_path_rate": "0 in every comparison: random numbers of layers depend on what was drawn before",
    "drop_path_rates": "as --drop_path_rate",
    "help": "ends the script",
    "dataloader_num_workers": "compared in test_images_do_not_depend_on_the_process_that_prepares_them",
    "config_name": "given in every comparison but one",
    "model_revision": "as --image_processor_name",
    "code_revision": "as --image_processor_name",
    "trust_remote_code": "as --image_processor_name",
    "image_processor_name": "read by one function for both, before training",
    "dataset_name": "read by one function for both, before training",
    "dataset_config_name": "as --dataset_name",
    "image_column_name": "as --dataset_name",
    "label_column_name": "as --dataset_name",
    "class_names_file": "as --dataset_name",
    "check_images": "as --dataset_name",
    "train_dir": "given in every comparison",
    "max_eval_samples": "evaluation images do not change a step",
    "license": "text of the card",
    "output_dir": "given in every comparison",
    "overwrite_output_dir": "before training",
    "per_device_eval_batch_size": "evaluation does not change a step",
    "torch_compile": "compilation takes minutes; the compiled function is the same",
    "checkpointing_steps": "checkpoints do not change a step; the Trainer's are by --save_strategy and --save_steps",
    "save_total_limit": "checkpoints do not change a step",
    "resume_from_checkpoint": "resumed runs are compared with undisturbed ones, of both scripts",
    "report_to": "only tells what was done",
    "push_to_hub": "after training",
    "hub_model_id": "after training",
    "hub_private_repo": "after training",
}
# Options that have other names in the Trainer.
OF_THE_TRAINER = {"--mixed_precision": "--bf16", "bf16": "true"}


@pytest.fixture
def record(monkeypatch) -> Any:
    """Train with a script, and return the loss and learning rates of each step, and the weights that would be saved."""
    compute = ClassificationLoss.__call__

    def run(script: str, arguments: list[str]) -> tuple[list[float], list[list[float]], dict[str, torch.Tensor]]:
        shares: list[float] = []
        losses: list[float] = []
        rates: list[list[float]] = []
        weights: dict[str, torch.Tensor] = {}

        def note_loss(self: Any, *args: Any) -> torch.Tensor:
            loss = compute(self, *args)
            if loss.requires_grad:
                shares.append(float(loss.detach()))
            return loss

        def note_step(optimizer: Any, *_: Any) -> None:
            losses.append(sum(shares))
            shares.clear()
            rates.append([group["lr"] for group in optimizer.param_groups])

        monkeypatch.setattr(ClassificationLoss, "__call__", note_loss)
        module = SCRIPTS[script]
        monkeypatch.setattr(module, "save_model", lambda model, *_: weights.update(model.state_dict()))
        for name in ("write_report", "finish_run"):
            monkeypatch.setattr(module, name, lambda *_: None)
        hook = register_optimizer_step_pre_hook(note_step)
        try:
            module.main(arguments)
        finally:
            hook.remove()
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()
        return losses, rates, {name: weight.clone() for name, weight in weights.items()}

    return run


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Enough digits for a few steps."""
    images, labels = digit_images()
    return write_parquet(tmp_path_factory.mktemp("few"), images[:40], labels[:40])


def words(script: str, source: Path, output: Path, extra: str) -> list[str]:
    """Options of a short training; later ones have precedence."""
    given = [
        *("--train_dir", str(source), "--output_dir", str(output), "--max_train_samples", "22"),
        *("--max_eval_samples", "8", "--train_val_split", "0.4", "--per_device_train_batch_size", "4"),
        *("--num_train_epochs", "1", "--drop_path_rate", "0", "--learning_rate", "2e-3", "--warmup_steps", "2"),
        *("--check_images", "false", *extra.split()),
    ]
    if script == "accelerate":
        return [*given, "--checkpointing_steps", "1000"]
    given = [OF_THE_TRAINER.get(word, word) for word in given]
    return [*given, "--disable_tqdm", "true", "--save_strategy", "no"]


def assert_same(record: Callable, arguments: Callable[[str], list[str]], tolerance: float = 1e-6) -> list[float]:
    losses, rates, weights = record("trainer", arguments("trainer"))
    same_losses, same_rates, same_weights = record("accelerate", arguments("accelerate"))
    assert same_losses == pytest.approx(losses, abs=tolerance)
    assert len(losses) > 0
    assert [len(each) for each in same_rates] == [len(each) for each in rates]
    for actual, expected in zip(same_rates, rates):
        assert actual == pytest.approx(expected, rel=1e-12, abs=0)
    assert same_weights.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(same_weights[name], weight, rtol=0, atol=10 * tolerance)
    return losses


@pytest.mark.parametrize("extra", FAST + [pytest.param(each, marks=pytest.mark.slow) for each in SLOW])
def test_scripts_take_the_same_steps(extra, record, few, start, tmp_path):
    # The resolution of bfloat16 is 0.4 %.
    tolerance = 1e-2 if "bf16" in extra else 1e-6
    extra += f" --config_name {start}"
    assert_same(record, lambda script: words(script, few, tmp_path / script, extra), tolerance)


@pytest.mark.slow
def test_scripts_adapt_by_the_same_steps(record, few, start, tmp_path):
    extra = f"--recipe lora --lora_rank 4 --model_name_or_path {start} --drop_path_rate 0"
    assert_same(record, lambda script: words(script, few, tmp_path / script, extra))


@pytest.mark.slow
def test_scripts_read_streams_by_the_same_steps(record, few, start, tmp_path):
    validation = write_digit_folder(tmp_path / "validation", 20)
    (tmp_path / "names.txt").write_text("\n".join("0123456789"))
    extra = f"--streaming true --shuffle_buffer_size 9 --validation_dir {validation} --config_name {start}"
    extra += f" --class_names_file {tmp_path / 'names.txt'}"
    assert_same(record, lambda script: words(script, few, tmp_path / script, extra))


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_images_do_not_depend_on_the_process_that_prepares_them(script, few, start, tmp_path):
    """The weights are identical. The script runs in a separate process, because this one is too large to fork workers."""
    extra = f"--config_name {start} --rand_augment true --mixup_alpha 0.8"
    arguments = [*words(script, few, tmp_path / "two", extra), "--dataloader_num_workers", "2"]
    done = subprocess.run([sys.executable, SCRIPTS[script].__file__, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    SCRIPTS[script].main(words(script, few, tmp_path / "none", extra))
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "two"))
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_every_option_is_compared_or_has_a_reason():
    classes = (ModelArguments, DataArguments, ClassificationRecipe, run_accelerate.LoopArguments)
    options = {field.name for each in classes for field in fields(each)} | {"help"}
    compared = {word[2:] for words in FAST + SLOW for word in words.split() if word.startswith("--")}
    compared |= {
        "lora_rank",
        "model_name_or_path",
        "streaming",
        "shuffle_buffer_size",
        "validation_dir",
        "max_train_samples",
    }
    assert options == compared | REASONS.keys()
    assert not compared & REASONS.keys()


def test_options_have_the_same_defaults():
    (loop,) = parse_arguments(run_accelerate.LoopArguments, arguments=["--output_dir", "x"])
    (of_trainer,) = parse_arguments(TrainingArguments, defaults=TRAINER_DEFAULTS, arguments=["--output_dir", "x"])
    shared = {name for name in vars(loop) if hasattr(of_trainer, name)}
    assert {"learning_rate", "max_grad_norm", "warmup_steps", "lr_scheduler_type"} <= shared
    differ = {name for name in shared if (getattr(loop, name) or None) != (getattr(of_trainer, name) or None)}
    # One of these is a list in the Trainer, and the other is where the Trainer stores what it derives from --bf16.
    assert differ <= {"report_to", "mixed_precision"}


@pytest.fixture
def no_reports(monkeypatch) -> None:
    """Drawing figures takes longer than such a short training."""
    for module in SCRIPTS.values():
        monkeypatch.setattr(module, "write_report", lambda *_: None)


def resumed(script: str, arguments: list[str], output: Path) -> dict[str, Any]:
    SCRIPTS[script].main([*arguments, "--resume_from_checkpoint", "latest"])
    return json.loads((output / "all_results.json").read_text())


@pytest.mark.usefixtures("one_process", "no_reports")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("extra", "steps", "reason", "more", "more_steps"),
    [
        ("--max_steps 3 --ema_decay 0.9", 3, "all 3 steps are done", ["--max_steps", "4"], 4),
        pytest.param(
            *("--learning_rate 0 --early_stopping_patience 1 --num_train_epochs 9", 12),
            "it was stopped early, after 1 evaluations without a better one",
            *(["--early_stopping_patience", "2"], 18),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["done", "stopped"],
)
def test_training_that_is_over_is_not_resumed(
    extra, steps, reason, more, more_steps, script, few, start, tmp_path, monkeypatch, capsys
):
    """In the middle of an epoch, the Trainer would take one more step."""
    warnings: list[str] = []
    # `caplog` stays empty here after other slow tests in the same process, for an unknown reason.
    for module in (run_accelerate, trainer, runs):
        monkeypatch.setattr(module.logger, "warning", warnings.append)
    arguments = words(script, few, tmp_path, f"{extra} --config_name {start}")
    # There is a checkpoint of each step, and that of the last step is written before its evaluation.
    arguments += ["--checkpointing_steps", "1"] if script == "accelerate" else SAVE_EACH_STEP
    SCRIPTS[script].main(arguments)
    expected = load_file(tmp_path / "model.safetensors")
    checkpoint = tmp_path / f"{'step_' if script == 'accelerate' else 'checkpoint-'}{steps}"
    assert not any("Resuming" in each for each in warnings)
    assert (", training: " in capsys.readouterr().out) == (script == "trainer")
    results = resumed(script, arguments, tmp_path)
    assert results["steps"] == steps
    assert f"Resuming from {checkpoint}." in warnings
    assert warnings[-1] == (
        f"There is nothing left to train, because the training of {checkpoint} is over: {reason}. Its model is "
        "evaluated and written again."
    )
    # The Trainer would log a loss of 0.
    assert ", training: " not in capsys.readouterr().out
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name
    # With more patience or more steps, training can continue.
    assert resumed(script, arguments + more, tmp_path)["steps"] == more_steps


@pytest.mark.usefixtures("one_process", "no_reports")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("fewer", "more"),
    [
        ("--max_steps 2", "--max_steps 7"),
        pytest.param("--num_train_epochs 1.5", "--num_train_epochs 3", marks=pytest.mark.slow),
    ],
)
def test_training_that_ended_within_an_epoch_resumes_within_it(fewer, more, script, few, start, tmp_path):
    extra = f"--config_name {start} --lr_scheduler_type constant --ema_decay 0.5"
    often = [] if script == "accelerate" else ["--save_strategy", "epoch"]
    whole, grown = (
        [*words(script, few, tmp_path / name, extra), *often] + ["--checkpointing_steps", "epoch"] * (not often)
        for name in ("whole", "grown")
    )
    SCRIPTS[script].main([*whole, *more.split()])
    SCRIPTS[script].main([*grown, *fewer.split()])
    # Resuming without another step evaluates the model, and does not count the epoch as complete.
    once = resumed(script, [*grown, *fewer.split()], tmp_path / "grown")
    assert once["steps"] == (2 if "max_steps" in fewer else 9)
    resumed(script, [*grown, *more.split()], tmp_path / "grown")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, weight in load_file(tmp_path / "grown" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_loss_that_is_not_finite_ends_training_and_is_not_saved(script, few, start, tmp_path):
    arguments = words(script, few, tmp_path, f"--config_name {start} --learning_rate 1e37 --warmup_steps 0")
    arguments += ["--checkpointing_steps", "1"] if script == "accelerate" else SAVE_EACH_STEP
    with pytest.raises(
        SystemExit, match=r"the loss of step 2 is not finite \(NaN or infinite\): try a lower --learning_rate"
    ):
        SCRIPTS[script].main(arguments)
    written = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert written <= {"step_1", "checkpoint-1", "run.json"}
    assert len(written & {"step_1", "checkpoint-1"}) == 1


@pytest.mark.usefixtures("one_process", "no_reports")
@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluations_use_the_average_that_is_saved(script, few, start, tmp_path, monkeypatch):
    evaluated: list[dict[str, torch.Tensor]] = []

    def note(model: Any) -> None:
        evaluated.append({name: weight.clone() for name, weight in model.state_dict().items()})

    if script == "trainer":
        loop = run_trainer.ClassificationTrainer.evaluation_loop
        monkeypatch.setattr(
            run_trainer.ClassificationTrainer,
            "evaluation_loop",
            lambda self, *args, **kwargs: note(self.model) or loop(self, *args, **kwargs),
        )
    else:
        predict = run_accelerate.predict
        monkeypatch.setattr(
            run_accelerate,
            "predict",
            lambda accelerator, model, loader: note(model) or predict(accelerator, model, loader),
        )
    # With patience, the Trainer does not skip the last evaluation.
    extra = f"--config_name {start} --ema_decay 0.9999 --num_train_epochs 2 --early_stopping_patience 9"
    SCRIPTS[script].main(words(script, few, tmp_path, extra))
    # The second evaluation is after the last step.
    assert len(evaluated) == (3 if script == "trainer" else 2)
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(weight, evaluated[1][name]), name


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_best_model_is_the_best_average(few, start, tmp_path, capsys):
    extra = f"--config_name {start} --ema_decay 0.9 --num_train_epochs 3 --load_best_model_at_end true"
    arguments = [
        *words("trainer", few, tmp_path, extra),
        "--save_strategy",
        "epoch",
        "--metric_for_best_model",
        "loss",
    ]
    metrics = run_trainer.main(arguments)
    history = json.loads((tmp_path / "report.json").read_text())["history"]
    evaluations = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    # Logged once more, the final evaluation would be taken for that of the last epoch.
    assert len(evaluations) == sum("eval_loss" in entry for entry in history) == 3
    best = min(evaluations, key=lambda step: evaluations[step])
    assert metrics["eval_loss"] == pytest.approx(evaluations[best])
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["evaluated_checkpoint"] == f"checkpoint-{best}"
    assert results["steps"] == max(evaluations)
    assert f"checkpoint-{best}, the best one, evaluation: loss " in capsys.readouterr().out
    # A copied run uses its own best checkpoint, whatever happened to the original run.
    expected = load_file(tmp_path / "model.safetensors")
    copied = shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    shutil.rmtree(tmp_path)
    again = [*arguments, "--output_dir", str(copied), "--resume_from_checkpoint", "latest"]
    assert run_trainer.main(again)["eval_loss"] == pytest.approx(metrics["eval_loss"])
    for name, weight in load_file(copied / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name
