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
"""Threads that share one model: no call changes the model, so that each gets correct results."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from testing_utils import FAMILIES
from tool_models import make_images, make_model
from torch import nn

from hf_twins import attention_maps, grad_cam


@pytest.fixture(autouse=True)
def threads_that_switch_often() -> Iterator[None]:
    """Switch threads a hundred times as often as usual, also in the middle of a call."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(interval)


def plain(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(images).logits]


def maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return [layer.weights for layer in attention_maps(model, images)]


def cam(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return [grad_cam(model, images, label=1, stage="stage2")]


def last_cam(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return [grad_cam(model, images, label=2)]


def refused(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Calls that end in an exception."""
    for call in (attention_maps, grad_cam):
        with pytest.raises(ValueError, match="at least 8 pixels"):
            call(model, images[:, :, :4])
    return []


CALLS: tuple[Callable, ...] = (plain, cam, maps, last_cam, refused)


def adapted(family: str) -> nn.Module:
    return get_peft_model(make_model("classifier", family), LoraConfig(target_modules=["q_proj", "fc1"])).eval()


MODELS: dict[str, Callable[[str], nn.Module]] = {
    "classifier": lambda family: make_model("classifier", family),
    "segmentation": lambda family: make_model("segmentation", family),
    "upernet": lambda family: make_model("upernet", family),
    "detr": lambda family: make_model("detr", family),
    "peft": adapted,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_threads_that_share_a_model_get_correct_results(family, kind):
    model = MODELS[kind](family)
    # DETR's logits are for queries, not for images, so it has no Grad-CAM.
    calls = [call for call in CALLS if kind != "detr" or call in (plain, maps)]
    images = [make_images(1, height, width) for height, width in ((16, 24), (21, 16))]
    expected = {(call, index): call(model, image) for call in calls for index, image in enumerate(images)}
    # transformers' own hooks are permanent.
    num_hooks = [len(module._forward_hooks) for module in model.modules()]
    implementations = {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}
    tasks = 5 * list(expected)
    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(lambda task: task[0](model, images[task[1]]), tasks))
    for task, tensors in zip(tasks, results):
        assert len(tensors) == len(expected[task])
        for tensor, expected_tensor in zip(tensors, expected[task]):
            torch.testing.assert_close(tensor, expected_tensor, rtol=0, atol=1e-5)
    assert [len(module._forward_hooks) for module in model.modules()] == num_hooks
    assert {
        module.config._attn_implementation for module in model.modules() if hasattr(module, "config")
    } == implementations
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("call", [attention_maps, grad_cam])
def test_model_is_not_changed_while_it_is_analyzed(call):
    """The state of the model is checked in the middle of a call, as another thread would see it."""
    model = make_model("classifier", "svt")
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    seen = []

    class Spy(nn.Identity):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            seen.append(
                ([dict(module._forward_hooks) for module in model.modules()], model.config._attn_implementation)
            )
            return hidden_states

    model.twins.encoder.stages[1].layers[0].dropout = Spy()
    call(model, make_images())
    assert seen
    assert all(each == (hooks, "sdpa") for each in seen)
