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
"""Loads images and labels from any source, and prepares them reproducibly for training and evaluation.

The random augmentation of an image depends only on the seed, the epoch and the image's index in the dataset, not on
the number of workers or on earlier images. So a resumed run sees the same images as an uninterrupted one.
"""

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import (
    Array3D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
)
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_twins._utils.fingerprints import file_digest
from hf_twins._utils.image_folders import listed
from hf_twins._utils.images import FRACTIONS, MODES, checked_image, convert_image, decode_image, log_applied_rules
from hf_twins.training.data import (
    ProcessorPixels,
    check_pixels,
    image_names,
    interpolation_of,
    load_hub_splits,
    only_column,
    renamed_columns,
)
from hf_twins.training.image_classification.arguments import ClassificationRecipe, DataArguments, ImageArguments
from hf_twins.training.image_classification.augmentation import RandAugment
from hf_twins.training.image_classification.folders import load_folders
from hf_twins.training.image_classification.labels import NO_LABEL, with_label_names
from hf_twins.training.trainer import mixed_seed


logger = logging.getLogger(__name__)


def load_images(arguments: DataArguments, seed: int, output_dir: Path | None = None) -> dict[str, Any]:
    """Load the dataset as `train`, a stream if requested, and `validation`.

    Both have the columns `image` and `label`, a `ClassLabel`. Images that cannot be decoded, and rows without an image
    or a label, are left out, counted and named in a warning. In a stream, this happens while it is read.

    Raises:
        ValueError: if there is no dataset, or it lacks required parts, or files written to `output_dir` could replace
            some of it. The message says which.
    """
    splits = {name: with_columns(split, arguments) for name, split in load_splits(arguments, output_dir).items()}
    splits = with_label_names(splits, arguments.class_names_file)
    names = splits["train"].features["label"].names
    if len(names) < 2:
        raise ValueError(f"There must be at least two labels, got only {', '.join(names)}.")
    if "validation" not in splits:
        share = arguments.train_val_split
        try:
            held_out = splits["train"].train_test_split(share, stratify_by_column="label", seed=seed)
        except ValueError as error:
            raise ValueError(
                f"{share:g} of {len(splits['train'])} images cannot be held out for validation, with some of every label: give "
                f"more images, another --train_val_split, or --validation_dir. {error}"
            ) from error
        splits = {"train": held_out["train"], "validation": held_out["test"]}
    digests: dict[str, np.ndarray] = {}
    for name, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if isinstance(splits[name], IterableDataset):
            continue
        if limit is not None:
            splits[name] = splits[name].shuffle(seed=seed).select(range(min(limit, len(splits[name]))))
        if arguments.check_images:
            splits[name], of_split = without_corrupt_images(splits[name], name)
            if of_split is not None:
                digests[name] = of_split
        if len(splits[name]) == 0:
            raise ValueError(f"No image of the split {name} can be used.")
    if not isinstance(splits["train"], IterableDataset):
        used = set(splits["train"]["label"])
        unused = [label for number, label in enumerate(names) if number not in used]
        if unused:
            logger.warning(f"{len(unused)} labels have no training images: {listed(unused)}.")
    if digests:
        warn_of_identical_images({name: splits[name] for name in digests}, digests)
    return splits


def load_splits(arguments: DataArguments, output_dir: Path | None = None) -> dict[str, Any]:
    """Load `train` and, if there is one, `validation`, with all of their columns."""
    if (arguments.dataset_name is None) == (arguments.train_dir is None):
        raise ValueError("Give either --dataset_name or --train_dir.")
    splits: dict[str, Any] = {}
    if arguments.dataset_name is not None:
        splits = load_hub_splits(arguments.dataset_name, arguments.dataset_config_name, arguments.streaming)
    else:
        splits = load_folders(str(arguments.train_dir), arguments.validation_dir, arguments.streaming, output_dir)
    if arguments.streaming and "validation" not in splits:
        raise ValueError("With --streaming, evaluation images must be given separately: give --validation_dir.")
    return splits


