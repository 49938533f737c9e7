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

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_utils import RECIPE, SMALL, small_detector
from safetensors.torch import load_file, save_file
from testing_utils import randomize, rectangle_mask
from transformers import AutoModelForObjectDetection, Trainer, TrainingArguments

from hf_twins import TwinsConfig
from hf_twins.detection import TwinsDetectorConfig, TwinsForObjectDetection, modeling
from hf_twins.detection.configuration import FIRST_STAGE
from hf_twins.detection.modeling import TwinsFeaturePyramidBackbone
from hf_twins.training.object_detection.models import find_backbone


def make_labels(name: str, height: int = 64, width: int = 64) -> dict[str, torch.Tensor]:
    labels = {
        "class_labels": torch.tensor([2, 0]),
        "boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 9.0, 8.0]]),
    }
    masks = {"masks": torch.ones(2, height, width, dtype=torch.uint8)} if name == "mask-rcnn" else {}
    return labels | masks


def deterministic_detector(name: str, start: Path, **options: Any) -> TwinsForObjectDetection:
    """A detector without stochastic depth that predicts many boxes."""
    recipe = replace(RECIPE, drop_path_rate=0.0)
    model = small_detector(name, start, recipe, **{"score_threshold": 0.0} | options).model
    randomize(find_backbone(model))
    return model


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


def test_boxes_of_labels_are_those_that_losses_are_computed_with(start, monkeypatch):
    seen = []
    for name, function in (("retinanet", "run_retinanet"), ("mask-rcnn", "run_mask_rcnn")):
        run = getattr(modeling, function)
        monkeypatch.setattr(
            modeling, function, lambda *arguments, run=run: seen.append(arguments[-1]) or run(*arguments)
        )
        model = small_detector(name, start).model.train()
        labels = make_labels(name)
        model(torch.rand(1, 3, 64, 64), labels=[labels])
        target = seen[-1][0]
        assert torch.equal(target["boxes"], labels["boxes"])
        # Mask R-CNN's first label is the background.
        assert torch.equal(target["labels"], labels["class_labels"] + (1 if name == "mask-rcnn" else 0))
        assert ("masks" in target) == (name == "mask-rcnn")
    with pytest.raises(ValueError, match="labels are required in training mode"):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"boxes": torch.tensor([[0.2, 0.3, 0.4, 0.5]] * 2)},
            r"in pixels, .* got \[0\.2, 0\.3, 0\.4, 0\.5\]: prepare",
        ),
        ({"boxes": torch.tensor([[1.0, 2, 9, 9], [30, 9, 20, 40]])}, r"left < right .* got \[30, 9, 20, 40\]"),
        ({"boxes": torch.tensor([[1.0, 2, 9, 9], [1, 2, 9, float("nan")]])}, r"got \[1, 2, 9, nan\]"),
        ({"boxes": torch.zeros(8)}, r"shape \(num_objects, 4\), and class_labels .*, got \(8,\) and \(2,\)\."),
        ({"class_labels": torch.tensor([1])}, r"got \(2, 4\) and \(1,\)\."),
        ({"class_labels": None}, r"labels must contain boxes, class_labels, masks for mask-rcnn, got boxes, masks\."),
        ({"masks": None}, r"labels must contain boxes, class_labels, masks for mask-rcnn, got class_labels, boxes\."),
    ],
)
def test_invalid_labels_are_named(changes, message, start):
    model = small_detector("mask-rcnn", start).model.eval()
    labels = {name: value for name, value in (make_labels("mask-rcnn") | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        model(torch.rand(1, 3, 64, 64), labels=[labels])
    with pytest.raises(ValueError, match="labels must be one dictionary for each of the 2 images, got 1"):
        model(torch.rand(2, 3, 64, 64), labels=[labels])


def test_an_image_without_objects_and_a_box_in_the_first_pixel_are_valid(start):
    model = small_detector("retinanet", start).model.eval()
    nothing = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    small = make_labels("retinanet") | {"boxes": torch.tensor([[0.1, 0, 0.9, 1], [3, 4, 30, 40]])}
    for labels in ([nothing, nothing], [nothing, small]):
        with torch.no_grad():
            assert model(torch.rand(2, 3, 64, 64), labels=labels).loss.isfinite()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 64, 64),
            r"pixel_values must have the shape \(batch_size, num_channels, height, width\), got \(3, 64, 64\)",
        ),
        ((1, 3, 12, 64), "pixel_values must be at least 16 pixels high and wide .* got 12 x 64"),
        ((0, 3, 64, 64), "pixel_values must hold at least one image"),
    ],
)
def test_invalid_images_are_named(shape, message, start):
    with pytest.raises(ValueError, match=message):
        small_detector("retinanet", start).model.eval()(torch.rand(shape))


