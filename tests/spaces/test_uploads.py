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
"""Uploaded images: each is read correctly, or refused with one sentence."""

import io
import os
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hostile_files import archive, many_scans, png_of, saved
from twins_space import uploads
from twins_space.uploads import UploadError, list_images, read_images, read_upload


WIDTH, HEIGHT = 40, 30


@pytest.fixture
def scene() -> PIL.Image.Image:
    """An image that is dark at the left, bright at the right, and red at the top."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[..., :] = np.linspace(0, 255, WIDTH, dtype=np.uint8)[None, :, None]
    pixels[:10] = (255, 0, 0)
    return PIL.Image.fromarray(pixels)


def sent(image: PIL.Image.Image, image_format: str, **options) -> io.BytesIO:
    return io.BytesIO(saved(image, image_format, **options))


def difference(image: PIL.Image.Image, other: PIL.Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats_are_read(scene, image_format):
    image = read_upload(sent(scene, image_format))
    assert image.mode == "RGB"
    assert difference(image, scene) < 8


def test_cmyk_is_read(scene):
    assert difference(read_upload(sent(scene.convert("CMYK"), "JPEG")), scene) < 8


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA"])
def test_modes_are_read(scene, mode):
    image = scene.convert(mode)
    assert difference(read_upload(sent(image, "PNG")), image.convert("RGB")) < 1


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bits_keep_their_range(scene, image_format):
    gray = np.asarray(scene.convert("L"))
    image = PIL.Image.fromarray(gray.astype(np.uint16) * 257)
    assert image.mode == "I;16"
    assert difference(read_upload(sent(image, image_format)), scene.convert("L").convert("RGB")) < 1


def test_palette_with_transparency_is_composited_on_white(scene):
    palette = scene.quantize(16)
    file = sent(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_upload(file)
    palette.info["transparency"] = bytes(range(0, 256, 16))
    layers = PIL.Image.new("RGBA", palette.size, "white"), palette.convert("RGBA")
    assert difference(image, PIL.Image.alpha_composite(*layers).convert("RGB")) < 1


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_turned_images_are_upright(scene, image_format):
    exif = PIL.Image.Exif()
    # The camera was held sideways: the image must be turned by 90 degrees clockwise.
    exif[0x0112] = 6
    file = sent(scene.transpose(PIL.Image.Transpose.ROTATE_90), image_format, exif=exif)
    assert difference(read_upload(file), scene) < 8


def test_turned_image_of_16_bits_is_upright(scene):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = np.asarray(scene.convert("L").transpose(PIL.Image.Transpose.ROTATE_90)).astype(np.uint16) * 257
    image = read_upload(sent(PIL.Image.fromarray(turned), "PNG", exif=exif))
    assert difference(image, scene.convert("L").convert("RGB")) < 1


def test_first_frame_of_an_animation_is_read(scene):
    file = sent(scene, "GIF", save_all=True, append_images=[PIL.Image.new("RGB", scene.size)], duration=50)
    assert difference(read_upload(file), scene) < 8


def test_single_pixel_is_read():
    assert read_upload(sent(PIL.Image.new("RGB", (1, 1), "red"), "PNG")).size == (1, 1)


def test_large_image_is_reduced(scene):
    image = read_upload(sent(scene.resize((4000, 3000)), "JPEG"))
    assert image.size == (uploads.MAX_SIDE, uploads.MAX_SIDE * 3 // 4)


REFUSED = {
    "empty": (io.BytesIO(), "This file is empty"),
    "text": (io.BytesIO(b"no image"), "not a supported image: send a PNG, JPEG"),
    "svg": (io.BytesIO(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'), "SVG images"),
    "heic": (io.BytesIO(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)), "HEIC images"),
    "postscript": (io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a supported image"),
    "long": (io.BytesIO(png_of(20_000, 10)), "too long, 20000 x 10 pixels"),
    "many pixels": (io.BytesIO(png_of(9_000, 9_000)), "9000 x 9000 has too many pixels"),
    "bomb": (io.BytesIO(png_of(60_000, 60_000, num_rows=1)), "too many pixels"),
    "nothing in it": (io.BytesIO(png_of(100, 100, num_rows=0)), "broken or incomplete"),
}


# Pillow warns about sizes that are refused here.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("file", "message"), REFUSED.values(), ids=REFUSED)
def test_unusable_file_is_refused_with_one_sentence(file, message):
    with pytest.raises(UploadError, match=message):
        read_upload(file)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_image_is_refused_with_one_sentence(image_format):
    content = sent(PIL.Image.effect_noise((200, 200), 80).convert("RGB"), image_format).getvalue()
    with pytest.raises(UploadError, match=r"broken or incomplete|not a supported image"):
        read_upload(io.BytesIO(content[: len(content) // 2]))


def test_fractions_are_refused_with_one_sentence():
    with pytest.raises(UploadError, match="fractions from 255 to 255 as pixels, but only 0 to 1 is read"):
        read_upload(sent(PIL.Image.new("F", (20, 20), 255), "TIFF"))
    gray = read_upload(sent(PIL.Image.new("F", (20, 20), 0.5), "TIFF"))
    assert gray.getpixel((0, 0)) == (128, 128, 128)


def test_images_of_32_bits_may_have_a_quarter_of_the_pixels(monkeypatch):
    """They take four bytes per pixel, although the file may have only a few hundred thousand bytes."""
    monkeypatch.setattr(uploads, "MAX_PIXELS", 400)
    assert read_upload(sent(PIL.Image.new("L", (20, 20)), "TIFF")).size == (20, 20)
    assert read_upload(sent(PIL.Image.new("I", (10, 10)), "TIFF")).size == (10, 10)
    for mode in ("I", "F"):
        with pytest.raises(UploadError, match="20 x 20 has too many pixels"):
            read_upload(sent(PIL.Image.new(mode, (20, 20)), "TIFF"))


def test_images_of_many_scans_are_refused_alone_and_in_an_archive(scene, tmp_path):
    """Decoding each scan passes over all pixels, although a scan may take only a few bytes."""
    progressive = many_scans(saved(scene, "JPEG", progressive=True), 1000)
    with pytest.raises(UploadError, match=r"a JPEG of 10\d\d scans, more than the 50 allowed"):
        read_upload(io.BytesIO(progressive))
    archive = write_zip(tmp_path / "scans.zip", {"good.jpg": saved(scene, "JPEG"), "scans.jpg": progressive})
    good, scans = read_images(list_images([archive]))
    assert good[1].size == scene.size
    assert "scans" in str(scans[1])


def test_special_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, tmp_path / "gone.png"):
        with pytest.raises(UploadError, match="This is not a file"):
            read_upload(path)


def test_large_file_is_refused(monkeypatch, scene):
    monkeypatch.setattr(uploads, "MAX_FILE_SIZE", 100)
    with pytest.raises(UploadError, match="too large"):
        read_upload(sent(scene, "PNG"))


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(archive(members))
    return path


def test_images_of_files_and_archives_are_listed_and_read(scene, tmp_path):
    png = sent(scene, "PNG").getvalue()
    archive = write_zip(
        tmp_path / "all.zip",
        {"a/one.png": png, "a/broken.png": png[:60], "__MACOSX/a/one.png": b"", "a/.hidden": b"", "a/": b""},
    )
    (tmp_path / "alone.png").write_bytes(png)
    found = list(read_images(list_images([tmp_path / "alone.png", archive])))
    assert [name for name, _ in found] == ["alone.png", "all.zip/a/one.png", "all.zip/a/broken.png"]
    assert difference(found[1][1], scene) == 0
    assert isinstance(found[2][1], UploadError)


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"])
def test_archive_that_names_files_outside_itself_is_refused(tmp_path, name):
    with pytest.raises(UploadError, match="names files outside itself"):
        list_images([write_zip(tmp_path / "out.zip", {"good.png": b"", name: b""})])


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    bomb = write_zip(tmp_path / "bomb.zip", {f"{index}.png": bytes(15 * 2**20) for index in range(14)})
    assert bomb.stat().st_size < 2**20
    with pytest.raises(UploadError, match="unpacks to more than 200 MB"):
        list_images([bomb])


def test_only_the_member_that_is_too_large_is_refused(tmp_path):
    archive = write_zip(tmp_path / "large.zip", {"large.png": bytes(uploads.MAX_FILE_SIZE + 1)})
    ((_, result),) = read_images(list_images([archive]))
    assert "too large" in str(result)


def test_member_that_is_larger_than_declared_is_refused(tmp_path):
    archive = write_zip(tmp_path / "lying.zip", {"lying.png": bytes(100_000)})
    content = archive.read_bytes()
    archive.write_bytes(content.replace(struct.pack("<I", 100_000), struct.pack("<I", 100)))
    ((_, result),) = read_images(list_images([archive]))
    assert isinstance(result, UploadError)


def test_broken_archive_is_refused(tmp_path):
    content = bytearray(write_zip(tmp_path / "broken.zip", {"one.png": b"123"}).read_bytes())
    start = content.rindex(b"PK\x01\x02")
    content[start : start + 4] = b"????"
    (tmp_path / "broken.zip").write_bytes(content)
    with pytest.raises(UploadError, match="broken or incomplete"):
        list_images([tmp_path / "broken.zip"])


def test_member_with_an_offset_outside_the_archive_is_refused(scene, tmp_path):
    """If the beginning of an archive was cut off, offsets in its directory are before its start."""
    file = tmp_path / "cut.zip"
    file.write_bytes(archive({"0.png": saved(scene, "PNG")})[2:])
    ((_, refusal),) = read_images(list_images([file]))
    assert isinstance(refusal, UploadError)
    assert "broken inside its zip archive" in str(refusal)


def test_encrypted_archive_is_refused(tmp_path):
    content = bytearray(write_zip(tmp_path / "locked.zip", {"one.png": b"123"}).read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(UploadError, match="encrypted"):
        list_images([tmp_path / "locked.zip"])


def test_link_in_an_archive_is_named(scene, tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        archive.writestr("scene.png", saved(scene, "PNG"))
        archive.writestr(link, "scene.png")
    (_, read), (_, refusal) = read_images(list_images([tmp_path / "links.zip"]))
    assert read.size == scene.size
    assert str(refusal) == "This is a link inside its zip archive: pack the file itself and send that."


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_the_same_name_are_all_read(scene, tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for side in (20, 30):
            archive.writestr("a.png", saved(scene.resize((side, side)), "PNG"))
    read = list(read_images(list_images([tmp_path / "twice.zip"])))
    assert [(name, image.size) for name, image in read] == [("a.png", (20, 20)), ("a.png", (30, 30))]


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_names_without_the_flag_of_utf8_are_decoded(encoding, scene, tmp_path):
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"
    stored = name.encode(encoding)
    archive = write_zip(tmp_path / "names.zip", {"x" * len(stored): saved(scene, "PNG")})
    archive.write_bytes(archive.read_bytes().replace(b"x" * len(stored), stored))
    ((shown, image),) = read_images(list_images([archive]))
    assert (shown, image.size) == (name, scene.size)


@pytest.mark.parametrize(("count", "message"), [(0, "no image"), (201, "201 images: send at most 200")])
def test_number_of_images_is_limited(tmp_path, count, message):
    archive = write_zip(tmp_path / "many.zip", {f"{index}.png": b"" for index in range(count)})
    with pytest.raises(UploadError, match=message):
        list_images([archive])
