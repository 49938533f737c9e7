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
"""Conversion of every format to hf_twins and back: equal outputs, identical weights, nothing dropped."""

import warnings
from dataclasses import replace

import pytest
import timm
import torch
from checkpoint_formats import Conversion, class_names, convert_checkpoint, revert_model
from source_checkpoints import FORMATS, PUBLISHED, TINY, source_checkpoint, source_weights, timm_model
from torchvision.models import resnet18
from verification import verify

from hf_twins.checkpoints import StandIn, convert_timm_config, read_weights, unwrap_weights


EXPECTED_CLASS = {
    "official": "TwinsForImageClassification",
    "timm": "TwinsForImageClassification",
    "mmpretrain": "TwinsForImageClassification",
    "mmseg-backbone": "TwinsModel",
    "mmseg-upernet": "UperNetForSemanticSegmentation",
    "mmseg-semantic-fpn": "TwinsForSemanticSegmentation",
    "official-upernet": "UperNetForSemanticSegmentation",
    "official-semantic-fpn": "TwinsForSemanticSegmentation",
}


def timm_fields(architecture, num_classes):
    """The fields that are read from the `config.json` that timm writes for the architecture."""
    model = timm_model(architecture, num_classes)
    arguments = {
        "embed_dims": architecture.hidden_sizes,
        "depths": architecture.depths,
        "mlp_ratios": architecture.mlp_ratios,
        "num_heads": [size // (32 if architecture.is_svt else 64) for size in architecture.hidden_sizes],
        "in_chans": architecture.num_channels,
    }
    name = "twins_svt_small" if architecture.is_svt else "twins_pcpvt_small"
    return convert_timm_config({"architecture": name, "num_classes": model.num_classes, "model_args": arguments})


def convert(source_format, architecture, num_classes=None, **meta) -> Conversion:
    weights = source_weights(source_format, architecture, num_classes)
    checkpoint = source_checkpoint(source_format, weights, **meta)
    timm_config = timm_fields(architecture, len(weights["head.weight"])) if source_format == "timm" else None
    return convert_checkpoint(weights, checkpoint.get("meta"), timm_config)


def check(source_format, architecture) -> Conversion:
    conversion = convert(source_format, architecture)
    assert type(conversion.model).__name__ == EXPECTED_CLASS[source_format]

    differences = verify(conversion.model, conversion.source_format, conversion.source_weights)
    assert {f"stage{stage}" for stage in range(1, 5)} < differences.keys()
    assert max(differences.values()) <= 1e-5

    toolbox = source_format.partition("-")[0]
    target, reverted, left_out = revert_model(conversion.model, toolbox)
    assert (target, left_out) == (conversion.source_format, [])
    # Only weights that the format's models never use are missing afterwards, and the conversion has named them.
    used = {name: weight for name, weight in conversion.source_weights.items() if name not in conversion.unused}
    assert reverted.keys() == used.keys()
    assert all(torch.equal(reverted[name], weight) for name, weight in used.items())
    left_over = {f"backbone.{name}" for name in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    assert set(conversion.unused) == (left_over if source_format.startswith("official-") else set())
    return conversion


@pytest.mark.parametrize("prefix", ["module.", "model.", "model._orig_mod.net."])
@pytest.mark.parametrize("source_format", [name for name in FORMATS if name != "timm"])
def test_prefix_of_each_format_is_found_next_to_a_loss(source_format, prefix):
    weights = source_weights(source_format, TINY["svt"])
    wrapped = {prefix + name: weight for name, weight in weights.items()} | {"criterion.weight": torch.ones(5)}
    unwrapped, left_out = unwrap_weights({"state_dict": wrapped}, "a.ckpt")
    assert unwrapped == weights
    assert left_out == ["criterion.weight"]


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("source_format", FORMATS)
def test_format_converts_and_reverts(source_format, family):
    conversion = check(source_format, TINY[family])
    assert conversion.variant is None


def published_of_each_format() -> list[tuple[str, str]]:
    """Pairs of formats and variants: each format with both families, and each variant with several formats."""
    families = [[name for name in PUBLISHED if family in name] for family in TINY]
    return [
        (source_format, variants[place % len(variants)])
        for place, source_format in enumerate(FORMATS)
        for variants in families
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("source_format", "variant"), published_of_each_format())
def test_published_variant_converts_and_reverts(source_format, variant):
    conversion = check(source_format, PUBLISHED[variant])
    assert conversion.variant == variant
    labels = conversion.model.config.id2label
    expected = {1000: "tench, Tinca tinca", 150: "wall"}
    assert EXPECTED_CLASS[source_format] == "TwinsModel" or labels[0] == expected[len(labels)]


@pytest.mark.parametrize("source_format", [name for name in FORMATS if name != "timm"])
def test_config_says_what_the_format_computes(source_format):
    conversion = convert(source_format, TINY["svt"])
    config = getattr(conversion.model.config, "backbone_config", conversion.model.config)
    is_mmseg = source_format.startswith("mmseg")
    is_segmentation = is_mmseg or source_format.startswith("official-")
    assert config.window_padding == ("authors_segmentation" if is_segmentation else "zeros")
    assert config.patch_padding == is_mmseg
    assert config.layer_norm_eps == (1e-5 if is_mmseg else 1e-6)
    assert config.use_stage_norm == (is_segmentation and source_format != "mmseg-backbone")
    if source_format.endswith("upernet"):
        assert conversion.model.config.hidden_size == 24
        assert conversion.model.config.auxiliary_channels == 16
        assert conversion.model.config.auxiliary_loss_weight == 0.4
        assert config.out_features == ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize("source_format", FORMATS)
def test_channels_and_labels_are_read_from_the_weights(source_format):
    architecture = replace(TINY["svt"], num_channels=5)
    conversion = convert(source_format, architecture, num_classes=11)
    config = getattr(conversion.model.config, "backbone_config", conversion.model.config)
    assert config.num_channels == 5
    assert source_format == "mmseg-backbone" or conversion.model.config.num_labels == 11


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("cat", "dog", "cow", "hen", "owl")},
        {"dataset_meta": {"classes": ["cat", "dog", "cow", "hen", "owl"]}},
        {"CLASSES": {4: "owl", 0: "cat", 1: "dog", 2: "cow", 3: "hen"}},
        {"CLASSES": {"4": "owl", "0": "cat", "1": "dog", "2": "cow", "3": "hen"}},
        {"CLASSES": {"owl": 4, "cat": 0, "dog": 1, "cow": 2, "hen": 3}},
        {"CLASSES": None, "dataset_meta": {"CLASSES": ("cat", "dog", "cow", "hen", "owl")}},
    ],
    ids=["mmcv 1", "mmengine", "by number", "by number as text", "numbers by name", "mmengine with mmcv's key"],
)
def test_class_names_are_read_from_the_checkpoint(meta):
    conversion = convert("mmseg-upernet", TINY["pcpvt"], **meta)
    assert conversion.model.config.id2label == {0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "owl"}


