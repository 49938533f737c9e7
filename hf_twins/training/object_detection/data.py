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
"""Pictures and their objects in COCO's format, each prepared the same whenever it is asked for.

https://cocodataset.org/#format-data: a folder of images, and a JSON file with `images`, `categories` and `annotations`.
What is random about an image depends on the seed, the epoch and its place in the data set alone.
"""

import json
import logging
from collections import defaultdict
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
from tqdm import tqdm

from hf_twins._utils.images import ImageError, open_image
from hf_twins.training.object_detection.arguments import DataArguments, DetectionRecipe
from hf_twins.training.trainer import mixed_seed


logger = logging.getLogger(__name__)
# Images are padded to multiples of it, as the authors do: the stride of the last stage.
SIZE_DIVISOR = 32
NUM_NAMED = 10
# What the lists of a file of annotations cannot do without; of single annotations, `fault_of` says what is wrong.
FIELDS: dict[str, set[str]] = {
    "images": {"id", "file_name", "height", "width"},
    "categories": {"id", "name"},
    "annotations": set(),
}


@dataclass
class CocoImages:
    """A folder of pictures, and what is on them.

    Args:
        folder: of the pictures.
        images: COCO's, with `id`, `file_name`, `height` and `width`.
        names: of the categories, in the order of their ids; an object's label is its place among them.
        annotations: COCO's, by the id of their image; with a `label` each.
    """

    folder: Path
    images: list[dict[str, Any]]
    names: list[str]
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def objects(self, image_id: int) -> list[dict[str, Any]]:
        """Those to be found: a crowd is none."""
        return [each for each in self.annotations.get(image_id, []) if not each.get("iscrowd", 0)]

    def open(self, index: int) -> PIL.Image.Image:
        """The picture in colour, unrotated: annotations are of its pixels as they are stored."""
        return open_image(self.folder / self.images[index]["file_name"], is_upright=False).convert("RGB")

    def select(self, indices: list[int]) -> "CocoImages":
        return replace(self, images=[self.images[index] for index in indices])


def load_splits(arguments: DataArguments, seed: int, needs_masks: bool = False) -> dict[str, CocoImages]:
    """The data set as `train` and `validation`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if the data set lacks what is needed. The message says what.
    """
    for option, given in (
        ("train", (arguments.train_dir, arguments.train_annotations)),
        ("validation", (arguments.validation_dir, arguments.validation_annotations)),
    ):
        if (given[0] is None) != (given[1] is None) or (option == "train" and None in given):
            raise ValueError(f"Give both --{option}_dir and --{option}_annotations.")
    train = load_coco(str(arguments.train_dir), str(arguments.train_annotations), needs_masks)
    if arguments.validation_dir is not None:
        held_out = load_coco(arguments.validation_dir, str(arguments.validation_annotations), needs_masks)
        if held_out.names != train.names:
            raise ValueError(
                f"{arguments.validation_annotations} must have the categories of {arguments.train_annotations}, "
                f"{', '.join(train.names)}, got {', '.join(held_out.names)}."
            )
    else:
        order = np.random.default_rng(seed).permutation(len(train.images)).tolist()
        num_held_out = round(arguments.train_val_split * len(order))
        train, held_out = train.select(sorted(order[num_held_out:])), train.select(sorted(order[:num_held_out]))
    splits = {"train": train, "validation": held_out}
    for name, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            splits[name] = splits[name].select(list(range(min(limit, len(splits[name].images)))))
        splits[name] = without_corrupt_images(splits[name], name, arguments.check_images)
    # As in the authors' toolbox.
    shown = [index for index, image in enumerate(splits["train"].images) if splits["train"].objects(image["id"])]
    if len(shown) < len(splits["train"].images):
        logger.warning(f"{len(splits['train'].images) - len(shown)} images of train show no object and are left out.")
        splits["train"] = splits["train"].select(shown)
    for name, split in splits.items():
        if not split.images:
            raise ValueError(f"No image of the split {name} can be used.")
    return splits


