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
"""Scores of classes from a classifier's logits."""

from typing import Any

import torch


def class_scores(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Convert logits to scores as transformers' image classification pipeline does.

    Scores are probabilities that sum to 1, or one probability per label if an image can have several labels or there is
    only one label. For regression, they are the logits.

    Args:
        logits: `(..., num_labels)`.
        config: configuration of the model, with `problem_type` and `num_labels`.
    """
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()
    return logits.softmax(-1)
