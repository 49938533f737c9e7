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
"""Hooks that pass a model's `pixel_mask` to its Twins backbone."""

import inspect
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .modeling_twins import TwinsBackbone


# The masks of the forward passes that are running in this thread or task, innermost last.
PIXEL_MASKS: ContextVar[tuple[torch.Tensor | None, ...]] = ContextVar("PIXEL_MASKS", default=())


class PixelMaskHandle:
    """The hooks of [`pass_pixel_mask_to_backbone`], which `remove()` or the end of a `with` block removes."""

    def __init__(self, handles: list[RemovableHandle]):
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def pass_pixel_mask_to_backbone(model: nn.Module) -> PixelMaskHandle:
    """Make a model pass the `pixel_mask` that it is called with to its [`TwinsBackbone`].

    DETR and its relatives mask their own attention with it, and UperNet ignores it, but all of them pass only
    `pixel_values` to their backbone, which then cannot distinguish padding from the image. With these hooks, the
    feature maps of an image do not depend on its padding, and are zero on the padding. UperNet takes `pixel_mask` as a
    keyword.

    Only hooks are registered: weights, `save_pretrained` and the configuration are unchanged, and a reloaded model
    needs the hooks again. Calls may be nested and come from several threads. `torch.compile` works, with graph breaks.

    Args:
        model: any module with a Twins backbone, e.g. `DetrForObjectDetection`, `UperNetForSemanticSegmentation`.

    Returns:
        A handle; `remove()` removes the hooks, as does the end of a `with` block.

    Raises:
        ValueError: if there is no Twins backbone in the model.

    Example:

    ```python
    >>> import torch
    >>> from hf_twins import TwinsConfig, pass_pixel_mask_to_backbone
    >>> from transformers import DetrConfig, DetrForObjectDetection

    >>> backbone_config = TwinsConfig.from_variant("twins-svt-small", out_features=["stage4"])
    >>> config = DetrConfig(backbone_config=backbone_config, encoder_layers=1, decoder_layers=1, num_queries=10)
    >>> model = DetrForObjectDetection(config).eval()
    >>> handle = pass_pixel_mask_to_backbone(model)

    >>> pixel_mask = torch.ones(2, 64, 96, dtype=torch.long)
    >>> pixel_mask[1, :, 64:] = 0  # the second image is 64 x 64
    >>> with torch.no_grad():
    ...     outputs = model(torch.rand(2, 3, 64, 96), pixel_mask)
    >>> list(outputs.pred_boxes.shape)
    [2, 10, 4]
    ```"""
    backbones = [module for module in model.modules() if isinstance(module, TwinsBackbone)]
    if not backbones:
        raise ValueError(f"model must contain a TwinsBackbone, but {type(model).__name__} does not.")
    names = list(inspect.signature(model.forward).parameters)
    place = names.index("pixel_mask") if "pixel_mask" in names else None
    handles = [
        model.register_forward_pre_hook(partial(enter_forward, place), with_kwargs=True),
        # The hook is also called after an error, so that no mask remains for the next call.
        model.register_forward_hook(leave_forward, always_call=True),
    ]
    handles += [backbone.register_forward_pre_hook(add_pixel_mask, with_kwargs=True) for backbone in backbones]
    return PixelMaskHandle(handles)


# The hooks are module-level functions, so that a model with these hooks can be copied.
def enter_forward(place: int | None, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pixel_mask = kwargs.get("pixel_mask")
    if place is not None and len(args) > place:
        pixel_mask = args[place]
    PIXEL_MASKS.set((*PIXEL_MASKS.get(), pixel_mask))


def leave_forward(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    PIXEL_MASKS.set(PIXEL_MASKS.get()[:-1])


def add_pixel_mask(
    backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    pixel_masks = PIXEL_MASKS.get()
    if not pixel_masks or pixel_masks[-1] is None or len(args) > 1 or "pixel_mask" in kwargs:
        return None
    return args, kwargs | {"pixel_mask": pixel_masks[-1]}
