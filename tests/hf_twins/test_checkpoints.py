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
"""Loading of timm's and the authors' checkpoints; the reference is timm, which uses the authors' weight names."""

import argparse
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from loopback_hub import serve_models
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from testing_utils import (
    FAMILIES,
    TIMM_ARCHITECTURES,
    TIMM_SHARED,
    randomize,
    save_timm,
    timm_model,
    tiny_config,
    uses_adapters_of_transformers,
)
from timm.data import create_transform, resolve_data_config
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
    TwinsModel,
)
from hf_twins.checkpoints import (
    ORIGINAL_NAMES,
    NameTable,
    convert_timm_config,
    convert_timm_preprocessing,
    original_config,
    read_weights,
)
from hf_twins.configuration_twins import WEIGHTS_SUFFIXES
from hf_twins.detection import TwinsDetectorConfig


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_authors(content: Any, file: Path, zipped: bool = True) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


def assert_same_logits(model: nn.Module, reference: nn.Module, sizes=((224, 224), (97, 131)), num_channels=3) -> None:
    with torch.no_grad():
        for height, width in sizes:
            pixel_values = torch.randn(1, num_channels, height, width)
            expected = reference(pixel_values)
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    torch.manual_seed(0)
    return timm_model()


@pytest.fixture(scope="module")
def timm_folder(reference, tmp_path_factory) -> Path:
    """Tests must not write to this folder."""
    return save_timm(reference, tmp_path_factory.mktemp("timm"))


# timm's folders and repositories


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("safe_serialization", [True, False], ids=["safetensors", "bin"])
def test_timm_folder_computes_the_same(tmp_path, family, safe_serialization):
    reference = timm_model(family)
    save_timm(reference, tmp_path, safe_serialization)
    model, info = TwinsForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not model.training
    assert model.name_or_path == model.config.name_or_path == str(tmp_path)
    assert_same_logits(model, reference)


@pytest.mark.parametrize(
    "name",
    [
        "twins_pcpvt_small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "twins_pcpvt_base",
                "twins_pcpvt_large",
                "twins_svt_small",
                "twins_svt_base",
                "twins_svt_large",
            )
        ),
    ],
)
def test_timm_folder_of_published_variant_computes_the_same(tmp_path, name):
    reference = randomize(timm.create_model(name))
    save_timm(reference, tmp_path)
    model = TwinsForImageClassification.from_pretrained(tmp_path)
    assert_same_logits(model, reference)
    assert len(set(model.config.id2label.values())) > 990
    assert model.config.id2label[1] == "goldfish, Carassius auratus"


@pytest.mark.parametrize(
    ("model_class", "heads"),
    [
        (TwinsModel, ()),
        (TwinsBackbone, ()),
        (TwinsForSemanticSegmentation, ("neck.", "decode_head.")),
    ],
)
def test_timm_folder_is_a_checkpoint_of_the_other_models(timm_folder, reference, model_class, heads):
    model, info = model_class.from_pretrained(timm_folder, output_loading_info=True)
    assert all(key.startswith(heads) for key in info["missing_keys"])
    assert bool(info["missing_keys"]) == bool(heads)
    # As everywhere in transformers, a model without a head reports the classifier's weights as unexpected.
    assert info["unexpected_keys"] <= {"classifier.weight", "classifier.bias"}
    pixel_values = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        *_, expected = reference.forward_intermediates(pixel_values, intermediates_only=True)
        if model_class is TwinsModel:
            pooled = reference.forward_head(reference.forward_features(pixel_values), pre_logits=True)
            torch.testing.assert_close(model(pixel_values).pooler_output, pooled, rtol=0, atol=1e-5)
        elif model_class is TwinsBackbone:
            (feature_map,) = model(pixel_values).feature_maps
            torch.testing.assert_close(feature_map, expected, rtol=0, atol=1e-5)
        else:
            hidden_state = model(pixel_values, output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(hidden_state, expected, rtol=0, atol=1e-5)


def test_timm_config_is_converted(timm_folder):
    config = TwinsConfig.from_pretrained(timm_folder)
    expected = TwinsConfig(
        hidden_sizes=[32, 64, 96],
        num_attention_heads=[1, 2, 3],
        depths=[2, 3, 2],
        mlp_ratios=[2, 2, 2],
        sr_ratios=[4, 2, 1],
        window_size=7,
        window_padding="zeros",
        num_labels=5,
    )
    assert config.to_dict() == expected.to_dict()


@pytest.mark.parametrize("num_channels", [1, 5])
def test_timm_folder_with_other_channels_computes_the_same(tmp_path, num_channels):
    reference = timm_model(in_chans=num_channels)
    save_timm(reference, tmp_path)
    model = TwinsForImageClassification.from_pretrained(tmp_path)
    assert model.config.num_channels == num_channels
    assert_same_logits(model, reference, [(97, 131)], num_channels)


def test_timm_folder_without_a_head_gives_pooled_features(tmp_path):
    reference = timm_model(num_classes=0)
    save_timm(reference, tmp_path)
    model, info = TwinsForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.num_labels == 0
    assert_same_logits(model, reference, [(97, 131)])
    _, info = TwinsForImageClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}


def test_timm_windows_of_one_token_are_global_attention(tmp_path):
    # In timm, the weights of such blocks have the names of global attention.
    reference = timm_model(wss=[1, 1, 1])
    save_timm(reference, tmp_path)
    model, info = TwinsForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert_same_logits(model, reference, [(97, 131)])


