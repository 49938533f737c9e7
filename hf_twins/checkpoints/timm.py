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
"""timm's `config.json`: the architecture and the preprocessing."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ..configuration_twins import TWINS_ARCHITECTURES
from .labels import known_label_fields
from .names import listed


# Maps timm's arguments of an architecture to the fields of the configuration.
TIMM_ARGUMENTS = {
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dims": "hidden_sizes",
    "num_heads": "num_attention_heads",
    "mlp_ratios": "mlp_ratios",
    "depths": "depths",
    "sr_ratios": "sr_ratios",
    "drop_path_rate": "drop_path_rate",
    "attn_drop_rate": "attention_probs_dropout_prob",
}
# timm's dropouts that hf_twins models do not have, or have elsewhere. They only affect training.
TIMM_DROPOUTS = ("drop_rate", "pos_drop_rate", "proj_drop_rate")
# timm's arguments that affect neither the weights nor the output.
TIMM_OTHER_ARGUMENTS = ("img_size", "num_classes", "global_pool", "pretrained", "pretrained_cfg", *TIMM_DROPOUTS)
# Fields of `config.json` and its `pretrained_cfg` that are ignored, because they follow from timm's class and the
# weights, or describe their origin.
TIMM_OTHER_FIELDS = {
    *("architecture", "num_features", "global_pool", "model_args", "model_type", "pretrained_cfg"),
    *("custom_load", "fixed_input_size", "pool_size", "test_pool_size", "first_conv", "classifier"),
    *("url", "file", "hf_hub_id", "hf_hub_filename", "source"),
}


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(is_number(each) for each in value)


def are_names(value: Any) -> bool:
    names = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [None]
    keys = value if isinstance(value, Mapping) else ()
    return all(isinstance(name, str) for name in names) and all(str(key).isdecimal() for key in keys)


# Checks and descriptions of the fields that are read, because the file may have been written by hand.
FIELD_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_classes": (is_whole, "a whole number"),
    "label_names": (are_names, "a list of names, or names by their numbers"),
    "label_descriptions": (lambda value: isinstance(value, Mapping), "an object"),
    "input_size": (lambda value: are_numbers(value) and len(value) == 3 and all(map(is_whole, value)), "three sizes"),
    "crop_pct": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "crop_mode": (lambda value: isinstance(value, str), "a string"),
    "interpolation": (lambda value: isinstance(value, str), "a string"),
    "license": (lambda value: isinstance(value, str), "a string"),
    "mean": (are_numbers, "a list of numbers"),
    "std": (are_numbers, "a list of numbers"),
    **dict.fromkeys(("patch_size", "in_chans"), (is_whole, "a whole number")),
    **dict.fromkeys(("drop_path_rate", "attn_drop_rate"), (is_number, "a number")),
    **dict.fromkeys(
        ("embed_dims", "num_heads", "mlp_ratios", "depths", "sr_ratios", "wss"), (are_numbers, "a list of numbers")
    ),
}


def check_types(config: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first field with a value of the wrong type."""
    for part in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(part) or {}, Mapping):
            raise ValueError(f"timm's config.json must have an object for {part}, got {config[part]!r}.")
    for fields in (config, config.get("model_args") or {}, config.get("pretrained_cfg") or {}):
        for name, (is_right, expected) in FIELD_TYPES.items():
            if fields.get(name) is not None and not is_right(fields[name]):
                raise ValueError(
                    f"timm's config.json must have {expected} for {name}, got {str(fields[name])[:100]!r}."
                )


def is_timm_config(config: Mapping[str, Any]) -> bool:
    # transformers may add the model_type of its timm wrapper to the fields that it reads.
    return (
        isinstance(config, Mapping)
        and "architecture" in config
        and config.get("model_type", "timm_wrapper") == "timm_wrapper"
    )


