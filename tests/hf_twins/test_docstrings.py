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
import pkgutil

import pytest
from transformers.testing_utils import HfDocTestParser

import hf_twins


MODULES = [f"hf_twins.{module.name}" for module in pkgutil.iter_modules(hf_twins.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    # transformers' parser knows code fences.
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
