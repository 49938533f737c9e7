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
"""Infers architectures from the names and shapes of weights."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..configuration_twins import TWINS_ARCHITECTURES
from .labels import known_label_fields
from .names import ORIGINAL_NAMES, NameTable


def infer_config(state_dict: Mapping[str, torch.Tensor], window_layers: set[tuple[int, int]]) -> dict[str, Any]:
    """Infer the architecture from the hf_twins names and the shapes of a model's weights.

    The window size and the number of heads cannot be inferred from weights. They are assumed to be those of all
    published variants: windows of 7 x 7 tokens, and heads with 32 channels in Twins-SVT and 64 in Twins-PCPVT.

    Args:
        state_dict: weights, including those of an encoder.
        window_layers: (stage, block) of each block with locally-grouped attention, see `NameTable.window_layers`.

    Returns:
        Fields of a `TwinsConfig`.

    Raises:
        ValueError: if the weights are not those of a Twins model.
    """
    first = "patch_embeddings.0.projection.weight"
    encoder = next((name.removesuffix(first) for name in state_dict if name.endswith(first)), None)
    if encoder is None:
        raise ValueError(f"The checkpoint lacks a weight that every Twins model has: {first}.")
    shapes = {name.removeprefix(encoder): weight.shape for name, weight in state_dict.items()}
    names = "\n".join(shapes)
    stages = range(len(set(re.findall(r"^patch_embeddings\.(\d+)\.", names, re.MULTILINE))))
    depths = [len(set(re.findall(rf"^stages\.{stage}\.layers\.(\d+)\.", names, re.MULTILINE))) for stage in stages]
    if window_layers not in (set(), {(stage, layer) for stage in stages for layer in range(0, depths[stage], 2)}):
        raise ValueError(
            "The checkpoint must have locally-grouped attention in every other block (Twins-SVT) or in none "
            f"(Twins-PCPVT), got it in {sorted(window_layers)} (stage, block)."
        )
    fields: dict[str, Any] = {
        "num_channels": weight_size(shapes, re.escape(first), 1),
        "patch_size": weight_size(shapes, re.escape(first), 2),
        "hidden_sizes": [
            weight_size(shapes, rf"patch_embeddings\.{stage}\.projection\.weight", 0) for stage in stages
        ],
        "depths": depths,
        "window_size": 7 if window_layers else None,
        "qkv_bias": any(name.endswith(".attention.q_proj.bias") for name in shapes),
        "use_stage_norm": "stages.0.layernorm.weight" in shapes,
    }
    # The fields of a published variant are used if possible, so that a missing weight is detected as missing.
    for architecture in TWINS_ARCHITECTURES.values():
        published = {name: tolist(value) for name, value in architecture.items()}
        if all(published[name] == fields[name] for name in ("hidden_sizes", "depths", "window_size")):
            return fields | published
    head_dim = 32 if window_layers else 64
    if any(hidden_size % head_dim != 0 for hidden_size in fields["hidden_sizes"]):
        raise ValueError(
            f"Cannot infer the number of heads: the stages have {fields['hidden_sizes']} channels, not all multiples "
            f"of the {head_dim} of each head in every published model."
        )
    fields["num_attention_heads"] = [hidden_size // head_dim for hidden_size in fields["hidden_sizes"]]
    fields["mlp_ratios"] = [
        whole(weight_size(shapes, rf"stages\.{stage}\.layers\.\d+\.mlp\.fc1\.weight", 0) / hidden_size)
        for stage, hidden_size in zip(stages, fields["hidden_sizes"])
    ]
    reduction = r"stages\.{}\.layers\.\d+\.attention\.sequence_reduction\.projection\.weight"
    fields["sr_ratios"] = [weight_size(shapes, reduction.format(stage), 2, default=1) for stage in stages]
    return fields


def weight_size(shapes: Mapping[str, torch.Size], pattern: str, dim: int, default: int | None = None) -> int:
    """The size of dimension `dim` of the first weight whose name matches."""
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name):
            if len(shape) <= dim:
                raise ValueError(f"{name} must have more than {dim} dimensions, got the shape {tuple(shape)}.")
            return shape[dim]
    if default is None:
        name = pattern.replace(r"\d+", "*").replace("\\", "")
        raise ValueError(f"The checkpoint lacks a weight that every Twins model has: {name}.")
    return default


def tolist(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def to_hf(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the authors' or timm's weights to hf_twins names.

    Raises:
        ValueError: if they are not the weights of a Twins classifier in either format.
    """
    if any(name.endswith("encoder.patch_embeddings.0.projection.weight") for name in state_dict):
        raise ValueError(
            "transformers saved these weights, with their configuration beside them: load the folder instead of the "
            "file."
        )
    return NameTable(ORIGINAL_NAMES).to_hf(state_dict)


def original_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Infer the configuration of a classifier in an authors' file, as fields of a `config.json`."""
    weights = to_hf(state_dict)
    shapes = {name: weight.shape for name, weight in weights.items()}
    num_labels = weight_size(shapes, r"classifier\.weight", 0, default=0)
    config = infer_config(weights, NameTable(ORIGINAL_NAMES).window_layers(state_dict))
    return config | {"window_padding": "zeros", "num_labels": num_labels} | known_label_fields(num_labels)
