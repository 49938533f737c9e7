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
"""Forward hooks and torch.jit.trace, which keep tensors that later operations must not modify."""

from contextlib import AbstractContextManager

import pytest
import torch
from testing_utils import FAMILIES
from tool_models import EVERY_MODEL, assert_same_outputs, make_images, make_model, outputs_of, tensors_of
from torch import nn


GRADIENTS = {"enable_grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class KeepOutputs:
    """Forward hooks that keep every output, and a clone of it."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.kept: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self.handles = [module.register_forward_hook(self.make_hook(name)) for name, module in modules.items()]

    def make_hook(self, name: str):
        def keep(module: nn.Module, args: tuple, output: object) -> None:
            self.kept += [(name, tensor, tensor.clone()) for tensor in tensors_of(output)]

        return keep

    def check(self) -> set[str]:
        """Assert that no kept output was modified, and return the names of the modules that ran."""
        for name, tensor, clone in self.kept:
            assert torch.equal(tensor, clone), f"the output of {name} was overwritten"
        for handle in self.handles:
            handle.remove()
        return {name for name, _, _ in self.kept}


def run(model: nn.Module, images: torch.Tensor, gradients: AbstractContextManager) -> list[torch.Tensor]:
    with gradients:
        return [tensor.detach() for tensor in tensors_of(model(images))]


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_outputs_kept_by_hooks_are_not_modified(kind, family, gradients):
    model, images = make_model(kind, family), make_images()
    expected = outputs_of(model, images)
    hooks = KeepOutputs(dict(model.named_modules()))
    actual = run(model, images, GRADIENTS[gradients]())
    ran = hooks.check()
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert layers <= ran, "these never ran: " + ", ".join(sorted(layers - ran))
    for tensor, expected_tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(tensor, expected_tensor, rtol=0, atol=1e-5 * max(1, expected_tensor.abs().max()))


@pytest.mark.parametrize("gradients", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_output_kept_by_a_single_hook_is_not_modified(family, gradients):
    """There is only one hook, because others would prevent the model from working in place."""
    model, images = make_model("classifier", family), make_images(1, 16, 16)
    for name, module in model.named_modules():
        hook = KeepOutputs({name: module})
        run(model, images, GRADIENTS[gradients]())
        hook.check()


@pytest.mark.parametrize("gradients", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_kept_by_a_global_hook_are_not_modified(family, gradients):
    model, images = make_model("classifier", family), make_images(1, 16, 16)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: nn.Module, args: tuple, output: object) -> None:
        kept.extend((tensor, tensor.clone()) for tensor in tensors_of(output))

    handle = nn.modules.module.register_module_forward_hook(keep)
    try:
        run(model, images, GRADIENTS[gradients]())
    finally:
        handle.remove()
    assert len(kept) > 100
    assert all(torch.equal(tensor, clone) for tensor, clone in kept)


@pytest.mark.parametrize("gradients", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_kept_by_pre_hooks_are_not_modified(family, gradients):
    model, images = make_model("classifier", family), make_images(1, 16, 16)
    for module in model.modules():
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(module: nn.Module, args: tuple, kept: list = kept) -> None:
            kept.extend((tensor, tensor.clone()) for tensor in tensors_of(args))

        handle = module.register_forward_pre_hook(keep)
        run(model, images, GRADIENTS[gradients]())
        handle.remove()
        assert all(torch.equal(tensor, clone) for tensor, clone in kept)


class Remember(nn.Module):
    """An activation that keeps its input and output."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output = nn.functional.gelu(hidden_states)
        self.kept = [(hidden_states, hidden_states.clone()), (output, output.clone())]
        return output


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_replaced_activation_gives_the_same_values(family, gradients):
    model, images = make_model("classifier", family), make_images()
    expected = outputs_of(model, images)
    for stage in model.twins.encoder.stages:
        for layer in stage.layers:
            layer.mlp.activation_fn = Remember()
    actual = run(model, images, GRADIENTS[gradients]())
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-5)
    for module in model.modules():
        if isinstance(module, Remember):
            assert all(torch.equal(tensor, clone) for tensor, clone in module.kept)


# Tracing is deprecated, but many deployments still use it.
ignore_warnings_of_tracing = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.trace.* is deprecated"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family"),
    [pytest.param(*case.values, marks=[*ignore_warnings_of_tracing, *case.marks], id=case.id) for case in EVERY_MODEL],
)
def test_jit_trace_passes_its_own_check(kind, family):
    """As for every model with a dictionary as output, `strict=False` is needed; images must have the traced size."""
    model, images = make_model(kind, family), make_images(1, 16, 24)
    assert_same_outputs(torch.jit.trace(model, images, strict=False), outputs_of(model, images), images)


class Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(family, marks=ignore_warnings_of_tracing) for family in FAMILIES])
def test_jit_trace_of_the_logits_passes_its_own_check(family):
    model, images = Logits(make_model("classifier", family)), make_images(1, 16, 24)
    assert_same_outputs(torch.jit.trace(model, images), outputs_of(model, images), images)
