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
"""Models optimized for inference: the same outputs, faster, but no training or saving."""

import copy
import logging
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ..modeling_twins import TwinsPreTrainedModel
from .cuda_graphs import MAX_RECORDED_VALUES_IF_COMPILED, CudaGraphForward
from .forwards import CastForward, CompiledForward
from .machine import multiplies
from .operators import OperatorForward
from .packing import can_pack, fuse_projections, pack
from .recording import MAX_RECORDED_VALUES
from .runtimes import RUNTIMES, RuntimeForward, check_runtime


logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

BACKENDS = ("auto", "eager", "packed", "graph", "compile", *RUNTIMES)
# Relative L2 distance of the outputs from the plain model's that `verify` allows.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.int8: 3e-2}
# Of float32 on GPUs, where PyTorch lets cuDNN's convolutions, those of a segmentation head for one, round to TF32.
TOLERANCE_OF_TF32 = 1e-3
# Image of the check, in pixels: odd, so that padding is checked as well.
VERIFIED_SIZE = 225


class OptimizedFor(NamedTuple):
    """What `optimize_for_inference` chose: `model.optimized_for`."""

    backend: str
    dtype: torch.dtype
    device: torch.device


def optimize_for_inference(
    model: Model, dtype: torch.dtype | str | None = None, backend: str = "auto", verify: bool = False
) -> Model:
    """Return a copy of a model that is called in the same way and gives the same outputs, faster.

    | backend | what it changes | when to use it |
    |---|---|---|
    | `"eager"` | the type of the weights | anywhere |
    | `"packed"` | weights of Twins' linear layers in oneDNN's own layout; layers with the same input, sub-sampling and GELU are fused into them; calls with few images (64 of 224 pixels) are recorded as a list of operators and replayed for the same input size | on CPUs, for images of any size: the first eight input sizes that occur again are recorded, each on its second use |
    | `"graph"` | linear layers with the same input are fused, and calls with few images (64 of 224 pixels) are recorded as CUDA graphs and replayed for the same input size | on GPUs, where small batches wait for Python: the first eight input sizes are recorded, each on first use |
    | `"compile"` | `torch.compile`, with the weights frozen into the code on CPUs, and its kernels recorded as above on GPUs, for up to 256 images of 224 pixels | for one or a few image sizes: each is compiled on first use |
    | `"openvino"`, `"onnxruntime"` | Twins is exported to this runtime, for images of any size, without masks | on CPUs, fastest in float32: the export takes a minute, once, and is kept in Hugging Face's cache (`assets/hf_twins`) |
    | `"auto"` | `"packed"` on a CPU that supports it, without adapters, `"graph"` on a CUDA device, otherwise `"eager"` | |

    Images may have any dtype, which the outputs then have, too. The copy is not for training, and packed weights cannot be saved: keep the
    original, whose weights it shares with a runtime backend. Calls with masks or labels, under autocast or for gradients of
    the image are not recorded, nor are models with hooks, with layers other than those of PyTorch, transformers and PEFT, or
    with an attention function of your own. Recordings are discarded when the model changes.
    `"packed"` leaves layers with hooks, subclasses and wrappers as they are; runtimes refuse such models. Neither computes gradients.
    The copy's `optimized_for` says what was chosen.

    Args:
        model: a Twins model, or any model that contains one, such as UperNet, DETR or a torchvision detector, in
            any mode. In torchvision models, which compute boxes only in float32, only the Twins backbone is optimized.
        dtype: data type of the weights; the model's by default.

            - `"auto"`: bfloat16 where the hardware supports it, otherwise float32. Outputs then differ from machine to
              machine, by about one percent of the logits.
            - float32; or float16, which is for GPUs and slower than float32 on most CPUs;
            - bfloat16 is twice as fast on CPUs that support it, and differs from float32 by about one percent of the
              logits;
            - int8, on CPUs: the blocks' linear layers, which hold nearly all weights, multiply in int8, with inputs
              scaled per call; the rest is float32. An image's outputs then depend slightly on the others in its
              batch. Compare the accuracy of your own model on your own images.

        backend: a backend from the table.
        verify: whether to compare with the original model in float32 on a random image. Float32 exports always are.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ImportError: if a package of the extra `export` is missing, which the runtimes need.
        ValueError: if the model holds no Twins model, is quantized or optimized already, there is no such backend, it cannot
            run here or the model has adapters to be merged first, the dtype is none of these, or `verify` finds outputs that
            differ by more than rounding.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, TwinsForImageClassification, optimize_for_inference

    >>> model = TwinsForImageClassification(TwinsConfig.from_variant("twins-svt-small"))
    >>> fast = optimize_for_inference(model, dtype=torch.bfloat16, verify=True)
    >>> with torch.inference_mode():
    ...     logits = fast(torch.rand(1, 3, 224, 224)).logits
    >>> logits.dtype, fast.optimized_for.backend
    (torch.float32, 'packed')
    ```"""
    check_model(model)
    parameter = next(model.parameters())
    device = parameter.device
    dtype = choose_dtype(dtype, parameter, backend)
    has_adapters = any(hasattr(module, "base_layer") for module in model.modules())
    backend = choose_backend(backend, dtype, device, has_adapters)
    if backend in RUNTIMES:
        check_runtime(twins_models(model), backend, dtype)
        # Weights that a runtime has anyway are not copied.
        weights = [each for part in twins_models(model) for each in part.parameters()]
        memo: dict[int, Any] = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in weights}
        optimized = copy.deepcopy(model, memo)
    else:
        optimized = copy.deepcopy(model)
    optimized.eval().requires_grad_(False)
    if backend in RUNTIMES:
        for twins in twins_models(optimized):
            RuntimeForward(twins, backend, dtype)
            CastForward(twins, torch.float32)
    else:
        # Of torchvision's models the backbone alone: its operators on boxes know no half precision.
        for part in twins_models(optimized) if holds_torchvision(optimized) else [optimized]:
            optimize_part(part, dtype, backend, has_adapters)
    chosen = OptimizedFor(backend, dtype, device)
    setattr(optimized, "optimized_for", chosen)  # noqa: B010  # which modules do not declare
    logger.info(f"{type(model).__name__} is optimized: {chosen}.")
    if verify or (backend in RUNTIMES and dtype == torch.float32):
        # Rounding alone makes others of an untrained detector's best boxes.
        parts = twins_models if holds_torchvision(model) else lambda whole: [whole]
        for plain_part, optimized_part in zip(parts(model), parts(optimized)):
            check_outputs(plain_part, optimized_part, dtype)
    return optimized


