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
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_torchdynamo_compiling

from .modeling_twins import (
    MODULES_WITH_NEW_OUTPUTS,
    STAGE_RECORDS,
    TwinsAttention,
    TwinsLayer,
    TwinsLocalAttention,
    TwinsMLP,
    TwinsPatchConv2d,
    TwinsPreTrainedModel,
    is_exact_gelu,
    is_recording_hook,
    window_partition,
)


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

BACKENDS = ("auto", "eager", "packed", "graph", "compile")
# Relative L2 distance of the outputs from the plain model's that `verify` allows.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.int8: 3e-2}
# Image of the check, in pixels: odd, so that padding is checked as well.
VERIFIED_SIZE = 225
# Larger inputs keep a GPU busy for longer than Python takes to launch their kernels.
MAX_RECORDED_VALUES = 64 * 3 * 224 * 224
# Inputs that a model keeps a CUDA graph of.
MAX_RECORDINGS = 8


def optimize_for_inference(
    model: Model, dtype: torch.dtype | None = None, backend: str = "auto", verify: bool = False
) -> Model:
    """A copy of a model that is called in the same way and gives the same outputs, faster.

    | backend | what it changes | when to use it |
    |---|---|---|
    | `"eager"` | the type of the weights | anywhere |
    | `"packed"` | linear layers hold their weights as oneDNN's kernels read them, and those of one input, sub-sampling and GELU are part of them | on CPUs: no waiting at the start, any image size; the one for int8 |
    | `"graph"` | linear layers of one input are one, and the kernels of a call with few images are recorded as a CUDA graph and replayed for images of the same size | on GPUs, which wait for Python while images are few: the first eight sizes of input are recorded, each when it first comes |
    | `"compile"` | `torch.compile`, with the weights frozen into the code on CPUs, and its kernels recorded as above on GPUs | for one or few image sizes: each is compiled when it first comes |
    | `"auto"` | `"packed"` where the model is on a CPU that can and has no adapters, `"graph"` on a CUDA device, otherwise `"eager"` | |

    Images are given in any type; outputs come back in that of the images. The copy cannot be trained or saved: keep the
    model it was made of. Calls with masks or labels, under autocast or for gradients of the image are computed without a
    recording. A recording does not call hooks that are registered after it.

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
        if parameter.is_cuda and dtype != torch.int8:
            backend = "graph"
        else:
            backend = "packed" if can_pack(parameter.device, dtype) and not has_adapters else "eager"
    elif backend == "graph" and not parameter.is_cuda:
        raise ValueError(
            f"backend 'graph' needs a CUDA device; this is {parameter.device.type}: choose 'auto', 'eager' or 'compile'."
        )
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
    is_recorded = parameter.is_cuda and backend in ("graph", "compile")
    if backend == "packed":
        pack(optimized, dtype)
    elif is_recorded and not has_adapters:
        fuse_projections(optimized, lambda linear: linear)
    cast_at_the_border(optimized, float_dtype)
    if backend == "compile":
        is_cpu = parameter.device.type == "cpu"
        optimized.forward = torch.compile(optimized.forward, options={"freezing": True} if is_cpu else None)
    if is_recorded:
        record_calls(optimized)
    if verify:
        check_outputs(model, optimized, dtype)
    return optimized


class UnsavedModule(nn.Module):
    """A module that holds weights otherwise than a checkpoint does."""

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "A model that was optimized for inference cannot be saved: save the one that it was made of."
        )


class PreparedLinear(UnsavedModule):
    """A linear layer whose weight lies in memory as a kernel reads it, and that can do nothing but compute."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


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


