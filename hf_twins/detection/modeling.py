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
"""RetinaNet and Mask R-CNN with a Twins backbone.

The detectors are torchvision's, with the feature pyramids and anchors of the authors' detectors
(https://github.com/Meituan-AutoML/Twins/tree/main/detection/configs).
"""

# torchvision is imported only when a detector is built, because `import hf_twins` imports this module.
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, maybe_autocast

from ..modeling_twins import TwinsBackbone, check_pixel_mask, check_pixel_values
from .configuration import TwinsDetectorConfig


ASPECT_RATIOS = (0.5, 1.0, 2.0)
# As in the authors' code, batches are padded to multiples of this number of pixels, because torchvision's detectors
# place anchors correctly only if the image sides are multiples of all strides.
SIZE_DIVISOR = 32
# RetinaNet's initial score of every class, at which the many anchors without an object do not dominate the loss.
PRIOR_PROBABILITY = 0.01


@dataclass
class TwinsDetectorOutput(ModelOutput):
    """Output of a [`TwinsForObjectDetection`]: the loss if there are labels, and in evaluation the predictions.

    Within a batch, predictions are padded to the same number per image with entries of score 0.

    Args:
        loss (`torch.Tensor` of shape `()`):
            Sum of the detector's losses.
        loss_dict (`dict[str, torch.Tensor]`):
            The losses by name.
        scores (`torch.Tensor` of shape `(batch_size, num_predictions)`):
            Scores of the predictions, best first.
        labels (`torch.Tensor` of shape `(batch_size, num_predictions)`):
            Labels of the predictions.
        boxes (`torch.Tensor` of shape `(batch_size, num_predictions, 4)`):
            Left, top, right and bottom in pixels of the images that the model was called with.
        masks (`torch.Tensor` of shape `(batch_size, num_predictions, 28, 28)`, *optional*):
            Mask R-CNN's probabilities of the object within each box.
        image_sizes (`torch.Tensor` of shape `(batch_size, 2)`):
            Height and width of each image without its padding.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    scores: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    image_sizes: torch.Tensor | None = None


class TwinsForObjectDetection(PreTrainedModel):
    """RetinaNet or Mask R-CNN with a Twins backbone and a feature pyramid.

    Padding a batch does not change the backbone's feature maps of any image. The pyramid's convolutions see zeros next
    to them.

    Args:
        config: configuration of the detector.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig
    >>> from hf_twins.detection import TwinsDetectorConfig, TwinsForObjectDetection

    >>> backbone_config = TwinsConfig.from_variant("twins-svt-small", out_features=["stage2", "stage3", "stage4"])
    >>> config = TwinsDetectorConfig(detector="retinanet", backbone_config=backbone_config, num_labels=3)
    >>> model = TwinsForObjectDetection(config).eval()
    >>> with torch.no_grad():
    ...     outputs = model(torch.rand(2, 3, 64, 96))
    >>> outputs.image_sizes.tolist()
    [[64, 96], [64, 96]]
    ```"""

    config: TwinsDetectorConfig
    config_class = TwinsDetectorConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # In half precision, coordinates would be rounded to several pixels.
    _keep_in_fp32_modules_strict = ["detector.backbone.fpn", "detector.head", "detector.rpn", "detector.roi_heads"]
    # The losses are means over the images of a batch, so the Trainer must average over accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: TwinsDetectorConfig):
        super().__init__(config)
        backbone = TwinsFeaturePyramidBackbone(config)
        build = build_retinanet if config.detector == "retinanet" else build_mask_rcnn
        self.detector: Any = build(config, backbone)
        # In torchvision, Mask R-CNN's label 0 is the background. RetinaNet has no background label.
        self.first_label = 0 if config.detector == "retinanet" else 1
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the weights as torchvision does when it builds the detector"""
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            return
        layer: Any = module
        # torchvision keeps PyTorch's initialization of Mask R-CNN's box head, and of the biases of its mask predictor.
        layer.reset_parameters()
        # transformers passes single layers, whose initialization depends on the part of the detector that they are in.
        name = next((name for name, other in self.detector.named_modules() if other is layer), "")
        if name.startswith("backbone.fpn."):
            init.kaiming_uniform_(layer.weight, a=1)
            init.zeros_(layer.bias)
        elif name.startswith(("head.", "rpn.")):
            init.normal_(layer.weight, std=0.01)
            is_classifier = name == "head.classification_head.cls_logits"
            init.constant_(layer.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)) if is_classifier else 0)
        elif name.startswith("roi_heads.mask_"):
            init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if name.startswith("roi_heads.mask_head."):
                init.zeros_(layer.bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "TwinsForObjectDetection":
        """Move or cast the model, by `half()`, `bfloat16()` or `to(dtype)`, for example.

        In half precision, the pyramid and the heads remain in float32, though their weights are rounded.
        """
        super()._apply(fn, recurse)
        for name, module in self.named_modules():
            if name in self._keep_in_fp32_modules_strict and next(module.parameters()).dtype.itemsize < 4:
                module.float()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.detector.backbone.body.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> TwinsDetectorOutput:
        """Compute the loss if there are labels, and the predictions in evaluation.

        The pyramid and the heads compute in float32, under autocast and in a model in half precision as well, because
        box coordinates would be rounded to several pixels.

        Args:
            pixel_values: images, `(batch_size, 3, height, width)`.
            pixel_mask: 1 on the image and 0 on the padding at the right and bottom,
                `(batch_size, height, width)`.
            labels: for each image, a dictionary with `class_labels` `(num_objects,)` and `boxes` `(num_objects, 4)`,
                left, top, right and bottom in pixels of `pixel_values`; for Mask R-CNN also `masks` `(num_objects,
                image_height, image_width)`. Required in training. Mask R-CNN's loss is that of randomly sampled
                proposals, in evaluation as well.
            kwargs: `return_dict=False` returns a tuple; others are ignored.

        Raises:
            ValueError: if labels are missing in training, or the images, their mask or the labels are invalid.
        """
        from torchvision.models.detection.image_list import ImageList

        if self.training and labels is None:
            raise ValueError("labels are required in training mode: call eval() for predictions.")
        backbone_config = self.detector.backbone.body.config
        check_pixel_values(pixel_values, backbone_config)
        if len(pixel_values) == 0:
            raise ValueError("pixel_values must hold at least one image, got none.")
        if pixel_mask is not None:
            check_pixel_mask(pixel_mask, pixel_values, backbone_config)
            pixel_mask = pixel_mask.bool()
        targets = None if labels is None else self.targets(labels, batch_size=len(pixel_values))
        sizes = image_sizes(pixel_values, pixel_mask)
        pixel_values, pixel_mask = pad_to_multiple(pixel_values, pixel_mask, SIZE_DIVISOR)
        features = self.detector.backbone(pixel_values, pixel_mask)
        run = run_retinanet if self.config.detector == "retinanet" else run_mask_rcnn
        with maybe_autocast(pixel_values.device.type, enabled=False):
            losses, predictions = run(self.detector, ImageList(pixel_values, sizes), features, targets)
        outputs: dict[str, Any] = {}
        if losses is not None:
            outputs |= {"loss": sum(losses.values()), "loss_dict": losses}
        if predictions is not None:
            for name in predictions[0]:
                outputs[name] = pad_sequence([prediction[name] for prediction in predictions], batch_first=True)
            outputs["labels"] = (outputs["labels"] - self.first_label).clamp(min=0)
            if "masks" in outputs:
                outputs["masks"] = outputs["masks"][:, :, 0]
            outputs["image_sizes"] = torch.tensor(sizes, device=pixel_values.device)
        return TwinsDetectorOutput(**outputs)

    def targets(self, labels: list[dict[str, torch.Tensor]], batch_size: int) -> list[dict[str, torch.Tensor]]:
        """Convert the labels of a batch to the format of torchvision's detectors.

        Args:
            labels: for each image `boxes` `(num_objects, 4)`, `class_labels` `(num_objects,)` and, for Mask R-CNN,
                `masks` `(num_objects, height, width)`.
            batch_size: number of images.

        Raises:
            ValueError: if labels of an image or one of their fields are missing, or boxes are not corners in pixels.
        """
        if len(labels) != batch_size:
            raise ValueError(f"labels must be one dictionary for each of the {batch_size} images, got {len(labels)}.")
        required = ["boxes", "class_labels", *(["masks"] if self.config.detector == "mask-rcnn" else [])]
        for each in labels:
            if not set(required) <= each.keys():
                raise ValueError(
                    f"labels must contain {', '.join(required)} for {self.config.detector}, got {', '.join(each)}."
                )
        check_boxes(labels)
        return [
            {name: each[name] for name in required if name != "class_labels"}
            | {"labels": each["class_labels"] + self.first_label}
            for each in labels
        ]


class TwinsFeaturePyramidBackbone(nn.Module):
    """Backbone for torchvision's detectors: Twins and a feature pyramid with two extra levels for RetinaNet, otherwise one.

    Args:
        config: configuration of the detector.
    """

    def __init__(self, config: TwinsDetectorConfig):
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

        super().__init__()
        self.body = TwinsBackbone(config.backbone_config)
        channels = self.body.channels
        extra_blocks: Any = LastLevelMaxPool()
        if config.detector == "retinanet":
            extra_blocks = LastLevelP6P7(channels[-1], config.pyramid_size)
            # This is the authors' `add_extra_convs="on_input"`. torchvision decides by the numbers of channels
            # instead.
            extra_blocks.use_P5 = False
        self.fpn = FeaturePyramidNetwork(channels, config.pyramid_size, extra_blocks)
        self.out_channels = config.pyramid_size
        strides = stage_strides(config.backbone_config)
        num_extra = 2 if config.detector == "retinanet" else 1
        self.strides = strides + [strides[-1] * 2**level for level in range(1, num_extra + 1)]

    def forward(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None
    ) -> OrderedDict[str, torch.Tensor]:
        """Feature maps of shape `(batch_size, pyramid_size, height / stride, width / stride)`, the finest first."""
        feature_maps = self.body(pixel_values, pixel_mask=pixel_mask).feature_maps
        # The backbone may be in half precision.
        dtype = next(self.fpn.parameters()).dtype
        with maybe_autocast(pixel_values.device.type, enabled=False):
            return self.fpn(
                OrderedDict((str(level), feature_map.to(dtype)) for level, feature_map in enumerate(feature_maps))
            )


def stage_strides(config: Any) -> list[int]:
    """The strides of a Twins backbone's feature maps in pixels; the stem has the stride of the first stage."""
    return [config.patch_size * 2 ** max(config.stage_names.index(stage) - 1, 0) for stage in config.out_features]


def image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """The height and width of each image of a batch, without its padding."""
    if pixel_mask is None:
        return len(pixel_values) * [(pixel_values.shape[2], pixel_values.shape[3])]
    heights, widths = pixel_mask[:, :, 0].sum(1).tolist(), pixel_mask[:, 0, :].sum(1).tolist()
    return list(zip(heights, widths))


def pad_to_multiple(
    pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, divisor: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad images and their mask with zeros at the right and the bottom."""
    height, width = pixel_values.shape[2:]
    padding = (0, -width % divisor, 0, -height % divisor)
    if not any(padding):
        return pixel_values, pixel_mask
    if pixel_mask is None:
        pixel_mask = torch.ones(len(pixel_values), height, width, dtype=torch.long, device=pixel_values.device)
    return pad(pixel_values, padding), pad(pixel_mask, padding)


def check_boxes(labels: list[dict[str, torch.Tensor]]) -> None:
    """Raise a ValueError if boxes of a batch cannot be left, top, right and bottom in pixels."""
    for each in labels:
        if each["boxes"].shape != (len(each["class_labels"]), 4):
            raise ValueError(
                "boxes of labels must have the shape (num_objects, 4), and class_labels (num_objects,), got "
                f"{tuple(each['boxes'].shape)} and {tuple(each['class_labels'].shape)}."
            )
    boxes = torch.cat([each["boxes"] for each in labels])
    is_degenerate = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
    # Coordinates relative to the image, such as DETR's, are all within the first pixel.
    if len(boxes) > 0 and (is_degenerate.any() or boxes.max() <= 1):
        box = ", ".join(f"{side:.4g}" for side in boxes[is_degenerate.int().argmax()].tolist())
        raise ValueError(
            "boxes of labels must be left, top, right and bottom in pixels, with left < right and top < bottom, got "
            f"[{box}]: prepare annotations with TwinsDetectorImageProcessor and do_convert_annotations=False."
        )


@contextmanager
def in_training_mode(*modules: nn.Module) -> Iterator[None]:
    """Let modules compute their training outputs; unlike `train()`, this does not change the modules within them."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = True
        yield
    finally:
        for module, mode in zip(modules, modes):
            module.training = mode


# The detectors are run by their parts and not by torchvision's `forward`, which returns either losses or predictions, and
# takes images without their masks.
Losses = dict[str, torch.Tensor] | None
Predictions = list[dict[str, torch.Tensor]] | None


def run_retinanet(
    detector: Any,
    images: Any,
    features: OrderedDict[str, torch.Tensor],
    targets: list[dict[str, torch.Tensor]] | None,
) -> tuple[Losses, Predictions]:
    """Compute the losses if there are targets, and the predictions in evaluation, of a torchvision `ImageList`."""
    feature_maps = list(features.values())
    head_outputs = detector.head(feature_maps)
    anchors = detector.anchor_generator(images, feature_maps)
    losses = None if targets is None else detector.compute_loss(targets, head_outputs, anchors)
    if detector.training:
        return losses, None
    num_anchors = [
        feature_map.shape[2] * feature_map.shape[3] * per_location
        for feature_map, per_location in zip(feature_maps, detector.anchor_generator.num_anchors_per_location())
    ]
    outputs_by_level = {name: list(output.split(num_anchors, dim=1)) for name, output in head_outputs.items()}
    anchors_by_level = [list(image_anchors.split(num_anchors)) for image_anchors in anchors]
    return losses, detector.postprocess_detections(outputs_by_level, anchors_by_level, images.image_sizes)


def run_mask_rcnn(
    detector: Any,
    images: Any,
    features: OrderedDict[str, torch.Tensor],
    targets: list[dict[str, torch.Tensor]] | None,
) -> tuple[Losses, Predictions]:
    """Compute the losses if there are targets, and the predictions in evaluation, of a torchvision `ImageList`."""
    losses = predictions = None
    if targets is not None:
        with in_training_mode(detector.rpn, detector.roi_heads):
            proposals, proposal_losses = detector.rpn(images, features, targets)
            _, head_losses = detector.roi_heads(features, proposals, images.image_sizes, targets)
        losses = head_losses | proposal_losses
    if not detector.training:
        proposals, _ = detector.rpn(images, features)
        predictions, _ = detector.roi_heads(features, proposals, images.image_sizes)
    return losses, predictions


def build_retinanet(config: TwinsDetectorConfig, backbone: TwinsFeaturePyramidBackbone) -> nn.Module:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = [tuple(4 * stride * 2 ** (octave / 3) for octave in range(3)) for stride in backbone.strides]
    return RetinaNet(
        backbone,
        config.num_labels,
        anchor_generator=AnchorGenerator(sizes, len(sizes) * (ASPECT_RATIOS,)),
        score_thresh=config.score_threshold,
        detections_per_img=100,
    )


def build_mask_rcnn(config: TwinsDetectorConfig, backbone: TwinsFeaturePyramidBackbone) -> nn.Module:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    sizes = [(8 * stride,) for stride in backbone.strides]
    levels = [str(level) for level in range(len(backbone.body.channels))]
    num_classes = int(config.num_labels or 0) + 1
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes, len(sizes) * (ASPECT_RATIOS,)),
        # The authors' value; torchvision's default is 2000.
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(config.pyramid_size * 7**2, config.box_head_size),
        box_predictor=FastRCNNPredictor(config.box_head_size, num_classes),
        box_score_thresh=config.score_threshold,
        box_batch_size_per_image=config.num_sampled_boxes,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(config.pyramid_size, 4 * (config.mask_head_size,), dilation=1),
        mask_predictor=MaskRCNNPredictor(config.mask_head_size, config.mask_head_size, num_classes),
    )
