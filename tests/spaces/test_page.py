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
"""Parts of the pages that need no server."""

import csv
import io
import math

import gradio as gr
import pytest
from twins_space import page
from twins_space.uploads import UploadError


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("cat.png", "cat.png"),
        ("a-b=c+d@e.png", "a-b=c+d@e.png"),
        ("=1+1.png", "'=1+1.png"),
        ("+1.png", "'+1.png"),
        ("-1.png", "'-1.png"),
        ("@sum.png", "'@sum.png"),
        ("\uff1d1.png", "'\uff1d1.png"),
        (" =1.png", "' =1.png"),
        ("\t=1.png", "'\t=1.png"),
        ("\tcat.png", "'\tcat.png"),
        ("\r\n=1.png", "'\r\n=1.png"),
        ("cat;=1.png", "cat;'=1.png"),
        ("cat\t=1.png", "cat\t'=1.png"),
        ("cat\n-1.png", "cat\n'-1.png"),
        ('cat",=1.png', "cat\",'=1.png"),
    ],
)
def test_file_names_are_not_formulas_in_a_csv_file(name, written):
    content = page.write_csv(["file", "probability"], [[name, -0.5]])
    (_, row) = csv.reader(io.StringIO(content.decode(), newline=""))
    # Numbers stay numbers.
    assert row == [written, "-0.5"]


VALUES = {
    "slider": (
        gr.Slider,
        {"minimum": 50, "maximum": 200, "value": 100},
        62.5,
        "Option must be a number from 50 to 200",
    ),
    "dropdown": (gr.Dropdown, {"choices": [("a: 2 labels", "a"), "b"]}, "b", "Option must be one of a, b"),
    "radio": (gr.Radio, {"choices": ["a", "b"]}, "a", "Option must be one of a, b"),
}


@pytest.mark.parametrize(("kind", "options", "valid", "message"), VALUES.values(), ids=VALUES)
def test_values_that_are_none_of_a_component_are_refused_by_name(kind, options, valid, message):
    component = page.checked(kind(label="Option", **options))
    assert component.preprocess(valid) == valid
    for value in (math.nan, math.inf, -math.inf, None, "", "c", [valid], {"a": 1}, True, 10**400, "x" * 10**6):
        with pytest.raises(gr.Error) as caught:
            component.preprocess(value)
        assert caught.value.message.startswith(f"{message}, got ")
        assert len(caught.value.message) < 100


def test_model_of_the_environment_may_be_a_folder_with_spaces(monkeypatch, tmp_path):
    (tmp_path / "my model").mkdir()
    for value, models in (
        ("", []),
        ("one/model  another/model", ["one/model", "another/model"]),
        (f" {tmp_path}/my model ", [f"{tmp_path}/my model"]),
    ):
        monkeypatch.setenv(page.MODEL_VARIABLE, value)
        assert page.PageArguments().model == models


def test_first_model_that_can_be_used_answers():
    def answer(name):
        if name != "good":
            raise gr.Error(f"{name} does not work")
        return "answer"

    assert page.first_that_answers(["bad", "good", "other"], answer) == ("good", "answer")
    with pytest.raises(gr.Error, match="worse does not work"):
        page.first_that_answers(["bad", "worse"], answer)


def test_page_shows_results_or_an_error_and_never_both():
    def action(image, option):
        with page.errors_for_people():
            return page.require(image), option, "kept"

    act = page.for_page(action, num_results=2, num_kept=1)
    assert act("image", 1)[:3] == ("image", 1, "kept")
    assert act("image", 1)[3] == gr.update(value="", visible=False)
    first, second, kept, message = act(UploadError("This file is <empty>."), 1)
    assert (first, second, kept) == (None, None, gr.skip())
    assert message == gr.update(value='<p role="alert">This file is &lt;empty&gt;.</p>', visible=True)
    # Without an image, there is neither a result nor an error.
    assert act(None, 1) == (None, None, gr.skip(), gr.update(value="", visible=False))
