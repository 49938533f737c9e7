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
"""Semantic segmentation: data, both heads, sliding windows, multi-scale inference, and resumed training."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from hf_twins._utils.command_line import parse_arguments

import evaluate_segmentation
import numpy as np
import predict_segmentation
import pytest
import run_segmentation
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from card_utils import run_card
from datasets import Dataset, Features, Image
from digit_scenes import digit_scene
from hostile_files import long_png
from PIL import Image as PILImage
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from testing_utils import randomize, tiny_config
from torch import nn
from training_utils import check_second_runs
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from hf_twins import (
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    load_model,
)
from hf_twins._utils.drawing import mask_image
from hf_twins._utils.images import convert_image
from hf_twins.training.data import LabeledImages
from hf_twins.training.runs import Run
from hf_twins.training.semantic_segmentation.arguments import (
    RECIPES,
    DataArguments,
    ModelArguments,
    SegmentationRecipe,
)
from hf_twins.training.semantic_segmentation.data import (
    IGNORE_INDEX,
    Preparation,
    class_numbers,
    load_pairs,
    training_transform,
)
from hf_twins.training.semantic_segmentation.drawing import class_shares
from hf_twins.training.semantic_segmentation.inference import (
    MULTI_SCALES,
    InferenceArguments,
    logits_of_inputs,
    mean_probabilities,
    segment,
    sliding_logits,
)
from hf_twins.training.semantic_segmentation.metrics import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    evaluate_pairs,
    published_miou,
    segmentation_metrics,
)
from hf_twins.training.semantic_segmentation.models import checkpoint_config, create_model, create_processor


HEADS = ("semantic-fpn", "upernet")
# The classes in the scenes.
DIGITS = (0, 1, 4)
CLASSES = ["background", *(f"digit {digit}" for digit in DIGITS)]


def write_scenes(folder: Path, seeds: range, size: tuple[int, int] = (32, 32)) -> Path:
    """Write scenes with the classes 0 (the background) to 3."""
    handwriting = np.flatnonzero(np.isin(load_digits().target, DIGITS))
    number = np.zeros(11, dtype=np.uint8)
    number[[1 + digit for digit in DIGITS]] = range(1, len(CLASSES))
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for seed in seeds:
        scene = digit_scene(seed, size, num_digits=2, handwriting=handwriting)
        scene.image.save(folder / "images" / f"{seed}.png")
        PILImage.fromarray(number[scene.mask]).save(folder / "annotations" / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "training", range(24))
    write_scenes(folder / "validation", range(1000, 1006), size=(30, 37))
    (folder / "names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def processor_of(size: int = 32, **fields) -> TwinsImageProcessor:
    size_limits = {"shortest_edge": size, "longest_edge": 4 * size}
    return TwinsImageProcessor(size=size_limits, resample=2, do_center_crop=False, **fields)


def upernet_config(**fields) -> UperNetConfig:
    """A tiny UperNet, with the backbone of the authors' segmentation models of Twins-SVT."""
    backbone = {"out_features": ["stage1", "stage2", "stage3"], "use_stage_norm": True}
    return UperNetConfig(
        backbone_config=tiny_config(**backbone | {"window_padding": "authors_segmentation"} | fields),
        hidden_size=16,
        auxiliary_channels=8,
        pool_scales=[1, 2],
        num_labels=4,
    )


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, Path]:
    """Configurations of tiny models of either head."""
    folder = tmp_path_factory.mktemp("starts")
    tiny_config(fpn_hidden_size=16, decoder_hidden_size=16, num_labels=4).save_pretrained(folder / "semantic-fpn")
    upernet_config().save_pretrained(folder / "upernet")
    return {head: folder / head for head in HEADS}


