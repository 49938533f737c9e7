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
"""Downloads: complete, cached, and fetched again when they change; no secret in a URL is written anywhere."""

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import downloads
import pytest
import torch
from checkpoint_sources import open_checkpoint
from conversion_utils import fails, run
from downloads import download, public_address
from loopback_hub import serve_hub
from source_checkpoints import TINY, source_weights
from testing_utils import small_file_system


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of PyTorch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


@dataclass
class Response:
    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Site:
    """A server with given `responses` for each path and query, which records requests."""

    responses: dict[str, Response] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0
    close: Callable[[], None] = lambda: None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def respond(self, path: str, headers: dict[str, str]) -> Response:
        response = self.responses.get(path) or Response(status=404)
        for condition, validator in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")):
            if headers.get(condition) and headers[condition] == response.headers.get(validator):
                return Response(status=304, headers=response.headers)
        return response


@pytest.fixture
def site() -> Iterator[Site]:
    with serve_site() as site:
        yield site


@contextmanager
def serve_site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # the name that http.server requires
            site.requests.append((self.path, dict(self.headers)))
            response = site.respond(self.path, dict(self.headers))
            self.send_response(response.status)
            for name, value in (response.headers | {"Content-Length": str(len(response.content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def close() -> None:
            # A socket closed while its thread waits for connections would still accept one, and reset it.
            server.shutdown()
            thread.join()
            server.server_close()

        site.port, site.close = server.server_port, close
        try:
            yield site
        finally:
            close()


def kept(cache: Path) -> list[str]:
    """The names of the files in the cache, without records."""
    return sorted(file.name for file in cache.rglob("*") if file.is_file() and file.name != downloads.RECORD_NAME)


@pytest.fixture(scope="module")
def weights() -> bytes:
    content = io.BytesIO()
    torch.save(source_weights("official", TINY["svt"]), content)
    return content.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"ETag": '"{}"'}, id="etag"),
        pytest.param({"ETag": 'W/"{}"'}, id="weak_etag"),
        pytest.param({"Last-Modified": "Wed, 0{} Jan 2025 00:00:00 GMT"}, id="last_modified"),
        pytest.param({}, id="nothing"),
    ],
)
def test_file_that_changed_on_the_server_is_fetched_again(headers, site, cache):
    for version in (1, 1, 2, 2, 1):
        content = f"version {version}".encode()
        site.responses["/a.pth"] = Response(content, headers={k: v.format(version) for k, v in headers.items()})
        assert download(f"{site.address}/a.pth", None).read_bytes() == content
        assert kept(cache) == ["a.pth"]
    assert len(site.requests) == 5
    # If the server distinguishes versions, an unchanged file is not sent again.
    asked_for_changes = ["If-None-Match" in given or "If-Modified-Since" in given for _, given in site.requests]
    assert asked_for_changes == [False, *[bool(headers)] * 4]


def test_cached_file_with_the_required_hash_is_not_requested_again(site, cache, weights):
    site.responses["/twins.pth"] = Response(weights)
    address = f"{site.address}/twins.pth"
    checkpoint = open_checkpoint(address)
    again = open_checkpoint(address, sha256=digest(weights)[:8].upper())
    assert len(site.requests) == 1
    assert checkpoint.origin == address
    assert checkpoint.sha256 == again.sha256 == digest(weights)
    assert kept(cache) == ["twins.pth"]


@pytest.mark.parametrize("fault", ["away", "503", "429"])
def test_cached_file_is_used_with_a_note_if_the_server_does_not_answer(fault, site, cache, capsys):
    site.responses["/a.pth"] = Response(b"content", headers={"ETag": '"1"'})
    address = f"{site.address}/a.pth?token=secret"
    site.responses["/a.pth?token=secret"] = site.responses["/a.pth"]
    path = download(address, None)
    if fault == "away":
        site.close()
    else:
        site.responses["/a.pth?token=secret"] = Response(status=int(fault))
    assert download(address, None) == path
    printed = capsys.readouterr().out
    assert f"{site.address}/a.pth?token=... cannot be checked for changes (" in printed
    assert digest(b"content") in printed
    with pytest.raises(OSError, match="cannot be fetched, and the cached file has another hash"):
        download(address, "00000000")
    site.responses["/b.pth"] = Response(status=503)
    with pytest.raises(OSError, match=r"b\.pth cannot be fetched: "):
        download(f"{site.address}/b.pth", None)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_removed_file_is_not_taken_from_the_cache(status, site, cache):
    site.responses["/a.pth"] = Response(b"content", headers={"ETag": '"1"'})
    download(f"{site.address}/a.pth", None)
    site.responses["/a.pth"] = Response(status=status)
    with pytest.raises(OSError, match=rf"a\.pth cannot be fetched: HTTP status {status}"):
        download(f"{site.address}/a.pth", None)


