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
"""Reading of images, which all examples share."""

import errno
import inspect
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from hostile_files import (
    leave_trace_for_ghostscript,
    long_png,
    png_of,
    png_of_chunks,
    saved,
    write_unusable_images,
)
from PIL import ExifTags, Image, ImageCms, ImageFile
from transformers import UperNetConfig
from twins_space.uploads import UploadError, read_upload

import hf_twins
from hf_twins._utils import images
from hf_twins._utils.files import ReadError
from hf_twins._utils.images import (
    ImageError,
    convert_image,
    decode_image,
    is_image_file,
    mode_of_model,
    open_image,
    read_image,
    unsupported_format,
)
from hf_twins.export import run_exported
from hf_twins.image_processing_twins import to_eight_bits


# Scripts that import little, and the slow scripts of each kind that import more.
ALONE = [str(Path(hf_twins.__file__).parent / "export" / "run_exported.py")]
SCRIPTS = [
    "hf_twins._utils.images",
    "attention_maps",
    "quickstart",
    "extract_features",
    "batch_predict",
    "run_detection",
]


# Imports each script in a forked process and opens an image there; prints the scripts for which Ghostscript was run.
OPEN_AFTER_EACH = """
import ast, contextlib, importlib, os, runpy, sys
import datasets, PIL.Image

search_path, preload, image, trace, scripts = ast.literal_eval(sys.argv[1])
sys.path[:0] = search_path
for module in preload:
    importlib.import_module(module)
for script in scripts:
    if (process := os.fork()) == 0:
        # A file of its own is run by its path: importing the package takes seconds.
        (runpy.run_path if os.path.isfile(script) else importlib.import_module)(script)
        with contextlib.suppress(OSError):
            PIL.Image.open(image).load()
        with contextlib.suppress(OSError):
            datasets.Image().decode_example({"path": image, "bytes": None})
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, script
    if os.path.exists(trace):
        print(script)
        os.remove(trace)
"""


