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
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..modeling_twins import TwinsBackbone
from .configuration import TwinsDetectorConfig


ASPECT_RATIOS = (0.5, 1.0, 2.0)
# As in the authors' code, batches are padded to multiples of this number of pixels, because torchvision's detectors
# place anchors correctly only if the image sides are multiples of all strides.
SIZE_DIVISOR = 32
# Mask of the batch for the next call of the backbone, because torchvision's detectors only pass pixels to the
# backbone.
PIXEL_MASK: ContextVar[torch.Tensor | None] = ContextVar("PIXEL_MASK", default=None)


@dataclass
class TwinsDetectorOutput(ModelOutput):
    """Output of a [`TwinsForObjectDetection`]: in training the loss, in evaluation the predictions.

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
    # The losses are means over the images of a batch, so the Trainer must average over accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: TwinsDetectorConfig):
        super().__init__(config)
        backbone = TwinsFeaturePyramidBackbone(config)
        self.detector = (build_retinanet if config.detector == "retinanet" else build_mask_rcnn)(config, backbone)
        self.detector.transform = PreparedImages()
        # In torchvision, Mask R-CNN's label 0 is the background. RetinaNet has no background label.
        self.first_label = 0 if config.detector == "retinanet" else 1
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing, because torchvision's modules and the backbone initialize their own weights."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> TwinsDetectorOutput:
        """Compute the loss in training, and the predictions in evaluation.

        Args:
            pixel_values: images, `(batch_size, 3, height, width)`.
            pixel_mask: 1 on the image and 0 on the padding at the right and bottom,
                `(batch_size, height, width)`.
            labels: for each image, a dictionary with `class_labels` `(num_objects,)` and `boxes` `(num_objects, 4)`,
                left, top, right and bottom in pixels of `pixel_values`; for Mask R-CNN also `masks` `(num_objects,
                image_height, image_width)`. Needed in training only.
            kwargs: ignored.

        Raises:
            ValueError: if labels are missing in training.
        """
        if self.training and labels is None:
            raise ValueError("labels are required in training mode: call eval() for predictions.")
        sizes = image_sizes(pixel_values, pixel_mask)
        pixel_values, pixel_mask = pad_to_multiple(pixel_values, pixel_mask, SIZE_DIVISOR)
        targets = [self.target(label) for label in labels] if self.training and labels is not None else None
        token = PIXEL_MASK.set(pixel_mask)
        try:
            outputs = self.detector(BatchImages(pixel_values, sizes), targets)
        finally:
            PIXEL_MASK.reset(token)
        if self.training:
            return TwinsDetectorOutput(loss=sum(outputs.values()), loss_dict=outputs)
        predictions: dict[str, Any] = {
            name: pad_sequence([output[name] for output in outputs], batch_first=True)
            for name in ("scores", "labels", "boxes", "masks")
            if name in outputs[0]
        }
        predictions["labels"] = (predictions["labels"] - self.first_label).clamp(min=0)
        if "masks" in predictions:
            predictions["masks"] = predictions["masks"][:, :, 0]
        return TwinsDetectorOutput(**predictions, image_sizes=torch.tensor(sizes, device=pixel_values.device))

    def target(self, labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the labels of an image to the format of torchvision's detectors.

        Args:
            labels: `boxes` `(num_objects, 4)`, `class_labels` `(num_objects,)` and, for Mask R-CNN, `masks`
                `(num_objects, height, width)`.

        Raises:
            ValueError: if masks for Mask R-CNN are missing.
        """
        target = {"boxes": labels["boxes"], "labels": labels["class_labels"] + self.first_label}
        if self.config.detector == "mask-rcnn":
            if "masks" not in labels:
                raise ValueError("labels must contain masks for Mask R-CNN.")
            target["masks"] = labels["masks"]
        return target


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

    def forward(self, pixel_values: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Feature maps of shape `(batch_size, pyramid_size, height / stride, width / stride)`, the finest first."""
        feature_maps = self.body(pixel_values, pixel_mask=PIXEL_MASK.get()).feature_maps
        return self.fpn(OrderedDict((str(level), feature_map) for level, feature_map in enumerate(feature_maps)))


class BatchImages(list[torch.Tensor]):
    """The images of a batch without their padding, as torchvision's detectors expect them, together with the padded batch."""

    def __init__(self, pixel_values: torch.Tensor, sizes: list[tuple[int, int]]):
        from torchvision.models.detection.image_list import ImageList

        super().__init__(image[:, :height, :width] for image, (height, width) in zip(pixel_values, sizes))
        self.image_list = ImageList(pixel_values, sizes)


class PreparedImages(nn.Module):
    """Replaces torchvision's transform, because images are already prepared and predictions need no rescaling."""

    def forward(
        self, images: BatchImages, targets: list[dict[str, torch.Tensor]] | None
    ) -> tuple[Any, list[dict[str, torch.Tensor]] | None]:
        return images.image_list, targets

    def postprocess(self, result: list[dict[str, torch.Tensor]], *sizes: Any) -> list[dict[str, torch.Tensor]]:
        return result


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