@pytest.mark.parametrize(
    ("num_classes", "meta", "message"),
    [
        # There is one class less than in ADE20K, so the names are not ADE20K's.
        (
            150,
            {"CLASSES": ["a"] * 149},
            "CLASSES must have a name for each of the 150 classes of its head, got 149: fix it",
        ),
        (
            150,
            {"dataset_meta": {"classes": ()}},
            "classes must have a name for each of the 150 classes of its head, got 0",
        ),
        (1000, {"CLASSES": ["a"] * 999}, "for each of the 1000 classes of its head, got 999"),
        (
            150,
            {"dataset_meta": StandIn("a.Config")},
            r"dataset_meta is of type a\.Config: save it as a plain dictionary",
        ),
        (5, {"CLASSES": StandIn("numpy.ndarray")}, r"CLASSES must be a list of names, got numpy\.ndarray"),
        (5, {"CLASSES": "abcde"}, "CLASSES must be a list of names, got str"),
        (5, {"CLASSES": 5}, "CLASSES must be a list of names, got int"),
        (5, {"CLASSES": [1, 2, 3, 4, 5]}, "CLASSES must be a list of names, got list"),
        (
            5,
            {"CLASSES": {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"}},
            "CLASSES must number its names from 0 on, got 1, 2",
        ),
        (5, {"CLASSES": {"a": "x", "b": "y"}}, "CLASSES must number its names from 0 on, got a, b"),
        (5, {"CLASSES": {"a": [0], "b": [1]}}, "CLASSES must number its names from 0 on"),
    ],
)
def test_invalid_or_mismatched_class_names_are_refused(num_classes, meta, message):
    with pytest.raises(ValueError, match=message):
        class_names(num_classes, meta)


@pytest.mark.parametrize("dataset", ["ADE20KDataset", None, 3])
def test_other_fields_in_place_of_class_names_are_not_read(dataset):
    assert class_names(5, {"dataset_meta": dataset}) is None
    assert class_names(150, {"dataset_meta": dataset})[0] == "wall"
    assert class_names(0, {"CLASSES": ["a", "b"]}) is None


def test_checkpoint_without_final_norm_is_converted_to_a_backbone():
    weights = source_weights("mmseg-backbone", TINY["svt"])
    weights = {name: weight for name, weight in weights.items() if name not in ("norm.weight", "norm.bias")}
    conversion = convert_checkpoint(weights)
    assert type(conversion.model).__name__ == "TwinsBackbone"
    verify(conversion.model, conversion.source_format, weights)
    assert revert_model(conversion.model, "mmseg")[1].keys() == weights.keys()


def test_upernet_without_auxiliary_head():
    weights = source_weights("official-upernet", TINY["svt"])
    weights = {name: weight for name, weight in weights.items() if not name.startswith("auxiliary_head.")}
    conversion = convert_checkpoint(weights)
    assert conversion.model.auxiliary_head is None
    assert "auxiliary_logits" not in verify(conversion.model, conversion.source_format, weights)


def test_checkpoint_without_batch_counters_converts():
    weights = source_weights("mmseg-semantic-fpn", TINY["svt"])
    conversion = convert_checkpoint({name: weight for name, weight in weights.items() if "num_batches" not in name})
    verify(conversion.model, conversion.source_format, weights)


def change(weights, name, weight):
    weights[name] = weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_one_dtype_with_batch_counters_convert(dtype):
    weights = source_weights("mmseg-semantic-fpn", TINY["svt"])
    weights = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}
    counters = [weight for name, weight in weights.items() if name.endswith("num_batches_tracked")]
    assert {weight.dtype for weight in counters} == {torch.int64}
    conversion = convert_checkpoint(weights)
    assert conversion.model.dtype == dtype
    verify(conversion.model, conversion.source_format, weights)


def quantized(length: int) -> torch.Tensor:
    """A tensor of PyTorch's own quantization, which is deprecated."""
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(length), 0.1, 0, torch.qint8)


