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

import pytest
from hostile_files import long_png, png_of
from pictures import PictureError, open_picture


@pytest.mark.parametrize("width", [1, 65535])
def test_length_is_limited(width, tmp_path):
    (tmp_path / "long.png").write_bytes(png_of(width, 65536 - width))
    with pytest.raises(PictureError, match=rf"^{tmp_path}/long.png is too long, {width} x {65536 - width} pixels: "):
        open_picture(tmp_path / "long.png")
    (tmp_path / "short.png").write_bytes(png_of(2, 200))
    assert open_picture(tmp_path / "short.png").size == (2, 200)
    assert len(long_png()) < 1000
