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
"""Label names for checkpoints without them."""

from pathlib import Path
from typing import Any

from .._utils.labels import label_fields


def known_label_fields(num_labels: int, names: list[str] | None = None) -> dict[str, Any]:
    """`id2label` and `label2id` with the given names or, for 1000 labels without names, with those of ImageNet-1k.

    Raises:
        ValueError: if the numbers of names and labels differ.
    """
    if names is None and num_labels == 1000:
        names = imagenet_class_names()
    if names is not None and len(names) != num_labels:
        raise ValueError(
            f"The checkpoint must name each of its {num_labels} classes, got {len(names)} names: fix its list of "
            "names, or remove the list."
        )
    return {} if names is None else label_fields(names)


def imagenet_class_names() -> list[str]:
    """The names of ImageNet-1k's 1000 classes, in the order of their numbers."""
    return Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
