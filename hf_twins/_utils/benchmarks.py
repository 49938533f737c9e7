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

"""Timings of contenders that take turns, each in a process of its own, and their results as table, figure and growth."""

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def serve(
    create_call: Callable[..., Callable[[], Any]],
    count_flops: Callable[[Any], int],
    case: Any,
    options: argparse.Namespace,
    connection: Any,
) -> None:
    """A contender's process: told how many calls to make, answers with the seconds of each; None ends it."""
    try:
        import torch

        torch.set_num_threads(options.threads)
        # Imports are not what is measured.
        import timm  # noqa: F401
        import transformers

        import hf_twins  # noqa: F401

        transformers.utils.logging.set_verbosity_error()
        flops = count_flops(case)
        before = resident_memory()
        call = create_call(case, options.device, options.threads)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(options.warm_ups):
            call()
        connection.send("ready")
        while (count := connection.recv()) is not None:
            connection.send(list(timed(call, count, options.device)))
        memory = torch.cuda.max_memory_allocated() if options.device == "cuda" else peak_memory() - before
        connection.send((memory, flops))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def timed(call: Callable[[], Any], count: int, device: str) -> Iterator[float]:
    import torch

    for _ in range(count):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - started


def resident_memory() -> int:
    """Of this process, in bytes."""
    return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmRSS:"))


def peak_memory() -> int:
    """The most that this process had resident, in bytes."""
    return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM:"))


class Contender:
    """A contender's process, from outside."""

    def __init__(
        self,
        create_call: Callable[..., Callable[[], Any]],
        count_flops: Callable[[Any], int],
        case: Any,
        options: argparse.Namespace,
    ):
        self.case = case
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        self.process = context.Process(
            target=serve, args=(create_call, count_flops, case, options, child_connection), daemon=True
        )
        self.process.start()
        # So that the end of the process ends the pipe.
        child_connection.close()
        self.seconds: list[list[float]] = []
        self.error: str | None = None
        self.memory = self.flops = 0

    def get_ready(self) -> None:
        """Wait until it is warmed up."""
        answer = self.receive()
        if answer is not None and answer != "ready":
            self.error = answer

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            self.error = f"the process ended with status {self.process.exitcode}"
            return None

    def take_turn(self, count: int) -> None:
        if self.error is None:
            self.connection.send(count)
            answer = self.receive()
            if isinstance(answer, str):
                self.error = answer
            elif answer is not None:
                self.seconds.append(answer)

    def end(self) -> None:
        if self.error is None:
            self.connection.send(None)
            answer = self.receive()
            if isinstance(answer, str):
                self.error = answer
            else:
                self.memory, self.flops = answer


def compete(
    create_call: Callable[..., Callable[[], Any]],
    count_flops: Callable[[Any], int],
    cases: Sequence[Any],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Measure cases beside each other.

    Args:
        create_call: makes of a case, a device and a number of threads what is called and timed.
        count_flops: the floating-point operations of a call.
        cases: dataclasses with the fields `contender`, `dtype` and `batch_size`; the first is the baseline.
        options: `threads`, `device`, `warm_ups`, `rounds`, and the least `calls` of a turn and `seconds` of the baseline's.

    Returns:
        A row of results for each case: its fields, and `seconds`, `ratio` and more, or an `error`.
    """
    contenders = []
    for case in cases:
        contenders.append(Contender(create_call, count_flops, case, options))
        if options.device == "cpu":
            contenders[-1].get_ready()
    if options.device != "cpu":
        # What compiles them is not what is measured: beside a GPU they get ready side by side.
        for contender in contenders:
            contender.get_ready()
    calls = calls_per_turn(contenders[0], options)
    for _ in range(options.rounds):
        for contender in contenders:
            contender.take_turn(calls)
    for contender in contenders:
        contender.end()
    for contender in contenders:
        contender.process.join()
    rows = [row(contender, contenders[0]) for contender in contenders]
    ceilings = {result["dtype"]: result["flops_per_second"] for result in rows if is_measured(result, "matmul")}
    for result in rows:
        if is_measured(result) and result["dtype"] in ceilings:
            result["share_of_ceiling"] = result["flops_per_second"] / ceilings[result["dtype"]]
    return rows


def calls_per_turn(baseline: Contender, options: argparse.Namespace) -> int:
    """The same for all: the fastest of more calls would be faster."""
    baseline.take_turn(options.calls)
    if baseline.error is not None:
        return options.calls
    fastest = min(baseline.seconds.pop())
    return max(options.calls, math.ceil(options.seconds / fastest))


def row(contender: Contender, baseline: Contender) -> dict[str, Any]:
    result: dict[str, Any] = asdict(contender.case) | {"error": contender.error}
    if contender.error is not None:
        return result
    # A turn's time is that of its fastest call, which has least of what else the machine did.
    turns = [min(turn) for turn in contender.seconds]
    calls = sorted(second for turn in contender.seconds for second in turn)
    seconds = statistics.median(turns)
    result |= {
        "seconds": seconds,
        "images_per_second": contender.case.batch_size / seconds,
        "percentiles": {percent: calls[min(len(calls) - 1, len(calls) * percent // 100)] for percent in (50, 95, 99)},
        "memory": contender.memory,
        "flops_per_second": contender.flops / seconds,
    }
    if baseline.error is None:
        ratios = [min(baseline_turn) / turn for baseline_turn, turn in zip(baseline.seconds, turns)]
        result["ratio"] = statistics.median(ratios)
        # Of one turn, the ratio is all that there is.
        lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        result["ratio_quartiles"] = [lower, upper]
    return result


def is_measured(result: dict[str, Any], contender: str | None = None) -> bool:
    return result["error"] is None and contender in (None, result["contender"])


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Time as a power of the number of pixels: the exponent of whatever was measured at several image sizes."""
    points: dict[str, dict[int, float]] = {}
    for result in rows:
        if is_measured(result) and result["contender"] != "matmul":
            name = f"{result['variant']} {result['mode']}, {result['batch_size']} images: {describe_contender(result)}"
            points.setdefault(name, {})[result["image_size"] ** 2] = result["seconds"]
    return {
        name: statistics.linear_regression(*(list(map(math.log, values)) for values in (of, of.values()))).slope
        for name, of in points.items()
        if len(of) > 1
    }


def describe_contender(result: dict[str, Any]) -> str:
    return f"{result['contender']} {result['dtype']}" + (", checkpoints" if result["checkpoints"] else "")


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f}"


