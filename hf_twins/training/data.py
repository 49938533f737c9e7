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
"""Image datasets: code that all tasks share."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from datasets import Array3D, Dataset, Features, Image, IterableDataset, get_dataset_split_names, load_dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import PILImageResampling, pil_torch_interpolation_mapping

from hf_twins._utils.image_folders import list_folder, listed
from hf_twins._utils.images import check_shape, image_errors, image_source, open_image


logger = logging.getLogger(__name__)
# Names of splits to evaluate on, in order of preference.
EVALUATION_SPLITS = ("validation", "valid", "val", "dev", "test")

# torchvision supports the other methods for Pillow images only.
KNOWN_RESAMPLING = (PILImageResampling.NEAREST, PILImageResampling.BILINEAR, PILImageResampling.BICUBIC)


def load_hub_splits(name: str, config: str | None = None, streaming: bool = False) -> dict[str, Any]:
    """Load `train`, optionally as a stream, and, if present, `validation` of a dataset on the Hub or in a folder."""
    check_is_no_image_folder(name, "--train_dir")
    names = get_dataset_split_names(name, config)
    if "train" not in names:
        raise ValueError(f"The dataset must have a split named train, got {', '.join(names)}.")
    splits = {"train": load_dataset(name, config, split="train", streaming=streaming)}
    held_out = next((split for split in EVALUATION_SPLITS if split in names), None)
    if held_out is not None:
        logger.warning(f"Evaluating on the {held_out} split of {name}.")
        splits["validation"] = load_dataset(name, config, split=held_out)
    return splits


def check_is_no_image_folder(name: str, option: str) -> None:
    """Raise a ValueError if `name` is a folder of images, whose splits and labels `datasets` would guess from names.

    A folder of tables, or one with a README.md that describes its contents as on the Hub, is a dataset and is
    accepted.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    card = folder / "README.md"
    if card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith("---"):
        return
    suffixes = {file.suffix for file in folder.rglob("*")}
    if not suffixes & {".parquet", ".arrow", ".tar"} and list_folder(folder).files:
        raise ValueError(f"{name} is a folder of images: give it as {option} instead of --dataset_name.")


def image_names(split: Dataset, rows: Sequence[int]) -> list[str]:
    """Names of the images in these rows, for messages: their file or, without one, the number of the row from 0."""
    if isinstance(split.features["image"], Image):
        split = split.cast_column("image", Image(decode=False))
        images = split.select_columns(["image"]).select(rows)[:]["image"]
        return [(image or {}).get("path") or f"image {row}" for row, image in zip(rows, images)]
    return [f"image {row}" for row in rows]


def warn_of_shared_images(train: Iterable[str | Path], validation: Iterable[str | Path]) -> None:
    """Warn if evaluation files are also training files, with links resolved."""
    trained, held_out = set(map(os.path.realpath, train)), list(validation)
    shared = [Path(file).name for file in held_out if os.path.realpath(file) in trained]
    if shared:
        logger.warning(
            f"{len(shared)} of {len(held_out)} evaluation images are training images, too: {listed(shared)}. "
            "The results will be better than on other images."
        )


def only_column(features: Features, name: str, types: tuple[type, ...]) -> str:
    """Return the column called `name` or, without one, the only column of the first type in `types` that occurs."""
    if isinstance(features.get(name), types):
        return name
    for feature_type in types:
        columns = [column for column, feature in features.items() if isinstance(feature, feature_type)]
        # WebDataset's own columns, such as __key__, are not labels.
        columns = [column for column in columns if not column.startswith("__")]
        if len(columns) == 1:
            return columns[0]
        # If several columns have this type, the choice is ambiguous, whatever other types occur.
        if columns:
            break
    raise ValueError(f"Which column is the {name}? Set --{name}_column_name to one of {', '.join(features)}.")


