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
"""The Hub that other tests use, asked by the real client."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import serve_hub, serve_models
from testing_utils import randomize, tiny_config
from transformers import AutoModelForImageClassification
from transformers.utils import hub as transformers_hub

from hf_twins import TwinsForImageClassification


# huggingface_hub 2.4 uploads in a way that httpx2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

REPO = "somebody/thing"
COMMIT = ("POST", f"/api/models/{REPO}/commit/main")
WRITE, READ, UNKNOWN = "hf_write", "hf_read", "hf_unknown"
# More than the client and the system keep in buffers: a connection can be cut while it is on its way.
LARGE = os.urandom(1 << 20) * 8


@pytest.fixture
def hub(tmp_path):
    with serve_hub(tokens={WRITE: "write", READ: "read"}) as hub, hub.in_process(tmp_path / "home", WRITE):
        yield hub


@pytest.fixture
def api(hub) -> HfApi:
    api = HfApi()
    api.create_repo(REPO)
    hub.requests.clear()
    return api


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    (folder / "weights").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A thing\n")
    (folder / "config.json").write_text("{}")
    (folder / "empty.bin").touch()
    (folder / "weights" / "model.safetensors").write_bytes(LARGE)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".gitattributes"
    }


def heads(hub, repo_type: str = "model") -> dict[str, str]:
    return {name: commit.oid for name, commit in hub.repository(REPO, repo_type).branches.items()}


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_pull_gives_what_was_pushed(hub, folder, repo_type):
    kind = {"repo_id": REPO, "repo_type": repo_type}
    url = huggingface_hub.create_repo(**kind, space_sdk="static" if repo_type == "space" else None)
    assert (url.repo_id, url.repo_type) == (REPO, repo_type)
    assert [name for name in ("model", "dataset", "space") if huggingface_hub.repo_exists(REPO, repo_type=name)] == [
        repo_type
    ]

    commit = huggingface_hub.upload_folder(**kind, folder_path=folder)
    assert heads(hub, repo_type) == {"main": commit.oid}
    assert contents(Path(huggingface_hub.snapshot_download(**kind))) == contents(folder)
    file = huggingface_hub.hf_hub_download(**kind, filename="weights/model.safetensors")
    assert Path(file).read_bytes() == LARGE
    assert Path(file).parts[-3] == commit.oid

    files = [".gitattributes", "README.md", "config.json", "empty.bin", "weights/model.safetensors"]
    assert huggingface_hub.list_repo_files(**kind) == files
    assert huggingface_hub.file_exists(**kind, filename="weights/model.safetensors")
    assert not huggingface_hub.file_exists(**kind, filename="weights/model.bin")
    assert not huggingface_hub.file_exists(**kind, filename="weights")

    huggingface_hub.delete_repo(**kind)
    assert not huggingface_hub.repo_exists(**kind)
    with pytest.raises(RepositoryNotFoundError):
        huggingface_hub.delete_repo(**kind)


def test_what_the_hub_tells_of_a_repository(api, folder):
    commit = api.upload_folder(repo_id=REPO, folder_path=folder)
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.sha, info.private) == (REPO, "somebody", commit.oid, False)
    weights = next(file for file in info.siblings if file.rfilename == "weights/model.safetensors")
    assert (weights.size, weights.lfs.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    config = next(file for file in info.siblings if file.rfilename == "config.json")
    # As git has it: `printf '{}' | git hash-object --stdin`.
    assert (config.size, config.blob_id, config.lfs) == (2, "9e26dfeeb6e641a33dae4961196235bdb965b21b", None)

    top = [entry.path for entry in api.list_repo_tree(REPO)]
    assert top == [".gitattributes", "README.md", "config.json", "empty.bin", "weights"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "weights")] == ["weights/model.safetensors"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))


def test_identical_content_makes_no_commit_and_is_not_sent_again(api, hub, folder):
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert [method for method, _ in hub.requests].count("PUT") == 1
    assert COMMIT in hub.requests

    hub.requests.clear()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert COMMIT not in hub.requests
    assert "PUT" not in [method for method, _ in hub.requests]

    (folder / "config.json").write_text('{"changed": true}')
    second = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert [commit.oid for commit in hub.repository(REPO).branches["main"].history()][:2] == [second.oid, first.oid]
    assert "PUT" not in [method for method, _ in hub.requests]
    old, new = (
        Path(api.hf_hub_download(REPO, "config.json", revision=commit.oid)).read_text() for commit in (first, second)
    )
    assert (old, new) == ("{}", '{"changed": true}')


def test_deletions(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    operations = [
        CommitOperationDelete("weights/"),
        CommitOperationDelete("config.json"),
        CommitOperationAdd("weights", b"A file where a folder was."),
    ]
    api.create_commit(REPO, operations, commit_message="Tidy up")
    assert api.list_repo_files(REPO) == [".gitattributes", "README.md", "empty.bin", "weights"]
    before = heads(hub)
    for gone in ("weights/", "config.json"):
        with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
            api.create_commit(REPO, [CommitOperationDelete(gone)], commit_message="Again")
    assert heads(hub) == before
    # `delete_patterns` deletes what the folder has no more.
    (folder / "empty.bin").unlink()
    api.upload_folder(repo_id=REPO, folder_path=folder, delete_patterns="*.bin", ignore_patterns="weights/*")
    assert api.list_repo_files(REPO) == [".gitattributes", "README.md", "config.json", "weights"]


def test_branches(api, hub):
    main = api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"on main")
    api.create_branch(REPO, branch="feature/one")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(REPO, branch="feature/one")
    assert status_of(error) == 409
    api.create_branch(REPO, branch="feature/one", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(REPO, branch="two", revision="nothing")

    there = {"repo_id": REPO, "revision": "feature/one"}
    branch = api.upload_file(**there, path_in_repo="file", path_or_fileobj=b"on the branch")
    assert heads(hub) == {"main": main.oid, "feature/one": branch.oid}
    assert api.model_info(**there).sha == branch.oid
    assert Path(api.hf_hub_download(**there, filename="file")).read_bytes() == b"on the branch"
    assert Path(api.hf_hub_download(REPO, "file")).read_bytes() == b"on main"
    # A commit is a revision to be read, and not one to be committed to.
    for revision in ("nothing", main.oid):
        with pytest.raises(RevisionNotFoundError):
            api.create_commit(REPO, [CommitOperationDelete("file")], commit_message="Delete", revision=revision)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "file", revision="nothing")


def test_commit_onto_what_is_no_longer_the_head_is_refused(api, hub):
    first = api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"1")
    second = api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"2", parent_commit=first.oid)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"3", parent_commit=first.oid)
    assert status_of(error) == 412
    assert heads(hub) == {"main": second.oid}


def test_create_what_exists(api):
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo(REPO)
    assert status_of(error) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert api.create_repo("mine").repo_id == "somebody/mine"


def test_without_a_token(api, hub, monkeypatch):
    commit = api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"content")
    api.create_repo("somebody/secret", private=True)
    before = heads(hub)
    monkeypatch.delenv("HF_TOKEN")
    anonymous = HfApi()
    with pytest.raises(LocalTokenNotFoundError):
        anonymous.whoami()
    with pytest.raises(HfHubHTTPError) as error:
        anonymous.create_repo("somebody/other")
    assert status_of(error) == 401
    assert Path(anonymous.hf_hub_download(REPO, "file", revision=commit.oid)).read_bytes() == b"content"
    with pytest.raises(RepositoryNotFoundError) as error:
        anonymous.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"changed")
    assert status_of(error) == 401
    # What is private looks like what does not exist.
    for repo_id in ("somebody/secret", "somebody/nothing"):
        assert not anonymous.repo_exists(repo_id)
        with pytest.raises(RepositoryNotFoundError) as error:
            anonymous.snapshot_download(repo_id)
        assert status_of(error) == 401
    for repo_id in ("somebody/secret", REPO):
        with pytest.raises(HfHubHTTPError) as error:
            anonymous.delete_repo(repo_id)
        assert status_of(error) == 401
    assert heads(hub) == before
    assert sorted(repo_id for _, repo_id in hub.repositories) == ["somebody/secret", REPO]


def test_with_a_token_that_may_only_read(api, hub):
    api.create_repo("somebody/secret", private=True)
    reader = HfApi(token=READ)
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert reader.model_info("somebody/secret").private
    assert reader.list_repo_files("somebody/secret") == [".gitattributes"]
    with pytest.raises(RepositoryNotFoundError) as error:
        reader.model_info("somebody/nothing")
    assert status_of(error) == 404
    refused = [
        lambda: reader.create_repo("somebody/other"),
        lambda: reader.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"content"),
        lambda: reader.create_branch(REPO, branch="branch"),
        lambda: reader.delete_repo(REPO),
    ]
    before = heads(hub)
    for call in refused:
        with pytest.raises(HfHubHTTPError, match="must use a write token") as error:
            call()
        assert status_of(error) == 403
    assert heads(hub) == before
    assert len(hub.repositories) == 2


def test_with_a_token_that_nobody_knows(hub):
    stranger = HfApi(token=UNKNOWN)
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
        stranger.whoami()
    assert status_of(error) == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        stranger.create_repo(REPO, exist_ok=True)
    assert status_of(error) == 401
    assert not hub.repositories


def test_metadata_of_a_card_is_checked_before_anything_is_sent(api, hub):
    for content in ("---\nlicense: [\n---\n", "---\n- a list\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=content.encode())
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"# A thing")
    assert [path for _, path in hub.requests].count("/api/validate-yaml") == 3
    assert hub.requests.count(COMMIT) == 1


def test_lfs_object_that_was_not_uploaded_is_not_committed(api, hub):
    # Another repository's does not count.
    api.create_repo("somebody/other")
    api.upload_file(repo_id="somebody/other", path_in_repo="model.safetensors", path_or_fileobj=LARGE)
    before = heads(hub)
    operation = CommitOperationAdd("model.safetensors", LARGE)
    operation._upload_mode, operation._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        api.create_commit(REPO, [operation], commit_message="Upload")
    assert heads(hub) == before
    assert COMMIT in hub.requests


def test_lfs_object_that_is_not_what_its_name_says_is_refused(api, hub):
    before = heads(hub), sorted(hub.storage.folder.iterdir())
    operation = CommitOperationAdd("model.safetensors", LARGE)
    operation.upload_info.sha256 = bytes(32)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'") as error:
        api.create_commit(REPO, [operation], commit_message="Upload")
    assert isinstance(error.value.__cause__, BadRequestError)
    assert (heads(hub), sorted(hub.storage.folder.iterdir())) == before
    assert COMMIT not in hub.requests


def test_upload_cut_once_is_resumed_by_the_client(api, hub, folder):
    hub.cut_uploads(after=len(LARGE) // 2)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert [method for method, _ in hub.requests].count("PUT") == 2
    assert contents(Path(api.snapshot_download(REPO))) == contents(folder)


def test_upload_cut_for_good_leaves_the_repository_as_it_was(api, hub, folder):
    before = heads(hub), sorted(hub.storage.folder.iterdir())
    # The first try and five more.
    hub.cut_uploads(after=len(LARGE) // 2, times=6)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'weights/model\.safetensors'") as error:
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert isinstance(error.value.__cause__, httpx2.TransportError)
    assert (heads(hub), sorted(hub.storage.folder.iterdir())) == before
    assert COMMIT not in hub.requests

    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert contents(Path(api.snapshot_download(REPO))) == contents(folder)


@pytest.mark.parametrize("after", [0, 1 << 20])
def test_commit_cut_on_its_way_is_not_made(api, hub, after):
    content = b"a line of text\n" * (1 << 17)
    before = heads(hub)
    hub.cut_uploads(after=after, pattern="/commit/")
    with pytest.raises(httpx2.TransportError):
        api.upload_file(repo_id=REPO, path_in_repo="file.txt", path_or_fileobj=content)
    assert heads(hub) == before
    # It is not the client that tries again.
    assert hub.requests.count(COMMIT) == 1

    api.upload_file(repo_id=REPO, path_in_repo="file.txt", path_or_fileobj=content)
    assert Path(api.hf_hub_download(REPO, "file.txt")).read_bytes() == content


def test_commit_whose_answer_is_lost_is_made(api, hub):
    before = heads(hub)
    hub.cut_downloads(pattern="/commit/")
    with pytest.raises(httpx2.TransportError):
        api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"content")
    after = heads(hub)
    assert after != before
    assert api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"content").oid == after["main"]


def test_download_cut_once_is_resumed_by_the_client(api, hub, monkeypatch):
    api.upload_file(repo_id=REPO, path_in_repo="model.safetensors", path_or_fileobj=LARGE)
    # The client keeps what came in whole chunks of 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    sent = []
    monkeypatch.setattr(hub.RequestHandlerClass, "send_response", record(sent, hub.RequestHandlerClass.send_response))
    hub.cut_downloads(after=len(LARGE) // 2 + 1)
    assert Path(api.hf_hub_download(REPO, "model.safetensors")).read_bytes() == LARGE
    assert sent == [200, 200, 206]


def test_download_that_stalls_is_resumed_by_the_client(api, hub, monkeypatch):
    api.upload_file(repo_id=REPO, path_in_repo="model.safetensors", path_or_fileobj=LARGE)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    sent = []
    monkeypatch.setattr(hub.RequestHandlerClass, "send_response", record(sent, hub.RequestHandlerClass.send_response))
    hub.stall_downloads(seconds=2, after=len(LARGE) // 2 + 1)
    assert Path(api.hf_hub_download(REPO, "model.safetensors")).read_bytes() == LARGE
    assert sent == [200, 200, 206]


def record(statuses: list[int], send_response):
    def recording(self, status: int, *arguments) -> None:
        statuses.append(status)
        send_response(self, status, *arguments)

    return recording


def test_download_cut_for_good_leaves_nothing_that_looks_like_a_file(api, hub, folder):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.cut_downloads(after=len(LARGE) // 2, times=6)
    with pytest.raises(httpx2.TransportError):
        api.snapshot_download(REPO)
    snapshot = Path(constants.HF_HUB_CACHE, "models--somebody--thing", "snapshots", heads(hub)["main"])
    assert not (snapshot / "weights" / "model.safetensors").exists()
    assert contents(Path(api.snapshot_download(REPO))) == contents(folder)


@pytest.mark.parametrize("status", [429, 503])
def test_hub_that_fails_is_asked_again_except_for_a_commit(api, hub, status):
    hub.fail(times=5, status=status, pattern="/preupload/")
    api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"1")
    hub.fail(status=status, pattern="/resolve/")
    assert Path(api.hf_hub_download(REPO, "file")).read_bytes() == b"1"

    before = heads(hub)
    hub.fail(times=6, status=status, pattern="/preupload/")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"2")
    assert status_of(error) == status
    hub.fail(status=status, pattern="/commit/")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"2")
    assert status_of(error) == status
    assert heads(hub) == before
    api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"2")
    assert heads(hub) != before


def test_what_this_hub_has_not_is_an_error(api, hub):
    before = heads(hub)
    for call in (
        lambda: api.upload_file(repo_id=REPO, path_in_repo="file", path_or_fileobj=b"1", create_pr=True),
        lambda: api.create_tag(REPO, tag="v1"),
        lambda: api.list_repo_refs(REPO),
    ):
        with pytest.raises(HfHubHTTPError, match="This Hub has no"):
            call()
    assert heads(hub) == before


def test_model_pushed_by_transformers_is_loaded_by_transformers(hub, tmp_path):
    model = randomize(TwinsForImageClassification(tiny_config()))
    model.push_to_hub(REPO, private=True)
    head = heads(hub)
    assert hub.repository(REPO).private
    assert huggingface_hub.list_repo_files(REPO) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    model.push_to_hub(REPO)
    assert heads(hub) == head
    with torch.no_grad():
        model.classifier.bias += 1
    model.push_to_hub(REPO, revision="biased")
    assert heads(hub).keys() == {"main", "biased"}

    for revision, shift in (("main", 0), ("biased", 1)):
        loaded = AutoModelForImageClassification.from_pretrained(REPO, revision=revision)
        assert type(loaded) is TwinsForImageClassification
        torch.testing.assert_close(loaded.classifier.bias, model.classifier.bias - 1 + shift)
    # What is in the cache is loaded without asking who wants it.
    with hub.in_process(tmp_path / "another home"), pytest.raises(OSError, match="is not a valid model identifier"):
        AutoModelForImageClassification.from_pretrained(REPO)


def test_process_is_as_before_when_the_hub_is_gone(folder, tmp_path):
    def state():
        endpoints = huggingface_hub.hf_api.api.endpoint, transformers_hub.hf_api().endpoint
        return vars(constants).copy(), dict(os.environ), endpoints

    before = state()
    with serve_models({REPO: folder}) as hub:
        with pytest.raises(OfflineModeIsEnabled):
            HfApi(endpoint=hub.endpoint).model_info(REPO)
        with hub.in_process(tmp_path / "home"):
            assert contents(Path(huggingface_hub.snapshot_download(REPO))) == contents(folder)
            assert state()[2] == (hub.endpoint, hub.endpoint)
        assert state() == before
        with pytest.raises(OfflineModeIsEnabled):
            huggingface_hub.model_info(REPO)


def test_other_process_uses_the_hub(folder, tmp_path):
    program = "import huggingface_hub, sys; print(huggingface_hub.upload_folder(repo_id='somebody/new', folder_path=sys.argv[1]).oid)"
    with serve_hub(tokens={WRITE: "write"}) as hub:
        hub.add_repository("somebody/new", private=True)
        process = subprocess.run(
            [sys.executable, "-c", program, folder],
            env=os.environ | hub.environment(tmp_path / "home", WRITE),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        files = hub.repository("somebody/new").branches["main"].files
        assert process.stdout.strip() == hub.repository("somebody/new").branches["main"].oid
    assert set(files) == {".gitattributes", *contents(folder)}


def test_storage_is_where_it_was_wanted(folder, tmp_path):
    with serve_hub({REPO: folder}, storage=tmp_path / "storage"):
        pass
    stored = {file.name: file.read_bytes() for file in (tmp_path / "storage").iterdir()}
    assert stored == {hashlib.sha256(content).hexdigest(): content for content in contents(folder).values()}


def test_files_of_a_folder(folder, tmp_path):
    (tmp_path / "beside").write_text("not to be served")
    with serve_hub(files=folder) as hub, hub.in_process(tmp_path / "home"):
        client = huggingface_hub.get_session()
        files = f"{hub.endpoint}/files"
        whole = client.get(f"{files}/README.md")
        assert whole.text == (folder / "README.md").read_text()
        part = client.get(f"{files}/README.md", headers={"Range": "bytes=4-10"})
        assert (part.status_code, part.text) == (206, "license")
        assert part.headers["Content-Range"] == f"bytes 4-10/{len(whole.content)}"
        head = client.head(f"{files}/README.md")
        assert (head.headers["Content-Length"], head.content) == (str(len(whole.content)), b"")
        assert [client.get(f"{files}/{name}").status_code for name in ("nothing", "..%2Fbeside", "weights")] == [
            404
        ] * 3
        hub.cut_downloads(after=4)
        with pytest.raises(httpx2.TransportError):
            client.get(f"{files}/README.md")
