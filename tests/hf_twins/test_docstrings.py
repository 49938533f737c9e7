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
"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.testing_utils import HfDocTestParser

import hf_twins


MODULES = [f"hf_twins.{module.name}" for module in pkgutil.iter_modules(hf_twins.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    # transformers' parser supports code fences.
    for test in doctest.DocTestFinder(parser=HfDocTestParser()).find(module, globs={}):
        results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
        assert results.failed == 0, test.name


@pytest.mark.parametrize(
    "name",
    [
        "TwinsConfig",
        "TwinsModel.forward",
        "TwinsForImageClassification.forward",
        "TwinsForSemanticSegmentation.forward",
        "TwinsBackbone.forward",
        "TwinsImageProcessor.preprocess",
    ],
)
def test_public_classes_have_an_example(name):
    documented = hf_twins
    for part in name.split("."):
        documented = getattr(documented, part)
    assert ">>> " in documented.__doc__
    assert "pixel_mask" in documented.__doc__ or name == "TwinsConfig"


def public_functions() -> Iterator[tuple[str, Callable]]:
    """Yield the functions, classes and methods of public names; for models only methods, since their argument is `config`."""
    for module in ("hf_twins", "hf_twins.detection", "hf_twins.export", "hf_twins.training"):
        members = vars(importlib.import_module(module))
        exported = members.get("__all__", [name for name in members if not name.startswith("_")])
        for name in exported:
            value = getattr(importlib.import_module(module), name)
            # transformers documents the fields that it adds to every configuration.
            if inspect.isclass(value) and not issubclass(value, torch.nn.Module | PreTrainedConfig):
                yield f"{module}.{name}", value
            if inspect.isclass(value):
                methods = {key: each for key, each in vars(value).items() if inspect.isfunction(each)}
                yield from ((f"{module}.{name}.{key}", each) for key, each in methods.items() if key[0] != "_")
            elif callable(value):
                yield f"{module}.{name}", value


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_every_argument_of_a_public_name_is_described(name, function):
    description = inspect.getdoc(function) or ""
    assert description, name
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        pattern = rf"^\s*(\w+, )*`?{parameter.name}`?(, \w+)*( \(.*\))?:"
        assert re.search(pattern, description, re.MULTILINE), f"{name}: {parameter.name}"
