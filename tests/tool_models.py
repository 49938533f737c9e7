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
"""Small models of each kind on which the tools are tested."""

from collections.abc import Callable

import pytest
import torch
from testing_utils import FAMILIES, NARROW_HEAD, randomize, tiny_config
from torch import nn
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_twins import TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation


DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_queries": 4,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
STAGES = ["stage1", "stage2", "stage3"]


def upernet(family: str) -> PreTrainedModel:
    backbone_config = tiny_config(family, out_features=STAGES)
    fields = {"hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 4}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone_config, **fields))


def detr(family: str) -> PreTrainedModel:
    return DetrForObjectDetection(DetrConfig(backbone_config=tiny_config(family, out_features=["stage3"]), **DETR))


BUILDERS: dict[str, Callable[[str], PreTrainedModel]] = {
    "classifier": lambda family: TwinsForImageClassification(tiny_config(family)),
    "backbone": lambda family: TwinsBackbone(tiny_config(family, out_features=STAGES)),
    "segmentation": lambda family: TwinsForSemanticSegmentation(tiny_config(family, **NARROW_HEAD)),
    "upernet": upernet,
    "detr": detr,
}
# Tools work on layers, which are the same in all models, so the fast tests only use the classifier.
EVERY_MODEL = [
    pytest.param(
        kind,
        family,
        marks=[] if kind == "classifier" else [pytest.mark.slow],
        id=f"{kind}-{family}",
    )
    for kind in BUILDERS
    for family in FAMILIES
]


def make_model(kind: str, family: str) -> PreTrainedModel:
    """Create one of `BUILDERS`, in evaluation mode, with weights that all affect the output."""
    torch.manual_seed(0)
    return randomize(BUILDERS[kind](family))


def make_images(batch_size: int = 2, height: int = 33, width: int = 40) -> torch.Tensor:
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(1))


def tensors_of(output: object) -> list[torch.Tensor]:
    """All tensors of a model's output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = tuple(output.values())
    return [tensor for part in output for tensor in tensors_of(part)] if isinstance(output, tuple | list) else []


def outputs_of(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors_of(model(images))


def assert_same_outputs(model: nn.Module, expected: list[torch.Tensor], images: torch.Tensor, atol: float = 1e-5):
    """Assert that a model gives the expected outputs of the plain model."""
    actual = outputs_of(model, images)
    assert len(actual) == len(expected) > 0
    for tensor, expected_tensor in zip(actual, expected):
        torch.testing.assert_close(tensor, expected_tensor, rtol=0, atol=atol * max(1.0, expected_tensor.abs().max()))


def classify_in_worker(classifier: Callable, images: list) -> list:
    """Classify images; runs in another process, which imports this module and not the test."""
    torch.set_num_threads(1)
    return classifier(images)
