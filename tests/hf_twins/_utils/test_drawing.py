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

import numpy as np
import pytest
import torch
from PIL import Image

from hf_twins import TwinsImageProcessor
from hf_twins._utils.drawing import GRAY, class_areas, denormalize, label_colors, mask_image, overlay_mask


NAMES = [str(index) for index in range(150)]


def test_each_class_has_its_color_and_background_is_black():
    colors = label_colors(NAMES)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 150
    named = label_colors(["Background", *NAMES[1:]])
    assert named[0].tolist() == [0, 0, 0]
    assert np.array_equal(named[1:], colors[1:])


def test_overlay_shows_each_class_in_its_color_and_what_has_none_in_gray():
    mask = np.array([[0, 1, 255]], dtype=np.uint8)
    pixels = np.asarray(overlay_mask(Image.new("RGB", (3, 1)), mask, NAMES))[0]
    np.testing.assert_allclose(pixels, 0.6 * np.array([*label_colors(NAMES)[:2], GRAY]), atol=1)


@pytest.mark.parametrize("num_labels", [2, 256, 300])
def test_mask_image_holds_the_numbers_of_the_classes(num_labels, tmp_path):
    mask = np.arange(num_labels).reshape(2, -1)
    mask_image(mask, [str(index) for index in range(num_labels)]).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert read.mode == ("P" if num_labels <= 256 else "I;16")
        assert np.array_equal(np.asarray(read), mask)


def test_areas_are_those_of_classes_that_are_there_largest_first():
    assert list(class_areas(np.array([[2, 2, 2], [0, 0, 255]]), 4).items()) == [(2, 3), (0, 2)]


@pytest.mark.parametrize(
    "values", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}], ids=str
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_input_is_shown_as_the_image_that_it_was(num_channels, values):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, 8, num_channels), dtype=np.uint8)
    means = [0.4, 0.5, 0.6][:num_channels]
    processor = TwinsImageProcessor(
        do_resize=False, do_center_crop=False, do_convert_rgb=False, image_mean=means, image_std=means, **values
    )
    pixel_values = processor(torch.from_numpy(pixels).permute(2, 0, 1), return_tensors="pt")["pixel_values"][0]
    assert np.array_equal(np.asarray(denormalize(pixel_values, processor)), pixels.repeat(3 // num_channels, axis=-1))
