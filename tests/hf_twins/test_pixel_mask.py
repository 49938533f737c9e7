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
"""With a `pixel_mask`, the output for each image of a padded batch does not depend on the others."""

import itertools

import pytest
import torch
from testing_utils import FAMILIES, NARROW_HEAD, randomize, rectangle_mask, tiny_config

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsModel,
)


SIZES = [(29, 41), (30, 18), (8, 8), (24, 36), (36, 24), (17, 33)]
HEIGHT, WIDTH = 37, 43
WINDOW_PADDING = ("masked", "zeros", "authors_segmentation")


def padded_batch(images: list[torch.Tensor], fill: float | str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(images), images[0].shape[0], HEIGHT, WIDTH)
    pixel_values = torch.randn(shape) * 10 if fill == "noise" else torch.full(shape, float(fill))
    for canvas, image in zip(pixel_values, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return pixel_values, rectangle_mask([tuple(image.shape[1:]) for image in images], HEIGHT, WIDTH)


@pytest.mark.parametrize("fill", ["0", "noise", "nan", "inf", "1e30"])
@pytest.mark.parametrize("window_padding", WINDOW_PADDING)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_single_images(family, window_padding, fill):
    model = randomize(TwinsForImageClassification(tiny_config(family, window_padding=window_padding)))
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.no_grad():
        alone = torch.cat([model(image.unsqueeze(0)).logits for image in images])
        together = model(*padded_batch(images, fill)).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("patch_padding", "use_stage_norm"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("window_padding", WINDOW_PADDING)
@pytest.mark.parametrize("family", FAMILIES)
def test_feature_maps_equal_those_of_single_images(
    family, window_padding, patch_padding, use_stage_norm, attn_implementation
):
    config = tiny_config(
        family,
        window_padding=window_padding,
        patch_padding=patch_padding,
        use_stage_norm=use_stage_norm,
        out_indices=[0, 1, 2, 3],
    )
    backbone = randomize(TwinsBackbone._from_config(config, attn_implementation=attn_implementation))
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.no_grad():
        together = backbone(*padded_batch(images, "nan")).feature_maps
        for index, image in enumerate(images):
            for batch_map, alone in zip(together, backbone(image.unsqueeze(0)).feature_maps, strict=True):
                height, width = alone.shape[2:]
                scale = alone.abs().max()
                torch.testing.assert_close(
                    batch_map[index, :, :height, :width] / scale, alone[0] / scale, rtol=0, atol=1e-5
                )
                outside = batch_map[index].clone()
                outside[:, :height, :width] = 0
                assert (outside == 0).all()


@pytest.mark.parametrize("name", ["twins-svt-small", "twins-pcpvt-small"])
def test_output_of_published_variants_does_not_depend_on_other_images(name):
    model = randomize(TwinsModel(TwinsConfig.from_variant(name)))
    images = [torch.randn(3, 97, 63), torch.randn(3, 224, 130), torch.randn(3, 32, 224)]
    pixel_values = torch.full((3, 3, 224, 224), float("nan"))
    for canvas, image in zip(pixel_values, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    with torch.no_grad():
        alone = torch.cat([model(image.unsqueeze(0)).pooler_output for image in images])
        together = model(pixel_values, rectangle_mask([(97, 63), (224, 130), (32, 224)], 224, 224)).pooler_output
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * alone.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.long, torch.float32], ids=str)
def test_mask_of_any_dtype_is_accepted(dtype):
    model = randomize(TwinsModel(tiny_config()))
    pixel_values, pixel_mask = padded_batch([torch.randn(3, *size) for size in SIZES], "noise")
    with torch.no_grad():
        expected = model(pixel_values, pixel_mask).pooler_output
        assert torch.equal(model(pixel_values, pixel_mask.to(dtype)).pooler_output, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_without_padding_changes_nothing(family):
    model = randomize(TwinsModel(tiny_config(family)))
    pixel_values = torch.randn(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        expected = model(pixel_values).pooler_output
        output = model(pixel_values, torch.ones(2, HEIGHT, WIDTH)).pooler_output
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_hidden_state_is_zero_outside_the_image(family):
    model = randomize(TwinsModel(tiny_config(family)))
    images = [torch.randn(3, 16, 16), torch.randn(3, HEIGHT, WIDTH)]
    outputs = model(*padded_batch(images, "nan"), output_hidden_states=True)
    assert outputs.last_hidden_state.isfinite().all()
    last = outputs.last_hidden_state[0]
    assert (last[:, 2:] == 0).all()
    assert (last[:, :, 2:] == 0).all()
    assert (last[:, :2, :2] != 0).any()
    assert (outputs.hidden_states[0][0, :, 8:, 8:] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_single_images(family):
    model = randomize(TwinsForImageClassification(tiny_config(family)))
    images = [torch.randn(3, *size) for size in SIZES]
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    pixel_values, pixel_mask = padded_batch(images, "nan")
    model(pixel_values, pixel_mask, labels=labels).loss.backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for image, label in zip(images, labels):
        (model(image.unsqueeze(0), labels=label[None]).loss / len(images)).backward()
    # The tolerance is relative to the largest gradient, because those of key biases are only rounding errors.
    scale = max(parameter.grad.abs().max() for parameter in model.parameters())
    for gradient, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(gradient / scale, parameter.grad / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch_padding", [False, True])
@pytest.mark.parametrize("window_padding", WINDOW_PADDING)
@pytest.mark.parametrize("family", FAMILIES)
def test_segmentation_sees_zeros_outside_the_image(family, window_padding, patch_padding):
    fields = {"window_padding": window_padding, "patch_padding": patch_padding, "out_indices": [1, 2, 3]}
    config = tiny_config(family, **NARROW_HEAD, **fields)
    model = randomize(TwinsForSemanticSegmentation(config))
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.no_grad():
        pixel_values, pixel_mask = padded_batch(images, "nan")
        logits = model(pixel_values, pixel_mask).logits
        # The content of the padding changes nothing.
        assert torch.equal(model(*padded_batch(images, "noise")).logits, logits)
        # The head gets the feature maps of each image, with zeros around them.
        backbone = TwinsBackbone(config).eval()
        backbone.encoder.load_state_dict(model.twins.encoder.state_dict())
        batch_maps = backbone(pixel_values, pixel_mask).feature_maps
        maps = [torch.zeros_like(batch_map) for batch_map in batch_maps]
        for index, image in enumerate(images):
            for canvas, feature_map in zip(maps, backbone(image.unsqueeze(0)).feature_maps):
                canvas[index, :, : feature_map.shape[2], : feature_map.shape[3]] = feature_map[0]
        expected = model.decode_head(model.neck(maps))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_no_nan(dtype, model_class):
    model = randomize(model_class(tiny_config())).to(dtype)
    pixel_values, pixel_mask = padded_batch([torch.randn(3, *size) for size in SIZES], "nan")
    with torch.no_grad():
        assert model(pixel_values.to(dtype), pixel_mask).logits.isfinite().all()
