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
"""Reads untrusted image files, without running programs, and with limited memory and time.

All scripts, Spaces and evaluations read images by [`read_image`], or by `open_image` and `convert_image`: the first
frame, turned upright according to its EXIF orientation, and converted by
[`~hf_twins.image_processing_twins.convert_image`].
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
# Images are resized by their shorter side, so a file of a few hundred bytes, one pixel wide and very long, would
# exhaust the memory. With this limit, an image with a shorter side of 256 pixels takes 20 MB.
MAX_ASPECT_RATIO = 100
# Decoding passes over all pixels once per scan of a JPEG. Encoders write up to about 15 scans, but a malicious file
# can have thousands, at a few bytes each, which would take hours.
MAX_JPEG_SCANS = 50
# The markers of a JPEG, except those that occur within the data of a scan.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# Numbers of EXIF and TIFF tags.
ORIENTATION, TIFF_STRIPS, TIFF_TILES = 0x0112, 273, 324
# Pillow's mode by the number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Image formats that Pillow does not open without a plugin, by extension; old versions of Pillow lack AVIF, too.
CAMERA_RAW = "camera raw"
UNSUPPORTED_FORMATS = {
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "HEIC"),
    **dict.fromkeys((".jxl",), "JPEG XL"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"), CAMERA_RAW),
}
# The same by the first bytes, because phones and websites often give such files the extension of another format.
UNSUPPORTED_CONTENT = {
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "HEIC": re.compile(rb"....ftyp(?:hei[cmsx]|hev[cx]|mif1|msf1)", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "SVG": re.compile(rb".*<svg\b", re.DOTALL | re.IGNORECASE),
}
# Messages about images whose pixels were changed or only partly read.
SIXTEEN_BITS = "have more than 8 bits per pixel: 0 to 65535 is scaled to 0 to 255"
FRACTIONS = "have fractional pixel values: 0 to 1 is scaled to 0 to 255"
TRANSPARENT = "are transparent: they are composited on white, unless the model has four channels"
TURNED = "are turned upright, as their EXIF orientation says"
ANIMATED = "have several frames: the first is read"

# PostScript files are programs, which Pillow runs by Ghostscript, whatever the extension of the file. This disables it
# for everything that opens images in this process, including `datasets`.
PIL.EpsImagePlugin.gs_binary = False


def is_image_file(path: str | Path) -> bool:
    """Whether a file has the extension of a format that Pillow can read, and not only write."""
    # `Path.suffix`, as PTH122 demands, would double the time to list a folder.
    return PIL.Image.registered_extensions().get(os.path.splitext(path)[1].lower()) in PIL.Image.OPEN  # noqa: PTH122


def unsupported_format(path: str | Path) -> str | None:
    """The format that a file has by its extension, if it is one of images that Pillow does not open; otherwise None."""
    return None if is_image_file(path) else UNSUPPORTED_FORMATS.get(os.path.splitext(path)[1].lower())  # noqa: PTH122


def open_image(
    source: str | Path | BinaryIO,
    is_upright: bool = True,
    formats: tuple[str, ...] | None = None,
    max_aspect_ratio: int = MAX_ASPECT_RATIO,
    max_pixels: int | None = None,
    max_side: int | None = None,
    applied: Counter[str] | None = None,
) -> PIL.Image.Image:
    """Decode the image in a file, in the mode that it is stored in.

    Args:
        source: path of the file, or the open file.
        is_upright: whether to turn the image upright according to its EXIF orientation.
        formats: Pillow's names of the formats to accept; all by default.
        max_aspect_ratio: maximum ratio of the longer to the shorter side.
        max_pixels: maximum number of pixels; a quarter of it if each pixel takes 32 bits.
        max_side: reduce the image so that its longer side has at most this many pixels.
        applied: counter of the changes made to this image, for [`log_applied_rules`].

    Raises:
        ImageError: if this is not a file, the image is too long, too large or too slow to decode, or it has one of
            `UNSUPPORTED_FORMATS`.
        ReadError: if the system cannot read the file, for reasons unrelated to the image: it is missing or not
            permitted, or the disk, the network or a process limit prevents reading, also after several tries.
        Exception: any other error that Pillow's decoders raise if the image cannot be decoded.
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
    """Decode an image as [`open_image`] does, in a single try."""
    if isinstance(source, str | Path):
        check_is_file(source)
    with identify_image(source, formats) as opened:
        check_shape(opened, max_aspect_ratio, max_pixels)
        check_scans(opened)
        # Frames are counted before decoding, because some formats have to seek for it.
        has_more = applied is not None and has_more_frames(opened)
        if max_side is not None:
            # The JPEG decoder can reduce the image while it reads, which saves memory and time.
            opened.draft(None, (max_side, max_side))
        # Pillow turns TIFFs already while it decodes them.
        turned = getattr(opened, "tag_v2", {}).get(ORIENTATION, 1)
        if turned != 1 and not is_upright:
            raise ImageError(
                f"{image_name(opened)} is a TIFF with an orientation, which cannot be read as stored: save it again."
            )
        opened.load()
        # Reading the orientation here caches it, so that it is available after the file is closed.
        turned = max(turned, orientation(opened))
        if is_upright:
            PIL.ImageOps.exif_transpose(opened, in_place=True)
        if max_side is not None:
            opened.thumbnail((max_side, max_side))
        if applied is not None:
            conditions = {ANIMATED: has_more, TURNED: is_upright and turned != 1}
            applied.update([*applied_rules(opened), *(rule for rule, holds in conditions.items() if holds)])
        return opened


