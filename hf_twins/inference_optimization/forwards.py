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
"""Replacements for a model's `forward`, which are copied with the model."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from transformers.utils import ModelOutput


class ReplacedForward:
    """Is called instead of a model's own `forward`. A deep copy of the model gets one that calls the copy."""

    def __init__(self, model: nn.Module):
        self.model, self.forward = model, model.forward
        # Callers ask which arguments a model takes.
        functools.update_wrapper(self, model.forward, updated=())
        setattr(model, "forward", self)  # noqa: B010  # which is declared as a method

    @property
    def __code__(self) -> Any:
        # By which `torch.export` names inputs.
        return self.forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class PerCopy:
    """State of one model: a deep copy starts empty."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()


class CastForward(ReplacedForward):
    """Accept images of any dtype, and return outputs of that dtype."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__(model)
        self.dtype = dtype
        # Models around Twins have other names for their images.
        self.name = next(iter(inspect.signature(self.forward).parameters), "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images = args[0] if args else kwargs.get(self.name)
        if not torch.is_tensor(images) or not images.is_floating_point() or images.dtype == self.dtype:
            return self.forward(*args, **kwargs)
        if args:
            args = (images.to(self.dtype), *args[1:])
        else:
            kwargs[self.name] = images.to(self.dtype)
        outputs = self.forward(*args, **kwargs)
        return map_tensors(outputs, lambda tensor: tensor.to(images.dtype) if tensor.is_floating_point() else tensor)


class Compiled(PerCopy):
    """Code holds the weights that it was compiled for."""

    call: Callable | None = None


def with_own_code(forward: Callable) -> Callable:
    """Wrap a function in one with a code object of its own.

    PyTorch limits the number of compilations of a code object. Other models of the same class, which share the code of
    `forward`, would count, and models beyond the limit would silently not be compiled.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call


class CompiledForward(ReplacedForward):
    """`torch.compile`."""

    def __init__(self, model: nn.Module, options: dict[str, Any] | None):
        super().__init__(model)
        self.options, self.compiled = options, Compiled()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled.call is None:
            self.compiled.call = torch.compile(with_own_code(self.forward), options=self.options)
        return self.compiled.call(*args, **kwargs)


def map_tensors(outputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with every tensor changed."""
    if torch.is_tensor(outputs):
        return change(outputs)
    if isinstance(outputs, dict):
        changed = {name: map_tensors(value, change) for name, value in outputs.items()}
        return type(outputs)(**changed) if isinstance(outputs, ModelOutput) else changed
    if isinstance(outputs, tuple | list):
        values = [map_tensors(value, change) for value in outputs]
        return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        fields = [field.name for field in dataclasses.fields(outputs) if field.init]
        return dataclasses.replace(outputs, **{name: map_tensors(getattr(outputs, name), change) for name in fields})
    return outputs
