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
"""Images of a model's input, and of where the model looked."""

from typing import Any

import numpy as np
import PIL.Image
import torch

from hf_twins import attention_maps, attention_rollout, grad_cam
from hf_twins._utils.drawing import denormalize

from .models import LoadedModel


METHODS = ("Grad-CAM", "Attention", "Attention rollout")
LAST_LAYER = "last"
# Small inputs are enlarged to at least this side by an integer factor, so that their pixels are visible.
MIN_DRAWN_SIDE = 320
# Five points of matplotlib's inferno, which goes from dark to bright, and also works for color-blind people and in
# print.
COLORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


class ExplanationError(ValueError):
    """An explanation cannot be shown; the message is for the visitor."""


def draw_input(pixel_values: torch.Tensor, processor: Any) -> PIL.Image.Image:
    """Convert a model's input, `(num_channels, height, width)`, to an image."""
    image = denormalize(pixel_values, processor)
    factor = -(-MIN_DRAWN_SIDE // min(image.size))
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)


def explain(
    model: LoadedModel, pixel_values: torch.Tensor, method: str, stage: str, layer: str
) -> tuple[torch.Tensor, int]:
    """Compute where a model looks.

    Args:
        model: the model.
        pixel_values: the model's input, `(num_channels, height, width)`.
        method: one of `METHODS`.
        stage: `"stage1"`, ... `"stage4"`.
        layer: layer for Attention, from `"1"`, or `"last"`. The other methods show an entire stage.

    Returns:
        A map, `(height, width)`, with a maximum of 1, and the side in pixels of each of its values.

    Raises:
        ExplanationError: if the stage, layer or method does not exist.
    """
    index = stage_index(model, stage)
    inputs = pixel_values.unsqueeze(0).to(model.device)
    # Only one request runs at a time, because recording attention weights affects how the model computes attention.
    with model.running:
        if method == "Grad-CAM":
            stride = model.config.patch_size * 2**index
            return grad_cam(model.model, inputs, stage=stage)[0].cpu(), stride
        of_stage = [each for each in attention_maps(model.model, inputs) if each.stage == stage]
    if method == "Attention rollout":
        relevance, stride = attention_rollout(of_stage)[0], of_stage[0].stride
    elif method == "Attention":
        shown = of_stage[layer_index(layer, len(of_stage), stage)]
        relevance, stride = shown.received()[0].mean(0), shown.stride * shown.sr_ratio
    else:
        raise ExplanationError(f"There is no such explanation: choose one of {', '.join(METHODS)}.")
    return (relevance / relevance.max().clamp(min=1e-12)).cpu(), stride


def stage_choices(model: LoadedModel) -> list[str]:
    return model.config.stage_names[1:]


def default_stage(model: LoadedModel) -> str:
    """The stage to show if none is chosen: the last but one, or the only one."""
    return stage_choices(model)[-2:][0]


def stage_index(model: LoadedModel, stage: str) -> int:
    stages = stage_choices(model)
    if stage not in stages:
        raise ExplanationError(f"{model.name} has {', '.join(stages)}: choose one of these.")
    return stages.index(stage)


def layer_index(layer: str, depth: int, stage: str) -> int:
    if layer == LAST_LAYER:
        return depth - 1
    layers = [str(number) for number in range(1, depth + 1)]
    if layer in layers:
        return layers.index(layer)
    raise ExplanationError(
        f"{stage} of this model has the layers 1 to {depth}: choose one of these, or {LAST_LAYER!r}."
    )


def layer_choices(model: LoadedModel, stage: str) -> list[tuple[str, str]]:
    """The layers of a stage with their type of attention, as (text, value)."""
    depth = model.config.depths[stage_index(model, stage)]
    kinds = [
        "GSA" if model.config.window_size is None or index % 2 else "LSA, within windows" for index in range(depth)
    ]
    return [(f"last ({kinds[-1]})", LAST_LAYER)] + [
        (f"{index + 1} ({kind})", str(index + 1)) for index, kind in enumerate(kinds)
    ]


def overlay(image: PIL.Image.Image, heat: np.ndarray, opacity: float) -> PIL.Image.Image:
    """Draw a map over an image.

    Args:
        image: the model's input, from [`draw_input`].
        heat: map of the same height and width, from 0 to 1.
        opacity: from 0 (only the image) to 1 (only the map).
    """
    colors = np.stack([np.interp(heat, np.linspace(0, 1, len(COLORS)), channel) for channel in COLORS.T], -1)
    return PIL.Image.blend(image, PIL.Image.fromarray(colors.astype(np.uint8)), opacity)


def spread_map(heat: torch.Tensor, stride: int, input_size: tuple[int, int], image: PIL.Image.Image) -> np.ndarray:
    """Resize a map to the image's size by interpolation, with each value at the center of the pixels that it covers.

    Args:
        heat: `(height, width)`, in [0, 1].
        stride: side in pixels of the area of the model's input that a value covers.
        input_size: height and width of the model's input in pixels.
        image: enlarged image of the input.

    Returns:
        Map with the height and width of the image, float32. Areas without a value (squares that GSA skips) are 0;
        parts of windows beyond the image are cut off.
    """
    factor = stride * image.height // input_size[0]
    rows, columns = heat.shape
    enlarged = PIL.Image.fromarray(heat.float().numpy()).resize(
        (columns * factor, rows * factor), PIL.Image.Resampling.BILINEAR
    )
    return np.asarray(enlarged.crop((0, 0, image.width, image.height)))