@pytest.mark.parametrize(
    ("model_config", "expected"),
    [
        ({}, [f"LABEL_{index}" for index in range(5)]),
        ({"label_names": ["cat", "dog", "cow", "hen", "pig"]}, ["cat", "dog", "cow", "hen", "pig"]),
        # Keys in JSON are strings, and may be unordered.
        (
            {"label_names": {"4": "pig", "3": "hen", "2": "cow", "1": "dog", "0": "cat"}},
            ["cat", "dog", "cow", "hen", "pig"],
        ),
        (
            {"label_names": ["n1", "n2", "n3", "n4", "n5"], "label_descriptions": {"n1": "cat", "n3": "cow"}},
            ["cat", "n2", "cow", "n4", "n5"],
        ),
    ],
    ids=["none", "list", "dict", "descriptions"],
)
def test_timm_labels_are_converted(tmp_path, reference, model_config, expected):
    save_timm(reference, tmp_path, **model_config)
    for config in (
        TwinsConfig.from_pretrained(tmp_path),
        TwinsForImageClassification.from_pretrained(tmp_path).config,
    ):
        assert config.id2label == dict(enumerate(expected))
        assert config.label2id == {name: index for index, name in enumerate(expected)}


def test_thousand_labels_have_imagenet_names():
    def labels() -> dict[int, str]:
        return convert_timm_config({"architecture": "twins_svt_small"}).get("id2label", {})

    # torchvision has the same classes in the same order.
    torchvision_names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(labels()) == 1000
    for index in (0, 147, 282, 555, 817, 999):
        assert torchvision_names[index] in labels()[index]


def test_head_for_other_labels_is_new_and_all_other_weights_are_those_of_timm(timm_folder, reference):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        TwinsForImageClassification.from_pretrained(timm_folder, num_labels=10)
    model, info = TwinsForImageClassification.from_pretrained(
        timm_folder, num_labels=10, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.shape == (10, 96)
    assert len(model.config.id2label) == len(model.config.label2id) == 10
    assert torch.equal(model.twins.layernorm.weight, reference.norm.weight)


def test_arguments_of_from_pretrained_act_on_a_timm_folder(timm_folder, reference):
    def load(**kwargs: Any) -> TwinsForImageClassification:
        return TwinsForImageClassification.from_pretrained(timm_folder, **kwargs)

    assert {parameter.dtype for parameter in load(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    eager = load(attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    assert_same_logits(eager, reference, [(97, 131)])
    assert load(window_padding="masked", drop_path_rate=0.3).config.drop_path_rate == 0.3
    assert_same_logits(load(device_map="cpu"), reference, [(97, 131)])
    config = TwinsConfig.from_pretrained(
        timm_folder, window_padding="masked", id2label={0: "a"} | dict.fromkeys([1, 2, 3, 4], "b")
    )
    given = load(config=config)
    assert given.config.window_padding == "masked"
    assert given.config.id2label[0] == "a"
    assert type(load(config=timm_folder)) is TwinsForImageClassification
    model = TwinsModel.from_pretrained(timm_folder, add_pooling_layer=False)
    assert model.layernorm is None
    with pytest.raises(ValueError, match="`state_dict` cannot be passed together with a model name"):
        load(state_dict={})


def test_half_precision_weights_are_unchanged(tmp_path):
    save_timm(timm_model().half(), tmp_path)
    assert TwinsForImageClassification.from_pretrained(tmp_path).dtype == torch.float16
    assert TwinsForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("safe_serialization", [True, False], ids=["safetensors", "bin"])
def test_training_does_not_write_to_the_file(tmp_path, reference, safe_serialization):
    # Weights are views of the memory-mapped file.
    save_timm(reference, tmp_path, safe_serialization)
    (file,) = tmp_path.glob("*.safetensors" if safe_serialization else "*.bin")
    before = file.read_bytes()
    model = TwinsForImageClassification.from_pretrained(tmp_path)
    model(torch.randn(1, 3, 32, 32)).logits.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert file.read_bytes() == before


# Preprocessing


PROCESSOR_CLASSES = [TwinsImageProcessor, TwinsImageProcessorPil]


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, {"shortest_edge": 248}),
        ({"crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}, {"shortest_edge": 224}),
        ({"input_size": [3, 160, 160]}, {"shortest_edge": 177}),
        ({"crop_mode": "squash"}, {"height": 248, "width": 248}),
    ],
    ids=["published", "inception", "smaller", "squash"],
)
@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_timm_preprocessing_is_converted(tmp_path, reference, processor_class, changes, size):
    save_timm(reference, tmp_path)
    edit_config(tmp_path, lambda config: config["pretrained_cfg"].update(changes))
    pretrained_cfg = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config(pretrained_cfg=pretrained_cfg))
    processor = processor_class.from_pretrained(tmp_path)
    assert {side: length for side, length in dict(processor.size).items() if length is not None} == size
    # The longer side after resizing is even. If it is odd, the margin of the center crop is rounded differently.
    photograph = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 640, 426))
    expected = transform(photograph)
    pixel_values = processor(photograph, return_tensors="pt").pixel_values[0]
    assert pixel_values.shape == expected.shape
    assert (pixel_values - expected).abs().max() < 0.05


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_of_an_hf_twins_folder_is_not_read_from_config_json(tmp_path, timm_folder, processor_class):
    TwinsForImageClassification.from_pretrained(timm_folder).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        processor_class.from_pretrained(tmp_path)
    processor_class.from_pretrained(timm_folder).save_pretrained(tmp_path)
    assert processor_class.from_pretrained(tmp_path).size == {"shortest_edge": 248}


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_for_the_authors_file_is_that_of_their_evaluation(tmp_path, processor_class):
    file = save_authors(timm_model().state_dict(), tmp_path / "alt_gvt.pth")
    for source in (file, tmp_path):
        assert processor_class.from_pretrained(source).to_dict() == processor_class().to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "border"}, r"must crop squares from the center .* got crop_mode 'border' and input_size"),
        ({"input_size": [3, 224, 256]}, r"must crop squares from the center .* got crop_mode 'center' and input_size"),
        ({"interpolation": "random"}, r"must have one of Pillow's interpolations, got 'random'"),
    ],
    ids=["border", "rectangle", "interpolation"],
)
def test_unsupported_preprocessing_is_named(tmp_path, reference, changes, message):
    save_timm(reference, tmp_path)
    edit_config(tmp_path, lambda config: config["pretrained_cfg"].update(changes))
    with pytest.raises(ValueError, match=message):
        TwinsImageProcessor.from_pretrained(tmp_path)


