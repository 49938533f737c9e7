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
"""Files from elsewhere: downloaded whole, checked, kept; and repositories of timm's."""

import hashlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import checkpoint_sources
import pytest
import torch
from checkpoint_sources import open_checkpoint, published_checkpoints
from loopback_hub import LoopbackHub, serve_hub
from source_checkpoints import TINY, source_weights, timm_model
from testing_utils import small_file_system
from timm.models import save_for_hf

from hf_twins.checkpoints import published


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The folder of a site for downloads, which has one checkpoint; and PyTorch's cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "files"
    folder.mkdir()
    torch.save(source_weights("official", TINY["svt"]), folder / "twins.pth")
    return folder


@contextmanager
def serve_different_weights() -> Iterator[tuple[int, list[str]]]:
    """A server with other weights at each address, query strings and host names included; its port and what was asked."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # as http.server calls it
            requests.append(f"http://{self.headers['Host']}{self.path}")
            content = io.BytesIO()
            weights = source_weights("official", TINY["svt"])
            weights["head.bias"].fill_(len(requests))
            torch.save(weights, content)
            self.send_response(200)
            self.send_header("Content-Length", str(content.tell()))
            self.end_headers()
            self.wfile.write(content.getvalue())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, requests
        finally:
            server.shutdown()
            thread.join()


def cached(tmp_path: Path) -> list[str]:
    return [file.name for file in (tmp_path / "torch").rglob("*") if file.is_file()]


def requests_for(hub: LoopbackHub, name: str) -> int:
    return sum(path.endswith(name) for _, path in hub.requests)


def test_address_is_downloaded_once(files, tmp_path):
    with serve_hub(files=files) as hub:
        address = f"{hub.endpoint}/files/twins.pth"
        checkpoint = open_checkpoint(address)
        again = open_checkpoint(address, sha256=checkpoint.sha256[:8])
        assert requests_for(hub, "twins.pth") == 1
    assert checkpoint.origin == address
    assert checkpoint.sha256 == again.sha256 == hashlib.sha256((files / "twins.pth").read_bytes()).hexdigest()
    assert cached(tmp_path) == ["twins.pth"]


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(("127.0.0.1:PORT/alice/model.pth", "127.0.0.1:PORT/bob/model.pth"), id="folders"),
        pytest.param(("127.0.0.1:PORT/model.pth?version=1", "127.0.0.1:PORT/model.pth?version=2"), id="queries"),
        pytest.param(("127.0.0.1:PORT/model.pth", "127.0.0.1:PORT/model.pth?version=2"), id="without_query"),
        pytest.param(("127.0.0.1:PORT/model.pth", "localhost:PORT/model.pth"), id="hosts"),
        pytest.param(("127.0.0.1:PORT/a/b.pth", "127.0.0.1:PORT/a%2Fb.pth"), id="escapes"),
        pytest.param(("127.0.0.1:PORT/", "127.0.0.1:PORT/?version=2"), id="no_file_name"),
        pytest.param(("127.0.0.1:PORT/a/..", "127.0.0.1:PORT/b/.."), id="parent_as_file_name"),
    ],
)
def test_addresses_that_end_in_the_same_name_are_different_files(addresses, files):
    with serve_different_weights() as (port, requests):
        addresses = [f"http://{address.replace('PORT', str(port))}" for address in addresses]
        for _ in range(2):
            for number, address in enumerate(addresses, start=1):
                checkpoint = open_checkpoint(address)
                assert checkpoint.origin == address
                assert checkpoint.weights["head.bias"].unique().tolist() == [number]
        assert requests == addresses


def test_path_of_a_download_keeps_the_file_name_and_no_secret(files, tmp_path):
    with serve_different_weights() as (port, _):
        checkpoint = open_checkpoint(f"http://127.0.0.1:{port}/alice/model.pth?token=hf_secret&user=alice")
    assert checkpoint.file.name == "model.pth"
    assert checkpoint.file.is_relative_to(tmp_path / "torch" / "hub" / "checkpoints")
    assert not [word for word in ("secret", "token", "alice", "127.0.0.1") if word in str(checkpoint.file)]


def test_download_with_another_hash_is_not_kept(files, tmp_path):
    message = r'is not the file it must be, or came in damaged: .*expected "00000000"'
    with serve_hub(files=files) as hub, pytest.raises(ValueError, match=message):
        open_checkpoint(f"{hub.endpoint}/files/twins.pth", sha256="00000000")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("sha256", ["known", "unknown"])
def test_download_that_is_cut_is_not_kept(sha256, files, tmp_path):
    digest = hashlib.sha256((files / "twins.pth").read_bytes()).hexdigest() if sha256 == "known" else None
    with serve_hub(files=files) as hub:
        hub.cut_downloads(after=1000)
        with pytest.raises((ValueError, OSError), match=r"damaged|cannot be fetched|not whole"):
            open_checkpoint(f"{hub.endpoint}/files/twins.pth", digest)
        assert cached(tmp_path) == []
        assert len(open_checkpoint(f"{hub.endpoint}/files/twins.pth", digest).weights) > 100


def test_download_that_stalls_is_given_up(files, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_sources, "STALLED_AFTER", 0.2)
    with serve_hub(files=files) as hub:
        hub.stall_downloads(seconds=2, after=1000)
        with pytest.raises(OSError, match=r"twins\.pth cannot be fetched: .*timed out"):
            open_checkpoint(f"{hub.endpoint}/files/twins.pth")
        assert socket.getdefaulttimeout() is None
        assert cached(tmp_path) == []
        assert len(open_checkpoint(f"{hub.endpoint}/files/twins.pth").weights) > 100


def test_cache_that_cannot_be_written_is_named_and_one_that_is_full_is_read(files, tmp_path):
    with serve_hub(files=files) as hub, small_file_system(tmp_path / "torch") as set_options:
        address = f"{hub.endpoint}/files/twins.pth"
        set_options("ro")
        with pytest.raises(OSError, match=r"twins\.pth cannot be fetched: .*Read-only file system"):
            open_checkpoint(address)
        set_options("rw,size=256k")
        with pytest.raises(OSError, match=r"twins\.pth cannot be fetched: .*No space left on device"):
            open_checkpoint(address)
        assert cached(tmp_path) == []
        set_options("rw,size=100m")
        open_checkpoint(address)
        set_options("ro")
        assert len(open_checkpoint(address).weights) > 100
        assert requests_for(hub, "twins.pth") == 2


def test_address_that_is_not_there_is_named(files):
    with serve_hub(files=files) as hub, pytest.raises(OSError, match=r"other\.pth cannot be fetched: HTTP Error 404"):
        open_checkpoint(f"{hub.endpoint}/files/other.pth")
    with pytest.raises(OSError, match=r"cannot be fetched: .*refused"):
        open_checkpoint(f"{hub.endpoint}/files/twins.pth")


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
    assert checkpoint.origin == "timm/twins_svt_small.in1k"
    assert checkpoint.timm_config["hidden_sizes"] == list(architecture.hidden_sizes)
    assert checkpoint.preprocessing["size"] == {"shortest_edge": 248}


def test_table_of_published_checkpoints_is_complete():
    table = published_checkpoints()
    assert len(table) == 18
    assert sum("imagenet_top1" in entry for entry in table.values()) == 6
    assert sum("ade20k_miou" in entry for entry in table.values()) == 12
    for name, entry in table.items():
        assert name.startswith(entry["variant"])
        # OpenMMLab ends the names of files with the beginning of their SHA-256.
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
        with pytest.raises(ValueError, match=r'invalid hash value \(expected "12345678"'):
            open_checkpoint("twins-svt-small")


def test_file_or_folder_with_the_name_of_a_published_one_is_that_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (files / "twins.pth").rename(tmp_path / "twins-svt-small")
    with pytest.raises(ValueError, match="must have the SHA-256 8fe5205b"):
        open_checkpoint("twins-svt-small")
