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
"""Sources of checkpoints: files, folders, URLs, published names and timm repositories, and their hashes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from checkpoint_sources import open_checkpoint, published_checkpoints
from loopback_hub import serve_hub
from model_cards import source_text
from source_checkpoints import TINY, source_weights, timm_model
from timm.models import save_for_hf

from hf_twins.checkpoints import published


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The folder of a download site with one checkpoint; PyTorch's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "files"
    folder.mkdir()
    torch.save(source_weights("official", TINY["svt"]), folder / "twins.pth")
    return folder


def test_timm_repository_is_read_from_the_hub(tmp_path):
    architecture = TINY["svt"]
    arguments = {
        "embed_dims": architecture.hidden_sizes,
        "depths": architecture.depths,
        "mlp_ratios": architecture.mlp_ratios,
        "num_heads": [size // 32 for size in architecture.hidden_sizes],
    }
    save_for_hf(timm_model(architecture, 5), str(tmp_path / "timm"), None, arguments, safe_serialization=True)
    with serve_hub({"timm/twins_svt_small.in1k": tmp_path / "timm"}) as hub, hub.in_process(tmp_path / "home"):
        checkpoint = open_checkpoint("timm/twins_svt_small.in1k")
        with pytest.raises(OSError, match=r"timm/twins_svt_base\.in1k"):
            open_checkpoint("timm/twins_svt_base.in1k")
        hub.cut_downloads(times=100, pattern="model.safetensors")
        with (
            hub.in_process(tmp_path / "cut"),
            pytest.raises(OSError, match=r"small\.in1k cannot be fetched: peer closed"),
        ):
            open_checkpoint("timm/twins_svt_small.in1k")
        commit = hub.repository("timm/twins_svt_small.in1k").branches["main"].oid
    assert checkpoint.repo_id == "timm/twins_svt_small.in1k"
    assert checkpoint.origin == f"timm/twins_svt_small.in1k@{commit}"
    assert checkpoint.timm_config["hidden_sizes"] == list(architecture.hidden_sizes)
    assert checkpoint.preprocessing["size"] == {"shortest_edge": 248}


def test_table_of_published_checkpoints_is_complete():
    table = published_checkpoints()
    assert len(table) == 18
    assert sum("imagenet_top1" in entry for entry in table.values()) == 6
    assert sum("ade20k_miou" in entry for entry in table.values()) == 12
    for name, entry in table.items():
        assert name.startswith(entry["variant"])
        # OpenMMLab's file names end with the first digits of their SHA-256.
        assert entry["url"].endswith(f"-{entry['sha256_prefix']}.pth")
        assert entry["url"].startswith("https://download.openmmlab.com/")


def test_published_name_is_fetched_and_must_have_its_hash(files, tmp_path, monkeypatch):
    with serve_hub(files=files) as hub:
        entry = {
            "name": "twins-svt-small",
            "variant": "twins-svt-small",
            "url": f"{hub.endpoint}/files/twins.pth",
            "sha256_prefix": hashlib.sha256((files / "twins.pth").read_bytes()).hexdigest()[:8],
        }
        (tmp_path / "table.json").write_text(json.dumps([entry]))
        monkeypatch.setattr(published, "PUBLISHED_FILE", tmp_path / "table.json")
        assert open_checkpoint("twins-svt-small").published == entry
        (tmp_path / "table.json").write_text(json.dumps([entry | {"sha256_prefix": "12345678"}]))
        with pytest.raises(ValueError, match=r'is the wrong file, .*expected "12345678"'):
            open_checkpoint("twins-svt-small")


@pytest.fixture
def table(files, tmp_path, monkeypatch) -> dict[str, str]:
    """The entry of the only published checkpoint, whose URL is unreachable; the site's file has its hash and name."""
    entry = {
        "name": "twins-svt-small",
        "variant": "twins-svt-small",
        "url": "http://127.0.0.1:1/published/twins.pth",
        "sha256_prefix": hashlib.sha256((files / "twins.pth").read_bytes()).hexdigest()[:8],
    }
    (tmp_path / "table.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(published, "PUBLISHED_FILE", tmp_path / "table.json")
    return entry


def test_recorded_source_is_where_the_file_was_read_from(files, table):
    # For a mirror, the source is the mirror, not the URL where the file is published.
    with serve_hub(files=files) as hub:
        mirror = open_checkpoint(f"{hub.endpoint}/files/twins.pth")
    assert (mirror.origin, mirror.published) == (f"{hub.endpoint}/files/twins.pth", table)
    assert open_checkpoint(str(files / "twins.pth")).origin == "twins.pth"
    assert source_text(mirror) == f"{mirror.origin}, published as {table['url']}"
    # The name alone does not identify a published checkpoint, whose results would be in the card.
    weights = torch.load(files / "twins.pth", weights_only=True)
    weights["head.bias"] += 1
    torch.save(weights, files / "twins.pth")
    with pytest.raises(ValueError, match="must have the SHA-256"):
        open_checkpoint(str(files / "twins.pth"))
    digest = hashlib.sha256((files / "twins.pth").read_bytes()).hexdigest()
    other = open_checkpoint(str(files / "twins.pth"), sha256=digest)
    assert (other.origin, other.published) == ("twins.pth", None)


def test_folder_named_like_a_repository_is_not_mistaken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_for_hf(timm_model(TINY["svt"], 5), "timm/twins_svt_small.in1k", safe_serialization=True)
    checkpoint = open_checkpoint("timm/twins_svt_small.in1k")
    # The private path of the folder must not be in the card.
    assert checkpoint.origin == "twins_svt_small.in1k/model.safetensors"
    assert checkpoint.repo_id is None


def test_file_or_folder_with_the_name_of_a_published_one_is_that_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (files / "twins.pth").rename(tmp_path / "twins-svt-small")
    with pytest.raises(ValueError, match="must have the SHA-256 8fe5205b"):
        open_checkpoint("twins-svt-small")
