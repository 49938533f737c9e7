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
"""Scenes of several handwritten digits, each with the mask of what is where: for a small model to be trained and shown on.

The digits are scikit-learn's (https://archive.ics.uci.edu/dataset/80), of 8 x 8 pixels.
"""

from functools import cache

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits


MIN_DIGIT_SIDE, MAX_DIGIT_SHARE = 22, 0.5
NUM_TRIES = 50


@cache
def digit_pictures() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32), digits.target


def digit_scene(
    seed: int, handwriting: np.ndarray, size: tuple[int, int] = (64, 64), num_digits: int = 3
) -> tuple[PIL.Image.Image, np.ndarray]:
    """Digits at random places and of random sizes and colours, none over another, on dark clouds of colour.

    Args:
        seed: which everything depends on.
        handwriting: indices in `load_digits` of those to take.
        size: height and width in pixels.
        num_digits: how many; fewer where there is no room for more.

    Returns:
        The picture, and its mask, `(height, width)`, uint8: 0 on the background, 1 + the digit on one.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    clouds = PIL.Image.fromarray(rng.integers(0, 110, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(clouds.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(np.float64)
    mask = np.zeros(size, dtype=np.uint8)
    for _ in range(num_digits):
        index = rng.choice(handwriting)
        ink = random_ink(rng, index, max(int(min(size) * MAX_DIGIT_SHARE), MIN_DIGIT_SIDE))
        place = free_place(rng, mask, ink.shape)
        if place is not None:
            mask[place][ink] = 1 + digit_pictures()[1][index]
            pixels[place][ink] = rng.uniform(150, 255, 3)
    pixels += rng.normal(0, 6, pixels.shape)
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def random_ink(rng: np.random.Generator, index: int, max_side: int) -> np.ndarray:
    """Where a digit is, without a margin, in any size up to `max_side`."""
    side = int(rng.integers(MIN_DIGIT_SIDE, max_side + 1))
    picture = PIL.Image.fromarray(digit_pictures()[0][index]).resize((side, side), PIL.Image.Resampling.BILINEAR)
    ink = np.asarray(picture) > 6
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def free_place(rng: np.random.Generator, mask: np.ndarray, size: tuple[int, ...]) -> tuple[slice, slice] | None:
    """A random place of that height and width where nothing is yet, if one is found."""
    for _ in range(NUM_TRIES):
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(mask.shape, size))
        # With a pixel between.
        if not mask[max(top - 1, 0) : top + size[0] + 1, max(left - 1, 0) : left + size[1] + 1].any():
            return slice(top, top + size[0]), slice(left, left + size[1])
    return None
