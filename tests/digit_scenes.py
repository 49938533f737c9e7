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
"""Pictures of several digits whose masks and boxes are exact: real handwriting, in scenes that a small model can learn.

The digits are scikit-learn's (https://archive.ics.uci.edu/dataset/80), of 8 x 8 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits


# From which side in pixels a digit can still be told, and up to which share of the picture's smaller side.
MIN_DIGIT_SIDE, MAX_DIGIT_SHARE = 14, 0.5
NUM_TRIES = 50


@dataclass(frozen=True)
class DigitScene:
    """A picture and what is in it.

    Args:
        image: of colour.
        mask: `(height, width)`, uint8: 0 on the background, 1 + the digit on one.
        boxes: `(num_digits, 4)`, float32: left, top, right and bottom of each digit in pixels, right and bottom exclusive.
        labels: `(num_digits,)`, int64: which digit it is.
    """

    image: PIL.Image.Image
    mask: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def digit_scene(
    seed: int, size: tuple[int, int] = (64, 64), num_digits: int = 3, digits: Sequence[int] = tuple(range(10))
) -> DigitScene:
    """Digits at random places and of random sizes and colours, none over another, on a textured background.

    Args:
        seed: which everything depends on.
        size: height and width in pixels.
        num_digits: how many; fewer where there is no room for more.
        digits: those that there are.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    pixels = textured_background(rng, height, width)
    mask = np.zeros(size, dtype=np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(num_digits):
        label, ink = random_digit(rng, max(int(min(size) * MAX_DIGIT_SHARE), MIN_DIGIT_SIDE), digits)
        box = free_place(rng, mask, ink.shape)
        if box is None:
            continue
        left, top, right, bottom = box
        mask[top:bottom, left:right][ink] = 1 + label
        pixels[top:bottom, left:right][ink] = rng.uniform(150, 255, 3)
        boxes.append(box)
        labels.append(label)
    pixels += rng.normal(0, 6, pixels.shape)
    return DigitScene(
        image=PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)),
        mask=mask,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
    )


def textured_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dark clouds of colour, `(height, width, 3)` from 0 to 255."""
    clouds = PIL.Image.fromarray(rng.integers(0, 110, (5, 5, 3), dtype=np.uint8))
    return np.asarray(clouds.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(np.float64)


@cache
def digit_pictures() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32), digits.target


def random_digit(rng: np.random.Generator, max_side: int, digits: Sequence[int]) -> tuple[int, np.ndarray]:
    """A digit and where its ink is, without a margin, of any size up to `max_side`."""
    pictures, labels = digit_pictures()
    index = int(rng.choice(np.flatnonzero(np.isin(labels, digits))))
    side = int(rng.integers(MIN_DIGIT_SIDE, max_side + 1))
    picture = PIL.Image.fromarray(pictures[index]).resize((side, side), PIL.Image.Resampling.BILINEAR)
    ink = np.asarray(picture) > 6
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return int(labels[index]), ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def free_place(rng: np.random.Generator, mask: np.ndarray, size: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a random place of that height and width where nothing is yet, if one is found."""
    for _ in range(NUM_TRIES):
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(mask.shape, size))
        bottom, right = top + size[0], left + size[1]
        # With a pixel between.
        if not mask[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any():
            return left, top, right, bottom
    return None