def convert_timm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert timm's `config.json` of a Twins model to hf_twins'.

    Raises:
        ValueError: if it is for another model or a Twins model that hf_twins lacks, or a field has the wrong type.
    """
    architecture = str(config["architecture"]).split(".")[0]
    variant = architecture.replace("_", "-")
    if variant not in TWINS_ARCHITECTURES:
        architectures = ", ".join(name.replace("-", "_") for name in TWINS_ARCHITECTURES)
        raise ValueError(f"timm's config.json must describe one of {architectures}, got {architecture!r}.")
    check_types(config)
    arguments = config.get("model_args") or {}
    unknown = set(arguments) - set(TIMM_ARGUMENTS) - set(TIMM_OTHER_ARGUMENTS) - {"wss"}
    if unknown:
        raise ValueError(f"timm's config.json has model_args that are not those of Twins: {listed(sorted(unknown))}.")
    if arguments.get("global_pool") not in (None, "avg"):
        raise ValueError(
            f"timm's config.json must have a global_pool of 'avg', as Twins models have, got {str(arguments['global_pool'])[:100]!r}."
        )
    fields = dict(TWINS_ARCHITECTURES[variant])
    fields |= {TIMM_ARGUMENTS[name]: value for name, value in arguments.items() if name in TIMM_ARGUMENTS}
    if arguments.get("wss"):
        if len(set(arguments["wss"])) > 1:
            raise ValueError(f"All stages must have windows of the same size, got wss={arguments['wss']}.")
        # timm uses global attention if windows have one token.
        fields["window_size"] = arguments["wss"][0] if arguments["wss"][0] != 1 else None
    pretrained_cfg = config.get("pretrained_cfg") or {}
    fields.setdefault("num_channels", (pretrained_cfg.get("input_size") or [3])[0])
    num_labels = config.get("num_classes", pretrained_cfg.get("num_classes", 1000))
    names = timm_label_names(config)
    return fields | {"window_padding": "zeros", "num_labels": num_labels} | known_label_fields(num_labels, names)


def timm_label_names(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the labels in timm's `config.json`, in the order of their numbers; None if it has none."""
    pretrained_cfg = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or pretrained_cfg.get("label_names")
    if isinstance(names, Mapping):
        names = [names[index] for index in sorted(names, key=int)]
    # timm's names may be identifiers, with descriptions in a separate field.
    descriptions = config.get("label_descriptions") or pretrained_cfg.get("label_descriptions") or {}
    return [descriptions.get(name, name) for name in names] if names else None


def unread_timm_fields(config: Mapping[str, Any]) -> list[str]:
    """The paths of fields with information in timm's `config.json` that hf_twins' configuration cannot hold."""
    arguments = config.get("model_args") or {}
    unread = [f"model_args.{name}" for name in TIMM_DROPOUTS if arguments.get(name)]
    for path, fields in (("", config), ("pretrained_cfg.", config.get("pretrained_cfg") or {})):
        known = FIELD_TYPES.keys() | TIMM_OTHER_FIELDS
        unread += [f"{path}{name}" for name, value in fields.items() if value is not None and name not in known]
        if fields.get("label_descriptions"):
            unread.append(f"{path}label_names, whose label_descriptions are taken")
    return unread


