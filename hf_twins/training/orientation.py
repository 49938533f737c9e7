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
"""Decides whether an annotation is for its image as stored, or as turned upright by its EXIF orientation.

Some annotation tools show images upright and some as they are stored, and masks and boxes refer to the image as shown.
The size of the annotation tells which, except for square images, half turns and mirrored images: these follow the
convention of the other images in the dataset.
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
    """The conventions under which an image, still as stored, has the size (width, height) of its annotation."""
    upright_size = image.size[::-1] if orientation(image) >= 5 else image.size
    sizes = {"stored": image.size, "upright": upright_size}
    return tuple(convention for convention in CONVENTIONS if sizes[convention] == tuple(size))


def decided_convention(image: PIL.Image.Image, size: tuple[int, int]) -> str | None:
    """The convention implied by the annotation's size; None if the image has no orientation or the size fits both."""
    fitting = fitting_conventions(image, size)
    return fitting[0] if orientation(image) != 1 and len(fitting) == 1 else None


def common_convention(decided: Iterable[str | None]) -> str | None:
    """The convention that all decided images of a dataset share; None if they differ, or no image decides."""
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
        convention: if `exif` is auto, the convention for images whose size fits both; see [`common_convention`].

    Raises:
        ImageError: if the sizes of image and annotation differ, or the convention is unknown.
    """
    fitting = fitting_conventions(image, size)
    if not fitting:
        raise ImageError(f"image of {image.size}, annotation of {tuple(size)}")
    if exif != "auto":
        if exif not in fitting:
            raise ImageError(f"annotation of {tuple(size)}, which fits the image with --exif {fitting[0]}, not {exif}")
        fitting = (exif,)
    chosen = fitting[0] if len(fitting) == 1 else convention
    if orientation(image) == 1:
        return image
    if chosen is None:
        raise ImageError(UNKNOWN_ORIENTATION)
    if chosen == "upright":
        PIL.ImageOps.exif_transpose(image, in_place=True)
    return image
