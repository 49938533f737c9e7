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
"""Detectors loaded by their folder or Hub id, by `load_detector` and by transformers' Auto classes."""

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_utils import small_detector
from digit_scenes import digit_scene
from loopback_hub import serve_models
from safetensors.torch import load_file, save_file
from testing_utils import randomize
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
from transformers.testing_utils import HfDocTestParser

from hf_twins import TwinsForImageClassification
from hf_twins.detection import Detector, TwinsDetectorImageProcessor, TwinsForObjectDetection, load_detector
from hf_twins.training.object_detection.models import find_backbone


def saved(name: str, start: Path, folder: Path) -> Detector:
    detector = small_detector(name, start, **({"score_threshold": 0.0} if name in ("retinanet", "mask-rcnn") else {}))
    randomize(find_backbone(detector.model.eval()))
    detector.model.save_pretrained(folder)
    detector.processor.save_pretrained(folder)
    return detector


@pytest.mark.parametrize("name", ["retinanet", "mask-rcnn", "detr"])
def test_pipelines_and_auto_classes_load_what_was_saved(name, start, tmp_path, caplog):
    detector = saved(name, start, tmp_path)
    model = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(model) is type(detector.model)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is type(detector.processor)
    image = digit_scene(1, (70, 101)).image
    expected = detector([image], threshold=0.0)[0]
    assert len(expected["scores"]) > 10
    for found in pipeline("object-detection", str(tmp_path), threshold=0.0)(2 * [image], batch_size=2):
        scores, boxes = zip(*((each["score"], list(each["box"].values())) for each in found))
        assert len(scores) == len(expected["scores"])
        # The order may differ, because scores may be equal. The pipeline rounds boxes down.
        same_score = (expected["scores"][:, None] - torch.tensor(scores)).abs() < 1e-5
        same_box = (expected["boxes"][:, None] - torch.tensor(boxes)).abs().amax(-1) < 1.001
        assert (same_score & same_box).any(1).all()
    assert "is not supported" not in caplog.text


@pytest.mark.slow
def test_importing_the_package_imports_no_detector():
    names = (
        "hf_twins.detection.loading",
        "transformers.models.detr.modeling_detr",
        "hf_twins.training",
        "pycocotools",
    )
    code = f"import hf_twins, sys; hf_twins.detection; print([name for name in {names} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["[]"]


@pytest.mark.slow
def test_detector_of_the_hub(start, tmp_path):
    detector = saved("retinanet", start, tmp_path / "detector")
    image = digit_scene(1).image
    image.save(tmp_path / "image.png")
    code = f"""
import PIL.Image
from hf_twins.detection import load_detector
detector = load_detector("somebody/detector")
print(detector([PIL.Image.open({str(tmp_path / "image.png")!r})], threshold=0.0)[0]["scores"].tolist())
"""
    with serve_models({"somebody/detector": tmp_path / "detector"}) as hub:
        process = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == pytest.approx(
        detector([image], threshold=0.0)[0]["scores"].tolist(), abs=1e-5
    )


def test_folder_of_version_0_1_is_loaded(start, tmp_path):
    detector = saved("mask-rcnn", start, tmp_path)
    for file, field, value in (
        ("config.json", "architectures", ["TorchvisionDetector"]),
        ("preprocessor_config.json", "image_processor_type", "DetrImageProcessor"),
    ):
        content = json.loads((tmp_path / file).read_text())
        assert content.get("model_type") in ("twins_torchvision_detector", None)
        (tmp_path / file).write_text(json.dumps(content | {field: value}))
    loaded = load_detector(tmp_path)
    assert type(loaded.model) is TwinsForObjectDetection
    assert type(loaded.processor) is TwinsDetectorImageProcessor
    image = digit_scene(1).image
    expected, actual = detector([image], threshold=0.0)[0], loaded([image], threshold=0.0)[0]
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())


@pytest.mark.parametrize("name", ["retinanet", "detr"])
def test_newly_initialized_weights_are_refused(name, start, tmp_path):
    saved(name, start, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = sorted(weights)[3]
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"^{tmp_path} lacks 1 weights of .*, or has them in another shape, such as {missing}: pass "
    ):
        load_detector(tmp_path)


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("name", ["retinanet", "detr"])
def test_mismatched_weights_give_one_sentence(name, start, tmp_path):
    folder = tmp_path / "detector"
    saved(name, start, folder)
    config, weights = (folder / "config.json").read_text(), load_file(folder / "model.safetensors")
    change(folder / "config.json", id2label={"0": "a"}, label2id={"a": 0})
    with pytest.raises(
        ValueError, match=rf"^{folder} lacks \d+ weights of \w+, or has them in another shape, such as "
    ):
        load_detector(folder)
    change(folder / "config.json", id2label={"0": "a", "2": "b", "3": "c"}, label2id={"a": 0, "b": 2, "c": 3})
    with pytest.raises(ValueError, match=rf"^{folder}: id2label must have the keys 0 to 2, got 0, 2, 3"):
        load_detector(folder)
    for content, reason in (
        ("{", r"its config\.json is damaged \("),
        ("[]", r"its config\.json must hold a JSON object, got \[\]$"),
        ('{"backbone_config": "twins"}', r"backbone_config in its config\.json must be a JSON object, got 'twins'$"),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(OSError, match=f"^cannot load {folder}: {reason}"):
            load_detector(folder)
    (folder / "config.json").write_text(config)
    processor = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text("[]")
    with pytest.raises(
        OSError, match=rf"^cannot load {folder}: its preprocessor_config\.json must hold a JSON object"
    ):
        load_detector(folder)
    (folder / "preprocessor_config.json").write_text(processor)
    key = min(weights)
    save_file(weights | {key: weights[key] * float("nan")}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"^{folder} has 1 weights that are not finite .*, such as {key}: "):
        load_detector(folder)
    (folder / "model.safetensors").write_bytes(b"nothing at all")
    with pytest.raises(OSError, match=rf"^cannot load {folder}: its weights are damaged \("):
        load_detector(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=rf"^cannot load {folder}: .*no file named model\.safetensors"):
        load_detector(folder)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=rf"^cannot load {folder}: it has no config\.json; pass a folder that "):
        load_detector(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("somebody/not-here", "there is no such folder, and on the Hub: "),
        ("./not-here", "there is no such file or folder$"),
        ("twins-svt-small", "this is the name of an architecture"),
    ],
)
def test_missing_sources_are_named(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=rf"^cannot load {name}: {reason}") as raised:
        load_detector(name)
    assert "\n" not in str(raised.value)


def test_other_models_are_refused_by_their_names(start, tmp_path):
    with pytest.raises(
        ValueError, match=r"must be a detector with a Twins backbone.* got TwinsForImageClassification"
    ):
        load_detector(start)
    with pytest.raises(OSError, match="missing"):
        load_detector(tmp_path / "missing")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "yolos", "architectures": ["YolosForObjectDetection"]})
    )
    with pytest.raises(ValueError, match=r"must be a detector with a Twins backbone.* got YolosForObjectDetection"):
        load_detector(tmp_path)
    assert TwinsForImageClassification.from_pretrained(start)


@pytest.mark.parametrize("name", ["configuration", "modeling", "loading"])
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"hf_twins.detection.{name}")
    for test in doctest.DocTestFinder(parser=HfDocTestParser()).find(module, globs={}):
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0, test.name