@pytest.mark.parametrize("damage", ["file", "record", "no record"])
def test_damaged_cached_file_is_fetched_again(damage, site, cache):
    site.responses["/a.pth"] = Response(b"content", headers={"ETag": '"1"'})
    path = download(f"{site.address}/a.pth", None)
    record = path.parents[1] / downloads.RECORD_NAME
    if damage == "file":
        path.write_bytes(b"half of")
    elif damage == "record":
        record.write_text('{"file"')
    else:
        record.unlink()
    assert download(f"{site.address}/a.pth", None).read_bytes() == b"content"


def test_redirects_are_followed_and_the_given_url_is_recorded_as_the_source(site, cache, weights):
    site.responses["/models/7"] = Response(status=302, headers={"Location": "/storage/x?signature=secret"})
    site.responses["/storage/x?signature=secret"] = Response(
        weights, headers={"Content-Disposition": "attachment; filename*=UTF-8''../tw%20ins.pth"}
    )
    checkpoint = open_checkpoint(f"{site.address}/models/7")
    assert checkpoint.origin == f"{site.address}/models/7"
    assert checkpoint.file.name == "tw_ins.pth"
    assert checkpoint.file.is_relative_to(cache)
    site.responses["/loop"] = Response(status=302, headers={"Location": "/loop"})
    with pytest.raises(OSError, match=r"loop cannot be fetched: .*redirects"):
        download(f"{site.address}/loop", None)


@pytest.mark.parametrize(
    ("path", "header", "name"),
    [
        ("/a/model.safetensors", None, "model.safetensors"),
        ("/get?id=5", 'attachment; filename="b.safetensors"', "b.safetensors"),
        ("/model.pth", "attachment", "model.pth"),
        ("/model.pth", 'attachment; filename="data"', "model.pth"),
        ("/", None, "checkpoint"),
        ("/a/..", None, "checkpoint"),
        ("/x", 'attachment; filename="..\\\\..\\\\evil.pth"', "evil.pth"),
        ("/" + 300 * "n" + ".pth", None, 146 * "n" + ".pth"),
    ],
)
def test_file_name_comes_from_the_server_or_the_url(path, header, name, site, cache):
    response = Response(b"content", headers={"Content-Disposition": header} if header else {})
    # The HTTP client may resolve "..".
    site.responses = {path: response, "/": response}
    assert download(f"{site.address}{path}", None).name == name


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/a.pth", "https://host/a.pth"),
        ("https://user:password@host:81/a.pth", "https://host:81/a.pth"),
        ("https://token@host/a.pth", "https://host/a.pth"),
        ("https://us@er:pass@host/a.pth", "https://host/a.pth"),
        ("https://host/a.pth?token=secret&version=2", "https://host/a.pth?token=...&version=2"),
        ("https://host/a.pth?secret", "https://host/a.pth?..."),
        ("https://host/a.pth?secret=", "https://host/a.pth?..."),
        (
            "https://host/a.pth?X-Amz-Credential=c&X-Amz-Signature=s",
            "https://host/a.pth?X-Amz-Credential=...&X-Amz-Signature=...",
        ),
        ("https://host/a.pth?sig=s&download=1", "https://host/a.pth?sig=...&download=1"),
        ("https://host/a.pth#access_token=secret", "https://host/a.pth"),
        ("https://host/a;jsessionid=secret/b.pth", "https://host/a;.../b.pth"),
        ("HTTPS://host/a.pth", "https://host/a.pth"),
    ],
)
def test_secrets_in_a_url_are_left_out(address, shown):
    assert public_address(address) == shown


def test_files_and_messages_contain_no_secrets(site, cache, weights, tmp_path, capsys):
    query = "?token=secret1&sig=secret2"
    site.responses[f"/model.pth{query}"] = Response(weights)
    address = f"http://user:secret3@127.0.0.1:{site.port}/model.pth{query}#secret4"
    run(address, "--output", tmp_path / "model")
    assert site.requests[0][1]["Authorization"] == "Basic dXNlcjpzZWNyZXQz"
    assert "source    http://127.0.0.1:" in capsys.readouterr().out
    site.responses[f"/model.pth{query}"] = Response(b"<html>log in</html>")
    errors = [fails(address, "--output", tmp_path / "other")]
    site.responses[f"/model.pth{query}"] = Response(status=403)
    errors.append(fails(address, "--output", tmp_path / "other"))
    site.responses[f"/model.pth{query}"] = Response(weights)
    errors.append(fails(address, "--output", tmp_path / "other", "--sha256", "00000000"))
    errors.append(fails(address, "--output", tmp_path / "other", "--variant", "twins-svt-large"))
    for error in errors:
        assert f"http://127.0.0.1:{site.port}/model.pth?token=...&sig=..." in error
    written = [file for folder in (tmp_path / "model", cache) for file in folder.rglob("*") if file.is_file()]
    texts = [*errors, capsys.readouterr().out, *(str(file) for file in written)]
    texts += [file.read_bytes().decode("latin-1") for file in written]
    assert not [text[:200] for text in texts if "secret" in text]
    # Invalid URLs are not requested.
    assert "The URL is not valid" in fails("http://[secret", "--output", tmp_path / "other")


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(("/alice/model.pth", "/bob/model.pth"), id="folders"),
        pytest.param(("/model.pth?version=1", "/model.pth?version=2"), id="queries"),
        pytest.param(("/model.pth", "/model.pth?version=2"), id="without_query"),
        pytest.param(("/a/b.pth", "/a%2Fb.pth"), id="escapes"),
        pytest.param(("/", "/?version=2"), id="no_file_name"),
    ],
)
def test_urls_with_the_same_file_name_are_different_files(paths, site, cache):
    for _ in range(2):
        for path in paths:
            site.responses[path] = Response(path.encode(), headers={"ETag": '"1"'})
            assert download(f"{site.address}{path}", None).read_bytes() == path.encode()