def fuse_projections(model: nn.Module, prepare: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layers of an attention that have one input by what `prepare` makes of one for all of them."""
    for module in list(model.modules()):
        if isinstance(module, TwinsAttention):
            module.projections = FusedProjections(module, prepare)
            setattr(module, "project", module.projections.forward)  # noqa: B010  # which is declared as a method
            del module.q_proj, module.k_proj, module.v_proj


def pack(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers of a model, those of one input by one; in int8, only those of its blocks."""
    fuse_projections(model, functools.partial(prepare_linear, dtype=dtype))
    for module in list(model.modules()):
        if isinstance(module, TwinsMLP) and is_exact_gelu(module.activation_fn) and dtype != torch.int8:
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


class Recording:
    """The kernels of one call as a CUDA graph, and the memory that they read images from and write outputs to."""

    def __init__(self, forward: Callable, pixel_values: torch.Tensor, flags: dict[str, Any], pool: Any):
        stream = torch.cuda.Stream()
        self.pixel_values = pixel_values.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What is loaded or compiled at first use cannot be recorded.
            for _ in range(2):
                forward(self.pixel_values, **flags)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.outputs = forward(self.pixel_values, **flags)

    def replay(self, pixel_values: torch.Tensor) -> None:
        self.pixel_values.copy_(pixel_values)
        self.graph.replay()


def record_calls(model: nn.Module) -> None:
    """Let a Twins model, or those that another model holds, replay the kernels of calls with few images."""
    if not isinstance(model, TwinsPreTrainedModel):
        for child in model.children():
            record_calls(child)
        return
    forward = model.forward
    recordings: dict[tuple, Recording] = {}
    # Graphs of one pool share memory, so one of them runs at a time: each waits for the last, in whatever stream.
    pools: dict[torch.device, tuple[Any, torch.cuda.Event]] = {}
    lock = threading.Lock()

    @functools.wraps(forward)
    def recorded_forward(pixel_values: torch.Tensor, *args: Any, **flags: Any) -> Any:
        if args or not can_replay(model, pixel_values, flags):
            return forward(pixel_values, *args, **flags)
        parameter, device = next(model.parameters()), pixel_values.device
        # By the address as well: a model that was moved has its weights elsewhere.
        key = (device, pixel_values.shape, pixel_values.dtype, parameter.data_ptr(), *sorted(flags.items()))
        with lock, torch.cuda.device(device):
            pool, last_replay = pools.setdefault(device, (torch.cuda.graph_pool_handle(), torch.cuda.Event()))
            last_replay.wait()
            # Whatever the mode of the call, as the memory of the graph can be written to in one alone.
            with torch.inference_mode():
                recording = recordings.get(key)
                if recording is None and len(recordings) < MAX_RECORDINGS and not has_hooks(model):
                    recording = recordings[key] = Recording(forward, pixel_values, flags, pool)
                if recording is not None:
                    recording.replay(pixel_values)
            if recording is not None:
                # The next replay writes to the same memory.
                outputs = map_tensors(recording.outputs, torch.clone)
                last_replay.record()
                return outputs
        return forward(pixel_values, **flags)

    model.forward = recorded_forward


def can_replay(model: nn.Module, pixel_values: Any, flags: dict[str, Any]) -> bool:
    """Whether a call is computed by nothing but kernels that depend on nothing but the images' size and the flags."""
    return (
        not is_torchdynamo_compiling()
        and not torch.jit.is_tracing()
        and type(pixel_values) is torch.Tensor
        and pixel_values.is_cuda
        and pixel_values.device == next(model.parameters()).device
        and 0 < pixel_values.numel() <= MAX_RECORDED_VALUES
        and not model.training
        and not (pixel_values.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cuda")
        and not torch.cuda.is_current_stream_capturing()
        and STAGE_RECORDS.get() is None
        and all(flag is None or isinstance(flag, bool) for flag in flags.values())
    )


def has_hooks(model: nn.Module) -> bool:
    """Whether somebody other than transformers sees what parts of a model compute."""
    return any(
        part._forward_pre_hooks or not all(map(is_recording_hook, part._forward_hooks.values()))
        for module in model.children()
        for part in module.modules()
    )


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
