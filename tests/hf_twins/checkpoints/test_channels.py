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
"""Adapting trained weights to another number of channels, for all formats and classes."""

import pytest
import timm
import torch
from loopback_hub import serve_hub
from testing_utils import randomize, save_timm, timm_model, tiny_config
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsModel,
    load_model,
)
from hf_twins.checkpoints.channels import adapt_channels


STEM = "encoder.patch_embeddings.0.projection.weight"
SOURCES = ("timm", "authors", "ours", "hub")


@pytest.fixture(scope="module")
def timm_twins() -> torch.nn.Module:
    return timm_model()


@pytest.fixture(scope="module")
def sources(tmp_path_factory, timm_twins):
    """The same weights in the formats of timm, the authors and transformers, and on a Hub."""
    folder = tmp_path_factory.mktemp("sources")
    save_timm(timm_twins, folder / "timm")
    torch.save(timm_twins.state_dict(), folder / "authors.pth")
    TwinsForImageClassification.from_pretrained(folder / "timm").save_pretrained(folder / "ours")
    TwinsImageProcessor().save_pretrained(folder / "ours")
    with serve_hub({"somebody/twins": folder / "ours"}) as hub, hub.in_process(folder / "home"):
        yield {
            "timm": folder / "timm",
            "authors": folder / "authors.pth",
            "ours": folder / "ours",
            "hub": "somebody/twins",
        }


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_every_channel_gets_an_equal_share_of_the_weights(source, num_channels, sources, timm_twins):
    model = TwinsForImageClassification.from_pretrained(sources[source], num_channels=num_channels)
    assert model.config.num_channels == num_channels
    original = timm_twins.state_dict()["patch_embeds.0.proj.weight"]
    weight = model.get_input_embeddings().weight
    if num_channels == 3:
        assert torch.equal(weight, original)
    else:
        expected = (original.sum(1, keepdim=True) / num_channels).expand_as(weight)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    gray = torch.rand(1, 1, 64, 48)
    with torch.no_grad():
        expected = timm_twins(gray.expand(-1, 3, -1, -1))
        actual = model(gray.expand(-1, num_channels, -1, -1)).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_one_channel_is_as_in_timm(sources, timm_twins):
    gray_timm = timm.create_model(f"local-dir:{sources['timm']}", pretrained=True, in_chans=1)
    model = TwinsForImageClassification.from_pretrained(sources["timm"], num_channels=1)
    expected = gray_timm.state_dict()["patch_embeds.0.proj.weight"]
    torch.testing.assert_close(model.get_input_embeddings().weight, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("source", SOURCES)
def test_half_precision_other_heads_and_loading_info(source, sources):
    model, info = TwinsForImageClassification.from_pretrained(
        sources[source],
        num_channels=1,
        num_labels=7,
        dtype=torch.float16,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert [key for key, *_ in info["mismatched_keys"] if key.endswith(STEM)] == []
    assert not info["missing_keys"]
    assert model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("model_class", [TwinsModel, TwinsBackbone, TwinsForSemanticSegmentation])
@pytest.mark.parametrize("source", SOURCES)
def test_every_class_adapts(model_class, source, sources, timm_twins):
    model = model_class.from_pretrained(sources[source], num_channels=1)
    original = timm_twins.state_dict()["patch_embeds.0.proj.weight"]
    torch.testing.assert_close(model.get_input_embeddings().weight, original.sum(1, keepdim=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", ["ours", "hub"])
@pytest.mark.parametrize("auto_class", [AutoModelForImageClassification, AutoModel])
def test_auto_classes_adapt(auto_class, source, sources, timm_twins):
    original = timm_twins.state_dict()["patch_embeds.0.proj.weight"]
    config = TwinsConfig.from_pretrained(sources[source], num_channels=1)
    for options in ({"num_channels": 1}, {"config": config}):
        model = auto_class.from_pretrained(str(sources[source]), **options)
        weight = model.get_input_embeddings().weight
        torch.testing.assert_close(weight, original.sum(1, keepdim=True), rtol=0, atol=1e-6)
        assert model.config.num_channels == 1
    # The configuration belongs to the caller.
    assert config.num_channels == 1


def test_gray_model_is_adapted_to_color_images(sources, tmp_path):
    gray = TwinsForImageClassification.from_pretrained(sources["ours"], num_channels=1)
    gray.save_pretrained(tmp_path)
    assert torch.equal(
        TwinsForImageClassification.from_pretrained(tmp_path).get_input_embeddings().weight,
        gray.get_input_embeddings().weight,
    )
    colored = TwinsForImageClassification.from_pretrained(tmp_path, num_channels=3)
    image = torch.rand(1, 1, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(colored(image.expand(-1, 3, -1, -1)).logits, gray(image).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["timm", "authors", "ours"])
def test_load_model_adapts_the_image_processor_too(source, sources):
    model, processor = load_model(sources[source], "image-classification", num_channels=1)
    image = torch.randint(256, (1, 300, 280), dtype=torch.uint8)
    inputs = processor(image, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 1, 224, 224)
    assert model(**inputs).logits.shape == (1, 5)


def test_image_processor_is_adapted_once_and_single_numbers_apply_to_all_channels():
    processor = TwinsImageProcessor(image_mean=0.5, image_std=[0.1, 0.2, 0.3])
    gray = adapt_channels(processor, 1)
    assert (gray.image_mean, gray.image_std, gray.do_convert_rgb) == (0.5, pytest.approx([0.2]), False)
    assert adapt_channels(gray, 1) is gray
    assert adapt_channels(processor, 3) is processor
    assert adapt_channels(TwinsImageProcessor(image_mean=0.5, image_std=0.5), 1).do_convert_rgb is False
    assert adapt_channels(TwinsImageProcessor(do_convert_rgb=False), 3).do_convert_rgb is False
    assert adapt_channels(adapt_channels(TwinsImageProcessor(), 1), 3).do_convert_rgb


def test_upernet_adapts(tmp_path):
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3"])
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=4)
    upernet = randomize(UperNetForSemanticSegmentation(config))
    upernet.save_pretrained(tmp_path)
    TwinsImageProcessor(do_center_crop=False).save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, "semantic-segmentation", num_channels=5)
    assert model.config.backbone_config.num_channels == model.backbone.config.num_channels == 5
    gray = torch.rand(1, 1, 64, 48)
    with torch.no_grad():
        expected = upernet(gray.expand(-1, 3, -1, -1)).logits
        torch.testing.assert_close(model(gray.expand(-1, 5, -1, -1)).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("source", ["timm", "ours"])
@pytest.mark.parametrize("num_channels", [0, -1, "one", 1.5])
def test_invalid_number_of_channels_is_named(source, num_channels, sources):
    with pytest.raises(Exception, match="num_channels"):
        TwinsForImageClassification.from_pretrained(sources[source], num_channels=num_channels)
