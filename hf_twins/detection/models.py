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
"""Detectors with a Twins backbone: torchvision's on a feature pyramid, and those of transformers.

All take what DETR takes and can be trained by transformers' Trainer: `pixel_values` `(batch_size, 3, height, width)`,
`pixel_mask` `(batch_size, height, width)`, and `labels`, for each image a dictionary of the `class_labels` `(num_objects,)`
and `boxes` `(num_objects, 4)`, center and size relative to the image; for Mask R-CNN also the `masks`
`(num_objects, height, width)`. All are saved by `save_pretrained`, and loaded by [`load_detector`].
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
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
from transformers.utils import ModelOutput

from hf_twins import TwinsBackbone, TwinsConfig, pass_pixel_mask_to_backbone
from hf_twins._utils.labels import label_fields
from hf_twins.training.object_detection.arguments import DetectionRecipe, ModelArguments
from hf_twins.training.object_detection.data import SIZE_DIVISOR, collate, evaluation_transform
from hf_twins.training.trainer import twins_config


ASPECT_RATIOS = (0.5, 1.0, 2.0)


@strict
class TorchvisionDetectorConfig(PreTrainedConfig):
    """Configuration of a [`TorchvisionDetector`]; what it does not say is torchvision's default.

    Args:
        detector: `"retinanet"` or `"mask-rcnn"`.
        backbone_config: of the backbone; its `out_features` are what the pyramid is built on.
        pyramid_size: channels of the feature pyramid.
        score_threshold: below which predictions are left out.
        box_head_size, mask_head_size: channels of Mask R-CNN's two heads.
        num_sampled_boxes: proposals of an image that Mask R-CNN's heads learn from.
    """

    model_type = "twins_torchvision_detector"
    sub_configs = {"backbone_config": TwinsConfig}

    detector: str = "retinanet"
    # None only until it is made.
    backbone_config: Any = None
    pyramid_size: int = 256
    score_threshold: float | int = 0.05
    box_head_size: int = 1024
    mask_head_size: int = 256
    num_sampled_boxes: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        if self.detector not in TORCHVISION_DETECTORS:
            raise ValueError(f"detector must be one of {', '.join(TORCHVISION_DETECTORS)}, got {self.detector!r}.")
        if self.backbone_config is None:
            self.backbone_config = TwinsConfig()
            self.backbone_config.out_features = self.backbone_config.stage_names[1:][
                TORCHVISION_DETECTORS[self.detector] :
            ]
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = TwinsConfig.from_dict(self.backbone_config)
        super().__post_init__(**kwargs)


# The place of the first stage whose map each is built on: P3 to P7 of RetinaNet's pyramid come from all but the first, with
# strides of 8 to 128 pixels, P2 to P6 of Mask R-CNN's from all, with strides of 4 to 64, as the authors have it.
TORCHVISION_DETECTORS = {"retinanet": 1, "mask-rcnn": 0}


class TwinsFeaturePyramidBackbone(nn.Module):
    """The backbone that torchvision's detectors take: Twins, and a feature pyramid of two more levels or one.

    Args:
        config: of the detector.
    """

    def __init__(self, config: TorchvisionDetectorConfig):
        super().__init__()
        self.body = TwinsBackbone(config.backbone_config)
        channels = self.body.channels
        extra_blocks: Any = LastLevelMaxPool()
        if config.detector == "retinanet":
            extra_blocks = LastLevelP6P7(channels[-1], config.pyramid_size)
            # As the authors have it (`add_extra_convs="on_input"`), also where the numbers of channels happen to be equal.
            extra_blocks.use_P5 = False
        self.fpn = FeaturePyramidNetwork(channels, config.pyramid_size, extra_blocks)
        self.out_channels = config.pyramid_size
        strides = stage_strides(config.backbone_config)
        num_extra = 2 if config.detector == "retinanet" else 1
        self.strides = strides + [strides[-1] * 2**level for level in range(1, num_extra + 1)]

    def forward(self, pixel_values: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Maps of `(batch_size, pyramid_size, height / stride, width / stride)`, the finest first."""
        feature_maps = self.body(pixel_values).feature_maps
        return self.fpn(OrderedDict((str(level), feature_map) for level, feature_map in enumerate(feature_maps)))


class ImagesOfBatch(list[torch.Tensor]):
    """The images of a padded batch, without their padding, which torchvision's detectors ask for; and the batch itself."""

    def __init__(self, pixel_values: torch.Tensor, sizes: list[tuple[int, int]]):
        super().__init__(image[:, :height, :width] for image, (height, width) in zip(pixel_values, sizes))
        self.image_list = ImageList(pixel_values, sizes)


