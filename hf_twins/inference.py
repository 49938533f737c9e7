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
"""Models made ready for deployment: they compute the same, faster, and can do nothing else any more."""

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_twins import TwinsMLP


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

BACKENDS = ("auto", "eager", "packed", "compile")
# Relative L2 distance of the outputs from the plain model's that `verify` allows.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# Image of the check, in pixels: odd, so that padding is checked as well.
VERIFIED_SIZE = 225


def optimize_for_inference(
    model: Model, dtype: torch.dtype | None = None, backend: str = "auto", verify: bool = False
) -> Model:
    """A copy of a model that is called in the same way and gives the same outputs, faster.

    | backend | what it changes | when to use it |
    |---|---|---|
    | `"eager"` | the type of the weights | anywhere |
    | `"packed"` | linear layers hold their weights as oneDNN's kernels read them, and GELU is part of them | on CPUs: no waiting at the start, any image size |
    | `"compile"` | `torch.compile`, with the weights frozen into the code on CPUs | for one or few image sizes: each is compiled when it first comes |
    | `"auto"` | `"packed"` where the model is on a CPU that can, otherwise `"eager"` | |

    Images are given in any type; outputs come back in that of the images. The copy cannot be trained or saved: keep the
    model it was made of.

    Args:
        model: a Twins model, or any other that holds one, in evaluation mode or not.
        dtype: of the weights: float32, bfloat16 or float16; the model's by default. bfloat16 is twice as fast on CPUs that
            multiply it, and differs from float32 by about one percent of the logits.
        backend: one of the table.
        verify: compare with the plain model in float32, on a random image.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: if there is no such backend or it cannot run here, the dtype is none of these, or `verify` finds outputs
            that differ by more than rounding.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, TwinsForImageClassification, optimize_for_inference

    >>> model = TwinsForImageClassification(TwinsConfig.from_variant("twins-svt-small"))
    >>> fast = optimize_for_inference(model, dtype=torch.bfloat16, verify=True)
    >>> with torch.inference_mode():
    ...     logits = fast(torch.rand(1, 3, 224, 224)).logits
    >>> logits.dtype
    torch.float32
    ```"""
    parameter = next(model.parameters())
    dtype = parameter.dtype if dtype is None else dtype
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype must be {', '.join(map(str, TOLERANCES))}, got {dtype}.")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "auto":
        backend = "packed" if can_pack(parameter.device, dtype) else "eager"
    elif backend == "packed" and not can_pack(parameter.device, dtype):
        raise ValueError(
            f"backend 'packed' needs oneDNN, on a CPU, with {dtype}; this is {parameter.device.type}: choose 'eager' or "
            "'compile'."
        )
    optimized = copy.deepcopy(model).eval().requires_grad_(False).to(dtype)
    if backend == "packed":
        pack(optimized)
    cast_at_the_border(optimized, dtype)
    if backend == "compile":
        is_cpu = parameter.device.type == "cpu"
        optimized.compile(options={"freezing": True} if is_cpu else None)
    if verify:
        check_outputs(model, optimized, dtype)
    return optimized


class PackedLinear(nn.Module):
    """A linear layer, and perhaps the GELU after it, whose weight lies in memory as oneDNN's kernel reads it."""

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        self.in_features, self.out_features, self.activation = linear.in_features, linear.out_features, activation
        self.bias = linear.bias
        # No parameter: its layout is nothing to be saved or moved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            hidden_states, self.packed, self.bias, self.activation, [], "none" if self.activation == "gelu" else ""
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation}"

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "A model that was optimized for inference cannot be saved: save the one that it was made of."
        )


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's kernels, which PyTorch has for its own compiler, are there and give what they should."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or dtype == torch.float16:
        return False
    try:
        linear = nn.Linear(24, 40, dtype=dtype).requires_grad_(False)
        hidden_states = torch.linspace(-1, 1, 72, dtype=dtype).view(3, 24)
        expected = nn.functional.gelu(linear(hidden_states))
        torch.testing.assert_close(PackedLinear(linear, "gelu")(hidden_states), expected, rtol=0.02, atol=0.02)
    # They are private to PyTorch: whatever is wrong with them, there are others.
    except Exception as error:
        logger.warning(f"oneDNN's kernels cannot be used here: {error}")
        return False
    return True


def pack(model: nn.Module) -> None:
    """Replace the linear layers of a model, the first of an MLP together with its GELU."""
    for module in model.modules():
        if isinstance(module, TwinsMLP) and module.is_gelu:
            setattr(module, "fc1", PackedLinear(module.fc1, "gelu"))  # noqa: B010  # which is declared as plain
            module.activation_fn, module.is_gelu = nn.Identity(), False
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))


def cast_at_the_border(model: nn.Module, dtype: torch.dtype) -> None:
    """Let images come in any type, and give the outputs in that type."""
    forward = model.forward

    @functools.wraps(forward)
    def cast_forward(pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        outer = pixel_values.dtype if torch.is_tensor(pixel_values) and pixel_values.is_floating_point() else dtype
        outputs = forward(pixel_values.to(dtype) if outer != dtype else pixel_values, *args, **kwargs)
        return outputs if outer == dtype else map_tensors(outputs, lambda tensor: tensor.to(outer))

    model.forward = cast_forward


def map_tensors(outputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with every floating-point tensor changed."""
    if torch.is_tensor(outputs):
        return change(outputs) if outputs.is_floating_point() else outputs
    if isinstance(outputs, dict):
        return type(outputs)(**{name: map_tensors(value, change) for name, value in outputs.items()})
    if isinstance(outputs, tuple | list):
        return type(outputs)(map_tensors(value, change) for value in outputs)
    return outputs


@torch.inference_mode()
def check_outputs(model: nn.Module, optimized: nn.Module, dtype: torch.dtype) -> None:
    """Compare the first output, or the last feature map, with the plain model's in float32.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    plain = copy.deepcopy(model).eval().float()
    parameter = next(plain.parameters())
    channels = plain.config.num_channels if isinstance(plain, PreTrainedModel) else 3
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, VERIFIED_SIZE, VERIFIED_SIZE, generator=generator).to(parameter.device)
    expected, actual = (first_tensor(each(image)) for each in (plain, optimized))
    distance = ((actual.float() - expected).norm() / expected.norm()).item()
    # Not "greater": NaN is greater than nothing.
    if not distance <= TOLERANCES[dtype]:
        raise ValueError(
            f"The optimized model's outputs differ from the plain model's by {distance:.2g} (relative L2), more than the "
            f"{TOLERANCES[dtype]:.0e} of {dtype}: choose another backend or dtype."
        )


def first_tensor(outputs: Any) -> torch.Tensor:
    while not torch.is_tensor(outputs):
        outputs = outputs[-1] if isinstance(outputs, tuple | list) else outputs[0]
    return outputs
