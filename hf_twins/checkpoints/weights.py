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
"""Reads weights in files, without the wrappers of training scripts, and without importing or running anything."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers.utils import logging

from .names import listed
from .torch_files import read_file
from .unpickling import StandIn, kind_of


logger = logging.get_logger(__name__)

# Keys under which training scripts save the weights, and averaged weights, next to other state.
WEIGHTS_KEYS = ("state_dict", "model", "model_state_dict", "module")
AVERAGED_WEIGHTS_KEYS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
# Entries that weight averaging saves next to the weights.
MMENGINE_COUNTER = "steps"
WRAPPER_COUNTERS = ("n_averaged", MMENGINE_COUNTER, "initted", "step")
# Parts that activation checkpointing, sharding and compilation insert into names, at any depth.
WRAPPER_MODULES = re.compile(r"\b(?:_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod|_forward_module)\.")
# The first weights of a Twins model, under the authors' and OpenMMLab's names. Everything before them in a name is a
# prefix.
FIRST_WEIGHTS = re.compile(r"(?:^|(?<=\.))patch_embeds\.0\.(?:proj|projection)\.(?:weight|bias)$")
# Modules that, together with a backbone, form a model with a format of its own.
PARTS_BESIDE_BACKBONE = ("decode_head.", "auxiliary_head.", "neck.", "head.fc.")
# Modules with weights that are not part of the model, such as a class-weighted loss.
OUTSIDE_OF_MODEL = re.compile(r"(?:^|\.)\w*(?:criterion|loss|metric)\w*\.")
HEAD = re.compile(r"(?:^|[._])(?:heads?|classifiers?|fc\d*)(?:[._]|$)")
# No realistic file has more models, and searching all names for each model takes long.
MAX_MODELS = 50
AVERAGED_PREFIX = re.compile(r"(?:^|[._])(?:ema|averaged|swa)(?:[._]|$)")

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Suffix of the counter of a batch norm, the only integer weight in a model.
BATCH_COUNTER = ".num_batches_tracked"
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def read_weights(file: str | os.PathLike, averaged: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights in a file of PyTorch or safetensors, without the state that training scripts wrap around them.

    No code in the file is run. The weights are memory-mapped where the format allows it. A warning names weights in
    the file that are not part of the model, such as those of a loss.

    Args:
        file: path of the file.
        averaged: whether to return the averaged weights (EMA) that the file has in addition to those of the last step.
            OpenMMLab's files have averaged weights in place of the model's, which are returned either way.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, names something that runs code, has several models, no weights, other
            objects in place of weights, or no averaged weights although these are requested.
    """
    weights, left_out = unwrap_weights(read_checkpoint(file), str(file), averaged)
    if left_out:
        logger.warning(f"{file}: ignored weights that are not part of the model: {listed(left_out)}.")
    return weights


def read_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """Read the content of a file of weights, see `read_weights`. Objects other than tensors and plain values are `StandIn`s."""
    content = read_file(file)
    if not isinstance(content, dict):
        advice = ": save the state_dict() of the model" if isinstance(content, StandIn) else ""
        raise ValueError(f"{file} must hold a dictionary of weights, got {kind_of(content)}{advice}.")
    return content