# The Hub


def test_timm_repository_on_the_hub(tmp_path, reference):
    folder = save_timm(reference, tmp_path / "repository", "both")
    # If there is a safetensors file, the pickle is not even downloaded.
    (folder / "pytorch_model.bin").write_bytes(b"damaged")
    name = "timm/twins_svt_small.in1k"
    with serve_models({name: folder}) as hub, hub.in_process(tmp_path / "home"):
        model = TwinsForImageClassification.from_pretrained(name)
        assert TwinsConfig.from_pretrained(name).num_labels == 5
        for processor_class in PROCESSOR_CLASSES:
            assert processor_class.from_pretrained(name).size == {"shortest_edge": 248}
        assert not any("pytorch_model.bin" in path for _, path in hub.requests)
        with pytest.raises(OSError, match=r"timm/twins_svt_huge"):
            TwinsForImageClassification.from_pretrained("timm/twins_svt_huge")
    assert model.name_or_path == name
    assert_same_logits(model, reference, [(97, 131)])


def test_revision_and_subfolder_are_respected(tmp_path, reference):
    other = timm_model(num_classes=7)
    first, second = tmp_path / "first", tmp_path / "second"
    save_timm(reference, first)
    save_timm(other, first / "sub")
    save_timm(other, second)
    name = "timm/twins_svt_small.in1k"
    with serve_models({name: first, "timm/other": second}) as hub, hub.in_process(tmp_path / "home"):
        hub.repository(name).branches["v2"] = hub.repository("timm/other").branches["main"]
        for kwargs, expected in (({}, reference), ({"revision": "v2"}, other), ({"subfolder": "sub"}, other)):
            assert TwinsConfig.from_pretrained(name, **kwargs).num_labels == expected.num_classes
            assert_same_logits(TwinsForImageClassification.from_pretrained(name, **kwargs), expected, [(97, 131)])
    assert TwinsForImageClassification.from_pretrained(first, subfolder="sub").num_labels == 7
    save_authors(other.state_dict(), tmp_path / "third" / "sub" / "alt_gvt.pth")
    assert TwinsForImageClassification.from_pretrained(tmp_path / "third", subfolder="sub").num_labels == 7


# The authors' files


# Wrappers of training scripts around weights.
WRAPPERS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "bare": lambda weights: weights,
    "training": lambda weights: {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "args": argparse.Namespace(lr=0.1, output_dir="outputs", clip=None),
        "max_accuracy": np.float64(81.7),
        "epoch": 3,
    },
    "data-parallel": lambda weights: {"state_dict": {f"module.{name}": weight for name, weight in weights.items()}},
}


@pytest.mark.parametrize(
    ("family", "wrapper", "zipped"),
    [(family, wrapper, True) for family in FAMILIES for wrapper in WRAPPERS]
    + [("svt", "bare", False), ("pcpvt", "training", False)],
    ids=lambda value: {True: "zip", False: "legacy"}.get(value, value),
)
def test_authors_file_computes_the_same(tmp_path, family, wrapper, zipped):
    reference = timm_model(family)
    file = save_authors(WRAPPERS[wrapper](reference.state_dict()), tmp_path / "checkpoint.pth", zipped)
    for source in (file, tmp_path):
        model, info = TwinsForImageClassification.from_pretrained(source, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        assert_same_logits(model, reference, [(97, 131)])


@pytest.mark.parametrize("suffix", WEIGHTS_SUFFIXES)
@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsModel, TwinsBackbone])
def test_authors_file_is_read_with_any_suffix(tmp_path, reference, suffix, model_class):
    file = tmp_path / f"alt_gvt{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(reference.state_dict(), file)
    for source in (file, tmp_path):
        model, info = model_class.from_pretrained(source, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "error_msgs"))
        assert type(model.config) is TwinsConfig
        assert model.config.window_padding == "zeros"
        weight = model.get_submodule(
            f"{'twins.' if hasattr(model, 'twins') else ''}encoder.stages.0.layers.0.mlp.fc1"
        ).weight
        assert torch.equal(weight, reference.blocks[0][0].mlp.fc1.weight)
        assert TwinsImageProcessor.from_pretrained(source).size == {"shortest_edge": 256}


