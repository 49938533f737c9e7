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
"""Image processor of RetinaNet and Mask R-CNN."""

import numpy as np
import pytest
import torch
from detection_utils import small_detector

from hf_twins.detection import TwinsDetectorImageProcessor, TwinsDetectorOutput


def annotated(image_id: int, *boxes: list[int]) -> dict:
    """Annotations in COCO's format of boxes given as left, top, width and height."""
    objects = [
        {
            "id": index,
            "image_id": image_id,
            "category_id": index,
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": 0,
            "segmentation": [
                [left, top, left + width, top, left + width, top + height, left, top + height],
            ],
        }
        for index, (left, top, width, height) in enumerate(boxes)
    ]
    return {"image_id": image_id, "annotations": objects}


@pytest.mark.parametrize("detector", ["retinanet", "mask-rcnn"])
def test_boxes_of_annotations_are_corners_in_pixels_which_the_model_takes(detector, start, tmp_path):
    TwinsDetectorImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    processor = TwinsDetectorImageProcessor.from_pretrained(tmp_path)
    images = [np.zeros((32, 48, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)]
    annotations = [annotated(0, [5, 5, 20, 15], [0, 0, 48, 32]), annotated(1, [1, 2, 30, 20])]
    inputs = processor(images, annotations, return_segmentation_masks=detector == "mask-rcnn", return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 64, 96)
    first, second = (labels["boxes"].tolist() for labels in inputs["labels"])
    assert first == [[10, 10, 50, 40], [0, 0, 96, 64]]
    assert second == [[2, 4, 62, 44]]
    model = small_detector(detector, start).model.eval()
    with torch.no_grad():
        assert model(**inputs).loss.isfinite()
    relative = processor(
        images, annotations, do_convert_annotations=True, return_segmentation_masks=True, return_tensors="pt"
    )
    with pytest.raises(ValueError, match=r"boxes of labels must be left, top, .* and do_convert_annotations=False"):
        model(**relative)


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
    with pytest.raises(ValueError, match="target_sizes must be the height and width of each of the 2 images, got 1"):
        processor.post_process_object_detection(TwinsDetectorOutput(**outputs), target_sizes=[(64, 192)])
