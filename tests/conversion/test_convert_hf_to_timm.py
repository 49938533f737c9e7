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
"""Conversion to other toolboxes: the result loads there, and converting it back gives identical weights."""

import json
import re
from pathlib import Path

import convert_hf_to_timm
import convert_twins_to_hf
import pytest
import timm
import torch
from huggingface_hub.utils import httpx
from loopback_hub import serve_hub
from PIL import Image
from sklearn.datasets import load_sample_image
from source_checkpoints import TINY, source_weights
from testing_utils import randomize, tiny_config
from timm.data import create_transform, resolve_model_data_config
from transformers import MobileViTImageProcessor, UperNetConfig, UperNetForSemanticSegmentation, ViTImageProcessor

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
)


def run(model: Path, toolbox: str, output: Path) -> None:
    convert_hf_to_timm.main([str(model), "--to", toolbox, "--output", str(output)])


def fails(model: Path, toolbox: str, output: Path) -> str:
    with pytest.raises(SystemExit) as caught:
        run(model, toolbox, output)
    assert isinstance(caught.value.code, str), caught.value.code
    assert not output.exists()
    return caught.value.code


def small_config(family: str = "svt", **overrides) -> TwinsConfig:
    """A configuration with four stages, as in every other toolbox, and windows of 7."""
    architecture = {
        "patch_size": 4,
        "hidden_sizes": [32, 64, 64, 96],
        "num_attention_heads": [1, 2, 2, 3],
        "depths": [2, 1, 3, 2],
        "mlp_ratios": [2, 2, 1, 2],
        "sr_ratios": [8, 4, 2, 1],
        "window_size": 7,
        "window_padding": "zeros",
    }
    if family == "pcpvt":
        architecture |= {"hidden_sizes": [64, 64, 128, 64], "num_attention_heads": [1, 1, 2, 1], "window_size": None}
    return tiny_config(family, **architecture | overrides)


@pytest.mark.parametrize("family", TINY)
def test_timm_loads_it_with_labels_and_preprocessing(family, tmp_path):
    config = small_config(family, num_labels=3, id2label={0: "cat", 1: "dog", 2: "cow"})
    model = randomize(TwinsForImageClassification(config))
    model.save_pretrained(tmp_path / "model")
    TwinsImageProcessor(size={"shortest_edge": 236}, resample=2).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "timm", tmp_path / "timm")

    timm_model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    image = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        torch.testing.assert_close(timm_model(image), model(image).logits, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"] == ["cat", "dog", "cow"]

    photograph = Image.fromarray(load_sample_image("china.jpg"))
    transform = create_transform(**resolve_model_data_config(timm_model), is_training=False)
    pixel_values = TwinsImageProcessorPil.from_pretrained(tmp_path / "model")(photograph, return_tensors="pt")
    torch.testing.assert_close(transform(photograph), pixel_values["pixel_values"][0], rtol=0, atol=1e-5)

    reloaded = TwinsForImageClassification.from_pretrained(tmp_path / "timm")
    assert reloaded.config.id2label == config.id2label
    processor = TwinsImageProcessor.from_pretrained(tmp_path / "timm")
    assert (processor.size.shortest_edge, processor.resample) == (236, 2)

    # Convert the timm model again.
    run(tmp_path / "timm", "timm", tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "timm" / file).read_bytes()
    assert all(torch.equal(weight, reloaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_labels_are_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "model"
    randomize(TwinsForImageClassification(small_config(num_labels=11))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # Sorted as text, label 10 comes before label 2.
    config["id2label"] = {number: f"label {number}" for number in sorted(map(str, range(11)))}
    (folder / "config.json").write_text(json.dumps(config))
    run(folder, "timm", tmp_path / "timm")
    run(folder, "mmpretrain", tmp_path / "model.pth")
    expected = [f"label {number}" for number in range(11)]
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"] == expected
    assert torch.load(tmp_path / "model.pth", weights_only=True)["meta"]["CLASSES"] == expected


@pytest.mark.parametrize(("window_size", "window_padding"), [(4, "zeros"), (9, "zeros"), (4, "masked")])
def test_other_window_sizes_are_verified_on_complete_windows(window_size, window_padding, tmp_path, capsys):
    config = small_config(window_size=window_size, window_padding=window_padding)
    randomize(TwinsForImageClassification(config)).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "timm", tmp_path / "timm")
    assert ("window_padding=masked (there zeros)" in capsys.readouterr().out) == (window_padding == "masked")


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"window_padding": "masked"}, "window_padding=masked"),
        pytest.param({"patch_padding": True}, "patch_padding=True", marks=pytest.mark.slow),
    ],
)
def test_different_padding_of_the_models_images_is_named_with_advice(fields, shown, tmp_path):
    randomize(TwinsForImageClassification(small_config(**fields))).save_pretrained(tmp_path / "model")
    TwinsImageProcessor(size={"shortest_edge": 300}, crop_size={"height": 288, "width": 288}).save_pretrained(
        tmp_path / "model"
    )
    error = fails(tmp_path / "model", "timm", tmp_path / "timm")
    assert f"has {shown} (there " in error
    assert "images of 288 x 288: only multiples of 224" in error
    assert "an image processor of such a size, or set the other value in its config.json" in error
    TwinsImageProcessor(size={"shortest_edge": 448}, crop_size={"height": 448, "width": 448}).save_pretrained(
        tmp_path / "model"
    )
    run(tmp_path / "model", "timm", tmp_path / "timm")


