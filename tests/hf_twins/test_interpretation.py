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
"""Attention maps, rollout and Grad-CAM, compared with straightforward implementations and on images with known answers."""

import copy

import pytest
import torch
from testing_utils import FAMILIES, TWO_STAGES, rectangle_mask, tiny_config
from testing_utils import randomize as randomized
from torch import nn
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsModel,
    attention_maps,
    attention_rollout,
    grad_cam,
    pass_pixel_mask_to_backbone,
)
from hf_twins.configuration_twins import WINDOW_PADDING_MODES
from hf_twins.modeling_twins import TwinsAttention, TwinsLocalAttention


HEIGHT, WIDTH = 29, 41
# These are 14 x 20, 12 x 13 and 10 x 20 tokens of the first stage: no side, one side or both sides are multiples of
# the window.
IMAGE_SIZES = [(29, 41), (24, 27), (20, 41)]
# Window padding only applies to models with windows.
CASES = [("pcpvt", "masked"), *(("svt", window_padding) for window_padding in WINDOW_PADDING_MODES)]


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.randn(len(IMAGE_SIZES), 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[True, False], ids=["pixel_mask", "no mask"])
def pixel_mask(request) -> torch.Tensor | None:
    return rectangle_mask(IMAGE_SIZES, HEIGHT, WIDTH) if request.param else None


def image_grid(token_mask: torch.Tensor) -> tuple[int, int]:
    return int(token_mask[:, 0].sum()), int(token_mask[0].sum())


