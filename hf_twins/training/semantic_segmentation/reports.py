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
"""Results of a run, as numbers and figures, saved with the model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from hf_twins._utils.cards import usage_code
from hf_twins._utils.images import convert_image
from hf_twins._utils.labels import distinct_names, label_names
from hf_twins.training.reports import draw_curves, write_report_and_card
from hf_twins.training.semantic_segmentation.data import ImageMaskPairs, class_numbers
from hf_twins.training.semantic_segmentation.drawing import draw_rows
from hf_twins.training.semantic_segmentation.inference import InferenceArguments, segment
from hf_twins.training.semantic_segmentation.metrics import class_accuracy, class_iou, segmentation_metrics


# Panels of the figure with the training curves.
PANELS = {
    "loss": {"loss": "training"},
    "share": {"eval_mean_iou": "mean IoU", "eval_overall_accuracy": "pixels that are right"},
}
NUM_IMAGES = 4


def per_class(matrix: torch.Tensor, names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """IoU, accuracy and number of pixels of each class; None where a value is undefined."""
    rows = zip(
        distinct_names(names), class_iou(matrix).tolist(), class_accuracy(matrix).tolist(), matrix.sum(1).tolist()
    )
    return {
        name: {
            "iou": None if math.isnan(iou) else iou,
            "accuracy": None if math.isnan(accuracy) else accuracy,
            "pixels": pixels,
        }
        for name, iou, accuracy, pixels in rows
    }


def write_report(
    output_dir: Path,
    names: Sequence[str],
    matrix: torch.Tensor,
    history: Sequence[dict[str, float]],
    settings: dict[str, Any],
) -> None:
    """Write the results, their figures and the model card into the model's folder.

    Args:
        output_dir: the model folder.
        names: names of the classes.
        matrix: confusion matrix from `evaluate_pairs`.
        history: entries with `epoch` and any of `loss`, `eval_mean_iou`, `eval_overall_accuracy`.
        settings: settings of the run, including `recipe`, `start` and `dataset`.
    """
    draw_class_iou(matrix, names, output_dir / "class_iou.png")
    draw_curves(history, PANELS, output_dir / "curves.png")
    report = {
        "metrics": segmentation_metrics(matrix),
        "per_class": per_class(matrix, names),
        "confusion_matrix": matrix.tolist(),
        "history": list(history),
    }
    write_report_and_card(
        output_dir,
        report,
        settings,
        kind="Twins semantic segmentation model",
        task="image-segmentation",
        metric_types={},
        figures={
            "Predictions": "predictions.png",
            "Loss and accuracy": "curves.png",
            "IoU of each class": "class_iou.png",
        },
        usage=usage_code("TwinsForSemanticSegmentation", str(output_dir)),
    )


def draw_predictions(model: Any, processor: Any, pairs: ImageMaskPairs, how: InferenceArguments, path: Path) -> None:
    """Draw a few images with their true and predicted masks."""
    model.eval()
    rows = []
    for index in range(min(NUM_IMAGES, len(pairs))):
        pair = pairs[index]
        prediction = segment(model, processor, pair["image"], how).cpu().numpy()
        rows.append(
            (convert_image(pair["image"]), prediction, class_numbers(pair["label"], processor.do_reduce_labels))
        )
    draw_rows(rows, label_names(model.config), path)


# Dollar signs in names must not be parsed as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw_class_iou(matrix: torch.Tensor, names: Sequence[str], path: Path) -> None:
    """Draw a bar for the IoU of each class that occurs or is predicted, the best one on top, and their mean."""
    iou = class_iou(matrix).numpy()
    order = [index for index in np.argsort(iou, kind="stable") if not np.isnan(iou[index])]
    figure = Figure(figsize=(7, min(max(2.0, 0.2 * len(order) + 1), 40.0)), layout="constrained")
    axes = figure.subplots()
    # Bars with equal names would be merged.
    names = distinct_names(names)
    bars = axes.barh([names[index] for index in order], iou[order], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    mean = float(np.nanmean(iou))
    axes.axvline(mean, color="tab:red", linewidth=1, linestyle=":", zorder=0, label=f"mean {mean:.3f}")
    axes.set_xlim(0, 1.08)
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("intersection over union")
    figure.legend(loc="outside upper right", fontsize=8)
    figure.savefig(path, dpi=100)
