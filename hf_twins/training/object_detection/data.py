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
"""Images and their objects in COCO's format, read and augmented.

https://cocodataset.org/#format-data: a folder of images, and a JSON file with `images`, `categories` and
`annotations`. Random augmentation depends only on the seed, the epoch and the index of the image.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2

from hf_twins._utils.files import ReadError
from hf_twins._utils.fingerprints import files_fingerprint
from hf_twins._utils.images import (
    ImageError,
    check_is_file,
    convert_image,
    decoding_fault,
    image_errors,
    log_applied_rules,
    open_image,
)
from hf_twins._utils.progress import progress_bar
from hf_twins.training.data import ProcessorPixels, RandomScale, interpolation_of, warn_of_shared_images
from hf_twins.training.object_detection.annotations import find_fault, first_names, read_annotations
from hf_twins.training.object_detection.arguments import DataArguments, DetectionRecipe
from hf_twins.training.orientation import (
    UNKNOWN_ORIENTATION,
    ExifOption,
    common_convention,
    decided_convention,
    turn_as_annotated,
)
from hf_twins.training.trainer import mixed_seed


logger = logging.getLogger(__name__)


@dataclass
class CocoImages:
    """A folder of images and their objects.

    Args:
        folder: folder of the images.
        images: entries in COCO's format, with `id`, `file_name`, `height` and `width`.
        names: names of the categories, in the order of their ids; an object's label is an index into them.
        annotations: maps image ids to entries in COCO's format, each with a `label`, `area` and `iscrowd`.
        exif, convention: see [`~hf_twins.training.orientation.turn_as_annotated`].
    """

    folder: Path
    images: list[dict[str, Any]]
    names: list[str]
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    exif: ExifOption = "auto"
    convention: str | None = None

    def objects(self, image_id: int) -> list[dict[str, Any]]:
        """The annotations of an image's single objects, without crowds."""
        return [each for each in self.annotations.get(image_id, []) if not each["iscrowd"]]

    def open(self, index: int) -> PIL.Image.Image:
        """Read an image of the dataset in RGB, turned to match its annotations.

        Raises:
            ImageError: if its size does not match the annotation, or the EXIF convention of the annotation is unknown.
        """
        image = self.images[index]
        path, size = self.folder / image["file_name"], (image["width"], image["height"])
        with image_errors(str(path)):
            stored = open_image(path, is_upright=False)
            return convert_image(turn_as_annotated(stored, size, self.exif, self.convention))

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """A fingerprint of the images and their objects, which does not depend on where the folder is.

        Raises:
            OSError: if an image cannot be read.
        """
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for image in self.images:
            digest.update(json.dumps([image, self.annotations.get(image["id"], [])], sort_keys=True).encode())
        names = [image["file_name"] for image in self.images]
        digest.update(files_fingerprint(self.folder, names).encode())
        return digest.hexdigest()

    def select(self, indices: list[int]) -> "CocoImages":
        return replace(self, images=[self.images[index] for index in indices])


def load_splits(arguments: DataArguments, seed: int, needs_masks: bool = False) -> dict[str, CocoImages]:
    """Load the dataset as `train` and `validation`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if files are missing or cannot be used; the message says which and why.
    """
    for option, given in (
        ("train", (arguments.train_dir, arguments.train_annotations)),
        ("validation", (arguments.validation_dir, arguments.validation_annotations)),
    ):
        if (given[0] is None) != (given[1] is None) or (option == "train" and None in given):
            raise ValueError(f"Give both --{option}_dir and --{option}_annotations.")
    train = load_coco(str(arguments.train_dir), str(arguments.train_annotations), needs_masks, arguments.exif)
    if arguments.validation_dir is not None:
        held_out = load_coco(
            arguments.validation_dir, str(arguments.validation_annotations), needs_masks, arguments.exif
        )
        if held_out.names != train.names:
            raise ValueError(
                f"{arguments.validation_annotations} must have the categories of {arguments.train_annotations}, "
                f"{', '.join(train.names)}, got {', '.join(held_out.names)}."
            )
        warn_of_shared_images(
            *([each.folder / image["file_name"] for image in each.images] for each in (train, held_out))
        )
    else:
        order = np.random.default_rng(seed).permutation(len(train.images)).tolist()
        num_held_out = round(arguments.train_val_split * len(order))
        train, held_out = train.select(sorted(order[num_held_out:])), train.select(sorted(order[:num_held_out]))
    splits = {"train": train, "validation": held_out}
    for name, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            splits[name] = splits[name].select(list(range(min(limit, len(splits[name].images)))))
    splits = without_corrupt_images(splits, arguments.check_images)
    # Images without objects are left out of training, as in the authors' toolbox.
    shown = [index for index, image in enumerate(splits["train"].images) if splits["train"].objects(image["id"])]
    if len(shown) < len(splits["train"].images):
        logger.warning(f"{len(splits['train'].images) - len(shown)} images of train show no object and are left out.")
        splits["train"] = splits["train"].select(shown)
    for name, split in splits.items():
        if not split.images:
            raise ValueError(f"No image of the split {name} can be used.")
    return splits


