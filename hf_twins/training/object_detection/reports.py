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
"""What a run measured, as numbers and as pictures, beside the model it is about."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from matplotlib.font_manager import findfont
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from hf_twins.training.object_detection.data import CocoImages, binary_mask, run_lengths
from hf_twins.training.reports import draw_curves, write_report_and_card


# COCO's numbers, as COCOeval lists them: mean over thresholds of the overlap from 0.5 to 0.95 unless the name says one, and
# by the area of the objects, below 32 x 32 pixels, up to 96 x 96, and above.
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
# COCOeval's types by the prefix of their metrics.
KINDS = {"": "bbox", "mask_": "segm"}
PANELS = {
    "loss": {"loss": "training"},
    "average precision": {"eval_ap": "boxes", "eval_ap50": "boxes, overlap 0.5", "eval_mask_ap": "masks"},
}
# Of categories, which repeat them: matplotlib's ten.
COLOURS = [
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
NUM_PICTURES, PICTURE_SIDE = 4, 448


def average_precision(
    split: CocoImages, predictions: dict[int, dict[str, torch.Tensor]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """COCO's average precision of boxes and, if there are any, of masks.

    Args:
        split: what is to be found.
        predictions: by the place of their image in it: `boxes` in its pixels, `scores`, `labels` and, maybe, `masks`.

    Returns:
        The numbers named in METRICS, those of masks with `mask_` before, and by category its `ap` and `mask_ap`. One that
        no object counts for is left out.
    """
    has_masks = any("masks" in prediction for prediction in predictions.values())
    objects, detections = coco_objects(split, has_masks), coco_detections(predictions)
    metrics: dict[str, float] = {}
    per_category: dict[str, dict[str, float]] = {name: {} for name in split.names}
    for prefix, kind in KINDS.items():
        if kind == "segm" and not has_masks:
            continue
        # COCOeval says on the way what it does.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco(objects), coco(objects), kind)
            evaluation.cocoDt = detected(evaluation.cocoGt, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for name, value in zip(METRICS, evaluation.stats.tolist()):
            if value >= 0:
                metrics[prefix + name] = value
        # Overlaps, recalls, categories, areas (all of them first), numbers of detections (most of them last).
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for label, name in enumerate(split.names):
            values = precision[:, :, label]
            if (values >= 0).any():
                per_category[name][f"{prefix}ap"] = float(values[values >= 0].mean())
    return metrics, per_category


def coco(content: dict[str, Any]) -> COCO:
    made = COCO()
    made.dataset = content
    made.createIndex()
    return made


def detected(objects: COCO, detections: list[dict[str, Any]], kind: str) -> COCO:
    """The detections as COCOeval takes them."""
    if not detections:
        # `loadRes` looks at the first.
        return coco(objects.dataset | {"annotations": []})
    if kind == "segm":
        # Without a box, so that their area is the mask's.
        detections = [{key: value for key, value in each.items() if key != "bbox"} for each in detections]
    return objects.loadRes(detections)


def coco_objects(split: CocoImages, has_masks: bool) -> dict[str, Any]:
    """The data set in COCO's format, with places and labels for ids."""
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(split.images):
        for annotation in split.annotations.get(image["id"], []):
            entry = {
                "id": len(annotations) + 1,
                "image_id": index,
                "category_id": annotation["label"],
                "bbox": annotation["bbox"],
                "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
                "iscrowd": annotation.get("iscrowd", 0),
            }
            if has_masks:
                entry["segmentation"] = run_lengths(annotation["segmentation"], image["height"], image["width"])
            annotations.append(entry)
    return {
        "images": [
            {"id": index, "height": image["height"], "width": image["width"]}
            for index, image in enumerate(split.images)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(split.names)],
        "annotations": annotations,
    }


