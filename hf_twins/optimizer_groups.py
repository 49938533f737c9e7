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
"""Parameter groups for optimizers, with weight decay and learning rates by depth."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from .modeling_twins import TwinsEncoder


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a model with a Twins encoder for a PyTorch optimizer.

    Biases, norm weights and position encodings get no weight decay, as in the authors' recipes (`no_weight_decay` in
    https://github.com/Meituan-AutoML/Twins/blob/main/gvt.py). With layer-wise decay of the learning rate
    (https://huggingface.co/papers/2106.08254, section 4.1), the head has `learning_rate`, and every block below it has
    `layer_decay` times the learning rate of the block above it. Patch embeddings count as part of the block before them, and
    the final layer norm as part of the head; timm counts them to the first block of their stage and to the last block.

    Args:
        model: a Twins model, or any model that contains one: UperNet, DETR, a PEFT model.
        learning_rate: learning rate of the head.
        weight_decay: weight decay of all other weights.
        layer_decay: learning rate factor per block, in (0, 1].

    Returns:
        Dictionaries with `params`, `lr` and `weight_decay`. The head is first, whose learning rate the Trainer then logs.

    Raises:
        ValueError: if `layer_decay` is out of range, or nothing is trainable.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, TwinsForImageClassification, parameter_groups

    >>> model = TwinsForImageClassification(TwinsConfig.from_variant("twins-svt-small"))
    >>> groups = parameter_groups(model, learning_rate=5e-4, weight_decay=0.05, layer_decay=0.75)
    >>> optimizer = torch.optim.AdamW(groups)
    ```"""
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}.")
    depths = dict(parameter_depths(model))
    head_depth = max(depths.values(), default=0) + 1
    spared = {name for name, _ in model.named_parameters() if ".position_encoding." in name}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and name not in spared
            groups.setdefault((depths.get(name, head_depth), is_decayed), []).append(parameter)
    if not groups:
        raise ValueError("The model has no trainable parameters.")
    if layer_decay == 1.0:
        merged: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for (_, is_decayed), parameters in groups.items():
            merged.setdefault((head_depth, is_decayed), []).extend(parameters)
        groups = merged
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (head_depth - depth),
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for (depth, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def parameter_depths(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield each parameter of the encoders in a model, with the number of blocks below it."""
    for prefix, encoder in model.named_modules():
        if not isinstance(encoder, TwinsEncoder):
            continue
        for name, _ in encoder.named_parameters():
            stage = int(re.search(r"\d+", name)[0])  # type: ignore[index]  # every name in an encoder has one
            first_layer = sum(encoder.config.depths[:stage])
            layer = re.search(r"\.layers\.(\d+)\.", name)
            if name.startswith("patch_embeddings."):
                depth = first_layer
            elif layer is not None:
                depth = first_layer + int(layer[1]) + 1
            else:
                # The position encoding comes after the first block, and a stage's norm after the last block.
                last_layer = 1 if ".position_encoding." in name else encoder.config.depths[stage]
                depth = first_layer + last_layer
            yield f"{prefix}.{name}" if prefix else name, depth
