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
"""Benchmark Twins against timm's model of the same variant and other models: time, memory and scaling.

    python examples/benchmark.py
    python examples/benchmark.py --mode training --dtypes float32 bfloat16 --batch_sizes 8 --json training.json

Each contender runs in its own process, so that none warms another's caches, and they take turns, a few calls
each, so that other load on the machine affects all. Ratios are taken within a turn; shown are medians, with the
quartiles of the ratios. A turn's time is that of its fastest call; the percentiles are of all calls. Exports for ONNX Runtime and
OpenVINO are made once, and kept in Hugging Face's cache, except OpenVINO's int8, which is calibrated each time.
timm's eager model, in the first of the dtypes (in float32 where that is int8), is 1.00; larger is faster. The contender
`matmul` is the machine's ceiling: if included, the others are shown as shares of its FLOP/s. With several image sizes,
time is fitted as a power of the number of pixels: exponent 1 is linear. Memory is that of the process, as
reported by Linux, or that allocated by PyTorch on a GPU.
"""

import argparse
import itertools
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import ArgumentParser

from hf_twins._utils.benchmarks import compete, draw, growth, table_head, table_rows
from hf_twins._utils.extras import require_extra
from hf_twins._utils.progress import progress_bar


MODES = ("inference", "pyramid", "training")
# Models of transformers that a user might pick instead of a small Twins.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin-tiny": ("SwinConfig", {}),
    "pvtv2-b2": ("PvtV2Config", {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512]}),
    # Its backbone cannot do with the default, a tuple.
    "convnext-tiny": ("ConvNextConfig", {"hidden_sizes": [96, 192, 384, 768]}),
}
# Runtimes that models are exported to, and the dtypes that these exports have.
RUNTIMES = {
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "aotinductor": ("float32", "bfloat16"),
}
IMAGE_SUFFIXES = (".png", ".jpg", ".pdf", ".svg", ".webp")
INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
CONTENDERS = (
    *("timm", "timm-compiled", "timm-reduce-overhead", "hf_twins", "hf_twins-optimized", "hf_twins-compiled"),
    *(*RUNTIMES, *PEERS, "matmul"),
)
# Rows, inputs and outputs of the matrix product that is the ceiling: large enough for any kernel to be at its best.
MATMUL_SHAPE = (4096, 1024, 1024)


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        contender: one of `CONTENDERS`.
        variant: Twins variant, which peers are compared with.
        mode: `inference` of a classifier, `pyramid` (the four feature maps of a backbone), or a `training` step.
        dtype: dtype of weights in inference (int8: of linear layers and their inputs), of autocast in training.
        batch_size: images per call.
        image_size: height and width in pixels.
        checkpoints: whether training uses activation checkpointing.
    """

    contender: str
    variant: str
    mode: str
    dtype: str
    batch_size: int
    image_size: int
    checkpoints: bool = False

    @property
    def baseline(self) -> "Case":
        dtype = "float32" if self.dtype == "int8" else self.dtype
        return replace(self, contender="timm", dtype=dtype, checkpoints=False)


def what_prevents(case: Case, device: str) -> str | None:
    """Why a contender does not support a case, if so."""
    if case.contender in RUNTIMES and (
        case.mode != "inference" or device != "cpu" or case.dtype not in RUNTIMES[case.contender]
    ):
        return f"{case.contender} is measured only in inference on CPUs, in {', '.join(RUNTIMES[case.contender])}"
    if case.mode == "training" and case.contender in ("hf_twins-optimized", "timm-reduce-overhead"):
        return f"{case.contender} is not measured in training"
    if case.dtype == "int8" and case.contender not in ("hf_twins-optimized", "matmul", *RUNTIMES):
        return f"{case.contender} has no int8"
    if case.checkpoints and (case.contender != "hf_twins" or case.mode != "training"):
        return f"{case.contender} has no activation checkpointing in {case.mode}"
    return None


def create_call(case: Case, device: str, threads: int | None = None) -> Callable[[], Any]:
    """Return a function that runs a case once.

    Raises:
        ValueError: if the contender does not support it.
    """
    import torch

    import hf_twins

    if (reason := what_prevents(case, device)) is not None:
        raise ValueError(reason)
    torch.manual_seed(0)
    if case.contender == "matmul":
        return matmul(case.dtype, device)
    if case.contender == "aotinductor" or (case.contender, case.dtype) == ("openvino", "int8"):
        return exported_call(case, threads)
    model = create_model(case).to(device)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)
    dtype = getattr(torch, case.dtype)
    if case.mode == "training":
        trained = torch.compile(model.train()) if case.contender.endswith("-compiled") else model.train()
        return training_step(trained, images, dtype)
    compute: Any = model.eval()
    backends = {"hf_twins-optimized": "auto", "hf_twins-compiled": "compile"} | {name: name for name in RUNTIMES}
    if case.contender in backends:
        backend = backends[case.contender]
        compute = hf_twins.optimize_for_inference(compute, dtype=dtype, backend=backend)
    else:
        compute = compute.to(dtype)
        if case.contender == "timm-compiled":
            compute = torch.compile(compute)
        elif case.contender == "timm-reduce-overhead":
            compute = torch.compile(compute, mode="reduce-overhead")
    inputs = images if case.dtype == "int8" else images.to(dtype)

    def call() -> Any:
        with torch.inference_mode():
            return compute(inputs)

    return call


def create_model(case: Case) -> Any:
    """Create a model with random weights, as large as trained ones."""
    import timm
    import transformers

    import hf_twins

    stages = ["stage1", "stage2", "stage3", "stage4"] if case.mode == "pyramid" else None
    if case.contender in PEERS:
        config_class, options = PEERS[case.contender]
        config = getattr(transformers, config_class)(num_labels=1000, **options)
        if stages is None:
            return transformers.AutoModelForImageClassification.from_config(config)
        config.out_features = stages
        return transformers.AutoBackbone.from_config(config)
    if case.contender.startswith("timm"):
        name = case.variant.replace("-", "_")
        return timm.create_model(name, features_only=stages is not None)
    twins_config = hf_twins.TwinsConfig.from_variant(case.variant)
    if stages is not None:
        twins_config.out_features = stages
        return hf_twins.TwinsBackbone(twins_config)
    model = hf_twins.TwinsForImageClassification(twins_config)
    if case.checkpoints:
        model.activation_checkpointing_enable()
    return model


def exported_call(case: Case, threads: int | None) -> Callable[[], Any]:
    """Call of an export that `optimize_for_inference` does not make.

    OpenVINO's int8 is calibrated with noise, for speed; the rest of the model is bfloat16 where the CPU supports it.
    """
    import numpy as np
    import torch

    from hf_twins import TwinsImageProcessor
    from hf_twins.export.folder import describe
    from hf_twins.export.run_exported import load_runtime
    from hf_twins.export.source import load_source
    from hf_twins.export.to_openvino import convert_to_openvino, quantize, save_openvino
    from hf_twins.export.to_torch import export_torch
    from hf_twins.inference_optimization.machine import multiplies

    images = np.random.default_rng(0).normal(size=(case.batch_size, 3, case.image_size, case.image_size))
    pixel_values = images.astype(np.float32)
    precision = "f32"
    with tempfile.TemporaryDirectory() as folder:
        source_dir, output_dir = f"{folder}/source", f"{folder}/exported"
        create_model(case).save_pretrained(source_dir)
        TwinsImageProcessor().save_pretrained(source_dir)
        source = load_source(source_dir, case.image_size, case.image_size)
        with redirect_stdout(sys.stderr):
            if case.contender == "aotinductor":
                export_torch(source, output_dir, case.dtype)
            else:
                model = quantize(convert_to_openvino(source), [pixel_values[:1]] * 10)
                Path(output_dir).mkdir()
                save_openvino(model, Path(output_dir, "model.xml"))
                describe(Path(output_dir), source, "openvino", "model.xml", None, dtype="int8")
                precision = "bf16" if multiplies(torch.device("cpu"), torch.bfloat16) else "f32"
        runtime = load_runtime(output_dir, threads=threads, precision=precision)
    return lambda: runtime(pixel_values)


def matmul(dtype_name: str, device: str) -> Callable[[], Any]:
    """The highest speed of a linear layer on the machine."""
    import torch

    from hf_twins.inference_optimization.packing import prepare_linear

    rows, inputs, outputs = MATMUL_SHAPE
    dtype = getattr(torch, dtype_name)
    linear = torch.nn.Linear(inputs, outputs, device=device).requires_grad_(False)
    hidden_states = torch.randn(rows, inputs, device=device)
    if dtype != torch.int8:
        linear, hidden_states = linear.to(dtype), hidden_states.to(dtype)
    compute = prepare_linear(linear, dtype) if device == "cpu" else linear

    def call() -> Any:
        with torch.inference_mode():
            return compute(hidden_states)

    return call


def count_flops(case: Case) -> int:
    """FLOPs of one call, two per multiply-add, without computing anything."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if case.contender == "matmul":
        return 2 * math.prod(MATMUL_SHAPE)
    # What a contender is made of; how it is run changes nothing of what is computed.
    is_timm = case.contender.startswith("timm")
    contender = case.contender if case.contender in PEERS else "timm" if is_timm else "hf_twins"
    with torch.device("meta"):
        model = create_model(replace(case, contender=contender, checkpoints=False)).train(case.mode == "training")
        images = torch.empty(case.batch_size, 3, case.image_size, case.image_size)
        with FlopCounterMode(display=False) as counter:
            if case.mode == "training":
                forward_and_backward(model, images, torch.float32)
            else:
                model(images)
    return counter.get_total_flops()


