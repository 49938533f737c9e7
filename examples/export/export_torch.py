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
r"""Export a Twins model to a compiled package (AOTInductor), for any number of images of one size.

    python examples/export/export_torch.py --model_name_or_path outputs/quickstart --output_dir outputs/torch \
        --dtype bfloat16
    python outputs/torch/run_exported.py image.png

The export needs only PyTorch of the same version, and a CPU that supports the instructions of the one it was compiled
on. Only exporting needs a C++ compiler.
"""

from dataclasses import dataclass, field
from typing import Literal

from hf_twins.export.command_line import FixedSizeArguments, run_export
from hf_twins.export.source import load_source
from hf_twins.export.to_torch import export_torch


@dataclass
class TorchArguments(FixedSizeArguments):
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Dtype of weights and products."}
    )


def main(arguments: list[str] | None = None) -> None:
    run_export(TorchArguments, export, arguments)


def export(args: TorchArguments) -> None:
    export_torch(load_source(args.model_name_or_path, args.height, args.width), args.output_dir, args.dtype)


if __name__ == "__main__":
    main()
