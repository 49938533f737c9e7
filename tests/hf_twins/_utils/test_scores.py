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
"""Scores are those of transformers' pipeline."""

import pytest
import torch
from testing_utils import randomize, tiny_config
from transformers import ImageClassificationPipeline

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins._utils.scores import class_scores


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        (None, 1),
        (None, 4),
        ("single_label_classification", 4),
        ("multi_label_classification", 1),
        ("multi_label_classification", 4),
        ("regression", 1),
        ("regression", 4),
    ],
)
def test_scores_are_those_of_the_pipeline(problem_type, num_labels):
    model = randomize(TwinsForImageClassification(tiny_config(num_labels=num_labels, problem_type=problem_type)))
    pipeline = ImageClassificationPipeline(model, image_processor=TwinsImageProcessor(), device="cpu")
    logits = torch.randn(2, num_labels)
    for scores, each in zip(class_scores(logits, model.config), logits):
        expected = pipeline.postprocess({"logits": each[None]})
        assert sorted(scores.tolist(), reverse=True) == pytest.approx([label["score"] for label in expected])
