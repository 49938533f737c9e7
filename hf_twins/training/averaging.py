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
"""A moving average of the weights, which is evaluated, saved and published instead of the last weights."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainingArguments

from hf_twins._utils.files import write_atomically


class WeightAverage:
    """The exponential moving average of a model's weights and buffers, as part of the run's checkpoints.

    The decay of update t, counted from 1, is min(`decay`, 1 - t^(-2/3)), the warm-up of timm's `ModelEmaV3`. With a
    constant decay of 0.9999, the average of a run of a few thousand steps is mostly the weights that training started
    from.

    Args:
        model: the model that is trained, on the device that it is trained on.
        decay: factor of the average at each step, in (0, 1).
    """

    FILE = "average.pt"

    def __init__(self, model: Any, decay: float):
        def update(averaged: Any, current: Any, num_averaged: Any) -> None:
            # Reading the counter that PyTorch passes would wait for the device.
            num_updates = int(self.average.n_averaged) + 1
            get_ema_multi_avg_fn(min(decay, 1 - num_updates ** (-2 / 3)))(averaged, current, num_averaged)

        self.average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)

    def update(self, model: nn.Module) -> None:
        self.average.update_parameters(model)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.average.module.state_dict())

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within the `with` block; its own weights are restored exactly afterwards."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        averaged: Any = self.average.module
        for own, average in zip(
            itertools.chain(model.parameters(), model.buffers()),
            itertools.chain(averaged.parameters(), averaged.buffers()),
            strict=True,
        ):
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)

    def save(self, checkpoint: str | Path) -> None:
        """Save it atomically."""
        write_atomically(Path(checkpoint, self.FILE), lambda partial: torch.save(self.average.state_dict(), partial))

    def load(self, checkpoint: str | Path) -> None:
        self.average.load_state_dict(torch.load(Path(checkpoint, self.FILE), weights_only=True, map_location="cpu"))


class Averaging(TrainerCallback):
    """Updates the average of the weights after each step, and saves it in the Trainer's checkpoints."""

    def __init__(self, average: WeightAverage, checkpoint: Path | None):
        self.average, self.checkpoint = average, checkpoint

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            self.average.load(self.checkpoint)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.average.save(Path(str(args.output_dir), f"checkpoint-{state.global_step}"))
