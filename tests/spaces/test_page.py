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