BAD_WEIGHTS = {
    "another model": (
        lambda weights: weights.clear() or weights.update(resnet18().state_dict()),
        "not a checkpoint of a",
    ),
    "missing weight": (
        lambda weights: weights.pop("blocks.2.1.attn.kv.weight"),
        "lacks the weights of .*k_proj.weight",
    ),
    "missing stage": (
        lambda weights: weights.pop("patch_embeds.0.proj.weight"),
        "lacks a weight .* patch_embeddings.0",
    ),
    "missing head bias": (lambda weights: weights.pop("head.bias"), "lacks the weights of classifier.bias"),
    "unknown weight": (
        lambda weights: change(weights, "cls_token", torch.ones(1)),
        "no Twins model .* has: cls_token",
    ),
    "wrong shape": (
        lambda weights: change(weights, "blocks.0.1.mlp.fc2.weight", torch.ones(32, 3)),
        r"fc2.weight must have the shape \(32, 64\), got \(32, 3\)",
    ),
    "wrong stack": (
        lambda weights: change(weights, "blocks.0.0.attn.qkv.weight", torch.ones(95, 32)),
        r"qkv.weight must be 3 weights of the same height, stacked, got the shape \(95, 32\)",
    ),
    "repeated weight": (
        lambda weights: change(weights, "blocks.0.0.attn.q.weight", torch.ones(32, 32)),
        "more than one value for .*layers.0.attention.q_proj.weight",
    ),
    "NaN": (lambda weights: weights["norm.weight"].fill_(float("nan")), "NaN or infinity in norm.weight"),
    "infinity": (lambda weights: weights["norm.bias"][1:].fill_(float("inf")), "NaN or infinity in norm.bias"),
    "integers": (
        lambda weights: change(weights, "norm.bias", torch.ones(96, dtype=torch.int64)),
        r"must be floating-point numbers .* in dense tensors, got norm.bias \(torch.int64\): save",
    ),
    "sparse": (
        lambda weights: change(weights, "norm.bias", torch.ones(96).to_sparse()),
        r"in dense tensors, got norm.bias \(torch.sparse_coo\)",
    ),
    "quantized": (lambda weights: change(weights, "norm.bias", quantized(96)), r"got norm.bias \(torch.qint8\)"),
    "without values": (
        lambda weights: change(weights, "norm.bias", torch.ones(96, device="meta")),
        r"got norm.bias \(without values\)",
    ),
    "8 bits": (
        lambda weights: change(weights, "norm.bias", torch.ones(96, dtype=torch.float8_e4m3fn)),
        r"got norm.bias \(torch.float8_e4m3fn\)",
    ),
    "expanded to terabytes": (
        lambda weights: change(weights, "norm.bias", torch.ones(1).expand(1 << 40)),
        r"got norm.bias \(1099511627776 numbers in 4 bytes\)",
    ),
    "no tensor": (
        lambda weights: change(weights, "head.weight", torch.tensor(1.0)),
        r"got head.weight \(a single number\)",
    ),
    "two types": (
        lambda weights: change(weights, "norm.bias", torch.ones(96, dtype=torch.float16)),
        r"must all be of one type, got torch.float32 \(.*\), torch.float16 \(norm.bias\)",
    ),
    "windows in odd blocks": (
        lambda weights: [
            weights.update({name.replace("0.0.attn", "0.1.attn"): weights[name]})
            for name in ("blocks.0.0.attn.qkv.weight", "blocks.0.0.attn.qkv.bias")
        ],
        "more than one value|every other block",
    ),
    "heads that cannot be told": (
        lambda weights: weights.clear() or weights.update(source_weights("official", ODD_WIDTHS)),
        r"Cannot infer the number of heads: the stages have \[32, 40, 64, 96\]",
    ),
}
ODD_WIDTHS = replace(TINY["svt"], hidden_sizes=(32, 40, 64, 96))


