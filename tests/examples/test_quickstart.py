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
"""The quickstart on small data, and once exactly as a user runs it."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_files import long_png
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_twins import TwinsForImageClassification
from hf_twins._utils.files import exclusive_folder
from hf_twins.training.runs import Run


SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture
def quickstart(monkeypatch, tmp_path):
    """Run the script's `main` with the given options, in an empty folder."""
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quickstart", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        module.main()

    return run


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder of a user, with twelve images of each of three digits."""
    digits = load_digits()
    for digit, name in enumerate(["zero", "one", "two"]):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index, pixels in enumerate(digits.images[digits.target == digit][:12]):
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_quickstart_on_an_image_folder_and_further_training(quickstart, image_folder, tmp_path, capsys):
    quickstart("--dataset", str(image_folder), "--epochs", "1", "--output-dir", "first")
    model = AutoModelForImageClassification.from_pretrained("first")
    assert type(model) is TwinsForImageClassification
    assert set(model.config.label2id) == {"zero", "one", "two"}
    assert {file.name for file in Path("first").iterdir()} == {
        "README.md",
        "all_results.json",
        "config.json",
        "eval_results.json",
        "model.safetensors",
        "preprocessor_config.json",
        "results.png",
        "run.json",
    }
    assert np.asarray(Image.open("first/results.png").convert("L")).std() > 20
    accuracy = json.loads(Path("first/all_results.json").read_text())["eval_accuracy"]
    card = Path("first/README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert f"{accuracy:.1%}" in card
    printed = capsys.readouterr().out
    assert "Fine-tuning 2,3" in printed
    assert "of 8 held-out images right" in printed
    assert "--model_name_or_path first" in printed

    (image_folder / "two").rename(image_folder.parent / "two")
    quickstart("--model", "first", "--dataset", str(image_folder), "--epochs", "1", "--output-dir", "second")
    assert set(AutoModelForImageClassification.from_pretrained("second").config.label2id) == {"zero", "one"}


def test_quickstart_replaces_another_run_only_if_requested(quickstart, tmp_path, image_folder):
    identity = {"options": {}, "labels": [], "data": {}, "model": "", "num_processes": 1}
    finished = Run(tmp_path / "first", identity, files=["results.png"])
    finished.output_dir.mkdir()
    finished.write()
    (tmp_path / "first" / "results.png").touch()
    with pytest.raises(
        SystemExit, match=r"^error: first has the files of a run: replace it with --overwrite_output_dir, or"
    ):
        quickstart("--dataset", str(image_folder), "--output-dir", "first")


def test_quickstart_does_not_save_a_model_that_is_not_finite(quickstart, image_folder):
    with pytest.raises(
        SystemExit, match=r"^error: The model was not saved, because its loss .* is nan: try a lower --lea"
    ):
        quickstart("--dataset", str(image_folder), "--epochs", "3", "--learning_rate", "1e30", "--output_dir", "nan")
    assert [path.name for path in Path("nan").iterdir()] == ["run.json"]


def test_second_quickstart_in_a_folder_is_refused(quickstart, tmp_path, image_folder):
    with (
        exclusive_folder(tmp_path / "used"),
        pytest.raises(SystemExit, match=r"^error: Another run is writing to used: wait"),
    ):
        quickstart("--dataset", str(image_folder), "--output_dir", "used")
    (tmp_path / "file").touch()
    for output in ("file", "file/new"):
        with pytest.raises(
            SystemExit, match=r"^error: --output_dir must be an existing or new folder, but .* is a file: give another"
        ):
            quickstart("--dataset", str(image_folder), "--output_dir", output)


@pytest.mark.slow
def test_quickstart_builds_a_published_variant(quickstart, image_folder):
    quickstart(
        *("--variant", "twins-pcpvt-small", "--image-size", "32", "--dataset", str(image_folder)),
        *("--epochs", "1", "--output-dir", "pcpvt"),
    )
    model = AutoModelForImageClassification.from_pretrained("pcpvt")
    assert model.config.depths == [3, 4, 6, 3]
    processor = AutoImageProcessor.from_pretrained("pcpvt")
    assert (processor.size.shortest_edge, processor.crop_size.height) == (36, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "somebody/not-here"], "Cannot load the dataset 'somebody/not-here'"),
        (
            ["--model", "somebody/not-here"],
            "error: cannot load somebody/not-here: there is no such folder, and on the Hub: ",
        ),
        (["--variant", "twins-huge"], "error: name must be one of twins-pcpvt-small"),
        (["--model", "x", "--variant", "twins-svt-small"], "--variant and --image-size are for a new model"),
    ],
    ids=["no dataset", "no model", "no variant", "model and variant"],
)
def test_quickstart_explains_errors_without_a_traceback(quickstart, tmp_path, options, message):
    with pytest.raises(SystemExit) as exit_info:
        quickstart(*options)
    assert message in str(exit_info.value)
    assert not (tmp_path / "outputs").exists()


def test_quickstart_with_unusable_images_explains_what_it_needs(quickstart, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "lonely.png")
    with pytest.raises(SystemExit, match=r"1 images directly in it, not in a label folder \(lonely.png\)"):
        quickstart("--dataset", str(tmp_path / "images"))


def test_quickstart_with_too_few_images_is_refused(quickstart, tmp_path):
    for label in ("cat", "dog", "cow"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / label / "1.png")
    with pytest.raises(
        SystemExit, match=r"0\.2 of 3 images cannot be held out for validation, with some of every label"
    ):
        quickstart("--dataset", str(tmp_path / "images"))


def test_quickstart_leaves_out_and_names_unusable_images(quickstart, image_folder, caplog, capsys):
    (image_folder / "one" / "3.png").write_bytes(long_png())
    (image_folder / "two" / ".ipynb_checkpoints").mkdir()
    (image_folder / "two").rename(image_folder.parent / "linked")
    (image_folder / "two").symlink_to(image_folder.parent / "linked")
    (image_folder / "zero").rename(image_folder / "bullet train")
    # The printed commands are quoted, so that they work for this folder.
    folder = "it's $HOME; x"
    quickstart("--dataset", str(image_folder), "--epochs", "1", "--output_dir", folder)
    assert "3.png is too long, 1 x 65535 pixels" in caplog.text
    assert "(two/.ipynb_checkpoints)" in caplog.text
    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert list(config.id2label.values()) == ["bullet train", "one", "two"]
    printed = capsys.readouterr().out
    assert "of 8 held-out images right" in printed or "of 7 held-out images right" in printed
    commands = [
        shlex.split(line) for line in printed.splitlines() if "   " in line and ("python" in line or "hf up" in line)
    ]
    assert commands[-1][-4:] == [f"YOUR-NAME/{folder}", folder, "--exclude", "run.json"]
    assert commands[-2][commands[-2].index("--model_name_or_path") + 1] == folder
    assert repr(folder) in commands[0][-1]
    compile(commands[0][-1], "command", "exec")
