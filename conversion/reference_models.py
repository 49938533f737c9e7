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
"""Runs a checkpoint's own architecture on the checkpoint's own weights under its own names.

Conversions are verified against them, so this module shares no code with hf_twins. It uses timm's models for the
authors' and timm's classifiers. For the other formats, it implements the architectures as functions of the weights,
following the sources named in `checkpoint_formats.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # what everybody calls it
from timm.models.twins import Twins

from hf_twins import TwinsConfig


Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Names:
    """A format's names for the parts of a backbone."""

    blocks: str
    patch_embedding: str
    position_encoding: str
    mlp: tuple[str, str]
    has_stacked_attention: bool = False


OFFICIAL_NAMES = Names("blocks", "proj", "pos_block.{}.proj.0", ("mlp.fc1", "mlp.fc2"))
MMPRETRAIN_NAMES = Names("stages", "projection", "position_encodings.{}.proj", ("ffn.layers.0.0", "ffn.layers.1"))
MMSEG_NAMES = Names(
    "layers",
    "projection",
    "position_encodings.{}.proj",
    ("ffn.layers.0.0", "ffn.layers.1"),
    has_stacked_attention=True,
)


def reference_outputs(
    toolbox: str, weights: Weights, config: TwinsConfig, image: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Run the source's architecture on images.

    Args:
        toolbox: "official", "timm", "mmpretrain" or "mmseg".
        weights: weights of the checkpoint, with their names there.
        config: configuration of the converted model or backbone: numbers of heads and layers, paddings, epsilons.
        image: `(batch_size, num_channels, height, width)`.

    Returns:
        "stage1", "stage2", ...: the map of each stage, `(batch_size, channels, height / stride, width / stride)`.
        "pooled", `(batch_size, channels)`, if there is a final layer norm and no head.
        "logits", `(batch_size, num_labels)`, for a classifier.
        "logits", `(batch_size, num_labels, height / 4, width / 4)`, and "auxiliary_logits",
        `(batch_size, num_labels, height / 16, width / 16)`, for segmentation heads.
    """
    if "norm.weight" in weights and toolbox in ("official", "timm"):
        return timm_outputs(weights, config, image)
    names = {"official": OFFICIAL_NAMES, "mmpretrain": MMPRETRAIN_NAMES, "mmseg": MMSEG_NAMES}[toolbox]
    everything = Module(weights)
    encoder = everything.part("backbone") if "backbone.patch_embeds.0.norm.weight" in weights else everything
    maps = backbone(encoder, names, config, image)
    outputs = {f"stage{index}": each for index, each in enumerate(maps, start=1)}
    for norm in ("norm", "norm_after_stage3"):
        if f"{norm}.weight" in encoder and not any(name.startswith("decode_head.") for name in weights):
            pooled = encoder.layer_norm(norm, maps[-1].flatten(2).mT, config.layer_norm_eps).mean(1)
            has_head = "head.fc.weight" in weights
            outputs |= {"logits": everything.linear("head.fc", pooled)} if has_head else {"pooled": pooled}
    if "decode_head.psp_modules.0.1.conv.weight" in weights:
        outputs["logits"] = uper_head(everything.part("decode_head"), maps)
    if "auxiliary_head.conv_seg.weight" in weights:
        outputs["auxiliary_logits"] = fcn_head(everything.part("auxiliary_head"), maps[2])
    if "neck.lateral_convs.0.conv.weight" in weights:
        outputs["logits"] = fpn_head(everything.part("decode_head"), fpn(everything.part("neck"), maps))
    return outputs


def timm_outputs(weights: Weights, config: TwinsConfig, image: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Twins(
            # The model accepts other sizes too, but is only built for a multiple of the patches of every stage.
            img_size=config.patch_size * 2 ** (len(config.depths) - 1),
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            num_classes=len(weights["head.weight"]) if "head.weight" in weights else 0,
            embed_dims=tuple(config.hidden_sizes),
            num_heads=tuple(config.num_attention_heads),
            mlp_ratios=tuple(config.mlp_ratios),
            depths=tuple(config.depths),
            sr_ratios=tuple(config.sr_ratios),
            wss=None if config.window_size is None else (config.window_size,) * len(config.depths),
        ).eval()
    model.load_state_dict(weights, strict=True, assign=True)
    tokens, maps = model.forward_intermediates(image)
    outputs = {f"stage{index}": each for index, each in enumerate(maps, start=1)}
    outputs["logits" if "head.weight" in weights else "pooled"] = model.forward_head(tokens)
    return outputs


class Module:
    """Weights with a common prefix, by the rest of their names, and the layers that use them."""

    def __init__(self, weights: Weights, prefix: str = ""):
        self.weights = weights
        self.prefix = prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.weights[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.weights

    def part(self, name: str) -> "Module":
        return Module(self.weights, f"{self.prefix}{name}.")

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def layer_norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        weight = self[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self[f"{name}.bias"], eps)

    def patches(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A convolution whose kernel equals its stride."""
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self[f"{name}.bias"], stride=weight.shape[-1])

    def conv_module(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """mmcv's ConvModule: convolution, batch norm, ReLU."""
        weight = self[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean, variance = self[f"{name}.bn.running_mean"], self[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, variance, self[f"{name}.bn.weight"], self[f"{name}.bn.bias"]))


def backbone(weights: Module, names: Names, config: TwinsConfig, image: torch.Tensor) -> list[torch.Tensor]:
    """The map of each stage, `(batch_size, channels, height, width)`."""
    maps = []
    for stage, depth in enumerate(config.depths):
        if config.patch_padding:
            patch_size = weights[f"patch_embeds.{stage}.{names.patch_embedding}.weight"].shape[-1]
            height, width = image.shape[2:]
            image = F.pad(image, (0, -width % patch_size, 0, -height % patch_size))
        image = weights.patches(f"patch_embeds.{stage}.{names.patch_embedding}", image)
        grid = (image.shape[2], image.shape[3])
        x = weights.layer_norm(f"patch_embeds.{stage}.norm", image.flatten(2).mT, eps=1e-5)
        for layer in range(depth):
            block = weights.part(f"{names.blocks}.{stage}.{layer}")
            heads = config.num_attention_heads[stage]
            normed = block.layer_norm("norm1", x, config.layer_norm_eps)
            if "attn.qkv.weight" in block:
                x = x + window_attention(block.part("attn"), normed, grid, heads, config)
            elif names.has_stacked_attention:
                x = x + stacked_global_attention(block.part("attn"), normed, grid, heads)
            else:
                x = x + global_attention(block.part("attn"), normed, grid, heads)
            hidden = F.gelu(block.linear(names.mlp[0], block.layer_norm("norm2", x, config.layer_norm_eps)))
            x = x + block.linear(names.mlp[1], hidden)
            if layer == 0:
                peg = names.position_encoding.format(stage)
                image = x.mT.unflatten(2, grid)
                image = image + F.conv2d(
                    image, weights[f"{peg}.weight"], weights[f"{peg}.bias"], padding=1, groups=image.shape[1]
                )
                x = image.flatten(2).mT
        if f"norm_list.{stage}.weight" in weights:
            x = weights.layer_norm(f"norm_list.{stage}", x, config.layer_norm_eps)
        image = x.mT.unflatten(2, grid)
        maps.append(image)
    return maps


def window_attention(
    attn: Module, x: torch.Tensor, grid: tuple[int, int], heads: int, config: TwinsConfig
) -> torch.Tensor:
    """LSA with the masks of the authors' segmentation code, or without masks as in timm."""
    batch_size, _, channels = x.shape
    height, width = grid
    window_size = config.window_size or 7
    bottom, right = -height % window_size, -width % window_size
    x = F.pad(x.unflatten(1, grid), (0, 0, 0, right, 0, bottom))
    rows, columns = (height + bottom) // window_size, (width + right) // window_size

    def windows(x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(len(x), rows, window_size, columns, window_size, -1).transpose(2, 3)
        return x.reshape(len(x), rows * columns, window_size**2, -1)

    q, k, v = (
        part.unflatten(-1, (heads, channels // heads)).transpose(2, 3)
        for part in windows(attn.linear("qkv", x)).chunk(3, dim=-1)
    )
    scores = q @ k.mT * (channels // heads) ** -0.5
    if config.window_padding == "authors_segmentation":
        mask = x.new_zeros(1, height + bottom, width + right, 1)
        # If a padding is 0, these slices cover everything. The published models were evaluated this way.
        mask[:, -bottom:] = 1
        mask[:, :, -right:] = 1
        mask = windows(mask)
        scores = scores + ((mask != mask.mT) * -1000.0).unsqueeze(2)
    x = (scores.softmax(-1) @ v).transpose(2, 3)
    x = x.reshape(batch_size, rows, columns, window_size, window_size, channels).transpose(2, 3)
    x = x.reshape(batch_size, height + bottom, width + right, channels)[:, :height, :width]
    return attn.linear("proj", x.flatten(1, 2))


def global_attention(attn: Module, x: torch.Tensor, grid: tuple[int, int], heads: int) -> torch.Tensor:
    """GSA of the authors and mmpretrain."""
    channels = x.shape[-1]
    summary = sub_sampled(attn, x, grid)
    q, k, v = (
        part.unflatten(-1, (heads, channels // heads)).transpose(1, 2)
        for part in (attn.linear("q", x), *attn.linear("kv", summary).chunk(2, dim=-1))
    )
    attention = (q @ k.mT * (channels // heads) ** -0.5).softmax(-1)
    return attn.linear("proj", (attention @ v).transpose(1, 2).flatten(2))


def stacked_global_attention(attn: Module, x: torch.Tensor, grid: tuple[int, int], heads: int) -> torch.Tensor:
    """GSA of mmsegmentation: PyTorch's MultiheadAttention."""
    summary = sub_sampled(attn, x, grid).transpose(0, 1)
    output, _ = F.multi_head_attention_forward(
        query=x.transpose(0, 1),
        key=summary,
        value=summary,
        embed_dim_to_check=x.shape[-1],
        num_heads=heads,
        in_proj_weight=attn["attn.in_proj_weight"],
        in_proj_bias=attn["attn.in_proj_bias"],
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attn["attn.out_proj.weight"],
        out_proj_bias=attn["attn.out_proj.bias"],
        training=False,
        need_weights=False,
    )
    return output.transpose(0, 1)


def sub_sampled(attn: Module, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    if "sr.weight" not in attn:
        return x
    return attn.layer_norm("norm", attn.patches("sr", x.mT.unflatten(2, grid)).flatten(2).mT, eps=1e-5)


def resize(x: torch.Tensor, size: Sequence[int], mode: str = "bilinear") -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode=mode)


def uper_head(head: Module, maps: list[torch.Tensor]) -> torch.Tensor:
    """mmsegmentation's UPerHead."""
    pooled = [maps[-1]]
    for index, scale in enumerate((1, 2, 3, 6)):
        pool = head.conv_module(f"psp_modules.{index}.1", F.adaptive_avg_pool2d(maps[-1], scale))
        pooled.append(resize(pool, maps[-1].shape[2:]))
    levels = [head.conv_module(f"lateral_convs.{index}", each) for index, each in enumerate(maps[:-1])]
    levels.append(head.conv_module("bottleneck", torch.cat(pooled, dim=1)))
    for index in range(len(levels) - 1, 0, -1):
        levels[index - 1] = levels[index - 1] + resize(levels[index], levels[index - 1].shape[2:])
    outputs = [head.conv_module(f"fpn_convs.{index}", level) for index, level in enumerate(levels[:-1])]
    outputs = [resize(output, levels[0].shape[2:]) for output in (*outputs, levels[-1])]
    return head.patches("conv_seg", head.conv_module("fpn_bottleneck", torch.cat(outputs, dim=1)))


def fcn_head(head: Module, x: torch.Tensor) -> torch.Tensor:
    """mmsegmentation's FCNHead, without the concatenation."""
    index = 0
    while f"convs.{index}.conv.weight" in head:
        x = head.conv_module(f"convs.{index}", x)
        index += 1
    return head.patches("conv_seg", x)


def fpn(neck: Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """mmsegmentation's FPN."""
    levels = [neck.patches(f"lateral_convs.{index}.conv", each) for index, each in enumerate(maps)]
    for index in range(len(levels) - 1, 0, -1):
        levels[index - 1] = levels[index - 1] + resize(levels[index], levels[index - 1].shape[2:], mode="nearest")
    return [
        F.conv2d(level, neck[f"fpn_convs.{index}.conv.weight"], neck[f"fpn_convs.{index}.conv.bias"], padding=1)
        for index, level in enumerate(levels)
    ]


def fpn_head(head: Module, levels: list[torch.Tensor]) -> torch.Tensor:
    """mmsegmentation's FPNHead."""
    output = head.conv_module("scale_heads.0.0", levels[0])
    for index, x in enumerate(levels[1:], start=1):
        for step in range(index):
            x = head.conv_module(f"scale_heads.{index}.{2 * step}", x)
            x = resize(x, (2 * x.shape[2], 2 * x.shape[3]))
        output = output + resize(x, output.shape[2:])
    return head.patches("conv_seg", output)
