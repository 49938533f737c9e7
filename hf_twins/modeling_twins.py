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
"""PyTorch Twins model.

Twins: Revisiting the Design of Spatial Attention in Vision Transformers (https://huggingface.co/papers/2104.13840),
following the authors' code, https://github.com/Meituan-AutoML/Twins. Both families share this model: Twins-PCPVT has global
attention in every block, Twins-SVT in every other block, and attention within windows in the other blocks.

Between stages, hidden states are images, (batch_size, channels, height, width). Inside a stage they are tokens, (batch_size,
height * width, channels), in the same memory, and `size` is (height, width). Images padded to a common size come with
`token_mask`, (batch_size, height, width), which is True on the image, and None if no image is padded.
"""

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Self, TypeGuard, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle
from transformers import initialization as init
from transformers.activations import ACT2FN, GELUActivation
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import (
    TransformersKwargs,
    auto_docstring,
    is_torchdynamo_compiling,
)
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import (
    capture_outputs,
    maybe_install_capturing_hooks,
    resolve_hidden_states_indices,
    selected_hidden_states,
)

from .configuration_twins import TwinsConfig


LayerT = TypeVar("LayerT", bound=nn.Module)


# Tokens never have four dimensions in computations. Near convolutions, PyTorch's compiler would mistake such tensors
# for images with channels in the second dimension, and rearrange their memory, which took a fifth of a compiled
# forward pass on a GPU.


def to_tokens(image: torch.Tensor) -> torch.Tensor:
    """(batch_size, channels, height, width) -> (batch_size, height * width, channels)."""
    return image.flatten(2).transpose(1, 2)


