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
"""Images and options that the tests of the image classification examples share."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datasets import Dataset, Features, Image, Value
from matplotlib.figure import Figure
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from testing_utils import tiny_config

from hf_twins import TwinsForImageClassification, TwinsImageProcessor


def digit_images(count: int = 1797) -> tuple[list[PILImage.Image], list[str]]:
    """The first of scikit-learn's 1797 digits, white on black, and their labels."""
    digits = load_digits()
    images = [PILImage.fromarray((image * 255 / 16).astype("uint8")) for image in digits.images[:count]]
    return images, [str(label) for label in digits.target[:count]]


def write_parquet(folder: Path, images: list[Any], labels: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"photo": Image(), "digit": Value("string")})
    Dataset.from_dict({"photo": images, "digit": labels}, features=features).to_parquet(folder / "train.parquet")
    return folder


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    """Write images of noise, with the given number for each label."""
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            PILImage.effect_noise((12, 10), 80).convert("RGB").save(folder / label / f"{index}.png")
    return folder


def write_digit_folder(folder: Path, count: int) -> Path:
    """Write the first digits, in a sub-folder for each label."""
    for index, (image, label) in enumerate(zip(*digit_images(count))):
        (folder / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / label / f"{index:03}.png")
    return folder


def save_start(folder: Path, size: int = 16, **fields: Any) -> Path:
    """Save a tiny model to start from, and its image processor, for digits of the given size in pixels."""
    TwinsForImageClassification(tiny_config(**{"num_labels": 10} | fields)).save_pretrained(folder)
    processor = TwinsImageProcessor(
        size={"shortest_edge": round(size * 9 / 8)}, crop_size={"height": size, "width": size}
    )
    processor.save_pretrained(folder)
    return folder


def blank_figures() -> AbstractContextManager:
    """Replace figures by files of one pixel, because drawing takes half of the time of a short training."""
    return patch.object(Figure, "savefig", lambda figure, path, **options: PILImage.new("L", (1, 1)).save(path))


def options(data: Path, start: Path, output: Path) -> list[str]:
    """Options of a short training with all kinds of augmentation."""
    return [
        *("--config_name", str(start), "--train_dir", str(data), "--output_dir", str(output)),
        *("--max_train_samples", "96", "--max_eval_samples", "40", "--num_train_epochs", "2"),
        *("--per_device_train_batch_size", "16", "--mixup_alpha", "0.8", "--cutmix_alpha", "1.0"),
        *("--rand_augment", "true", "--random_erasing", "0.25"),
    ]


def plain_options(data: Path, start: Path, output: Path) -> list[str]:
    """Options of a short training in which only the order of images is random."""
    return [
        *("--config_name", str(start), "--train_dir", str(data), "--output_dir", str(output)),
        *("--max_train_samples", "64", "--max_eval_samples", "40", "--num_train_epochs", "3"),
        *("--per_device_train_batch_size", "16", "--drop_path_rate", "0", "--horizontal_flip", "0"),
    ]