@pytest.mark.parametrize("load", [TwinsConfig.from_pretrained, TwinsForImageClassification.from_pretrained])
@pytest.mark.parametrize("kind", ["foreign", "lacking", "ours", "timm"])
def test_error_names_the_file_it_is_about(tmp_path, reference, our_folder, load, kind):
    weights, source = reference.state_dict(), tmp_path / "weights.pth"
    if kind == "timm":
        source = edit_config(save_timm(reference, tmp_path), lambda config: config.update(architecture="resnet50"))
        message = "must describe one of"
    elif kind == "ours":
        source = our_folder / "model.safetensors"
        message = "load the folder instead of the file"
    else:
        change = {"foreign": {"somebody.elses": torch.zeros(1)}, "lacking": {}}[kind]
        weights = {name: weight for name, weight in weights.items() if kind == "foreign" or "patch_embeds" not in name}
        torch.save(weights | change, source)
        message = "somebody.elses" if kind == "foreign" else "lacks a weight"
    with pytest.raises(ValueError, match=f"{re.escape(str(source))}.*{message}"):
        load(source)


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_is_inferred_from_the_authors_file(tmp_path, family):
    # Everything that can be inferred differs from the defaults.
    sizes = {"depths": [1, 2, 3], "mlp_ratios": [3, 2.5, 1], "sr_ratios": [2, 4, 1]} if family == "pcpvt" else {}
    reference = timm_model(family, in_chans=4, patch_size=8, num_classes=9, **sizes)
    file = save_authors(reference.state_dict(), tmp_path / "checkpoint.pth")
    config = TwinsConfig.from_pretrained(file)
    expected = TwinsConfig(
        num_channels=4,
        patch_size=8,
        hidden_sizes=TIMM_ARCHITECTURES[family]["embed_dims"],
        num_attention_heads=[1, 2, 3],
        window_size=7 if family == "svt" else None,
        window_padding="zeros",
        num_labels=9,
        **{name: value for name, value in (TIMM_SHARED | sizes).items() if name != "num_classes"},
    )
    assert config.to_dict() == expected.to_dict()


@pytest.mark.parametrize("name", ["twins_pcpvt_large", "twins_svt_large"])
def test_published_architecture_is_recognized(name):
    with torch.device("meta"):
        weights = timm.create_model(name).state_dict()
    config = TwinsConfig(**original_config(weights))
    variant = TwinsConfig.from_variant(name.replace("_", "-"), window_padding="zeros")
    assert config.id2label[1] == "goldfish, Carassius auratus"
    for field in ("hidden_sizes", "num_attention_heads", "depths", "mlp_ratios", "sr_ratios", "window_size"):
        assert getattr(config, field) == getattr(variant, field)


def test_averaged_weights_are_read_if_requested(tmp_path, reference):
    weights = reference.state_dict()
    averaged = {name: weight + 1 for name, weight in weights.items()}
    file = save_authors({"model": weights, "model_ema": averaged}, tmp_path / "checkpoint.pth")
    assert torch.equal(read_weights(file)["norm.weight"], weights["norm.weight"])
    assert torch.equal(read_weights(file, averaged=True)["norm.weight"], averaged["norm.weight"])
    model = TwinsForImageClassification.from_pretrained(file)
    assert torch.equal(model.twins.layernorm.weight, weights["norm.weight"])
    only = save_authors(weights, tmp_path / "only.pth")
    with pytest.raises(ValueError, match=r"only\.pth holds no averaged weights \(under model_ema"):
        read_weights(only, averaged=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_converting_names_and_back_is_lossless(family):
    weights = timm_model(family).state_dict()
    table = NameTable(ORIGINAL_NAMES)
    ours = table.to_hf(weights)
    back = table.to_source(ours, window_size=7 if family == "svt" else None)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    config = {"hidden_sizes": TIMM_ARCHITECTURES[family]["embed_dims"], "window_size": 7 if family == "svt" else None}
    assert ours.keys() == TwinsForImageClassification(tiny_config(family, **config)).state_dict().keys()


def test_weights_of_another_model_have_no_names():
    weights = TwinsForSemanticSegmentation(tiny_config()).state_dict()
    with pytest.raises(ValueError, match=r"no name for neck\.lateral_convs\.0\.weight, .* and \d+ more"):
        NameTable(ORIGINAL_NAMES).to_source(weights, window_size=3)


# Damaged, malicious and unrelated files


class RunsCode:
    """A malicious object, which calls a function when it is loaded by `pickle`."""

    def __init__(self, function: Callable, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, r"posix\.mkdir"), (shutil.rmtree, r"shutil\.rmtree"), (eval, "eval")],
    ids=["blocked", "not-allowed", "builtin"],
)
def test_file_that_would_run_code_is_refused(tmp_path, reference, container, function, name):
    victim = tmp_path / "victim"
    if function is shutil.rmtree:
        victim.mkdir()
    existed = victim.exists()
    argument = f"__import__('os').mkdir({str(victim)!r})" if function is eval else str(victim)
    content = {"model": reference.state_dict(), "args": RunsCode(function, argument)}
    file = tmp_path / "checkpoint.pth"
    if container == "bare pickle":
        file.write_bytes(pickle.dumps({"args": content["args"]}, protocol=2))
    else:
        save_authors(content, file, zipped=container == "zip")
    folder = save_timm(reference, tmp_path / "timm")
    (folder / "model.safetensors").unlink()
    shutil.copy(file, folder / "pytorch_model.bin")
    for source in (file, folder):
        with pytest.raises(
            ValueError, match=rf"was not loaded: it holds {name} beside weights, .* could run code\. Ask"
        ) as error:
            TwinsForImageClassification.from_pretrained(source)
        # The message must not explain how to run the code.
        assert "weights_only" not in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="could run code"):
        TwinsConfig.from_pretrained(file)
    assert victim.exists() == existed