def optimize_part(part: nn.Module, dtype: torch.dtype, backend: str, has_adapters: bool) -> None:
    """Let PyTorch compute a model, or a part of one, as a backend does."""
    float_dtype = torch.float32 if dtype == torch.int8 else dtype
    is_on_gpu = next(part.parameters()).is_cuda
    is_recorded_on_gpu = is_on_gpu and backend in ("graph", "compile")
    part.to(float_dtype)
    if backend == "packed":
        # What other models do with their layers, beside calling them, is unknown.
        for twins in twins_models(part):
            pack(twins, dtype)
    elif is_recorded_on_gpu and not has_adapters:
        fuse_projections(part, lambda linear: linear)
    CastForward(part, float_dtype)
    if backend == "compile":
        CompiledForward(part, None if is_on_gpu else {"freezing": True})
    for twins in twins_models(part):
        if is_recorded_on_gpu:
            CudaGraphForward(twins, MAX_RECORDED_VALUES_IF_COMPILED if backend == "compile" else MAX_RECORDED_VALUES)
        elif backend == "packed":
            OperatorForward(twins)


def check_model(model: nn.Module) -> None:
    """Raise a ValueError if a model cannot be optimized."""
    if not twins_models(model):
        raise ValueError(
            f"model must be or contain an hf_twins model, got {type(model).__name__}. If it was loaded with "
            "trust_remote_code, load it without, after `import hf_twins`."
        )
    if optimized_for(model) is not None:
        raise ValueError(f"model is already optimized, for {optimized_for(model)}: pass the original model.")
    quantizer = getattr(model, "hf_quantizer", None)
    weights = {type(each) for each in model.parameters()} - {nn.Parameter, torch.Tensor}
    if quantizer is not None or weights or any(not each.is_floating_point() for each in model.parameters()):
        raise ValueError(
            "model is quantized, which no backend supports: load it without quantization, and pass dtype=torch.int8 "
            "for 8 bits."
        )


