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
"""Every shell block of every page is run unchanged.

A page is a README.md or another Markdown file of this repository, and its shell blocks begin with ```bash. The test of a page
runs them in order, in an empty folder with

- the folders of this repository, so that `python examples/...` is found;
- small data with the names that pages use (to use another name, add it to `write_data` below);
- a Hub with `timm/twins_svt_small.in1k`, a tiny model of that architecture, to which models can be published;
- the environment variable `HF_TWINS_MAX_STEPS=1`, which limits training.

A block that starts a Gradio page is run line by line, and each line is stopped when the page is served. A block that only
installs an extra is not run, but the extra must exist. Other blocks that cannot run are listed in `CANNOT_RUN`, with the
reason.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from classification_utils import save_start, write_digit_folder
from digit_scenes import digit_scene
from loopback_hub import serve_hub
from PIL import Image
from source_checkpoints import TINY, source_weights
from testing_utils import save_small_svt

from hf_twins import TwinsForImageClassification


ROOT = Path(__file__).parents[1]
FOLDERS = ("conversion", "examples", "hf_twins", "spaces", "tests")
INSTALLATION = re.compile(r'pip install -e (?:\.|"\.\[(\w+)\]")\n')
IN_CI = ".ci/run runs it in a fresh environment"
MACHINES = "needs more devices than a test has: tests/examples/test_distributed.py loads the configurations"
BENCHMARK = "takes hours: tests/examples/test_benchmark.py runs the script on less"
ATTACK = "takes hours: tests/attacks/test_robustness.py runs the script for less time"
# Maps pages and the first lines of blocks to reasons.
CANNOT_RUN = {
    ("README.md", 'pip install -e ".[train]" && python examples/quickstart.py'): IN_CI,
    ("README.md", "accelerate launch --config_file examples/accelerate_configs/gpus_8.yaml"): MACHINES,
    ("CONTRIBUTING.md", 'pip install -e ".[dev]"'): IN_CI,
    (
        "examples/accelerate_configs/README.md",
        "accelerate launch --config_file examples/accelerate_configs/gpus_8",
    ): MACHINES,
    (
        "examples/accelerate_configs/README.md",
        "accelerate launch --config_file examples/accelerate_configs/mach",
    ): MACHINES,
    ("examples/benchmark_results.md", "python examples/benchmark.py"): BENCHMARK,
    ("examples/export/README.md", "python -m venv executorch_env"): "ExecuTorch needs an environment of its own",
    ("spaces/README.md", "python spaces/assemble.py browser"): "tests/spaces/test_browser_space.py runs it",
    ("tests/README.md", "pytest "): "these tests",
    ("tests/README.md", "tests/install_npm_packages"): IN_CI,
    ("tests/README.md", "python tests/attacks/kill_at_random.py"): ATTACK,
    ("tests/README.md", "python tests/attacks/load.py"): ATTACK,
    ("tests/README.md", "python tests/attacks/fuzz_readers.py"): ATTACK,
}


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


PAGES = {
    str(page.relative_to(ROOT)): shell_blocks(page)
    for pattern in ("*.md", "*/*.md", ".ci/*/*.md", "examples/*/*.md", "spaces/*/*.md")
    for page in sorted(ROOT.glob(pattern))
    if shell_blocks(page)
}


def can_run(page: str, block: str) -> bool:
    return not INSTALLATION.fullmatch(block) and not any(
        page == other and block.startswith(line) for other, line in CANNOT_RUN
    )


RUN = {page: [block for block in blocks if can_run(page, block)] for page, blocks in PAGES.items()}


def write_scenes(folder: Path, seeds: range) -> None:
    """Write pairs of images and masks."""
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for seed in seeds:
        scene = digit_scene(seed)
        scene.image.save(folder / f"images/{seed}.png")
        Image.fromarray(scene.mask).save(folder / f"annotations/{seed}.png")


def write_objects(folder: Path, annotations: Path, seeds: range) -> None:
    """Write images, and a JSON file in COCO's format."""
    folder.mkdir()
    annotations.parent.mkdir(exist_ok=True)
    images, objects = [], []
    for seed in seeds:
        scene = digit_scene(seed)
        scene.image.save(folder / f"{seed}.jpg")
        images.append({"id": seed, "file_name": f"{seed}.jpg", "height": 64, "width": 64})
        for (left, top, right, bottom), label in zip(scene.boxes.tolist(), scene.labels.tolist()):
            width, height = right - left, bottom - top
            objects.append(
                {"id": len(objects) + 1, "image_id": seed, "category_id": label, "iscrowd": 0}
                | {"bbox": [left, top, width, height], "area": width * height}
            )
    categories = [{"id": label, "name": str(label)} for label in range(10)]
    annotations.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))


