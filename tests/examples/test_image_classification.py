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
"""Fine-tuning with the Trainer and with Accelerate: data, recipes, and training that resumes after it was killed."""

import functools
import io
import json
import os
import re
import shutil
import tarfile
import time
import tomllib
from contextlib import nullcontext
from pathlib import Path

from hf_twins._utils.command_line import parse_arguments, run

import convert_twins_to_hf
import numpy as np
import pytest
import run_accelerate
import run_trainer
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from classification_utils import (
    blank_figures,
    digit_images,
    options,
    plain_options,
    save_start,
    write_images,
    write_parquet,
)
from datasets import Array3D, ClassLabel, Dataset, Features, Image, Value
from hostile_files import long_png
from huggingface_hub import HfApi
from huggingface_hub.utils import httpx
from loopback_hub import serve_hub
from peft import PeftModel
from PIL import Image as PILImage
from safetensors.torch import load_file
from testing_utils import TWO_STAGES, randomize, save_timm, timm_model, tiny_config
from training_utils import check_second_runs
from transformers import AutoModelForImageClassification, pipeline

from hf_twins import TwinsForImageClassification, TwinsImageProcessor, load_model
from hf_twins.training.checksums import write_checksums
from hf_twins.training.data import LabeledImages
from hf_twins.training.image_classification.arguments import (
    RECIPES,
    ClassificationRecipe,
    DataArguments,
    ModelArguments,
    TrainedModelArguments,
)
from hf_twins.training.image_classification.data import (
    Preparation,
    StreamedImages,
    load_images,
    stream_loader,
    training_transform,
)
from hf_twins.training.image_classification.folders import load_folder
from hf_twins.training.image_classification.models import (
    BatchMixer,
    ClassificationLoss,
    adapt_stem,
    balancing_weights,
    create_model,
    create_processor,
)
from hf_twins.training.reports import write_report_and_card
from hf_twins.training.runs import read_run
from hf_twins.training.trainer import EpochSampler, check_sharding


SCRIPTS = {"trainer": run_trainer, "accelerate": run_accelerate}


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
        with PILImage.open(output / name) as image:
            assert min(image.size) > 200
    assert "model-index" in (output / "README.md").read_text()
    assert TwinsImageProcessor.from_pretrained(output).size.shortest_edge == 18


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("recipe", ["linear-probe", "lora"])
def test_recipe_trains_only_its_part(recipe, script, digits, start, tmp_path):
    arguments = options(digits, start, tmp_path / "run")
    arguments[:2] = ["--model_name_or_path", str(start)]
    quietly(script, [*arguments, "--recipe", recipe, "--num_train_epochs", "1"])
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    if recipe == "linear-probe":
        assert changed == {"classifier.weight", "classifier.bias"}
    else:
        assert all("_proj." in name or ".mlp." in name or name.startswith("classifier.") for name in changed)
        assert len(changed) > 20
        assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


