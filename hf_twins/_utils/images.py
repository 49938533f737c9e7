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
"""Image files that anybody may have made: none runs a program, none takes more memory than an image should."""

import io
import logging
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import PIL.ImageOps


logger = logging.getLogger(__name__)
# Models see images resized by their shorter side: a file of some hundred bytes, one pixel wide and very long, would fill any
# memory. At 256 pixels, this is 20 MB.
MAX_ASPECT_RATIO = 100

# PostScript is a program, and Pillow has Ghostscript run it, whatever the file is called. This holds for everything that
# opens images in this process, `datasets` too.
PIL.EpsImagePlugin.gs_binary = False


class ImageError(ValueError):
    """An image cannot be used; the message is a sentence that says why."""


def is_image_file(path: str | Path) -> bool:
    """Whether a file has the extension of a format that Pillow reads, which are fewer than those it writes."""
    return PIL.Image.registered_extensions().get(Path(path).suffix.lower()) in PIL.Image.OPEN


def open_image(
    source: str | Path | BinaryIO,
    is_upright: bool = True,
    formats: tuple[str, ...] | None = None,
    max_aspect_ratio: int = MAX_ASPECT_RATIO,
    max_pixels: int | None = None,
    max_side: int | None = None,
) -> PIL.Image.Image:
    """The image in a file, decoded.

    Args:
        source: path of the file, or the open file.
        is_upright: whether the image is turned as its EXIF orientation says, as `datasets` does it.
        formats: Pillow's names of the formats that are read; all of them if not given.
        max_aspect_ratio: how many times as long as the other a side may be.
        max_pixels: how many pixels the image may have.
        max_side: longest side in pixels to which the image is reduced.

    Raises:
        ImageError: if the image is too long or too large.
        Exception: of any kind, as Pillow's decoders raise them, if it cannot be decoded.
    """
    with PIL.Image.open(source, formats=formats) as opened:
        check_shape(opened, max_aspect_ratio, max_pixels)
        if max_side is not None:
            # JPEG's decoder reduces while it reads, which saves memory and time.
            opened.draft(None, (max_side, max_side))
        opened.load()
        image = PIL.ImageOps.exif_transpose(opened) if is_upright else opened
        if max_side is not None:
            image.thumbnail((max_side, max_side))
        return image


def check_shape(
    image: PIL.Image.Image, max_aspect_ratio: int = MAX_ASPECT_RATIO, max_pixels: int | None = None
) -> None:
    """Raise an ImageError if one side is too many times as long as the other, or there are too many pixels."""
    short, long = sorted(image.size)
    name = getattr(image, "filename", "") or "An image"
    if max_pixels is not None and short * long > max_pixels:
        raise ImageError(
            f"{name} of {image.width} x {image.height} has too many pixels: at most {max_pixels // 10**6} megapixels are "
            "read."
        )
    if long > max_aspect_ratio * short:
        raise ImageError(
            f"{name} is too long, {image.width} x {image.height} pixels: one side may be at most {max_aspect_ratio} times "
            "the other, crop it or leave it out."
        )


def image_source(image: dict[str, Any]) -> Any:
    """What to open of an undecoded image of `datasets`: its `bytes`, or else the `path` of a file."""
    return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]


def decode_image(image: dict[str, Any]) -> PIL.Image.Image | None:
    """The image that `datasets` has as `bytes`, or else as the `path` of a file; None if it cannot be decoded.

    One that is too long counts as broken, and is named in the log.
    """
    try:
        return open_image(image_source(image))
    except ImageError as error:
        logger.warning(f"{image['path'] or 'an image without a name'}: {error}")
        return None
    except Exception:
        # Pillow's decoders raise all kinds of errors.
        return None


def convert_image(image: PIL.Image.Image, mode: str = "RGB") -> PIL.Image.Image:
    """The image with 8 bits a channel, in `mode` ("L", "RGB" or "RGBA").

    Raises:
        ImageError: if its pixels are fractions, of which it is not known where white is.
    """
    if image.mode == "F":
        raise ImageError("An image has fractions for pixels: save it with 8 or 16 bits a channel.")
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow would cut off all that is brighter than 255.
        image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if mode != "RGBA" and "transparency" in image.info:
        # By way of RGBA, because Pillow warns of palettes whose colors are transparent to different degrees.
        image = image.convert("RGBA")
    return image.convert(mode)
