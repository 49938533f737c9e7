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
"""The command line of the conversion: its output, and that errors leave no output."""

import argparse
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import convert_twins_to_hf
import pytest
import torch
from card_utils import run_card
from checkpoint_formats import ade20k_class_names, convert_checkpoint, image_processor
from conversion_utils import fails, run, save_source
from huggingface_hub import ModelCard
from source_checkpoints import FORMATS, TINY, source_checkpoint, source_weights, timm_model
from testing_utils import small_file_system
from timm.models import save_for_hf
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
)

import hf_twins
from hf_twins import TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsImageProcessor


SCRIPT = Path(convert_twins_to_hf.__file__)


@pytest.fixture
def source(tmp_path) -> Path:
    return save_source(tmp_path)


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "folder" / "converted"


def assert_nothing_at(output: Path) -> None:
    assert not output.exists()
    assert not output.parent.exists() or not list(output.parent.iterdir())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_converted_folder_is_a_repository(source, output, capsys):
    run(source, "--output", output)
    assert sorted(file.name for file in output.iterdir()) == [
        "README.md",
        "config.json",
        "conversion.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    direct = TwinsForImageClassification.from_pretrained(source)
    model = TwinsForImageClassification.from_pretrained(output)
    assert model.config.to_diff_dict() == direct.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    assert all(torch.equal(weight, direct.state_dict()[name]) for name, weight in model.state_dict().items())
    assert AutoImageProcessor.from_pretrained(output).to_dict() == TwinsImageProcessor().to_dict()
    report = json.loads((output / "conversion.json").read_text())
    assert report["made_of"]["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert max(report["relative_differences"].values()) <= 1e-5
    printed = capsys.readouterr().out
    assert "format    authors' classification\n" in printed
    assert f"written   {output}\n" in printed


@pytest.mark.slow
@pytest.mark.parametrize("source_format", ["official", "official-semantic-fpn", "mmseg-upernet"])
def test_code_of_the_card_runs_without_extras(source_format, tmp_path, output):
    weights = source_weights(source_format, TINY["svt"], num_classes=150)
    torch.save(source_checkpoint(source_format, weights), tmp_path / "source.pth")
    run(tmp_path / "source.pth", "--output_dir", output)
    assert run_card(output)


@pytest.mark.parametrize("source_format", [name for name in FORMATS if name != "timm"])
def test_every_format_becomes_a_repository_that_auto_classes_load(source_format, tmp_path, output):
    weights = source_weights(source_format, TINY["svt"], num_classes=150)
    torch.save(source_checkpoint(source_format, weights), tmp_path / "source.pth")
    run(tmp_path / "source.pth", "--output", output)
    architecture = AutoConfig.from_pretrained(output).architectures[0]
    if source_format.endswith(("upernet", "semantic-fpn")):
        model = AutoModelForSemanticSegmentation.from_pretrained(output)
        assert model.config.id2label[149] == "flag"
        processor = AutoImageProcessor.from_pretrained(output)
        # An image of 300 x 600 pixels, whose shorter side is scaled to 512.
        inputs = processor(torch.zeros(3, 300, 600, dtype=torch.uint8), return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 512, 1024)
        assert processor.do_reduce_labels
        former = SegformerImageProcessor(size={"shortest_edge": 512, "longest_edge": 2048})
        photograph = torch.randint(256, (3, 301, 437), dtype=torch.uint8)
        for images in (photograph, photograph[:, :, :60]):
            actual, expected = (each(images, return_tensors="pt").pixel_values for each in (processor, former))
            assert torch.equal(actual, expected)
        with torch.no_grad():
            outputs = model(inputs["pixel_values"][:, :, :64, :64])
        assert processor.post_process_semantic_segmentation(outputs, [(300, 600)])[0].shape == (300, 600)
    else:
        model = vars(hf_twins)[architecture].from_pretrained(output)
    assert type(model).__name__ == architecture
    card = ModelCard.load(output / "README.md")
    # Whoever trained these weights decides on their license.
    assert card.data.license is None
    assert card.data.library_name == "transformers"


def test_timm_folder_converts_with_labels_and_preprocessing(tmp_path, output, capsys):
    model = timm_model(TINY["svt"], 3).eval()
    arguments = {
        name: getattr(TINY["svt"], field)
        for name, field in {"embed_dims": "hidden_sizes", "depths": "depths", "mlp_ratios": "mlp_ratios"}.items()
    }
    arguments["num_heads"] = [size // 32 for size in TINY["svt"].hidden_sizes]
    own = {"label_names": ["a", "b", "c"], "pretrained_cfg": {"license": "mit", "test_crop_pct": 1.0}}
    save_for_hf(model, str(tmp_path / "timm"), own, arguments, safe_serialization=True)
    run(tmp_path / "timm", "--output", output)
    printed = capsys.readouterr().out
    assert "labels    3, a, b, c\n" in printed
    assert "left out  pretrained_cfg.tag, pretrained_cfg.test_crop_pct\n" in printed
    assert ModelCard.load(output / "README.md").data.license == "mit"
    converted = TwinsForImageClassification.from_pretrained(output)
    assert converted.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert TwinsImageProcessor.from_pretrained(output).size.shortest_edge == 248
    image = noise(1, 3, 97, 130)
    with torch.no_grad():
        torch.testing.assert_close(converted(image).logits, model(image), rtol=0, atol=1e-5)


def test_dry_run_writes_nothing(source, output, capsys):
    run(source, "--output", output, "--dry-run")
    assert_nothing_at(output)
    printed = capsys.readouterr().out
    assert "verified  stage1" in printed
    assert "dry run: nothing written" in printed


def test_dtype_and_shard_size(source, output):
    run(source, "--output", output, "--dtype", "bfloat16", "--shard-size", "200KB")
    assert (output / "model.safetensors.index.json").is_file()
    model = TwinsForImageClassification.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    expected = TwinsForImageClassification.from_pretrained(source).to(torch.bfloat16).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def test_half_precision_is_kept_in_conversion(tmp_path, output):
    weights = {name: weight.half() for name, weight in source_weights("official", TINY["pcpvt"]).items()}
    torch.save(weights, tmp_path / "source.pth")
    run(tmp_path / "source.pth", "--output", output)
    assert TwinsForImageClassification.from_pretrained(output).dtype == torch.float16


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module.{name}": weight for name, weight in weights.items()},
        lambda weights: {"state_dict": {f"_orig_mod.module.{name}": weight for name, weight in weights.items()}},
        lambda weights: {
            "model": weights,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            "lr_scheduler": {"last_epoch": 3},
            "epoch": 3,
            "args": argparse.Namespace(lr=0.1, model="alt_gvt_small"),
        },
    ],
    ids=["data parallel", "compiled", "training script"],
)
def test_wrapped_checkpoint_converts(wrap, tmp_path, source, output):
    weights = torch.load(source, weights_only=True)["model"]
    torch.save(wrap(weights), tmp_path / "wrapped.pth")
    run(tmp_path / "wrapped.pth", "--output", output)
    model = TwinsForImageClassification.from_pretrained(output)
    assert torch.equal(model.classifier.weight, weights["head.weight"])


def test_averaged_weights_are_converted_if_requested(tmp_path, source, output):
    weights = torch.load(source, weights_only=True)["model"]
    averaged = {f"module.{name}": weight / 2 for name, weight in weights.items()}
    torch.save({"model": weights, "model_ema": averaged, "epoch": 3}, tmp_path / "both.pth")
    run(tmp_path / "both.pth", "--output", output)
    assert torch.equal(TwinsForImageClassification.from_pretrained(output).classifier.weight, weights["head.weight"])
    run(tmp_path / "both.pth", "--output", tmp_path / "averaged", "--averaged")
    model = TwinsForImageClassification.from_pretrained(tmp_path / "averaged")
    assert torch.equal(model.classifier.weight, weights["head.weight"] / 2)
    assert "holds no averaged weights" in fails(source, "--output", tmp_path / "third", "--averaged")


def test_average_of_openmmlab_is_in_place_of_the_model(tmp_path, output):
    average = source_weights("mmseg-semantic-fpn", TINY["svt"])
    last_step = {name: weight * 2 if weight.is_floating_point() else weight for name, weight in average.items()}
    mmengine = {"module." + name: weight for name, weight in last_step.items()} | {"steps": torch.tensor(100)}
    torch.save({"meta": {}, "state_dict": average, "ema_state_dict": mmengine}, tmp_path / "mmengine.pth")
    mmcv = {f"ema_{name.replace('.', '_')}": weight for name, weight in last_step.items()}
    torch.save({"meta": {}, "state_dict": average | mmcv}, tmp_path / "mmcv.pth")
    for place, (name, options) in enumerate(itertools.product(("mmengine", "mmcv"), ([], ["--averaged"]))):
        run(tmp_path / f"{name}.pth", "--output", output / str(place), *options)
        model = TwinsForSemanticSegmentation.from_pretrained(output / str(place))
        assert torch.equal(model.decode_head.classifier.weight, average["decode_head.conv_seg.weight"])


@pytest.mark.parametrize("head", ["bbox_head", "rpn_head", "roi_head.bbox_head"])
def test_detector_of_mmdetection_is_refused(head, tmp_path, output):
    weights = source_weights("mmseg-semantic-fpn", TINY["svt"])
    weights = {name: weight for name, weight in weights.items() if not name.startswith("decode_head.")}
    torch.save({"state_dict": weights | {f"{head}.fc_cls.weight": torch.ones(4, 4)}}, tmp_path / "detector.pth")
    assert "a detector of mmdetection, which cannot be converted" in fails(
        tmp_path / "detector.pth", "--output", output
    )


class RunsCode:
    """An object that writes a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def save_changed(change) -> object:
    def save(file: Path) -> None:
        weights = torch.load(file, weights_only=True)["model"]
        change(weights)
        torch.save(weights, file)

    return save


FAULTS = {
    "code": (
        lambda file: torch.save({"model": RunsCode(file.with_name("code-ran"))}, file),
        "was not loaded: it holds posix.system beside weights",
    ),
    "truncated": (truncate, "is incomplete, as after an interrupted download: fetch it again"),
    "empty": (lambda file: file.write_bytes(b""), "is empty: fetch it again"),
    "text": (lambda file: file.write_text("<html>Not Found</html>"), "is a web page instead of the file"),
    "no weights": (lambda file: torch.save({"epoch": 3}, file), r"in dense tensors, got epoch \(int\)"),
    "nothing": (lambda file: torch.save({}, file), "holds no weights"),
    "a list": (lambda file: torch.save([torch.ones(3)], file), "must hold a dictionary of weights, got list"),
    "NaN": (
        save_changed(lambda weights: weights["norm.weight"].fill_(float("nan"))),
        "NaN or infinity in norm.weight",
    ),
    "one missing": (
        save_changed(lambda weights: weights.pop("norm.bias")),
        "lacks the weights of twins.layernorm.bias",
    ),
    "one unknown": (
        save_changed(lambda weights: weights.update(x=torch.ones(3))),
        "no Twins model of its format has: x",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_file_leaves_no_output(fault, source, output):
    damage, message = FAULTS[fault]
    damage(source)
    error = fails(source, "--output", output)
    assert re.search(message, error), error
    assert "\n" not in error
    assert_nothing_at(output)
    assert not source.with_name("code-ran").exists()


def test_hash_is_checked(source, output):
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert f"must have the SHA-256 {'0' * 64}, got {digest}" in fails(source, "--output", output, "--sha256", "0" * 64)
    assert_nothing_at(output)
    run(source, "--output", output, "--sha256", digest[:8].upper())
    assert output.is_dir()


def test_file_named_like_a_published_one_must_have_its_hash(source, tmp_path, output):
    name = "twins-svt-small_3rdparty_8xb128_in1k_20220126-8fe5205b.pth"
    source.rename(tmp_path / name)
    assert "must have the SHA-256 8fe5205b, got" in fails(tmp_path / name, "--output", output)


def test_variant_option_only_checks_the_architecture(source, output):
    assert "must be a twins-svt-base, but is no published variant" in fails(
        source, "--output", output, "--variant", "twins-svt-base"
    )
    assert_nothing_at(output)


def test_existing_output_is_not_modified(source, output):
    output.mkdir(parents=True)
    (output / "precious.txt").write_text("mine")
    assert "exists: remove it" in fails(source, "--output", output)
    assert [file.name for file in output.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "source_name", ["no/such/thing", "nothing-here", "twins_svt_small", "ftp://somewhere/file.pth"]
)
def test_unknown_source_is_named(source_name, output):
    error = fails(source_name, "--output", output)
    assert (
        "must be a file, a folder, a URL, a repository such as timm/twins_svt_small.in1k, or one of twins-pcpvt"
        in error
    )


def test_folder_without_a_checkpoint_is_named(tmp_path, output, source):
    run(source, "--output", output)
    for folder in (tmp_path / "folder", output):
        assert "must have timm's config.json and weights, or be a folder with one weights file" in fails(
            folder, "--output", tmp_path / "other"
        )


def test_failed_verification_writes_nothing(source, output, monkeypatch):
    monkeypatch.setattr("verification.TOLERANCE", 1e-12)
    assert "outputs differ from those of authors' classification" in fails(source, "--output", output)
    assert_nothing_at(output)


def test_full_disk_leaves_no_files(source, output, tmp_path):
    """The file system has less space than the weights need."""
    with small_file_system(tmp_path / "small"):
        error = fails(source, "--output", tmp_path / "small" / "converted")
        assert "cannot be written" in error
        assert "No space left on device" in error
        assert not list((tmp_path / "small").iterdir())


def test_failed_write_leaves_no_files(source, output, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TwinsImageProcessor, "save_pretrained", full)
    assert "No space left on device" in fails(source, "--output", output)
    assert_nothing_at(output)


def test_weights_that_read_back_differently_are_detected(source, output, monkeypatch):
    save = TwinsForImageClassification.save_pretrained

    def save_something_else(self, folder, **kwargs):
        with torch.no_grad():
            changed = {name: weight.clone() for name, weight in self.state_dict().items()}
            changed["classifier.bias"] += 1
        save(self, folder, state_dict=changed, **kwargs)

    monkeypatch.setattr(TwinsForImageClassification, "save_pretrained", save_something_else)
    assert "differs from what was written, in classifier.bias" in fails(source, "--output", output)
    assert_nothing_at(output)


@pytest.mark.slow
def test_killed_process_leaves_no_output_and_the_next_one_succeeds(source, output):
    program = (
        "import sys, time, convert_twins_to_hf, transformers\n"
        "convert_twins_to_hf.check_written = lambda *args: (print('writing', flush=True), time.sleep(60))\n"
        "convert_twins_to_hf.main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(source), "--output", str(output)],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    while "writing" not in (line := process.stdout.readline()):
        assert line, "the process ended before it wrote"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not output.exists()
    (left,) = output.parent.iterdir()
    assert left.name.startswith(".converted.partial-")
    run(source, "--output", output)
    assert [path.name for path in output.parent.iterdir()] == ["converted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "give either a SOURCE or --all"),
        (["a.pth", "--all", "--output", "x"], "give either a SOURCE or --all"),
        (["a.pth"], "--output_dir is needed"),
        (["a.pth", "--output", "x", "--push-to-hub"], "--push_to_hub and --repo_id go together"),
        (["a.pth", "--output", "x", "--org", "me"], "--org is for --all"),
        (["--all", "--output", "x", "--sha256", "00"], "--all cannot be used with"),
        (["a.pth", "--dry-run", "--push-to-hub", "--repo-id", "a/b"], "--dry_run publishes nothing"),
    ],
    ids=["no source", "two sources", "no output", "no name", "org for one", "hash for all", "dry push"],
)
def test_contradicting_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_remote_code_is_written_except_for_upernet(source, output, tmp_path):
    run(source, "--output", output, "--with-remote-code")
    assert (output / "modeling_twins.py").is_file()
    assert "AutoModelForImageClassification" in json.loads((output / "config.json").read_text())["auto_map"]
    pinned = ', trust_remote_code=True, revision="COMMIT")\n'
    assert pinned in (output / "README.md").read_text()
    torch.save(source_weights("mmseg-semantic-fpn", TINY["svt"]), tmp_path / "fpn.pth")
    run(tmp_path / "fpn.pth", "--output", tmp_path / "fpn", "--with-remote-code")
    assert "AutoModelForSemanticSegmentation" in json.loads((tmp_path / "fpn" / "config.json").read_text())["auto_map"]
    assert pinned in (tmp_path / "fpn" / "README.md").read_text()
    assert json.loads((tmp_path / "fpn" / "preprocessor_config.json").read_text())["auto_map"] == {
        "AutoImageProcessor": {
            "torchvision": "image_processing_twins.TwinsImageProcessor",
            "pil": "image_processing_pil_twins.TwinsImageProcessorPil",
        }
    }
    weights = source_weights("mmseg-upernet", TINY["svt"])
    torch.save(weights, tmp_path / "upernet.pth")
    error = fails(tmp_path / "upernet.pth", "--output", tmp_path / "upernet", "--with-remote-code")
    assert "--with_remote_code does not work for UperNet" in error
    assert not (tmp_path / "upernet").exists()


@pytest.mark.parametrize("names", ["ADE20K's", "as mmsegmentation writes them", "of another dataset"])
def test_labels_are_reduced_only_for_ade20k(names):
    classes = ade20k_class_names()
    if names == "as mmsegmentation writes them":
        classes[classes.index("bed")] = "bed "
    elif names == "of another dataset":
        classes = [f"field {number}" for number in range(150)]
    weights = source_weights("mmseg-semantic-fpn", TINY["svt"], num_classes=150)
    conversion = convert_checkpoint(weights, {"CLASSES": classes})
    processor = image_processor(conversion)
    assert processor.do_reduce_labels == (names != "of another dataset")


def test_assumed_label_names_are_reported(tmp_path, capsys):
    torch.save(source_weights("official", TINY["svt"], num_classes=1000), tmp_path / "source.pth")
    run(tmp_path / "source.pth", "--dry_run")
    assert "assumed from their number: the source has no names\n" in capsys.readouterr().out
