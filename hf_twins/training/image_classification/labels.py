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
"""Converts the labels of all splits to the same `ClassLabel` with names, and leaves out rows without a label."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from hf_twins._utils.image_folders import label_name, listed
from hf_twins._utils.labels import read_label_names
from hf_twins.training.data import image_names


logger = logging.getLogger(__name__)
# The number by which `datasets` marks a missing label.
NO_LABEL = -1


@dataclass
class Labels:
    """The labels of a split.

    Attributes:
        names: the names of the labels.
        numbers: for each row, the index of its label in `names`, or `NO_LABEL`; `(num_rows,)`.
    """

    names: list[str]
    numbers: np.ndarray


def with_label_names(
    splits: Mapping[str, Any], class_names_file: str | None = None, allow_unused: bool = False
) -> dict[str, Any]:
    """Convert the labels of all splits to one `ClassLabel`, and leave out rows without an image or label.

    A stream keeps such rows.

    Args:
        splits: the splits, with the columns `image` and `label`; the first one is the training split.
        class_names_file: file of label names. The labels are matched to them by name or, if the labels are numbers, by
            their number.
        allow_unused: whether the file may have names that no label of the dataset has.

    Raises:
        ValueError: if the labels are neither names nor numbers, their names do not match, or a split has no labels.
    """
    for split in splits.values():
        check_label_type(split.features["label"])
    labels = {name: read_labels(split) for name, split in splits.items() if not isinstance(split, IterableDataset)}
    labels = with_signs(labels, splits)
    known = {name: each.names for name, each in labels.items()}
    for name, split in splits.items():
        if name not in labels and isinstance(split.features["label"], ClassLabel):
            known[name] = [label_name(label) for label in split.features["label"].names]
    names = choose_names(splits, known, class_names_file, allow_unused)
    # All splits are matched at once: names in one split and numbers in another must be refused, too.
    all_known = list(dict.fromkeys(label for each in known.values() for label in each))
    places = match_names(all_known, names, class_names_file, " and ".join(known))
    if any(names[place] != label for label, place in zip(all_known, places)):
        matched = [f"{label} = {names[place]}" for label, place in zip(all_known, places)]
        logger.warning(f"The labels are numbers of lines of {class_names_file}, from 0: {listed(matched)}.")
    result = {}
    for name, split in splits.items():
        target = None if name not in known else match_names(known[name], names, class_names_file, name)
        if name in labels:
            result[name] = with_numbers(split, labels[name], names, target, name)
        else:
            result[name] = stream_with_numbers(split, names, target, class_names_file)
    return result


def check_label_type(feature: Any) -> None:
    dtype = getattr(feature, "dtype", None)
    if not isinstance(feature, ClassLabel | Value) or not (
        dtype in ("string", "large_string", "bool", "null") or str(dtype).startswith(("int", "uint", "float"))
    ):
        raise ValueError(
            f"The column of the labels must have texts or numbers, one for each image, got {feature}: give another "
            "--label_column_name."
        )


def read_labels(split: Dataset) -> Labels:
    """Read the labels of all rows. Null, empty text, and negative numbers of a `ClassLabel` are missing labels."""
    feature = split.features["label"]
    column = pa.chunked_array(
        [batch.column("label") for batch in split.select_columns(["label"]).with_format("arrow").iter(10_000)],
        type=split.select_columns(["label"]).features.arrow_schema.field("label").type,
    )
    if isinstance(feature, ClassLabel):
        numbers = pa.compute.fill_null(column, NO_LABEL).to_numpy()
        return Labels([label_name(name) for name in feature.names], np.where(numbers < 0, NO_LABEL, numbers))
    values = [text_of(value) for value in column.to_pylist()]
    found = {value for value in values if value is not None}
    is_number = str(feature.dtype).startswith(("int", "uint", "float"))
    names = sorted(found, key=int) if is_number else sorted(found)
    places = {name: place for place, name in enumerate(names)}
    return Labels(names, np.array([NO_LABEL if value is None else places[value] for value in values], dtype=np.int64))


def text_of(value: Any) -> str | None:
    """Convert a label to text. A float may be a whole number, because columns with missing values are read as floats."""
    if isinstance(value, float):
        if np.isnan(value):
            return None
        if not value.is_integer():
            raise ValueError(f"Labels must be texts or whole numbers, got {value}: give another --label_column_name.")
        value = int(value)
    text = None if value is None else label_name(str(value).strip())
    return text or None


def with_signs(labels: dict[str, Labels], splits: Mapping[str, Any]) -> dict[str, Labels]:
    """Treat -1 as a missing label, unless the labels are -1 and 1."""
    numbered = [name for name in labels if not isinstance(splits[name].features["label"], ClassLabel)]
    if {label for name in numbered for label in labels[name].names} == {"-1", "1"}:
        return labels
    for name in numbered:
        if "-1" in labels[name].names and splits[name].features["label"].dtype not in ("string", "large_string"):
            place = labels[name].names.index("-1")
            # Names are sorted, so that -1 is the first.
            numbers = labels[name].numbers
            labels[name] = Labels(
                [label for label in labels[name].names if label != "-1"],
                np.where(numbers == place, NO_LABEL, numbers - (numbers > place)),
            )
    return labels


def choose_names(
    splits: Mapping[str, Any], known: Mapping[str, list[str]], class_names_file: str | None, allow_unused: bool
) -> list[str]:
    """The names in the file or, without one, those of the first split, which must include those of all other splits."""
    first, *others = splits
    if class_names_file is None:
        if set(known) != set(splits):
            raise ValueError("The labels of a stream must be known before it is read: give --class_names_file.")
        for other in others:
            unknown = sorted(set(known[other]) - set(known[first]))
            if unknown:
                raise ValueError(f"Evaluation images have labels that training images lack: {listed(unknown)}.")
        return known[first]
    names = read_label_names(class_names_file)
    if not allow_unused and set(known) == set(splits):
        used = {names[place] for name in known for place in match_names(known[name], names, class_names_file, name)}
        unused = [name for name in names if name not in used]
        # Only folders and a `ClassLabel` declare how many labels there are.
        is_declared = all(isinstance(split.features["label"], ClassLabel) for split in splits.values())
        if unused and is_declared:
            raise ValueError(
                f"{class_names_file} must have the names of the dataset's labels, got {len(names)} for {len(used)}: no image "
                f"has {listed(unused)}."
            )
        if unused:
            logger.warning(f"No image has the label {listed(unused)} of {class_names_file}.")
    return names


def match_names(labels: Sequence[str], names: Sequence[str], class_names_file: str | None, split: str) -> list[int]:
    """The index of each label in `names`: that of its name or, if all labels are numbers and none is a name, its number.

    Raises:
        ValueError: if a label is neither, or some labels are names and others numbers.
    """
    places = {name: place for place, name in enumerate(names)}
    unknown = [label for label in labels if label not in places]
    if not unknown:
        return [places[label] for label in labels]
    are_numbers = all(label.isascii() and label.isdecimal() for label in labels)
    if are_numbers and len(unknown) == len(labels) and len({*map(int, labels)}) == len(labels):
        too_large = [label for label in labels if int(label) >= len(names)]
        if not too_large:
            return [int(label) for label in labels]
        raise ValueError(
            f"{class_names_file} must have a name for every label, counted from 0, got {len(names)} names, and in {split} the "
            f"labels {listed(too_large)}."
        )
    raise ValueError(
        f"{class_names_file} must have the names of the labels or, where these are numbers, a name for each number, got no "
        f"name for {listed(unknown)} of {split}."
    )


def with_numbers(split: Dataset, labels: Labels, names: list[str], target: Any, title: str) -> Dataset:
    """Keep the rows with an image and a label, and number the labels by `target`, which maps the split's names to `names`."""
    has_label = labels.numbers != NO_LABEL
    if not has_label.any():
        raise ValueError(f"No image of {title} has a label: give another --label_column_name, or another split.")
    has_image = ~missing_images(split)
    for is_there, kind in ((has_label, "label"), (has_image, "image")):
        gaps = np.flatnonzero(~is_there).tolist()
        if gaps:
            names_of_gaps = listed(image_names(split, gaps))
            logger.warning(f"{len(gaps)} images of {title} have no {kind} and are left out: {names_of_gaps}.")
    if not (has_label & has_image).any():
        raise ValueError(f"No image of {title} can be used.")
    feature = split.features["label"]
    if not isinstance(feature, ClassLabel) or feature.names != names:
        numbers = np.where(has_label, np.array([*target, NO_LABEL])[labels.numbers], NO_LABEL)
        split = split.remove_columns("label").add_column("label", numbers, feature=ClassLabel(names=names))
    if has_label.all() and has_image.all():
        return split
    return split.select(np.flatnonzero(has_label & has_image))


