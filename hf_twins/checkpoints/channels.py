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
"""Adapts the first convolution of a trained model, and its image processor, to another number of channels."""

from typing import Any

import torch
from torch import nn


STEM_WEIGHT = "patch_embeddings.0.projection.weight"


def adapt_stem_weight(weight: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Adapt the weights of the first convolution to a number of channels: `(out_channels, num_channels, height, width)`.

    All channels get equal weights with the same sum as before, as in timm for one channel. So the output for a gray
    image is the same as that for an image with equal channels before.

    Args:
        weight: trained weights, `(out_channels, in_channels, height, width)`.
        num_channels: number of channels of the images.
    """
    total = weight.float().sum(1, keepdim=True) / num_channels
    return total.to(weight.dtype).repeat(1, num_channels, 1, 1)


def adapt_stem(model: Any, num_channels: int) -> None:
    """Adapt a trained Twins model, or one with a Twins backbone, to a number of channels, see `adapt_stem_weight`."""
    encoder = getattr(model, "backbone", model)
    projection = encoder.get_input_embeddings()
    if projection.in_channels != num_channels:
        weight = adapt_stem_weight(projection.weight.detach(), num_channels)
        projection.weight = nn.Parameter(weight, requires_grad=projection.weight.requires_grad)
        projection.in_channels = num_channels
        encoder.config.num_channels = num_channels
        getattr(model.config, "backbone_config", model.config).num_channels = num_channels


def adapt_channels(processor: Any, num_channels: int) -> Any:
    """Adapt an image processor to a number of channels, all normalized by the average of its means and deviations."""
    changes: dict[str, Any] = {}
    for name in ("image_mean", "image_std"):
        value = getattr(processor, name)
        # A single number applies to all channels, however many there are.
        values = [value] * num_channels if isinstance(value, int | float) else list(value)
        if len(values) != num_channels:
            changes[name] = num_channels * [float(sum(values) / len(values))]
    if changes or (processor.do_convert_rgb and num_channels != 3):
        changes["do_convert_rgb"] = num_channels == 3
    return type(processor).from_dict(processor.to_dict() | changes) if changes else processor