class Program:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_checkpoint_runs_no_code(digits, start, tmp_path):
    """Files are tested one at a time, so that each is read, and not only the first that is refused."""
    run, trace = tmp_path / "run", tmp_path / "trace"
    arguments = [*options(digits, start, run), "--ema_decay", "0.9", "--max_steps", "1", "--checkpointing_steps", "1"]
    quietly("accelerate", arguments)
    names = {file.name for file in (run / "step_1").iterdir() if file.suffix in (".pkl", ".bin", ".pt")}
    assert {"optimizer.bin", "random_states_0.pkl", "average.pt"} <= names
    # Accelerate would unpickle this file.
    names.add("custom_checkpoint_0.pkl")
    for hostile in [[name] for name in sorted(names)] + [sorted(names)]:
        checkpoint = shutil.copytree(run / "step_1", tmp_path / "+".join(hostile))
        for name in hostile:
            torch.save(Program(trace), checkpoint / name)
        # An attacker can also adapt the checksums.
        write_checksums(checkpoint)
        refused = pytest.raises(SystemExit, match=r"^error: \S+ must be a checkpoint that this run wrote: .*$")
        # Accelerate ignores random states that it cannot read.
        with nullcontext() if hostile == ["random_states_0.pkl"] else refused:
            quietly("accelerate", [*arguments, "--resume_from_checkpoint", str(checkpoint)])
        assert not trace.exists(), hostile
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.mark.usefixtures("one_process")
def test_wrong_options_are_named(digits, start, tmp_path, capsys):
    for arguments, message in (
        (
            [*options(digits, start, tmp_path), "--model_name_or_path", "x", "--config_name", "y"],
            "Give either --model_name_or_path or --config_name",
        ),
        ([*options(digits, start, tmp_path), "--dataset_name", "x"], "Give either --dataset_name or --train_dir"),
        (
            [*options(digits, start, tmp_path), "--train_dir", str(tmp_path / "missing")],
            "missing must be a folder, of images in a sub-folder for each label",
        ),
        (
            [*options(digits, start, tmp_path), "--resume_from_checkpoint", str(tmp_path)],
            r"--resume_from_checkpoint must be 'latest' or a complete checkpoint, got \S+: it has no valid checksums.json",
        ),
        (
            [*options(digits, start, tmp_path), "--class_weights", "some"],
            "--class_weights must be none, loss or sampling",
        ),
        (
            [
                *("--model_name_or_path", "somebody/twins", "--trust_remote_code", "true"),
                *("--train_dir", str(digits), "--output_dir", str(tmp_path)),
            ],
            r"\(--model_revision\) must be the hash of a commit that you have read .* got 'main'",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            run_accelerate.main(arguments)
    for main, missing in (
        (run_accelerate.main, "--output_dir, --model_name_or_path or --config_name, --train_dir or --dataset_name"),
        (run_trainer.main, "--model_name_or_path or --config_name, --train_dir or --dataset_name"),
    ):
        with pytest.raises(SystemExit):
            main([])
        assert f"missing: {missing} (see --help)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_accelerate.main(["--recipe", "guess", "--output_dir", str(tmp_path)])
    assert "--recipe must be one of fine-tune, imagenet-from-scratch" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [file.stem for file in sorted(RECIPES.glob("*.toml"))])
def test_recipe_sets_defaults_that_can_be_overridden(recipe):
    arguments = ["--config_name", "x", "--train_dir", "y", "--output_dir", "z", "--recipe", recipe]
    *_, values, loop = parse_arguments(
        *(ModelArguments, DataArguments, ClassificationRecipe, run_accelerate.LoopArguments),
        recipes=RECIPES,
        arguments=arguments,
    )
    for name, value in tomllib.loads((RECIPES / f"{recipe}.toml").read_text(encoding="utf-8")).items():
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


def test_corrupt_images_are_left_out_and_named(tmp_path, caplog):
    folder = write_images(tmp_path / "images", {"cat": 8, "dog": 8})
    whole = (folder / "cat" / "3.png").read_bytes()
    (folder / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "5.png").write_text("no image")
    (folder / "dog" / "6.png").write_bytes(long_png())
    images = load_images(DataArguments(train_dir=str(folder), validation_dir=str(folder)), seed=0)
    assert len(images["train"]) == 13
    assert "3 images of train cannot be decoded and are left out: " in caplog.text
    for name in ("3.png", "5.png", "6.png is too long, 1 x 65535 pixels: one side may be at most 100 times the other"):
        assert name in caplog.text
    assert all(example["image"].size == (12, 10) for example in images["train"])


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_identical_images_with_several_labels_or_in_both_splits_are_named(kind, tmp_path, caplog):
    folders = {split: write_images(tmp_path / split, {"cat": 3, "dog": 3}) for split in ("train", "validation")}
    load_images(DataArguments(train_dir=str(folders["train"]), validation_dir=str(folders["validation"])), seed=0)
    assert not caplog.text
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "train/dog/copy.png")
    shutil.copy(tmp_path / "train/cat/2.png", tmp_path / "validation/cat/copy.png")
    # Repetitions with the same label, in the same split, have no effect.
    shutil.copy(tmp_path / "train/dog/2.png", tmp_path / "train/dog/again.png")
    if kind == "parquet":
        for split, folder in folders.items():
            files = sorted(folder.glob("*/*.png"))
            content = [{"bytes": file.read_bytes(), "path": f"{file.parent.name}/{file.name}"} for file in files]
            folders[split] = write_parquet(tmp_path / f"{split}_table", content, [file.parent.name for file in files])
    load_images(DataArguments(train_dir=str(folders["train"]), validation_dir=str(folders["validation"])), seed=0)
    first, second = (re.sub(r"[^ ]*/(?=\w+/\w+\.png)", "", each) for each in caplog.messages[-2:])
    assert first == "1 images have several labels, such as cat/1.png (train) and dog/copy.png (train)."
    assert second == (
        "1 images are both training and evaluation images, such as cat/2.png (train) and cat/copy.png (validation): "
        "the results will be better than on other images."
    )


def test_image_that_is_too_long_ends_a_run_that_did_not_check_images(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 2, "dog": 2})
    (folder / "cat" / "0.png").write_bytes(long_png())
    arguments = DataArguments(train_dir=str(folder), validation_dir=str(folder), check_images=False)
    examples = LabeledImages(load_images(arguments, seed=0)["train"], Preparation(lambda image: image, 3))
    assert examples[1]["pixel_values"].size == (12, 10)
    with pytest.raises(ValueError, match=r"0.png is too long, 1 x 65535 pixels: .* crop it or leave it out\.$"):
        examples[0]


