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
r"""Evaluate top-1 and top-5 accuracy on ImageNet or your own images, and compare it with published results.

    python examples/image_classification/evaluate_classification.py --model_name_or_path timm/twins_svt_small.in1k \
        --dataset_dir path/to/imagenet/validation

The folder has a sub-folder for each label, named by its ImageNet WordNet id (n01440764), or by its name or number in
the model. With several processes (`accelerate launch`, `torchrun`), each evaluates its share. An existing
output folder is accepted only for the same model and images (`settings.json`).
"""

import hashlib
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hf_twins._utils.command_line import run

import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader

from hf_twins import TWINS_VARIANTS, TwinsImageProcessor, published_variant
from hf_twins._utils.files import write_json
from hf_twins._utils.fingerprints import dataset_fingerprint, model_fingerprint
from hf_twins._utils.image_folders import label_name, listed
from hf_twins._utils.labels import distinct_names, label_names
from hf_twins._utils.progress import progress_bar
from hf_twins._utils.run_settings import record_settings
from hf_twins.training.data import LabeledImages, check_is_no_image_folder
from hf_twins.training.image_classification.arguments import ImageArguments, TrainedModelArguments
from hf_twins.training.image_classification.data import (
    Preparation,
    collate,
    evaluation_transform,
    with_columns,
    without_corrupt_images,
)
from hf_twins.training.image_classification.folders import evaluation_part, folder_parts
from hf_twins.training.image_classification.labels import with_label_names
from hf_twins.training.image_classification.models import load_trained
from hf_twins.training.image_classification.reports import results_per_label
from hf_twins.training.reports import write_results


logger = logging.getLogger(__name__)
# Shorter side of the image before a crop of 224 pixels, in the authors' evaluation (main.py) and in timm's (crop_pct
# 0.9).
PROTOCOLS = {"authors": 256, "timm": 248}
NUM_IMAGENET_IMAGES = 50_000
# SHA-256 of the sorted WordNet ids of ImageNet-1k's thousand classes, separated by spaces.
IMAGENET_SYNSETS = "791ce0333040dd249d13133f90d28ef0263ffc01e5de0afd85b3e32048d7d456"


