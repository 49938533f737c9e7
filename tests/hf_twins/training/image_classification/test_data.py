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
"""Preparation of images and arrays for training and evaluation by an image processor."""

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Array3D, Dataset, Features

from hf_twins import TwinsImageProcessor
from hf_twins.training.image_classification.arguments import ClassificationRecipe
from hf_twins.training.image_classification.data import (
    Preparation,
    check_preparation,
    evaluation_transform,
    mean_color,
    stacked,
    training_transform,
    without_corrupt_images,
)
from hf_twins.training.image_classification.models import adapt_processor


PIXELS = np.linspace(0, 1, 24).reshape(2, 4, 3)
ARRAYS = {
    "uint8": (255 * PIXELS, "uint8", None),
    "whole numbers": (255 * PIXELS, "int64", None),
    "fractions": (PIXELS, "float32", None),
    "16 bits": (65535 * PIXELS, "uint16", "from 0 to 65535"),
    "negative": (2 * PIXELS - 1, "float32", r"float\d+ from -1.0 to 1.0"),
    "fractions to 255": (255 * PIXELS, "float64", r"float\d+ from 0.0 to 255.0"),
    "negative integers": (255 * PIXELS - 128, "int32", "from -128 to 127"),
    "NaN": (np.where(PIXELS == 1, np.nan, PIXELS), "float32", "from nan to nan"),
}


@pytest.mark.parametrize(("array", "dtype", "message"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_bytes_or_fractions_or_refused(array, dtype, message, caplog):
    array = array.astype(dtype)
    features = Features({"image": Array3D(array.shape, dtype)})
    split = Dataset.from_dict({"image": [np.zeros_like(array), array]}, features=features)
    preparation = Preparation(lambda image: image, 3)
    example = split[1] | {"label": 0}
    if message is None:
        assert len(without_corrupt_images(split, "train")[0]) == 2
        expected = np.rint(255 * PIXELS) if dtype == "float32" else np.floor(255 * PIXELS)
        assert np.array_equal(preparation(example)["pixel_values"], expected)
        assert ("2 images of train have fractional pixel values" in caplog.text) == (dtype == "float32")
        return
    with pytest.raises(ValueError, match=f"Image 1 of train cannot be used: An array must have whole .*{message}"):
        without_corrupt_images(split, "train")
    for image in (array, example["image"]):
        with pytest.raises(ValueError, match="An array must have whole numbers from 0 to 255, or fractions"):
            preparation({"image": image, "label": 0})


SIZES = {
    "crop": {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}},
    "crop of all": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
    "wide crop": {"size": {"shortest_edge": 40}, "crop_size": {"height": 16, "width": 40}},
    "squeezed": {"size": {"height": 16, "width": 24}, "do_center_crop": False},
    "squeezed, cropped": {"size": {"height": 20, "width": 30}, "crop_size": {"height": 16, "width": 24}},
}
VALUES = {
    "normalized": {},
    "not normalized": {"do_normalize": False},
    "not rescaled": {"do_rescale": False},
    "other factor": {"rescale_factor": 1 / 127.5},
    "one mean": {"image_mean": 0.5, "image_std": 0.25},
    "padded": {"do_pad": True},
    "not converted": {"do_convert_rgb": False},
}


@pytest.mark.parametrize("num_channels", [1, 3, 5])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_training_and_evaluation_see_the_pixels_of_the_processor(sizes, values, num_channels):
    processor = adapt_processor(TwinsImageProcessor(**sizes | values), None, num_channels)
    array = np.tile(np.arange(10, 60, 10, dtype=np.uint8)[:num_channels], (30, 45, 1))
    recipe = ClassificationRecipe(min_crop_scale=0.5)
    for resample in (0, 2, 3):
        processor.resample = resample
        trained, evaluated = (
            Preparation(transform, num_channels)({"image": array, "label": 0}, 0, 1)["pixel_values"]
            for transform in (training_transform(recipe, processor, num_channels), evaluation_transform(processor))
        )
        expected = processor(array, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
        assert torch.equal(evaluated, expected)
        assert trained.shape == expected.shape
        torch.testing.assert_close(trained, expected, rtol=0, atol=1e-5)


def test_aspect_ratio_of_crops_matches_evaluation():
    """The image has constant slopes along columns and rows, so that slopes in the result show how it was scaled."""
    rows, columns = np.mgrid[0:80, 0:240]
    image = PIL.Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))
    for sizes in SIZES.values():
        processor = TwinsImageProcessor(**sizes, do_normalize=False, do_rescale=True, rescale_factor=1.0)
        slopes = []
        for seed in range(20):
            transform = training_transform(ClassificationRecipe(horizontal_flip=0.0), processor)
            seen = Preparation(transform, 3, seed)({"image": image, "label": 0}, 0)["pixel_values"]
            down = float(seen[0, -2, 5] - seen[0, 1, 5]) / (seen.shape[1] - 3)
            across = float(seen[1, 5, -2] - seen[1, 5, 1]) / (seen.shape[2] - 3)
            slopes.append(across / down)
        evaluated = evaluation_transform(processor)(image)
        down = float(evaluated[0, -2, 5] - evaluated[0, 1, 5]) / (evaluated.shape[1] - 3)
        across = float(evaluated[1, 5, -2] - evaluated[1, 5, 1]) / (evaluated.shape[2] - 3)
        assert 0.55 < min(slopes) / (across / down) < max(slopes) / (across / down) < 1.7, sizes


