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
r"""A Twins model as a package of compiled code (AOTInductor), for any number of images of one size.

    python examples/export/export_torch.py --model_name_or_path outputs/quickstart --output_dir outputs/torch \
        --dtype bfloat16
    python examples/export/run_exported.py --model_dir outputs/torch picture.png

It runs with PyTorch alone, of the same version, on CPUs with the instructions of the one that compiled it, and needs a C++
compiler only here.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from exporting import (
    TOLERANCES,
    ExportableModel,
    FixedSizeArguments,
    describe,
    fixed_program,
    load_source,
    run_export,
    verify,
)
from torch._inductor.exc import InductorError
from torch.export import Dim

from hf_twins._utils.files import new_output


MAX_BATCH = 1024


@dataclass
class TorchArguments(FixedSizeArguments):
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "Of weights and products."})


def main(arguments: list[str] | None = None) -> None:
    run_export(TorchArguments, export, arguments)


def export(args: TorchArguments) -> Path:
    source = load_source(args.model_name_or_path, args.height, args.width)
    model = ExportableModel(copy.deepcopy(source.model.model), getattr(torch, args.dtype))
    with new_output(Path(args.output_dir)) as folder:
        print("compiling, which can take minutes ...", flush=True)
        program = fixed_program(source, model, Dim("batch_size", min=1, max=MAX_BATCH))
        try:
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(folder / "model.pt2"),
                # Dynamic threads: otherwise as many as there were here.
                inductor_configs={"cpp.dynamic_threads": True},
            )
        except InductorError as error:
            if "InvalidCxxCompiler" not in str(error):
                raise
            raise ValueError(
                "AOTInductor needs a C++ compiler, such as g++: install one, or name it by CXX."
            ) from error
        describe(folder, source, runtime="torch", file="model.pt2", size=source.size, dtype=args.dtype)
        verify(folder, source, [(batch, *source.size) for batch in (1, 2, 5)], TOLERANCES[args.dtype])
    return Path(args.output_dir)


if __name__ == "__main__":
    main()
