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
"""Draw where a Twins model looks: attention, attention rollout and Grad-CAM on top of the image.

Writes one figure per stage. The image is shown as the model sees it; attention is averaged over
heads. "Received" is the attention from all tokens, and "from" is that from the token under the cross. Rollout is
computed within each stage.

    python examples/attention_maps.py --model_name_or_path outputs/quickstart --image image.png --output_dir outputs/maps
    ... --stages stage3 stage4 --layers 0 1     # only these stages, and these layers of each
    ... --query 0.3 0.7 --label "tabby"         # for another token and another class
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_twins import (
    LayerAttention,
    attention_maps,
    attention_rollout,
    grad_cam,
    load_model,
)
from hf_twins._utils.drawing import denormalize
from hf_twins._utils.files import check_is_apart, write_atomically
from hf_twins._utils.images import log_applied_rules, mode_of_model, read_image
from hf_twins._utils.labels import label_names


@dataclass
class AttentionMapsArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder or Hub id of a classifier or Semantic FPN, also a timm model, or an authors' file."}
    )
    image: str = field(metadata={"help": "Image to explain."})
    output_dir: str = field(metadata={"help": "Output folder for the figures, one per stage."})
    stages: list[str] | None = field(default=None, metadata={"help": "Stages, e.g. stage3 stage4; all by default."})
    layers: list[int] | None = field(
        default=None, metadata={"help": "Layers of each stage, from 0; by default the last of each attention type."}
    )
    query: list[float] = field(
        default_factory=lambda: [0.5, 0.5],
        metadata={"help": "Position of the query token: row and column, as fractions of the image in [0, 1)."},
    )
    label: str | None = field(
        default=None, metadata={"help": "Name or index of the Grad-CAM class; by default the predicted one."}
    )


def choose_layers(
    layers: list[LayerAttention], stage: str, chosen: list[int] | None
) -> tuple[list[LayerAttention], list[LayerAttention]]:
    """Return all layers of a stage, and those to draw."""
    of_stage = [layer for layer in layers if layer.stage == stage]
    if chosen is None:
        last_of_kind = {layer.window_size is None: layer for layer in of_stage}
        return of_stage, sorted(last_of_kind.values(), key=lambda layer: layer.layer)
    if not set(chosen) <= set(range(len(of_stage))):
        raise ValueError(f"--layers must be from 0 to {len(of_stage) - 1} in {stage}, got {chosen}.")
    return of_stage, [of_stage[layer] for layer in chosen]


def choose_label(label: str | None, model: Any, pixel_values: torch.Tensor) -> int:
    if label is None:
        with torch.inference_mode():
            logits = model(pixel_values).logits
        return int(logits.flatten(2).sum(2).argmax() if logits.ndim == 4 else logits.argmax())
    # `label2id` has only one of several labels with the same name.
    found = [number for number, name in enumerate(label_names(model.config)) if name == label]
    if len(found) > 1:
        raise ValueError(f"--label {label} names several labels, {' and '.join(map(str, found))}: give an index.")
    index = found[0] if found else int(label) if label.isdecimal() else -1
    if not 0 <= index < model.config.num_labels:
        raise ValueError(
            f"--label must be a label of the model or an index below {model.config.num_labels}, got {label}."
        )
    return index


def draw_map(
    axes: Axes, image: np.ndarray, values: torch.Tensor, stride: int, title: str, is_smooth: bool = False
) -> None:
    """Draw a map `(height, width)` over the image, each value over the `stride x stride` pixels that it covers.

    `is_smooth` interpolates between the values, as is usual for Grad-CAM.
    """
    draw_image(axes, image, title)
    height, width = values.shape
    drawn = axes.imshow(
        values.numpy(),
        extent=(-0.5, width * stride - 0.5, height * stride - 0.5, -0.5),
        cmap="inferno",
        interpolation="bicubic" if is_smooth else "nearest",
        alpha=0.6,
        vmin=0,
    )
    # Cut off the parts of windows and patches beyond the image.
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.04)
    bar.ax.tick_params(labelsize=7)


def draw_image(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_windows(axes: Axes, image: np.ndarray, side: int) -> None:
    """Draw the borders of windows of `side` pixels."""
    for row in range(side, image.shape[0], side):
        axes.axhline(row - 0.5, color="white", linewidth=0.6)
    for column in range(side, image.shape[1], side):
        axes.axvline(column - 0.5, color="white", linewidth=0.6)


# Dollar signs in names must not be parsed as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw_stage(
    image: np.ndarray,
    of_stage: list[LayerAttention],
    shown: list[LayerAttention],
    cam: torch.Tensor,
    label: str,
    query: tuple[int, int],
) -> Figure:
    """Draw all maps of a stage: those of the entire image above, and those of one token below."""
    stage, stride = of_stage[0].stage, of_stage[0].stride
    row, column = query
    panel_height = 2.6 * image.shape[0] / image.shape[1] + 0.4
    figure = Figure(figsize=(3.3 * (len(shown) + 2), 2 * panel_height + 0.4), layout="constrained")
    grid = figure.subplots(2, len(shown) + 2)
    draw_image(grid[0, 0], image, f"image, {image.shape[0]} x {image.shape[1]} pixels")
    draw_map(grid[1, 0], image, cam, stride, f"Grad-CAM: {label}", is_smooth=True)
    for layer, (above, below) in zip(shown, grid.T[1:-1]):
        kind = "GSA" if layer.window_size is None else "LSA"
        for axes, weights, caption in (
            (above, layer.received(), "received"),
            (below, layer.from_query(row, column), f"from token {row}, {column}"),
        ):
            draw_map(
                axes, image, weights[0].mean(0), stride * layer.sr_ratio, f"layer {layer.layer}, {kind}: {caption}"
            )
            if layer.window_size is not None:
                draw_windows(axes, image, layer.window_size * stride)
    rollout, rollout_of_query = attention_rollout(of_stage), attention_rollout(of_stage, query)
    draw_map(grid[0, -1], image, rollout[0], stride, "rollout: mean of all tokens")
    draw_map(grid[1, -1], image, rollout_of_query[0], stride, f"rollout: of token {row}, {column}")
    for axes in (grid[0, 0], *grid[1, 1:]):
        axes.plot((column + 0.5) * stride - 0.5, (row + 0.5) * stride - 0.5, "x", color="cyan", markeredgewidth=2)
    figure.suptitle(f"{stage}: {of_stage[0].grid[0]} x {of_stage[0].grid[1]} tokens of {stride} x {stride} pixels")
    return figure


def write_figures(arguments: AttentionMapsArguments) -> list[Path]:
    if len(arguments.query) != 2 or not all(0 <= part < 1 for part in arguments.query):
        raise ValueError(f"--query must be a row and a column in [0, 1), got {arguments.query}.")
    model, processor = load_model(arguments.model_name_or_path)
    if type(model).__name__ not in ("TwinsForImageClassification", "TwinsForSemanticSegmentation"):
        raise ValueError(
            f"{arguments.model_name_or_path} holds a {type(model).__name__}, but a classifier or a Semantic FPN is needed: "
            "pass another model."
        )
    stage_names = model.config.stage_names[1:]
    stages = arguments.stages or stage_names
    if not set(stages) <= set(stage_names):
        raise ValueError(f"--stages must be one or more of {', '.join(stage_names)}, got {', '.join(stages)}.")
    check_is_apart(arguments.output_dir, [arguments.image], is_recursive=False)
    applied: Counter[str] = Counter()
    image = read_image(arguments.image, mode_of_model(model.config), applied)
    log_applied_rules(applied)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    label = choose_label(arguments.label, model, pixel_values)
    layers = attention_maps(model, pixel_values)
    # Check all options before anything is written.
    chosen = [choose_layers(layers, stage, arguments.layers) for stage in stages]
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for stage, (of_stage, shown) in zip(stages, chosen):
        row, column = (int(part * side) for part, side in zip(arguments.query, of_stage[0].grid))
        figure = draw_stage(
            *(np.asarray(denormalize(pixel_values[0], processor)), of_stage, shown),
            *(grad_cam(model, pixel_values, label, stage)[0], model.config.id2label[label], (row, column)),
        )
        path = output_dir / f"{stage}.png"
        write_atomically(path, partial(figure.savefig, format="png", dpi=110))
        paths.append(path)
    return paths


def main() -> None:
    paths = run(write_figures, AttentionMapsArguments)
    print(f"Look at {', '.join(str(path) for path in paths)}.")


if __name__ == "__main__":
    main()
