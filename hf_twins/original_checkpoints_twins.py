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
"""Checkpoints as the authors and timm publish them, read without a conversion step.

The authors' files (https://github.com/Meituan-AutoML/Twins) hold weights alone. timm's folders hold weights of the same
names, and a `config.json` of timm's own. Neither says all that a `TwinsConfig` does: the rest follows from the names and
shapes of the weights.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import PILImageResampling
from transformers.integrations.peft import maybe_load_adapters
from transformers.modeling_utils import load_state_dict
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file

from .variants_twins import TWINS_VARIANTS


NameRow = tuple[str, ...]

# Those of `from_pretrained` that say where files come from.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# A module of theirs, and those of ours whose weights it holds, stacked where there are several. {layer} is any block of
# a {stage}, {window} one with locally-grouped attention and {global} one with global attention.
ORIGINAL_NAMES: tuple[NameRow, ...] = (
    ("patch_embeds.{stage}.proj.", "twins.encoder.patch_embeddings.{stage}.projection."),
    ("patch_embeds.{stage}.norm.", "twins.encoder.patch_embeddings.{stage}.layernorm."),
    ("pos_block.{stage}.proj.0.", "twins.encoder.stages.{stage}.position_encoding.projection."),
    ("blocks.{stage}.{layer}.norm1.", "twins.encoder.stages.{stage}.layers.{layer}.layernorm_before."),
    (
        "blocks.{stage}.{window}.attn.qkv.",
        "twins.encoder.stages.{stage}.layers.{window}.attention.q_proj.",
        "twins.encoder.stages.{stage}.layers.{window}.attention.k_proj.",
        "twins.encoder.stages.{stage}.layers.{window}.attention.v_proj.",
    ),
    ("blocks.{stage}.{global}.attn.q.", "twins.encoder.stages.{stage}.layers.{global}.attention.q_proj."),
    (
        "blocks.{stage}.{global}.attn.kv.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.k_proj.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.v_proj.",
    ),
    (
        "blocks.{stage}.{global}.attn.sr.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.sequence_reduction.projection.",
    ),
    (
        "blocks.{stage}.{global}.attn.norm.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.sequence_reduction.layernorm.",
    ),
    ("blocks.{stage}.{layer}.attn.proj.", "twins.encoder.stages.{stage}.layers.{layer}.attention.o_proj."),
    ("blocks.{stage}.{layer}.norm2.", "twins.encoder.stages.{stage}.layers.{layer}.layernorm_after."),
    ("blocks.{stage}.{layer}.mlp.fc1.", "twins.encoder.stages.{stage}.layers.{layer}.mlp.fc1."),
    ("blocks.{stage}.{layer}.mlp.fc2.", "twins.encoder.stages.{stage}.layers.{layer}.mlp.fc2."),
    ("norm.", "twins.layernorm."),
    ("head.", "classifier."),
)

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

# timm's arguments of an architecture, and the fields of the configuration they are.
TIMM_ARGUMENTS = {
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dims": "hidden_sizes",
    "num_heads": "num_attention_heads",
    "mlp_ratios": "mlp_ratios",
    "depths": "depths",
    "sr_ratios": "sr_ratios",
    "drop_path_rate": "drop_path_rate",
}
# timm's arguments that say nothing about the weights or what is computed from them.
TIMM_OTHER_ARGUMENTS = ("img_size", "num_classes", "global_pool", "pretrained", "pretrained_cfg")


class Bookkeeping:
    """Stands in for what is not a weight, when a file is read: nothing of what the file names is imported or run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Bookkeeping":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class NameTable:
    """The names of a checkpoint format and ours, in both directions.

    Args:
        rows: see `ORIGINAL_NAMES`. Other numbers in a row than those explained there are any numbers.
        unused: beginnings of the names of weights that the format's checkpoints may hold and its models never use.
    """

    def __init__(self, rows: tuple[NameRow, ...], unused: tuple[str, ...] = ()):
        self.rows = rows
        self.unused = unused
        self.theirs = [re.compile(name_pattern(theirs)) for theirs, *_ in rows]
        self.ours = [re.compile(name_pattern(ours)) for _, ours, *_ in rows]

    def window_layers(self, keys: Iterable[str]) -> set[tuple[int, int]]:
        """Stage and number of the blocks whose names, of theirs, are those of locally-grouped attention."""
        matches = [match.groupdict() for key in keys for pattern in self.theirs if (match := pattern.fullmatch(key))]
        return {(int(numbers["stage"]), int(numbers["window"])) for numbers in matches if "window" in numbers}

    def to_ours(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Their weights under our names; the parts of a stack are views of it.

        Raises:
            ValueError: if a name is in no row, two give the same weight, or a stack is not as high as its parts.
        """
        converted: dict[str, torch.Tensor] = {}
        unknown, repeated = [], []
        for key, tensor in state_dict.items():
            if self.unused and key.startswith(self.unused):
                continue
            matches = [
                (row, match) for row, pattern in zip(self.rows, self.theirs) if (match := pattern.fullmatch(key))
            ]
            if not matches:
                unknown.append(key)
            for (_, *ours), match in matches:
                if len(ours) > 1 and (tensor.ndim == 0 or tensor.shape[0] % len(ours) != 0):
                    raise ValueError(
                        f"{key} must be {len(ours)} weights of the same height, stacked, got the shape "
                        f"{tuple(tensor.shape)}."
                    )
                for name, part in zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor]):
                    name = name.format(**match.groupdict()) + match["parameter"]
                    if name in converted:
                        repeated.append(name)
                    converted[name] = part
        if unknown:
            raise ValueError(f"The checkpoint has weights that no Twins model of its format has: {listed(unknown)}.")
        if repeated:
            raise ValueError(f"The checkpoint gives more than one value for {listed(repeated)}.")
        return converted

    def to_theirs(self, state_dict: Mapping[str, torch.Tensor], window_size: int | None) -> dict[str, torch.Tensor]:
        """Our weights under their names, of a model with this `window_size`.

        Raises:
            ValueError: if a weight of ours has no name among theirs.
        """
        converted = {}
        left_over = dict.fromkeys(state_dict)
        for key in state_dict:
            for (theirs, *ours), pattern in zip(self.rows, self.ours):
                if (match := pattern.fullmatch(key)) is None or not is_kind_of_layer(match.groupdict(), window_size):
                    continue
                names = [name.format(**match.groupdict()) + match["parameter"] for name in ours]
                parts = [state_dict[name] for name in names]
                theirs = theirs.format(**match.groupdict()) + match["parameter"]
                converted[theirs] = parts[0] if len(parts) == 1 else torch.cat(parts)
                for name in names:
                    left_over.pop(name)
        if left_over:
            raise ValueError(f"The format has no name for {listed(list(left_over))}.")
        return converted


def name_pattern(module: str) -> str:
    """The regular expression of the parameters and buffers of a module in a row."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(module))
    return pattern + r"(?P<parameter>weight|bias|running_mean|running_var|num_batches_tracked)"


def is_kind_of_layer(numbers: Mapping[str, str], window_size: int | None) -> bool:
    """Whether the block with these numbers attends as their names say: {window} or {global}."""
    if "window" in numbers:
        return window_size is not None and int(numbers["window"]) % 2 == 0
    if "global" in numbers:
        return window_size is None or int(numbers["global"]) % 2 == 1
    return True


def listed(names: list[str], limit: int = 8) -> str:
    """The first `limit` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find_original_checkpoint(path_or_repo_id: str | os.PathLike, **hub_kwargs: Any) -> Path | None:
    """The file of weights of a timm folder or repository, or of a folder with a file of the authors'.

    Returns:
        None where there is something else, which is then for transformers to load, or to complain about.

    Raises:
        OSError: if there is timm's `config.json` but no weights beside it.
    """
    if (authors_file := find_authors_file(path_or_repo_id, hub_kwargs.get("subfolder", ""))) is not None:
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
    # Before its weights are fetched, another model is refused.
    convert_timm_config(config)
    for filename in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        file = cached_file(path_or_repo_id, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if file is not None:
            return Path(file)
    raise OSError(f"{path_or_repo_id} has timm's {CONFIG_NAME}, but neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}.")


def find_authors_file(path: str | os.PathLike, subfolder: str = "") -> Path | None:
    """A `.pth` file, or the only one in a folder with nothing that says what else the folder could be."""
    path = Path(path, subfolder).absolute()
    if path.is_file() and path.suffix == ".pth":
        return path
    telling = (CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, "adapter_config.json")
    if not path.is_dir() or any((path / name).is_file() for name in telling):
        return None
    files = [file for file in path.iterdir() if file.suffix == ".pth"]
    return files[0] if len(files) == 1 else None


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


def infer_config(state_dict: Mapping[str, torch.Tensor], window_layers: set[tuple[int, int]]) -> dict[str, Any]:
    """The architecture that the names and shapes of a model's weights, under our names, show.

    No weight shows the size of windows, 7 tokens a side, and the number of heads, which have 32 channels in Twins-SVT and
    64 in Twins-PCPVT: so they are in all published variants.

    Args:
        state_dict: with the weights of an encoder among others.
        window_layers: stage and number of the blocks with locally-grouped attention, see `NameTable.window_layers`.

    Returns:
        Fields of a `TwinsConfig`.

    Raises:
        ValueError: if the weights are not those of a Twins model.
    """
    first = "patch_embeddings.0.projection.weight"
    encoder = next((name.removesuffix(first) for name in state_dict if name.endswith(first)), None)
    if encoder is None:
        raise ValueError(f"The checkpoint lacks a weight that every Twins model has: {first}.")
    shapes = {name.removeprefix(encoder): weight.shape for name, weight in state_dict.items()}
    names = "\n".join(shapes)
    stages = range(len(set(re.findall(r"^patch_embeddings\.(\d+)\.", names, re.MULTILINE))))
    depths = [len(set(re.findall(rf"^stages\.{stage}\.layers\.(\d+)\.", names, re.MULTILINE))) for stage in stages]
    if window_layers not in (set(), {(stage, layer) for stage in stages for layer in range(0, depths[stage], 2)}):
        raise ValueError(
            "The checkpoint must have locally-grouped attention in every other block (Twins-SVT) or in none "
            f"(Twins-PCPVT), got it in {sorted(window_layers)} (stage, block)."
        )
    fields: dict[str, Any] = {
        "num_channels": weight_size(shapes, re.escape(first), 1),
        "patch_size": weight_size(shapes, re.escape(first), 2),
        "hidden_sizes": [
            weight_size(shapes, rf"patch_embeddings\.{stage}\.projection\.weight", 0) for stage in stages
        ],
        "depths": depths,
        "window_size": 7 if window_layers else None,
        "qkv_bias": any(name.endswith(".attention.q_proj.bias") for name in shapes),
        "use_stage_norm": "stages.0.layernorm.weight" in shapes,
    }
    # A variant's own fields, so that a weight that is missing is found to be missing.
    for variant in TWINS_VARIANTS.values():
        if all(tolist(getattr(variant, name)) == fields[name] for name in ("hidden_sizes", "depths", "window_size")):
            return fields | {name: tolist(getattr(variant, name)) for name in ("num_attention_heads", "mlp_ratios")}
    head_dim = 32 if window_layers else 64
    if any(hidden_size % head_dim != 0 for hidden_size in fields["hidden_sizes"]):
        raise ValueError(
            f"The number of heads cannot be told: the stages have {fields['hidden_sizes']} channels, and heads {head_dim} "
            "in every published model."
        )
    fields["num_attention_heads"] = [hidden_size // head_dim for hidden_size in fields["hidden_sizes"]]
    fields["mlp_ratios"] = [
        whole(weight_size(shapes, rf"stages\.{stage}\.layers\.\d+\.mlp\.fc1\.weight", 0) / hidden_size)
        for stage, hidden_size in zip(stages, fields["hidden_sizes"])
    ]
    reduction = r"stages\.{}\.layers\.\d+\.attention\.sequence_reduction\.projection\.weight"
    fields["sr_ratios"] = [weight_size(shapes, reduction.format(stage), 2, default=1) for stage in stages]
    return fields


def weight_size(shapes: Mapping[str, torch.Size], pattern: str, dim: int, default: int | None = None) -> int:
    """The size of the first weight whose name fits, in one of its dimensions."""
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name):
            if len(shape) <= dim:
                raise ValueError(f"{name} must have more than {dim} dimensions, got the shape {tuple(shape)}.")
            return shape[dim]
    if default is None:
        name = pattern.replace(r"\d+", "*").replace("\\", "")
        raise ValueError(f"The checkpoint lacks a weight that every Twins model has: {name}.")
    return default


def tolist(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def original_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The configuration of a classifier in a file of the authors', as `config.json` would hold it."""
    table = NameTable(ORIGINAL_NAMES)
    weights = table.to_ours(state_dict)
    shapes = {name: weight.shape for name, weight in weights.items()}
    num_labels = weight_size(shapes, r"classifier\.weight", 0, default=0)
    config = infer_config(weights, table.window_layers(state_dict))
    return config | {"window_padding": "zeros", "num_labels": num_labels} | label_fields(num_labels)


def label_fields(num_labels: int, names: list[str] | None = None) -> dict[str, Any]:
    """`id2label` and `label2id` with these names, or with ImageNet-1k's where there are as many labels."""
    if names is None and num_labels == 1000:
        names = imagenet_class_names()
    if names is None:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def imagenet_class_names() -> list[str] | None:
    """The names of ImageNet-1k's classes; None where this module was copied without the file that lists them."""
    file = Path(__file__).with_name("imagenet_classes.txt")
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else None


def is_timm_config(config: Mapping[str, Any]) -> bool:
    # transformers adds the type of its own wrapper to what it reads.
    return "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper"


def convert_timm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's `config.json` of a Twins model, as ours would be.

    Raises:
        ValueError: if it is of another model, or of a Twins model that this package has not.
    """
    architecture = str(config["architecture"]).split(".")[0]
    variant = architecture.replace("_", "-")
    if variant not in TWINS_VARIANTS:
        architectures = ", ".join(name.replace("-", "_") for name in TWINS_VARIANTS)
        raise ValueError(f"timm's config.json must be of one of {architectures}, got {architecture!r}.")
    arguments = config.get("model_args") or {}
    unknown = set(arguments) - set(TIMM_ARGUMENTS) - set(TIMM_OTHER_ARGUMENTS) - {"wss"}
    if unknown:
        raise ValueError(f"timm's config.json has model_args that a Twins model has not: {listed(sorted(unknown))}.")
    fields = {
        field: getattr(TWINS_VARIANTS[variant], field)
        for field in ("hidden_sizes", "num_attention_heads", "depths", "mlp_ratios", "window_size")
    }
    fields |= {TIMM_ARGUMENTS[name]: value for name, value in arguments.items() if name in TIMM_ARGUMENTS}
    if arguments.get("wss"):
        if len(set(arguments["wss"])) > 1:
            raise ValueError(f"All stages must have windows of the same size, got wss={arguments['wss']}.")
        # Where timm has windows of one token, it attends globally.
        fields["window_size"] = arguments["wss"][0] if arguments["wss"][0] != 1 else None
    pretrained_cfg = config.get("pretrained_cfg") or {}
    fields.setdefault("num_channels", (pretrained_cfg.get("input_size") or [3])[0])
    num_labels = config.get("num_classes", pretrained_cfg.get("num_classes", 1000))
    names = config.get("label_names") or pretrained_cfg.get("label_names")
    if isinstance(names, Mapping):
        names = [names[index] for index in sorted(names, key=int)]
    # timm's names may be identifiers, which it describes.
    descriptions = config.get("label_descriptions") or pretrained_cfg.get("label_descriptions") or {}
    names = [descriptions.get(name, name) for name in names] if names else None
    return fields | {"window_padding": "zeros", "num_labels": num_labels} | label_fields(num_labels, names)


def convert_timm_preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's evaluation transforms in its `config.json`, as `preprocessor_config.json` would hold them.

    Raises:
        ValueError: if there is no such way to crop in the image processor.
    """
    pretrained_cfg: dict[str, Any] = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    pretrained_cfg |= {key: value for key, value in (config.get("pretrained_cfg") or {}).items() if value is not None}
    _, height, width = pretrained_cfg["input_size"]
    resample = getattr(PILImageResampling, pretrained_cfg["interpolation"].upper(), None)
    if resample is None:
        raise ValueError(
            f"timm's config.json must have an interpolation of Pillow's, got {pretrained_cfg['interpolation']!r}."
        )
    fields: dict[str, Any] = {
        "crop_size": {"height": height, "width": width},
        "resample": resample,
    }
    scaled_height, scaled_width = (int(side / pretrained_cfg["crop_pct"]) for side in (height, width))
    if pretrained_cfg["crop_mode"] == "squash":
        fields["size"] = {"height": scaled_height, "width": scaled_width}
    elif pretrained_cfg["crop_mode"] == "center" and height == width:
        fields["size"] = {"shortest_edge": scaled_height}
    else:
        raise ValueError(
            "timm's config.json must crop squares from the centre (crop_mode 'center'), or squash (crop_mode 'squash'), "
            f"got crop_mode {pretrained_cfg['crop_mode']!r} and input_size {pretrained_cfg['input_size']}."
        )
    for key, field in (("mean", "image_mean"), ("std", "image_std")):
        if key in pretrained_cfg:
            fields[field] = list(pretrained_cfg[key])
    return fields


class OriginalWeightsMixin:
    """Makes a model's `from_pretrained` understand what the authors and timm publish."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Self:
        r"""
        As [`~PreTrainedModel.from_pretrained`], which says what the arguments are; and also from

        - a folder or repository of timm's, e.g. `timm/twins_svt_small.in1k`,
        - a `.pth` file of the authors', or a folder with one.

        Raises:
            ValueError: if such a file does not hold the weights of a Twins model.
        """
        load = super().from_pretrained  # type: ignore[misc]  # of the class that this is mixed into
        checkpoint = adapter = None
        base = pretrained_model_name_or_path
        # Names and `state_dict` exclude each other, which transformers says.
        if base is not None and kwargs.get("state_dict") is None:
            hub_kwargs: Any = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
            checkpoint = find_original_checkpoint(base, **hub_kwargs)
            if checkpoint is None:
                # An adapter names the model that it was trained on.
                adapter, base, _ = maybe_load_adapters(base, hub_kwargs)
                if base != pretrained_model_name_or_path:
                    checkpoint = find_original_checkpoint(base, **hub_kwargs)
        if checkpoint is None:
            return load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        kwargs["state_dict"] = NameTable(ORIGINAL_NAMES).to_ours(read_weights(checkpoint))
        loaded = load(None, *model_args, config=config if config is not None else base, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        model.name_or_path = model.config.name_or_path = str(base)
        if adapter is not None:
            model.load_adapter(adapter, adapter_name=kwargs.get("adapter_name", "default"))
        return loaded


class OriginalConfigMixin:
    """Reads configurations also from timm's `config.json`, and from the authors' weights."""

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of the configuration in a folder or repository, and the arguments that were not used for it."""
        authors_file = find_authors_file(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
        config_dict, kwargs = super().get_config_dict(  # type: ignore[misc]  # of the class that this is mixed into
            authors_file or pretrained_model_name_or_path, **kwargs
        )
        return convert_timm_config(config_dict) if is_timm_config(config_dict) else config_dict, kwargs

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        if find_authors_file(json_file) is not None:
            return original_config(read_weights(json_file))
        return super()._dict_from_json_file(json_file)  # type: ignore[misc]  # likewise


class OriginalPreprocessingMixin:
    """Reads image processors also from timm's `config.json`; with the authors' weights go the class's defaults."""

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of the processor in a folder or repository, and the arguments that were not used for it."""
        if find_authors_file(pretrained_model_name_or_path, kwargs.get("subfolder", "")) is not None:
            return {}, kwargs
        read = super().get_image_processor_dict  # type: ignore[misc]  # of the class that this is mixed into
        try:
            return read(pretrained_model_name_or_path, **kwargs)
        except OSError as no_processor:
            try:
                config, unused = read(pretrained_model_name_or_path, image_processor_filename=CONFIG_NAME, **kwargs)
            except OSError:
                raise no_processor from None
            if not is_timm_config(config):
                raise
            return convert_timm_preprocessing(config), unused
