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
"""Object detection: training from the command line, its results, and prediction."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

from hf_twins._utils.command_line import parse_arguments

import detection_utils
import predict_detection
import pytest
import run_detection
import torch
from detection_utils import OPTIONS, small_detector, write_scenes
from digit_scenes import digit_scene
from huggingface_hub import ModelCard
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from testing_utils import randomize, tiny_config
from training_utils import check_second_runs
from transformers import TrainingArguments

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins.detection import Detector, load_detector
from hf_twins.training.object_detection.arguments import RECIPES, DataArguments, DetectionRecipe, ModelArguments
from hf_twins.training.runs import Run
from hf_twins.training.trainer import TRAINER_DEFAULTS


# Fixtures.
scenes, start = detection_utils.scenes, detection_utils.start


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
def test_script_trains_evaluates_and_writes_a_model_that_predicts(
    scenes, start, tmp_path, caplog, capsys, monkeypatch
):
    num_computed = []
    compute = run_detection.average_precision
    monkeypatch.setattr(
        run_detection, "average_precision", lambda *arguments: num_computed.append(1) or compute(*arguments)
    )
    output = tmp_path / "run"
    arguments = run_options(scenes, start, output, "mask-rcnn")
    # The threshold is low, so that an untrained detector detects something.
    arguments[3] = json.dumps(OPTIONS["mask-rcnn"] | {"score_threshold": 0.001})
    metrics = run_detection.main(
        [
            *(*arguments, "--num_train_epochs", "1", "--recipe", "mask-rcnn-1x", "--warmup_steps", "1"),
            *("--eval_strategy", "no", "--save_strategy", "no"),
        ]
    )
    assert len(num_computed) == 1
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.startswith(
        f"AP on 2 evaluation images: {metrics['eval_ap']:.3f} (masks {metrics['eval_mask_ap']:.3f}). Look at "
        f"{output / 'predictions.png'}"
    )
    results = json.loads((output / "all_results.json").read_text())
    for name in ("eval_ap", "eval_ap50", "eval_ap75", "eval_mask_ap", "eval_mask_ap50"):
        assert results[name] == metrics[name]
    # There is only one category.
    expected = {"ap": results["eval_ap"], "mask_ap": results["eval_mask_ap"]}
    assert results["per_category"] == {"digit": pytest.approx(expected)}
    assert results["steps"] == 3
    card = ModelCard.load(output / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("hf_twins", "object-detection")
    assert {result.metric_type for result in card.data.eval_results} == {"mean_average_precision"}
    assert "A mask-rcnn with a Twins backbone (" in card.text
    report = json.loads((output / "report.json").read_text())
    assert report["settings"]["recipe_values"]["decay_epochs"] == [8, 11]
    assert report["history"][-1]["eval_ap"] == metrics["eval_ap"]
    assert report["metrics"]["mask_ap"] == metrics["eval_mask_ap"]
    for name in ("curves.png", "predictions.png"):
        with Image.open(output / name) as image:
            assert min(image.size) > 200

    images = tmp_path / "images"
    images.mkdir()
    for seed in (50, 51):
        digit_scene(seed, (48, 60 + seed)).image.save(images / f"{seed}.png")
    (images / "bad.png").write_text("no image")
    Image.new("F", (40, 40), 255).save(images / "fractions.tif")
    predict_detection.main(
        [
            *("--model_name_or_path", str(output), "--images", str(images)),
            *("--output_dir", str(tmp_path / "found"), "--threshold", "0.01"),
        ]
    )
    assert "2 of 4 images cannot be used and are skipped: bad.png, fractions.tif." in caplog.text
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert found.keys() == {"50.png", "51.png"}
    with Image.open(tmp_path / "found" / "50.png") as drawn:
        assert drawn.size == (110, 48)
    for entry in found["50.png"]:
        assert entry["label"] == "digit"
        assert entry["score"] >= 0.01
        assert coco_mask.decode(entry["mask"]).shape == (48, 110)


# Modules that `pip install "hf_twins[train]"` installs in addition to the core dependencies.
EXTRAS = ["accelerate", "datasets", "matplotlib", "peft", "pyarrow", "pycocotools", "sklearn", "torchmetrics"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("detector", ["retinanet", "mask-rcnn", "detr"])
def test_code_in_the_card_runs_with_only_the_core_dependencies(detector, scenes, start, tmp_path):
    output = tmp_path / "run"
    arguments = run_options(scenes, start, output, detector)
    if detector != "detr":
        arguments[3] = json.dumps(OPTIONS[detector] | {"score_threshold": 0.001})
    run_detection.main([*arguments, "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"])
    text = ModelCard.load(output / "README.md").text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert snippet.startswith("import hf_twins ")
    digit_scene(60, (48, 80)).image.save(tmp_path / "image.jpg")
    # The threshold is low, so that the detector detects something.
    snippet = snippet.replace("threshold=0.5", "threshold=0.0")
    program = f"""