def unkept(model_class: type, toolbox: str, folder: Path, **fields) -> list[str]:
    model = model_class(small_config(**fields))
    TwinsImageProcessor().save_pretrained(folder)
    target = convert_hf_to_timm.revert_model(model, toolbox)[0]
    return convert_hf_to_timm.unkept_fields(str(folder), model, target, has_head=True)


def test_fields_that_the_toolbox_cannot_store_are_named(tmp_path):
    training = {"hidden_dropout_prob": 0.1, "initializer_range": 0.5, "problem_type": "regression", "note": "mine"}
    kept = {"drop_path_rate": 0.3, "attention_probs_dropout_prob": 0.2}
    names = {"id2label": dict(enumerate("abcde"))}
    for toolbox in ("timm", "official", "mmpretrain"):
        assert unkept(TwinsForImageClassification, toolbox, tmp_path) == (
            [] if toolbox == "timm" else ["the image processor"]
        )
    classifier = unkept(
        TwinsForImageClassification, "timm", tmp_path, **training, **kept, **names, layer_norm_eps=1e-5
    )
    assert sorted(classifier) == sorted([*training, "layer_norm_eps=1e-05 (there 1e-06)"])
    lost = unkept(TwinsForImageClassification, "official", tmp_path, **kept, **names, fpn_hidden_size=64)
    assert sorted(lost) == sorted([*kept, "fpn_hidden_size", "the names of the labels", "the image processor"])
    segmenter = unkept(
        TwinsForSemanticSegmentation, "mmseg", tmp_path, fpn_hidden_size=64, semantic_loss_ignore_index=9, **names,
        layer_norm_eps=1e-5,
    )  # fmt: skip
    assert segmenter == ["semantic_loss_ignore_index", "the image processor"]


def test_timm_keeps_known_fields_and_invents_no_license(tmp_path, capsys):
    config = small_config(num_labels=2, drop_path_rate=0.3, attention_probs_dropout_prob=0.2)
    randomize(TwinsForImageClassification(config)).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "timm", tmp_path / "timm")
    assert "left out  nothing\n" in capsys.readouterr().out
    written = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert not {"license", "tag"} & written["pretrained_cfg"].keys()
    reloaded = TwinsConfig.from_pretrained(tmp_path / "timm")
    assert (reloaded.drop_path_rate, reloaded.attention_probs_dropout_prob) == (0.3, 0.2)
    written["pretrained_cfg"] |= {"license": "mit", "tag": "mine"}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(written))
    run(tmp_path / "timm", "official", tmp_path / "back.pth")
    printed = capsys.readouterr().out
    assert "the image processor, pretrained_cfg.tag, pretrained_cfg.license\n" in printed


@pytest.mark.parametrize(("stages", "side", "multiple"), [(4, 240, 32), (4, 211, 32), (5, 224, 64)])
def test_image_sizes_that_timm_does_not_support_are_named(stages, side, multiple):
    config = TwinsConfig(**{
        name: [1] * stages if name in ("depths", "mlp_ratios", "sr_ratios") else [64] * stages if name == "hidden_sizes" else [2] * stages
        for name in ("depths", "mlp_ratios", "sr_ratios", "hidden_sizes", "num_attention_heads")
    })  # fmt: skip
    with pytest.raises(ValueError, match=f"images of {side} x {side}, but takes only multiples of {multiple}"):
        convert_hf_to_timm.check_image_size("mine", config, side, side)
    convert_hf_to_timm.check_image_size("mine", config, 10 * multiple, multiple)


