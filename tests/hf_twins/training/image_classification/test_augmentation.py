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
"""RandAugment and random erasing, compared with timm's, with which the authors trained."""

import random
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_sample_image
from timm.data import auto_augment, create_transform
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_twins import TwinsImageProcessor
from hf_twins.training.image_classification.arguments import ClassificationRecipe
from hf_twins.training.image_classification.augmentation import OPERATIONS, RandAugment
from hf_twins.training.image_classification.data import training_transform


FILL = (124, 116, 104)


def test_operations_match_the_policy_of_timm():
    assert list(OPERATIONS) == auto_augment._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gives_the_same_pixels_as_timm(name, mode, sign, monkeypatch):
    fill = FILL if mode == "RGB" else FILL[0]
    image = PIL.Image.fromarray(load_sample_image("china.jpg")[150:210, 150:240]).convert(mode)
    # timm decides by this number whether to negate.
    monkeypatch.setattr(random, "random", lambda: 1.0 if sign < 0 else 0.0)
    hparams = {"img_mean": fill, "interpolation": PIL.Image.Resampling.BICUBIC}
    for magnitude in (0.0, 4.3, 9.0, 10.0):
        expected = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)(image)
        actual = OPERATIONS[name](image, magnitude / 10, sign, fill)
        assert np.array_equal(np.asarray(actual), np.asarray(expected))


def test_operations_are_drawn_as_timm_draws_them():
    """Two operations are drawn, each applied with probability 0.5, with a magnitude around 9, at most 10, and either sign."""
    torch.manual_seed(0)
    augment = RandAugment(FILL)
    drawn = [augment.make_params([])["drawn"] for _ in range(4000)]
    applied = [each for draws in drawn for each in draws]
    counts = Counter(map(len, drawn))
    assert [counts[number] / 4000 for number in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    names = Counter(name for name, _, _ in applied)
    assert names.keys() == OPERATIONS.keys()
    assert max(abs(count / len(applied) - 1 / 15) for count in names.values()) < 0.02
    levels = np.array([level for _, level, _ in applied])
    expected = np.clip(np.random.default_rng(0).normal(9, 0.5, 100_000), 0, 10) / 10
    assert (levels.mean(), levels.std()) == pytest.approx((expected.mean(), expected.std()), abs=0.003)
    assert levels.max() == 1
    assert np.mean([sign for _, _, sign in applied]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_stay_bytes_of_their_shape(num_channels):
    image = tv_tensors.Image(torch.randint(256, (num_channels, 20, 30), dtype=torch.uint8))
    torch.manual_seed(0)
    augment = RandAugment(FILL[:num_channels])
    results = [augment(image) for _ in range(60)]
    assert {(result.dtype, tuple(result.shape)) for result in results} == {(torch.uint8, (num_channels, 20, 30))}
    assert 5 < sum(torch.equal(result, image) for result in results) < 40


def test_transforms_of_the_authors_recipe_match_timm():
    """The recipe's transforms are compared with those of `create_transform` as the authors call it in their datasets.py."""
    expected = create_transform(
        *(224, True),
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    ).transforms
    names = [type(step).__name__ for step in expected]
    assert names == [
        *("RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"),
        *("MaybeToTensor", "Normalize", "RandomErasing"),
    ]
    assert {(each.magnitude, each.magnitude_std, each.prob) for each in expected[2].ops} == {(9, 0.5, 0.5)}
    recipe = ClassificationRecipe(rand_augment=True, random_erasing=0.25)
    actual = training_transform(recipe, TwinsImageProcessor()).transforms
    assert [type(step).__name__ for step in actual] == [
        *("ToImage", "RandomResizedCrop", "RandomHorizontalFlip", "RandAugment"),
        *("ProcessorPixels", "RandomErasing", "ToPureTensor"),
    ]
    assert tuple(actual[3].fill) == expected[2].ops[0].kwargs["fillcolor"]
    assert (actual[1].scale, actual[2].p) == (expected[0].scale, expected[1].p)
    erasing, reference = actual[5], expected[5]
    assert (erasing.p, *erasing.scale) == (reference.probability, reference.min_area, reference.max_area)
    assert np.log(erasing.ratio) == pytest.approx(reference.log_aspect_ratio)


def test_random_erasing_matches_timm():
    """Erased rectangles have normal noise for each pixel and channel, and cover the same share of images as in timm."""
    torch.manual_seed(0)
    random.seed(0)
    erasing = next(
        step
        for step in training_transform(ClassificationRecipe(random_erasing=1.0), TwinsImageProcessor()).transforms
        if isinstance(step, v2.RandomErasing)
    )
    reference = create_transform(32, True, auto_augment=None, re_prob=1.0, re_mode="pixel").transforms[-1]
    shares: list[list[float]] = [[], []]
    noise = []
    for _ in range(800):
        for place, erase in enumerate((erasing, reference)):
            erased = erase(torch.full((3, 32, 32), 9.0))
            shares[place].append(float((erased != 9).any(0).float().mean()))
            if place == 0:
                noise.append(erased[erased != 9])
    assert np.mean(shares[0]) == pytest.approx(np.mean(shares[1]), abs=0.01)
    assert np.std(shares[0]) == pytest.approx(np.std(shares[1]), abs=0.01)
    values = torch.cat(noise)
    assert (float(values.mean()), float(values.std())) == pytest.approx((0, 1), abs=0.01)