class PreparedImages(nn.Module):
    """In place of torchvision's transform: images come as they are to be, and predictions are of that size."""

    def forward(
        self, images: ImagesOfBatch, targets: list[dict[str, torch.Tensor]] | None
    ) -> tuple[ImageList, list[dict[str, torch.Tensor]] | None]:
        return images.image_list, targets

    def postprocess(self, result: list[dict[str, torch.Tensor]], *sizes: Any) -> list[dict[str, torch.Tensor]]:
        return result


def stage_strides(config: Any) -> list[int]:
    """Pixels from token to token in each of a backbone's feature maps."""
    return [config.patch_size * 2 ** (config.stage_names.index(stage) - 1) for stage in config.out_features]


@dataclass
class TorchvisionDetectorOutput(ModelOutput):
    """What a [`TorchvisionDetector`] gives: in training the loss, and else the predictions.

    Args:
        loss (`torch.Tensor` of shape `()`):
            Sum of the detector's losses.
        loss_dict (`dict[str, torch.Tensor]`):
            Each of them.
        predictions (`list[dict[str, torch.Tensor]]`):
            For each image `boxes` `(num_predictions, 4)`, corners relative to the image, `scores` and `labels`
            `(num_predictions,)`, best first; of Mask R-CNN also `masks` `(num_predictions, 1, 28, 28)`, probabilities
            within the boxes.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    predictions: list[dict[str, torch.Tensor]] | None = None


class TorchvisionDetector(PreTrainedModel):
    """torchvision's RetinaNet or Mask R-CNN on a Twins backbone and a feature pyramid, with DETR's inputs.

    An image padded within a batch has the feature maps that the backbone has for it alone; the pyramid sees zeros beside it.
    """

    config: TorchvisionDetectorConfig
    config_class = TorchvisionDetectorConfig
    main_input_name = "pixel_values"
    # Of the backbone, whose blocks it is.
    supports_gradient_checkpointing = True
    # The losses are means over a batch's images: Trainer averages those of accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: TorchvisionDetectorConfig):
        super().__init__(config)
        backbone = TwinsFeaturePyramidBackbone(config)
        self.detector = (retinanet if config.detector == "retinanet" else mask_rcnn)(config, backbone)
        self.detector.transform = PreparedImages()
        # Mask R-CNN's label 0 is the background, RetinaNet has none.
        self.first_label = 0 if config.detector == "retinanet" else 1
        self.post_init()
        pass_pixel_mask_to_backbone(self)

    def _init_weights(self, module: nn.Module) -> None:
        """torchvision's constructors have done it, and the backbone does it itself."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
    ) -> TorchvisionDetectorOutput:
        """As the module says; `labels` are needed in training, where there are no predictions."""
        sizes = image_sizes(pixel_values, pixel_mask)
        images = ImagesOfBatch(pixel_values, sizes)
        if not self.training:
            predictions = self.detector(images)
            return TorchvisionDetectorOutput(
                predictions=[
                    prediction
                    | {
                        "boxes": prediction["boxes"] / as_scale(size, pixel_values.device),
                        "labels": prediction["labels"] - self.first_label,
                    }
                    for prediction, size in zip(predictions, sizes)
                ]
            )
        if labels is None:
            raise ValueError("labels must be given in training: call eval() for predictions.")
        targets = [self.target(label, size) for label, size in zip(labels, sizes)]
        losses = self.detector(images, targets)
        return TorchvisionDetectorOutput(loss=sum(losses.values()), loss_dict=losses)

    def target(self, labels: dict[str, torch.Tensor], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """An image's labels as torchvision's detectors take them."""
        boxes = box_convert(labels["boxes"], "cxcywh", "xyxy") * as_scale(size, labels["boxes"].device)
        target = {"boxes": boxes, "labels": labels["class_labels"] + self.first_label}
        if self.config.detector == "mask-rcnn":
            if "masks" not in labels:
                raise ValueError("labels must have masks for Mask R-CNN.")
            target["masks"] = labels["masks"]
        return target

    def post_process_object_detection(
        self, outputs: TorchvisionDetectorOutput, threshold: float = 0.5, *, target_sizes: torch.Tensor
    ) -> list[dict[str, torch.Tensor]]:
        """As transformers' image processors: the predictions in pixels of pictures of `target_sizes`, `(batch_size, 2)`.

        Masks are `(num_predictions, height, width)`, True on the object.
        """
        results = []
        for prediction, size in zip(outputs.predictions or [], target_sizes.tolist()):
            is_kept = prediction["scores"] > threshold
            prediction = {name: value[is_kept] for name, value in prediction.items()}
            result = prediction | {"boxes": prediction["boxes"] * as_scale(size, prediction["boxes"].device)}
            if "masks" in prediction:
                result["masks"] = paste_masks_in_image(prediction["masks"], result["boxes"], tuple(size))[:, 0] > 0.5
            results.append(result)
        return results


def image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """Height and width of each image of a batch."""
    if pixel_mask is None:
        return len(pixel_values) * [(pixel_values.shape[2], pixel_values.shape[3])]
    heights, widths = pixel_mask[:, :, 0].sum(1).tolist(), pixel_mask[:, 0, :].sum(1).tolist()
    return list(zip(heights, widths))


def as_scale(size: Any, device: torch.device) -> torch.Tensor:
    height, width = size
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=device)


