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
"""What the README says is so; its commands are in test_pages.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
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


def test_readme_has_code():
    assert len(CODE_BLOCKS) >= 4


@pytest.mark.parametrize("code", CODE_BLOCKS, ids=range(len(CODE_BLOCKS)))
def test_code_block_runs(code, tmp_path, monkeypatch):
    # The folder that the quickstart leaves behind, small.
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "outputs" / "quickstart"
    TwinsForImageClassification(tiny_config()).save_pretrained(repository)
    TwinsImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(repository)
    (tmp_path / "spaces").symlink_to(ROOT / "spaces")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  # the README's code is ours


def test_code_about_other_libraries_checkpoints_runs(tmp_path, monkeypatch):
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "conversion/README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    model = timm_model()
    save_timm(model, tmp_path / "path/to/timm_folder")
    torch.save(model.state_dict(), tmp_path / "alt_gvt_small.pth")
    names: dict[str, Any] = {}
    exec(compile(code, "conversion/README.md", "exec"), names)  # noqa: S102  # the page's code is ours
    assert isinstance(names["model"], TwinsForImageClassification)
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](image).logits, model(image), rtol=0, atol=1e-4)
    assert len(names["classify"](Image.new("RGB", (300, 260)), top_k=5)) == 5


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
