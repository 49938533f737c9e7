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
"""Images and labels for training and evaluation, from wherever they are, each image the same whenever it is asked for.

What is random about an image, its crop and the rest of the augmentation, depends on nothing but the seed, the epoch and the
image's place in the data set: not on how many workers prepare it, nor on what came before. So training that was resumed
sees what it would have seen.
"""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from classification_arguments import DataArguments, RecipeArguments
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from torchvision.transforms import InterpolationMode, v2


logger = logging.getLogger(__name__)
# What images with so many channels are to Pillow.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load_images(arguments: DataArguments, seed: int) -> DatasetDict:
    """The data set as `train` and `validation`, with the columns `image` and `label`, a `ClassLabel`.

    Images that cannot be decoded are left out, counted and named.

    Raises:
        ValueError: if there is no data set, or it lacks what is needed. The message says what.
    """
    splits = load_splits(arguments)
    if "train" not in splits:
        raise ValueError(f"The data set must have a split named train, got {', '.join(splits)}.")
    splits = DatasetDict({name: with_columns(split, arguments) for name, split in splits.items()})
    splits = with_label_names(splits)
    if "validation" not in splits:
        held_out = splits["train"].train_test_split(arguments.train_val_split, stratify_by_column="label", seed=seed)
        splits = DatasetDict({"train": held_out["train"], "validation": held_out["test"]})
    for name, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            splits[name] = splits[name].shuffle(seed=seed).select(range(min(limit, len(splits[name]))))
        if arguments.check_images:
            splits[name] = without_corrupt_images(splits[name], name)
        if len(splits[name]) == 0:
            raise ValueError(f"No image of the split {name} can be used.")
    return splits


def load_splits(arguments: DataArguments) -> DatasetDict:
    """`train` and, if it is there, `validation`, with whatever columns they have."""
    if (arguments.dataset_name is None) == (arguments.train_dir is None):
        raise ValueError("Give either --dataset_name or --train_dir.")
    if arguments.dataset_name is not None:
        splits = load_dataset(arguments.dataset_name, arguments.dataset_config_name)
        held_out = next((name for name in ("validation", "test") if name in splits), None)
        return DatasetDict({"train": splits["train"]} | ({"validation": splits[held_out]} if held_out else {}))
    folders = {"train": arguments.train_dir, "validation": arguments.validation_dir}
    return DatasetDict({name: load_folder(folder) for name, folder in folders.items() if folder is not None})


def load_folder(folder: str) -> Dataset:
    """A folder of images in sub-folders, of .parquet files, or of .tar files (webdataset)."""
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} must be a folder, of images in a sub-folder for each label, of .parquet or of .tar files."
        )
    for pattern, builder in (("*.parquet", "parquet"), ("*.tar", "webdataset")):
        files = sorted(str(file) for file in Path(folder).glob(pattern))
        if files:
            return load_dataset(builder, data_files={"train": files}, split="train")
    return load_dataset("imagefolder", data_dir=folder, split="train")


def with_columns(split: Dataset, arguments: DataArguments) -> Dataset:
    """The same data set with the columns `image` and `label`."""
    image = arguments.image_column_name or only_column(split.features, "image", (Image,))
    label = arguments.label_column_name or only_column(split.features, "label", (ClassLabel, Value))
    for option, column in (("--image_column_name", image), ("--label_column_name", label)):
        if column not in split.features:
            raise ValueError(f"{option} must be one of {', '.join(split.features)}, got {column}.")
    split = split.select_columns([image, label])
    # One of them may have the other's name.
    return split.rename_columns({image: "image_", label: "label_"}).rename_columns(
        {"image_": "image", "label_": "label"}
    )


def only_column(features: Features, name: str, types: tuple[type, ...]) -> str:
    """The column of that name or, if there is none, the only one of the first of these types that any has."""
    if isinstance(features.get(name), types):
        return name
    for feature_type in types:
        columns = [column for column, feature in features.items() if isinstance(feature, feature_type)]
        # What webdataset says about a file is no label.
        columns = [column for column in columns if not column.startswith("__")]
        if len(columns) == 1:
            return columns[0]
    raise ValueError(f"Which column is the {name}? Say --{name}_column_name, one of {', '.join(features)}.")


