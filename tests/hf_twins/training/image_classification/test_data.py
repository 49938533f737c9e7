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
"""Arrays in the place of images."""

import numpy as np
import pytest
from datasets import Array3D, Dataset, Features

from hf_twins.training.image_classification.data import Preparation, without_corrupt_images


PIXELS = np.linspace(0, 1, 24).reshape(2, 4, 3)
ARRAYS = {
    "uint8": (255 * PIXELS, "uint8", None),
    "whole numbers": (255 * PIXELS, "int64", None),
    "fractions": (PIXELS, "float32", None),
    "16 bits": (65535 * PIXELS, "uint16", "from 0 to 65535"),
    "negative": (2 * PIXELS - 1, "float32", r"float\d+ from -1.0 to 1.0"),
    "fractions to 255": (255 * PIXELS, "float64", r"float\d+ from 0.0 to 255.0"),
    "negative integers": (255 * PIXELS - 128, "int32", "from -128 to 127"),
    "NaN": (np.where(PIXELS == 1, np.nan, PIXELS), "float32", "from nan to nan"),
}


@pytest.mark.parametrize(("array", "dtype", "message"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_bytes_or_fractions_or_refused(array, dtype, message, caplog):
    array = array.astype(dtype)
    features = Features({"image": Array3D(array.shape, dtype)})
    split = Dataset.from_dict({"image": [np.zeros_like(array), array]}, features=features)
    preparation = Preparation(lambda image: image, 3)
    example = split[1] | {"label": 0}
    if message is None:
        assert len(without_corrupt_images(split, "train")) == 2
        expected = np.rint(255 * PIXELS) if dtype == "float32" else np.floor(255 * PIXELS)
        assert np.array_equal(preparation(example)["pixel_values"], expected)
        assert ("2 images of train have fractions for pixels" in caplog.text) == (dtype == "float32")
        return
    with pytest.raises(ValueError, match=f"Image 1 of train cannot be used: An array must have whole .*{message}"):
        without_corrupt_images(split, "train")
    for image in (array, example["image"]):
        with pytest.raises(ValueError, match="An array must have whole numbers from 0 to 255, or fractions"):
            preparation({"image": image, "label": 0})
