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
"""Shows where a Twins model looks: attention maps, attention rollout, and Grad-CAM.

All three work on any model that contains a Twins encoder, including models of transformers and PEFT.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .modeling_twins import (
    STAGE_RECORDS,
    TwinsAttention,
    TwinsEncoder,
    TwinsLocalAttention,
    to_image,
    window_partition,
    window_reverse,
)


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """The attention weights of one layer for a batch of images, in the image's layout.

    The queries are the tokens of the stage, a grid of `height` x `width`. The keys form a grid, too, and all methods
    return maps over this grid:

    - Global sub-sampled attention (GSA): a key is a square of `sr_ratio x sr_ratio` tokens. Tokens at the right and bottom
      that do not fill a square belong to no key.
    - Locally-grouped attention (LSA): a key is a token, and a query has weights within its window only. The grid of the
      keys is padded at the right and bottom to complete windows. Weights there, and outside an image's `pixel_mask`, are
      exactly 0 with `window_padding="masked"`. With `"zeros"`, and where `"authors_segmentation"` does not mask, the
      model does attend to the padding, and these weights are returned unchanged.

    So the weights of a query always sum to 1 over the map.

    Args:
        stage: `"stage1"`, `"stage2"`, ..., as in `config.stage_names`.
        layer: index in its stage; in a model with windows, the even layers are LSA and the odd ones GSA.
        index: index in the model's `attentions`.
        weights: attention weights in the model's layout, see [`TwinsModel`].
        token_mask: which tokens are on the image, `(batch_size, height, width)`.
        stride: distance between tokens in pixels.
        sr_ratio: distance between keys in tokens; 1 for LSA.
        window_size: side of the windows in tokens; None for GSA.
    """

    stage: str
    layer: int
    index: int
    weights: torch.Tensor
    token_mask: torch.Tensor
    stride: int
    sr_ratio: int
    window_size: int | None

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the queries in tokens."""
        return self.token_mask.shape[1], self.token_mask.shape[2]

    @property
    def key_grid(self) -> tuple[int, int]:
        """Height and width of the maps."""
        height, width = self.grid
        if self.window_size is None:
            return height // self.sr_ratio, width // self.sr_ratio
        return height + -height % self.window_size, width + -width % self.window_size

    def propagate(self, relevance: torch.Tensor) -> torch.Tensor:
        """Sum the weights of all queries, multiplied by the relevance of each query.

        Args:
            relevance: relevance of each query, `(batch_size, height, width)`.

        Returns:
            `(batch_size, num_heads, key_height, key_width)`.
        """
        weights = self.weights.to(relevance.dtype)
        if self.window_size is None:
            return torch.einsum("bq,bhqk->bhk", relevance.flatten(1), weights).unflatten(2, self.key_grid)
        (height, width), (key_height, key_width) = self.grid, self.key_grid
        padded = nn.functional.pad(relevance, (0, key_width - width, 0, key_height - height))
        windows = window_partition(padded.flatten(1).unsqueeze(-1), self.key_grid, self.window_size).squeeze(-1)
        attended = torch.einsum("wq,whqk->wkh", windows, weights)
        windows_grid = (len(relevance), key_height // self.window_size, key_width // self.window_size)
        return to_image(window_reverse(attended, self.window_size, windows_grid), self.key_grid)

    def from_query(self, row: int, column: int) -> torch.Tensor:
        """The attention weights of a single query token.

        Args:
            row: row of the token in `grid`.
            column: column of the token in `grid`.

        Returns:
            `(batch_size, num_heads, key_height, key_width)`; each map sums to 1.

        Raises:
            ValueError: if the token is not on every image of the batch.
        """
        return self.propagate(self.query_relevance((row, column)))

    def received(self) -> torch.Tensor:
        """The attention weights averaged over all query tokens of the image, without padding.

        Returns:
            `(batch_size, num_heads, key_height, key_width)`; each map sums to 1.
        """
        return self.propagate(self.query_relevance(None))

    def query_relevance(self, query: tuple[int, int] | None) -> torch.Tensor:
        """1 at the query token or, without one, equal values for all tokens of the image that sum to 1.

        Args:
            query: row and column of the token, or None.

        Returns:
            `(batch_size, height, width)`, in tokens.

        Raises:
            ValueError: if the token is not on every image of the batch.
        """
        # At least float32 is needed, because half precision would lose small weights.
        on_image = self.token_mask.to(torch.promote_types(self.weights.dtype, torch.float32))
        if query is None:
            return on_image / on_image.sum((1, 2), keepdim=True)
        (row, column), (height, width) = query, self.grid
        if not (0 <= row < height and 0 <= column < width and self.token_mask[:, row, column].all()):
            sizes = zip(self.token_mask[:, :, 0].sum(1).tolist(), self.token_mask[:, 0].sum(1).tolist())
            raise ValueError(
                f"The query must be the (row, column) of a {self.stage} token on every image, got {query} for "
                f"images of {', '.join(f'{rows} x {columns}' for rows, columns in sizes)} tokens."
            )
        relevance = torch.zeros_like(on_image)
        relevance[:, row, column] = 1
        return relevance


def attention_maps(
    model: nn.Module, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None
) -> list[LayerAttention]:
    """Run the encoder of a model and return the attention of all its layers.

    This call uses eager attention, whatever the model's attention implementation, because no other implementation
    returns weights. The weights of all layers are kept in memory: `num_heads * height * width` times the number of
    keys for each layer. The model is not changed, so other threads may use it at the same time.

    Args:
        model: a Twins model, or any model that contains one, in evaluation mode.
        pixel_values: `(batch_size, num_channels, height, width)`.
        pixel_mask: `(batch_size, height, width)`, 1 on the image and 0 on the padding.

    Returns:
        One [`LayerAttention`] per layer, in the order in which they run.

    Raises:
        ValueError: if the model contains no Twins encoder or is in training mode, or does not accept the inputs.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, TwinsForImageClassification, attention_maps

    >>> model = TwinsForImageClassification(TwinsConfig.from_variant("twins-svt-small")).eval()
    >>> local_attention, global_attention, *_ = attention_maps(model, torch.rand(1, 3, 224, 200))
    >>> local_attention.grid, local_attention.key_grid, global_attention.key_grid
    ((56, 50), (56, 56), (7, 6))
    >>> local_attention.received().shape, global_attention.from_query(28, 25).shape
    (torch.Size([1, 2, 56, 56]), torch.Size([1, 2, 7, 6]))
    ```"""
    encoder = find_encoder(model)
    config = encoder.config
    with torch.no_grad(), recorded_stages() as records:
        # The options are passed to the call, because changing the configuration would affect other threads.
        outputs = encoder(pixel_values, pixel_mask, output_attentions=True, attn_implementation="eager")
    check_recorded(encoder, records)
    places = [(stage, layer) for stage, depth in enumerate(config.depths) for layer in range(depth)]
    modules = [module for module in encoder.modules() if isinstance(module, TwinsAttention)]
    if len(outputs.attentions) != len(modules):
        raise ValueError(
            f"Expected the attentions of {len(modules)} layers, got {len(outputs.attentions)}: a layer was "
            "replaced after the model was created. Save the model and load it again."
        )
    layers: list[LayerAttention] = []
    for (stage, layer), module, weights in zip(places, modules, outputs.attentions):
        is_local = isinstance(module, TwinsLocalAttention)
        layers.append(
            LayerAttention(
                stage=config.stage_names[1 + stage],
                layer=layer,
                index=len(layers),
                weights=weights,
                token_mask=tokens_on_image(*records[encoder, stage]),
                stride=config.patch_size * 2**stage,
                sr_ratio=1 if is_local else config.sr_ratios[stage],
                window_size=config.window_size if is_local else None,
            )
        )
    return layers


def attention_rollout(layers: Sequence[LayerAttention], query: tuple[int, int] | None = None) -> torch.Tensor:
    """Attention rollout (https://huggingface.co/papers/2005.00928) for a hierarchical model: how much each input token
    of the first of several layers contributes to the output of the last.

    No token-by-token matrix is built: the relevance of the last layer's output is propagated through the layers.

    The attention weights are exact, and so is the assignment of tokens to windows, GSA squares and patches. The rest
    is convention. As in the paper, half of a token's relevance stays with the token, for the residual connection, and
    half is distributed by the mean attention of the heads; norms, values and MLPs are ignored. For Twins, the
    relevance of a GSA square, or of a patch of the previous stage, is divided equally among its tokens on the image.
    Position encodings, whose convolution mixes neighboring tokens, are ignored.

    Args:
        layers: consecutive layers from [`attention_maps`]: all, or those of a stage.
        query: row and column, in the last layer's grid, of the token to explain. By default, the mean over the image
            is explained, which is the input of a classifier.

    Returns:
        `(batch_size, height, width)`, in the first layer's grid, and 0 outside the image. Each map sums to 1, minus
        the relevance of padding that the model attends to (`window_padding`).

    Raises:
        ValueError: if the layers are not consecutive, or the query is not on every image.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, TwinsModel, attention_maps, attention_rollout

    >>> layers = attention_maps(TwinsModel(TwinsConfig.from_variant("twins-svt-small")).eval(), torch.rand(1, 3, 224, 224))
    >>> list(attention_rollout(layers).shape)
    [1, 56, 56]
    >>> third_stage = [layer for layer in layers if layer.stage == "stage3"]
    >>> list(attention_rollout(third_stage, query=(7, 7)).shape)
    [1, 14, 14]
    ```"""
    indices = [layer.index for layer in layers]
    if not indices or indices != list(range(indices[0], indices[0] + len(indices))):
        raise ValueError(f"layers must be one or more consecutive layers of a model, got the indices {indices}.")
    relevance = layers[-1].query_relevance(query)
    stage = layers[-1].stage
    for layer in reversed(layers):
        if layer.stage != stage:
            # In every stage but the first, a patch has 2 x 2 tokens of the previous stage.
            relevance, stage = spread(relevance, 2, layer.token_mask), layer.stage
        attended = layer.propagate(relevance).mean(1)
        relevance = (relevance + spread(attended, layer.sr_ratio, layer.token_mask)) / 2
    return relevance


def spread(relevance: torch.Tensor, ratio: int, token_mask: torch.Tensor) -> torch.Tensor:
    """Divide the relevance of each square of `ratio x ratio` tokens equally among its tokens on the image."""
    (height, width), (rows, columns) = token_mask.shape[1:], relevance.shape[1:]
    # The squares may not cover the last tokens, or may reach beyond them.
    padding = (0, columns * ratio - width, 0, rows * ratio - height)
    on_image = nn.functional.pad(token_mask, padding).unflatten(2, (columns, ratio)).unflatten(1, (rows, ratio))
    share = relevance / on_image.sum((2, 4)).clamp(min=1)
    share = (share[:, :, None, :, None] * on_image).flatten(3, 4).flatten(1, 2)
    return nn.functional.pad(share, [-pad for pad in padding])


def grad_cam(
    model: nn.Module,
    pixel_values: torch.Tensor,
    label: int | str | Sequence[int | str] | torch.Tensor | None = None,
    stage: str | None = None,
    pixel_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Grad-CAM (https://huggingface.co/papers/1610.02391): which tokens of a stage support a class.

    The map is the sum of the stage's channels, weighted by the mean gradient of the class's logit, with negative
    values set to 0 (equations 1 and 2). For semantic segmentation, the logit is the sum of the class's logits over the
    image. For a classifier's last stage, the output after the final layer norm is used. Since the head is linear in
    the mean of this output, the map is then the class activation map (https://huggingface.co/papers/1512.04150), the
    exact contribution of each token to the logit.

    A map shows in which tokens of the stage the class is encoded. With global attention, this may differ from where
    the class is visible in the image.

    Args:
        model: a Twins classifier of images or pixels, or any model that contains a Twins encoder and returns
            `logits`, in evaluation mode.
        pixel_values: `(batch_size, num_channels, height, width)`.
        label: class index, or name in `config.id2label`, one for all images or one per image; by default, the class
            with the largest logit.
        stage: stage whose output is used: `"stage1"`, `"stage2"`, ...; the last by default.
        pixel_mask: `(batch_size, height, width)`, 1 on the image and 0 on the padding.

    Returns:
        `(batch_size, height, width)`, in the stage's grid, scaled to 1 at each image's strongest token; all 0
        if no token supports the class. 0 outside the image. The model and its parameters' gradients are not changed,
        so other threads may use the model at the same time.

    Raises:
        ValueError: if the model contains no Twins encoder, is in training mode, has no logits of classes or does not
            accept the inputs, or the stage or label does not exist.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, TwinsForImageClassification, grad_cam

    >>> model = TwinsForImageClassification(TwinsConfig.from_variant("twins-pcpvt-small")).eval()
    >>> list(grad_cam(model, torch.rand(1, 3, 224, 320), label=281, stage="stage3").shape)
    [1, 14, 20]
    ```"""
    encoder = find_encoder(model)
    stage_names = encoder.config.stage_names[1 : 1 + len(encoder.stages)]
    if not stage_names:
        raise ValueError("model must have at least one stage: its backbone was built only up to the stem.")
    stage = stage_names[-1] if stage is None else stage
    if stage not in stage_names:
        raise ValueError(f"stage must be one of {', '.join(stage_names)}, got {stage!r}.")
    numbers = label_numbers(label, model)
    inputs: dict[str, Any] = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
    # Gradients are enabled here, because the caller may have disabled them.
    with torch.inference_mode(False), torch.enable_grad(), recorded_stages() as records:
        # Call the model without `torch.compile(model)` or `model.compile()`, because compiled code skips the
        # recording.
        call = getattr(model, "_orig_mod", model)._call_impl
        logits = getattr(call(pixel_values.detach().clone().requires_grad_(), **inputs), "logits", None)
        if logits is None or logits.ndim not in (2, 4):
            raise ValueError(
                f"model must return logits, (batch_size, num_labels) or (batch_size, num_labels, height, width), but "
                f"{type(model).__name__} does not."
            )
        check_recorded(encoder, records)
        if logits.ndim == 4:
            if pixel_mask is not None:
                # The logits may be larger than the first stage.
                on_image = tokens_on_image(*records[encoder, 0]).unsqueeze(1)
                logits = logits * nn.functional.interpolate(on_image.float(), logits.shape[2:]).to(logits.dtype)
            logits = logits.sum((2, 3))
        score = logits.gather(1, check_label(numbers, logits).unsqueeze(1)).sum()
        hidden_states, token_mask = records[encoder, stage_names.index(stage)]
        (gradients,) = torch.autograd.grad(score, hidden_states)
    on_image = tokens_on_image(hidden_states, token_mask).unsqueeze(1)
    # The sum can replace the mean, because the map is scaled to a maximum of 1.
    channel_weights = (gradients * on_image).sum((2, 3), keepdim=True)
    maps = (channel_weights * hidden_states.detach() * on_image).sum(1).relu()
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def check_recorded(encoder: TwinsEncoder, records: dict[tuple[nn.Module, int], Any]) -> None:
    """Raise a ValueError if the encoder ran without recording its stages."""
    if (encoder, 0) not in records:
        raise ValueError("model must not contain a compiled Twins encoder: call this function before compiling it.")


def label_numbers(label: Any, model: nn.Module) -> Any:
    """Replace names of labels, one or several, by their class indices."""
    if isinstance(label, list | tuple):
        return [label_numbers(each, model) for each in label]
    if not isinstance(label, str):
        return label
    # Several classes may have one name, of which `label2id` has only the last.
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    numbers = [number for number, name in names.items() if name == label]
    if len(numbers) != 1:
        raise ValueError(
            "label must be a class index, or the name of one class in the model's config.id2label, got "
            f"{label!r}, the name of {' and '.join(map(str, numbers)) or 'no class'}."
        )
    return numbers[0]


def check_label(label: int | Sequence[int] | torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """Check `label`, and return the class of each image, `(batch_size,)`, for logits `(batch_size, num_labels)`."""
    if label is None:
        return logits.argmax(1)
    labels = torch.as_tensor(label, device=logits.device)
    batch_size, num_labels = logits.shape
    if labels.shape not in ((), (batch_size,)) or labels.is_floating_point():
        raise ValueError(f"label must be an integer, or one for each of the {batch_size} images, got {label}.")
    if (labels < 0).any() or (labels >= num_labels).any():
        raise ValueError(f"label must be from 0 to {num_labels - 1}, got {label}.")
    return labels.long().expand(batch_size)


def find_encoder(model: nn.Module) -> TwinsEncoder:
    """Find the Twins encoder in a model."""
    if model.training:
        # In training mode, dropout would affect the maps, and batch norms would update their statistics.
        raise ValueError("model must be in evaluation mode: call model.eval() first.")
    if any(hasattr(module, "optimized_for") for module in model.modules()):
        raise ValueError(
            "model must be the original one: what optimize_for_inference returns can only compute its outputs."
        )
    for module in model.modules():
        if isinstance(module, TwinsEncoder):
            return module
    raise ValueError(f"model must be or contain a Twins model, got {type(model).__name__}.")


@contextmanager
def recorded_stages() -> Iterator[dict[tuple[nn.Module, int], tuple[torch.Tensor, torch.Tensor | None]]]:
    """Record the output of every stage that this thread runs.

    The key is the encoder and the number of the stage. The value is its output, `(batch_size, channels, height,
    width)`, and the mask of tokens on the image, `(batch_size, height, width)`, or None for all tokens. The last
    hidden state of a model with a final layer norm replaces the last stage's output.

    Unlike with hooks, the model is not changed, so other threads may use it at the same time.
    """
    records: dict[tuple[nn.Module, int], tuple[torch.Tensor, torch.Tensor | None]] = {}
    token = STAGE_RECORDS.set(records)
    try:
        yield records
    finally:
        STAGE_RECORDS.reset(token)


def tokens_on_image(image: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """The mask of tokens on the image for a stage's output, `(batch_size, height, width)`; all True without padding."""
    if token_mask is None:
        return image.new_ones((len(image), *image.shape[2:]), dtype=torch.bool)
    return token_mask
