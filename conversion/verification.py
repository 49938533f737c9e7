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
"""The proof that a converted model computes what its source does."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from checkpoint_formats import CheckpointFormat
from reference_models import reference_outputs
from transformers import PreTrainedModel, UperNetForSemanticSegmentation

from hf_twins import TwinsBackbone, TwinsConfig, TwinsForImageClassification, TwinsForSemanticSegmentation


# Of the largest value, in float32.
TOLERANCE = 1e-5


def verify(
    model: PreTrainedModel, source_format: CheckpointFormat, source_weights: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Compare a model with the same weights in another toolbox's architecture, on images of noise.

    One image makes whole windows and patches everywhere. Another does not, so that padding shows; it is left out where
    the two are known to pad differently, see `different_settings`.

    Args:
        model: converted from or to that format.
        source_format: the format.
        source_weights: the weights under the format's names.

    Returns:
        The largest difference of each output, relative to the output's largest value, in float32.

    Raises:
        ValueError: if one is more than 1e-5.
    """
    config = copy.deepcopy(backbone_config(model))
    side = 7 * config.patch_size * 2 ** (len(config.depths) - 1)
    sizes = [(side, side)]
    if not different_settings(config, source_format):
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
    # Not "any is larger", which NaN is not.
    if not all(difference <= TOLERANCE for difference in differences.values()):
        raise ValueError(
            f"The model does not compute what it does as {source_format.name}: the largest relative differences are "
            f"{', '.join(f'{value:.1e} in {name}' for name, value in differences.items())}, more than {TOLERANCE:.0e}."
        )
    return differences


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max())


def different_settings(config: TwinsConfig, source_format: CheckpointFormat) -> list[str]:
    """The settings, as text, in which a model pads otherwise than the format's models do."""
    return [
        f"{name}={getattr(config, name)} (there {value})"
        for name, value in source_format.config.items()
        if getattr(config, name) != value and not (name == "window_padding" and config.window_size is None)
    ]


def backbone_config(model: PreTrainedModel) -> TwinsConfig:
    config: Any = model.config
    return getattr(config, "backbone_config", config)


def model_outputs(model: PreTrainedModel, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs that `reference_outputs` may have."""
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
