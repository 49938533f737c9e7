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
"""The classes of large images, with little memory."""

import pytest
import torch
from PIL import Image
from testing_utils import NARROW_HEAD, LargestTensor, randomize, tiny_config
from torch import nn

from hf_twins import TwinsForSemanticSegmentation, TwinsImageProcessor
from hf_twins.image_processing_twins import STRIP_VALUES
from hf_twins.training.semantic_segmentation.inference import InferenceArguments, segment


@pytest.mark.parametrize(
    "how",
    [InferenceArguments(), InferenceArguments(scales=[0.5, 1.5], flip=True), InferenceArguments(slide_crop_size=24)],
    ids=["whole", "several scales", "windows"],
)
def test_large_images_take_little_memory(how):
    model = randomize(TwinsForSemanticSegmentation(tiny_config(num_labels=150, **NARROW_HEAD)))
    processor = TwinsImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    image = Image.effect_noise((751, 503), 80).convert("RGB")
    with LargestTensor() as largest:
        classes = segment(model, processor, image, how)
    assert classes.shape == (503, 751)
    assert largest.numel <= STRIP_VALUES < 150 * 503 * 751
    if how == InferenceArguments():
        with torch.inference_mode():
            pixel_values = processor(image, return_tensors="pt").pixel_values
            logits = model(pixel_values).logits
            for size in (pixel_values.shape[2:], (503, 751)):
                logits = nn.functional.interpolate(logits, size=size, mode="bilinear")
        assert (classes == logits.softmax(1).argmax(1)[0]).float().mean() > 0.9999