def retinanet(config: TorchvisionDetectorConfig, backbone: TwinsFeaturePyramidBackbone) -> RetinaNet:
    sizes = [tuple(4 * stride * 2 ** (octave / 3) for octave in range(3)) for stride in backbone.strides]
    return RetinaNet(
        backbone,
        config.num_labels,
        anchor_generator=AnchorGenerator(sizes, len(sizes) * (ASPECT_RATIOS,)),
        score_thresh=config.score_threshold,
        detections_per_img=100,
    )


def mask_rcnn(config: TorchvisionDetectorConfig, backbone: TwinsFeaturePyramidBackbone) -> MaskRCNN:
    sizes = [(8 * stride,) for stride in backbone.strides]
    levels = [str(level) for level in range(len(backbone.body.channels))]
    num_classes = int(config.num_labels or 0) + 1
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes, len(sizes) * (ASPECT_RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(config.pyramid_size * 7**2, config.box_head_size),
        box_predictor=FastRCNNPredictor(config.box_head_size, num_classes),
        box_score_thresh=config.score_threshold,
        box_batch_size_per_image=config.num_sampled_boxes,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(config.pyramid_size, 4 * (config.mask_head_size,), dilation=1),
        mask_predictor=MaskRCNNPredictor(config.mask_head_size, config.mask_head_size, num_classes),
    )


@dataclass(frozen=True)
class TransformersDetector:
    """A detector of transformers' that takes a backbone.

    Args:
        config_class, model_class, processor_class: its classes.
        first_stage: place of the first stage whose map it takes.
        is_square: whether images are made square, because its encoder knows no padding.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    processor_class: Any
    first_stage: int
    is_square: bool = False


TRANSFORMERS_DETECTORS = {
    "detr": TransformersDetector(DetrConfig, DetrForObjectDetection, DetrImageProcessor, -1),
    "conditional-detr": TransformersDetector(
        ConditionalDetrConfig, ConditionalDetrForObjectDetection, ConditionalDetrImageProcessor, -1
    ),
    "deformable-detr": TransformersDetector(
        DeformableDetrConfig, DeformableDetrForObjectDetection, DeformableDetrImageProcessor, 1
    ),
    "rt-detr": TransformersDetector(RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, 1, is_square=True),
    "d-fine": TransformersDetector(DFineConfig, DFineForObjectDetection, RTDetrImageProcessor, 1, is_square=True),
}


def create_detector(
    arguments: ModelArguments, recipe: DetectionRecipe, names: list[str]
) -> tuple[PreTrainedModel, Any]:
    """The detector with a head for objects of these names, and its image processor.

    Raises:
        OSError: if there is no such backbone.
        ValueError: if the arguments contradict each other.
    """
    known = (*TORCHVISION_DETECTORS, *TRANSFORMERS_DETECTORS)
    if arguments.detector not in known:
        raise ValueError(f"--detector must be one of {', '.join(known)}, got {arguments.detector}.")
    family = TRANSFORMERS_DETECTORS.get(arguments.detector)
    first_stage = family.first_stage if family else TORCHVISION_DETECTORS[arguments.detector]
    backbone_config, trained = load_backbone(arguments, recipe, first_stage)
    fields = {"backbone_config": backbone_config} | label_fields(names)
    if family is None:
        fields["detector"] = arguments.detector
    elif family.is_square:
        fields["encoder_in_channels"] = backbone_config.hidden_sizes[first_stage:]
        fields["feat_strides"] = stage_strides(backbone_config)
    config_class: Any = TorchvisionDetectorConfig if family is None else family.config_class
    config = create_config(config_class, fields, arguments.detector_config)
    model: Any = TorchvisionDetector(config) if family is None else family.model_class(config)
    if family is not None:
        # Its losses are means over a batch's objects.
        model.accepts_loss_kwargs = False
        pass_pixel_mask_to_backbone(model)
    if trained is not None:
        backbone_of(model).load_state_dict(trained.state_dict())
    return model, create_processor(family, recipe)


def create_config(config_class: Any, fields: dict[str, Any], options: str) -> Any:
    """The detector's configuration, with the fields that `options` gives as JSON.

    Raises:
        ValueError: if these are not JSON, there is no such field, or its value does not fit.
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
    """The backbone's configuration and, where one is given, the trained backbone."""
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("Give either --model_name_or_path or --config_name.")
    name = str(arguments.model_name_or_path or arguments.config_name)
    config = twins_config(name, arguments.model_revision)
    fields: dict[str, Any] = {}
    if recipe.stage_norm and config.window_size is not None:
        fields["use_stage_norm"] = True
    if recipe.drop_path_rate is not None:
        fields["drop_path_rate"] = recipe.drop_path_rate
    if recipe.window_padding is not None:
        fields["window_padding"] = recipe.window_padding
    fields["out_features"] = config.stage_names[1:][first_stage:]
    for field_name, value in fields.items():
        setattr(config, field_name, value)
    config.validate_architecture()
    if arguments.model_name_or_path is None:
        return config, None
    return config, TwinsBackbone.from_pretrained(name, config=config, revision=arguments.model_revision)