@pytest.fixture
def one_process():
    """Reset Accelerate's state, so that it does not carry over to the next run."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def options(scenes: Path, start: Path, output: Path) -> list[str]:
    return [
        *("--config_name", str(start), "--output_dir", str(output), "--image_size", "32"),
        *("--train_dir", str(scenes / "training"), "--validation_dir", str(scenes / "validation")),
        *("--class_names_file", str(scenes / "names.txt"), "--num_train_epochs", "2", "--disable_tqdm", "true"),
        *("--per_device_train_batch_size", "8"),
    ]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("head", HEADS)
def test_script_trains_evaluates_and_writes_a_repository(head, scenes, starts, tmp_path, capsys):
    output = tmp_path / "run"
    metrics = run_segmentation.main(options(scenes, starts[head], output))
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(
        f"Mean IoU on 6 evaluation images: {metrics['eval_mean_iou']:.1%}. Look at {output}/predictions.png"
    )
    results = json.loads((output / "all_results.json").read_text())
    assert results["eval_mean_iou"] == metrics["eval_mean_iou"]
    assert results["steps"] == 6
    report = json.loads((output / "report.json").read_text())
    # Evaluations are once per epoch, the last one with the final weights.
    assert [entry["epoch"] for entry in report["history"] if "eval_mean_iou" in entry] == [1, 2]
    assert np.sum(report["confusion_matrix"]) == 6 * 30 * 37
    assert list(report["per_class"]) == CLASSES
    assert "mean_iou" in (output / "README.md").read_text()
    for name in ("predictions.png", "curves.png", "class_iou.png"):
        with PILImage.open(output / name) as image:
            assert min(image.size) >= 200

    # Evaluating the saved folder gives the same result.
    model = AutoModelForSemanticSegmentation.from_pretrained(output)
    assert model.config.id2label == dict(enumerate(CLASSES))
    arguments = [
        "--model_name_or_path",
        str(output),
        "--validation_dir",
        str(scenes / "validation"),
        "--device",
        "cpu",
    ]
    again = evaluate_segmentation.main([*arguments, "--output_file", str(tmp_path / "results.json")])
    assert again["mean_iou"] == pytest.approx(metrics["eval_mean_iou"], abs=1e-6)
    results = (tmp_path / "results.json").read_text()
    assert json.loads(results)["images"] == 6
    assert len(json.loads(results)["data"]) == len(json.loads(results)["model"]) == 64
    assert str(tmp_path) not in results
    segments = pipeline("image-segmentation", str(output))(str(scenes / "validation" / "images" / "1000.png"))
    assert {each["label"] for each in segments} <= set(CLASSES)
    assert all(each["mask"].size == (37, 30) for each in segments)


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("head", HEADS)
def test_code_of_the_card_runs_without_extras(head, scenes, starts, tmp_path):
    run_segmentation.main([*options(scenes, starts[head], tmp_path / "run"), "--max_steps", "1"])
    assert run_card(tmp_path / "run").startswith("[(")


@pytest.mark.parametrize("head", HEADS)
def test_classifier_gets_either_head(head, tmp_path):
    classifier = randomize(TwinsForImageClassification(tiny_config()))
    classifier.save_pretrained(tmp_path)
    TwinsImageProcessor(image_mean=[0.5, 0.4, 0.3]).save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), head=head, window_padding="zeros", image_size=48)
    fields = checkpoint_config(arguments)
    model = create_model(arguments, fields, CLASSES, drop_path_rate=0.25)
    backbone = model.backbone if head == "upernet" else model.twins
    assert model.config.num_labels == len(CLASSES)
    assert (backbone.config.window_padding, backbone.config.drop_path_rate) == ("zeros", 0.25)
    # Otherwise, predictions for images of other sizes than multiples of the stride would be shifted.
    assert backbone.config.patch_padding
    # The Trainer must divide the loss of accumulated batches if the model does not.
    assert getattr(model, "accepts_loss_kwargs", True) == (head != "upernet")
    weights = backbone.encoder.state_dict()
    for name, weight in classifier.twins.encoder.state_dict().items():
        assert torch.equal(weights[name], weight), name
    processor = create_processor(arguments, fields, do_reduce_labels=True)
    assert (processor.size.shortest_edge, processor.size.longest_edge) == (48, 192)
    assert list(processor.image_mean) == [0.5, 0.4, 0.3]
    assert processor.do_reduce_labels
    # Images are prepared as in mmsegmentation, not as for classifiers.
    assert not processor.do_center_crop
    assert processor.resample == PILImage.Resampling.BILINEAR


@pytest.mark.parametrize("head", HEADS)
def test_segmentation_checkpoint_keeps_its_head_for_the_same_number_of_classes(head, starts, tmp_path):
    trained = AutoModelForSemanticSegmentation.from_config(
        upernet_config() if head == "upernet" else tiny_config(num_labels=4)
    )
    randomize(trained).save_pretrained(tmp_path)
    processor_of(40, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    fields = checkpoint_config(arguments)
    same, other = (create_model(arguments, fields, names, None) for names in (CLASSES, CLASSES[:3]))
    assert type(same) is type(trained)
    assert not getattr(same.config, "backbone_config", same.config).patch_padding
    assert all(torch.equal(weight, trained.state_dict()[name]) for name, weight in same.state_dict().items())
    changed = {name for name, weight in other.state_dict().items() if weight.shape != trained.state_dict()[name].shape}
    assert changed
    assert all(".classifier." in name for name in changed)
    processor = create_processor(arguments, fields, do_reduce_labels=False)
    assert processor.size.shortest_edge == 40
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]


def test_training_with_another_image_processor_class_sees_the_same_pixels(tmp_path):
    randomize(TwinsForSemanticSegmentation(tiny_config(num_labels=4))).save_pretrained(tmp_path)
    former = SegformerImageProcessor(size={"shortest_edge": 40, "longest_edge": 160}, image_std=[0.1, 0.2, 0.3])
    former.save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    create_processor(arguments, checkpoint_config(arguments), do_reduce_labels=True).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is TwinsImageProcessor
    assert processor.do_reduce_labels
    image = PILImage.effect_noise((73, 51), 80).convert("RGB")
    assert torch.equal(
        processor(image, return_tensors="pt").pixel_values, former(image, return_tensors="pt").pixel_values
    )


@pytest.mark.parametrize("script", [evaluate_segmentation, predict_segmentation])
def test_models_that_cannot_segment_are_refused(script, scenes, tmp_path):
    """The models are one with a processor that crops, and a classifier, whose head would have random weights."""
    model = tmp_path / "model"
    arguments = ["--model_name_or_path", str(model), "--device", "cpu"]
    if script is evaluate_segmentation:
        arguments += ["--validation_dir", str(scenes / "validation")]
    else:
        arguments += ["--images", str(scenes / "validation" / "images"), "--output_dir", str(tmp_path / "out")]
    randomize(TwinsForSemanticSegmentation(tiny_config(num_labels=4))).save_pretrained(model)
    TwinsImageProcessor().save_pretrained(model)
    with pytest.raises(SystemExit, match=r"has do_center_crop=True, .* save it with do_center_crop=False"):
        script.main(arguments)
    randomize(TwinsForImageClassification(tiny_config(num_labels=4))).save_pretrained(model)
    processor_of().save_pretrained(model)
    message = (
        r"^error: \S+model holds a TwinsForImageClassification, but a semantic segmentation model is needed .*: pass"
    )
    with pytest.raises(SystemExit, match=message):
        script.main(arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("window_padding", ["masked", "zeros", "authors_segmentation"])
def test_upernet_segments_images_of_any_size(window_padding):
    model = randomize(UperNetForSemanticSegmentation(upernet_config(window_padding=window_padding)))
    image = PILImage.effect_noise((45, 31), 80).convert("RGB")
    classes = segment(model, processor_of(), image, InferenceArguments())
    assert classes.shape == (31, 45)
    assert 0 <= classes.min() < classes.max() < 4


@pytest.mark.parametrize("size", [(17, 29), (12, 12), (40, 33)], ids=str)
def test_sliding_window_equals_a_plain_loop(size):
    model = randomize(TwinsForSemanticSegmentation(tiny_config()))
    pixel_values = torch.randn(2, 3, *size)
    crop, stride = 16, 7
    total, count = torch.zeros(2, 5, *size), torch.zeros(size)
    with torch.no_grad():
        actual = sliding_logits(model, pixel_values, crop, stride)
        top = 0
        while True:
            left = 0
            first_row = max(min(top, size[0] - crop), 0)
            while True:
                first = max(min(left, size[1] - crop), 0)
                rows, columns = slice(first_row, first_row + crop), slice(first, first + crop)
                window = pixel_values[:, :, rows, columns]
                logits = nn.functional.interpolate(model(window).logits, size=window.shape[2:], mode="bilinear")
                total[:, :, rows, columns] += logits
                count[rows, columns] += 1
                if left + crop >= size[1]:
                    break
                left += stride
            if top + crop >= size[0]:
                break
            top += stride
    torch.testing.assert_close(actual, total / count)


@pytest.mark.parametrize("head", HEADS)
def test_multi_scale_and_flip_equals_a_plain_loop(head):
    config = upernet_config() if head == "upernet" else tiny_config(num_labels=4)
    model = randomize(AutoModelForSemanticSegmentation.from_config(config))
    image = PILImage.effect_noise((41, 35), 80).convert("RGB")
    processor = processor_of()
    how = InferenceArguments(scales=list(MULTI_SCALES), flip=True)
    with torch.inference_mode():
        outputs = logits_of_inputs(model, processor, image, how)
        # Strips of odd heights.
        strips = [mean_probabilities(outputs, (35, 41), top, min(top + 9, 35)) for top in range(0, 35, 9)]
    actual = torch.cat(strips, 1)
    assert torch.equal(segment(model, processor, image, how), actual.argmax(0))
    expected = []
    for short_side in (16, 24, 32, 40, 48, 56):
        # An image processor of another model, which does the same.
        inputs = SegformerImageProcessor(size={"shortest_edge": short_side, "longest_edge": 4 * short_side})(
            image, return_tensors="pt"
        )["pixel_values"]
        for pixels in (inputs, inputs.flip(-1)):
            with torch.no_grad():
                logits = model(pixels).logits
            logits = nn.functional.interpolate(logits, size=inputs.shape[2:], mode="bilinear")
            logits = nn.functional.interpolate(logits, size=(35, 41), mode="bilinear")
            if pixels is not inputs:
                logits = logits.flip(-1)
            expected.append(logits.softmax(1)[0])
    torch.testing.assert_close(actual, torch.stack(expected).mean(0))


def test_window_as_large_as_the_image_equals_the_entire_image():
    model = randomize(TwinsForSemanticSegmentation(tiny_config()))
    image = PILImage.effect_noise((45, 31), 80)
    how = InferenceArguments(slide_crop_size=64, slide_stride=64)
    whole = segment(model, processor_of(), image, InferenceArguments())
    assert torch.equal(segment(model, processor_of(), image, how), whole)


def test_metrics_equal_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (3, 20, 30), generator=generator)
    prediction = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, (truth + 1) % 4)
    truth[0, :5] = IGNORE_INDEX
    # The matrix is the sum of two parts, and one class does not occur.
    matrix = sum(confusion_matrix(truth[part], prediction[part], 5) for part in (slice(1), slice(1, 3)))
    is_labeled = truth != IGNORE_INDEX
    expected, actual = truth[is_labeled].numpy(), prediction[is_labeled].numpy()
    assert segmentation_metrics(matrix) == pytest.approx(
        {
            "mean_iou": jaccard_score(expected, actual, average="macro"),
            "mean_accuracy": balanced_accuracy_score(expected, actual),
            "overall_accuracy": accuracy_score(expected, actual),
        }
    )
    np.testing.assert_allclose(class_iou(matrix)[:4], jaccard_score(expected, actual, average=None))
    assert class_iou(matrix)[4].isnan()
    assert class_accuracy(matrix)[4].isnan()
    with pytest.raises(ValueError, match="A mask has class 3, but the model has 3 classes, from 0"):
        confusion_matrix(truth, prediction, 3)


def test_evaluation_counts_every_pixel_of_every_image(scenes):
    model = randomize(TwinsForSemanticSegmentation(tiny_config(num_labels=4))).train()
    pairs, _ = load_pairs(DataArguments(train_dir=str(scenes / "validation"), train_val_split=0.5), seed=0)
    matrix = evaluate_pairs(model, processor_of(), pairs["train"], InferenceArguments())
    truth = np.concatenate([np.asarray(pair["label"]).ravel() for pair in pairs["train"]])
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(truth, minlength=4))
    assert model.training


def test_mismatched_pairs_are_left_out_and_named(tmp_path, caplog):
    folder = write_scenes(tmp_path / "scenes", range(9))
    whole = (folder / "images" / "0.png").read_bytes()
    (folder / "images" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "annotations" / "1.png").write_text("no image")
    PILImage.new("L", (31, 32)).save(folder / "annotations" / "2.png")
    PILImage.new("RGB", (32, 32)).save(folder / "annotations" / "3.png")
    PILImage.new("L", (32, 32), IGNORE_INDEX).save(folder / "annotations" / "4.png")
    (folder / "annotations" / "5.png").unlink()
    (folder / "images" / "6.png").write_bytes(long_png())
    arguments = DataArguments(train_dir=str(folder), validation_dir=str(folder))
    with caplog.at_level(logging.WARNING):
        pairs, names = load_pairs(arguments, seed=0)
    assert len(pairs["train"]) == 2
    assert names == ["0", "1", "2", "3"]
    assert "1 images without a mask of the same name, a lossless one such as PNG (5.png)" in caplog.text
    assert "6 images of train are left out: " in caplog.text
    for file, fault in (
        ("0.png", "image cannot be decoded"),
        ("1.png", "mask cannot be decoded"),
        ("2.png", "image of (32, 32), mask of (31, 32)"),
        ("3.png", "mask of mode RGB"),
        ("4.png", "no pixel with a class"),
    ):
        assert f"{file} ({fault})" in caplog.text
    assert "6.png (image cannot be used: " in caplog.text
    assert "6.png is too long, 1 x 65535 pixels" in caplog.text


def test_reduced_labels_ignore_zero_and_count_from_one():
    mask = PILImage.fromarray(np.array([[0, 1], [150, 255]], dtype=np.uint8))
    np.testing.assert_array_equal(class_numbers(mask, True), [[255, 0], [149, 255]])
    np.testing.assert_array_equal(class_numbers(mask, False), [[0, 1], [150, 255]])
    # The colors of the palette differ from the class numbers.
    indexed = mask_image(np.array([[0, 1], [2, 2]], dtype=np.uint8), "abc")
    np.testing.assert_array_equal(class_numbers(indexed, False), [[0, 1], [2, 2]])
    with pytest.raises(ValueError, match=r"A mask must have one number per pixel, its class, got .* of mode RGB"):
        class_numbers(mask.convert("RGB"), False)


def test_columns_of_a_dataset_are_found(tmp_path, scenes):
    files = [str(scenes / "training" / "images" / f"{index}.png") for index in range(6)]
    columns = {"image": files, "annotation": [file.replace("images", "annotations") for file in files]}
    features = Features({"image": Image(), "annotation": Image()})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    pairs, names = load_pairs(DataArguments(dataset_name=str(tmp_path / "data"), train_val_split=0.5), seed=0)
    assert (len(pairs["train"]), len(pairs["validation"])) == (3, 3)
    assert names == ["0", "1", "2", "3"]
    # The model's names are used if their number matches.
    _, names = load_pairs(DataArguments(dataset_name=str(tmp_path / "data")), 0, ["a", "b", "c", "d"])
    assert names == ["a", "b", "c", "d"]


@pytest.mark.usefixtures("accelerators_keep_their_random_numbers")
def test_crop_depends_only_on_seed_epoch_and_index(scenes):
    pairs, _ = load_pairs(DataArguments(train_dir=str(scenes / "training")), seed=0)
    transform = training_transform(SegmentationRecipe(), processor_of(32))
    images = LabeledImages(pairs["train"], Preparation(transform, do_reduce_labels=False, seed=7))
    first = images[(2, 5)]
    torch.default_generator.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(images[(2, 5)]["pixel_values"], first["pixel_values"])
    assert torch.equal(images[(2, 5)]["labels"], first["labels"])
    assert torch.equal(torch.get_rng_state(), state), "the model's own random numbers are not touched"
    for other in (images[(3, 5)], LabeledImages(pairs["train"], Preparation(transform, False, seed=8))[(2, 5)]):
        assert not torch.equal(other["pixel_values"], first["pixel_values"])
    assert {type(value) for value in first.values()} == {torch.Tensor}


def test_image_and_mask_are_cropped_padded_and_mirrored_together():
    """The image is its own mask, so that each pixel must have its class's color."""
    numbers = np.kron(np.arange(12).reshape(3, 4), np.ones((16, 16), int)).astype(np.uint8)
    image = PILImage.fromarray(numbers * 20).convert("RGB")
    processor = processor_of(64, image_mean=[0.5] * 3, image_std=[1.0] * 3)
    recipe = SegmentationRecipe(photometric_distortion=False)
    preparation = Preparation(training_transform(recipe, processor), do_reduce_labels=False)
    num_padded = 0
    for epoch in range(12):
        example = preparation({"image": image, "label": PILImage.fromarray(numbers)}, epoch, 0)
        assert example["pixel_values"].shape == (3, 64, 64)
        assert example["labels"].dtype == torch.int64
        is_padding = example["labels"] == IGNORE_INDEX
        num_padded += int(is_padding.any())
        # The tolerance is the rounding of the mean color.
        assert example["pixel_values"][0][is_padding].abs().sum() < 0.003 * 64 * 64
        found = (example["pixel_values"][0] + 0.5) * 255 / 20
        is_same = (found - example["labels"]).abs() < 0.5
        # Not all pixels match, because the image is blended between the squares, but the mask is not.
        assert is_same[~is_padding].float().mean() > 0.8
    assert 0 < num_padded < 12


