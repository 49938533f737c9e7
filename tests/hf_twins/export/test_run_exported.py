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
"""The program in each export: it preprocesses like the image processor, and its errors are one sentence."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hostile_files import long_png
from onnx import TensorProto, helper
from PIL import Image

from hf_twins import TwinsConfig, TwinsImageProcessorPil
from hf_twins._utils.scores import class_scores
from hf_twins.export import run_exported
from hf_twins.export.folder import scores_function


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_export(tmp_path / "export")


def write_export(folder: Path, num_channels: int = 3, scores: str = "softmax") -> Path:
    """An export of a model whose logits are the mean values of the channels."""
    means = helper.make_node("ReduceMean", ["pixel_values", "axes"], ["logits"], keepdims=0)
    pixel_values = helper.make_tensor_value_info(
        "pixel_values", TensorProto.FLOAT, ["batch", num_channels, "height", "width"]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_channels])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph([means], "means", [pixel_values], [logits], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    channels = {"image_mean": [0.5] * num_channels, "image_std": [0.5] * num_channels}
    fields = {} if num_channels == 3 else {"do_convert_rgb": False, **channels}
    TwinsImageProcessorPil(**fields).save_pretrained(folder)
    onnx.save(model, folder / "model.onnx")
    description = {
        "runtime": "onnx",
        "file": "model.onnx",
        "outputs": ["logits"],
        "size": None,
        "min_size": 4,
        "num_channels": num_channels,
        "scores": scores,
    }
    labels = dict(zip("0123", ("red", "green", "blue", "alpha")[:num_channels]))
    config = {"architectures": ["TwinsForImageClassification"], "id2label": labels}
    for name, content in (("twins_export.json", description), ("config.json", config)):
        (folder / name).write_text(json.dumps(content))
    return folder


def test_runs_from_python(folder):
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 9, 7), dtype=np.float32)
    runtime = run_exported.load_runtime(folder, threads=1)
    np.testing.assert_allclose(runtime(pixel_values), pixel_values.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert list(runtime.run(pixel_values)) == ["logits"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 31}, "crop_size": {"height": 40, "width": 27}},
        {"size": {"height": 37, "width": 52}, "do_center_crop": False, "resample": 2},
        {"do_resize": False, "crop_size": {"height": 91, "width": 64}, "image_mean": [0.5] * 3},
        {"do_normalize": False, "do_center_crop": False},
    ],
    ids=["default", "small", "exact", "crop", "rescale"],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA"])
def test_preprocessing_gives_the_processors_pixels(tmp_path, settings, mode):
    processor = TwinsImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    preprocessing = run_exported.Preprocessing(run_exported.read_json(tmp_path / "preprocessor_config.json"))
    pixels = np.random.default_rng(0).integers(0, 256, (90, 71, len(mode)), dtype=np.uint8).squeeze()
    for array in (pixels, pixels.swapaxes(0, 1)):
        image = Image.fromarray(array)
        assert image.mode == mode
        expected = processor(image, return_tensors="np").pixel_values
        np.testing.assert_array_equal(preprocessing(image), expected)


def test_fourth_channel_does_not_change_the_others(tmp_path):
    numbers = [0.5] * 4
    TwinsImageProcessorPil(do_convert_rgb=False, image_mean=numbers, image_std=numbers).save_pretrained(tmp_path)
    settings = run_exported.read_json(tmp_path / "preprocessor_config.json")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 71, 4), dtype=np.uint8))
    expected = TwinsImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="np").pixel_values
    np.testing.assert_array_equal(run_exported.Preprocessing(settings, num_channels=4)(image), expected)


def test_applied_rules_are_logged_once_with_their_count(folder, tmp_path, capsys):
    deep = Image.fromarray(np.full((300, 300), 65535, np.uint16))
    clear = Image.new("RGBA", (300, 300))
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "deep.png": deep,
        "deep.tif": deep,
        "clear.png": clear,
        "plain.png": Image.new("RGB", (300, 300), "white"),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    Image.new("RGB", (300, 300), "white").save(tmp_path / "turned.png", exif=exif)
    files = [str(tmp_path / name) for name in [*images, "turned.png"]]
    run_exported.main([*files, "--model_dir", str(folder), "--json"])
    printed = capsys.readouterr()
    # All images are white.
    assert len({line.partition("labels")[2] for line in printed.out.splitlines()}) == 1
    assert [line.split()[1] for line in printed.err.splitlines()] == ["1", "2", "1"]
    assert "note: 2 images have a range other than 0 to 255 and are scaled to it." in printed.err


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 2},
        {"num_labels": 2, "problem_type": "multi_label_classification"},
        {"num_labels": 3, "problem_type": "single_label_classification"},
        {"num_labels": 3, "problem_type": "regression"},
        {"num_labels": 1},
    ],
)
def test_scores_are_those_of_the_package(fields):
    config = TwinsConfig(**fields)
    logits = np.array([-700, 0.5, 3][: config.num_labels], np.float32)
    scores = run_exported.SCORES[scores_function(config)](logits)
    np.testing.assert_allclose(scores, class_scores(torch.from_numpy(logits), config).numpy(), rtol=1e-5)


def test_every_label_of_several_has_a_probability_of_its_own(tmp_path, capsys):
    Image.new("RGB", (30, 30), "white").save(tmp_path / "white.png")
    printed = {}
    for scores in run_exported.SCORES:
        folder = write_export(tmp_path / scores, scores=scores)
        run_exported.main([str(tmp_path / "white.png"), "--model_dir", str(folder)])
        printed[scores] = [float(line.split()[0].rstrip("%")) for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(printed["softmax"]) == pytest.approx(100, abs=0.02)
    # White is 2.2 to 2.6 standard deviations above the mean.
    assert all(90 < score < 94 for score in printed["sigmoid"])
    assert all(2.2 < score < 2.7 for score in printed["identity"])


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_images_of_every_mode_are_converted_to_the_channels_of_the_model(num_channels, tmp_path, capsys):
    files = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        files.append(str(tmp_path / f"{mode}.tif"))
        Image.new("RGB", (300, 300), "white").convert(mode).save(files[-1])
    folder = write_export(tmp_path / "export", num_channels, "sigmoid")
    run_exported.main([*files, "--model_dir", str(folder), "--json"])
    printed = capsys.readouterr()
    assert [json.loads(line)["image"] for line in printed.out.splitlines()] == files
    # All images are white and opaque.
    assert len({line.partition("labels")[2] for line in printed.out.splitlines()}) == 1


def test_image_that_does_not_fit_the_model_is_skipped(folder, tmp_path, capsys):
    Image.new("RGB", (30, 30)).save(tmp_path / "fits.png")
    Image.new("RGB", (30, 3)).save(tmp_path / "flat.png")
    TwinsImageProcessorPil(do_resize=False, do_center_crop=False).save_pretrained(folder)
    files = [str(tmp_path / name) for name in ("flat.png", "fits.png")]
    run_exported.main([*files, "--model_dir", str(folder), "--json"])
    printed = capsys.readouterr()
    assert [json.loads(line)["image"] for line in printed.out.splitlines()] == files[1:]
    assert f"skipped: {files[0]} cannot be used: Images must be at least 4 pixels high and wide" in printed.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "utf-8:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_and_labels_that_cannot_be_printed_are_escaped(environment, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["0"] = "red \N{STRAWBERRY}"
    (folder / "config.json").write_text(json.dumps(config))
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(file)
    command = [sys.executable, "-W", "error", run_exported.__file__, file, "--model_dir", folder]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    done = subprocess.run(command, capture_output=True, env=variables | {"PYTHONCOERCECLOCALE": "0"} | environment)
    assert done.returncode == 0, done.stderr.decode(errors="backslashreplace")
    assert done.stdout.splitlines()[0] == os.fsencode(tmp_path) + rb"/caf\xe9.png"
    strawberry = b"red \\U0001f353" if "LC_ALL" in environment else "red \N{STRAWBERRY}".encode()
    assert strawberry in done.stdout


def test_unusable_images_are_skipped(folder, tmp_path, capsys):
    Image.new("RGB", (30, 30)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no image")
    files = [str(tmp_path / name) for name in ("text.png", "black.png")]
    run_exported.main([*files, "--model_dir", str(folder), "--json"])
    printed = capsys.readouterr()
    assert [json.loads(line)["image"] for line in printed.out.splitlines()] == [files[1]]
    assert f"skipped: {files[0]} cannot be used: it is not an image, or Pillow does not read its format" in printed.err


@pytest.mark.parametrize("option", ["--top_k", "--threads"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_numbers_below_one_are_refused(folder, option, value, capsys):
    with pytest.raises(SystemExit):
        run_exported.main(["image.png", "--model_dir", str(folder), option, value])
    assert f"argument {option}: must be at least 1, got {value}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "model.onnx cannot be loaded: it is damaged, or was made for another version"),
        ("config.json", r"config.json is damaged, Expecting .*: export the model again"),
    ],
)
def test_damaged_file_is_named(folder, tmp_path, name, message):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    Image.new("RGB", (30, 30)).save(tmp_path / "black.png")
    with pytest.raises(SystemExit, match=message):
        run_exported.main([str(tmp_path / "black.png"), "--model_dir", str(copied)])


def test_errors_are_one_sentence(folder, tmp_path, monkeypatch):
    options = ["--model_dir", str(folder)]
    with pytest.raises(SystemExit, match="must be an export folder with config"):
        run_exported.main(["image.png", "--model_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: image.png cannot be used: .*No such file or directory"):
        run_exported.main(["image.png", *options])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(
        SystemExit, match=r"error: .*text.png cannot be used: it is not an image, or Pillow does not read its format"
    ):
        run_exported.main([str(tmp_path / "text.png"), *options])
    (tmp_path / "long.png").write_bytes(long_png())
    with pytest.raises(
        SystemExit, match=r"error: .*long.png cannot be used: it is too long, 1 x 65535 pixels: .* crop it"
    ):
        run_exported.main([str(tmp_path / "long.png"), *options])
    with pytest.raises(SystemExit, match=r"error: None of the 2 images can be used"):
        run_exported.main([str(tmp_path / "text.png"), str(tmp_path / "long.png"), *options])
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        run_exported.load_runtime(folder, threads=0)
    with pytest.raises(SystemExit, match="bf16 is only for OpenVINO models, got one for onnx"):
        run_exported.main(["image.png", *options, "--inference_precision", "bf16"])
    with pytest.raises(ValueError, match=r"the shape \(batch_size, 3, height, width\), got \(1, 1, 8, 8\)"):
        run_exported.load_runtime(folder)(np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match="must be at least 4 pixels high and wide"):
        run_exported.load_runtime(folder)(np.zeros((1, 3, 8, 3), np.float32))
    with pytest.raises(ValueError, match="This program does not pad images, but do_pad asks for it"):
        run_exported.Preprocessing({"do_pad": True})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match="error: this model needs onnxruntime: pip install onnxruntime"):
        run_exported.main(["image.png", *options])
