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
"""Helpers of several tests: small models in which every weight affects the output."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from timm.models import save_for_hf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations.peft import MIN_PEFT_VERSION

from hf_twins import TwinsConfig, TwinsForImageClassification
from hf_twins._utils import files, images


# transformers may require a PEFT version that is not released yet: 5.24 was released before PEFT 0.22.
uses_adapters_of_transformers = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers needs PEFT {MIN_PEFT_VERSION}, {version('peft')} is here",
)

TINY = {
    "patch_size": 2,
    "hidden_sizes": [16, 32, 48],
    "num_attention_heads": [1, 2, 3],
    "depths": [2, 3, 2],
    "mlp_ratios": [2, 2, 2],
    "sr_ratios": [4, 2, 1],
    "num_labels": 5,
}
# Fields of a model to compile, trace or export, which takes time for each block. It has all kinds of layers, each
# once: attention within windows, and global attention with and without sub-sampling, with and without preceding
# position encodings.
TWO_STAGES = {
    "hidden_sizes": [16, 32],
    "num_attention_heads": [1, 2],
    "depths": [2, 2],
    "mlp_ratios": [2, 2],
    "sr_ratios": [2, 1],
}
# Fields of a segmentation model with a fast head.
NARROW_HEAD = {"fpn_hidden_size": 16, "decoder_hidden_size": 16}
FAMILIES = ("svt", "pcpvt")


class LargestTensor(TorchDispatchMode):
    """The number of values of the largest tensor that is computed in this context."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        tensors = (each for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        self.numel = max(self.numel, *(each.numel() for each in tensors), 0)
        return result


def tiny_config(family: str = "svt", **overrides) -> TwinsConfig:
    """A configuration with three stages and windows of 3, for images of at least 8 pixels."""
    return TwinsConfig(**TINY | {"window_size": 3 if family == "svt" else None} | overrides)


def randomize(model: nn.Module) -> nn.Module:
    """Randomize all weights, including biases and norms, with values so large that every branch affects the output."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.weight.normal_(mean=1.0, std=0.2)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(std=fan_in**-0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2.0)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(std=0.2)
    return model.eval()


def published_variant(name: str) -> TwinsForImageClassification:
    """A published architecture with randomized weights, without the default initialization, which takes as long."""
    with torch.device("meta"):
        model = TwinsForImageClassification(TwinsConfig.from_variant(name))
    return randomize(model.to_empty(device="cpu"))


def rectangle_mask(sizes: list[tuple[int, int]], height: int, width: int) -> torch.Tensor:
    """The `pixel_mask` of images of `sizes`, padded to `height` x `width`."""
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    for image_mask, (image_height, image_width) in zip(mask, sizes):
        image_mask[:image_height, :image_width] = 1
    return mask


# Heads have 32 and 64 channels, and windows 7 tokens, as in all published models, since the authors' files do not
# specify it.
TIMM_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "svt": {"embed_dims": [32, 64, 96], "num_heads": [1, 2, 3], "wss": [7, 7, 7]},
    "pcpvt": {"embed_dims": [64, 128, 192], "num_heads": [1, 2, 3]},
}
TIMM_SHARED = {"depths": [2, 3, 2], "mlp_ratios": [2, 2, 2], "sr_ratios": [4, 2, 1], "num_classes": 5}


def timm_model(family: str = "svt", **overrides: Any) -> nn.Module:
    """A small timm model, for images of at least 16 pixels."""
    return randomize(
        timm.create_model(f"twins_{family}_small", **TIMM_ARCHITECTURES[family] | TIMM_SHARED | overrides)
    )


def save_timm(model: nn.Module, folder: Path, safe_serialization: bool = True, **model_config: Any) -> Path:
    save_for_hf(model, folder, safe_serialization=safe_serialization, model_config=model_config)
    return folder


def save_small_svt(folder: Path) -> Path:
    """Save a small substitute for timm/twins_svt_small.in1k on the loopback Hub, with four stages and 1000 labels."""
    model = timm_model(
        embed_dims=[32, 64, 96, 128],
        num_heads=[1, 2, 3, 4],
        wss=[7] * 4,
        depths=[1] * 4,
        mlp_ratios=[2] * 4,
        sr_ratios=[8, 4, 2, 1],
        num_classes=1000,
    )
    return save_timm(model, folder)


@contextmanager
def small_file_system(folder: Path) -> Iterator[Callable[[str], None]]:
    """Mount a file system of 256 KB at `folder`, and yield a function that remounts it with other options, such as "ro".

    The test is skipped if mounting is not permitted, as in some containers. GitHub's runners permit it by sudo; there,
    the test fails instead, so that it is not skipped everywhere unnoticed.
    """
    folder.mkdir(exist_ok=True)
    # sudo must not ask for a password.
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]

    def mount(*arguments: str | Path) -> None:
        try:
            command = [*as_root, "mount", *arguments, folder]
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            give_up = pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip
            give_up(f"no file system can be mounted here: {error} {getattr(error, 'stderr', '')}")

    mount("-t", "tmpfs", "-o", f"size=256k,uid={os.getuid()}", "tmpfs")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run([*as_root, "umount", folder], check=True)


def fail_to_read(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a system error when images whose paths end with `name` are read, without pauses between the tries."""
    decode = images.decode_file

    def decode_file(source: Any, *limits: Any) -> Any:
        if str(source).endswith(name):
            raise OSError(number, os.strerror(number))
        return decode(source, *limits)

    monkeypatch.setattr(files, "READING_PAUSES", (0.0,))
    monkeypatch.setattr(images, "decode_file", decode_file)
