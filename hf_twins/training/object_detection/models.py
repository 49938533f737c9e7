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
"""Detectors to train: a backbone, a head for the categories of the dataset, and the image processor."""

import json
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    DFineConfig,
    DFineForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_twins import TwinsBackbone, TwinsConfig, pass_pixel_mask_to_backbone
from hf_twins._utils.labels import label_fields
from hf_twins.detection import TwinsDetectorConfig, TwinsDetectorImageProcessor, TwinsForObjectDetection
from hf_twins.detection.configuration import FIRST_STAGE
from hf_twins.detection.modeling import SIZE_DIVISOR, stage_strides
from hf_twins.loading import load_pretrained
from hf_twins.training.object_detection.arguments import DetectionRecipe, ModelArguments
from hf_twins.training.trainer import twins_config


@dataclass(frozen=True)
class DetectorClasses:
    """The classes of a detector.

    Args:
        config_class: class of the configuration.
        model_class: class of the model.
        processor_class: class of the image processor.
        first_stage: index of the first stage whose feature map the detector uses.
        is_square: whether images are resized to squares, because the detector's encoder does not support padding.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    processor_class: Any
    first_stage: int
    is_square: bool = False


DETECTORS = {
    detector: DetectorClasses(TwinsDetectorConfig, TwinsForObjectDetection, TwinsDetectorImageProcessor, first_stage)
    for detector, first_stage in FIRST_STAGE.items()
} | {
    "detr": DetectorClasses(DetrConfig, DetrForObjectDetection, DetrImageProcessor, -1),
    "conditional-detr": DetectorClasses(
        ConditionalDetrConfig, ConditionalDetrForObjectDetection, ConditionalDetrImageProcessor, -1
    ),
    "deformable-detr": DetectorClasses(
        DeformableDetrConfig, DeformableDetrForObjectDetection, DeformableDetrImageProcessor, 1
    ),
    "rt-detr": DetectorClasses(RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, 1, is_square=True),
    "d-fine": DetectorClasses(DFineConfig, DFineForObjectDetection, RTDetrImageProcessor, 1, is_square=True),
}


def create_detector(
    arguments: ModelArguments, recipe: DetectionRecipe, names: list[str]
) -> tuple[PreTrainedModel, Any]:
    """Create a detector for categories with these names, and its image processor.

    Args:
        arguments: the detector, and its backbone.
        recipe: sizes of the images, and options of the backbone.
        names: names of the categories.

    Raises:
        OSError: if the backbone is not found.
        ValueError: if the arguments contradict each other.
    """
    if arguments.detector not in DETECTORS:
        raise ValueError(f"--detector must be one of {', '.join(DETECTORS)}, got {arguments.detector}.")
    classes = DETECTORS[arguments.detector]
    backbone_config, trained = load_backbone(arguments, recipe, classes.first_stage)
    fields = {"backbone_config": backbone_config} | label_fields(names)
    if classes.model_class is TwinsForObjectDetection:
        fields["detector"] = arguments.detector
    elif classes.is_square:
        fields["encoder_in_channels"] = backbone_config.hidden_sizes[classes.first_stage :]
        fields["feat_strides"] = stage_strides(backbone_config)
    model: Any = classes.model_class(create_config(classes.config_class, fields, arguments.detector_config))
    if classes.model_class is not TwinsForObjectDetection:
        # The losses are means over the objects of a batch, so the Trainer must average over accumulated batches.
        model.accepts_loss_kwargs = False
        pass_pixel_mask_to_backbone(model)
    if trained is not None:
        find_backbone(model).load_state_dict(trained.state_dict())
    return model, create_processor(classes, recipe)


def create_config(config_class: Any, fields: dict[str, Any], options: str) -> Any:
    """Create the detector's configuration, with the fields that `options` gives as JSON.

    Raises:
        ValueError: if `options` is not a JSON object, or has an unknown field or an invalid value.
    """
    try:
        given = json.loads(options)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"--detector_config must be a JSON object, got {options}.")
    unknown = [name for name in given if not hasattr(config_class, name)]
    if unknown:
        raise ValueError(f"--detector_config: {config_class.__name__} has no field {', '.join(unknown)}.")
    try:
        return config_class(**fields | given)
    except StrictDataclassError as error:
        raise ValueError(f"--detector_config: {error}") from error


def load_backbone(
    arguments: ModelArguments, recipe: DetectionRecipe, first_stage: int
) -> tuple[TwinsConfig, TwinsBackbone | None]:
    """Load the backbone's configuration and, unless it starts from random weights, the backbone."""
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("Give either --model_name_or_path or --config_name.")
    name = str(arguments.model_name_or_path or arguments.config_name)
    config = twins_config(name, arguments.model_revision)
    fields: dict[str, Any] = {}
    if recipe.stage_norm and config.window_size is not None:
        fields["use_stage_norm"] = True
    drop_path_rate = recipe.drop_path_rate_of(lambda: config)
    if drop_path_rate is not None:
        fields["drop_path_rate"] = drop_path_rate
    if recipe.window_padding is not None:
        fields["window_padding"] = recipe.window_padding
    fields["out_features"] = config.stage_names[1:][first_stage:]
    for field_name, value in fields.items():
        setattr(config, field_name, value)
    config.validate_architecture()
    if arguments.model_name_or_path is None:
        return config, None
    # The stage norms that the recipe may add have no trained weights.
    trained = load_pretrained(name, "backbone", revision=arguments.model_revision, allow_new_weights=True, **fields)
    return config, trained


def find_backbone(model: nn.Module) -> TwinsBackbone:
    """The Twins backbone within a detector."""
    return next(module for module in model.modules() if isinstance(module, TwinsBackbone))


def create_processor(classes: DetectorClasses, recipe: DetectionRecipe) -> Any:
    """Create the image processor, which resizes images to the recipe's size and normalizes them."""
    if classes.is_square:
        if recipe.shortest_edge % SIZE_DIVISOR != 0:
            raise ValueError(
                f"--shortest_edge must be a multiple of {SIZE_DIVISOR} for this detector, "
                f"whose encoder does not support padding, got {recipe.shortest_edge}."
            )
        size = {"height": recipe.shortest_edge, "width": recipe.shortest_edge}
    else:
        if recipe.longest_edge < recipe.shortest_edge:
            raise ValueError(
                f"--longest_edge must be at least --shortest_edge, {recipe.shortest_edge}, got {recipe.longest_edge}."
            )
        size = {"shortest_edge": recipe.shortest_edge, "longest_edge": recipe.longest_edge}
    return classes.processor_class(
        size=size, do_normalize=True, image_mean=list(IMAGENET_DEFAULT_MEAN), image_std=list(IMAGENET_DEFAULT_STD)
    )
