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
"""Lets `from_pretrained` load checkpoints of the authors and timm without a conversion step.

The authors' files (https://github.com/Meituan-AutoML/Twins) contain only weights. timm's folders contain weights with
the same names, and a `config.json` in timm's format. Neither contains all fields of a `TwinsConfig`: the others are
inferred from the names and shapes of the weights.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from transformers import PreTrainedConfig
from transformers.integrations.peft import maybe_load_adapters
from transformers.utils import CONFIG_NAME, cached_file

from ..configuration_twins import WEIGHTS_FILES, TwinsCheckpointReader, TwinsConfig, find_weights_file
from .architecture import original_config, to_hf
from .channels import STEM_WEIGHT, adapt_stem, adapt_stem_weight
from .timm import convert_timm_config, convert_timm_preprocessing, is_timm_config
from .weights import check_one_type, read_checkpoint, read_weights, unwrap_weights


# Arguments of `from_pretrained` that say where files come from.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Further arguments of `from_pretrained` that are not fields of a configuration.
LOADING_ARGUMENTS = (*HUB_ARGUMENTS, "trust_remote_code", "_from_pipeline", "_from_auto", "_commit_hash", "gguf_file")


def find_original_checkpoint(path_or_repo_id: str | os.PathLike, **hub_kwargs: Any) -> Path | None:
    """Find the weights file in a timm folder or repository, or in a folder with an authors' file.

    Returns:
        The path, or None for anything else, which transformers then loads or rejects.

    Raises:
        OSError: if there is a `config.json` in timm's format but no weights with it.
    """
    if (authors_file := find_weights_file(path_or_repo_id, hub_kwargs.get("subfolder", ""))) is not None:
        return authors_file
    config_file = cached_file(path_or_repo_id, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if config_file is None:
        return None
    try:
        config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not is_timm_config(config):
        return None
    # A model that is not Twins is refused before its weights are fetched.
    with naming(path_or_repo_id):
        convert_timm_config(config)
    for filename in WEIGHTS_FILES:
        file = cached_file(path_or_repo_id, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if file is not None:
            return Path(file)
    raise OSError(f"{path_or_repo_id} has timm's {CONFIG_NAME}, but neither {' nor '.join(WEIGHTS_FILES)}.")


@contextmanager
def naming(source: str | os.PathLike) -> Iterator[None]:
    """Add the name of the file or folder to the messages of errors."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error


@contextmanager
def refusing_code(name_or_path: str | os.PathLike | None) -> Iterator[None]:
    """Replace PyTorch's error about an unsafe pickle, which explains how to run its code, with one sentence."""
    try:
        yield
    except UnpicklingError as error:
        if match := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error)):
            raise ValueError(
                f"{name_or_path} was not loaded: a file in it holds {match[1]} beside weights, and loading that could "
                "run code. Ask for weights alone, as safetensors."
            ) from None
        raise ValueError(f"{name_or_path} was not loaded: a file in it is damaged or holds no weights.") from None