def head_statistics(model: torch.nn.Module) -> dict[str, tuple[float, ...]]:
    """The constant that a parameter of the pyramid or the heads is filled with, or its standard deviation if it is large."""
    statistics: dict[str, tuple[float, ...]] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if "backbone.body" not in name:
            if torch.allclose(weight, weight.flatten()[0]):
                statistics[name] = (0.0, float(weight.flatten()[0]))
            else:
                statistics[name] = (float(weight.std()),) if weight.numel() > 1000 else ()
    return statistics


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_new_weights_of_a_loaded_detector_are_initialized_as_by_torchvision(name, start, tmp_path):
    model = small_detector(name, start).model.eval()
    model.save_pretrained(tmp_path)
    other = TwinsForObjectDetection.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: weight for key, weight in weights.items() if "backbone.body" in key}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    without_heads = TwinsForObjectDetection.from_pretrained(tmp_path)
    for loaded in (model, other, without_heads):
        build = modeling.build_retinanet if name == "retinanet" else modeling.build_mask_rcnn
        expected = head_statistics(build(loaded.config, TwinsFeaturePyramidBackbone(loaded.config)))
        actual = head_statistics(loaded.detector)
        assert actual.keys() == expected.keys()
        for key, values in expected.items():
            assert actual[key] == pytest.approx(values, rel=0.15, abs=1e-6), key
        with torch.no_grad():
            loss = loaded.eval()(torch.rand(1, 3, 64, 64), labels=[make_labels(name)]).loss
        assert loss.isfinite()
    # Weights of the checkpoint are kept.
    state = other.state_dict()
    same_shape = [key for key, weight in weights.items() if state[key].shape == weight.shape]
    assert len(same_shape) < len(weights)
    assert all(torch.equal(state[key], weights[key]) for key in same_shape)
    assert all(torch.equal(weight, kept[key]) for key, weight in without_heads.state_dict().items() if key in kept)


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_evaluation_with_labels_returns_the_loss_and_the_predictions(name, start):
    model = deterministic_detector(name, start)
    pixel_values, labels = torch.randn(2, 3, 64, 64), 2 * [make_labels(name)]
    torch.manual_seed(0)
    expected = model.train()(pixel_values, labels=labels)
    model.eval()
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    with torch.no_grad():
        torch.manual_seed(0)
        actual = model(pixel_values, labels=labels)
        predictions = model(pixel_values)
    assert list(expected) == ["loss", "loss_dict"]
    assert list(actual) == ["loss", "loss_dict", *predictions]
    torch.testing.assert_close(actual.loss, expected.loss.detach())
    assert actual.loss_dict.keys() == expected.loss_dict.keys()
    for field, value in predictions.items():
        torch.testing.assert_close(actual[field], value)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    with pytest.raises(RuntimeError), modeling.in_training_mode(model.detector):
        raise RuntimeError
    assert not model.detector.training


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_trainer_evaluates_and_predicts(name, start, tmp_path):
    model = small_detector(name, start, score_threshold=0.0).model
    examples = [{"pixel_values": torch.randn(3, 64, 64), "labels": make_labels(name)} for _ in range(3)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, eval_do_concat_batches=False,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        eval_dataset=examples,
        data_collator=lambda batch: {
            "pixel_values": torch.stack([example["pixel_values"] for example in batch]),
            "labels": [example["labels"] for example in batch],
        },
    )
    assert 0 < trainer.evaluate()["eval_loss"] < 20
    output = trainer.predict(examples)
    assert 0 < output.metrics["test_loss"] < 20
    # The other outputs follow the losses by name.
    boxes = [predictions[3] for predictions in output.predictions]
    assert [each.shape for each in boxes] == [(2, 100, 4), (1, 100, 4)]


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_boxes_are_computed_in_float32_under_autocast(name, start):
    model = deterministic_detector(name, start).eval()
    dtypes = {}

    def record(part: str, dtype: torch.dtype) -> None:
        dtypes[part] = dtype

    detector = model.detector
    detector.backbone.body.register_forward_hook(
        lambda module, args, output: record("body", output.feature_maps[0].dtype)
    )
    detector.backbone.register_forward_hook(lambda module, args, output: record("pyramid", output["0"].dtype))
    if name == "mask-rcnn":
        detector.rpn.register_forward_hook(lambda module, args, output: record("proposals", output[0][0].dtype))
    pixel_values = torch.randn(1, 3, 64, 1024)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixel_values, labels=[make_labels(name, 64, 1024)])
    assert dtypes.pop("body") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}
    assert outputs.loss.dtype == outputs.scores.dtype == outputs.boxes.dtype == torch.float32
    # In bfloat16, numbers over 512 are multiples of 4.
    large = outputs.boxes[(outputs.boxes > 512) & (outputs.boxes < 1024)]
    assert len(large) > 20
    assert (large % 4 == 0).float().mean() < 0.1