def optimized_for(model: nn.Module) -> OptimizedFor | None:
    """What a model, or a part of it, was optimized for."""
    found = (getattr(module, "optimized_for", None) for module in model.modules())
    return next((each for each in found if each is not None), None)


def twins_models(model: nn.Module) -> list[TwinsPreTrainedModel]:
    """The Twins model that a model is, or those that it holds."""
    if isinstance(model, TwinsPreTrainedModel):
        return [model]
    return [each for child in model.children() for each in twins_models(child)]


def holds_torchvision(model: nn.Module) -> bool:
    """Whether a module of torchvision's is a part of a model."""
    return any(type(module).__module__.startswith("torchvision.") for module in model.modules())


def choose_dtype(dtype: torch.dtype | str | None, parameter: torch.Tensor, backend: str) -> torch.dtype:
    """The type of the weights: what is asked for or, for "auto", the fastest one that is good for nearly every use."""
    device = parameter.device
    if dtype == "auto":
        is_taken = torch.bfloat16 in RUNTIMES.get(backend, (torch.bfloat16,))
        return torch.bfloat16 if is_taken and multiplies(device, torch.bfloat16) else torch.float32
    dtype = parameter.dtype if dtype is None else dtype
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype must be 'auto', {', '.join(map(str, TOLERANCES))}, got {dtype!r}.")
    if dtype in (torch.bfloat16, torch.float16) and multiplies(device, dtype) is False:
        logger.warning(
            f"{dtype} is slower here than float32, because this {device.type} has no instructions for it: choose "
            "torch.float32, or dtype='auto'."
        )
    return dtype


def choose_backend(backend: str, dtype: torch.dtype, device: torch.device, has_adapters: bool) -> str:
    """The backend that is asked for, or the best one for this device.

    Raises:
        ValueError: if it cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "auto":
        if device.type == "cuda" and dtype != torch.int8:
            return "graph"
        backend = "packed" if can_pack(device, dtype) and not has_adapters else "eager"
    elif backend == "graph" and device.type != "cuda":
        raise ValueError(
            f"backend 'graph' needs a CUDA device; this is {device.type}: choose 'auto', 'eager' or 'compile'."
        )
    elif backend in ("packed", *RUNTIMES) and has_adapters:
        raise ValueError(
            f"backend {backend!r} does not support adapters, which this model has: merge them with PEFT's "
            "merge_and_unload, or choose 'eager'."
        )
    elif backend == "packed" and not can_pack(device, dtype):
        raise ValueError(
            f"backend 'packed' needs a CPU, oneDNN, and float32, bfloat16 or int8; this is {dtype} on {device.type}: choose "
            "'eager' or 'compile'."
        )
    if dtype == torch.int8 and backend not in ("packed", *RUNTIMES):
        raise ValueError(
            "int8 needs backend 'packed' or 'onnxruntime', which are for CPUs and models without adapters; here it is "
            f"{backend!r}, on {device.type}: choose dtype='auto'."
        )
    return backend


@torch.inference_mode()
def check_outputs(model: nn.Module, optimized: nn.Module, dtype: torch.dtype) -> None:
    """Compare the first output, or the last feature map, with the plain model's in float32.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    plain: nn.Module = copy.deepcopy(model).eval()
    plain.float()
    parameter = next(plain.parameters())
    channels = twins_models(plain)[0].config.num_channels
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, VERIFIED_SIZE, VERIFIED_SIZE, generator=generator).to(parameter.device)
    expected, actual = (first_tensor(each(image)) for each in (plain, optimized))
    distance = ((actual.float() - expected).norm() / expected.norm()).item()
    tolerance = TOLERANCE_OF_TF32 if parameter.is_cuda and dtype == torch.float32 else TOLERANCES[dtype]
    # Not "greater": NaN is greater than nothing.
    if not distance <= tolerance:
        raise ValueError(
            f"The optimized model's outputs differ from the original model's by {distance:.2g} (relative L2), more "
            f"than the {tolerance:.0e} of {dtype}: choose another backend or dtype."
        )


def first_tensor(outputs: Any) -> torch.Tensor:
    while not torch.is_tensor(outputs):
        outputs = outputs[-1] if isinstance(outputs, tuple | list) else outputs[0]
    return outputs
