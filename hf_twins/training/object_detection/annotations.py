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
"""Files in COCO's format, checked before training for errors that would break pycocotools and COCO's evaluation.

https://cocodataset.org/#format-data. Faults of the entire file raise an error. Single annotations that cannot be used
are left out, as [`find_fault`] decides.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image


logger = logging.getLogger(__name__)
NUM_NAMED = 10
# Required fields of the entries in each list of an annotation file. `find_fault` checks single annotations further.
FIELDS: dict[str, set[str]] = {
    "images": {"id", "file_name", "height", "width"},
    "categories": {"id", "name"},
    "annotations": set(),
}
# Larger than any coordinate in an image that can be read.
MAX_NUMBER = 2**31


def first_names(names: Sequence[object]) -> str:
    """The first names of a list, quoted for a message."""
    return ", ".join(map(str, names[:NUM_NAMED])) + (", ..." if len(names) > NUM_NAMED else "")


def read_annotations(file: str, folder: str) -> dict[str, Any]:
    """Read an annotation file, and check that its images have integer sizes and names of files in the folder.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file cannot be used; the message says why.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be a JSON file in COCO's format: {error}.") from error
    for key, fields in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file} must have a list of {key}, as COCO's files do.")
        for entry in content[key]:
            if not isinstance(entry, dict):
                raise ValueError(f"{file} must have a JSON object for each of its {key}, got {json.dumps(entry)}.")
            if not fields <= entry.keys():
                raise ValueError(f"{file} must have {', '.join(sorted(fields))} for each of its {key}, got {entry}.")
    check_categories(file, content["categories"])
    content["images"] = checked_images(file, folder, content["images"])
    ids = (annotation.get("id") for annotation in content["annotations"])
    check_unique(file, "annotations of the same id", filter(is_key, ids))
    check_boxes(file, content)
    return content


def check_categories(file: str, categories: list[dict[str, Any]]) -> None:
    if not categories:
        raise ValueError(f"{file} must have at least one category, got none.")
    for category in categories:
        if type(category["id"]) is not int or not isinstance(category["name"], str | int) or category["name"] == "":
            raise ValueError(f"{file} must have a whole number as id and a name for each category, got {category}.")
    for key in ("id", "name"):
        check_unique(file, f"categories of the same {key}", [str(category[key]) for category in categories])


