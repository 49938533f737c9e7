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
"""The model that is exported, and its graph for one size of images or for all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from hf_twins import TwinsBackbone, TwinsConfig, TwinsModel, load_model


MODEL_CLASSES = ("TwinsForImageClassification", "TwinsForSemanticSegmentation", "TwinsBackbone")


class ExportableModel(nn.Module):
    """A Twins model that takes pixels and returns a tuple of tensors, each of which has a name.

    Args:
        model: a classifier or segmenter, which returns its logits, a backbone, which returns its feature maps, or a
            `TwinsModel`, which returns its last hidden state and its pooled output.
        dtype: the dtype that it computes in; pixels and outputs are float32.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.model, self.dtype = model.to(dtype).eval().requires_grad_(False), dtype
        self.output_names = output_names(model)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, in the order of `output_names`.

        Args:
            pixel_values: float32 `(batch_size, num_channels, height, width)`.
        """
        outputs = self.model(pixel_values.to(self.dtype))
        is_backbone = hasattr(outputs, "feature_maps")
        tensors = outputs.feature_maps if is_backbone else [outputs[name] for name in self.output_names]
        return tuple(tensor.float() for tensor in tensors)


def output_names(model: Any) -> list[str]:
    """What a model's outputs are called in an export."""
    if isinstance(model, TwinsBackbone):
        return [f"feature_map_{index}" for index in range(len(model.out_features))]
    if isinstance(model, TwinsModel):
        return ["last_hidden_state", *(["pooler_output"] if model.layernorm is not None else [])]
    return ["logits"]


@dataclass
class Source:
    """What is exported.

    Args:
        model: the model, in float32.
        processor: its image processor.
        size: height and width of the images that the model is exported for, where a format needs one size.
    """

    model: ExportableModel
    processor: Any
    size: tuple[int, int]

    @property
    def config(self) -> TwinsConfig:
        return self.model.model.config

    def random_images(self, batch_size: int, height: int, width: int) -> torch.Tensor:
        """Noise `(batch_size, num_channels, height, width)`, always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, self.config.num_channels, height, width, generator=generator)


def load_source(model_name_or_path: str, height: int | None = None, width: int | None = None) -> Source:
    """Load a model as the class it was saved as, and its image processor.

    Args:
        model_name_or_path: what `load_model` takes: folder or Hub id of a Twins model, timm's or an adapter too, or the
            authors' file.
        height: height of the images, in pixels; the processor's if not given.
        width: width of the images, in pixels; the processor's if not given.

    Raises:
        OSError: if there is no such model or no image processor with it, or they cannot be reached.
        ValueError: if it is not a model that can be exported, or lacks weights, or the images are too small for it.
    """
    model, processor = load_model(model_name_or_path)
    name = type(model).__name__
    if name not in MODEL_CLASSES:
        raise ValueError(
            f"{model_name_or_path} holds a {name}; only {', '.join(MODEL_CLASSES)} can be exported: pass another."
        )
    # The export's config.json says by it what the outputs are.
    model.config.architectures = [name]
    default = default_size(processor)
    size = (default[0] if height is None else height, default[1] if width is None else width)
    if min(size) < model.config.min_image_size:
        raise ValueError(f"Images must be at least {model.config.min_image_size} pixels high and wide, got {size}.")
    return Source(ExportableModel(model), processor, size)


def default_size(processor: Any) -> tuple[int, int]:
    """Height and width of the images that the processor makes, square where it keeps their aspect ratio."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    side = size.shortest_edge or 224
    return size.height or side, size.width or side


def dynamic_program(source: Source) -> ExportedProgram:
    """The model's graph for images of any number, height and width."""
    # More than one window in each direction of every stage, so that none of them is taken for granted.
    side = 2 * source.config.min_image_size * (source.config.window_size or 1)
    pixel_values = source.random_images(2, side, side + source.config.min_image_size)
    shapes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return torch.export.export(source.model, (), {"pixel_values": pixel_values}, dynamic_shapes=shapes, strict=False)


def fixed_program(source: Source, model: ExportableModel, batch: Any = None) -> ExportedProgram:
    """The graph of `model` for images of the source's size: a single one, or as many as the dimension `batch` allows."""
    pixel_values = source.random_images(1 if batch is None else 2, *source.size)
    shapes = None if batch is None else {"pixel_values": {0: batch}}
    return torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes=shapes, strict=False)
