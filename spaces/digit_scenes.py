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
"""Generates scenes of handwritten digits with exact masks and boxes, to train and demonstrate a small model.

The digits are scikit-learn's (https://archive.ics.uci.edu/dataset/80), with 8 x 8 pixels.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits


# Maximum side of a digit, relative to the shorter side of the scene.
MAX_DIGIT_SHARE = 0.5
NUM_TRIES = 50


@dataclass(frozen=True)
class DigitScene:
    """An image with its digits.

    Args:
        image: color image.
        mask: `(height, width)`, uint8: 0 on the background, and the digit plus 1 on a digit.
        boxes: `(num_digits, 4)`, float32: left, top, right and bottom of each digit in pixels, right and bottom
            exclusive.
        labels: `(num_digits,)`, int64: the digits.
    """

    image: PIL.Image.Image
    mask: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32), digits.target


def digit_scene(
    seed: int,
    size: tuple[int, int] = (64, 64),
    num_digits: int = 3,
    handwriting: np.ndarray | None = None,
    min_side: int = 14,
) -> DigitScene:
    """Create a scene of digits with random places, sizes and colors, without overlaps, on dark clouds of color.

    Args:
        seed: seed of all random numbers.
        size: height and width in pixels.
        num_digits: number of digits; fewer if there is no room for more.
        handwriting: indices in `load_digits` of the digits to use; all by default.
        min_side: minimum side of a digit, with its margin, in pixels; below 14, digits are illegible.
    """
    rng = np.random.default_rng(seed)
    images, digits = digit_images()
    height, width = size
    clouds = PIL.Image.fromarray(rng.integers(0, 110, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(clouds.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(np.float64)
    mask = np.zeros(size, dtype=np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(num_digits):
        index = rng.choice(np.arange(len(digits)) if handwriting is None else handwriting)
        max_side = max(int(min(size) * MAX_DIGIT_SHARE), min_side)
        ink = resized_ink(images[index], int(rng.integers(min_side, max_side + 1)))
        box = free_place(rng, mask, ink.shape)
        if box is None:
            continue
        left, top, right, bottom = box
        mask[top:bottom, left:right][ink] = 1 + digits[index]
        pixels[top:bottom, left:right][ink] = rng.uniform(150, 255, 3)
        boxes.append(box)
        labels.append(int(digits[index]))
    pixels += rng.normal(0, 6, pixels.shape)
    return DigitScene(
        image=PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)),
        mask=mask,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
    )


def resized_ink(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image to the given side, and return the mask of its ink, without its margin."""
    resized = PIL.Image.fromarray(image).resize((side, side), PIL.Image.Resampling.BILINEAR)
    ink = np.asarray(resized) > 6
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def free_place(rng: np.random.Generator, mask: np.ndarray, size: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Find a random empty place with the given height and width; return its left, top, right and bottom, or None."""
    for _ in range(NUM_TRIES):
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(mask.shape, size))
        bottom, right = top + size[0], left + size[1]
        # Keep at least one pixel between digits.
        if not mask[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any():
            return left, top, right, bottom
    return None
