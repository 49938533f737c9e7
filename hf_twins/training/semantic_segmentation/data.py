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
"""Pictures and masks for training and evaluation, from wherever they are, each crop the same whenever it is asked for.

A mask has the number of a class for each pixel, and `IGNORE_INDEX` where there is none. The augmentation is
mmsegmentation's for ADE20K (https://github.com/open-mmlab/mmsegmentation, configs/_base_/datasets/ade20k.py); what is random
about it depends on nothing but the seed, the epoch and the picture's place in the data set.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, Value
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_twins._utils.image_folders import list_images
from hf_twins._utils.images import convert_image, decode_image
from hf_twins._utils.labels import read_label_names
from hf_twins.training.data import image_names, load_hub_splits, only_column, renamed_columns
from hf_twins.training.semantic_segmentation.arguments import DataArguments, SegmentationRecipe
from hf_twins.training.trainer import mixed_seed


logger = logging.getLogger(__name__)
IGNORE_INDEX = 255
# Crops to draw for one that is not nearly all of one class.
NUM_TRIES = 10


def load_pairs(
    arguments: DataArguments, seed: int, class_names: Sequence[str] | None = None
) -> tuple[dict[str, Dataset], list[str]]:
    """The data set as `train` and `validation`, and the names of its classes.

    Both have the columns `image` and `label`, pictures. Pairs that cannot be decoded, of two sizes, or without the number of
    a class, are left out, counted and named.

    Args:
        arguments: where the data is.
        seed: random seed of the images that are held out.
        class_names: those that the model knows; taken if the data has no names, nor more classes.

    Raises:
        ValueError: if there is no data set, or it lacks what is needed. The message says what.
    """
    splits = load_splits(arguments)
    if "validation" not in splits:
        held_out = splits["train"].train_test_split(arguments.train_val_split, seed=seed)
        splits = {"train": held_out["train"], "validation": held_out["test"]}
    names = named_classes(arguments)
    num_classes = 0
    for split, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            splits[split] = splits[split].shuffle(seed=seed).select(range(min(limit, len(splits[split]))))
        if arguments.check_images:
            splits[split], largest = checked_pairs(splits[split], split, arguments.do_reduce_labels, names)
            num_classes = max(num_classes, largest + 1)
        if len(splits[split]) == 0:
            raise ValueError(f"No pair of image and mask of the split {split} can be used.")
    if names is not None:
        return splits, names
    if class_names is not None and num_classes <= len(class_names):
        return splits, list(class_names)
    if not arguments.check_images:
        raise ValueError("How many classes there are is only known from --class_names_file or --check_images true.")
    # A model needs two classes, even if all pixels are of one.
    return splits, [str(number) for number in range(max(num_classes, 2))]


def load_splits(arguments: DataArguments) -> dict[str, Dataset]:
    """`train` and, if it is there, `validation`."""
    if (arguments.dataset_name is None) == (arguments.train_dir is None):
        raise ValueError("Give either --dataset_name or --train_dir.")
    if arguments.dataset_name is None:
        splits = {"train": load_folder(str(arguments.train_dir))}
        if arguments.validation_dir is not None:
            splits["validation"] = load_folder(arguments.validation_dir)
        return splits
    splits = load_hub_splits(arguments.dataset_name, arguments.dataset_config_name)
    for name, split in splits.items():
        image = arguments.image_column_name or only_column(split.features, "image", (Image,))
        others = Features({name: feature for name, feature in split.features.items() if name != image})
        label = arguments.label_column_name or only_column(others, "label", (Image,))
        splits[name] = renamed_columns(split, image, label)
    return splits


def load_folder(folder: str) -> Dataset:
    """The pictures of `images/`, each with the mask of the same name in `annotations/`; those without one are left out.

    Raises:
        ValueError: if there is no such folder, or nothing in it.
    """
    images, annotations = Path(folder, "images"), Path(folder, "annotations")
    if not images.is_dir() or not annotations.is_dir():
        raise ValueError(f"{folder} must be a folder with the folders images and annotations in it.")
    pictures = list_images(images, recursive=False)
    pairs = [(picture, annotations / f"{picture.stem}.png") for picture in pictures]
    alone = [picture.name for picture, mask in pairs if not mask.is_file()]
    if alone:
        logger.warning(f"{len(alone)} images of {folder} have no mask and are left out: {', '.join(alone)}")
    pairs = [(picture, mask) for picture, mask in pairs if mask.is_file()]
    if not pairs:
        raise ValueError(
            f"{folder} has no image with a mask of the same name, images/NAME.jpg and annotations/NAME.png."
        )
    columns = {"image": [str(picture) for picture, _ in pairs], "label": [str(mask) for _, mask in pairs]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Image()}))


def named_classes(arguments: DataArguments) -> list[str] | None:
    if arguments.class_names_file is None:
        return None
    names = read_label_names(arguments.class_names_file)
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise ValueError(
            f"{arguments.class_names_file} must name from 2 to {IGNORE_INDEX} classes, one a line, got {len(names)}."
        )
    return names


def class_numbers(mask: PIL.Image.Image, do_reduce_labels: bool) -> np.ndarray:
    """The class of each pixel of a mask, `(height, width)`, int64.

    Raises:
        ValueError: if the mask has more than one number a pixel.
    """
    numbers = np.asarray(mask)
    if numbers.ndim != 2:
        raise ValueError(f"A mask must have one number a pixel, that of its class, got a picture of mode {mask.mode}.")
    numbers = numbers.astype(np.int64)
    if do_reduce_labels:
        numbers = np.where((numbers == 0) | (numbers == IGNORE_INDEX), IGNORE_INDEX, numbers - 1)
    return numbers


def checked_pairs(
    split: Dataset, name: str, do_reduce_labels: bool, names: Sequence[str] | None = None
) -> tuple[Dataset, int]:
    """The pairs that can be used, and the largest number of a class in them; the others are counted and named.

    Raises:
        ValueError: if a mask has the number of a class that is not among `names`.
    """
    undecoded = split.cast_column("image", Image(decode=False)).cast_column("label", Image(decode=False))
    checked = undecoded.map(
        lambda pair: checked_pair(pair, do_reduce_labels),
        remove_columns=undecoded.column_names,
        features=Features({"fault": Value("string"), "largest": Value("int64")}),
        desc=f"Checking the images of {name}",
    )
    faults, largest = list(checked["fault"]), list(checked["largest"])
    bad = [f"{file_of(undecoded, index)} ({fault})" for index, fault in enumerate(faults) if fault]
    if bad:
        logger.warning(f"{len(bad)} images of {name} are left out: {', '.join(bad)}")
    limit = IGNORE_INDEX if names is None else len(names)
    for index, number in enumerate(largest):
        if number >= limit:
            raise ValueError(
                f"The mask of {file_of(undecoded, index)} has the class {number}, where the largest is {limit - 1}: do "
                "the names fit, and --do_reduce_labels?"
            )
    return split.select([index for index, fault in enumerate(faults) if not fault]), max(largest, default=-1)


def checked_pair(pair: dict[str, Any], do_reduce_labels: bool) -> dict[str, Any]:
    """What is wrong with a pair, or nothing, and the largest number of a class in it."""
    image, mask = decode_image(pair["image"]), decode_image(pair["label"])
    if image is None or mask is None:
        return {"fault": f"{'image' if image is None else 'mask'} cannot be decoded", "largest": -1}
    if image.size != mask.size:
        return {"fault": f"image of {image.size}, mask of {mask.size}", "largest": -1}
    try:
        numbers = class_numbers(mask, do_reduce_labels)
    except ValueError:
        return {"fault": f"mask of mode {mask.mode}", "largest": -1}
    numbers = numbers[numbers != IGNORE_INDEX]
    if numbers.size == 0:
        return {"fault": "no pixel with a class", "largest": -1}
    return {"fault": "", "largest": int(numbers.max())}


def file_of(undecoded: Dataset, index: int) -> str:
    return image_names(undecoded, [index])[0]


class RandomClassCrop(v2.Transform):
    """A random crop in which no class has too large a share, if one is found; padded to `size` where it is smaller.

    Args:
        size: side in pixels.
        max_class_share: largest share that one class may have of the pixels with a class.
        fill: colour of the padding, from 0 to 255. The mask's is `IGNORE_INDEX`.
    """

    def __init__(self, size: int, max_class_share: float, fill: Sequence[int]):
        super().__init__()
        self.size, self.max_class_share, self.fill = size, max_class_share, list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(each for each in flat_inputs if isinstance(each, tv_tensors.Mask))
        height, width = (min(self.size, side) for side in mask.shape[-2:])
        for _ in range(NUM_TRIES):
            top, left = (
                int(torch.randint(side - part + 1, ())) for side, part in zip(mask.shape[-2:], (height, width))
            )
            crop = mask[..., top : top + height, left : left + width]
            counts = torch.bincount(crop[crop != IGNORE_INDEX].long())
            if (counts > 0).sum() > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        crop = v2.functional.crop(inpt, **params)
        padding = [0, 0, self.size - params["width"], self.size - params["height"]]
        fill: Any = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else self.fill
        return v2.functional.pad(crop, padding, fill=fill)


def training_transform(recipe: SegmentationRecipe, processor: Any) -> v2.Transform:
    """Random size, crop, flip and colours, to the size and the normalization of the image processor."""
    if not 0 < recipe.min_scale <= recipe.max_scale:
        raise ValueError(
            f"--min_scale must be above 0 and not above --max_scale, got {recipe.min_scale} and {recipe.max_scale}."
        )
    size = processor.size.shortest_edge
    steps: list[v2.Transform] = [
        v2.RandomShortestSize(range(round(recipe.min_scale * size), round(recipe.max_scale * size) + 1)),
        # The mean colour, which is 0 to the model.
        RandomClassCrop(size, recipe.max_class_share, [round(255 * mean) for mean in processor.image_mean]),
        v2.RandomHorizontalFlip(recipe.horizontal_flip),
    ]
    if recipe.photometric_distortion:
        # Not `RandomPhotometricDistort`, which swaps channels too.
        changes = ({"brightness": (0.875, 1.125)}, {"contrast": (0.5, 1.5)}, {"saturation": (0.5, 1.5)}, {"hue": 0.1})
        steps += [v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in changes]
    types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.Compose([*steps, v2.ToDtype(types, scale=True), v2.Normalize(processor.image_mean, processor.image_std)])


@dataclass
class Preparation:
    """Makes of a pair what the model is trained on: `pixel_values` `(3, height, width)`, and `labels` `(height, width)`.

    Args:
        transform: transform of an image and its mask, both tensors.
        do_reduce_labels: whether classes are counted from 1 in masks.
        seed: random seed of the transform.
    """

    transform: v2.Transform
    do_reduce_labels: bool
    seed: int = 0

    def __call__(self, pair: dict[str, Any], *place: int) -> dict[str, torch.Tensor]:
        """What is random about it depends on the seed and the place alone."""
        image = v2.functional.to_image(convert_image(pair["image"]))
        mask = tv_tensors.Mask(class_numbers(pair["label"], self.do_reduce_labels).astype(np.uint8))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, *place))
            image, mask = self.transform(image, mask)
        return {"pixel_values": image.as_subclass(torch.Tensor), "labels": mask.as_subclass(torch.Tensor)}
