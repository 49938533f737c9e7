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
"""Files that two processes write at once, or whose writer is killed, are complete, and no partial files remain."""

import json

import pytest
from testing_utils import TWO_STAGES, tiny_config

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins.export.folder import describe
from hf_twins.export.source import load_source


@pytest.mark.parametrize(
    ("fields", "scores"),
    [
        ({"num_labels": 2}, "softmax"),
        ({"num_labels": 3}, "softmax"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 2, "problem_type": "regression"}, "identity"),
    ],
)
def test_description_has_the_labels_and_the_function_of_their_scores(fields, scores, tmp_path):
    model = TwinsForImageClassification(tiny_config(**TWO_STAGES | fields))
    model.save_pretrained(tmp_path / "model")
    TwinsImageProcessor().save_pretrained(tmp_path / "model")
    (tmp_path / "export").mkdir()
    describe(tmp_path / "export", load_source(str(tmp_path / "model")), runtime="onnx", file="model.onnx", size=None)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["id2label"] == {str(index): f"LABEL_{index}" for index in range(fields["num_labels"])}
    assert json.loads((tmp_path / "export" / "twins_export.json").read_text())["scores"] == scores
