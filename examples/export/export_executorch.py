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
"""Export a Twins model to an ExecuTorch program for phone CPUs (XNNPACK), for one image of one size, in float32.

    python examples/export/export_executorch.py --model_name_or_path outputs/quickstart --output_dir outputs/executorch
    python outputs/executorch/run_exported.py image.png

ExecuTorch needs its own environment, which this folder's README sets up.
"""

from hf_twins.export.command_line import FixedSizeArguments, run_export
from hf_twins.export.source import load_source
from hf_twins.export.to_executorch import export_executorch


def main(arguments: list[str] | None = None) -> None:
    run_export(FixedSizeArguments, export, arguments)


def export(args: FixedSizeArguments) -> None:
    export_executorch(load_source(args.model_name_or_path, args.height, args.width), args.output_dir)


if __name__ == "__main__":
    main()
