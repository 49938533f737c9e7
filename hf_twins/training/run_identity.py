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
"""The identity of a training run: options, labels, images, and the model that it starts from."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any

from datasets import Dataset, IterableDataset

from hf_twins._utils.fingerprints import dataset_fingerprint, model_fingerprint
from hf_twins._utils.run_settings import describe_differences


# Options that may have another value when a run is resumed, grouped by the reason. All others must match, including
# those that future versions of transformers add.
MAY_DIFFER: dict[str, tuple[str, ...]] = {
    "Where the run is does not affect it.": ("output_dir", "overwrite_output_dir", "resume_from_checkpoint"),
    "Compared by content instead of by name: images, labels, and the model that the run started from.": (
        *("train_dir", "validation_dir", "train_annotations", "validation_annotations", "dataset_name"),
        *("class_names_file", "model_name_or_path", "config_name", "model_revision", "image_processor_name", "recipe"),
    ),
    "Workers do not affect the images (except with `--streaming`, whose order depends on the number of workers).": (
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    ),
    "Logging does not affect training.": (
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
        *(
            "include_num_input_tokens_seen",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "skip_memory_metrics",
            "debug",
        ),
    ),
    "Reports and the model card do not affect training.": (
        *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "license",
    ),
    "Publishing does not affect training.": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
    ),
    "Saving checkpoints does not affect training (except with `--load_best_model_at_end`, which chooses among them).": (
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("enable_jit_checkpoint", "checkpointing_steps"),
    ),
    "Padding a batch does not change the evaluation of an image.": (
        *("per_device_eval_batch_size", "eval_accumulation_steps"),
    ),
    "The hardware and the method of computation do not affect training beyond rounding.": (
        *("use_cpu", "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("local_rank", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_backend", "ddp_timeout"),
    ),
}
# Exceptions: these options must match if the given option is set.
MUST_MATCH_WITH = {
    "streaming": ("dataloader_num_workers",),
    "load_best_model_at_end": ("save_strategy", "save_steps", "save_total_limit"),
}
# Options that may have a larger value.
MAY_GROW = {
    "num_train_epochs": "The learning rate follows the longer schedule from the checkpoint on, so the result differs from that of "
    "a run with as many epochs from the start.",
    "max_steps": "As above; -1, no limit, is the largest value.",
    "early_stopping_patience": "A run that stopped early continues; 0, which never stops a run early, is the largest value.",
}
NO_LIMIT = {"max_steps": -1, "early_stopping_patience": 0}


def may_differ(name: str, options: dict[str, Any]) -> bool:
    """Whether the option `name` may have another value when a run with these `options` is resumed."""
    if any(options.get(other) and name in names for other, names in MUST_MATCH_WITH.items()):
        return False
    return any(name in names for names in MAY_DIFFER.values())


def option_values(arguments: Iterable[Any]) -> dict[str, Any]:
    """The options of a run that must match or may grow, by name, with values as read back from JSON.

    Args:
        arguments: instances of the dataclasses whose fields are the options.
    """
    options = {each.name: plain(getattr(part, each.name)) for part in arguments for each in dataclasses.fields(part)}
    return {name: value for name, value in options.items() if not may_differ(name, options)}


def option_defaults(arguments: Iterable[Any]) -> dict[str, Any]:
    defaults = {}
    for part in arguments:
        for each in dataclasses.fields(part):
            factory = each.default_factory
            defaults[each.name] = plain(each.default if factory is dataclasses.MISSING else factory())
    return defaults


def plain(value: Any) -> Any:
    """Convert the value of an option to what JSON reads back."""

    def of_other_types(each: Any) -> Any:
        if isinstance(each, Enum):
            return each.value
        return each.to_dict() if hasattr(each, "to_dict") else str(each)

    return json.loads(json.dumps(value, default=of_other_types))


def run_identity(
    arguments: Iterable[Any],
    labels: Sequence[str],
    splits: dict[str, Any],
    model: Any,
    processor: Any,
    num_processes: int,
) -> dict[str, Any]:
    """The identity of a run; see [`begin_run`] for the arguments."""
    return {
        # The classes of the options tell the scripts apart.
        "arguments": [type(part).__name__ for part in arguments],
        "options": option_values(arguments),
        "labels": list(labels),
        "data": {name: split_fingerprint(split) for name, split in splits.items()},
        "model": model_fingerprint(model, processor),
        "num_processes": num_processes,
    }


def split_fingerprint(split: Any) -> dict[str, Any]:
    if isinstance(split, IterableDataset):
        return {"fingerprint": dataset_fingerprint(split)}
    fingerprint = dataset_fingerprint(split) if isinstance(split, Dataset) else split.fingerprint()
    return {"images": len(split), "fingerprint": fingerprint}


def compare_identities(
    recorded: dict[str, Any], current: dict[str, Any], defaults: dict[str, Any] | None = None
) -> tuple[list[str], list[str]]:
    """Compare a run with the recorded run that it resumes.

    Args:
        recorded: identity of the run that wrote the checkpoint. Its options that no longer exist or no longer matter
            are not compared.
        current: identity of the run that resumes it.
        defaults: defaults of the options. An option that is missing in `recorded`, because it is new, must have its
            default.

    Returns:
        Descriptions, with both values, of what must not differ but does, and of what has grown.
    """
    before, now = dict(flattened(recorded)), dict(flattened(current))
    before = {name: value for name, value in before.items() if name in now or not name.startswith("--")}
    for name, default in (defaults or {}).items():
        if f"--{name}" in now:
            before.setdefault(f"--{name}", default)
    grown = {name for name in before.keys() & now.keys() if has_grown(name, before[name], now[name])}
    kept, longer = (
        [{name: value for name, value in each.items() if (name in grown) == is_grown} for each in (before, now)]
        for is_grown in (False, True)
    )
    return describe_differences(*kept), describe_differences(*longer)


def flattened(identity: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of an identity with their names in messages."""
    yield from ((f"--{name}", value) for name, value in identity["options"].items())
    yield from ((f"label {number}", name) for number, name in enumerate(identity["labels"]))
    for split, values in identity["data"].items():
        yield f"number of images in {split}", values.get("images")
        yield f"images or labels in {split}", values["fingerprint"]
    yield "model", identity["model"]
    yield "number of processes", identity["num_processes"]


def has_grown(name: str, before: Any, now: Any) -> bool:
    """Whether an option has grown, in a way that is allowed when a run is resumed."""
    option = name.removeprefix("--")
    if option not in MAY_GROW:
        return False
    limits = [float("inf") if value == NO_LIMIT.get(option) else value for value in (before, now)]
    return limits[1] > limits[0]
