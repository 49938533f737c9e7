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
"""Conversion of image processors to timm: both preprocess image files alike, and unsupported settings are named."""

import json

import pytest
import torch
import torchvision
from packaging.version import Version
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config

from hf_twins import TwinsImageProcessor, TwinsImageProcessorPil
from hf_twins.checkpoints import convert_timm_config, convert_timm_preprocessing, revert_timm_preprocessing
from hf_twins.checkpoints.timm import unread_timm_fields


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """Photographs of several shapes; the center of the first one after resizing is at half a pixel."""
    folder = tmp_path_factory.mktemp("images")
    china = Image.fromarray(load_sample_image("china.jpg"))
    for name, image in {
        "landscape": china,
        "portrait": china.crop((5, 7, 305, 420)),
        "small": china.resize((90, 61)),
    }.items():
        image.save(folder / f"{name}.png")
        image.convert("L").save(folder / f"{name}_gray.png")
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="default"),
        pytest.param({"resample": 0}, id="nearest"),
        pytest.param(
            {"resample": 1},
            id="lanczos",
            marks=pytest.mark.skipif(
                Version(torchvision.__version__) < Version("0.27"),
                reason="transformers resizes by bicubic, and warns of it, where torchvision has no Lanczos",
            ),
        ),
        pytest.param({"resample": 2}, id="bilinear"),
        pytest.param({"resample": 4}, id="box"),
        pytest.param({"resample": 5}, id="hamming"),
        pytest.param({"size": {"shortest_edge": 235}}, id="size"),
        pytest.param({"size": {"shortest_edge": 438}, "crop_size": square(384)}, id="crop_size"),
        pytest.param({"size": {"shortest_edge": 224}}, id="whole_short_side"),
        pytest.param({"size": square(384), "do_center_crop": False}, id="squash_without_crop"),
        pytest.param({"size": square(256)}, id="squash_and_crop"),
        pytest.param({"size": {"height": 192, "width": 256}, "do_center_crop": False}, id="not_square"),
        pytest.param(
            {"size": {"height": 300, "width": 260}, "crop_size": {"height": 224, "width": 194}}, id="not_square_crop"
        ),
        pytest.param({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}, id="mean_std"),
        pytest.param({"image_mean": 0.5, "image_std": 0.25}, id="numbers"),
        pytest.param({"do_normalize": False}, id="do_normalize"),
        pytest.param({"do_rescale": False}, id="do_rescale"),
        pytest.param({"do_rescale": False, "do_normalize": False}, id="bytes"),
        pytest.param(
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, id="rescale_factor"
        ),
        pytest.param({"do_pad": True, "pad_size": square(224)}, id="pads_nothing"),
        pytest.param({"do_convert_rgb": False, "image_mean": [0.5], "image_std": [0.2]}, id="gray"),
    ],
)
def test_image_files_are_preprocessed_as_in_timm(fields, image_files):
    num_channels = 1 if fields.get("do_convert_rgb") is False else 3
    processor = TwinsImageProcessor(**fields)
    config = json.loads(json.dumps(revert_timm_preprocessing(processor, num_channels)))
    assert config["input_size"][0] == num_channels
    transform = create_transform(**resolve_data_config(pretrained_cfg=config))
    # Convert back, as `from_pretrained` does for timm's folders.
    again = TwinsImageProcessorPil(**convert_timm_preprocessing({"pretrained_cfg": config}))
    for file in image_files.glob("*_gray.png" if num_channels == 1 else "*[!y].png"):
        with Image.open(file) as image:
            expected = transform(image)
            for pil in (TwinsImageProcessorPil(**fields), again):
                actual = pil(image, return_tensors="pt").pixel_values[0]
                assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
            # torchvision lacks these filters, and may choose another nearest pixel when it enlarges.
            if fields.get("resample") in (4, 5) or (fields.get("resample") == 0 and file.stem == "small"):
                continue
            actual = processor(image, return_tensors="pt").pixel_values[0]
            assert torch.linalg.vector_norm(actual - expected) <= 1e-3 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_resize": False}, r"has do_resize=False, .* timm always resizes.*that has do_resize=True"),
        ({"do_center_crop": False}, r"do_center_crop=False and size={'shortest_edge': 256}, .*all images of one size"),
        ({"size": {"shortest_edge": 256, "longest_edge": 400}}, "'longest_edge': 400.* and crop_size="),
        ({"size": {"max_height": 256, "max_width": 256}}, r"size={'max_height': 256, 'max_width': 256}"),
        ({"crop_size": {"height": 224, "width": 192}}, "crop_size={'height': 224, 'width': 192}.*crops a square"),
        ({"size": square(256), "crop_size": {"height": 224, "width": 100}}, "one share, crop_pct"),
        ({"size": {"shortest_edge": 200}}, "both sides of a crop are smaller"),
        ({"do_pad": True, "pad_size": square(256)}, r"do_pad=True and pad_size={.*timm never pads"),
        ({"image_mean": [0.5], "image_std": [0.5]}, r"image_mean=\[0.5\].*3 numbers each"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"neither a std nor a factor of 0"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0"),
    ],
)
def test_settings_that_timm_cannot_express_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        revert_timm_preprocessing(TwinsImageProcessor(**fields), 3)


