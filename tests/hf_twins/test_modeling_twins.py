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
"""The models, compared with timm's and with straightforward attention, and tested with sizes, dtypes and invalid input."""

import copy
import functools
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import distributed_backbones
import numpy as np
import pytest
import timm
import torch
import torch.nn.utils.parametrize
from PIL import Image
from testing_utils import FAMILIES, NARROW_HEAD, TWO_STAGES, randomize, rectangle_mask, tiny_config
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import BatchFeature, PreTrainedModel
from transformers.utils.output_capturing import (
    OutputRecorder,
    install_all_output_capturing_hooks,
    maybe_install_capturing_hooks,
)

from hf_twins import (
    TWINS_VARIANTS,
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsModel,
)
from hf_twins.checkpoints import ORIGINAL_NAMES, NameTable
from hf_twins.modeling_twins import (
    TwinsAttention,
    TwinsDropPath,
    TwinsEncoder,
    TwinsGlobalAttention,
    TwinsLayer,
    TwinsLocalAttention,
    TwinsMLP,
    TwinsPatchConv2d,
    TwinsPatchEmbeddings,
    TwinsPositionEncoding,
    TwinsSequenceReduction,
    TwinsStage,
    is_exporting,
    mean_over_image,
    to_image,
)


MODEL_CLASSES = [TwinsModel, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsBackbone]


# Fast tests with small models in timm's and the authors' formats are in test_checkpoints.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_variant_computes_the_same_as_timm(name):
    reference = randomize(timm.create_model(name.replace("-", "_")))
    with torch.device("meta"):
        config = TwinsConfig.from_variant(name, window_padding="zeros", out_indices=[1, 2, 3, 4])
        model, backbone = TwinsForImageClassification(config).eval(), TwinsBackbone(config).eval()
    weights = NameTable(ORIGINAL_NAMES).to_hf(reference.state_dict())
    model.load_state_dict(weights, assign=True)
    backbone.load_state_dict(
        {key.removeprefix("twins."): weights[key] for key in weights if ".encoder." in key}, assign=True
    )
    with torch.no_grad():
        for height, width in ((224, 224), (225, 190), (97, 63), (512, 512)):
            pixel_values = torch.randn(1, 3, height, width)
            expected, maps = reference(pixel_values), reference.forward_intermediates(pixel_values)[1]
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-5)
            for feature_map, expected_map in zip(backbone(pixel_values).feature_maps, maps, strict=True):
                # The tolerance is relative to the map, whose values grow with depth.
                scale = expected_map.abs().max()
                torch.testing.assert_close(feature_map / scale, expected_map / scale, rtol=0, atol=1e-5)


def attention_over_windows(attention: TwinsLocalAttention, tokens: torch.Tensor, may_attend) -> torch.Tensor:
    """Compute locally-grouped attention window by window and head by head, on `(height, width, channels)`.

    `may_attend(query, key)` says which positions (row, column) of the padded map see each other.
    """
    window, head_dim = attention.window_size, attention.head_dim
    height, width, channels = tokens.shape
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    padded = torch.zeros(rows * window, columns * window, channels)
    padded[:height, :width] = tokens
    output = torch.zeros_like(padded)
    for top in range(0, rows * window, window):
        for left in range(0, columns * window, window):
            places = [(top + row, left + column) for row in range(window) for column in range(window)]
            x = torch.stack([padded[place] for place in places])
            query, key, value = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
            mask = torch.tensor([[0.0 if may_attend(q, k) else -1000.0 for k in places] for q in places])
            heads = []
            for start in range(0, channels, head_dim):
                part = slice(start, start + head_dim)
                scores = query[:, part] @ key[:, part].T / head_dim**0.5 + mask
                heads.append(scores.softmax(-1) @ value[:, part])
            for place, vector in zip(places, attention.o_proj(torch.cat(heads, -1))):
                output[place] = vector
    return output[:height, :width]


def marked_as_the_authors_do(height: int, width: int, window: int) -> torch.Tensor:
    """The mask of the authors' segmentation code, which marks padding by the slice `[-pad:]`, even where `pad` is 0."""
    pad_bottom, pad_right = -height % window, -width % window
    marked = torch.zeros(height + pad_bottom, width + pad_right)
    marked[-pad_bottom:, :] = 1
    marked[:, -pad_right:] = 1
    return marked


@pytest.mark.parametrize("size", [4, 32], ids=["smaller than the weight", "larger"])
def test_parametrized_convolution_computes_its_weight_once(size):
    class Counted(torch.nn.Module):
        calls = 0

        def forward(self, weight):
            Counted.calls += 1
            return weight

    convolution = TwinsPatchConv2d(8, 8, kernel_size=2, stride=2)
    image = torch.randn(1, 8, size, size)
    expected = convolution(image)
    torch.nn.utils.parametrize.register_parametrization(convolution, "weight", Counted())
    Counted.calls = 0
    torch.testing.assert_close(convolution(image), expected)
    assert Counted.calls == 1


