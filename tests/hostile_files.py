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
"""Files as strangers send them to a server."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image


def png_of(width: int, height: int, num_rows: int | None = None) -> bytes:
    """A black PNG that says it is of that size, and has all of its rows, or so many."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    row = bytes(width + 1)
    packed = zlib.compressobj(9)
    data = b"".join(packed.compress(row) for _ in range(height if num_rows is None else num_rows)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image: PIL.Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=image_format, **options)
    return file.getvalue()


def long_png() -> bytes:
    """Some hundred bytes, which an image processor that makes the shorter side 256 pixels long makes 12 GB of."""
    return png_of(1, 65535)


def leave_trace_for_ghostscript(folder: Path) -> tuple[Path, Path]:
    """PostScript that is called picture.png, and a folder for PATH, whose `gs` makes the file trace beside it."""
    (folder / "picture.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "gs").write_text(f"#!/bin/sh\n: > '{folder / 'trace'}'\n")
    (folder / "bin" / "gs").chmod(0o755)
    return folder / "picture.png", folder / "bin"


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


def write_unusable(folder: Path, picture: PIL.Image.Image) -> dict[str, tuple[Path, str]]:
    """Files that no page can use, and a part of the sentence that each gets."""
    png = saved(picture, "PNG")
    contents = {
        "text.png": (b"no picture", "not a picture"),
        "truncated.png": (png[: len(png) // 2], "broken or incomplete"),
        "truncated.jpg": (saved(picture, "JPEG")[:200], "broken or incomplete"),
        "empty.png": (b"", "empty"),
        "long.png": (png_of(20_000, 10), "too long"),
        "bomb.png": (png_of(15_000, 15_000), "too many pixels"),
        "picture.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: (folder / name, sentence) for name, (_, sentence) in contents.items()}


def write_unusual(folder: Path, picture: PIL.Image.Image) -> dict[str, Path]:
    """The same grey picture, in ways that are easy to read wrongly."""
    exif = PIL.Image.Exif()
    # To be turned by 90 degrees clockwise.
    exif[0x0112] = 6
    contents = {
        "cmyk.jpg": saved(picture.convert("CMYK"), "JPEG", quality=95),
        "16_bits.png": saved(PIL.Image.fromarray(np.asarray(picture).astype(np.uint16) * 257), "PNG"),
        "palette.png": saved(picture.convert("P"), "PNG", transparency=0),
        "turned.jpg": saved(picture.transpose(PIL.Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif),
        "animated.gif": saved(
            picture, "GIF", save_all=True, append_images=[PIL.Image.new("L", picture.size, 128)], duration=50
        ),
        "colour.webp": saved(picture.convert("RGB"), "WEBP", quality=95),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def write_unusable_archives(folder: Path, picture: PIL.Image.Image) -> dict[str, tuple[Path, str]]:
    """Archives of which nothing may be read, and a part of the sentence that each gets."""
    contents = {
        "traversal.zip": (archive({"good.png": saved(picture, "PNG"), "../../out.png": b""}), "outside itself"),
        "bomb.zip": (archive({f"{index}.png": bytes(15 * 2**20) for index in range(14)}), "unpacks to more than"),
        "broken.zip": (archive({"good.png": saved(picture, "PNG")})[100:], "not a picture|broken or incomplete"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: (folder / name, sentence) for name, (_, sentence) in contents.items()}
