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
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeGuard

import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from .forwards import map_tensors
from .recording import MAX_RECORDINGS, RecordedForward, Recordings


logger = logging.getLogger(__name__)

MAX_SEEN = 256
# Operators the sizes of whose outputs depend on values, or that give Python a value.
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class CannotRecordError(Exception):
    """A call depends on more than the size of its input."""


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
    """

    def __init__(self, pixel_values: torch.Tensor):
        super().__init__()
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
        if is_strided(value) and (computed := self.computed.get(memory_of(value))):
            node, layout = computed
            actual = Layout.of(value)
            if actual == layout:
                return node
            if actual.dtype != layout.dtype:
                raise CannotRecordError(f"memory of {layout.dtype} is read as {actual.dtype}")
            return self.graph.call_function(torch.as_strided, (node, actual.size, actual.stride, actual.offset))
        if not isinstance(value, torch.Tensor | torch.ScriptObject):
            return value
        if id(value) not in self.constants:
            self.constants[id(value)] = (self.graph.placeholder(f"constant_{len(self.constants)}"), value)
        return self.constants[id(value)][0]


def is_strided(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def memory_of(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def leaves(nested: Any) -> list[Any]:
    """The values in nested tuples, lists and dictionaries."""
    found: list[Any] = []
    fx.node.map_aggregate(nested, found.append)
    return found


def record(forward: Callable, pixel_values: torch.Tensor, flags: dict[str, Any]) -> Callable[[torch.Tensor], Any]:
    """Call a model, and return a function that computes the same for other images in the same layout.

    Raises:
        CannotRecordError: if the outputs depend on more than the images.
    """
    recorder = OperatorRecorder(pixel_values)
    with torch.inference_mode():
        with recorder:
            outputs = forward(pixel_values, **flags)
        expected: list[torch.Tensor] = []

        def collect(tensor: torch.Tensor) -> torch.Tensor:
            expected.append(tensor)
            # The recording does not keep the outputs of this call.
            return torch.empty(0)

        structure = map_tensors(outputs, collect)
        recorder.graph.output(tuple(map(recorder.node_of, expected)))
        recorder.graph.eliminate_dead_code()
        compute = fx.GraphModule({}, recorder.graph).forward
        constants = [constant for _, constant in recorder.constants.values()]
        torch.testing.assert_close(compute(pixel_values, *constants), tuple(expected), equal_nan=True)

    def replay(pixel_values: torch.Tensor) -> Any:
        tensors = iter(compute(pixel_values, *constants))
        return map_tensors(structure, lambda _: next(tensors))

    return replay


class OperatorRecordings(Recordings):
    """The recordings of a model, by what they are for, and the calls that there was one of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple] = set()

    def discard(self) -> None:
        super().discard()
        # A model that changes with each call, as by hooks that are removed after it, is not recorded each time.
        self.seen.clear()


class OperatorForward(RecordedForward):
    """Call the operators of a Twins model's calls with few images, without its modules, from the third call of a size on.

    Programs whose images have all sizes seldom meet one again, and would only wait for recordings.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.recordings: OperatorRecordings = OperatorRecordings()

    def replay(self, pixel_values: torch.Tensor, flags: dict[str, Any]) -> Any:
        recordings = self.recordings
        if pixel_values.storage_offset():
            # An image of a batch: views in a recording are counted from the start of the memory.
            pixel_values = pixel_values.clone()
        key = (pixel_values.shape, pixel_values.stride(), pixel_values.dtype, *sorted(flags.items()))
        if key not in recordings.by_key:
            self.see(key, pixel_values, flags)
        replay = recordings.by_key.get(key)
        return None if replay is None else replay(pixel_values)

    def see(self, key: tuple, pixel_values: torch.Tensor, flags: dict[str, Any]) -> None:
        """Record a call if there was one like it, no other thread is recording, and there are not too many recordings."""
        recordings = self.recordings
        if key not in recordings.seen:
            if len(recordings.seen) == MAX_SEEN:
                recordings.seen.clear()
            recordings.seen.add(key)
        elif len(recordings.by_key) < MAX_RECORDINGS and recordings.lock.acquire(blocking=False):
            try:
                recordings.by_key[key] = record(self.forward, pixel_values, flags)
            # Whatever is wrong with it, the model itself can be called, which says so if that is wrong.
            except Exception as error:
                logger.info(f"Calls with images of shape {tuple(pixel_values.shape)} are not recorded: {error}")
                recordings.by_key[key] = None
            finally:
                recordings.lock.release()
