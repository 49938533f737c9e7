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
"""torch.func: a model as a function of its parameters and inputs, and its derivatives."""

import pytest
import torch
from testing_utils import FAMILIES
from tool_models import EVERY_MODEL, make_images, make_model, tensors_of
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap


# vmap warns that it runs PyTorch's attention image by image, which is slower.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def loss_of(model: nn.Module, parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The loss for one image `(num_channels, height, width)`."""
    return sum(output.square().mean() for output in tensors_of(functional_call(model, parameters, (image[None],))))


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    actual, expected = actual.detach(), expected.detach()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_functional_call_uses_the_given_parameters(kind, family):
    model, images = make_model(kind, family), make_images()
    parameters = {name: 1.1 * parameter for name, parameter in parameters_of(model).items()}
    with torch.no_grad():
        actual = tensors_of(functional_call(model, parameters, (images,)))
        for parameter in model.parameters():
            parameter.mul_(1.1)
        expected = tensors_of(model(images))
    for tensor, expected_tensor in zip(actual, expected, strict=True):
        assert_close(tensor, expected_tensor)


@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_per_image_gradients_equal_those_of_single_images(kind, family):
    model, images = make_model(kind, family), make_images(2, 16, 24)
    parameters = parameters_of(model)
    per_image = vmap(grad(lambda values, image: loss_of(model, values, image)), in_dims=(None, 0))(parameters, images)
    for index, image in enumerate(images):
        model.zero_grad()
        loss_of(model, dict(model.named_parameters()), image).backward()
        for name, parameter in model.named_parameters():
            # For weights that do not affect the output (of a stage that a head does not use), torch.func returns
            # zeros.
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_close(per_image[name][index], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_jacobian_of_the_logits(family):
    model, images = make_model("classifier", family), make_images(1, 16, 24)
    jacobian = jacrev(lambda image: model(image).logits[0])(images)
    for label, actual in enumerate(jacobian):
        inputs = images.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(inputs).logits[0, label], inputs)
        assert_close(actual, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_vmap_over_images(family):
    model, images = make_model("classifier", family), make_images()
    with torch.no_grad():
        assert_close(vmap(lambda image: model(image[None]).logits[0])(images), model(images).logits)


# PyTorch's own forward mode uses a deprecated function.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_derivative(family):
    """Attention is eager, because PyTorch's attention kernel for CPUs has no forward mode."""
    model, images = make_model("classifier", family), make_images(1, 16, 24)
    model.set_attn_implementation("eager")
    direction = torch.randn_like(images)
    _, actual = jvp(lambda image: model(image).logits[0], (images,), (direction,))
    jacobian = jacrev(lambda image: model(image).logits[0])(images)
    assert_close(actual, (jacobian * direction).flatten(1).sum(1))