def test_crop_avoids_regions_dominated_by_one_class():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 48:] = 1
    pair = {"image": PILImage.new("RGB", (64, 64)), "label": PILImage.fromarray(mask)}
    shares = {}
    for max_class_share in (0.75, 1.0):
        recipe = SegmentationRecipe(min_scale=2.0, max_scale=2.0, max_class_share=max_class_share)
        preparation = Preparation(training_transform(recipe, processor_of(32)), do_reduce_labels=False)
        labels = torch.stack([preparation(pair, epoch)["labels"] for epoch in range(30)])
        shares[max_class_share] = (labels == 0).flatten(1).float().mean(1)
    assert (shares[0.75] < 0.75).float().mean() > 0.9
    assert (shares[1.0] < 0.75).float().mean() < 0.7


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("head", HEADS)
def test_batch_without_a_class_changes_nothing(head, tmp_path):
    """The mean over no pixels is NaN in PyTorch, and so is the models' loss."""
    config = upernet_config() if head == "upernet" else tiny_config(num_labels=4)
    model = AutoModelForSemanticSegmentation.from_config(config)
    trainer = run_segmentation.SegmentationTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        recipe=SegmentationRecipe(),
        sampler=None,
        run=Run(tmp_path, {}),
        inference=InferenceArguments(),
    )
    batch = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.full((2, 32, 32), IGNORE_INDEX)}
    assert model(**batch).loss.isnan()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    batch["labels"][0, 3, 4] = 1
    torch.testing.assert_close(trainer.compute_loss(model.eval(), batch), model(**batch).loss)


