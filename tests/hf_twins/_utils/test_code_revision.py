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
"""Code of another repository is only run at a given commit."""

import json
from pathlib import Path

import evaluate_classification
import pytest
import torch
from huggingface_hub import HfApi
from loopback_hub import serve_hub
from safetensors.torch import save_file

from hf_twins._utils.code_revision import NO_COMMIT, pinned_code_revision
from hf_twins.loading import load_pretrained


COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Code of a model that writes its version, and that of the module that it imports, to a file.
MODEL_CODE = """
from pathlib import Path
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from .helper import HELPER
Path(TRACE).write_text("VERSION " + HELPER)
class Config(PreTrainedConfig):
    model_type = "stranger"
class Model(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Linear(2, 2)
        self.post_init()
"""
AUTO_MAP = {"AutoConfig": "me/code--code.Config", "AutoModelForImageClassification": "me/code--code.Model"}


@pytest.fixture
def hub(tmp_path):
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        yield hub


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_code(folder: Path, trace: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "code.py").write_text(MODEL_CODE.replace("TRACE", repr(str(trace))).replace("VERSION", version))
    (folder / "helper.py").write_text(f"HELPER = {version!r}\n")
    return folder


def write_model(folder: Path, **auto_map: object) -> Path:
    """Write a folder with the weights of the model in `MODEL_CODE`, but without its code."""
    write_json(folder / "config.json", {"model_type": "stranger", "auto_map": auto_map or AUTO_MAP})
    weights = {"classifier.weight": torch.zeros(2, 2), "classifier.bias": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def upload(name: str, folder: Path) -> str:
    HfApi().create_repo(name, exist_ok=True)
    return HfApi().upload_folder(repo_id=name, folder_path=folder).oid


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def commit(hub, tmp_path, trace) -> str:
    """The first commit of a code repository, whose `main` branch has a newer one."""
    first = upload("me/code", write_code(tmp_path / "code", trace, "first"))
    upload("me/code", write_code(tmp_path / "code", trace, "second"))
    return first


def test_evaluation_of_a_folder_refuses_code_of_another_repository(commit, trace, tmp_path):
    folder = write_model(tmp_path / "model")
    message = (
        r"model/config\.json has the auto_map entry 'me/code--code\.Config', .* give code_revision, the hash of a "
        r"commit of me/code that you have read"
    )
    with pytest.raises(SystemExit, match=message):
        evaluate_classification.main(
            ["--model_name_or_path", str(folder), "--trust_remote_code", "true", "--dataset_dir", "."]
        )
    assert not trace.exists()


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_code_of_another_repository_is_run_at_its_commit(where, commit, trace, tmp_path):
    folder = write_model(tmp_path / "model")
    name, revision = (str(folder), "main") if where == "folder" else ("me/model", upload("me/model", folder))
    model = load_pretrained(
        name, "image-classification", revision=revision, trust_remote_code=True, code_revision=commit
    )
    assert type(model).__name__ == "Model"
    assert trace.read_text() == "first first"


@pytest.mark.parametrize("name", ["me/code--code", "code"])
def test_code_in_the_model_repository_needs_only_its_commit(name, hub, trace, tmp_path):
    """`repo--module` may name the model's own repository, as transformers writes it."""
    folder = write_code(tmp_path / "code", trace, "first")
    write_model(folder, AutoConfig=f"{name}.Config", AutoModelForImageClassification=f"{name}.Model")
    first = upload("me/code", folder)
    upload("me/code", write_code(folder, trace, "second"))
    load_pretrained("me/code", trust_remote_code=True, revision=first)
    assert trace.read_text() == "first first"


def test_code_in_the_folder_needs_no_commit(trace, tmp_path):
    folder = write_code(tmp_path / "code", trace, "local")
    write_model(folder, AutoConfig="code.Config", AutoModelForImageClassification="code.Model")
    load_pretrained(folder, trust_remote_code=True)
    assert trace.read_text() == "local local"
    trace.unlink()
    with pytest.raises(ValueError, match="has no code for this task, only for AutoConfig, AutoModelForImageClass"):
        load_pretrained(folder, "backbone", trust_remote_code=True)
    with pytest.raises(ValueError, match="holds a model of type 'stranger', not one of TwinsFor"):
        load_pretrained(folder)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["config.4.0.0.json", "adapter_config.json"])
