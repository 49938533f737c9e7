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
"""A Hub on loopback for the real huggingface_hub client, to push to and pull from, which can also simulate failures.

    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path, token="hf_write"):
        model.push_to_hub("somebody/twins-tiny")

It answers like huggingface.co does to a client with Xet disabled. Requests that it does not support (tags, copies of
files, listings of commits and branches) are answered with an error, never with a false success.
"""

import base64
import hashlib
import io
import json
import os
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _detect_agent, _http
from transformers.utils import hub as transformers_hub


BLOCK = 1 << 20
# Patterns in the Hub's own .gitattributes, as far as models, data and demos need them.
LFS_SUFFIXES = (".arrow", ".bin", ".gz", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors", ".zip")
LFS_SIZE = 10 * BLOCK
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


class HubError(Exception):
    """The Hub's answer when it refuses a request."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None, **content: Any):
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.answer = Answer(
            json.dumps({"error": message, **content}).encode(),
            {"Content-Type": "application/json"} | {name: value for name, value in headers.items() if value},
            status,
        )


@dataclass
class Answer:
    content: bytes | Path
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200

    def open(self) -> BinaryIO:
        return self.content.open("rb") if isinstance(self.content, Path) else io.BytesIO(self.content)


@dataclass(frozen=True)
class Blob:
    """A file in a commit: the path of its content, and its ids in git and, if stored there, in LFS."""

    content: Path
    size: int
    git_oid: str
    lfs_oid: str | None = None

    @property
    def oid(self) -> str:
        return self.lfs_oid or self.git_oid

    def lfs(self) -> dict[str, Any] | None:
        if self.lfs_oid is None:
            return None
        pointer_size = len(LFS_POINTER.format(self.lfs_oid, self.size))
        # In listings of a tree, the key is "oid", and in information on a repository, it is "sha256".
        return {"oid": self.lfs_oid, "sha256": self.lfs_oid, "size": self.size, "pointerSize": pointer_size}


@dataclass(frozen=True)
class Commit:
    files: dict[str, Blob]
    title: str
    parent: "Commit | None" = None
    # The hash is random, so that caches that outlive a Hub do not mistake commits of another one for its own.
    oid: str = field(default_factory=lambda: secrets.token_hex(20))

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    repo_type: str
    repo_id: str
    private: bool
    branches: dict[str, Commit]
    # The Hub stores objects separately for each repository: an object in another repository must be uploaded again.
    lfs_objects: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    def branch(self, name: str) -> Commit:
        if name not in self.branches:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return self.branches[name]

    def revision(self, name: str) -> Commit:
        commits = (commit for head in self.branches.values() for commit in head.history())
        return next((commit for commit in commits if commit.oid == name), None) or self.branch(name)


class Storage:
    """Stores contents in files named by their SHA-256, which are written and read in blocks."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def add(self, content: BinaryIO, sha256: str | None = None) -> Path:
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="incoming-", delete=False) as file:
            try:
                while block := content.read(BLOCK):
                    digest.update(block)
                    file.write(block)
                if sha256 not in (None, digest.hexdigest()):
                    raise HubError(400, "The provided 'x-amz-content-sha256' header does not match what was computed.")
            except BaseException:
                Path(file.name).unlink()
                raise
        return Path(file.name).replace(self.folder / digest.hexdigest())

    def regular_blob(self, content: bytes) -> Blob:
        return Blob(self.add(io.BytesIO(content)), len(content), git_oid(content))

    def lfs_blob(self, sha256: str) -> Blob:
        content = self.folder / sha256
        size = content.stat().st_size
        return Blob(content, size, git_oid(LFS_POINTER.format(sha256, size).encode()), sha256)

    def blob_of(self, file: Path) -> Blob:
        with file.open("rb") as content:
            if is_lfs(file.name, file.stat().st_size, content.read(512)):
                content.seek(0)
                return self.lfs_blob(self.add(content).name)
        return self.regular_blob(file.read_bytes())


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample)


@dataclass
class Fault:
    kind: str
    times: int
    pattern: str
    after: int = 0
    status: int = 503
    seconds: float = 0


