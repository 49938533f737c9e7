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
"""What the exports share: the model to take out, what is written beside it, and the proof that both compute the same.

An export is a folder, there only when it is whole: the model's file, `export.json`, which says how it is run,
`config.json` with the names of the labels, and `preprocessor_config.json`. `run_exported.py` reads nothing else.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_exported import DESCRIPTION_NAME, load_runtime
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import AutoConfig, AutoImageProcessor

from hf_twins import TwinsBackbone, TwinsConfig, TwinsForImageClassification, TwinsForSemanticSegmentation
from hf_twins._utils.command_line import run


MODEL_CLASSES = {
    model_class.__name__: model_class
    for model_class in (TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsBackbone)
}
# Largest relative L2 distance of any output from PyTorch's in float32.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 3e-2}


@dataclass
class ExportArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder or Hub id of a Twins model, also timm's or the authors'."}
    )
    output_dir: str = field(metadata={"help": "Folder that is written, new or empty."})


@dataclass
class FixedSizeArguments(ExportArguments):
    """Of formats whose image size is part of the compiled code."""

    height: int | None = field(
        default=None, metadata={"help": "Of the images, in pixels; the processor's by default."}
    )
    width: int | None = field(default=None, metadata={"help": "Of the images, in pixels; the processor's by default."})


def run_export(argument_class: type, export: Callable[[Any], Path], arguments: list[str] | None) -> None:
    """Let the command line decide, and end with one sentence where it cannot be done."""

    def export_and_say(args: Any) -> None:
        try:
            print(f"exported to {export(args)}")
        except ImportError as error:
            raise ValueError(
                f"{error.name or error} is missing: examples/export/README.md says how to install it"
            ) from None

    run(export_and_say, argument_class, arguments=arguments)


class ExportableModel(nn.Module):
    """A Twins model from pixels to a tuple of tensors, with a name for each.

    Args:
        model: a classifier or segmenter, of which the logits come out, or a backbone, of which the feature maps do.
        dtype: that it computes in; pixels and outputs are float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.model, self.dtype = model.to(dtype).eval().requires_grad_(False), dtype
        is_backbone = isinstance(model, TwinsBackbone)
        self.output_names = (
            [f"feature_map_{index}" for index in range(len(model.out_features))] if is_backbone else ["logits"]
        )

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values.to(self.dtype))
        tensors = outputs.feature_maps if hasattr(outputs, "feature_maps") else (outputs.logits,)
        return tuple(tensor.float() for tensor in tensors)


@dataclass
class Source:
    """What is taken out of PyTorch.

    Args:
        model: in float32.
        processor: its image processor.
        size: height and width in pixels of the images that the processor makes, or that were asked for.
    """

    model: ExportableModel
    processor: Any
    size: tuple[int, int]

    @property
    def config(self) -> TwinsConfig:
        return self.model.model.config

    def random_images(self, batch_size: int, height: int, width: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, self.config.num_channels, height, width, generator=generator)


