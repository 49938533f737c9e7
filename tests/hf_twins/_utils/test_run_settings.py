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
"""The record of the settings that the files in an output folder depend on."""

import pytest

from hf_twins._utils.run_settings import read_settings, record_settings


SETTINGS = {"model": "a" * 64, "images": "b" * 64, "features": ["stage1"], "shard_size": 3}


def test_run_with_the_same_settings_resumes(tmp_path):
    folder = tmp_path / "new" / "run"
    record_settings(folder, SETTINGS)
    record_settings(folder, SETTINGS | {"features": ("stage1",)})
    assert read_settings(folder) == SETTINGS
    assert [file.name for file in folder.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"features": ["stage2"], "shard_size": 4}, r"features \['stage1'\], now \['stage2'\]; shard_size 3, now 4"),
        ({"top_k": 5}, "top_k None, now 5"),
        ({"model": "c" * 64}, "another model"),
        ({"images": "c" * 64}, "other images"),
    ],
    ids=["values", "new setting", "model", "images"],
)
def test_different_run_is_refused_and_the_differences_are_named(changes, differences, tmp_path):
    folder = tmp_path / "run"
    record_settings(folder, SETTINGS)
    message = rf"run holds the files of a run with {differences}: give another --output_dir, or remove it\.$"
    with pytest.raises(ValueError, match=message):
        record_settings(folder, SETTINGS | changes)
    assert read_settings(folder) == SETTINGS


def test_removed_setting_is_named(tmp_path):
    record_settings(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="shard_size 3, now None: "):
        record_settings(tmp_path, {name: value for name, value in SETTINGS.items() if name != "shard_size"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no settings\.json"),
        ("{", r"settings\.json is damaged"),
        ("", r"settings\.json is damaged"),
        (b"\xff", r"settings\.json is damaged"),
        ("[]", r"settings\.json must hold"),
    ],
)
def test_invalid_record_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "settings.json").write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(ValueError, match=message):
            record_settings(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=message) as raised:
        read_settings(tmp_path)
    assert str(tmp_path) in str(raised.value)
