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
"""Publishing by training scripts and Spaces; that of conversions is tested in tests/conversion/test_publishing.py."""

import assemble
import pytest
from huggingface_hub import HfApi, ModelCard, ModelCardData
from loopback_hub import serve_hub

from hf_twins._utils.cards import model_card, usage_code
from hf_twins._utils.publishing import publish_folder
from hf_twins.training.reports import push_folder
from hf_twins.training.runs import MODEL_FILES, Run


@pytest.fixture
def hub(tmp_path):
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        yield hub


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    identity = {"options": {}, "labels": [], "data": {}, "model": "", "num_processes": 1}
    Run(folder, identity, [*MODEL_FILES, "model-00001-of-00001.safetensors"]).write()
    usage = usage_code("TwinsForImageClassification", str(folder))
    model_card(ModelCardData(license="mit"), "Run", "A run.", usage).save(folder / "README.md")
    return folder


def test_private_run_or_space_is_not_published_publicly(hub, run, tmp_path):
    HfApi().create_repo("somebody/twins")
    HfApi().create_repo("somebody/twins", repo_type="space", space_sdk="gradio")
    with pytest.raises(ValueError, match="somebody/twins is public, nothing was published"):
        push_folder(run, "somebody/twins", is_private=True)
    assemble.assemble("image_classification", tmp_path / "space")
    with pytest.raises(ValueError, match="somebody/twins is public, nothing was published"):
        assemble.push(tmp_path / "space", "somebody/twins", private=True)
    for repo_type in ("model", "space"):
        assert set(hub.repository("somebody/twins", repo_type).branches["main"].files) == {".gitattributes"}
    push_folder(run, "somebody/new", is_private=True)
    assert hub.repository("somebody/new").private


def test_publishing_a_run_again_replaces_its_card_and_weights(hub, run):
    push_folder(run, "somebody/twins", is_private=False)
    assert '"somebody/twins"' in ModelCard.load("somebody/twins").text
    (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
    usage = usage_code("TwinsForImageClassification", str(run))
    model_card(ModelCardData(license="mit"), "Run", "Another run.", usage).save(run / "README.md")
    push_folder(run, "somebody/twins", is_private=False)
    assert "Another run." in ModelCard.load("somebody/twins").text
    files = set(hub.repository("somebody/twins").branches["main"].files)
    assert files == {".gitattributes", "README.md", "model-00001-of-00001.safetensors"}


def test_old_files_that_would_be_loaded_are_removed(hub, run, capsys):
    HfApi().create_repo("somebody/twins")
    old = ["consolidated.safetensors", "processor_config.json", "pytorch_model.pth"]
    for name in [*old, "results.json"]:
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="somebody/twins")
    publish_folder(HfApi(), run, "somebody/twins")
    files = set(hub.repository("somebody/twins").branches["main"].files)
    assert files == {".gitattributes", "README.md", "model.safetensors", "results.json", "run.json"}
    assert f"removes   {', '.join(old)} from somebody/twins" in capsys.readouterr().out


def test_edited_card_is_kept_unless_its_replacement_is_requested(hub, run, capsys):
    publish_folder(HfApi(), run, "somebody/twins")
    card = ModelCard.load("somebody/twins")
    card.data.license = "apache-2.0"
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="somebody/twins")
    (run / "model.safetensors").write_bytes(b"other weights")
    publish_folder(HfApi(), run, "somebody/twins")
    assert "kept      README.md of somebody/twins" in capsys.readouterr().out
    assert ModelCard.load("somebody/twins").data.license == "apache-2.0"
    blob = hub.repository("somebody/twins").branches["main"].files["model.safetensors"]
    assert blob.content.read_bytes() == b"other weights"
    publish_folder(HfApi(), run, "somebody/twins", replace_card=True)
    assert ModelCard.load("somebody/twins").data.license == "mit"