def backbone_of(model: nn.Module) -> TwinsBackbone:
    return next(module for module in model.modules() if isinstance(module, TwinsBackbone))


def create_processor(family: TransformersDetector | None, recipe: DetectionRecipe) -> Any:
    """What says how large images are to be, and how they are normalized; pipelines of transformers read it too."""
    if family is not None and family.is_square:
        if recipe.shortest_edge % SIZE_DIVISOR != 0:
            raise ValueError(
                f"--shortest_edge must be a multiple of {SIZE_DIVISOR} for this detector, whose encoder knows no padding, "
                f"got {recipe.shortest_edge}."
            )
        size = {"height": recipe.shortest_edge, "width": recipe.shortest_edge}
    else:
        if recipe.longest_edge < recipe.shortest_edge:
            raise ValueError(
                f"--longest_edge must be at least --shortest_edge, {recipe.shortest_edge}, got {recipe.longest_edge}."
            )
        size = {"shortest_edge": recipe.shortest_edge, "longest_edge": recipe.longest_edge}
    processor_class = DetrImageProcessor if family is None else family.processor_class
    return processor_class(
        size=size, do_normalize=True, image_mean=list(IMAGENET_DEFAULT_MEAN), image_std=list(IMAGENET_DEFAULT_STD)
    )


@dataclass
class Detector:
    """A trained detector, for pictures.

    Args:
        model: any of those above.
        processor: says how large its images are, and how normalized.
    """

    model: Any
    processor: Any

    @torch.no_grad()
    def __call__(self, pictures: list[PIL.Image.Image], threshold: float = 0.5) -> list[dict[str, torch.Tensor]]:
        """What is on each picture: `boxes` `(num_objects, 4)`, left, top, right and bottom in pixels, `scores` and `labels`
        `(num_objects,)`, best first; of Mask R-CNN also `masks` `(num_objects, height, width)`, True on the object.

        Args:
            pictures: in colour.
            threshold: of the score, in [0, 1).
        """
        transform = evaluation_transform(self.processor)
        batch = collate([{"pixel_values": transform(picture)} for picture in pictures])
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        sizes = torch.tensor([(picture.height, picture.width) for picture in pictures])
        return self.detect(batch, sizes, threshold)

    def detect(
        self, batch: dict[str, torch.Tensor], target_sizes: torch.Tensor, threshold: float = 0.0
    ) -> list[dict[str, torch.Tensor]]:
        """The same for a batch of images, in pixels of pictures of `target_sizes`, `(batch_size, 2)`."""
        outputs = self.model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"])
        source = self.model if isinstance(self.model, TorchvisionDetector) else self.processor
        results = source.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=target_sizes.to(self.model.device)
        )
        # The processors give the queries of some detectors in their order.
        return [
            {name: value[result["scores"].argsort(descending=True)].cpu() for name, value in result.items()}
            for result in results
        ]


def load_detector(folder: str | Path) -> Detector:
    """A detector that was saved with its processor, ready to detect.

    Args:
        folder: as `run_detection.py` writes it.

    Raises:
        ValueError: if there is no detector of these in the folder.
    """
    file = Path(folder) / "config.json"
    model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None
    model_class: type[PreTrainedModel] = TorchvisionDetector
    processor_class: Any = DetrImageProcessor
    if model_type != TorchvisionDetectorConfig.model_type:
        family = next(
            (each for each in TRANSFORMERS_DETECTORS.values() if each.config_class.model_type == model_type), None
        )
        if family is None:
            raise ValueError(f"{folder} must be a folder with a detector of run_detection.py.")
        model_class, processor_class = family.model_class, family.processor_class
    model: Any = model_class.from_pretrained(str(folder))
    if model_class is not TorchvisionDetector:
        pass_pixel_mask_to_backbone(model)
    return Detector(model.eval(), processor_class.from_pretrained(folder))