def identify_image(source: str | Path | BinaryIO, formats: tuple[str, ...] | None) -> PIL.Image.Image:
    """Open an image, without decoding it.

    Raises:
        ImageError: if its format is known, but Pillow does not open it.
        PIL.UnidentifiedImageError: if its format is unknown.
    """
    # Many camera raw files are TIFFs, of which Pillow would open a small preview.
    if isinstance(source, str | Path) and unsupported_format(source) == CAMERA_RAW:
        raise ImageError(describe_unsupported(CAMERA_RAW))
    try:
        return PIL.Image.open(source, formats=formats)
    except PIL.UnidentifiedImageError as error:
        with Path(source).open("rb") if isinstance(source, str | Path) else contextlib.nullcontext(source) as file:
            file.seek(0)
            start = file.read(4096)
        for name, content in UNSUPPORTED_CONTENT.items():
            if content.match(start):
                raise ImageError(describe_unsupported(name)) from error
        raise


def describe_unsupported(name: str) -> str:
    return f"{name} images are not supported: convert this one to JPEG or PNG."


def read_image(
    source: str | Path | BinaryIO, mode: str = "RGB", applied: Counter[str] | None = None, **limits: Any
) -> PIL.Image.Image:
    """Read the image in a file, upright, with values from 0 to 255.

    Args:
        source: path of the file, or the open file.
        mode: "L", "RGB" or "RGBA".
        applied, limits: see [`open_image`].

    Raises:
        ImageError: if the image cannot be used, for any reason; the message begins with the name of the file.
        ReadError: if the system cannot read the file, see [`open_image`].
    """
    with image_errors(str(source) if isinstance(source, str | Path) else "The image"):
        return convert_image(open_image(source, applied=applied, **limits), mode)


@contextlib.contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Convert any decoding error to an ImageError whose message begins with the name of the image."""
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
    """Describe an error of decoding an image, as the end of a sentence."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "cannot be decoded: it is not an image of a format that Pillow reads"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return "has too many pixels"
    return f"cannot be decoded: it is broken or incomplete ({error or type(error).__name__})"


