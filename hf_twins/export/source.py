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
"""The model to export, and its graph for images of one size or any size."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from hf_twins import TwinsBackbone, TwinsConfig, TwinsModel, load_model


MODEL_CLASSES = ("TwinsForImageClassification", "TwinsForSemanticSegmentation", "TwinsBackbone")


class ExportableModel(nn.Module):
    """A Twins model that takes pixels and returns a tuple of tensors, which `output_names` names.

    Args:
        model: a classifier or segmentation model, whose output is the logits, a backbone, whose outputs are the
            feature maps, or a `TwinsModel`, whose outputs are the last hidden state and the pooled output.
        dtype: the dtype of the computations; pixels and outputs are float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.model, self.dtype = model.to(dtype).eval().requires_grad_(False), dtype
        self.output_names = output_names(model)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs, in the order of `output_names`.

        Args:
            pixel_values: float32 `(batch_size, num_channels, height, width)`.
        """
        outputs = self.model(pixel_values.to(self.dtype))
        is_backbone = hasattr(outputs, "feature_maps")
        tensors = outputs.feature_maps if is_backbone else [outputs[name] for name in self.output_names]
        return tuple(tensor.float() for tensor in tensors)


def output_names(model: Any) -> list[str]:
    """The names of a model's outputs in an export."""
    if isinstance(model, TwinsBackbone):
        return [f"feature_map_{index}" for index in range(len(model.out_features))]
    if isinstance(model, TwinsModel):
        return ["last_hidden_state", *(["pooler_output"] if model.layernorm is not None else [])]
    return ["logits"]


@dataclass
class Source:
    """A model to export.

    Args:
        model: the model, in float32.
        processor: image processor of the model.
        size: height and width of images, for formats that support only one size.
    """

    model: ExportableModel
    processor: Any
    size: tuple[int, int]

    @property
    def config(self) -> TwinsConfig:
        return self.model.model.config

    def random_images(self, batch_size: int, height: int, width: int) -> torch.Tensor:
        """Random noise `(batch_size, num_channels, height, width)`, the same in each call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, self.config.num_channels, height, width, generator=generator)


def load_source(model_name_or_path: str, height: int | None = None, width: int | None = None) -> Source:
    """Load a model as the class it was saved as, and its image processor.

    Args:
        model_name_or_path: model, as for `load_model`: folder or Hub id of a Twins model, a timm model or an adapter,
            or an authors' file.
        height: height of the images in pixels; the image processor's by default.
        width: width of the images in pixels; the image processor's by default.

    Raises:
        OSError: if the model or its image processor is missing or cannot be reached.
        ValueError: if the model cannot be exported or lacks weights, or the images are too small for it.
    """
    model, processor = load_model(model_name_or_path)
    name = type(model).__name__
    if name not in MODEL_CLASSES:
        raise ValueError(
            f"{model_name_or_path} holds a {name}; only {', '.join(MODEL_CLASSES)} can be exported: pass another."
        )
    # The class in the export's config.json tells what the outputs are.
    model.config.architectures = [name]
    default = default_size(processor)
    size = (default[0] if height is None else height, default[1] if width is None else width)
    if min(size) < model.config.min_image_size:
        raise ValueError(f"Images must be at least {model.config.min_image_size} pixels high and wide, got {size}.")
    return Source(ExportableModel(model), processor, size)


def default_size(processor: Any) -> tuple[int, int]:
    """The height and width that the image processor resizes to; a square if it keeps the aspect ratio of images."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    side = size.shortest_edge or 224
    return size.height or side, size.width or side


def dynamic_program(source: Source) -> ExportedProgram:
    """Export the model's graph for batches of any size, height and width."""
    # Every stage must have several windows in each direction, or torch.export would specialize on a single window.
    side = 2 * source.config.min_image_size * (source.config.window_size or 1)
    pixel_values = source.random_images(2, side, side + source.config.min_image_size)
    shapes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return torch.export.export(source.model, (), {"pixel_values": pixel_values}, dynamic_shapes=shapes, strict=False)


def fixed_program(source: Source, model: ExportableModel, batch: Any = None) -> ExportedProgram:
    """Export the graph of `model` for images of the source's size: one image, or as many as the dimension `batch` allows."""
    pixel_values = source.random_images(1 if batch is None else 2, *source.size)
    shapes = None if batch is None else {"pixel_values": {0: batch}}
    return torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes=shapes, strict=False)