def checked_images(file: str, folder: str, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check the entries of the images, and return them with integer sizes and file names that can be opened."""
    outside, checked = [], []
    real_folders: dict[Path, Path] = {}
    for image in images:
        sides = [image["width"], image["height"]]
        if not all(is_number(side) and side >= 1 and side == int(side) for side in sides) or (
            sides[0] * sides[1] > 2 * (PIL.Image.MAX_IMAGE_PIXELS or MAX_NUMBER)
        ):
            raise ValueError(f"{file} must give each image's width and height in pixels, got {image}.")
        if not is_key(image["id"]) or not isinstance(image["file_name"], str) or not image["file_name"]:
            raise ValueError(f"{file} must have a number as id and a file_name for each image, got {image}.")
        name = portable_name(folder, image["file_name"])
        if not is_inside(name, Path(folder), real_folders):
            outside.append(image["file_name"])
        checked.append(image | {"width": int(sides[0]), "height": int(sides[1]), "file_name": name})
    if outside:
        raise ValueError(
            f"{file} names {len(outside)} files outside {folder}, of which none is read: {first_names(outside)}. Copy the "
            "images into the folder, and write their names relative to it."
        )
    check_unique(file, "images of the same id", [image["id"] for image in checked])
    check_unique(file, "images of the same file_name", [str(PurePosixPath(image["file_name"])) for image in checked])
    return checked


def check_unique(file: str, what: str, keys: Iterable[Any]) -> None:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{file} must not have several {what}, got {first_names(repeated)}: renumber them or remove duplicates."
        )


def portable_name(folder: str, name: str) -> str:
    """Replace the backslashes of a name that was written on Windows by slashes."""
    return name.replace("\\", "/") if "\\" in name and not Path(folder, name).exists() else name


def is_inside(name: str, folder: Path, real_folders: dict[Path, Path]) -> bool:
    """Whether a file is in the folder, with `..` and links in its path resolved.

    Args:
        name: name of the file, relative to the folder or absolute.
        folder: the folder.
        real_folders: cache of folders with their links resolved, since there may be a hundred thousand images.
    """
    if "\0" in name or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return False
    path = folder / name
    for parent in (folder, path.parent):
        if parent not in real_folders:
            real_folders[parent] = parent.resolve()
    real = path.resolve() if path.is_symlink() else real_folders[path.parent]
    return real.is_relative_to(real_folders[folder])


def check_boxes(file: str, content: dict[str, Any]) -> None:
    """Refuse boxes that are probably not left, top, width and height in pixels, and warn of boxes beyond their image."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    rows = [
        (*annotation["bbox"], *sizes[annotation["image_id"]])
        for annotation in content["annotations"]
        if is_key(annotation.get("image_id")) and annotation["image_id"] in sizes and is_box(annotation.get("bbox"))
    ]
    if not rows:
        return
    left, top, width, height, *image_size = np.array(rows, dtype=np.float64).T
    image_width, image_height = image_size
    # Boxes without area are left out later.
    are_relative = (
        (np.maximum.reduce([left, top, width, height]) <= 1) & (width > 0) & (height > 0) & (image_width > 2)
    )
    if are_relative.any():
        relative = first_names(rows[int(np.flatnonzero(are_relative)[0])][:4])
        if 2 * are_relative.sum() > len(rows):
            raise ValueError(
                f"{file} must have boxes in pixels, got {relative}, as if relative to the image: multiply them by its width and "
                "height."
            )
        logger.warning(
            f"{are_relative.sum()} of {len(rows)} boxes of {file} are in the first pixel of their image, such as {relative}: are "
            "they relative to the image?"
        )
    # Rounded boxes may reach one pixel beyond the image.
    is_beyond = (left + width > image_width + 1) | (top + height > image_height + 1) | (left < -1) | (top < -1)
    are_corners = (width > left) & (height > top) & (width <= image_width + 1) & (height <= image_height + 1)
    if is_beyond.any() and are_corners.all() and (left >= 0).all() and (top >= 0).all():
        example = rows[int(np.flatnonzero(is_beyond)[0])][:4]
        raise ValueError(
            f"{file} must have boxes as left, top, width and height, got {first_names(example)}, as if left, top, right and "
            "bottom: subtract the first two numbers from the others, or, if this is not so, cut the boxes at their images."
        )
    if is_beyond.any():
        logger.warning(
            f"{is_beyond.sum()} of {len(rows)} boxes of {file} reach beyond their image: are they left, top, width and height "
            "in pixels?"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a number that is neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def is_key(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def find_fault(
    annotation: dict[str, Any], labels: dict[Any, int], sizes: dict[Any, tuple[int, int]], needs_masks: bool
) -> str | None:
    """Say why an annotation cannot be used; None if it can.

    Args:
        annotation: entry in COCO's format.
        labels: maps category ids to labels.
        sizes: maps image ids to height and width.
        needs_masks: whether the segmentation is used.
    """
    if not is_key(annotation.get("category_id")) or annotation["category_id"] not in labels:
        return "an unknown category"
    if not is_key(annotation.get("image_id")) or annotation["image_id"] not in sizes:
        return "an unknown image"
    box: Any = annotation.get("bbox")
    if not is_box(box):
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
    area = annotation.get("area")
    if area is not None and not (is_number(area) and area >= 0):
        return "an area that is no number"
    if annotation.get("iscrowd") not in (None, 0, 1):
        return "an iscrowd that is neither 0 nor 1"
    return segmentation_fault(annotation.get("segmentation"), height, width) if needs_masks else None


def segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    """Say why pycocotools cannot convert polygons or run lengths to a mask of this size; None if it can."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return "run lengths of another size than the image's"
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = decompressed_counts(counts)
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            return "run lengths that are no whole numbers"
        if sum(counts) != height * width:
            return "run lengths of fewer or more pixels than the image's"
        return None if any(counts[1::2]) else "run lengths without a pixel of the object"
    if not isinstance(segmentation, list) or not segmentation:
        return "no segmentation"
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return "a segmentation that is no list of polygons, each a list of numbers"
        if len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
            return "polygons that are not x and y of at least three corners"
        # pycocotools allocates memory for every pixel along the sides of polygons, also outside the image.
        for side, coordinates in ((width, polygon[::2]), (height, polygon[1::2])):
            if min(coordinates) < -side or max(coordinates) > 2 * side:
                return "polygons far outside the image"
    return None if any(map(polygon_area, segmentation)) else "polygons of no area"


def polygon_area(polygon: Sequence[float]) -> float:
    """The signed area of a polygon in pixels, by the shoelace formula; the sign depends on the order of the corners."""
    corners = list(zip(polygon[::2], polygon[1::2]))
    following = [*corners[1:], corners[0]]
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(corners, following)) / 2


def decompressed_counts(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths, as `rleFrString` of pycocotools does; None if the text is invalid.

    Each number is encoded in groups of five bits, lowest bits first, as characters counted from "0". From the fourth
    number on, it is the difference from the number two places before.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts if shift == 0 else None
