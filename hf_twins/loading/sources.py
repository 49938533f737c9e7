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
"""Sources of models: folders and repositories on the Hub, and errors that name them."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME, cached_file, logging

from .._utils.extras import MissingExtraError, require_extra
from ..checkpoints.reader import naming
from ..configuration_twins import TWINS_ARCHITECTURES, WEIGHTS_SUFFIXES, TwinsConfig


ADAPTER_CONFIG_NAME = "adapter_config.json"
JSON_TYPES: dict[type, str] = {dict: "a JSON object", list: "a list", str: "a string"}
# Types of the fields that decide how a configuration is read. Its class checks the other fields.
FIELD_TYPES: dict[str, type] = {
    "architectures": list,
    "auto_map": dict,
    "auto_mapping": dict,
    "backbone_config": dict,
    "base_model_name_or_path": str,
    "image_processor_type": str,
    "model_type": str,
    "revision": str,
}


@contextlib.contextmanager
def naming_source(name: str) -> Iterator[None]:
    """Convert every error to a sentence that names the source, and distinguishes a mistyped path from a Hub id."""
    check_name(name)
    try:
        with naming(name):
            yield
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise OSError(f"cannot load {name}: its weights are damaged ({error})") from error
    except OSError as error:
        if str(error).startswith("cannot load "):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not Path(name).exists():
            reason = f"there is no such folder, and on the Hub: {reason}"
        raise OSError(f"cannot load {name}: {reason}") from error


def check_name(name: str) -> None:
    """Raise an OSError if a name is neither an existing file or folder, nor a valid id of a model on the Hub."""
    if Path(name).exists():
        return
    if name in TWINS_ARCHITECTURES:
        raise OSError(
            f"cannot load {name}: this is the name of an architecture, not of trained weights: pass a folder, or "
            f"a model on the Hub such as timm/{name.replace('-', '_')}.in1k"
        )
    if not can_be_hub_id(name):
        raise OSError(f"cannot load {name}: there is no such file or folder")


def can_be_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(WEIGHTS_SUFFIXES)


@contextlib.contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Stop transformers from logging new and unused weights, for which an error is raised here if they matter."""
    verbosity = logging.get_verbosity()
    if is_quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def find_file(name: str, file_name: str, revision: str) -> str | None:
    """The path of a file in a folder or repository; None if it is missing or cannot be reached."""
    if Path(name).is_file():
        return None
    return cached_file(
        name,
        file_name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def read_json(name: str, file_name: str, revision: str, kind: type = dict) -> Any:
    """Read a JSON file in a folder or repository; None if it is missing or cannot be reached.

    Args:
        name: folder or Hub id.
        file_name: name of the file.
        revision: branch, tag or commit on the Hub.
        kind: required type of the content, `dict` or `list`.

    Raises:
        OSError: if the file is damaged, or has content of another type.
    """
    file = find_file(name, file_name, revision)
    if file is None:
        return None
    try:
        content: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"cannot load {name}: its {file_name} is damaged ({error})") from error
    if not isinstance(content, kind):
        raise OSError(f"cannot load {name}: its {file_name} must hold {JSON_TYPES[kind]}, got {shortened(content)}")
    if kind is dict:
        check_fields(name, file_name, content)
    return content


def check_fields(name: str, file_name: str, fields: Any) -> None:
    for field in FIELD_TYPES.keys() & fields:
        value, kind = fields[field], FIELD_TYPES[field]
        if value is not None and not isinstance(value, kind):
            raise OSError(
                f"cannot load {name}: {field} in its {file_name} must be {JSON_TYPES[kind]}, got {shortened(value)}"
            )


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_fields(name: str, revision: str) -> dict[str, Any] | None:
    """Read the configuration, converted to transformers' format if needed; None for an adapter without a model.

    Raises:
        OSError: if there is neither a model nor an adapter.
        ImportError: if there is an adapter, and PEFT is not installed.
    """
    if find_file(name, ADAPTER_CONFIG_NAME, revision) is not None:
        # Without PEFT, transformers would ignore an adapter that was saved together with its model.
        try:
            require_extra("train", "peft")
        except MissingExtraError as error:
            raise MissingExtraError(f"{name} is a PEFT adapter: {error}", name=error.name) from None
        if find_file(name, CONFIG_NAME, revision) is None:
            return None
    # Check the file here, because transformers does not check it.
    read_json(name, CONFIG_NAME, revision)
    fields, _ = TwinsConfig.get_config_dict(name, revision=revision)
    # Without a file, there are no fields except the commit.
    if not fields.keys() - {"_commit_hash"}:
        raise OSError(
            f"cannot load {name}: it has neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME} nor a file of the authors' weights "
            f"({', '.join(WEIGHTS_SUFFIXES)})"
        )
    return fields
