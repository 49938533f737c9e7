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
"""Metrics of segmentation: intersection over union (IoU) and accuracy, computed from pixel counts.

As in mmsegmentation's `IoUMetric` and transformers' examples, pixels are counted over all images together, except
those without a class. A class that neither occurs nor is predicted has no IoU, and is left out of the mean.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel
from transformers.utils import cached_file

from hf_twins import TWINS_VARIANTS, published_variant
from hf_twins._utils.progress import progress_bar
from hf_twins.checkpoints import published_checkpoints
from hf_twins.training.semantic_segmentation.data import IGNORE_INDEX, ImageMaskPairs, class_numbers
from hf_twins.training.semantic_segmentation.inference import MULTI_SCALES, InferenceArguments, segment


def confusion_matrix(truth: torch.Tensor, prediction: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Count the pixels of each true class (rows) by predicted class (columns), int64.

    Args:
        truth: class of each pixel, `IGNORE_INDEX` for none.
        prediction: predicted class of each pixel, in the same shape.
        num_labels: number of classes.

    Raises:
        ValueError: if the truth has a class that is not below `num_labels`.
    """
    is_labeled = truth != IGNORE_INDEX
    truth, prediction = truth[is_labeled], prediction[is_labeled]
    if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < num_labels:
        raise ValueError(
            f"A mask has class {int(truth.max())}, but the model has {num_labels} classes, from 0: check --do_reduce_labels."
        )
    return torch.bincount(truth * num_labels + prediction, minlength=num_labels**2).view(num_labels, num_labels)


def class_iou(matrix: torch.Tensor) -> torch.Tensor:
    """IoU of each class; NaN for classes that neither occur nor are predicted."""
    matrix = matrix.double()
    return matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())


def class_accuracy(matrix: torch.Tensor) -> torch.Tensor:
    """Share of each class's pixels that are predicted correctly; NaN for classes that do not occur."""
    matrix = matrix.double()
    return matrix.diag() / matrix.sum(1)


def segmentation_metrics(matrix: torch.Tensor) -> dict[str, float]:
    """Metrics as fractions: `mean_iou` and `mean_accuracy` over classes, and `overall_accuracy` over pixels."""
    return {
        "mean_iou": float(class_iou(matrix).nanmean()),
        "mean_accuracy": float(class_accuracy(matrix).nanmean()),
        "overall_accuracy": float(matrix.diag().sum() / matrix.sum()),
    }


def evaluate_pairs(
    model: PreTrainedModel,
    processor: Any,
    pairs: ImageMaskPairs,
    how: InferenceArguments,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """Compute the confusion matrix of all pairs, at the size of the images.

    Args:
        model: segmentation model; its mode is restored afterwards.
        processor: image processor of the model, whose `do_reduce_labels` applies to the masks.
        pairs: images and masks.
        how: inference options.
        accelerator: Accelerator of the processes that share the work; each holds the complete model.
    """
    num_labels = int(model.config.num_labels or 0)
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.long, device=model.device)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    was_training = model.training
    model.eval()
    for index in progress_bar(range(rank, len(pairs), world_size), desc="Evaluating", disable=rank > 0, leave=False):
        pair = pairs[index]
        prediction = segment(model, processor, pair["image"], how)
        truth = torch.from_numpy(class_numbers(pair["label"], processor.do_reduce_labels)).to(model.device)
        matrix += confusion_matrix(truth, prediction, num_labels)
    model.train(was_training)
    if accelerator is not None:
        matrix = accelerator.reduce(matrix, reduction="sum")
    return matrix.cpu()


def published_miou(name_or_path: str, config: Any, how: InferenceArguments) -> tuple[float, str] | None:
    """The published mIoU in percent of a converted checkpoint, for this kind of inference, and who published it.

    Returns None if there is none. The source of a converted checkpoint is recorded in its `conversion.json`.
    """
    is_multi_scale = tuple(how.scales) == MULTI_SCALES and how.flip
    is_single_scale = tuple(how.scales) == (1.0,) and not how.flip
    file = cached_file(name_or_path, "conversion.json", _raise_exceptions_for_missing_entries=False)
    if file is None or how.slide_crop_size is not None or not (is_multi_scale or is_single_scale):
        return None
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    if report["source_format"] == "authors' UperNet":
        variant = published_variant(getattr(config, "backbone_config", config).to_dict())
        if variant is not None:
            results = TWINS_VARIANTS[variant]
            miou = results.ade20k_upernet_miou_multi_scale if is_multi_scale else results.ade20k_upernet_miou
            return miou, "the authors"
    name = "ade20k_miou_multi_scale_flip" if is_multi_scale else "ade20k_miou"
    for each in published_checkpoints().values():
        # Classifiers have no mIoU.
        if each["url"] == report["source"] and name in each:
            return each[name], "OpenMMLab"
    return None
