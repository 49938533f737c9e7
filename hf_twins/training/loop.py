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
"""Code that the Trainer and the loop of `run_accelerate.py` share: schedules, and the end of training."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import get_scheduler


# The minimum of each numeric option of the training scripts.
AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "dataloader_num_workers": 0,
    "early_stopping_patience": 0,
}


def check_training_options(*groups: Any) -> None:
    """Raise a ValueError that names the option if training cannot run with these options.

    Args:
        groups: objects with options as attributes.
    """
    options = {name: value for group in groups for name, value in vars(group).items()}
    for name, least in AT_LEAST.items():
        # The comparison is also false for NaN.
        if name in options and not least <= options[name] < math.inf:
            raise ValueError(f"--{name} must be a number, at least {least}, got {options[name]}.")
    if options["max_steps"] != -1 and options["max_steps"] < 1:
        raise ValueError(f"--max_steps must be at least 1, or -1 for all epochs, got {options['max_steps']}.")
    if options["max_steps"] == -1 and not 0 < options["num_train_epochs"] < math.inf:
        raise ValueError(f"--num_train_epochs must be a number above 0, got {options['num_train_epochs']}.")
    if not 0 <= options["ema_decay"] < 1:
        raise ValueError(f"--ema_decay must be in [0, 1), 0 for no average, got {options['ema_decay']}.")
    interval = options.get("checkpointing_steps", "epoch")
    if interval != "epoch" and not (interval.isdecimal() and int(interval) > 0):
        raise ValueError(f"--checkpointing_steps must be a number of steps, at least 1, or epoch, got {interval}.")


def number_of_warmup_steps(warmup_steps: float, num_steps: int) -> int:
    """Number of warm-up steps: `--warmup_steps` or, if below 1, that share of all steps; at most all steps but one."""
    given = int(warmup_steps) if warmup_steps >= 1 else math.ceil(warmup_steps * num_steps)
    return min(given, num_steps - 1)


def create_scheduler(args: Any, optimizer: Any, num_steps: int) -> Any:
    """Create the learning rate schedule.

    Args:
        args: object with `lr_scheduler_type`, `lr_scheduler_kwargs` (a dictionary, its JSON, or None), and
            `warmup_steps`.
        optimizer: optimizer whose default is the peak learning rate; some schedules derive their minimum from it.
        num_steps: total number of training steps.

    Raises:
        ValueError: if the schedule does not accept these arguments.
    """
    options = args.lr_scheduler_kwargs
    try:
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=number_of_warmup_steps(args.warmup_steps, num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=json.loads(options) if isinstance(options, str) else options,
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(
            f"--lr_scheduler_type {kind} does not take --lr_scheduler_kwargs {options} at --learning_rate "
            f"{optimizer.defaults['lr']:g}: {error}."
        ) from error


def has_stopped_improving(results: Sequence[float], patience: int) -> bool:
    """Whether none of the last `patience` results exceeds all earlier ones; always False if `patience` is 0."""
    return 0 < patience < len(results) and max(results[-patience:]) <= max(results[:-patience])


def why_training_is_over(step: int, num_steps: int, results: Sequence[float], patience: int) -> str | None:
    """Say why training is over after `step` steps and evaluations with `results`; None if it is not over."""
    if step >= num_steps:
        return f"all {num_steps} steps are done"
    if has_stopped_improving(results, patience):
        return f"it was stopped early, after {patience} evaluations without a better one"
    return None


class FiniteCheck:
    """Stop training with an error when the loss is not finite, before anything is saved.

    Infinite gradients are not an error: mixed precision in fp16 skips the steps that have them.

    Args:
        accelerator: accelerator of the run.
    """

    # Maximum number of steps between two checks, if nothing is logged or saved earlier.
    INTERVAL = 100

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.first_step = torch.zeros((), dtype=torch.long, device=accelerator.device)

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Note the loss of a step, counted from 1, without waiting for the device.

        Args:
            loss: a single number.
            step: the step.
        """
        is_first = ~torch.isfinite(loss.detach()) & (self.first_step == 0)
        self.first_step = torch.where(is_first, step, self.first_step)

    def check(self, model: nn.Module, step: int) -> None:
        """Raise a ValueError if any loss so far, or any weight after `step`, is not finite. Call it in all processes.

        The weights are checked too, because no loss is computed with the weights of the last step.
        """
        tensors: Any = chain(model.parameters(), model.buffers())
        own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        is_finite = torch.stack([torch.isfinite(tensor).all() for tensor in own]).all()
        found: Any = torch.stack([self.first_step, torch.where(is_finite, 0, step)])
        of_loss, of_weights = self.accelerator.gather(found[None]).T.tolist()
        if any(of_loss) or any(of_weights):
            # 0 means that a process has seen finite losses only.
            first = min((number for number in of_loss if number > 0), default=0)
            what = f"the loss of step {first} is" if first else f"the weights after step {step} are"
            raise ValueError(
                f"Training was stopped, and nothing more was saved, because {what} not finite (NaN or infinite): try a lower "
                "--learning_rate, --max_grad_norm 1, or bf16 instead of fp16."
            )
