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
"""Export to ONNX, for batches of any size, height and width, in float32, float16 or int8."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_twins._utils.extras import require_extra
from hf_twins._utils.files import new_output
from hf_twins.export.folder import TOLERANCES, check_dtype, describe, verification_shapes, verify
from hf_twins.export.source import Source, dynamic_program


# The names that transformers.js uses for files and dtypes.
FOLDER_NAME = "onnx"
DEFAULT_OPSET_VERSION = 18
FILE_NAMES = {"float32": "model.onnx", "float16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
TRANSFORMERS_JS_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}


def export_onnx(
    source: Source,
    output_dir: str | Path,
    dtype: str | Sequence[str] = "float32",
    opset_version: int = DEFAULT_OPSET_VERSION,
) -> None:
    """Export a model to a folder with an ONNX file for each dtype.

    Args:
        source: the model.
        output_dir: output folder, new or empty.
        dtype: one or several of "float32", "float16", and "int8", which quantizes weights and activations of all
            linear layers except the classifier. `run_exported.py` and transformers.js load the first one by default.
        opset_version: version of ONNX's operators; from 23 on, attention is a single operator.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        ValueError: if the folder exists, the model cannot be written with this opset, or its outputs differ.
    """
    # PyTorch's exporter needs onnxscript.
    require_extra("export", "onnx", "onnxruntime", "onnxscript")
    dtypes = [dtype] if isinstance(dtype, str) else list(dict.fromkeys(dtype))
    for name in dtypes:
        check_dtype(name, *FILE_NAMES)
    with new_output(Path(output_dir)) as folder:
        files = {name: folder / FOLDER_NAME / file for name, file in FILE_NAMES.items()}
        files["float32"].parent.mkdir()
        print("translating to ONNX, which can take minutes ...", flush=True)
        save_onnx(source, files["float32"], opset_version)
        # The first dtype is written last, so that its description is kept.
        for name in reversed(dtypes):
            if name != "float32":
                print(f"converting to {name} ...", flush=True)
                (convert_to_float16 if name == "float16" else quantize_linear_layers)(files["float32"], files[name])
            file = files[name].relative_to(folder).as_posix()
            describe(folder, source, runtime="onnx", file=file, size=None, dtype=name)
            verify(folder, source, verification_shapes(source), TOLERANCES[name])
        if "float32" not in dtypes:
            files["float32"].unlink()
        set_default_of_transformers_js(folder / "config.json", TRANSFORMERS_JS_DTYPES[dtypes[0]])


def save_onnx(source: Source, file: Path, opset_version: int) -> None:
    """Write the model in float32.

    Raises:
        ValueError: if the model cannot be written with this opset.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # If an opset is not possible, these log a traceback and continue with another one, which is refused below.
    for name in ("onnxscript.version_converter", "torch.onnx._internal.exporter._compat"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
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
            f"--opset_version {opset_version} is not possible: PyTorch {torch.__version__} writes this model with 18, "
            "or with a later opset that its exporter knows."
        )
    # Remove the source code lines recorded in each node, which make up most of a small model's file and reveal local
    # paths.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(file, external_data=False)


def convert_to_float16(file: Path, converted: Path) -> None:
    """Convert the model to float16, except for pixels and outputs, which stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), converted)


def quantize_linear_layers(file: Path, quantized: Path) -> None:
    """Quantize matrix products with weights to 8 bits, except the classifier's, which gains little and loses accuracy."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(file)
    classifiers = [node.name for node in model.graph.node if "logits" in node.output]
    # Without this entry, ONNX Runtime recommends its pre-processing, which would change nothing in this graph.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_dynamic(
        model,
        quantized,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        # ONNX Runtime splits a Gemm into a product and a sum, with new names, before it compares the names.
        nodes_to_exclude=[f"{name}{suffix}" for name in classifiers for suffix in ("", "_MatMul")],
    )


def set_default_of_transformers_js(file: Path, dtype: str) -> None:
    """Set in `config.json` which file transformers.js loads; in a browser, its default is the int8 file."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["transformers.js_config"] = {"dtype": dtype}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
