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
"""Checkpoints of other libraries: timm's, and the authors' files."""

from .architecture import infer_config, original_config
from .labels import imagenet_class_names, known_label_fields
from .names import ORIGINAL_NAMES, NameRow, NameTable, listed
from .published import published_checkpoints
from .reader import CheckpointReader, find_original_checkpoint
from .timm import (
    TIMM_ARGUMENTS,
    convert_timm_config,
    convert_timm_preprocessing,
    is_timm_config,
    revert_timm_preprocessing,
)
from .unpickling import StandIn
from .weights import BATCH_COUNTER, check_one_type, check_weights, read_checkpoint, read_weights, unwrap_weights


__all__ = [
    "BATCH_COUNTER",
    "ORIGINAL_NAMES",
    "TIMM_ARGUMENTS",
    "CheckpointReader",
    "NameRow",
    "NameTable",
    "StandIn",
    "check_one_type",
    "check_weights",
    "convert_timm_config",
    "convert_timm_preprocessing",
    "find_original_checkpoint",
    "imagenet_class_names",
    "infer_config",
    "is_timm_config",
    "known_label_fields",
    "listed",
    "original_config",
    "published_checkpoints",
    "read_checkpoint",
    "read_weights",
    "revert_timm_preprocessing",
    "unwrap_weights",
]
