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
"""Copies of a model: pickled, saved, deep copies, in shared memory, and in spawned processes."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import FAMILIES
from tool_models import EVERY_MODEL, assert_same_outputs, classify_in_worker, make_images, make_model, outputs_of
from torch import multiprocessing, nn
from transformers import pipeline

from hf_twins import TwinsImageProcessor


def through_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def shared(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).share_memory()
    assert all(parameter.is_shared() for parameter in model.parameters())
    return model


COPIES = {
    "torch.save": through_torch_save,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "deepcopy": copy.deepcopy,
    "share_memory": shared,
    "pickled twice": lambda model: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model)))),  # noqa: S301
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_copy_gives_the_same_output_as_the_model(kind, family, way):
    model, images = make_model(kind, family), make_images()
    before = outputs_of(model, images)
    copied = COPIES[way](model)
    assert_same_outputs(copied, before, images)
    assert_same_outputs(model, before, images)
    # Attentions are recorded by hooks, which must be copied exactly once.
    with torch.no_grad():
        expected = model(images, output_hidden_states=True)
        actual = copied(images, output_hidden_states=True)
    name = "encoder_hidden_states" if kind == "detr" else "hidden_states"
    assert len(actual[name]) == len(expected[name]) > 0
    for tensor, expected_tensor in zip(actual[name], expected[name]):
        torch.testing.assert_close(tensor, expected_tensor, rtol=0, atol=1e-5 * max(1, expected_tensor.abs().max()))


@pytest.mark.parametrize("way", ["torch.save", "pickle", "deepcopy"])
def test_copy_keeps_the_hooks_of_the_user(way):
    model = make_model("classifier", "svt")
    model.twins.encoder.stages[0].register_forward_hook(double_output)
    model.twins.encoder.stages[1].layers[0].attention.register_forward_pre_hook(double_input)
    images = make_images()
    assert_same_outputs(COPIES[way](model), outputs_of(model, images), images)


def double_output(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def double_input(module: nn.Module, args: tuple) -> tuple:
    return (2 * args[0], *args[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_is_pickled_and_copied(family):
    classifier, images = make_pipeline(family)
    expected = classifier(images)
    for copied in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):  # noqa: S301
        assert_same_predictions(copied(images), expected)


@pytest.mark.slow
def test_spawned_workers_get_the_pipeline():
    """Workers are started by `multiprocessing`, as in data loaders and services; Ray also pickles objects."""
    pipelines = [make_pipeline(family) for family in FAMILIES]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = pool.starmap(classify_in_worker, pipelines)
    for (classifier, images), predictions in zip(pipelines, results):
        assert_same_predictions(predictions, classifier(images))


def make_pipeline(family: str) -> tuple:
    processor = TwinsImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    classifier = pipeline("image-classification", make_model("classifier", family), image_processor=processor)
    generator = np.random.default_rng(0)
    return classifier, [Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]


def assert_same_predictions(actual: list, expected: list) -> None:
    for predictions, expected_predictions in zip(actual, expected, strict=True):
        assert [each["label"] for each in predictions] == [each["label"] for each in expected_predictions]
        scores = [each["score"] for each in expected_predictions]
        assert [each["score"] for each in predictions] == pytest.approx(scores, abs=1e-5)