class CheckpointReader(TwinsCheckpointReader):
    """Loads models in transformers' format, in timm's format, and in the authors' files."""

    def get_config_dict(self, load: Callable, name_or_path: str | os.PathLike, /, **kwargs: Any) -> tuple[dict, dict]:
        """The fields of the configuration in a folder or repository, and the unused arguments."""
        if (file := find_weights_file(name_or_path, kwargs.get("subfolder", ""))) is not None:
            # Weights that are left out are logged when the model is loaded, not here.
            weights, _ = unwrap_weights(read_checkpoint(file), str(file))
            with naming(file):
                return original_config(weights), {key: kwargs[key] for key in kwargs if key not in LOADING_ARGUMENTS}
        config_dict, unused = load(name_or_path, **kwargs)
        if is_timm_config(config_dict):
            with naming(name_or_path):
                config_dict = convert_timm_config(config_dict)
        return config_dict, unused

    def get_image_processor_dict(self, load: Callable, name_or_path: str | os.PathLike, /, **kwargs: Any) -> Any:
        """The fields of the image processor in a folder or repository; the defaults for the authors' weights."""
        if find_weights_file(name_or_path, kwargs.get("subfolder", "")) is not None:
            return {}, kwargs
        try:
            return load(name_or_path, **kwargs)
        except OSError as no_processor:
            try:
                config, unused = load(name_or_path, image_processor_filename=CONFIG_NAME, **kwargs)
            except OSError:
                raise no_processor from None
            if not is_timm_config(config):
                raise
            with naming(name_or_path):
                return convert_timm_preprocessing(config), unused

    def load_model(self, load: Callable, name_or_path: str | os.PathLike | None, /, *args: Any, **kwargs: Any) -> Any:
        """Load a model, also a timm folder or repository, an authors' file, or an adapter of either."""
        checkpoint = adapter = None
        base = name_or_path
        # If both a name and a `state_dict` are given, transformers raises an error.
        if base is not None and kwargs.get("state_dict") is None:
            hub_kwargs: Any = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
            checkpoint = find_original_checkpoint(base, **hub_kwargs)
            if checkpoint is None:
                # If it is an adapter, its configuration names the base model.
                adapter, base, _ = maybe_load_adapters(base, hub_kwargs)
                if base != name_or_path:
                    checkpoint = find_original_checkpoint(base, **hub_kwargs)
        if checkpoint is None:
            with refusing_code(name_or_path):
                return self.load_saved_model(load, name_or_path, base, *args, **kwargs)
        weights = read_weights(checkpoint)
        with naming(checkpoint):
            if not chooses_dtype(kwargs):
                check_one_type(weights, "set dtype to the type to load them in")
            # Weights are copied, because those read are views of the file, which may be overwritten while the model is
            # used.
            kwargs["state_dict"] = {name: weight.clone() for name, weight in to_hf(weights).items()}
            if (num_channels := wanted_channels(kwargs)) is not None:
                for key, weight in kwargs["state_dict"].items():
                    if key.endswith(STEM_WEIGHT) and weight.ndim == 4 and weight.shape[1] != num_channels:
                        kwargs["state_dict"][key] = adapt_stem_weight(weight, num_channels)
            if kwargs.get("config") is None:
                kwargs["config"] = base
            loaded = load(None, *args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        model.name_or_path = model.config.name_or_path = str(base)
        if adapter is not None:
            model.load_adapter(adapter, adapter_name=kwargs.get("adapter_name", "default"))
        return loaded

    def load_saved_model(
        self,
        load: Callable,
        name_or_path: str | os.PathLike | None,
        base: str | os.PathLike | None,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a model in transformers' format, adapted to the requested number of channels.

        Args:
            load: transformers' function that loads the model.
            name_or_path: folder or Hub id of the model, or of an adapter.
            base: folder or Hub id of the model itself, which is the adapter's base model if there is an adapter.
        """
        num_channels = wanted_channels(kwargs)
        if num_channels is None or base is None or kwargs.get("state_dict") is not None:
            return load(name_or_path, *args, **kwargs)
        config = kwargs.get("config")
        hub_kwargs = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
        commit = getattr(config, "_commit_hash", None)
        try:
            saved, _ = PreTrainedConfig.get_config_dict(base, _commit_hash=commit, **hub_kwargs)
        except OSError:
            # There are only weights, for a given configuration, or nothing, in which case transformers raises an
            # error.
            saved = {}
        saved_channels = saved.get("num_channels", TwinsConfig.num_channels)
        if saved.get("model_type") != TwinsConfig.model_type or saved_channels == num_channels:
            return load(name_or_path, *args, **kwargs)
        if base != name_or_path:
            raise ValueError(
                f"{name_or_path} is an adapter of a model for {saved_channels} channels, not {num_channels}: merge it into that "
                "model first, save the result and load that."
            )
        kwargs["num_channels"] = saved_channels
        if config is not None:
            kwargs["config"] = type(config).from_dict(config.to_dict() | {"num_channels": kwargs.pop("num_channels")})
        loaded = load(name_or_path, *args, **kwargs)
        adapt_stem(loaded[0] if kwargs.get("output_loading_info") else loaded, num_channels)
        return loaded


def chooses_dtype(kwargs: Mapping[str, Any]) -> bool:
    """Whether arguments of `from_pretrained` set the dtype of the weights instead of leaving it to the checkpoint."""
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    return dtype not in (None, "auto") or getattr(kwargs.get("config"), "dtype", None) is not None


def wanted_channels(kwargs: Mapping[str, Any]) -> int | None:
    """The number of channels that arguments of `from_pretrained` ask for; None if they leave it to the checkpoint."""
    config = kwargs.get("config")
    num_channels = kwargs.get("num_channels", config.num_channels if isinstance(config, TwinsConfig) else None)
    # The configuration raises an error for invalid values.
    return num_channels if isinstance(num_channels, int) and num_channels > 0 else None
