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
"""RetinaNet and Mask R-CNN."""

import pytest
import torch
from detection_utils import SMALL, small_detector
from testing_utils import randomize, rectangle_mask

from hf_twins import TwinsConfig
from hf_twins.detection import TwinsDetectorConfig, TwinsDetectorImageProcessor, TwinsDetectorOutput
from hf_twins.detection.configuration import FIRST_STAGE
from hf_twins.detection.modeling import TwinsFeaturePyramidBackbone
from hf_twins.training.object_detection.models import find_backbone


@pytest.mark.parametrize("detector", FIRST_STAGE)
def test_pyramid_has_the_papers_strides_and_anchors(detector, start):
    config = TwinsConfig(**SMALL | {"patch_size": 4})
    config.out_features = config.stage_names[1:][FIRST_STAGE[detector] :]
    pyramid = TwinsFeaturePyramidBackbone(
        TwinsDetectorConfig(detector=detector, backbone_config=config, pyramid_size=24)
    )
    strides = {"retinanet": [8, 16, 32, 64, 128], "mask-rcnn": [4, 8, 16, 32, 64]}[detector]
    assert pyramid.strides == strides
    with torch.no_grad():
        maps = pyramid(torch.rand(2, 3, 128, 256)).values()
    assert [tuple(feature_map.shape) for feature_map in maps] == [
        (2, 24, 128 // stride, 256 // stride) for stride in strides
    ]
    # The authors use multiples of half the paper's strides, and three octaves for RetinaNet.
    model = small_detector(detector, start).model.detector
    sizes = (model.anchor_generator if detector == "retinanet" else model.rpn.anchor_generator).sizes
    scale, octaves = (4, 3) if detector == "retinanet" else (8, 1)
    for level, stride in zip(sizes, strides, strict=True):
        assert level == pytest.approx([scale * stride / 2 * 2 ** (octave / 3) for octave in range(octaves)])


@pytest.mark.parametrize("detector", FIRST_STAGE)
def test_default_configuration_has_the_stages_of_its_pyramid(detector):
    config = TwinsDetectorConfig(detector=detector)
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"][FIRST_STAGE[detector] :]
    with pytest.raises(Exception, match="detector must be one of retinanet, mask-rcnn, got 'yolo'"):
        TwinsDetectorConfig(detector="yolo")


def test_boxes_of_labels_are_those_that_losses_are_computed_with(start):
    labels = {
        "class_labels": torch.tensor([2, 0]),
        "boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 9.0, 8.0]]),
    }
    seen = []
    for name in FIRST_STAGE:
        model = small_detector(name, start).model.train()
        masks = {"masks": torch.ones(2, 64, 64, dtype=torch.uint8)} if name == "mask-rcnn" else {}
        model.detector.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
        model(torch.rand(1, 3, 64, 64), labels=[labels | masks])
        target = seen[-1][0]
        assert torch.equal(target["boxes"], labels["boxes"])
        # Mask R-CNN's first label is the background.
        assert torch.equal(target["labels"], labels["class_labels"] + (1 if name == "mask-rcnn" else 0))
        assert ("masks" in target) == (name == "mask-rcnn")
    with pytest.raises(ValueError, match="labels must contain masks for Mask R-CNN"):
        model(torch.rand(1, 3, 64, 64), labels=[labels])
    with pytest.raises(ValueError, match="labels are required in training mode"):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_model_pads_images_to_multiples_of_the_strides(name, start):
    model = small_detector(name, start, score_threshold=0.0).model.eval()
    randomize(find_backbone(model))
    pixel_values = torch.randn(1, 3, 50, 70)
    padded = torch.nn.functional.pad(pixel_values, (0, 26, 0, 14))
    with torch.no_grad():
        actual, expected = model(pixel_values), model(padded, rectangle_mask([(50, 70)], 64, 96))
    assert actual.scores.shape == (1, 100)
    for field in ("scores", "labels", "boxes", "masks", "image_sizes"):
        if field in expected:
            torch.testing.assert_close(actual[field], expected[field], rtol=0, atol=1e-5)
    assert actual.image_sizes.tolist() == [[50, 70]]
    assert actual.boxes.amax((0, 1)).tolist() <= [70, 50, 70, 50]


def test_predictions_are_scaled_from_the_pixels_of_the_model_to_those_of_the_image():
    masks = torch.zeros(2, 3, 28, 28)
    masks[0, 0, :, :14] = 1
    outputs = {
        "scores": torch.tensor([[0.9, 0.6, 0.2], [0.8, 0.0, 0.0]]),
        "labels": torch.tensor([[1, 0, 2], [2, 0, 0]]),
        "boxes": torch.tensor([[[8.0, 4.0, 24.0, 20.0]] * 3, [[0.0, 0.0, 10.0, 10.0]] * 3]),
        "image_sizes": torch.tensor([[32, 64], [20, 10]]),
    }
    processor = TwinsDetectorImageProcessor()
    first, second = processor.post_process_object_detection(
        TwinsDetectorOutput(**outputs, masks=masks), threshold=0.5, target_sizes=[(64, 192), (20, 10)]
    )
    assert first["labels"].tolist() == [1, 0]
    assert first["boxes"][0].tolist() == [24, 8, 72, 40]
    assert first["masks"].shape == (2, 64, 192)
    assert first["masks"][0, 20, 40]
    assert not first["masks"][0, 20, 56]
    assert second["boxes"].tolist() == [[0, 0, 10, 10]]
    without_sizes = processor.post_process_object_detection(TwinsDetectorOutput(**outputs), threshold=0.0)
    assert [len(each["boxes"]) for each in without_sizes] == [3, 1]
    assert without_sizes[0]["boxes"][0].tolist() == [8, 4, 24, 20]
