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


import ast

import pytest

from hf_twins._utils.cards import usage_code


@pytest.mark.parametrize("location", ["ORG/NAME", 'a"b', "a\\nb", "a\nb", "it's", "größe {0}"])
@pytest.mark.parametrize("architecture", ["TwinsForImageClassification", "TwinsBackbone", "TwinsForObjectDetection"])
def test_code_is_python_whatever_the_folder_is_called(architecture, location):
    constants = [
        node.value
        for node in ast.walk(ast.parse(usage_code(architecture, location)))
        if isinstance(node, ast.Constant)
    ]
    assert location in constants
