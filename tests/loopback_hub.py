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
"""A Hub on loopback for the real huggingface_hub client: it serves the folders it was given, to be read."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub(ThreadingHTTPServer):
    """Models by their id, each a folder of files at one commit."""

    def __init__(self, models: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), HubRequestHandler)
        self.models = models

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """The variables with which a new process uses this Hub, and a cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }


class HubRequestHandler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        repo_id = next((repo_id for repo_id in self.server.models if f"/{repo_id}/" in f"{path}/"), None)
        if repo_id is None:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        folder = self.server.models[repo_id]
        if path.startswith(f"/{repo_id}/resolve/"):
            file = folder.joinpath(*path.removeprefix(f"/{repo_id}/resolve/").split("/")[1:])
            if not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body)
            content = file.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return self.send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, with_body)
        files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
        if path.startswith(f"/api/models/{repo_id}/tree/"):
            entries = [
                {"type": "file", "path": file, "size": (folder / file).stat().st_size, "oid": COMMIT} for file in files
            ]
            return self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, with_body)
        info = {
            "_id": COMMIT,
            "id": repo_id,
            "modelId": repo_id,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "siblings": [{"rfilename": file} for file in files],
        }
        return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)

    def send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing: the tests' output is pytest's."""


@contextmanager
def serve_models(models: dict[str, Path]) -> Iterator[LoopbackHub]:
    with LoopbackHub(models) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
