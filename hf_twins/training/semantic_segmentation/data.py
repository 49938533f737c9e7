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
"""Loads images and masks from any source, and prepares them reproducibly for training and evaluation.

A mask has the number of a class for each pixel, and `IGNORE_INDEX` where there is none. The augmentation is
mmsegmentation's for ADE20K (https://github.com/open-mmlab/mmsegmentation, configs/_base_/datasets/ade20k.py). Its
random choices depend only on the seed, the epoch and the image's index in the dataset.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import Dataset, Features, Image, List, Value
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_twins._utils.files import ReadError, check_is_apart
from hf_twins._utils.fingerprints import dataset_fingerprint
from hf_twins._utils.image_folders import list_folder
from hf_twins._utils.images import (
    ImageError,
    convert_image,
    image_errors,
    image_source,
    log_applied_rules,
    open_image,
    orientation,
)
from hf_twins._utils.labels import read_label_names
from hf_twins.training.data import (
    ProcessorPixels,
    RandomScale,
    check_pixels,
    image_names,
    interpolation_of,
    load_hub_splits,
    only_column,
    renamed_columns,
    warn_of_shared_images,
)
from hf_twins.training.orientation import (
    UNKNOWN_ORIENTATION,
    ExifOption,
    common_convention,
    decided_convention,
    turn_as_annotated,
)
from hf_twins.training.semantic_segmentation.arguments import DataArguments, SegmentationRecipe
from hf_twins.training.semantic_segmentation.augmentation import (
    IGNORE_INDEX,
    PadToSquare,
    PhotometricDistortion,
    RandomClassCrop,
)
from hf_twins.training.trainer import mixed_seed


logger = logging.getLogger(__name__)
# Formats that keep class numbers exactly. JPEG and WebP may blur them.
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm")
# Maximum number of classes without names. More numbers usually mean masks that were resized smoothly, or object ids.
MAX_UNNAMED = 50
LOSSY = "in formats that may blur the numbers of classes, which need a lossless one such as PNG"
WITHOUT_IMAGE = "masks without an image of the same name"
WITHOUT_MASK = "images without a mask of the same name, a lossless one such as PNG"


class ImageMaskPairs(torch.utils.data.Dataset):
    """Pairs of an `image` and a `label`, its mask, decoded on access. The image is turned to match the mask.

    Args:
        split: the pairs, not yet decoded.
        exif, convention: see [`~hf_twins.training.orientation.turn_as_annotated`].
    """

    def __init__(self, split: Dataset, exif: ExifOption = "auto", convention: str | None = None):
        self.split, self.exif, self.convention = undecoded(split), exif, convention

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, PIL.Image.Image]:
        pair = self.split[index]
        name = file_of(self.split, index)
        with image_errors(name):
            image, mask = (open_image(image_source(pair[part]), is_upright=False) for part in ("image", "label"))
        try:
            return matched_pair(image, mask, self.exif, self.convention)
        except ImageError as error:
            raise ImageError(f"{name} and its mask do not fit: {error}.") from error

    def fingerprint(self) -> str:
        """A fingerprint of the pairs, see [`~hf_twins._utils.fingerprints.dataset_fingerprint`]."""
        return dataset_fingerprint(self.split)

    def select(self, indices: Iterable[int]) -> "ImageMaskPairs":
        return ImageMaskPairs(self.split.select(indices), self.exif, self.convention)


def matched_pair(
    image: PIL.Image.Image, mask: PIL.Image.Image, exif: ExifOption = "auto", convention: str | None = None
) -> dict[str, PIL.Image.Image]:
    """Turn an image and its mask, both given as stored, to match each other.

    Raises:
        ImageError: if they cannot match.
    """
    if orientation(mask) != 1:
        if orientation(mask) != orientation(image):
            raise ImageError("mask with an EXIF orientation of its own")
        for each in (image, mask):
            PIL.ImageOps.exif_transpose(each, in_place=True)
    return {"image": turn_as_annotated(image, mask.size, exif, convention), "label": mask}


def undecoded(split: Dataset) -> Dataset:
    return split.cast_column("image", Image(decode=False)).cast_column("label", Image(decode=False))


def load_pairs(
    arguments: DataArguments,
    seed: int,
    class_names: Sequence[str] | None = None,
    output_dir: Path | None = None,
) -> tuple[dict[str, ImageMaskPairs], list[str]]:
    """Load the dataset as `train` and `validation`, and the names of its classes.

    Pairs that cannot be decoded, have different sizes, or have no pixel with a class are left out, counted and named.

    Args:
        arguments: options of the dataset.
        seed: random seed for choosing the images that are held out.
        class_names: class names of the model, used if the data has the same number of classes but no names.
        output_dir: folder that the run writes to.

    Raises:
        ValueError: if there is no dataset, or it lacks required parts, or files written to `output_dir` could replace
            some of it. The message says which.
    """
    splits = load_splits(arguments, output_dir)
    if "validation" not in splits:
        held_out = splits["train"].train_test_split(arguments.train_val_split, seed=seed)
        splits = {"train": held_out["train"], "validation": held_out["test"]}
    names = named_classes(arguments)
    for split, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            splits[split] = splits[split].shuffle(seed=seed).select(range(min(limit, len(splits[split]))))
    if not arguments.check_images:
        if names is None:
            raise ValueError("The number of classes is unknown: give --class_names_file or --check_images true.")
        return {name: ImageMaskPairs(split, arguments.exif) for name, split in splits.items()}, names
    pairs, used = checked_pairs(splits, arguments.do_reduce_labels, names, arguments.exif)
    if names is None:
        names = inferred_names(used, class_names)
    warn_of_unused_classes(used, names)
    return pairs, names


def inferred_names(used: Collection[int], class_names: Sequence[str] | None) -> list[str]:
    """Infer class names from the numbers that the masks use.

    Raises:
        ValueError: if these are probably not class numbers.
    """
    num_classes = max(used) + 1
    numbers = ", ".join(map(str, sorted(used)))
    if len(used) < 2:
        raise ValueError(
            f"The masks have no class but {numbers}, beside {IGNORE_INDEX}, which means no class: number the classes 0, 1, 2, "
            "..., for example with 1 for a foreground, or name them with --class_names_file."
        )
    if 2 * len(used) < num_classes:
        raise ValueError(
            f"The masks use {len(used)} of the numbers 0 to {max(used)}: {numbers}. Number the classes 0, 1, 2, ... without "
            "gaps, or name all of them with --class_names_file."
        )
    if class_names is not None and num_classes == len(class_names):
        return list(class_names)
    if num_classes > MAX_UNNAMED:
        raise ValueError(
            f"The masks use {len(used)} of the numbers 0 to {max(used)}: if these are classes, name them with "
            "--class_names_file; if they are gray levels, as in masks that were resized or rotated smoothly, create "
            "the masks again with nearest-neighbor interpolation; object ids are not classes."
        )
    if class_names is not None:
        logger.warning(
            f"The model knows {len(class_names)} classes and the masks have {num_classes}: it gets a new head, without their "
            "names. To keep both, give the names with --class_names_file."
        )
    return [str(number) for number in range(num_classes)]


def warn_of_unused_classes(used: Collection[int], names: Sequence[str]) -> None:
    unused = [name for number, name in enumerate(names) if number not in used]
    if unused:
        logger.warning(
            f"{len(unused)} of {len(names)} classes have no pixel in the masks ({IGNORE_INDEX} means no class): "
            f"{', '.join(unused)}"
        )


def load_splits(arguments: DataArguments, output_dir: Path | None = None) -> dict[str, Dataset]:
    """Load `train` and, if there is one, `validation`."""
    if (arguments.dataset_name is None) == (arguments.train_dir is None):
        raise ValueError("Give either --dataset_name or --train_dir.")
    if arguments.dataset_name is None:
        splits = {"train": load_folder(str(arguments.train_dir), output_dir)}
        if arguments.validation_dir is not None:
            splits["validation"] = load_folder(arguments.validation_dir, output_dir)
            warn_of_shared_images(*(image_names(split, range(len(split))) for split in splits.values()))
        return splits
    splits = load_hub_splits(arguments.dataset_name, arguments.dataset_config_name)
    for name, split in splits.items():
        image = arguments.image_column_name or only_column(split.features, "image", (Image,))
        others = Features({name: feature for name, feature in split.features.items() if name != image})
        label = arguments.label_column_name or only_column(others, "label", (Image,))
        splits[name] = renamed_columns(split, image, label)
    return splits


def load_folder(folder: str, output_dir: Path | None = None) -> Dataset:
    """Load the images in `images/` with the masks of the same names in `annotations/`; images without a mask are left out.

    Raises:
        ValueError: if a folder is missing or empty, or names are ambiguous because several images or masks share one,
            or files written to `output_dir` could replace some of them.
    """
    images, annotations = Path(folder, "images"), Path(folder, "annotations")
    if not images.is_dir() or not annotations.is_dir():
        raise ValueError(f"{folder} must be a folder with the folders images and annotations in it.")
    listings = [list_folder(images, recursive=False), list_folder(annotations, recursive=False)]
    if output_dir is not None:
        check_is_apart(output_dir, listings)
    for file in listings[1].files:
        if not file.lower().endswith(MASK_EXTENSIONS):
            listings[1].leave_out(LOSSY, file)
    image_files = by_stem(images / file for file in listings[0].files)
    masks = by_stem(annotations / file for file in listings[1].files if file.lower().endswith(MASK_EXTENSIONS))
    parts = ((listings[0], WITHOUT_MASK, image_files, masks), (listings[1], WITHOUT_IMAGE, masks, image_files))
    for listing, reason, files_of, others in parts:
        for stem, files in files_of.items():
            if stem not in others:
                listing.leave_out(reason, files[0].name)
    for stem in image_files.keys() & masks.keys():
        for files in (image_files[stem], masks[stem]):
            if len(files) > 1:
                raise ValueError(
                    f"Which image has which mask? {files[0].parent} has {', '.join(file.name for file in files)}: images and "
                    "masks need names that are unique without the extension."
                )
    pairs = [(image_files[stem][0], masks[stem][0]) for stem in image_files if stem in masks]
    if not pairs:
        raise ValueError(
            f"{folder} has no image with a mask of the same name, images/NAME.jpg and annotations/NAME.png, got "
            + "; ".join(f"in {Path(listing.folder).name} {listing.reasons() or 'nothing'}" for listing in listings)
            + "."
        )
    for listing in listings:
        listing.warn()
    # Paths are absolute, so that a comparison of the data of two runs recognizes them as files.
    columns = {name: [str(pair[place].absolute()) for pair in pairs] for place, name in enumerate(("image", "label"))}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Image()}))


def by_stem(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by their name without the extension, sorted by name."""
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        found.setdefault(file.stem, []).append(file)
    return found


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
    """Return the class of each pixel of a mask, `(height, width)`, int64.

    Raises:
        ValueError: if the mask has several channels, or values that are not whole numbers from 0 to 255.
    """
    numbers = np.asarray(mask)
    if numbers.ndim != 2:
        raise ValueError(f"A mask must have one number per pixel, its class, got an image of mode {mask.mode}.")
    if numbers.dtype not in (np.bool_, np.uint8):
        whole = numbers.astype(np.int64)
        if (whole != numbers).any() or whole.min() < 0 or whole.max() > IGNORE_INDEX:
            raise ValueError(
                f"A mask must have whole numbers from 0 to {IGNORE_INDEX}, which means no class, got {numbers.min():g} to "
                f"{numbers.max():g}."
            )
    numbers = numbers.astype(np.int64)
    if do_reduce_labels:
        numbers = np.where((numbers == 0) | (numbers == IGNORE_INDEX), IGNORE_INDEX, numbers - 1)
    return numbers