def with_label_names(splits: DatasetDict) -> DatasetDict:
    """Labels that are texts or numbers as a `ClassLabel` with their names, the same in all splits."""
    if isinstance(splits["train"].features["label"], ClassLabel):
        return splits
    names = sorted({label for split in splits.values() for label in split["label"]})
    feature = ClassLabel(names=[str(name) for name in names])
    return splits.map(lambda example: {"label": str(example["label"])}).cast_column("label", feature)


def without_corrupt_images(split: Dataset, name: str) -> Dataset:
    """The images that can be decoded; the others are counted and named. The answer is kept by `datasets`' cache."""
    if not isinstance(split.features["image"], Image):
        return split
    undecoded = split.cast_column("image", Image(decode=False))
    is_readable = undecoded.map(
        lambda example: {"is_readable": can_be_decoded(example["image"])},
        remove_columns=undecoded.column_names,
        desc=f"Checking the images of {name}",
    )["is_readable"]
    corrupt = [index for index, readable in enumerate(is_readable) if not readable]
    if corrupt:
        names = [undecoded[index]["image"]["path"] or f"image {index}" for index in corrupt]
        logger.warning(f"{len(corrupt)} images of {name} cannot be decoded and are left out: {', '.join(names)}")
    return split.select([index for index, readable in enumerate(is_readable) if readable])


def can_be_decoded(image: dict[str, Any]) -> bool:
    try:
        with PIL.Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
            opened.load()
    except Exception:
        # Pillow's decoders raise all kinds of errors.
        return False
    return True


class LabelledImages(torch.utils.data.Dataset):
    """Images as the model takes them, `pixel_values` `(num_channels, height, width)`, and `labels`.

    Asked for by their place, or by epoch and place, as `EpochSampler` does: what is random about the transform depends on
    these and the seed alone.

    Args:
        split: with the columns `image` and `label`.
        transform: of a picture to a tensor.
        num_channels: channels of the model.
        seed: of the transform.
    """

    def __init__(self, split: Dataset, transform: Any, num_channels: int, seed: int = 0):
        self.split, self.transform, self.num_channels, self.seed = split, transform, num_channels, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        example = self.split[index]
        image = example["image"]
        if isinstance(image, PIL.Image.Image) and self.num_channels in MODES:
            image = image.convert(MODES[self.num_channels])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, epoch, index))
            return {"pixel_values": self.transform(image), "labels": example["label"]}


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Every image once an epoch, or, by weights, as many drawn; in an order that depends on seed and epoch alone.

    Args:
        num_images: in the data set.
        seed: of the order.
        weights: how often each image is drawn, relative to the others.
    """

    def __init__(self, num_images: int, seed: int, weights: torch.Tensor | None = None):
        self.num_images, self.seed, self.weights, self.epoch = num_images, seed, weights, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.num_images, replacement=True, generator=generator)
        yield from ((self.epoch, index) for index in order.tolist())


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers; near ones give seeds that have nothing to do with each other."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def training_transform(arguments: RecipeArguments, processor: Any) -> v2.Transform:
    """Random crop and augmentation, to the size and the normalization of the checkpoint's image processor."""
    crop = processor.crop_size or processor.size
    steps = [
        v2.ToImage(),
        v2.RandomResizedCrop(
            (crop["height"], crop["width"]),
            scale=(arguments.min_crop_scale, 1.0),
            interpolation=InterpolationMode.BICUBIC,
        ),
        v2.RandomHorizontalFlip(arguments.horizontal_flip),
    ]
    if arguments.rand_augment:
        # Bilinear: torchvision has no other for the rotations of tensors that gives pixels between pixels.
        steps.append(v2.RandAugment(num_ops=2, magnitude=9, interpolation=InterpolationMode.BILINEAR))
    if arguments.color_jitter > 0:
        steps.append(v2.ColorJitter(*3 * [arguments.color_jitter]))
    steps += [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(processor.image_mean, processor.image_std),
        v2.RandomErasing(arguments.random_erasing),
    ]
    return v2.Compose(steps)


def evaluation_transform(processor: Any) -> Any:
    """What the checkpoint's image processor makes of a picture."""
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]
