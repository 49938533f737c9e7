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
"""What the README says is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from classification_utils import write_digit_folder
from digit_scenes import digit_scene
from loopback_hub import serve_hub
from PIL import Image
from source_checkpoints import TINY, source_weights
from testing_utils import save_timm, timm_model, tiny_config

from hf_twins import TWINS_VARIANTS, TwinsForImageClassification, TwinsImageProcessor


ROOT = Path(__file__).parents[1]
# Not those of models and Spaces, whose links are to places on the Hub.
PAGES = [page for pattern in ("*.md", "*/*.md", "examples/*/*.md") for page in sorted(ROOT.glob(pattern))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "examples" / "benchmark_results.md").read_text(encoding="utf-8")
OPTIMIZED = ("hf_twins-optimized | float32", "hf_twins-optimized | bfloat16")
CODE_BLOCKS = [
    re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
    for indent, code in re.findall(r"^( *)```python\n(.*?)^ *```$", README, flags=re.MULTILINE | re.DOTALL)
]
# All but the two commands that set up, which .ci/run runs in an environment of their own.
COMMANDS = [
    block for block in re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if "&&" not in block
]
# So that they take seconds.
SHORTER = {
    r"^pip install .*\n": "",
    r"(run_trainer\.py|run_accelerate\.py)": r"\1 --num_train_epochs 1",
    r"(run_segmentation\.py)": r"\1 --max_steps 2 --per_device_train_batch_size 2",
    r"gpus_8\.yaml": "cpu_2_processes.yaml",
}


def test_readme_has_code():
    assert len(CODE_BLOCKS) >= 4
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("code", CODE_BLOCKS, ids=range(len(CODE_BLOCKS)))
def test_code_block_runs(code, tmp_path, monkeypatch):
    # The folder that the quickstart leaves behind, small.
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "outputs" / "quickstart"
    TwinsForImageClassification(tiny_config()).save_pretrained(repository)
    TwinsImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(repository)
    (tmp_path / "spaces").symlink_to(ROOT / "spaces")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  # the README's code is ours


@pytest.mark.slow
def test_commands_run_one_after_the_other(tmp_path):
    for folder in ("conversion", "examples", "hf_twins", "spaces"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    timm_folder = save_timm(
        timm_model(
            embed_dims=[32, 64, 96, 128],
            num_heads=[1, 2, 3, 4],
            wss=[7] * 4,
            depths=[1] * 4,
            mlp_ratios=[2] * 4,
            sr_ratios=[8, 4, 2, 1],
        ),
        tmp_path / "timm",
    )
    torch.save(source_weights("official", TINY["svt"]), tmp_path / "alt_gvt_small.pth")
    write_digit_folder(tmp_path / "path/to/images", 100)
    for name in ("path/to/pairs/images", "path/to/pairs/annotations", "path/to/pictures"):
        (tmp_path / name).mkdir(parents=True)
    for seed in range(8):
        scene = digit_scene(seed, (64, 64))
        scene.image.save(tmp_path / f"path/to/pairs/images/{seed}.png")
        Image.fromarray(scene.mask).save(tmp_path / f"path/to/pairs/annotations/{seed}.png")
    scene.image.save(tmp_path / "path/to/pictures/picture.png")
    scene.image.save(tmp_path / "picture.png")

    with serve_hub({"timm/twins_svt_small.in1k": timm_folder}, tokens={"hf_write": "write"}) as hub:
        environment = os.environ | hub.environment(tmp_path / "home", token="hf_write")
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        for block in COMMANDS:
            command = block
            for pattern, shorter in SHORTER.items():
                command = re.sub(pattern, shorter, command, flags=re.MULTILINE)
            done = subprocess.run(
                ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert hub.repository("ORG/NAME").branch("main").files.keys() >= {"model.safetensors", "conversion.json"}
        assert "app.py" in hub.repository("ORG/NAME", "space").branch("main").files
    for output in ("segmented/picture_mask.png", "attention/stage4.png", "timm/model.safetensors", "onnx/model.onnx"):
        assert (tmp_path / "outputs" / output).is_file(), output


def test_model_table_is_that_of_the_package():
    for name, variant in TWINS_VARIANTS.items():
        row = (
            f"| {name} | {variant.num_parameters / 1e6:.1f} M | {variant.flops} G | {variant.imagenet_top1} | "
            f"{variant.ade20k_upernet_miou} |"
        )
        assert row in README
        speed = re.search(rf"^{re.escape(row)} (.+) / (.+) / (.+) \|$", README, re.MULTILINE)
        for ratio, contender in zip(speed.groups(), ("hf_twins | float32", *OPTIMIZED)):
            assert f"| {name} | inference | 1 x 224 | {contender} | **{ratio}**" in RESULTS, (name, contender)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