@dataclass
class EvaluationArguments:
    one_of: ClassVar = (("dataset_dir", "dataset_name"),)
    dataset_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with a sub-folder of images for each label, or with .parquet or .tar files."},
    )
    split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on; by default validation, or a folder's evaluation split."},
    )
    protocol: str = field(
        default="checkpoint",
        metadata={"help": "Preprocessing: the checkpoint's own, or that of a published evaluation, authors or timm."},
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size per process."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Data loading workers per process."})
    mixed_precision: str | None = field(default=None, metadata={"help": "no, fp16 or bf16."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for all_results.json, per_label.json and settings.json, if any."}
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return run(evaluate, TrainedModelArguments, ImageArguments, EvaluationArguments, arguments=arguments)


def evaluate(
    model_arguments: TrainedModelArguments, data_arguments: ImageArguments, args: EvaluationArguments
) -> dict[str, Any]:
    """Evaluate, print the results next to the published ones, and write them to the output folder."""
    if model_arguments.image_size is not None and args.protocol != "checkpoint":
        raise ValueError("--image_size and --protocol both set the image size: give one of them.")
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.accelerator.is_available())
    model, processor = load_trained(model_arguments)
    processor = with_protocol(processor, args.protocol)
    with accelerator.main_process_first():
        images, num_corrupt = load_evaluation_images(data_arguments, args)
    names, id2label = images.features["label"].names, model.config.id2label
    numbers = label_numbers(names, id2label)
    if accelerator.is_main_process and any(id2label[number] != name for name, number in zip(names, numbers)):
        matched = [f"{name} = {id2label[number]}" for name, number in zip(names, numbers)]
        logger.warning(f"The dataset's labels are the model's by another name: {listed(matched)}.")
    label_of = torch.tensor(numbers)
    settings: dict[str, Any] = {}
    if accelerator.is_main_process and args.output_dir is not None:
        settings = {
            "model": model_fingerprint(model, processor),
            "images": dataset_fingerprint(images),
            # The names may come from a file, so they are not part of the fingerprint of the data.
            "labels": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
            "mixed_precision": accelerator.mixed_precision,
        }
        record_settings(Path(args.output_dir), settings, outputs="all_results.json")
    loader = accelerator.prepare(
        DataLoader(
            LabeledImages(images, Preparation(evaluation_transform(processor), model.config.num_channels)),
            args.per_device_eval_batch_size,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            # A worker that cannot open more files loses its batch, and without a timeout this process would wait
            # forever.
            timeout=600 if args.dataloader_num_workers > 0 else 0,
        )
    )
    started = time.perf_counter()
    predictions, labels = predict(accelerator, model, loader, label_of)
    seconds = time.perf_counter() - started
    num_images = len(images)
    hits = predictions == labels[:, None]
    results: dict[str, Any] = {"eval_accuracy": int(hits[:, 0].sum()) / num_images}
    if hits.shape[1] == 5:
        results["eval_top5_accuracy"] = int(hits.sum()) / num_images
    results |= {
        "images": num_images,
        "corrupt_images": num_corrupt,
        "images_per_second": num_images / seconds,
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "precision": "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "preprocessing": describe(processor),
    }
    results |= {f"{name}_fingerprint": settings[name] for name in ("model", "images") if name in settings}
    published = published_accuracy(model, processor)
    if published is not None:
        results["published_accuracy"] = published
    if accelerator.is_main_process:
        distinct = distinct_names(label_names(model.config))
        evaluated = sorted(set(numbers))
        per_label = results_per_label([distinct[number] for number in evaluated], evaluated, labels, predictions[:, 0])
        print(f"{report(results)}\n{describe_worst(per_label)}")
        if args.output_dir is not None:
            write_results(Path(args.output_dir), results)
            write_json(Path(args.output_dir) / "per_label.json", per_label)
    accelerator.end_training()
    return results


def with_protocol(processor: Any, protocol: str) -> TwinsImageProcessor:
    """The checkpoint's image processor with the crop of a published evaluation, but its own normalization."""
    if protocol == "checkpoint":
        return processor
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol must be checkpoint, {' or '.join(PROTOCOLS)}, got {protocol}.")
    published = TwinsImageProcessor(size={"shortest_edge": PROTOCOLS[protocol]}).to_dict()
    names = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
    return TwinsImageProcessor.from_dict(processor.to_dict() | {name: published[name] for name in names})


def load_evaluation_images(data_arguments: ImageArguments, args: EvaluationArguments) -> tuple[Any, int]:
    """Load the images, with the columns `image` and `label`, and count those that cannot be decoded."""
    if (args.dataset_dir is None) == (data_arguments.dataset_name is None):
        raise ValueError("Give either --dataset_dir or --dataset_name.")
    if args.dataset_dir is not None:
        split: Any = evaluation_part(args.dataset_dir, folder_parts(args.dataset_dir), args.split).load()
    else:
        name = str(data_arguments.dataset_name)
        check_is_no_image_folder(name, "--dataset_dir")
        split = load_dataset(name, data_arguments.dataset_config_name, split=args.split or "validation")
    title = "the dataset"
    split = with_columns(split, data_arguments)
    split = with_label_names({title: split}, data_arguments.class_names_file, allow_unused=True)[title]
    if data_arguments.max_eval_samples is not None:
        split = split.shuffle(seed=0).select(range(min(data_arguments.max_eval_samples, len(split))))
    images = without_corrupt_images(split, title)[0] if data_arguments.check_images else split
    if len(images) == 0:
        raise ValueError("No image of the dataset can be used.")
    return images, len(split) - len(images)


def label_numbers(names: Sequence[str], id2label: dict[int, str]) -> list[int]:
    """The model's number for each label of the dataset, found by its name, number or WordNet id.

    Args:
        names: names of the dataset's labels.
        id2label: names of the model's labels by their numbers.

    Raises:
        ValueError: if a label is not one of the model's, or is ambiguous.
    """
    for spelling in (label_name, lambda name: label_name(name).casefold()):
        numbers = defaultdict(list)
        for number, label in id2label.items():
            numbers[spelling(label)].append(number)
        found = [numbers.get(spelling(name), []) for name in names]
        if all(found):
            # Names that differ only in case may be two labels.
            several = [(name, found_numbers) for name, found_numbers in zip(names, found) if len(found_numbers) > 1]
            if several:
                name, found_numbers = several[0]
                raise ValueError(
                    f"{name} is the name of several labels of the model, {' and '.join(map(str, found_numbers))}: use "
                    "the model's numbers as the dataset's labels."
                )
            return [number for (number,) in found]
    if all(re.fullmatch(r"n\d{8}", name) for name in names) and len(id2label) == 1000:
        return imagenet_numbers(names)
    # Numbers are only looked up if no label was found by its name.
    are_numbers = not any(found)
    if are_numbers and all(is_number_below(name, len(id2label)) for name in names):
        return [int(name) for name in names]
    unknown = [
        name
        for name, each in zip(names, found)
        if not each and not (are_numbers and is_number_below(name, len(id2label)))
    ]
    raise ValueError(
        f"{len(unknown) or len(names)} labels of the dataset are not the model's, such as {listed((unknown or names)[:1])}: "
        f"sub-folders must have the names of the model's labels, such as {id2label[0]}, their numbers, or ImageNet's WordNet ids."
    )


def is_number_below(name: str, limit: int) -> bool:
    return name.isascii() and name.isdecimal() and int(name) < limit


def imagenet_numbers(synsets: Sequence[str]) -> list[int]:
    """The numbers of ImageNet-1k's classes by their WordNet ids.

    Raises:
        ValueError: if an id is unknown, or classes are missing and timm, which knows each id, is not installed.
    """
    in_order = sorted(synsets)
    if hashlib.sha256(" ".join(in_order).encode()).hexdigest() == IMAGENET_SYNSETS:
        # ImageNet's classes are sorted by their ids.
        return [in_order.index(synset) for synset in synsets]
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        raise ValueError(
            "Recognizing a subset of ImageNet's classes by WordNet ids needs timm: pip install timm."
        ) from None
    known = {synset: number for number, synset in enumerate(ImageNetInfo().label_names())}
    unknown = [synset for synset in synsets if synset not in known]
    if unknown:
        raise ValueError(f"{listed(unknown)} {'is' if len(unknown) == 1 else 'are'} not among ImageNet-1k's classes.")
    return [known[synset] for synset in synsets]


@torch.inference_mode()
def predict(
    accelerator: Accelerator, model: Any, loader: Any, label_of: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the labels of all images, in every process.

    Returns:
        The likeliest five labels or, with at most five labels, the likeliest one, `(num_images, 5 or 1)`, and the true
        labels, `(num_images,)`, both as the model's numbers.
    """
    model.eval().to(accelerator.device)
    label_of = label_of.to(accelerator.device)
    num_ranks = 5 if model.config.num_labels > 5 else 1
    predictions, labels = [], []
    for batch in progress_bar(loader, desc="evaluating", unit="batch", disable=not accelerator.is_main_process):
        with accelerator.autocast():
            logits = model(pixel_values=batch["pixel_values"]).logits
        # This leaves out images that were repeated to fill the last batch.
        gathered = accelerator.gather_for_metrics((logits.topk(num_ranks).indices, label_of[batch["labels"]]))
        predictions.append(gathered[0].cpu().numpy())
        labels.append(gathered[1].cpu().numpy())
    return np.concatenate(predictions), np.concatenate(labels)


def published_accuracy(model: Any, processor: Any) -> float | None:
    """The accuracy published for this architecture on ImageNet with the same preprocessing, as a fraction."""
    variant = published_variant(model.config.to_dict())
    if variant is None or model.config.num_labels != 1000:
        return None
    is_timm = processor.size.shortest_edge == PROTOCOLS["timm"]
    results = TWINS_VARIANTS[variant]
    return (results.imagenet_top1_timm if is_timm else results.imagenet_top1) / 100


def describe(processor: Any) -> str:
    size, crop = processor.size, processor.crop_size
    shorter = size.shortest_edge if size.shortest_edge else f"{size.height} x {size.width}"
    return f"resized to {shorter}" + (f", crop {crop.height} x {crop.width}" if processor.do_center_crop else "")


def describe_worst(per_label: dict[str, dict[str, float]]) -> str:
    """Name the labels with the lowest F1."""
    worst = sorted(
        (label for label in per_label if per_label[label]["images"]), key=lambda label: per_label[label]["f1"]
    )
    described = [f"{label} {per_label[label]['f1']:.3f} ({per_label[label]['images']} images)" for label in worst[:5]]
    return f"Lowest F1: {listed(described)}."


def report(results: dict[str, Any]) -> str:
    """Format the results as text, with remarks."""
    percent = {name: f"{100 * results[name]:.2f}" for name in results if name.endswith("accuracy")}
    lines = [
        "| | top-1 % | top-5 % |",
        "|---|---|---|",
        f"| measured | {percent['eval_accuracy']} | {percent.get('eval_top5_accuracy', '-')} |",
    ]
    if "published_accuracy" in results:
        lines.append(f"| published | {percent['published_accuracy']} | - |")
    lines.append(
        f"\n{results['images']} images ({results['preprocessing']}; {results['precision']}), "
        f"{results['images_per_second']:.1f} images/s in {results['processes']} process(es) on {results['device']}."
    )
    if results["corrupt_images"]:
        lines.append(f"{results['corrupt_images']} images could not be decoded and were skipped.")
    if "published_accuracy" in results:
        difference = 100 * (results["eval_accuracy"] - results["published_accuracy"])
        if abs(difference) > 0.1:
            lines.append(
                f"Measured and published differ by {difference:+.2f} points, more than 0.1: the published one is for "
                f"ImageNet's {NUM_IMAGENET_IMAGES} validation images, in float32, resized to {PROTOCOLS['authors']} (the "
                f"authors') or {PROTOCOLS['timm']} (timm's), crop 224 x 224."
            )
        else:
            lines.append(f"Measured and published differ by {difference:+.2f} points.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
