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
"""A Twins model as ONNX, for images of any number, height and width, in float32.

    python examples/export/export_onnx.py --model_name_or_path outputs/quickstart --output_dir outputs/onnx
    python examples/export/run_exported.py --model_dir outputs/onnx picture.png

Classifiers and segmenters give `logits`, backbones `feature_map_0`, `feature_map_1` and so on. The folder is only there if
ONNX Runtime computes what PyTorch does, at one and several images, at sizes that fill attention windows and that do not.
"""

from dataclasses import dataclass, field
from pathlib import Path

from exporting import (
    TOLERANCES,
    ExportArguments,
    describe,
    load_source,
    new_folder,
    run_export,
    save_onnx,
    verification_shapes,
    verify,
)


@dataclass
class OnnxArguments(ExportArguments):
    opset_version: int = field(
        default=18,
        metadata={"help": "Of ONNX; from 23 on attention is one operator, faster where the runtime has it."},
    )


def main(arguments: list[str] | None = None) -> None:
    run_export(OnnxArguments, export, arguments)


def export(args: OnnxArguments) -> Path:
    source = load_source(args.model_name_or_path)
    with new_folder(args.output_dir) as folder:
        save_onnx(source, folder / "model.onnx", args.opset_version)
        describe(folder, source, runtime="onnx", file="model.onnx", size=None, dtype="float32")
        verify(folder, source, verification_shapes(source), TOLERANCES["float32"])
    return Path(args.output_dir)


if __name__ == "__main__":
    main()