@pytest.mark.parametrize("fault", BAD_WEIGHTS)
def test_bad_checkpoint_is_named(fault):
    damage, message = BAD_WEIGHTS[fault]
    weights = source_weights("official", TINY["svt"])
    damage(weights)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(weights)


KINDS = ("sparse", "quantized", "without values", "8 bits", "expanded to terabytes")


@pytest.mark.parametrize("fault", KINDS)
# PyTorch's warnings when it reads such tensors.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_unsupported_kind_of_tensor_in_a_file_is_named(fault, tmp_path):
    damage, message = BAD_WEIGHTS[fault]
    weights = source_weights("official", TINY["svt"])
    damage(weights)
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(read_weights(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "resnet18"])
def test_checkpoint_of_another_model_of_timm_is_refused(name):
    with torch.device("meta"):
        weights = timm.create_model(name).state_dict()
    with pytest.raises(ValueError, match="not a checkpoint of a Twins model in a known format"):
        convert_checkpoint(weights)


def test_weights_swapped_by_a_mapping_are_detected():
    """The verification detects errors that checks of names and shapes cannot."""
    conversion = convert("mmseg-upernet", TINY["svt"])
    layer = conversion.model.backbone.encoder.stages[2].layers[1]
    layer.attention.q_proj, layer.attention.k_proj = layer.attention.k_proj, layer.attention.q_proj
    with pytest.raises(ValueError, match=r"outputs differ from those of mmsegmentation UperNet.* in stage3"):
        verify(conversion.model, conversion.source_format, conversion.source_weights)


def test_swapped_settings_are_detected():
    conversion = convert("mmseg-semantic-fpn", TINY["svt"])
    for module in conversion.model.modules():
        if isinstance(module, torch.nn.LayerNorm) and module.eps == 1e-5:
            module.eps = 1e-3
    with pytest.raises(ValueError, match="outputs differ from those of"):
        verify(conversion.model, conversion.source_format, conversion.source_weights)
