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
"""Publishing to a Hub on loopback with the real client: published files, permissions, and failures."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import convert_twins_to_hf
import pytest
import torch
from conversion_utils import fails, run, save_source
from huggingface_hub import HfApi, ModelCard, model_info, snapshot_download
from loopback_hub import LoopbackHub, serve_hub
from PIL import Image
from source_checkpoints import PUBLISHED, TINY, source_checkpoint, source_weights
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from hf_twins import TwinsForImageClassification
from hf_twins.checkpoints import published


TOKENS = {"hf_write": "write", "hf_read": "read"}


@pytest.fixture
def source(tmp_path) -> Path:
    return save_source(tmp_path)


@pytest.fixture
def hub(tmp_path):
    with serve_hub(tokens=TOKENS) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        yield hub


def push_options(repo_id: str = "somebody/twins") -> tuple[str, ...]:
    return ("--push-to-hub", "--repo-id", repo_id)


def test_published_repository_is_the_folder(hub, source, tmp_path, capsys):
    output = tmp_path / "converted"
    run(source, "--output", output, *push_options())
    assert "published http" in capsys.readouterr().out
    pulled = Path(snapshot_download("somebody/twins"))
    for file in output.iterdir():
        assert (pulled / file.name).read_bytes() == file.read_bytes()
    assert not model_info("somebody/twins").private
    model = TwinsForImageClassification.from_pretrained("somebody/twins")
    expected = TwinsForImageClassification.from_pretrained(source)
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in model.state_dict().items())
    card = ModelCard.load("somebody/twins")
    assert card.data.pipeline_tag == "image-classification"
    assert 'pipeline("image-classification", "somebody/twins")' in card.text


def test_publishing_again_commits_only_changes(hub, source, tmp_path):
    for name in ("first", "second"):
        run(source, "--output", tmp_path / name, *push_options())
    history = list(hub.repository("somebody/twins").branches["main"].history())
    # There is the repository's initial commit and a single other one, because nothing changed.
    assert len(history) == 2
    weights = source_weights("official", TINY["svt"])
    weights["head.bias"] += 1
    torch.save(weights, source)
    run(source, "--output", tmp_path / "third", *push_options())
    assert len(list(hub.repository("somebody/twins").branches["main"].history())) == 3
    model = TwinsForImageClassification.from_pretrained("somebody/twins")
    assert torch.equal(model.classifier.bias, weights["head.bias"])


def test_private_and_revision(hub, source, tmp_path):
    run(source, "--output", tmp_path / "converted", *push_options(), "--private", "--revision", "v1")
    assert model_info("somebody/twins").private
    assert set(hub.repository("somebody/twins").branches) == {"main", "v1"}
    assert "config.json" not in hub.repository("somebody/twins").branches["main"].files
    TwinsForImageClassification.from_pretrained("somebody/twins", revision="v1")
    with hub.in_process(tmp_path / "stranger"), pytest.raises(OSError, match="somebody/twins"):
        TwinsForImageClassification.from_pretrained("somebody/twins", revision="v1")


def test_private_is_not_published_publicly(hub, source, tmp_path):
    HfApi().create_repo("somebody/twins")
    error = fails(source, "--output", tmp_path / "converted", *push_options(), "--private")
    assert "somebody/twins is public, nothing was published: make it private in its settings" in error
    assert set(hub.repository("somebody/twins").branches["main"].files) == {".gitattributes"}
    # This does not convert again.
    hub.repository("somebody/twins").private = True
    run(source, "--output", tmp_path / "converted", *push_options(), "--private")
    assert model_info("somebody/twins").private


def test_old_weights_are_removed_from_the_repository(hub, source, tmp_path, capsys):
    api = HfApi()
    api.create_repo("somebody/twins")
    old = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tf_model.h5"]
    old += [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "model.fp16.bin",
    ]
    others = ["notes.txt", "results/model.bin", "onnx/model.onnx", "modeling.py"]
    for name in [*old, *others, "model.safetensors"]:
        api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id="somebody/twins")
    run(source, "--output", tmp_path / "converted", *push_options())
    files = set(hub.repository("somebody/twins").branches["main"].files)
    written = {file.name for file in (tmp_path / "converted").iterdir()}
    assert files == {".gitattributes", *others, *written}
    assert f"removes   {', '.join(sorted(old))} from somebody/twins" in capsys.readouterr().out
    TwinsForImageClassification.from_pretrained("somebody/twins")


@pytest.mark.slow
def test_card_written_by_its_owner_is_kept(hub, source, tmp_path, capsys):
    api = HfApi()
    api.create_repo("somebody/twins")
    mine = b"---\nlicense: mit\n---\n# My model"
    api.upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id="somebody/twins")
    run(source, "--output", tmp_path / "first", *push_options())
    assert ModelCard.load("somebody/twins").text.strip() == "# My model"
    assert "kept      README.md of somebody/twins" in capsys.readouterr().out
    assert "model.safetensors" in hub.repository("somebody/twins").branches["main"].files
    run(source, "--output", tmp_path / "first", *push_options(), "--replace-card")
    assert "converted from source.pth" in ModelCard.load("somebody/twins").text

    # A generated card is replaced unless it was edited.
    weights = source_weights("official", TINY["svt"])
    for name, is_edited in (("second", False), ("third", True)):
        weights["head.bias"] += 1
        torch.save(weights, source)
        card = ModelCard.load("somebody/twins")
        if is_edited:
            card.data.license = "mit"
            api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="somebody/twins")
        run(source, "--output", tmp_path / name, *push_options())
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        assert (digest in ModelCard.load("somebody/twins").text) is not is_edited
    assert ModelCard.load("somebody/twins").data.license == "mit"


def test_repository_of_another_user_gets_a_pull_request(hub, source, tmp_path, capsys):
    hub.add_repository("other/twins")
    hub.read_only.add("other/twins")
    assert "other/twins was not published" in fails(
        source, "--output", tmp_path / "converted", *push_options("other/twins")
    )
    run(source, "--output", tmp_path / "converted", *push_options("other/twins"), "--create-pr")
    assert f"published {hub.endpoint}/other/twins/discussions/1" in capsys.readouterr().out
    branches = hub.repository("other/twins").branches
    assert set(branches["main"].files) == {".gitattributes"}
    assert branches["refs/pr/1"].title == "Convert from source.pth"
    TwinsForImageClassification.from_pretrained("other/twins", revision="refs/pr/1")
    # No repository or branch is created.
    error = fails(source, "--output", tmp_path / "converted", *push_options("other/none"), "--create-pr")
    assert "other/none was not published" in error
    assert not HfApi().repo_exists("other/none")


@pytest.mark.parametrize("option", [("--private",), ("--revision", "v1")])
def test_pull_request_cannot_be_combined_with_private_or_a_revision(option, source, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(source, "--output", tmp_path / "converted", *push_options(), "--create-pr", *option)
    assert "--create_pr cannot be used with --private or --revision" in capsys.readouterr().err


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_a_valid_token_nothing_is_even_converted(token, hub, source, tmp_path):
    with hub.in_process(tmp_path / "stranger", token=token):
        error = fails(source, "--output", tmp_path / "converted", *push_options())
    assert "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN" in error
    assert not (tmp_path / "converted").exists()
    assert not HfApi().repo_exists("somebody/twins")


def test_token_that_may_only_read_leaves_the_folder(hub, source, tmp_path):
    with hub.in_process(tmp_path / "reader", token="hf_read"):
        error = fails(source, "--output", tmp_path / "converted", *push_options())
    assert f"somebody/twins was not published, {tmp_path / 'converted'} is unchanged: " in error
    assert (tmp_path / "converted" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repo_id", "some body/twins!"), "--repo_id: Repo id must use alphanumeric chars"),
        (("--repo_id", "a/b/c"), "--repo_id: Repo id must be in the form"),
        (("--repo_id", "https://huggingface.co/somebody/twins"), "--repo_id: Repo id must be in the form"),
        (("--repo_id", ""), "--repo_id: Repo id must use alphanumeric chars"),
        (("--repo_id", "somebody/twins", "--revision", ""), "--revision must be the name of a branch, .* got ''"),
        (
            ("--repo_id", "somebody/twins", "--revision", "a b"),
            "--revision must be the name of a branch, .* got 'a b'",
        ),
    ],
)
def test_invalid_names_are_reported_before_anything_is_done(arguments, message, capsys):
    with pytest.raises(SystemExit):
        convert_twins_to_hf.parse_arguments(["x.pth", "--output_dir", "x", "--push_to_hub", *arguments])
    assert re.search(message, capsys.readouterr().err)
    good = ["x.pth", "--output_dir", "x", "--push_to_hub", "--repo_id", "somebody/twins", "--revision"]
    for revision in ("v1.0", "refs/pr/1", "fix/a-b_c"):
        convert_twins_to_hf.parse_arguments([*good, revision])


def test_concurrent_commit_of_another_user_is_not_overwritten(hub, source, tmp_path, monkeypatch):
    upload_folder = HfApi.upload_folder

    def upload_after_another_user(self, *, parent_commit, **kwargs):
        self.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=kwargs["repo_id"])
        return upload_folder(self, parent_commit=parent_commit, **kwargs)

    monkeypatch.setattr(HfApi, "upload_folder", upload_after_another_user)
    error = fails(source, "--output", tmp_path / "converted", *push_options())
    assert "was not published" in error
    assert "412" in error
    assert set(hub.repository("somebody/twins").branches["main"].files) == {".gitattributes", "notes.txt"}


@pytest.mark.parametrize("pattern", [None, "/commit/"], ids=["weights", "commit"])
def test_interrupted_upload_changes_nothing_and_can_be_repeated(pattern, hub, source, tmp_path):
    output = tmp_path / "converted"
    hub.cut_uploads(after=500, times=100, **({"pattern": pattern} if pattern else {}))
    error = fails(source, "--output", output, *push_options())
    assert "somebody/twins was not published" in error
    assert "\n" not in error.split(": ", 2)[0]
    assert set(hub.repository("somebody/twins").branches["main"].files) == {".gitattributes"}
    hub.faults.clear()
    run(source, "--output", tmp_path / "again", *push_options())
    TwinsForImageClassification.from_pretrained("somebody/twins")


def test_unpublished_conversion_is_published_by_the_same_command(hub, source, tmp_path, capsys):
    output = tmp_path / "converted"
    hub.cut_uploads(after=500, times=100)
    fails(source, "--output", output, *push_options())
    hub.faults.clear()
    assert f"{output} exists, from another source or with other options" in fails(
        source, "--output", output, "--dtype", "float16", *push_options()
    )
    capsys.readouterr()
    run(source, "--output", output, *push_options())
    assert f"exists    {output}" in capsys.readouterr().out
    TwinsForImageClassification.from_pretrained("somebody/twins")


def test_hub_failure_is_an_error(hub, source, tmp_path):
    hub.fail(times=100, status=503, pattern="/api/repos/create")
    assert "was not published" in fails(source, "--output", tmp_path / "converted", *push_options())


@pytest.mark.parametrize("fault", ["out of order", "cut", "away"])
def test_hub_that_does_not_answer_is_not_mistaken_for_an_invalid_token(fault, hub, source, tmp_path):
    if fault == "out of order":
        hub.fail(times=100, status=503, pattern="/whoami")
    elif fault == "cut":
        hub.cut_downloads(times=100, pattern="/whoami")
    else:
        hub.stop()
    error = fails(source, "--output", tmp_path / "converted", *push_options())
    assert error.startswith("error: The Hub does not answer, so nothing was converted: try again later (")
    assert "\n" not in error
    assert not (tmp_path / "converted").exists()


@pytest.mark.slow
def test_remote_code_runs_in_a_process_without_the_package(hub, source, tmp_path):
    run(source, "--output", tmp_path / "converted", *push_options(), "--with-remote-code")
    program = (
        "import sys; sys.modules['hf_twins'] = None\n"
        "import torch\n"
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\n"
        "model = AutoModelForImageClassification.from_pretrained('somebody/twins', trust_remote_code=True)\n"
        "processor = AutoImageProcessor.from_pretrained('somebody/twins', trust_remote_code=True)\n"
        "image = torch.arange(3 * 240 * 260, dtype=torch.uint8).reshape(3, 240, 260)\n"
        "with torch.no_grad():\n"
        "    print(model(**processor(image, return_tensors='pt')).logits.tolist())\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | hub.environment(tmp_path / "other-home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    model = TwinsForImageClassification.from_pretrained(tmp_path / "converted")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    image = torch.arange(3 * 240 * 260, dtype=torch.uint8).reshape(3, 240, 260)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(json.loads(process.stdout)), expected, rtol=0, atol=1e-5)


def test_pipelines_run_on_published_models(hub, tmp_path, source):
    run(source, "--output", tmp_path / "classifier", *push_options())
    image = Image.effect_noise((300, 260), 80).convert("RGB")
    assert len(pipeline("image-classification", "somebody/twins")(image, top_k=5)) == 5
    torch.save(source_weights("mmseg-semantic-fpn", TINY["svt"]), tmp_path / "fpn.pth")
    run(tmp_path / "fpn.pth", "--output", tmp_path / "fpn", *push_options("somebody/fpn"))
    masks = pipeline("image-segmentation", "somebody/fpn")(image)
    assert all(each["mask"].size == image.size for each in masks)
    assert isinstance(AutoModelForSemanticSegmentation.from_pretrained("somebody/fpn").config.id2label[0], str)


class Site:
    """Small substitutes for published checkpoints on a download site, and their table."""

    def __init__(self, hub: LoopbackHub, folder: Path, table: Path):
        self.hub, self.folder, self.table = hub, folder, table
        folder.mkdir(exist_ok=True)
        self.entries: list[dict] = []

    def add(self, name: str, variant: str, source_format: str, **results: float) -> dict:
        weights = source_checkpoint(source_format, source_weights(source_format, PUBLISHED[variant]))
        file = self.folder / f"{name}.pth"
        torch.save(weights, file)
        entry = {
            "name": name,
            "variant": variant,
            "url": f"{self.hub.endpoint}/files/{file.name}",
            "sha256_prefix": hashlib.sha256(file.read_bytes()).hexdigest()[:8],
            **results,
        }
        self.entries.append(entry)
        self.write()
        return entry

    def write(self) -> None:
        self.table.write_text(json.dumps(self.entries))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(published, "PUBLISHED_FILE", tmp_path / "table.json")
    with (
        serve_hub(tokens=TOKENS, files=tmp_path / "files") as hub,
        hub.in_process(tmp_path / "home", token="hf_write"),
    ):
        yield Site(hub, tmp_path / "files", tmp_path / "table.json")


@pytest.mark.slow
def test_converting_all_continues_after_a_failure_and_resumes(site, tmp_path, capsys):
    site.add("twins-svt-small", "twins-svt-small", "mmpretrain", imagenet_top1=81.77)
    broken = site.add("twins-pcpvt-small", "twins-pcpvt-small", "mmpretrain", imagenet_top1=81.14)
    right_hash = broken["sha256_prefix"]
    broken["sha256_prefix"] = "00000000"
    site.write()
    site.add("twins-svt-small-semantic-fpn-ade20k", "twins-svt-small", "mmseg-semantic-fpn", ade20k_miou=44.47)

    output = tmp_path / "converted"
    assert "1 of 3 failed; run the same command again" in fails("--all", "--output", output, "--org", "somebody")
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert "converted and verified, published as somebody/twins-svt-small" in lines[0]
    assert "FAILED: " in lines[1]
    assert 'expected "00000000"' in lines[1]
    assert "converted and verified, published as somebody/twins-svt-small-semantic-fpn-ade20k" in lines[2]
    assert sorted(folder.name for folder in output.iterdir()) == [
        "twins-svt-small",
        "twins-svt-small-semantic-fpn-ade20k",
    ]

    broken["sha256_prefix"] = right_hash
    site.write()
    site.hub.requests.clear()
    run("--all", "--output", output, "--org", "somebody")
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert ["already converted" in line for line in lines] == [True, False, True]
    assert not [path for method, path in site.hub.requests if method == "PUT" and "twins-svt" in path]
    assert [path for _, path in site.hub.requests if path.startswith("/files/")] == ["/files/twins-pcpvt-small.pth"]

    card = ModelCard.load("somebody/twins-pcpvt-small")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("ImageNet-1k", 81.14)
    assert "not measured again" in result.source_name
    model = TwinsForImageClassification.from_pretrained("somebody/twins-pcpvt-small")
    assert model.config.id2label[0] == "tench, Tinca tinca"


def test_folder_changed_after_verification_is_not_published(site, tmp_path, capsys):
    site.add("twins-svt-small", "twins-svt-small", "mmpretrain")
    run("--all", "--output", tmp_path / "converted")
    (tmp_path / "converted" / "twins-svt-small" / "config.json").write_text("{}")
    fails("--all", "--output", tmp_path / "converted", "--org", "somebody")
    assert "was changed after it was verified (config.json)" in capsys.readouterr().out
    assert not HfApi().repo_exists("somebody/twins-svt-small")


def test_published_checkpoint_of_another_variant_is_refused(site, tmp_path, capsys):
    entry = site.add("twins-svt-base", "twins-svt-small", "mmpretrain")
    entry["variant"] = "twins-svt-base"
    site.write()
    assert "must be a twins-svt-base, but is twins-svt-small" in fails(
        "twins-svt-base", "--output", tmp_path / "converted"
    )


# One test for each, because together the files would take gigabytes.
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["twins-pcpvt-small", "twins-svt-small"])
@pytest.mark.parametrize("source_format", ["mmpretrain", "mmseg-semantic-fpn", "mmseg-upernet"])
def test_published_checkpoints_are_converted_and_published(variant, source_format, site, tmp_path, capsys):
    """The names and formats are those of the real table, for the small variants of both families at full size."""
    table = json.loads(Path(published.__file__).with_name("published_checkpoints.json").read_text())
    assert sum(entry["variant"].endswith("-small") for entry in table) == 6
    (entry,) = [entry for entry in table if entry["variant"] == variant and format_of(entry) == source_format]
    results = {key: value for key, value in entry.items() if key.startswith(("imagenet", "ade20k"))}
    site.add(entry["name"], variant, source_format, **results)
    run("--all", "--output", tmp_path / "converted", "--org", "somebody", "--with-remote-code")
    assert "converted and verified, published as somebody/" in capsys.readouterr().out.splitlines()[-1]
    info = model_info(f"somebody/{entry['name']}")
    files = {file.rfilename for file in info.siblings}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= files
    assert ("modeling_twins.py" in files) == (source_format != "mmseg-upernet")
    card = ModelCard.load(f"somebody/{entry['name']}")
    assert len(card.data.eval_results) == len(results) > 0


def format_of(entry: dict) -> str:
    heads = (head for head in ("upernet", "semantic-fpn") if head in entry["name"])
    return next((f"mmseg-{head}" for head in heads), "mmpretrain")