NOT_TRAINABLE = {
    "not resized": ({"do_resize": False}, "do_resize=True"),
    "not cropped": ({"do_center_crop": False}, "do_center_crop=True, or a size of height and width"),
    "limited": ({"size": {"shortest_edge": 256, "longest_edge": 512}}, "shortest_edge alone, got .*512"),
    "within": ({"size": {"max_height": 64, "max_width": 64}}, "a size of height and width"),
    "padded crop": ({"size": {"shortest_edge": 200}}, "a crop_size that is not above its size, .*200.*224"),
    "bytes": ({"do_rescale": False, "do_normalize": False}, "must have do_rescale or do_normalize"),
    "resample": (
        {"resample": 4},
        r"resample must be one that torchvision has, 0 \(nearest\), 2 \(bilinear\), 3 \(bicubic\)",
    ),
}


@pytest.mark.parametrize(("fields", "message"), NOT_TRAINABLE.values(), ids=NOT_TRAINABLE)
def test_processor_that_cannot_be_trained_with_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        training_transform(ClassificationRecipe(), TwinsImageProcessor(**fields))


UNUSABLE = {
    "factor": {"rescale_factor": 0.0},
    "deviation": {"image_std": [0.0, 0.2, 0.2]},
    "channels": {"image_mean": [0.5, 0.5]},
}


@pytest.mark.parametrize("fields", UNUSABLE.values(), ids=UNUSABLE)
def test_processor_that_cannot_prepare_any_image_is_refused(fields):
    for num_channels in (1, 3):
        processor = adapt_processor(TwinsImageProcessor(), None, num_channels)
        check_preparation(Preparation(evaluation_transform(processor), num_channels))
    broken = Preparation(evaluation_transform(TwinsImageProcessor(**fields)), 3)
    with pytest.raises(
        ValueError, match=r"^The image processor cannot prepare images \(.*\): look at its rescale_factor"
    ):
        check_preparation(broken)


@pytest.mark.parametrize(
    ("fields", "color"),
    [
        ({}, [124, 116, 104]),
        ({"do_rescale": False, "image_mean": [124.0, 300.0, 0.0]}, [124, 255, 0]),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0}, [128, 128, 128]),
    ],
    ids=["plain", "not rescaled", "other factor"],
)
def test_mean_color_becomes_zero_after_preprocessing(fields, color):
    assert mean_color(TwinsImageProcessor(**fields), 3) == color


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("random_erasing", 2.0),
        ("horizontal_flip", -0.1),
        ("min_crop_scale", 0.0),
        ("label_smoothing", 1.0),
        ("color_jitter", -1.0),
        ("mixup_alpha", float("nan")),
        ("cutmix_alpha", -1.0),
    ],
)
def test_share_out_of_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"^--{name} must be .*, got {value}"):
        ClassificationRecipe(**{name: value})


def test_random_erasing_needs_normalized_pixels():
    with pytest.raises(ValueError, match="--random_erasing fills in noise for normalized pixels"):
        training_transform(ClassificationRecipe(random_erasing=0.1), TwinsImageProcessor(do_normalize=False))


def test_images_of_several_sizes_cannot_form_a_batch():
    with pytest.raises(ValueError, match="must have one height and width, got 4 x 6, 6 x 4: the image processor must"):
        stacked([torch.zeros(3, 4, 6), torch.zeros(3, 6, 4), torch.zeros(3, 4, 6)])


def test_image_size_scales_the_settings_of_the_processor():
    squeezed = TwinsImageProcessor(size={"height": 40, "width": 40}, do_center_crop=False)
    assert evaluation_transform(adapt_processor(squeezed, 64, 3))(PIL.Image.new("RGB", (90, 50))).shape[1:] == (64, 64)
    cropped = TwinsImageProcessor(size={"height": 20, "width": 30}, crop_size={"height": 10, "width": 15})
    adapted = adapt_processor(cropped, 60, 3)
    assert (adapted.crop_size.height, adapted.crop_size.width) == (60, 60)
    assert (adapted.size.height, adapted.size.width) == (120, 120)
    with pytest.raises(
        ValueError, match="--image_size is the side of the crop, but the image processor does not crop"
    ):
        adapt_processor(TwinsImageProcessor(do_center_crop=False), 64, 3)
