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
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from loopback_hub import serve_hub

from hf_twins._utils.cards import is_generated, model_card, origin_fields, sign, usage_code
from hf_twins.training.reports import write_report_and_card


@pytest.mark.parametrize("location", ["ORG/NAME", 'a"b', "a\\nb", "a\nb", "it's", "größe {0}"])
@pytest.mark.parametrize("architecture", ["TwinsForImageClassification", "TwinsBackbone", "TwinsForObjectDetection"])
def test_usage_code_is_valid_python_for_any_folder_name(architecture, location):
    constants = [
        node.value
        for node in ast.walk(ast.parse(usage_code(architecture, location)))
        if isinstance(node, ast.Constant)
    ]
    assert location in constants


def save_card(folder: Path, **fields: object) -> Path:
    folder.mkdir(parents=True)
    ModelCard(f"---\n{ModelCardData(**fields).to_yaml()}\n---\n# Model").save(folder / "README.md")
    return folder


@pytest.mark.parametrize(
    ("base", "dataset", "license_id", "expected"),
    [
        (None, None, None, {}),
        (None, "mnist", "mit", {"datasets": ["mnist"], "license": "mit"}),
        ("org/base", "org/data", None, {"base_model": "org/base", "datasets": ["org/data"], "license": "apache-2.0"}),
        ("org/base", None, "mit", {"base_model": "org/base", "license": "mit"}),
        ("org/none", None, None, {"base_model": "org/none"}),
        ("org/damaged", None, None, {"base_model": "org/damaged"}),
        ("folder", "folder", None, {"base_model": "timm/twins", "license": "other", "license_name": "mine"}),
        ("alone", None, None, {}),
        ("alone/file.pth", None, None, {}),
    ],
)
def test_card_names_the_origin_of_a_model(base, dataset, license_id, expected, tmp_path, monkeypatch):
    save_card(tmp_path / "base", license="apache-2.0", license_link="https://example.org", base_model="somebody/else")
    save_card(tmp_path / "folder", license="other", license_name="mine", base_model="timm/twins")
    for name in ("alone", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "alone" / "file.pth").touch()
    (tmp_path / "damaged" / "README.md").write_text("---\na: [\n---\n")
    monkeypatch.chdir(tmp_path)
    models = {"org/base": tmp_path / "base", "org/damaged": tmp_path / "damaged"}
    with serve_hub(models) as hub, hub.in_process(tmp_path / "home"):
        fields = origin_fields(base, dataset, license_id)
    if base == "org/base" and license_id is None:
        expected = expected | {"license_link": "https://example.org"}
    assert fields == expected


def test_card_leaves_out_unknown_fields_if_the_hub_is_unreachable(tmp_path):
    with serve_hub() as hub, hub.in_process(tmp_path / "home"):
        hub.stop()
        assert origin_fields("org/base", None) == {"base_model": "org/base"}


def test_card_of_a_trained_model_has_license_base_model_data_sets_and_code(tmp_path):
    base = save_card(tmp_path / "base", license="apache-2.0", base_model="timm/twins_svt_small.in1k")
    settings = {
        "recipe": "fine-tune",
        "start": str(base),
        "dataset": "org/data",
        "model": {"model_name_or_path": str(base)},
        "data": {"dataset_name": "org/data"},
    }
    (tmp_path / "run").mkdir()
    usage = usage_code("TwinsForImageClassification", "run")
    write_report_and_card(
        tmp_path / "run",
        {"metrics": {"accuracy": 0.5}},
        settings,
        kind="classifier",
        task="image-classification",
        metric_types={},
        figures={},
        usage=usage,
    )
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "timm/twins_svt_small.in1k"
    assert card.data.datasets == ["org/data"]
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_value) == ("org/data", 0.5)
    assert f"```python\n{usage}\n```" in card.text


def test_card_is_generated_until_it_is_edited():
    text = str(model_card(ModelCardData(license="mit"), "Title", "What it is.", "import hf_twins"))
    assert is_generated(text)
    # Git may change line endings on Windows, and publishing changes the code to load from the Hub.
    assert is_generated(text.replace("\n", "\r\n"))
    changed = text.replace("Title", "Other title")
    assert not is_generated(changed)
    assert is_generated(sign(changed))
    assert sign(changed).count("Generated by hf_twins") == 1
    assert not is_generated(text + "\nMine.")
    assert not is_generated("# Mine")
