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
"""Random crops, colors and padding of images and masks, and their conversion to pixels by an image processor."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from hf_twins import TwinsImageProcessor
from hf_twins.training.semantic_segmentation.arguments import SegmentationRecipe
from hf_twins.training.semantic_segmentation.augmentation import IGNORE_INDEX, PhotometricDistortion
from hf_twins.training.semantic_segmentation.data import Preparation, training_transform
from hf_twins.training.semantic_segmentation.inference import InferenceArguments, segment


def processor_of(**fields) -> TwinsImageProcessor:
    return TwinsImageProcessor(**{"size": {"shortest_edge": 32}, "do_center_crop": False} | fields)


def prepared(processor, image: Image.Image, seed: int = 0, **options) -> dict[str, torch.Tensor]:
    recipe = SegmentationRecipe(**{"min_scale": 1.0, "max_scale": 1.0, "photometric_distortion": False} | options)
    mask = Image.fromarray(np.indices((image.height, image.width))[1].astype(np.uint8) % 2)
    return Preparation(training_transform(recipe, processor), False, seed)({"image": image, "label": mask}, 0)


VALUES = {
    "normalized": {},
    "not normalized": {"do_normalize": False},
    "not rescaled": {"do_rescale": False},
    "other factor": {"rescale_factor": 1 / 127.5},
    "one mean": {"image_mean": 0.5, "image_std": 0.25},
    "padded": {"do_pad": True},
    "nearest": {"resample": 0},
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_training_sees_the_pixels_of_the_processor(values):
    processor = processor_of(**values)
    image = Image.new("RGB", (40, 40), (10, 120, 200))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    trained = prepared(processor, image)
    assert trained["pixel_values"].shape == expected.shape
    torch.testing.assert_close(trained["pixel_values"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distorted", [False, True])
def test_padding_is_zero_in_images_and_ignored_in_masks(distorted):
    image = Image.new("RGB", (160, 40), (250, 120, 30))
    trained = prepared(
        processor_of(), image, min_scale=0.5, max_scale=0.5, photometric_distortion=distorted, max_class_share=1.0
    )
    assert trained["pixel_values"].shape == (3, 32, 32)
    assert (trained["pixel_values"][:, 16:] == 0).all()
    assert (trained["pixel_values"][:, :16] != 0).all()
    assert (trained["labels"][16:] == IGNORE_INDEX).all()
    assert (trained["labels"][:16] != IGNORE_INDEX).all()


def test_long_images_are_scaled_as_in_evaluation():
    """The longest side is limited to 64, which determines the height."""
    processor = processor_of(size={"shortest_edge": 32, "longest_edge": 64})
    image = Image.new("RGB", (200, 40))
    height = processor(image, return_tensors="pt")["pixel_values"].shape[2]
    labels = prepared(processor, image, max_class_share=1.0)["labels"]
    assert int((labels != IGNORE_INDEX).any(1).sum()) == height


def test_processor_that_cannot_be_trained_with_is_refused():
    for fields, message in (
        ({"do_resize": False}, "must have do_resize=True"),
        ({"do_rescale": False, "do_normalize": False}, "must have do_rescale or do_normalize"),
        ({"resample": 1}, "resample must be one that torchvision has, 0"),
    ):
        with pytest.raises(ValueError, match=message):
            training_transform(SegmentationRecipe(), processor_of(**fields))
    with pytest.raises(ValueError, match="--scales need an image processor that resizes"):
        segment(None, processor_of(do_resize=False), Image.new("RGB", (8, 8)), InferenceArguments(scales=[0.5, 1.0]))


def test_colors_are_changed_as_in_mmsegmentation():
    """Brightness is added, contrast multiplied, and saturation changed in HSV, as in `PhotoMetricDistortion`."""
    pixels = torch.randint(256, (3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image, distortion = tv_tensors.Image(pixels), PhotometricDistortion()

    def changed(name: str, value: float) -> np.ndarray:
        return np.asarray(distortion.transform(image, {"changes": [(name, value)]})).astype(int)

    numbers = pixels.numpy().astype(np.float32)
    assert np.array_equal(changed("brightness", -20.4), np.clip(numbers - 20.4, 0, 255).astype(np.uint8))
    assert np.array_equal(changed("contrast", 1.37), np.clip(numbers * 1.37, 0, 255).astype(np.uint8))
    for factor in (0.5, 1.3):
        expected = []
        for red, green, blue in numbers.reshape(3, -1).T / 255:
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            expected.append(colorsys.hsv_to_rgb(hue, min(factor * saturation, 1), value))
        assert np.abs(changed("saturation", factor) - 255 * np.array(expected).T.reshape(3, 6, 8)).max() <= 0.51
    turned = [colorsys.rgb_to_hsv(*each)[0] for each in (changed("hue", 0.1).reshape(3, -1).T / 255)]
    before = [colorsys.rgb_to_hsv(*each)[0] for each in (numbers.reshape(3, -1).T / 255)]
    difference = (np.array(turned) - np.array(before) - 0.1 + 0.5) % 1 - 0.5
    assert np.abs(difference).max() < 0.02


def test_color_changes_are_drawn_as_in_mmsegmentation():
    torch.manual_seed(0)
    drawn = [PhotometricDistortion().make_params([])["changes"] for _ in range(4000)]
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        values = np.array([value for changes in drawn for each, value in changes if each == name])
        assert len(values) / 4000 == pytest.approx(0.5, abs=0.03)
        assert low <= values.min() < low + 0.01 * (high - low) * 3
        assert high - 0.01 * (high - low) * 6 < values.max() <= high
    both = [[each for each, _ in changes] for changes in drawn if len(changes) == 4]
    orders = {tuple(names) for names in both}
    assert orders == {
        ("brightness", "contrast", "saturation", "hue"),
        ("brightness", "saturation", "hue", "contrast"),
    }
