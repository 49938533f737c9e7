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
"""Average precision, drawn predictions, and the report of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from matplotlib.font_manager import findfont
from pycocotools import mask as coco_mask
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from hf_twins._utils.cards import usage_code
from hf_twins._utils.labels import distinct_names
from hf_twins.training.object_detection.data import CocoImages, binary_mask
from hf_twins.training.reports import draw_curves, write_report_and_card


# torchmetrics' names of COCO's average precisions: the mean over overlaps from 0.5 to 0.95 unless the name gives one,
# also for objects with an area below 32 x 32 pixels, up to 96 x 96, and above.
METRICS = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_small",
    "map_medium": "ap_medium",
    "map_large": "ap_large",
}
PANELS = {
    "loss": {"loss": "training"},
    "average precision": {"eval_ap": "boxes", "eval_ap50": "boxes, overlap 0.5", "eval_mask_ap": "masks"},
}
# matplotlib's ten default colors, for the categories in turn.
COLORS = [
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#bcbd22",
    "#17becf",
    "#7f7f7f",
]
# `import hf_twins` comes first: without it, transformers knows no Twins.
NUM_IMAGES, IMAGE_SIDE = 4, 448


def average_precision(
    split: CocoImages, predictions: dict[int, dict[str, Any]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Compute COCO's average precision of boxes and, if there are any, of masks.

    Args:
        split: images and their objects.
        predictions: maps the index of an image to a dictionary with `boxes` `(num_objects, 4)`, left, top, right and
            bottom in pixels, `scores` and `labels` `(num_objects,)`, and optionally `masks`, a list of COCO's run
            lengths.

    Returns:
        The metrics, those of masks with the prefix `mask_`, and the `ap` and `mask_ap` of each category. Metrics for
        which there are no objects are left out.
    """
    # This import takes seconds, so it must not delay code that only draws predictions.
    from torchmetrics.detection import MeanAveragePrecision

    has_masks = any("masks" in prediction for prediction in predictions.values())
    # Maps the prefixes of torchmetrics' names to those in the report.
    prefixes = {"bbox_": "", "segm_": "mask_"} if has_masks else {"": ""}
    metric = MeanAveragePrecision(
        "xywh",
        ("bbox", "segm") if has_masks else ("bbox",),
        # torchmetrics' default thresholds are rounded to single precision, which changes the average by up to 0.001.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        extended_summary=True,
    )
    # As in COCO, only the best hundred detections count. Some detectors return more, which is no reason to warn.
    metric.warn_on_many_detections = False
    for index, prediction in predictions.items():
        metric.update([detections(prediction, has_masks)], [targets(split, index, has_masks)])
    results = metric.compute()
    metrics: dict[str, float] = {}
    names = distinct_names(split.names)
    per_category: dict[str, dict[str, float]] = {name: {} for name in names}
    for prefix, metric_prefix in prefixes.items():
        values = {metric_prefix + METRICS[name]: float(results[prefix + name]) for name in METRICS}
        metrics |= {name: value for name, value in values.items() if value >= 0}
        # The axes are overlaps, recalls, categories, areas (index 0: all) and numbers of detections (index -1: 100).
        # With `class_metrics=True`, torchmetrics would evaluate every category again.
        precisions = results[f"{prefix}precision"][:, :, :, 0, -1].unbind(2)
        for label, precision in zip(results["classes"].reshape(-1).tolist(), precisions):
            if (precision >= 0).any():
                per_category[names[label]][f"{metric_prefix}ap"] = float(precision[precision >= 0].mean())
    return metrics, per_category


def detections(prediction: dict[str, Any], has_masks: bool) -> dict[str, torch.Tensor]:
    """Convert the predictions for an image to the input format of torchmetrics."""
    detected = {
        "boxes": box_convert(prediction["boxes"].float(), "xyxy", "xywh"),
        "scores": prediction["scores"].float(),
        "labels": prediction["labels"],
    }
    if has_masks:
        detected["masks"] = stacked_masks([coco_mask.decode(lengths) for lengths in prediction["masks"]])
    return detected


def targets(split: CocoImages, index: int, has_masks: bool) -> dict[str, torch.Tensor]:
    """Convert the objects of an image, including crowds, to the input format of torchmetrics."""
    image = split.images[index]
    objects = split.annotations.get(image["id"], [])
    # Boxes have double precision, as in the file.
    boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float64).reshape(-1, 4)
    target = {
        "boxes": boxes,
        "labels": torch.tensor([each["label"] for each in objects], dtype=torch.long),
        "iscrowd": torch.tensor([each["iscrowd"] for each in objects], dtype=torch.long),
        "area": torch.tensor([each["area"] for each in objects], dtype=torch.float64),
    }
    if has_masks:
        target["masks"] = stacked_masks(
            [binary_mask(each["segmentation"], image["height"], image["width"]) for each in objects]
        )
    return target


def stacked_masks(masks: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(masks)) if masks else torch.empty(0, 0, 0, dtype=torch.uint8)


