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
"""Where checkpoints come from: a file, a folder, an address, a name in the table of published ones, a repository of timm's."""

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import CONFIG_NAME, cached_file

from hf_twins.checkpoints import (
    convert_timm_config,
    convert_timm_preprocessing,
    find_original_checkpoint,
    is_timm_config,
    published_checkpoints,
    read_checkpoint,
    unwrap_weights,
)


# Seconds in which nothing comes, after which a download is given up. PyTorch's own waits for ever.
STALLED_AFTER = 30


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read.

    Args:
        origin: what it is called where it is from: an address, a repository, the name of a file.
        file: where its weights lie on this machine.
        sha256: of that file.
        weights: by their names.
        meta: what OpenMMLab's toolboxes save beside the weights.
        left_out: names of what is among the weights and no part of the model, as those of a loss.
        timm_config: fields of a `TwinsConfig`, from timm's `config.json`.
        preprocessing: fields of an image processor, from there too.
        published: its entry in the table of published checkpoints.
    """

    origin: str
    file: Path
    sha256: str
    weights: Mapping[str, torch.Tensor]
    meta: Mapping[str, Any]
    left_out: Sequence[str] = ()
    timm_config: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None
    published: Mapping[str, Any] | None = None


def open_checkpoint(source: str, sha256: str | None = None, averaged: bool = False) -> Checkpoint:
    """Find, fetch, check and read a checkpoint; no code in it is run.

    Args:
        source: path of a file or a folder, URL, name of a published checkpoint, or id of a repository of timm's.
        sha256: what the file's SHA-256 must be or begin with. Those of published checkpoints are known.
        averaged: whether to take the averaged weights (EMA) where the file holds them beside those of the last step.

    Raises:
        ValueError: if there is no such source, its hash is another, or it is no file of weights.
        OSError: if it cannot be fetched or read.
    """
    published = find_published(source)
    if published is not None:
        sha256 = sha256 or published["sha256_prefix"]
    timm_config = preprocessing = None
    if urlsplit(address := published["url"] if published and not Path(source).exists() else source).scheme in (
        "http",
        "https",
    ):
        origin, file = address, download(address, sha256)
    elif Path(source).is_file():
        origin, file = Path(source).name, Path(source)
    else:
        try:
            origin, file, config = source, find_in_folder_or_repository(source), read_config(source)
        except httpx.TransportError as error:
            # No OSError, and transformers lets it through.
            raise OSError(f"{source} cannot be fetched: {one_line(error)}.") from error
        if config is not None:
            timm_config, preprocessing = convert_timm_config(config), convert_timm_preprocessing(config)
    digest = file_sha256(file)
    if sha256 is not None and not digest.startswith(sha256.lower()):
        raise ValueError(f"{file} must have the SHA-256 {sha256}, got {digest}: it is another file, or damaged.")
    try:
        content = read_checkpoint(file)
    except ValueError:
        if file.is_relative_to(torch.hub.get_dir()):
            # Not to be taken for a download that is whole the next time.
            file.unlink()
        raise
    weights, left_out = unwrap_weights(content, str(file), averaged)
    return Checkpoint(
        origin=origin,
        file=file,
        sha256=digest,
        weights=weights,
        # Other scripts may call anything "meta".
        meta=meta if isinstance(meta := content.get("meta"), Mapping) else {},
        left_out=left_out,
        timm_config=timm_config,
        preprocessing=preprocessing,
        published=published,
    )


def find_published(source: str) -> dict[str, Any] | None:
    """The table's entry of a name, an address, or a file that is called as the published one is."""
    for name, entry in published_checkpoints().items():
        if source in (name, entry["url"]) or Path(source).name == Path(urlsplit(entry["url"]).path).name:
            return entry
    return None


def find_in_folder_or_repository(source: str) -> Path:
    if not Path(source).is_dir():
        try:
            validate_repo_id(source)
        except ValueError:
            is_repository = False
        else:
            is_repository = source.count("/") == 1
        if not is_repository:
            raise ValueError(
                f"{source} must be a file, a folder, a URL, a repository as timm/twins_svt_small.in1k, or one of "
                f"{', '.join(published_checkpoints())}."
            )
    file = find_original_checkpoint(source)
    if file is None:
        raise ValueError(
            f"{source} must have timm's {CONFIG_NAME} and weights, or be a folder with one file of weights and no {CONFIG_NAME}."
        )
    return file


def read_config(source: str) -> dict[str, Any] | None:
    """timm's `config.json` in a folder or repository."""
    file = cached_file(source, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    config = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    return config if is_timm_config(config) else None


def download(url: str, sha256: str | None) -> Path:
    """The file at an address, in PyTorch's cache of checkpoints (`TORCH_HOME`), whole; with a progress bar."""
    file = cache_path(url)
    if file.is_file() and (sha256 is None or file_sha256(file).startswith(sha256.lower())):
        return file
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_AFTER)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=sha256.lower() if sha256 else None)
    except RuntimeError as error:
        raise ValueError(f"{url} is not the file it must be, or came in damaged: {error}.") from error
    except OSError as error:
        raise OSError(f"{url} cannot be fetched: {error}.") from error
    finally:
        socket.setdefaulttimeout(before)
    return file


def cache_path(url: str) -> Path:
    """Where the file at an address is kept: under its own name, in a folder named by a hash of the whole address.

    The name alone is not enough: `pytorch_model.bin` is what many repositories call their weights. The address itself may
    hold a token or a password, so it is not written out.
    """
    name = Path(urlsplit(url).path).name
    # An address may end in a slash, or in "..", which would lead out of the folder.
    name = name if name not in ("", "..") else "checkpoint"
    return Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(url.encode()).hexdigest(), name)


def file_sha256(file: str | os.PathLike) -> str:
    with Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def one_line(error: Exception) -> str:
    """What an error says; the Hub's client and transformers say it in several lines, or not at all."""
    return " ".join(str(error).split()) or type(error).__name__
