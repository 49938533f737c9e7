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
"""Label names in configurations and files."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """The fields `id2label` and `label2id` of a configuration for label names in the order of their ids."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def label_names(config: Any) -> list[str]:
    """The names of a configuration's labels in the order of their ids, which `id2label` need not have.

    Raises:
        ValueError: if the ids are not 0, 1, 2, ...
    """
    id2label = config.id2label or {}
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(f"id2label must have the keys 0 to {len(id2label) - 1}, got {', '.join(map(str, id2label))}.")
    return [str(id2label[index]) for index in range(len(id2label))]


def distinct_names(names: Sequence[str]) -> list[str]:
    """Append the label's number to names that occur several times: ImageNet has a bird and a machine called crane."""
    counts = Counter(names)
    return [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]


def read_label_names(file: str | Path) -> list[str]:
    """Read label names from a file with one name per line, in the order of their numbers.

    A byte-order mark, spaces around a name and blank lines at the end are ignored.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not UTF-8, or has an empty line, a repeated name, numbers before the names, or fewer
            than two names.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text with one name per line: save it as such. {error}") from error
    # `splitlines` would also split at unusual characters within a name.
    names = [unicodedata.normalize("NFC", line.strip()) for line in text.rstrip().split("\n")]
    if len(names) < 2:
        raise ValueError(f"{file} must have at least two names, one per line, got {names[0] or 'nothing'}.")
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{file} must have one name per line, got none on line {number}: remove the line.")
    if len(set(names)) < len(names):
        name, _ = Counter(names).most_common(1)[0]
        lines = " and ".join(str(number) for number, other in enumerate(names, 1) if other == name)
        raise ValueError(
            f"{file} must have a name of its own for each label, got {name} in lines {lines}: tell them apart."
        )
    for first in (0, 1):
        if all(re.match(rf"{number}[\s:,;.)=-]+\S", name) for number, name in enumerate(names, first)):
            raise ValueError(
                f"{file} must have names alone, in the order of their numbers, got a number before each, as in {names[0]!r}: "
                "remove the numbers."
            )
    return names
