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
"""Twins models run by ONNX Runtime or OpenVINO, called like PyTorch's."""

import copy
import hashlib
import inspect
import json
import logging
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import ModelOutput, is_torchdynamo_compiling

from .._utils.extras import require_extra
from .._utils.files import new_output
from .._utils.fingerprints import model_fingerprint
from ..modeling_twins import (
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsModel,
    TwinsPreTrainedModel,
    check_pixel_values,
    is_recording_hook,
)
from .forwards import ReplacedForward


logger = logging.getLogger(__name__)

RUNTIMES = {"onnxruntime": (torch.float32, torch.int8), "openvino": (torch.float32, torch.bfloat16)}
PACKAGES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}
# OpenVINO is told the precision when it loads a file.
EXPORTED = {"onnxruntime": {}, "openvino": {torch.bfloat16: torch.float32}}
OUTPUTS: dict[type[TwinsPreTrainedModel], type[ModelOutput]] = {
    TwinsBackbone: BackboneOutput,
    TwinsForImageClassification: ImageClassifierOutput,
    TwinsForSemanticSegmentation: SemanticSegmenterOutput,
    TwinsModel: BaseModelOutputWithPooling,
}


class RuntimeForward(ReplacedForward):
    """Let a runtime compute what a Twins model gives for images without masks.

    Args:
        model: the model.
        backend: "onnxruntime" or "openvino".
        dtype: data type of the products.
    """

    model: TwinsPreTrainedModel

    def __init__(self, model: TwinsPreTrainedModel, backend: str, dtype: torch.dtype):
        self.session = SharedSession(export_once(model, backend, dtype), backend, dtype)
        super().__init__(model)
        self.backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        config = self.model.config
        given = inspect.signature(self.forward).bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        pixel_values, return_dict = given.pop("pixel_values"), given.pop("return_dict", None)
        for name in ("output_hidden_states", "output_attentions"):
            if given.get(name) is None:
                given[name] = getattr(config, name)
        self.refuse({name: value for name, value in given.items() if value is not None and value is not False})
        check_pixel_values(pixel_values, config)
        if is_torchdynamo_compiling() or torch.jit.is_tracing():
            raise ValueError(
                f"A model with backend {self.backend!r} cannot be compiled or exported: use the original one."
            )
        if pixel_values.device.type != "cpu":
            raise ValueError(f"backend {self.backend!r} runs on CPUs, but pixel_values are on {pixel_values.device}.")
        if pixel_values.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"backend {self.backend!r} computes no gradients: call the original model.")
        if len(pixel_values) == 0:
            # Runtimes do not take a batch of no images.
            return self.forward(pixel_values, return_dict=return_dict)
        outputs = named_outputs(self.model, self.session(pixel_values))
        as_tuple = not (config.return_dict if return_dict is None else return_dict)
        return outputs.to_tuple() if as_tuple else outputs

    def refuse(self, inputs: dict[str, Any]) -> None:
        if inputs:
            raise ValueError(
                f"backend {self.backend!r} takes only pixel_values, got {', '.join(inputs)}: call the "
                "original model, or choose another backend."
            )


