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
"""Draws masks on top of images, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy import ndimage

from hf_twins._utils.drawing import class_areas, is_background, label_colors, overlay_mask
from hf_twins._utils.labels import distinct_names


def class_shares(mask: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The share of the image that each class in it covers, largest first."""
    distinct = distinct_names(names)
    return {distinct[index]: area / mask.size for index, area in class_areas(mask, len(names)).items()}


def visible_shares(mask: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The shares that do not round to 0.0 %."""
    return {name: share for name, share in class_shares(mask, names).items() if share >= 0.0005}


def legend_entries(masks: Sequence[np.ndarray], names: Sequence[str], limit: int) -> list[Patch]:
    """Legend entries for the classes in the masks, largest first, with their shares of the last mask; at most `limit`.

    Classes whose share rounds to 0.0 % are left out.
    """
    colors = label_colors(names) / 255
    number = {name: index for index, name in enumerate(distinct_names(names))}
    everything = visible_shares(np.concatenate([mask.ravel() for mask in masks]), names)
    shares = class_shares(masks[-1], names)
    entries = [
        Patch(
            # The background is not painted.
            facecolor="none" if is_background(names[number[name]]) else colors[number[name]],
            edgecolor=colors[number[name]],
            linewidth=0.5,
            label=f"{name}  {100 * shares.get(name, 0):.1f} %",
        )
        for name in list(everything)[:limit]
    ]
    if len(everything) > limit:
        entries.append(Patch(color="none", label=f"and {len(everything) - limit} more"))
    return entries


def draw_prediction(
    image: PIL.Image.Image,
    prediction: np.ndarray,
    names: Sequence[str],
    path: Path,
) -> None:
    """Draw an image with its mask on top, next to a legend of the classes in the mask."""
    draw_rows([(image, prediction, None)], names, path)


def label_regions(axes: Axes, mask: np.ndarray, names: Sequence[str]) -> None:
    """Write the class name into the middle of each region that covers at least a hundredth of the image."""
    for index in class_areas(mask, len(names)):
        if is_background(names[index]):
            continue
        regions, _ = ndimage.label(mask == index)
        for region, area in enumerate(np.bincount(regions.ravel())[1:], start=1):
            if area < 0.01 * mask.size:
                continue
            # The name goes to the pixel farthest from the region's border; the image's border counts as well.
            distance = ndimage.distance_transform_edt(np.pad(regions == region, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(distance.argmax(), mask.shape)
            text = axes.text(column, row, names[index], fontsize=7, color="white", ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2, foreground="black")])


# Dollar signs in names must not be parsed as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw_rows(
    rows: Sequence[tuple[PIL.Image.Image, np.ndarray, np.ndarray | None]], names: Sequence[str], path: Path
) -> None:
    """Draw one image per row, with the true mask, if known, and the predicted mask on top.

    Args:
        rows: triples of image, prediction, and truth or None.
        names: names of the classes.
        path: PNG file to write.
    """
    has_truth = any(truth is not None for _, _, truth in rows)
    height = 3.2 if len(rows) > 1 else 4.5
    # Columns are as wide as the widest image needs, within limits that keep images from becoming narrow strips.
    width = height * float(np.clip(max(image.width / image.height for image, _, _ in rows), 0.7, 2.5))
    figure = Figure(figsize=((2 + has_truth) * width + 2.6, height * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2 + has_truth, squeeze=False)
    for axes, (image, prediction, truth) in zip(grid, rows):
        masks = [prediction] if truth is None else [truth, prediction]
        panels = [("image", image.convert("RGB"))]
        panels += [
            (title, overlay_mask(image, mask, names))
            for title, mask in zip(("truth", "prediction")[-len(masks) :], masks)
        ]
        for axis, (title, panel) in zip(axes, panels):
            axis.imshow(panel)
            axis.set_axis_off()
            axis.set_title(title, fontsize=10)
        for axis, mask in zip(axes[1:], masks):
            label_regions(axis, mask, names)
        entries = legend_entries(masks, names, limit=round(4 * height))
        axes[-1].legend(
            handles=entries,
            title="share of the prediction",
            title_fontsize=8,
            alignment="left",
            loc="upper left",
            bbox_to_anchor=(1.02, 1.0),
            fontsize=8,
            frameon=False,
        )
    figure.savefig(path, format="png", dpi=100)
