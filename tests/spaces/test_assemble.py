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
"""An assembled Space is complete: it starts without access to the repository, and all of it is published."""

import importlib.util
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import assemble
import httpx
import pytest
import torch
from gradio_client import handle_file
from huggingface_hub import HfApi, RepoCard, snapshot_download
from loopback_hub import serve_hub
from space_server import SPACES, digit_image, digit_label, serve
from testing_utils import save_small_svt, tiny_config

from hf_twins import TwinsForImageClassification, TwinsImageProcessor


NAMES = ("image_classification", "semantic_segmentation")


@pytest.fixture
def hub(tmp_path):
    with (
        serve_hub(tokens={"hf_write": "write", "hf_read": "read"}) as hub,
        hub.in_process(tmp_path / "home", token="hf_write"),
    ):
        yield hub


def fails(*arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        assemble.main([str(argument) for argument in arguments])
    return str(caught.value.code)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "endpoint"), [*zip(NAMES, ("/classify", "/segment"))])
def test_assembled_space_starts_without_the_repository(tmp_path, name, endpoint):
    assemble.main([name, "--output", str(tmp_path / "space")])
    digit_image(3).save(tmp_path / "digit.png")
    # The repository must not be reachable by the environment's path or an editable installation.
    runner = tmp_path / "space" / "run_app.py"
    runner.write_text(
        "import runpy, sys\n"
        "from pathlib import Path\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        f"sys.path[:] = [entry for entry in sys.path if not entry.startswith({str(SPACES.parent)!r})]\n"
        "here = Path(__file__).parent\n"
        "sys.path.insert(0, str(here))\n"
        "import hf_twins, twins_space\n"
        "assert Path(hf_twins.__file__).is_relative_to(here), hf_twins.__file__\n"
        "assert Path(twins_space.__file__).is_relative_to(here), twins_space.__file__\n"
        "runpy.run_path(str(here / 'app.py'), run_name='__main__')\n"
    )
    with serve(tmp_path / "space", tmp_path / "log.txt", script="run_app.py", PYTHONPATH="") as server:
        answer = server.client().predict(handle_file(tmp_path / "digit.png"), api_name=endpoint)
    if endpoint == "/classify":
        assert answer[0]["label"] == digit_label(3)
    else:
        assert "background" in [row[1] for row in answer[1]["data"]]


