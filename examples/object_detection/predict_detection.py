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
r"""Detect objects in images with a detector that `run_detection.py` trained.

    python examples/object_detection/predict_detection.py --model_name_or_path outputs/mine --images path/to/images \
        --output_dir outputs/found

Writes every image with boxes, labels, scores and, for Mask R-CNN, masks drawn on it, and `predictions.json`: for each
image, a list of `label`, `score`, `box` (left, top, right and bottom in pixels) and any `mask` (COCO's compressed run
lengths). An existing folder is accepted only for the same images, detector and threshold (`settings.json`).
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import PIL.Image
import torch
from torchvision.transforms.v2 import functional

from hf_twins._utils.files import check_name_lengths, exclusive_folder, write_atomically, write_json
from hf_twins._utils.fingerprints import files_fingerprint, model_fingerprint
from hf_twins._utils.image_folders import find_images, listed
from hf_twins._utils.images import ImageError, log_applied_rules, read_image
from hf_twins._utils.labels import label_names
from hf_twins._utils.progress import progress_bar
from hf_twins._utils.run_settings import record_settings
from hf_twins.detection import Detector, load_detector
from hf_twins.training.object_detection.reports import draw_objects, mask_run_lengths


logger = logging.getLogger(__name__)


@dataclass
class PredictionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the detector."})
    images: str = field(metadata={"help": "An image, or a folder of images."})
    output_dir: str = field(metadata={"help": "Output folder."})
    threshold: float = field(default=0.5, metadata={"help": "Keep objects with a higher score, in [0, 1)."})
    device: str | None = field(
        default=None, metadata={"help": "PyTorch device; by default the accelerator, if available."}
    )


def main(arguments: list[str] | None = None) -> None:
    run(predict, PredictionArguments, arguments=arguments)


def predict(options: PredictionArguments) -> None:
    """Detect objects in the images, draw and write them; images that cannot be used are counted and listed."""
    if not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold must be in [0, 1), got {options.threshold}.")
    output_dir = Path(options.output_dir)
    files = find_images(Path(options.images), output_dir)
    check_names(files)
    detector = load_detector(options.model_name_or_path)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    detector.model.to(options.device or accelerator)
    settings = {
        "model": model_fingerprint(detector.model, detector.processor),
        "images": files_fingerprint(files[0].parent, [file.name for file in files]),
        "threshold": options.threshold,
    }
    with exclusive_folder(output_dir):
        record_settings(output_dir, settings, outputs="predictions.json")
        detect_in_files(detector, files, options.threshold, output_dir)


def detect_in_files(detector: Detector, files: list[Path], threshold: float, output_dir: Path) -> None:
    """Write a drawing of each image, and then `predictions.json`."""
    found: dict[str, list[dict[str, Any]]] = {}
    unreadable = []
    applied: Counter[str] = Counter()
    for file in progress_bar(files, desc="Images", disable=len(files) == 1):
        try:
            image = read_image(file, applied=applied)
        except ImageError as error:
            logger.warning(str(error))
            unreadable.append(file.name)
            continue
        found[file.name] = detect_and_draw(detector, image, threshold, output_dir / drawn_name(file))
    write_json(output_dir / "predictions.json", found)
    log_applied_rules(applied)
    if unreadable:
        logger.warning(
            f"{len(unreadable)} of {len(files)} images cannot be used and are skipped: {', '.join(unreadable)}."
        )


def drawn_name(file: Path) -> str:
    """Name of the drawing, which differs even for images that differ only in their extension."""
    return file.name if file.suffix == ".png" else f"{file.name}.png"


def check_names(files: list[Path]) -> None:
    """Raise a ValueError if two images, such as `x.jpg` and `x.jpg.png`, would be drawn to the same file.

    Names that are too long for the names of their drawings raise one, too.
    """
    check_name_lengths(files, drawn_name)
    repeated = [name for name, count in Counter(map(drawn_name, files)).items() if count > 1]
    if repeated:
        raise ValueError(f"Two images would be drawn into one file: rename one for each of {listed(repeated)}.")


def detect_and_draw(detector: Detector, image: PIL.Image.Image, threshold: float, path: Path) -> list[dict[str, Any]]:
    objects = detector([image], threshold)[0]
    names = label_names(detector.model.config)
    drawn = functional.to_pil_image(draw_objects(image, objects, names))
    write_atomically(path, partial(drawn.save, format="PNG"))
    entries = [
        {"label": names[label], "score": round(score, 4), "box": [round(side, 2) for side in box]}
        for label, score, box in zip(objects["labels"].tolist(), objects["scores"].tolist(), objects["boxes"].tolist())
    ]
    for entry, mask in zip(entries, objects.get("masks", torch.empty(0))):
        lengths = mask_run_lengths(mask)
        entry["mask"] = lengths | {"counts": lengths["counts"].decode()}
    return entries


if __name__ == "__main__":
    main()