def test_held_out_images_are_split_off_by_label(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    images = load_images(DataArguments(train_dir=str(folder), train_val_split=0.25), seed=0)
    assert images["train"].features["label"].names == ["cat", "dog"]
    assert sorted(images["validation"]["label"]) == [0] * 5 + [1] * 5
    assert len(images["train"]) == 30


def test_columns_are_found_or_must_be_given(tmp_path):
    image = io.BytesIO()
    PILImage.new("RGB", (9, 9)).save(image, "PNG")
    columns = {"photo": [{"bytes": image.getvalue(), "path": None}] * 6, "kind": [3, 3, 3, 5, 5, 5]}
    features = Features({"photo": Image(), "kind": Value("int64")})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    images = load_images(DataArguments(train_dir=str(tmp_path), train_val_split=0.34), seed=0)
    assert images["train"].features["label"].names == ["3", "5"]
    with pytest.raises(ValueError, match="--label_column_name must be one of photo, kind, got sort"):
        load_images(DataArguments(train_dir=str(tmp_path), label_column_name="sort"), seed=0)
    both = Dataset.from_dict(columns | {"size": [1] * 6}, features=Features(dict(features) | {"size": Value("int64")}))
    both.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"Which column is the label\? Set --label_column_name to one of photo, kind, size"
    ):
        load_images(DataArguments(train_dir=str(tmp_path)), seed=0)


@pytest.mark.usefixtures("accelerators_keep_their_random_numbers")
def test_image_depends_only_on_seed_epoch_and_index(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 4, "dog": 4})
    images = load_images(DataArguments(train_dir=str(folder), validation_dir=str(folder)), seed=0)["train"]
    processor = TwinsImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    transform = training_transform(ClassificationRecipe(rand_augment=True, random_erasing=1.0), processor)
    dataset = LabeledImages(images, Preparation(transform, num_channels=3, seed=7))
    first = dataset[(2, 5)]["pixel_values"]
    torch.default_generator.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(dataset[(2, 5)]["pixel_values"], first)
    assert torch.equal(torch.get_rng_state(), state), "the model's own random numbers are not touched"
    for other in (dataset[(3, 5)], LabeledImages(images, Preparation(transform, 3, seed=8))[(2, 5)]):
        assert not torch.equal(other["pixel_values"], first)


def test_sampler_yields_each_image_once_per_epoch_in_a_new_order():
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


@pytest.mark.usefixtures("accelerators_keep_their_random_numbers")
def test_mixing_depends_only_on_seed_and_step():
    batch = {"pixel_values": torch.rand(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 3])}
    mixer = BatchMixer(ClassificationRecipe(mixup_alpha=0.8, cutmix_alpha=1.0), num_labels=4, seed=0)
    first, again, other = (mixer(batch, step) for step in ((3, 0, 0), (3, 0, 0), (4, 0, 0)))
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    torch.testing.assert_close(first["labels"].sum(-1), torch.ones(4))
    assert BatchMixer(ClassificationRecipe(), num_labels=4, seed=0)(batch, (0,)) is batch


@pytest.mark.parametrize("num_channels", [1, 5])
def test_stem_adapted_to_other_channels_gives_the_same_output_for_gray(num_channels):
    model = randomize(TwinsForImageClassification(tiny_config()))
    gray = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        expected = model(gray.repeat(1, 3, 1, 1)).logits
        adapt_stem(model, num_channels)
        torch.testing.assert_close(model(gray.repeat(1, num_channels, 1, 1)).logits, expected, rtol=0, atol=1e-4)
    assert model.config.num_channels == num_channels


def test_other_image_size_keeps_the_share_of_the_crop(start):
    processor = create_processor(ModelArguments(model_name_or_path=str(start), image_size=32), num_channels=1)
    assert (processor.crop_size.height, processor.size.shortest_edge) == (32, 36)
    image = PILImage.effect_noise((60, 50), 50)
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 1, 32, 32)


def test_revision_applies_to_configuration_and_image_processor(tmp_path):
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        HfApi().create_repo("me/start")
        commits = []
        for size, depths in ((16, [1, 1, 1]), (24, [2, 1, 1])):
            folder = save_start(tmp_path / str(size), size, depths=depths)
            commits.append(HfApi().upload_folder(repo_id="me/start", folder_path=folder).oid)
        for arguments, size, depth in (
            (ModelArguments(config_name="me/start", model_revision=commits[0]), 16, 1),
            (ModelArguments(model_name_or_path="me/start", model_revision=commits[0]), 16, 1),
            (ModelArguments(config_name="me/start"), 24, 2),
        ):
            model, processor = create_model(arguments, ClassificationRecipe(), ["cat", "dog"])
            assert (processor.crop_size.height, model.config.depths[0]) == (size, depth)