def missing_images(split: Dataset) -> np.ndarray:
    """Which rows have no image, `(num_rows,)`, bool; found without reading any image."""
    missing = []
    for batch in split.select_columns(["image"]).with_format("arrow").iter(1000):
        column = batch.column("image").combine_chunks()
        is_missing = column.is_null()
        if pa.types.is_struct(column.type):
            # `datasets` stores images as structs. The fields of a missing struct count as missing, too.
            fields = [pa.compute.struct_field(column, name).is_null() for name in ("bytes", "path")]
            is_missing = pa.compute.and_(*fields)
        missing.append(np.asarray(is_missing))
    return np.concatenate(missing) if missing else np.zeros(0, dtype=bool)


def stream_with_numbers(
    split: IterableDataset, names: list[str], target: Any, class_names_file: str | None
) -> IterableDataset:
    """Number the labels of a stream while it is read; missing labels become `NO_LABEL`."""
    feature = split.features["label"]
    if isinstance(feature, ClassLabel) and feature.names == names:
        return split
    places: dict[str, int] = {}

    def numbered(example: dict[str, Any]) -> dict[str, int]:
        label = example["label"]
        if isinstance(feature, ClassLabel):
            return {"label": NO_LABEL if label is None or label < 0 else target[label]}
        text = text_of(label)
        if text is None or (text == "-1" and not isinstance(label, str)):
            return {"label": NO_LABEL}
        if text not in places:
            # Matched together with all earlier labels, so that a mix of names and numbers is refused.
            places[text] = match_names([*places, text], names, class_names_file, "the stream")[-1]
        return {"label": places[text]}

    return split.map(numbered, features=Features({"image": split.features["image"], "label": ClassLabel(names=names)}))
