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
"""Malicious and unusual files, as anybody may send them to a server."""

import contextlib
import io
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image


def png_of(width: int, height: int, num_rows: int | None = None) -> bytes:
    """A black PNG that declares this size, with all of its rows, or only `num_rows`."""
    row = bytes(width + 1)
    packed = zlib.compressobj(9)
    data = b"".join(packed.compress(row) for _ in range(height if num_rows is None else num_rows)) + packed.flush()
    return png_of_chunks(width, height, {b"IDAT": data})


def png_of_chunks(width: int, height: int, chunks: dict[bytes, bytes], bits: int = 8, color_type: int = 0) -> bytes:
    """A PNG with these chunks between its header and its end; only the first four letters of their names are used."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    inner = b"".join(chunk(kind[:4], data) for kind, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + inner + chunk(b"IEND", b"")


def many_scans(jpeg: bytes, number: int = 60) -> bytes:
    """Repeat the last scan of a JPEG."""
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + number * last + jpeg[-2:]


def write_unusable_images(folder: Path) -> dict[str, str]:
    """Write files with names of images that cannot be used, and return the expected errors."""
    noise = PIL.Image.effect_noise((64, 64), 80)
    png, jpeg = saved(noise, "PNG"), saved(noise, "JPEG")
    texts = {f"zTXt{index}".encode(): b"a\0\0" + zlib.compress(bytes(2**20 - 9)) for index in range(70)}
    contents = {
        "empty.png": (b"", "not an image"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", "not an image"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "not an image"),
        "zeros.webp": (bytes(4000), "not an image"),
        "cut.png": (png[: len(png) // 2], "broken or incomplete"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "broken or incomplete"),
        "no_pixels.png": (png_of(64, 64, num_rows=0), "broken or incomplete"),
        "texts.png": (png_of_chunks(1, 1, texts | {b"IDAT": zlib.compress(b"\0\0")}), "broken or incomplete"),
        "bomb.png": (png_of(20_000, 20_000, num_rows=1), "too many pixels"),
        "long.png": (long_png(), "too long, 1 x 65535 pixels"),
        "scans.jpg": (many_scans(saved(noise, "JPEG", progressive=True)), "scans, more than the 50 allowed"),
        "sequential.jpg": (many_scans(jpeg), "61 scans"),
        "scans.tif": (many_scans(saved(noise, "TIFF", compression="jpeg")), "scans"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to(folder / "nothing")
    # The length of socket paths is limited.
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(folder):
        opened.bind("socket.png")
    others = {"pipe.png": "a named pipe", "folder.png": "a folder", "device.png": "a device", "socket.png": "a socket"}
    return {name: sentence for name, (_, sentence) in contents.items()} | others | {"gone.png": "does not exist"}


def saved(image: PIL.Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=image_format, **options)
    return file.getvalue()


def long_png() -> bytes:
    """A file of a few hundred bytes, which would take 12 GB if its shorter side were resized to 256 pixels."""
    return png_of(1, 65535)


def leave_trace_for_ghostscript(folder: Path) -> tuple[Path, Path]:
    """Write a PostScript file named image.png, and a folder for PATH, whose `gs` writes the file `trace`."""
    (folder / "image.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "gs").write_text(f"#!/bin/sh\n: > '{folder / 'trace'}'\n")
    (folder / "bin" / "gs").chmod(0o755)
    return folder / "image.png", folder / "bin"


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


def write_unusable(folder: Path, image: PIL.Image.Image) -> dict[str, tuple[Path, str]]:
    """Write files that no page can use, and return them with a part of the expected error message."""
    png = saved(image, "PNG")
    contents = {
        "text.png": (b"no image", "not a supported image"),
        "truncated.png": (png[: len(png) // 2], "broken or incomplete"),
        "truncated.jpg": (saved(image, "JPEG")[:200], "broken or incomplete"),
        "empty.png": (b"", "empty"),
        "long.png": (png_of(20_000, 10), "too long"),
        "bomb.png": (png_of(15_000, 15_000), "too many pixels"),
        "image.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: (folder / name, sentence) for name, (_, sentence) in contents.items()}


def write_unusual(folder: Path, image: PIL.Image.Image) -> dict[str, Path]:
    """Write the same gray image in various forms that are easy to read incorrectly."""
    exif = PIL.Image.Exif()
    # This orientation means to turn the image by 90 degrees clockwise.
    exif[0x0112] = 6
    contents = {
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG", quality=95),
        "16_bits.png": saved(PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257), "PNG"),
        "palette.png": saved(image.convert("P"), "PNG", transparency=255),
        "turned.jpg": saved(image.transpose(PIL.Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif),
        "animated.gif": saved(
            image, "GIF", save_all=True, append_images=[PIL.Image.new("L", image.size, 128)], duration=50
        ),
        "color.webp": saved(image.convert("RGB"), "WEBP", quality=95),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def write_unusable_archives(folder: Path, image: PIL.Image.Image) -> dict[str, tuple[Path, str]]:
    """Write archives that must be refused, and return them with a part of the expected error message."""
    contents = {
        "traversal.zip": (archive({"good.png": saved(image, "PNG"), "../../out.png": b""}), "outside itself"),
        "bomb.zip": (archive({f"{index}.png": bytes(15 * 2**20) for index in range(14)}), "unpacks to more than"),
        "broken.zip": (
            archive({"good.png": saved(image, "PNG")})[100:],
            "not a supported image|broken or incomplete",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: (folder / name, sentence) for name, (_, sentence) in contents.items()}
