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
"""torch.nn.utils.prune and weight norm, which compute a weight just before its module runs."""

import copy

import pytest
import torch
from tool_models import EVERY_MODEL, assert_same_outputs, make_images, make_model, outputs_of, tensors_of
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def loss_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return sum(output.square().mean() for output in tensors_of(model(images)))


@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_pruned_layers_train_like_layers_with_zeros(kind, family):
    model, images = make_model(kind, family), make_images()
    plain = copy.deepcopy(model)
    masks = []
    for module, plain_module in zip(layers(model), layers(plain)):
        prune.l1_unstructured(module, "weight", amount=0.3)
        masks.append(module.weight_mask)
        with torch.no_grad():
            plain_module.weight *= module.weight_mask
    assert_same_outputs(model, outputs_of(plain, images), images)
    # Take two steps of a size relative to the norm of the gradient, which differs between models.
    for _ in range(2):
        for each in (model, plain):
            each.zero_grad()
            loss_of(each, images).backward()
        for module, mask in zip(layers(plain), masks):
            module.weight.grad *= mask
        norm = torch.cat(
            [parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None]
        ).norm()
        for each in (model, plain):
            torch.optim.SGD(each.parameters(), lr=0.1 / float(norm)).step()
    for module in layers(model):
        prune.remove(module, "weight")
        assert (module.weight == 0).float().mean() > 0.25
    assert_same_outputs(model, outputs_of(plain, images), images, atol=1e-4)


@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_weight_norm_on_all_layers_trains(kind, family):
    model, images = make_model(kind, family), make_images()
    plain = outputs_of(model, images)
    for module in layers(model):
        weight_norm(module)
    assert_same_outputs(model, plain, images)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, images).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.endswith("weight.original0")} <= changed
    trained = outputs_of(model, images)
    for module in layers(model):
        parametrize.remove_parametrizations(module, "weight")
    assert_same_outputs(model, trained, images)
