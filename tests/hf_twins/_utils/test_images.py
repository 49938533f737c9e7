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
"""Tests of what all examples that open pictures do with them."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hostile_files import leave_trace_for_ghostscript, long_png, png_of
from PIL import ExifTags, Image

import hf_twins
from hf_twins._utils import images
from hf_twins._utils.images import (
    ImageError,
    convert_image,
    decode_image,
    is_image_file,
    open_image,
)


# What imports nothing of the others, and the slow ones of each kind that do.
ALONE = [images.__file__, str(Path(hf_twins.__file__).parent / "export" / "run_exported.py")]
SCRIPTS = ["attention_maps", "quickstart", "extract_features", "batch_predict", "run_detection"]


def opens_with_ghostscript(folder: Path, script: str) -> bool:
    """Whether a picture that is PostScript runs Ghostscript, once the script is imported, in a process of its own."""
    picture, programs = leave_trace_for_ghostscript(folder)
    lines = [
        f"import sys; sys.path[:0] = {sys.path!r}",
        "import contextlib, datasets, PIL.Image",
        # A file of its own is run by its path: importing the package takes seconds.
        f"import runpy; runpy.run_path({script!r})" if Path(script).is_file() else f"import {script}",
        f"with contextlib.suppress(OSError): PIL.Image.open({str(picture)!r}).load()",
        f"with contextlib.suppress(OSError): datasets.Image().decode_example({{'path': {str(picture)!r}, 'bytes': None}})",
    ]
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True)
    return (folder / "trace").exists()


def test_ghostscript_would_be_run(tmp_path):
    """What the next tests forbid is there to be forbidden."""
    assert opens_with_ghostscript(tmp_path, "json")


@pytest.mark.parametrize(
    "script",
    [*ALONE, *(pytest.param(script, marks=pytest.mark.slow) for script in SCRIPTS)],
    ids=lambda script: Path(script).stem,
)
def test_no_picture_is_a_program(script, tmp_path):
    assert not opens_with_ghostscript(tmp_path, script)


@pytest.mark.parametrize("width", [1, 65535])
def test_length_is_limited(width, tmp_path):
    (tmp_path / "long.png").write_bytes(png_of(width, 65536 - width))
    with pytest.raises(ImageError, match=rf"^{tmp_path}/long.png is too long, {width} x {65536 - width} pixels: "):
        open_image(tmp_path / "long.png")
    (tmp_path / "short.png").write_bytes(png_of(2, 200))
    assert open_image(tmp_path / "short.png").size == (2, 200)
    assert len(long_png()) < 1000


def test_picture_is_the_way_up_that_datasets_has_it(tmp_path):
    """As a camera that was held on its side stores it; `datasets` decodes what is trained on and evaluated."""
    stored = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    upright = datasets.Image().decode_example({"path": str(tmp_path / "turned.png"), "bytes": None})
    assert upright.size == (32, 48)
    for picture in (
        open_image(tmp_path / "turned.png"),
        decode_image({"path": str(tmp_path / "turned.png"), "bytes": None}),
    ):
        assert np.array_equal(picture, upright)
    assert np.array_equal(open_image(tmp_path / "turned.png", is_upright=False), stored)


def test_pictures_are_told_by_their_names():
    """Pillow writes PDF, and cannot read it."""
    assert all(map(is_image_file, ("a.png", "b/c.JPG", "d.webp")))
    assert not any(map(is_image_file, ("a.pdf", "b.txt", "c")))


def test_sixteen_bits_become_eight_and_fractions_are_refused():
    gray = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    assert np.asarray(convert_image(gray))[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]
    assert np.asarray(convert_image(gray, "L"))[0].tolist() == [0, 1, 255]
    with pytest.raises(ImageError, match="fractions for pixels: save it with 8 or 16 bits"):
        convert_image(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


def test_large_images_are_reduced_and_too_large_ones_refused(tmp_path):
    Image.new("RGB", (400, 100), "red").save(tmp_path / "large.jpg")
    assert open_image(tmp_path / "large.jpg", max_side=100).size == (100, 25)
    assert open_image(tmp_path / "large.jpg").size == (400, 100)
    with pytest.raises(ImageError, match=r"400 x 100 has too many pixels"):
        open_image(tmp_path / "large.jpg", max_pixels=39_999)
