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
"""Checkpoints in the format of each toolbox, with random weights.

The modules below have the structure of the toolboxes' own modules (the sources are named in
`conversion/checkpoint_formats.py`), so that their weights have the names and shapes of real checkpoints. They compute
nothing.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from testing_utils import randomize
from torch import nn

from hf_twins import TWINS_VARIANTS


@dataclass(frozen=True)
class Architecture:
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    is_svt: bool
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    num_channels: int = 3


# Heads have 32 channels (SVT) or 64 (PCPVT), as in the published variants.
TINY = {
    "svt": Architecture((32, 64, 64, 96), (2, 1, 3, 2), (2, 2, 1, 2), is_svt=True),
    "pcpvt": Architecture((64, 64, 128, 64), (1, 2, 2, 1), (2, 1, 1, 2), is_svt=False),
}
# The smallest possible Twins-SVT, for files that are stored with the tests.
RECORDED = Architecture((32, 32), (2, 1), (1, 1), is_svt=True, sr_ratios=(2, 1))
PUBLISHED = {
    name: Architecture(variant.hidden_sizes, variant.depths, variant.mlp_ratios, variant.window_size is not None)
    for name, variant in TWINS_VARIANTS.items()
}


class Structure(nn.Module):
    """A module that only contains named modules, in order."""

    def __init__(self, **modules: nn.Module | None):
        super().__init__()
        for name, module in modules.items():
            if module is not None:
                self.add_module(name, module)


def conv_module(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    """mmcv's ConvModule with batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
    return Structure(conv=conv, bn=nn.BatchNorm2d(out_channels))


class OfficialBackbone(nn.Module):
    """Structure of the authors' and timm's models; `norm_list` is in the authors' segmentation models of Twins-SVT."""

    def __init__(self, architecture: Architecture, has_norm_list: bool = False, num_classes: int | None = 1000):
        super().__init__()
        sizes = architecture.hidden_sizes
        self.patch_embeds, self.blocks, self.pos_block = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, size in enumerate(sizes):
            in_channels = sizes[stage - 1] if stage else architecture.num_channels
            kernel_size = 2 if stage else 4
            self.patch_embeds.append(
                Structure(proj=nn.Conv2d(in_channels, size, kernel_size), norm=nn.LayerNorm(size))
            )
            self.blocks.append(
                nn.ModuleList(self.block(architecture, stage, layer) for layer in range(architecture.depths[stage]))
            )
            self.pos_block.append(Structure(proj=nn.Sequential(nn.Conv2d(size, size, 3, groups=size))))
        self.norm = nn.LayerNorm(sizes[-1])
        if has_norm_list:
            self.norm_list = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        if num_classes is not None:
            self.head = nn.Linear(sizes[-1], num_classes)

    @staticmethod
    def block(architecture: Architecture, stage: int, layer: int) -> nn.Module:
        size, sr_ratio = architecture.hidden_sizes[stage], architecture.sr_ratios[stage]
        if architecture.is_svt and layer % 2 == 0:
            attn = Structure(qkv=nn.Linear(size, 3 * size), proj=nn.Linear(size, size))
        else:
            attn = Structure(q=nn.Linear(size, size), kv=nn.Linear(size, 2 * size), proj=nn.Linear(size, size))
            if sr_ratio > 1:
                attn.sr, attn.norm = nn.Conv2d(size, size, sr_ratio), nn.LayerNorm(size)
        hidden = size * architecture.mlp_ratios[stage]
        mlp = Structure(fc1=nn.Linear(size, hidden), fc2=nn.Linear(hidden, size))
        return Structure(norm1=nn.LayerNorm(size), attn=attn, norm2=nn.LayerNorm(size), mlp=mlp)


