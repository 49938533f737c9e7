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
"""Which way up an image with an annotation is: as it is stored, or as its EXIF orientation says.

Some annotation tools show images upright and some as they are stored, and masks and boxes are in the pixels that were shown.
The size of the annotation tells which, but for square images and for half turns and mirrors: for these, the convention of
the dataset's other images is taken.
"""

from collections.abc import Iterable
from typing import Literal

import PIL.Image
import PIL.ImageOps

from hf_twins._utils.images import ImageError, orientation


ExifOption = Literal["auto", "upright", "stored"]
EXIF_HELP = (
    "Whether masks and boxes are for the images as their EXIF orientation turns them (upright) or as they are "
    "stored; auto decides by the sizes."
)
CONVENTIONS = ("stored", "upright")
UNKNOWN_ORIENTATION = "EXIF orientation, where the size does not tell whether the annotation is turned: give --exif"


def fitting_conventions(image: PIL.Image.Image, size: tuple[int, int]) -> tuple[str, ...]:
    """The conventions by which an image that was not turned is as large as its annotation, width and height."""
    upright_size = image.size[::-1] if orientation(image) >= 5 else image.size
    sizes = {"stored": image.size, "upright": upright_size}
    return tuple(convention for convention in CONVENTIONS if sizes[convention] == tuple(size))


def decided_convention(image: PIL.Image.Image, size: tuple[int, int]) -> str | None:
    """The convention that the size of the annotation tells; None if the image has no orientation or the size fits both."""
    fitting = fitting_conventions(image, size)
    return fitting[0] if orientation(image) != 1 and len(fitting) == 1 else None


def common_convention(decided: Iterable[str | None]) -> str | None:
    """The convention of all images of a dataset that tell one; None if they differ, or there are none."""
    conventions = {convention for convention in decided if convention is not None}
    return conventions.pop() if len(conventions) == 1 else None


def turn_as_annotated(
    image: PIL.Image.Image, size: tuple[int, int], exif: ExifOption = "auto", convention: str | None = None
) -> PIL.Image.Image:
    """Turn an image as stored to match its annotation.

    Args:
        image: the image as it is stored; may be changed.
        size: width and height of the annotation in pixels.
        exif: the convention of all images, or auto.
        convention: with auto, that of images whose size does not tell; see [`common_convention`].

    Raises:
        ImageError: if the image has another size than the annotation, or it is not known which way up it is.
    """
    fitting = fitting_conventions(image, size)
    if exif != "auto":
        fitting = tuple(name for name in fitting if name == exif)
    if not fitting:
        raise ImageError(f"image of {image.size}, annotation of {tuple(size)}")
    chosen = fitting[0] if len(fitting) == 1 else convention
    if orientation(image) == 1:
        return image
    if chosen is None:
        raise ImageError(UNKNOWN_ORIENTATION)
    if chosen == "upright":
        PIL.ImageOps.exif_transpose(image, in_place=True)
    return image
