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
"""Tasks, and the checkpoints that have the weights they need."""

from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from ..configuration_twins import TwinsConfig
from ..modeling_twins import TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsModel


# The supported classes that a checkpoint may have been saved from.
MODEL_CLASSES: dict[str, Any] = {
    model_class.__name__: model_class
    for model_class in (
        TwinsForImageClassification,
        TwinsForSemanticSegmentation,
        UperNetForSemanticSegmentation,
        TwinsBackbone,
        TwinsModel,
    )
}


@dataclass(frozen=True)
class Task:
    """The model that a task needs.

    Args:
        description: kind of model, with an article.
        model_class: class of the model; an UperNet keeps its class.
        sources: names of the classes whose checkpoints have all weights of the model.
        auto_class: transformers' Auto class for models that come with their own code.
    """

    description: str
    model_class: Any
    sources: tuple[str, ...]
    auto_class: Any


TASKS = {
    "image-classification": Task(
        "an image classifier",
        TwinsForImageClassification,
        ("TwinsForImageClassification",),
        AutoModelForImageClassification,
    ),
    "semantic-segmentation": Task(
        "a semantic segmentation model",
        TwinsForSemanticSegmentation,
        ("TwinsForSemanticSegmentation", "UperNetForSemanticSegmentation"),
        AutoModelForSemanticSegmentation,
    ),
    "image-feature-extraction": Task(
        "a Twins model with its final layer norm",
        TwinsModel,
        ("TwinsModel", "TwinsForImageClassification"),
        AutoModel,
    ),
    "backbone": Task(
        "a Twins encoder",
        TwinsBackbone,
        ("TwinsBackbone", "TwinsModel", "TwinsForImageClassification", "TwinsForSemanticSegmentation"),
        AutoBackbone,
    ),
}


def saved_class(name: str, fields: dict[str, Any]) -> str:
    """The name of the class that a checkpoint was saved from.

    Raises:
        ValueError: if the class is not in `MODEL_CLASSES`.
    """
    # The files of timm and of the authors do not name a class, but are always classifiers.
    model_type = fields.get("model_type", TwinsConfig.model_type)
    architectures = fields.get("architectures") or [TwinsForImageClassification.__name__]
    if model_type == UperNetConfig.model_type:
        backbone_type = (fields.get("backbone_config") or {}).get("model_type")
        if backbone_type == TwinsConfig.model_type:
            return UperNetForSemanticSegmentation.__name__
        raise ValueError(f"{name} holds an UperNet with a {backbone_type!r} backbone: pass one with a Twins backbone.")
    if model_type != TwinsConfig.model_type or architectures[0] not in MODEL_CLASSES:
        kind = f"{architectures[0]} of type" if fields.get("architectures") else "model of type"
        raise ValueError(
            f"{name} holds a {kind} {model_type!r}, not one of {', '.join(MODEL_CLASSES)}: pass another model."
        )
    return architectures[0]


def check_kind(name: str, saved: str, task: str | None, allow_new_weights: bool) -> None:
    """Raise a ValueError if a checkpoint of the class `saved` does not have the weights that the task needs."""
    if task is None or saved in TASKS[task].sources:
        return
    # The encoder of an UperNet has other weight names, so it cannot be loaded into another class.
    if allow_new_weights and saved != UperNetForSemanticSegmentation.__name__:
        return
    raise ValueError(
        f"{name} holds a {saved}, but {TASKS[task].description} is needed ({' or '.join(TASKS[task].sources)}): pass "
        "another model, or fine-tune this one first."
    )


def class_of_task(task: str | None, saved: str) -> Any:
    """The class to build from a checkpoint that was saved from the class `saved`."""
    if task is None or saved == UperNetForSemanticSegmentation.__name__:
        return MODEL_CLASSES[saved]
    return TASKS[task].model_class


def auto_class(name: str, fields: dict[str, Any], task: str | None) -> Any:
    """transformers' Auto class for a model that comes with its own code."""
    for key, each in TASKS.items():
        if task in (None, key) and each.auto_class.__name__ in fields["auto_map"]:
            return each.auto_class
    raise ValueError(
        f"{name} has no code for this task, only for {', '.join(fields['auto_map'])}: pass another model."
    )