def convert_timm_preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert timm's evaluation transforms in its `config.json` to the fields of a `preprocessor_config.json`.

    Raises:
        ValueError: if the image processor does not support timm's way of cropping, or a field has the wrong type.
    """
    check_types(config)
    pretrained_cfg: dict[str, Any] = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    pretrained_cfg |= {key: value for key, value in (config.get("pretrained_cfg") or {}).items() if value is not None}
    num_channels, height, width = pretrained_cfg["input_size"]
    resample = getattr(PILImageResampling, pretrained_cfg["interpolation"].upper(), None)
    if resample is None:
        raise ValueError(
            f"timm's config.json must have one of Pillow's interpolations, got {pretrained_cfg['interpolation']!r}."
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
            "timm's config.json must crop squares from the center (crop_mode 'center'), or squash (crop_mode 'squash'), "
            f"got crop_mode {pretrained_cfg['crop_mode']!r} and input_size {pretrained_cfg['input_size']}."
        )
    num_channels = (config.get("model_args") or {}).get("in_chans") or num_channels
    if num_channels != 3:
        fields["do_convert_rgb"] = False
    for key, field, default in (
        ("mean", "image_mean", IMAGENET_DEFAULT_MEAN),
        ("std", "image_std", IMAGENET_DEFAULT_STD),
    ):
        values = list(pretrained_cfg.get(key, default))
        if len(values) != num_channels:
            # timm's own scripts average the values in this case.
            values = num_channels * [sum(values) / len(values)]
        if key in pretrained_cfg or num_channels != 3:
            fields[field] = values
    return fields


def revert_timm_preprocessing(processor: Any, num_channels: int) -> dict[str, Any]:
    """Convert an image processor to fields of the `pretrained_cfg` in timm's `config.json`.

    Args:
        processor: a [`TwinsImageProcessor`], or an image processor of transformers with the same fields.
        num_channels: number of channels of the model.

    Returns:
        `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`. timm always divides pixels by 255, so
        the mean and std are adjusted for other rescale factors, and for images that are not normalized.

    Raises:
        ValueError: if timm does not support this preprocessing. The message names the field.
    """
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    if not processor.do_resize:
        raise cannot_say("do_resize=False", "always resizes", "do_resize=True")
    resample = PILImageResampling.BILINEAR if processor.resample is None else processor.resample
    if resample not in list(PILImageResampling):
        raise cannot_say(f"resample={resample!r}", "resizes as Pillow does", "one of Pillow's filters")
    if processor.do_center_crop:
        crop = (processor.crop_size["height"], processor.crop_size["width"])
    elif size.keys() == {"height", "width"}:
        crop = (size["height"], size["width"])
    else:
        raise cannot_say(
            f"do_center_crop=False and size={size}",
            "makes all images of one size",
            "do_center_crop=True, or a size with height and width",
        )
    if size.keys() == {"height", "width"}:
        crop_mode, resized = "squash", (size["height"], size["width"])
    elif size.keys() == {"shortest_edge"} and crop[0] == crop[1]:
        crop_mode, resized = "center", (size["shortest_edge"], size["shortest_edge"])
    else:
        raise cannot_say(
            f"size={size} and crop_size={dict(zip(('height', 'width'), crop))}",
            "resizes to a shortest_edge and crops a square, or resizes to a height and a width",
            "such sizes",
        )
    crop_pct = share_of_crop(crop, resized)
    if crop_pct is None or any(part > whole for part, whole in zip(crop, resized)):
        raise cannot_say(
            f"size={size} and crop_size={dict(zip(('height', 'width'), crop))}",
            "has one share, crop_pct, by which both sides of a crop are smaller than those of the resized image",
            "such sizes",
        )
    if processor.do_pad and processor.pad_size and (processor.pad_size["height"], processor.pad_size["width"]) != crop:
        raise cannot_say(f"do_pad=True and pad_size={dict(processor.pad_size)}", "never pads", "do_pad=False")
    if processor.do_convert_rgb and num_channels != 3:
        raise cannot_say("do_convert_rgb=True", f"gives this model {num_channels} channels", "do_convert_rgb=False")
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    mean, std = [0.0] * num_channels, [1.0] * num_channels
    if processor.do_normalize:
        mean, std = (
            [float(value)] * num_channels if isinstance(value, int | float) else list(value)
            for value in (processor.image_mean, processor.image_std)
        )
    if len(mean) != num_channels or len(std) != num_channels or not all((scale, *std)):
        raise cannot_say(
            f"image_mean={mean}, image_std={std} and rescale_factor={processor.rescale_factor}",
            f"normalizes the {num_channels} channels of this model",
            f"{num_channels} numbers each, and neither a std nor a factor of 0",
        )
    return {
        "input_size": [num_channels, *crop],
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": PILImageResampling(resample).name.lower(),
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
    }


def cannot_say(setting: str, timm: str, way_out: str) -> ValueError:
    return ValueError(
        f"The image processor has {setting}, which timm's config.json cannot express: timm {timm}. Save the model "
        f"with an image processor that has {way_out}."
    )


def share_of_crop(crop: tuple[int, int], resized: tuple[int, int]) -> float | None:
    """The `crop_pct` for which timm, which rounds down, resizes both sides as given; None if there is none."""
    largest = min(part / whole for part, whole in zip(crop, resized))
    smallest = max(part / (whole + 1) for part, whole in zip(crop, resized))
    # Prefer the plain quotient, unless rounding makes a side one pixel shorter.
    for share in (largest, (smallest + largest) / 2):
        if all(math.floor(part / share) == whole for part, whole in zip(crop, resized)):
            return share
    return None