def training_step(model: Any, images: Any, dtype: Any) -> Callable[[], Any]:
    """Forward, backward and AdamW, [`Trainer`]'s default, the same for all."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def call() -> None:
        forward_and_backward(model, images, dtype)
        optimizer.step()
        optimizer.zero_grad()

    return call


def forward_and_backward(model: Any, images: Any, dtype: Any) -> None:
    import torch

    is_mixed = dtype != torch.float32
    with torch.autocast(images.device.type, dtype) if is_mixed else nullcontext():
        output = model(images)
    logits = output if torch.is_tensor(output) else output.logits
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()


def requested_cases(args: argparse.Namespace) -> list[Case]:
    """Every combination of the options."""
    return [
        Case(contender, variant, args.mode, dtype, batch_size, image_size, checkpoints)
        for variant in args.variants
        for batch_size in args.batch_sizes
        for image_size in args.image_sizes
        for dtype in args.dtypes
        for contender in args.contenders
        for checkpoints in ([False, True] if args.checkpoints else [False])
    ]


def all_cases(args: argparse.Namespace) -> Iterator[list[Case]]:
    """Groups of cases to compare, each with its baseline first."""
    for _, group in itertools.groupby(
        requested_cases(args), lambda case: (case.variant, case.batch_size, case.image_size)
    ):
        cases = list(group)
        supported = [case for case in cases if not what_prevents(case, args.device)]
        yield list(dict.fromkeys([cases[0].baseline, *supported]))


def hardware(args: argparse.Namespace) -> dict[str, str]:
    """The device and package versions."""
    import timm
    import torch
    import transformers

    import hf_twins
    from hf_twins.inference_optimization.machine import cpu_capabilities

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    capabilities = cpu_capabilities()
    instruction_sets = ", ".join(name for name in INSTRUCTION_SETS if capabilities.get(name))
    on_cpu = f"{processor} ({instruction_sets}), {args.threads} threads"
    device = torch.cuda.get_device_name() if args.device == "cuda" else on_cpu
    packages = {package.__name__: package.__version__ for package in (hf_twins, torch, timm, transformers)}
    return {"device": device} | packages


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser()
    parser.add_argument("--variants", nargs="+", default=["twins-svt-small", "twins-pcpvt-small"], help="variants")
    parser.add_argument(
        "--contenders", nargs="+", default=["timm", "hf_twins"], choices=CONTENDERS, help="what to compare"
    )
    parser.add_argument("--mode", default="inference", choices=MODES, help="what to measure")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32"],
        choices=["float32", "bfloat16", "float16", "int8"],
        help="dtypes of the weights",
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8], help="images per call")
    parser.add_argument("--image_sizes", nargs="+", type=int, default=[224], help="image sides in pixels")
    parser.add_argument("--checkpoints", action="store_true", help="also measure activation checkpointing")
    parser.add_argument("--rounds", type=int, default=7, help="turns per contender")
    parser.add_argument("--calls", type=int, default=3, help="calls per turn, at least")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.5,
        help="seconds per turn of the baseline, at least: short calls are made more often",
    )
    parser.add_argument("--warm_ups", type=int, default=3, help="calls before the first turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each contender on CPUs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, help="image file for a plot of the ratios")
    args = parser.parse_args(arguments)
    if args.json is not None and args.json.is_dir():
        parser.error(f"--json must be a file, got the folder {args.json}")
    if args.plot is not None and args.plot.suffix not in IMAGE_SUFFIXES:
        parser.error(f"--plot must end in {', '.join(IMAGE_SUFFIXES)}, got {args.plot}")
    for name in ("batch_sizes", "image_sizes"):
        if min(getattr(args, name)) < 1:
            parser.error(f"--{name} must be at least 1, got {min(getattr(args, name))}")
    if not 0 <= args.seconds < math.inf:
        parser.error(f"--seconds must be a finite number of at least 0, got {args.seconds}")
    for name in ("rounds", "calls", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def check_machine(args: argparse.Namespace) -> None:
    """Exit with an error if there is no such variant or device; here, because the packages that know take seconds to import."""
    import torch

    from hf_twins import TWINS_VARIANTS

    unknown = [name for name in args.variants if name not in TWINS_VARIANTS]
    if unknown:
        sys.exit(f"error: --variants must be among {', '.join(TWINS_VARIANTS)}, got {', '.join(unknown)}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda needs a GPU, and PyTorch finds none.")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_arguments(arguments)
    # Contenders are measured in processes of their own.
    require_extra("convert")
    check_machine(args)
    groups = list(all_cases(args))
    for reason in dict.fromkeys(filter(None, (what_prevents(case, args.device) for case in requested_cases(args)))):
        print(f"note: {reason}.", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    has_ceiling = "matmul" in args.contenders
    print(table_head(has_ceiling), flush=True)
    progress = progress_bar(groups, desc="measuring", unit="group")
    for group in progress:
        measured = compete(create_call, count_flops, group, args)
        rows += measured
        # At once: whoever interrupts a long run has what it measured so far.
        progress.write(table_rows(measured, has_ceiling))
        sys.stdout.flush()
    machine = hardware(args)
    exponents = growth(rows)
    for name, exponent in exponents.items():
        print(f"\ntime of {name}: pixels to the power of {exponent:.2f}")
    print("\n" + ", ".join(f"{name} {value}" if name != "device" else value for name, value in machine.items()))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        results = {"machine": machine, "results": rows, "growth": exponents}
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        draw(rows, machine["device"], args.plot)
    return rows


if __name__ == "__main__":
    main()
