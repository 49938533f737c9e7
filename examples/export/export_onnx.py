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
"""A Twins model as ONNX, for images of any number, height and width, in float32 or int8.

    python examples/export/export_onnx.py --model_name_or_path outputs/quickstart --output_dir outputs/onnx
    ... --dtype int8
    python examples/export/run_exported.py --model_dir outputs/onnx picture.png

Classifiers and segmenters give `logits`, backbones `feature_map_0`, `feature_map_1` and so on. The folder is only there if
ONNX Runtime computes what PyTorch does, at one and several images, at sizes that fill attention windows and that do not.
int8 needs no images: linear layers scale their inputs as they come.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exporting import (
    TOLERANCES,
    ExportArguments,
    describe,
    load_source,
    run_export,
    save_onnx,
    verification_shapes,
    verify,
)

from hf_twins._utils.files import new_output


@dataclass
class OnnxArguments(ExportArguments):
    dtype: Literal["float32", "int8"] = field(default="float32", metadata={"help": "Of weights and products."})
    opset_version: int = field(
        default=18,
        metadata={"help": "Of ONNX; from 23 on attention is one operator, faster where the runtime has it."},
    )


def main(arguments: list[str] | None = None) -> None:
    run_export(OnnxArguments, export, arguments)


def export(args: OnnxArguments) -> Path:
    source = load_source(args.model_name_or_path)
    with new_output(Path(args.output_dir)) as folder:
        save_onnx(source, folder / "model.onnx", args.opset_version)
        if args.dtype == "int8":
            print("quantizing ...", flush=True)
            quantize_linear_layers(folder / "model.onnx")
        describe(folder, source, runtime="onnx", file="model.onnx", size=None, dtype=args.dtype)
        verify(folder, source, verification_shapes(source), TOLERANCES[args.dtype])
    return Path(args.output_dir)


def quantize_linear_layers(file: Path) -> None:
    """Let products with weights be of 8 bits, but for the classifier, which is small and costs accuracy."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = file.with_suffix(".int8")
    classifiers = [node.name for node in onnx.load(file).graph.node if "logits" in node.output]
    quantize_dynamic(
        file,
        quantized,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        # ONNX Runtime makes a product and a sum of it before it looks for the names.
        nodes_to_exclude=[f"{name}{suffix}" for name in classifiers for suffix in ("", "_MatMul")],
    )
    quantized.replace(file)


if __name__ == "__main__":
    main()