def with_columns(split: Any, arguments: ImageArguments) -> Any:
    """Return the dataset with only the columns `image` and `label`."""
    image = arguments.image_column_name or only_column(split.features, "image", (Image, Array3D))
    label = arguments.label_column_name or only_column(split.features, "label", (ClassLabel, Value))
    return renamed_columns(split, image, label)


def without_corrupt_images(split: Dataset, name: str) -> tuple[Dataset, np.ndarray | None]:
    """Leave out images that cannot be decoded, and count and name them. `datasets` caches the result.

    Returns:
        The split, and a digest of the file of each image in it, `(num_rows,)`, int64; None for arrays.

    Raises:
        ValueError: if images are arrays that [`to_bytes`] does not accept.
    """
    if not isinstance(split.features["image"], Image):
        check_arrays(split, name)
        return split, None
    undecoded = split.cast_column("image", Image(decode=False))
    checked = undecoded.map(
        # Digests are computed here, where each file is read anyway, and only once.
        lambda example: checked_image(example["image"]) | {"digest": image_digest(example["image"])},
        remove_columns=undecoded.column_names,
        features=Features({"is_readable": Value("bool"), "applied": List(Value("string")), "digest": Value("int64")}),
        desc=f"Checking the images of {name}",
    )
    log_applied_rules(Counter(rule for rules in checked["applied"] for rule in rules), f"images of {name}")
    is_readable = np.array(checked["is_readable"], dtype=bool)
    corrupt = np.flatnonzero(~is_readable).tolist()
    if corrupt:
        names = ", ".join(image_names(split, corrupt))
        logger.warning(f"{len(corrupt)} images of {name} cannot be decoded and are left out: {names}")
    return split.select(np.flatnonzero(is_readable)), np.array(checked["digest"], dtype=np.int64)[is_readable]


def image_digest(image: dict[str, Any]) -> int:
    """The first 64 bits of the SHA-256 of an undecoded image's file."""
    content = image["bytes"]
    digest = file_digest(image["path"]) if content is None else hashlib.sha256(content).hexdigest()
    return int.from_bytes(bytes.fromhex(digest[:16]), signed=True)


def warn_of_identical_images(splits: Mapping[str, Dataset], digests: Mapping[str, np.ndarray]) -> None:
    """Warn of identical images that have different labels, or are both training and evaluation images."""
    counts = [len(digests[name]) for name in splits]
    names, rows = np.repeat(list(splits), counts), np.concatenate([np.arange(count) for count in counts])
    contents = np.concatenate([digests[name] for name in splits])
    labels = np.concatenate([np.array(splits[name]["label"][:]) for name in splits])
    too_good = ": the results will be better than on other images"
    kinds = (
        (labels, "have several labels", ""),
        (names == "validation", "are both training and evaluation images", too_good),
    )
    for kind, fault, consequence in kinds:
        # Sorted by content and then by kind, neighbors of the same content and different kinds show the fault.
        order = np.lexsort((kind, contents))
        is_same, is_alike = (each[order][1:] == each[order][:-1] for each in (contents, kind))
        found = np.flatnonzero(is_same & ~is_alike)
        if len(found):
            pair = order[found[0] : found[0] + 2].tolist()
            first, second = (f"{image_names(splits[names[i]], [rows[i]])[0]} ({names[i]})" for i in pair)
            number = len(np.unique(contents[order[found]]))
            logger.warning(f"{number} images {fault}, such as {first} and {second}{consequence}.")


def check_arrays(split: Dataset, name: str) -> None:
    """Raise a ValueError if arrays cannot be used as images, and log if they are scaled to 0 to 255."""
    feature = split.features["image"]
    if feature.dtype == "uint8":
        return
    for row, example in enumerate(split.select_columns(["image"]).with_format("numpy")):
        try:
            to_bytes(example["image"])
        except ValueError as error:
            raise ValueError(f"Image {row} of {name} cannot be used: {error}") from error
    if feature.dtype.startswith("float"):
        log_applied_rules(Counter({FRACTIONS: len(split)}), f"images of {name}")