class SharedSession:
    """A model in a runtime's memory, which copies share."""

    def __init__(self, file: Path, backend: str, dtype: torch.dtype):
        from ..export.run_exported import SESSIONS

        name, precision = {"onnxruntime": "onnx"}.get(backend, backend), "bf16" if dtype == torch.bfloat16 else "f32"
        self.session = SESSIONS[name](file, torch.get_num_threads(), precision)
        # A compiled model of OpenVINO's computes one call at a time.
        self.lock = threading.Lock()

    def __call__(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        images = np.ascontiguousarray(pixel_values.detach().float().numpy())
        with self.lock:
            outputs = self.session(images)
        return [torch.from_numpy(output) for output in outputs]

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedSession":
        return self


def named_outputs(model: TwinsPreTrainedModel, tensors: list[torch.Tensor]) -> ModelOutput:
    """The outputs of a model as its own `forward` returns them."""
    from ..export.source import output_names

    if isinstance(model, TwinsBackbone):
        feature_maps: Any = tuple(tensors)
        return BackboneOutput(feature_maps=feature_maps)
    return output_class(model)(**dict(zip(output_names(model), tensors, strict=True)))


def output_class(model: TwinsPreTrainedModel) -> type[ModelOutput]:
    """What a model returns.

    Raises:
        ValueError: if it has a `forward` of its own, whose outputs are unknown.
    """
    for known, output in OUTPUTS.items():
        if isinstance(model, known) and type(model).forward is known.forward:
            return output
    known_names = ", ".join(known.__name__ for known in OUTPUTS)
    raise ValueError(f"Runtimes support only {known_names}, got a {type(model).__name__}: choose another backend.")


def check_runtime(parts: Sequence[TwinsPreTrainedModel], backend: str, dtype: torch.dtype) -> None:
    """Raise an error if a runtime is not installed, cannot compute in this dtype or does not know one of these models."""
    require_extra("export", *PACKAGES[backend])
    if dtype not in RUNTIMES[backend]:
        advice = (
            "choose 'onnxruntime' or 'packed', or calibrate OpenVINO's int8 with examples/export/export_openvino.py"
            if dtype == torch.int8
            else "choose one of these, or another backend"
        )
        raise ValueError(
            f"backend {backend!r} computes in {' or '.join(map(str, RUNTIMES[backend]))}, got {dtype}: {advice}."
        )
    for part in parts:
        output_class(part)
        check_plain(part, backend)
        if part.config.output_hidden_states or part.config.output_attentions:
            raise ValueError(
                f"backend {backend!r} returns no hidden states or attentions, which the configuration asks for: "
                "choose another backend, or set output_hidden_states=False and output_attentions=False there."
            )
        if next(part.parameters()).device.type != "cpu":
            raise ValueError(f"backend {backend!r} is for CPUs: move the model there, or choose 'auto'.")


def check_plain(model: TwinsPreTrainedModel, backend: str) -> None:
    """Raise a ValueError if a part of a model computes anything that its configuration and weights do not say."""
    for name, module in model.named_modules():
        hooks = [hook for hook in module._forward_hooks.values() if not is_recording_hook(hook)]
        is_foreign = name != "" and not type(module).__module__.startswith(("torch.", "transformers.", "hf_twins."))
        if hooks or module._forward_pre_hooks or is_foreign or "forward" in module.__dict__:
            raise ValueError(
                f"backend {backend!r} supports neither hooks nor modules of your own, such as {name or 'the model'} has: "
                "choose 'eager' or 'packed'."
            )


def export_once(model: TwinsPreTrainedModel, backend: str, dtype: torch.dtype) -> Path:
    """The file of a model for a runtime, in Hugging Face's cache: it is written only once, which takes a minute.

    It is found again by what the model computes and the versions of what exported it.
    """
    from .. import __version__
    from ..export.source import ExportableModel, Source, output_names

    plain = copy.deepcopy(model).float()
    versions = [__version__, *map(version, ("torch", "transformers", *PACKAGES[backend]))]
    described = [model_fingerprint(plain), output_names(plain), str(EXPORTED[backend].get(dtype, dtype)), versions]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    folder = cached_assets_path("hf_twins", "exports", backend) / key
    file = folder / ("model.onnx" if backend == "onnxruntime" else "model.xml")
    if not file.exists():
        logger.warning(f"Exporting the model to {folder}, which takes a minute, once.")
        side = model.config.min_image_size
        source = Source(ExportableModel(plain), processor=None, size=(side, side))
        try:
            with new_output(folder) as partial:
                write_export(source, partial / file.name, backend, dtype)
        except ValueError:
            # Another process has written it meanwhile.
            if not file.exists():
                raise
    return file


def write_export(source: Any, file: Path, backend: str, dtype: torch.dtype) -> None:
    from ..export.to_onnx import DEFAULT_OPSET_VERSION, quantize_linear_layers, save_onnx
    from ..export.to_openvino import convert_to_openvino, save_openvino

    if backend == "openvino":
        save_openvino(convert_to_openvino(source), file)
        return
    save_onnx(source, file, DEFAULT_OPSET_VERSION)
    if dtype == torch.int8:
        quantized = file.with_suffix(".int8")
        quantize_linear_layers(file, quantized)
        quantized.replace(file)