def built(folder: Path):
    """Import the app of an assembled Space, and return it with the models that it offers."""
    spec = importlib.util.spec_from_file_location("assembled_app", folder / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    return app.find_models(app.models.listed_models(folder))[0]


@pytest.mark.parametrize("name", ["cats", "cats-v1.5"])
def test_space_with_a_model_folder_starts_with_it(tmp_path, name):
    model = TwinsForImageClassification(tiny_config(num_labels=2))
    model.save_pretrained(tmp_path / name)
    TwinsImageProcessor().save_pretrained(tmp_path / name)
    (tmp_path / name / "checkpoint-1").mkdir()
    (tmp_path / name / "README.md").write_text("# Cats")
    arguments = ["image_classification", "--output", str(tmp_path / "space"), "--model", str(tmp_path / name)]
    assemble.main(arguments)
    shutil.rmtree(tmp_path / name)
    shelf = built(tmp_path / "space")
    assert shelf.names[0] == name
    assert shelf.title(name) == f"{name}: 2 labels"
    for weight_name, weight in shelf.get(name).model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[weight_name])
    files = {file.name for file in (tmp_path / "space" / "own_models" / name).iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert "preload_from_hub" not in (tmp_path / "space" / "README.md").read_text()


def test_space_with_a_model_on_the_hub_starts_with_it(hub, tmp_path):
    hub.add_repository("somebody/twins", save_small_svt(tmp_path / "timm"))
    assemble.main(["image_classification", "--output", str(tmp_path / "space"), "--model", "somebody/twins"])
    assert built(tmp_path / "space").names[0] == "somebody/twins"
    card = RepoCard.load(tmp_path / "space" / "README.md")
    assert card.data.preload_from_hub == ["somebody/twins"]
    assert card.data.models[0] == "somebody/twins"
    assert card.text.strip().startswith("# Twins image classification")


def test_model_of_another_kind_is_refused_by_assemble(tmp_path):
    model = SPACES / "semantic_segmentation" / "models" / "twins-svt-digit-scenes"
    message = fails("image_classification", "--output", tmp_path / "space", "--model", model)
    assert "TwinsForSemanticSegmentation, but an image classifier is needed" in message
    assert not (tmp_path / "space").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_published_space_is_the_folder(hub, name, tmp_path, capsys):
    output = tmp_path / "space"
    arguments = [name, "--output", str(output), "--push-to-hub", "--repo-id", "somebody/twins"]
    assemble.main(arguments)
    assert "published http" in capsys.readouterr().out
    pulled = Path(snapshot_download("somebody/twins", repo_type="space"))
    files = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    assert {str(file) for file in files} >= {
        "LICENSE",
        "README.md",
        "app.py",
        "hf_twins/modeling_twins.py",
        "hf_twins/checkpoints/imagenet_classes.txt",
        "requirements.txt",
        "twins_space/page.py",
    }
    for file in files:
        assert (pulled / file).read_bytes() == (output / file).read_bytes()
        assert "__pycache__" not in file.parts
    card = RepoCard.load("somebody/twins", repo_type="space")
    assert card.data.sdk == "gradio"
    assert card.data.app_file == "app.py"
    # The card has the URL where links to the Space find the thumbnail.
    thumbnail = httpx.get(card.data.thumbnail, trust_env=False, follow_redirects=True)
    assert thumbnail.content == (SPACES / "thumbnail.png").read_bytes()
    assert HfApi().repo_info("somebody/twins", repo_type="space").sha


def test_publishing_again_removes_deleted_files(hub, tmp_path):
    for name in ("first", "second"):
        output = tmp_path / name
        assemble.assemble("semantic_segmentation", output)
        if name == "first":
            (output / "old.txt").write_text("old")
        assemble.push(output, "somebody/twins", private=False)
    files = HfApi().list_repo_files("somebody/twins", repo_type="space")
    assert "old.txt" not in files
    assert "app.py" in files


def test_push_without_permission_ends_with_one_sentence(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    arguments = ("--output", tmp_path / "space", "--push-to-hub", "--repo-id", "somebody/twins")
    message = fails("image_classification", *arguments)
    assert message.startswith("error: ")
    assert "hf_read" not in message


@pytest.mark.parametrize("fault", ["upload cut", "answer cut", "out of order"])
def test_interrupted_connection_ends_with_one_sentence(fault, hub, tmp_path):
    if fault == "upload cut":
        hub.cut_uploads(times=100)
    elif fault == "answer cut":
        hub.cut_downloads(times=100, pattern="/api/repos/create")
    else:
        hub.fail(times=100, status=503, pattern="/api/repos/create")
    arguments = ("--output", tmp_path / "space", "--push-to-hub", "--repo-id", "somebody/twins")
    message = fails("image_classification", *arguments)
    assert message.startswith(f"error: somebody/twins was not published, {tmp_path / 'space'} is unchanged: ")
    assert "\n" not in message


def test_nothing_is_overwritten_and_no_incomplete_files_are_left(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.txt").write_text("mine")
    assert "exists: remove it" in fails("image_classification", "--output", tmp_path / "mine")

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(assemble.shutil, "copy", fail)
    assert "error: no space left on device" in fails("image_classification", "--output", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_push_needs_a_name(tmp_path, capsys):
    assert fails("image_classification", "--output", tmp_path / "new", "--push-to-hub") == "2"
    assert "--push_to_hub needs --repo_id" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", [("--repo-id", "somebody/twins"), ("--private",)])
def test_options_of_publishing_need_it(option, tmp_path, capsys):
    assert fails("image_classification", "--output", tmp_path / "new", *option) == "2"
    assert "give --push_to_hub too, or leave them out" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", NAMES)
def test_metadata_and_requirements_agree(name):
    card = RepoCard.load(SPACES / name / "README.md")
    requirements = (SPACES / name / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)(?:\[mcp\])?==([\w.]+)$", requirements, re.MULTILINE))
    # With PyTorch's CPU index, a plain pin prefers 2.x.y+cpu over PyPI's 2.x.y, which includes CUDA.
    assert requirements.startswith("--extra-index-url https://download.pytorch.org/whl/cpu\n")
    assert {"torch", "torchvision", "gradio"} <= pins.keys()
    assert card.data.sdk_version == pins["gradio"]
    assert len(card.data.short_description) <= 60
    assert card.data.license == "apache-2.0"
    # If the release is the same, the Space must use the versions that the tests ran with.
    for package, version in pins.items():
        assert metadata.version(package).split(".")[0] == version.split(".")[0], package


@pytest.mark.parametrize("name", NAMES)
def test_links_in_cards_and_pages_lead_to_existing_files(name):
    for card in (SPACES / name).rglob("README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", card.read_text()):
            assert target.startswith("https://") or (card.parent / target).exists(), f"{card}: {target}"


@pytest.mark.slow
def test_models_can_be_trained_again(tmp_path):
    command = [sys.executable, "-W", "ignore", str(SPACES / "train_digit_models.py"), "--output_dir", str(tmp_path)]
    subprocess.run([*command, "--epochs", "1", "--only", "twins-svt-digits"], check=True, timeout=250)
    folder = tmp_path / "image_classification" / "models" / "twins-svt-digits"
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} == {
        file.name for file in folder.iterdir()
    }
