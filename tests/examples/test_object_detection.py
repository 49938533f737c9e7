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
"""Object detection: data in COCO's format, all the detectors, what they are measured by, and training that goes on."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import predict_detection
import pytest
import run_detection
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from digit_scenes import digit_scene
from hostile_files import long_png
from huggingface_hub import ModelCard
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from testing_utils import randomize, rectangle_mask
from torchvision.ops import box_convert, masks_to_boxes
from transformers import TrainingArguments, pipeline

from hf_twins import TwinsConfig, TwinsForImageClassification
from hf_twins._utils.command_line import parse_arguments
from hf_twins.detection.models import (
    TORCHVISION_DETECTORS,
    Detector,
    TorchvisionDetectorConfig,
    TwinsFeaturePyramidBackbone,
    backbone_of,
    create_detector,
    load_detector,
)
from hf_twins.training.object_detection.arguments import RECIPES, DataArguments, DetectionRecipe, ModelArguments
from hf_twins.training.object_detection.data import (
    CocoImages,
    DetectionImages,
    binary_mask,
    collate,
    evaluation_transform,
    load_coco,
    load_splits,
    training_transform,
)
from hf_twins.training.object_detection.reports import average_precision
from hf_twins.training.trainer import TRAINER_DEFAULTS


# Four stages, which the pyramids are built on, with strides of 2 to 16 pixels.
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
    """Scenes of digits with COCO's annotations, all digits one category."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for seed in seeds:
        height, width = sizes[seed % len(sizes)]
        scene = digit_scene(seed, (height, width))
        scene.image.save(folder / f"{seed}.png")
        images.append({"id": 7 * seed, "file_name": f"{seed}.png", "height": height, "width": width})
        for left, top, right, bottom in scene.boxes.astype(int).tolist():
            # No digit is within another's box.
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A few scenes, of two sizes."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "few", range(14), ((64, 64), (48, 80)))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    TwinsForImageClassification(TwinsConfig(**SMALL, num_labels=5)).save_pretrained(folder)
    return folder


