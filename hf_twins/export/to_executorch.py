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
"""Export to ExecuTorch programs for CPUs of phones (XNNPACK), for one image of one size, in float32."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hf_twins._utils.files import new_output
from hf_twins.export.folder import TOLERANCES, describe, verify
from hf_twins.export.source import Source, fixed_program


def export_executorch(source: Source, output_dir: str | Path) -> None:
    """Write a folder with the model as an ExecuTorch program, for images of the source's size.

    Args:
        source: the model.
        output_dir: output folder, new or empty.

    Raises:
        ImportError: if ExecuTorch is missing.
        ValueError: if the folder exists, or the export's outputs differ.
    """
    if find_spec("executorch") is None:
        raise ImportError(
            "executorch must be installed, in an environment of its own: examples/export/README.md says how",
            name="executorch",
        )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with new_output(Path(output_dir)) as folder:
        print("translating to ExecuTorch, which can take minutes ...", flush=True)
        graph = fixed_program(source, source.model).run_decompositions({torch.ops.aten.pad.default: crop})
        program = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()]).to_executorch()
        (folder / "model.pte").write_bytes(program.buffer)
        describe(folder, source, runtime="executorch", file="model.pte", size=source.size, dtype="float32")
        verify(folder, source, [(batch, *source.size) for batch in (1, 2)], TOLERANCES["float32"])


def crop(tensor: torch.Tensor, padding: list[int]) -> Any:
    """Crop by slices. The model crops by negative padding, which ExecuTorch does not support."""
    if any(amount > 0 for amount in padding):
        return NotImplemented
    for index in range(0, len(padding), 2):
        dim = -1 - index // 2
        tensor = tensor.narrow(dim, -padding[index], tensor.shape[dim] + padding[index] + padding[index + 1])
    return tensor
