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
"""All kinds of models in all scripts: used, or refused with one sentence before anything is written."""

import os
import subprocess
import sys
from pathlib import Path

import batch_predict
import evaluate_classification
import pytest
import torch
from classification_utils import write_digit_folder
from peft import LoraConfig, get_peft_model
from testing_utils import randomize, save_timm, timm_model, tiny_config

from hf_twins import TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsImageProcessor


EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with all kinds of models by name, with ten labels or none."""
    folder = tmp_path_factory.mktemp("models")
    processor = TwinsImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    for name, model_class in (
        ("classifier", TwinsForImageClassification),
        ("semantic-fpn", TwinsForSemanticSegmentation),
        ("backbone", TwinsBackbone),
    ):
        randomize(model_class(tiny_config(num_labels=10))).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    save_timm(timm_model(num_classes=10), folder / "timm")
    torch.save(timm_model(num_classes=10).state_dict(), folder / "authors.pth")
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = TwinsForImageClassification.from_pretrained(folder / "classifier")
    get_peft_model(base, lora).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_digit_folder(tmp_path_factory.mktemp("images"), 12)


def evaluate(model: Path, images: Path, output: Path) -> dict:
    arguments = ["--model_name_or_path", model, "--dataset_dir", images, "--dataloader_num_workers", 0]
    return evaluate_classification.main([str(each) for each in [*arguments, "--output_dir", output]])


def predict(model: Path, images: Path, output: Path) -> dict:
    arguments = ["--model_name_or_path", model, "--input_dir", images, "--dataloader_num_workers", 0]
    return batch_predict.main([str(each) for each in [*arguments, "--output_dir", output]])


@pytest.mark.parametrize("model", ["classifier", "timm", "authors.pth", "adapter"])
def test_classifiers_of_every_format(model, models, images, tmp_path):
    results = evaluate(models / model, images, tmp_path / "evaluated")
    assert results["images"] == 12
    assert results["preprocessing"].startswith("resized to " + {"timm": "248", "authors.pth": "256"}.get(model, "18"))
    assert predict(models / model, images, tmp_path / "predicted") == {"images": 12, "errors": 0}


@pytest.mark.parametrize("script", [evaluate, predict])
@pytest.mark.parametrize("model", ["semantic-fpn", "backbone"])
def test_models_other_than_classifiers_are_refused(script, model, models, images, tmp_path):
    message = (
        rf"^error: {models}/{model} holds a Twins\w+, but an image classifier is needed \(\w+\): pass another model"
    )
    with pytest.raises(SystemExit, match=message):
        script(models / model, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classifier_without_an_image_processor_is_refused(models, images, tmp_path):
    TwinsForImageClassification.from_pretrained(models / "classifier").save_pretrained(tmp_path / "alone")
    with pytest.raises(SystemExit, match=r"^error: cannot load \S+alone: it has no image processor"):
        evaluate(tmp_path / "alone", images, tmp_path / "out")
    arguments = ["--model_name_or_path", tmp_path / "alone", "--dataset_dir", images, "--dataloader_num_workers", 0]
    arguments += ["--image_processor_name", models / "classifier"]
    assert evaluate_classification.main([str(each) for each in arguments])["images"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("script", ["semantic_segmentation/predict_segmentation.py", "quickstart.py"])
def test_scripts_started_as_processes(script, models, images, tmp_path):
    if script == "quickstart.py":
        name, sentence = "somebody/not-here", "there is no such folder, and on the Hub: "
        options = ["--model", name]
    else:
        name, sentence = str(models / "classifier"), "but a semantic segmentation model is needed"
        options = ["--model_name_or_path", name, "--images", next(images.rglob("*.png"))]
    process = subprocess.run(
        [sys.executable, EXAMPLES / script, *options, "--output_dir", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert name in last
    assert sentence in last
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


def test_missing_peft_gives_one_sentence(models, images, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_twins._utils.extras.find_spec", lambda module: None)
    with pytest.raises(SystemExit, match=r'^error: \S+adapter is a PEFT adapter: .* pip install "hf_twins\[train\]"$'):
        evaluate(models / "adapter", images, tmp_path / "out")
