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
"""CUDA graphs: the kernels of a call, recorded once and replayed for every image of the same size."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.utils import is_torchdynamo_compiling

from ..modeling_twins import STAGE_RECORDS, is_recording_hook
from .forwards import PerCopy, ReplacedForward, map_tensors


logger = logging.getLogger(__name__)

# Larger inputs keep a GPU busy for longer than Python takes to launch their kernels. Compiled kernels are faster, so that this takes
# more images. A limit remains, because a recording keeps its memory.
MAX_RECORDED_VALUES = 64 * 3 * 224 * 224
MAX_RECORDED_VALUES_IF_COMPILED = 256 * 3 * 224 * 224
# Inputs that a model keeps a CUDA graph of.
MAX_RECORDINGS = 8


class Recording:
    """The kernels of one call as a CUDA graph, and the memory that they read images from and write outputs to."""

    def __init__(self, forward: Callable, pixel_values: torch.Tensor, flags: dict[str, Any], pool: Any):
        stream = torch.cuda.Stream()
        self.pixel_values = pixel_values.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What is loaded or compiled at first use cannot be recorded.
            for _ in range(2):
                forward(self.pixel_values, **flags)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.outputs = forward(self.pixel_values, **flags)

    def replay(self, pixel_values: torch.Tensor) -> None:
        self.pixel_values.copy_(pixel_values)
        self.graph.replay()


class Recordings(PerCopy):
    """The graphs of a model, by what they are for."""

    def __init__(self) -> None:
        # None for those that memory did not suffice for.
        self.by_key: dict[tuple, Recording | None] = {}
        # Graphs of one pool share memory, so one of them runs at a time: each waits for the last, in whatever stream.
        self.pools: dict[torch.device, tuple[Any, torch.cuda.Event]] = {}
        self.lock = threading.Lock()


class RecordedForward(ReplacedForward):
    """Replay the kernels of a Twins model's calls with few images.

    Args:
        model: the model.
        max_values: values of the largest input that is recorded.
    """

    def __init__(self, model: nn.Module, max_values: int):
        super().__init__(model)
        self.max_values = max_values
        self.recordings = Recordings()

    def __call__(self, pixel_values: torch.Tensor, *args: Any, **flags: Any) -> Any:
        model, forward, recordings = self.model, self.forward, self.recordings
        if args or not can_replay(model, pixel_values, flags, self.max_values):
            return forward(pixel_values, *args, **flags)
        parameter, device = next(model.parameters()), pixel_values.device
        # By the address as well: a model that was moved has its weights elsewhere.
        key = (device, pixel_values.shape, pixel_values.dtype, parameter.data_ptr(), *sorted(flags.items()))
        with recordings.lock, torch.cuda.device(device):
            pool, last_replay = recordings.pools.setdefault(
                device, (torch.cuda.graph_pool_handle(), torch.cuda.Event())
            )
            last_replay.wait()
            # Whatever the mode of the call, as the memory of the graph can be written to in one alone.
            with torch.inference_mode():
                if key not in recordings.by_key and len(recordings.by_key) < MAX_RECORDINGS and not has_hooks(model):
                    recordings.by_key[key] = record(forward, pixel_values, flags, pool)
                recording = recordings.by_key.get(key)
                if recording is not None:
                    recording.replay(pixel_values)
            if recording is not None:
                # The next replay writes to the same memory.
                outputs = map_tensors(recording.outputs, torch.clone)
                last_replay.record()
                return outputs
        return forward(pixel_values, **flags)


def record(forward: Callable, pixel_values: torch.Tensor, flags: dict[str, Any], pool: Any) -> Recording | None:
    """A recording of a call; None if memory does not suffice, as the call itself needs less."""
    try:
        return Recording(forward, pixel_values, flags, pool)
    except torch.OutOfMemoryError:
        logger.warning(
            f"There is not enough GPU memory to record calls with images of shape {tuple(pixel_values.shape)}: they are "
            "computed without a recording."
        )
    torch.cuda.empty_cache()
    return None


def can_replay(model: nn.Module, pixel_values: Any, flags: dict[str, Any], max_values: int) -> bool:
    """Whether a call is computed by nothing but kernels that depend on nothing but the images' size and the flags."""
    return (
        not is_torchdynamo_compiling()
        and not torch.jit.is_tracing()
        and type(pixel_values) is torch.Tensor
        and pixel_values.is_cuda
        and pixel_values.device == next(model.parameters()).device
        and 0 < pixel_values.numel() <= max_values
        and not model.training
        and not (pixel_values.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cuda")
        and not torch.cuda.is_current_stream_capturing()
        and STAGE_RECORDS.get() is None
        and all(flag is None or isinstance(flag, bool) for flag in flags.values())
    )


def has_hooks(model: nn.Module) -> bool:
    """Whether somebody other than transformers sees what parts of a model compute."""
    return any(
        part._forward_pre_hooks or not all(map(is_recording_hook, part._forward_hooks.values()))
        for module in model.children()
        for part in module.modules()
    )
