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
"""Options of the scripts, and the recipes that set them all at once.

A recipe is a set of defaults: `--recipe fine-tune --learning_rate 1e-3` is that recipe with another learning rate.
Options have the names that transformers' own examples use, if there is one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hf_twins.training.orientation import EXIF_HELP, ExifOption
from hf_twins.training.trainer import RecipeArguments


# The recipes that `--recipe` accepts by name.
RECIPES = Path(__file__).parents[1] / "recipes" / "semantic_segmentation"


HEADS = ("semantic-fpn", "upernet")


@dataclass
class ModelArguments:
    """The model to train."""

    one_of: ClassVar = (("model_name_or_path", "config_name"),)
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Trained weights to start from: folder or Hub id of a segmentation model, or of an hf_twins or "
            "timm classifier or backbone, which gets a new head."
        },
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "Start from random weights: a published variant (twins-svt-small), or a folder or Hub id."},
    )
    head: str | None = field(
        default=None,
        metadata={"help": "semantic-fpn or upernet; if not given, the checkpoint's, or else semantic-fpn."},
    )
    use_stage_norm: bool | None = field(
        default=None,
        metadata={"help": "A layer norm after each stage, as in the authors' segmentation models of Twins-SVT."},
    )
    window_padding: str | None = field(
        default=None, metadata={"help": "How windows are padded: masked, zeros or authors_segmentation."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the training crops, and shorter side of the evaluation images, in pixels."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})


@dataclass
class DataArguments:
    """Images and masks to train and evaluate on."""

    one_of: ClassVar = (("train_dir", "dataset_name"),)
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a folder that is one."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration, where it has several."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with images/ and annotations/, which has lossless masks (PNG) of the same names."},
    )
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for the evaluation images."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to hold out for evaluation if none are given."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images; found if not given."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the masks; found if not given."})
    do_reduce_labels: bool = field(
        default=False,
        metadata={"help": "In masks, 0 is no class and the classes start at 1, as in ADE20K."},
    )
    exif: ExifOption = field(default="auto", metadata={"help": EXIF_HELP})
    class_names_file: str | None = field(
        default=None, metadata={"help": "File with one class name per line, in the order of their numbers."}
    )
    check_images: bool = field(
        default=True,
        metadata={"help": "Decode every pair once, before training, and skip those that do not match."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only this many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only this many evaluation images."})


@dataclass
class SegmentationRecipe(RecipeArguments):
    """What a recipe sets for semantic segmentation, beyond what recipes of every task set."""

    FILES: ClassVar[tuple[str, ...]] = (*RecipeArguments.FILES, "predictions.png", "class_iou.png")

    min_scale: float = field(
        default=0.5,
        metadata={"help": "Smallest size that an image is scaled to before it is cropped, relative to --image_size."},
    )
    max_scale: float = field(
        default=2.0,
        metadata={"help": "Largest size that an image is scaled to before it is cropped, relative to --image_size."},
    )
    max_class_share: float = field(
        default=0.75, metadata={"help": "Largest share of a crop for one class; other crops are drawn instead."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability that an image is mirrored."})
    photometric_distortion: bool = field(
        default=True, metadata={"help": "Change brightness, contrast, saturation and hue."}
    )