def unwrap_weights(
    checkpoint: Mapping[str, Any], source: str, averaged: bool = False
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Extract the weights of a training script's checkpoint, with the model's own names; see `read_weights`.

    Returns:
        The weights, and the names of weights in the checkpoint that are not part of the model.
    """
    content, averaged = find_state_dict(checkpoint, source, averaged)
    content = {key: value for key, value in content.items() if key not in WRAPPER_COUNTERS}
    if last_step := mmcv_buffers(content):
        content, averaged = {key: value for key, value in content.items() if key not in last_step}, False
    if not content:
        raise ValueError(f"{source} holds no weights.")
    if others := [shown(key) for key in content if not isinstance(key, str)]:
        raise ValueError(f"{source} must map names to tensors, but the keys {listed(others)} are not strings.")
    names = {name: WRAPPER_MODULES.sub("", name) for name in content}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{source} holds weights under the same names with and without wrappers: save one of them.")
    prefix, others = find_prefix(list(names.values()), source, averaged)
    weights, outside, of_others = {}, {}, []
    for wrapped_name, name in names.items():
        # The longest matching prefix decides, because another model may have no prefix at all.
        owner = max((each for each in (prefix, *others) if name.startswith(each)), key=len, default=None)
        if owner == prefix:
            weights[name.removeprefix(prefix)] = content[wrapped_name]
        elif owner is None:
            outside[name] = content[wrapped_name]
        else:
            of_others.append(name)
    check_outside(outside, prefix, source)
    check_weights(weights, source)
    return weights, [*outside, *of_others, *last_step]


def mmcv_buffers(content: Mapping[str, Any]) -> list[str]:
    """The names of the buffers in which mmcv's `EMAHook` (mmcv/runner/hooks/ema.py) saves the weights of the last step.

    The average is in the model itself.
    """
    buffers = (f"ema_{name.replace('.', '_')}" for name in content if isinstance(name, str))
    return [name for name in buffers if name in content]


def find_state_dict(checkpoint: Mapping[str, Any], source: str, averaged: bool) -> tuple[Mapping[str, Any], bool]:
    """Find the dictionary of weights in a checkpoint, and whether averaged weights have yet to be selected in it.

    Raises:
        ValueError: if there are several dictionaries of weights, or another object in place of the weights.
    """
    content = checkpoint
    last_step = content.get("ema_state_dict")
    if "state_dict" in content and isinstance(last_step, Mapping) and MMENGINE_COUNTER in last_step:
        # mmengine's `EMAHook` (mmengine/hooks/ema_hook.py) swaps them: the average is in the model's place.
        content, averaged = {key: value for key, value in content.items() if key != "ema_state_dict"}, False
    if averaged and (key := only_key(content, AVERAGED_WEIGHTS_KEYS, source)) is not None:
        content, averaged = content[key], False
    # No script nests weights deeper. The limit also ends the search in a dictionary that contains itself.
    for _ in range(8):
        key = only_key(content, WEIGHTS_KEYS, source) or only_key(content, AVERAGED_WEIGHTS_KEYS, source)
        if key is None:
            # Weights may be under other keys, such as "student" and "teacher". Each dictionary is checked once,
            # because a file may refer to the same one any number of times.
            inner = {id(value): key for key, value in content.items() if isinstance(value, Mapping)}
            holders = [key for key in inner.values() if find_prefixes(content[key])]
            key = only_key(content, holders, source)
        if key is None:
            break
        content = content[key]
    return content, averaged


def only_key(content: Mapping[str, Any], keys: Sequence[str], source: str) -> str | None:
    """The first of these keys that is present, which must contain weights; None if none is present.

    Raises:
        ValueError: if the first key contains something else, since the next may contain other weights, or if several
            keys contain weights.
    """
    # The key "model" may also contain the name of an architecture.
    present = [key for key in keys if key in content and not (key == "model" and isinstance(content[key], str))]
    if not present:
        return None
    first = present[0]
    if not isinstance(content[first], Mapping):
        raise ValueError(
            f"{source} holds {kind_of(content[first])} under {first!r}, where the weights should be: save the state_dict() "
            "of the model there."
        )
    others = [key for key in present if content[key] is not content[first] and holds_tensors(content[key])]
    if others:
        raise ValueError(
            f"{source} holds weights under each of {listed([shown(key) for key in (first, *others)])}: save "
            "only those that are to be loaded."
        )
    return first


def holds_tensors(value: Any) -> bool:
    """Whether a value is a dictionary of weights, or of such dictionaries, and not the settings of a model."""
    return isinstance(value, Mapping) and any(isinstance(each, torch.Tensor | Mapping) for each in value.values())


def find_prefixes(names: Iterable[Any]) -> list[str]:
    """The prefix of each model whose first weights are among these names."""
    matches = ((name, FIRST_WEIGHTS.search(name)) for name in names if isinstance(name, str))
    return list(dict.fromkeys(name[: match.start()] for name, match in matches if match))


def find_prefix(names: Sequence[str], source: str, averaged: bool) -> tuple[str, list[str]]:
    """The prefix of the model's names, and the prefixes of other versions of it, averaged or not.

    The prefix is empty if there is no Twins model under the names of the authors or of OpenMMLab.

    Raises:
        ValueError: if there are several models, or no averaged one although it is requested.
    """
    prefixes = find_prefixes(names)
    if len(prefixes) > MAX_MODELS:
        raise ValueError(f"{source} holds {len(prefixes)} models: save only the one that is to be loaded.")
    all_prefixes = prefixes = [model_prefix(prefix, names) for prefix in prefixes]
    # Averaged weights next to others are recognized by their prefix, and used only if requested.
    if averaged or len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if bool(AVERAGED_PREFIX.search(prefix)) == averaged]
    if averaged and not prefixes:
        raise ValueError(f"{source} holds no averaged weights (under {', '.join(AVERAGED_WEIGHTS_KEYS)}).")
    if len(prefixes or all_prefixes) > 1:
        found = [repr(prefix) for prefix in prefixes or all_prefixes]
        raise ValueError(
            f"{source} holds several models, under names that begin with {listed(found)}: save only the one to be "
            "loaded."
        )
    prefix = prefixes[0] if prefixes else ""
    return prefix, [each for each in all_prefixes if each != prefix]


def model_prefix(prefix: str, names: Sequence[str]) -> str:
    """The prefix of the complete model, if a backbone and heads form one, as in OpenMMLab's formats."""
    if re.search(r"(?:^|\.)backbone\.$", prefix):
        whole = prefix.removesuffix("backbone.")
        parts = tuple(whole + part for part in (*PARTS_BESIDE_BACKBONE, "backbone.stages."))
        if any(name.startswith(parts) for name in names):
            return whole
    return prefix


def check_outside(outside: Mapping[str, Any], prefix: str, source: str) -> None:
    """Raise a ValueError if weights that are left out may belong to a layer of the model, such as a separate classifier."""
    layers = [
        name
        for name, value in outside.items()
        if HEAD.search(name) or (is_matrix(value) and not OUTSIDE_OF_MODEL.search(name))
    ]
    if layers:
        raise ValueError(
            f"{source} holds a Twins model under names that begin with {listed([repr(prefix)])}, and beside it "
            f"{listed(layers)}, which may be layers of it: save the model alone, with its head under the name that its own "
            "class gives it."
        )


def is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and sum(size > 1 for size in value.shape) > 1


def check_weights(weights: Mapping[str, Any], source: str) -> None:
    """Raise a ValueError unless each weight is a dense tensor of floating-point numbers with memory for all of them.

    A file without code may contain sparse and quantized tensors, tensors without values, and small storages from which
    tensors of terabytes are expanded.
    """
    wrong = [f"{shown(name)} ({kind})" for name, weight in weights.items() if (kind := wrong_kind(name, weight))]
    if wrong:
        raise ValueError(
            f"{source}: weights must be floating-point numbers (float64, float32, float16 or bfloat16) in dense tensors, got "
            f"{listed(wrong)}: save them as such."
        )
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights.values()}
    claimed = sum(weight.nbytes for weight in weights.values())
    # Tensors may share storages, such as tied weights.
    if claimed > 4 * sum(storages.values()):
        raise ValueError(
            f"{source} has weights of {claimed} bytes that share {sum(storages.values())} bytes: save a copy of each."
        )