def checked_pairs(
    splits: dict[str, Dataset],
    do_reduce_labels: bool,
    names: Sequence[str] | None = None,
    exif: ExifOption = "auto",
) -> tuple[dict[str, ImageMaskPairs], set[int]]:
    """Return the usable pairs and the class numbers in their masks; count and name the others.

    Raises:
        ValueError: if a mask has a class number without a name in `names`, or no pair of a split can be used.
    """
    checks = {name: checked_split(undecoded(split), name, do_reduce_labels, exif) for name, split in splits.items()}
    convention = common_convention(decided for check in checks.values() for decided in check["convention"])
    pairs, used = {}, set()
    for name, check in checks.items():
        split, faults = undecoded(splits[name]), list(check["fault"])
        if convention is None:
            faults = [fault or unknown for fault, unknown in zip(faults, check["unknown"])]
        bad = [f"{file_of(split, index)} ({fault})" for index, fault in enumerate(faults) if fault]
        if bad:
            logger.warning(f"{len(bad)} images of {name} are left out: {', '.join(bad)}")
        usable = [index for index, fault in enumerate(faults) if not fault]
        if not usable:
            raise ValueError(f"No pair of image and mask of the split {name} can be used.")
        for index in usable:
            numbers = check[index]["numbers"]
            limit = IGNORE_INDEX if names is None else len(names)
            if max(numbers) >= limit:
                raise ValueError(
                    f"The mask of {file_of(split, index)} has class {max(numbers)}, but the largest is {limit - 1}: "
                    "check the class names and --do_reduce_labels."
                )
            used.update(numbers)
        log_applied_rules(Counter(rule for rules in check["applied"] for rule in rules), f"images of {name}")
        pairs[name] = ImageMaskPairs(split.select(usable), exif, convention)
    return pairs, used