class LoopbackHub(ThreadingHTTPServer):
    """A Hub with its repositories, permissions, recorded requests and simulated failures.

    Without `tokens`, everybody may do everything. With tokens (`{"hf_...": "write" or "read"}`, all of one user),
    changes need a write token, and seeing that a private repository exists needs any token.
    """

    # The client requests each file of a snapshot in a separate thread, and a connection beyond this queue waits a
    # second.
    request_queue_size = 64

    def __init__(self, folder: Path, tokens: dict[str, str] | None = None, files: Path | None = None):
        super().__init__(("127.0.0.1", 0), HubRequestHandler)
        self.user = "somebody"
        self.tokens = tokens or {}
        self.files = files
        self.storage = Storage(folder)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, tuple[Repository, str]] = {}
        # Repositories of other users, who get pull requests.
        self.read_only: set[str] = set()
        self.faults: list[Fault] = []
        # The method and path, without the query, of every request, in the order of arrival.
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        if (repo_type, repo_id) not in self.repositories:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repositories[repo_type, repo_id]

    def add_repository(
        self, repo_id: str, folder: Path | None = None, repo_type: str = "model", private: bool = False
    ) -> Repository:
        """Add a repository with one commit, which has the files of `folder`, or is that of a new repository on the Hub."""
        if folder is None:
            files = {".gitattributes": self.storage.regular_blob(GIT_ATTRIBUTES)}
        else:
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): self.storage.blob_of(path) for path in paths}
        repository = Repository(repo_type, repo_id, private, {"main": Commit(files, "initial commit")})
        repository.lfs_objects.update(blob.lfs_oid for blob in files.values() if blob.lfs_oid)
        self.repositories[repo_type, repo_id] = repository
        return repository

    def cut_uploads(self, after: int = 0, times: int = 1, pattern: str = "^/lfs-upload/|/commit/") -> None:
        """Close the connection after receiving `after` bytes of a longer request body, for the next `times` such requests.

        Only paths that match `pattern` are affected, by default uploads to LFS and commits.
        """
        self.faults.append(Fault("upload", times, pattern, after=after))

    def cut_downloads(self, after: int = 0, times: int = 1, pattern: str = "/resolve/|^/files/") -> None:
        """Close the connection after sending `after` bytes of a longer response body, for the next `times` such responses.

        The headers are sent. With the pattern "/commit/", the commit is made, but the client does not get the answer.
        """
        self.faults.append(Fault("download", times, pattern, after=after))

    def stall_downloads(
        self, seconds: float, after: int = 0, times: int = 1, pattern: str = "/resolve/|^/files/"
    ) -> None:
        """Pause for some seconds after sending `after` bytes of a longer response body, for the next `times` responses."""
        self.faults.append(Fault("stall", times, pattern, after=after, seconds=seconds))

    def fail(self, times: int = 1, status: int = 503, pattern: str = "") -> None:
        """Answer the next `times` requests whose path matches `pattern` with `status`, without processing them."""
        self.faults.append(Fault("fail", times, pattern, status=status))

    def next_fault(self, kind: str, path: str, length: float = float("inf")) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.kind == kind and fault.times and fault.after < length and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment variables for a new process to use this Hub, with `token`, and a separate cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def stop(self) -> None:
        """Refuse connections from now on."""
        # A socket closed while its thread waits for connections would still accept one, and reset it.
        self.shutdown()
        self.server_close()

    @contextmanager
    def in_process(self, home: Path, token: str | None = None) -> Iterator[None]:
        """Make huggingface_hub and transformers in this process use this Hub, and retry without waiting.

        The libraries have already read the environment when they were imported, so their variables must be changed,
        too. Code from the Hub stays in the old cache, from which it has been imported.
        """
        read_at_import = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(home, token).items():
                patch.setenv(name, value)
            for name, value in read_at_import.items():
                patch.setattr(constants, name, value)
            # The functions of huggingface_hub are methods of an object with the endpoint, and transformers has another
            # one.
            patch.setattr(hf_api.api, "endpoint", self.endpoint)
            patch.setattr(transformers_hub, "_hf_api", None)
            # Otherwise, the first test would request it.
            patch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
            for module in (_http, file_download):
                patch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
            # The client read its proxies from the environment when it was created, and keeps connections open.
            huggingface_hub.close_session()
            try:
                yield
            finally:
                huggingface_hub.close_session()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors of this server, but not disconnected clients."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class RequestBody(io.RawIOBase):
    """The body of a request, up to its end or to where the connection must be closed."""

    def __init__(self, source: BinaryIO, length: int, cut_after: int):
        self.source = source
        self.left = length
        self.until_cut = cut_after

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            return 0
        block = self.source.read(min(len(buffer), self.left, self.until_cut))
        if not block:
            raise ConnectionError("the connection was cut, or the client went away")
        buffer[: len(block)] = block
        self.left -= len(block)
        self.until_cut -= len(block)
        return len(block)


