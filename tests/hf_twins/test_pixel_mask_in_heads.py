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
"""Heads of transformers pass their `pixel_mask` to the Twins backbone, so that outputs do not depend on padding."""

import copy
import threading

import pytest
import torch
from testing_utils import randomize, rectangle_mask, tiny_config
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_twins import TwinsBackbone, TwinsForImageClassification, pass_pixel_mask_to_backbone


SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
# Fields for three levels, with the strides of the tiny backbone.
PYRAMID = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 32, 48],
    "feat_strides": [2, 4, 8],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
}
HEADS = {
    "detr": (DetrForObjectDetection, DetrConfig, ["stage3"], SMALL),
    "conditional-detr": (ConditionalDetrForObjectDetection, ConditionalDetrConfig, ["stage3"], SMALL),
    "deformable-detr": (
        *(DeformableDetrForObjectDetection, DeformableDetrConfig, ["stage2", "stage3"]),
        SMALL | {"num_feature_levels": 3},
    ),
    "rt-detr": (RTDetrForObjectDetection, RTDetrConfig, ["stage1", "stage2", "stage3"], SMALL | PYRAMID),
    "d-fine": (DFineForObjectDetection, DFineConfig, ["stage1", "stage2", "stage3"], SMALL | PYRAMID),
    "upernet": (
        *(UperNetForSemanticSegmentation, UperNetConfig, ["stage1", "stage2", "stage3"]),
        {"hidden_size": 16, "use_auxiliary_head": False, "pool_scales": [1, 2]},
    ),
}
SIZE, HEIGHT, WIDTH = (32, 40), 48, 64


def tiny_head(name: str, **backbone):
    model_class, config_class, out_features, fields = HEADS[name]
    backbone_config = tiny_config(out_features=out_features, **backbone)
    model = model_class(config_class(backbone_config=backbone_config, **fields)).eval()
    randomize(backbone_of(model))
    return model


def backbone_of(model) -> TwinsBackbone:
    return next(module for module in model.modules() if isinstance(module, TwinsBackbone))