@pytest.mark.usefixtures("one_process")
def test_wrong_options_are_named(scenes, starts, tmp_path, capsys):
    start, upernet = starts["semantic-fpn"], starts["upernet"]
    whole = options(scenes, start, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("background\ndigit\n")
    for arguments, message in (
        ([*whole, "--model_name_or_path", "x"], "Give either --model_name_or_path or --config_name"),
        ([*whole, "--dataset_name", "x"], "Give either --dataset_name or --train_dir"),
        ([*whole, "--head", "fcn"], "--head must be one of semantic-fpn, upernet, got fcn"),
        (
            [*options(scenes, upernet, tmp_path), "--head", "semantic-fpn"],
            "is an UperNet: --head semantic-fpn needs another checkpoint",
        ),
        ([*whole, "--train_dir", str(tmp_path / "empty")], "with the folders images and annotations in it"),
        (
            [*whole, "--class_names_file", str(tmp_path / "names.txt")],
            "has class 3, but the largest is 1: check the",
        ),
        ([*whole, "--class_names_file", str(tmp_path / "none.txt")], "No such file or directory: .*none.txt"),
        ([*whole, "--min_scale", "3"], "--min_scale must be above 0 and not above --max_scale, got 3.0 and 2.0"),
        ([*whole, "--per_device_train_batch_size", "25"], "There are 24 training pairs, fewer than a batch"),
        ([*whole, "--slide_stride", "8"], "--slide_stride requires --slide_crop_size"),
        (
            [*whole, "--slide_crop_size", "8", "--slide_stride", "9"],
            "--slide_stride must be from 1 to --slide_crop_size",
        ),
        ([*whole, "--scales", "0", "1"], "--scales must be positive numbers, got"),
        (
            [*whole, "--resume_from_checkpoint", str(tmp_path)],
            "--resume_from_checkpoint must be 'latest' or a complete",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            run_segmentation.main(arguments)
    with pytest.raises(SystemExit):
        run_segmentation.main(["--recipe", "guess", "--output_dir", "x"])
    assert "--recipe must be one of ade20k-semantic-fpn, ade20k-upernet, fine-tune" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", [file.stem for file in sorted(RECIPES.glob("*.toml"))])
def test_recipe_sets_defaults(recipe):
    parsed = parse_arguments(
        *(ModelArguments, DataArguments, SegmentationRecipe, TrainingArguments),
        recipes=RECIPES,
        arguments=["--config_name", "x", "--train_dir", "y", "--output_dir", "z", "--recipe", recipe],
    )
    for name, value in tomllib.loads((RECIPES / f"{recipe}.toml").read_text(encoding="utf-8")).items():
        assert any(getattr(each, name, None) == value for each in parsed), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model with random weights and five classes, and its image processor."""
    folder = tmp_path_factory.mktemp("trained")
    names = {0: "sky", 1: "road", 2: "tree", 3: "house", 4: "a car of a rather long name"}
    randomize(TwinsForSemanticSegmentation(tiny_config(id2label=names))).save_pretrained(folder)
    processor_of().save_pretrained(folder)
    return folder


def test_prediction_writes_mask_and_overlay_of_every_image(trained, tmp_path, capsys, caplog):
    (tmp_path / "images").mkdir()
    PILImage.effect_noise((60, 40), 80).save(tmp_path / "images" / "gray.png")
    PILImage.effect_noise((33, 50), 80).convert("RGB").save(tmp_path / "images" / "color.jpg")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    arguments = ["--model_name_or_path", str(trained), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    shares = predict_segmentation.main([*arguments, "--images", str(tmp_path / "images")])
    assert list(shares) == ["color.jpg", "gray.png"]
    assert all(sum(classes.values()) == pytest.approx(1) for classes in shares.values())
    model, processor = load_model(trained, "semantic-segmentation")
    with PILImage.open(tmp_path / "images" / "gray.png") as image:
        expected = segment(model, processor, image, InferenceArguments())
    with PILImage.open(tmp_path / "out" / "gray_mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected)
        assert class_shares(np.asarray(mask), list(model.config.id2label.values())) == shares["gray.png"]
    with PILImage.open(tmp_path / "out" / "color_overlay.png") as image:
        assert min(image.size) > 200
    assert "gray.png: " in capsys.readouterr().out

    (tmp_path / "images" / "bad.png").write_text("no image")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit, match="out holds the files of a run with other images: give another --output_dir"):
        predict_segmentation.main([*arguments, "--images", str(tmp_path / "images")])
    more = ["--output_dir", str(tmp_path / "more"), "--images", str(tmp_path / "images")]
    for _ in range(2):
        assert predict_segmentation.main([*arguments, *more]) == shares
    with pytest.raises(SystemExit, match="more holds the files of a run with flip False, now True: "):
        predict_segmentation.main([*arguments, *more, "--flip"])
    (tmp_path / "more" / "settings.json").unlink()
    with pytest.raises(SystemExit, match=r"more holds color_mask\.png, but no settings\.json of the run"):
        predict_segmentation.main([*arguments, *more])
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert before.keys() == {
        "settings.json",
        *(f"{name}_{kind}.png" for name in ("gray", "color") for kind in ("mask", "overlay")),
    }
    assert "1 of 3 images cannot be used and are skipped: bad.png." in caplog.text
    with pytest.raises(SystemExit, match="--images must be an image or a folder of images, got"):
        predict_segmentation.main([*arguments, "--images", str(tmp_path / "none")])
    (tmp_path / "images" / "gray.jpg").write_text("another")
    with pytest.raises(SystemExit, match="have the same name except for its extension: gray"):
        predict_segmentation.main([*arguments, "--images", str(tmp_path / "images")])


def test_published_result_is_shown_only_for_the_same_source_and_inference(tmp_path, trained, scenes, capsys):
    published = json.loads(
        (Path(__file__).parents[2] / "hf_twins" / "checkpoints" / "published_checkpoints.json").read_text()
    )
    entry = next(each for each in published if each["name"] == "twins-svt-small-upernet-ade20k")
    report = {"source": entry["url"], "source_format": "mmsegmentation UperNet"}
    (tmp_path / "conversion.json").write_text(json.dumps(report))
    config = UperNetConfig(backbone_config=TwinsConfig.from_variant("twins-svt-small"))
    single, multi = InferenceArguments(), InferenceArguments(scales=list(MULTI_SCALES), flip=True)
    assert published_miou(str(tmp_path), config, single) == (46.08, "OpenMMLab")
    assert published_miou(str(tmp_path), config, multi) == (46.96, "OpenMMLab")
    for other in (InferenceArguments(flip=True), InferenceArguments(slide_crop_size=512)):
        assert published_miou(str(tmp_path), config, other) is None
    assert published_miou(str(trained), config, single) is None
    (tmp_path / "conversion.json").write_text(json.dumps({"source": "x.pth", "source_format": "authors' UperNet"}))
    assert published_miou(str(tmp_path), config, single) == (46.2, "the authors")
    assert published_miou(str(tmp_path), config, multi) == (47.1, "the authors")
    other = UperNetConfig(backbone_config=TwinsConfig.from_variant("twins-svt-small", mlp_ratios=[2, 2, 2, 2]))
    assert published_miou(str(tmp_path), other, single) is None
    classifier = next(each for each in published if "ade20k_miou" not in each)
    converted = {"source": classifier["url"], "source_format": "timm"}
    (tmp_path / "conversion.json").write_text(json.dumps(converted))
    assert published_miou(str(tmp_path), TwinsConfig.from_variant("twins-svt-small"), single) is None

    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "conversion.json").write_text(json.dumps(report))
    arguments = ["--model_name_or_path", str(tmp_path), "--validation_dir", str(scenes / "validation")]
    evaluate_segmentation.main([*arguments, "--max_eval_samples", "1", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "published mIoU    46.08 %, by OpenMMLab" in printed
    assert "a car of a rather long name" in printed


def test_evaluation_names_invalid_input(trained, scenes, tmp_path):
    good = ["--validation_dir", str(scenes / "validation"), "--model_name_or_path"]
    many = tmp_path / "many"
    TwinsForSemanticSegmentation(tiny_config(num_labels=300)).save_pretrained(many)
    processor_of().save_pretrained(many)
    for arguments, message in (
        ([*good, str(many)], "many has 300 classes, but masks only 255: the number 255 means no class"),
        ([*good, str(tmp_path / "none")], "error: .*none"),
        (
            ["--model_name_or_path", str(trained), "--validation_dir", str(tmp_path)],
            "with the folders images and annotations",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluate_segmentation.main(arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_folder_of_a_run_is_refused_for_other_runs(scenes, starts, tmp_path):
    saving = ["--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    arguments = [*options(scenes, starts["semantic-fpn"], tmp_path / "run"), *saving]
    check_second_runs(run_segmentation.main, arguments, tmp_path / "run")


def train(arguments: list[str]) -> subprocess.Popen:
    every_two = ["--save_strategy", "steps", "--save_steps", "2", "--ema_decay", "0.9"]
    return subprocess.Popen(
        [sys.executable, run_segmentation.__file__, *arguments, *every_two],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(scenes, starts, tmp_path):
    """Weights are identical, with augmentation, dropout, batch statistics and the average of the weights."""
    head = "upernet"
    assert train(options(scenes, starts[head], tmp_path / "whole")).wait() == 0

    output = tmp_path / "killed"
    process = train(options(scenes, starts[head], output))
    while not list(output.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the training ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "all_results.json").exists()

    assert train([*options(scenes, starts[head], output), "--resume_from_checkpoint", "latest"]).wait() == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    actual = load_file(output / "model.safetensors")
    assert all(torch.equal(weight, expected[name]) for name, weight in actual.items())


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("head", HEADS)
def test_both_heads_learn_the_scenes(head, tmp_path):
    """They reach a mIoU of 0.7 on new scenes after eight epochs (seven for UperNet) of 200 scenes."""
    write_scenes(tmp_path / "training", range(200), size=(48, 48))
    write_scenes(tmp_path / "validation", range(10_000, 10_050), size=(48, 48))
    config = tiny_config(
        hidden_sizes=[32, 64, 128],
        num_attention_heads=[1, 2, 4],
        depths=[1, 1, 2],
        mlp_ratios=[4, 4, 4],
        fpn_hidden_size=32,
        decoder_hidden_size=32,
    )
    if head == "upernet":
        config.out_features = ["stage1", "stage2", "stage3"]
        # The default initialization is for 512 channels. With such small weights, 32 channels learn late.
        config = UperNetConfig(backbone_config=config, hidden_size=32, auxiliary_channels=32, initializer_range=0.2)
    config.save_pretrained(tmp_path / "start")
    metrics = run_segmentation.main(
        [
            *("--config_name", str(tmp_path / "start"), "--output_dir", str(tmp_path / "run"), "--image_size", "48"),
            *("--train_dir", str(tmp_path / "training"), "--validation_dir", str(tmp_path / "validation")),
            *(
                "--num_train_epochs",
                "7" if head == "upernet" else "8",
                "--learning_rate",
                "2e-3",
                "--drop_path_rate",
                "0",
                "--horizontal_flip",
                "0",
            ),
            *("--min_scale", "1", "--max_scale", "1", "--max_class_share", "1", "--photometric_distortion", "false"),
            *("--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"),
        ]
    )
    assert metrics["eval_mean_iou"] >= 0.7


@pytest.mark.usefixtures("one_process")
def test_training_of_one_step_has_no_warm_up(scenes, starts, tmp_path):
    run_segmentation.main([*options(scenes, starts["semantic-fpn"], tmp_path / "run"), "--max_steps", "1"])
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["steps"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_loss_that_is_not_finite_ends_training_and_is_not_saved(scenes, starts, tmp_path):
    arguments = options(scenes, starts["semantic-fpn"], tmp_path / "run")
    with pytest.raises(
        SystemExit, match=r"step \d+ (is|are) not finite \(NaN or infinite\): try a lower --learning_rate"
    ):
        run_segmentation.main([*arguments, "--learning_rate", "1e37", "--warmup_steps", "0", "--max_grad_norm", "0"])
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_evaluations_use_the_average_that_is_saved(scenes, starts, tmp_path, monkeypatch):
    evaluated = []
    evaluate = run_segmentation.evaluate_pairs

    def note(model, *arguments):
        evaluated.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return evaluate(model, *arguments)

    monkeypatch.setattr(run_segmentation, "evaluate_pairs", note)
    arguments = options(scenes, starts["semantic-fpn"], tmp_path / "run")
    # With patience, the last evaluation is not skipped.
    run_segmentation.main([*arguments, "--ema_decay", "0.9999", "--early_stopping_patience", "9"])
    # The second to last evaluation is the last one in training, before the script's own.
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(weight, evaluated[-2][name]), name


def test_results_of_different_runs_are_not_replaced(tmp_path):
    file = tmp_path / "results.json"
    identity = {"model": "a" * 64, "data": "b" * 64, "settings": {"flip": False, "scales": (1.0,)}}
    evaluate_segmentation.check_replaceable(file, identity)
    file.write_text(json.dumps({"metrics": {}, **identity}))
    evaluate_segmentation.check_replaceable(file, identity)
    with pytest.raises(ValueError, match=r"has the results of a run with another model; settings .*: give another"):
        evaluate_segmentation.check_replaceable(file, identity | {"model": "c" * 64, "settings": {"flip": True}})
    for content in ("notes", "[]", "{}"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"results\.json exists, but has no results of this script: give another"):
            evaluate_segmentation.check_replaceable(file, identity)


def test_prediction_with_a_long_name_and_one_that_is_no_text(trained, tmp_path, capsys):
    names = ["n" * 239 + ".png", os.fsdecode(b"\xe9.png")]
    (tmp_path / "images").mkdir()
    for name in names:
        with (tmp_path / "images" / name).open("wb") as file:
            PILImage.effect_noise((20, 20), 80).save(file, "PNG")
    arguments = ["--model_name_or_path", str(trained), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    command = [*arguments, "--images", str(tmp_path / "images")]
    assert predict_segmentation.main(command).keys() == {*names}
    printed = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{printed}" for name in (names[0], r"\xe9.png"))
    with (tmp_path / "images" / ("n" * 250 + ".png")).open("wb") as file:
        PILImage.effect_noise((20, 20), 80).save(file, "PNG")
    with pytest.raises(
        SystemExit, match=r"The outputs of 1 images would have names of more than 255 bytes, .* to n+\.png"
    ):
        predict_segmentation.main(command)


@pytest.mark.parametrize("num_channels", [1, 4])
def test_prediction_reads_images_in_the_mode_of_the_model(num_channels, tmp_path):
    model = randomize(TwinsForSemanticSegmentation(tiny_config(num_channels=num_channels)))
    channels = {"do_convert_rgb": False, "image_mean": [0.5] * num_channels, "image_std": [0.5] * num_channels}
    for each in (model, processor_of(**channels)):
        each.save_pretrained(tmp_path / "model")
    image = PILImage.merge("RGBA", [PILImage.effect_noise((32, 32), 80) for _ in range(4)])
    image.save(tmp_path / "a.png")
    arguments = ["--model_name_or_path", str(tmp_path / "model"), "--device", "cpu", "--output_dir", str(tmp_path)]
    predict_segmentation.main([*arguments[:-1], str(tmp_path / "out"), "--images", str(tmp_path / "a.png")])
    model, processor = load_model(tmp_path / "model", "semantic-segmentation")
    given = image if num_channels == 4 else convert_image(image, "L")
    expected = segment(model, processor, given, InferenceArguments())
    with PILImage.open(tmp_path / "out" / "a_mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected)
