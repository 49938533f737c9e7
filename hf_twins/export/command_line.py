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
"""The command lines of the exports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

from hf_twins._utils.files import check_is_new


@dataclass
class ExportArguments:
    """Options of every export."""

    model_name_or_path: str = field(
        metadata={"help": "Folder or Hub id of a Twins model, a timm model or an adapter, or an authors' file."}
    )
    output_dir: str = field(metadata={"help": "Output folder, new or empty."})


@dataclass
class FixedSizeArguments(ExportArguments):
    """Options of formats that support only images of one size."""

    height: int | None = field(
        default=None, metadata={"help": "Height of the images in pixels; the image processor's by default."}
    )
    width: int | None = field(
        default=None, metadata={"help": "Width of the images in pixels; the image processor's by default."}
    )


def run_export(argument_class: type, export: Callable[[Any], None], arguments: list[str] | None) -> None:
    """Call `export` with the options of the command line, and exit with a one-sentence message if it fails."""

    def export_and_report(args: Any) -> None:
        # Check this first, because loading and exporting the model takes a while.
        check_is_new(Path(args.output_dir))
        try:
            export(args)
        except ImportError as error:
            raise ValueError(error) from None
        print(f"exported to {args.output_dir}")

    run(export_and_report, argument_class, arguments=arguments)
