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
"""captum and pytorch-grad-cam, compared with plain PyTorch implementations and with `grad_cam`."""

import pytest
import torch
from captum.attr import IntegratedGradients, LayerActivation, LayerGradCam, Saliency
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from testing_utils import FAMILIES
from tool_models import make_images, make_model
from torch import nn

from hf_twins import grad_cam


LABEL = 2
# Models that return class logits, for images or pixels.
KINDS = ["classifier", "segmentation", "upernet"]


class Logits(nn.Module):
    """The function that the tools call: images to logits `(batch_size, num_labels)`, averaged over pixels if needed."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images).logits
        return logits if logits.ndim == 2 else logits.mean((2, 3))


def stages_of(model: nn.Module) -> nn.ModuleList:
    return next(module for name, module in model.named_modules() if name.endswith("encoder.stages"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_captum_saliency_is_the_gradient(family, kind):
    model, images = Logits(make_model(kind, family)), make_images()
    actual = Saliency(model).attribute(images.clone().requires_grad_(), target=LABEL)
    inputs = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(inputs)[:, LABEL].sum(), inputs)
    torch.testing.assert_close(actual, expected.abs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_captum_integrated_gradients_equal_a_plain_implementation(family, kind):
    model, images = Logits(make_model(kind, family)), make_images(1, 16, 24)
    steps = 8
    actual = IntegratedGradients(model).attribute(images, target=LABEL, n_steps=steps, method="riemann_middle")
    expected = torch.zeros_like(images)
    for step in range(steps):
        inputs = (images * (step + 0.5) / steps).requires_grad_()
        (gradients,) = torch.autograd.grad(model(inputs)[:, LABEL].sum(), inputs)
        expected += images * gradients / steps
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_captum_reads_and_explains_layers(family, kind):
    plain, images = make_model(kind, family), make_images()
    model, stages = Logits(plain), stages_of(plain)
    with torch.no_grad():
        hidden_states = plain(images, output_hidden_states=True).hidden_states[1:]
    for stage, expected in zip(stages, hidden_states, strict=True):
        activation = LayerActivation(model, stage).attribute(images)
        torch.testing.assert_close(activation, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    # The second stage is used, because for a classifier's last stage, `grad_cam` uses the output after the final layer
    # norm.
    actual = LayerGradCam(model, stages[1]).attribute(images, target=LABEL, relu_attributions=True)[:, 0]
    assert_same_maps(actual, grad_cam(plain, images, label=LABEL, stage="stage2"))
    # captum finds every Linear of the model.
    linear = [module for module in stages.modules() if isinstance(module, nn.Linear)]
    for module in (linear[0], linear[-1]):
        assert LayerActivation(model, module).attribute(images).abs().max() > 0


def assert_same_maps(actual: torch.Tensor, expected: torch.Tensor) -> None:
    actual = actual.detach() / actual.detach().amax((1, 2), keepdim=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pytorch_grad_cam_returns_the_maps_of_grad_cam(family, kind):
    plain, images = make_model(kind, family), make_images()
    with GradCAM(Logits(plain), [stages_of(plain)[1]]) as tool:
        actual = tool(images, [ClassifierOutputTarget(LABEL)] * len(images))
    expected = grad_cam(plain, images, label=LABEL, stage="stage2").numpy()
    # The library resizes the map of each layer to the image, with the width first, and rescales their mean.
    expected = scale_cam_image(scale_cam_image(expected, (images.shape[3], images.shape[2])))
    torch.testing.assert_close(torch.from_numpy(actual), torch.from_numpy(expected), rtol=0, atol=1e-5)