def write_data(folder: Path) -> None:
    """Write small data with the names on the pages, and the Hub's model next to the folder."""
    for name in FOLDERS:
        (folder / name).symlink_to(ROOT / name)
    write_digit_folder(folder / "path/to/images", 100)
    write_scenes(folder / "path/to/pairs", range(12))
    write_scenes(folder / "path/to/training", range(8))
    write_scenes(folder / "path/to/validation", range(8, 12))
    (folder / "path/to/photos").mkdir()
    for file in ("path/to/photos/image.png", "image.png", "street.jpg"):
        digit_scene(0).image.save(folder / file)
    write_objects(folder / "train2017", folder / "annotations/instances_train2017.json", range(8))
    write_objects(folder / "val2017", folder / "annotations/instances_val2017.json", range(8, 12))
    for wordnet_id in ("n01440764", "n01443537"):
        (folder / "imagenet/val" / wordnet_id).mkdir(parents=True)
        digit_scene(1).image.save(folder / "imagenet/val" / wordnet_id / "ILSVRC2012_val_00000293.JPEG")
    torch.save(source_weights("official", TINY["svt"]), folder / "alt_gvt_small.pth")
    save_start(folder / "outputs/quickstart", size=32)
    model = TwinsForImageClassification.from_pretrained(save_small_svt(folder.parent / "timm"))
    model.save_pretrained(folder / "DIR_OR_ID")


def run_until_it_serves(line: str, log: Path, **options) -> None:
    with log.open("w") as output:
        process = subprocess.Popen(["bash", "-c", f"exec {line}"], stdout=output, stderr=output, **options)
        try:
            while "Running on local URL" not in log.read_text():
                assert process.poll() is None, f"{line}\n{log.read_text()[-4000:]}"
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in RUN.items() if blocks])
def test_shell_blocks_run_in_order(page, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    write_data(folder)
    models = {"timm/twins_svt_small.in1k": tmp_path / "timm"}
    with serve_hub(models, tokens={"hf_write": "write"}) as hub:
        environment = os.environ | hub.environment(tmp_path / "home", token="hf_write")
        environment |= {"HF_TWINS_MAX_STEPS": "1", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        for block in RUN[page]:
            if "/app.py" in block:
                for line in block.splitlines():
                    run_until_it_serves(line, tmp_path / "log.txt", cwd=folder, env=environment)
                continue
            command = ["bash", "-euc", block]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        if page == "README.md":
            assert hub.repository("ORG/NAME").branch("main").files.keys() >= {"model.safetensors", "conversion.json"}
            assert "app.py" in hub.repository("ORG/NAME", "space").branch("main").files
            for output in ("segmented/image_mask.png", "attention/stage4.png", "timm/model.safetensors"):
                assert (folder / "outputs" / output).is_file(), output


def test_pages_are_found():
    assert len(PAGES) >= 11
    assert sum(len(blocks) for blocks in RUN.values()) >= 18


def test_blocks_that_cannot_run_exist():
    for page, line in CANNOT_RUN:
        assert any(block.startswith(line) for block in PAGES[page]), (page, line)


def test_installation_blocks_name_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [extra for blocks in PAGES.values() for block in blocks for extra in INSTALLATION.findall(block) if extra]
    assert {*extras} <= project["optional-dependencies"].keys()
    assert "train" in extras
