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
"""Image processor class for Twins, torchvision backend."""

import base64
import io
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub.utils import get_session
from torch import nn
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
    is_pil_image,
    is_valid_image,
    to_numpy_array,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, auto_docstring, logging

from .configuration_twins import TwinsConfig


if TYPE_CHECKING:
    # transformers saves a class of remote code together with the files that its file imports: without this line, a
    # model loaded with `trust_remote_code=True` and saved again would lose its PIL backend.
    from .image_processing_pil_twins import TwinsImageProcessorPil  # noqa: F401


logger = logging.get_logger(__name__)

PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_twins.TwinsImageProcessor",
        "pil": "image_processing_pil_twins.TwinsImageProcessorPil",
    }
}
# Label of pixels without a class, which the losses of transformers' segmentation models ignore by default.
IGNORE_INDEX = 255
# Number of resized logits to compute at a time: 8 MB in float32, which fit into the caches of most processors.
STRIP_VALUES = 2**21


class TwinsImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether to reduce the labels of segmentation maps by 1, for datasets that use 0 for the background and do not
        count it as a class (e.g. ADE20K): 0 becomes 255, and 255 stays 255.
    """

    do_reduce_labels: bool


class ImageError(ValueError):
    """An image cannot be used; the message is a sentence that says why."""


# The TIFF tag that says whether numbers are signed.
TIFF_SAMPLE_FORMAT = 339
# Maps Pillow's modes other than channels from 0 to 255 to the mode that keeps the number of channels.
KEPT_CHANNELS = {"1": "L", "LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "RGBa": "RGBA"}


def convert_image(image: PIL.Image.Image, mode: str | None = "RGB") -> PIL.Image.Image:
    """Convert an image to channels from 0 to 255, by the rules of the entire package.

    16-bit pixels (`I;16`) are divided by 257 and rounded, so that 65535 becomes 255; 32-bit integers (`I`) too, if
    they are from 0 to 65535. Fractions (`F`) from 0 to 1 are multiplied by 255. Transparent pixels are composited on
    white. Color profiles are ignored.

    Args:
        image: the image, in any mode of Pillow.
        mode: "L", "RGB" or "RGBA", which keeps transparency; None keeps the number of channels, with a palette
            resolved.

    Raises:
        ImageError: if 32-bit integers are not from 0 to 65535, or fractions not from 0 to 1.
    """
    if image.mode.startswith(("I", "F")):
        image = to_eight_bits(image)
    if image.mode in ("La", "LAB"):
        # Pillow cannot convert these modes to any other mode.
        image = image.convert("LA" if image.mode == "La" else "RGB")
    mode = mode or KEPT_CHANNELS.get(image.mode, image.mode)
    if image.has_transparency_data and (mode != "RGBA" or image.mode != "RGBA"):
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:
            # A PNG with 16 bits per channel has a transparent color of 16 bits, but Pillow reads only the upper 8 of
            # pixels.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in key)
        image = image.convert("RGBA")
        if mode != "RGBA" and image.getchannel("A").getextrema() != (255, 255):
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image of integers with more than 8 bits, or of fractions, to a gray image of mode `L`.

    Raises:
        ImageError: as for [`convert_image`].
    """
    gray = np.empty((image.height, image.width), np.uint8)
    transparent = image.info.get("transparency")
    # Convert in strips to save memory, because wider numbers take more bytes.
    height = max(2**20 // max(image.width, 1), 1)
    for top in range(0, image.height, height):
        pixels = np.asarray(image.crop((0, top, image.width, min(top + height, image.height))))
        if image.mode == "I" and getattr(image, "tag_v2", {}).get(TIFF_SAMPLE_FORMAT) == (1,):
            # Pillow has no mode for unsigned 32-bit integers of a TIFF, and reads them as signed.
            pixels = pixels.view(np.uint32)
        largest = 1 if image.mode == "F" else 65535
        # The comparisons are also false for NaN.
        if not (pixels.min() >= 0 and pixels.max() <= largest):
            kind = "fractions" if image.mode == "F" else "32-bit integers"
            raise ImageError(
                f"An image has {kind} from {pixels.min():g} to {pixels.max():g} as pixels, but only 0 "
                f"to {largest} is read: save it with 8 or 16 bits per channel."
            )
        scaled = np.rint(255 * pixels) if image.mode == "F" else (pixels.astype(np.uint32) + 128) // 257
        gray[top : top + height] = scaled if transparent is None else np.where(pixels == transparent, 255, scaled)
    return PIL.Image.fromarray(gray)


def open_image(source: str) -> PIL.Image.Image:
    """Open the image at a URL or a path, or in a base64 string, upright, in the mode in which it was saved.

    transformers' own function converts images to RGB, which cuts off wide pixels and drops transparency.

    Raises:
        ValueError: if `source` is none of these.
    """
    if source.startswith(("http://", "https://")):
        response = get_session().get(source, follow_redirects=True)
        response.raise_for_status()
        file: Any = io.BytesIO(response.content)
    # `Path.is_file` raises an error for a long base64 string.
    elif os.path.isfile(source):  # noqa: PTH113
        file = source
    else:
        try:
            content = source.partition(",")[2] if source.startswith("data:image/") else source
            file = io.BytesIO(base64.b64decode(content, validate=True))
        except ValueError as error:
            raise ValueError(
                f"An image must be the path of a file, a URL, or a base64 string, got {source[:80]!r}: there is no such file."
            ) from error
    image = PIL.Image.open(file)
    PIL.ImageOps.exif_transpose(image, in_place=True)
    image.load()
    return image


def to_bytes(image: Any) -> Any:
    """Convert integers of an array or tensor to uint8, in which interpolation stays between 0 and 255.

    Raises:
        ImageError: if they are not from 0 to 255.
    """
    is_integer = image.dtype.kind in "iu" if isinstance(image, np.ndarray) else not image.dtype.is_floating_point
    if not is_integer or image.dtype in (np.uint8, torch.uint8, torch.bool) or 0 in image.shape:
        return image
    smallest, largest = int(image.min()), int(image.max())
    if smallest < 0 or largest > 255:
        raise ImageError(
            f"Integer pixels must be from 0 to 255, got {smallest} to {largest}: convert them to 8 bits, or pass a PIL image."
        )
    return image.astype(np.uint8) if isinstance(image, np.ndarray) else image.to(torch.uint8)


def is_rescaled(image: Any) -> bool:
    """Whether the pixels of an array or tensor are probably from 0 to 1 and not from 0 to 255: fractions of at most 1."""
    is_float = image.dtype.kind == "f" if isinstance(image, np.ndarray) else image.dtype.is_floating_point
    return is_float and 0 not in image.shape and 0 < float(image.max()) <= 1


def read_segmentation_maps(segmentation_maps: Any) -> list[torch.Tensor]:
    """Convert one map, a batch of maps, or a list of either to a list of int64 tensors of shape `(height, width)`.

    Raises:
        ValueError: if a map has an unsupported type, several channels, or values other than whole numbers.
    """
    if isinstance(segmentation_maps, list | tuple):
        return [labels for each in segmentation_maps for labels in read_segmentation_maps(each)]
    if not is_valid_image(segmentation_maps):
        raise ValueError(
            "segmentation_maps must be PIL images, NumPy arrays or PyTorch tensors, got "
            f"{type(segmentation_maps).__name__}: open files with PIL.Image.open, which keeps the classes of a palette "
            "image."
        )
    array = to_numpy_array(segmentation_maps)
    if array.ndim > 2 and (is_pil_image(segmentation_maps) or array.shape[-1] in (3, 4)):
        raise ValueError(
            f"segmentation_maps must have one channel, the class of each pixel, got colors of shape {array.shape}: "
            "replace each color with its class."
        )
    is_float = array.dtype.kind == "f"
    # NumPy converts arrays that PyTorch cannot read, such as big-endian 16-bit images.
    labels = torch.from_numpy(array.astype("float64" if is_float else "int64"))
    if is_float and (labels.frac() != 0).any():
        raise ValueError("segmentation_maps must hold whole numbers, the class of each pixel, got fractions or NaN.")
    if labels.ndim < 2:
        raise ValueError(f"segmentation_maps must have the shape (height, width), got {tuple(labels.shape)}.")
    if labels.ndim > 2 and labels.shape[-1] == 1:
        labels = labels.squeeze(-1)
    return list(labels.long().reshape(-1, *labels.shape[-2:]))


def check_segmentation_maps(maps: Sequence[torch.Tensor], images: Sequence[Any]) -> None:
    """Raise a ValueError unless there is one map for each image, of the same size."""
    if len(maps) != len(images):
        raise ValueError(
            f"segmentation_maps must be one map of shape (height, width) for each image, got {len(maps)} for "
            f"{len(images)} images."
        )
    for index, (labels, image) in enumerate(zip(maps, images)):
        if tuple(labels.shape) != tuple(image.shape[-2:]):
            raise ValueError(
                f"segmentation_maps must be as large as their images, but map {index} is {' x '.join(map(str, labels.shape))}"
                f" and its image {' x '.join(map(str, image.shape[-2:]))} (height x width): resize or crop both alike."
            )


def reduce_labels(labels: torch.Tensor) -> torch.Tensor:
    """Subtract 1 from labels, and change 0 to 255; 255 and negative numbers, which cannot be classes, are unchanged."""
    reduced = torch.where(labels > 0, labels - 1, labels)
    return reduced.masked_fill((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX)


def resize_labels(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize labels with nearest-neighbor interpolation of integers; the backends round, and PIL supports only up to 255."""
    rows, columns = ((2 * torch.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, size))
    return labels[rows][:, columns]


def pad_labels(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    height, width = labels.shape
    return nn.functional.pad(labels, (0, size[1] - width, 0, size[0] - height), value=IGNORE_INDEX)


def find_stride(size: Sequence[int], logits_size: Sequence[int]) -> int:
    """The distance in pixels between logits of a model that cuts off, or pads, incomplete patches.

    If several distances fit, a power of two is preferred, and then the one closest to the ratio of the sizes.
    """
    ratio = math.sqrt(math.prod(size) / math.prod(logits_size))
    fitting = [
        stride
        for stride in range(1, 2 * math.ceil(ratio) + 1)
        if all(logits_side in (side // stride, -(-side // stride)) for side, logits_side in zip(size, logits_size))
    ]
    return min(
        fitting or [max(round(ratio), 1)],
        key=lambda stride: (stride & (stride - 1) != 0, abs(math.log(stride / ratio))),
    )


def crop_logits(logits: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """Crop logits to those of the image, without its padding.

    Args:
        logits: logits of shape `(num_labels, logits_height, logits_width)`.
        pixel_mask: mask of shape `(height, width)`, 1 on one rectangle at the top left.
    """
    image_size = (int(pixel_mask.any(1).sum()), int(pixel_mask.any(0).sum()))
    stride = find_stride(pixel_mask.shape, logits.shape[1:])
    ends = []
    for image_side, padded_side, logits_side in zip(image_size, pixel_mask.shape, logits.shape[1:]):
        # Keep only complete patches, unless the logits reach beyond the input because the model pads incomplete
        # patches. If the padded input has only complete patches, the last patch of the image may be partly padding,
        # and is dropped.
        is_patch_padded = logits_side * stride > padded_side
        end = (image_side + stride - 1) // stride if is_patch_padded else image_side // stride
        ends.append(min(max(end, 1), logits_side))
    return logits[:, : ends[0], : ends[1]]


def row_strips(num_labels: int, size: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first row, and the row after the last, of strips of `(num_labels, *size)` with about `STRIP_VALUES` values."""
    height, width = size
    rows = max(STRIP_VALUES // (num_labels * width), 1)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def resize_rows(logits: torch.Tensor, sizes: Sequence[Sequence[int]], top: int, bottom: int) -> torch.Tensor:
    """Compute some rows of resized logits, as `nn.functional.interpolate(mode="bilinear")` would compute all of them.

    Args:
        logits: logits of shape `(batch_size, num_labels, logits_height, logits_width)`.
        sizes: height and width of each of several resizings, one after another.
        top: first row to compute.
        bottom: row after the last one.

    Returns:
        Logits of shape `(batch_size, num_labels, bottom - top, width)`, in at least float32 and channels-last memory.
    """
    *before, (height, width) = sizes
    source_height = before[-1][0] if before else logits.shape[2]
    positions = (torch.arange(top, bottom, dtype=torch.float32) + 0.5) * (source_height / height) - 0.5
    positions = positions.clamp(0, source_height - 1)
    above = positions.long()
    # Only the source rows between which the rows are interpolated.
    first, end = int(above[0]), min(int(above[-1]) + 2, source_height)
    source = resize_rows(logits, before, first, end) if before else logits[:, :, first:end]
    source = source.to(torch.promote_types(source.dtype, torch.float32))
    weights = (positions - above)[:, None].to(source.device, source.dtype)
    above = (above - first).to(source.device)
    rows = torch.lerp(source[:, :, above], source[:, :, (above + 1).clamp(max=end - first - 1)], weights)
    # Interpolation, softmax and argmax are several times faster if the labels of a pixel are adjacent in memory.
    rows = rows.contiguous(memory_format=torch.channels_last)
    return nn.functional.interpolate(rows, size=(bottom - top, width), mode="bilinear")


def likeliest_classes(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Compute the class of each pixel from bilinearly resized logits, with a few rows of these in memory at a time.

    Args:
        logits: logits of shape `(num_labels, logits_height, logits_width)`.
        size: height and width of the result.
    """
    classes = torch.empty(tuple(size), dtype=torch.long, device=logits.device)
    for top, bottom in row_strips(len(logits), size):
        classes[top:bottom] = resize_rows(logits.unsqueeze(0), [size], top, bottom)[0].argmax(0)
    return classes


class TwinsImageProcessorMixin(BaseImageProcessor):
    """Code that both backends share: padding with a `pixel_mask`, segmentation maps, post-processing and remote code."""

    model_input_names = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad: bool | None = None
    pad_size: dict[str, int] | None = None
    do_reduce_labels = False

    def __init__(self, **kwargs: Unpack[TwinsImageProcessorKwargs]):
        # This is defined for its annotation, from which `auto_docstring` takes the arguments.
        super().__init__(**kwargs)  # type: ignore[misc]  # whose annotation lacks those of this class

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Convert an image to a channels-first array or tensor; PIL images are converted by [`convert_image`] first."""
        if is_pil_image(image):
            image = convert_image(image, "RGB" if do_convert_rgb else None)
        elif isinstance(image, np.ndarray | torch.Tensor):
            image = to_bytes(image)
        return super().process_image(image, do_convert_rgb, *args, **kwargs)

    def fetch_images(self, images: Any) -> Any:
        """Open images that are strings, see [`open_image`], so that all images are converted by [`convert_image`]."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(each) for each in images]
        return open_image(images) if isinstance(images, str) else super().fetch_images(images)

    @auto_docstring
    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[TwinsImageProcessorKwargs],
    ) -> BatchFeature:
        r"""
        segmentation_maps (`ImageInput`, *optional*):
            One map per image, of its size, with the class of each pixel: PIL images with one channel (a palette image
            is read as its indices), or arrays or tensors of shape `(height, width)`. They need `do_center_crop=False`.

        Returns:
            [`BatchFeature`] with

            - **pixel_values** of shape `(batch_size, num_channels, height, width)`.
            - **pixel_mask** of shape `(batch_size, height, width)`, int64, with `do_pad=True`: 1 on the image, 0 on the
              padding at its right and bottom, where `pixel_values` are 0 and `labels` 255. Images are padded to
              `pad_size` or, without it, to the largest height and width of the batch.
            - **labels** of shape `(batch_size, height, width)`, int64, with `segmentation_maps`: resized like the
              images, but with nearest-neighbor interpolation.

            Without `return_tensors`, each is a list with an entry for each image.

        Raises:
            ValueError: if `segmentation_maps` are not one map of whole numbers for each image, of its size, or are
                given with `do_center_crop=True`; if an image is larger than `pad_size`; if images of different sizes
                would become one tensor without `do_pad=True`.

        Example:

        ```python
        >>> import torch
        >>> from hf_twins import TwinsConfig, TwinsForSemanticSegmentation, TwinsImageProcessor

        >>> # As the published segmentation models are evaluated, with images of different sizes in one batch
        >>> processor = TwinsImageProcessor(
        ...     size={"shortest_edge": 512, "longest_edge": 2048}, resample=2, do_center_crop=False, do_pad=True
        ... )
        >>> images = [torch.randint(256, (3, 300, 400)), torch.randint(256, (3, 300, 500))]
        >>> inputs = processor(images, return_tensors="pt")
        >>> [(name, list(tensor.shape)) for name, tensor in inputs.items()]
        [('pixel_values', [2, 3, 512, 853]), ('pixel_mask', [2, 512, 853])]

        >>> model = TwinsForSemanticSegmentation(TwinsConfig.from_variant("twins-svt-small", num_labels=150)).eval()
        >>> with torch.no_grad():
        ...     outputs = model(**inputs)
        >>> segmentation = processor.post_process_semantic_segmentation(
        ...     outputs, target_sizes=[(300, 400), (300, 500)], pixel_mask=inputs.pixel_mask
        ... )
        >>> [list(classes.shape) for classes in segmentation]
        [[300, 400], [300, 500]]
        ```"""
        if isinstance(images, list | tuple) and not images:
            raise ValueError("images must be one or more images, got an empty list.")
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]  # which gets its arguments from `preprocess` alone
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        *,
        do_center_crop: bool | None,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        do_reduce_labels: bool,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process images one by one, resize segmentation maps to the same sizes, and pad both."""
        if segmentation_maps is not None and do_center_crop:
            raise ValueError(
                "segmentation_maps need do_center_crop=False, because a segmentation model sees the whole image: load or "
                "create the image processor with do_center_crop=False."
            )
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        if kwargs.get("do_rescale") and any(map(is_rescaled, prepared)):
            logger.warning_once(
                "An image has fractions from 0 to 1 as pixels, which are rescaled once more, as if they were from 0 to 255: pass "
                "do_rescale=False if they are rescaled already."
            )
        for name in ("image_mean", "image_std") if kwargs.get("do_normalize") else ():
            numbers = kwargs[name] if isinstance(kwargs[name], list | tuple) else [kwargs[name]]
            channels = {image.shape[0] for image in prepared} - {len(numbers)}
            if channels and len(numbers) > 1:
                raise ValueError(
                    f"{name} must have one number for each of the {min(channels)} channels of an image, got {len(numbers)}: "
                    "set it, or do_convert_rgb=True for images with 3 channels."
                )
        maps = None
        if segmentation_maps is not None:
            maps = read_segmentation_maps(segmentation_maps)
            check_segmentation_maps(maps, prepared)
            if do_reduce_labels:
                maps = [reduce_labels(labels) for labels in maps]
        data: dict[str, Any] = self._preprocess(
            prepared, do_center_crop=do_center_crop, do_pad=False, pad_size=None, return_tensors=None, **kwargs
        ).data
        pixel_values = data["pixel_values"]
        if maps is not None:
            maps = [resize_labels(labels, image.shape[-2:]) for labels, image in zip(maps, pixel_values)]
        if do_pad:
            if pad_size is None:
                heights, widths = zip(*(image.shape[-2:] for image in pixel_values))
                pad_size = SizeDict(height=max(heights), width=max(widths))
            data["pixel_values"], data["pixel_mask"] = self.pad(  # type: ignore[attr-defined]  # the backend's
                pixel_values, pad_size=pad_size, return_mask=True, disable_grouping=kwargs.get("disable_grouping")
            )
            if maps is not None:
                maps = [pad_labels(labels, data["pixel_mask"][0].shape) for labels in maps]
        if maps is not None:
            is_torch = torch.is_tensor(pixel_values[0])
            data["labels"] = [labels.to(pixel_values[0].device) if is_torch else labels.numpy() for labels in maps]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def center_crop(self, image: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
        """Center-crop an array or tensor `(..., height, width)`, and pad it with zeros if it is smaller than the crop.

        If the center is at half a pixel, this rounds to even like torchvision, with which the authors and timm evaluate.
        transformers rounds down instead.
        """
        margins = [side - (crop or 0) for side, crop in zip(image.shape[-2:], (size.height, size.width))]
        top, left = (int(margin > 0 and margin % 4 == 3) for margin in margins)
        image = image[..., top:, left:]
        if isinstance(image, np.ndarray) and min(margins) < 0:
            # An odd pixel of padding is at the bottom and right, as in torchvision. transformers adds it at the top and
            # left to arrays.
            paddings = [(max(-margin, 0) // 2, (max(-margin, 0) + 1) // 2) for margin in margins]
            image = np.pad(image, [(0, 0)] * (image.ndim - 2) + paddings)
        return super().center_crop(image, size, *args, **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        pixel_mask: torch.Tensor | None = None,
    ) -> "list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]":
        """
        Converts the output of [`TwinsForSemanticSegmentation`], or of another model with `logits`, into segmentation maps.

        Args:
            outputs ([`~modeling_outputs.SemanticSegmenterOutput`]):
                Raw outputs of the model, with `logits` of shape `(batch_size, num_labels, logits_height, logits_width)`.
            target_sizes (`list[tuple[int, int]]` of length `batch_size`, *optional*):
                Height and width in pixels of each segmentation map, usually of the original image. If unset, predictions
                are not resized.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to also return the scores of each class.
            pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                The `pixel_mask` that the image processor returned with the images. The logits of the padding are cut off
                before the others are resized. Needed with `target_sizes` for every batch that was padded.

        Returns:
            `list[torch.Tensor]` or `list[SemanticSegmentationPostProcessorOutput]`: for each image the classes, of shape
            `(height, width)`, int64; with `return_segmentation_scores=True` as `segmentation`, with
            `segmentation_scores` of shape `(num_labels, height, width)`.

        Raises:
            ValueError: if the processor has `do_center_crop=True`; if there is not one target size for each image; if
                the processor has `do_pad=True` and `pixel_mask` is missing, except for a batch of one image without
                `pad_size`, which needs no padding.
        """
        logits = outputs.logits
        if self.do_center_crop:
            raise ValueError(
                "Post-processing needs do_center_crop=False, because the logits of a center crop do not cover the image: "
                "load or create the image processor with do_center_crop=False."
            )
        if target_sizes is not None:
            if len(target_sizes) != len(logits):
                raise ValueError(
                    f"target_sizes must have one (height, width) for each of the {len(logits)} images, got "
                    f"{len(target_sizes)}: pass the size of every image of the batch."
                )
            if pixel_mask is None and self.do_pad and (len(logits) > 1 or self.pad_size is not None):
                raise ValueError(
                    "With do_pad=True the logits cover padding too: pass pixel_mask=inputs['pixel_mask'], so that "
                    "padding is cut off before the logits are resized to target_sizes."
                )
        if pixel_mask is not None:
            pixel_mask = torch.as_tensor(pixel_mask)
            if pixel_mask.ndim != 3 or len(pixel_mask) != len(logits):
                raise ValueError(
                    f"pixel_mask must have the shape ({len(logits)}, height, width) for logits of {len(logits)} images, "
                    f"got {tuple(pixel_mask.shape)}: pass the image processor's output unchanged."
                )
        results: list[Any] = []
        for index, scores in enumerate(logits):
            if pixel_mask is not None:
                scores = crop_logits(scores, pixel_mask[index].bool())
            size = scores.shape[1:] if target_sizes is None else [int(side) for side in target_sizes[index]]
            segmentation = likeliest_classes(scores, size)
            if return_segmentation_scores:
                scores = nn.functional.interpolate(scores.unsqueeze(0), size=tuple(size), mode="bilinear")[0]
                data = {"segmentation": segmentation, "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(segmentation)
        return results

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the processor's fields in a folder or repository, and the arguments not used to load them."""
        load = super().get_image_processor_dict
        return TwinsConfig.checkpoint_reader.get_image_processor_dict(load, pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, ready for JSON.

        The field `auto_map` is kept only for classes of remote code, whose code files are saved, too. A model that was
        published with its code, loaded by the installed package and saved again, must not refer to missing files.
        """
        output = super().to_dict()
        if self._auto_class is None:
            output.pop("auto_map", None)
        # transformers adds an entry for the saved backend only. A class derived from it has its own entry, which is
        # kept.
        elif output.get("auto_map", {}).get("AutoImageProcessor") in PROCESSOR_AUTO_MAP["AutoImageProcessor"].values():
            output["auto_map"] = output["auto_map"] | PROCESSOR_AUTO_MAP
        return output


@auto_docstring(
    custom_intro="""
    Prepares images for Twins models, by default as the authors evaluate classifiers: shorter side to 256 pixels,
    center crop of 224, normalization (torchvision backend). For segmentation, create it with `do_center_crop=False`.
    """
)
class TwinsImageProcessor(TwinsImageProcessorMixin, TorchvisionBackend):
    valid_kwargs = TwinsImageProcessorKwargs


__all__ = ["TwinsImageProcessor"]
