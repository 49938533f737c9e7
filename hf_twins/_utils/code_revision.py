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
"""Pins the code that `trust_remote_code=True` runs to a commit of its repository.

A model's files name the classes that load it in `auto_map`, as `module.Class` for code next to these files, or as
`repository--module.Class` for code in another repository. transformers runs the code next to a model on the Hub at the
model's `revision`, but code in another repository at `code_revision`, by default the newest commit of `main`, even if
the model is a local folder. `main` may change after somebody has reviewed the code, so this module pins the code to a
commit.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    cached_file,
)


# The files in which transformers' Auto classes look for `auto_map`.
FILES = (CONFIG_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, PROCESSOR_NAME, "tokenizer_config.json")
# A commit that does not exist in any repository. Code in a local folder has no commit and runs regardless of
# `code_revision`. Code that transformers fetches for a reason unknown here, such as for an adapter's base model, is
# refused.
NO_COMMIT = 40 * "0"


def pinned_code_revision(source: str, model_revision: str, code_revision: str | None) -> str:
    """The `code_revision` to pass to `from_pretrained`, so that only code pinned to a commit is run.

    Args:
        source: local folder or Hub id of the model.
        model_revision: revision of the model; on the Hub, it must be the hash of a commit.
        code_revision: commit hash of the other repository that contains the model's code, if there is one.

    Returns:
        The hash of a commit, with 40 hexadecimal digits.

    Raises:
        ValueError: if code would be run that is not pinned to a commit. The message says which option to give.
        OSError: if the model's files cannot be fetched.
    """
    is_local = Path(source).is_dir()
    if not is_local and not is_commit(model_revision):
        raise ValueError(
            "trust_remote_code runs the code of a repository, so the model's revision (--model_revision) must be the hash of "
            f"a commit that you have read (40 hexadecimal digits), got {model_revision!r}."
        )
    if code_revision is not None and not is_commit(code_revision):
        raise ValueError(
            "code_revision must be the hash of a commit that you have read, of the repository that the model takes its code "
            f"from (40 hexadecimal digits), got {code_revision!r}."
        )
    entries = dict(foreign_entries(source, model_revision))
    repositories = sorted({entry.split("--")[0] for entry in entries})
    if len(repositories) > 1:
        raise ValueError(
            f"{source} takes code from several repositories, {' and '.join(repositories)}, which one commit cannot pin: "
            "copy the code into a local folder, beside the weights, and name it in `auto_map` without a repository."
        )
    if repositories and code_revision is None:
        entry, file = next(iter(entries.items()))
        raise ValueError(
            f"{source}/{file} has the auto_map entry {entry!r}, and trust_remote_code would run what is on the main "
            f"branch of {repositories[0]} today: give code_revision, the hash of a commit of {repositories[0]} that you "
            "have read (40 hexadecimal digits)."
        )
    return code_revision or (NO_COMMIT if is_local else model_revision)


def is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def foreign_entries(source: str, revision: str) -> Iterator[tuple[str, str]]:
    """Yield each `auto_map` entry of a model that names another repository, with the file that contains it."""
    for name in FILES:
        file = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError:
            # transformers raises an error if it reads this file at all.
            continue
        for entry in auto_map_entries(content):
            if "--" in entry and entry.split("--")[0] != source:
                yield entry, name


def auto_map_entries(content: Any, is_auto_map: bool = False) -> Iterator[str]:
    """Yield every class that an `auto_map` names, in nested lists and dictionaries too."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from auto_map_entries(value, is_auto_map or key == "auto_map")
    elif isinstance(content, list):
        for value in content:
            yield from auto_map_entries(value, is_auto_map)
    elif isinstance(content, str) and is_auto_map:
        yield content