def load_coco(folder: str, file: str, needs_masks: bool = False) -> CocoImages:
    """The images and annotations of a JSON file; those that cannot be used are left out, counted and named."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} must be a folder of images.")
    content = read_annotations(file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories)}
    if not labels:
        raise ValueError(f"{file} must have at least one category, got none.")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        fault = fault_of(annotation, labels, sizes, needs_masks)
        if fault is not None:
            left_out[fault].append(str(annotation.get("id")))
        else:
            annotation = annotation | {"label": labels[annotation["category_id"]]}
            annotations[annotation["image_id"]].append(annotation)
    for fault, ids in left_out.items():
        logger.warning(f"{len(ids)} annotations of {file} are left out, because they have {fault}: {some_of(ids)}")
    names = [str(category["name"]) for category in categories]
    return CocoImages(Path(folder), content["images"], names, dict(annotations))


def read_annotations(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be a JSON file as COCO's: {error}.") from error
    for key, fields in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file} must have a list of {key}, as COCO's files do.")
        for entry in content[key]:
            if not isinstance(entry, dict) or not fields <= entry.keys():
                raise ValueError(f"{file} must have {', '.join(sorted(fields))} for each of its {key}, got {entry}.")
    return content


def fault_of(
    annotation: dict[str, Any], labels: dict[Any, int], sizes: dict[Any, tuple[int, int]], needs_masks: bool
) -> str | None:
    """What an annotation has that it cannot be used with; None if it can."""
    if annotation.get("category_id") not in labels:
        return "an unknown category"
    if annotation.get("image_id") not in sizes:
        return "an unknown image"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        return "no box of four numbers"
    height, width = sizes[annotation["image_id"]]
    left, top, right, bottom = (
        max(box[0], 0),
        max(box[1], 0),
        min(box[0] + box[2], width),
        min(box[1] + box[3], height),
    )
    if not (right > left and bottom > top):
        return "a box of no area within the image"
    if needs_masks and not is_segmentation(annotation.get("segmentation"), [height, width]):
        return "no segmentation of the image's size"
    return None


def is_segmentation(segmentation: Any, size: list[int]) -> bool:
    """Whether it is polygons of three corners and more, or run lengths of that height and width."""
    if isinstance(segmentation, dict):
        return segmentation.get("size") == size and "counts" in segmentation
    return bool(segmentation) and all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation)


def without_corrupt_images(split: CocoImages, name: str, is_decoded: bool) -> CocoImages:
    """The images that are there and, if they are to be decoded, can be; the others are counted and named."""
    usable, corrupt = [], []
    for index, image in enumerate(tqdm(split.images, desc=f"Checking the images of {name}", disable=not is_decoded)):
        if is_readable(split.folder / image["file_name"], (image["width"], image["height"]), is_decoded):
            usable.append(index)
        else:
            corrupt.append(image["file_name"])
    if corrupt:
        logger.warning(
            f"{len(corrupt)} images of {name} are not there, cannot be decoded or have another size than they are said to, "
            f"and are left out: {some_of(corrupt)}"
        )
    return split.select(usable)


def is_readable(path: Path, size: tuple[int, int], is_decoded: bool) -> bool:
    if not is_decoded:
        return path.is_file()
    try:
        return open_image(path, is_upright=False).size == size
    except ImageError as error:
        logger.warning(str(error))
        return False
    except Exception:
        # Pillow's decoders raise all kinds of errors.
        return False


def some_of(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def binary_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's polygons or run lengths as `(height, width)`, 1 on the object."""
    return coco_mask.decode(run_lengths(segmentation, height, width))


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """COCO's polygons or run lengths as compressed run lengths."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


class DetectionImages(torch.utils.data.Dataset):
    """A data set of images and objects, prepared when they are asked for, by their place, or by epoch and place.

    An example has what transformers' detectors take: `pixel_values` `(3, height, width)`, and `labels` with the
    `class_labels` `(num_objects,)` and `boxes` `(num_objects, 4)`, center and size relative to the image; also, if asked
    for, the `masks` `(num_objects, height, width)`. `image_id` is the place in the data set, and `orig_size`
    `(2,)` height and width of the picture.

    Args:
        split: of the data set.
        transform: of an image and its objects.
        needs_masks: whether masks are to be read.
        seed: of the transform.
    """

    def __init__(self, split: CocoImages, transform: v2.Transform, needs_masks: bool = False, seed: int = 0):
        self.split, self.transform, self.needs_masks, self.seed = split, transform, needs_masks, seed

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture = self.split.open(index)
        objects = self.split.objects(self.split.images[index]["id"])
        target = self.target(objects, picture.height, picture.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, epoch, index))
            image, target = self.transform(picture, target)
        height, width = image.shape[-2:]
        boxes = box_convert(target["boxes"].as_subclass(torch.Tensor), "xyxy", "cxcywh")
        labels = {
            "class_labels": target["labels"],
            "boxes": boxes / torch.tensor([width, height, width, height]),
            "image_id": torch.tensor(index),
            "orig_size": torch.tensor([picture.height, picture.width]),
        }
        if self.needs_masks:
            labels["masks"] = target["masks"].as_subclass(torch.Tensor)
        return {"pixel_values": image.as_subclass(torch.Tensor), "labels": labels}

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
    """A crop whose height and width are random each, at most those of the image, as DETR and the authors' 3x train with.

    Args:
        min_size, max_size: of its sides in pixels.
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
    """Random mirroring and scale, to the normalization of the image processor."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(recipe.horizontal_flip),
            random_scale(recipe, processor) if recipe.multi_scale else fixed_scale(processor),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
            *normalization(processor),
        ]
    )


def evaluation_transform(processor: Any) -> v2.Transform:
    return v2.Compose([v2.ToImage(), fixed_scale(processor), *normalization(processor)])


def fixed_scale(processor: Any) -> v2.Transform:
    size = processor.size
    if size.height is not None:
        return v2.Resize((size.height, size.width))
    # Of one size: nothing about it is random.
    return v2.RandomShortestSize(size.shortest_edge, max_size=size.longest_edge)


def random_scale(recipe: DetectionRecipe, processor: Any) -> v2.Transform:
    """The authors' 3x, from DETR's: any of eleven scales, for every other image of a crop.

    Sizes are theirs, for a shorter side of 800 pixels, relative to that.
    """

    def scaled(*sizes: int) -> list[int]:
        return [round(size * recipe.shortest_edge / 800) for size in sizes]

    if processor.size.height is not None:
        crop = v2.Compose([RandomSizedCrop(*scaled(384, 600)), fixed_scale(processor)])
        return v2.RandomChoice([fixed_scale(processor), crop])
    scales = v2.RandomShortestSize(scaled(*range(480, 801, 32)), recipe.longest_edge)
    crop = v2.Compose(
        [v2.RandomShortestSize(scaled(400, 500, 600)), RandomSizedCrop(*scaled(384, 600)), scales],
    )
    return v2.RandomChoice([scales, crop])


def normalization(processor: Any) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Images padded at the right and bottom to one size, with their `pixel_mask`."""
    images = [example["pixel_values"] for example in examples]
    height, width = (-(-max(image.shape[side] for image in images) // SIZE_DIVISOR) * SIZE_DIVISOR for side in (1, 2))
    pixel_values = torch.zeros(len(images), 3, height, width)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for canvas, mask, image in zip(pixel_values, pixel_mask, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
        mask[: image.shape[1], : image.shape[2]] = 1
    batch: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
    if "labels" in examples[0]:
        batch["labels"] = [example["labels"] for example in examples]
    return batch
