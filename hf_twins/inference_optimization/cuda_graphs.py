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
from collections.abc import Callable
from typing import Any

import torch

from .forwards import map_tensors
from .recording import MAX_RECORDINGS, ModelState, RecordedForward, Recordings


logger = logging.getLogger(__name__)

MAX_RECORDED_VALUES_IF_COMPILED = 256 * 3 * 224 * 224


class CudaGraph:
    """The kernels of one call, and the memory that they read images from and write outputs to."""

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


class CudaGraphs(Recordings):
    """What one model has recorded as CUDA graphs."""

    def __init__(self) -> None:
        super().__init__()
        # Graphs of one pool share memory, so one of them runs at a time: each waits for the last, in whatever stream.
        self.pools: dict[torch.device, tuple[Any, torch.cuda.Event]] = {}


class CudaGraphForward(RecordedForward):
    """Replay the kernels of a Twins model's calls with few images."""

    def __init__(self, model: torch.nn.Module, max_values: int):
        super().__init__(model, max_values)
        self.recordings: CudaGraphs = CudaGraphs()

    def replay(self, state: ModelState, pixel_values: torch.Tensor, flags: dict[str, Any]) -> Any:
        if torch.cuda.is_current_stream_capturing():
            return None
        recordings, device = self.recordings, pixel_values.device
        # By the address as well: a model that was moved has its weights elsewhere.
        address = next(self.model.parameters()).data_ptr()
        key = (device, pixel_values.shape, pixel_values.dtype, address, *sorted(flags.items()))
        with recordings.lock, torch.cuda.device(device):
            pool, last_replay = recordings.pools.setdefault(
                device, (torch.cuda.graph_pool_handle(), torch.cuda.Event())
            )
            last_replay.wait()
            # Whatever the mode of the call, as the memory of the graph can be written to in one alone.
            with torch.inference_mode():
                if key not in state.by_key and len(state.by_key) < MAX_RECORDINGS and state.is_current():
                    state.by_key[key] = record(self.forward, pixel_values, flags, pool)
                recording = state.by_key.get(key)
                if recording is None:
                    return None
                recording.replay(pixel_values)
            # The next replay writes to the same memory.
            outputs = map_tensors(recording.outputs, torch.clone)
            last_replay.record()
            return outputs


def record(forward: Callable, pixel_values: torch.Tensor, flags: dict[str, Any], pool: Any) -> CudaGraph | None:
    """A recording of a call; None if memory does not suffice, as the call itself needs less."""
    try:
        return CudaGraph(forward, pixel_values, flags, pool)
    except torch.OutOfMemoryError:
        logger.warning(
            f"There is not enough GPU memory to record calls with images of shape {tuple(pixel_values.shape)}: they are "
            "computed without a recording."
        )
    torch.cuda.empty_cache()
    return None