def load_source(model_name_or_path: str, height: int | None = None, width: int | None = None) -> Source:
    """The model by the class it was saved as, and its processor.

    Raises:
        OSError: if there is no such model, or no image processor with it.
        ValueError: if it is none of the Twins models that can be exported.
    """
    try:
        config = AutoConfig.from_pretrained(model_name_or_path)
    except (OSError, ValueError) as error:
        # transformers does not always say which.
        raise OSError(f"cannot load the model {model_name_or_path}: {error}") from error
    if not isinstance(config, TwinsConfig):
        raise ValueError(f"{model_name_or_path} must be a Twins model, got one of type {config.model_type}.")
    # timm's and the authors' files do not say, and are classifiers.
    (name,) = config.architectures or [TwinsForImageClassification.__name__]
    if name not in MODEL_CLASSES:
        raise ValueError(f"{model_name_or_path} must be one of {', '.join(MODEL_CLASSES)}, got {name}.")
    try:
        model = MODEL_CLASSES[name].from_pretrained(model_name_or_path, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(model_name_or_path)
    except OSError as error:
        raise OSError(f"cannot load the model {model_name_or_path}: {error}") from error
    # Beside the export it says what the outputs are.
    model.config.architectures = [name]
    default = default_size(processor)
    size = (height or default[0], width or default[1])
    if min(size) < config.min_image_size:
        raise ValueError(f"Images must be at least {config.min_image_size} pixels high and wide, got {size}.")
    return Source(ExportableModel(model), processor, size)


def default_size(processor: Any) -> tuple[int, int]:
    """Height and width of the images that the processor makes, square where it keeps their shape."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    side = size.shortest_edge or 224
    return size.height or side, size.width or side


def describe(folder: Path, source: Source, runtime: str, file: str, size: tuple[int, int] | None, **more: Any) -> None:
    """Write what a runner needs to know: the labels, the preprocessing, and how the file is run.

    Args:
        folder: that is to be described.
        source: of the export.
        runtime: that runs the file: onnx, openvino, torch or executorch.
        file: of the model, in the folder.
        size: the only height and width that it takes; None for any.
        more: what else there is to say, such as the dtype.
    """
    source.config.save_pretrained(folder)
    source.processor.save_pretrained(folder)
    description = {
        "runtime": runtime,
        "file": file,
        "outputs": source.model.output_names,
        "size": size,
        "min_size": source.config.min_image_size,
        "num_channels": source.config.num_channels,
        **more,
    }
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def verification_shapes(source: Source, max_batch: int = 3) -> list[tuple[int, int, int]]:
    """Batch size, height and width of what is compared: one and several images, sizes that fill windows and that do not."""
    height, width = source.size
    minimum = source.config.min_image_size
    return [
        (1, height, width),
        (max_batch, height + 1, width + 15),
        (2, 2 * height - 5, width),
        (1, minimum, 2 * width + 2),
        (2, max(minimum, height // 2 + 1), max(minimum, width // 2)),
    ]


def relative_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference over that of what was expected, in [0, infinity)."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@torch.inference_mode()
def verify(folder: Path, source: Source, shapes: list[tuple[int, int, int]], tolerance: float) -> float:
    """Run the export as a user would, on random images, and compare every output with PyTorch's.

    Returns:
        The largest relative L2 distance.

    Raises:
        ValueError: if one is larger than the tolerance.
    """
    print("comparing with PyTorch ...", flush=True)
    runtime = load_runtime(folder)
    largest = 0.0
    for shape in shapes:
        pixel_values = source.random_images(*shape)
        outputs = runtime.run(pixel_values.numpy())
        for name, expected in zip(source.model.output_names, source.model(pixel_values)):
            distance = relative_distance(outputs[name], expected.numpy())
            # Not "greater": NaN is greater than nothing.
            if not distance <= tolerance:
                raise ValueError(
                    f"The export's {name} of {shape[0]} images of {shape[1]} x {shape[2]} differs from PyTorch's by "
                    f"{distance:.2g} (relative L2), more than {tolerance:.0e}."
                )
            largest = max(largest, distance)
    print(f"largest relative L2 distance from PyTorch in float32: {largest:.1e}, allowed: {tolerance:.0e}")
    return largest


def dynamic_program(source: Source) -> ExportedProgram:
    """The model's graph for images of any number, height and width."""
    # More than one window in each direction of every stage, so that none of them is taken for granted.
    side = 2 * source.config.min_image_size * (source.config.window_size or 1)
    pixel_values = source.random_images(2, side, side + source.config.min_image_size)
    shapes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return torch.export.export(source.model, (), {"pixel_values": pixel_values}, dynamic_shapes=shapes, strict=False)


def fixed_program(source: Source, model: ExportableModel, batch: Any = None) -> ExportedProgram:
    """The graph for images of one size: a single one, or as many as the dimension `batch` allows."""
    pixel_values = source.random_images(1 if batch is None else 2, *source.size)
    shapes = None if batch is None else {"pixel_values": {0: batch}}
    return torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes=shapes, strict=False)


def save_onnx(source: Source, file: Path, opset_version: int) -> None:
    """Write the model for images of any number, height and width, in float32."""
    # PyTorch's exporter needs it, and does not say so in a sentence.
    import onnxscript  # noqa: F401

    print("translating to ONNX, which can take minutes ...", flush=True)
    torch.onnx.export(
        dynamic_program(source),
        f=str(file),
        input_names=["pixel_values"],
        output_names=source.model.output_names,
        opset_version=opset_version,
        dynamo=True,
        verbose=False,
        external_data=False,
    )
