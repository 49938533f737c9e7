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
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_twins import (
    MODULES_WITH_NEW_OUTPUTS,
    TwinsAttention,
    TwinsLayer,
    TwinsLocalAttention,
    TwinsMLP,
    TwinsPatchConv2d,
    is_exact_gelu,
    window_partition,
)


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

BACKENDS = ("auto", "eager", "packed", "compile")
# Relative L2 distance of the outputs from the plain model's that `verify` allows.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.int8: 3e-2}
# Image of the check, in pixels: odd, so that padding is checked as well.
VERIFIED_SIZE = 225


def optimize_for_inference(
    model: Model, dtype: torch.dtype | None = None, backend: str = "auto", verify: bool = False
) -> Model:
    """A copy of a model that is called in the same way and gives the same outputs, faster.

    | backend | what it changes | when to use it |
    |---|---|---|
    | `"eager"` | the type of the weights | anywhere |
    | `"packed"` | linear layers hold their weights as oneDNN's kernels read them, and those of one input, sub-sampling and GELU are part of them | on CPUs: no waiting at the start, any image size; the one for int8 |
    | `"compile"` | `torch.compile`, with the weights frozen into the code on CPUs | for one or few image sizes: each is compiled when it first comes |
    | `"auto"` | `"packed"` where the model is on a CPU that can and has no adapters, otherwise `"eager"` | |

    Images are given in any type; outputs come back in that of the images. The copy cannot be trained or saved: keep the
    model it was made of.

    Args:
        model: a Twins model, or any other that holds one, in evaluation mode or not.
        dtype: of the weights; the model's by default.

            - float32, or float16 on GPUs;
            - bfloat16 is twice as fast on CPUs that multiply it, and differs from float32 by about one percent of the
              logits;
            - int8, on CPUs: the linear layers of the blocks, which hold nearly all weights, multiply in int8 what each
              call is scaled to, and the rest is float32. An image's outputs then depend a little on the others of its
              batch. Compare the accuracy of your own model on your own images.

        backend: one of the table.
        verify: compare with the plain model in float32, on a random image.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: if there is no such backend, it cannot run here or the model has adapters to be merged first, the
            dtype is none of these, or `verify` finds outputs that differ by more than rounding.

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
    has_adapters = any(hasattr(module, "base_layer") for module in model.modules())
    if backend == "auto":
        backend = "packed" if can_pack(parameter.device, dtype) and not has_adapters else "eager"
    elif backend == "packed" and has_adapters:
        raise ValueError(
            "backend 'packed' takes the weights as they are, and this model has adapters: merge them with peft's "
            "merge_and_unload, or choose 'eager'."
        )
    elif backend == "packed" and not can_pack(parameter.device, dtype):
        raise ValueError(
            f"backend 'packed' needs oneDNN, on a CPU, with {dtype}; this is {parameter.device.type}: choose 'eager' or "
            "'compile'."
        )
    if dtype == torch.int8 and backend != "packed":
        raise ValueError(
            f"int8 needs backend 'packed', which is for CPUs with oneDNN and models without adapters; here it is "
            f"{backend!r}, on {parameter.device.type}: choose bfloat16."
        )
    float_dtype = torch.float32 if dtype == torch.int8 else dtype
    optimized = copy.deepcopy(model).eval().requires_grad_(False).to(float_dtype)
    if backend == "packed":
        pack(optimized, dtype)
    cast_at_the_border(optimized, float_dtype)
    if backend == "compile":
        is_cpu = parameter.device.type == "cpu"
        optimized.compile(options={"freezing": True} if is_cpu else None)
    if verify:
        check_outputs(model, optimized, dtype)
    return optimized


class PreparedLinear(nn.Module):
    """A linear layer whose weight lies in memory as a kernel reads it, and that can do nothing but compute."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "A model that was optimized for inference cannot be saved: save the one that it was made of."
        )


class PackedLinear(PreparedLinear):
    """A linear layer, and perhaps the GELU after it, in one of oneDNN's kernels."""

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__(linear)
        self.activation = activation
        # No parameter: its layout is nothing to be saved or moved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            hidden_states, self.packed, self.bias, self.activation, [], "none" if self.activation == "gelu" else ""
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


