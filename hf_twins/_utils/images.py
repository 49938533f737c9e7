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
"""Image files that anybody may have made: none runs a program, none takes more memory or time than an image should.

Every script, Space and evaluation reads images by [`read_image`], or by `open_image` and `convert_image`: the first frame,
turned upright as its EXIF orientation says, with the pixels of [`~hf_twins.image_processing_twins.convert_image`].
"""

import contextlib
import io
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import PIL.EpsImagePlugin
import PIL.Image
import PIL.ImageOps

from ..image_processing_twins import ImageError, convert_image
from .files import ReadError, read_again


logger = logging.getLogger(__name__)
# Models see images resized by their shorter side: a file of some hundred bytes, one pixel wide and very long, would fill any
# memory. At 256 pixels, this is 20 MB.
MAX_ASPECT_RATIO = 100
# Decoding takes as many passes over the pixels as a JPEG has scans. Encoders write up to about 15; a file of a few bytes a scan
# can have thousands, which take hours.
MAX_JPEG_SCANS = 50
# The markers of a JPEG, but for those within the data of a scan.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# Tags of EXIF and of TIFF.
ORIENTATION, TIFF_STRIPS, TIFF_TILES = 0x0112, 273, 324
# What is said of images that were not taken as they are.
SIXTEEN_BITS = "have more than 8 bits per pixel: 0 to 65535 is scaled to 0 to 255"
FRACTIONS = "have fractional pixel values: 0 to 1 is scaled to 0 to 255"
TRANSPARENT = "are transparent: they are composited on white, unless the model has four channels"
TURNED = "are turned upright, as their EXIF orientation says"
ANIMATED = "have several frames: the first is read"

# PostScript is a program, and Pillow has Ghostscript run it, whatever the file is called. This holds for everything that
# opens images in this process, `datasets` too.
PIL.EpsImagePlugin.gs_binary = False


def is_image_file(path: str | Path) -> bool:
    """Whether a file has the extension of a format that Pillow reads, which are fewer than those it writes."""
    # Not `Path.suffix`, as PTH122 asks for: it takes as long as all the rest of listing a folder.
    return PIL.Image.registered_extensions().get(os.path.splitext(path)[1].lower()) in PIL.Image.OPEN  # noqa: PTH122


def open_image(
    source: str | Path | BinaryIO,
    is_upright: bool = True,
    formats: tuple[str, ...] | None = None,
    max_aspect_ratio: int = MAX_ASPECT_RATIO,
    max_pixels: int | None = None,
    max_side: int | None = None,
    applied: Counter[str] | None = None,
) -> PIL.Image.Image:
    """The image in a file, decoded, in the mode that it is stored in.

    Args:
        source: path of the file, or the open file.
        is_upright: whether the image is turned as its EXIF orientation says.
        formats: Pillow's names of the formats that are read; all of them if not given.
        max_aspect_ratio: largest ratio of one side to the other.
        max_pixels: how many pixels the image may have; a quarter as many if each takes 32 bits.
        max_side: longest side in pixels to which the image is reduced.
        applied: counter of the changes made to this image, for [`log_applied_rules`].

    Raises:
        ImageError: if this is not a file, or the image is too long, too large or too slow to decode.
        ReadError: if the system cannot read the file, which says nothing about the image: it does not exist, may not be read, or
            the disk, the network or the limits of the process are in the way; these are tried again first.
        Exception: of any other kind, as Pillow's decoders raise them, if it cannot be decoded.
    """
    limits = (is_upright, formats, max_aspect_ratio, max_pixels, max_side, applied)
    if isinstance(source, str | Path):
        return read_again(lambda: decode_file(source, *limits), source)
    return decode_file(source, *limits)