def coco_detections(predictions: dict[int, dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    entries = []
    for index, prediction in predictions.items():
        boxes = box_convert(prediction["boxes"].float(), "xyxy", "xywh").tolist()
        for place, (box, score, label) in enumerate(
            zip(boxes, prediction["scores"].tolist(), prediction["labels"].tolist())
        ):
            entry = {"image_id": index, "category_id": label, "bbox": box, "score": score}
            if "masks" in prediction:
                entry["segmentation"] = mask_run_lengths(prediction["masks"][place])
            entries.append(entry)
    return entries


def mask_run_lengths(mask: torch.Tensor) -> dict[str, Any]:
    """COCO's compressed run lengths of `(height, width)`, True on the object."""
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def draw_objects(picture: PIL.Image.Image, objects: dict[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """The picture, `(3, height, width)`, with boxes, labels and, where they are given, scores and masks of objects.

    Args:
        picture: in colour.
        objects: `boxes` in its pixels, `labels`, and maybe `scores` and `masks`.
        names: of the labels.
    """
    image = functional.pil_to_tensor(picture)
    if len(objects["boxes"]) == 0:
        return image
    # The best last, over the others.
    objects = {name: value.flip(0) for name, value in objects.items()}
    labels = objects["labels"].tolist()
    colours: Any = [COLOURS[label % len(COLOURS)] for label in labels]
    if "masks" in objects:
        image = draw_segmentation_masks(image, objects["masks"].bool(), alpha=0.45, colors=colours)
    texts = [names[label] for label in labels]
    if "scores" in objects:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, objects["scores"].tolist())]
    side = max(picture.size)
    return draw_bounding_boxes(
        image,
        objects["boxes"],
        labels=texts,
        colors=colours,
        width=max(side // 300, 2),
        font=findfont("DejaVu Sans"),
        font_size=max(side // 45, 10),
        label_colors="white",
        fill_labels=True,
    )


def draw_predictions(split: CocoImages, predictions: dict[int, dict[str, torch.Tensor]], path: Path) -> None:
    """The first pictures of a split: above what is on them, below what was detected with a score of 0.5 or more."""
    rows: list[list[torch.Tensor]] = [[], []]
    for index in sorted(predictions)[:NUM_PICTURES]:
        picture = split.open(index)
        is_kept = predictions[index]["scores"] >= 0.5
        kept = {name: value[is_kept] for name, value in predictions[index].items()}
        for row, objects in zip(rows, (true_objects(split, index, "masks" in kept), kept)):
            scale = PICTURE_SIDE / max(picture.size)
            row.append(draw_objects(*scaled(picture, objects, scale), split.names))
    # Made one size by grey at the right and bottom.
    cells = [
        functional.pad(image, [0, 0, PICTURE_SIDE - image.shape[2], PICTURE_SIDE - image.shape[1]], fill=128)
        for row in rows
        for image in row
    ]
    grid = make_grid(cells, nrow=len(rows[0]), padding=8, pad_value=255)
    functional.to_pil_image(grid).save(path)


def true_objects(split: CocoImages, index: int, has_masks: bool) -> dict[str, torch.Tensor]:
    image = split.images[index]
    objects = split.objects(image["id"])
    boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
    true = {
        "boxes": box_convert(boxes, "xywh", "xyxy"),
        "labels": torch.tensor([each["label"] for each in objects], dtype=torch.long),
    }
    if has_masks and objects:
        masks = [binary_mask(each["segmentation"], image["height"], image["width"]) for each in objects]
        true["masks"] = torch.from_numpy(np.stack(masks))
    return true


def scaled(
    picture: PIL.Image.Image, objects: dict[str, torch.Tensor], scale: float
) -> tuple[PIL.Image.Image, dict[str, torch.Tensor]]:
    """The picture and its objects at another size, at which labels can be read."""
    size = [round(picture.height * scale), round(picture.width * scale)]
    objects = objects | {"boxes": objects["boxes"] * scale}
    if "masks" in objects:
        objects["masks"] = functional.resize_mask(objects["masks"].to(torch.uint8), size)
    return functional.resize(picture, size), objects


def write_report(
    output_dir: Path,
    split: CocoImages,
    predictions: dict[int, dict[str, torch.Tensor]],
    history: Sequence[dict[str, float]],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write the results, their pictures and the model card into the model's folder.

    Args:
        output_dir: of the model.
        split: that it was evaluated on.
        predictions: by the place of their image in it.
        history: entries with `epoch` and any of `loss`, `eval_ap`, `eval_ap50`, `eval_mask_ap`.
        settings: what the run was told, with `detector`, `recipe`, `start` and `dataset` among it.

    Returns:
        The average precision by category.
    """
    metrics, per_category = average_precision(split, predictions)
    draw_predictions(split, predictions, output_dir / "predictions.png")
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
            "Above what is on pictures, below what was detected": "predictions.png",
        },
        usage=f'from hf_twins.detection.models import load_detector\n\ndetector = load_detector("{output_dir}")',
        library_name="hf_twins",
    )
    return per_category
