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
"""COCO's average precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_twins.training.object_detection.data import CocoImages
from hf_twins.training.object_detection.reports import METRICS, average_precision, mask_run_lengths


def constructed(objects: list[list[tuple]], names=("cat",), crowds=()) -> CocoImages:
    """Create images of 200 x 100 pixels with filled boxes (label, left, top, width, height)."""
    images = [{"id": f"image {index}", "height": 100, "width": 200} for index in range(len(objects))]
    annotations = {}
    for index, (image, boxes) in enumerate(zip(images, objects)):
        annotations[image["id"]] = [
            {
                "label": label,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": int((index, place) in crowds),
                "segmentation": [[left, top, left + width, top, left + width, top + height, left, top + height]],
            }
            for place, (label, left, top, width, height) in enumerate(boxes)
        ]
    return CocoImages(Path(), images, list(names), annotations)


def detections(*found: tuple) -> dict[str, torch.Tensor]:
    """Create detections from tuples (score, label, left, top, right, bottom)."""
    values = torch.tensor(found).reshape(-1, 6)
    return {"scores": values[:, 0], "labels": values[:, 1].long(), "boxes": values[:, 2:]}


# There are three objects. Detections are the first object exactly, an empty place, and the third with an overlap of
# 0.62.
OBJECTS = [[(0, 10, 10, 50, 40), (0, 100, 10, 50, 40)], [(0, 20, 20, 50, 40)]]
FOUND = {
    0: detections((0.9, 0, 10, 10, 60, 50), (0.8, 0, 150, 60, 190, 90)),
    1: detections((0.7, 0, 20, 20, 51, 60)),
}
# Of 101 recalls, 34 are at most 1/3 and have precision 1. 33 more are at most 2/3, with precision 2/3 if the third
# counts.
BOTH, ONE = (34 + 33 * 2 / 3) / 101, 34 / 101


def test_average_precision_equals_values_computed_by_hand():
    metrics, per_category = average_precision(constructed(OBJECTS), FOUND)
    expected = {"ap": (3 * BOTH + 7 * ONE) / 10, "ap50": BOTH, "ap75": ONE}
    # All objects have an area of 2000 pixels, between 32 and 96 squared.
    expected["ap_medium"] = expected["ap"]
    assert metrics == pytest.approx(expected)
    assert per_category == {"cat": {"ap": pytest.approx(expected["ap"])}}


def test_masks_are_evaluated_separately_from_boxes():
    # The last mask is exact, but its box is not.
    masks = torch.zeros(3, 100, 200, dtype=torch.bool)
    masks[0, 10:50, 10:60] = True
    masks[1, 60:90, 150:190] = True
    masks[2, 20:60, 20:70] = True
    lengths = [mask_run_lengths(mask) for mask in masks]
    found = {0: FOUND[0] | {"masks": lengths[:2]}, 1: FOUND[1] | {"masks": lengths[2:]}}
    metrics, per_category = average_precision(constructed(OBJECTS), found)
    assert metrics["ap"] == pytest.approx((3 * BOTH + 7 * ONE) / 10)
    assert [metrics[f"mask_{name}"] for name in ("ap", "ap50", "ap75")] == pytest.approx([BOTH] * 3)
    assert per_category["cat"]["mask_ap"] == pytest.approx(BOTH)


def test_undetected_category_counts_but_a_crowd_does_not():
    objects = [[*OBJECTS[0], (1, 10, 60, 30, 30)], [*OBJECTS[1], (0, 100, 10, 90, 80)]]
    split = constructed(objects, ("cat", "dog", "bird"), crowds={(1, 1)})
    found = FOUND | {1: detections((0.7, 0, 20, 20, 51, 60), (0.95, 0, 110, 20, 150, 50))}
    metrics, per_category = average_precision(split, found)
    # Detections within the crowd count neither as right nor as wrong.
    assert per_category == {"cat": {"ap": pytest.approx((3 * BOTH + 7 * ONE) / 10)}, "dog": {"ap": 0.0}, "bird": {}}
    assert metrics["ap50"] == pytest.approx(BOTH / 2)


def test_average_precision_without_a_detection_is_zero():
    metrics, _ = average_precision(constructed(OBJECTS), {0: detections(), 1: detections()})
    assert metrics == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ap_medium": 0.0}


def random_scenes(seed: int, has_masks: bool) -> tuple[CocoImages, dict[int, dict[str, Any]]]:
    """Random objects, with detections near them and elsewhere, crowds, empty images, and a category without objects."""
    rng = np.random.default_rng(seed)
    objects, found = [], {}
    for index in range(6):
        num_objects = int(rng.integers(0, 6)) if index else 4
        corners = rng.uniform(0, [150, 70], (num_objects, 2))
        sizes = rng.uniform(2, [50, 30], (num_objects, 2))
        labels = rng.integers(0, 2, num_objects)
        objects.append([(int(label), *corner, *size) for label, corner, size in zip(labels, corners, sizes)])
        # There are more detections than the hundred that count.
        others = rng.uniform(0, [150, 70], (int(rng.integers(0, 120)) if index % 3 else 0, 2))
        boxes = np.concatenate([np.hstack([corners, corners + sizes]), np.hstack([others, others + 20])])
        boxes[:, 2:] += rng.normal(0, 2, (len(boxes), 2))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        found[index] = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            # Scores have ties.
            "scores": torch.tensor(rng.random(len(boxes)).round(2), dtype=torch.float32),
            "labels": torch.tensor(np.concatenate([labels, rng.integers(0, 3, len(others))])),
        }
        if has_masks:
            masks = np.zeros((len(boxes), 100, 200), bool)
            for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
                mask[top:bottom, left:right] = True
            found[index]["masks"] = [mask_run_lengths(torch.from_numpy(mask)) for mask in masks]
    split = constructed(objects, ("cat", "dog", "bird", "cow"), crowds={(0, 1), (3, 0)})
    for annotation in split.annotations["image 0"]:
        annotation["area"] = 0.7 * annotation["bbox"][2] * annotation["bbox"][3]
    return split, found


def coco_evaluation(split: CocoImages, found: dict[int, dict[str, Any]], kind: str) -> COCOeval:
    """Evaluate files in COCO's format by pycocotools."""
    images = [{"id": index, "height": 100, "width": 200} for index in range(len(split.images))]
    categories = [{"id": label, "name": name} for label, name in enumerate(split.names)]
    contents: list[list[dict[str, Any]]] = [[], []]
    for index, image in enumerate(split.images):
        for annotation in split.annotations[image["id"]]:
            left, top, width, height = annotation["bbox"]
            entry = {"area": width * height} | annotation
            entry["segmentation"] = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 100, 200))
            contents[0].append(entry | {"image_id": index, "category_id": annotation["label"]})
        for place, (left, top, right, bottom) in enumerate(found[index]["boxes"].double().tolist()):
            entry = {"image_id": index, "category_id": int(found[index]["labels"][place])}
            entry |= {"score": float(found[index]["scores"][place]), "iscrowd": 0}
            entry |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            if kind == "segm":
                entry["segmentation"] = found[index]["masks"][place]
                entry["area"] = int(coco_mask.area(entry["segmentation"]))
            contents[1].append(entry)
    files = []
    for entries in contents:
        file = COCO()
        annotations = [entry | {"id": number + 1} for number, entry in enumerate(entries)]
        file.dataset = {"images": images, "categories": categories, "annotations": annotations}
        file.createIndex()
        files.append(file)
    evaluation = COCOeval(*files, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_that_of_pycocotools(seed, has_masks):
    split, found = random_scenes(seed, has_masks)
    metrics, per_category = average_precision(split, found)
    for prefix, kind in (("", "bbox"), ("mask_", "segm")) if has_masks else (("", "bbox"),):
        evaluation = coco_evaluation(split, found, kind)
        for name, value in zip(METRICS.values(), evaluation.stats):
            assert metrics.get(prefix + name, -1.0) == pytest.approx(value, abs=1e-6), name
        for label, name in enumerate(split.names):
            precision = evaluation.eval["precision"][:, :, label, 0, -1]
            expected = {f"{prefix}ap": precision[precision > -1].mean()} if (precision > -1).any() else {}
            actual = {
                key: value for key, value in per_category[name].items() if key.startswith("mask") == bool(prefix)
            }
            assert actual == pytest.approx(expected, abs=1e-6), name
    assert per_category["bird"] == per_category["cow"] == {}