def damaged(content: bytes, kind: str) -> bytes:
    return {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"Not found\n",
        "page": b"<!DOCTYPE html><html></html>",
        # A clone without git-lfs has such a pointer in place of the file.
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 96\n",
        "noise": np.random.default_rng(0).bytes(4096),
    }[kind]


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "page", "pointer", "noise"])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "pytorch_model.bin", "model.safetensors"])
def test_file_that_cannot_be_read_is_named(tmp_path, reference, name, kind):
    source = file = tmp_path / name
    if file.suffix == ".pth":
        save_authors(reference.state_dict(), file, zipped=name == "zip.pth")
    else:
        source = save_timm(reference, tmp_path, file.suffix == ".safetensors")
    file.write_bytes(damaged(file.read_bytes(), kind))
    message = {
        "empty": "is empty: fetch it again",
        "text": r"is a text file that begins with 'Not found\\n': a weights file is needed",
        "page": "is a web page instead of the file, .*: open the address in a browser, "
        "and use the address of the download",
        "pointer": "is a Git LFS pointer instead of the file: fetch the file with `git lfs pull`",
        "noise": "is not a weights file, or it is damaged",
        "truncated": "is (incomplete, .* fetch it again|not a weights file, or it is damaged)",
    }[kind]
    with pytest.raises(ValueError, match=rf"{re.escape(name)} {message}") as error:
        TwinsForImageClassification.from_pretrained(source)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights"),
        ({"model": {"state_dict": {}}}, "holds no weights"),
        ({"epoch": 3, "lr": 0.1}, r"weights must be .* in dense tensors, got epoch \(int\), lr \(float\): save"),
        ({"model": {"norm.weight": torch.ones(3), "norm.bias": 3}}, r"got norm\.bias \(int\)"),
        ({1: torch.ones(3)}, "must map names to tensors, but the keys 1 are not strings"),
        ([torch.ones(3)], "must hold a dictionary of weights, got list"),
        (torch.ones(3), "must hold a dictionary of weights, got Tensor"),
        (None, "must hold a dictionary of weights, got NoneType"),
    ],
    ids=["empty", "empty-inside", "no-tensors", "some-tensors", "numbers", "list", "tensor", "none"],
)
def test_file_without_a_state_dict_is_named(tmp_path, content, message):
    file = save_authors(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=rf"checkpoint\.pth:? .*{message}"):
        TwinsForImageClassification.from_pretrained(file)


@pytest.mark.parametrize(
    ("create_model", "first"),
    [
        (torchvision.models.resnet18, "conv1.weight"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "patch_embed.proj.weight"),
        (lambda: timm.create_model("pvt_v2_b0"), "patch_embed.proj.weight"),
    ],
    ids=["resnet18", "swin", "pvt"],
)
def test_weights_of_another_model_are_refused(tmp_path, create_model, first):
    file = save_authors(create_model().state_dict(), tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=rf"weights that no Twins model of its format has: {first}, .* and \d+ more"):
        TwinsForImageClassification.from_pretrained(file)


def test_timm_folder_of_another_model_is_refused_before_its_weights_are_read(tmp_path):
    save_timm(timm.create_model("swin_tiny_patch4_window7_224"), tmp_path)
    for file in tmp_path.iterdir():
        if file.name != "config.json":
            file.write_bytes(b"")
    message = r"must describe one of twins_pcpvt_small, .*, got 'swin_tiny_patch4_window7_224'"
    for loaded in (TwinsForImageClassification, TwinsConfig):
        with pytest.raises(ValueError, match=message):
            loaded.from_pretrained(tmp_path)