def to_bytes(image: Any) -> np.ndarray:
    """Convert an array of whole numbers from 0 to 255, or of fractions from 0 to 1, to `uint8`.

    Raises:
        ValueError: if the array has other values.
    """
    array = np.asarray(image)
    is_fraction = array.dtype.kind == "f"
    # The comparisons are also false for NaN.
    if array.dtype.kind not in "iuf" or not (array.min() >= 0 and array.max() <= (1 if is_fraction else 255)):
        found = f"{array.dtype} from {array.min()} to {array.max()}"
        raise ValueError(
            f"An array must have whole numbers from 0 to 255, or fractions from 0 to 1, got {found}: save it as uint8."
        )
    return (np.rint(255 * array) if is_fraction else array).astype(np.uint8)


@dataclass
class Preparation:
    """Prepares an example for the model: `pixel_values` of shape `(num_channels, height, width)`, and `labels`.

    Args:
        transform: transform of an image, or of a `uint8` array `(height, width, num_channels)`, to a tensor.
        num_channels: number of input channels of the model.
        seed: random seed of the transform.
    """

    transform: Any
    num_channels: int
    seed: int = 0

    def __call__(self, example: dict[str, Any], *place: int) -> dict[str, Any]:
        """Prepare an example, with random numbers that depend only on the seed and `place`."""
        image = example["image"]
        if not isinstance(image, PIL.Image.Image):
            image = to_bytes(image)
            if image.shape[-1] != self.num_channels:
                raise ValueError(
                    f"Images must be (height, width, {self.num_channels}) for this model, got {image.shape}: "
                    "give --num_channels."
                )
        elif self.num_channels in MODES:
            image = convert_image(image, MODES[self.num_channels])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, *place))
            return {"pixel_values": self.transform(image), "labels": example["label"]}


