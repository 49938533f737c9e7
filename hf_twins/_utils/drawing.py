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
"""Draws inputs of models, masks in the colors of their classes, and masks on top of images."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..image_processing_twins import convert_image


# Color of pixels without a class.
GRAY = (128, 128, 128)
MASK_OPACITY = 0.5


def denormalize(pixel_values: torch.Tensor, processor: Any) -> PIL.Image.Image:
    """Convert pixel values back to the image that a model was given.

    Args:
        pixel_values: `(num_channels, height, width)`, with one, three or four channels; the fourth is the opacity, by
            which the image is composited on white.
        processor: image processor that created the pixel values.
    """
    pixels = pixel_values.cpu().float()
    if processor.do_normalize:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    pixels = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return convert_image(PIL.Image.fromarray(pixels.contiguous().numpy()))


def label_colors(names: Sequence[str]) -> np.ndarray:
    """A color for each class, `(num_labels, 3)`, uint8: black for the background, and distinct colors for the others."""
    colors = _distant_colors(len(names)).copy()
    colors[[is_background(name) for name in names]] = 0
    return colors


def is_background(name: str) -> bool:
    return name.lower() == "background"


@functools.cache
def _distant_colors(count: int) -> np.ndarray:
    """Colors `(count, 3)`, uint8, each as far as possible in CIELAB from all colors before it, gray, black and white."""
    levels = np.linspace(0, 255, 12).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _to_lab(candidates)
    # White is excluded, because it looks like a hole in the image.
    taken = _to_lab(np.array([GRAY, (0, 0, 0), (255, 255, 255)], dtype=float))
    distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(axis=1)
    chosen = np.empty(count, dtype=int)
    for index in range(count):
        chosen[index] = distance.argmax()
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[index]], axis=-1))
    return candidates[chosen].astype(np.uint8)


def _to_lab(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB colors from 0 to 255, `(num_colors, 3)`, to CIELAB (D65), as defined by IEC 61966-2-1 and CIE 15."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


def mask_image(mask: np.ndarray, names: Sequence[str]) -> PIL.Image.Image:
    """Convert a mask to an image whose pixel values are class numbers.

    Args:
        mask: class number of each pixel, `(height, width)`.
        names: names of the classes.

    Returns:
        An image with a palette of the class colors, or a 16-bit image if there are more than 256 classes.
    """
    if len(names) > 256:
        return PIL.Image.fromarray(mask.astype(np.uint16))
    image = PIL.Image.fromarray(mask.astype(np.uint8))
    image.putpalette(label_colors(names).tobytes())
    return image


def overlay_mask(
    image: PIL.Image.Image, mask: np.ndarray, names: Sequence[str], opacity: float = MASK_OPACITY
) -> PIL.Image.Image:
    """Draw the colors of a mask, with borders around its regions, on top of an image. The background is not painted.

    Args:
        image: the image.
        mask: class number of each pixel, with the height and width of the image; pixels without a class become gray.
        names: names of the classes.
        opacity: opacity of the colors, from 0 to 1.
    """
    # `torchvision.utils.draw_segmentation_masks` would need a boolean mask of the entire image for every class.
    pixels = np.asarray(image.convert("RGB"))
    # The last color is for pixels without a class.
    classes = np.minimum(mask, len(names))
    colors = np.concatenate([label_colors(names), np.array([GRAY], np.uint8)])[classes]
    is_painted = ~np.array([*map(is_background, names), False])[classes]
    drawn = np.array(PIL.Image.blend(PIL.Image.fromarray(pixels), PIL.Image.fromarray(colors), opacity))
    if opacity > 0:
        # Borders between regions have the opaque colors of the legend.
        np.copyto(drawn, colors, where=_borders(classes)[..., None])
    np.copyto(drawn, pixels, where=~is_painted[..., None])
    return PIL.Image.fromarray(drawn)


def _borders(mask: np.ndarray) -> np.ndarray:
    """Which pixels have a neighbor of another class; borders are wider in larger images."""
    borders = np.zeros(mask.shape, dtype=bool)
    for step in range(1, max(mask.shape) // 400 + 2):
        for axis in (0, 1):
            # Compare each pixel along the axis with the one `step` pixels further.
            before, after = (np.moveaxis(each, axis, 0)[:-step] for each in (mask, np.roll(mask, -step, axis)))
            along = np.moveaxis(borders, axis, 0)
            along[:-step] |= before != after
            along[step:] |= before != after
    return borders


def class_areas(mask: np.ndarray, num_labels: int) -> dict[int, int]:
    """Count the pixels of each class in a mask, by class number, largest first."""
    counts = np.bincount(mask.ravel(), minlength=num_labels)[:num_labels]
    return {int(index): int(counts[index]) for index in np.argsort(-counts, kind="stable") if counts[index]}