def load_coco(folder: str, file: str, needs_masks: bool = False, exif: ExifOption = "auto") -> CocoImages:
    """Load the images and annotations of a JSON file. Unusable annotations are left out, counted and named."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} must be a folder of images.")
    content = read_annotations(file, folder)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        fault = find_fault(annotation, labels, sizes, needs_masks)
        if fault is not None:
            left_out[fault].append(str(annotation.get("id")))
        else:
            annotations[annotation["image_id"]].append(
                annotation
                | {
                    "label": labels[annotation["category_id"]],
                    "iscrowd": int(annotation.get("iscrowd") or 0),
                    "area": box_area(annotation) if annotation.get("area") is None else annotation["area"],
                }
            )
    for fault, ids in left_out.items():
        logger.warning(f"{len(ids)} annotations of {file} are left out, because they have {fault}: {first_names(ids)}")
    names = [str(category["name"]) for category in categories]
    return CocoImages(Path(folder), content["images"], names, dict(annotations), exif)


def box_area(annotation: dict[str, Any]) -> float:
    return annotation["bbox"][2] * annotation["bbox"][3]


def without_corrupt_images(splits: dict[str, CocoImages], is_decoded: bool) -> dict[str, CocoImages]:
    """Leave out images that are missing or, if `is_decoded`, corrupt or not of the annotated size; count and name them."""
    applied: dict[str, Counter[str]] = {name: Counter() for name in splits}
    checks = {
        name: [
            check_image(split, image, is_decoded, applied[name])
            for image in progress_bar(split.images, desc=f"Checking the images of {name}", disable=not is_decoded)
        ]
        for name, split in splits.items()
    }
    convention = common_convention(decided for check in checks.values() for _, decided in check)
    results = {}
    for name, split in splits.items():
        faults = [
            "" if fault == UNKNOWN_ORIENTATION and convention is not None else fault for fault, _ in checks[name]
        ]
        bad = [f"{image['file_name']} ({fault})" for image, fault in zip(split.images, faults) if fault]
        if bad:
            logger.warning(f"{len(bad)} images of {name} are left out: {first_names(bad)}")
        log_applied_rules(applied[name], f"images of {name}")
        usable = split.select([index for index, fault in enumerate(faults) if not fault])
        results[name] = replace(usable, convention=convention)
    return results


def check_image(
    split: CocoImages, image: dict[str, Any], is_decoded: bool, applied: Counter[str]
) -> tuple[str, str | None]:
    """Return the fault of an image, or "", and the EXIF convention that its size implies."""
    path, size = split.folder / image["file_name"], (image["width"], image["height"])
    if not path.exists():
        return "not there", None
    decided = None
    try:
        check_is_file(path)
        if is_decoded:
            stored = open_image(path, is_upright=False, applied=applied)
            decided = decided_convention(stored, size) if split.exif == "auto" else None
            convert_image(turn_as_annotated(stored, size, split.exif))
        return "", decided
    except ReadError:
        raise
    except ImageError as error:
        return str(error).rstrip("."), decided
    # Pillow's decoders raise all kinds of errors.
    except Exception as error:
        return decoding_fault(error), None


def binary_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode COCO's polygons or run lengths to a mask `(height, width)`, 1 on the object."""
    return coco_mask.decode(run_lengths(segmentation, height, width))


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's polygons or run lengths as compressed run lengths."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


class EvaluationImages(torch.utils.data.Dataset):
    """The images of a dataset, prepared by the image processor as in inference.

    An example has the `pixel_values` `(3, height, width)`, and `labels` with the `image_id`, the index of the image in
    the dataset, and its `orig_size` `(2,)`, the height and width in the file.

    Args:
        split: images of the dataset.
        processor: image processor of the detector.
    """

    def __init__(self, split: CocoImages, processor: Any):
        self.split, self.processor = split, processor

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.split.open(index)
        inputs = self.processor(image, do_pad=False, return_tensors="pt")
        labels = {"image_id": torch.tensor(index), "orig_size": torch.tensor([image.height, image.width])}
        return {"pixel_values": inputs["pixel_values"][0], "labels": labels}


