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
"""Options of object detection.

A recipe is a set of defaults: `--recipe retinanet-1x --learning_rate 2e-4` is that recipe with another learning rate.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hf_twins.training.orientation import EXIF_HELP, ExifOption
from hf_twins.training.trainer import RecipeArguments


# The recipes that `--recipe` accepts by name.
RECIPES = Path(__file__).parents[1] / "recipes" / "object_detection"


@dataclass
class ModelArguments:
    """Which detector to train, and the backbone it starts from."""

    one_of: ClassVar = (("model_name_or_path", "config_name"),)
    detector: str = field(
        default="retinanet",
        metadata={
            "help": "retinanet or mask-rcnn from torchvision; or detr, conditional-detr, deformable-detr, rt-detr "
            "or d-fine from transformers."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Trained backbone to start from: folder or Hub id of an hf_twins or timm classifier."},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "Start from random weights: a published variant (twins-svt-small), or a folder or Hub id."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    detector_config: str = field(
        default="{}",
        metadata={"help": "Fields of the detector's configuration, as JSON: '{\"num_queries\": 50}'."},
    )


@dataclass
class DataArguments:
    """Images and annotations in COCO's format to train and evaluate on."""

    train_dir: str | None = field(metadata={"help": "Folder of the training images."})
    train_annotations: str | None = field(metadata={"help": "Their annotations: a JSON file in COCO's format."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder of the evaluation images."})
    validation_annotations: str | None = field(default=None, metadata={"help": "Their JSON file."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to hold out for evaluation if none are given."}
    )
    exif: ExifOption = field(default="auto", metadata={"help": EXIF_HELP})
    check_images: bool = field(
        default=True,
        metadata={"help": "Decode every image once, before training, and skip those that cannot be decoded."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only this many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only this many evaluation images."})


@dataclass
class DetectionRecipe(RecipeArguments):
    """What a recipe sets for object detection, beyond what recipes of every task set."""

    FILES: ClassVar[tuple[str, ...]] = (*RecipeArguments.FILES, "predictions.png")

    decay_epochs: list[int] = field(
        default_factory=list,
        metadata={"help": "Epochs after which the learning rate drops to a tenth; if none, --lr_scheduler_type."},
    )
    shortest_edge: int = field(
        default=800, metadata={"help": "Shorter side of the images in pixels; for rt-detr and d-fine, both sides."}
    )
    longest_edge: int = field(default=1333, metadata={"help": "Maximum of the longer side, in pixels."})
    multi_scale: bool = field(
        default=False,
        metadata={"help": "Train with shorter sides from 0.6 of --shortest_edge, half after a crop, as DETR does."},
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability that an image is mirrored."})
    window_padding: str | None = field(
        default=None, metadata={"help": "Padding of the backbone's windows: masked, zeros or authors_segmentation."}
    )
    stage_norm: bool = field(
        default=False,
        metadata={"help": "End the stages of a Twins-SVT backbone in a layer norm; Twins-PCPVT has none."},
    )