def decode_file(
    source: str | Path | BinaryIO,
    is_upright: bool,
    formats: tuple[str, ...] | None,
    max_aspect_ratio: int,
    max_pixels: int | None,
    max_side: int | None,
    applied: Counter[str] | None,
) -> PIL.Image.Image:
    """What [`open_image`] returns, in one try."""
    if isinstance(source, str | Path):
        check_is_file(source)
    with PIL.Image.open(source, formats=formats) as opened:
        check_shape(opened, max_aspect_ratio, max_pixels)
        check_scans(opened)
        # Before it is decoded: some formats read on for it.
        has_more = applied is not None and has_more_frames(opened)
        if max_side is not None:
            # JPEG's decoder reduces while it reads, which saves memory and time.
            opened.draft(None, (max_side, max_side))
        # Pillow turns TIFFs while it decodes them.
        turned = getattr(opened, "tag_v2", {}).get(ORIENTATION, 1)
        if turned != 1 and not is_upright:
            raise ImageError(
                f"{image_name(opened)} is a TIFF with an orientation, which cannot be read as stored: save it again."
            )
        opened.load()
        # Once read, it is known when the file is closed, too.
        turned = max(turned, orientation(opened))
        if is_upright:
            PIL.ImageOps.exif_transpose(opened, in_place=True)
        if max_side is not None:
            opened.thumbnail((max_side, max_side))
        if applied is not None:
            conditions = {ANIMATED: has_more, TURNED: is_upright and turned != 1}
            applied.update([*applied_rules(opened), *(rule for rule, holds in conditions.items() if holds)])
        return opened


def read_image(
    source: str | Path | BinaryIO, mode: str = "RGB", applied: Counter[str] | None = None, **limits: Any
) -> PIL.Image.Image:
    """The image in a file, upright, with channels from 0 to 255.

    Args:
        source: path of the file, or the open file.
        mode: "L", "RGB" or "RGBA".
        applied, limits: see [`open_image`].

    Raises:
        ImageError: if the image cannot be used, whatever the reason; the message begins with the name of the file.
        ReadError: if the system cannot read the file, see [`open_image`].
    """
    with image_errors(str(source) if isinstance(source, str | Path) else "The image"):
        return convert_image(open_image(source, applied=applied, **limits), mode)


@contextlib.contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Raise an ImageError that begins with the name of an image, whatever error decoding it raises."""
    try:
        yield
    except ReadError:
        raise
    except ImageError as error:
        sentence = str(error)
        raise ImageError(sentence if sentence.startswith(name) else f"{name} cannot be used: {sentence}") from error
    # Pillow's decoders raise all kinds of errors.
    except Exception as error:
        raise ImageError(f"{name} {decoding_fault(error)}.") from error


def decoding_fault(error: Exception) -> str:
    """What this error says is wrong with an image, as the rest of a sentence."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "cannot be decoded: it is not an image of a format that Pillow reads"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return "has too many pixels"
    return f"cannot be decoded: it is broken or incomplete ({error or type(error).__name__})"


