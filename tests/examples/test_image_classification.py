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
"""Fine-tuning with Trainer and with Accelerate: data, recipes, and training that goes on where it was killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_accelerate
import run_trainer
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from classification_arguments import RECIPES, ClassificationRecipe, DataArguments, ModelArguments
from classification_data import LabelledImages, Preparation, load_images, training_transform
from classification_training import (
    BatchMixer,
    ClassificationLoss,
    adapt_stem,
    balancing_weights,
    create_processor,
)
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from testing_utils import randomize, tiny_config
from training import EpochSampler, find_checkpoint, parse_arguments

from hf_twins import TwinsForImageClassification, TwinsImageProcessor


SCRIPTS = {"trainer": run_trainer, "accelerate": run_accelerate}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """scikit-learn's digits in a .parquet file, as texts and pictures."""
    folder = tmp_path_factory.mktemp("digits")
    images = load_digits()
    features = Features({"picture": Image(), "digit": Value("string")})
    pictures = [PILImage.fromarray((image * 255 / 16).astype("uint8")) for image in images.images]
    columns = {"picture": pictures, "digit": [str(label) for label in images.target]}
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A tiny model to start from, for images of 16 pixels."""
    folder = tmp_path_factory.mktemp("start")
    TwinsForImageClassification(tiny_config(num_labels=10)).save_pretrained(folder)
    TwinsImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def one_process():
    """Accelerate's state of one run does not become the next one's."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def options(digits: Path, start: Path, output: Path) -> list[str]:
    return [
        *("--config_name", str(start), "--train_dir", str(digits), "--output_dir", str(output)),
        *("--max_train_samples", "96", "--max_eval_samples", "40", "--num_train_epochs", "2"),
        *("--per_device_train_batch_size", "16", "--mixup_alpha", "0.8", "--cutmix_alpha", "1.0"),
        *("--rand_augment", "true", "--random_erasing", "0.25"),
    ]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_script_trains_evaluates_and_writes_a_repository(script, digits, start, tmp_path):
    extra = ["--disable_tqdm", "true"] if script == "trainer" else []
    metrics = SCRIPTS[script].main(options(digits, start, tmp_path / "run") + extra)
    output = tmp_path / "run"
    results = json.loads((output / "all_results.json").read_text())
    assert results["eval_accuracy"] == metrics["eval_accuracy"]
    assert results["steps"] == 12
    model = TwinsForImageClassification.from_pretrained(output)
    assert model.config.id2label == {label: str(label) for label in range(10)}
    report = json.loads((output / "report.json").read_text())
    assert sum(map(sum, report["confusion_matrix"])) == 40
    assert report["metrics"]["accuracy"] == pytest.approx(metrics["eval_accuracy"])
    for name in ("confusion_matrix.png", "curves.png"):
        with PILImage.open(output / name) as picture:
            assert min(picture.size) > 200
    assert "model-index" in (output / "README.md").read_text()
    assert TwinsImageProcessor.from_pretrained(output).size.shortest_edge == 18


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("recipe", ["linear-probe", "lora"])
def test_recipe_trains_only_its_part(recipe, script, digits, start, tmp_path):
    extra = ["--disable_tqdm", "true"] if script == "trainer" else []
    arguments = options(digits, start, tmp_path / "run")
    arguments[:2] = ["--model_name_or_path", str(start)]
    SCRIPTS[script].main([*arguments, "--recipe", recipe, "--num_train_epochs", "1", *extra])
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    if recipe == "linear-probe":
        assert changed == {"classifier.weight", "classifier.bias"}
    else:
        assert all("_proj." in name or ".mlp." in name or name.startswith("classifier.") for name in changed)
        assert len(changed) > 20
        assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def train(script: str, arguments: list[str]) -> subprocess.Popen:
    every_two = ["--checkpointing_steps", "2"]
    if script == "trainer":
        every_two = ["--save_strategy", "steps", "--save_steps", "2", "--disable_tqdm", "true"]
    return subprocess.Popen(
        [sys.executable, SCRIPTS[script].__file__, *arguments, *every_two, "--ema_decay", "0.9"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_training_resumes_to_the_same_weights(script, digits, start, tmp_path):
    """Bit for bit, with augmentation, mixing, and the average of the weights."""
    prefix = "checkpoint-" if script == "trainer" else "step_"
    assert train(script, options(digits, start, tmp_path / "whole")).wait() == 0

    output = tmp_path / "killed"
    process = train(script, options(digits, start, output))
    while not list(output.glob(f"{prefix}*")):
        assert process.poll() is None, "the training ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "all_results.json").exists()
    # What a kill in the middle of saving leaves.
    (output / f"{prefix}11").mkdir()
    (output / f"{prefix}11" / "model.safetensors").write_bytes(b"half")

    resume = [*options(digits, start, output), "--resume_from_checkpoint", "latest"]
    assert train(script, resume).wait() == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    actual = load_file(output / "model.safetensors")
    assert all(torch.equal(weight, expected[name]) for name, weight in actual.items())


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_both_scripts_learn_the_digits_equally_well(digits, tmp_path):
    """97 % of the held-out digits within eight epochs, and no more than a point apart."""
    config = {
        "patch_size": 2,
        "hidden_sizes": [32, 64, 128, 256],
        "num_attention_heads": [1, 2, 4, 8],
        "depths": [2, 2, 2, 2],
        "mlp_ratios": [4, 4, 4, 4],
        "sr_ratios": [4, 2, 1, 1],
        "window_size": 4,
    }
    tiny_config(**config).save_pretrained(tmp_path / "start")
    processor = TwinsImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "start")
    accuracies = []
    for name, script in SCRIPTS.items():
        arguments = [
            *(
                "--config_name",
                str(tmp_path / "start"),
                "--train_dir",
                str(digits),
                "--output_dir",
                str(tmp_path / name),
            ),
            *("--num_train_epochs", "8", "--learning_rate", "1e-3", "--layer_decay", "1.0", "--drop_path_rate", "0"),
            *("--horizontal_flip", "0", "--min_crop_scale", "0.7"),
            *(["--disable_tqdm", "true", "--save_strategy", "no"] if name == "trainer" else []),
        ]
        accuracies.append(script.main(arguments)["eval_accuracy"])
    assert min(accuracies) >= 0.97
    assert abs(accuracies[0] - accuracies[1]) <= 0.01


@pytest.mark.usefixtures("one_process")
def test_wrong_options_are_named(digits, start, tmp_path, capsys):
    for arguments, message in (
        (
            ["--output_dir", str(tmp_path), "--train_dir", str(digits)],
            "Give either --model_name_or_path or --config_name",
        ),
        (["--output_dir", str(tmp_path), "--config_name", str(start)], "Give either --dataset_name or --train_dir"),
        (
            [*options(digits, start, tmp_path), "--train_dir", str(tmp_path / "missing")],
            "missing must be a folder, of images in a sub-folder for each label",
        ),
        (
            [*options(digits, start, tmp_path), "--resume_from_checkpoint", str(tmp_path)],
            "--resume_from_checkpoint must be 'latest' or a whole checkpoint, with state.json",
        ),
        (
            [*options(digits, start, tmp_path), "--class_weights", "some"],
            "--class_weights must be none, loss or sampling",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            run_accelerate.main(arguments)
    with pytest.raises(SystemExit):
        run_accelerate.main(["--recipe", "guess", "--output_dir", str(tmp_path)])
    assert "--recipe must be one of imagenet-from-scratch, fine-tune" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_sets_defaults_that_can_be_overridden(recipe):
    arguments = ["--output_dir", "x", "--recipe", recipe]
    *_, values, loop = parse_arguments(
        *(ModelArguments, DataArguments, ClassificationRecipe, run_accelerate.LoopArguments),
        recipes=RECIPES,
        arguments=arguments,
    )
    for name, value in RECIPES[recipe].items():
        assert getattr(values, name, None) == value or getattr(loop, name, None) == value, name
    *_, loop = parse_arguments(
        ModelArguments,
        DataArguments,
        ClassificationRecipe,
        run_accelerate.LoopArguments,
        recipes=RECIPES,
        arguments=[*arguments, "--learning_rate", "0.125"],
    )
    assert loop.learning_rate == 0.125


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            PILImage.effect_noise((12, 10), 80).convert("RGB").save(folder / label / f"{index}.png")
    return folder


def test_corrupt_images_are_left_out_and_named(tmp_path, caplog):
    folder = write_images(tmp_path / "images", {"cat": 8, "dog": 8})
    whole = (folder / "cat" / "3.png").read_bytes()
    (folder / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "5.png").write_text("no picture")
    images = load_images(DataArguments(train_dir=str(folder), validation_dir=str(folder)), seed=0)
    assert len(images["train"]) == 14
    assert "2 images of train cannot be decoded and are left out: " in caplog.text
    assert "3.png" in caplog.text
    assert "5.png" in caplog.text
    assert all(example["image"].size == (12, 10) for example in images["train"])


def test_held_out_images_are_split_off_by_label(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    images = load_images(DataArguments(train_dir=str(folder), train_val_split=0.25), seed=0)
    assert images["train"].features["label"].names == ["cat", "dog"]
    assert sorted(images["validation"]["label"]) == [0] * 5 + [1] * 5
    assert len(images["train"]) == 30


def test_columns_are_found_or_asked_for(tmp_path):
    picture = io.BytesIO()
    PILImage.new("RGB", (9, 9)).save(picture, "PNG")
    columns = {"photo": [{"bytes": picture.getvalue(), "path": None}] * 6, "kind": [3, 3, 3, 5, 5, 5]}
    features = Features({"photo": Image(), "kind": Value("int64")})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    images = load_images(DataArguments(train_dir=str(tmp_path), train_val_split=0.34), seed=0)
    assert images["train"].features["label"].names == ["3", "5"]
    with pytest.raises(ValueError, match="--label_column_name must be one of photo, kind, got sort"):
        load_images(DataArguments(train_dir=str(tmp_path), label_column_name="sort"), seed=0)
    both = Dataset.from_dict(columns | {"size": [1] * 6}, features=Features(dict(features) | {"size": Value("int64")}))
    both.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"Which column is the label\? Say --label_column_name, one of photo, kind, size"
    ):
        load_images(DataArguments(train_dir=str(tmp_path)), seed=0)


def test_image_depends_on_seed_epoch_and_place_alone(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 4, "dog": 4})
    images = load_images(DataArguments(train_dir=str(folder), validation_dir=str(folder)), seed=0)["train"]
    processor = TwinsImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    transform = training_transform(ClassificationRecipe(rand_augment=True, random_erasing=1.0), processor)
    dataset = LabelledImages(images, Preparation(transform, num_channels=3, seed=7))
    first = dataset[(2, 5)]["pixel_values"]
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(dataset[(2, 5)]["pixel_values"], first)
    assert torch.equal(torch.get_rng_state(), state), "the model's own random numbers are not touched"
    for other in (dataset[(3, 5)], LabelledImages(images, Preparation(transform, 3, seed=8))[(2, 5)]):
        assert not torch.equal(other["pixel_values"], first)


def test_sampler_gives_each_image_once_an_epoch_in_another_order():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(index for _, index in first) == list(range(50))
    sampler.set_epoch(1)
    assert {epoch for epoch, _ in sampler} == {1}
    assert [index for _, index in sampler] != [index for _, index in first]


def test_balanced_sampling_and_loss_make_labels_count_the_same():
    labels = [0] * 90 + [1] * 9 + [3]
    weights = balancing_weights(labels, num_labels=4)
    counts = torch.bincount(torch.tensor(labels), minlength=4)
    torch.testing.assert_close(weights * counts, 100 / 3 * torch.tensor([1.0, 1.0, 0.0, 1.0]))
    sampler = EpochSampler(3000, seed=0, weights=weights[torch.tensor(labels)].repeat(30))
    drawn = torch.bincount(torch.tensor([labels[index % 100] for _, index in sampler]), minlength=4)
    assert ((drawn - torch.tensor([1000, 1000, 0, 1000])).abs() < 150).all()


def test_loss_is_cross_entropy_of_numbers_and_of_shares():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    shares = torch.nn.functional.one_hot(labels, 4).float()
    expected = -(logits.log_softmax(-1) * shares).sum(-1)
    torch.testing.assert_close(ClassificationLoss()(logits, labels), expected.mean())
    torch.testing.assert_close(ClassificationLoss()(logits, shares), expected.mean())
    torch.testing.assert_close(ClassificationLoss()(logits, labels, 24), expected.sum() / 24)
    smooth = -(logits.log_softmax(-1) * (0.9 * shares + 0.1 / 4)).sum(-1)
    torch.testing.assert_close(ClassificationLoss(0.1)(logits, labels), smooth.mean())
    torch.testing.assert_close(ClassificationLoss(0.1)(logits, shares), smooth.mean())


def test_mixing_depends_on_seed_and_step_alone():
    batch = {"pixel_values": torch.rand(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 3])}
    mixer = BatchMixer(ClassificationRecipe(mixup_alpha=0.8, cutmix_alpha=1.0), num_labels=4, seed=0)
    first, again, other = (mixer(batch, step) for step in ((3, 0, 0), (3, 0, 0), (4, 0, 0)))
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    torch.testing.assert_close(first["labels"].sum(-1), torch.ones(4))
    assert BatchMixer(ClassificationRecipe(), num_labels=4, seed=0)(batch, (0,)) is batch


@pytest.mark.parametrize("num_channels", [1, 5])
def test_stem_takes_other_channels_and_gives_the_same_for_grey(num_channels):
    model = randomize(TwinsForImageClassification(tiny_config()))
    grey = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        expected = model(grey.repeat(1, 3, 1, 1)).logits
        adapt_stem(model, num_channels)
        torch.testing.assert_close(model(grey.repeat(1, num_channels, 1, 1)).logits, expected, rtol=0, atol=1e-4)
    assert model.config.num_channels == num_channels


def test_other_image_size_keeps_the_share_of_the_crop(start):
    processor = create_processor(ModelArguments(model_name_or_path=str(start), image_size=32), num_channels=1)
    assert (processor.crop_size.height, processor.size.shortest_edge) == (32, 36)
    picture = PILImage.effect_noise((60, 50), 50)
    assert processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 1, 32, 32)


def test_newest_whole_checkpoint_is_found(tmp_path, caplog):
    assert find_checkpoint(None, tmp_path, "step_", ["state.json"]) is None
    assert find_checkpoint("latest", tmp_path, "step_", ["state.json"]) is None
    for step in (2, 10, 4):
        (tmp_path / f"step_{step}").mkdir()
    (tmp_path / "step_2" / "state.json").write_text("{}")
    (tmp_path / "step_4" / "state.json").write_text("{}")
    (tmp_path / "step_10" / "state.json").write_text('{"step": ')
    assert find_checkpoint("latest", tmp_path, "step_", ["state.json"]) == tmp_path / "step_4"
    assert "step_10 is not whole" in caplog.text
    assert find_checkpoint(str(tmp_path / "step_2"), tmp_path, "step_", ["state.json"]) == tmp_path / "step_2"
