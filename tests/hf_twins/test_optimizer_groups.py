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
"""Weight decay and learning rate of each parameter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from testing_utils import FAMILIES, save_timm, timm_model, tiny_config
from timm.optim import create_optimizer_v2
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_twins import TwinsForImageClassification, parameter_groups


def settings_by_name(model, **options) -> dict[str, tuple[float, float]]:
    """The learning rate and weight decay of each trainable parameter."""
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.05, **options)
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = [
        (names[parameter], (group["lr"], group["weight_decay"])) for group in groups for parameter in group["params"]
    ]
    assert len(dict(settings)) == len(settings), "a parameter is in two groups"
    return dict(settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_biases_and_position_encodings_are_not_decayed(family):
    model = TwinsForImageClassification(tiny_config(family))
    settings = settings_by_name(model)
    assert settings.keys() == dict(model.named_parameters()).keys()
    for name, (learning_rate, weight_decay) in settings.items():
        spared = name.endswith(".bias") or "layernorm" in name or ".position_encoding." in name
        assert weight_decay == (0.0 if spared else 0.05), name
        assert learning_rate == 1.0
    assert len(parameter_groups(model, 1.0, 0.05)) == 2


def test_learning_rate_falls_from_block_to_block():
    # There are 2, 3 and 2 blocks in three stages, so seven below the final norm and the head.
    settings = settings_by_name(TwinsForImageClassification(tiny_config()), layer_decay=0.5)
    for name, exponent in {
        "classifier.weight": 0,
        "twins.layernorm.weight": 0,
        "twins.encoder.stages.2.layers.1.mlp.fc1.weight": 1,
        "twins.encoder.stages.2.layers.0.mlp.fc1.weight": 2,
        "twins.encoder.stages.2.position_encoding.projection.weight": 2,
        "twins.encoder.patch_embeddings.2.projection.weight": 3,
        "twins.encoder.stages.1.layers.2.attention.q_proj.weight": 3,
        "twins.encoder.stages.0.layers.0.mlp.fc1.weight": 7,
        "twins.encoder.patch_embeddings.0.projection.weight": 8,
    }.items():
        assert settings[name][0] == 0.5**exponent, name


def test_stage_norm_learns_with_the_last_block_of_its_stage():
    settings = settings_by_name(TwinsForImageClassification(tiny_config(use_stage_norm=True)), layer_decay=0.5)
    assert settings["twins.encoder.stages.0.layernorm.weight"] == (0.5**6, 0.0)
    assert settings["twins.encoder.stages.0.layers.1.mlp.fc2.weight"] == (0.5**6, 0.05)


def test_encoder_is_found_in_other_models():
    config = tiny_config(out_features=["stage1", "stage2", "stage3"])
    upernet = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=config, hidden_size=8, use_auxiliary_head=False)
    )
    settings = settings_by_name(upernet, layer_decay=0.5)
    assert settings["decode_head.classifier.weight"][0] == 1.0
    assert settings["backbone.encoder.patch_embeddings.0.projection.weight"][0] == 0.5**8
    model = get_peft_model(TwinsForImageClassification(tiny_config()), LoraConfig(target_modules=["q_proj"], r=2))
    settings = settings_by_name(model, layer_decay=0.5)
    assert all("lora_" in name for name in settings)
    assert {learning_rate for learning_rate, _ in settings.values()} == {0.5**exponent for exponent in range(1, 8)}


def test_frozen_parameters_are_left_out():
    model = TwinsForImageClassification(tiny_config())
    model.twins.requires_grad_(False)
    assert settings_by_name(model).keys() == {"classifier.weight", "classifier.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        parameter_groups(model, 1.0, 0.05)


@pytest.mark.parametrize("layer_decay", [0.0, 1.5, -1.0])
def test_layer_decay_out_of_range_is_named(layer_decay):
    with pytest.raises(ValueError, match=rf"layer_decay must be in \(0, 1\], got {layer_decay}"):
        parameter_groups(TwinsForImageClassification(tiny_config()), 1.0, 0.05, layer_decay)


def test_optimizer_takes_the_groups():
    model = TwinsForImageClassification(tiny_config())
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.05, layer_decay=0.75))
    model(torch.randn(2, 3, 24, 24), labels=torch.tensor([0, 1])).loss.backward()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_steps_of_adamw_equal_those_of_timm(family, tmp_path):
    """With the same weights and batches, and the weight decay by each package's own rules, losses must be equal."""
    reference = timm_model(family, num_classes=10)
    model = TwinsForImageClassification.from_pretrained(save_timm(reference, tmp_path), drop_path_rate=0.0)
    model.train()
    reference.train()
    optimizers = [
        torch.optim.AdamW(parameter_groups(model, learning_rate=1e-4, weight_decay=0.05)),
        create_optimizer_v2(reference, opt="adamw", lr=1e-4, weight_decay=0.05),
    ]
    curves: list[list[float]] = [[], []]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (4,), generator=generator)
        for compute, optimizer, curve in zip(
            (lambda images: model(pixel_values=images).logits, reference), optimizers, curves
        ):
            loss = torch.nn.functional.cross_entropy(compute(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert max(curves[0]) - min(curves[0]) > 0.5