def test_conversion_to_rgb_for_a_model_with_one_channel_is_named():
    with pytest.raises(ValueError, match=r"do_convert_rgb=True.*gives this model 1 channels"):
        revert_timm_preprocessing(TwinsImageProcessor(image_mean=[0.5], image_std=[0.5]), 1)


@pytest.mark.parametrize(
    ("num_channels", "config"),
    [
        (1, {"pretrained_cfg": {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.2]}}),
        # The model was created for one channel, from a configuration for three.
        (1, {"pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}, "model_args": {"in_chans": 1}}),
        (4, {"pretrained_cfg": {"input_size": [4, 64, 64]}}),
    ],
)
def test_images_of_other_channels_are_not_converted_to_colors(num_channels, config):
    processor = TwinsImageProcessor(**convert_timm_preprocessing(config))
    image = torch.randint(256, (num_channels, 80, 70), dtype=torch.uint8)
    pixel_values = processor(image, return_tensors="pt").pixel_values[0]
    assert len(pixel_values) == num_channels
    assert len(processor.image_mean) == len(processor.image_std) == num_channels
    if num_channels == 1:
        assert processor.image_mean == pytest.approx([0.5])
        assert processor.image_std == pytest.approx([0.2])


def test_dropouts_of_timm_are_converted_or_named():
    arguments = {
        "attn_drop_rate": 0.1,
        "drop_path_rate": 0.2,
        "drop_rate": 0.3,
        "pos_drop_rate": 0,
        "proj_drop_rate": 0.5,
    }
    config = {"architecture": "twins_svt_small", "model_args": arguments}
    fields = convert_timm_config(config)
    assert (fields["attention_probs_dropout_prob"], fields["drop_path_rate"]) == (0.1, 0.2)
    assert unread_timm_fields(config) == ["model_args.drop_rate", "model_args.proj_drop_rate"]


def test_fields_of_timm_that_cannot_be_converted_are_named():
    pretrained_cfg = {
        "tag": "mine",
        "origin_url": "https://x",
        "test_crop_pct": 1.0,
        "crop_pct": 0.9,
        "url": "y",
        "notes": None,
    }
    config = {"architecture": "twins_svt_small", "note": 1, "pretrained_cfg": pretrained_cfg}
    expected = ["note", "pretrained_cfg.tag", "pretrained_cfg.origin_url", "pretrained_cfg.test_crop_pct"]
    assert unread_timm_fields(config) == expected
    described = {"architecture": "twins_svt_small", "label_names": ["n1"], "label_descriptions": {"n1": "cat"}}
    assert unread_timm_fields(described) == ["label_names, whose label_descriptions are taken"]


def test_other_pooling_of_timm_is_refused():
    for global_pool in (None, "avg"):
        convert_timm_config({"architecture": "twins_svt_small", "model_args": {"global_pool": global_pool}})
    with pytest.raises(ValueError, match="must have a global_pool of 'avg', as Twins models have, got ''"):
        convert_timm_config({"architecture": "twins_svt_small", "model_args": {"global_pool": ""}})