def drop(weights: dict[str, torch.Tensor], prefix: str) -> None:
    for name in [name for name in weights if name.startswith(prefix)]:
        del weights[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"blocks.0.0.attn.rel_pos": torch.ones(3)}),
            r"no Twins .* has: blocks\.0\.0\.attn\.rel_pos\.",
        ),
        (
            lambda w: w.update({"blocks.0.0.attn.qkv.weight": torch.ones(97, 32)}),
            r"blocks\.0\.0\.attn\.qkv\.weight must be 3 weights of the same height, stacked, got the shape \(97, 32\)",
        ),
        (
            lambda w: w.update({"blocks.0.0.attn.qkv.bias": torch.tensor(1.0)}),
            r"got blocks\.0\.0\.attn\.qkv\.bias \(a single",
        ),
        (
            lambda w: w.update({"blocks.0.0.attn.q.weight": torch.ones(32, 32)}),
            r"more than one value for twins\.encoder\.stages\.0\.layers\.0\.attention\.q_proj\.weight",
        ),
        (lambda w: w.update({"patch_embeds.0.proj.weight": torch.ones(32)}), r"dimensions, got the shape \(32,\)"),
        (lambda w: drop(w, "patch_embeds.0.proj.weight"), r"lacks .*: patch_embeddings\.0\.projection\.weight"),
        (lambda w: drop(w, "patch_embeds.1.proj.weight"), r"lacks .*: patch_embeddings\.1\.projection\.weight"),
        # This must not create 99999999 stages.
        (
            lambda w: w.update({"patch_embeds.99999999.proj.weight": torch.ones(32, 32, 2, 2)}),
            r"lacks .*: patch_embeddings\.3\.projection\.weight",
        ),
        (lambda w: drop(w, "blocks.1.0."), r"locally-grouped attention in every other block .* or in none"),
        (
            lambda w: drop(w, "blocks.2."),
            r"lacks a weight that every Twins model has: stages\.2\.layers\.\*\.mlp\.fc1",
        ),
        (
            lambda w: w.update({"patch_embeds.0.proj.weight": torch.ones(48, 3, 4, 4)}),
            r"Cannot infer the number of heads: the stages have \[48, 64, 96\] channels, not all multiples of the 32",
        ),
        (
            lambda w: w.update({"head.weight": torch.tensor(1.0)}),
            r"got head\.weight \(a single number\)",
        ),
    ],
    ids=[
        "unknown",
        "odd-height",
        "scalar",
        "repeated",
        "one-dimension",
        "no-first-patches",
        "no-patches",
        "stage-far-away",
        "block-missing",
        "stage-missing",
        "heads",
        "head",
    ],
)
def test_weights_of_no_twins_model_are_named(tmp_path, reference, change, message):
    weights = dict(reference.state_dict())
    change(weights)
    file = save_authors(weights, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=message):
        TwinsForImageClassification.from_pretrained(file)


@pytest.mark.parametrize(
    ("prefix", "missing"),
    [
        ("blocks.0.1.attn.q.weight", {"stages.0.layers.1.attention.q_proj.weight"}),
        # A model without biases would not miss this one.
        ("blocks.0.0.attn.qkv.bias", {f"stages.0.layers.0.attention.{name}_proj.bias" for name in "qkv"}),
        ("pos_block.2.", {f"stages.2.position_encoding.projection.{name}" for name in ("weight", "bias")}),
    ],
    ids=["weight", "bias", "module"],
)
def test_missing_weights_are_reported_as_in_transformers(tmp_path, reference, prefix, missing):
    weights = dict(reference.state_dict())
    drop(weights, prefix)
    file = save_authors(weights, tmp_path / "checkpoint.pth")
    _, info = TwinsForImageClassification.from_pretrained(file, output_loading_info=True)
    assert info["missing_keys"] == {f"twins.encoder.{name}" for name in missing}
    assert not info["unexpected_keys"]


def test_weights_left_out_of_a_file_are_logged_once(tmp_path, reference, caplog):
    weights = {f"model.{name}": weight for name, weight in reference.state_dict().items()}
    file = save_authors(weights | {"criterion.weight": torch.ones(3)}, tmp_path / "checkpoint.pth")
    TwinsForImageClassification.from_pretrained(file)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: ignored weights that are not part of the model: criterion.weight."
    ]


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "weights.safetensors"])
def test_model_does_not_change_with_the_file_that_it_was_loaded_from(tmp_path, reference, name):
    file = tmp_path / name
    if file.suffix == ".pth":
        save_authors(reference.state_dict(), file, zipped=name == "zip.pth")
    else:
        save_file(reference.state_dict(), file)
    model = TwinsForImageClassification.from_pretrained(file)
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    expected = TwinsForImageClassification.from_pretrained(
        save_authors(reference.state_dict(), tmp_path / "same.pth")
    ).state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in model.state_dict().items())
    # Each weight has its own memory, not that of the file, or of the weights that it was stacked with.
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in model.parameters())


def test_weights_of_several_types_are_refused_unless_one_is_chosen(tmp_path, reference):
    weights = {name: weight if "norm" in name else weight.half() for name, weight in reference.state_dict().items()}
    file = save_authors(weights, tmp_path / "checkpoint.pth")
    message = r"must all be of one type, got torch\.float16 \(.*\), torch\.float32 \(.*\): .* or set dtype"
    for arguments in ({}, {"dtype": "auto"}):
        with pytest.raises(ValueError, match=message):
            TwinsForImageClassification.from_pretrained(file, **arguments)
    model = TwinsForImageClassification.from_pretrained(file, dtype=torch.float32)
    assert torch.equal(model.twins.layernorm.weight, weights["norm.weight"])


