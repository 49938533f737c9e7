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

import re
import sys
import tomllib
from pathlib import Path

import pytest

from hf_twins._utils.extras import EXTRAS, exit_with_sentence_if_extra_is_missing, require_extra


ROOT = Path(__file__).resolve().parents[3]
# Modules that PyTorch, transformers and its image processors install.
ALWAYS_THERE = {"numpy", "pillow", "safetensors", "torchvision", "tqdm"}


def test_missing_modules_are_named_with_the_command_that_installs_them():
    require_extra("train", "torch", "numpy")
    with pytest.raises(
        ImportError, match=r'^none_such, nor_this must be .* pip install "hf_twins\[train\]"$'
    ) as error:
        require_extra("train", "torch", "none_such", "nor_this")
    assert error.value.name == "none_such"


@pytest.mark.parametrize("extra", ["train", "convert", "demo", "export"])
def test_modules_of_an_extra_are_those_that_it_installs(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"][extra]}
    names = {module.replace("sklearn", "scikit-learn").replace("_", "-") for module in EXTRAS[extra]}
    assert names == required - ALWAYS_THERE


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "import timm.models",
            'error: timm must be installed for this part of hf_twins: pip install "hf_twins[convert]"\n',
        ),
        ("import accelerate.none_such", "ModuleNotFoundError: No module named 'accelerate.none_such'\n"),
        ("import none_such", "ModuleNotFoundError: No module named 'none_such'\n"),
    ],
)
def test_only_a_missing_module_of_an_extra_ends_a_script_with_one_sentence(statement, said, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "timm.models", raising=False)
    try:
        exec(statement)  # noqa: S102  # one of the imports above
    except ImportError:
        exit_with_sentence_if_extra_is_missing(*sys.exc_info())
    printed = capsys.readouterr().err
    assert printed.endswith(said)
    assert ("Traceback" in printed) == (not said.startswith("error: "))
