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
"""Pictures from files that anybody may have made: none runs a program, none takes more memory than a picture should."""

from pathlib import Path
from typing import BinaryIO

import PIL.EpsImagePlugin
import PIL.Image
import PIL.ImageOps


# Models see pictures at a given shorter side: a file of some hundred bytes, one pixel wide and very long, would fill any
# memory. At 256 pixels, this is 20 MB.
MAX_ASPECT_RATIO = 100

# PostScript is a program, and Pillow has Ghostscript run it, whatever the file is called. Here for all that opens pictures
# in this process, `datasets` too.
PIL.EpsImagePlugin.gs_binary = False


class PictureError(ValueError):
    """A picture cannot be used; the message is a sentence that says why."""


def is_picture(path: str | Path) -> bool:
    """Whether a file is called as those are that Pillow reads, which are fewer than those it writes."""
    return PIL.Image.registered_extensions().get(Path(path).suffix.lower()) in PIL.Image.OPEN


def open_picture(source: str | Path | BinaryIO, is_upright: bool = True) -> PIL.Image.Image:
    """The picture in a file, decoded; the right way up, as `datasets` has it, or else as it is stored.

    Raises:
        PictureError: if it is too long.
        Exception: of all kinds, as Pillow's decoders raise them, if it cannot be decoded.
    """
    with PIL.Image.open(source) as opened:
        check_shape(opened)
        opened.load()
        return PIL.ImageOps.exif_transpose(opened) if is_upright else opened


def check_shape(picture: PIL.Image.Image) -> None:
    """Raise a PictureError if one side is more than `MAX_ASPECT_RATIO` times the other."""
    short, long = sorted(picture.size)
    if long > MAX_ASPECT_RATIO * short:
        raise PictureError(
            f"{getattr(picture, 'filename', '') or 'A picture'} is too long, {picture.width} x {picture.height} pixels: one "
            f"side may be at most {MAX_ASPECT_RATIO} times the other, crop it or leave it out."
        )
