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

https://github.com/open-mmlab/mmsegmentation, configs/_base_/datasets/ade20k.py and
mmseg/datasets/transforms/transforms.py.
"""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


# Number of pixels without a class in masks.
IGNORE_INDEX = 255
# Maximum number of crops to draw until one is not dominated by a single class.
NUM_TRIES = 10


class RandomClassCrop(v2.Transform):
    """A random crop that no class dominates, if one is found. Sides shorter than `size` are not cropped.

    Args:
        size: side of the crop in pixels.
        max_class_share: largest share of one class among the pixels that have a class.
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
            # The last crop is used unconditionally.
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
    """Pad at the right and the bottom, images with 0 and masks with `IGNORE_INDEX`.

    Args:
        size: side of the result in pixels.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        fill = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else 0
        return v2.functional.pad(inpt, [0, 0, self.size - width, self.size - height], fill=fill)


class PhotometricDistortion(v2.Transform):
    """Change brightness, contrast, saturation and hue of a `uint8` image, each with a probability of 0.5.

    This is `PhotoMetricDistortion` of mmsegmentation. Unlike torchvision's transforms of these names, it adds the
    brightness, multiplies pixels by the contrast, and changes the saturation in HSV, which keeps the brightest
    channel.
    """

    BRIGHTNESS = 32
    FACTORS = (0.5, 1.5)
    # Maximum change of the hue, on a scale where 180 is the full circle.
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
                # This factor makes the saturation 1, where the darkest channel is 0.
                most = brightest / (brightest - darkest).clamp(min=1)
                pixels = (brightest - most.clamp(max=value) * (brightest - pixels)).round()
            image = pixels.clamp(0, 255).to(torch.uint8)
        return tv_tensors.Image(image)