API = "/api/(?P<repo_type>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
PAGE = "/(?:(?P<repo_type>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"
# The HTTP method, the path, whether a write token is required, and the method of HubRequestHandler that answers.
ROUTES = [
    ("GET", "/api/whoami-v2", False, "whoami"),
    ("POST", "/api/validate-yaml", False, "validate_card"),
    ("POST", "/api/repos/create", True, "create_repository"),
    ("DELETE", "/api/repos/delete", True, "delete_repository"),
    ("GET", f"{API}(?:/revision/(?P<revision>[^/]+))?", False, "info"),
    ("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", False, "tree"),
    ("POST", f"{API}/branch/(?P<branch>[^/]+)", True, "create_branch"),
    ("POST", f"{API}/preupload/(?P<revision>[^/]+)", True, "preupload"),
    ("POST", f"{API}/commit/(?P<revision>[^/]+)", True, "commit"),
    ("POST", f"{PAGE}\\.git/info/lfs/objects/batch", True, "lfs_batch"),
    ("POST", f"{PAGE}\\.git/info/lfs/objects/verify", True, "lfs_verify"),
    # No token is required, because the name is secret, like a signed storage URL.
    ("PUT", "/lfs-upload/(?P<name>[^/]+)", False, "lfs_upload"),
    ("GET", f"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", False, "resolve"),
    ("GET", "/files/(?P<name>[^/]+)", False, "file"),
]


