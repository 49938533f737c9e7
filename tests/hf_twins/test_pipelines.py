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
"""`pipeline()` on a saved folder, for every task of Twins in transformers' suite: results equal those of the model.

transformers' tests of pipelines are not in its source distribution, and need files on the Hub.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from testing_utils import randomize, tiny_config
from torch import nn
from transformers import SegformerImageProcessor, pipeline

from hf_twins import (
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
    TwinsModel,
)


LABELS = ["sky", "roof", "wall", "tree", "flower"]


@pytest.fixture
def images() -> list[Image.Image]:
    """Photographs with odd and even sizes, in portrait and landscape format, one of them gray."""
    temple, flower = (Image.fromarray(image) for image in load_sample_images().images)
    return [
        temple.crop((200, 100, 303, 171)),
        flower.crop((100, 100, 167, 199)),
        temple.crop((0, 300, 64, 364)),
        flower.crop((250, 150, 390, 220)).convert("L"),
    ]


def as_images(images: list[Image.Image], folder: Path) -> list[Any]:
    return images


def as_paths(images: list[Image.Image], folder: Path) -> list[Any]:
    return [path for path, _ in saved(images, folder)]


def as_both(images: list[Image.Image], folder: Path) -> list[Any]:
    return [(path, image)[index % 2] for index, (path, image) in enumerate(saved(images, folder))]


def saved(images: list[Image.Image], folder: Path) -> list[tuple[str, Image.Image]]:
    for index, image in enumerate(images):
        # PNG is lossless.
        image.save(folder / f"{index}.png")
    return [(str(folder / f"{index}.png"), image) for index, image in enumerate(images)]


# The form of the input images, and the batch size.
FORMS: dict[str, tuple[Callable[[list[Image.Image], Path], list[Any]], int]] = {
    "both, three at once": (as_both, 3),
    "images": (as_images, 1),
    "paths": (as_paths, 1),
    "images, two at once": (as_images, 2),
}
# Pipelines do not depend on the family, and load their model from the folder.
FORM = pytest.mark.parametrize(
    "form", ["both, three at once", *(pytest.param(form, marks=pytest.mark.slow) for form in list(FORMS)[1:])]
)
FAMILY = pytest.mark.parametrize("family", ["svt", pytest.param("pcpvt", marks=pytest.mark.slow)])


def answers_of(task: str, folder: Path, images: list[Image.Image], form: str, **kwargs: Any) -> list[Any]:
    make_inputs, batch_size = FORMS[form]
    inputs = make_inputs(images, folder)
    pipe = pipeline(task, str(folder), batch_size=batch_size)
    answers = list(pipe(inputs, **kwargs))
    assert len(answers) == len(images)
    # The result for a single image or path is the same as in a list.
    alone = pipe(inputs[-1], **kwargs)
    assert str(type(alone)) == str(type(answers[-1]))
    return answers


def outputs_of(model: nn.Module, processor: Any, image: Image.Image) -> Any:
    with torch.no_grad():
        return model(processor(image.convert("RGB"), return_tensors="pt").pixel_values)


@FORM
@FAMILY
def test_image_classification(tmp_path, images, family, form):
    model = randomize(TwinsForImageClassification(tiny_config(family, id2label=dict(enumerate(LABELS)))))
    processor = TwinsImageProcessor(size={"shortest_edge": 41}, crop_size={"height": 37, "width": 43})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answers = answers_of("image-classification", tmp_path, images, form, top_k=5)
    for image, answer in zip(images, answers, strict=True):
        scores, order = outputs_of(model, processor, image).logits[0].softmax(0).sort(descending=True)
        assert [each["label"] for each in answer] == [LABELS[index] for index in order.tolist()]
        assert [each["score"] for each in answer] == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("pool", [False, True], ids=["map", "pooled"])
@FORM
@FAMILY
def test_image_feature_extraction(tmp_path, images, family, form, pool):
    model = randomize(TwinsModel(tiny_config(family)))
    # This is the backend without torchvision, which is found by its name in the folder.
    processor = TwinsImageProcessorPil(size={"shortest_edge": 41}, crop_size={"height": 37, "width": 43})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    make_inputs, batch_size = FORMS[form]
    extract = pipeline("image-feature-extraction", str(tmp_path), image_processor=processor, batch_size=batch_size)
    answers = extract(make_inputs(images, tmp_path), pool=pool)
    for image, answer in zip(images, answers, strict=True):
        outputs = outputs_of(model, processor, image)
        expected = outputs.pooler_output if pool else outputs.last_hidden_state
        torch.testing.assert_close(torch.tensor(answer), expected, rtol=1e-4, atol=1e-4)


SEGMENTATION_PROCESSORS = {
    "twins": lambda: TwinsImageProcessor(size={"height": 49, "width": 63}, do_center_crop=False),
    "segformer": lambda: SegformerImageProcessor(size={"height": 49, "width": 63}),
}


@FORM
@pytest.mark.parametrize("processor_name", SEGMENTATION_PROCESSORS)
@FAMILY
def test_image_segmentation(tmp_path, images, family, processor_name, form, caplog):
    processor = SEGMENTATION_PROCESSORS[processor_name]()
    model = randomize(TwinsForSemanticSegmentation(tiny_config(family, id2label=dict(enumerate(LABELS)))))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answers = answers_of("image-segmentation", tmp_path, images, form)
    assert "is not supported" not in caplog.text
    for image, answer in zip(images, answers, strict=True):
        logits = outputs_of(model, processor, image).logits
        classes = nn.functional.interpolate(logits, size=(image.height, image.width), mode="bilinear").argmax(1)[0]
        assert len(answer) > 1
        assert {each["label"] for each in answer} == {LABELS[index] for index in classes.unique().tolist()}
        for each in answer:
            expected = classes.numpy() == LABELS.index(each["label"])
            # If two classes have almost equal scores, either may be predicted.
            assert ((np.array(each["mask"]) > 0) == expected).mean() > 0.999
