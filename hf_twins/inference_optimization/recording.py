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
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_torchdynamo_compiling

from ..modeling_twins import STAGE_RECORDS, is_recording_hook
from .forwards import PerCopy, ReplacedForward


MAX_RECORDED_VALUES = 64 * 3 * 224 * 224
MAX_RECORDINGS = 8


class RecordedForward(ReplacedForward):
    """Replay a Twins model's calls with few images. Subclasses say how.

    Args:
        model: the model.
        max_values: values of the largest input that is recorded.
    """

    recordings: "Recordings"

    def __init__(self, model: nn.Module, max_values: int = MAX_RECORDED_VALUES):
        super().__init__(model)
        self.max_values = max_values

    def __call__(self, pixel_values: torch.Tensor, *args: Any, **flags: Any) -> Any:
        if not args and can_replay(self.model, pixel_values, flags, self.max_values):
            recordings = self.recordings
            state = recordings.state = recordings.state or ModelState(self.model)
            outputs = self.replay(state, pixel_values, flags) if state.is_recordable else None
            # The check takes no time on GPUs, which replay meanwhile.
            if not state.is_current():
                recordings.state = None
            elif outputs is not None:
                return outputs
        return self.forward(pixel_values, *args, **flags)

    def replay(self, state: "ModelState", pixel_values: torch.Tensor, flags: dict[str, Any]) -> Any:
        """Outputs of a recording, which is made where one is missing; None if there is none."""
        raise NotImplementedError


class Recordings(PerCopy):
    """What one model has recorded."""

    def __init__(self) -> None:
        self.state: ModelState | None = None
        self.lock = threading.Lock()


class ModelState:
    """What a model computes with, and the recordings of the model in this state, by what they are for.

    Attributes:
        is_recordable: whether all that the model does is to call operators. Layers of other libraries, forwards that were
            replaced, and hooks of others than transformers may do more.
        by_key: recordings; None for calls that cannot be recorded.
        seen: calls that there was one of.
    """

    def __init__(self, model: nn.Module):
        self.by_key: dict[tuple, Any] = {}
        self.seen: set[tuple] = set()
        self.modules = list(model.modules())
        self.types = list(map(type, self.modules))
        # The model itself has its forward replaced by a recorded one, and calls its own hooks.
        parts = self.modules[1:]
        self.is_known = all(map(is_known, self.types))
        if not self.is_known:
            self.is_recordable = False
            return
        config: Any = model.config
        self.attention_name = config._attn_implementation
        self.attention = ALL_ATTENTION_FUNCTIONS.get(self.attention_name)
        hooks: list[dict] = [each for part in parts for each in (part._forward_hooks, part._forward_pre_hooks)]
        self.is_recordable = (
            all(map(is_recording_hook, values(hooks)))
            and not any("forward" in vars(part) for part in parts)
            and (self.attention is None or self.attention.__module__.startswith("transformers."))
        )
        tables: list[dict] = [
            each
            for module in self.modules
            for each in (vars(module), module._modules, module._parameters, module._buffers)
        ]
        tables += hooks
        self.tables, self.empty_tables = [each for each in tables if each], [each for each in tables if not each]
        self.snapshot, self.size = list(values(self.tables)), self.count()
        configs = {id(config): config for module in self.modules if (config := vars(module).get("config")) is not None}
        self.configs = list(configs.values())
        self.config_snapshot = self.read_configs()

    def count(self) -> int:
        return sum(map(len, self.tables))

    def read_configs(self) -> list[Any]:
        """All settings; lists, which may be changed in place, as tuples."""
        settings = values(map(vars, self.configs))
        return [tuple(each) if type(each) is list else each for each in settings]

    def is_current(self) -> bool:
        """Whether the model is as it was, except for the values of weights."""
        return not self.is_known or (
            not any(self.empty_tables)
            and self.count() == self.size
            # By identity, because `==` of tensors compares their elements.
            and all(map(operator.is_, values(self.tables), self.snapshot))
            and list(map(type, self.modules)) == self.types
            and all(map(is_same_setting, self.read_configs(), self.config_snapshot))
            and ALL_ATTENTION_FUNCTIONS.get(self.attention_name) is self.attention
        )


def is_known(module_class: type[nn.Module]) -> bool:
    """Whether a layer does nothing but call operators. Who writes a layer may do anything, such as counting calls."""
    return module_class.__module__.startswith(("torch.nn.modules.", "transformers.", "hf_twins.", "peft."))


def is_same_setting(setting: Any, old_setting: Any) -> bool:
    return setting is old_setting or (type(setting) is tuple and setting == old_setting)


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
        and not pixel_values._is_zerotensor()
        and not model.training
        and not (pixel_values.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled(pixel_values.device.type)
        and STAGE_RECORDS.get() is None
        and not (global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
        and not changes_operators()
        and all(flag is None or isinstance(flag, bool) for flag in flags.values())
    )


def changes_operators() -> bool:
    """Whether operators are called otherwise: under a mode, other than that of a default device, or a transform."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    )
