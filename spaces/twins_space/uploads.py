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
"""Uploaded images: read within limits, or rejected with a message for the visitor."""

import contextlib
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import PIL.features
import PIL.Image

from hf_twins._utils.images import ImageError, check_is_file, convert_image, open_image


MAX_FILE_SIZE = 20 * 2**20
MAX_PIXELS = 50_000_000
MAX_ASPECT_RATIO = 20
# Larger images are reduced on reading, because no model here uses a higher resolution.
MAX_SIDE = 2048
MAX_IMAGES = 200
MAX_UNPACKED_SIZE = 200 * 2**20
# The flag of a member of a zip archive that its name is UTF-8.
UTF8_FLAG = 0x800

# Other formats are rare, or too dangerous for files from visitors (an EPS file is a program).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if PIL.features.check("avif") else ()))
FORMAT_NAMES = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


class UploadError(ValueError):
    """A file cannot be used; the message is for the visitor."""


def read_upload(source: Path | BinaryIO) -> PIL.Image.Image:
    """Read the first frame of an image, upright, in RGB, with no side longer than `MAX_SIDE`.

    As everywhere in hf_twins, 16 bits per channel are scaled to 8, and transparent areas are composited on white.

    Args:
        source: path, or seekable file object.

    Raises:
        UploadError: if the file is not an image, or the image is corrupt, too large or too long.
    """
    if isinstance(source, Path):
        try:
            check_is_file(source)
        except (ImageError, OSError) as error:
            raise UploadError("This is not a file: send an image file.") from error
        with source.open("rb") as file:
            return read_upload(file)
    size = source.seek(0, 2)
    source.seek(0)
    if size == 0:
        raise UploadError("This file is empty: send an image file.")
    if size > MAX_FILE_SIZE:
        raise UploadError(f"This file is too large: send one of at most {MAX_FILE_SIZE >> 20} MB.")
    try:
        image = open_image(
            source,
            formats=FORMATS,
            max_aspect_ratio=MAX_ASPECT_RATIO,
            max_pixels=MAX_PIXELS,
            max_side=MAX_SIDE,
        )
        return convert_image(image)
    except ImageError as error:
        raise UploadError(str(error)) from error
    except PIL.UnidentifiedImageError as error:
        raise UploadError(f"This is not a supported image: send a {FORMAT_NAMES} file.") from error
    except PIL.Image.DecompressionBombError as error:
        raise UploadError(
            f"This image has too many pixels: send one of at most {MAX_PIXELS // 10**6} megapixels."
        ) from error
    # Decoders raise all kinds of errors for corrupt files.
    except Exception as error:
        raise UploadError(
            "This image is broken or incomplete: open it in another program, save it again and send that."
        ) from error


def list_images(files: Sequence[Path]) -> list[tuple[str, Path, zipfile.ZipInfo | None]]:
    """List the images in files and zip archives, each with its name, file, and member of the archive.

    Nothing is unpacked to disk. The directory of an archive is checked before any of its files is read.

    Raises:
        UploadError: if there are no images or too many, or an archive is corrupt, encrypted, too large when unpacked,
            or names files outside itself.
    """
    images: list[tuple[str, Path, zipfile.ZipInfo | None]] = []
    for file in files:
        if zipfile.is_zipfile(file):
            # Names include the archive if there are several, because members of different archives may have the same
            # name.
            folder = PurePosixPath(file.name if len(files) > 1 else "")
            images += [(str(folder / member_name(member)), file, member) for member in list_members(file)]
        else:
            images.append((file.name, file, None))
    if not images:
        raise UploadError("There is no image in these files: send images, or a zip archive of images.")
    if len(images) > MAX_IMAGES:
        raise UploadError(f"These are {len(images):,} images: send at most {MAX_IMAGES} at once.")
    return images


def list_members(archive: Path) -> list[zipfile.ZipInfo]:
    if archive.stat().st_size > MAX_FILE_SIZE:
        raise UploadError(f"This archive is too large: send one of at most {MAX_FILE_SIZE >> 20} MB.")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
    # zipfile raises all kinds of errors for corrupt archives.
    except Exception as error:
        raise UploadError("This zip archive is broken or incomplete: pack it again and send that.") from error
    for member in members:
        # On Windows, backslashes and drives could lead outside.
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member.filename:
            raise UploadError("This zip archive names files outside itself, so it was not read: pack it again.")
        if member.flag_bits & 1:
            raise UploadError("This zip archive is encrypted: send one without a password.")
    if sum(member.file_size for member in members) > MAX_UNPACKED_SIZE:
        raise UploadError(f"This zip archive unpacks to more than {MAX_UNPACKED_SIZE >> 20} MB: send a smaller one.")
    # macOS and file managers add hidden files.
    return [member for member in members if not is_hidden(member.filename)]


def member_name(member: zipfile.ZipInfo) -> str:
    """The name of a member, with `/` between its parts."""
    name = member.filename
    # macOS writes UTF-8 without the flag that says so, and zipfile then decodes it as the format demands.
    if not member.flag_bits & UTF8_FLAG:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def read_images(
    images: Sequence[tuple[str, Path, zipfile.ZipInfo | None]],
) -> Iterator[tuple[str, PIL.Image.Image | UploadError]]:
    """Yield each image that [`list_images`] found, read when requested, or its error."""
    for name, file, member in images:
        try:
            yield name, read_upload(file) if member is None else read_member(file, member)
        except UploadError as error:
            yield name, error


def read_member(archive: Path, member: zipfile.ZipInfo) -> PIL.Image.Image:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UploadError("This is a link inside its zip archive: pack the file itself and send that.")
    if member.file_size > MAX_FILE_SIZE:
        raise UploadError(f"This file is too large: send one of at most {MAX_FILE_SIZE >> 20} MB.")
    try:
        # Members are opened by their entry, because several may have the same name.
        with zipfile.ZipFile(archive) as opened, opened.open(member) as file:
            return read_upload(file)  # type: ignore[arg-type]  # an IO[bytes] that can be sought in
    except UploadError:
        raise
    # zipfile trusts the directory of a corrupt archive, and raises all kinds of errors later.
    except Exception as error:
        raise UploadError("This file is broken inside its zip archive: pack it again and send that.") from error