def test_weights_of_the_wrong_shape_are_an_error_as_in_transformers(tmp_path, reference):
    weights = dict(reference.state_dict()) | {"norm.weight": torch.ones(95)}
    file = save_authors(weights, tmp_path / "checkpoint.pth")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        TwinsForImageClassification.from_pretrained(file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda config: config.update(architecture="resnet50"),
            r"must describe one of twins_pcpvt_small, .*, got 'resnet50'",
        ),
        (
            lambda config: config["model_args"].update(block_cls="mine", act_layer="relu"),
            "model_args that are not those of Twins: act_layer, block_cls",
        ),
        (lambda config: config["model_args"].update(wss=[7, 7, 3]), r"windows of the same size, got wss=\[7, 7, 3\]"),
        (
            lambda config: config["model_args"].update(depths=[2, 3]),
            "depths must have one number for each of the 3 stages",
        ),
    ],
    ids=["architecture", "model_args", "wss", "depths"],
)
def test_bad_timm_config_is_named(tmp_path, reference, edit, message):
    edit_config(save_timm(reference, tmp_path), edit)
    for loaded_class in (TwinsForImageClassification, TwinsConfig):
        with pytest.raises(ValueError, match=message):
            loaded_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        (None, "num_classes", "5", "a whole number for num_classes, got '5'"),
        (None, "num_classes", -1, "a whole number for num_classes, got '-1'"),
        (None, "num_classes", 10**9, "num_labels must be a whole number from 0 to 1000000, got 1000000000"),
        (None, "model_args", ["depths"], r"an object for model_args, got \['depths'\]"),
        (None, "pretrained_cfg", "default", "an object for pretrained_cfg, got 'default'"),
        (None, "label_names", 5, "a list of names, or names by their numbers for label_names, got '5'"),
        (None, "label_names", [1, 2, 3, 4, 5], "a list of names, or names by their numbers for label_names"),
        (None, "label_names", {"cat": "a"}, "a list of names, or names by their numbers for label_names"),
        (None, "label_names", ["a"] * 4, "must name each of its 5 classes, got 4 names: fix its list"),
        (None, "label_descriptions", ["a"], "an object for label_descriptions"),
        ("model_args", "depths", "232", "a list of numbers for depths, got '232'"),
        ("model_args", "wss", 7, "a list of numbers for wss, got '7'"),
        ("model_args", "in_chans", "3", "a whole number for in_chans, got '3'"),
        ("pretrained_cfg", "input_size", 224, "three sizes for input_size, got '224'"),
        ("pretrained_cfg", "crop_pct", 0, "a number above 0 for crop_pct, got '0'"),
        ("pretrained_cfg", "crop_pct", "0.9", "a number above 0 for crop_pct, got '0.9'"),
        ("pretrained_cfg", "interpolation", 3, "a string for interpolation, got '3'"),
        ("pretrained_cfg", "mean", 0.5, "a list of numbers for mean, got '0.5'"),
    ],
)
def test_field_with_a_wrong_type_in_the_config_of_timm_is_named(part, field, value, message):
    config: dict[str, Any] = {
        "architecture": "twins_svt_small",
        "num_classes": 5,
        "model_args": {},
        "pretrained_cfg": {"input_size": [3, 224, 224]},
    }
    (config[part] if part else config)[field] = value
    with pytest.raises(ValueError, match=message):
        TwinsConfig(**convert_timm_config(config))
    if "num_labels" not in message and "classes" not in message:
        with pytest.raises(ValueError, match=message):
            convert_timm_preprocessing(config)


@pytest.mark.parametrize("num_labels", [10**9, -1, "5", 2.5])
@pytest.mark.parametrize("config_class", [TwinsConfig, TwinsDetectorConfig])
def test_unrealistic_number_of_labels_is_refused(tmp_path, config_class, num_labels):
    """transformers would create a name for each label."""
    config_class(num_labels=5).save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: [config.update(num_labels=num_labels), config.pop("id2label", None)])
    with pytest.raises(ValueError, match=rf"num_labels must be a whole number from 0 to 1000000, got '?{num_labels}"):
        config_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["code", "pointer"])
def test_pickle_with_code_in_an_hf_twins_folder_is_refused_with_one_sentence(our_folder, kind):
    """The message must not contain PyTorch's advice to disable its protection."""
    (our_folder / "model.safetensors").unlink()
    file = our_folder / "pytorch_model.bin"
    if kind == "code":
        torch.save({"classifier.bias": RunsCode(os.mkdir, str(our_folder / "made"))}, file)
    else:
        file.write_bytes(damaged(b"", "pointer"))
    message = {"code": r"holds posix\.mkdir beside weights", "pointer": "is damaged or holds no weights"}[kind]
    with pytest.raises(ValueError, match=rf"{our_folder} was not loaded: a file in it {message}") as error:
        TwinsForImageClassification.from_pretrained(our_folder)
    assert "weights_only" not in str(error.value)
    assert not (our_folder / "made").exists()


def test_timm_config_without_weights_is_named(tmp_path, reference):
    (save_timm(reference, tmp_path) / "model.safetensors").unlink()
    with pytest.raises(
        OSError, match=r"has timm's config\.json, but neither model\.safetensors nor pytorch_model\.bin"
    ):
        TwinsForImageClassification.from_pretrained(tmp_path)


# Folders in hf_twins' format


@pytest.fixture
def our_folder(timm_folder, tmp_path) -> Path:
    TwinsForImageClassification.from_pretrained(timm_folder).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_model_loaded_from_timm_is_saved_as_an_hf_twins_folder(timm_folder, our_folder):
    assert {file.name for file in our_folder.iterdir()} == {"config.json", "model.safetensors"}
    stored = json.loads((our_folder / "config.json").read_text())
    assert stored["model_type"] == "twins"
    assert stored["architectures"] == ["TwinsForImageClassification"]
    timm_fields = json.loads((timm_folder / "config.json").read_text()).keys()
    assert not timm_fields & stored.keys()
    assert stored.keys() - {"architectures", "dtype"} == json.loads(TwinsConfig(num_labels=5).to_json_string()).keys()
    model, reloaded = (TwinsForImageClassification.from_pretrained(folder) for folder in (timm_folder, our_folder))
    assert read_weights(our_folder / "model.safetensors").keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], weight), name


