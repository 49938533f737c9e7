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
"""Linear layers that hold their weights as oneDNN's kernels for CPUs read them, in float32, bfloat16 or int8."""

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn

from ..modeling_twins import (
    MODULES_WITH_NEW_OUTPUTS,
    TwinsAttention,
    TwinsGlobalAttention,
    TwinsLayer,
    TwinsLocalAttention,
    TwinsMLP,
    TwinsPatchConv2d,
    is_exact_gelu,
    is_exporting,
    is_plain,
    multiply_patches,
)


logger = logging.getLogger(__name__)


class UnsavedModule(nn.Module):
    """A module whose weights are not laid out as in a checkpoint."""

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("A model that was optimized for inference cannot be saved: save the original model.")


class PreparedLinear(UnsavedModule):
    """A linear layer whose weight lies in memory as a kernel reads it, and that can do nothing but compute."""

    packed: Any

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.dtype = linear.weight.dtype

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if is_exporting() or torch.jit.is_tracing():
            raise RuntimeError("Packed weights cannot be exported: export the original model.")
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "Packed weights compute no gradients: call the original model, or optimize for backend='eager'."
            )
        if hidden_states.numel() == 0:
            # Of a batch of no images, which not all kernels take.
            return hidden_states.new_empty(*hidden_states.shape[:-1], self.out_features)
        # Autocast has other types than the kernel's.
        return self.multiply(hidden_states if hidden_states.dtype == self.dtype else hidden_states.to(self.dtype))

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # In a layout that cannot be copied, and nobody writes to it.
        memo[id(self.packed)] = self.packed
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "Packed weights cannot be pickled: pickle the original model, and optimize it where it is read."
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        weight = torch.empty(0, dtype=self.dtype)
        changed = fn(weight)
        if changed.dtype != weight.dtype or changed.device != weight.device:
            raise RuntimeError(
                f"Packed weights have one dtype and device, {weight.dtype} on {weight.device}, and got {changed.dtype} on "
                f"{changed.device}: convert or move the original model, and optimize that."
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class PackedLinear(PreparedLinear):
    """A linear layer, and perhaps the GELU after it, in one of oneDNN's kernels."""

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__(linear)
        self.activation = activation
        # No parameter: its layout is nothing to be saved or moved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            hidden_states, self.packed, self.bias, self.activation, [], "none" if self.activation == "gelu" else ""
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


class QuantizedLinear(PreparedLinear):
    """A linear layer in int8: the weight scaled by output channel, the input by what it holds."""

    def __init__(self, linear: nn.Linear, reduce_range: bool | None = None):
        super().__init__(linear)
        self.reduce_range = must_reduce_range() if reduce_range is None else reduce_range
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

    def multiply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(hidden_states, self.packed, self.reduce_range)


@functools.cache
def must_reduce_range() -> bool:
    """Whether inputs have to be scaled to 7 bits: CPUs without VNNI add two products in 16 bits, which 8 and 8 overflow."""
    linear = nn.Linear(64, 1, bias=False)
    nn.init.ones_(linear.weight)
    return bool(QuantizedLinear(linear, reduce_range=False)(torch.ones(1, 64)) < 63)


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


class FusedProjections(UnsavedModule):
    """Queries, keys and values of an attention by one product, or by two where keys and values are of other tokens."""

    def __init__(self, attention: TwinsAttention, prepare: Callable[[nn.Linear], nn.Module]):
        super().__init__()
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        self.is_local = isinstance(attention, TwinsLocalAttention)
        if self.is_local:
            self.qkv_proj = prepare(stack([query, key, value]))
        else:
            self.q_proj, self.kv_proj = prepare(query), prepare(stack([key, value]))

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
        return multiply_patches(image, self.size, self.linear)


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


def fuse_projections(model: nn.Module, prepare: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layers of an attention that have one input by what `prepare` makes of one for all of them."""
    for module in list(model.modules()):
        # Not subclasses: they may use the layers in another way.
        if (type(module) is TwinsLocalAttention or type(module) is TwinsGlobalAttention) and all(
            is_plain(linear, nn.Linear) for linear in (module.q_proj, module.k_proj, module.v_proj)
        ):
            module.projections = FusedProjections(module, prepare)
            setattr(module, "project", module.projections.forward)  # noqa: B010  # which is declared as a method
            del module.q_proj, module.k_proj, module.v_proj


def can_fuse_gelu(mlp: TwinsMLP) -> bool:
    activation_fn = mlp.activation_fn
    is_changed = (
        activation_fn._forward_hooks or activation_fn._forward_pre_hooks or "forward" in activation_fn.__dict__
    )
    return is_exact_gelu(activation_fn) and not is_changed and is_plain(mlp.fc1, nn.Linear)


def pack(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the plain linear layers of a Twins model, those of one input by one; in int8, only those of its blocks.

    Others stay as they are: hooks, subclasses and whatever wraps a layer are called as in the original.
    """
    fuse_projections(model, functools.partial(prepare_linear, dtype=dtype))
    for module in list(model.modules()):
        if type(module) is TwinsMLP and dtype != torch.int8 and can_fuse_gelu(module):
            setattr(module, "fc1", PackedLinear(module.fc1, "gelu"))  # noqa: B010  # which is declared as plain
            module.activation_fn = FusedActivation()
    # What makes labels of features is little of the work, and most of the error in int8.
    parts = (
        [module for module in model.modules() if isinstance(module, TwinsLayer)] if dtype == torch.int8 else [model]
    )
    for part in parts:
        for module in list(part.modules()):
            for name, child in list(module.named_children()):
                if is_plain(child, nn.Linear):
                    setattr(module, name, prepare_linear(child, dtype))
                elif is_plain(child, TwinsPatchConv2d):
                    setattr(module, name, PackedPatchConv2d(child, dtype))
