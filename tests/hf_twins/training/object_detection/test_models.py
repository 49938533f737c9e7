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
"""Detectors to be trained."""

import shutil
from pathlib import Path

import pytest
import torch
from detection_utils import OPTIONS, RECIPE, small_detector
from digit_scenes import digit_scene
from safetensors.torch import load_file, save_file
from testing_utils import randomize, rectangle_mask

from hf_twins.detection import Detector, TwinsForObjectDetection, load_detector
from hf_twins.detection.configuration import FIRST_STAGE
from hf_twins.training.object_detection.arguments import DetectionRecipe, ModelArguments
from hf_twins.training.object_detection.data import (
    TrainingImages,
    collate,
    collate_for_detr,
    load_coco,
    training_transform,
)
from hf_twins.training.object_detection.models import create_detector, find_backbone


def batch_of(scenes: Path, detector: Detector, needs_masks: bool = True) -> dict:
    """The first two scenes, of different sizes."""
    split = load_coco(str(scenes), str(scenes / "annotations.json"), needs_masks)
    images = TrainingImages(split, training_transform(RECIPE, detector.processor), needs_masks)
    is_ours = isinstance(detector.model, TwinsForObjectDetection)
    return (collate if is_ours else collate_for_detr)([images[0, 0], images[0, 1]])


@pytest.mark.parametrize("name", OPTIONS)
def test_detector_trains_detects_and_reloads(name, scenes, start, tmp_path):
    detector = small_detector(name, start)
    model = detector.model.train()
    batch = batch_of(scenes, detector)
    assert (batch["pixel_mask"] == 0).any() == (name not in ("rt-detr", "d-fine"))
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite()
    assert loss.ndim == 0
    for parameter_name, parameter in find_backbone(model).named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name

    model.eval()
    model.save_pretrained(tmp_path)
    detector.processor.save_pretrained(tmp_path)
    loaded = load_detector(tmp_path)
    sizes = torch.tensor([[64, 64], [48, 80]])
    images = [digit_scene(seed, tuple(size)).image for seed, size in enumerate(sizes.tolist())]
    expected, actual = detector(images, threshold=0.0), loaded(images, threshold=0.0)
    assert loaded.model.config.id2label == {0: "name 0", 1: "name 1", 2: "name 2"}
    for before, after in zip(expected, actual, strict=True):
        assert len(before["scores"]) > 0 or name in FIRST_STAGE
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[field]) for field, value in before.items())
        assert (before["scores"].diff() <= 0).all()
        assert ("masks" in before) == (name == "mask-rcnn")


@pytest.mark.parametrize("window_padding", ["masked", "zeros"])
@pytest.mark.parametrize("name", ["retinanet", "mask-rcnn", "detr"])
def test_backbone_maps_of_an_image_do_not_depend_on_others_in_the_batch(name, window_padding, start):
    recipe = DetectionRecipe(shortest_edge=64, longest_edge=96, window_padding=window_padding)
    model = small_detector(name, start, recipe).model.eval()
    backbone = randomize(find_backbone(model))
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


def test_training_does_not_start_from_an_untrained_backbone(start, tmp_path):
    shutil.copytree(start, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "patch_embeddings" not in name},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    arguments = ModelArguments(detector="retinanet", model_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path} lacks .* weights of TwinsBackbone"):
        create_detector(arguments, RECIPE, ["digit"])


def test_training_starts_from_the_trained_backbone(start):
    arguments = ModelArguments(
        detector="retinanet", model_name_or_path=str(start), detector_config='{"pyramid_size": 24}'
    )
    recipe = DetectionRecipe(stage_norm=True, drop_path_rate=0.3, window_padding="zeros")
    model, _ = create_detector(arguments, recipe, ["digit"])
    backbone = find_backbone(model)
    assert (backbone.config.use_stage_norm, backbone.config.drop_path_rate) == (True, 0.3)
    weights = load_file(start / "model.safetensors")
    for name, parameter in backbone.encoder.named_parameters():
        if "stages" in name and name.count(".") == 3 and ".layernorm." in name:
            # A classifier has no stage norms.
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        else:
            assert torch.equal(parameter, weights[f"twins.encoder.{name}"]), name
