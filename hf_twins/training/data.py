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
"""What data sets of pictures have in common, whatever is to be learned of them."""

from typing import Any

import PIL.Image
import torch
from datasets import Dataset, Features, Image, get_dataset_split_names, load_dataset

from hf_twins._utils.images import check_shape, image_errors, image_source, open_image


# By which a data set's own evaluation images are known.
EVALUATION_SPLITS = ("validation", "test")


def load_hub_splits(name: str, config: str | None = None, streaming: bool = False) -> dict[str, Any]:
    """`train`, a stream if that is asked for, and, if it is there, `validation` of a data set on the Hub or in a folder."""
    names = get_dataset_split_names(name, config)
    if "train" not in names:
        raise ValueError(f"The data set must have a split named train, got {', '.join(names)}.")
    splits = {"train": load_dataset(name, config, split="train", streaming=streaming)}
    held_out = next((split for split in EVALUATION_SPLITS if split in names), None)
    if held_out is not None:
        splits["validation"] = load_dataset(name, config, split=held_out)
    return splits


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


def renamed_columns(split: Any, image: str, label: str) -> Any:
    """The same data set with the columns `image` and `label` alone, which are called otherwise in it.

    Raises:
        ValueError: if it has no such columns.
    """
    for option, column in (("--image_column_name", image), ("--label_column_name", label)):
        if column not in split.features:
            raise ValueError(f"{option} must be one of {', '.join(split.features)}, got {column}.")
    split = split.select_columns([image, label])
    # One of them may have the other's name.
    return split.rename_columns({image: "image_", label: "label_"}).rename_columns(
        {"image_": "image", "label_": "label"}
    )


class LabelledImages(torch.utils.data.Dataset):
    """A data set of images, prepared when they are asked for, by their place, or by epoch and place.

    Args:
        split: the examples; images are decoded here, and not by `datasets`, which knows no limits.
        preparation: called with an example, the epoch and the example's place.
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
        # Where images are not checked before, the run ends with a sentence, and not for want of memory.
        if isinstance(image, PIL.Image.Image):
            check_shape(image)
        elif isinstance(image, dict):
            with image_errors(image["path"] or f"Image {index}"):
                example = example | {"image": open_image(image_source(image))}
        return self.preparation(example, epoch, index)