def check_is_file(path: str | Path) -> None:
    """Raise an ImageError if a path is not a file: reading it could block forever.

    Raises:
        OSError: if there is nothing.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ImageError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file.")


def check_scans(image: PIL.Image.Image) -> None:
    """Raise an ImageError if an opened JPEG, or TIFF of JPEGs, has so many scans that decoding it would take very long."""
    is_jpeg = image.format in ("JPEG", "MPO")
    file: Any = getattr(image, "fp", None)
    if file is None or not (is_jpeg or "jpeg" in str(image.info.get("compression"))):
        return
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    # Mostly few, also with those that are no markers, but bytes of profiles, previews or a video at the end.
    if content.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return
    # The strips or tiles of a TIFF are JPEGs of their own: together, they may take as many passes over all pixels.
    tags: Any = {} if is_jpeg else getattr(image, "tag_v2", {})
    parts = max(len(tags.get(TIFF_STRIPS, ())), len(tags.get(TIFF_TILES, ())), 1)
    scans = count_scans(content) if is_jpeg else content.count(b"\xff\xda")
    if scans > MAX_JPEG_SCANS * parts:
        raise ImageError(
            f"{image_name(image)} is a JPEG of {scans} scans, more than the {MAX_JPEG_SCANS} allowed: save it again, "
            "not progressive."
        )


def count_scans(content: bytes) -> int:
    """The scans of the first image in the bytes of a JPEG; what follows its end does not count."""
    position = scans = 0
    while (found := JPEG_MARKER.search(content, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        # Past the marker's own data, which may look like markers.
        position = found.end() + max(int.from_bytes(content[found.end() : found.end() + 2], "big"), 2)
    return scans


def check_shape(
    image: PIL.Image.Image, max_aspect_ratio: int = MAX_ASPECT_RATIO, max_pixels: int | None = None
) -> None:
    """Raise an ImageError if one side is too many times as long as the other, or there are too many pixels."""
    short, long = sorted(image.size)
    name = image_name(image)
    if max_pixels is not None and image.mode in ("I", "F"):
        max_pixels //= 4
    if max_pixels is not None and short * long > max_pixels:
        raise ImageError(
            f"{name} of {image.width} x {image.height} has too many pixels: at most {max_pixels / 10**6:g} megapixels are "
            "read."
        )
    if long > max_aspect_ratio * short:
        raise ImageError(
            f"{name} is too long, {image.width} x {image.height} pixels: one side may be at most {max_aspect_ratio} times "
            "the other, crop it or leave it out."
        )


def image_name(image: PIL.Image.Image) -> str:
    return getattr(image, "filename", "") or "An image"


def orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation of an image, from 1 to 8; 1, upright, if there is none that makes sense."""
    try:
        number: Any = image.getexif().get(ORIENTATION)
    # Metadata may be broken in any way, where the image is not.
    except Exception:
        return 1
    return number if number in range(1, 9) else 1


def applied_rules(image: PIL.Image.Image) -> list[str]:
    """The changes made to an image's pixels, each as the rest of a sentence about several images."""
    rules = []
    if image.mode.startswith("I"):
        rules.append(SIXTEEN_BITS)
    if image.mode == "F":
        rules.append(FRACTIONS)
    # Many images have an alpha channel in which nothing is transparent.
    if image.has_transparency_data and (
        image.mode not in ("LA", "RGBA") or image.getchannel("A").getextrema() != (255, 255)
    ):
        rules.append(TRANSPARENT)
    return rules


def has_more_frames(image: PIL.Image.Image) -> bool:
    """Whether an opened image is an animation or has pages; a camera's previews (MPO) do not count."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    # The others may be broken where the first is not.
    except Exception:
        return False


def log_applied_rules(applied: Counter[str], what: str = "images") -> None:
    """Say once how many images were not taken as they are stored, and what was done instead."""
    for rule, count in applied.items():
        logger.warning(f"{count} {what} {rule}.")


def image_source(image: dict[str, Any]) -> Any:
    """What to open of an undecoded image of `datasets`: its `bytes`, or else the `path` of a file."""
    return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]


def checked_image(image: dict[str, Any]) -> dict[str, Any]:
    """Whether an undecoded image of `datasets` can be used, and the rules by which it is not taken as it is stored."""
    applied: Counter[str] = Counter()
    return {"is_readable": decode_image(image, applied) is not None, "applied": list(applied)}


def decode_image(image: dict[str, Any], applied: Counter[str] | None = None) -> PIL.Image.Image | None:
    """The image that `datasets` has as `bytes`, or else as the `path` of a file; None if it cannot be used.

    One that could be decoded, but is too long or too much work, is named in the log.

    Raises:
        ReadError: if the system cannot read the file, see [`open_image`].
    """
    try:
        decoded = open_image(image_source(image), applied=applied)
        # Whether its pixels can be converted is to be known now, and not in the midst of a run.
        if decoded.mode in ("I", "F"):
            convert_image(decoded)
        return decoded
    except ReadError:
        raise
    except ImageError as error:
        logger.warning(f"{image['path'] or 'an image without a name'}: {error}")
        return None
    except Exception:
        # Pillow's decoders raise all kinds of errors.
        return None
