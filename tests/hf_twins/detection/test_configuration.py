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
"""Configuration of RetinaNet and Mask R-CNN."""

import pytest
import torch
from detection_utils import SMALL
from transformers import SwinConfig

from hf_twins import TwinsConfig
from hf_twins.detection import TwinsDetectorConfig
from hf_twins.detection.configuration import FIRST_STAGE
from hf_twins.detection.modeling import TwinsFeaturePyramidBackbone


@pytest.mark.parametrize("detector", FIRST_STAGE)
def test_default_configuration_has_the_stages_of_its_pyramid(detector):
    config = TwinsDetectorConfig(detector=detector)
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"][FIRST_STAGE[detector] :]
    with pytest.raises(Exception, match="detector must be one of retinanet, mask-rcnn, got 'yolo'"):
        TwinsDetectorConfig(detector="yolo")


@pytest.mark.parametrize(
    ("backbone_config", "named"),
    [(SwinConfig(), "swin"), ({"model_type": "swin"}, "swin"), (["stage1"], "list")],
    ids=["configuration", "dictionary", "list"],
)
def test_backbone_other_than_twins_is_refused(backbone_config, named):
    with pytest.raises(Exception, match=f"backbone_config must be a TwinsConfig .* got one of model_type '{named}'"):
        TwinsDetectorConfig(backbone_config=backbone_config)


def test_stem_has_the_stride_of_the_first_stage():
    backbone_config = TwinsConfig(**SMALL | {"patch_size": 4}, out_features=["stem", "stage1", "stage2"])
    pyramid = TwinsFeaturePyramidBackbone(TwinsDetectorConfig(backbone_config=backbone_config, pyramid_size=8))
    assert pyramid.strides == [4, 4, 8, 16, 32]
    with torch.no_grad():
        maps = list(pyramid(torch.rand(1, 3, 64, 64)).values())
    assert [64 // feature_map.shape[2] for feature_map in maps] == pyramid.strides
