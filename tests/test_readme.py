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
"""Statements in the README are correct; its commands are tested in test_pages.py."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import serve_hub
from PIL import Image
from testing_utils import save_small_svt, save_timm, timm_model, tiny_config

import hf_twins
from hf_twins import (
    TWINS_VARIANTS,
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsImageProcessor,
    grad_cam,
    load_model,
)


ROOT = Path(__file__).parents[1]
# Cards of models and Spaces are excluded, because their links are valid on the Hub.
PAGES = [page for pattern in ("*.md", "*/*.md", "examples/*/*.md") for page in sorted(ROOT.glob(pattern))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "examples" / "benchmark_results.md").read_text(encoding="utf-8")
CODE_BLOCKS = {
    f"{page} {index}": code
    for page in ("README.md", "hf_twins/README.md")
    for index, code in enumerate(
        re.findall(
            r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
    )
}


def test_pages_have_code():
    assert len(CODE_BLOCKS) >= 6


@pytest.fixture(scope="module")
def small_svt(tmp_path_factory) -> Path:
    return save_small_svt(tmp_path_factory.mktemp("hub") / "timm")


@pytest.mark.parametrize("code", CODE_BLOCKS.values(), ids=CODE_BLOCKS)
def test_code_block_runs(code, small_svt, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    with serve_hub({"timm/twins_svt_small.in1k": small_svt}) as hub, hub.in_process(tmp_path / "home"):
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # the pages' code is ours
    if "feature_maps" in names:
        sizes = " ".join(f"{height} x {width}" for height, width in (each.shape[2:] for each in names["feature_maps"]))
        assert sizes.split() == re.findall(r"\d+|x", code.partition("# of ")[2].partition("\n")[0])


def test_code_for_checkpoints_of_other_libraries_runs(tmp_path, monkeypatch):
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


def test_model_table_matches_the_package():
    for name, variant in TWINS_VARIANTS.items():
        weights = f"timm/{name.replace('-', '_')}.in1k"
        row = (
            f"| {name} | {variant.num_parameters / 1e6:.1f} M | {variant.flops} G | {variant.imagenet_top1} | "
            f"{variant.ade20k_upernet_miou} | [{weights}](https://huggingface.co/{weights}) |"
        )
        assert row in README


def causes_of_messages(folder: Path) -> list[Callable[[], Any]]:
    """Functions that cause the messages that the package's page explains, in the same order."""
    model = TwinsForImageClassification(tiny_config(num_labels=3))
    model.save_pretrained(folder)
    TwinsImageProcessor().save_pretrained(folder)
    backbone = TwinsBackbone(tiny_config(out_features=["stage1"]))
    backbone.out_features = ["stage3"]
    image = torch.rand(1, 3, 64, 64)
    return [
        lambda: model(image.byte()),
        lambda: model(image[:, :1]),
        lambda: load_model(folder, "semantic-segmentation"),
        lambda: load_model(folder, "image-classification", num_labels=7),
        lambda: TwinsForImageClassification.from_pretrained(folder, num_labels=7),
        lambda: TwinsImageProcessor()(image, segmentation_maps=torch.zeros(1, 64, 64)),
        lambda: backbone(image),
        lambda: model(image, torch.ones(1, 32, 32)),
        lambda: grad_cam(model.train(), image),
        lambda: load_model("somebody/twins", "image-classification"),
    ]


def test_documented_messages_match_the_actual_ones(tmp_path):
    table = (ROOT / "hf_twins/README.md").read_text(encoding="utf-8").partition("\n## Troubleshooting\n")[2]
    # The first message occurs if the package is not imported.
    messages = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)[1:]
    for message, cause in zip(messages, causes_of_messages(tmp_path), strict=True):
        with pytest.raises((ValueError, RuntimeError, OSError)) as caught:
            cause()
        assert message.replace("'", "") in re.sub("['`]", "", str(caught.value))


def test_documented_way_to_checkpoint_activations_is_not_deprecated():
    page = (ROOT / "hf_twins/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^\| `model\.set_grad_checkpointing\(\)` \| `(.*)` \|$", page, re.MULTILINE)
    model = TwinsForImageClassification(tiny_config())
    # Warnings are errors.
    exec(code, {"model": model})  # noqa: S102  # the page's code is ours
    assert model.is_activation_checkpointing


def test_table_of_public_names_is_complete():
    page = (ROOT / "hf_twins/README.md").read_text(encoding="utf-8")
    table = page.partition("\n## Public names\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= {*hf_twins.__all__}


def test_speed_tables_match_the_benchmark_results():
    """Only the table of one CPU is excluded, because its results were not kept."""
    contenders = {
        "timm, bfloat16": ("timm", "bfloat16"),
        "hf_twins, float32": ("hf_twins", "float32"),
        "`optimize_for_inference(model)`, float32": ("hf_twins-optimized", "float32"),
        'with `dtype="auto"`': ("hf_twins-optimized", "bfloat16"),
        "with `dtype=torch.int8`": ("hf_twins-optimized", "int8"),
        'with `backend="openvino"`, float32': ("openvino", "float32"),
        'with `backend="openvino"`, bfloat16': ("openvino", "bfloat16"),
        "exported to OpenVINO in int8": ("openvino", "int8"),
    }
    section = README.partition("\n## Speed\n")[2].partition("\n## ")[0]
    tables = [table.splitlines() for table in section.split("\n\n") if table.startswith("|")]
    variants = ("twins-svt-small", "twins-pcpvt-small")
    *tables, gpu_table = tables
    assert [table[0].split(" | ")[0] for table in tables] == ["| Twins-SVT-S", "| Twins-PCPVT-S"]
    for table, variant in zip(tables, variants, strict=True):
        heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
        for label, *cells in rows:
            contender, dtype = contenders[label]
            for head, cell in zip(heads[1:], cells, strict=True):
                if not head.startswith("AVX2"):
                    for size, ratio in zip((1, 8), cell.split(" / "), strict=True):
                        measured = f"| {variant} | inference | {size} x 224 | {contender} | {dtype} | **{ratio}**"
                        assert measured in RESULTS, measured
    gpu_results = RESULTS.partition("\n## A GPU: NVIDIA H200\n")[2].partition("\n## ")[0]
    gpu_rows = [
        ("1 image", "`optimize_for_inference(model)`", "hf_twins-optimized"),
        ("256 images", '`optimize_for_inference(model, backend="compile")`', "hf_twins-compiled"),
        ("256 images", "timm compiled", "timm-compiled"),
    ]
    assert gpu_table[0] == "| NVIDIA H200 | Twins-SVT-S | Twins-PCPVT-S |"
    for row, (images, what, contender) in zip(gpu_table[2:], gpu_rows, strict=True):
        label, *ratios = (cell.strip() for cell in row.strip("|").split("|"))
        assert label == f"{images}, {what}"
        for variant, ratio in zip(variants, ratios, strict=True):
            size = images.partition(" ")[0]
            (measured,) = re.findall(
                rf"^\| {variant} \| inference \| {size} x 224 \| {contender} \| bfloat16 \| \*\*(.*?)\*\*",
                gpu_results,
                re.MULTILINE,
            )
            assert f"{float(measured):.{len(ratio.partition('.')[2])}f}" == ratio


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_valid(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