def weights_by_hand(
    attention: TwinsAttention, tokens: torch.Tensor, size: tuple[int, int], query: tuple[int, int], key_grid: list[int]
) -> torch.Tensor:
    """Compute one query's weights, `(num_heads, key_height, key_width)`, key by key, for one image `(height, width, channels)`."""
    scores = torch.full((attention.q_proj.out_features // attention.head_dim, *key_grid), -torch.inf)
    query_state = attention.q_proj(tokens[query]).view(-1, attention.head_dim)
    for row in range(key_grid[0]):
        for column in range(key_grid[1]):
            if isinstance(attention, TwinsLocalAttention):
                window = attention.window_size
                if (row // window, column // window) != (query[0] // window, query[1] // window):
                    continue
                on_image = row < size[0] and column < size[1]
                is_masked = attention.window_padding == "masked" or (
                    attention.window_padding == "authors_segmentation" and size[0] % window and size[1] % window
                )
                if is_masked and not on_image:
                    continue
                state = tokens[row, column] if on_image else torch.zeros_like(tokens[0, 0])
            else:
                ratio = attention.sr_ratio
                if (row + 1) * ratio > size[0] or (column + 1) * ratio > size[1]:
                    continue
                square = tokens[row * ratio : (row + 1) * ratio, column * ratio : (column + 1) * ratio]
                state = square[0, 0]
                if ratio > 1:
                    state = attention.sequence_reduction(square.reshape(1, ratio**2, -1), (ratio, ratio))[0, 0]
            key_state = attention.k_proj(state).view(-1, attention.head_dim)
            scores[:, row, column] = (query_state * key_state).sum(1) * attention.head_dim**-0.5
    return scores.flatten(1).softmax(1).view_as(scores)


@pytest.mark.parametrize(("family", "window_padding"), CASES)
def test_attention_maps_equal_the_attention_written_out(family, window_padding, pixel_values, pixel_mask):
    model = randomized(TwinsModel(tiny_config(family, window_padding=window_padding)))
    inputs = {}
    for module in model.modules():
        if isinstance(module, TwinsAttention):
            module.register_forward_pre_hook(
                lambda module, args: inputs.__setitem__(module, args[0].unflatten(1, args[1]))
            )
    layers = attention_maps(model, pixel_values, pixel_mask)
    assert [(layer.stage, layer.layer, layer.index) for layer in layers] == [
        *(("stage1", 0, 0), ("stage1", 1, 1), ("stage2", 0, 2), ("stage2", 1, 3), ("stage2", 2, 4)),
        *(("stage3", 0, 5), ("stage3", 1, 6)),
    ]
    for layer, (attention, tokens) in zip(layers, inputs.items()):
        assert layer.grid == tuple(tokens.shape[1:3])
        sizes = [image_grid(token_mask) for token_mask in layer.token_mask]
        smallest = tuple(min(side) for side in zip(*sizes))
        for query in [(0, 0), (smallest[0] - 1, smallest[1] - 1), (smallest[0] // 2, smallest[1] - 1)]:
            maps = layer.from_query(*query)
            assert maps.shape[2:] == layer.key_grid
            for image, size in enumerate(sizes):
                with torch.no_grad():
                    expected = weights_by_hand(attention, tokens[image], size, query, layer.key_grid)
                torch.testing.assert_close(maps[image], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "window_padding"), CASES)
def test_attention_maps_sum_to_one_and_give_masked_padding_nothing(family, window_padding, pixel_values, pixel_mask):
    model = randomized(TwinsModel(tiny_config(family, window_padding=window_padding)))
    gave_to_padding = False
    for layer in attention_maps(model, pixel_values, pixel_mask):
        keys = layer.key_grid
        sizes = [image_grid(token_mask) for token_mask in layer.token_mask]
        from_all = [layer.from_query(row, column) for row in range(2) for column in range(3)]
        for maps in (layer.received(), *from_all):
            torch.testing.assert_close(maps.sum((2, 3)), torch.ones(maps.shape[:2]))
            for image_maps, (image_height, image_width) in zip(maps, sizes):
                outside = torch.ones(keys, dtype=torch.bool)
                outside[: image_height // layer.sr_ratio, : image_width // layer.sr_ratio] = False
                if window_padding == "masked" or layer.window_size is None:
                    assert (image_maps[:, outside] == 0).all()
                else:
                    gave_to_padding |= bool((image_maps[:, outside] > 0).any())
    assert gave_to_padding == (family == "svt" and window_padding != "masked")


def test_attention_received_is_the_mean_over_the_tokens_of_the_image(pixel_values):
    model = randomized(TwinsModel(tiny_config()))
    pixel_mask = rectangle_mask(IMAGE_SIZES, HEIGHT, WIDTH)
    for layer in attention_maps(model, pixel_values[1:2], pixel_mask[1:2])[:2]:
        queries = layer.token_mask[0].nonzero().tolist()
        mean = torch.stack([layer.from_query(row, column) for row, column in queries]).mean(0)
        torch.testing.assert_close(layer.received(), mean)


@pytest.mark.parametrize(("family", "window_padding"), CASES)
@pytest.mark.parametrize("patch_padding", [False, True])
def test_rollout_equals_the_product_of_matrices(family, window_padding, patch_padding, pixel_values, pixel_mask):
    """The token-by-token matrices of the paper are built from the maps of every single token."""
    config = tiny_config(family, window_padding=window_padding, patch_padding=patch_padding)
    # The image is small, because the matrices are large.
    pixel_values = pixel_values[1:2, :, :19, :21]
    pixel_mask = None if pixel_mask is None else rectangle_mask([(15, 18)], 19, 21)
    layers = attention_maps(randomized(TwinsModel(config)), pixel_values, pixel_mask)
    product, above = None, None
    for layer in reversed(layers):
        token_mask = layer.token_mask[0]
        tokens = token_mask.nonzero().tolist()
        if product is None:
            product = torch.full((1, len(tokens)), 1 / len(tokens))
        elif above.stage != layer.stage:
            product = product @ shares(above.token_mask[0].nonzero().tolist(), tokens, 2)
        matrix = torch.zeros(len(tokens), len(tokens))
        keys = [[row, column] for row in range(layer.key_grid[0]) for column in range(layer.key_grid[1])]
        of_keys = shares(keys, tokens, layer.sr_ratio)
        for index, token in enumerate(tokens):
            matrix[index] = layer.from_query(*token).mean(1).flatten() @ of_keys
        product = product @ (matrix + torch.eye(len(tokens))) / 2
        above = layer
    rollout = attention_rollout(layers)[0]
    torch.testing.assert_close(rollout[layers[0].token_mask[0]], product[0])
    assert (rollout[~layers[0].token_mask[0]] == 0).all()
    total = rollout.sum().item()
    assert total == pytest.approx(1) if family == "pcpvt" or window_padding == "masked" else 0.5 < total < 1.000001


def shares(squares: list[list[int]], tokens: list[list[int]], ratio: int) -> torch.Tensor:
    """The share of each square that each token has."""
    matrix = torch.tensor(
        [[float([row // ratio, column // ratio] == square) for row, column in tokens] for square in squares]
    )
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1)


def test_rollout_of_one_token_stays_in_its_window(pixel_values):
    layers = attention_maps(randomized(TwinsModel(tiny_config())), pixel_values)
    rollout = attention_rollout(layers[:1], query=(4, 7))
    assert (rollout > 0).nonzero()[:, 1:].unique(dim=0).tolist() == [[r, c] for r in (3, 4, 5) for c in (6, 7, 8)]
    assert (rollout[:, 4, 7] > 0.5).all()


@pytest.mark.parametrize(("family", "window_padding"), CASES)
def test_maps_of_an_image_do_not_depend_on_others_in_the_batch(family, window_padding, pixel_values):
    model = randomized(TwinsForImageClassification(tiny_config(family, window_padding=window_padding)))
    pixel_mask = rectangle_mask(IMAGE_SIZES, HEIGHT, WIDTH)
    layers = attention_maps(model, pixel_values, pixel_mask)
    rollouts = attention_rollout(layers)
    cams = {stage: grad_cam(model, pixel_values, 2, stage, pixel_mask) for stage in ("stage1", "stage2", "stage3")}
    for image, (height, width) in enumerate(IMAGE_SIZES):
        alone = pixel_values[image : image + 1, :, :height, :width]
        rows, columns = height // 2, width // 2
        alone_layers = attention_maps(model, alone)
        for layer, alone_layer in zip(layers, alone_layers):
            cropped = layer.received()[image, :, : alone_layer.key_grid[0], : alone_layer.key_grid[1]]
            torch.testing.assert_close(cropped, alone_layer.received()[0], rtol=1e-4, atol=1e-6)
        expected = attention_rollout(alone_layers)[0]
        torch.testing.assert_close(rollouts[image, :rows, :columns], expected, rtol=1e-4, atol=1e-6)
        for stage, cam in cams.items():
            expected = grad_cam(model, alone, 2, stage)[0]
            cropped = cam[image, : expected.shape[0], : expected.shape[1]]
            torch.testing.assert_close(cropped, expected, rtol=1e-3, atol=1e-4)
            assert cam[image].sum() == pytest.approx(expected.sum().item(), rel=1e-3)


def test_maps_do_not_change_the_model(pixel_values):
    model = TwinsForImageClassification._from_config(tiny_config(), attn_implementation="sdpa").eval()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    # Hooks of transformers do not count.
    num_hooks = [len(module._forward_hooks) for module in model.modules()]
    with torch.inference_mode():
        attention_maps(model, pixel_values)
        grad_cam(model, pixel_values)
    grad_cam(model, pixel_values, label=[0, 1, 2], stage="stage1")
    with pytest.raises(ValueError, match="at least 8 pixels"):
        attention_maps(model, pixel_values[:, :, :4])
    with pytest.raises(ValueError, match="at least 8 pixels"):
        grad_cam(model, pixel_values[:, :, :4])
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not pixel_values.requires_grad
    assert [len(module._forward_hooks) for module in model.modules()] == num_hooks


def test_grad_cam_of_the_last_stage_is_the_class_activation_map(pixel_values, pixel_mask):
    model = randomized(TwinsForImageClassification(tiny_config()))
    labels = [4, 0, 2]
    with torch.no_grad():
        image = model.twins(pixel_values, pixel_mask).last_hidden_state
    expected = torch.einsum("bchw,bc->bhw", image, model.classifier.weight.detach()[labels]).relu()
    expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-9)
    cam = grad_cam(model, pixel_values, torch.tensor(labels), pixel_mask=pixel_mask)
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
@pytest.mark.parametrize("family", FAMILIES)
def test_grad_cam_equals_its_equations(family, model_class, pixel_values, pixel_mask):
    model = randomized(model_class(tiny_config(family)))
    outputs = model(pixel_values, pixel_mask, output_hidden_states=True)
    activations = outputs.hidden_states[2]
    for image, (height, width) in enumerate(IMAGE_SIZES if pixel_mask is not None else [(HEIGHT, WIDTH)] * 3):
        logits = outputs.logits[image]
        if model_class is TwinsForSemanticSegmentation:
            logits = logits[:, : height // 2, : width // 2].sum((1, 2))
        (gradients,) = torch.autograd.grad(logits[3], activations, retain_graph=True)
        gradients = gradients[image, :, : height // 4, : width // 4]
        expected = torch.zeros(7, 10)
        for channel in range(activations.shape[1]):
            expected += gradients[channel].mean() * activations[image, channel].detach()
        expected = expected.clamp(min=0) / expected.max()
        cam = grad_cam(model, pixel_values, 3, "stage2", pixel_mask)[image]
        torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-4)
        assert cam.max() == 1
        assert (cam[height // 4 :] == 0).all()
        assert (cam[:, width // 4 :] == 0).all()


@pytest.mark.slow
def test_compiled_model_has_the_same_maps(pixel_values, fresh_compiler):
    model = randomized(TwinsForImageClassification(tiny_config(**TWO_STAGES)))
    expected, num_layers = grad_cam(model, pixel_values, 1), len(attention_maps(model, pixel_values))
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(grad_cam(compiled, pixel_values, 1), expected)
    assert len(attention_maps(compiled, pixel_values)) == num_layers
    model.compile(backend="eager")
    assert torch.equal(grad_cam(model, pixel_values, 1), expected)
    part = randomized(TwinsForImageClassification(tiny_config()))
    part.twins = torch.compile(part.twins, backend="eager")
    with pytest.raises(ValueError, match="must not contain a compiled Twins encoder"):
        grad_cam(part, pixel_values, 1)


def test_grad_cam_of_a_class_without_support_is_zero(pixel_values):
    model = randomized(TwinsForImageClassification(tiny_config()))
    with torch.no_grad():
        model.classifier.weight[1] = 0
    assert torch.equal(grad_cam(model, pixel_values, 1), torch.zeros(3, 3, 5))


def test_label_may_be_a_name(pixel_values):
    names = {0: "cat", 1: "crane", 2: "dog", 3: "crane", 4: "owl"}
    model = TwinsForImageClassification(tiny_config(id2label=names)).eval()
    for label, expected in (("dog", 2), (["cat", 4, "dog"], [0, 4, 2])):
        assert torch.equal(grad_cam(model, pixel_values, label), grad_cam(model, pixel_values, expected))
    with pytest.raises(ValueError, match=r"got 'crane', the name of 1 and 3\."):
        grad_cam(model, pixel_values, "crane")


def test_maps_of_a_head_of_transformers(pixel_values):
    backbone_config = tiny_config(hidden_sizes=[16, 16, 16], num_attention_heads=[1, 2, 2])
    backbone_config.set_output_features_output_indices(out_features=["stage1", "stage2", "stage3"], out_indices=None)
    config = UperNetConfig(
        backbone_config=backbone_config, hidden_size=8, use_auxiliary_head=False, num_labels=4, pool_scales=[1, 2]
    )
    model = UperNetForSemanticSegmentation(config).eval()
    assert len(attention_maps(model, pixel_values)) == 7
    assert model.config.backbone_config._attn_implementation == "sdpa"
    assert grad_cam(model, pixel_values, label=3, stage="stage1").shape == (3, 14, 20)


def test_mask_of_logits_of_the_size_of_the_image():
    backbone_config = tiny_config(out_features=["stage1", "stage2"])
    config = UperNetConfig(
        backbone_config=backbone_config, hidden_size=8, use_auxiliary_head=False, num_labels=4, pool_scales=[1]
    )
    model = UperNetForSemanticSegmentation(config).eval()
    mask = rectangle_mask([(64, 96), (32, 64)], 64, 96)
    pass_pixel_mask_to_backbone(model)
    maps = grad_cam(model, torch.randn(2, 3, 64, 96), 3, stage="stage1", pixel_mask=mask)
    assert maps.shape == (2, 32, 48)
    assert maps[1, 16:].abs().max() == 0
    assert maps[1, :, 32:].abs().max() == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_encoder_is_refused(pixel_values):
    model = TwinsForImageClassification(tiny_config()).eval()
    model.twins.encoder.compile(backend="eager")
    for function in (attention_maps, grad_cam):
        with pytest.raises(ValueError, match="must not contain a compiled Twins encoder"):
            function(model, pixel_values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_maps_in_other_dtypes(dtype, pixel_values):
    model = randomized(TwinsForImageClassification(tiny_config())).to(dtype)
    layers = attention_maps(model, pixel_values.to(dtype))
    expected_dtype = torch.promote_types(dtype, torch.float32)
    assert {layer.received().dtype for layer in layers} == {expected_dtype}
    torch.testing.assert_close(
        attention_rollout(layers).sum((1, 2)), torch.ones(3, dtype=expected_dtype), atol=1e-2, rtol=0
    )
    assert grad_cam(model, pixel_values.to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, images: attention_maps(model.train(), images), "evaluation mode: call model.eval"),
        (lambda model, images: grad_cam(model.train(), images), "evaluation mode: call model.eval"),
        (
            lambda model, images: attention_maps(nn.Linear(2, 2).eval(), images),
            "must be or contain a Twins model, got Linear",
        ),
        (lambda model, images: attention_maps(model, images)[1].from_query(14, 0), r"stage1 token .* \(14, 0\)"),
        (lambda model, images: attention_maps(model, images)[1].from_query(0, -1), r"stage1 .* got \(0, -1\)"),
        (
            lambda model, images: attention_maps(model, images, rectangle_mask(IMAGE_SIZES, HEIGHT, WIDTH))[
                0
            ].from_query(12, 0),
            r"every image, got \(12, 0\) for images of 14 x 20, 12 x 13, 10 x 20 tokens",
        ),
        (
            lambda model, images: attention_rollout([]),
            r"one or more consecutive layers of a model, got the indices \[\]",
        ),
        (
            lambda model, images: attention_rollout(attention_maps(model, images)[::2]),
            r"consecutive .* \[0, 2, 4, 6\]",
        ),
        (lambda model, images: attention_rollout(attention_maps(model, images), query=(3, 0)), "stage3 token"),
        (lambda model, images: grad_cam(model, images, stage="stem"), "one of stage1, stage2, stage3, got 'stem'"),
        (lambda model, images: grad_cam(model, images, label=5), "label must be from 0 to 4, got 5"),
        (lambda model, images: grad_cam(model, images, label=[0, 1]), "one for each of the 3 images, got"),
        (lambda model, images: grad_cam(model, images, label=0.5), "label must be an integer"),
        (
            lambda model, images: grad_cam(model, images, label="cat"),
            "label must be .* got 'cat', the name of no class",
        ),
        (lambda model, images: grad_cam(model.twins, images), "model must return logits.*TwinsModel"),
    ],
    ids=[
        *("training", "training cam", "no Twins", "row", "column", "off an image", "no layers", "not consecutive"),
        *("query", "stage", "label", "labels", "label type", "label name", "no logits"),
    ],
)
def test_bad_input_is_named(call, message, pixel_values):
    with pytest.raises(ValueError, match=message):
        call(TwinsForImageClassification(tiny_config()).eval(), pixel_values)


# Images of noise with one textured square at a random place. The label is the kind of texture.
IMAGE_SIZE, SIDE = 32, 8
STRIPES = torch.tensor([2.0, 2.0, -2.0, -2.0]).repeat(SIDE // 4).expand(SIDE, SIDE)
TEXTURES = torch.stack([STRIPES, STRIPES.T, STRIPES * STRIPES.T / 2, torch.ones(SIDE, SIDE)]) + 1


def textured_images(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Create images, labels, and the top left corners of the squares in pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    labels = torch.randint(len(TEXTURES), (num_images,), generator=generator)
    corners = SIDE * torch.randint(IMAGE_SIZE // SIDE, (num_images, 2), generator=generator)
    for image, label, (row, column) in zip(images, labels, corners.tolist()):
        image[:, row : row + SIDE, column : column + SIDE] += TEXTURES[label]
    return images, labels, corners


def trained_model(**overrides) -> TwinsForImageClassification:
    sizes = {"patch_size": 2, "hidden_sizes": [16, 32], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    config = TwinsConfig(**sizes, sr_ratios=[4, 2], num_labels=len(TEXTURES), **overrides)
    torch.manual_seed(0)
    model = TwinsForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        images, labels, _ = textured_images(32, seed=100 + step)
        model(images, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def share_of_peaks_on_the_square(maps: torch.Tensor, corners: torch.Tensor) -> float:
    """The share of maps `(batch_size, height, width)` with a peak on the square; at random, it would be 1/16."""
    stride = IMAGE_SIZE // maps.shape[1]
    peaks = maps.flatten(1).argmax(1)
    peaks = stride * torch.stack([peaks // maps.shape[2], peaks % maps.shape[2]], dim=1)
    return ((corners <= peaks) & (peaks < corners + SIDE)).all(1).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("window_size", [4, None], ids=FAMILIES)
def test_attention_and_rollout_peak_where_the_label_is(window_size):
    model = trained_model(depths=[2, 1], window_size=window_size)
    images, labels, corners = textured_images(64, seed=0)
    layers = attention_maps(model, images)
    assert (model(images).logits.argmax(1) == labels).float().mean() > 0.9
    received = [share_of_peaks_on_the_square(layer.received().mean(1), corners) for layer in layers]
    assert max(received) > 0.8
    assert share_of_peaks_on_the_square(attention_rollout(layers), corners) > 0.8


@pytest.mark.slow
def test_grad_cam_peaks_where_the_label_is():
    # Windows have one token, because a model that attends beyond the square may encode the label anywhere.
    model = trained_model(depths=[1, 1], window_size=1)
    images, labels, corners = textured_images(64, seed=0)
    assert (model(images).logits.argmax(1) == labels).float().mean() > 0.8
    assert share_of_peaks_on_the_square(grad_cam(model, images, labels), corners) > 0.9


def test_backbone_has_maps(pixel_values):
    assert len(attention_maps(TwinsBackbone(tiny_config()).eval(), pixel_values)) == 7
