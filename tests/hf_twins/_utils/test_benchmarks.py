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
"""What is said of measurements is what they are."""

from dataclasses import asdict

import pytest
from benchmark import Case
from PIL import Image

from hf_twins._utils import benchmarks


INFERENCE = asdict(Case("hf_twins", "twins-svt-small", "inference", "bfloat16", 8, 224))


def test_growth_is_the_exponent_of_the_pixels():
    result = INFERENCE | {"error": None}
    rows = [result | {"image_size": size, "seconds": 3e-7 * (size**2) ** 1.25} for size in (224, 448, 896)]
    rows += [result | {"dtype": "float32", "seconds": 1.0}, result | {"image_size": 1792, "error": "no memory"}]
    exponents = benchmarks.growth(rows)
    assert exponents == {"twins-svt-small inference, 8 images: hf_twins bfloat16": pytest.approx(1.25)}


def test_pictures_are_drawn(tmp_path):
    result = INFERENCE | {"error": None, "ratio": 2.0, "ratio_quartiles": [1.5, 2.5]}
    rows = [result, result | {"variant": "twins-pcpvt-small"}, result | {"ratio": 1}]
    benchmarks.draw(rows, "a CPU", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 900
