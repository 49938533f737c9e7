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
"""The figures of attention maps are written for every stage, and errors leave no files."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_files import long_png
from PIL import Image
from sklearn.datasets import load_sample_image
from testing_utils import save_timm, timm_model, tiny_config

from hf_twins import (
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
)


SCRIPT = Path(__file__).parents[2] / "examples" / "attention_maps.py"


@pytest.fixture
def draw_maps(monkeypatch, tmp_path):
    """Run the script's `main` on flower.jpg with the given options, in a folder with a tiny model of each kind."""
    spec = importlib.util.spec_from_file_location("attention_maps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "attention_maps", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    for name, model in (
        ("svt", TwinsForImageClassification(tiny_config())),
        ("pcpvt", TwinsForImageClassification(tiny_config("pcpvt"))),
        ("segmenter", TwinsForSemanticSegmentation(tiny_config())),
        ("backbone", TwinsBackbone(tiny_config())),
        ("gray", TwinsForImageClassification(tiny_config(num_channels=1))),
    ):
        model.save_pretrained(name)
        channels = {"do_convert_rgb": False, "image_mean": [0.5], "image_std": [0.5]} if name == "gray" else {}
        processor = TwinsImageProcessor(size={"height": 30, "width": 44}, do_center_crop=False, **channels)
        processor.save_pretrained(name)
    save_timm(timm_model(), Path("timm"))
    Image.fromarray(load_sample_image("flower.jpg")).save("flower.png")
    Path("long.png").write_bytes(long_png())

    def run(model: str, *options: str) -> list[str]:
        arguments = ["--model_name_or_path", model, "--image", "flower.png", "--output_dir", "maps"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, *options])
        module.main()
        return sorted(file.name for file in Path("maps").iterdir())

    return run


def test_figures_of_every_stage_are_written(draw_maps, capsys):
    assert draw_maps("svt") == ["stage1.png", "stage2.png", "stage3.png"]
    assert "Look at maps/stage1.png, maps/stage2.png" in capsys.readouterr().out
    for name in ("stage1", "stage2", "stage3"):
        figure = np.asarray(Image.open(f"maps/{name}.png").convert("L"))
        assert figure.shape[1] > figure.shape[0] > 300
        assert figure.std() > 20


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pcpvt", "segmenter", "timm", "gray"])
def test_figures_of_other_models(draw_maps, model):
    assert draw_maps(model, "--stages", "stage3") == ["stage3.png"]


@pytest.mark.slow
def test_figures_of_chosen_stages_layers_token_and_label(draw_maps):
    options = ["--stages", "stage2", "--layers", "2", "--query", "0", "0.99"]
    assert draw_maps("svt", *options, "--label", "LABEL_3") == ["stage2.png"]
    by_name = Image.open("maps/stage2.png").tobytes()
    draw_maps("svt", *options, "--label", "3")
    assert Image.open("maps/stage2.png").tobytes() == by_name
    draw_maps("svt", *options, "--label", "2")
    assert Image.open("maps/stage2.png").tobytes() != by_name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model_name_or_path", "not-here"],
            "error: cannot load not-here: there is no such folder, and on the Hub: ",
        ),
        (
            ["--model_name_or_path", "backbone"],
            "backbone holds a TwinsBackbone, but a classifier or a Semantic FPN is",
        ),
        (["--image", "not-here.png"], "error: .*not-here.png"),
        (["--image", "svt/config.json"], "error: svt/config.json cannot be decoded: it is not an image"),
        (["--image", "long.png"], "error: long.png is too long, 1 x 65535 pixels: .* crop it"),
        (["--stages", "stage4"], "--stages must be one or more of stage1, stage2, stage3, got stage4"),
        (["--layers", "0", "2"], r"--layers must be from 0 to 1 in stage1, got \[0, 2\]"),
        (["--query", "0.5", "1"], r"--query must be a row and a column in \[0, 1\), got"),
        (["--query", "0.5"], "--query must be a row and a column"),
        (["--label", "tabby"], "--label must be a label of the model or an index below 5, got tabby"),
        (["--label", "5"], "--label must be .* below 5, got 5"),
    ],
    ids=[
        "model",
        "backbone",
        "image",
        "no image",
        "too long",
        "stage",
        "layer",
        "query",
        "half a query",
        "label",
        "index",
    ],
)
def test_bad_input_is_named_without_a_traceback(draw_maps, options, message):
    with pytest.raises(SystemExit, match=message):
        draw_maps("svt", *options)
    assert not Path("maps").exists()
