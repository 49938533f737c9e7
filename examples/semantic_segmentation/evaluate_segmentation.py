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
r"""Evaluate a segmentation model: mIoU, IoU of each class and accuracy, next to published results if known.

    python examples/semantic_segmentation/evaluate_segmentation.py --model_name_or_path outputs/mine \
        --validation_dir path/to/validation

`--scales 0.5 0.75 1.0 1.25 1.5 1.75 --flip true` evaluates like the published multi-scale results.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

from hf_twins import load_model
from hf_twins._utils.devices import default_device
from hf_twins._utils.files import check_is_apart, write_json
from hf_twins._utils.fingerprints import dataset_fingerprint, model_fingerprint
from hf_twins._utils.labels import label_names
from hf_twins._utils.run_settings import describe_differences
from hf_twins.training.orientation import EXIF_HELP, ExifOption
from hf_twins.training.semantic_segmentation.data import (
    IGNORE_INDEX,
    checked_pairs,
    load_folder,
    warn_of_unused_classes,
)
from hf_twins.training.semantic_segmentation.inference import InferenceArguments
from hf_twins.training.semantic_segmentation.metrics import evaluate_pairs, published_miou, segmentation_metrics
from hf_twins.training.semantic_segmentation.reports import per_class


@dataclass
class EvaluationArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of a segmentation model."})
    validation_dir: str = field(
        metadata={"help": "Folder with images/ and annotations/, lossless masks (PNG) of the same names."}
    )
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={"help": "In masks, 0 is no class; by default, as in the image processor."},
    )
    exif: ExifOption = field(default="auto", metadata={"help": EXIF_HELP})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only this many images, from the first."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    device: str | None = field(default=None, metadata={"help": "PyTorch device; the accelerator, if any."})


def main(arguments: list[str] | None = None) -> dict[str, float]:
    return run(evaluate, EvaluationArguments, InferenceArguments, arguments=arguments)


def evaluate(options: EvaluationArguments, how: InferenceArguments) -> dict[str, float]:
    """Evaluate, print and return `segmentation_metrics`."""
    if options.max_eval_samples is not None and options.max_eval_samples < 1:
        raise ValueError(f"--max_eval_samples must be at least 1, got {options.max_eval_samples}.")
    if options.output_file is not None:
        folder, option = Path(options.output_file).parent, "The folder of --output_file"
        check_is_apart(
            folder, [Path(options.validation_dir, part) for part in ("images", "annotations")], option=option
        )
        check_is_apart(folder, [options.model_name_or_path], is_recursive=False, option=option)
    model, processor = load_model(options.model_name_or_path, "semantic-segmentation")
    model.to(options.device or default_device())
    names = label_names(model.config)
    if len(names) > IGNORE_INDEX:
        raise ValueError(
            f"{options.model_name_or_path} has {len(names)} classes, but masks only {IGNORE_INDEX}: the number "
            f"{IGNORE_INDEX} means no class."
        )
    if options.do_reduce_labels is not None:
        processor.do_reduce_labels = options.do_reduce_labels
    pairs: Any = load_folder(options.validation_dir)
    if options.max_eval_samples is not None:
        pairs = pairs.select(range(min(options.max_eval_samples, len(pairs))))
    checked, used = checked_pairs({"validation": pairs}, processor.do_reduce_labels, names, options.exif)
    warn_of_unused_classes(used, names)
    pairs = checked["validation"]
    identity: dict[str, Any] = {}
    if options.output_file is not None:
        identity = {
            # Models and data are identified by fingerprints of their content, not by paths.
            "model": model_fingerprint(model, processor),
            "data": dataset_fingerprint(pairs.split),
            "settings": {"do_reduce_labels": processor.do_reduce_labels, "exif": options.exif, **vars(how)},
        }
        check_replaceable(Path(options.output_file), identity)
    matrix = evaluate_pairs(model, processor, pairs, how)
    classes, metrics = per_class(matrix, names), segmentation_metrics(matrix)
    width = max(map(len, names))
    print(f"{'class':{width}}     IoU  accuracy      pixels")
    for name, values in classes.items():
        shares = (
            f"{100 * value:6.2f}" if value is not None else "     -" for value in (values["iou"], values["accuracy"])
        )
        print(f"{name:{width}}  {'    '.join(shares)}  {values['pixels']:10}")
    for name, value in metrics.items():
        print(f"{name:16} {100 * value:6.2f} %")
    published = published_miou(options.model_name_or_path, model.config, how)
    if published is not None:
        print(
            f"{'published mIoU':16} {published[0]:6.2f} %, by {published[1]}, on the 2000 validation images of ADE20K"
        )
    if options.output_file is not None:
        results = {
            "metrics": metrics,
            "published_mean_iou": published[0] / 100 if published is not None else None,
            "images": len(pairs),
            "per_class": classes,
            **identity,
        }
        write_json(Path(options.output_file), results)
    return metrics


def check_replaceable(file: Path, identity: dict[str, Any]) -> None:
    """Raise a ValueError if the file exists without results, or with those of another model, data or settings."""
    if not file.exists():
        return
    try:
        recorded = json.loads(file.read_bytes())
        differing = describe_differences({name: recorded[name] for name in identity}, identity)
    except (IsADirectoryError, ValueError, KeyError, TypeError):
        raise ValueError(f"--output_file {file} exists, but has no results of this script: give another.") from None
    if differing:
        raise ValueError(f"--output_file {file} has the results of a run with {'; '.join(differing)}: give another.")


if __name__ == "__main__":
    main()
