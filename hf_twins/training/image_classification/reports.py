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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from hf_twins._utils.cards import usage_code
from hf_twins.training.reports import draw_curves, write_report_and_card


# Panels of the figure with the training curves.
PANELS = {
    "loss": {"loss": "training", "eval_loss": "evaluation"},
    "accuracy": {"eval_accuracy": "evaluation, top-1", "eval_top5_accuracy": "evaluation, top-5"},
}


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and, with more than five labels, top-5 accuracy, as fractions."""
    metrics = {"accuracy": float(np.mean(logits.argmax(-1) == labels))}
    num_labels = logits.shape[-1]
    if num_labels > 5:
        metrics["top5_accuracy"] = float(top_k_accuracy_score(labels, logits, k=5, labels=range(num_labels)))
    return metrics


def summary(results: dict[str, Any], num_images: int) -> str:
    """The result of a run in one sentence."""
    return f"Accuracy on {num_images} evaluation images: {results['eval_accuracy']:.1%}."


def results_per_label(
    names: Sequence[str], numbers: Sequence[int], labels: np.ndarray, predictions: np.ndarray
) -> dict[str, dict[str, float]]:
    """Precision, recall (the accuracy on the label's images), F1 and number of images of each label.

    Args:
        names: names of the labels to report.
        numbers: their numbers.
        labels: labels of the images, `(num_images,)`.
        predictions: predicted labels, `(num_images,)`.
    """
    results = precision_recall_fscore_support(labels, predictions, labels=numbers, zero_division=0)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
        for name, p, r, f, n in zip(names, *results)
    }


def write_report(
    output_dir: Path,
    names: Sequence[str],
    logits: np.ndarray,
    labels: np.ndarray,
    history: Sequence[dict[str, float]],
    settings: dict[str, Any],
) -> None:
    """Write the results, their figures and the model card into the model's folder.

    Args:
        output_dir: the model folder.
        names: names of the labels.
        logits: logits of the evaluation images, `(num_images, num_labels)`.
        labels: labels of the evaluation images, `(num_images,)`.
        history: entries with `epoch` and any of `loss`, `eval_loss`, `eval_accuracy`, `learning_rate`.
        settings: settings of the run, including `recipe`, `start` and `dataset`.
    """
    metrics = classification_metrics(logits, labels)
    predictions = logits.argmax(-1)
    matrix = confusion_matrix(labels, predictions, labels=range(len(names)))
    report = {
        "metrics": metrics,
        "per_label": results_per_label(names, range(len(names)), labels, predictions),
        "confusion_matrix": matrix.tolist(),
        "history": list(history),
    }
    draw_confusion_matrix(matrix, names, output_dir / "confusion_matrix.png")
    draw_curves(history, PANELS, output_dir / "curves.png")
    write_report_and_card(
        output_dir,
        report,
        settings,
        kind="Twins image classifier",
        task="image-classification",
        metric_types={"top5_accuracy": "accuracy"},
        figures={"Loss and accuracy": "curves.png", "Confusion matrix": "confusion_matrix.png"},
        usage=usage_code("TwinsForImageClassification", str(output_dir)),
    )


# Dollar signs in names must not be parsed as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, with true labels in rows and predicted labels in columns, as shares of each row."""
    size = min(max(5.0, 0.35 * len(names)), 30.0)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the label's images", shrink=0.8)
    if len(names) <= 60:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("is")
    figure.savefig(path, dpi=100)