def feature_maps(model, *args, **kwargs) -> tuple[torch.Tensor, ...]:
    """The feature maps that the backbone passes to the head."""
    seen = []
    handle = backbone_of(model).register_forward_hook(lambda module, args, output: seen.append(output.feature_maps))
    with torch.no_grad():
        model(*args, **kwargs)
    handle.remove()
    return seen[0]


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, the second of which is smaller and padded with noise."""
    return torch.randn(2, 3, HEIGHT, WIDTH), rectangle_mask([(HEIGHT, WIDTH), SIZE], HEIGHT, WIDTH)


def difference(together: tuple[torch.Tensor, ...], alone: tuple[torch.Tensor, ...]) -> float:
    """The largest difference between feature maps in the batch and without it, relative to the maps."""
    return max(
        ((batch_map[1, :, : own.shape[2], : own.shape[3]] - own[0]).abs().max() / own.abs().max()).item()
        for batch_map, own in zip(together, alone, strict=True)
    )


@pytest.mark.parametrize("window_padding", ["masked", "zeros"])
@pytest.mark.parametrize("name", HEADS)
def test_feature_maps_do_not_depend_on_padding(name, window_padding):
    model = tiny_head(name, window_padding=window_padding)
    pixel_values, pixel_mask = padded_batch()
    alone = feature_maps(model, pixel_values[1:, :, : SIZE[0], : SIZE[1]])
    assert difference(feature_maps(model, pixel_values, pixel_mask=pixel_mask), alone) > 0.01
    pass_pixel_mask_to_backbone(model)
    together = feature_maps(model, pixel_values, pixel_mask=pixel_mask)
    assert difference(together, alone) < 1e-5
    for batch_map, own in zip(together, alone, strict=True):
        assert (batch_map[1, :, own.shape[2] :] == 0).all()
        assert (batch_map[1, :, :, own.shape[3] :] == 0).all()


@pytest.mark.parametrize("name", ["detr", "conditional-detr"])
def test_predictions_do_not_depend_on_padding(name):
    model = tiny_head(name)
    pixel_values, pixel_mask = padded_batch()
    pass_pixel_mask_to_backbone(model)
    with torch.no_grad():
        alone = model(pixel_values[1:, :, : SIZE[0], : SIZE[1]])
        # DETR's arguments may be positional.
        together = model(pixel_values, pixel_mask)
    for field in ("logits", "pred_boxes"):
        torch.testing.assert_close(together[field][1], alone[field][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["detr", "upernet"])
def test_without_a_mask_nothing_changes(name):
    model = tiny_head(name)
    pixel_values, _ = padded_batch()
    expected = feature_maps(model, pixel_values)
    pass_pixel_mask_to_backbone(model)
    for actual in (feature_maps(model, pixel_values), feature_maps(model, pixel_values, pixel_mask=None)):
        assert all(torch.equal(*maps) for maps in zip(actual, expected, strict=True))


def test_hooks_are_removed():
    model = tiny_head("detr")
    batch = padded_batch()
    expected = feature_maps(model, *batch)
    with pass_pixel_mask_to_backbone(model):
        assert not torch.equal(feature_maps(model, *batch)[0], expected[0])
    assert torch.equal(feature_maps(model, *batch)[0], expected[0])
    pass_pixel_mask_to_backbone(model).remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in (model, backbone_of(model)))


def test_mask_of_a_failed_call_is_discarded():
    model = tiny_head("upernet")
    pixel_values, pixel_mask = padded_batch()
    expected = feature_maps(model, pixel_values)
    pass_pixel_mask_to_backbone(model)
    with pytest.raises(ValueError, match=r"pixel_mask must be a torch.Tensor of shape"):
        model(pixel_values, pixel_mask=pixel_mask[:, 1:])
    assert torch.equal(feature_maps(model, pixel_values)[0], expected[0])
    # Call the backbone directly, without the model.
    with torch.no_grad():
        assert torch.equal(backbone_of(model)(pixel_values).feature_maps[0], expected[0])


def test_calls_within_a_call_keep_their_own_masks():
    outer, inner = tiny_head("upernet"), tiny_head("upernet")
    batch = padded_batch()
    other = torch.randn(1, 3, 24, 24)
    for model in (outer, inner):
        pass_pixel_mask_to_backbone(model)
    expected, inner_expected = feature_maps(outer, batch[0], pixel_mask=batch[1]), feature_maps(inner, other)
    seen = []
    # Another model runs without a mask before the outer backbone.
    handle = backbone_of(outer).encoder.register_forward_pre_hook(
        lambda module, args: seen.append(feature_maps(inner, other))
    )
    actual = feature_maps(outer, batch[0], pixel_mask=batch[1])
    handle.remove()
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(seen[0][0], inner_expected[0])


def test_threads_keep_their_own_masks():
    model = tiny_head("upernet")
    pass_pixel_mask_to_backbone(model)
    batches = [
        (torch.randn(1, 3, HEIGHT, WIDTH), rectangle_mask([(8 * (1 + index), 64 - 8 * index)], HEIGHT, WIDTH))
        for index in range(6)
    ]
    with torch.no_grad():
        expected = [model(images, pixel_mask=mask).logits for images, mask in batches]
    actual = [None] * len(batches)
    start = threading.Barrier(len(batches))

    def call(index: int) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(3):
                actual[index] = model(batches[index][0], pixel_mask=batches[index][1]).logits

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(*logits) for logits in zip(actual, expected))


def test_hooks_do_not_affect_saved_files(tmp_path):
    model = tiny_head("detr")
    plain_names, plain_config = set(model.state_dict()), model.config.to_dict()
    pass_pixel_mask_to_backbone(model)
    assert set(model.state_dict()) == plain_names
    assert model.config.to_dict() == plain_config
    model.save_pretrained(tmp_path)
    loaded = DetrForObjectDetection.from_pretrained(tmp_path).eval()
    batch = padded_batch()
    expected = feature_maps(model, *batch)
    assert not torch.equal(feature_maps(loaded, *batch)[0], expected[0])
    pass_pixel_mask_to_backbone(loaded)
    assert torch.equal(feature_maps(loaded, *batch)[0], expected[0])


def test_copy_has_it_too():
    model = tiny_head("upernet")
    pass_pixel_mask_to_backbone(model)
    batch = padded_batch()
    expected = feature_maps(model, batch[0], pixel_mask=batch[1])
    assert torch.equal(feature_maps(copy.deepcopy(model), batch[0], pixel_mask=batch[1])[0], expected[0])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_model_passes_the_mask():
    model = tiny_head("detr")
    pass_pixel_mask_to_backbone(model)
    batch = padded_batch()
    with torch.no_grad():
        expected = model(*batch).logits
        actual = torch.compile(model, backend="eager")(*batch).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_model_without_a_backbone_is_named():
    with pytest.raises(ValueError, match="contain a TwinsBackbone, but TwinsForImageClassification does not"):
        pass_pixel_mask_to_backbone(TwinsForImageClassification(tiny_config()))