def mask_run_lengths(mask: torch.Tensor) -> dict[str, Any]:
    """Encode a mask `(height, width)`, True on the object, as COCO's compressed run lengths."""
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def draw_objects(image: PIL.Image.Image, objects: dict[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """Draw objects onto an image: boxes, labels and, if given, scores and masks.

    Args:
        image: an RGB image.
        objects: `boxes` `(num_objects, 4)`, left, top, right and bottom in pixels, `labels` `(num_objects,)`, and
            optionally `scores` `(num_objects,)` and `masks` `(num_objects, height, width)`.
        names: names of the labels.

    Returns:
        The drawing, `(3, height, width)`, uint8.
    """
    drawn = functional.pil_to_tensor(image)
    if len(objects["boxes"]) == 0:
        return drawn
    # The objects with the highest scores are drawn last, on top of the others.
    objects = {name: value.flip(0) for name, value in objects.items()}
    labels = objects["labels"].tolist()
    colors: Any = [COLORS[label % len(COLORS)] for label in labels]
    if "masks" in objects:
        drawn = draw_segmentation_masks(drawn, objects["masks"].bool(), alpha=0.45, colors=colors)
    texts = [names[label] for label in labels]
    if "scores" in objects:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, objects["scores"].tolist())]
    side = max(image.size)
    return draw_bounding_boxes(
        drawn,
        objects["boxes"],
        labels=texts,
        colors=colors,
        width=max(side // 300, 2),
        font=findfont("DejaVu Sans"),
        font_size=max(side // 45, 10),
        label_colors="white",
        fill_labels=True,
    )


def draw_predictions(split: CocoImages, predictions: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw the first images of a split: their objects above, and the detections with a score of at least 0.5 below."""
    rows: list[list[torch.Tensor]] = [[], []]
    for index in sorted(predictions)[:NUM_IMAGES]:
        image, prediction = split.open(index), predictions[index]
        is_kept = prediction["scores"] >= 0.5
        kept = {name: prediction[name][is_kept] for name in ("boxes", "scores", "labels")}
        if "masks" in prediction and is_kept.any():
            masks = [coco_mask.decode(lengths) for lengths, keep in zip(prediction["masks"], is_kept) if keep]
            kept["masks"] = stacked_masks(masks)
        for row, objects in zip(rows, (true_objects(split, index, "masks" in prediction), kept)):
            row.append(draw_objects(*scaled(image, objects, IMAGE_SIDE / max(image.size)), split.names))
    # Images are padded with gray at the right and the bottom.
    cells = [
        functional.pad(image, [0, 0, IMAGE_SIDE - image.shape[2], IMAGE_SIDE - image.shape[1]], fill=128)
        for row in rows
        for image in row
    ]
    grid = make_grid(cells, nrow=len(rows[0]), padding=8, pad_value=255)
    functional.to_pil_image(grid).save(path)


def true_objects(split: CocoImages, index: int, has_masks: bool) -> dict[str, torch.Tensor]:
    """The single objects of an image, without crowds, in the format of `draw_objects`."""
    image = split.images[index]
    objects = split.objects(image["id"])
    boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
    true = {
        "boxes": box_convert(boxes, "xywh", "xyxy"),
        "labels": torch.tensor([each["label"] for each in objects], dtype=torch.long),
    }
    if has_masks and objects:
        masks = [binary_mask(each["segmentation"], image["height"], image["width"]) for each in objects]
        true["masks"] = stacked_masks(masks)
    return true


def scaled(
    image: PIL.Image.Image, objects: dict[str, torch.Tensor], scale: float
) -> tuple[PIL.Image.Image, dict[str, torch.Tensor]]:
    """Resize an image and its objects, so that labels are readable."""
    size = [round(image.height * scale), round(image.width * scale)]
    objects = objects | {"boxes": objects["boxes"] * scale}
    if "masks" in objects:
        objects["masks"] = functional.resize_mask(objects["masks"].to(torch.uint8), size)
    return functional.resize(image, size), objects


def write_report(
    output_dir: Path,
    metrics: dict[str, float],
    per_category: dict[str, dict[str, float]],
    history: Sequence[dict[str, float]],
    settings: dict[str, Any],
) -> None:
    """Write the curves, the report and the model card into the model folder, which has `predictions.png` already.

    Args:
        output_dir: the model folder.
        metrics: average precisions by name.
        per_category: average precisions by category.
        history: entries with `epoch` and any of `loss`, `eval_ap`, `eval_ap50`, `eval_mask_ap`.
        settings: settings of the run, including `detector`, `recipe`, `start` and `dataset`.
    """
    draw_curves(history, PANELS, output_dir / "curves.png")
    write_report_and_card(
        output_dir,
        {"metrics": metrics, "per_category": per_category, "history": list(history)},
        settings,
        kind=f"{settings['detector']} with a Twins backbone",
        task="object-detection",
        metric_types=dict.fromkeys(metrics, "mean_average_precision"),
        figures={
            "Loss and average precision": "curves.png",
            "Objects above, detections below": "predictions.png",
        },
        usage=usage_code("TwinsForObjectDetection", str(output_dir)),
        library_name="hf_twins",
    )
