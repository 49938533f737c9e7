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
"""Sources of checkpoints: a file, a folder, a URL, the name of a published checkpoint, or a timm repository."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from checkpoint_formats import saved_class_names
from downloads import download, file_sha256, forget, is_address, public_address
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from hf_twins.checkpoints import (
    convert_timm_config,
    convert_timm_preprocessing,
    find_original_checkpoint,
    is_timm_config,
    published_checkpoints,
    read_checkpoint,
    unwrap_weights,
)
from hf_twins.checkpoints.timm import timm_label_names, unread_timm_fields


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Args:
        origin: the source: a URL without secrets; the id and commit of a repository; or the name of a
            file, preceded by its folder if the folder was given.
        file: local path of the weights file.
        sha256: SHA-256 of that file.
        weights: weights by name.
        meta: metadata saved by OpenMMLab's toolboxes.
        left_out: names of weights that are not part of the model, such as those of a loss, and of fields in timm's
            `config.json` that cannot be converted.
        repo_id: id of the Hub repository, if it was read from there.
        timm_config: fields of a `TwinsConfig`, from timm's `config.json`.
        preprocessing: fields of an image processor, from timm's `config.json`.
        license: license in timm's `config.json`.
        has_label_names: whether the checkpoint has label names.
        published: entry of the published checkpoint with the same hash.
    """

    origin: str
    file: Path
    sha256: str
    weights: Mapping[str, torch.Tensor]
    meta: Mapping[str, Any]
    left_out: Sequence[str] = ()
    repo_id: str | None = None
    timm_config: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None
    license: str | None = None
    has_label_names: bool = False
    published: Mapping[str, Any] | None = None


def open_checkpoint(source: str, sha256: str | None = None, averaged: bool = False) -> Checkpoint:
    """Find, fetch, check and read a checkpoint, without running any code in it.

    Args:
        source: path of a file or a folder, URL, name of a published checkpoint, or id of a timm repository.
        sha256: expected SHA-256 of the file, or its first digits. Those of published checkpoints are known.
        averaged: whether to use averaged weights (EMA) that the file has in addition to those of the last step.

    Raises:
        ValueError: if there is no such source, its hash differs, or it is not a weights file.
        OSError: if it cannot be fetched or read.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"The SHA-256 must be 8 to 64 hexadecimal digits, got {sha256!r}.")
    published = find_published(source)
    expected = (sha256 or (published or {}).get("sha256_prefix") or "").lower()
    repo_id = config = timm_config = preprocessing = None
    if is_address(source) or (published is not None and not Path(source).exists()):
        address = source if is_address(source) or published is None else published["url"]
        origin, file = public_address(address), download(address, expected or None)
    elif Path(source).is_file():
        origin, file = Path(source).name, Path(source)
    else:
        if not Path(source).is_dir() and not can_be_repository(source):
            raise ValueError(
                f"{source} must be a file, a folder, a URL, a repository such as timm/twins_svt_small.in1k, or one of "
                f"{', '.join(published_checkpoints())}."
            )
        try:
            config, commit = read_config(source)
            # All files are read from the same commit.
            file = find_in_folder_or_repository(source, commit)
        except httpx.TransportError as error:
            # transformers does not convert this error to an OSError.
            raise OSError(f"{source} cannot be fetched: {one_line(error)}.") from error
        if Path(source).is_dir():
            origin = f"{Path(source).resolve().name}/{file.name}"
        else:
            repo_id, origin = source, f"{source}@{commit}" if commit else source
        if config is not None:
            timm_config, preprocessing = convert_timm_config(config), convert_timm_preprocessing(config)
    digest = file_sha256(file)
    if not digest.startswith(expected):
        raise ValueError(f"{file} must have the SHA-256 {expected}, got {digest}: it is another file, or damaged.")
    if published is not None and not digest.startswith(published["sha256_prefix"]):
        # The file only has the name of a published one. The user has confirmed it by its hash.
        published = None
    try:
        content = read_checkpoint(file)
        weights, left_out = unwrap_weights(content, str(file), averaged)
    except ValueError as error:
        if is_address(origin):
            forget(file)
            raise ValueError(str(error).replace(str(file), origin)) from error
        raise
    # In checkpoints of other scripts, "meta" may be anything.
    meta = meta if isinstance(meta := content.get("meta"), Mapping) else {}
    return Checkpoint(
        origin=origin,
        file=file,
        sha256=digest,
        weights=weights,
        meta=meta,
        left_out=[*left_out, *(unread_timm_fields(config) if config else [])],
        repo_id=repo_id,
        timm_config=timm_config,
        preprocessing=preprocessing,
        license=((config or {}).get("pretrained_cfg") or {}).get("license"),
        has_label_names=(timm_label_names(config) if config else saved_class_names(meta)) is not None,
        published=published,
    )


def find_published(source: str) -> dict[str, Any] | None:
    """Find the published checkpoint with a given name, or with the file name of a path or URL."""
    file_name = Path(public_address(source).partition("?")[0] if is_address(source) else source).name
    for name, entry in published_checkpoints().items():
        if source == name or file_name == Path(urlsplit(entry["url"]).path).name:
            return entry
    return None


def can_be_repository(source: str) -> bool:
    try:
        validate_repo_id(source)
    except ValueError:
        return False
    return source.count("/") == 1


def find_in_folder_or_repository(source: str, commit: str | None) -> Path:
    file = find_original_checkpoint(source, **({"revision": commit} if commit else {}))
    if file is None:
        raise ValueError(
            f"{source} must have timm's {CONFIG_NAME} and weights, or be a folder with one weights file and no {CONFIG_NAME}."
        )
    return file


def read_config(source: str) -> tuple[dict[str, Any] | None, str | None]:
    """Read timm's `config.json` in a folder or repository, and the commit of a repository."""
    file = cached_file(source, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    config = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    return config if is_timm_config(config) else None, extract_commit_hash(file, None)


def one_line(error: Exception) -> str:
    """The message of an error on one line; messages of the Hub's client and transformers may have several lines or none."""
    return " ".join(str(error).split()) or type(error).__name__
