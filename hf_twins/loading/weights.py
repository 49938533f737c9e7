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
"""Checks that all weights of a loaded model were trained."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from .._utils.labels import label_names
from ..checkpoints.channels import adapt_stem
from ..configuration_twins import TwinsConfig
from ..modeling_twins import TwinsBackbone
from .tasks import TASKS


# Matches the number of the encoder stage in names of weights.
ENCODER_STAGE = re.compile(r"^(?:backbone\.|twins\.)?encoder\.(?:patch_embeddings|stages)\.(\d+)\.")
LABEL_FIELDS = ("id2label", "label2id", "num_labels")


def load_class(model_class: Any, name: Any, **options: Any) -> tuple[Any, set[str]]:
    """Load a model, and return it with the names of weights that the checkpoint lacks or has in another shape."""
    num_channels = None
    if model_class is UperNetForSemanticSegmentation and name is not None:
        labels = {key: options.pop(key) for key in LABEL_FIELDS if key in options}
        num_channels = options.pop("num_channels", None)
        changes = {key: options.pop(key) for key in list(options) if key not in ("dtype", "revision")}
        config: Any = UperNetConfig.from_pretrained(name, revision=options["revision"], **labels)
        config.backbone_config = TwinsConfig.from_dict(config.backbone_config.to_dict() | changes)
        options["config"] = config
    model, info = model_class.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if num_channels is not None:
        adapt_stem(model, num_channels)
    check_depth(str(name), model, info["unexpected_keys"])
    return model, new_weights(info)


def new_weights(info: dict[str, Any]) -> set[str]:
    """The names of weights that a checkpoint lacks or has in another shape, from transformers' `output_loading_info`."""
    return {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


def check_depth(name: str, model: Any, unused_weights: Iterable[str]) -> None:
    """Raise a ValueError if a checkpoint has weights of layers that its configuration lacks.

    Unused weights of another task's head, and of stages that a backbone does not build, are allowed.
    """
    stages = {match[1] for key in model.state_dict() if (match := ENCODER_STAGE.search(key))}
    is_backbone = isinstance(model, TwinsBackbone)
    for key in sorted(unused_weights):
        match = ENCODER_STAGE.search(key)
        if match and (match[1] in stages or not is_backbone):
            raise ValueError(
                f"{name} has weights of layers that its configuration lacks, such as {key}: weights and "
                f"configuration are of different models; pass a folder with both files of one model."
            )


def check_weights(
    name: str, model: Any, untrained: set[str], task: str | None = None, allow_new_weights: bool = False
) -> None:
    """Raise a ValueError if weights that should be trained are newly initialized, or are not finite."""
    if allow_new_weights:
        # Other weights may be new, but the encoder must be trained.
        untrained = {key for key in untrained if key.endswith("patch_embeddings.0.projection.weight")}
    if untrained:
        raise ValueError(
            f"{name} lacks {len(untrained)} weights of {type(model).__name__}, or has them in another shape, such as "
            f"{min(untrained)}: pass another model, or fine-tune this one first."
        )
    damaged = [key for key, weight in model.state_dict().items() if not torch.isfinite(weight).all()]
    if damaged:
        raise ValueError(
            f"{name} has {len(damaged)} weights that are not finite (NaN or infinite), such as {min(damaged)}: pass "
            "another model."
        )
    if task == "image-classification" and model.config.num_labels == 0:
        raise ValueError(f"{name} has no labels, but {TASKS[task].description} is needed: pass another model.")
    try:
        label_names(model.config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
