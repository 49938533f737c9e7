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
"""What `benchmark.py` measured, as a table, as a picture, and as the growth of time with the number of pixels."""

import math
import statistics
from pathlib import Path
from typing import Any


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


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    has_ceiling = any("share_of_ceiling" in result for result in rows)
    titles = [
        "model",
        "what",
        "images",
        "contender",
        "dtype",
        "ratio (least - greatest)",
        "images/s",
        "ms, 50 / 95 / 99 %",
    ]
    titles += ["memory", "GFLOP/s"] + ["of ceiling"] * has_ceiling
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for result in rows:
        name = result["contender"] + (", checkpoints" if result["checkpoints"] else "")
        images = f"{result['batch_size']} x {result['image_size']}"
        cells = [result["variant"], result["mode"], images, name, result["dtype"]]
        if name == "matmul":
            cells[:3] = ["", "", ""]
        if result["error"] is not None:
            cells += [result["error"]]
        else:
            least, greatest = result.get("ratio_range", (math.nan, math.nan))
            ratio = f"**{result['ratio']:.2f}** ({least:.2f} - {greatest:.2f})" if "ratio" in result else "-"
            is_ceiling = name == "matmul"
            cells += ["", ""] if is_ceiling else [ratio, f"{result['images_per_second']:.1f}"]
            cells += [" / ".join(milliseconds(result["percentiles"][percent]) for percent in (50, 95, 99))]
            cells += ["" if is_ceiling else f"{result['memory'] / 2**20:.0f} MB"]
            cells += [f"{result['flops_per_second'] / 1e9:.0f}"]
            cells += [f"{result['share_of_ceiling']:.0%}" if "share_of_ceiling" in result else ""] * has_ceiling
        cells += [""] * (len(titles) - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """A panel for each model and input; in it, a bar for each contender, with the least and the greatest ratio."""
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
            least, greatest = result["ratio_range"]
            axes.barh(place, result["ratio"], color=f"C{dtypes.index(result['dtype'])}", height=0.7)
            axes.plot([least, greatest], [place, place], color="black", linewidth=1)
            axes.annotate(
                f"{result['ratio']:.2f}",
                (greatest, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(results)), [describe_contender(result) for result in results], fontsize=9)
        axes.invert_yaxis()
        axes.axvline(1, color="grey", linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel(f"times as fast as timm's eager model in {rows[0]['dtype']}")
    grid[-1, 0].margins(x=0.08)
    figure.suptitle(device, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
