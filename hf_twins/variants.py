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
"""The six published Twins variants: their architectures and published results.

The architectures are those of `TwinsConfig.from_variant`. The results are from the authors' README, tables 2 and 5 of
the paper (https://huggingface.co/papers/2104.13840), and timm's `results-imagenet.csv`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .configuration_twins import TWINS_ARCHITECTURES


@dataclass(frozen=True)
class TwinsVariant:
    """One published variant.

    Args:
        hidden_sizes: channels of each stage.
        num_attention_heads: heads of each stage.
        depths: blocks of each stage.
        mlp_ratios: MLP width of each stage, as a multiple of its channels.
        window_size: side of the locally-grouped attention's windows in tokens; `None` for PCPVT, which has none.
        num_parameters: parameters with the 1000-class head.
        flops: multiply-adds for one 224 x 224 image, in units of 1e9 (the paper).
        imagenet_top1: top-1 accuracy in percent, ImageNet-1k validation (the authors' README; crop 224 of 256).
        imagenet_top1_timm: the same, as measured by timm (crop 0.9).
        ade20k_upernet_miou: mIoU on ADE20K in percent, single scale (the authors' README).
        ade20k_upernet_miou_multi_scale: the same, multi-scale and flip (the authors' README).
    """

    hidden_sizes: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    window_size: int | None
    num_parameters: int
    flops: float
    imagenet_top1: float
    imagenet_top1_timm: float
    ade20k_upernet_miou: float
    ade20k_upernet_miou_multi_scale: float


TWINS_VARIANTS: dict[str, TwinsVariant] = {
    "twins-pcpvt-small": TwinsVariant(
        **TWINS_ARCHITECTURES["twins-pcpvt-small"],
        num_parameters=24_106_216,
        flops=3.8,
        imagenet_top1=81.2,
        imagenet_top1_timm=81.116,
        ade20k_upernet_miou=46.2,
        ade20k_upernet_miou_multi_scale=47.5,
    ),
    "twins-pcpvt-base": TwinsVariant(
        **TWINS_ARCHITECTURES["twins-pcpvt-base"],
        num_parameters=43_828_456,
        flops=6.7,
        imagenet_top1=82.7,
        imagenet_top1_timm=82.724,
        ade20k_upernet_miou=47.1,
        ade20k_upernet_miou_multi_scale=48.4,
    ),
    "twins-pcpvt-large": TwinsVariant(
        **TWINS_ARCHITECTURES["twins-pcpvt-large"],
        num_parameters=60_989_672,
        flops=9.8,
        imagenet_top1=83.1,
        imagenet_top1_timm=83.158,
        ade20k_upernet_miou=48.6,
        ade20k_upernet_miou_multi_scale=49.8,
    ),
    "twins-svt-small": TwinsVariant(
        **TWINS_ARCHITECTURES["twins-svt-small"],
        num_parameters=24_060_776,
        flops=2.9,
        imagenet_top1=81.7,
        imagenet_top1_timm=81.694,
        ade20k_upernet_miou=46.2,
        ade20k_upernet_miou_multi_scale=47.1,
    ),
    "twins-svt-base": TwinsVariant(
        **TWINS_ARCHITECTURES["twins-svt-base"],
        num_parameters=56_070_952,
        flops=8.6,
        imagenet_top1=83.2,
        imagenet_top1_timm=83.122,
        ade20k_upernet_miou=47.4,
        ade20k_upernet_miou_multi_scale=48.9,
    ),
    "twins-svt-large": TwinsVariant(
        **TWINS_ARCHITECTURES["twins-svt-large"],
        num_parameters=99_271_400,
        flops=15.1,
        imagenet_top1=83.7,
        imagenet_top1_timm=83.718,
        ade20k_upernet_miou=48.8,
        ade20k_upernet_miou_multi_scale=50.2,
    ),
}


# The sub-sampling ratios of each stage's global attention, the same in all published variants.
PUBLISHED_SR_RATIOS = [8, 4, 2, 1]


def published_variant(fields: Mapping[str, Any]) -> str | None:
    """The name of the published variant that a configuration's fields describe.

    Args:
        fields: fields by name, as in `TwinsConfig.to_dict`.

    Returns:
        The name, or None if no published variant has this architecture.

    Example:

    ```python
    >>> from hf_twins import TwinsConfig, published_variant

    >>> published_variant(TwinsConfig.from_variant("twins-svt-base", num_labels=10).to_dict())
    'twins-svt-base'
    ```"""
    if list(fields.get("sr_ratios", PUBLISHED_SR_RATIOS)) != PUBLISHED_SR_RATIOS:
        return None
    for name, architecture in TWINS_ARCHITECTURES.items():
        given = {field: fields.get(field) for field in architecture}
        if architecture == {
            field: tuple(value) if isinstance(value, list) else value for field, value in given.items()
        }:
            return name
    return None


__all__ = ["TWINS_VARIANTS", "TwinsVariant", "published_variant"]
