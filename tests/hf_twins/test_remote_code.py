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
"""Models published with their code, loaded by processes that do not have this package."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from loopback_hub import serve_models
from testing_utils import randomize, save_timm, timm_model, tiny_config
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, DetrConfig, UperNetConfig

import hf_twins
from hf_twins import TwinsForImageClassification, TwinsImageProcessor, save_remote_code
from hf_twins.detection import TwinsDetectorConfig


@pytest.fixture
def published(tmp_path) -> Path:
    folder = tmp_path / "published"
    randomize(TwinsForImageClassification(tiny_config())).save_pretrained(folder)
    TwinsImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    save_remote_code(folder)
    return folder


def run_without_package(code: str, environment: dict[str, str]) -> str:
    """Run `code` in a new process in which `import hf_twins` fails, and return what it prints."""
    program = "import sys; sys.modules['hf_twins'] = None\n" + textwrap.dedent(code)
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


LOAD_EVERYTHING = """
    import os
    import torch
    from transformers import (
        AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
        AutoModelForSemanticSegmentation, pipeline
    )

    for source, target, result in {cases!r}:
        trusted = {{"trust_remote_code": True}}
        model = AutoModelForImageClassification.from_pretrained(source, **trusted)
        processor = AutoImageProcessor.from_pretrained(source, **trusted)
        backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(source, **trusted), **trusted)
        for loaded in (model, processor, backbone, AutoModel.from_pretrained(source, **trusted),
                       AutoModelForSemanticSegmentation.from_pretrained(source, **trusted),
                       AutoImageProcessor.from_pretrained(source, backend="pil", **trusted),
                       pipeline("image-classification", source, **trusted).model):
            assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
            print(type(loaded).__name__)
        torch.manual_seed(1)
        with torch.no_grad():
            torch.save(model(torch.randn(2, 3, 29, 41)).logits, result)

        # Saved again and again, it is a folder like the one it came from, whichever backend it was used with.
        pixels = torch.randint(256, (3, 41, 53))
        for backend in ("torchvision", "pil"):
            last = source
            for folder in (os.path.join(target, backend), os.path.join(target, backend + "-again")):
                AutoModelForImageClassification.from_pretrained(last, **trusted).save_pretrained(folder)
                AutoImageProcessor.from_pretrained(last, backend=backend, **trusted).save_pretrained(folder)
                last = folder
            for other in ("torchvision", "pil"):
                reloaded = AutoImageProcessor.from_pretrained(last, backend=other, **trusted)
                assert reloaded.backend == other, reloaded
                original = AutoImageProcessor.from_pretrained(source, backend=other, **trusted)
                assert torch.equal(*(each(pixels, return_tensors="pt").pixel_values for each in (reloaded, original)))
            again = AutoModelForImageClassification.from_pretrained(last, **trusted)
        torch.manual_seed(1)
        with torch.no_grad():
            assert torch.equal(again(torch.randn(2, 3, 29, 41)).logits, torch.load(result, weights_only=True))

        try:
            AutoModel.from_pretrained(source, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError("code that was not trusted was run")
"""


@pytest.mark.slow
def test_published_model_loads_without_the_package(published, tmp_path):
    """The model is loaded from a folder and from the Hub."""
    cases = [
        (source, str(tmp_path / name), str(tmp_path / f"{name}.pt"))
        for name, source in (("folder", str(published)), ("hub", "somebody/twins-tiny"))
    ]
    with serve_models({"somebody/twins-tiny": published}) as hub:
        printed = run_without_package(LOAD_EVERYTHING.format(cases=cases), hub.environment(tmp_path / "home"))
    assert printed.split() == 2 * [
        "TwinsForImageClassification",
        "TwinsImageProcessor",
        "TwinsBackbone",
        "TwinsModel",
        "TwinsForSemanticSegmentation",
        "TwinsImageProcessorPil",
        "TwinsForImageClassification",
    ]
    torch.manual_seed(1)
    with torch.no_grad():
        expected = TwinsForImageClassification.from_pretrained(published)(torch.randn(2, 3, 29, 41)).logits
    for _, target, result in cases:
        assert torch.equal(torch.load(result, weights_only=True), expected)
        assert len(list(Path(target).iterdir())) == 4
        for folder in Path(target).iterdir():
            assert {file.name for file in folder.iterdir()} == {file.name for file in published.iterdir()}
            for name in ("config.json", "preprocessor_config.json"):
                saved, original = (json.loads((each / name).read_text()) for each in (folder, published))
                assert saved["auto_map"] == original["auto_map"]


REFUSE_FOREIGN_SOURCES = """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained({published!r}, trust_remote_code=True)
    processors = [
        AutoImageProcessor.from_pretrained({published!r}, backend=backend, trust_remote_code=True)
        for backend in ("torchvision", "pil")
    ]
    for source in {sources!r}:
        for loaded in (type(model), type(model.config), *map(type, processors)):
            try:
                loaded.from_pretrained(source)
            except ValueError as error:
                assert source in str(error), error
                assert "`pip install hf_twins`" in str(error), error
            else:
                raise AssertionError((loaded, source))
    try:
        type(model).from_pretrained({sources!r}[0], config=model.config)
    except ValueError as error:
        assert "`pip install hf_twins`" in str(error), error
    else:
        raise AssertionError("weights that nothing reads were left out")
    print("refused")
"""


@pytest.mark.slow
def test_code_without_the_package_refuses_checkpoints_of_other_libraries(published, tmp_path):
    reference = timm_model()
    sources = [tmp_path / "alt_gvt.pth", tmp_path / "alt_gvt.pth.tar", tmp_path / "timm" / "model.safetensors"]
    timm_folder = save_timm(reference, tmp_path / "timm")
    authors_folder = tmp_path / "authors"
    authors_folder.mkdir()
    for file in (*sources[:2], authors_folder / "alt_gvt.pt"):
        torch.save(reference.state_dict(), file)
    code = REFUSE_FOREIGN_SOURCES.format(
        published=str(published), sources=[str(each) for each in (*sources, timm_folder, authors_folder)]
    )
    assert run_without_package(code, {"HF_HOME": str(tmp_path / "home")}).split() == ["refused"]


def test_saved_model_with_code_has_four_code_files(published):
    assert {file.name for file in published.glob("*.py")} == {
        "configuration_twins.py",
        "image_processing_pil_twins.py",
        "image_processing_twins.py",
        "modeling_twins.py",
    }


def test_processor_of_another_class_keeps_its_own_auto_map(tmp_path, monkeypatch):
    class OwnImageProcessor(TwinsImageProcessor):
        pass

    # transformers does this with classes of remote code.
    monkeypatch.setattr(OwnImageProcessor, "_auto_class", "AutoImageProcessor")
    auto_map = {"AutoImageProcessor": "own_file.OwnImageProcessor"}
    assert OwnImageProcessor(auto_map=auto_map).to_dict()["auto_map"] == auto_map
    assert "auto_map" not in OwnImageProcessor().to_dict()


def test_package_uses_its_own_code_and_saves_no_auto_map_without_the_code(published, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(published)
    processor = AutoImageProcessor.from_pretrained(published)
    assert type(model) is TwinsForImageClassification
    assert type(processor) is TwinsImageProcessor
    assert AutoConfig.from_pretrained(published).auto_map
    target = tmp_path / "saved-again"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    assert not list(target.glob("*.py"))
    for file in target.glob("*.json"):
        assert "auto_map" not in json.loads(file.read_text()), file


def test_code_files_need_no_package_and_no_extra():
    # transformers refuses remote code whose imports are not installed. Every user has these packages: transformers
    # needs Pillow for every image processor.
    for file in Path(hf_twins.__file__).parent.glob("*_twins.py"):
        for line in file.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                module = line.split()[1]
                root = module.split(".")[0]
                assert root in {"", "torch", "transformers", "huggingface_hub", *sys.stdlib_module_names} or (
                    root in ("numpy", "PIL") and file.stem.startswith("image_processing_")
                ), line
                # transformers only follows relative imports that name a file, unlike "from . import x".
                assert not module.startswith(".") or (module.count(".") == 1 and len(module) > 1), line


def test_save_remote_code_keeps_the_rest_of_the_files(published):
    config = json.loads((published / "config.json").read_text())
    auto_map = config.pop("auto_map")
    assert config == json.loads(TwinsForImageClassification.from_pretrained(published).config.to_json_string()) | {
        "architectures": ["TwinsForImageClassification"]
    }
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert f"class {name}(" in (published / f"{module}.py").read_text()
    assert not list(published.glob("*.tmp"))


def test_save_remote_code_needs_a_saved_twins_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: save the model there first"):
        save_remote_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(ValueError, match=r"must be that of a Twins model .* got 'swin'"):
        save_remote_code(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("config_class", [DetrConfig, UperNetConfig, TwinsDetectorConfig])
def test_save_remote_code_says_that_models_with_a_twins_backbone_need_the_package(config_class, tmp_path):
    config = config_class(backbone_config=tiny_config(out_features=["stage2"]))
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"Twins backbone \(model_type '{config.model_type}'\).* after `import hf_twins`"
    ):
        save_remote_code(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_labels_stay_in_the_order_of_their_ids(tmp_path):
    names = {index: f"name {index}" for index in range(12)}
    TwinsForImageClassification(tiny_config(num_labels=12, id2label=names)).save_pretrained(tmp_path)
    save_remote_code(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["id2label"]) == [str(index) for index in range(12)]