import sys
sys.modules |= dict.fromkeys({EXTRAS})
{snippet}
import PIL.Image
objects = hf_twins.detection.load_detector({str(output)!r})([PIL.Image.open("image.jpg")], threshold=0.0)[0]
print(sorted(objects))
assert not [name for name in {EXTRAS} if sys.modules[name]]
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    *found, names = process.stdout.splitlines()
    assert names == str(["boxes", "labels", *(["masks"] if detector == "mask-rcnn" else []), "scores"])
    assert found
    assert all(line.startswith("digit 0.") for line in found)


def test_images_drawn_to_the_same_file_are_refused(tmp_path):
    for name in ("x.jpg", "x.jpg.png", "y.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    arguments = ["--model_name_or_path", "x", "--images", str(tmp_path), "--output_dir", str(tmp_path / "found")]
    with pytest.raises(SystemExit, match=r"drawn into one file: rename one for each of x\.jpg\.png\."):
        predict_detection.main(arguments)
    assert not (tmp_path / "found").exists()


def test_names_too_long_for_the_names_of_the_drawings_are_refused(tmp_path):
    name = "n" * 250 + ".jpg"
    with (tmp_path / name).open("wb") as file:
        Image.new("RGB", (8, 8)).save(file, "JPEG")
    arguments = ["--model_name_or_path", "x", "--images", str(tmp_path), "--output_dir", str(tmp_path / "found")]
    with pytest.raises(SystemExit, match=rf"names of more than 255 bytes, .*: give shorter names to {name}\."):
        predict_detection.main(arguments)
    assert not (tmp_path / "found").exists()


def test_predictions_of_different_runs_are_not_mixed(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = randomize(TwinsForImageClassification(tiny_config()))
    monkeypatch.setattr(predict_detection, "load_detector", lambda folder: Detector(model, TwinsImageProcessor()))
    monkeypatch.setattr(
        predict_detection, "detect_and_draw", lambda detector, image, threshold, path: path.write_text("x")
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["--model_name_or_path", "x", "--output_dir", str(tmp_path / "found"), "--device", "cpu"]
    command = [*arguments, "--images", str(tmp_path / "a.png")]
    for _ in range(2):
        predict_detection.main(command)
    with pytest.raises(
        SystemExit, match=r"found holds the files of a run with threshold 0\.5, now 0\.2: give another"
    ):
        predict_detection.main([*command, "--threshold", "0.2"])
    Image.new("RGB", (8, 8), 1).save(tmp_path / "b.png")
    with pytest.raises(SystemExit, match="with other images: "):
        predict_detection.main([*arguments, "--images", str(tmp_path)])
    model.config.hidden_act = "relu"
    with pytest.raises(SystemExit, match="with another model: "):
        predict_detection.main(command)
    assert sorted(file.name for file in (tmp_path / "found").iterdir()) == [
        "a.png",
        "predictions.json",
        "settings.json",
    ]
    (tmp_path / "found" / "settings.json").unlink()
    with pytest.raises(SystemExit, match=r"found holds predictions\.json, but no settings\.json of the run"):
        predict_detection.main(command)


@pytest.mark.parametrize(("options", "device"), [([], "xpu"), (["--device", "cpu"], "cpu")])
def test_prediction_uses_the_accelerator_by_default(options, device, tmp_path, monkeypatch):
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


def test_learning_rate_is_warmed_up_and_falls_at_epochs(start, tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, warmup_steps=3, num_train_epochs=6, report_to="none",
        use_cpu=True, learning_rate=0.1,
    )  # fmt: skip
    detector = small_detector("retinanet", start)
    trainer = run_detection.DetectionTrainer(
        model=detector.model,
        args=args,
        recipe=DetectionRecipe(decay_epochs=[2, 4]),
        sampler=range(10),
        run=Run(tmp_path, {}),
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = trainer.create_scheduler(18, optimizer)
    rates = []
    for _ in range(18):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # Ten images take three steps.
    expected = [0.0001, 0.0334, 0.0667] + 3 * [0.1] + 6 * [0.01] + 6 * [0.001]
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
        (["--detector_config", '{"depth": 1}'], "TwinsDetectorConfig has no field depth"),
        (["--detector_config", '{"pyramid_size": "x"}'], "--detector_config: .*pyramid_size"),
        (["--model_name_or_path", str(start)], "Give either --model_name_or_path or --config_name"),
        (["--train_dir", str(tmp_path / "missing")], "missing must be a folder of images"),
        (["--validation_dir", str(scenes)], "Give both --validation_dir and --validation_annotations"),
        (["--train_annotations", str(tmp_path / "text.json")], "text.json must be a JSON file in COCO's format"),
        (["--train_annotations", str(tmp_path / "list.json")], "must have file_name, height, id, width for each"),
        (["--longest_edge", "32"], "--longest_edge must be at least --shortest_edge, 64, got 32"),
        (
            ["--detector", "rt-detr", "--detector_config", json.dumps(OPTIONS["rt-detr"]), "--shortest_edge", "72"],
            "--shortest_edge must be a multiple of 32",
        ),
        (["--resume_from_checkpoint", str(tmp_path)], "--resume_from_checkpoint must be 'latest' or a complete"),
    ):
        with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
            run_detection.main([*options, *changes])
    for images, arguments, message in (
        (
            scenes,
            [],
            "cannot load .*: it has no config.json; pass a folder that examples/.*/run_detection.py wrote, or a Hub id",
        ),
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
    """Training starts from random weights, and takes about a minute on one core, with 40 steps per epoch."""
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
    """DETR learns slowly, so only its loss must decrease. The saved model detects the same as the trained one."""
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


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_folder_of_a_run_is_refused_for_other_runs(scenes, start, tmp_path):
    saving = ["--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    arguments = [*run_options(scenes, start, tmp_path / "run", "retinanet"), *saving]
    check_second_runs(run_detection.main, arguments, tmp_path / "run")


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
    """Weights are identical, with augmentation, the detector's random proposals, and the average of the weights."""
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


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_loss_that_is_not_finite_ends_training_and_is_not_saved(scenes, start, tmp_path):
    arguments = run_options(scenes, start, tmp_path / "run", "retinanet")
    with pytest.raises(
        SystemExit, match=r"step \d+ (is|are) not finite \(NaN or infinite\): try a lower --learning_rate"
    ):
        run_detection.main([*arguments, "--learning_rate", "1e37", "--warmup_steps", "0", "--max_grad_norm", "0"])
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_evaluations_use_the_average_that_is_saved(scenes, start, tmp_path, monkeypatch):
    evaluated = []
    detector = run_detection.Detector

    def note(model, *arguments):
        evaluated.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return detector(model, *arguments)

    monkeypatch.setattr(run_detection, "Detector", note)
    arguments = run_options(scenes, start, tmp_path / "run", "retinanet")
    # With patience, the last evaluation is not skipped.
    run_detection.main(
        [*arguments, "--num_train_epochs", "2", "--ema_decay", "0.9999", "--early_stopping_patience", "9"]
    )
    # The second to last evaluation is the last one in training, before the script's own.
    for name, weight in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(weight, evaluated[-2][name]), name