class OpenMMLabBackbone(nn.Module):
    """Structure of mmpretrain's ("stages") and mmsegmentation's ("layers") models, with modules of mmcv."""

    def __init__(self, architecture: Architecture, blocks: str, norms: str | None):
        super().__init__()
        sizes = architecture.hidden_sizes
        self.patch_embeds, self.position_encodings = nn.ModuleList(), nn.ModuleList()
        stages = nn.ModuleList()
        for stage, size in enumerate(sizes):
            in_channels = sizes[stage - 1] if stage else architecture.num_channels
            projection = nn.Conv2d(in_channels, size, 2 if stage else 4)
            self.patch_embeds.append(Structure(projection=projection, norm=nn.LayerNorm(size)))
            self.position_encodings.append(Structure(proj=nn.Conv2d(size, size, 3, groups=size)))
            stages.append(
                nn.ModuleList(
                    self.block(architecture, stage, layer, is_mmseg=blocks == "layers")
                    for layer in range(architecture.depths[stage])
                )
            )
        self.add_module(blocks, stages)
        if norms == "norm_list":
            self.norm_list = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        elif norms is not None:
            self.add_module(norms, nn.LayerNorm(sizes[-1]))

    @staticmethod
    def block(architecture: Architecture, stage: int, layer: int, is_mmseg: bool) -> nn.Module:
        block = OfficialBackbone.block(architecture, stage, layer)
        size = architecture.hidden_sizes[stage]
        hidden = size * architecture.mlp_ratios[stage]
        if is_mmseg and not (architecture.is_svt and layer % 2 == 0):
            attn = Structure(attn=nn.MultiheadAttention(size, num_heads=1))
            if architecture.sr_ratios[stage] > 1:
                attn.sr, attn.norm = block.attn.sr, block.attn.norm
            block.attn = attn
        del block.mlp
        activated = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Dropout())
        block.ffn = Structure(layers=nn.Sequential(activated, nn.Linear(hidden, size), nn.Dropout()))
        return block


