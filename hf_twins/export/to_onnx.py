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
"""ONNX, for images of any number, height and width, in float32 or int8."""

import logging
from pathlib import Path

import torch

from hf_twins._utils.extras import require_extra
from hf_twins._utils.files import new_output
from hf_twins.export.folder import TOLERANCES, check_dtype, describe, verification_shapes, verify
from hf_twins.export.source import Source, dynamic_program


def export_onnx(source: Source, output_dir: str | Path, dtype: str = "float32", opset_version: int = 18) -> None:
    """Write a folder with the model as ONNX.

    Args:
        source: the model.
        output_dir: folder that is written, new or empty.
        dtype: "float32", or "int8" for weights and products of 8 bits in the linear layers, except the classifier.
        opset_version: version of ONNX's operators; from 23 on, attention is one operator.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        ValueError: if the folder exists, the model cannot be written with this opset, or it does not compute the same.
    """
    # onnxscript is what PyTorch's exporter needs.
    require_extra("export", "onnx", "onnxruntime", "onnxscript")
    check_dtype(dtype, "float32", "int8")
    with new_output(Path(output_dir)) as folder:
        save_onnx(source, folder / "model.onnx", opset_version)
        if dtype == "int8":
            print("quantizing ...", flush=True)
            quantize_linear_layers(folder / "model.onnx")
        describe(folder, source, runtime="onnx", file="model.onnx", size=None, dtype=dtype)
        verify(folder, source, verification_shapes(source), TOLERANCES[dtype])


def save_onnx(source: Source, file: Path, opset_version: int) -> None:
    """Write the model in float32.

    Raises:
        ValueError: if it cannot be written with this opset.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # They log a traceback where an opset cannot be had, and go on with another one, which is refused below.
    for name in ("onnxscript.version_converter", "torch.onnx._internal.exporter._compat"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    print("translating to ONNX, which can take minutes ...", flush=True)
    program = torch.onnx.export(
        dynamic_program(source),
        input_names=["pixel_values"],
        output_names=source.model.output_names,
        opset_version=opset_version,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101  # which it is only for exports to a file without dynamo
    written = program.model.opset_imports[""]
    if written != opset_version:
        raise ValueError(
            f"--opset_version {opset_version} cannot be obeyed: PyTorch {torch.__version__} writes this model with 18, or "
            "with a later opset that its exporter knows."
        )
    # Each node says by which lines of which files it was made: most of a small model's file, and nobody's business.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(file, external_data=False)


def quantize_linear_layers(file: Path) -> None:
    """Compute products with weights in 8 bits, except the classifier's, which are few and cost accuracy."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = file.with_suffix(".int8")
    classifiers = [node.name for node in onnx.load(file).graph.node if "logits" in node.output]
    quantize_dynamic(
        file,
        quantized,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        # ONNX Runtime splits a Gemm into a product and a sum before it looks for the names.
        nodes_to_exclude=[f"{name}{suffix}" for name in classifiers for suffix in ("", "_MatMul")],
    )
    quantized.replace(file)
