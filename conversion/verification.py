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
"""Verifies that a converted model computes the same as its source."""

import copy
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers
from checkpoint_formats import CheckpointFormat
from reference_models import reference_outputs
from timm.data import create_transform, resolve_data_config
from transformers import PreTrainedModel, UperNetForSemanticSegmentation
from transformers.image_processing_backends import TorchvisionBackend

import hf_twins
from hf_twins import TwinsBackbone, TwinsConfig, TwinsForImageClassification, TwinsForSemanticSegmentation
from hf_twins._utils.images import MODES


# Maximum difference relative to the largest value, in float32.
TOLERANCE = 1e-5
# Maximum relative L2 norm of the difference if torchvision resizes, which rounds differently from Pillow.
TORCHVISION_TOLERANCE = 1e-3
# Fields of a configuration that only affect images with incomplete windows or patches.
PADDING_SETTINGS = ("window_padding", "patch_padding")


def verify(
    model: PreTrainedModel, source_format: CheckpointFormat, source_weights: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Compare a model with the same weights in another toolbox's architecture, on random noise.

    One image has only complete windows and patches in all stages. Another one has incomplete ones, to test padding. It
    is skipped if the two architectures are known to pad differently, see `different_settings`.

    Args:
        model: model that was converted from or to that format.
        source_format: the format.
        source_weights: the weights under the format's names.

    Returns:
        The largest difference of each output, relative to the output's largest value, in float32.

    Raises:
        ValueError: if a difference exceeds 1e-5.
    """
    config = copy.deepcopy(backbone_config(model))
    settings = different_settings(config, source_format)
    # The side is so large that an image with half of it is valid, too.
    side = whole_side(config) * math.ceil(2 * (config.min_image_size + 3) / whole_side(config))
    sizes = [(side, side)]
    if not settings.keys() & set(PADDING_SETTINGS):
        sizes.append((side // 2 - 3, side - 1))
    for name, value in source_format.config.items():
        setattr(config, name, value)
    weights = {name: weight.float() for name, weight in source_weights.items()}
    model = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(0)
    differences: dict[str, float] = {}
    for height, width in sizes:
        image = torch.randn(1, config.num_channels, height, width, generator=generator)
        with torch.inference_mode():
            expected = reference_outputs(source_format.toolbox, weights, config, image)
            actual = model_outputs(model, image)
        for name, value in expected.items():
            difference = largest_difference(actual[name], value)
            differences[name] = max(difference, differences.get(name, 0.0))
    # A test with `any(difference > TOLERANCE)` would accept NaN.
    if not all(difference <= TOLERANCE for difference in differences.values()):
        raise ValueError(
            f"The model's outputs differ from those of {source_format.name}: the largest relative differences are "
            f"{', '.join(f'{value:.1e} in {name}' for name, value in differences.items())}, more than {TOLERANCE:.0e}."
            f"{way_out(settings)}"
        )
    return differences


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max())


def whole_side(config: TwinsConfig) -> int:
    """The side in pixels of the smallest square image with only complete patches and windows in every stage."""
    return (config.window_size or 1) * config.patch_size * 2 ** (len(config.depths) - 1)


def different_settings(config: TwinsConfig, source_format: CheckpointFormat) -> dict[str, str]:
    """Descriptions, by name, of the settings in which a model differs from the format's models."""
    return {
        name: f"{name}={getattr(config, name)} (there {value})"
        for name, value in source_format.config.items()
        if getattr(config, name) != value and not (name == "window_padding" and config.window_size is None)
    }


def way_out(settings: Mapping[str, str]) -> str:
    if not settings:
        return ""
    return (
        f" The model has {', '.join(settings.values())}: set the other value in its config.json, which changes its outputs, "
        "evaluate its accuracy again, and convert that."
    )


def verify_preprocessing(processor: Any, pretrained_cfg: Mapping[str, Any]) -> float | None:
    """Compare an image processor with timm's evaluation transforms, on image files.

    Args:
        processor: the image processor; if it has a backend that resizes with Pillow, as timm does, that one is
            compared.
        pretrained_cfg: timm's settings.

    Returns:
        The largest relative difference; None if image files cannot have this number of channels.

    Raises:
        ValueError: if the difference exceeds 1e-5, or 1e-3 if torchvision resizes.
    """
    num_channels, height, width = pretrained_cfg["input_size"]
    if num_channels not in MODES:
        return None
    if isinstance(processor, TorchvisionBackend):
        name = type(processor).__name__
        pil_class = getattr(hf_twins, f"{name}Pil", None) or getattr(transformers, f"{name}Pil", None)
        processor = pil_class.from_dict(processor.to_dict()) if pil_class is not None else processor
    exact = not isinstance(processor, TorchvisionBackend)
    transform = create_transform(**resolve_data_config(pretrained_cfg=pretrained_cfg))
    generator = torch.Generator().manual_seed(0)
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        # Test landscape, portrait, and an image smaller than the crop, with odd and even sides.
        for columns, rows in (
            (2 * width + 3, height + 30),
            (width + 31, 3 * height),
            (width // 2 + 2, height // 2 + 1),
        ):
            # Like in photographs, neighboring pixels of this noise are similar.
            shape = (rows // 4, columns // 4, num_channels)
            noise = torch.randint(256, shape, dtype=torch.uint8, generator=generator).squeeze(2)
            image = PIL.Image.fromarray(noise.numpy(), MODES[num_channels]).resize((columns, rows))
            image.save(file := Path(folder, f"{columns}.png"))
            with PIL.Image.open(file) as opened:
                expected: Any = transform(opened.convert(MODES[num_channels]))
                actual = processor(opened, return_tensors="pt")["pixel_values"][0]
            differences.append(relative_difference(actual, expected, exact))
    tolerance = TOLERANCE if exact else TORCHVISION_TOLERANCE
    if not all(difference <= tolerance for difference in differences):
        raise ValueError(
            f"The image processor, {type(processor).__name__}, differs from timm's transforms with "
            f"{dict(pretrained_cfg)}: the relative difference is {max(differences):.1e}, more than {tolerance:.0e}. Save the "
            "model with a TwinsImageProcessor."
        )
    return max(differences)


def relative_difference(actual: torch.Tensor, expected: torch.Tensor, exact: bool) -> float:
    if exact or actual.shape != expected.shape:
        return largest_difference(actual, expected)
    return float((actual - expected).norm() / expected.norm())


def backbone_config(model: PreTrainedModel) -> TwinsConfig:
    config: Any = model.config
    return getattr(config, "backbone_config", config)


def model_outputs(model: PreTrainedModel, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The model's outputs under the names of `reference_outputs`."""
    if isinstance(model, UperNetForSemanticSegmentation):
        maps = model.backbone(image).feature_maps
        outputs = named_stages(maps) | {"logits": model.decode_head(maps)}
        return outputs | ({"auxiliary_logits": model.auxiliary_head(maps)} if model.auxiliary_head else {})
    if isinstance(model, TwinsForSemanticSegmentation):
        maps = model.twins(image, output_hidden_states=True).hidden_states[1:]
        return named_stages(maps) | {"logits": model.decode_head(model.neck(maps))}
    if isinstance(model, TwinsBackbone):
        return named_stages(model.encoder(image, output_hidden_states=True).hidden_states[1:])
    base_model = model.twins if isinstance(model, TwinsForImageClassification) else model
    outputs = base_model(image, output_hidden_states=True)
    head = {"pooled": outputs.pooler_output}
    if isinstance(model, TwinsForImageClassification):
        head["logits"] = model.classifier(outputs.pooler_output)
    return named_stages(outputs.hidden_states[1:]) | head


def named_stages(maps: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    return {f"stage{index}": each for index, each in enumerate(maps, start=1)}
