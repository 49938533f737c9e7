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
"""PEFT's adapters on every layer with weights, in any model that contains a Twins encoder."""

import re
from collections.abc import Callable

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from testing_utils import FAMILIES, tiny_config
from tool_models import EVERY_MODEL, assert_same_outputs, make_images, make_model, outputs_of, tensors_of
from torch import nn


# Adapters get random weights, because PEFT's default initialization changes nothing.
CONFIGS: dict[str, Callable[[list[str]], PeftConfig]] = {
    "lora": lambda names: LoraConfig(target_modules=names, r=4, init_lora_weights=False),
    "dora": lambda names: LoraConfig(target_modules=names, r=4, use_dora=True, init_lora_weights=False),
    "loha": lambda names: LoHaConfig(target_modules=names, r=4, alpha=4, init_weights=False),
}


def adapted_layers(model: nn.Module, kind: str) -> list[str]:
    """Names of every Linear and every Conv2d with one group; in transformers' heads, only those of the backbone."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    return [name for name in names if kind not in ("upernet", "detr") or "backbone" in name]


def position_encodings(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("position_encoding.projection")]


def adapt(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Add adapters with weights so large that they have an effect, unlike LoHa's product of four small matrices."""
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "hada" in name:
                parameter.mul_(3)
    return adapted


def assert_adapters_work(adapted: PeftModel, plain: list[torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """Assert that adapters change the output, are trained, and can be disabled; return the output."""
    outputs = outputs_of(adapted, images)
    assert any((output - expected).abs().max() > 1e-3 for output, expected in zip(outputs, plain))
    sum(output.square().mean() for output in tensors_of(adapted(images))).backward()
    for name, parameter in adapted.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name
    with adapted.disable_adapter():
        assert_same_outputs(adapted, plain, images)
    return outputs


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_adapters_on_every_linear_and_convolution(kind, family, method):
    model, images = make_model(kind, family), make_images()
    plain = outputs_of(model, images)
    names = adapted_layers(model, kind)
    assert any("sequence_reduction.projection" in name for name in names)
    adapted = adapt(model, CONFIGS[method](names))
    outputs = assert_adapters_work(adapted, plain, images)
    merged = adapted.merge_and_unload()
    assert not any("lora" in name or "hada" in name for name, _ in merged.named_parameters())
    assert_same_outputs(merged, outputs, images)


@pytest.mark.parametrize("family", FAMILIES)
def test_loha_on_position_encodings(family):
    model, images = make_model("classifier", family), make_images()
    plain = outputs_of(model, images)
    adapted = adapt(model, CONFIGS["loha"](position_encodings(model)))
    outputs = assert_adapters_work(adapted, plain, images)
    assert_same_outputs(adapted.merge_and_unload(), outputs, images)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_position_encodings_within_the_limits_of_peft(family):
    """PEFT needs a rank that is a multiple of the channels for a depthwise convolution, and cannot merge it."""
    model, images = make_model("classifier", family), make_images()
    plain = outputs_of(model, images)
    names = position_encodings(model)
    ranks = {re.escape(name): size for name, size in zip(names, tiny_config(family).hidden_sizes)}
    with pytest.raises(ValueError, match="rank is divisible by groups"):
        get_peft_model(make_model("classifier", family), LoraConfig(target_modules=names, r=4))
    config = LoraConfig(target_modules=names, rank_pattern=ranks, init_lora_weights=False)
    adapted = adapt(model, config)
    assert_adapters_work(adapted, plain, images)
    with pytest.raises(NotImplementedError, match="Merging is not supported"):
        adapted.merge_and_unload()
