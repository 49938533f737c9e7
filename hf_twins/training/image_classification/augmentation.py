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
"""RandAugment (https://huggingface.co/papers/1909.13719) as in timm, with which the authors trained.

This is timm's `rand-m9-mstd0.5-inc1`:
https://github.com/huggingface/pytorch-image-models/blob/main/timm/data/auto_augment.py. Unlike torchvision's version,
it applies each drawn operation with a probability of 0.5, has other operations and strengths, and resamples with
bicubic interpolation, which torchvision supports for Pillow images only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch
from PIL import ImageEnhance, ImageOps
from torchvision import tv_tensors
from torchvision.transforms import v2


# On a scale from 0 to 10.
MAGNITUDE, MAGNITUDE_DEVIATION = 9.0, 0.5
PROBABILITY = 0.5
Fill = int | tuple[int, ...]
# An operation takes an image, a strength from 0 to 1, a sign, and the color for uncovered areas, and returns an image.
Operation = Callable[[PIL.Image.Image, float, int, Fill], PIL.Image.Image]


def transformed(image: PIL.Image.Image, matrix: tuple[float, ...], fill: Fill) -> PIL.Image.Image:
    bicubic = PIL.Image.Resampling.BICUBIC
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, resample=bicubic, fillcolor=fill)


def enhanced(enhancer: Any) -> Operation:
    return lambda image, level, sign, fill: enhancer(image).enhance(max(0.1, 1 + sign * 0.9 * level))


def rotate(image: PIL.Image.Image, level: float, sign: int, fill: Fill) -> PIL.Image.Image:
    return image.rotate(sign * 30 * level, resample=PIL.Image.Resampling.BICUBIC, fillcolor=fill)


def solarize_add(image: PIL.Image.Image, level: float, sign: int, fill: Fill) -> PIL.Image.Image:
    """Brighten the dark pixels."""
    added = min(128, int(110 * level))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(len(image.getbands()) * table)


# The keys are timm's names.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, sign, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign, fill: ImageOps.equalize(image),
    "Invert": lambda image, level, sign, fill: ImageOps.invert(image),
    "Rotate": rotate,
    "PosterizeIncreasing": lambda image, level, sign, fill: ImageOps.posterize(image, 4 - int(4 * level)),
    "SolarizeIncreasing": lambda image, level, sign, fill: ImageOps.solarize(image, 256 - min(256, int(256 * level))),
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": enhanced(ImageEnhance.Color),
    "ContrastIncreasing": enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": enhanced(ImageEnhance.Sharpness),
    "ShearX": lambda image, level, sign, fill: transformed(image, (1, sign * 0.3 * level, 0, 0, 1, 0), fill),
    "ShearY": lambda image, level, sign, fill: transformed(image, (1, 0, 0, sign * 0.3 * level, 1, 0), fill),
    "TranslateXRel": lambda image, level, sign, fill: transformed(
        image, (1, 0, sign * 0.45 * level * image.width, 0, 1, 0), fill
    ),
    "TranslateYRel": lambda image, level, sign, fill: transformed(
        image, (1, 0, 0, 0, 1, sign * 0.45 * level * image.height), fill
    ),
}


class RandAugment(v2.Transform):
    """Draw random operations, and apply each with a probability of 0.5 and a random strength.

    Images are `uint8`, with one or three channels.

    Args:
        fill: value of each channel, from 0 to 255, for areas that an operation uncovers.
        num_operations: number of operations to draw.
    """

    def __init__(self, fill: Sequence[int], num_operations: int = 2):
        super().__init__()
        self.fill, self.num_operations = list(fill), num_operations

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        names = list(OPERATIONS)
        drawn = []
        for index in torch.randint(len(names), (self.num_operations,)).tolist():
            is_applied, is_negative = (torch.rand(2) < PROBABILITY).tolist()
            magnitude = MAGNITUDE + MAGNITUDE_DEVIATION * float(torch.randn(()))
            if is_applied:
                drawn.append((names[index], min(max(magnitude, 0), 10) / 10, -1 if is_negative else 1))
        return {"drawn": drawn}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["drawn"]:
            return inpt
        fill = tuple(self.fill) if len(self.fill) > 1 else self.fill[0]
        image = v2.functional.to_pil_image(inpt)
        for name, level, sign in params["drawn"]:
            image = OPERATIONS[name](image, level, sign, fill)
        return tv_tensors.Image(v2.functional.pil_to_tensor(image))