@pytest.mark.parametrize("height_width", [(6, 6), (7, 6), (6, 8), (7, 8), (2, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("window_padding", ["masked", "zeros", "authors_segmentation"])
def test_window_attention_equals_attention_written_out(window_padding, height_width):
    height, width = height_width
    model = randomize(TwinsModel(tiny_config(window_padding=window_padding)))
    attention = model.encoder.stages[1].layers[0].attention
    tokens = torch.randn(height, width, 32)
    marked = marked_as_the_authors_do(height, width, attention.window_size)
    may_attend = {
        "masked": lambda query, key: key[0] < height and key[1] < width,
        "zeros": lambda query, key: True,
        "authors_segmentation": lambda query, key: marked[query] == marked[key],
    }[window_padding]
    with torch.no_grad():
        expected = attention_over_windows(attention, tokens, may_attend)
        output, _ = attention(tokens.view(1, -1, 32), height_width, None)
    torch.testing.assert_close(output.view_as(expected), expected, rtol=0, atol=1e-5)


def test_window_padding_modes_differ_where_they_should():
    # With 18 x 22 tokens and windows of 3, only one side needs padding.
    pixel_values = torch.randn(1, 3, 36, 44)
    outputs = {}
    for window_padding in ("masked", "zeros", "authors_segmentation"):
        torch.manual_seed(0)
        model = randomize(TwinsModel(tiny_config(window_padding=window_padding)))
        outputs[window_padding] = model(pixel_values).pooler_output
    assert (outputs["masked"] - outputs["zeros"]).abs().max() > 1e-3
    assert (outputs["masked"] - outputs["authors_segmentation"]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("height_width", [(8, 8), (16, 24), (63, 97), (9, 130)], ids=str)
def test_patch_padding_gives_maps_of_complete_patches(family, height_width):
    height, width = height_width
    pixel_values = torch.randn(2, 3, height, width)
    for patch_padding, divide in ((False, lambda size, by: size // by), (True, lambda size, by: -(-size // by))):
        backbone = TwinsBackbone(tiny_config(family, patch_padding=patch_padding, out_indices=[1, 2, 3])).eval()
        shapes = [tuple(feature_map.shape[2:]) for feature_map in backbone(pixel_values).feature_maps]
        assert shapes == [(divide(height, stride), divide(width, stride)) for stride in (2, 4, 8)]


def test_patch_padding_equals_padding_the_image():
    torch.manual_seed(0)
    padding_model = randomize(TwinsModel(tiny_config("pcpvt", patch_padding=True)))
    model = TwinsModel(tiny_config("pcpvt")).eval()
    model.load_state_dict(padding_model.state_dict())
    # 31 and 45 need padding in the first stage only: 32 and 46 = 2 * 23 would need it in the second.
    pixel_values = torch.randn(1, 3, 31, 47)
    padded = nn.functional.pad(pixel_values, (0, 1, 0, 1))
    torch.testing.assert_close(padding_model(pixel_values).pooler_output, model(padded).pooler_output)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_of_stage_norm_is_the_input_of_the_next_stage(family):
    backbone = randomize(TwinsBackbone(tiny_config(family, use_stage_norm=True, out_indices=[1, 2, 3])))
    feature_maps = backbone(torch.randn(1, 3, 32, 32)).feature_maps
    for index, norm in enumerate(stage.layernorm for stage in backbone.encoder.stages):
        # Each map is the norm's output ...
        tokens = (feature_maps[index].permute(0, 2, 3, 1) - norm.bias) / norm.weight
        torch.testing.assert_close(tokens.mean(-1), torch.zeros_like(tokens[..., 0]), atol=1e-4, rtol=0)
        torch.testing.assert_close(tokens.std(-1, correction=0), torch.ones_like(tokens[..., 0]), atol=1e-3, rtol=0)
    # ... and the next stage starts from it.
    next_map = backbone.encoder.stages[1](backbone.encoder.patch_embeddings[1](feature_maps[0], None), None)
    torch.testing.assert_close(next_map, feature_maps[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_sdpa_equals_eager(family, model_class, dtype, masked):
    config = tiny_config(family, **NARROW_HEAD)
    eager = randomize(model_class._from_config(config, attn_implementation="eager")).to(dtype)
    sdpa = model_class._from_config(copy.deepcopy(config), attn_implementation="sdpa").eval().to(dtype)
    sdpa.load_state_dict(eager.state_dict())
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    pixel_values = torch.randn(2, 3, 29, 41, dtype=dtype)
    pixel_mask = rectangle_mask([(29, 20), (17, 41)], 29, 41) if masked else None
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    with torch.no_grad():
        expected, output = (model(pixel_values, pixel_mask)[0] for model in (eager, sdpa))
    if model_class is TwinsBackbone:
        (expected,), (output,) = expected, output
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_flash_attention_is_not_used_with_unsupported_masks(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []

    def flash_attention(module, query, key, value, attention_mask, **kwargs):
        # This has the interface of the real function, which supports masks only if queries and keys are the same
        # tokens.
        assert attention_mask is None
        calls.append(query.shape)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash_attention)
    model = randomize(TwinsModel(tiny_config()))
    pixel_values, pixel_mask = torch.randn(2, 3, 29, 41), rectangle_mask([(29, 20), (17, 41)], 29, 41)
    expected = model(pixel_values, pixel_mask).pooler_output
    expected_whole = model(pixel_values).pooler_output
    model.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close(model(pixel_values, pixel_mask).pooler_output, expected)
    assert not calls
    torch.testing.assert_close(model(pixel_values).pooler_output, expected_whole)
    # Only windows that need padding are masked; other windows and global attention are not.
    assert len(calls) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
def test_any_size_from_the_minimum_works_without_leaving_state(family, model_class):
    model = randomize(model_class(tiny_config(family)))
    sizes = [(8, 8), (64, 8), (9, 15), (33, 65), (8, 8), (128, 40)]
    images = [torch.randn(1, 3, height, width) for height, width in sizes]
    with torch.no_grad():
        first = [model(image).logits for image in images]
        again = [model(image).logits for image in reversed(images)][::-1]
    for logits, logits_again in zip(first, again):
        assert logits.isfinite().all()
        assert torch.equal(logits, logits_again)


@pytest.mark.parametrize("name", ["twins-svt-small", "twins-pcpvt-small"])
def test_published_variant_takes_images_from_32_pixels(name):
    model = TwinsForImageClassification(TwinsConfig.from_variant(name)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).logits.isfinite().all()
        assert model(torch.randn(1, 3, 192, 192)).logits.isfinite().all()
        with pytest.raises(ValueError, match=r"at least 32 pixels high and wide.*got 31 x 224"):
            model(torch.randn(1, 3, 31, 224))


@pytest.mark.parametrize("num_channels", [1, 5])
def test_any_number_of_channels(num_channels):
    config = tiny_config(num_channels=num_channels)
    pixel_values = torch.randn(2, num_channels, 16, 16)
    assert TwinsForImageClassification(config)(pixel_values).logits.shape == (2, 5)
    assert TwinsForSemanticSegmentation(config)(pixel_values).logits.shape == (2, 5, 8, 8)


def test_non_contiguous_input_gives_the_same_output():
    model = randomize(TwinsModel(tiny_config()))
    pixel_values = torch.randn(2, 3, 29, 41)
    expected = model(pixel_values).pooler_output
    for same in (
        pixel_values.to(memory_format=torch.channels_last),
        pixel_values.transpose(2, 3).contiguous().transpose(2, 3),
        nn.functional.pad(pixel_values, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    ):
        torch.testing.assert_close(model(same).pooler_output, expected, rtol=1e-5, atol=1e-5)


def test_input_is_not_changed():
    pixel_values = torch.randn(2, 3, 29, 41)
    before = pixel_values.clone()
    with torch.no_grad():
        TwinsModel(tiny_config())(pixel_values, rectangle_mask([(29, 20), (17, 41)], 29, 41))
    assert torch.equal(pixel_values, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
def test_output_of_an_image_does_not_depend_on_others_in_the_batch(family, model_class):
    model = randomize(model_class(tiny_config(family)))
    pixel_values = torch.randn(3, 3, 29, 41)
    with torch.no_grad():
        together = model(pixel_values).logits
        alone = torch.cat([model(image).logits for image in pixel_values.split(1)])
    # Logits are up to 10, and convolutions sum in another order for one image than for three.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model_class", [TwinsModel, TwinsForImageClassification])
def test_hidden_states_are_images(model_class):
    model = model_class(tiny_config()).eval()
    outputs = model(torch.randn(2, 3, 29, 41), output_hidden_states=True)
    # Images of 29 x 41 pixels have 14 x 20, 7 x 10 and 3 x 5 tokens.
    expected = [(2, 16, 14, 20), (2, 16, 14, 20), (2, 32, 7, 10), (2, 48, 3, 5)]
    assert [tuple(state.shape) for state in outputs.hidden_states] == expected
    assert model(torch.randn(1, 3, 29, 41)).hidden_states is None


def test_hidden_states_that_are_not_selected_are_none():
    model = TwinsModel(tiny_config()).eval()
    pixel_values = torch.randn(1, 3, 29, 41)
    everything = model(pixel_values, output_hidden_states=True)
    selected = model(pixel_values, output_hidden_states=[1, -1])
    for index in range(4):
        if index in (1, 3):
            assert torch.equal(selected.hidden_states[index], everything.hidden_states[index])
        else:
            assert selected.hidden_states[index] is None


def test_hidden_states_and_attentions_have_gradients():
    model = TwinsModel._from_config(tiny_config(), attn_implementation="eager")
    outputs = model(torch.randn(2, 3, 29, 41), output_hidden_states=True, output_attentions=True)
    states = (*outputs.hidden_states, *outputs.attentions)
    for state in states:
        state.retain_grad()
    outputs.pooler_output.sum().backward()
    assert all(state.grad is not None for state in states)


def test_attentions_are_distributions_over_real_tokens():
    model = randomize(TwinsModel._from_config(tiny_config(), attn_implementation="eager"))
    attentions = model(torch.randn(2, 3, 29, 41), output_attentions=True).attentions
    # There are 14 x 20, 7 x 10 and 3 x 5 tokens in windows of 3 x 3, with a key for 4 x 4, 2 x 2 and 1 x 1 tokens.
    assert [tuple(attention.shape) for attention in attentions] == [
        (2 * 5 * 7, 1, 9, 9),
        (2, 1, 280, 3 * 5),
        (2 * 3 * 4, 2, 9, 9),
        (2, 2, 70, 3 * 5),
        (2 * 3 * 4, 2, 9, 9),
        (2 * 1 * 2, 3, 9, 9),
        (2, 3, 15, 15),
    ]
    for attention in attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    # The last window in the first row of the second image has the columns 6, 7 and 8, of which only one is on the
    # image.
    last_column = attentions[0].view(2, 5, 7, 1, 9, 3, 3)[:, :, -1]
    assert (last_column[..., 2:] == 0).all()
    assert (last_column[..., :-1, 0] > 0).all()


def test_attentions_through_the_configuration():
    config = tiny_config(attn_implementation="eager", output_attentions=True)
    assert len(TwinsForImageClassification(config)(torch.randn(1, 3, 16, 16)).attentions) == 7
    assert len(TwinsBackbone(config)(torch.randn(1, 3, 16, 16)).attentions) == 7
    assert len(TwinsForSemanticSegmentation(config).eval()(torch.randn(1, 3, 16, 16)).attentions) == 7


@pytest.mark.parametrize(
    ("model_class", "labels"),
    [
        (TwinsForImageClassification, torch.tensor([1, 2])),
        (TwinsForSemanticSegmentation, torch.arange(2 * 16 * 16).view(2, 16, 16) % 5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tuple_output_equals_dict_output(model_class, labels):
    model = model_class(tiny_config()).eval()
    pixel_values = torch.randn(2, 3, 16, 16)
    outputs = model(pixel_values, labels=labels, output_hidden_states=True)
    as_tuple = model(pixel_values, labels=labels, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for value, same in zip(outputs.to_tuple(), as_tuple, strict=True):
        torch.testing.assert_close(value, same)


@pytest.mark.parametrize(
    "out_features", [["stem"], ["stage1", "stage3"], ["stem", "stage1", "stage2", "stage3"]], ids=str
)
def test_backbone_returns_the_requested_features(out_features):
    config = tiny_config(out_features=out_features)
    backbone = randomize(TwinsBackbone(config))
    assert config.out_indices == [config.stage_names.index(name) for name in out_features]
    channels = dict(zip(config.stage_names, [16, 16, 32, 48]))
    assert backbone.channels == [channels[name] for name in out_features]
    pixel_values = torch.randn(1, 3, 29, 41)
    feature_maps = backbone(pixel_values).feature_maps
    everything = backbone(pixel_values, output_hidden_states=True).hidden_states
    assert [feature_map.shape[1] for feature_map in feature_maps] == backbone.channels
    for name, feature_map in zip(out_features, feature_maps):
        assert torch.equal(feature_map, everything[config.stage_names.index(name)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("out_features", "num_stages"),
    [(["stem"], 0), (["stem", "stage1"], 1), (["stage2"], 2), (["stage1", "stage2"], 2), (["stage3"], 3)],
    ids=str,
)
def test_backbone_has_no_stage_after_the_last_requested_one(family, out_features, num_stages):
    whole = randomize(TwinsModel(tiny_config(family)))
    backbone = TwinsBackbone(tiny_config(family, out_features=out_features)).eval()
    assert len(backbone.encoder.stages) == num_stages
    assert len(backbone.encoder.patch_embeddings) == max(num_stages, 1)
    backbone.load_state_dict({name: whole.state_dict()[name] for name in backbone.state_dict()})
    pixel_values = torch.randn(1, 3, 29, 41)
    expected = whole(pixel_values, output_hidden_states=True).hidden_states
    outputs = backbone(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == num_stages + 1
    for hidden_state, same in zip(outputs.hidden_states, expected):
        assert torch.equal(hidden_state, same)
    # The maps are the computed tensors themselves, not copies.
    names = tiny_config(family).stage_names
    assert [id(feature_map) for feature_map in outputs.feature_maps] == [
        id(outputs.hidden_states[names.index(name)]) for name in out_features
    ]
    for hidden_state in outputs.hidden_states:
        hidden_state.retain_grad()
    outputs.feature_maps[-1].sum().backward()
    assert all(hidden_state.grad is not None for hidden_state in outputs.hidden_states)
    # Otherwise, DistributedDataParallel would wait for its gradient.
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_model_around_a_backbone_may_record_its_own_outputs():
    # transformers' models with `capture_outputs` install hooks on all inner models, even if they have some already.
    backbone = randomize(TwinsBackbone(tiny_config(out_features=["stage1", "stage2"])))
    pixel_values = torch.randn(1, 3, 29, 41)
    expected = backbone(pixel_values, output_hidden_states=True)
    install_all_output_capturing_hooks(backbone)
    outputs = backbone(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 3
    for feature_map, same in zip(outputs.feature_maps, expected.feature_maps, strict=True):
        assert torch.equal(feature_map, same)


class EncoderRecordingMLPs(TwinsEncoder):
    _can_record_outputs = {"mlps": OutputRecorder(TwinsMLP, index=0)}


def test_recorded_outputs_are_not_overwritten():
    encoder = randomize(EncoderRecordingMLPs(tiny_config()))
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = encoder(pixel_values, output_mlps=True)
    with torch.no_grad():
        outputs = encoder(pixel_values, output_mlps=True)
    assert len(outputs.mlps) > 1
    for actual, same in zip(outputs.mlps, expected.mlps, strict=True):
        torch.testing.assert_close(actual, same)


@pytest.mark.parametrize(
    "model_class", [TwinsModel, TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation]
)
def test_configuration_without_return_dict_gives_tuples(model_class):
    model = randomize(model_class(tiny_config()))
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = model(pixel_values).to_tuple()
    model.config.return_dict = False
    outputs = model(pixel_values)
    assert isinstance(outputs, tuple)
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masked_mean_is_as_exact_as_the_plain_mean(dtype):
    image = torch.full((1, 2, 128, 128), 4.5, dtype=dtype)
    assert torch.equal(mean_over_image(image, torch.ones(1, 128, 128, dtype=torch.bool)), mean_over_image(image, None))
    odd = torch.randn(1, 64, 19, 19, dtype=dtype)
    mean = mean_over_image(odd, torch.ones(1, 19, 19, dtype=torch.bool))
    torch.testing.assert_close(mean, odd.float().mean((2, 3)).to(dtype), rtol=0, atol=1e-3)


def test_segmentation_model_needs_labels():
    with pytest.raises(ValueError, match="must have num_labels of at least 1, got 0"):
        TwinsForSemanticSegmentation(tiny_config(num_labels=0))


@pytest.mark.parametrize("model_class", [TwinsModel, TwinsBackbone, TwinsForSemanticSegmentation])
def test_copied_and_replaced_parts_keep_their_position_among_the_outputs(model_class):
    config = tiny_config(out_features=["stage1", "stage2"])
    config._attn_implementation = "eager"
    model = randomize(model_class(config))
    pixel_values = torch.randn(1, 3, 29, 41)
    flags = {"output_hidden_states": True, "output_attentions": True}
    expected = model(pixel_values, **flags)
    encoder = getattr(model, "twins", model).encoder
    # PEFT does this with `modules_to_save`.
    encoder.stages[0] = copy.deepcopy(encoder.stages[0])
    encoder.patch_embeddings[0] = copy.deepcopy(encoder.patch_embeddings[0])
    embeddings = TwinsPatchEmbeddings(config, 1).eval()
    embeddings.load_state_dict(encoder.patch_embeddings[1].state_dict())
    encoder.patch_embeddings[1] = embeddings
    outputs = model(pixel_values, **flags)
    for name in ("hidden_states", "attentions"):
        for state, same in zip(outputs[name], expected[name], strict=True):
            assert torch.equal(state, same)
    assert torch.equal(
        *((each.feature_maps if model_class is TwinsBackbone else each)[0] for each in (outputs, expected))
    )


def test_result_is_the_same_without_gradients_if_modules_return_their_input():
    model = randomize(TwinsModel(tiny_config(mlp_ratios=[1, 1, 1])))
    for module in list(model.modules()):
        if isinstance(module, TwinsLayer):
            module.layernorm_after = module.mlp.fc1 = nn.Identity()
        elif isinstance(module, TwinsPositionEncoding):
            module.projection = nn.Identity()
    pixel_values = torch.randn(1, 3, 29, 41)
    expected = model(pixel_values).pooler_output
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).pooler_output, expected)


def test_values_of_a_meta_mask_are_not_read():
    model = TwinsForImageClassification(tiny_config()).to("meta")
    pixel_values = torch.empty(2, 3, 29, 41, device="meta")
    assert model(pixel_values, torch.ones(2, 29, 41, device="meta")).logits.shape == (2, 5)


def test_stage_that_a_backbone_was_built_without_is_named():
    backbone = TwinsBackbone(tiny_config(out_features=["stage1", "stage2"]))
    backbone.out_features = ["stage1"]
    assert len(backbone(torch.randn(1, 3, 16, 16)).feature_maps) == 1
    backbone.out_features = ["stage1", "stage3"]
    with pytest.raises(ValueError, match="asks for stage3, but this backbone was built only up to stage2"):
        backbone(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("out_features", [["stem"], ["stage1", "stage2"]], ids=str)
def test_backbone_without_the_last_stages_is_saved_and_loaded(tmp_path, out_features):
    classifier = randomize(TwinsForImageClassification(tiny_config()))
    classifier.save_pretrained(tmp_path / "classifier")
    pixel_values = torch.randn(1, 3, 29, 41)
    expected = classifier(pixel_values, output_hidden_states=True).hidden_states
    folder = tmp_path / "classifier"
    for _ in range(2):
        backbone, info = TwinsBackbone.from_pretrained(folder, out_features=out_features, output_loading_info=True)
        assert not any(info.values()), info
        assert torch.equal(
            backbone(pixel_values).feature_maps[-1], expected[len(out_features) if "stem" not in out_features else 0]
        )
        folder = tmp_path / "backbone"
        backbone.save_pretrained(folder)


@pytest.mark.slow
def test_backbones_train_in_several_processes():
    """Training works without `find_unused_parameters`, for a backbone alone, in UperNet and in DETR."""
    script = Path(distributed_backbones.__file__)
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    expected = [f"{kind} {family}" for kind in ("stem", "backbone", "upernet", "detr") for family in FAMILIES]
    assert process.stdout.splitlines() == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_gradient_checkpointing_gives_the_same_gradients(family, model_class, use_reentrant, masked):
    dropout = {"drop_path_rate": 0.2, "hidden_dropout_prob": 0.1}
    plain = model_class(tiny_config(family, **TWO_STAGES, **NARROW_HEAD, **dropout)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    pixel_values, labels = torch.randn(4, 3, 29, 41), torch.tensor([0, 1, 2, 3])
    if model_class is TwinsForSemanticSegmentation:
        labels = torch.randint(0, 5, (4, 29, 41))
    pixel_mask = rectangle_mask([(29, 20), (17, 41), (29, 41), (8, 8)], 29, 41) if masked else None
    recomputed = []
    checkpointed.twins.encoder.stages[0].layers[0].mlp.register_forward_hook(lambda *_: recomputed.append(True))
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        # Reentrant checkpoints only propagate gradients if their input requires one.
        model(pixel_values.clone().requires_grad_(), pixel_mask, labels=labels).loss.backward()
    assert len(recomputed) == 2
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(other.grad, parameter.grad, msg=lambda message, name=name: f"{name}: {message}")


def test_gradient_checkpointing_can_be_switched_off():
    model = TwinsForImageClassification(tiny_config()).train()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "expected_loss"),
    [
        ("single_label_classification", 5, torch.tensor([1, 4]), nn.functional.cross_entropy),
        ("multi_label_classification", 5, torch.rand(2, 5).round(), nn.functional.binary_cross_entropy_with_logits),
        ("regression", 1, torch.rand(2, 1), nn.functional.mse_loss),
        ("regression", 5, torch.rand(2, 5), nn.functional.mse_loss),
    ],
)
def test_every_problem_type_has_the_right_loss(problem_type, num_labels, labels, expected_loss):
    model = TwinsForImageClassification(tiny_config(num_labels=num_labels, problem_type=problem_type))
    outputs = model(torch.randn(2, 3, 16, 16), labels=labels)
    torch.testing.assert_close(outputs.loss, expected_loss(outputs.logits, labels))
    outputs.loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("pixel_values", "pixel_mask", "message"),
    [
        (torch.randn(3, 16, 16), None, r"shape \(batch_size, num_channels, height, width\), got \(3, 16, 16\)"),
        (torch.randn(1, 1, 16, 16), None, "must have num_channels=3 channels, got 1"),
        (torch.randn(1, 16, 16, 3), None, r"must have num_channels=3 channels, got 16 \(shape \(1, 16, 16, 3\)\)"),
        (torch.randn(1, 3, 7, 16), None, "at least 8 pixels high and wide.*got 7 x 16"),
        (torch.randn(1, 3, 16, 0), None, "at least 8 pixels high and wide.*got 16 x 0"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), None, "must be floating point, got torch.uint8"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.long), None, "must be floating point, got torch.int64"),
        (None, None, "must be a torch.Tensor of shape .* got NoneType: pass the output of the image processor"),
        ([[[[0.0]]]], None, r"got list: pass .* model\(\*\*processor\(images, return_tensors=\"pt\"\)\)"),
        (np.zeros((1, 3, 16, 16)), None, "got ndarray: pass the output of the image processor"),
        (Image.new("RGB", (16, 16)), None, "got Image: pass the output of the image processor"),
        (BatchFeature({"pixel_values": 1}), None, r"got BatchFeature: unpack .* model\(\*\*inputs\)"),
        ({"pixel_values": 1}, None, r"got dict: unpack .* model\(\*\*inputs\)"),
        (
            torch.randn(1, 3, 16, 16),
            [[[1]]],
            r"must be a torch.Tensor .* \(1, 16, 16\) for these pixel_values, got list",
        ),
        (
            torch.randn(1, 3, 16, 16),
            torch.ones(1, 1, 16, 16),
            r"\(1, 16, 16\) for these pixel_values, got \(1, 1, 16, 16\)",
        ),
        (torch.randn(1, 3, 16, 16), torch.ones(1, 8, 8), r"\(1, 16, 16\) for these pixel_values, got \(1, 8, 8\)"),
        (torch.randn(2, 3, 16, 16), torch.ones(1, 16, 16), r"\(2, 16, 16\) for these pixel_values, got \(1, 16, 16\)"),
        (torch.randn(1, 3, 16, 16), rectangle_mask([(7, 16)], 16, 16), "at least 8 pixels .* images of 7 x 16"),
        (torch.randn(1, 3, 16, 16), torch.zeros(1, 16, 16), "at least 8 pixels .* images of 0 x 0"),
        (torch.randn(1, 3, 16, 16), torch.eye(16)[None], "one rectangle at the top left"),
        (torch.randn(1, 3, 16, 16), rectangle_mask([(8, 8)], 16, 16).flip(2), "one rectangle at the top left"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else "",
)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_bad_input_is_named(model_class, pixel_values, pixel_mask, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(model_class)(pixel_values, pixel_mask)


@functools.cache
def tiny_model(model_class: type[PreTrainedModel]) -> PreTrainedModel:
    return model_class(tiny_config())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_size", 0),
        ("depths", [2, 2]),
        ("depths", [2, 0, 2]),
        ("hidden_sizes", []),
        ("num_attention_heads", [1, 3, 3]),
        ("window_padding", "bogus"),
        ("hidden_act", "bogus"),
        ("drop_path_rate", 1.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_field_set_after_construction_is_checked(model_class, field, value):
    config = tiny_config()
    setattr(config, field, value)
    with pytest.raises(ValueError, match=field):
        model_class(config)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_empty_batch_gives_empty_outputs(model_class, family, masked, implementation):
    config = tiny_config(family, **NARROW_HEAD, out_features=["stage1", "stage3"])
    model = model_class._from_config(config, attn_implementation=implementation)
    pixel_values = torch.randn(1, 3, 29, 41)
    pixel_mask = torch.ones(1, 29, 41, dtype=torch.long) if masked else None
    flags = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    for mode in (True, False):
        model.train(mode)
        expected = model(pixel_values, pixel_mask, **flags)
        outputs = model(pixel_values[:0], pixel_mask[:0] if masked else None, **flags)
        assert list(outputs) == list(expected)
        for name, value in expected.items():
            tensors, empty = (each if isinstance(each, tuple | list) else [each] for each in (value, outputs[name]))
            for tensor, same in zip(tensors, empty, strict=True):
                assert same.shape == (0, *tensor.shape[1:]), name


@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
def test_loss_of_an_empty_batch_is_nan(model_class):
    model = model_class(tiny_config())
    labels = torch.zeros((0,) if model_class is TwinsForImageClassification else (0, 16, 16), dtype=torch.long)
    loss = model(torch.randn(0, 3, 16, 16), labels=labels).loss
    # PyTorch's mean of an empty tensor is NaN, too.
    assert loss.isnan()
    loss.backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# PyTorch warns whenever this mode is set.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_call_does_not_wait_for_the_device(family):
    model = randomize(TwinsForImageClassification(tiny_config(family))).cuda()
    pixel_values, pixel_mask = torch.randn(2, 3, 29, 41).cuda(), rectangle_mask([(29, 20), (17, 41)], 29, 41).cuda()
    with torch.no_grad():
        model(pixel_values, pixel_mask)
        try:
            torch.cuda.set_sync_debug_mode("error")
            model(pixel_values, pixel_mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "part",
    [
        TwinsEncoder,
        TwinsStage,
        TwinsLayer,
        TwinsPatchEmbeddings,
        TwinsLocalAttention,
        TwinsGlobalAttention,
        TwinsAttention,
        TwinsSequenceReduction,
        TwinsPositionEncoding,
        TwinsMLP,
    ],
)
def test_layers_read_like_the_figure(part):
    """Code for exporters, compilers, dtypes and devices must be in separate functions, not in the layers."""
    forward = inspect.getsource(part if part is TwinsAttention else part.forward).lower()
    for word in ("export", "onnx", "compil", "dynamo", "trac", "dtype", "float", "device", "cuda", "cpu", "autocast"):
        assert word not in forward, word


def test_input_with_another_dtype_than_the_weights_raises_the_error_of_pytorch():
    with pytest.raises(RuntimeError, match="type"):
        TwinsModel(tiny_config())(torch.randn(1, 3, 16, 16, dtype=torch.float64))


def test_model_without_pooling_layer_returns_the_last_stage():
    model = randomize(TwinsModel(tiny_config()))
    bare = TwinsModel(tiny_config(), add_pooling_layer=False).eval()
    assert not [name for name in bare.state_dict() if not name.startswith("encoder.")]
    bare.load_state_dict(model.state_dict(), strict=False)
    pixel_values = torch.randn(2, 3, 29, 41)
    with torch.no_grad():
        expected = model(pixel_values, output_hidden_states=True)
        outputs = bare(pixel_values)
    assert torch.equal(outputs.last_hidden_state, expected.hidden_states[-1])
    assert outputs.pooler_output is None
    assert len(bare(pixel_values, return_dict=False)) == 1


def semantic_fpn(weights: dict[str, torch.Tensor], feature_maps: list[torch.Tensor]) -> torch.Tensor:
    """A straightforward implementation of the neck and head of `TwinsForSemanticSegmentation`, for three stages."""

    def conv(name: str, image: torch.Tensor, padding: int) -> torch.Tensor:
        return nn.functional.conv2d(image, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding)

    def conv_layer(name: str, image: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.normalization.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        image = nn.functional.batch_norm(conv(f"{name}.convolution", image, 1), mean, var, weight, bias)
        return image.relu()

    def resize(image: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
        return nn.functional.interpolate(image, size=size, mode=mode)

    def double(image: torch.Tensor) -> torch.Tensor:
        return resize(image, (2 * image.shape[2], 2 * image.shape[3]))

    first, second, third = (conv(f"neck.lateral_convs.{level}", x, 0) for level, x in enumerate(feature_maps))
    second = second + resize(third, second.shape[2:], "nearest")
    first = first + resize(second, first.shape[2:], "nearest")
    first, second, third = (conv(f"neck.output_convs.{level}", x, 1) for level, x in enumerate((first, second, third)))
    heads = "decode_head.scale_heads"
    first = conv_layer(f"{heads}.0.0", first)
    second = double(conv_layer(f"{heads}.1.0", second))
    third = double(conv_layer(f"{heads}.2.2", double(conv_layer(f"{heads}.2.0", third))))
    summed = first + resize(second, first.shape[2:]) + resize(third, first.shape[2:])
    return conv("decode_head.classifier", summed, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("patch_padding", [False, True])
@pytest.mark.parametrize("height_width", [(32, 48), (29, 41), (8, 9)], ids=str)
def test_segmentation_logits_equal_a_semantic_fpn_written_out(family, patch_padding, height_width):
    height, width = height_width
    config = tiny_config(family, patch_padding=patch_padding, out_indices=[1, 2, 3])
    model = randomize(TwinsForSemanticSegmentation(config))
    backbone = TwinsBackbone(config).eval()
    backbone.encoder.load_state_dict(model.twins.encoder.state_dict())
    pixel_values = torch.randn(2, 3, height, width)
    with torch.no_grad():
        logits = model(pixel_values).logits
        expected = semantic_fpn(model.state_dict(), backbone(pixel_values).feature_maps)
    # Logits have the size of the first stage's map, whose patches have a side of 2.
    assert logits.shape == (2, 5, *((-(-size // 2) if patch_padding else size // 2) for size in height_width))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("label_size", [(29, 41), (58, 82), (14, 20)], ids=str)
def test_segmentation_loss_is_cross_entropy_of_pixels_that_have_a_class(ignore_index, label_size):
    config = tiny_config(semantic_loss_ignore_index=ignore_index)
    model = randomize(TwinsForSemanticSegmentation(config))
    labels = torch.randint(0, 5, (2, *label_size))
    labels[:, :5] = ignore_index
    outputs = model(torch.randn(2, 3, 29, 41), labels=labels)
    resized = nn.functional.interpolate(outputs.logits, size=label_size, mode="bilinear", align_corners=False)
    losses = [
        resized[image, :, row, column].logsumexp(0) - resized[image, labels[image, row, column], row, column]
        for image, row, column in (labels != ignore_index).nonzero()
    ]
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())


def test_segmentation_model_trains_every_parameter():
    model = TwinsForSemanticSegmentation(tiny_config()).train()
    labels = torch.randint(0, 5, (2, 29, 41))
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pixel_values = torch.randn(2, 3, 29, 41)
    for _ in range(8):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            # The bias of the keys does not affect the softmax, so it has no gradient.
            assert parameter.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert model.decode_head.scale_heads[0][0].normalization.num_batches_tracked == 8


@pytest.mark.parametrize(
    ("name", "expected"), [("twins-svt-small", 27_797_014), ("twins-pcpvt-small", None), ("twins-svt-large", None)]
)
def test_segmentation_model_has_the_parameters_of_encoder_and_semantic_fpn(name, expected):
    variant = TWINS_VARIANTS[name]
    with torch.device("meta"):
        model = TwinsForSemanticSegmentation(TwinsConfig.from_variant(name, num_labels=150))
    *_, hidden_size = variant.hidden_sizes
    encoder = variant.num_parameters - (hidden_size + 1) * 1000 - 2 * hidden_size
    neck = sum((hidden_size + 1) * 256 for hidden_size in variant.hidden_sizes) + 4 * (9 * 256 + 1) * 256
    # There are convolutions from 256 channels, one for each level, and from 128 channels on levels 2 and 3. Each has
    # two parameters of a batch norm per channel.
    head = 4 * (9 * 256 + 2) * 128 + 3 * (9 * 128 + 2) * 128 + (128 + 1) * 150
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + neck + head
    assert expected in (None, encoder + neck + head)


@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_segmentation_model_with_any_number_of_stages(num_stages):
    config = tiny_config(
        hidden_sizes=[16] * num_stages,
        num_attention_heads=[1] * num_stages,
        depths=[1] * num_stages,
        mlp_ratios=[2] * num_stages,
        sr_ratios=[1] * num_stages,
    )
    logits = randomize(TwinsForSemanticSegmentation(config))(torch.randn(2, 3, 35, 67)).logits
    assert logits.shape == (2, 5, 17, 33)
    assert logits.isfinite().all()


def test_segmentation_widths_and_dropout_follow_the_configuration():
    config = tiny_config(fpn_hidden_size=12, decoder_hidden_size=10, classifier_dropout_prob=0.5)
    model = randomize(TwinsForSemanticSegmentation(config))
    assert {conv.out_channels for conv in [*model.neck.lateral_convs, *model.neck.output_convs]} == {12}
    assert model.decode_head.classifier.in_channels == 10
    pixel_values = torch.randn(1, 3, 29, 41)
    assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    model.decode_head.dropout.train()
    assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)
    # Dropout acts on entire channels: each channel of the map is zero everywhere or nowhere.
    dropped = (model.decode_head.dropout(torch.ones(1, 1000, 3, 3)) == 0).flatten(2)
    assert (dropped.any(2) == dropped.all(2)).all()
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_segmentation_returns_hidden_states_as_images_if_requested():
    model = TwinsForSemanticSegmentation(tiny_config()).eval()
    pixel_values = torch.randn(2, 3, 29, 41)
    assert model(pixel_values).hidden_states is None
    hidden_states = model(pixel_values, output_hidden_states=True).hidden_states
    expected = [(2, 16, 14, 20), (2, 16, 14, 20), (2, 32, 7, 10), (2, 48, 3, 5)]
    assert [tuple(state.shape) for state in hidden_states] == expected
    selected = model(pixel_values, output_hidden_states=[-1]).hidden_states
    assert [state is None for state in selected] == [True, True, True, False]
    assert torch.equal(selected[-1], hidden_states[-1])
    assert len(TwinsForSemanticSegmentation(tiny_config(output_hidden_states=True))(pixel_values).hidden_states) == 4


def test_drop_path_drops_entire_images_and_keeps_the_mean():
    drop_path = TwinsDropPath(0.25).train()
    hidden_states = torch.ones(4000, 4, 3)
    output = drop_path(hidden_states)
    per_image = output.flatten(1)
    assert ((per_image == 0).all(1) | (per_image == 1 / 0.75).all(1)).all()
    assert output.mean().item() == pytest.approx(1, abs=0.05)
    assert drop_path.eval()(hidden_states) is hidden_states


def test_drop_path_rate_rises_linearly_over_all_blocks():
    model = TwinsModel(tiny_config(drop_path_rate=0.6))
    rates = [layer.drop_path.drop_prob for stage in model.encoder.stages for layer in stage.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert TwinsModel(
        tiny_config(hidden_sizes=[16], num_attention_heads=[1], depths=[1], mlp_ratios=[2], sr_ratios=[1])
    )


def test_dropout_acts_in_training_only():
    config = tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = TwinsModel(config)
    pixel_values = torch.randn(1, 3, 16, 16)
    assert not torch.equal(model.train()(pixel_values).pooler_output, model(pixel_values).pooler_output)
    assert torch.equal(model.eval()(pixel_values).pooler_output, model(pixel_values).pooler_output)


@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
def test_weights_are_initialized_as_by_the_authors(model_class):
    model = model_class(TwinsConfig.from_variant("twins-svt-small"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2 / module.groups
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15), name
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all(), name


def test_layer_norm_eps_does_not_affect_norms_after_convolutions():
    model = TwinsModel(tiny_config(layer_norm_eps=1e-3, use_stage_norm=True))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            after_convolution = "patch_embeddings" in name or "sequence_reduction" in name
            assert module.eps == (1e-5 if after_convolution else 1e-3), name


def test_position_encoding_follows_the_first_block():
    model = randomize(TwinsModel(tiny_config()))
    order = []
    stage = model.encoder.stages[1]
    for name, module in (*stage.layers.named_children(), ("position_encoding", stage.position_encoding)):
        module.register_forward_hook(lambda *_, name=name: order.append(name))
    model(torch.randn(1, 3, 16, 16))
    assert order == ["0", "position_encoding", "1", "2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_local_and_global_blocks_alternate_only_in_svt(family):
    model = TwinsModel(tiny_config(family))
    for stage in model.encoder.stages:
        is_local = [isinstance(layer.attention, TwinsLocalAttention) for layer in stage.layers]
        assert is_local == [family == "svt" and index % 2 == 0 for index in range(len(is_local))]


def test_capturing_hooks_are_installed_once():
    backbone = TwinsBackbone(tiny_config())
    maybe_install_capturing_hooks(backbone)
    assert len(backbone(torch.randn(1, 3, 16, 16), output_hidden_states=True).hidden_states) == 4
    classifier = TwinsForImageClassification(tiny_config())
    for _ in range(2):
        assert len(classifier(torch.randn(1, 3, 16, 16), output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_derivative(family):
    model = TwinsModel._from_config(
        tiny_config(family, hidden_sizes=[4, 8, 12]), attn_implementation="eager", dtype=torch.float64
    )
    model = randomize(model)
    pixel_values = torch.randn(1, 3, 10, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: model(image).pooler_output, (pixel_values,), fast_mode=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["twins-svt-small", "twins-pcpvt-small"])
def test_gpu_equals_cpu(name):
    model = randomize(TwinsForImageClassification(TwinsConfig.from_variant(name)))
    pixel_values = torch.randn(2, 3, 225, 190)
    with torch.no_grad():
        expected = model(pixel_values).logits
        output = model.cuda()(pixel_values.cuda()).logits.cpu()
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(24, 24), (33, 47)], ids=["even", "odd"])
def test_reusing_memory_changes_nothing(family, dtype, size):
    """Without gradients, sums and activations are computed in place, but outputs, hidden states and input must not change."""
    model = randomize(TwinsForImageClassification(tiny_config(family, use_stage_norm=True))).to(dtype)
    # The input is not contiguous, and the model must not modify it.
    pixel_values = torch.randn(2, *size, 3, dtype=dtype).permute(0, 3, 1, 2)
    before = pixel_values.clone()
    expected = model(pixel_values, output_hidden_states=True)
    assert expected.logits.requires_grad
    with torch.no_grad():
        actual = model(pixel_values, output_hidden_states=True)
    assert torch.equal(pixel_values, before)
    # With gradients, attention of bfloat16 tensors is computed in float32.
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    pairs = zip((actual.logits, *actual.hidden_states), (expected.logits, *expected.hidden_states), strict=True)
    for tensor, expected_tensor in pairs:
        largest = expected_tensor.abs().max().item()
        torch.testing.assert_close(tensor, expected_tensor.detach(), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_mixed", [True, False], ids=["autocast", "bfloat16"])
def test_gradients_in_bfloat16_equal_those_in_float32(is_mixed, family):
    model = randomize(TwinsForImageClassification(tiny_config(family)))
    half = copy.deepcopy(model) if is_mixed else copy.deepcopy(model).bfloat16()
    pixel_values, labels = torch.randn(4, 3, 33, 47), torch.randint(model.config.num_labels, (4,))
    model(pixel_values, labels=labels).loss.backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        outputs = half(pixel_values.to(half.dtype))
    assert outputs.logits.dtype == torch.bfloat16
    nn.functional.cross_entropy(outputs.logits.float(), labels).backward()
    for (name, parameter), in_half in zip(model.named_parameters(), half.parameters()):
        # Biases of keys have no effect, so their gradients are only rounding errors.
        if not name.endswith("k_proj.bias"):
            error = (in_half.grad.float() - parameter.grad).norm() / parameter.grad.norm()
            assert error < 0.3, (name, error)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_have_three_dimensions(family):
    """Inductor stores tensors of four dimensions around convolutions as channels-last images, which needs copies in every layer."""
    model = randomize(TwinsForImageClassification(tiny_config(family))).eval()
    graph = make_fx(lambda image: model(image).logits)(torch.randn(2, 3, 29, 41)).graph
    aten = torch.ops.aten
    operators = {aten.native_layer_norm.default, aten.add.Tensor, aten.gelu.default}
    dimensions = {len(node.args[0].meta["tensor_meta"].shape) for node in graph.nodes if node.target in operators}
    assert dimensions == {3}
    assert {node.target for node in graph.nodes} >= operators


@pytest.mark.parametrize("batch_size", [1, 2])
def test_convolutions_treat_tokens_as_channels_last_images(batch_size):
    """Otherwise, their output has another layout, and later layers copy it. For one image, its batch stride decides."""
    image = to_image(torch.randn(batch_size, 12, 8), (3, 4))
    assert image.stride() == (96, 1, 32, 8)
    with torch.no_grad():
        output = nn.Conv2d(8, 8, 3, padding=1, groups=8)(image)
    assert output.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.usefixtures("fresh_compiler")
def test_compilation_is_not_mistaken_for_an_export():
    compiled = torch.compile(lambda x: x + is_exporting(), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == 0
    for strict in (True, False):
        exported = torch.export.export(ExportingProbe(), (torch.zeros(1),), strict=strict)
        assert exported.module()(torch.zeros(1)).item() == 1


class ExportingProbe(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + is_exporting()