def test_model_with_five_stages_is_converted_to_timm_and_back(tmp_path):
    config = small_config(
        hidden_sizes=[32, 64, 64, 64, 64],
        num_attention_heads=[1, 2, 2, 1, 1],
        depths=[1] * 5,
        mlp_ratios=[2] * 5,
        sr_ratios=[4, 2, 1, 1, 1],
    )
    model = randomize(TwinsForImageClassification(config))
    model.save_pretrained(tmp_path / "model")
    assert "images of 224 x 224, but takes only multiples of 64" in fails(
        tmp_path / "model", "timm", tmp_path / "timm"
    )
    size = {"height": 256, "width": 256}
    TwinsImageProcessor(size={"shortest_edge": 256}, crop_size=size).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "timm", tmp_path / "timm")
    back = TwinsForImageClassification.from_pretrained(tmp_path / "timm")
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in model.state_dict().items())
    assert timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)


def test_preprocessing_that_timm_does_not_support_is_named(tmp_path):
    randomize(TwinsForImageClassification(small_config())).save_pretrained(tmp_path / "model")
    TwinsImageProcessor(do_center_crop=False).save_pretrained(tmp_path / "model")
    assert "do_center_crop=False" in fails(tmp_path / "model", "timm", tmp_path / "timm")
    # This class reverses the channels, which its configuration does not mention.
    MobileViTImageProcessor(do_flip_channel_order=True, size={"shortest_edge": 256}).save_pretrained(
        tmp_path / "model"
    )
    assert "MobileViTImageProcessorPil, differs from timm's transforms" in fails(
        tmp_path / "model", "timm", tmp_path / "timm"
    )
    ViTImageProcessor(resample=3).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "timm", tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    assert (config["crop_mode"], config["crop_pct"], config["interpolation"]) == ("squash", 1.0, "bicubic")


@pytest.mark.parametrize("source_format", ["official", "mmpretrain", "mmseg-upernet", "mmseg-semantic-fpn"])
@pytest.mark.parametrize("family", TINY)
def test_file_round_trip_is_bit_exact(source_format, family, tmp_path):
    weights = source_weights(source_format, TINY[family])
    torch.save({"meta": {"CLASSES": list("abcde")}, "state_dict": weights}, tmp_path / "source.pth")
    convert_twins_to_hf.main([str(tmp_path / "source.pth"), "--output", str(tmp_path / "model")])
    run(tmp_path / "model", source_format.partition("-")[0], tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    if source_format != "official":
        assert back["meta"] == {"CLASSES": list("abcde")}
        back = back["state_dict"]
    assert sorted(back) == sorted(weights)
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_classifier_is_converted_to_a_backbone_of_mmsegmentation(tmp_path, capsys):
    randomize(TwinsForImageClassification(small_config(layer_norm_eps=1e-5))).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "mmseg", tmp_path / "backbone.pth")
    weights = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert "layers.0.1.attn.attn.in_proj_weight" in weights
    assert not any(name.startswith("head.") for name in weights)
    printed = capsys.readouterr().out
    assert "left out  classifier.weight, classifier.bias\n" in printed
    assert (
        "results differ for images with partial windows or patches: window_padding=zeros (there authors_segmentation), patch_padding=False (there True)"
        in printed
    )


def test_new_backbone_and_upernet_are_converted(tmp_path):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = small_config(window_padding="authors_segmentation", use_stage_norm=True, out_features=stages)
    config.num_labels = 4
    upernet = UperNetConfig(backbone_config=config, hidden_size=8, auxiliary_channels=8, num_labels=4)
    randomize(UperNetForSemanticSegmentation(upernet)).save_pretrained(tmp_path / "upernet")
    run(tmp_path / "upernet", "official", tmp_path / "upernet.pth")
    assert "backbone.norm_list.3.weight" in torch.load(tmp_path / "upernet.pth", weights_only=True)["state_dict"]

    mmseg = small_config("pcpvt", patch_padding=True, layer_norm_eps=1e-5)
    randomize(TwinsBackbone(mmseg)).save_pretrained(tmp_path / "backbone")
    run(tmp_path / "backbone", "mmseg", tmp_path / "backbone.pth")
    randomize(TwinsForSemanticSegmentation(mmseg)).save_pretrained(tmp_path / "fpn")
    run(tmp_path / "fpn", "mmseg", tmp_path / "fpn.pth")
    assert "neck.fpn_convs.0.conv.weight" in torch.load(tmp_path / "fpn.pth", weights_only=True)["state_dict"]


def test_half_precision_is_kept(tmp_path):
    randomize(TwinsForImageClassification(small_config())).half().save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "official", tmp_path / "back.pth")
    assert {weight.dtype for weight in torch.load(tmp_path / "back.pth", weights_only=True).values()} == {
        torch.float16
    }


def test_models_that_the_toolbox_lacks_are_named(tmp_path):
    randomize(TwinsForImageClassification(small_config(use_stage_norm=True))).save_pretrained(tmp_path / "norms")
    assert "timm has no models with use_stage_norm=True" in fails(tmp_path / "norms", "timm", tmp_path / "timm")
    randomize(TwinsForSemanticSegmentation(small_config())).save_pretrained(tmp_path / "fpn")
    assert "timm has no model like TwinsForSemanticSegmentation" in fails(tmp_path / "fpn", "timm", tmp_path / "timm")


