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
"""Export to a package of compiled code (AOTInductor), which needs only PyTorch, for images of one size."""

import copy
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim

from hf_twins._utils.files import new_output
from hf_twins.export.folder import TOLERANCES, check_dtype, describe, verify
from hf_twins.export.source import ExportableModel, Source, fixed_program


MAX_BATCH = 1024


def export_torch(source: Source, output_dir: str | Path, dtype: str = "float32") -> None:
    """Export a model to a folder with compiled code, for images of the source's size.

    Args:
        source: the model.
        output_dir: output folder, new or empty.
        dtype: dtype of weights and computations, "float32" or "bfloat16".

    Raises:
        ValueError: if the folder exists, there is no C++ compiler, or the export's outputs differ.
    """
    check_dtype(dtype, "float32", "bfloat16")
    # Check this before the export, which takes a while.
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError("AOTInductor needs a C++ compiler, such as g++: install one, or set CXX to it.") from error
    model = ExportableModel(copy.deepcopy(source.model.model), getattr(torch, dtype))
    with new_output(Path(output_dir)) as folder:
        print("compiling, which can take minutes ...", flush=True)
        program = fixed_program(source, model, Dim("batch_size", min=1, max=MAX_BATCH))
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / "model.pt2"),
            # Otherwise, the number of threads would be fixed to that of this machine.
            inductor_configs={"cpp.dynamic_threads": True},
        )
        describe(folder, source, runtime="torch", file="model.pt2", size=source.size, dtype=dtype)
        verify(folder, source, [(batch, *source.size) for batch in (1, 2, 5)], TOLERANCES[dtype])