class StreamedImages(torch.utils.data.IterableDataset):
    """This process's share of a stream of images, in a different order each epoch.

    Every process gets the same number of full batches per epoch, so that none waits for another. A stream that ends
    earlier is read again.

    Args:
        stream: dataset with the columns `image` and `label`.
        preparation: prepares an example.
        num_images: number of images per epoch over all processes; by default, the number that the dataset declares.
        batch_size: number of images per batch in each process.
        buffer_size: number of images in the shuffle buffer.
        process_index, num_processes: which share of the stream this is.

    Raises:
        ValueError: if the number of images per epoch is unknown, or less than a batch.
    """

    def __init__(
        self,
        stream: IterableDataset,
        preparation: Preparation,
        num_images: int | None,
        batch_size: int,
        buffer_size: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if num_images is None:
            splits = stream.info.splits or {}
            num_images = splits[str(stream.split)].num_examples if str(stream.split) in splits else None
        if not num_images:
            raise ValueError("The stream does not say how many images it has: give --max_train_samples.")
        self.num_batches = num_images // (batch_size * num_processes)
        if self.num_batches == 0:
            raise ValueError(
                f"An epoch of {num_images} images is less than a batch of {batch_size} in each of {num_processes} "
                "processes."
            )
        self.preparation, self.batch_size, self.process_index, self.epoch = preparation, batch_size, process_index, 0
        if isinstance(stream.features["image"], Image):
            # Images are decoded here, so that a corrupt one does not end the stream.
            stream = stream.cast_column("image", Image(decode=False))
        self.stream = split_dataset_by_node(stream, rank=process_index, world_size=num_processes)
        self.buffer_size = buffer_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker: Any = torch.utils.data.get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        num_images = (self.num_batches // count + (index < self.num_batches % count)) * self.batch_size
        for place, example in enumerate(itertools.islice(self.examples(), num_images)):
            yield self.preparation(example, self.epoch, self.process_index, index, place)

    def examples(self) -> Iterator[dict[str, Any]]:
        """Yield the examples that can be decoded, endlessly."""
        num_left_out = 0
        said: Counter[str] = Counter()
        for repetition in itertools.count():
            is_empty = True
            # The repetition is part of the seed, so that epoch 0 read again differs from epoch 1. The stream's own
            # `set_epoch` is not used, because it is shared with other workers, which may not have started yet.
            seed = mixed_seed(self.preparation.seed, self.epoch, repetition)
            for example in self.stream.shuffle(seed=seed, buffer_size=self.buffer_size):
                image, label, fault = example["image"], example["label"], None
                path = image["path"] if isinstance(image, dict) else None
                if image is None:
                    fault = "there is no image"
                elif label is None or label == NO_LABEL:
                    fault = "it has no label"
                elif isinstance(image, dict):
                    applied: Counter[str] = Counter()
                    image = decode_image(image, applied)
                    # The total is unknown in a stream, so each rule is logged at its first image.
                    log_applied_rules(applied - said, "images or more of the stream")
                    said |= applied
                    fault = "it cannot be decoded" if image is None else None
                if fault is not None:
                    num_left_out += 1
                    logger.warning(f"left out, because {fault}: {path} ({num_left_out} so far)")
                    continue
                is_empty = False
                yield example | {"image": image}
            if is_empty:
                raise ValueError("No image of the stream can be used.")


def stream_loader(images: StreamedImages, num_workers: int, device: torch.device) -> Any:
    """Create a loader for the batches of a stream, which puts them on the device."""
    loader = DataLoader(
        images,
        batch_size=images.batch_size,
        collate_fn=collate,
        # More workers than shards would have nothing to read.
        num_workers=min(num_workers, images.stream.num_shards),
        generator=torch.Generator(),
    )
    # The stream is already this process's share: Accelerate must not divide it again.
    return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": stacked([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Stack images to a batch.

    Raises:
        ValueError: if their sizes differ.
    """
    sizes = dict.fromkeys(" x ".join(map(str, image.shape[-2:])) for image in images)
    if len(sizes) > 1:
        raise ValueError(
            f"The images of a batch must have one height and width, got {listed(list(sizes))}: the image processor must crop, or "
            "have a size of height and width; give --image_processor_name or a batch of one image."
        )
    return torch.stack(images)


def evaluated_size(processor: Any) -> tuple[int, int]:
    """Height and width of all images that an image processor prepares.

    Raises:
        ValueError: if they depend on the image, or random crops of images cannot match what the processor prepares.
    """
    size, crop = processor.size, processor.crop_size
    is_squeezed = size.height is not None and size.width is not None
    result = (crop.height, crop.width) if processor.do_center_crop else (size.height, size.width)
    resized = (size.height, size.width) if is_squeezed else (size.shortest_edge, size.shortest_edge)
    problem = None
    if not processor.do_resize:
        problem = "do_resize=True, because training resizes its crops"
    elif not is_squeezed and (size.shortest_edge is None or size.longest_edge is not None):
        problem = f"a size of height and width, or of shortest_edge alone, got {given_sides(size)}"
    elif not is_squeezed and not processor.do_center_crop:
        problem = "do_center_crop=True, or a size of height and width, because a batch needs images of one size"
    elif result[0] > resized[0] or result[1] > resized[1]:
        problem = f"a crop_size that is not above its size, {given_sides(size)}, got {given_sides(crop)}"
    if problem is not None:
        raise ValueError(
            f"For training, the image processor must have {problem}: give another, with --image_processor_name."
        )
    return result


def given_sides(size: Any) -> dict[str, int]:
    return {name: side for name, side in dict(size).items() if side is not None}


class RandomResizedCrop(v2.RandomResizedCrop):
    """A random crop resized to the image processor's size, with its aspect ratio varied by up to a third.

    Args:
        processor: the image processor.
        min_scale: smallest share of an image that a crop shows.

    Raises:
        ValueError: as for [`evaluated_size`].
    """

    def __init__(self, processor: Any, min_scale: float):
        self.processor, self.sides = processor, evaluated_size(processor)
        self.is_squeezed = processor.size.height is not None
        super().__init__(self.sides, (min_scale, 1.0), interpolation=interpolation_of(processor))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        # In evaluation, the processor either keeps the aspect ratio and crops, or resizes without keeping it.
        height, width = v2.query_size(flat_inputs)
        aspect = self.sides[1] / self.sides[0]
        if self.is_squeezed:
            aspect *= width / height * self.processor.size.height / self.processor.size.width
        self.ratio = (aspect * 3 / 4, aspect * 4 / 3)
        self._log_ratio = torch.log(torch.tensor(self.ratio))
        return super().make_params(flat_inputs)


def training_transform(arguments: ClassificationRecipe, processor: Any, num_channels: int = 3) -> v2.Transform:
    """Create the random crop and augmentation, with the size and the pixel values of the checkpoint's image processor.

    Raises:
        ValueError: if the image processor does not crop or resize all images to one size, or the augmentation does not
            support the image processor or the number of channels.
    """
    if num_channels not in (1, 3) and (arguments.rand_augment or arguments.color_jitter > 0):
        raise ValueError(
            f"--rand_augment and --color_jitter support gray and color, not {num_channels} channels: leave them out."
        )
    check_pixels(processor)
    steps: list[v2.Transform] = [
        v2.ToImage(),
        RandomResizedCrop(processor, arguments.min_crop_scale),
        v2.RandomHorizontalFlip(arguments.horizontal_flip),
    ]
    if arguments.rand_augment:
        steps.append(RandAugment(mean_color(processor, num_channels)))
    if arguments.color_jitter > 0:
        steps.append(v2.ColorJitter(*3 * [arguments.color_jitter]))
    steps.append(ProcessorPixels(processor))
    if arguments.random_erasing > 0:
        if not processor.do_normalize:
            raise ValueError(
                "--random_erasing fills in noise for normalized pixels, but the image processor does not normalize: "
                "leave it out, or give another one, with --image_processor_name."
            )
        # The rectangles of timm, which the authors use, are slightly larger than torchvision's defaults.
        steps.append(v2.RandomErasing(arguments.random_erasing, (0.02, 1 / 3), (0.3, 1 / 0.3), value="random"))
    return v2.Compose([*steps, v2.ToPureTensor()])


def mean_color(processor: Any, num_channels: int) -> list[int]:
    """The mean color of an image processor as a value from 0 to 255 for each channel."""
    if processor.image_mean is None:
        return [128] * num_channels
    factor = processor.rescale_factor if processor.do_rescale else 1
    # A single number applies to all channels.
    values = np.broadcast_to(np.asarray(processor.image_mean, dtype=float) / factor, num_channels)
    return [round(value) for value in values.clip(0, 255).tolist()]


def check_preparation(preparation: Preparation) -> None:
    """Raise a ValueError if an image processor cannot prepare any image, such as with a mean for other channels or a std of 0."""
    gradient = PIL.Image.linear_gradient("L").convert("RGB")
    try:
        values = preparation({"image": gradient, "label": NO_LABEL})["pixel_values"]
        is_image = bool(values.isfinite().all()) and len(values.unique()) > 1
        fault = None if is_image else "all pixel values are the same, or some are no numbers"
    # Any error here would occur with every image.
    except Exception as error:
        fault = f"it raises {error!r}"
    if fault is not None:
        raise ValueError(
            f"The image processor cannot prepare images ({fault}): look at its rescale_factor, image_mean and image_std, or give "
            "another one, with --image_processor_name."
        )


def evaluation_transform(processor: Any) -> Any:
    """Create the transform of an image, or an array `(height, width, num_channels)`, by the image processor, without padding."""

    def transform(image: Any) -> torch.Tensor:
        # With five or more channels, the processor cannot infer which axis they are on.
        layout = {"input_data_format": "channels_last"} if isinstance(image, np.ndarray) else {}
        # Padding only makes sense for a batch, together with a mask.
        return processor(image, do_pad=False, return_tensors="pt", **layout)["pixel_values"][0]

    return transform