def check_is_file(path: str | Path) -> None:
    """Raise an ImageError if a path is not a regular file, such as a pipe, since reading it could block forever.

    Raises:
        OSError: if the path does not exist.
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
    # A quick upper bound, which also counts these bytes in profiles, previews, or a video after the image.
    if content.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return
    # Each strip or tile of a TIFF is a JPEG that covers only its part of the pixels.
    tags: Any = {} if is_jpeg else getattr(image, "tag_v2", {})
    parts = max(len(tags.get(TIFF_STRIPS, ())), len(tags.get(TIFF_TILES, ())), 1)
    scans = count_scans(content) if is_jpeg else content.count(b"\xff\xda")
    if scans > MAX_JPEG_SCANS * parts:
        raise ImageError(
            f"{image_name(image)} is a JPEG of {scans} scans, more than the {MAX_JPEG_SCANS} allowed: save it again, "
            "not progressive."
        )


def count_scans(content: bytes) -> int:
    """Count the scans of the first image in the bytes of a JPEG; data after its end does not count."""
    position = scans = 0
    while (found := JPEG_MARKER.search(content, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        # Skip the data of the marker, which may contain bytes that look like markers.
        position = found.end() + max(int.from_bytes(content[found.end() : found.end() + 2], "big"), 2)
    return scans


def check_shape(
    image: PIL.Image.Image, max_aspect_ratio: int = MAX_ASPECT_RATIO, max_pixels: int | None = None
) -> None:
    """Raise an ImageError if the aspect ratio is too extreme, or there are too many pixels."""
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


def mode_of_model(config: Any) -> str:
    """Pillow's mode with the channels of a model's images.

    Args:
        config: configuration of the model, or of a model with a backbone.

    Raises:
        ValueError: if no mode has as many channels.
    """
    num_channels = getattr(getattr(config, "backbone_config", None) or config, "num_channels", 3)
    if num_channels not in MODES:
        raise ValueError(
            f"The model takes images of {num_channels} channels, but files are read with {', '.join(map(str, MODES))}: give a "
            "model of one of these."
        )
    return MODES[num_channels]


def image_name(image: PIL.Image.Image) -> str:
    return getattr(image, "filename", "") or "An image"


def orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation of an image, from 1 to 8; 1 (upright) if it is missing or invalid."""
    try:
        number: Any = image.getexif().get(ORIENTATION)
    # Corrupt metadata raises all kinds of errors, though the image may be intact.
    except Exception:
        return 1
    return number if number in range(1, 9) else 1


def applied_rules(image: PIL.Image.Image) -> list[str]:
    """The changes made to an image's pixels, each as the end of a sentence about several images."""
    rules = []
    if image.mode.startswith("I"):
        rules.append(SIXTEEN_BITS)
    if image.mode == "F":
        rules.append(FRACTIONS)
    # Many images have an alpha channel but no transparent pixels.
    if image.has_transparency_data and (
        image.mode not in ("LA", "RGBA") or image.getchannel("A").getextrema() != (255, 255)
    ):
        rules.append(TRANSPARENT)
    return rules


def has_more_frames(image: PIL.Image.Image) -> bool:
    """Whether an opened image has several frames or pages; previews that cameras store (MPO) do not count."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    # Further frames may be corrupt even if the first is intact.
    except Exception:
        return False


def log_applied_rules(applied: Counter[str], what: str = "images") -> None:
    """Log how many images were changed when they were read, and how."""
    for rule, count in applied.items():
        logger.warning(f"{count} {what} {rule}.")


def image_source(image: dict[str, Any]) -> Any:
    """The source of an undecoded image of `datasets`: its `bytes` or, without them, the `path` of a file."""
    return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]


def checked_image(image: dict[str, Any]) -> dict[str, Any]:
    """Check whether an undecoded image of `datasets` is usable, and which changes are made to it when it is read."""
    applied: Counter[str] = Counter()
    return {"is_readable": decode_image(image, applied) is not None, "applied": list(applied)}


def decode_image(image: dict[str, Any], applied: Counter[str] | None = None) -> PIL.Image.Image | None:
    """Decode an image that `datasets` has as `bytes`, or as the `path` of a file; return None if it is unusable.

    An image that could be decoded, but is too long or would take too long, is named in the log.

    Raises:
        ReadError: if the system cannot read the file, see [`open_image`].
    """
    try:
        decoded = open_image(image_source(image), applied=applied)
        # Convert the pixels now, to find invalid values before training rather than during it.
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