@pytest.mark.parametrize("toolbox", ["timm", "official", "mmpretrain", "mmseg"])
def test_backbone_without_all_stages_is_refused(toolbox, tmp_path):
    config = small_config(out_features=["stage1", "stage2"])
    randomize(TwinsBackbone(config)).save_pretrained(tmp_path / "backbone")
    message = fails(tmp_path / "backbone", toolbox, tmp_path / "other")
    assert "models with all 4 stages, but this TwinsBackbone has only the first 2" in message


def test_backbone_is_not_converted_to_timm(tmp_path):
    randomize(TwinsBackbone(small_config())).save_pretrained(tmp_path / "backbone")
    message = fails(tmp_path / "backbone", "timm", tmp_path / "timm")
    assert "timm has no models without a final layer norm, such as TwinsBackbone: save a TwinsModel" in message


@pytest.mark.parametrize("toolbox", ["official", "mmseg"])
def test_other_pooling_of_upernet_is_refused(toolbox, tmp_path):
    config = UperNetConfig(
        backbone_config=small_config(out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=8,
        auxiliary_channels=8,
        num_labels=4,
        pool_scales=[1, 2, 3],
    )
    randomize(UperNetForSemanticSegmentation(config)).save_pretrained(tmp_path / "upernet")
    message = fails(tmp_path / "upernet", toolbox, tmp_path / "upernet.pth")
    assert "has only models with pool_scales=[1, 2, 3, 6], got [1, 2, 3]" in message


@pytest.mark.parametrize(
    ("toolbox", "fields", "message"),
    [
        ("timm", {"hidden_act": "relu"}, r"hidden_act=relu \(there gelu\)"),
        (
            "official",
            {"layer_norm_eps": 1e-2},
            r"layer_norm_eps=0\.01 \(there 1e-06\): set the other value in its config.json",
        ),
    ],
)
def test_settings_that_the_toolbox_lacks_are_named(toolbox, fields, message, tmp_path):
    randomize(TwinsForImageClassification(small_config(**fields))).save_pretrained(tmp_path / "model")
    error = fails(tmp_path / "model", toolbox, tmp_path / "output")
    assert "outputs differ from those of " in error
    assert re.search(message, error)


def test_attention_without_biases_is_named(tmp_path):
    randomize(TwinsForImageClassification(small_config(qkv_bias=False))).save_pretrained(tmp_path / "model")
    assert "timm has no models with qkv_bias=False" in fails(tmp_path / "model", "timm", tmp_path / "timm")


def test_unreadable_preprocessing_is_not_replaced_by_the_default_of_timm(tmp_path):
    randomize(TwinsForImageClassification(small_config())).save_pretrained(tmp_path / "model")
    run(tmp_path / "model", "timm", tmp_path / "alone")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_mean": [0.5')
    assert "preprocessor_config.json" in fails(tmp_path / "model", "timm", tmp_path / "timm")


def test_bad_model_or_output_is_named(tmp_path):
    assert "missing" in fails(tmp_path / "missing", "timm", tmp_path / "timm")
    (tmp_path / "swin").mkdir()
    (tmp_path / "swin" / "config.json").write_text('{"model_type": "swin", "architectures": ["SwinModel"]}')
    assert "swin holds a SwinModel of type 'swin', not one of" in fails(tmp_path / "swin", "timm", tmp_path / "timm")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "swin", "timm", tmp_path / "swin")
    assert "exists: remove it" in caught.value.code


def test_unreachable_hub_gives_a_one_line_error(tmp_path, monkeypatch):
    with serve_hub() as hub, hub.in_process(tmp_path / "home"):
        hub.stop()
        assert "couldn't connect to" in (error := fails("somebody/twins", "timm", tmp_path / "timm"))
        assert "\n" not in error

    def cut(*args, **kwargs):
        raise httpx.ReadTimeout("")

    monkeypatch.setattr("hf_twins.loading.sources.cached_file", cut)
    assert fails("somebody/twins", "timm", tmp_path / "timm") == "error: somebody/twins cannot be fetched: ReadTimeout"


def test_full_disk_leaves_no_files(tmp_path, monkeypatch):
    randomize(TwinsForImageClassification(small_config())).save_pretrained(tmp_path / "model")

    def full(content, file):
        Path(file).write_bytes(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    assert "cannot be written" in fails(tmp_path / "model", "official", tmp_path / "out" / "back.pth")
    assert not list((tmp_path / "out").iterdir())