def test_partial_files_of_killed_downloads_are_removed(site, cache):
    site.responses["/a.pth"] = Response(b"content")
    path = download(f"{site.address}/a.pth", None)
    left = path.parents[1] / f"{downloads.PARTIAL}killed"
    left.mkdir()
    (left / "a.pth").write_bytes(b"half")
    download(f"{site.address}/a.pth", None)
    assert kept(cache) == ["a.pth"]
    assert not left.exists()


def test_download_with_another_hash_is_not_kept(site, cache):
    site.responses["/a.pth"] = Response(b"content")
    with pytest.raises(ValueError, match=r'is the wrong file, or was damaged on the way: .*expected "00000000"'):
        download(f"{site.address}/a.pth", "00000000")
    assert kept(cache) == []


@pytest.mark.parametrize("sha256", ["", "a", "1234567", "0x345678", "g" * 64, "0" * 65])
def test_invalid_hash_is_refused(sha256, tmp_path, weights):
    (tmp_path / "twins.pth").write_bytes(weights)
    error = fails(tmp_path / "twins.pth", "--output", tmp_path / "model", "--sha256", sha256)
    assert f"The SHA-256 must be 8 to 64 hexadecimal digits, got {sha256!r}" in error


def test_unreadable_download_is_removed_but_a_file_of_the_user_is_kept(site, cache, tmp_path):
    site.responses["/a.pth"] = Response(b"<html>", headers={"ETag": '"1"'})
    with pytest.raises(ValueError, match=rf"{site.address}/a\.pth"):
        open_checkpoint(f"{site.address}/a.pth")
    assert kept(cache) == []
    mine = cache / "hub" / "checkpoints" / "mine.pth"
    mine.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"mine\.pth"):
        open_checkpoint(str(mine))
    assert mine.is_file()


@pytest.fixture
def files(tmp_path, cache, weights) -> Path:
    """The folder of a download site with one checkpoint."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "twins.pth").write_bytes(weights)
    return folder


@pytest.mark.parametrize("sha256", ["known", "unknown"])
def test_truncated_download_is_not_kept(sha256, files, cache, weights):
    expected = digest(weights) if sha256 == "known" else None
    with serve_hub(files=files) as hub:
        hub.cut_downloads(after=1000)
        with pytest.raises(OSError, match=r"cannot be fetched: .*closed connection"):
            open_checkpoint(f"{hub.endpoint}/files/twins.pth", expected)
        assert kept(cache) == []
        assert len(open_checkpoint(f"{hub.endpoint}/files/twins.pth", expected).weights) > 100


def test_stalled_download_times_out(files, cache, monkeypatch):
    monkeypatch.setattr(downloads, "STALLED_AFTER", 0.2)
    with serve_hub(files=files) as hub:
        hub.stall_downloads(seconds=2, after=1000)
        with pytest.raises(OSError, match=r"twins\.pth cannot be fetched: .*timed out"):
            open_checkpoint(f"{hub.endpoint}/files/twins.pth")
        assert kept(cache) == []
        assert len(open_checkpoint(f"{hub.endpoint}/files/twins.pth").weights) > 100


def test_read_only_cache_is_named_but_a_complete_one_is_used(site, cache, weights):
    site.responses["/twins.pth"] = Response(weights, headers={"ETag": '"1"'})
    address = f"{site.address}/twins.pth"
    with small_file_system(cache) as set_options:
        set_options("ro")
        with pytest.raises(OSError, match=r"twins\.pth cannot be fetched: .*Read-only file system"):
            open_checkpoint(address)
        set_options("rw,size=256k")
        with pytest.raises(OSError, match=r"twins\.pth cannot be fetched: .*No space left on device"):
            open_checkpoint(address)
        assert kept(cache) == []
        set_options("rw,size=100m")
        open_checkpoint(address)
        set_options("ro")
        assert len(open_checkpoint(address).weights) > 100
    assert urlsplit(address).path == site.requests[-1][0]


def test_missing_url_is_named(site, cache):
    with pytest.raises(OSError, match=r"other\.pth cannot be fetched: HTTP status 404"):
        open_checkpoint(f"{site.address}/other.pth")
    site.close()
    with pytest.raises(OSError, match=r"cannot be fetched: .*refused"):
        open_checkpoint(f"{site.address}/twins.pth")
