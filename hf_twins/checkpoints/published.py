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
"""The checkpoints that OpenMMLab publishes, and their results."""

import json
from pathlib import Path
from typing import Any


PUBLISHED_FILE = Path(__file__).with_name("published_checkpoints.json")


def published_checkpoints() -> dict[str, dict[str, Any]]:
    """The checkpoints that OpenMMLab publishes, by the names of the model folders they are converted to.

    The data is from the metafiles of mmpretrain and mmsegmentation: URLs, the first digits of the files' SHA-256,
    top-1 accuracy on ImageNet-1k and mIoU on ADE20K (single scale; multi-scale and flip) in percent.
    """
    return {entry["name"]: entry for entry in json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))}
