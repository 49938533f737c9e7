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
"""Schedules of any length, invalid options, and the end of training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import SchedulerType

from hf_twins.training.image_classification.arguments import ClassificationRecipe
from hf_twins.training.loop import (
    FiniteCheck,
    check_training_options,
    create_scheduler,
    has_stopped_improving,
    number_of_warmup_steps,
    why_training_is_over,
)


OPTIONS: dict[str, list[Any]] = {
    "cosine_with_min_lr": [{"min_lr": 1e-5}, '{"min_lr_rate": 0.1}'],
    "cosine_warmup_with_min_lr": [{"min_lr": 1e-5}, {"min_lr": 1e-5, "warmup_lr_rate": 0.1}],
    "warmup_stable_decay": [{"num_decay_steps": 1}, {"num_decay_steps": 9}],
    "polynomial": [None, {"power": 0.9, "lr_end": 1e-6}],
}
NAMES = [kind.value for kind in SchedulerType if kind.value not in ("reduce_lr_on_plateau", "greedy")]


def scheduler(name: str, options: Any, warmup_steps: float, num_steps: int, learning_rate: float = 5e-4) -> Any:
    args = SimpleNamespace(lr_scheduler_type=name, lr_scheduler_kwargs=options, warmup_steps=warmup_steps)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=learning_rate)
    return create_scheduler(args, optimizer, num_steps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_schedule_of_any_length_stays_within_its_range(num_steps, name):
    for options in OPTIONS.get(name, [None]):
        for warmup_steps in (0, 1, 2, 0.05, 0.5, 0.999, 1000):
            schedule = scheduler(name, options, warmup_steps, num_steps)
            rates = []
            for _ in range(num_steps):
                rates += schedule.get_last_lr()
                schedule.optimizer.step()
                schedule.step()
            assert all(0 <= rate <= 5e-4 * (1 + 1e-12) for rate in rates)
            assert max(rates) > 0


@pytest.mark.parametrize(
    ("name", "options", "learning_rate"),
    [
        ("cosine", '{"min_lr": 1e-5}', 1e-3),
        ("cosine", "{", 1e-3),
        ("warmup_stable_decay", None, 1e-3),
        ("cosine_with_min_lr", {"min_lr": 1e-5}, 0.0),
        ("polynomial", None, 0.0),
        ("inverse_sqrt", {"timescale": 0}, 1e-3),
    ],
)
def test_arguments_that_a_schedule_does_not_take_are_named(name, options, learning_rate):
    with pytest.raises(ValueError, match=f"--lr_scheduler_type {name} does not take --lr_scheduler_kwargs .* at"):
        scheduler(name, options, 0, 5, learning_rate)


def test_warm_up_leaves_at_least_one_step():
    assert [number_of_warmup_steps(given, 10) for given in (0, 0.05, 0.25, 0.99, 1, 3.5, 1000)] == [
        0,
        1,
        3,
        9,
        1,
        3,
        9,
    ]
    assert number_of_warmup_steps(0.1, 1) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_steps", 0), ("max_steps", -2), ("num_train_epochs", 0.0), ("num_train_epochs", float("nan"))],
        *[("gradient_accumulation_steps", 0), ("per_device_train_batch_size", 0), ("per_device_eval_batch_size", -1)],
        *[("learning_rate", -1e-4), ("learning_rate", float("nan")), ("weight_decay", -0.1), ("warmup_steps", -1)],
        *[("max_grad_norm", -1.0), ("max_grad_norm", float("inf")), ("dataloader_num_workers", -1)],
        *[("early_stopping_patience", -1), ("ema_decay", 1.0), ("ema_decay", -0.1)],
        *[("checkpointing_steps", "0"), ("checkpointing_steps", "often")],
    ],
)
def test_invalid_option_of_training_is_named(name, value):
    given = {"max_steps": -1, "num_train_epochs": 0.01, "learning_rate": 0.0, "checkpointing_steps": "5"}
    check_training_options(SimpleNamespace(**given), ClassificationRecipe())
    with pytest.raises(ValueError, match=f"^--{name} must be .*, got {value}"):
        check_training_options(ClassificationRecipe(), SimpleNamespace(**given | {name: value}))


def test_training_ends_after_its_steps_or_without_improvement():
    assert not has_stopped_improving([0.5, 0.5, 0.5], 0)
    assert not has_stopped_improving([0.5, 0.6, 0.6], 2)
    assert has_stopped_improving([0.5, 0.6, 0.6, 0.4], 2)
    assert why_training_is_over(9, 10, [0.5, 0.6], 1) is None
    assert why_training_is_over(10, 10, [], 0) == "all 10 steps are done"
    assert "stopped early, after 1 evaluations" in str(why_training_is_over(3, 10, [0.5, 0.5], 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_loss_that_is_not_finite_is_named(value):
    model = nn.Linear(2, 2)
    check = FiniteCheck(Accelerator(cpu=True))
    for step, loss in enumerate((0.5, value, 0.5, value), start=1):
        check.note(torch.tensor(loss, requires_grad=True), step)
        if step == 1:
            check.check(model, step)
    with pytest.raises(ValueError, match=r"the loss of step 2 is not finite .*try a lower --learning_rate"):
        check.check(model, 4)


def test_weights_that_are_not_finite_are_named():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias[0] = float("inf")
    with pytest.raises(ValueError, match="the weights after step 4 are not finite"):
        FiniteCheck(Accelerator(cpu=True)).check(model, 4)
