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
"""Downloads files to a cache, and asks the server each time whether a file has changed."""

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub.utils import httpx

from hf_twins._utils.files import locked, remove, write_json
from hf_twins._utils.progress import progress_bar
from hf_twins.configuration_twins import WEIGHTS_SUFFIXES


# Timeout in seconds for a download that receives no data.
STALLED_AFTER = 30
# Record of the file that was downloaded from a URL, in the cache folder of the URL.
RECORD_NAME = "download.json"
# Prefix of folders for incomplete downloads.
PARTIAL = ".partial-"
# URL parameters that identify files. All others may be signatures, tokens or passwords.
PUBLIC_PARAMETERS = ("dl", "download", "export", "id", "raw", "ref", "rev", "revision", "version", "versionid")
# HTTP statuses of temporary server errors, as opposed to missing files.
TEMPORARY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class UnreachableError(Exception):
    """A server does not answer, or is unavailable."""


@dataclass(frozen=True)
class KeptFile:
    """A cached file of a URL.

    Args:
        path: path in the cache.
        record: `file` and `sha256`, when it was `fetched`, and the server's version of it, `etag` and `last_modified`.
    """

    path: Path
    record: dict[str, Any]


def is_address(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def public_address(address: str) -> str:
    """A URL without possible secrets: user name and password, fragment, and all but a few parameters."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise ValueError(f"The URL is not valid: {error}.") from error
    path = re.sub(r";[^/]*", ";...", parts.path)
    parameters = []
    for parameter in parts.query.split("&") if parts.query else []:
        name, _, value = parameter.partition("=")
        if not value:
            # A parameter without a name may be a token.
            name = ""
        parameters.append(parameter if name.lower() in PUBLIC_PARAMETERS else f"{name}=..." if name else "...")
    query = f"?{'&'.join(parameters)}" if parameters else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}{query}"


def download(address: str, sha256: str | None) -> Path:
    """Download the current file of a URL to PyTorch's checkpoint folder (`TORCH_HOME`), atomically.

    A cached file is fetched again if its ETag or modification time on the server differs. If the cached file has the
    required hash, the server is not asked. If the server does not answer, the cached file is used, and a note is
    printed.

    Args:
        address: http or https URL; a user name and password in it are sent to the server.
        sha256: first digits of the expected SHA-256, in lower case; None if unknown.

    Raises:
        ValueError: if the file has another hash.
        OSError: if the file cannot be fetched or saved.
    """
    shown = public_address(address)
    folder = cache_folder(address)
    kept = read_kept(folder)
    if kept is not None and sha256 is not None and kept.record["sha256"].startswith(sha256):
        return kept.path
    try:
        return fetch(address, folder, kept, sha256)
    except UnreachableError as error:
        if kept is None:
            raise OSError(f"{shown} cannot be fetched: {error}.") from error
        if sha256 is not None:
            raise OSError(f"{shown} cannot be fetched, and the cached file has another hash: {error}.") from error
        print(
            f"note      {shown} cannot be checked for changes ({error}): using the file downloaded on "
            f"{kept.record['fetched']}, with the SHA-256 {kept.record['sha256']}"
        )
        return kept.path
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        # The client's message may contain the full URL, with secrets.
        reason = " ".join(str(error).replace(address, shown).split()) or type(error).__name__
        raise OSError(f"{shown} cannot be fetched: {reason}.") from error


def fetch(address: str, folder: Path, kept: KeptFile | None, sha256: str | None) -> Path:
    headers = {"Accept-Encoding": "identity"}
    for header, field in (("If-None-Match", "etag"), ("If-Modified-Since", "last_modified")):
        if kept is not None and kept.record[field]:
            headers[header] = kept.record[field]
    with httpx.Client(follow_redirects=True, timeout=STALLED_AFTER) as client:
        request = client.build_request("GET", address, headers=headers)
        try:
            response = client.send(request, stream=True)
        except httpx.TransportError as error:
            raise UnreachableError(str(error) or type(error).__name__) from error
        try:
            status = f"HTTP status {response.status_code} {response.reason_phrase}".strip()
            if response.status_code in TEMPORARY_STATUSES:
                raise UnreachableError(status)
            if response.status_code == httpx.codes.NOT_MODIFIED and kept is not None:
                return kept.path
            if response.status_code != httpx.codes.OK:
                raise OSError(status)
            return keep(response, file_name(address, response), folder, public_address(address), sha256)
        finally:
            response.close()


def keep(response: Any, name: str, folder: Path, shown: str, sha256: str | None) -> Path:
    """Write a response's body to a folder named by its hash, then the URL's record; remove the previous file."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PARTIAL}*"):
        # Remove incomplete downloads of killed processes.
        with locked(left) as is_left:
            if is_left:
                remove(left)
    digest = hashlib.sha256()
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL, ignore_cleanup_errors=True) as partial,
        locked(Path(partial)),
    ):
        size = response.headers.get("Content-Length")
        with (
            Path(partial, name).open("wb") as file,
            progress_bar(total=int(size) if size else None, unit="B", unit_scale=True, desc=name) as progress,
        ):
            for block in response.iter_bytes():
                file.write(block)
                digest.update(block)
                progress.update(len(block))
        found = digest.hexdigest()
        if sha256 is not None and not found.startswith(sha256):
            raise ValueError(
                f'{shown} is the wrong file, or was damaged on the way: its SHA-256 is {found}, expected "{sha256}".'
            )
        path = folder / found / name
        # Another process may have fetched the same file.
        path.parent.mkdir(exist_ok=True)
        Path(partial, name).replace(path)
    record = {
        "file": name,
        "sha256": found,
        "etag": response.headers.get("ETag"),
        "last_modified": response.headers.get("Last-Modified"),
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / RECORD_NAME, record)
    for other in folder.iterdir():
        if re.fullmatch(r"[0-9a-f]{64}", other.name) and other.name != found:
            remove(other)
    return path


def forget(path: Path) -> None:
    """Remove an unreadable file that `download` returned, so that it is not used the next time."""
    remove(path.parent)


def read_kept(folder: Path) -> KeptFile | None:
    """The cached file of a URL; None if it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        path = folder / record["sha256"] / record["file"]
        if record.keys() >= {"etag", "last_modified", "fetched"} and file_sha256(path) == record["sha256"]:
            return KeptFile(path, record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def cache_folder(address: str) -> Path:
    """The cache folder of a URL, named by its hash, because the URL may be too long, or contain a token or a password."""
    return Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(address.encode()).hexdigest())


def file_name(address: str, response: Any) -> str:
    """The file name that the server gives or, without it, the last part of the URL or of the URL that it redirects to."""
    header = Message()
    header["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    names = [header.get_filename() or "", urlsplit(address).path, urlsplit(str(response.url)).path]
    names = [PurePosixPath(name.replace("\\", "/")).name for name in names]
    # The name may be invalid, or refer to another folder.
    names = [re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)[-150:] for name in names if name.strip(".")]
    return next((name for name in names if name.endswith(WEIGHTS_SUFFIXES)), names[0] if names else "checkpoint")


def file_sha256(file: str | os.PathLike) -> str:
    with Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