class TrainingImages(torch.utils.data.Dataset):
    """Augmented images and objects of a dataset. The key is an epoch and an index in the dataset.

    An example has the `pixel_values` `(3, height, width)`, and `labels` with the `class_labels` `(num_objects,)` and
    `boxes` `(num_objects, 4)`, left, top, right and bottom in pixels of `pixel_values`; with `needs_masks`, also the
    `masks` `(num_objects, height, width)`.

    Args:
        split: images and objects of the dataset.
        transform: transform of an image and its objects.
        needs_masks: whether to read masks.
        seed: random seed of the transform.
    """

    def __init__(self, split: CocoImages, transform: v2.Transform, needs_masks: bool = False, seed: int = 0):
        self.split, self.transform, self.needs_masks, self.seed = split, transform, needs_masks, seed

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        image = self.split.open(index)
        target = self.target(self.split.objects(self.split.images[index]["id"]), image.height, image.width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
            pixel_values, target = self.transform(image, target)
        labels = {"class_labels": target["labels"], "boxes": target["boxes"].as_subclass(torch.Tensor)}
        if self.needs_masks:
            labels["masks"] = target["masks"].as_subclass(torch.Tensor)
        return {"pixel_values": pixel_values.as_subclass(torch.Tensor), "labels": labels}

    def target(self, objects: list[dict[str, Any]], height: int, width: int) -> dict[str, Any]:
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                box_convert(boxes, "xywh", "xyxy"), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.tensor([each["label"] for each in objects], dtype=torch.long),
        }
        if self.needs_masks:
            masks = [binary_mask(each["segmentation"], height, width) for each in objects]
            target["masks"] = tv_tensors.Mask(np.stack(masks) if masks else np.zeros((0, height, width), np.uint8))
        return target


class RandomSizedCrop(v2.Transform):
    """A random crop whose height and width are drawn independently, as in DETR's training and the authors' 3x schedule.

    Args:
        min_size: least height and width in pixels.
        max_size: largest height and width in pixels.
    """

    def __init__(self, min_size: int, max_size: int):
        super().__init__()
        self.min_size, self.max_size = min_size, max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        image_size = v2.query_size(flat_inputs)
        height, width = (self.random(min(self.min_size, side), min(self.max_size, side)) for side in image_size)
        top, left = self.random(0, image_size[0] - height), self.random(0, image_size[1] - width)
        return {"top": top, "left": left, "height": height, "width": width}

    @staticmethod
    def random(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, ()))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.crop, inpt, **params)


def training_transform(recipe: DetectionRecipe, processor: Any) -> v2.Transform:
    """Create random flips and scales, with the size and the pixel values of the image processor.

    The processor itself cannot be used, because it accepts COCO's annotations, but not cropped boxes and masks.
    """
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(recipe.horizontal_flip),
            random_scale(recipe, processor) if recipe.multi_scale else fixed_scale(processor),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
            ProcessorPixels(processor),
        ]
    )


def fixed_scale(processor: Any) -> v2.Transform:
    size = processor.size
    if size.height is not None:
        return v2.Resize((size.height, size.width), interpolation_of(processor))
    # With a single size, nothing is random.
    return RandomScale([(size.shortest_edge, size.longest_edge)], interpolation_of(processor))


def random_scale(recipe: DetectionRecipe, processor: Any) -> v2.Transform:
    """Create the random scales of DETR and the authors' 3x schedule: one of eleven, after a crop for half of the images.

    The authors' sizes are for a shorter side of 800 pixels. They are scaled to the recipe's shorter side.
    """

    def scaled(*sizes: int) -> list[int]:
        return [round(size * recipe.shortest_edge / 800) for size in sizes]

    if processor.size.height is not None:
        crop = v2.Compose([RandomSizedCrop(*scaled(384, 600)), fixed_scale(processor)])
        return v2.RandomChoice([fixed_scale(processor), crop])

    def random_size(sizes: Iterable[int]) -> v2.Transform:
        return RandomScale([(side, recipe.longest_edge) for side in scaled(*sizes)], interpolation_of(processor))

    scales = random_size(range(480, 801, 32))
    crop = v2.Compose([random_size((400, 500, 600)), RandomSizedCrop(*scaled(384, 600)), scales])
    return v2.RandomChoice([scales, crop])


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad images at the right and the bottom to one size, and add their `pixel_mask`."""
    images = [example["pixel_values"] for example in examples]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    pixel_values = torch.zeros(len(images), 3, height, width)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for canvas, mask, image in zip(pixel_values, pixel_mask, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
        mask[: image.shape[1], : image.shape[2]] = 1
    labels = [example["labels"] for example in examples]
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": labels}


def collate_for_detr(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Same as `collate`, with the boxes for transformers detectors: center and size, relative to the image.

    DETR's image processor makes boxes relative to the padded batch instead, although predicted boxes are scaled to the
    size of the image.
    """
    relative = []
    for example in examples:
        labels, (height, width) = example["labels"], example["pixel_values"].shape[1:]
        if "boxes" in labels:
            boxes = box_convert(labels["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
            labels = labels | {"boxes": boxes}
        relative.append(example | {"labels": labels})
    return collate(relative)
