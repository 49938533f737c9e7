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
"""mmsegmentation's augmentation for ADE20K, with which the authors trained.

https://github.com/open-mmlab/mmsegmentation, configs/_base_/datasets/ade20k.py and mmseg/datasets/transforms/transforms.py.
"""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


# In masks: no class.
IGNORE_INDEX = 255
# Crops to draw for one that is not nearly all of one class.
NUM_TRIES = 10


class RandomClassCrop(v2.Transform):
    """A random crop in which no class has too large a share, if one is found; whole sides where they are shorter than `size`.

    Args:
        size: side in pixels.
        max_class_share: largest share that one class may have of the pixels with a class.
    """

    def __init__(self, size: int, max_class_share: float):
        super().__init__()
        self.size, self.max_class_share = size, max_class_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(each for each in flat_inputs if isinstance(each, tv_tensors.Mask))
        height, width = (min(self.size, side) for side in mask.shape[-2:])
        for tries in range(NUM_TRIES + 1):
            top, left = (
                int(torch.randint(side - part + 1, ())) for side, part in zip(mask.shape[-2:], (height, width))
            )
            # The last one is taken as it is.
            if tries == NUM_TRIES or self.max_class_share >= 1:
                break
            crop = mask[..., top : top + height, left : left + width]
            counts = torch.bincount(crop[crop != IGNORE_INDEX].long())
            if (counts > 0).sum() > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.crop(inpt, **params)


class PadToSquare(v2.Transform):
    """Padding at the right and the bottom, of 0 and, in masks, of no class.

    Args:
        size: side in pixels.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        fill = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else 0
        return v2.functional.pad(inpt, [0, 0, self.size - width, self.size - height], fill=fill)


class PhotometricDistortion(v2.Transform):
    """Changes brightness, contrast, saturation and hue of an image of `uint8`, each in every second one.

    As `PhotoMetricDistortion` of mmsegmentation, which torchvision's transforms of the same names are not: brightness is added,
    contrast is a factor of the pixels, and the saturation that of HSV, which leaves the brightest channel as it is.
    """

    BRIGHTNESS = 32
    FACTORS = (0.5, 1.5)
    # Of 180, which are the whole circle.
    HUE = 18

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.FACTORS
        contrast, saturation = (low + (high - low) * torch.rand(2)).tolist()
        changes = {
            "brightness": self.BRIGHTNESS * (2 * float(torch.rand(())) - 1),
            "contrast": contrast,
            "saturation": saturation,
            "hue": int(torch.randint(-self.HUE, self.HUE, ())) / 180,
        }
        chosen = torch.rand(4) < 0.5
        is_contrast_last = bool(torch.rand(()) < 0.5)
        names = [name for name, is_chosen in zip(changes, chosen.tolist()) if is_chosen]
        if is_contrast_last:
            names.sort(key=lambda name: name == "contrast")
        return {"changes": [(name, changes[name]) for name in names]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = inpt.as_subclass(torch.Tensor)
        for name, value in params["changes"]:
            if name == "hue":
                image = v2.functional.adjust_hue(image, value)
                continue
            pixels = image.float()
            if name == "brightness":
                pixels = pixels + value
            elif name == "contrast":
                pixels = pixels * value
            else:
                brightest, darkest = pixels.amax(-3, keepdim=True), pixels.amin(-3, keepdim=True)
                # A saturation of 1 is where the darkest channel is 0.
                most = brightest / (brightest - darkest).clamp(min=1)
                pixels = (brightest - most.clamp(max=value) * (brightest - pixels)).round()
            image = pixels.clamp(0, 255).to(torch.uint8)
        return tv_tensors.Image(image)