def test_code_not_named_by_an_auto_map_of_the_folder_is_not_run(file, commit, trace, tmp_path):
    """Such code is named in the configuration of another transformers version, or by an adapter's base model."""
    model = write_model(tmp_path / "model")
    folder = tmp_path / "start"
    if file == "adapter_config.json":
        write_json(folder / file, {"base_model_name_or_path": str(model), "peft_type": "LORA"})
    else:
        write_json(folder / "config.json", {"model_type": "stranger", "configuration_files": [file]})
        write_json(folder / file, {"model_type": "stranger", "auto_map": AUTO_MAP})
    # transformers does not even look for the code of an adapter's base model.
    message = (
        "holds a model of type 'stranger', not one"
        if file == "adapter_config.json"
        else f"{NO_COMMIT} is not a valid git identifier"
    )
    with pytest.raises((OSError, ValueError), match=message):
        load_pretrained(folder, trust_remote_code=True)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("file", "content", "entry"),
    [
        ("config.json", {"auto_map": {"AutoModel": "a/b--m.C"}}, "a/b--m.C"),
        ("config.json", {"backbone_config": {"auto_map": {"AutoModel": "a/b--m.C"}}}, "a/b--m.C"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": ["m.Slow", "a/b--m.C"]}}, "a/b--m.C"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": [None, "a/b--m.C"]}}, "a/b--m.C"),
        (
            "preprocessor_config.json",
            {"auto_map": {"AutoImageProcessor": {"torchvision": "m.Fast", "pil": "a/b--m.C"}}},
            "a/b--m.C",
        ),
        ("preprocessor_config.json", {"auto_map": {"AutoFeatureExtractor": "a/b--m.C"}}, "a/b--m.C"),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "a/b--m.C"}}}, "a/b--m.C"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "a/b--m.C"}}, "a/b--m.C"),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "a/b--m.C"}}, "a/b--m.C"),
        ("tokenizer_config.json", {"auto_map": [None, "a/b--m.C"]}, "a/b--m.C"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a/b--m.C", None]}}, "a/b--m.C"),
        ("config.json", {"auto_map": {"AutoModel": "name--m.C"}}, "name--m.C"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_every_entry_of_another_repository_needs_a_commit(where, file, content, entry, tmp_path, request):
    folder = tmp_path / "model"
    write_json(folder / "config.json", {})
    write_json(folder / file, content)
    source, revision = str(folder), "main"
    if where == "hub":
        request.getfixturevalue("hub")
        source, revision = "me/model", upload("me/model", folder)
    with pytest.raises(ValueError, match=f"{file} has the auto_map entry '{entry}'") as raised:
        pinned_code_revision(source, revision, None)
    assert str(raised.value).count(". ") == 0
    assert pinned_code_revision(source, revision, COMMIT) == COMMIT


@pytest.mark.parametrize("revision", ["main", "", COMMIT[:39], COMMIT + "0", COMMIT.upper(), f"{COMMIT}\n"])
def test_revision_that_is_not_a_commit_is_refused(revision, tmp_path):
    write_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"code_revision must be .*40 hexadecimal digits.*, got "):
        pinned_code_revision(str(tmp_path / "model"), "main", revision)
    with pytest.raises(ValueError, match=r"\(--model_revision\) must be .*40 hexadecimal digits.*, got "):
        pinned_code_revision("me/model", revision, COMMIT)


def test_code_of_two_repositories_cannot_be_pinned_by_one_commit(tmp_path):
    auto_map = {"AutoConfig": "a/b--m.C", "AutoModel": "c/d--m.C"}
    write_json(tmp_path / "config.json", {"auto_map": auto_map})
    with pytest.raises(ValueError, match=r"takes code from several repositories, a/b and c/d, .* one commit"):
        pinned_code_revision(str(tmp_path), "main", COMMIT)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"auto_map": 1}', '{"auto_map": null}', '"a--b"', '{"name": "a--b.C"}']
)
def test_files_without_entries_are_left_to_transformers(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    assert set(pinned_code_revision(str(tmp_path), "main", None)) == {"0"}