@pytest.fixture
def one_process():
    """Accelerate's state of one run does not become the next one's."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def small_detector(name: str, start: Path, recipe: DetectionRecipe = RECIPE, num_names: int = 3) -> Detector:
    arguments = ModelArguments(detector=name, config_name=str(start), detector_config=json.dumps(OPTIONS[name]))
    return Detector(*create_detector(arguments, recipe, [f"name {label}" for label in range(num_names)]))


def batch_of(scenes: Path, detector: Detector, needs_masks: bool = True) -> dict:
    """The first two scenes, of different sizes."""
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks)
    images = DetectionImages(split, evaluation_transform(detector.processor), needs_masks)
    return collate([images[0], images[1]])


@pytest.mark.parametrize("name", OPTIONS)
def test_detector_trains_detects_and_is_loaded_as_it_was_saved(name, scenes, start, tmp_path):
    detector = small_detector(name, start)
    model = detector.model.train()
    batch = batch_of(scenes, detector)
    assert (batch["pixel_mask"] == 0).any() == (name not in ("rt-detr", "d-fine"))
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite()
    assert loss.ndim == 0
    for parameter_name, parameter in backbone_of(model).named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name

    model.eval()
    model.save_pretrained(tmp_path)
    detector.processor.save_pretrained(tmp_path)
    loaded = load_detector(tmp_path)
    sizes = torch.tensor([[64, 64], [48, 80]])
    pictures = [digit_scene(seed, tuple(size)).image for seed, size in enumerate(sizes.tolist())]
    expected, actual = detector(pictures, threshold=0.0), loaded(pictures, threshold=0.0)
    assert loaded.model.config.id2label == {0: "name 0", 1: "name 1", 2: "name 2"}
    for before, after in zip(expected, actual, strict=True):
        assert len(before["scores"]) > 0 or name in TORCHVISION_DETECTORS
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[field]) for field, value in before.items())
        assert (before["scores"].diff() <= 0).all()
        assert ("masks" in before) == (name == "mask-rcnn")


@pytest.mark.parametrize("window_padding", ["masked", "zeros"])
@pytest.mark.parametrize("name", ["retinanet", "mask-rcnn", "detr"])
def test_backbone_maps_of_an_image_in_a_batch_are_those_it_has_alone(name, window_padding, start):
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=96, window_padding=window_padding)
    model = small_detector(name, start, recipe).model.eval()
    backbone = randomize(backbone_of(model))
    assert backbone.config.window_padding == window_padding
    pixel_values, pixel_mask = torch.randn(2, 3, 64, 96), rectangle_mask([(64, 96), (40, 56)], 64, 96)
    seen = []
    backbone.register_forward_hook(lambda module, args, output: seen.append(output.feature_maps))
    with torch.no_grad():
        model(pixel_values, pixel_mask)
        model(pixel_values[1:, :, :40, :56])
    for together, alone in zip(*seen, strict=True):
        height, width = alone.shape[2:]
        torch.testing.assert_close(together[1:, :, :height, :width], alone, rtol=0, atol=1e-5 * alone.abs().max())


@pytest.mark.parametrize("detector", TORCHVISION_DETECTORS)
def test_pyramid_has_the_papers_strides_and_anchors(detector, start):
    config = TwinsConfig(**SMALL | {"patch_size": 4})
    config.out_features = config.stage_names[1:][TORCHVISION_DETECTORS[detector] :]
    pyramid = TwinsFeaturePyramidBackbone(
        TorchvisionDetectorConfig(detector=detector, backbone_config=config, pyramid_size=24)
    )
    strides = {"retinanet": [8, 16, 32, 64, 128], "mask-rcnn": [4, 8, 16, 32, 64]}[detector]
    assert pyramid.strides == strides
    with torch.no_grad():
        maps = pyramid(torch.rand(2, 3, 128, 256)).values()
    assert [tuple(feature_map.shape) for feature_map in maps] == [
        (2, 24, 128 // stride, 256 // stride) for stride in strides
    ]
    # Of the paper's pyramid with half its strides: the authors' multiples of them, and three octaves of RetinaNet's.
    model = small_detector(detector, start).model.detector
    sizes = (model.anchor_generator if detector == "retinanet" else model.rpn.anchor_generator).sizes
    scale, octaves = (4, 3) if detector == "retinanet" else (8, 1)
    for level, stride in zip(sizes, strides, strict=True):
        assert level == pytest.approx([scale * stride / 2 * 2 ** (octave / 3) for octave in range(octaves)])


def test_trained_backbone_is_what_training_starts_from(start):
    arguments = ModelArguments(
        detector="retinanet", model_name_or_path=str(start), detector_config='{"pyramid_size": 24}'
    )
    recipe = DetectionRecipe(stage_norm=True, drop_path_rate=0.3, window_padding="zeros")
    model, _ = create_detector(arguments, recipe, ["digit"])
    backbone = backbone_of(model)
    assert (backbone.config.use_stage_norm, backbone.config.drop_path_rate) == (True, 0.3)
    weights = load_file(start / "model.safetensors")
    for name, parameter in backbone.encoder.named_parameters():
        if "stages" in name and name.count(".") == 3 and ".layernorm." in name:
            # The stage norms, which a classifier has not.
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        else:
            assert torch.equal(parameter, weights[f"twins.encoder.{name}"]), name


def test_labels_are_those_of_the_data_whether_there_is_a_background(scenes, start):
    for name in ("retinanet", "mask-rcnn"):
        detector = small_detector(name, start)
        labels = batch_of(scenes, detector)["labels"][0]
        target = detector.model.target(labels, (64, 64))
        background = 1 if name == "mask-rcnn" else 0
        assert torch.equal(target["labels"], labels["class_labels"] + background)
        assert ("masks" in target) == (name == "mask-rcnn")
        scene = digit_scene(0)
        torch.testing.assert_close(target["boxes"], torch.from_numpy(scene.boxes))
    with pytest.raises(ValueError, match="labels must have masks for Mask R-CNN"):
        detector.model.target({key: value for key, value in labels.items() if key != "masks"}, (64, 64))
    with pytest.raises(ValueError, match="labels must be given in training"):
        detector.model.train()(torch.rand(1, 3, 64, 64))


def constructed(objects: list[list[tuple]], names=("cat",), crowds=()) -> CocoImages:
    """Images of 200 x 100 pixels with boxes of (label, left, top, width, height), filled."""
    images = [{"id": f"image {index}", "height": 100, "width": 200} for index in range(len(objects))]
    annotations = {}
    for index, (image, boxes) in enumerate(zip(images, objects)):
        annotations[image["id"]] = [
            {
                "label": label,
                "bbox": [left, top, width, height],
                "iscrowd": int((index, place) in crowds),
                "segmentation": [[left, top, left + width, top, left + width, top + height, left, top + height]],
            }
            for place, (label, left, top, width, height) in enumerate(boxes)
        ]
    return CocoImages(Path(), images, list(names), annotations)


def detections(*found: tuple) -> dict[str, torch.Tensor]:
    """Of (score, label, left, top, right, bottom)."""
    values = torch.tensor(found).reshape(-1, 6)
    return {"scores": values[:, 0], "labels": values[:, 1].long(), "boxes": values[:, 2:]}


# Three objects; found are the first exactly, nothing at a place, and the third with an overlap of 0.62.
OBJECTS = [[(0, 10, 10, 50, 40), (0, 100, 10, 50, 40)], [(0, 20, 20, 50, 40)]]
FOUND = {
    0: detections((0.9, 0, 10, 10, 60, 50), (0.8, 0, 150, 60, 190, 90)),
    1: detections((0.7, 0, 20, 20, 51, 60)),
}
# Of 101 recalls, up to 1/3 are 34, which have precision 1, and up to 2/3 are 33 more, with 2/3 where the third counts.
BOTH, ONE = (34 + 33 * 2 / 3) / 101, 34 / 101


def test_average_precision_is_what_is_computed_by_hand():
    metrics, per_category = average_precision(constructed(OBJECTS), FOUND)
    expected = {"ap": (3 * BOTH + 7 * ONE) / 10, "ap50": BOTH, "ap75": ONE}
    # All objects are of 2000 square pixels, between 32 and 96 squared.
    expected["ap_medium"] = expected["ap"]
    assert metrics == pytest.approx(expected)
    assert per_category == {"cat": {"ap": pytest.approx(expected["ap"])}}


def test_masks_count_apart_from_boxes():
    found = {index: dict(each) for index, each in FOUND.items()}
    found[0]["masks"] = torch.zeros(2, 100, 200, dtype=torch.bool)
    found[0]["masks"][0, 10:50, 10:60] = True
    found[0]["masks"][1, 60:90, 150:190] = True
    # Exact, in a box that is not.
    found[1]["masks"] = torch.zeros(1, 100, 200, dtype=torch.bool)
    found[1]["masks"][0, 20:60, 20:70] = True
    metrics, per_category = average_precision(constructed(OBJECTS), found)
    assert metrics["ap"] == pytest.approx((3 * BOTH + 7 * ONE) / 10)
    assert [metrics[f"mask_{name}"] for name in ("ap", "ap50", "ap75")] == pytest.approx([BOTH] * 3)
    assert per_category["cat"]["mask_ap"] == pytest.approx(BOTH)


def test_category_that_is_never_found_counts_and_a_crowd_does_not():
    objects = [[*OBJECTS[0], (1, 10, 60, 30, 30)], [*OBJECTS[1], (0, 100, 10, 90, 80)]]
    split = constructed(objects, ("cat", "dog", "bird"), crowds={(1, 1)})
    found = FOUND | {1: detections((0.7, 0, 20, 20, 51, 60), (0.95, 0, 110, 20, 150, 50))}
    metrics, per_category = average_precision(split, found)
    # What is found within the crowd is neither right nor wrong.
    assert per_category == {"cat": {"ap": pytest.approx((3 * BOTH + 7 * ONE) / 10)}, "dog": {"ap": 0.0}, "bird": {}}
    assert metrics["ap50"] == pytest.approx(BOTH / 2)


def test_average_precision_without_a_detection_is_zero():
    metrics, _ = average_precision(constructed(OBJECTS), {0: detections(), 1: detections()})
    assert metrics == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ap_medium": 0.0}


def test_image_depends_on_seed_epoch_and_place_alone(scenes, start):
    processor = small_detector("detr", start).processor
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks=True)
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=96, multi_scale=True)
    images = DetectionImages(split, training_transform(recipe, processor), needs_masks=True, seed=7)
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
    images = DetectionImages(split, training_transform(recipe, processor), needs_masks=True, seed=1)
    num_objects = 0
    for epoch in range(3):
        for index in range(len(images)):
            example = images[(epoch, index)]
            height, width = example["pixel_values"].shape[1:]
            labels = example["labels"]
            assert labels["masks"].shape == (len(labels["boxes"]), height, width)
            boxes = box_convert(labels["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
            for box, mask in zip(boxes, labels["masks"]):
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


def test_processor_makes_of_a_picture_what_training_was_evaluated_with(start):
    picture = digit_scene(3, (50, 70)).image
    for name in ("detr", "rt-detr"):
        processor = small_detector(name, start).processor
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
        actual = evaluation_transform(processor)(picture)
        assert actual.shape == expected.shape
        # Two of 255 levels: both round on the way.
        assert (actual - expected).abs().max() < 2 / 255 / 0.22


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


def test_pictures_that_cannot_be_used_are_left_out_counted_and_named(tmp_path, caplog):
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


@pytest.mark.parametrize("recipe", [file.stem for file in sorted(RECIPES.glob("*.toml"))])
def test_recipe_sets_defaults_that_can_be_overridden(recipe):
    classes = (ModelArguments, DataArguments, DetectionRecipe, TrainingArguments)
    arguments = ["--config_name", "x", "--train_dir", "y", "--train_annotations", "z", "--recipe", recipe]
    parsed = parse_arguments(*classes, recipes=RECIPES, defaults=TRAINER_DEFAULTS, arguments=arguments)
    for name, value in tomllib.loads((RECIPES / f"{recipe}.toml").read_text(encoding="utf-8")).items():
        assert value in [getattr(values, name) for values in parsed if hasattr(values, name)], name
    *_, values, training = parse_arguments(
        *classes, recipes=RECIPES, arguments=[*arguments, "--learning_rate", "0.125", "--decay_epochs", "3", "4"]
    )
    assert training.learning_rate == 0.125
    assert values.decay_epochs == [3, 4]


def run_options(scenes: Path, start: Path, output: Path, detector: str) -> list[str]:
    return [
        *("--detector", detector, "--detector_config", json.dumps(OPTIONS[detector]), "--config_name", str(start)),
        *("--train_dir", str(scenes), "--train_annotations", str(scenes / "annotations.json")),
        *("--shortest_edge", "64", "--longest_edge", "96", "--output_dir", str(output)),
        *("--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--layer_decay", "1.0"),
    ]


@pytest.mark.usefixtures("one_process")
def test_script_trains_evaluates_and_writes_what_predicts(scenes, start, tmp_path, caplog):
    output = tmp_path / "run"
    arguments = run_options(scenes, start, output, "mask-rcnn")
    # Low, so that an untrained detector finds something to draw.
    arguments[3] = json.dumps(OPTIONS["mask-rcnn"] | {"score_threshold": 0.001})
    metrics = run_detection.main(
        [*arguments, "--num_train_epochs", "1", "--recipe", "mask-rcnn-1x", "--warmup_steps", "1"]
    )
    results = json.loads((output / "all_results.json").read_text())
    for name in ("eval_ap", "eval_ap50", "eval_ap75", "eval_mask_ap", "eval_mask_ap50"):
        assert results[name] == metrics[name]
    assert results["per_category"] == {"digit": {"ap": results["eval_ap"], "mask_ap": results["eval_mask_ap"]}}
    assert results["steps"] == 3
    card = ModelCard.load(output / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("hf_twins", "object-detection")
    assert {result.metric_type for result in card.data.eval_results} == {"mean_average_precision"}
    assert "A mask-rcnn with a Twins backbone (" in card.text
    report = json.loads((output / "report.json").read_text())
    assert report["settings"]["recipe_values"]["decay_epochs"] == [8, 11]
    for name in ("curves.png", "predictions.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 200

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in (50, 51):
        digit_scene(seed, (48, 60 + seed)).image.save(pictures / f"{seed}.png")
    (pictures / "bad.png").write_text("no picture")
    predict_detection.main(
        [
            *("--model_name_or_path", str(output), "--images", str(pictures)),
            *("--output_dir", str(tmp_path / "found"), "--threshold", "0.01"),
        ]
    )
    assert "1 of 3 pictures cannot be decoded and are left out: bad.png." in caplog.text
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert found.keys() == {"50.png", "51.png"}
    with Image.open(tmp_path / "found" / "50.png") as drawn:
        assert drawn.size == (110, 48)
    for entry in found["50.png"]:
        assert entry["label"] == "digit"
        assert entry["score"] >= 0.01
        assert coco_mask.decode(entry["mask"]).shape == (48, 110)


@pytest.mark.parametrize(("options", "device"), [([], "xpu"), (["--device", "cpu"], "cpu")])
def test_prediction_takes_the_accelerator_unless_told_otherwise(options, device, tmp_path, monkeypatch):
    def move(device):
        raise ValueError(f"moved to {device}")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    detector = SimpleNamespace(model=SimpleNamespace(to=move))
    monkeypatch.setattr(predict_detection, "load_detector", lambda folder: detector)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["--model_name_or_path", "x", "--images", str(tmp_path), "--output_dir", str(tmp_path / "found")]
    with pytest.raises(SystemExit, match=f"moved to {device}$"):
        predict_detection.main([*arguments, *options])


@pytest.mark.usefixtures("one_process")
def test_saved_detr_is_what_pipelines_of_transformers_load(start, tmp_path):
    detector = small_detector("detr", start)
    randomize(backbone_of(detector.model.eval()))
    detector.model.save_pretrained(tmp_path)
    detector.processor.save_pretrained(tmp_path)
    picture = digit_scene(1, (64, 96)).image
    found = pipeline("object-detection", model=str(tmp_path), threshold=0.0)(picture)
    expected = detector([picture], threshold=0.0)[0]
    assert sorted(round(each["score"], 3) for each in found) == pytest.approx(
        sorted(expected["scores"].tolist()), abs=2e-3
    )


def test_learning_rate_is_warmed_up_and_falls_at_epochs(start, tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, warmup_steps=3, num_train_epochs=6, report_to="none",
        use_cpu=True, learning_rate=0.1,
    )  # fmt: skip
    detector = small_detector("retinanet", start)
    trainer = run_detection.DetectionTrainer(
        model=detector.model, args=args, recipe=DetectionRecipe(decay_epochs=[2, 4]), sampler=range(10)
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = trainer.create_scheduler(18, optimizer)
    rates = []
    for _ in range(18):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # Ten images are three steps.
    expected = [0.025, 0.05, 0.075] + 3 * [0.1] + 6 * [0.01] + 6 * [0.001]
    assert rates == pytest.approx(expected)


@pytest.mark.usefixtures("one_process")
def test_wrong_options_are_named(scenes, start, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_detection.main([])
    missing = "--train_dir, --train_annotations, --model_name_or_path or --config_name"
    assert f"missing: {missing} (see --help)" in capsys.readouterr().err
    options = run_options(scenes, start, tmp_path / "run", "retinanet")
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    for changes, message in (
        (["--detector", "yolo"], "--detector must be one of retinanet, mask-rcnn, detr"),
        (["--detector_config", "[1]"], r"--detector_config must be a JSON object, got \[1\]"),
        (["--detector_config", '{"depth": 1}'], "TorchvisionDetectorConfig has no field depth"),
        (["--detector_config", '{"pyramid_size": "x"}'], "--detector_config: .*pyramid_size"),
        (["--model_name_or_path", str(start)], "Give either --model_name_or_path or --config_name"),
        (["--train_dir", str(tmp_path / "missing")], "missing must be a folder of images"),
        (["--validation_dir", str(scenes)], "Give both --validation_dir and --validation_annotations"),
        (["--train_annotations", str(tmp_path / "text.json")], "text.json must be a JSON file as COCO's"),
        (["--train_annotations", str(tmp_path / "list.json")], "must have file_name, height, id, width for each"),
        (["--longest_edge", "32"], "--longest_edge must be at least --shortest_edge, 64, got 32"),
        (
            ["--detector", "rt-detr", "--detector_config", json.dumps(OPTIONS["rt-detr"]), "--shortest_edge", "72"],
            "--shortest_edge must be a multiple of 32",
        ),
        (["--resume_from_checkpoint", str(tmp_path)], "--resume_from_checkpoint must be 'latest' or a whole"),
    ):
        with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
            run_detection.main([*options, *changes])
    for images, arguments, message in (
        (scenes, [], "must be a folder with a detector of run_detection.py"),
        (tmp_path / "missing", [], "--images must be an image or a folder of images, got .*missing"),
        (scenes, ["--output_dir", str(scenes)], "--output_dir must be another folder"),
        (scenes, ["--threshold", "1.5"], r"--threshold must be in \[0, 1\), got 1.5"),
    ):
        with pytest.raises(SystemExit, match=message):
            predict_detection.main(
                [
                    *("--model_name_or_path", str(tmp_path), "--images", str(images)),
                    *("--output_dir", str(tmp_path / "found"), *arguments),
                ]
            )


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("detector", "num_epochs", "least"),
    [
        ("retinanet", 5, {"eval_ap": 0.45, "eval_ap50": 0.8}),
        ("mask-rcnn", 1, {"eval_ap": 0.35, "eval_ap50": 0.7, "eval_mask_ap50": 0.65}),
    ],
    ids=["retinanet", "mask-rcnn"],
)
def test_detector_learns_to_find_digits(detector, num_epochs, least, start, tmp_path):
    """From random weights, in about a minute on one core: 40 steps an epoch."""
    train, validation = (
        write_scenes(tmp_path / name, seeds) for name, seeds in (("train", range(100, 420)), ("validation", range(60)))
    )
    metrics = run_detection.main(
        [
            *run_options(train, start, tmp_path / "run", detector),
            *("--validation_dir", str(validation), "--validation_annotations", str(validation / "annotations.json")),
            *("--per_device_train_batch_size", "8", "--num_train_epochs", str(num_epochs), "--learning_rate", "1e-3"),
            *("--horizontal_flip", "0", "--multi_scale", "false", "--drop_path_rate", "0", "--longest_edge", "64"),
            *("--save_strategy", "no", "--eval_strategy", "no"),
        ]
    )
    for name, value in least.items():
        assert metrics[name] >= value, name


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_detr_learns(start, tmp_path):
    """Slowly, as it does: its loss falls, and what was saved detects as what was trained."""
    scenes = write_scenes(tmp_path / "scenes", range(80))
    output = tmp_path / "run"
    run_detection.main(
        [
            *run_options(scenes, start, output, "detr"),
            *("--num_train_epochs", "8", "--learning_rate", "5e-4", "--multi_scale", "false", "--eval_strategy", "no"),
            *("--horizontal_flip", "0", "--drop_path_rate", "0", "--save_strategy", "no"),
        ]
    )
    history = json.loads((output / "report.json").read_text())["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    detector = load_detector(output)
    assert detector([digit_scene(0).image], threshold=0.0)[0]["boxes"].shape == (12, 4)


def train(arguments: list[str]) -> subprocess.Popen:
    every_two = ["--save_strategy", "steps", "--save_steps", "2", "--num_train_epochs", "2", "--ema_decay", "0.9"]
    return subprocess.Popen(
        [sys.executable, run_detection.__file__, *arguments, *every_two],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(scenes, start, tmp_path):
    """Bit for bit, with augmentation, the detector's own random proposals, and the average of the weights."""
    assert train(run_options(scenes, start, tmp_path / "whole", "mask-rcnn")).wait() == 0

    output = tmp_path / "killed"
    process = train(run_options(scenes, start, output, "mask-rcnn"))
    while not list(output.glob("checkpoint-*")):
        assert process.poll() is None, "the training ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "all_results.json").exists()

    resume = [*run_options(scenes, start, output, "mask-rcnn"), "--resume_from_checkpoint", "latest"]
    assert train(resume).wait() == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    actual = load_file(output / "model.safetensors")
    assert all(torch.equal(weight, expected[name]) for name, weight in actual.items())
