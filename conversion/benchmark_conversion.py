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
"""Benchmark the time and memory of converting a checkpoint of each size and format.

    python conversion/benchmark_conversion.py

Memory is the peak of the process above its use after all imports, as a multiple of the
checkpoint's size; pages of memory-mapped files count. It needs Linux, which reports a process's
memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hf_twins._utils.command_line import ArgumentParser

import torch
from checkpoint_formats import FORMATS, revert_model
from transformers import PreTrainedModel, UperNetConfig, UperNetForSemanticSegmentation

from hf_twins import TWINS_VARIANTS, TwinsConfig, TwinsForImageClassification


# The conversion runs in a separate process, whose peak memory is that of the conversion.
CONVERT = """
import sys, time, json, convert_twins_to_hf

def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

before, start = memory("VmRSS:"), time.perf_counter()
convert_twins_to_hf.main(sys.argv[1:])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": memory("VmHWM:") - before}))
"""


def make_checkpoint(variant: str, toolbox: str, file: Path) -> None:
    """Write a checkpoint with random weights, as the toolbox would save it."""
    config = TwinsConfig.from_variant(variant)
    model: PreTrainedModel = TwinsForImageClassification(config)
    if toolbox == "mmseg":
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone = TwinsConfig.from_variant(
            variant, use_stage_norm=config.window_size is not None, out_features=stages
        )
        upernet_config = UperNetConfig(backbone_config=backbone)
        upernet_config.num_labels = 150
        model = UperNetForSemanticSegmentation(upernet_config)
    target, weights, _ = revert_model(model, toolbox)
    torch.save({"state_dict": weights} if target.wrapped else weights, file)


def measure(file: Path, output: Path) -> dict[str, float]:
    process = subprocess.run(  # noqa: S603  # this file's own program
        [sys.executable, "-c", CONVERT, str(file), "--output", str(output)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument(
        "--variants", nargs="+", default=list(TWINS_VARIANTS), choices=TWINS_VARIANTS, help="variants to convert"
    )
    parser.add_argument(
        "--toolboxes",
        nargs="+",
        default=["official", "mmseg"],
        choices=sorted({each.toolbox for each in FORMATS} - {"timm"}),
        help="source toolboxes: a classifier, or UperNet for mmseg",
    )
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| checkpoint | size (MB) | time (s) | peak memory (sizes of the checkpoint) |")
    print("|---|---|---|---|")
    for toolbox in args.toolboxes:
        for variant in args.variants:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "checkpoint.pth")
                make_checkpoint(variant, toolbox, file)
                size = file.stat().st_size
                # Wait until the file is on disk, so that writing it does not slow down the conversion.
                time.sleep(1)
                result = measure(file, Path(folder, "converted"))
            kind = "UperNet" if toolbox == "mmseg" else "classifier"
            print(
                f"| {toolbox} {kind}, {variant} | {size / 1e6:.0f} | {result['seconds']:.1f} | {result['peak'] / size:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
