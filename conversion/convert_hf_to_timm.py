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
"""Convert an hf_twins model to the format of timm, the authors' code, mmpretrain or mmsegmentation.

    python conversion/convert_hf_to_timm.py DIR_OR_ID --to timm --output_dir twins_svt_small.mine
    python conversion/convert_hf_to_timm.py DIR_OR_ID --to mmseg --output upernet.pth

timm gets a folder, for `timm.create_model("local-dir:twins_svt_small.mine")`; the others get one `.pth` file. Nothing
is written unless the other architecture computes the same as the model with the same weights.
"""

import json
import sys
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import ArgumentParser

import timm
import torch
from checkpoint_formats import CheckpointFormat, revert_model
from checkpoint_sources import one_line, read_config
from huggingface_hub.utils import httpx
from timm.models import save_for_hf
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME
from verification import (
    PADDING_SETTINGS,
    backbone_config,
    different_settings,
    verify,
    verify_preprocessing,
    whole_side,
)

import hf_twins
from hf_twins import TwinsConfig
from hf_twins._utils.files import new_output
from hf_twins._utils.labels import label_names
from hf_twins.checkpoints import TIMM_ARGUMENTS, read_weights, revert_timm_preprocessing
from hf_twins.checkpoints.timm import unread_timm_fields
from hf_twins.loading import MissingProcessorError, load_image_processor, load_pretrained


# Fields that only timm's models have as arguments.
TRAINING_FIELDS = {"drop_path_rate", "attention_probs_dropout_prob"}
# Fields of a configuration that follow from the weights or the architecture, so that no toolbox has to store them.
KNOWN_FIELDS = {
    *("model_type", "architectures", "dtype", "transformers_version", "_name_or_path", "backbone_config"),
    *("out_features", "out_indices", "stage_names", "use_stage_norm", "window_size", "id2label", "label2id"),
    *(set(TIMM_ARGUMENTS.values()) - TRAINING_FIELDS),
}
# Fields that only apply to models with a head.
HEAD_FIELDS = {
    "TwinsForSemanticSegmentation": {"fpn_hidden_size", "decoder_hidden_size"},
    "UperNetForSemanticSegmentation": {
        *("hidden_size", "auxiliary_channels", "auxiliary_num_convs", "auxiliary_in_channels", "use_auxiliary_head"),
    },
}
# Fields that describe the weights that timm publishes, but not these.
TIMM_ORIGIN = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with a message and a nonzero status on failure."""
    parser = ArgumentParser()
    parser.add_argument("model", help="a folder that save_pretrained wrote, or a repository on the Hub")
    parser.add_argument(
        "--to", required=True, choices=["timm", "official", "mmpretrain", "mmseg"], help="target toolbox"
    )
    parser.add_argument(
        *("--output_dir", "--output"),
        dest="output",
        required=True,
        type=Path,
        help="output folder (timm), or .pth file (the others)",
    )
    args = parser.parse_args(arguments)
    try:
        convert(args.model, args.to, args.output)
    except httpx.TransportError as error:
        sys.exit(f"error: {args.model} cannot be fetched: {one_line(error)}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")


def convert(name: str, toolbox: str, output: Path) -> None:
    """Convert one model, and print a summary."""
    if output.exists():
        raise ValueError(f"{output} exists: remove it, or give another --output_dir.")
    # Keep the dtype of the checkpoint.
    model = load_pretrained(name, dtype="auto")
    target, weights, left_out = revert_model(model, toolbox)
    settings = different_settings(backbone_config(model), target)
    if "qkv_bias" in settings:
        raise ValueError(f"{target.name} has no models with {settings['qkv_bias']}: {name} cannot be converted.")
    preprocessing = timm_preprocessing(name, model, target) if toolbox == "timm" else None
    left_out += unkept_fields(name, model, target, "head.weight" in weights)
    differences = verify(model, target, weights)
    print(f"model     {name}, {type(model).__name__}")
    print(f"format    {target.name}")
    print(f"left out  {', '.join(left_out) or 'nothing'}")
    print(f"verified  {', '.join(f'{key} {difference:.1e}' for key, difference in differences.items())}")
    if different := [text for key, text in settings.items() if key in PADDING_SETTINGS]:
        print(f"note      results differ for images with partial windows or patches: {', '.join(different)}")
    if preprocessing is not None:
        with new_output(output) as folder:
            write_timm(folder, model, weights, preprocessing)
    else:
        labels = label_names(model.config)
        content = {"meta": {"CLASSES": labels}, "state_dict": weights} if target.wrapped else weights
        write_file(output, content, weights)
    print(f"written   {output}")


def unkept_fields(name: str, model: PreTrainedModel, target: CheckpointFormat, has_head: bool) -> list[str]:
    """Parts of a model's configuration, labels and image processor that the other toolbox lacks."""
    known = KNOWN_FIELDS | target.config.keys() | HEAD_FIELDS.get(type(model).__name__, set())
    is_timm = target.toolbox == "timm"
    if is_timm:
        known |= TRAINING_FIELDS
    fields: list[str] = []
    config: Any = model.config
    for each in [config, config.backbone_config] if hasattr(config, "backbone_config") else [config]:
        defaults = type(each)().to_dict()
        fields += [key for key, value in each.to_dict().items() if key not in known and value != defaults.get(key)]
    settings = different_settings(backbone_config(model), target)
    fields += [text for key, text in settings.items() if key not in PADDING_SETTINGS]
    names = label_names(model.config)
    has_names = names != [f"LABEL_{index}" for index in range(len(names))]
    if has_names and not (has_head if is_timm else target.wrapped):
        fields.append("the names of the labels")
    if not is_timm and has_image_processor(name):
        fields.append("the image processor")
    timm_config = None if Path(name).is_file() else read_config(name)[0]
    if timm_config is not None:
        fields += unread_timm_fields(timm_config)
        fields += ["pretrained_cfg.license"] if (timm_config.get("pretrained_cfg") or {}).get("license") else []
    return fields