class UPerHead(nn.Module):
    def __init__(self, sizes: tuple[int, ...], channels: int, num_classes: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_module(sizes[-1], channels, 1)) for scale in (1, 2, 3, 6)
        )
        self.bottleneck = conv_module(sizes[-1] + 4 * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(conv_module(size, channels, 1) for size in sizes[:-1])
        self.fpn_convs = nn.ModuleList(conv_module(channels, channels, 3) for _ in sizes[:-1])
        self.fpn_bottleneck = conv_module(len(sizes) * channels, channels, 3)


class FCNHead(nn.Module):
    def __init__(self, in_channels: int, channels: int, num_classes: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.convs = nn.Sequential(conv_module(in_channels, channels, 3))


class FPN(nn.Module):
    def __init__(self, sizes: tuple[int, ...], channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Structure(conv=nn.Conv2d(size, channels, 1)) for size in sizes)
        self.fpn_convs = nn.ModuleList(Structure(conv=nn.Conv2d(channels, channels, 3)) for _ in sizes)


class FPNHead(nn.Module):
    def __init__(self, num_levels: int, in_channels: int, channels: int, num_classes: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.scale_heads = nn.ModuleList()
        for level in range(num_levels):
            layers: list[nn.Module] = []
            for step in range(max(level, 1)):
                layers.append(conv_module(channels if step else in_channels, channels, 3))
                if level:
                    layers.append(nn.Upsample(scale_factor=2))
            self.scale_heads.append(nn.Sequential(*layers))


def segmenter(backbone: nn.Module, head: str, architecture: Architecture, num_classes: int, widths: dict) -> nn.Module:
    sizes = architecture.hidden_sizes
    if head == "upernet":
        return Structure(
            backbone=backbone,
            decode_head=UPerHead(sizes, widths["decode"], num_classes),
            auxiliary_head=FCNHead(sizes[2], widths["auxiliary"], num_classes),
        )
    return Structure(
        backbone=backbone,
        neck=FPN(sizes, widths["neck"]),
        decode_head=FPNHead(len(sizes), widths["neck"], widths["fpn_decode"], num_classes),
    )


TINY_WIDTHS = {"decode": 24, "auxiliary": 16, "neck": 20, "fpn_decode": 12}
PUBLISHED_WIDTHS = {"decode": 512, "auxiliary": 256, "neck": 256, "fpn_decode": 128}
FORMATS = (
    "official",
    "timm",
    "mmpretrain",
    "mmseg-backbone",
    "mmseg-upernet",
    "mmseg-semantic-fpn",
    "official-upernet",
    "official-semantic-fpn",
)


def source_weights(source_format: str, architecture: Architecture, num_classes: int | None = None) -> dict[str, Any]:
    """Random weights of a checkpoint in this format, with its names."""
    torch.manual_seed(0)
    is_published = architecture in PUBLISHED.values()
    widths = PUBLISHED_WIDTHS if is_published else TINY_WIDTHS
    if num_classes is None:
        num_classes = (150 if "-" in source_format else 1000) if is_published else 5
    if source_format == "timm":
        model = timm_model(architecture, num_classes)
    else:
        # Skip PyTorch's own random initialization, which takes as long as this one.
        with torch.device("meta"):
            model = source_model(source_format, architecture, num_classes, widths)
        model.to_empty(device="cpu")
    randomize(model)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=module.embed_dim**-0.5)
            nn.init.normal_(module.in_proj_bias, std=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(7)
    return dict(model.state_dict())


def source_model(
    source_format: str, architecture: Architecture, num_classes: int, widths: dict[str, int]
) -> nn.Module:
    """The modules of a toolbox other than timm, with their names."""
    toolbox, _, head = source_format.partition("-")
    if source_format == "official":
        return OfficialBackbone(architecture, num_classes=num_classes)
    if source_format == "mmpretrain":
        return Structure(
            backbone=OpenMMLabBackbone(architecture, "stages", norms="norm_after_stage3"),
            head=Structure(fc=nn.Linear(architecture.hidden_sizes[-1], num_classes)),
        )
    if source_format == "mmseg-backbone":
        return OpenMMLabBackbone(architecture, "layers", norms="norm")
    if toolbox == "mmseg":
        norms = "norm_list" if architecture.is_svt else None
        return segmenter(OpenMMLabBackbone(architecture, "layers", norms), head, architecture, num_classes, widths)
    # The authors' segmentation checkpoints have an unused norm and head from ImageNet training.
    backbone = OfficialBackbone(architecture, has_norm_list=architecture.is_svt)
    return segmenter(backbone, head, architecture, num_classes, widths)


def number_weights(model: nn.Module) -> nn.Module:
    """Give a model reproducible weights: they count from -3 to 3, each with another start."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            numbers = (torch.arange(parameter.numel()) + index) % 7 - 3
            parameter.copy_(numbers.reshape(parameter.shape) / 64)
    return model


def timm_model(architecture: Architecture, num_classes: int) -> nn.Module:
    """Create timm's own model with these arguments."""
    return timm.create_model(
        "twins_svt_small" if architecture.is_svt else "twins_pcpvt_small",
        num_classes=num_classes,
        in_chans=architecture.num_channels,
        embed_dims=architecture.hidden_sizes,
        depths=architecture.depths,
        mlp_ratios=architecture.mlp_ratios,
        num_heads=tuple(size // (32 if architecture.is_svt else 64) for size in architecture.hidden_sizes),
        wss=(7,) * 4 if architecture.is_svt else None,
    )


def source_checkpoint(source_format: str, weights: dict[str, Any], **meta: Any) -> dict[str, Any]:
    """Wrap weights as the toolbox saves them."""
    if source_format in ("official", "timm", "mmseg-backbone"):
        return weights
    return {"meta": {"epoch": 3, "iter": 100, "mmcv_version": "1.4.0", **meta}, "state_dict": weights, "optimizer": {}}
