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
"""The image processors against each other and against the authors' preprocessing."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from hf_twins import TwinsImageProcessor, TwinsImageProcessorPil


PROCESSOR_CLASSES = [TwinsImageProcessor, TwinsImageProcessorPil]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    # Resized, their long sides are even. Where they are odd, transformers and torchvision round the margin of the centre
    # crop differently, and the crop is a pixel off.
    return [china.crop((0, 0, 640, 426)), flower.crop((100, 0, 350, 420)), flower.resize((90, 60))]


def authors_preprocessing(image: Image.Image) -> torch.Tensor:
    """The evaluation transforms of the authors' classification code, with torchvision on PIL images as there."""
    return transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(image)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_does_as_the_authors(processor_class, photographs):
    for image in photographs:
        pixel_values = processor_class()(image, return_tensors="pt").pixel_values[0]
        assert pixel_values.shape == (3, 224, 224)
        assert (pixel_values - authors_preprocessing(image)).abs().max() < 0.05


def test_backends_agree(photographs):
    torchvision, pil = (
        processor_class()(photographs, return_tensors="pt").pixel_values for processor_class in PROCESSOR_CLASSES
    )
    assert (torchvision - pil).abs().max() < 0.05
    assert (torchvision - pil).abs().mean() < 1e-3


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_takes_every_kind_of_image(processor_class, photographs):
    processor = processor_class()
    image = photographs[0]
    expected = processor(image, return_tensors="pt").pixel_values
    array = np.array(image)
    for same in (array, torch.from_numpy(array).permute(2, 0, 1), [image], [array]):
        torch.testing.assert_close(processor(same, return_tensors="pt").pixel_values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_processor_turns_every_mode_into_rgb(processor_class, mode, photographs):
    pixel_values = processor_class()(photographs[0].convert(mode), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 224, 224)
    assert pixel_values.isfinite().all()


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_grey_images_stay_grey_when_asked_to(processor_class, photographs):
    processor = processor_class(do_convert_rgb=False, image_mean=[0.5], image_std=[0.5])
    assert processor(photographs[0].convert("L"), return_tensors="pt").pixel_values.shape == (1, 1, 224, 224)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_after_json_is_equal(processor_class, tmp_path):
    processor = processor_class(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"].startswith("TwinsImageProcessor")
    assert processor_class.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    for other_class in PROCESSOR_CLASSES:
        assert other_class.from_pretrained(tmp_path).size == processor.size
        assert other_class.from_pretrained(tmp_path).crop_size == processor.crop_size


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_something_that_is_no_image_is_named(processor_class):
    with pytest.raises((TypeError, ValueError), match="image"):
        processor_class()("not-an-image", return_tensors="pt")


def test_pil_backend_needs_no_torchvision(photographs, tmp_path):
    TwinsImageProcessorPil().save_pretrained(tmp_path)
    photographs[0].save(tmp_path / "picture.png")
    program = """
        import sys
        sys.modules["torchvision"] = None  # now importing it fails
        import torch
        from PIL import Image
        from transformers import AutoImageProcessor
        import hf_twins
        processor = AutoImageProcessor.from_pretrained(sys.argv[1])
        assert type(processor) is hf_twins.TwinsImageProcessorPil, type(processor)
        torch.save(processor(Image.open(sys.argv[2]), return_tensors="pt").pixel_values, sys.argv[3])
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path, tmp_path / "picture.png", tmp_path / "pixels.pt"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    expected = TwinsImageProcessorPil()(photographs[0], return_tensors="pt").pixel_values
    assert torch.equal(torch.load(tmp_path / "pixels.pt", weights_only=True), expected)