def scripts_that_run_ghostscript(folder: Path, scripts: list[str], preload: Sequence[str] = ()) -> list[str]:
    """The scripts, each imported separately, after which opening a PostScript image runs Ghostscript."""
    image, programs = leave_trace_for_ghostscript(folder)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    arguments = repr((sys.path, [*preload], str(image), str(folder / "trace"), scripts))
    command = [sys.executable, "-c", OPEN_AFTER_EACH, arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_runner_of_exports_never_runs_images_as_programs(tmp_path):
    # "json" shows that Pillow runs Ghostscript if no script forbids it.
    assert scripts_that_run_ghostscript(tmp_path, ["json", *ALONE]) == ["json"]


@pytest.mark.slow
def test_scripts_never_run_images_as_programs(tmp_path):
    preload = ["sklearn.metrics", "transformers.trainer", "torchvision.transforms.v2"]
    assert scripts_that_run_ghostscript(tmp_path, ["json", *SCRIPTS], preload) == ["json"]


@pytest.mark.parametrize("width", [1, 65535])
def test_length_is_limited(width, tmp_path):
    (tmp_path / "long.png").write_bytes(png_of(width, 65536 - width))
    with pytest.raises(ImageError, match=rf"^{tmp_path}/long.png is too long, {width} x {65536 - width} pixels: "):
        open_image(tmp_path / "long.png")
    (tmp_path / "short.png").write_bytes(png_of(2, 200))
    assert open_image(tmp_path / "short.png").size == (2, 200)
    assert len(long_png()) < 1000


def test_image_has_the_same_orientation_as_in_datasets(tmp_path):
    """The image is stored as by a camera held sideways; `datasets` decodes training and evaluation images."""
    stored = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    upright = datasets.Image().decode_example({"path": str(tmp_path / "turned.png"), "bytes": None})
    assert upright.size == (32, 48)
    for image in (
        open_image(tmp_path / "turned.png"),
        decode_image({"path": str(tmp_path / "turned.png"), "bytes": None}),
    ):
        assert np.array_equal(image, upright)
    assert np.array_equal(open_image(tmp_path / "turned.png", is_upright=False), stored)


def test_images_are_recognized_by_their_names():
    """Pillow can write PDF files, but cannot read them."""
    assert all(map(is_image_file, ("a.png", "b/c.JPG", "d.webp")))
    assert not any(map(is_image_file, ("a.pdf", "b.txt", "c")))


UNSUPPORTED = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "SVG": b'<?xml version="1.0"?>\n<svg width="9" height="9"/>',
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_format_that_pillow_does_not_open_is_named_whatever_the_extension(name, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(UNSUPPORTED[name])
    sentence = f"{name} images are not supported: convert this one to JPEG or PNG."
    for source in (file, io.BytesIO(UNSUPPORTED[name])):
        with pytest.raises(ImageError, match=f"^{sentence}$"):
            open_image(source)
    with pytest.raises(ImageError, match=f"photo.jpg cannot be used: {sentence}$"):
        read_image(file)


def test_preview_in_a_camera_raw_file_is_not_taken_for_the_image(tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "photo.DNG", format="TIFF")
    with pytest.raises(ImageError, match=r"photo.DNG cannot be used: camera raw images are not supported: convert"):
        read_image(tmp_path / "photo.DNG")


def test_format_is_supported_once_a_plugin_is_registered(monkeypatch):
    assert unsupported_format("photo.HEIC") == "HEIC"
    monkeypatch.setitem(PIL.Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(PIL.Image.OPEN, "HEIF", None)
    assert is_image_file("photo.HEIC")
    assert unsupported_format("photo.HEIC") is None


DEEP = [0, 1, 128, 129, 257, 32768, 65535]
EIGHT = [0, 0, 0, 1, 1, 128, 255]


def image_of_mode(mode: str) -> Image.Image:
    """Create an image with three rows of colors, the middle one transparent if the mode supports it."""
    pixels = np.zeros((3, 4, 4), np.uint8)
    pixels[..., :3] = [[[255, 0, 0]], [[0, 128, 0]], [[30, 60, 250]]]
    pixels[..., 3] = [[255], [0], [128]]
    if mode.startswith("I"):
        values = np.array([[0, 257, 65535], [128, 129, 32768]], np.int32)
        if mode == "I":
            return Image.fromarray(values)
        return Image.frombytes(mode, (3, 2), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "F":
        return Image.fromarray(np.array([[0, 0.5, 1], [0.25, 0.1, 0.9]], np.float32))
    image = Image.fromarray(pixels)
    if mode == "LAB":
        return Image.frombytes("LAB", (2, 1), bytes([200, 10, 20, 90, 250, 3]))
    if mode == "P":
        palette = image.convert("RGB").quantize(3)
        palette.info["transparency"] = bytes([0, 255, 128])
        return palette
    if mode in ("La", "PA"):
        return image.convert("LA" if mode == "La" else "P").convert(mode)
    return image.convert(mode)


def on_white(image: Image.Image) -> Image.Image:
    """Composite an image on white, independently of the implementation under test."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    share = pixels[..., 3:] / 255
    return Image.fromarray(np.rint(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8))


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
MODES += ["I", "I;16", "I;16B", "I;16L", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_all_readers_return_the_same_pixels_for_every_mode(mode, tmp_path):
    """Compare scripts, Spaces, both image processors, the input of detectors, and the program in exports."""
    image = image_of_mode(mode)
    assert image.mode == mode
    converted = convert_image(image)
    pixels = np.asarray(converted)
    assert (converted.mode, image.mode) == ("RGB", mode)
    options = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    for num_channels in (3, None):
        kept = convert_image(image, "RGB" if num_channels else None)
        assert kept.mode in ("L", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
        assert kept.tobytes() == run_exported.convert_image(image, "RGB" if num_channels else None).tobytes()
        for processor_class in (hf_twins.TwinsImageProcessor, hf_twins.TwinsImageProcessorPil):
            processor = processor_class(**options, do_convert_rgb=num_channels == 3)
            if len(kept.getbands()) in (1, 3):
                values = np.asarray(processor(image, return_tensors="pt").pixel_values[0])
                assert values.transpose(1, 2, 0).tobytes() == kept.tobytes()
    if mode in ("LA", "PA", "P", "RGBA"):
        assert abs(pixels.astype(int) - np.asarray(on_white(image))).max() <= 1
        assert (pixels[1] == 255).all() or mode == "P"
        assert (np.asarray(convert_image(image, "L")).ndim, convert_image(image, "RGBA").mode) == (2, "RGBA")
    if mode.startswith("I"):
        assert pixels[..., 0].tolist() == [[0, 1, 255], [0, 1, 128]]
    if mode == "F":
        assert pixels[..., 0].tolist() == [[0, 128, 255], [64, 26, 230]]


def test_copy_of_the_conversion_rules_in_exports_is_identical():
    for function in (convert_image, to_eight_bits, images.ImageError):
        assert inspect.getsource(function) == inspect.getsource(getattr(run_exported, function.__name__))


def test_sixteen_bits_are_divided_by_257_and_rounded():
    for dtype in (np.uint16, np.int32):
        gray = Image.fromarray(np.array([DEEP], dtype=dtype))
        assert np.asarray(convert_image(gray, "L"))[0].tolist() == EIGHT
    # The image has more than one strip.
    tall = np.linspace(0, 65535, 3 * 2**20, dtype=np.uint16).reshape(-1, 3)
    assert np.array_equal(np.asarray(convert_image(Image.fromarray(tall), "L")), (tall.astype(int) + 128) // 257)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.int32([[-1, 5]]), "32-bit integers from -1 to 5 as pixels, but only 0 to 65535 is read"),
        (np.int32([[0, 65536]]), "32-bit integers from 0 to 65536"),
        (np.float32([[0, 255]]), "fractions from 0 to 255 as pixels, but only 0 to 1 is read"),
        (np.float32([[-0.1, 1]]), "fractions from -0.1 to 1"),
        (np.float32([[np.nan, 1]]), "fractions from nan to nan"),
        (np.float32([[0, np.inf]]), "fractions from 0 to inf"),
    ],
    ids=["negative", "beyond 16 bits", "255", "negative fraction", "NaN", "infinite"],
)
def test_values_without_a_known_maximum_are_refused_by_name(values, message, tmp_path, capsys):
    image = Image.fromarray(values)
    for convert in (convert_image, hf_twins.TwinsImageProcessor(), hf_twins.TwinsImageProcessorPil()):
        with pytest.raises(ValueError, match=message):
            convert(image)
    image.save(tmp_path / "deep.tif")
    with pytest.raises(ImageError, match=rf"^{tmp_path}/deep.tif cannot be used: An image has {message}"):
        read_image(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/deep.tif cannot be used: An image has {message}"):
        run_exported.read_image(tmp_path / "deep.tif")
    assert decode_image({"path": str(tmp_path / "deep.tif"), "bytes": None}) is None


def test_error_shows_unsigned_integers_with_their_true_values(tmp_path):
    file = tmp_path / "deep.tif"
    signed = saved(Image.fromarray(np.uint32([[7, 2**31 + 5]]).view(np.int32)), "TIFF")
    tag = [struct.pack("<HHIH", 339, 3, 1, sample_format) for sample_format in (2, 1)]
    assert signed.count(tag[0]) == 1
    file.write_bytes(signed.replace(*tag))
    for read in (read_image, run_exported.read_image):
        with pytest.raises(ValueError, match=r"32-bit integers from 7 to 2.14748e\+09 as pixels"):
            read(file)


@pytest.mark.parametrize("deep", [False, True], ids=["gray", "color"])
def test_transparent_color_of_16_bits_is_white(deep, tmp_path):
    """The color is in PNG's tRNS chunk, which Pillow returns with 16 bits."""
    values = [[1000, 2000, 3000], [40000, 5, 60000]] if deep else [[1000], [40000]]
    raw = np.array(values, ">u2").tobytes()
    chunks = {b"tRNS": raw[: len(raw) // 2], b"IDAT": zlib.compress(b"\0" + raw)}
    (tmp_path / "key.png").write_bytes(png_of_chunks(2, 1, chunks, 16, 2 if deep else 0))
    pixels = np.asarray(read_image(tmp_path / "key.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == ([156, 0, 234] if deep else [156, 156, 156])


# Pillow warns about large sizes before it refuses even larger ones.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_reader_refuses_unusable_files_by_name(tmp_path):
    """Readers must not wait for a pipe, or decode for hours."""
    for name, sentence in write_unusable_images(tmp_path).items():
        # An error unrelated to the image is not a reason to leave it out.
        is_gone = name == "gone.png"
        with pytest.raises(ReadError if is_gone else ImageError, match=rf"^{tmp_path}/{name} .*{sentence}"):
            read_image(tmp_path / name)
        if not is_gone:
            assert decode_image({"path": str(tmp_path / name), "bytes": None}) is None
        reason = f".*{sentence}" if "scans" in sentence else ""
        with pytest.raises(ValueError, match=rf"^{tmp_path}/{name} cannot be used: {reason}"):
            run_exported.read_image(tmp_path / name)
        with pytest.raises(UploadError):
            read_upload(tmp_path / name)


def test_mode_has_the_channels_of_the_model_or_of_its_backbone():
    backbone = hf_twins.TwinsConfig(num_channels=4)
    assert [mode_of_model(hf_twins.TwinsConfig(num_channels=number)) for number in (1, 3, 4)] == ["L", "RGB", "RGBA"]
    assert mode_of_model(UperNetConfig(backbone_config=backbone)) == "RGBA"
    with pytest.raises(ValueError, match="takes images of 5 channels, but files are read with 1, 3, 4: give a model"):
        mode_of_model(hf_twins.TwinsConfig(num_channels=5))


def test_only_scans_of_the_image_itself_are_counted(tmp_path):
    """Bytes of a preview, a profile or a video after the image may look like markers."""
    noise = Image.effect_noise((64, 64), 80)
    exif = Image.Exif()
    exif[ExifTags.Base.MakerNote] = 60 * b"\xff\xda"
    content = saved(noise, "JPEG", progressive=True, exif=exif, icc_profile=60 * b"\xff\xda\0")
    (tmp_path / "motion.jpg").write_bytes(content + 60 * b"\xff\xda")
    for read in (read_image, run_exported.read_image):
        assert read(tmp_path / "motion.jpg").size == (64, 64)
    assert images.count_scans(content) == 6
    # The TIFF has 128 strips, each of which is a JPEG.
    Image.effect_noise((64, 1024), 80).save(tmp_path / "strips.tif", compression="jpeg", strip_size=64 * 8)
    assert (tmp_path / "strips.tif").read_bytes().count(b"\xff\xda") > images.MAX_JPEG_SCANS
    for read in (read_image, run_exported.read_image):
        assert read(tmp_path / "strips.tif").size == (64, 1024)


# Pillow warns about the corrupt metadata.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("number", range(10))
def test_orientation_is_read_from_exif(number, tmp_path):
    """Images with and without a preview are turned, but not if the number is invalid or the metadata is corrupt."""
    stored = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    stored.save(tmp_path / "turned.png", exif=exif)
    stored.save(tmp_path / "broken.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    turn = {2: "mlr", 3: "180", 4: "mtb", 5: "transpose", 6: "270", 7: "transverse", 8: "90"}
    turns = {
        "mlr": Image.Transpose.FLIP_LEFT_RIGHT,
        "mtb": Image.Transpose.FLIP_TOP_BOTTOM,
        "transpose": Image.Transpose.TRANSPOSE,
        "transverse": Image.Transpose.TRANSVERSE,
        **{str(degrees): Image.Transpose[f"ROTATE_{degrees}"] for degrees in (90, 180, 270)},
    }
    expected = stored.transpose(turns[turn[number]]) if number in turn else stored
    applied: Counter[str] = Counter()
    assert np.array_equal(read_image(tmp_path / "turned.png", applied=applied), expected)
    assert applied == ({images.TURNED: 1} if number in turn else {})
    assert np.array_equal(run_exported.read_image(tmp_path / "turned.png"), expected)
    assert np.array_equal(read_upload(tmp_path / "turned.png"), expected)
    assert read_image(tmp_path / "broken.jpg").size == (48, 32)


def test_applied_rules_are_logged_once_with_their_count(tmp_path, caplog):
    deep = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    files = {
        "deep.png": saved(deep, "PNG"),
        "deep.tif": saved(deep.convert("I"), "TIFF"),
        "fractions.tif": saved(Image.new("F", (4, 4), 0.5), "TIFF"),
        "opaque.png": saved(Image.new("RGBA", (4, 4), "red"), "PNG"),
        "clear.png": saved(Image.new("RGBA", (4, 4)), "PNG"),
        "clear.gif": saved(Image.new("P", (4, 4)), "GIF", transparency=0),
        "moving.gif": saved(
            Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)], duration=9
        ),
        "pages.tif": saved(Image.new("L", (4, 4)), "TIFF", save_all=True, append_images=[Image.new("L", (4, 4), 9)]),
        "plain.jpg": saved(Image.new("RGB", (4, 4)), "JPEG"),
    }
    applied: Counter[str] = Counter()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        read_image(tmp_path / name, applied=applied)
    assert applied == {images.SIXTEEN_BITS: 2, images.FRACTIONS: 1, images.TRANSPARENT: 2, images.ANIMATED: 2}
    images.log_applied_rules(applied)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["2", "1", "2", "2"]
    assert "2 images have more than 8 bits per pixel: 0 to 65535 is scaled to 0 to 255." in caplog.text


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_color_profiles_are_ignored(image_format, tmp_path):
    """torchvision and `datasets`, with which models are trained, ignore them, too."""
    red = Image.new("RGB", (4, 4), "red")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    (tmp_path / "plain").write_bytes(saved(red, image_format))
    (tmp_path / "profile").write_bytes(saved(red, image_format, icc_profile=profile))
    assert np.array_equal(read_image(tmp_path / "plain"), read_image(tmp_path / "profile"))


def test_inverted_cmyk_of_adobe_is_read_correctly(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    # Like Photoshop, Pillow writes inverted values, and marks them by Adobe's marker.
    assert b"Adobe" in (tmp_path / "red.jpg").read_bytes()
    assert np.abs(np.asarray(read_image(tmp_path / "red.jpg"))[0, 0].astype(int) - [255, 0, 0]).max() < 6


def test_large_images_are_reduced_and_too_large_ones_refused(tmp_path):
    Image.new("RGB", (400, 100), "red").save(tmp_path / "large.jpg")
    assert open_image(tmp_path / "large.jpg", max_side=100).size == (100, 25)
    assert open_image(tmp_path / "large.jpg").size == (400, 100)
    with pytest.raises(ImageError, match=r"400 x 100 has too many pixels"):
        open_image(tmp_path / "large.jpg", max_pixels=39_999)


@pytest.mark.parametrize(
    ("number", "tries", "message"),
    [
        (errno.EIO, 4, r"could not be read in 4 tries \(Input/output error\): start again when it can\.$"),
        (errno.ESTALE, 4, r"Stale file handle"),
        (errno.ETIMEDOUT, 4, r"Connection timed out"),
        (errno.ENOMEM, 4, r"Cannot allocate memory; free memory, or use fewer workers"),
        (errno.EMFILE, 4, r"Too many open files; raise the number of files that a process may open \(ulimit -n\)"),
        (errno.EACCES, 1, r"cannot be read: Permission denied\.$"),
        (errno.ENOENT, 1, r"does not exist\.$"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) and value > 4 else "",
)
def test_system_errors_are_retried_and_never_mistaken_for_corrupt_images(
    number, tries, message, tmp_path, monkeypatch
):
    file = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(file)
    opened: list[Any] = []
    pauses: list[float] = []

    def fail(source: Any, formats: Any = None) -> None:
        opened.append(source)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(time, "sleep", pauses.append)
    with monkeypatch.context() as context:
        context.setattr(Image, "open", fail)
        readers = (read_image, lambda path: decode_image({"path": str(path), "bytes": None}), open_image)
        for read in readers:
            with pytest.raises(ReadError, match=rf"image\.png .*{message}"):
                read(file)
        assert len(opened) == tries * len(readers)
        assert pauses == ([0.1, 0.5, 2.0] if tries > 1 else []) * len(readers)
    applied: Counter[str] = Counter()
    assert read_image(file, applied=applied).size == (8, 8)


def test_image_is_read_if_the_second_try_succeeds(tmp_path, monkeypatch):
    file = tmp_path / "image.gif"
    Image.new("L", (8, 8)).save(file, save_all=True, append_images=[Image.new("L", (8, 8), 1)])
    faults = [errno.EIO, errno.EIO]
    load = ImageFile.ImageFile.load

    def fail_at_first(image: Any) -> Any:
        if faults:
            raise OSError(faults[-1], os.strerror(faults.pop()))
        return load(image)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail_at_first)
    applied: Counter[str] = Counter()
    assert read_image(file, applied=applied).size == (8, 8)
    assert list(applied.values()) == [1]