@pytest.mark.parametrize("cast", ["from_pretrained", "bfloat16", "to"])
@pytest.mark.parametrize("name", FIRST_STAGE)
def test_detector_in_half_precision_has_heads_in_float32(name, cast, start, tmp_path):
    model = deterministic_detector(name, start).eval()
    if cast == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = TwinsForObjectDetection.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    else:
        # Other modules cast the modules in them, too.
        wrapped = torch.nn.ModuleList([model])
        wrapped.bfloat16() if cast == "bfloat16" else wrapped.to(torch.bfloat16)
    for key, weight in model.named_parameters():
        assert weight.dtype == (torch.bfloat16 if "backbone.body" in key else torch.float32), key
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16), labels=[make_labels(name)])
    assert outputs.boxes.shape == (1, 100, 4)
    assert outputs.loss.dtype == outputs.boxes.dtype == torch.float32


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_pixel_mask_may_have_any_type(name, start):
    model = deterministic_detector(name, start).eval()
    pixel_values, mask = torch.randn(2, 3, 64, 96), rectangle_mask([(64, 96), (48, 70)], 64, 96)
    with torch.no_grad():
        expected = model(pixel_values, mask.bool())
        for dtype in (torch.float32, torch.long, torch.uint8):
            actual = model(pixel_values, mask.to(dtype))
            assert all(torch.equal(actual[field], value) for field, value in expected.items())


def test_detector_has_the_interface_of_transformers_models(start, tmp_path):
    model = deterministic_detector("retinanet", start).eval()
    model.save_pretrained(tmp_path)
    assert model.get_input_embeddings() is find_backbone(model).get_input_embeddings()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values)
        as_tuple = model(pixel_values, return_dict=False)
    assert type(as_tuple) is tuple
    assert all(torch.equal(*values) for values in zip(as_tuple, expected.values(), strict=True))
    for implementation in ("eager", "sdpa"):
        loaded = AutoModelForObjectDetection.from_pretrained(tmp_path, attn_implementation=implementation).eval()
        assert find_backbone(loaded).config._attn_implementation == implementation
        with torch.no_grad():
            torch.testing.assert_close(loaded(pixel_values).boxes, expected.boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", FIRST_STAGE)
def test_offloaded_detector_predicts_the_same(name, start, tmp_path):
    model = deterministic_detector(name, start).eval()
    model.save_pretrained(tmp_path)
    offloaded = TwinsForObjectDetection.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": "300KB"}, offload_folder=tmp_path / "offloaded"
    ).eval()
    assert "disk" in offloaded.hf_device_map.values()
    pixel_values, mask = torch.randn(2, 3, 64, 96), rectangle_mask([(64, 96), (48, 70)], 64, 96)
    with torch.no_grad():
        expected, actual = model(pixel_values, mask), offloaded(pixel_values, mask)
    for field, value in expected.items():
        torch.testing.assert_close(actual[field], value)


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