def check_one_type(weights: Mapping[str, torch.Tensor], way_out: str) -> None:
    """Raise a ValueError, ending in `way_out`, if the weights are of several floating-point types."""
    dtypes = {weight.dtype: name for name, weight in weights.items() if not name.endswith(BATCH_COUNTER)}
    if len(dtypes) > 1:
        found = [f"{dtype} ({name})" for dtype, name in dtypes.items()]
        raise ValueError(
            f"The checkpoint's weights must all be of one type, got {listed(found)}: save them in one, or {way_out}."
        )


def wrong_kind(name: str, weight: Any) -> str | None:
    """Say why a value cannot be a weight; None if it can."""
    if not isinstance(weight, torch.Tensor):
        return kind_of(weight)
    if weight.layout != torch.strided:
        return str(weight.layout)
    if weight.is_meta:
        return "without values"
    is_counter = name.endswith(BATCH_COUNTER)
    if weight.dtype not in FLOATS + (INTEGERS if is_counter else ()):
        return str(weight.dtype)
    if weight.ndim == 0 and not is_counter:
        return "a single number"
    if weight.numel() == 0:
        return f"nothing of the shape {tuple(weight.shape)}"
    if weight.nbytes > weight.untyped_storage().nbytes():
        return f"{weight.numel()} numbers in {weight.untyped_storage().nbytes()} bytes"
    return None


def shown(key: Any) -> str:
    """Format a key of a file for a message."""
    return key if isinstance(key, str) else str(key) if isinstance(key, int) else kind_of(key)
