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
"""What models see and say, as images: inputs, masks in the colors of their classes, and masks over their image."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch


# Of pixels without a class.
GRAY = (128, 128, 128)
MASK_OPACITY = 0.6


def denormalize(pixel_values: torch.Tensor, processor: Any) -> PIL.Image.Image:
    """The image that a model was given.

    Args:
        pixel_values: `(num_channels, height, width)`, with one or three channels.
        processor: the image processor that made them.
    """
    pixels = pixel_values.cpu().float()
    if processor.do_normalize:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())


def label_colors(names: Sequence[str]) -> np.ndarray:
    """A color for each class, `(num_labels, 3)`, uint8: black for one called background; those of neighbors differ most."""
    colors = []
    for index, name in enumerate(names):
        # Steps of the golden ratio around the circle of hues, lighter and darker.
        hue, value = (0.618034 * index) % 1, (1.0, 0.75, 0.55)[index % 3]
        colors.append((0, 0, 0) if name.lower() == "background" else colorsys.hsv_to_rgb(hue, 0.85, value))
    return (255 * np.array(colors)).round().astype(np.uint8)


def mask_image(mask: np.ndarray, names: Sequence[str]) -> PIL.Image.Image:
    """A mask as an image whose pixels are the numbers of the classes.

    Args:
        mask: number of the class of each pixel, `(height, width)`.
        names: names of the classes.

    Returns:
        An image with a palette of the classes' colors; one of 16 bits where there are more than 256 classes.
    """
    if len(names) > 256:
        return PIL.Image.fromarray(mask.astype(np.uint16))
    image = PIL.Image.fromarray(mask.astype(np.uint8))
    image.putpalette(label_colors(names).tobytes())
    return image


def overlay_mask(
    image: PIL.Image.Image, mask: np.ndarray, names: Sequence[str], opacity: float = MASK_OPACITY
) -> PIL.Image.Image:
    """An image under the colors of its mask.

    Args:
        image: the image.
        mask: number of the class of each pixel, `(height, width)` of the image; gray where there is no such class.
        names: names of the classes.
        opacity: from 0, the image alone, to 1, the colors alone.
    """
    # Not `torchvision.utils.draw_segmentation_masks`, which needs a boolean mask of the whole image for every class.
    is_known = mask < len(names)
    colors = np.where(is_known[..., None], label_colors(names)[np.where(is_known, mask, 0)], np.array(GRAY, np.uint8))
    return PIL.Image.blend(image.convert("RGB"), PIL.Image.fromarray(colors.astype(np.uint8)), opacity)


def class_areas(mask: np.ndarray, num_labels: int) -> dict[int, int]:
    """How many pixels of a mask each class has that is in it, by its number; the largest first."""
    counts = np.bincount(mask.ravel(), minlength=num_labels)[:num_labels]
    return {int(index): int(counts[index]) for index in np.argsort(-counts, kind="stable") if counts[index]}
