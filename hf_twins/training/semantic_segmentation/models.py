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
"""Creates segmentation models with either head on a pretrained backbone, or loads trained ones."""

import logging
from collections.abc import Sequence
from typing import Any

from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.image_utils import PILImageResampling

from hf_twins import (
    TWINS_VARIANTS,
    TwinsBackbone,
    TwinsConfig,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
)
from hf_twins._utils.labels import label_fields
from hf_twins.loading import MissingProcessorError, load_image_processor, load_pretrained
from hf_twins.training.semantic_segmentation.arguments import HEADS, ModelArguments
from hf_twins.training.semantic_segmentation.data import IGNORE_INDEX
from hf_twins.training.trainer import twins_config


logger = logging.getLogger(__name__)
# Shorter side in pixels of the published models' crops and images; the longer side is at most four times as long.
IMAGE_SIZE = 512


def checkpoint_config(arguments: ModelArguments) -> dict[str, Any]:
    """The fields of the checkpoint's `config.json`; empty for a variant, or for a file of weights.

    Raises:
        ValueError: if the arguments contradict each other.
    """
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("Give either --model_name_or_path or --config_name.")
    if arguments.head is not None and arguments.head not in HEADS:
        raise ValueError(f"--head must be one of {', '.join(HEADS)}, got {arguments.head}.")
    name = str(arguments.model_name_or_path or arguments.config_name)
    if name in TWINS_VARIANTS:
        return {}
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name, revision=arguments.model_revision)
    except OSError:
        # Loading the model raises the right error, or accepts the file.
        return {}
    if fields.get("model_type") == "upernet" and arguments.head == "semantic-fpn":
        raise ValueError(f"{name} is an UperNet: --head semantic-fpn needs another checkpoint.")
    return fields


def segmentation_labels(fields: dict[str, Any]) -> list[str] | None:
    """The class names of a segmentation checkpoint; None for any other checkpoint, or without one."""
    is_segmenter = any(str(name).endswith("ForSemanticSegmentation") for name in fields.get("architectures") or [])
    labels = fields.get("id2label")
    return list(labels.values()) if is_segmenter and labels else None


def backbone_config(arguments: ModelArguments, fields: dict[str, Any]) -> TwinsConfig:
    """The configuration of the backbone that the arguments name; `fields` are `checkpoint_config(arguments)`."""
    if fields.get("model_type") == "upernet":
        return TwinsConfig.from_dict(fields["backbone_config"])
    return twins_config(str(arguments.model_name_or_path or arguments.config_name), arguments.model_revision)


def create_model(
    arguments: ModelArguments, fields: dict[str, Any], labels: Sequence[str], drop_path_rate: float | None
) -> PreTrainedModel:
    """Create the model with a head for `labels`.

    Args:
        arguments: model options.
        fields: `checkpoint_config(arguments)`.
        labels: names of the classes.
        drop_path_rate: the backbone's rate; the checkpoint's if None.

    Raises:
        OSError: if the model is not found.
        ValueError: if the model cannot be built with these options.
    """
    names = label_fields(labels)
    asked = {
        "use_stage_norm": arguments.use_stage_norm,
        "window_padding": arguments.window_padding,
        "drop_path_rate": drop_path_rate,
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if segmentation_labels(fields) is None:
        # Cut off, incomplete patches would shift the predictions for images whose sides are not multiples of the stride: the
        # head stretches the maps of all stages over the image. As in mmsegmentation.
        changes["patch_padding"] = True
    is_upernet = fields.get("model_type") == "upernet"
    model: Any
    if arguments.head == "upernet" and not is_upernet:
        model = upernet_on_backbone(arguments, names, changes)
    elif arguments.config_name is None:
        # The trained head is replaced if its labels differ.
        model = load_pretrained(
            str(arguments.model_name_or_path),
            "semantic-segmentation",
            revision=arguments.model_revision,
            allow_new_weights=True,
            **names,
            **changes,
        )
    elif is_upernet:
        model = new_upernet(arguments.config_name, arguments.model_revision, names, changes)
    else:
        model = TwinsForSemanticSegmentation(
            twins_config(arguments.config_name, arguments.model_revision, **names, **changes)
        )
    for name in ("semantic_loss_ignore_index", "loss_ignore_index"):
        if hasattr(model.config, name):
            setattr(model.config, name, IGNORE_INDEX)
    if model.config.model_type == "upernet":
        # UperNet's loss is always a mean over the pixels of a batch. The Trainer assumes otherwise, because its
        # forward accepts any keyword.
        model.accepts_loss_kwargs = False
    return model


def new_upernet(name: str, revision: str, names: dict[str, Any], changes: dict[str, Any]) -> PreTrainedModel:
    """Create an UperNet with random weights, from the configuration of a folder or repository."""
    config = UperNetConfig.from_pretrained(name, revision=revision, **names)
    backbone: Any = config.backbone_config
    if not isinstance(backbone, TwinsConfig):
        raise ValueError(f"{name} has a {backbone.model_type} backbone instead of Twins.")
    config.backbone_config = TwinsConfig.from_dict(backbone.to_dict() | changes)
    return UperNetForSemanticSegmentation(config)


def upernet_on_backbone(arguments: ModelArguments, names: dict[str, Any], changes: dict[str, Any]) -> PreTrainedModel:
    """Create a new UperNet on all stages of a backbone, which may be trained."""
    name, revision = str(arguments.model_name_or_path or arguments.config_name), arguments.model_revision
    if arguments.model_name_or_path is not None:
        trained = load_pretrained(name, "backbone", revision=revision, allow_new_weights=True, **changes)
    else:
        trained = TwinsBackbone(twins_config(name, revision, **changes))
    backbone_config: Any = trained.config
    backbone_config.out_features = backbone_config.stage_names[1:]
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone_config, **names))
    model.backbone.load_state_dict(trained.state_dict())
    return model


def create_processor(arguments: ModelArguments, fields: dict[str, Any], do_reduce_labels: bool) -> TwinsImageProcessor:
    """Create the image processor, a [`TwinsImageProcessor`], from that of the checkpoint.

    If the checkpoint is not a segmentation model, only its image mean and standard deviation are kept, and the size is
    that of the published models.

    Raises:
        ValueError: if the processor does not keep the aspect ratio of images.
    """
    name = str(arguments.model_name_or_path or arguments.config_name)
    processor: Any = None
    try:
        if name not in TWINS_VARIANTS:
            processor = load_image_processor(name, arguments.model_revision)
        if processor is not None and segmentation_labels(fields) is None:
            processor = segmentation_processor(image_mean=processor.image_mean, image_std=processor.image_std)
    except MissingProcessorError:
        logger.warning(f"{name} has no image processor: images are prepared as for the published models.")
    if processor is None:
        processor = segmentation_processor()
    changes: dict[str, Any] = {"do_reduce_labels": do_reduce_labels, "do_center_crop": False}
    if arguments.image_size is not None:
        changes["size"] = {"shortest_edge": arguments.image_size, "longest_edge": 4 * arguments.image_size}
    elif processor.size.shortest_edge is None:
        raise ValueError(f"The image processor of {name} does not keep the shape of images: give --image_size.")
    return TwinsImageProcessor.from_dict(processor.to_dict() | changes)


def segmentation_processor(**fields: Any) -> TwinsImageProcessor:
    """Create an image processor that prepares images as for the published models, except for `fields`."""
    return TwinsImageProcessor(
        size={"shortest_edge": IMAGE_SIZE, "longest_edge": 4 * IMAGE_SIZE},
        resample=PILImageResampling.BILINEAR,
        do_center_crop=False,
        **fields,
    )
