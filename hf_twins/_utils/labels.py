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
"""Label names in the form of a configuration."""

from collections.abc import Sequence
from typing import Any


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """The fields `id2label` and `label2id` of a configuration whose labels have these names, in the order of their ids."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def label_names(config: Any) -> list[str]:
    """The names of a configuration's labels, in the order of their ids: that of `id2label` may be another.

    Raises:
        ValueError: if its ids are not 0, 1, 2, ...
    """
    id2label = config.id2label or {}
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(f"id2label must have the keys 0 to {len(id2label) - 1}, got {', '.join(map(str, id2label))}.")
    return [str(id2label[index]) for index in range(len(id2label))]
