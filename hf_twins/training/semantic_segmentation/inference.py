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
"""Segmentation of an image, at once or in sliding windows, at one or several sizes, optionally also mirrored.

The steps are mmsegmentation's (https://github.com/open-mmlab/mmsegmentation, `EncoderDecoder.whole_inference` and
`slide_inference`, `SegTTAModel`), so that published results can be reproduced: logits are resized to the model's input,
then to the image, and the probabilities of several inputs are averaged. Both are done in strips of rows, because the logits
of a photograph take gigabytes.
"""

from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import nn

from hf_twins._utils.images import convert_image, mode_of_model
from hf_twins.image_processing_twins import resize_rows, row_strips


# Scales of the published multi-scale results, which also use flip.
MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass
class InferenceArguments:
    """How an image is segmented."""

    slide_crop_size: int | None = field(
        default=None, metadata={"help": "Side of sliding windows in pixels; none by default, the image is whole."}
    )
    slide_stride: int | None = field(
        default=None, metadata={"help": "Pixels from window to window; by default two thirds of a window."}
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Sizes of the image, relative to the image processor's, whose results are averaged."},
    )
    flip: bool = field(default=False, metadata={"help": "Average over the image and its mirror image."})

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"--scales must be positive numbers, got {self.scales}.")
        if self.slide_crop_size is None:
            if self.slide_stride is not None:
                raise ValueError("--slide_stride requires --slide_crop_size.")
        else:
            if self.slide_stride is None:
                self.slide_stride = max(self.slide_crop_size * 2 // 3, 1)
            if not 1 <= self.slide_stride <= self.slide_crop_size:
                raise ValueError(
                    f"--slide_stride must be from 1 to --slide_crop_size ({self.slide_crop_size}), so that no pixel is "
                    f"between windows, got {self.slide_stride}."
                )


def whole_logits(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Logits of the entire input, resized to its size: `(batch_size, num_labels, height, width)`, float32."""
    return nn.functional.interpolate(model(pixel_values).logits.float(), size=pixel_values.shape[2:], mode="bilinear")


def sliding_logits(model: Any, pixel_values: torch.Tensor, crop_size: int, stride: int) -> torch.Tensor:
    """Logits averaged over all windows that cover a pixel. The last windows are moved back, so that all have one size."""
    height, width = pixel_values.shape[2:]
    total: Any = 0
    count = pixel_values.new_zeros(1, 1, height, width, dtype=torch.float32)
    for top in window_starts(height, crop_size, stride):
        for left in window_starts(width, crop_size, stride):
            bottom, right = min(top + crop_size, height), min(left + crop_size, width)
            window = whole_logits(model, pixel_values[:, :, top:bottom, left:right])
            total = total + nn.functional.pad(window, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    return total / count


def window_starts(side: int, crop_size: int, stride: int) -> list[int]:
    """The first pixels of windows that are `stride` apart, with the last window at the end of the side."""
    last = max(side - crop_size, 0)
    return [*range(0, last, stride), last]


@torch.inference_mode()
def segment(model: Any, processor: Any, image: PIL.Image.Image, how: InferenceArguments) -> torch.Tensor:
    """Compute the class of each pixel: the one with the highest probability, averaged over all inputs.

    Args:
        model: segmentation model, in evaluation mode.
        processor: its image processor.
        image: the image, in any size and mode.
        how: inference options.

    Returns:
        Classes `(height, width)` at the size of the image, int64.

    Raises:
        ValueError: if the image processor does not resize, and a scale other than 1 is requested.
    """
    outputs = logits_of_inputs(model, processor, image, how)
    size = (image.height, image.width)
    classes = torch.empty(size, dtype=torch.long, device=model.device)
    for top, bottom in row_strips(outputs[0][0].shape[1], size):
        classes[top:bottom] = mean_probabilities(outputs, size, top, bottom).argmax(0)
    return classes


def logits_of_inputs(
    model: Any, processor: Any, image: PIL.Image.Image, how: InferenceArguments
) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Logits of the image at each scale, and of its mirror image, not yet resized, and the height and width of each input.

    Raises:
        ValueError: as for [`segment`].
    """
    if not processor.do_resize and how.scales != [1.0]:
        raise ValueError("--scales need an image processor that resizes, with do_resize=True.")
    image = convert_image(image, mode_of_model(model.config))
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    outputs = []
    for scale in how.scales:
        scaled = {name: round(scale * value) for name, value in size.items()}
        # A single image needs no padding, and without it no logits have to be cut off.
        inputs = processor(image, size=scaled, do_pad=False, return_tensors="pt")
        pixel_values = inputs["pixel_values"].to(model.device)
        for is_flipped in (False, True) if how.flip else (False,):
            pixels = pixel_values.flip(3) if is_flipped else pixel_values
            if how.slide_crop_size is None or how.slide_stride is None:
                logits = model(pixels).logits.float()
            else:
                logits = sliding_logits(model, pixels, how.slide_crop_size, how.slide_stride)
            outputs.append((logits.flip(3) if is_flipped else logits, (pixels.shape[2], pixels.shape[3])))
    return outputs


def mean_probabilities(
    outputs: list[tuple[torch.Tensor, tuple[int, int]]], size: tuple[int, int], top: int, bottom: int
) -> torch.Tensor:
    """Probabilities of the classes in the rows from `top` to `bottom` of the image, averaged over all inputs.

    Args:
        outputs: result of [`logits_of_inputs`].
        size: height and width of the image.
        top: first row.
        bottom: row after the last one.

    Returns:
        Probabilities `(num_labels, bottom - top, width)`, float32.
    """
    total: Any = 0
    for logits, input_size in outputs:
        total = total + resize_rows(logits, [input_size, size], top, bottom).softmax(1)[0]
    return total / len(outputs)
