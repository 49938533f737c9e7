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
"""The operators of a call as a flat list, recorded once and called again for every image of the same size.

On CPUs, a sixth of a bfloat16 call with one image is spent outside of the kernels: in modules, checks and views, of which
each block has about twenty. With fixed sizes, a chain of views is a single one.
"""

import logging
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self, TypeGuard

import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from .forwards import map_tensors
from .recording import MAX_RECORDINGS, ModelState, RecordedForward, Recordings


logger = logging.getLogger(__name__)

MAX_SEEN = 256
# Operators the sizes of whose outputs depend on values, or that give Python a value.
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class CannotRecordError(Exception):
    """A call depends on more than the size of its input."""


class LayoutChangedError(Exception):
    """An operator gave a result with another layout than when it was recorded."""


class Layout(NamedTuple):
    """How a tensor lies in its memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


class OperatorRecorder(TorchDispatchMode):
    """Write the operators that are called in its context to a graph, except those that return nothing but views.

    Args:
        pixel_values: the images, the only tensor that differs from call to call.
        weights: tensors whose memory may be replaced by another of the same content, as by `model.to`.
    """

    def __init__(self, pixel_values: torch.Tensor, weights: Iterable[torch.Tensor]):
        super().__init__()
        self.weights = {memory_of(weight): weight for weight in weights}
        self.graph = fx.Graph()
        # What the graph computes, by memory, whose address is not given to another while there is a reference.
        self.computed: dict[StorageWeakRef, tuple[fx.Node, Layout]] = {}
        # All else that operators read: the weights.
        self.constants: dict[int, tuple[fx.Node, Any]] = {}
        self.add(pixel_values, self.graph.placeholder("pixel_values"))

    def add(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self.computed[memory_of(tensor)] = (node, Layout.of(tensor))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)
        tensors = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        given = {memory_of(each) for each in leaves((args, kwargs)) if is_strided(each)}
        is_view = [is_strided(each) and memory_of(each) in given for each in tensors]
        if all(is_view) and not function._schema.is_mutable:
            # What reads a view computes it from what it is a view of.
            return outputs
        if not all(map(is_strided, tensors)) or not DATA_DEPENDENT.isdisjoint(function.tags):
            raise CannotRecordError(f"{function} depends on more than the sizes of its inputs")
        node = self.graph.call_function(function, *fx.node.map_aggregate((args, kwargs), self.node_of))
        for index, tensor in enumerate(tensors):
            if not is_view[index]:
                is_single = torch.is_tensor(outputs)
                self.add(tensor, node if is_single else self.graph.call_function(operator.getitem, (node, index)))
        return outputs

    def node_of(self, value: Any) -> Any:
        """What stands in the graph for an argument of an operator."""
        if is_strided(value):
            memory, actual = memory_of(value), Layout.of(value)
            if memory in self.computed:
                node, layout = self.computed[memory]
                return node if actual == layout else self.view_of(node, layout, actual)
            weight = self.weights.get(memory)
            if weight is not None and weight is not value:
                return self.view_of(self.node_of(weight), Layout.of(weight), actual)
        if not isinstance(value, torch.Tensor | torch.ScriptObject):
            return value
        if id(value) not in self.constants:
            self.constants[id(value)] = (self.graph.placeholder(f"constant_{len(self.constants)}"), value)
        return self.constants[id(value)][0]

    def view_of(self, node: fx.Node, layout: Layout, view: Layout) -> fx.Node:
        if view.dtype != layout.dtype:
            raise CannotRecordError(f"memory of {layout.dtype} is read as {view.dtype}")
        return self.graph.call_function(view_in_layout, (node, layout.stride, view.size, view.stride, view.offset))


def view_in_layout(
    tensor: torch.Tensor, expected: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> torch.Tensor:
    """A view of a tensor's memory.

    Raises:
        LayoutChangedError: if the tensor does not have the strides that the view is for. They follow from those of weights and
            from the choice of a kernel, as by `sdpa_kernel`.
    """
    if tensor.stride() != expected:
        raise LayoutChangedError
    return torch.as_strided(tensor, size, stride, offset)


def is_strided(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def memory_of(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def leaves(nested: Any) -> list[Any]:
    """The values in nested tuples, lists and dictionaries."""
    found: list[Any] = []
    fx.node.map_aggregate(nested, found.append)
    return found


def record(
    model: nn.Module, forward: Callable, pixel_values: torch.Tensor, flags: dict[str, Any], outputs: Any
) -> Callable[[torch.Tensor], Any]:
    """Return a function that computes what a model does, for images in the same layout.

    Args:
        model: the model, whose weights are read in each call.
        forward: what to record.
        pixel_values: images, `(batch_size, num_channels, height, width)`.
        flags: further arguments.
        outputs: what the model gives for the images.

    Raises:
        CannotRecordError: if the outputs depend on more than the images.
        AssertionError: if the function gives others.
    """
    # With other images: what is computed from these ones outside of PyTorch shows when the outputs are compared.
    noise = noise_like(pixel_values)
    recorder = OperatorRecorder(noise, model.parameters())
    with torch.inference_mode():
        with recorder:
            noise_outputs = forward(noise, **flags)
        recorder.graph.output(tuple(map(recorder.node_of, tensors_of(noise_outputs))))
        recorder.graph.eliminate_dead_code()
        compute = fx.GraphModule({}, recorder.graph).forward
        constants = [constant for _, constant in recorder.constants.values()]
        actual, expected = compute(pixel_values, *constants), tuple(tensors_of(outputs))
        torch.testing.assert_close(actual, expected, equal_nan=True)
    # Without the outputs of this call.
    structure = map_tensors(outputs, lambda _: torch.empty(0))

    def replay(pixel_values: torch.Tensor) -> Any:
        tensors = iter(compute(pixel_values, *constants))
        return map_tensors(structure, lambda _: next(tensors))

    return replay


def noise_like(pixel_values: torch.Tensor) -> torch.Tensor:
    """Noise in the layout of images, of which several may share memory."""
    strides = zip(pixel_values.shape, pixel_values.stride(), strict=True)
    length = 1 + sum((size - 1) * stride for size, stride in strides)
    memory = torch.rand(length, generator=torch.Generator().manual_seed(0), dtype=pixel_values.dtype)
    return memory.as_strided(pixel_values.shape, pixel_values.stride())


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(outputs, collect)
    return found


class OperatorForward(RecordedForward):
    """Call the operators of a Twins model's calls with few images, without its modules, from the third call of a size on.

    Programs whose images have all sizes seldom meet one again, and would only wait for recordings.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.recordings = Recordings()

    def replay(self, state: ModelState, pixel_values: torch.Tensor, flags: dict[str, Any]) -> Any:
        if pixel_values.storage_offset():
            # An image of a batch: views in a recording are counted from the start of the memory.
            pixel_values = pixel_values.clone()
        key = (pixel_values.shape, pixel_values.stride(), pixel_values.dtype, *sorted(flags.items()))
        if key not in state.by_key:
            return self.see(state, key, pixel_values, flags)
        replay = state.by_key[key]
        try:
            return None if replay is None else replay(pixel_values)
        except LayoutChangedError:
            state.by_key.pop(key, None)
            state.seen.discard(key)
            return None

    def see(self, state: ModelState, key: tuple, pixel_values: torch.Tensor, flags: dict[str, Any]) -> Any:
        """Compute a call, and record it if there was one like it, no other thread is recording, and there are few recordings.

        Returns:
            The outputs; None if the call is not recorded.
        """
        if key not in state.seen:
            if len(state.seen) == MAX_SEEN:
                state.seen.clear()
            state.seen.add(key)
            return None
        num_recordings = sum(each is not None for each in list(state.by_key.values()))
        is_full = num_recordings == MAX_RECORDINGS or len(state.by_key) == MAX_SEEN
        if is_full or not self.recordings.lock.acquire(blocking=False):
            return None
        try:
            # An error of the call itself is the caller's.
            outputs = self.forward(pixel_values, **flags)
            if not state.is_current():
                return None
            try:
                state.by_key[key] = record(self.model, self.forward, pixel_values, flags, outputs)
            # Whatever is wrong with a recording, the model itself can be called.
            except Exception as error:
                logger.info(f"Calls with images of shape {tuple(pixel_values.shape)} are not recorded: {error}")
                state.by_key[key] = None
            return outputs
        finally:
            self.recordings.lock.release()
