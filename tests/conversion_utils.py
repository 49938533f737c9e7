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
"""Helpers to run conversion commands, and the checkpoint that most tests convert."""

from pathlib import Path

import convert_twins_to_hf
import pytest
import torch
from source_checkpoints import TINY, source_weights


def run(*arguments: object) -> None:
    convert_twins_to_hf.main([str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """Run a command that must fail, and return its error message."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    # SystemExit with text prints it to standard error, with status 1.
    assert isinstance(caught.value.code, str), caught.value.code
    return caught.value.code


def save_source(folder: Path) -> Path:
    """Save a checkpoint of a tiny Twins-SVT in the authors' format."""
    file = folder / "source.pth"
    torch.save({"model": source_weights("official", TINY["svt"])}, file)
    return file
