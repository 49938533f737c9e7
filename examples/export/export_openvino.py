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
"""Export a Twins model to OpenVINO, for any number of images of any size, in float32 or int8.

    python examples/export/export_openvino.py --model_name_or_path outputs/quickstart --output_dir outputs/openvino
    ... --dtype int8 --calibration_dir path/to/images
    python outputs/openvino/run_exported.py --inference_precision bf16 image.png

int8 needs images like those that the model will see: four fifths of them calibrate it, and the rest check that its
outputs still match. bfloat16 is chosen when the float32 model is run.
"""

from dataclasses import dataclass, field
from typing import Literal

from hf_twins.export.command_line import ExportArguments, run_export
from hf_twins.export.source import load_source
from hf_twins.export.to_openvino import export_openvino


@dataclass
class OpenVinoArguments(ExportArguments):
    dtype: Literal["float32", "int8"] = field(default="float32", metadata={"help": "Dtype of weights and products."})
    calibration_dir: str | None = field(
        default=None, metadata={"help": "Folder of images for int8, with or without sub-folders."}
    )
    max_calibration_samples: int = field(
        default=300, metadata={"help": "Maximum number of these images, chosen at random."}
    )


def main(arguments: list[str] | None = None) -> None:
    run_export(OpenVinoArguments, export, arguments)


def export(args: OpenVinoArguments) -> None:
    export_openvino(
        load_source(args.model_name_or_path),
        args.output_dir,
        args.dtype,
        args.calibration_dir,
        args.max_calibration_samples,
    )


if __name__ == "__main__":
    main()
