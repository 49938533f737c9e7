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
"""Calls of a model that are recorded once and replayed for every image of the same size, without its Python code."""

import operator
import threading
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from transformers.utils import is_torchdynamo_compiling

from ..modeling_twins import STAGE_RECORDS, is_recording_hook
from .forwards import PerCopy, ReplacedForward


MAX_RECORDED_VALUES = 64 * 3 * 224 * 224
MAX_RECORDINGS = 8


class Recordings(PerCopy):
    """The recordings of one model, by what they are for."""

    def __init__(self) -> None:
        # None for calls that cannot be recorded.
        self.by_key: dict[tuple, Any] = {}
        self.state: ModelState | None = None
        self.lock = threading.Lock()

    def discard(self) -> None:
        self.by_key.clear()


class RecordedForward(ReplacedForward):
    """Replay a Twins model's calls with few images. Subclasses say how.

    Args:
        model: the model.
        max_values: values of the largest input that is recorded.
    """

    recordings: Recordings

    def __init__(self, model: nn.Module, max_values: int = MAX_RECORDED_VALUES):
        super().__init__(model)
        self.max_values = max_values

    def __call__(self, pixel_values: torch.Tensor, *args: Any, **flags: Any) -> Any:
        if (
            not args
            and can_replay(self.model, pixel_values, flags, self.max_values)
            and not self.update_state().has_hooks
        ):
            outputs = self.replay(pixel_values, flags)
            if outputs is not None:
                return outputs
        return self.forward(pixel_values, *args, **flags)

    def replay(self, pixel_values: torch.Tensor, flags: dict[str, Any]) -> Any:
        """Outputs of a recording, which is made where one is missing; None if there cannot be one."""
        raise NotImplementedError

    def update_state(self) -> "ModelState":
        """The model's state. Recordings of another are discarded."""
        state = self.recordings.state
        if state is None or not state.is_current():
            self.recordings.state = state = ModelState(self.model)
            self.recordings.discard()
        return state


class ModelState:
    """What a model computes with: its layers, weights, hooks and config."""

    def __init__(self, model: nn.Module):
        modules = list(model.modules())
        # The model itself calls its own hooks, recorded or not.
        hooks: list[dict] = [each for part in modules[1:] for each in (part._forward_hooks, part._forward_pre_hooks)]
        self.unused_hooks = [each for each in hooks if not each]
        # Whether somebody other than transformers sees what parts of the model compute.
        self.has_hooks = not all(map(is_recording_hook, values(hooks)))
        members: list[dict] = [
            each for module in modules for each in (module._modules, module._parameters, module._buffers)
        ]
        self.members = [each for each in members if each]
        # A method that is replaced is one more attribute.
        self.countable = [*map(vars, modules), *self.members, *(each for each in hooks if each)]
        self.config = model.config
        self.old_members, self.old_count, self.old_config = (
            list(values(self.members)),
            self.count(),
            dict(vars(self.config)),
        )

    def count(self) -> int:
        return sum(map(len, self.countable))

    def is_current(self) -> bool:
        """Whether everything is as it was, except for the values of weights. Takes about 50 microseconds."""
        return (
            not any(self.unused_hooks)
            and self.count() == self.old_count
            # Not `==`, which compares the elements of tensors.
            and all(map(operator.is_, values(self.members), self.old_members))
            and vars(self.config) == self.old_config
        )


def values(dicts: Iterable[dict]) -> Iterable[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def can_replay(model: nn.Module, pixel_values: Any, flags: dict[str, Any], max_values: int) -> bool:
    """Whether a call is computed by nothing but operators that depend on nothing but the images' size and the flags."""
    return (
        not is_torchdynamo_compiling()
        and not torch.jit.is_tracing()
        and type(pixel_values) is torch.Tensor
        and pixel_values.device == next(model.parameters()).device
        and 0 < pixel_values.numel() <= max_values
        and not model.training
        and not (pixel_values.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled(pixel_values.device.type)
        and STAGE_RECORDS.get() is None
        and not (global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
        and all(flag is None or isinstance(flag, bool) for flag in flags.values())
    )
