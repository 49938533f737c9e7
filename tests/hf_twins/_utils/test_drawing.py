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
from hf_twins._utils.drawing import GRAY, _to_lab, class_areas, denormalize, label_colors, mask_image, overlay_mask


NAMES = [str(index) for index in range(150)]


def test_each_class_has_its_color_and_background_is_black():
    colors = label_colors(NAMES)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 150
    named = label_colors(["Background", *NAMES[1:]])
    assert named[0].tolist() == [0, 0, 0]
    assert np.array_equal(named[1:], colors[1:])


def test_cielab_conversion_follows_the_standard():
    red, green, gray = _to_lab(np.array([(255, 0, 0), (0, 255, 0), (119, 119, 119)]))
    np.testing.assert_allclose(red, [53.24, 80.09, 67.20], atol=0.05)
    np.testing.assert_allclose(green, [87.73, -86.18, 83.18], atol=0.05)
    np.testing.assert_allclose(gray, [50.03, 0, 0], atol=0.05)


@pytest.mark.parametrize(("count", "least"), [(2, 80), (10, 50), (20, 35), (150, 12)])
def test_colors_are_far_apart(count, least):
    """The distance is perceptual: 2.3 is just noticeable."""
    colors = _to_lab(np.concatenate([label_colors(NAMES[:count]), [GRAY]]))
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1) + 1e9 * np.eye(count + 1)
    assert distances.min() >= least


def test_overlay_shows_classes_in_their_colors_and_pixels_without_a_class_in_gray():
    mask = np.repeat(np.array([[0, 1, 255]], dtype=np.uint8), 5, axis=1).repeat(3, axis=0)
    image = Image.new("RGB", (15, 3), (10, 20, 30))
    pixels = np.asarray(overlay_mask(image, mask, NAMES))[1]
    colors = np.array([*label_colors(NAMES)[:2], GRAY])
    # Inside a region, image and class color are mixed in equal parts.
    np.testing.assert_allclose(pixels[[2, 7, 12]], (colors + np.array([10, 20, 30])) / 2, atol=1)
    # Borders have the color of the legend.
    np.testing.assert_array_equal(pixels[[4, 5, 9, 10]], colors[[0, 1, 1, 2]])
    assert overlay_mask(image, mask, NAMES, opacity=0).tobytes() == image.tobytes()


def test_overlay_leaves_the_background_visible():
    mask = np.array([[0, 0, 0, 1, 1, 1]])
    image = Image.new("RGB", (6, 1), (10, 20, 30))
    pixels = np.asarray(overlay_mask(image, mask, ["Background", "digit"]))[0]
    assert pixels[:3].tolist() == 3 * [[10, 20, 30]]
    assert pixels[3].tolist() == label_colors(["Background", "digit"])[1].tolist()


@pytest.mark.parametrize("num_labels", [2, 256, 300])
def test_mask_image_contains_class_numbers(num_labels, tmp_path):
    mask = np.arange(num_labels).reshape(2, -1)
    mask_image(mask, [str(index) for index in range(num_labels)]).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert read.mode == ("P" if num_labels <= 256 else "I;16")
        assert np.array_equal(np.asarray(read), mask)


def test_areas_of_existing_classes_are_sorted_by_size():
    assert list(class_areas(np.array([[2, 2, 2], [0, 0, 255]]), 4).items()) == [(2, 3), (0, 2)]


@pytest.mark.parametrize(
    "values", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}], ids=str
)
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_denormalize_restores_the_input_image(num_channels, values):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, 8, num_channels), dtype=np.uint8)
    means = [0.4, 0.5, 0.6, 0.7][:num_channels]
    processor = TwinsImageProcessor(
        do_resize=False, do_center_crop=False, do_convert_rgb=False, image_mean=means, image_std=means, **values
    )
    pixel_values = processor(torch.from_numpy(pixels).permute(2, 0, 1), return_tensors="pt")["pixel_values"][0]
    restored = np.asarray(denormalize(pixel_values, processor))
    if num_channels == 4:
        opacity = pixels[..., 3:] / 255
        # Pillow rounds while it composites on white.
        assert np.abs(restored - (pixels[..., :3] * opacity + 255 * (1 - opacity))).max() <= 1
    else:
        assert np.array_equal(restored, pixels.repeat(3 // num_channels, axis=-1))