def renamed_columns(split: Any, image: str, label: str) -> Any:
    """The dataset with only these two columns, renamed to `image` and `label`.

    Raises:
        ValueError: if it has no such columns.
    """
    for option, column in (("--image_column_name", image), ("--label_column_name", label)):
        if column not in split.features:
            raise ValueError(f"{option} must be one of {', '.join(split.features)}, got {column}.")
    if image == label:
        raise ValueError(f"--image_column_name and --label_column_name must be two columns, got {image} for both.")
    split = split.select_columns([image, label])
    if isinstance(split, IterableDataset) and isinstance(split.features[image], Image):
        # Otherwise each step of a stream decodes and encodes all images, loses their names, and fails at a corrupt
        # one.
        split = split.cast_column(image, Image(decode=False))
    # Rename in two steps, because the image column may be called "label", or the label column "image".
    split = split.rename_columns({image: "image_", label: "label_"}).rename_columns(
        {"image_": "image", "label_": "label"}
    )
    feature = split.features["image"]
    if isinstance(feature, Image | Array3D):
        return split
    check_has_images(image, feature)
    return split.cast_column("image", Image())


def check_has_images(column: str, feature: Any) -> None:
    """Raise a ValueError unless a column holds encoded images, which programs other than `datasets` do not mark as such."""
    if isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature):
        return
    if getattr(feature, "dtype", "") not in ("binary", "large_binary"):
        raise ValueError(f"--image_column_name must be a column of images, got {column}, a column of {feature}.")


class LabeledImages(torch.utils.data.Dataset):
    """A dataset whose images are prepared on access. The key is an index, or an epoch and an index.

    Args:
        split: the examples. Images are decoded here, because `datasets` decodes without size limits.
        preparation: called with an example, the epoch and the example's index.
    """

    def __init__(self, split: Any, preparation: Any):
        if isinstance(split, Dataset) and isinstance(split.features["image"], Image):
            split = split.cast_column("image", Image(decode=False))
        self.split, self.preparation = split, preparation

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        example = self.split[index]
        image = example["image"]
        # Images may not have been checked before training: an oversized one must raise an error, not exhaust the
        # memory.
        if isinstance(image, PIL.Image.Image):
            check_shape(image)
        elif isinstance(image, dict):
            with image_errors(image["path"] or f"Image {index}"):
                example = example | {"image": open_image(image_source(image))}
        return self.preparation(example, epoch, index)


class ProcessorPixels(v2.Transform):
    """Convert an image that has its final size to pixel values; masks and boxes are unchanged.

    The image processor itself converts, so that training and evaluation cannot differ.

    Args:
        processor: the image processor.
    """

    def __init__(self, processor: Any):
        super().__init__()
        self.processor = processor

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        inputs = self.processor(
            inpt.as_subclass(torch.Tensor),
            do_resize=False,
            do_center_crop=False,
            do_convert_rgb=False,
            do_pad=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        return tv_tensors.Image(inputs["pixel_values"][0])


def check_pixels(processor: Any) -> None:
    """Raise a ValueError if a model cannot be trained with the pixel values of an image processor."""
    if not (processor.do_rescale or processor.do_normalize):
        raise ValueError(
            "The image processor must have do_rescale or do_normalize: without both, images stay whole numbers from 0 to 255, "
            "which no model accepts."
        )


def interpolation_of(processor: Any) -> InterpolationMode:
    """Return torchvision's interpolation mode for the resampling of an image processor.

    Raises:
        ValueError: if torchvision does not support this resampling.
    """
    if processor.resample not in KNOWN_RESAMPLING:
        known = ", ".join(f"{each.value} ({each.name.lower()})" for each in KNOWN_RESAMPLING)
        raise ValueError(
            f"The image processor's resample must be one that torchvision has, {known}, got {processor.resample}."
        )
    return pil_torch_interpolation_mapping[PILImageResampling(processor.resample)]


class RandomScale(v2.Transform):
    """Resize to one of several sizes, keeping the aspect ratio, to exactly the size that image processors compute.

    Args:
        sizes: pairs of the shorter side in pixels, and the maximum of the longer side, or None for no maximum.
        interpolation: interpolation mode for images.
    """

    def __init__(self, sizes: Sequence[tuple[int, int | None]], interpolation: InterpolationMode):
        super().__init__()
        self.sizes, self.interpolation = list(sizes), interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        shortest, longest = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return {"size": get_size_with_aspect_ratio(v2.query_size(flat_inputs), shortest, longest)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, list(params["size"]), self.interpolation)
