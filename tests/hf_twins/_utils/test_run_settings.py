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
"""The record of what the files in an output folder depend on."""

import pytest

from hf_twins._utils.run_settings import read_settings, record_settings


def test_run_with_the_same_settings_resumes_and_another_is_refused(tmp_path):
    folder = tmp_path / "new" / "run"
    settings = {"model": "a", "features": ["stage1"], "shard_size": 3}
    record_settings(folder, settings)
    record_settings(folder, settings)
    assert read_settings(folder) == settings
    assert [file.name for file in folder.iterdir()] == ["settings.json"]
    message = (
        r"run holds the files of a run with other features, shard_size: give another --output_dir, or remove it\.$"
    )
    with pytest.raises(ValueError, match=message):
        record_settings(folder, settings | {"features": ["stage2"], "shard_size": 4})
    # A setting that the run that began the folder did not have.
    with pytest.raises(ValueError, match="with other top_k: "):
        record_settings(folder, settings | {"top_k": 5})
    assert read_settings(folder) == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"has no settings\.json"), ("{", r"settings\.json is damaged"), ("[]", r"settings\.json must hold")],
)
def test_what_is_no_record_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_settings(tmp_path)
    assert str(tmp_path) in str(raised.value)