def to_image(hidden_states: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(batch_size, height * width, channels) -> (batch_size, channels, height, width), in channels-last memory format."""
    return hidden_states.unflatten(1, size).permute(0, 3, 1, 2)


def window_partition(hidden_states: torch.Tensor, size: tuple[int, int], window_size: int) -> torch.Tensor:
    """(batch_size, height * width, channels) -> (batch_size * num_windows, window_size**2, channels)."""
    rows, columns = size[0] // window_size, size[1] // window_size
    windows = hidden_states.unflatten(1, (rows, window_size, columns, window_size))
    return windows.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def window_reverse(windows: torch.Tensor, window_size: int, grid: tuple[int, int, int]) -> torch.Tensor:
    """(batch_size * num_windows, window_size**2, channels) -> (batch_size, height * width, channels).

    `grid` is the batch size, and the number of rows and columns of windows.
    """
    windows = windows.unflatten(0, grid).unflatten(3, (window_size, window_size))
    return windows.transpose(2, 3).flatten(1, 4)


def make_token_mask(pixel_mask: torch.Tensor | None, config: TwinsConfig, stage: int) -> torch.Tensor | None:
    """Which tokens of a stage are on the image: (batch_size, height, width), in pixels -> the same, in tokens."""
    if pixel_mask is None:
        return None
    stride = config.patch_size * 2**stage
    # A token is on the image if its last pixel is or, if incomplete patches are padded, its first pixel.
    start = 0 if config.patch_padding else stride - 1
    return pixel_mask[:, start::stride, start::stride].bool()


def clear_padding(hidden_states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """Set tokens (batch_size, height * width, channels) outside the image to zero."""
    if token_mask is None:
        return hidden_states
    # Multiplication with the mask would keep NaN.
    return hidden_states.masked_fill(~token_mask.flatten(1).unsqueeze(-1), 0)


def mean_over_image(image: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """(batch_size, channels, height, width), zero outside the image -> (batch_size, channels)."""
    if token_mask is None:
        return image.mean((2, 3))
    # In float32, like PyTorch's mean: a sum in half precision overflows or loses digits.
    total = image.sum((2, 3), dtype=torch.promote_types(image.dtype, torch.float32))
    return (total / token_mask.sum((1, 2)).unsqueeze(1)).to(image.dtype)


# Outputs of stages for `interpretation`: maps encoder and stage to the image and the token mask. Unlike hooks, it is
# visible only to one thread, and works for any model that contains the encoder.
STAGE_RECORDS: ContextVar[dict[tuple[nn.Module, int], tuple[torch.Tensor, torch.Tensor | None]] | None] = ContextVar(
    "STAGE_RECORDS", default=None
)


def record_stage(encoder: nn.Module, stage: int, image: torch.Tensor, token_mask: torch.Tensor | None) -> None:
    """Record a stage's output if requested by `STAGE_RECORDS`."""
    # Compilers cannot read a context variable.
    if not is_torchdynamo_compiling() and (records := STAGE_RECORDS.get()) is not None:
        records[encoder, stage] = (image, token_mask)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights.masked_fill(~attention_mask, torch.finfo(attn_weights.dtype).min)
    # PyTorch's softmax accumulates in float32, also in half precision, and keeps only its result for the backward
    # pass.
    attn_weights = nn.functional.softmax(attn_weights, dim=-1).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


# The code from here to `TwinsDropPath` deals with speed, compilers, exporters, devices and pickling, so that the
# layers below read like the paper's figures.


def add_residual(hidden_states: torch.Tensor, branch: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Add the input and the branch that parts of `module` compute, in the memory of the branch if that is unobservable."""
    if branch.dtype != hidden_states.dtype or not may_overwrite(branch, module):
        # The input comes first, because a compiler gives the sum the symbolic sizes of its first operand, and those of
        # the branch get longer with each layer.
        return hidden_states + branch
    return branch.add_(hidden_states)


def activate(hidden_states: torch.Tensor, activation_fn: nn.Module, module: nn.Module) -> torch.Tensor:
    """Apply the activation to the output of a part of `module`; GELU works in place if that is unobservable."""
    if not is_exact_gelu(activation_fn) or not may_overwrite(hidden_states, module):
        return activation_fn(hidden_states)
    # Working in place avoids writing the largest tensor of the block a second time.
    return torch.ops.aten.gelu_(hidden_states)


def is_exact_gelu(activation_fn: nn.Module) -> bool:
    return type(activation_fn) is GELUActivation and activation_fn.act is nn.functional.gelu


def may_overwrite(output: torch.Tensor, module: nn.Module) -> bool:
    """Whether an output of a part of `module` may be overwritten, because nothing else uses its content.

    Gradients may need it, compilers and tracers reuse memory themselves, and a hook, or a module that replaced one of the
    model's, may keep it.
    """
    hooks = torch.nn.modules.module
    return not (
        output.requires_grad
        or is_torchdynamo_compiling()
        or torch.jit.is_tracing()
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or is_watched(module)
    )


def is_watched(module: nn.Module) -> bool:
    """Whether a part of a module has a hook other than those that record attentions, or was replaced."""
    for part in module._modules.values():
        if part is None:
            continue
        if type(part) not in MODULES_WITH_NEW_OUTPUTS or "forward" in part.__dict__:
            return True
        if part._forward_pre_hooks:
            return True
        # Attention weights, which transformers records, are not what is overwritten. Other recorded outputs are.
        is_recorded = isinstance(part, TwinsAttention) and all(map(is_recording_hook, part._forward_hooks.values()))
        if part._forward_hooks and not is_recorded:
            return True
        if part._modules and is_watched(part):
            return True
    return False


def is_recording_hook(hook: Callable) -> bool:
    """Whether transformers registered a hook to record hidden states and attentions."""
    return hook.__module__ == capture_outputs.__module__


def pad_or_crop(hidden_states: torch.Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> torch.Tensor:
    """Pad tokens (batch_size, height * width, channels) with zeros at the right and bottom, or crop them."""
    if not differ(size, new_size):
        return hidden_states
    # Crop by negative padding, whose memory layout, unlike that of a slice, does not depend on the amount. Use the
    # given size and not that of the tensor, which an export from an example with a single window would treat as a
    # constant.
    grid = hidden_states.unflatten(1, (1, *size))
    return nn.functional.pad(grid, (0, 0, 0, new_size[1] - size[1], 0, new_size[0] - size[0])).flatten(1, 3)


def crop_to_patches(image: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Crop an image (batch_size, channels, height, width) to complete patches, the only part that a convolution reads.

    If a last column is left over, oneDNN's bfloat16 convolution with kernel 2 is wrong on CPUs with AMX (PyTorch 2.15).
    """
    if is_exporting():
        return image
    height, width = image.shape[2:]
    return image[:, :, : height // patch_size * patch_size, : width // patch_size * patch_size]


def multiply_patches(
    image: torch.Tensor, patch_size: int, multiply: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Compute a convolution of patches by `multiply`, which maps `(num_patches, patch_size**2 * channels)`, with the channels
    of a pixel next to each other, to `(num_patches, out_channels)`."""
    image = crop_to_patches(image, patch_size)
    batch_size, _, height, width = image.shape
    patches = window_partition(to_tokens(image), (height, width), patch_size).flatten(1)
    size = (height // patch_size, width // patch_size)
    return to_image(multiply(patches).unflatten(0, (batch_size, size[0] * size[1])), size)


def differ(size: tuple[int, int], new_size: tuple[int, int]) -> bool:
    """Whether two sizes differ; True in a graph with symbolic sizes, where this is unknown."""
    return is_exporting() or size != new_size


def divide_and_round_up(size: int, divisor: int) -> int:
    """Same as -(-size // divisor), which ONNX computes differently: it rounds negative numbers toward zero."""
    return (size + divisor - 1) // divisor


def is_exporting() -> bool:
    """Whether `torch.export` traces this.

    The function `torch.compiler.is_exporting` is also true under `torch.compile` in PyTorch 2.11, so this reads the flag.
    """
    return torch.compiler._is_exporting_flag


def is_compiled() -> bool:
    """Whether `torch.compile` traces this, and not an export."""
    return is_torchdynamo_compiling() and not is_exporting()


def project_together(linears: Sequence[nn.Linear], hidden_states: torch.Tensor) -> Sequence[torch.Tensor]:
    """Apply linear layers to the same input; in compiled training as a single product, which is faster."""
    if not (is_compiled() and torch.is_grad_enabled() and all(is_plain(linear, nn.Linear) for linear in linears)):
        return [linear(hidden_states) for linear in linears]
    weight = torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return nn.functional.linear(hidden_states, weight, bias).chunk(len(linears), dim=-1)


def is_plain(layer: nn.Module, layer_class: type[LayerT]) -> TypeGuard[LayerT]:
    """Whether a layer only computes what its class does with its own weight: no hooks, subclass or wrapper."""
    return (
        type(layer) is layer_class
        and type(layer.weight) is nn.Parameter
        and "forward" not in layer.__dict__
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
    )


def compute_attention(
    module: "TwinsAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    attn_implementation: str | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention by `attn_implementation` or, by default, the implementation that the configuration names.

    Queries, keys and values are `(batch_size, num_heads, num_tokens, head_dim)`. The result is `(batch_size, num_queries,
    num_heads, head_dim)`, and the attention weights if the implementation returns them. `key_mask`, `(batch_size, num_keys)`,
    is True on the keys that may be attended to, at least one for each query.
    """
    implementation: str = attn_implementation or module.config._attn_implementation
    attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    attention_mask, is_eager = None, True
    if key_mask is not None:
        # The mask is broadcast over queries, because it would otherwise be as large as the attention weights.
        attention_mask = key_mask[:, None, None, :]
        if is_flash_attention_requested(requested_attention_implementation=implementation):
            # Its functions support masks only if queries and keys are the same tokens, unlike in sub-sampled
            # attention.
            attention_interface, implementation = ALL_ATTENTION_FUNCTIONS["sdpa"], "sdpa"
    if not is_exporting() and query.shape[0] == 0:
        # The other functions do not accept an empty batch.
        attention_interface, is_eager = eager_attention_forward, implementation == "eager"

    dtype = query.dtype
    autocast: AbstractContextManager = nullcontext()
    if implementation == "sdpa" and dtype == torch.bfloat16 and query.device.type == "cpu" and query.requires_grad:
        # In bfloat16, the backward pass of PyTorch's CPU kernel takes four times as long as in float32 and, with few
        # tokens, longer than eager attention. Autocast is disabled, because it would convert the tensors back.
        autocast = torch.autocast("cpu", enabled=False)
        if attention_mask is None and not is_torchdynamo_compiling() and key.shape[2] <= 64:
            attention_interface, is_eager = eager_attention_forward, False
        else:
            query, key, value = query.float(), key.float(), value.float()
    kernels: AbstractContextManager = nullcontext()
    if implementation == "sdpa" and isinstance(module, TwinsLocalAttention) and is_compiled():
        # The kernels that PyTorch prefers are made for sequences longer than a window. In eager mode, selecting
        # another kernel would take as long as it saves.
        if query.is_cuda:
            kernels = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
        else:
            attention_interface, is_eager = eager_attention_forward, False
    with autocast, kernels:
        attn_output, attn_weights = attention_interface(module, query, key, value, attention_mask, **kwargs)
    return attn_output.to(dtype), attn_weights if is_eager else None


def is_left_to_cudnn(image: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a convolution of patches is faster than their product: in half precision on GPUs, unless there are gradients.

    Measured on an NVIDIA H200 with PyTorch 2.11. In float32, cuDNN would also round to TF32.
    """
    if not image.is_cuda:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else image.dtype
    has_gradients = torch.is_grad_enabled() and (image.requires_grad or weight.requires_grad)
    return dtype in (torch.float16, torch.bfloat16) and not has_gradients


class TwinsPatchConv2d(nn.Conv2d):
    """A convolution whose kernel equals its stride, computed as a matrix product. This is faster for the few patches of the
    sub-sampling, but not for patch embeddings."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # The weight is read only once, because a parametrization computes it on each access.
        weight, patch_size = self.weight, self.stride[0]
        if is_exporting() or image.shape[0] == 0 or is_left_to_cudnn(image, weight):
            # With symbolic sizes, it is unknown whether patches are complete, and an empty batch has no patches.
            return self._conv_forward(image, weight, self.bias)
        if not is_compiled() and image.numel() < weight.numel():
            # The smaller of image and weight is rearranged: here the image, to the channel order of the weight.
            patches = nn.functional.pixel_unshuffle(crop_to_patches(image, patch_size), patch_size)
            product = nn.functional.linear(patches.permute(0, 2, 3, 1), weight.flatten(1), self.bias)
            return product.permute(0, 3, 1, 2)
        weight = weight.permute(0, 2, 3, 1).flatten(1)
        return multiply_patches(image, patch_size, lambda patches: nn.functional.linear(patches, weight, self.bias))


class TwinsRecordedModule(nn.Module):
    """A module whose outputs transformers records by a hook.

    If another model contains this one and records outputs, it would install a second hook, and record each output twice, so
    only one is kept. The hook cannot be pickled: it is left out, and the unpickled model installs it again.
    """

    def register_forward_hook(self, hook: Callable, **kwargs: Any) -> RemovableHandle:
        if is_recording_hook(hook):
            for key, other in list(self._forward_hooks.items()):
                if is_recording_hook(other):
                    del self._forward_hooks[key]
        return super().register_forward_hook(hook, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        # This also copies the hook, because `deepcopy` supports functions.
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        hooks = self._forward_hooks.items()
        state["_forward_hooks"] = OrderedDict((key, hook) for key, hook in hooks if not is_recording_hook(hook))
        return state


class TwinsDropPath(nn.Module):
    """Stochastic depth per image, for residual branches (https://huggingface.co/papers/1603.09382)."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_prob)
        return hidden_states * kept.div_(keep_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class TwinsPatchEmbeddings(nn.Module):
    """Patch embeddings of a stage: a convolution whose kernel equals its stride, and a layer norm."""

    def __init__(self, config: TwinsConfig, stage: int):
        super().__init__()
        num_channels = config.num_channels if stage == 0 else config.hidden_sizes[stage - 1]
        self.patch_size = config.patch_size if stage == 0 else 2
        self.patch_padding = config.patch_padding
        self.projection = nn.Conv2d(
            num_channels, config.hidden_sizes[stage], kernel_size=self.patch_size, stride=self.patch_size
        )
        # As in the authors' training, eps is 1e-5 here and in `TwinsSequenceReduction`, regardless of
        # `layer_norm_eps`.
        self.layernorm = nn.LayerNorm(config.hidden_sizes[stage], eps=1e-5)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, image: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """Convert an image or feature map `(batch_size, channels, height, width)` to a smaller one."""
        if self.patch_padding:
            height, width = image.shape[2:]
            image = nn.functional.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.projection(crop_to_patches(image, self.patch_size))
        hidden_states = clear_padding(self.dropout(self.layernorm(to_tokens(patches))), token_mask)
        return to_image(hidden_states, (patches.shape[2], patches.shape[3]))


class TwinsPositionEncoding(nn.Module):
    """Positional Encoding Generator (PEG): a 3x3 depthwise convolution, added to its input (paper, section 3.1)."""

    def __init__(self, config: TwinsConfig, stage: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.projection = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, padding=1, groups=hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, size: tuple[int, int], token_mask: torch.Tensor | None
    ) -> torch.Tensor:
        # Padding of images must be zero, like the padding of the convolution.
        hidden_states = clear_padding(hidden_states, token_mask)
        branch = to_tokens(self.projection(to_image(hidden_states, size)))
        return add_residual(hidden_states, branch, self)


class TwinsAttention(TwinsRecordedModule):
    """Multi-head attention. Subclasses decide which tokens are attended to: those of a window, or of a sub-sampled image."""

    def __init__(self, config: TwinsConfig, stage: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.config = config
        self.head_dim = hidden_size // config.num_attention_heads[stage]
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False

        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def split_heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, num_tokens, hidden_size) -> (batch_size, num_heads, num_tokens, head_dim)."""
        return hidden_states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def project(self, query_states: torch.Tensor, key_value_states: torch.Tensor) -> Sequence[torch.Tensor]:
        """Compute queries, keys and values, with the shapes of the states that they are projected from."""
        if query_states is key_value_states:
            return project_together([self.q_proj, self.k_proj, self.v_proj], query_states)
        return self.q_proj(query_states), *project_together([self.k_proj, self.v_proj], key_value_states)

    def attend(
        self,
        query_states: torch.Tensor,
        key_value_states: torch.Tensor,
        key_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention from `(batch_size, num_queries, hidden_size)` to `(batch_size, num_keys, hidden_size)`.

        `key_mask`, `(batch_size, num_keys)`, is True on the keys that may be attended to, at least one for each query.
        """
        query, key, value = map(self.split_heads, self.project(query_states, key_value_states))
        attn_output, attn_weights = compute_attention(
            self,
            query,
            key,
            value,
            key_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attn_output.flatten(2)), attn_weights


class TwinsLocalAttention(TwinsAttention):
    """Locally-grouped self-attention (LSA): every token attends to the tokens of its window (paper, section 3.2)."""

    def __init__(self, config: TwinsConfig, stage: int, window_size: int):
        super().__init__(config, stage)
        self.window_size = window_size
        self.window_padding = config.window_padding

    def forward(
        self,
        hidden_states: torch.Tensor,
        size: tuple[int, int],
        token_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = divide_and_round_up(size[0], self.window_size)
        columns = divide_and_round_up(size[1], self.window_size)
        padded_size = (rows * self.window_size, columns * self.window_size)
        key_mask = None
        if self.window_padding != "zeros" and (token_mask is not None or differ(size, padded_size)):
            key_mask = self.make_key_mask(hidden_states, size, token_mask, padded_size)
        hidden_states = pad_or_crop(clear_padding(hidden_states, token_mask), size, padded_size)
        windows = window_partition(hidden_states, padded_size, self.window_size)
        windows, attn_weights = self.attend(windows, windows, key_mask, **kwargs)
        hidden_states = window_reverse(windows, self.window_size, (hidden_states.shape[0], rows, columns))
        return pad_or_crop(hidden_states, padded_size, size), attn_weights

    def make_key_mask(
        self,
        hidden_states: torch.Tensor,
        size: tuple[int, int],
        token_mask: torch.Tensor | None,
        padded_size: tuple[int, int],
    ) -> torch.Tensor:
        """Which tokens of each window may be attended to, `(batch_size * num_windows, window_size**2)`."""
        if token_mask is None:
            token_mask = hidden_states.new_ones((hidden_states.shape[0], *size), dtype=torch.bool)
        padded_mask = pad_or_crop(token_mask.flatten(1).unsqueeze(-1), size, padded_size)
        if self.window_padding == "authors_segmentation":
            # The authors mark padding by the slice `[-pad:]`, which marks everything if `pad` is 0, and mask attention
            # between marked and unmarked tokens. So nothing is masked in an image unless both of its sides need
            # padding.
            image_sizes = torch.stack([token_mask[:, :, 0].sum(1), token_mask[:, 0, :].sum(1)], dim=1)
            both_sides_padded = (image_sizes % self.window_size != 0).all(1)
            padded_mask = padded_mask | ~both_sides_padded[:, None, None]
        key_mask = window_partition(padded_mask, padded_size, self.window_size).squeeze(-1)
        # A window outside the image attends to its own zeros, because softmax over no keys would be NaN.
        return key_mask | ~key_mask.any(1, keepdim=True)


class TwinsSequenceReduction(nn.Module):
    """Sub-sampling of keys and values in global attention: a convolution whose kernel equals its stride, and a norm."""

    def __init__(self, hidden_size: int, sr_ratio: int):
        super().__init__()
        self.projection = TwinsPatchConv2d(hidden_size, hidden_size, kernel_size=sr_ratio, stride=sr_ratio)
        self.layernorm = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, hidden_states: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.layernorm(to_tokens(self.projection(to_image(hidden_states, size))))


class TwinsGlobalAttention(TwinsAttention):
    """Global sub-sampled attention (GSA): every token attends to a summary of every square of `sr_ratio` tokens."""

    def __init__(self, config: TwinsConfig, stage: int):
        super().__init__(config, stage)
        self.sr_ratio = config.sr_ratios[stage]
        if self.sr_ratio > 1:
            self.sequence_reduction = TwinsSequenceReduction(config.hidden_sizes[stage], self.sr_ratio)

    def forward(
        self,
        hidden_states: torch.Tensor,
        size: tuple[int, int],
        token_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key_value_states = self.sequence_reduction(hidden_states, size) if self.sr_ratio > 1 else hidden_states
        key_mask = None
        if token_mask is not None:
            # A square is on the image if its last token is on the image.
            key_mask = token_mask[:, self.sr_ratio - 1 :: self.sr_ratio, self.sr_ratio - 1 :: self.sr_ratio].flatten(1)
        return self.attend(hidden_states, key_value_states, key_mask, **kwargs)


class TwinsMLP(nn.Module):
    def __init__(self, config: TwinsConfig, stage: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        intermediate_size = int(hidden_size * config.mlp_ratios[stage])
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(activate(self.fc1(hidden_states), self.activation_fn, self))


class TwinsLayer(GradientCheckpointingLayer):
    """One block: attention and MLP, each preceded by a layer norm and added to its input."""

    def __init__(self, config: TwinsConfig, stage: int, layer: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        # LSA and GSA alternate within a stage of Twins-SVT (paper, figure 2).
        self.attention: TwinsAttention
        if config.window_size is not None and layer % 2 == 0:
            self.attention = TwinsLocalAttention(config, stage, config.window_size)
        else:
            self.attention = TwinsGlobalAttention(config, stage)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = TwinsMLP(config, stage)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = TwinsDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        size: tuple[int, int],
        token_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.attention(self.layernorm_before(hidden_states), size, token_mask, **kwargs)
        hidden_states = add_residual(hidden_states, self.drop_path(self.dropout(attn_output)), self)
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return add_residual(hidden_states, self.drop_path(self.dropout(mlp_output)), self)


# Modules that return their input or a new tensor, and keep no reference to it.
MODULES_WITH_NEW_OUTPUTS: set[type[nn.Module]] = {
    nn.Conv2d,
    nn.Dropout,
    nn.LayerNorm,
    nn.Linear,
    GELUActivation,
    TwinsDropPath,
    TwinsGlobalAttention,
    TwinsLocalAttention,
    TwinsMLP,
    TwinsPatchConv2d,
    TwinsSequenceReduction,
}


class TwinsStage(nn.Module):
    """The blocks of one resolution, with the position encoding after the first block."""

    def __init__(self, config: TwinsConfig, stage: int):
        super().__init__()
        first_layer = sum(config.depths[:stage])
        drop_path_step = config.drop_path_rate / max(sum(config.depths) - 1, 1)
        self.layers = nn.ModuleList(
            [
                TwinsLayer(config, stage, layer, drop_path_rate=drop_path_step * (first_layer + layer))
                for layer in range(config.depths[stage])
            ]
        )
        self.position_encoding = TwinsPositionEncoding(config, stage)
        self.layernorm = (
            nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)
            if config.use_stage_norm
            else nn.Identity()
        )

    def forward(
        self, image: torch.Tensor, token_mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Process embedded patches `(batch_size, channels, height, width)`; the shape stays the same."""
        hidden_states, size = to_tokens(image), (image.shape[2], image.shape[3])
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, size, token_mask, **kwargs)
            if index == 0:
                hidden_states = self.position_encoding(hidden_states, size, token_mask)
        return to_image(clear_padding(self.layernorm(hidden_states), token_mask), size)


class HiddenStates:
    """The hidden states that `output_hidden_states` selects: all, none, or those with given indices and None for the others.

    The default is that of the configuration, as for all outputs that transformers records.
    """

    def __init__(self, encoder: "TwinsEncoder", output_hidden_states: bool | int | list[int] | None):
        if output_hidden_states is None:
            output_hidden_states = encoder.config.output_hidden_states
        self.encoder = encoder
        self.indices = selected_hidden_states(output_hidden_states)
        self.states: list[torch.Tensor | None] | None = (
            [] if self.indices is not None or output_hidden_states else None
        )

    def append(self, image: torch.Tensor) -> None:
        if self.states is not None:
            self.states.append(image)

    def selected(self) -> Any:
        if self.states is None or self.indices is None:
            return None if self.states is None else tuple(self.states)
        indices = resolve_hidden_states_indices(self.encoder, self.indices, num_hidden_states=len(self.states))
        return tuple(state if index in indices else None for index, state in enumerate(self.states))


def check_pixel_values(pixel_values: Any, config: TwinsConfig) -> None:
    """Raise a ValueError if the images are invalid, which says what to pass."""
    shape = "(batch_size, num_channels, height, width)"
    if not isinstance(pixel_values, torch.Tensor):
        if isinstance(pixel_values, Mapping):
            advice = "unpack the image processor's output, as in model(**inputs)"
        else:
            advice = 'pass the output of the image processor, as in model(**processor(images, return_tensors="pt"))'
        raise ValueError(
            f"pixel_values must be a torch.Tensor of shape {shape}, got {type(pixel_values).__name__}: {advice}."
        )
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values must have the shape {shape}, got {tuple(pixel_values.shape)}.")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floating point, got {pixel_values.dtype}. The image processor rescales and normalizes "
            "integer pixels."
        )
    if pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values must have num_channels={config.num_channels} channels, got {pixel_values.shape[1]} (shape "
            f"{tuple(pixel_values.shape)})."
        )
    min_size = config.min_image_size
    if pixel_values.shape[2] < min_size or pixel_values.shape[3] < min_size:
        raise ValueError(
            f"pixel_values must be at least {min_size} pixels high and wide for patch_size={config.patch_size} and "
            f"sr_ratios={config.sr_ratios}, got {pixel_values.shape[2]} x {pixel_values.shape[3]}."
        )


def check_pixel_mask(pixel_mask: Any, pixel_values: torch.Tensor, config: TwinsConfig) -> None:
    """Raise a ValueError if the mask is invalid, which says what was expected."""
    expected_shape = (pixel_values.shape[0], pixel_values.shape[2], pixel_values.shape[3])
    if not isinstance(pixel_mask, torch.Tensor) or pixel_mask.shape != expected_shape:
        shape = tuple(pixel_mask.shape) if isinstance(pixel_mask, torch.Tensor) else type(pixel_mask).__name__
        raise ValueError(
            f"pixel_mask must be a torch.Tensor of shape (batch_size, height, width), {expected_shape} for these "
            f"pixel_values, got {shape}."
        )
    # The checks below read values of the mask, which is impossible while a graph is traced, or for a meta tensor.
    if (
        is_torchdynamo_compiling()
        or is_tracing(pixel_mask)
        or pixel_mask.is_meta
        or torch._C._functorch.is_batchedtensor(pixel_mask)
    ):
        return
    rows, columns = pixel_mask.bool().any(2), pixel_mask.bool().any(1)
    heights, widths = rows.sum(1), columns.sum(1)
    expected_rows = torch.arange(rows.shape[1], device=rows.device) < heights.unsqueeze(1)
    expected_columns = torch.arange(columns.shape[1], device=rows.device) < widths.unsqueeze(1)
    is_rectangle = (pixel_mask.bool() == expected_rows.unsqueeze(2) & expected_columns.unsqueeze(1)).all()
    is_large_enough = (torch.minimum(heights, widths) >= config.min_image_size).all()
    rectangle_message = (
        "pixel_mask must be 1 on one rectangle at the top left of each image, and 0 on the padding at its right and "
        "bottom."
    )
    size_message = f"pixel_mask must leave each image at least {config.min_image_size} pixels high and wide"
    if pixel_mask.is_cuda:
        # Raising an error requires waiting for the device. A device-side assertion stops the program without waiting.
        torch._assert_async(is_rectangle, rectangle_message)
        torch._assert_async(is_large_enough, f"{size_message}.")
        return
    if not is_rectangle:
        raise ValueError(rectangle_message)
    if not is_large_enough:
        sizes = ", ".join(f"{height} x {width}" for height, width in zip(heights.tolist(), widths.tolist()))
        raise ValueError(f"{size_message}, got images of {sizes}.")


@auto_docstring(
    custom_intro="""
    Base class of all Twins models, with the initialization of weights and the attributes that transformers needs.
    """
)
class TwinsPreTrainedModel(PreTrainedModel):
    config: TwinsConfig
    base_model_prefix = "twins"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["TwinsPatchEmbeddings", "TwinsPositionEncoding", "TwinsLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Only attentions are recorded by hooks. The encoder returns hidden states itself, because backbones and heads use
    # them.
    _can_record_outputs = {"attentions": TwinsAttention}

    def __init__(self, config: TwinsConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        # Fields may have been changed after the configuration was created.
        config.validate_architecture()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        r"""
        Same as [`~PreTrainedModel.from_pretrained`], which lists the arguments. With the hf_twins package, it also accepts

        - a timm folder or repository, e.g. `timm/twins_svt_small.in1k`,
        - an authors' file (`.pth`, `.pth.tar`, `.pt`, `.ckpt`, `.bin` or `.safetensors`), or a folder with one,

        and `num_channels` other than the checkpoint's: every channel gets an equal share of the summed weights.

        Raises:
            ValueError: if such a file does not contain the weights of a Twins model.
        """
        load = super().from_pretrained
        return TwinsConfig.checkpoint_reader.load_model(load, pretrained_model_name_or_path, *model_args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the weights as the authors do"""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
            init.normal_(module.weight, mean=0.0, std=(2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class TwinsEncoder(TwinsPreTrainedModel):
    """The patch embeddings and stages: all of Twins except the final layer norm, which backbones do not have."""

    # Models that contain an encoder inherit this plan, with the encoder's name as a prefix.
    _fsdp_plan = {"patch_embeddings.*": "free_full_weight", "stages.*.layers.*": "free_full_weight"}

    def __init__(self, config: TwinsConfig, num_stages: int | None = None):
        r"""
        num_stages (`int`, *optional*):
            Number of stages to build; by default, all stages of the configuration. With 0, only the first patch
            embeddings are built.
        """
        super().__init__(config)
        num_stages = len(config.depths) if num_stages is None else num_stages
        self.patch_embeddings = nn.ModuleList(
            [TwinsPatchEmbeddings(config, stage) for stage in range(max(num_stages, 1))]
        )
        self.stages = nn.ModuleList([TwinsStage(config, stage) for stage in range(num_stages)])
        # Checkpoints may contain stages that are not built.
        self._keys_to_ignore_on_load_unexpected = [
            rf"(^|\.)encoder\.(stages|patch_embeddings)\.{stage}\." for stage in range(num_stages, len(config.depths))
        ]
        self.post_init()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The modules were pickled without their hooks.
        self._output_capturing_hooks_installed = False
        maybe_install_capturing_hooks(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule("patch_embeddings.0.projection")

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        check_pixel_values(pixel_values, self.config)
        image = pixel_values
        if pixel_mask is not None:
            check_pixel_mask(pixel_mask, pixel_values, self.config)
            image = image.masked_fill(~pixel_mask.bool().unsqueeze(1), 0)
        hidden_states = HiddenStates(self, kwargs.get("output_hidden_states"))
        for index, patch_embeddings in enumerate(self.patch_embeddings):
            token_mask = make_token_mask(pixel_mask, self.config, index)
            image = patch_embeddings(image, token_mask)
            if index == 0:
                hidden_states.append(image)
            if index < len(self.stages):
                image = self.stages[index](image, token_mask, **kwargs)
                hidden_states.append(image)
                record_stage(self, index, image, token_mask)
        return BaseModelOutput(last_hidden_state=image, hidden_states=hidden_states.selected())


def check_out_features(out_features: list[str], stage_names: list[str]) -> None:
    """Raise a ValueError if `out_features` has a stage that the backbone was not built with."""
    missing = [name for name in out_features if name not in stage_names]
    if missing:
        raise ValueError(
            f"out_features asks for {', '.join(missing)}, but this backbone was built only up to {stage_names[-1]}: "
            "set out_features in the configuration before building the backbone."
        )


@auto_docstring(
    custom_intro="""
    Twins without a head: the stages, a final layer norm, and the mean over the image as pooled output. The last hidden
    state and all hidden states (the first patch embeddings and the output of each stage) are images, `(batch_size,
    channels, height, width)`. There are `sum(depths)` attentions, of shape `(batch_size * num_windows, num_heads,
    window_size ** 2, window_size ** 2)` in locally-grouped blocks, with the windows of each image row by row, and
    `(batch_size, num_heads, height * width, reduced_height * reduced_width)` in global blocks.
    """
)
class TwinsModel(TwinsPreTrainedModel):
    def __init__(self, config: TwinsConfig, add_pooling_layer: bool = True):
        r"""
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to add the final layer norm and the mean over the image. Without them the last hidden state is the
            last stage's output.
        """
        super().__init__(config)
        self.encoder = TwinsEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if add_pooling_layer else None
        self.post_init()
        # Hooks are installed now and not on first use, which may be after `torch.compile`, when it is too late.
        maybe_install_capturing_hooks(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images, as [`TwinsImageProcessor`] returns them, of height and width at least
            `config.min_image_size`.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 on the image, 0 on the padding at its right and bottom, whose content then has no effect: the output for
            each image is the same as without the other images in the batch.

        Raises:
            ValueError: if the shape or type of the inputs does not fit the model, an image is smaller than
                `config.min_image_size`, or the mask is not one rectangle at the top left of each image. On a CUDA device,
                where raising would synchronize, a device-side assertion checks the mask instead. Compiled and exported
                models do not check it.

        Example:

        ```python
        >>> import torch
        >>> from hf_twins import TwinsConfig, TwinsModel

        >>> model = TwinsModel(TwinsConfig.from_variant("twins-svt-small")).eval()
        >>> with torch.no_grad():
        ...     outputs = model(torch.rand(1, 3, 224, 224), output_hidden_states=True)
        >>> list(outputs.last_hidden_state.shape), list(outputs.pooler_output.shape)
        ([1, 512, 7, 7], [1, 512])
        >>> [list(hidden_state.shape) for hidden_state in outputs.hidden_states]
        [[1, 64, 56, 56], [1, 64, 56, 56], [1, 128, 28, 28], [1, 256, 14, 14], [1, 512, 7, 7]]
        ```"""
        outputs = self.encoder(pixel_values, pixel_mask, return_dict=True, **kwargs)
        image, pooled_output = outputs.last_hidden_state, None
        if self.layernorm is not None:
            token_mask = make_token_mask(pixel_mask, self.config, stage=len(self.config.depths) - 1)
            tokens = clear_padding(self.layernorm(to_tokens(image)), token_mask)
            image = to_image(tokens, (image.shape[2], image.shape[3]))
            record_stage(self.encoder, len(self.encoder.stages) - 1, image, token_mask)
            pooled_output = mean_over_image(image, token_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=image,
            pooler_output=pooled_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def image_classification_loss(
    labels: torch.Tensor,
    logits: torch.Tensor,
    config: TwinsConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """transformers' loss, but divided by `num_items_in_batch` for every problem type, not only for single-label ones."""
    loss = ForSequenceClassificationLoss(labels, logits, config, num_items_in_batch=num_items_in_batch, **kwargs)
    if num_items_in_batch is None or config.problem_type == "single_label_classification":
        return loss
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    # The loss is the mean over the labels of these images. Replace their number by that of all accumulated batches.
    return loss * (labels.numel() / num_items_in_batch)


@auto_docstring(
    custom_intro="""
    Twins Model transformer with an image classification head on top (a linear layer on top of the mean of the final
    hidden states) e.g. for ImageNet.
    """
)
class TwinsForImageClassification(TwinsPreTrainedModel):
    def __init__(self, config: TwinsConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.twins = TwinsModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.loss_function = image_classification_loss
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images, as [`TwinsImageProcessor`] returns them, of height and width at least
            `config.min_image_size`.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 on the image, 0 on the padding at its right and bottom, whose content then has no effect: the output for
            each image is the same as without the other images in the batch.
        labels (`torch.Tensor`, *optional*):
            Class indices of shape `(batch_size,)`; or floating point targets of shape `(batch_size, num_labels)`, for
            regression or multi-label classification (`config.problem_type`).
        num_items_in_batch (`int` or `torch.Tensor`, *optional*):
            Divisor of the summed losses, instead of the number of labels: the number of labels in all
            batches of an optimization step. [`Trainer`] passes it.

        Raises:
            ValueError: if the shape or type of the inputs does not fit the model, an image is smaller than
                `config.min_image_size`, or the mask is not one rectangle at the top left of each image. On a CUDA device,
                where raising would synchronize, a device-side assertion checks the mask instead. Compiled and exported
                models do not check it.

        Example:

        ```python
        >>> import torch
        >>> from hf_twins import TwinsConfig, TwinsForImageClassification

        >>> model = TwinsForImageClassification(TwinsConfig.from_variant("twins-pcpvt-small", num_labels=10))
        >>> outputs = model(torch.rand(2, 3, 97, 63), labels=torch.tensor([3, 7]))
        >>> list(outputs.logits.shape), list(outputs.loss.shape)
        ([2, 10], [])
        ```"""
        outputs = self.twins(pixel_values, pixel_mask, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Weights of a classifier's checkpoint that a backbone does not have.
KEYS_OF_CLASSIFIERS = [r"^(twins\.)?layernorm\.", r"^classifier\."]


class TwinsFeaturePyramid(nn.Module):
    """Feature Pyramid Network (FPN, https://huggingface.co/papers/1612.03144): adds to each stage's map the coarser ones."""

    def __init__(self, config: TwinsConfig):
        super().__init__()
        channels = config.fpn_hidden_size
        self.lateral_convs = nn.ModuleList([nn.Conv2d(size, channels, kernel_size=1) for size in config.hidden_sizes])
        self.output_convs = nn.ModuleList(
            [nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in config.hidden_sizes]
        )

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        pyramid = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        for level in range(len(pyramid) - 1, 0, -1):
            above = nn.functional.interpolate(pyramid[level], size=pyramid[level - 1].shape[2:], mode="nearest")
            pyramid[level - 1] = pyramid[level - 1] + above
        return [conv(feature_map) for conv, feature_map in zip(self.output_convs, pyramid)]


class TwinsConvLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU()

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(feature_map)))


class TwinsSemanticFPNHead(nn.Module):
    """Semantic FPN (https://huggingface.co/papers/1901.02446): sums all levels at the size of the first, and classifies."""

    def __init__(self, config: TwinsConfig):
        super().__init__()
        # Each level has as many convolutions, each followed by doubling its size, as it was halved since the first
        # level.
        self.scale_heads = nn.ModuleList()
        for level in range(len(config.hidden_sizes)):
            layers: list[nn.Module] = []
            for index in range(max(level, 1)):
                in_channels = config.fpn_hidden_size if index == 0 else config.decoder_hidden_size
                layers.append(TwinsConvLayer(in_channels, config.decoder_hidden_size))
                if level > 0:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            self.scale_heads.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(config.decoder_hidden_size, config.num_labels or 0, kernel_size=1)

    def forward(self, pyramid: list[torch.Tensor]) -> torch.Tensor:
        output, *others = [scale_head(feature_map) for scale_head, feature_map in zip(self.scale_heads, pyramid)]
        for other in others:
            # Interpolate to the exact size, because halving maps of odd size rounds down.
            output = output + nn.functional.interpolate(other, size=output.shape[2:], mode="bilinear")
        return self.classifier(self.dropout(output))


@auto_docstring(
    custom_intro="""
    Twins Model transformer with a Semantic FPN head on top (a feature pyramid of all stages), e.g. for ADE20K.
    """
)
class TwinsForSemanticSegmentation(TwinsPreTrainedModel):
    _keys_to_ignore_on_load_unexpected = KEYS_OF_CLASSIFIERS

    def __init__(self, config: TwinsConfig):
        super().__init__(config)
        if not config.num_labels:
            raise ValueError(f"A segmentation model must have num_labels of at least 1, got {config.num_labels}.")
        self.num_labels = config.num_labels
        self.twins = TwinsModel(config, add_pooling_layer=False)
        self.neck = TwinsFeaturePyramid(config)
        self.decode_head = TwinsSemanticFPNHead(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of height and width at least `config.min_image_size`.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 on the image, 0 on the padding at its right and bottom, whose content then has no effect. Only the
            backbone uses it. The head, which takes no mask, sees zeros there, as at the border of a feature map. If
            the image's height and width are multiples of the last stage's stride (32), only logits near the padding
            differ from those without padding. Otherwise, all logits differ, because the head resizes the maps of all
            stages to the size of the first: pass images of other sizes one at a time for the same result as alone.
            `labels` must mark padding, too.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel, or `config.semantic_loss_ignore_index` for no class. The loss is the mean over all pixels
            of the batch with a class; NaN if there are none, as in PyTorch and transformers' other segmentation models.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*):
            Divisor of the summed pixel losses, instead of the number of pixels with a class: the number of
            pixels in all batches of an optimization step. [`Trainer`] passes the number of labels other than
            -100. With `config.semantic_loss_ignore_index=-100` and labels that use it, these are the pixels with a class.
            With the default, ignored pixels, including the padding of smaller images, count with a loss of 0.

        Raises:
            ValueError: if the shape or type of the inputs does not fit the model, an image is smaller than
                `config.min_image_size`, or the mask is not one rectangle at the top left of each image. On a CUDA device,
                where raising would synchronize, a device-side assertion checks the mask instead. Compiled and exported
                models do not check it.

        Example:

        ```python
        >>> import torch
        >>> from hf_twins import TwinsConfig, TwinsForSemanticSegmentation

        >>> model = TwinsForSemanticSegmentation(TwinsConfig.from_variant("twins-svt-small", num_labels=150)).eval()
        >>> with torch.no_grad():
        ...     logits = model(torch.rand(1, 3, 224, 320)).logits
        >>> list(logits.shape)  # a quarter of the image's height and width
        [1, 150, 56, 80]
        ```"""
        outputs = self.twins(pixel_values, pixel_mask, return_dict=True, **kwargs)
        logits = self.decode_head(self.neck(outputs.hidden_states[1:]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, ignore_index=self.config.semantic_loss_ignore_index, **kwargs)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(
    custom_intro="""
    Twins backbone, to be used with frameworks like UperNet, DETR and MaskFormer. Stages after the last one in
    `out_features` are neither built nor run, so that every parameter gets a gradient. Feature maps and hidden states are in
    channels-last memory format, and gradients flow through them; for another layout, call `contiguous()`.
    """
)
class TwinsBackbone(BackboneMixin, TwinsPreTrainedModel):
    _keys_to_ignore_on_load_unexpected = KEYS_OF_CLASSIFIERS

    def __init__(self, config: TwinsConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        num_stages = max(map(self.stage_names.index, self.out_features), default=0)
        self.encoder = TwinsEncoder(config, num_stages=num_stages)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images, as [`TwinsImageProcessor`] returns them, of height and width at least
            `config.min_image_size`.
        pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
            1 on the image, 0 on the padding at its right and bottom, whose content then has no effect. Feature maps
            are zero there.

        Raises:
            ValueError: if the shape or type of the inputs does not fit the model, an image is smaller than
                `config.min_image_size`, or the mask is not one rectangle at the top left of each image. On a CUDA device,
                where raising would synchronize, a device-side assertion checks the mask instead. Compiled and exported
                models do not check it.

        Example:

        ```python
        >>> import torch
        >>> from hf_twins import TwinsBackbone, TwinsConfig

        >>> config = TwinsConfig.from_variant("twins-svt-small", out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> feature_maps = TwinsBackbone(config)(torch.rand(1, 3, 224, 224)).feature_maps
        >>> [list(feature_map.shape) for feature_map in feature_maps]
        [[1, 64, 56, 56], [1, 128, 28, 28], [1, 256, 14, 14], [1, 512, 7, 7]]
        ```"""
        check_out_features(self.out_features, self.stage_names[: len(self.encoder.stages) + 1])
        outputs = self.encoder(pixel_values, pixel_mask, return_dict=True, **kwargs)
        return BackboneOutput(
            feature_maps=tuple(
                hidden_state
                for stage_name, hidden_state in zip(self.stage_names, outputs.hidden_states)
                if stage_name in self.out_features
            ),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "TwinsBackbone",
    "TwinsForImageClassification",
    "TwinsForSemanticSegmentation",
    "TwinsModel",
    "TwinsPreTrainedModel",
]