class QuantizedLinear(PreparedLinear):
    """A linear layer in int8: the weight scaled by output channel, the input by what it holds."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # Tensors with a quantized type are deprecated; the kernel that reads them is not.
            warnings.simplefilter("ignore", UserWarning)
            zero_points = torch.zeros_like(scales, dtype=torch.long)
            quantized = torch.quantize_per_channel(weight, scales, zero_points, 0, torch.qint8)
            try:
                torch.backends.quantized.engine = "onednn"
                self.packed = torch.ops.quantized.linear_prepack(quantized, linear.bias)
            finally:
                torch.backends.quantized.engine = engine

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(hidden_states, self.packed)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's kernels, which PyTorch has for its own compiler, are there and give what they should."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or dtype == torch.float16:
        return False
    float_dtype = torch.float32 if dtype == torch.int8 else dtype
    try:
        linear = nn.Linear(24, 40, dtype=float_dtype).requires_grad_(False)
        hidden_states = torch.linspace(-1, 1, 72, dtype=float_dtype).view(3, 24)
        pairs = [(prepare_linear(linear, dtype), linear(hidden_states))]
        if dtype != torch.int8:
            pairs.append((PackedLinear(linear, "gelu"), nn.functional.gelu(linear(hidden_states))))
        for prepared, expected in pairs:
            torch.testing.assert_close(prepared(hidden_states), expected, rtol=0.02, atol=0.02)
    # They are private to PyTorch: whatever is wrong with them, there are others.
    except Exception as error:
        logger.warning(f"oneDNN's kernels cannot be used here: {error}")
        return False
    return True


def prepare_linear(linear: nn.Linear, dtype: torch.dtype) -> PreparedLinear:
    return QuantizedLinear(linear) if dtype == torch.int8 else PackedLinear(linear)


class FusedProjections(nn.Module):
    """Queries, keys and values of an attention by one product, or by two where keys and values are of other tokens."""

    def __init__(self, attention: TwinsAttention, dtype: torch.dtype):
        super().__init__()
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        self.is_local = isinstance(attention, TwinsLocalAttention)
        if self.is_local:
            self.qkv_proj = prepare_linear(stack([query, key, value]), dtype)
        else:
            self.q_proj, self.kv_proj = prepare_linear(query, dtype), prepare_linear(stack([key, value]), dtype)

    def forward(self, query_states: torch.Tensor, key_value_states: torch.Tensor) -> Sequence[torch.Tensor]:
        if self.is_local:
            return self.qkv_proj(query_states).chunk(3, dim=-1)
        return self.q_proj(query_states), *self.kv_proj(key_value_states).chunk(2, dim=-1)


class PackedPatchConv2d(nn.Module):
    """A convolution whose kernel is its stride, as a linear layer of patches."""

    def __init__(self, convolution: TwinsPatchConv2d, dtype: torch.dtype):
        super().__init__()
        self.size = convolution.stride[0]
        weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
        self.linear = prepare_linear(linear_of(weight, convolution.bias), dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows, columns = image.shape[2] // self.size, image.shape[3] // self.size
        image = image[:, :, : rows * self.size, : columns * self.size]
        patches = window_partition(image.permute(0, 2, 3, 1), self.size).flatten(1)
        return self.linear(patches).unflatten(0, (len(image), rows, columns)).permute(0, 3, 1, 2)


class FusedActivation(nn.Identity):
    """In place of an activation that the linear layer before it computes."""


MODULES_WITH_NEW_OUTPUTS.update({PackedLinear, QuantizedLinear, FusedProjections, PackedPatchConv2d, FusedActivation})


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def stack(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer for several of the same input."""
    bias = torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
    return linear_of(torch.cat([linear.weight for linear in linears]), bias)


def pack(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers of a model, those of one input by one; in int8, only those of its blocks."""
    for module in list(model.modules()):
        if isinstance(module, TwinsAttention):
            module.projections = FusedProjections(module, dtype)
            setattr(module, "project", module.projections.forward)  # noqa: B010  # which is declared as a method
            del module.q_proj, module.k_proj, module.v_proj
        elif isinstance(module, TwinsMLP) and is_exact_gelu(module.activation_fn) and dtype != torch.int8:
            setattr(module, "fc1", PackedLinear(module.fc1, "gelu"))  # noqa: B010  # which is declared as plain
            module.activation_fn = FusedActivation()
    # What makes labels of features is little of the work, and most of the error in int8.
    parts = (
        [module for module in model.modules() if isinstance(module, TwinsLayer)] if dtype == torch.int8 else [model]
    )
    for part in parts:
        for module in list(part.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, prepare_linear(child, dtype))
                elif isinstance(child, TwinsPatchConv2d):
                    setattr(module, name, PackedPatchConv2d(child, dtype))


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