def checked_split(split: Dataset, name: str, do_reduce_labels: bool, exif: ExifOption) -> Dataset:
    """Apply `checked_pair` to each pair. `datasets` caches the result."""
    text, texts = Value("string"), List(Value("string"))
    features = {"fault": text, "unknown": text, "convention": text, "numbers": List(Value("int64")), "applied": texts}
    return split.map(
        lambda pair: checked_pair(pair, do_reduce_labels, exif),
        remove_columns=split.column_names,
        features=Features(features),
        desc=f"Checking the images of {name}",
    )


def checked_pair(pair: dict[str, Any], do_reduce_labels: bool, exif: ExifOption = "auto") -> dict[str, Any]:
    """Check a pair of image and mask.

    Returns:
        A dictionary with the `fault`; the fault if the EXIF convention of the dataset remains unknown, as `unknown`;
        the `convention` that the sizes imply; the class `numbers` in the mask; and the rules that were `applied` to
        the image.
    """
    result: dict[str, Any] = {"fault": "", "unknown": "", "convention": None, "numbers": [], "applied": []}
    applied: Counter[str] = Counter()
    decoded = {}
    for name, column in (("image", "image"), ("mask", "label")):
        try:
            counted = applied if name == "image" else None
            decoded[name] = open_image(image_source(pair[column]), is_upright=False, applied=counted)
            if name == "image":
                convert_image(decoded[name])
        except ReadError:
            raise
        except ImageError as error:
            return result | {"fault": f"{name} cannot be used: {error}"}
        except Exception:
            # Pillow's decoders raise all kinds of errors.
            return result | {"fault": f"{name} cannot be decoded"}
    image, mask = decoded["image"], decoded["mask"]
    if exif == "auto":
        result["convention"] = decided_convention(image, mask.size)
    try:
        matched_pair(image.copy() if orientation(image) != 1 else image, mask, exif)
    except ImageError as error:
        fits = orientation(image) != 1 and str(error) == UNKNOWN_ORIENTATION
        result["unknown" if fits else "fault"] = str(error).replace("annotation of", "mask of")
        if not fits:
            return result
    try:
        numbers = class_numbers(mask, do_reduce_labels)
    except ValueError as error:
        is_color = np.asarray(mask).ndim != 2
        return result | {"fault": f"mask of mode {mask.mode}" if is_color else str(error)}
    counts = np.bincount(numbers.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    if not counts.any():
        return result | {"fault": "no pixel with a class"}
    return result | {"numbers": np.flatnonzero(counts).tolist(), "applied": list(applied)}


def file_of(split: Dataset, index: int) -> str:
    return image_names(split, [index])[0]


def training_transform(recipe: SegmentationRecipe, processor: Any) -> v2.Transform:
    """Create random scales, crops, flips and colors, with the size and the pixel values of the image processor.

    Raises:
        ValueError: if the scales are invalid, or the image processor is unsuitable for training.
    """
    if not 0 < recipe.min_scale <= recipe.max_scale:
        raise ValueError(
            f"--min_scale must be above 0 and not above --max_scale, got {recipe.min_scale} and {recipe.max_scale}."
        )
    if not processor.do_resize:
        raise ValueError(
            "The image processor must have do_resize=True: training and evaluation scale images to its size."
        )
    check_pixels(processor)
    size, longest = processor.size.shortest_edge, processor.size.longest_edge
    shortest = range(round(recipe.min_scale * size), round(recipe.max_scale * size) + 1)
    sizes = [(side, None if longest is None else round(side * longest / size)) for side in shortest]
    steps: list[v2.Transform] = [
        RandomScale(sizes, interpolation_of(processor)),
        RandomClassCrop(size, recipe.max_class_share),
        v2.RandomHorizontalFlip(recipe.horizontal_flip),
    ]
    if recipe.photometric_distortion:
        steps.append(PhotometricDistortion())
    # Padding comes last, so that the model sees it as 0.
    steps += [ProcessorPixels(processor), PadToSquare(size)]
    return v2.Compose([*steps, v2.ToDtype({tv_tensors.Mask: torch.int64, "others": None})])


@dataclass
class Preparation:
    """Prepares a pair for training: `pixel_values` `(3, height, width)`, and `labels` `(height, width)`.

    Args:
        transform: transform of an image and its mask, both tensors.
        do_reduce_labels: whether class numbers in masks start at 1.
        seed: random seed of the transform.
    """

    transform: v2.Transform
    do_reduce_labels: bool
    seed: int = 0

    def __call__(self, pair: dict[str, Any], *place: int) -> dict[str, torch.Tensor]:
        """Prepare a pair, with random numbers that depend only on the seed and `place`."""
        image = v2.functional.to_image(convert_image(pair["image"]))
        mask = tv_tensors.Mask(class_numbers(pair["label"], self.do_reduce_labels).astype(np.uint8))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, *place))
            image, mask = self.transform(image, mask)
        return {"pixel_values": image.as_subclass(torch.Tensor), "labels": mask.as_subclass(torch.Tensor)}