def quietly(script: str, arguments: list[str]) -> dict[str, float]:
    """Run a script in this process, and return its results."""
    with blank_figures():
        return SCRIPTS[script].main(arguments + (["--disable_tqdm", "true"] if script == "trainer" else []))


def losses(output: Path) -> list[float]:
    """The training loss of every epoch."""
    return [entry["loss"] for entry in json.loads((output / "report.json").read_text())["history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_accumulated_and_checkpointed_batches_give_the_same_losses(script, digits, start, tmp_path):
    arguments = plain_options(digits, start, tmp_path / "whole")
    quietly(script, arguments)
    arguments = plain_options(digits, start, tmp_path / "parts")
    parts = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4", "--activation_checkpointing"]
    quietly(script, [*arguments, *parts, "true"])
    expected = losses(tmp_path / "whole")
    assert len(expected) == 3
    assert losses(tmp_path / "parts") == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_tracker_is_told(tracker, script, digits, start, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    arguments = plain_options(digits, start, tmp_path / f"run-of-{script}")
    project = ["--project", "run-of-trainer"] if script == "trainer" else []
    quietly(script, [*arguments, "--report_to", tracker, "--num_train_epochs", "1", *project])
    if tracker == "tensorboard":
        written = list(tmp_path.rglob("*tfevents*"))
    else:
        written = list(Path(os.environ["HF_HOME"]).rglob(f"*run-of-{script}*.db"))
    assert any(file.stat().st_size > 0 for file in written)


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_runs_in_one_folder_have_separate_tracker_logs(script, digits, start, tmp_path):
    arguments = plain_options(digits, start, tmp_path / "run")
    for _ in range(2):
        quietly(
            script, [*arguments, "--report_to", "tensorboard", "--max_steps", "1", "--overwrite_output_dir", "true"]
        )
        # Accelerate's global state belongs to one run.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        # The Trainer names a run by the time in seconds.
        time.sleep(1)
    runs = sorted((tmp_path / "run" / "runs").iterdir())
    assert len(runs) == 2
    assert all(list(run.rglob("*tfevents*")) for run in runs)


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_training_that_does_not_improve_stops(script, digits, start, tmp_path):
    arguments = plain_options(digits, start, tmp_path / "run")
    quietly(script, [*arguments, "--num_train_epochs", "9", "--learning_rate", "0", "--early_stopping_patience", "2"])
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("class_weights", ["loss", "sampling"])
def test_rare_labels_are_weighted(class_weights, script, start, tmp_path):
    folder = write_images(tmp_path / "images", {"often": 40, "rarely": 8})
    arguments = plain_options(folder, start, tmp_path / "run")
    metrics = quietly(script, [*arguments, "--class_weights", class_weights, "--num_train_epochs", "1"])
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert losses(tmp_path / "run")[0] == pytest.approx(0.7, abs=0.5)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_result_is_published(script, digits, start, tmp_path):
    (tmp_path / "run" / "old").mkdir(parents=True)
    for name in (".env", "id_rsa", "notes.txt", "old/adapter_model.safetensors"):
        (tmp_path / "run" / name).write_text("mine")
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        arguments = [*plain_options(digits, start, tmp_path / "run"), "--num_train_epochs", "1"]
        quietly(script, [*arguments, "--push_to_hub", "true", "--hub_model_id", "me/digits"])
        labels = pipeline("image-classification", "me/digits")(PILImage.new("L", (16, 16)))
        files = HfApi().list_repo_files("me/digits")
    assert {label["label"] for label in labels} <= set("0123456789")
    assert {"model.safetensors", "README.md", "all_results.json", "report.json", "curves.png"} <= set(files)
    written = set(read_run(tmp_path / "run").written_files())
    assert set(files) == written | {".gitattributes"}
    # All existing files belong to the run or a checkpoint.
    found = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert found == written | {"run.json", ".env", "id_rsa", "notes.txt"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_folder_of_a_run_is_refused_for_other_runs(script, digits, start, tmp_path):
    saving = (
        ["--checkpointing_steps", "1"] if script == "accelerate" else ["--save_strategy", "steps", "--save_steps", "1"]
    )
    arguments = [*plain_options(digits, start, tmp_path / "run"), "--max_steps", "1", *saving]
    check_second_runs(SCRIPTS[script].main, arguments, tmp_path / "run")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("pattern", ["^/lfs-upload/", "/commit/"])
def test_unpublished_result_is_kept_and_the_command_to_publish_is_shown(pattern, digits, start, tmp_path):
    run = tmp_path / "run"
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        hub.cut_uploads(times=100, pattern=pattern)
        arguments = [*plain_options(digits, start, run), "--num_train_epochs", "1"]
        arguments += ["--push_to_hub", "true", "--hub_model_id", "me/digits", "--hub_private_repo", "true"]
        with pytest.raises(SystemExit, match=rf"^error: {run} has the trained model, but me/digits was not ") as error:
            quietly("accelerate", arguments)
        assert (
            f"Publish it with hf upload me/digits {run} --private --include config.json --include model.safetensors "
            in str(error.value)
        )
        assert (run / "model.safetensors").is_file()


def test_failed_report_keeps_the_previous_one(tmp_path, monkeypatch):
    settings = {"recipe": "fine-tune", "start": "random weights", "dataset": "digits"}
    arguments = {"kind": "classifier", "task": "image-classification", "metric_types": {}, "figures": {}, "usage": ""}
    write_report_and_card(tmp_path, {"metrics": {"accuracy": 0.5}}, settings, **arguments)
    before = {name: (tmp_path / name).read_text() for name in ("report.json", "README.md")}

    def write_half(self, text, **options):
        self.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="the disk is full"):
        write_report_and_card(tmp_path, {"metrics": {"accuracy": 0.75}}, settings, **arguments)
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_weights_and_preprocessing_are_of_the_same_revision(start, tmp_path):
    folder = shutil.copytree(start, tmp_path / "model")
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        api = HfApi()
        api.create_repo("me/digits")
        first = api.upload_folder(repo_id="me/digits", folder_path=folder).oid
        TwinsImageProcessor(size={"shortest_edge": 40}).save_pretrained(folder)
        api.upload_folder(repo_id="me/digits", folder_path=folder)
        for revision, side in ((first, 18), ("main", 40)):
            arguments = ModelArguments(model_name_or_path="me/digits", model_revision=revision)
            assert create_processor(arguments, 3).size.shortest_edge == side
        arguments = ModelArguments("somebody/else", image_processor_name="me/digits", model_revision=first)
        assert create_processor(arguments, 3).size.shortest_edge == 40


def test_failed_connection_gives_one_sentence():
    def fail(*options):
        raise httpx.ConnectError("connection refused")

    with pytest.raises(SystemExit, match=r"^error: the connection to the Hub failed, .* connection refused$"):
        run(fail, ModelArguments, arguments=["--config_name", "twins-svt-small"])


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("num_channels", [1, 5])
def test_images_with_other_channels_are_learned(num_channels, script, start, tmp_path):
    images, labels = digit_images(360)
    if num_channels == 1:
        folder = write_parquet(tmp_path / "images", images, labels)
    else:
        features = Features({"image": Array3D((8, 8, 5), "uint8"), "label": Value("string")})
        arrays = [np.repeat(np.asarray(image)[..., None], 5, axis=-1) for image in images]
        (tmp_path / "images").mkdir()
        Dataset.from_dict({"image": arrays, "label": labels}, features=features).to_parquet(
            tmp_path / "images" / "train.parquet"
        )
        folder = tmp_path / "images"
    arguments = plain_options(folder, start, tmp_path / "run")
    arguments[:2] = ["--model_name_or_path", str(start)]
    quietly(script, [*arguments, "--num_channels", str(num_channels), "--num_train_epochs", "1"])
    model = TwinsForImageClassification.from_pretrained(tmp_path / "run")
    processor = TwinsImageProcessor.from_pretrained(tmp_path / "run")
    assert model.config.num_channels == num_channels == len(processor.image_mean)
    assert model.get_input_embeddings().weight.shape[1] == num_channels


@pytest.mark.usefixtures("one_process")
def test_mismatched_channels_are_named(start, tmp_path):
    features = Features({"image": Array3D((8, 8, 5), "uint8"), "label": Value("string")})
    columns = {"image": [np.zeros((8, 8, 5), "uint8")] * 20, "label": ["a", "b"] * 10}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = plain_options(tmp_path / "data", start, tmp_path / "run")
    with pytest.raises(
        SystemExit, match=r"Images must be \(height, width, 3\) for this model, got \(8, 8, 5\): give --num_channels"
    ):
        run_accelerate.main(arguments)
    with pytest.raises(SystemExit, match="support gray and color, not 5 channels"):
        run_accelerate.main([*arguments, "--num_channels", "5", "--rand_augment", "true"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("source", ["timm", "converted"])
def test_published_weights_are_fine_tuned_to_other_labels(source, script, digits, tmp_path):
    folder = save_timm(timm_model(num_classes=7), tmp_path / "timm")
    if source == "converted":
        convert_twins_to_hf.main([str(folder), "--output", str(tmp_path / "converted")])
        folder = tmp_path / "converted"
    arguments = plain_options(digits, tmp_path, tmp_path / "run")
    arguments[:2] = ["--model_name_or_path", str(folder)]
    quietly(script, [*arguments, "--num_train_epochs", "1", "--image_size", "32", "--max_train_samples", "16"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert isinstance(model, TwinsForImageClassification)
    assert list(model.config.id2label.values()) == list("0123456789")
    # Learning rates decrease with depth, and one step changes no weight by much more than its learning rate.
    start = TwinsForImageClassification.from_pretrained(folder).twins.state_dict()
    for name, weight in model.twins.state_dict().items():
        assert (weight - start[name]).abs().max() < 2e-3, name


@pytest.mark.slow
@pytest.mark.usefixtures("one_process", "fresh_compiler")
@pytest.mark.parametrize("script", SCRIPTS)
def test_compiled_training_in_bfloat16_writes_a_plain_model(script, digits, monkeypatch, tmp_path):
    start = save_start(tmp_path / "start", **TWO_STAGES)
    if script == "accelerate":
        # The output does not depend on the kernels, which would take a minute to compile.
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    half = ["--bf16", "true"] if script == "trainer" else ["--mixed_precision", "bf16"]
    arguments = [*plain_options(digits, start, tmp_path / "run"), "--num_train_epochs", "1", "--ema_decay", "0.5"]
    quietly(script, [*arguments, "--torch_compile", "true", *half])
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights.keys() == load_file(start / "model.safetensors").keys()
    assert all(weight.dtype == torch.float32 for weight in weights.values())


@pytest.mark.usefixtures("one_process")
def test_webdataset_is_learned(start, tmp_path):
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "train.tar", "w") as archive:
        for index, (image, label) in enumerate(zip(*digit_images(80))):
            for suffix, content in ((".png", encode_png(image)), (".cls", label.encode())):
                member = tarfile.TarInfo(f"{index:03}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    quietly("accelerate", [*plain_options(tmp_path / "data", start, tmp_path / "run"), "--max_train_samples", "48"])
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["steps"] == 9


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_adapter_is_saved_loaded_and_merged(script, digits, start, tmp_path):
    arguments = plain_options(digits, start, tmp_path / "run")
    arguments[:2] = ["--model_name_or_path", str(start)]
    quietly(script, [*arguments, "--recipe", "lora", "--num_train_epochs", "1"])
    pixel_values = torch.randn(2, 3, 16, 16)
    merged = TwinsForImageClassification.from_pretrained(tmp_path / "run").eval()
    base = TwinsForImageClassification.from_pretrained(start).eval()
    with torch.no_grad():
        before = base(pixel_values).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
        expected = adapted(pixel_values).logits
        torch.testing.assert_close(merged(pixel_values).logits, expected, rtol=0, atol=1e-5)
        unmerged = TwinsForImageClassification.from_pretrained(tmp_path / "run" / "adapter").eval()
        torch.testing.assert_close(unmerged(pixel_values).logits, expected, rtol=0, atol=1e-5)
    assert (before - expected).abs().max() > 1e-3
    loaded, processor = load_model(tmp_path / "run" / "adapter", "image-classification")
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, expected, rtol=0, atol=1e-5)
    # The adapter has its own label names, not those of the base model.
    assert loaded.config.id2label == {index: str(index) for index in range(10)} != base.config.id2label
    assert (tmp_path / "run" / "adapter" / "preprocessor_config.json").is_file()
    assert processor.crop_size.height == 16


def test_training_without_an_image_processor_logs_the_defaults(start, tmp_path, caplog):
    TwinsForImageClassification.from_pretrained(start).save_pretrained(tmp_path / "alone")
    processor = create_processor(TrainedModelArguments(str(tmp_path / "alone")), num_channels=3)
    assert f"{tmp_path}/alone has no image processor: using the authors' evaluation settings." in caplog.text
    assert (processor.size.shortest_edge, processor.crop_size.height) == (256, 224)
    (tmp_path / "alone" / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match=r"cannot load \S+alone: .*preprocessor_config\.json"):
        create_processor(TrainedModelArguments(str(tmp_path / "alone")), num_channels=3)
    with pytest.raises(OSError, match="cannot load somebody/else: there is no such folder, and on the Hub: "):
        create_processor(TrainedModelArguments(str(start), image_processor_name="somebody/else"), num_channels=3)


@pytest.mark.usefixtures("one_process")
def test_options_of_the_trainer_act_or_are_refused(digits, start, tmp_path):
    arguments = plain_options(digits, start, tmp_path / "run")
    for extra, message in (
        (["--label_smoothing_factor", "0.1"], "the recipe's is --label_smoothing"),
        (["--train_sampling_strategy", "group_by_length"], "--train_sampling_strategy must be random"),
        (["--enable_jit_checkpoint", "true"], "--enable_jit_checkpoint would end a run as if it were finished"),
        (["--push_to_hub", "true", "--hub_strategy", "every_save"], "--hub_strategy must be end"),
        (["--early_stopping_patience", "1", "--eval_strategy", "no"], "--early_stopping_patience needs evaluations"),
        (
            ["--early_stopping_patience", "1", "--metric_for_best_model", "beauty"],
            "--metric_for_best_model must be one",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            quietly("trainer", arguments + extra)
    frozen = [*arguments, "--optim", "sgd", "--learning_rate", "1e-12", "--weight_decay", "0"]
    quietly("trainer", [*frozen, "--num_train_epochs", "1", "--ema_decay", "0.5"])
    # AdamW's steps do not depend on the scale of gradients, so another optimizer is used.
    first = losses(tmp_path / "run")
    quietly("trainer", [*frozen, "--num_train_epochs", "2", "--output_dir", str(tmp_path / "more")])
    assert losses(tmp_path / "more")[0] == pytest.approx(first[0])


def test_requested_but_missing_sharding_is_logged(caplog, monkeypatch):
    check_sharding(DistributedType.NO, False, ClassificationRecipe())
    check_sharding(DistributedType.FSDP, True, ClassificationRecipe())
    assert not caplog.text
    check_sharding(DistributedType.MULTI_CPU, True, ClassificationRecipe())
    assert "FSDP was requested, but this run is not sharded (MULTI_CPU)" in caplog.text
    caplog.clear()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_sharding(DistributedType.NO, False, ClassificationRecipe())
    assert "FSDP was requested, but this run is not sharded (NO)" in caplog.text
    for recipe in (ClassificationRecipe(ema_decay=0.9), ClassificationRecipe(lora_rank=8)):
        with pytest.raises(ValueError, match="needs unsharded weights, which sharded training does not have"):
            check_sharding(DistributedType.FSDP, True, recipe)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_script_logs_that_requested_fsdp_is_not_active(script, digits, start, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    quietly(script, [*plain_options(digits, start, tmp_path / "run"), "--num_train_epochs", "1"])
    assert "FSDP was requested, but this run is not sharded" in caplog.text


def test_label_names_are_given_by_a_file(tmp_path):
    image = PILImage.new("RGB", (9, 9))
    features = Features({"image": Image(), "label": Value("int64")})
    columns = {"image": [image] * 6, "label": [0, 1, 2, 0, 1, 2]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    arguments = DataArguments(
        train_dir=str(tmp_path), validation_dir=str(tmp_path), class_names_file=str(tmp_path / "names.txt")
    )
    images = load_images(arguments, seed=0)
    assert images["train"].features["label"].names == ["ant", "bee", "cat", "dog"]
    assert images["train"]["label"][:] == [0, 1, 2, 0, 1, 2]


def test_single_label_is_refused(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 4})
    with pytest.raises(ValueError, match="There must be at least two labels, got only cat"):
        load_images(DataArguments(train_dir=str(folder)), seed=0)


def test_split_that_cannot_have_every_label_is_an_error(tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 4, "dog": 1})
    with pytest.raises(
        ValueError, match=r"0\.15 of 5 images cannot be held out for validation, with some of every label"
    ):
        load_images(DataArguments(train_dir=str(folder)), seed=0)


def test_evaluation_labels_that_training_lacks_are_named(tmp_path):
    train = write_images(tmp_path / "train", {"cat": 4, "dog": 4})
    validation = write_images(tmp_path / "validation", {"cat": 2, "cow": 2})
    with pytest.raises(ValueError, match="labels that training images lack: cow"):
        load_images(DataArguments(train_dir=str(train), validation_dir=str(validation)), seed=0)


def stream_options(start: Path, tmp_path: Path) -> list[str]:
    images, labels = digit_images(100)
    for index in range(2):
        part = slice(40 * index, 40 * index + 40)
        write_parquet(tmp_path / "train", images[part], labels[part])
        (tmp_path / "train" / "train.parquet").rename(tmp_path / "train" / f"{index}.parquet")
    write_parquet(tmp_path / "validation", images[80:100], labels[80:100])
    (tmp_path / "names.txt").write_text("\n".join("0123456789"))
    return [
        *plain_options(tmp_path / "train", start, tmp_path / "run"),
        *("--validation_dir", str(tmp_path / "validation"), "--streaming", "true"),
        *("--class_names_file", str(tmp_path / "names.txt"), "--shuffle_buffer_size", "16"),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", SCRIPTS)
def test_stream_is_learnt(script, start, tmp_path):
    metrics = quietly(script, stream_options(start, tmp_path))
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["steps"] == 3 * 64 // 16
    assert results["eval_accuracy"] == metrics["eval_accuracy"]
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.usefixtures("one_process")
def test_unsupported_options_of_streams_are_named(start, tmp_path):
    arguments = stream_options(start, tmp_path)
    names, validation, limit = (
        arguments.index(f"--{name}") for name in ("class_names_file", "validation_dir", "max_train_samples")
    )
    for without, message in (
        (names, "must be known before it is read: give --class_names_file"),
        (validation, "evaluation images must be given separately: give --validation_dir"),
        (limit, "does not say how many images it has: give --max_train_samples"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_accelerate.main(arguments[:without] + arguments[without + 2 :])
    with pytest.raises(SystemExit, match="--class_weights sampling counts labels, which a stream cannot"):
        run_accelerate.main([*arguments, "--class_weights", "sampling"])
    with pytest.raises(SystemExit, match="An epoch of 8 images is less than a batch of 16"):
        run_accelerate.main([*arguments, "--max_train_samples", "8"])


def numbered_stream(tmp_path: Path, batch_size: int, **options: int) -> StreamedImages:
    """A stream of 40 gray images in four files, identified by their brightness, one of which cannot be decoded."""
    tmp_path.mkdir(exist_ok=True)
    for part in range(4):
        images = [PILImage.new("L", (8, 8), 10 * part + index) for index in range(10)]
        columns: dict = {"image": [{"bytes": encode_png(image), "path": f"{part}.png"} for image in images]}
        if part == 2:
            columns["image"][5]["bytes"] = b"no image"
        columns["label"] = list(range(10))
        features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{part}.parquet")
    stream = load_folder(str(tmp_path), streaming=True)

    def brightness(image: PILImage.Image) -> torch.Tensor:
        return torch.tensor(image.getpixel((0, 0)))

    return StreamedImages(stream, Preparation(brightness, 1), 40, batch_size, 8, **options)


def encode_png(image: PILImage.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_yields_every_image_in_a_new_order_each_epoch(num_workers, tmp_path, caplog):
    images = numbered_stream(tmp_path, batch_size=4)
    loader = stream_loader(images, num_workers, torch.device("cpu"))
    assert len(loader) == 10
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([batch["pixel_values"] for batch in loader]).tolist())
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(epochs[0]) == 40
    # Workers share this memory, so that a worker that changes it affects the others.
    assert images.stream.epoch == 0
    if num_workers == 0:
        # All images except the corrupt one occur. Another one is repeated in its place.
        assert set(epochs[0]) == set(epochs[1]) == set(range(40)) - {25}
        assert "left out, because it cannot be decoded: 2.png (1 so far)" in caplog.text


def test_processes_share_a_stream(tmp_path):
    shares = [list(numbered_stream(tmp_path, 5, process_index=index, num_processes=2)) for index in (0, 1)]
    seen = [{int(example["pixel_values"]) for example in share} for share in shares]
    assert [len(share) for share in shares] == [20, 20]
    # Another image, from any share, takes the place of the corrupt one.
    assert len(seen[0] & seen[1]) <= 1
    assert len(seen[0] | seen[1]) >= 39


def test_stream_without_usable_images_raises_an_error(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(num_classes=2)})
    columns = {"image": [{"bytes": b"no image", "path": None}] * 4, "label": [0, 1, 0, 1]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    stream = load_folder(str(tmp_path), streaming=True)
    with pytest.raises(ValueError, match="No image of the stream can be used"):
        list(StreamedImages(stream, Preparation(None, 3), 4, 2, 8))


@pytest.mark.usefixtures("one_process")
def test_adapter_that_would_lose_its_base_model_is_refused(digits, start, tmp_path):
    lora = ["--recipe", "lora"]
    with pytest.raises(SystemExit, match="--lora_rank adapts trained weights: give --model_name_or_path instead"):
        run_trainer.main([*options(digits, start, tmp_path), *lora])
    arguments = options(digits, start, start)
    arguments[0] = "--model_name_or_path"
    with pytest.raises(SystemExit, match="--output_dir must be another folder than the model that is adapted"):
        run_trainer.main([*arguments, *lora])
