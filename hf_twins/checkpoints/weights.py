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
"""Weights in files, without what training scripts wrap around them; nothing that a file names is imported or run."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_utils import load_state_dict

from .names import listed


# Where training scripts put the weights among what else they save, and those that they average.
WEIGHTS_KEYS = ("state_dict", "model", "model_state_dict", "module")
AVERAGED_WEIGHTS_KEYS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
# What wrappers (data parallelism, compilation, averaging) put before every name, and beside the weights.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "ema_model.", "ema.")
WRAPPER_COUNTERS = ("n_averaged", "steps", "initted", "step")

# What training scripts save beside weights: their arguments, histories, numbers of numpy's.
BOOKKEEPING = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "numpy.ndarray",
    "pathlib.PosixPath",
)


class Bookkeeping:
    """Stands in for what is not a weight, when a file is read: nothing of what the file names is imported or run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Bookkeeping":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(file: str | os.PathLike, averaged: bool = False) -> dict[str, torch.Tensor]:
    """The weights in a file (`.safetensors`, or PyTorch's), without what training scripts wrap around them.

    No code of the file's is run. Memory-mapped where the file's format allows it.

    Args:
        file: path of the file.
        averaged: whether to take the averaged weights (EMA) that the file holds beside those of the last step.

    Raises:
        ValueError: if the file cannot be read, holds other objects than weights and plain values, no weights, or no
            averaged weights where these are asked for.
    """
    return unwrap_weights(read_checkpoint(file), str(file), averaged)


def read_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """What is in a file of weights; see `read_weights`."""
    with torch.serialization.safe_globals([(Bookkeeping, name) for name in BOOKKEEPING]):
        try:
            content = load_state_dict(file)
        except FileNotFoundError:
            raise
        except Exception as error:
            # Whatever the readers of three file formats raise about bytes that they do not understand.
            if match := re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", str(error)):
                raise ValueError(
                    f"{file} was not loaded: it holds {match[1]} beside weights, and to load that could run code. Ask for "
                    "a file with weights alone."
                ) from error
            raise ValueError(f"{file} is not a file of weights, or it is damaged.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a dictionary of weights, got {type(content).__name__}.")
    return content


def unwrap_weights(checkpoint: Mapping[str, Any], source: str, averaged: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a training script's checkpoint, under the names the model gave them; see `read_weights`."""
    weights: Any = checkpoint
    wrappers = AVERAGED_WEIGHTS_KEYS if averaged else (*WEIGHTS_KEYS, *AVERAGED_WEIGHTS_KEYS)
    while (wrapper := next((key for key in wrappers if isinstance(weights.get(key), Mapping)), None)) is not None:
        weights, wrappers = weights[wrapper], (*WEIGHTS_KEYS, *AVERAGED_WEIGHTS_KEYS)
        averaged = False
    if averaged:
        raise ValueError(f"{source} holds no averaged weights (under {', '.join(AVERAGED_WEIGHTS_KEYS)}).")
    weights = {key: value for key, value in weights.items() if key not in WRAPPER_COUNTERS}
    while prefix := next((prefix for prefix in WRAPPER_PREFIXES if all_start_with(weights, prefix)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    others = [
        str(key) for key, value in weights.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise ValueError(f"{source} must hold tensors by their names, but {listed(others)} are none.")
    if not weights:
        raise ValueError(f"{source} holds no weights.")
    return weights


def all_start_with(names: Mapping[str, Any], prefix: str) -> bool:
    return bool(names) and all(isinstance(name, str) and name.startswith(prefix) for name in names)
