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

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn


class ReplacedForward:
    """Is called instead of a model's own `forward`. A deep copy of the model gets one that calls the copy."""

    def __init__(self, model: nn.Module):
        self.model, self.forward = model, model.forward
        # Callers ask which arguments a model takes.
        functools.update_wrapper(self, model.forward, updated=())
        setattr(model, "forward", self)  # noqa: B010  # which is declared as a method

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

    def __call__(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dtype = self.dtype
        outer = pixel_values.dtype if torch.is_tensor(pixel_values) and pixel_values.is_floating_point() else dtype
        outputs = self.forward(pixel_values.to(dtype) if outer != dtype else pixel_values, *args, **kwargs)
        return outputs if outer == dtype else map_tensors(outputs, lambda tensor: tensor.to(outer))


class Compiled(PerCopy):
    """Code holds the weights that it was compiled for."""

    call: Callable | None = None


class CompiledForward(ReplacedForward):
    """`torch.compile`."""

    def __init__(self, model: nn.Module, options: dict[str, Any] | None):
        super().__init__(model)
        self.options, self.compiled = options, Compiled()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled.call is None:
            self.compiled.call = torch.compile(self.forward, options=self.options)
        return self.compiled.call(*args, **kwargs)


def map_tensors(outputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with every floating-point tensor changed."""
    if torch.is_tensor(outputs):
        return change(outputs) if outputs.is_floating_point() else outputs
    if isinstance(outputs, dict):
        return type(outputs)(**{name: map_tensors(value, change) for name, value in outputs.items()})
    if isinstance(outputs, tuple | list):
        return type(outputs)(map_tensors(value, change) for value in outputs)
    return outputs
