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
"""A Twins model as an ExecuTorch program for CPUs of phones (XNNPACK), for one image of one size, in float32.

    python examples/export/export_executorch.py --model_name_or_path outputs/quickstart --output_dir outputs/executorch
    python examples/export/run_exported.py --model_dir outputs/executorch picture.png

ExecuTorch needs an environment of its own, which this folder's README sets up.
"""

from pathlib import Path
from typing import Any

import torch
from exporting import (
    TOLERANCES,
    FixedSizeArguments,
    describe,
    fixed_program,
    load_source,
    run_export,
    verify,
)

from hf_twins._utils.files import new_output


def main(arguments: list[str] | None = None) -> None:
    run_export(FixedSizeArguments, export, arguments)


def export(args: FixedSizeArguments) -> Path:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    source = load_source(args.model_name_or_path, args.height, args.width)
    with new_output(Path(args.output_dir)) as folder:
        print("translating to ExecuTorch, which can take minutes ...", flush=True)
        graph = fixed_program(source, source.model).run_decompositions({torch.ops.aten.pad.default: crop})
        program = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()]).to_executorch()
        (folder / "model.pte").write_bytes(program.buffer)
        describe(folder, source, runtime="executorch", file="model.pte", size=source.size, dtype="float32")
        verify(folder, source, [(batch, *source.size) for batch in (1, 2)], TOLERANCES["float32"])
    return Path(args.output_dir)


def crop(tensor: torch.Tensor, padding: list[int]) -> Any:
    """Padding by less than nothing, by which the model crops windows' padding, as slices: ExecuTorch refuses it."""
    if any(amount > 0 for amount in padding):
        return NotImplemented
    for index in range(0, len(padding), 2):
        dim = -1 - index // 2
        tensor = tensor.narrow(dim, -padding[index], tensor.shape[dim] + padding[index] + padding[index + 1])
    return tensor


if __name__ == "__main__":
    main()