def table_titles(has_ceiling: bool) -> list[str]:
    titles = ["model", "what", "images", "contender", "dtype", "ratio (quartiles)", "images/s", "ms, 50 / 95 / 99 %"]
    return [*titles, "memory", "GFLOP/s"] + ["of ceiling"] * has_ceiling


def table_head(has_ceiling: bool) -> str:
    """The titles of the table of results in Markdown."""
    titles = table_titles(has_ceiling)
    return f"| {' | '.join(titles)} |\n" + "|---" * len(titles) + "|"


def table_rows(rows: list[dict[str, Any]], has_ceiling: bool) -> str:
    """The results as rows of the table."""
    lines = []
    for result in rows:
        name = result["contender"] + (", checkpoints" if result["checkpoints"] else "")
        images = f"{result['batch_size']} x {result['image_size']}"
        cells = [result["variant"], result["mode"], images, name, result["dtype"]]
        if name == "matmul":
            cells[:3] = ["", "", ""]
        if result["error"] is not None:
            cells += [result["error"]]
        else:
            lower, upper = result.get("ratio_quartiles", (math.nan, math.nan))
            ratio = f"**{result['ratio']:.2f}** ({lower:.2f} - {upper:.2f})" if "ratio" in result else "-"
            is_ceiling = name == "matmul"
            cells += ["", ""] if is_ceiling else [ratio, f"{result['images_per_second']:.1f}"]
            cells += [" / ".join(milliseconds(result["percentiles"][percent]) for percent in (50, 95, 99))]
            cells += ["" if is_ceiling else f"{result['memory'] / 2**20:.0f} MB"]
            cells += [f"{result['flops_per_second'] / 1e9:.0f}"]
            cells += [f"{result['share_of_ceiling']:.0%}" if "share_of_ceiling" in result else ""] * has_ceiling
        cells += [""] * (len(table_titles(has_ceiling)) - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """A panel for each model and input; in it, a bar for each contender, with the quartiles of its ratio."""
    from matplotlib.figure import Figure

    panels: dict[str, list[dict[str, Any]]] = {}
    for result in rows:
        if "ratio" in result and result["contender"] != "matmul":
            name = f"{result['variant']} {result['mode']}, {result['batch_size']} x {result['image_size']} pixels"
            panels.setdefault(name, []).append(result)
    heights = [len(results) for results in panels.values()]
    figure = Figure(figsize=(9, 1.0 + sum(0.32 * height + 0.8 for height in heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)
    dtypes = list(dict.fromkeys(result["dtype"] for result in rows))
    for axes, (name, results) in zip(grid[:, 0], panels.items()):
        for place, result in enumerate(results):
            lower, upper = result["ratio_quartiles"]
            axes.barh(place, result["ratio"], color=f"C{dtypes.index(result['dtype'])}", height=0.7)
            axes.plot([lower, upper], [place, place], color="black", linewidth=1)
            axes.annotate(
                f"{result['ratio']:.2f}",
                (max(result["ratio"], upper), place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(results)), [describe_contender(result) for result in results], fontsize=9)
        axes.invert_yaxis()
        axes.axvline(1, color="gray", linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel(f"times as fast as timm's eager model in {rows[0]['dtype']}")
    grid[-1, 0].margins(x=0.08)
    figure.suptitle(device, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
