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
"""Helpers of the object detection tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_scenes import digit_scene
from pycocotools import mask as coco_mask

from hf_twins import TwinsConfig, TwinsForImageClassification
from hf_twins.detection import Detector
from hf_twins.training.object_detection.arguments import DetectionRecipe, ModelArguments
from hf_twins.training.object_detection.models import create_detector


# The pyramids need four stages, which have strides of 2 to 16 pixels.
SMALL = {
    "patch_size": 2,
    "hidden_sizes": [16, 32, 48, 64],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 2, 2, 1],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "window_size": 4,
}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
PYRAMID = {"encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32]}
OPTIONS = {
    "retinanet": {"pyramid_size": 48},
    "mask-rcnn": {"pyramid_size": 48, "box_head_size": 128, "mask_head_size": 32, "num_sampled_boxes": 64},
    "detr": DETR,
    "conditional-detr": DETR,
    "deformable-detr": DETR,
    "rt-detr": DETR | PYRAMID,
    "d-fine": DETR | PYRAMID,
}
RECIPE = DetectionRecipe(shortest_edge=64, longest_edge=96, drop_path_rate=0.1)


def write_scenes(folder: Path, seeds: range, sizes: tuple[tuple[int, int], ...] = ((64, 64),)) -> Path:
    """Write scenes of digits with annotations in COCO's format, with one category for all digits."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for seed in seeds:
        height, width = sizes[seed % len(sizes)]
        scene = digit_scene(seed, (height, width))
        scene.image.save(folder / f"{seed}.png")
        images.append({"id": 7 * seed, "file_name": f"{seed}.png", "height": height, "width": width})
        for left, top, right, bottom in scene.boxes.astype(int).tolist():
            # No digit is within the box of another one.
            mask = np.zeros((height, width), np.uint8)
            mask[top:bottom, left:right] = scene.mask[top:bottom, left:right] > 0
            segmentation = coco_mask.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 7 * seed,
                    "category_id": 3,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": segmentation | {"counts": segmentation["counts"].decode()},
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "digit"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def small_detector(
    name: str, start: Path, recipe: DetectionRecipe = RECIPE, num_names: int = 3, **options: Any
) -> Detector:
    detector_config = json.dumps(OPTIONS[name] | options)
    arguments = ModelArguments(detector=name, config_name=str(start), detector_config=detector_config)
    return Detector(*create_detector(arguments, recipe, [f"name {label}" for label in range(num_names)]))


def save_start(folder: Path) -> Path:
    """Save a small classifier, whose backbone detectors start from."""
    torch.manual_seed(0)
    TwinsForImageClassification(TwinsConfig(**SMALL, num_labels=5)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few scenes, of two sizes."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "few", range(14), ((64, 64), (48, 80)))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier to start from."""
    return save_start(tmp_path_factory.mktemp("start"))
