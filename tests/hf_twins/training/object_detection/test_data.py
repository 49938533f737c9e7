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
"""Data in COCO's format: what is read, what is left out, and how images and objects are augmented."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_utils import small_detector, write_scenes
from hostile_files import long_png
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.ops import masks_to_boxes

from hf_twins.training.object_detection.arguments import DataArguments, DetectionRecipe
from hf_twins.training.object_detection.data import (
    CocoImages,
    EvaluationImages,
    TrainingImages,
    binary_mask,
    collate,
    collate_for_detr,
    load_coco,
    load_splits,
    training_transform,
)


def test_image_depends_on_seed_epoch_and_place_alone(scenes, start):
    processor = small_detector("detr", start).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks=True)
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=96, multi_scale=True)
    images = TrainingImages(split, training_transform(recipe, processor), needs_masks=True, seed=7)
    first = images[(2, 5)]
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = images[(2, 5)]
    assert torch.equal(torch.get_rng_state(), state), "the model's own random numbers are not touched"
    assert torch.equal(again["pixel_values"], first["pixel_values"])
    assert all(torch.equal(value, first["labels"][name]) for name, value in again["labels"].items())
    shapes = {tuple(images[(epoch, 5)]["pixel_values"].shape) for epoch in range(12)}
    assert len(shapes) > 3, "scales and crops differ from epoch to epoch"


@pytest.mark.parametrize("multi_scale", [False, True])
def test_boxes_and_masks_follow_their_image(multi_scale, scenes, start):
    processor = small_detector("detr", start).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks=True)
    recipe = DetectionRecipe(shortest_edge=128, longest_edge=192, multi_scale=multi_scale, horizontal_flip=0.5)
    images = TrainingImages(split, training_transform(recipe, processor), needs_masks=True, seed=1)
    num_objects = 0
    for epoch in range(3):
        for index in range(len(images)):
            example = images[(epoch, index)]
            height, width = example["pixel_values"].shape[1:]
            labels = example["labels"]
            assert labels["masks"].shape == (len(labels["boxes"]), height, width)
            for box, mask in zip(labels["boxes"], labels["masks"]):
                # A digit that was cut may have less ink than its cut box has room for.
                if mask.any():
                    num_objects += 1
                    ink = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
                    # Of twice resized masks, the nearest pixel may be some away.
                    assert (ink - box)[:2].min() >= -5
                    assert (ink - box)[2:].max() <= 5
                    # Digits are brighter than what is behind them.
                    image = example["pixel_values"].mean(0)
                    assert image[mask.bool()].mean() > image.mean()
    assert num_objects > 60


@pytest.mark.parametrize("name", ["detr", "rt-detr", "retinanet"])
def test_images_are_evaluated_and_trained_on_as_the_processor_prepares_them(name, scenes, start):
    # Where the longest edge is reached, sizes may differ by the rounding of one pixel.
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=192, horizontal_flip=0.0)
    processor = small_detector(name, start, recipe).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"))
    images = EvaluationImages(split, processor)
    training_images = TrainingImages(split, training_transform(recipe, processor))
    for index in range(2):
        with Image.open(scenes / split.images[index]["file_name"]) as image:
            expected = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            size = [image.height, image.width]
        example = images[index]
        assert torch.equal(example["pixel_values"], expected)
        assert (int(example["labels"]["image_id"]), example["labels"]["orig_size"].tolist()) == (index, size)
        torch.testing.assert_close(training_images[0, index]["pixel_values"], expected, rtol=0, atol=1e-6)


def test_boxes_are_relative_to_their_image_for_detr_alone():
    boxes = torch.tensor([[8.0, 4.0, 24.0, 12.0]])
    examples = [
        {"pixel_values": torch.ones(3, height, width), "labels": {"class_labels": torch.tensor([0]), "boxes": boxes}}
        for height, width in ((32, 64), (64, 32))
    ]
    batch = collate(examples)
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [32 * 64, 64 * 32]
    assert all(torch.equal(labels["boxes"], boxes) for labels in batch["labels"])
    relative = [labels["boxes"].tolist() for labels in collate_for_detr(examples)["labels"]]
    assert relative == [[[16 / 64, 8 / 32, 16 / 64, 8 / 32]], [[16 / 32, 8 / 64, 16 / 32, 8 / 64]]]
    assert all(torch.equal(example["labels"]["boxes"], boxes) for example in examples)


def test_images_of_16_bits_are_not_cut_off(tmp_path):
    pixels = np.full((8, 9), 40000, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    split = CocoImages(tmp_path, [{"id": 0, "file_name": "a.png", "height": 8, "width": 9}], ["cat"])
    assert np.asarray(split.open(0))[0, 0].tolist() == 3 * [40000 // 257]


def write_json(folder: Path, content: dict) -> Path:
    (folder / "other.json").write_text(json.dumps(content))
    return folder / "other.json"


def test_annotations_that_cannot_be_used_are_left_out_counted_and_named(scenes, caplog):
    content = json.loads((scenes / "annotations.json").read_text())
    good = content["annotations"][0]
    bad = {
        "a box of no area within the image": [{"bbox": [5, 5, 0, 9]}, {"bbox": [70, 5, 9, 9]}],
        "an unknown category": [{"category_id": 99}],
        "an unknown image": [{"image_id": 1}],
        "no box of four numbers": [{"bbox": [1, 2, 3]}, {"bbox": None}, {"bbox": ["1", 2, 3, 4]}],
        "no segmentation of the image's size": [
            {"segmentation": []},
            {"segmentation": [[1, 1, 9, 9]]},
            {"segmentation": {"size": [9, 9], "counts": "04"}},
        ],
    }
    num_good, next_id = len(content["annotations"]), 1000
    for changes in bad.values():
        for change in changes:
            content["annotations"].append(good | change | {"id": next_id})
            next_id += 1
    split = load_coco(str(scenes), str(write_json(scenes, content)), needs_masks=True)
    assert sum(map(len, split.annotations.values())) == num_good
    next_id = 1000
    for fault, changes in bad.items():
        ids = ", ".join(str(next_id + index) for index in range(len(changes)))
        assert f"{len(changes)} annotations of {scenes / 'other.json'} are left out" in caplog.text
        assert f"because they have {fault}: {ids}" in caplog.text
        next_id += len(changes)


def test_images_that_cannot_be_used_are_left_out_counted_and_named(tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(10))
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "5.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "7.png")
    (folder / "9.png").write_bytes(long_png())
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 8 * 7]
    file = str(write_json(folder, content))
    arguments = DataArguments(
        *(str(folder), file, str(folder), file),
    )
    splits = load_splits(arguments, seed=0)
    assert "4 images of train are not there, cannot be decoded or have another size" in caplog.text
    assert "are left out: 3.png, 5.png, 7.png, 9.png" in caplog.text
    assert "9.png is too long, 1 x 65535 pixels" in caplog.text
    assert "1 images of train show no object and are left out" in caplog.text
    assert [len(splits[name].images) for name in ("train", "validation")] == [5, 6]


def test_held_out_images_are_split_off(scenes):
    arguments = DataArguments(str(scenes), str(scenes / "annotations.json"), train_val_split=0.25, max_train_samples=8)
    splits = load_splits(arguments, seed=0)
    ids = [{image["id"] for image in splits[name].images} for name in ("train", "validation")]
    assert (len(ids[0]), len(ids[1])) == (8, 4)
    assert not ids[0] & ids[1]


def test_polygons_and_run_lengths_are_the_same_mask():
    expected = np.zeros((12, 20), np.uint8)
    expected[2:8, 5:15] = 1
    encoded = coco_mask.encode(np.asfortranarray(expected))
    counts, value = [], 0
    for pixel in [*expected.T.flatten().tolist(), None]:
        # Run lengths begin with those of 0.
        if not counts or pixel != value:
            if counts or pixel == 1:
                value = pixel
            counts.append(0 if pixel is None else 1)
        else:
            counts[-1] += 1
    for segmentation in (
        [[5, 2, 15, 2, 15, 8, 5, 8]],
        {"size": [12, 20], "counts": counts[:-1]},
        {"size": [12, 20], "counts": encoded["counts"].decode()},
    ):
        assert np.array_equal(binary_mask(segmentation, 12, 20), expected)