class HubRequestHandler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"
    # Headers and body are sent separately, and without this option, each body would wait for an acknowledgment.
    disable_nagle_algorithm = True

    def respond(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = dict(parse_qsl(url.query))
        self.server.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length", 0))
        cut = self.server.next_fault("upload", path, length)
        self.body = io.BufferedReader(RequestBody(self.rfile, length, cut.after if cut else length), BLOCK)
        try:
            answer = self.answer(url.path)
            while self.body.read(BLOCK):
                # An unread body would be mistaken for the next request.
                pass
            self.send(answer, path)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815  # as http.server calls them

    def answer(self, path: str) -> Answer:
        try:
            if "Transfer-Encoding" in self.headers:
                self.close_connection = True
                raise HubError(411, "This Hub takes no bodies in chunks, as huggingface_hub sends none")
            if fault := self.server.next_fault("fail", unquote(path)):
                raise HubError(fault.status, "The test wants this to fail")
            answer = self.dispatch(path)
        except HubError as error:
            return error.answer
        if isinstance(answer, Answer):
            return answer
        return Answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def dispatch(self, path: str) -> Any:
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, writes, name in ROUTES:
            if route_method == method and (match := re.fullmatch(pattern, path)):
                arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "repo_id" in arguments:
                    arguments["repository"] = self.visible_repository(
                        arguments.pop("repo_id"), arguments.pop("repo_type", "model")
                    )
                if writes:
                    self.require_write_token()
                return getattr(self, name)(**arguments)
        raise HubError(404, f"This Hub has no {self.command} {path}")

    def send(self, answer: Answer, path: str) -> None:
        with answer.open() as content:
            size = content.seek(0, os.SEEK_END)
            start, stop, status, headers = 0, size, answer.status, answer.headers
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if status == 200 and wanted and int(wanted[1]) < size:
                start, stop, status = int(wanted[1]), min(int(wanted[2] or size) + 1, size), 206
                headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(stop - start)}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                cut = self.server.next_fault("download", path, stop - start)
                stall = self.server.next_fault("stall", path, stop - start)
                content.seek(start)
                if stall:
                    self.send_content(content, start + stall.after)
                    time.sleep(stall.seconds)
                self.send_content(content, start + cut.after if cut else stop)
                if cut:
                    raise ConnectionError("the connection was cut")

    def send_content(self, content: BinaryIO, stop: int) -> None:
        while block := content.read(min(BLOCK, stop - content.tell())):
            self.wfile.write(block)

    def role(self) -> str | None:
        if not self.server.tokens:
            return "write"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.tokens.get(token)

    def require_write_token(self) -> None:
        role = self.role()
        if role is None:
            # The real Hub does not send this code: for https URLs, the client assumes it for every 401 about a
            # repository.
            code = "RepoNotFound" if not self.path.startswith("/api/repos/") else None
            raise HubError(401, "Invalid username or password.", code)
        if role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")

    def require_own_repository(self, repo_id: str) -> None:
        if repo_id in self.server.read_only:
            raise HubError(403, "Forbidden: you do not have write access to this repository.")

    def visible_repository(self, repo_id: str, repo_type: str) -> Repository:
        repository = self.server.repositories.get((repo_type, repo_id))
        if self.role() is None and (repository is None or repository.private):
            # The existence of private repositories must not be revealed.
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        return self.server.repository(repo_id, repo_type)

    def json(self) -> Any:
        return json.load(self.body)

    def whoami(self) -> Any:
        role = self.role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        return {
            "type": "user",
            "name": self.server.user,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": role, "role": role}},
        }

    def validate_card(self) -> Any:
        card = self.json()
        card_class = huggingface_hub.ModelCard if card["repoType"] == "model" else huggingface_hub.RepoCard
        try:
            metadata = card_class(card["content"]).data.to_dict()
        except (ValueError, yaml.YAMLError) as error:
            raise HubError(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def named_repository(self) -> tuple[str, str, dict[str, Any]]:
        wanted = self.json()
        return (
            f"{wanted.get('organization') or self.server.user}/{wanted['name']}",
            wanted.get("type", "model"),
            wanted,
        )

    def create_repository(self) -> Any:
        repo_id, repo_type, wanted = self.named_repository()
        self.require_own_repository(repo_id)
        with self.server.lock:
            if repository := self.server.repositories.get((repo_type, repo_id)):
                url = f"{self.server.endpoint}/{repository.url}"
                raise HubError(409, f"You already created this {repo_type} repo: {repo_id}", url=url)
            private = wanted.get("visibility") == "private"
            repository = self.server.add_repository(repo_id, repo_type=repo_type, private=private)
        return {"url": f"{self.server.endpoint}/{repository.url}", "name": repo_id, "private": private}

    def delete_repository(self) -> Any:
        repo_id, repo_type, _ = self.named_repository()
        with self.server.lock:
            self.server.repository(repo_id, repo_type)
            del self.server.repositories[repo_type, repo_id]
        return {}

    def info(self, repository: Repository, revision: str = "main") -> Any:
        commit = repository.revision(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if self.query.get("blobs") == "true":
            for sibling in siblings:
                blob = commit.files[sibling["rfilename"]]
                sibling |= {"size": blob.size, "blobId": blob.git_oid, "lfs": blob.lfs()}
        return {
            "id": repository.repo_id,
            "author": repository.repo_id.split("/")[0],
            "sha": commit.oid,
            "private": repository.private,
            "tags": [],
            "siblings": siblings,
        }

    def tree(self, repository: Repository, revision: str, path: str = "") -> Any:
        commit = repository.revision(revision)
        folder = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in sorted(commit.files.items()):
            if name.startswith(folder):
                parts = name.removeprefix(folder).split("/")
                for depth in range(1, len(parts)):
                    parent = folder + "/".join(parts[:depth])
                    entries[parent] = {"type": "directory", "path": parent, "size": 0, "oid": commit.oid}
                entries[name] = {"type": "file", "path": name, "size": blob.size, "oid": blob.git_oid}
                if blob.lfs_oid is not None:
                    entries[name]["lfs"] = blob.lfs()
        if path and not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", commit.oid)
        everything = self.query.get("recursive") == "true"
        return [entry for name, entry in entries.items() if everything or "/" not in name.removeprefix(folder)]

    def create_branch(self, repository: Repository, branch: str) -> Any:
        start = repository.revision(self.json().get("startingPoint", "main"))
        with self.server.lock:
            if branch in repository.branches:
                raise HubError(409, f"Reference already exists: refs/heads/{branch}")
            repository.branches[branch] = start
        return {}

    def preupload(self, repository: Repository, revision: str) -> Any:
        known = repository.revision(revision).files
        files = []
        for file in self.json()["files"]:
            path = file["path"]
            mode = "lfs" if is_lfs(path, file["size"], base64.b64decode(file["sample"])) else "regular"
            oid = known[path].oid if path in known else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def lfs_batch(self, repository: Repository) -> Any:
        objects = self.json()["objects"]
        for wanted in objects:
            if wanted["oid"] not in repository.lfs_objects:
                name = secrets.token_urlsafe()
                self.server.uploads[name] = (repository, wanted["oid"])
                verify = f"{self.server.endpoint}/{repository.url}.git/info/lfs/objects/verify"
                upload = f"{self.server.endpoint}/lfs-upload/{name}"
                wanted["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, name: str) -> Any:
        if name not in self.server.uploads:
            raise HubError(403, "Access Denied")
        repository, oid = self.server.uploads[name]
        self.server.storage.add(self.body, oid)
        repository.lfs_objects.add(oid)
        return Answer(b"")

    def lfs_verify(self, repository: Repository) -> Any:
        self.require_lfs_object(repository, self.json()["oid"], 404)
        return {}

    def require_lfs_object(self, repository: Repository, oid: str, status: int, path: str = "") -> None:
        if oid not in repository.lfs_objects:
            message = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
            raise HubError(status, f"{message} Offending file: {path or oid}")

    def commit(self, repository: Repository, revision: str) -> Any:
        if "create_pr" not in self.query:
            self.require_own_repository(repository.repo_id)
        header = json.loads(self.body.readline())["value"]
        changes = [self.change(repository, **json.loads(line)) for line in self.body]
        with self.server.lock:
            head = repository.branch(revision)
            if not head.oid.startswith(header.get("parentCommit", "")):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for path, blob in changes:
                apply_change(files, path, blob, head)
            commit = Commit(files, header["summary"], head)
            page = f"{self.server.endpoint}/{repository.url}"
            answer = {
                "success": True,
                "commitOid": commit.oid,
                "commitUrl": f"{page}/commit/{commit.oid}",
                "hookOutput": "",
            }
            if "create_pr" in self.query:
                number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
                revision = f"refs/pr/{number}"
                answer["pullRequestUrl"] = f"{page}/discussions/{number}"
            repository.branches[revision] = commit
        return answer

    def change(self, repository: Repository, key: str, value: dict[str, Any]) -> tuple[str, Blob | None]:
        """Parse a change of a commit: a path and its new content. A path with a trailing slash is a folder to delete."""
        path = value["path"]
        if key == "file":
            return path, self.server.storage.regular_blob(base64.b64decode(value["content"]))
        if key == "lfsFile":
            self.require_lfs_object(repository, value["oid"], 400, path)
            return path, self.server.storage.lfs_blob(value["oid"])
        if key in ("deletedFile", "deletedFolder"):
            return path.rstrip("/") + ("/" if key == "deletedFolder" else ""), None
        raise HubError(400, f"This Hub has no operation {key}")

    def resolve(self, repository: Repository, revision: str, path: str) -> Answer:
        commit = repository.revision(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.lfs_oid is not None:
            headers |= {"X-Linked-Etag": f'"{blob.lfs_oid}"', "X-Linked-Size": str(blob.size)}
        return Answer(blob.content, headers)

    def file(self, name: str) -> Answer:
        folder = self.server.files
        if folder is None or name not in {file.name for file in folder.iterdir() if file.is_file()}:
            raise HubError(404, f"{name} is not here")
        return Answer(folder / name, {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"})

    def log_message(self, *args: object) -> None:
        """Log nothing, to keep the output of pytest readable."""


def apply_change(files: dict[str, Blob], path: str, blob: Blob | None, head: Commit) -> None:
    if blob is not None:
        files[path] = blob
        return
    deleted = [name for name in files if (name.startswith(path) if path.endswith("/") else name == path)]
    if not deleted:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", head.oid)
    for name in deleted:
        del files[name]


@contextmanager
def serve_hub(
    models: dict[str, Path] | None = None,
    *,
    tokens: dict[str, str] | None = None,
    files: Path | None = None,
    storage: Path | None = None,
) -> Iterator[LoopbackHub]:
    """Serve a Hub that has `models` (a folder each), knows `tokens`, and has the `files` of a folder at /files/.

    Uploads are stored in the folder `storage`, or in one that is removed at the end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="loopback-hub-", ignore_cleanup_errors=True) as temporary,
        LoopbackHub(storage or Path(temporary), tokens, files) as hub,
    ):
        for repo_id, folder in (models or {}).items():
            hub.add_repository(repo_id, folder)
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def serve_models(models: dict[str, Path]) -> AbstractContextManager[LoopbackHub]:
    """Serve a Hub without access control, with the given model folders."""
    return serve_hub(models)
