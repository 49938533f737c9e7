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
"""Export a Twins model to ONNX, for any number of images of any size, in float32, float16 or int8.

    python examples/export/export_onnx.py --model_name_or_path outputs/quickstart --output_dir outputs/onnx
    ... --dtype int8
    ... --dtype int8 float16 float32        # three files; run_exported.py and transformers.js load the first by default
    python outputs/onnx/run_exported.py image.png

The folder has the layout that transformers.js loads: `onnx/model.onnx`, `onnx/model_fp16.onnx`,
`onnx/model_quantized.onnx`.

Classifiers and segmentation models return `logits`, backbones `feature_map_0`, `feature_map_1` and so on. The folder
is only written if ONNX Runtime's outputs match PyTorch's, for one and several images that do and do not fill attention
windows. int8 needs no images: inputs of linear layers are quantized dynamically.
"""

from dataclasses import dataclass, field

from hf_twins.export.command_line import ExportArguments, run_export
from hf_twins.export.source import load_source
from hf_twins.export.to_onnx import export_onnx


@dataclass
class OnnxArguments(ExportArguments):
    dtype: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "One or more dtypes of weights and products: float32, float16, int8."},
    )
    opset_version: int = field(
        default=18,
        metadata={
            "help": "ONNX opset, 18 or later; from 23, attention is one operator, faster if the runtime supports it."
        },
    )


def main(arguments: list[str] | None = None) -> None:
    run_export(OnnxArguments, export, arguments)


def export(args: OnnxArguments) -> None:
    export_onnx(load_source(args.model_name_or_path), args.output_dir, args.dtype, args.opset_version)


if __name__ == "__main__":
    main()