def test_saving_over_the_file_that_was_loaded_keeps_the_weights(tmp_path, reference):
    # The weights are views of the file that is overwritten.
    save_timm(reference, tmp_path)
    model = TwinsForImageClassification.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert_same_logits(model, reference, [(97, 131)])
    assert_same_logits(TwinsForImageClassification.from_pretrained(tmp_path), reference, [(97, 131)])


@pytest.mark.parametrize("config_is_there", [True, False], ids=["config", "no-config"])
def test_random_state_in_an_hf_twins_folder_is_not_mistaken_for_an_authors_file(our_folder, config_is_there):
    # The Trainer writes such a file into its checkpoints.
    torch.save({"python": 1, "cpu": torch.get_rng_state()}, our_folder / "rng_state.pth")
    config = TwinsConfig.from_pretrained(our_folder)
    if not config_is_there:
        (our_folder / "config.json").unlink()
    _, info = TwinsForImageClassification.from_pretrained(our_folder, config=config, output_loading_info=True)
    assert not info["missing_keys"]


@pytest.mark.parametrize("loaded", [TwinsConfig, TwinsForImageClassification, TwinsImageProcessor])
def test_folder_with_two_authors_files_is_refused(tmp_path, reference, loaded):
    for name in ("first.pth", "second.pt"):
        save_authors(reference.state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=r"several weights files, first\.pth, second\.pt: pass one of them"):
        loaded.from_pretrained(tmp_path)


@pytest.mark.parametrize("loaded", [TwinsConfig, TwinsForImageClassification, TwinsImageProcessor])
def test_missing_file_is_named(tmp_path, loaded):
    with pytest.raises(FileNotFoundError, match=r"missing\.pth does not exist"):
        loaded.from_pretrained(tmp_path / "missing.pth")


def test_head_of_another_size_names_the_file(tmp_path, reference):
    file = save_authors(reference.state_dict(), tmp_path / "alt_gvt.pth")
    with pytest.raises(RuntimeError, match=re.escape(str(file))):
        TwinsForImageClassification.from_pretrained(file, num_labels=10)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""], ids=["json", "utf-8", "empty"])
def test_damaged_config_raises_the_error_of_transformers(our_folder, content):
    (our_folder / "config.json").write_bytes(content)
    with pytest.raises(OSError, match=r"config\.json' is not a valid JSON file"):
        TwinsForImageClassification.from_pretrained(our_folder)


def test_missing_model_raises_the_error_of_transformers(tmp_path):
    for source in (tmp_path, tmp_path / "missing", "timm/missing"):
        with pytest.raises(OSError, match=r"Repo id|no file named|connect") as expected:
            PreTrainedModel.from_pretrained.__func__(TwinsForImageClassification, source)
        with pytest.raises(OSError, match=re.escape(str(expected.value))):
            TwinsForImageClassification.from_pretrained(source)


@uses_adapters_of_transformers
@pytest.mark.parametrize("original", ["timm", "authors"])
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_adapter_finds_the_weights_it_was_trained_on(tmp_path, timm_folder, reference, original):
    source = timm_folder if original == "timm" else save_authors(reference.state_dict(), tmp_path / "checkpoint.pth")
    model = TwinsForImageClassification.from_pretrained(source)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(pixel_values).logits
        assert (expected - reference(pixel_values)).abs().max() > 1e-3
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    # A checkpoint of the Trainer also has its random state, in a file with the suffix of the authors' files.
    torch.save({"python": 1, "cpu": torch.get_rng_state()}, adapter / "rng_state.pth")
    reloaded = TwinsForImageClassification.from_pretrained(adapter)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(pixel_values).logits, expected, rtol=0, atol=1e-5)


# Training


class RandomImages(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 5}


def train(source: Path, output_dir: Path, resume_from_checkpoint: Path | None = None, **arguments: Any) -> Trainer:
    trainer = Trainer(
        TwinsForImageClassification.from_pretrained(source, drop_path_rate=0.2),
        TrainingArguments(
            output_dir=output_dir,
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=2,
            logging_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=RandomImages(),
        eval_dataset=RandomImages(),
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_weights(checkpoint / "model.safetensors")


@pytest.mark.slow
def test_training_from_timm_resumes_from_its_checkpoint(tmp_path, timm_folder, reference):
    uninterrupted = train(timm_folder, tmp_path / "first").model.state_dict()
    resumed = train(timm_folder, tmp_path / "second", tmp_path / "first" / "checkpoint-2").model.state_dict()
    halfway = weights_of(tmp_path / "first" / "checkpoint-2")
    start = NameTable(ORIGINAL_NAMES).to_hf(reference.state_dict())
    for name, weight in uninterrupted.items():
        assert torch.equal(resumed[name], weight), name
        assert not torch.equal(halfway[name], start[name]), name
        assert not torch.equal(halfway[name], weight), name


def test_best_checkpoint_of_a_training_from_timm_is_loaded(tmp_path, timm_folder):
    scores = iter([1.0, 0.5])
    trainer = Trainer(
        TwinsForImageClassification.from_pretrained(timm_folder),
        TrainingArguments(
            output_dir=tmp_path,
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            logging_strategy="no",
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=RandomImages(),
        eval_dataset=RandomImages(),
        compute_metrics=lambda _: {"score": next(scores)},
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best, last = (weights_of(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, best[name]), name
        assert not torch.equal(weight, last[name]), name
    # This simulates a new process.
    reloaded = TwinsForImageClassification.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(reloaded[name], weight) for name, weight in best.items())
