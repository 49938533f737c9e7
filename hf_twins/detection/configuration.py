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
"""Configuration of RetinaNet and Mask R-CNN with a Twins backbone."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration_twins import TwinsConfig, check_num_labels


# The first stage whose feature map each detector uses. RetinaNet's pyramid, P3 to P7, starts at the second stage and
# has strides of 8 to 128 pixels; Mask R-CNN's, P2 to P6, starts at the first stage and has strides of 4 to 64.
FIRST_STAGE = {"retinanet": 1, "mask-rcnn": 0}


@strict
class TwinsDetectorConfig(PreTrainedConfig):
    """Configuration of a [`TwinsForObjectDetection`].

    The defaults are those of the authors' detectors
    (https://github.com/Meituan-AutoML/Twins/tree/main/detection/configs); whatever is not configured here has
    torchvision's default.

    Args:
        detector: `"retinanet"` or `"mask-rcnn"`.
        backbone_config: configuration of the backbone, a [`TwinsConfig`] or a dictionary. The feature pyramid is built
            on its `out_features`. By default, the four stages of Twins-SVT-small for Mask R-CNN, and the last three
            for RetinaNet.
        pyramid_size: channels of the feature pyramid.
        score_threshold: predictions with a lower score are discarded.
        box_head_size: channels of Mask R-CNN's box head.
        mask_head_size: channels of Mask R-CNN's mask head.
        num_sampled_boxes: number of proposals per image that Mask R-CNN's heads are trained on.
        kwargs: fields of `PreTrainedConfig`, such as `id2label`.

    Raises:
        ValueError: if `detector` is unknown, the backbone is not Twins, or `num_labels` is out of range.

    Example:

    ```python
    >>> from hf_twins import TwinsConfig
    >>> from hf_twins.detection import TwinsDetectorConfig, TwinsForObjectDetection

    >>> backbone_config = TwinsConfig.from_variant("twins-svt-small", out_features=["stage2", "stage3", "stage4"])
    >>> config = TwinsDetectorConfig(detector="retinanet", backbone_config=backbone_config, num_labels=3)
    >>> model = TwinsForObjectDetection(config)
    ```"""

    model_type = "twins_torchvision_detector"
    sub_configs = {"backbone_config": TwinsConfig}

    detector: str = "retinanet"
    # This is never None after initialization.
    backbone_config: Any = None
    pyramid_size: int = 256
    score_threshold: float | int = 0.05
    box_head_size: int = 1024
    mask_head_size: int = 256
    num_sampled_boxes: int = 512

    def __post_init__(self, **kwargs: Any) -> None:
        if self.detector not in FIRST_STAGE:
            raise ValueError(f"detector must be one of {', '.join(FIRST_STAGE)}, got {self.detector!r}.")
        check_num_labels(kwargs.get("num_labels"))
        if self.backbone_config is None:
            self.backbone_config = TwinsConfig()
            self.backbone_config.out_features = self.backbone_config.stage_names[1:][FIRST_STAGE[self.detector] :]
        elif isinstance(self.backbone_config, dict):
            check_model_type(self.backbone_config.get("model_type", TwinsConfig.model_type))
            self.backbone_config = TwinsConfig.from_dict(self.backbone_config)
        else:
            check_model_type(getattr(self.backbone_config, "model_type", type(self.backbone_config).__name__))
        super().__post_init__(**kwargs)


def check_model_type(model_type: Any) -> None:
    if model_type != TwinsConfig.model_type:
        raise ValueError(
            f"backbone_config must be a TwinsConfig or a dictionary of its fields, got one of model_type {model_type!r}."
        )