def has_image_processor(name: str) -> bool:
    try:
        load_image_processor(name)
    except MissingProcessorError:
        return False
    except (OSError, ValueError):
        # An invalid image processor exists, too.
        pass
    return True


def write_timm(
    folder: Path, model: PreTrainedModel, weights: dict[str, torch.Tensor], preprocessing: dict[str, Any]
) -> None:
    """Save a model with timm's own function."""
    config = backbone_config(model)
    arguments = {timm_name: getattr(config, name) for timm_name, name in TIMM_ARGUMENTS.items()}
    arguments["wss"] = [config.window_size] * len(config.depths) if config.window_size else None
    variant = hf_twins.published_variant(config.to_dict()) or (
        "twins-svt-small" if config.window_size else "twins-pcpvt-small"
    )
    num_labels = config.num_labels if "head.weight" in weights else 0
    # timm treats Twins models as models with a fixed image size, and saves this size.
    image_size = {"img_size": preprocessing["input_size"][1:]} if preprocessing else {}
    timm_model = timm.create_model(
        variant.replace("-", "_"),
        num_classes=num_labels,
        pretrained_cfg_overlay=dict.fromkeys(TIMM_ORIGIN),
        **arguments,
        **image_size,
    )
    timm_model.load_state_dict(weights, assign=True)
    model_config: dict[str, Any] = {"pretrained_cfg": preprocessing}
    if num_labels:
        model_config["label_names"] = label_names(config)
    save_for_hf(timm_model, str(folder), model_config=model_config, model_args=arguments, safe_serialization=True)
    check_written(folder / "model.safetensors", weights)
    written = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["pretrained_cfg"]
    if preprocessing != {key: written.get(key) for key in preprocessing}:
        raise ValueError(f"{folder / CONFIG_NAME} does not have the preprocessing that it should, {preprocessing}.")


def timm_preprocessing(name: str, model: PreTrainedModel, target: CheckpointFormat) -> dict[str, Any]:
    """Convert the model's image processor to timm's settings of evaluation transforms, and verify them.

    Without an image processor, timm's default settings are used.

    Raises:
        ValueError: if timm does not support such transforms, or pads such images differently from the model.
    """
    config = backbone_config(model)
    try:
        processor = load_image_processor(name)
    except MissingProcessorError:
        print(f"note      {name} has no image processor: timm prepares images as for its own models")
        check_image_size(name, config, 224, 224)
        return {}
    preprocessing = revert_timm_preprocessing(processor, config.num_channels)
    check_image_size(name, config, *preprocessing["input_size"][1:])
    difference = verify_preprocessing(processor, preprocessing)
    print(f"images    {'not verified' if difference is None else f'verified {difference:.1e}'}, {preprocessing}")
    _, height, width = preprocessing["input_size"]
    side = whole_side(config)
    different = [text for key, text in different_settings(config, target).items() if key in PADDING_SETTINGS]
    if different and (height % side or width % side):
        raise ValueError(
            f"{name} has {', '.join(different)}, which affects its images of {height} x {width}: only multiples of {side} are "
            "a whole number of windows and patches in every stage. Save it with an image processor of such a size, or set "
            "the other value in its config.json, evaluate its accuracy again, because its outputs change, and "
            "convert that."
        )
    return preprocessing


def check_image_size(name: str, config: TwinsConfig, height: int, width: int) -> None:
    """Raise a ValueError if timm cannot build the model for images of this size."""
    multiple = config.patch_size * 2 ** (len(config.depths) - 1)
    if height % multiple or width % multiple:
        raise ValueError(
            f"timm would give {name} images of {height} x {width}, but takes only multiples of {multiple}: save it with an "
            "image processor of such a size."
        )


def write_file(output: Path, content: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Write a PyTorch file atomically."""
    with new_output(output, is_folder=False) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:
            # PyTorch raises this error if the disk is full.
            raise OSError(f"{output} cannot be written: {error}") from error
        check_written(partial, weights)


def check_written(file: Path, weights: dict[str, torch.Tensor]) -> None:
    reloaded = read_weights(file)
    if reloaded.keys() != weights.keys() or not all(torch.equal(reloaded[key], weights[key]) for key in weights):
        raise ValueError(f"{file} differs from what was written.")


if __name__ == "__main__":
    main()
