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
Options have the names that transformers' and Accelerate's own examples use, if there is one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hf_twins.training.trainer import RecipeArguments


# The recipes that `--recipe` accepts by name.
RECIPES = Path(__file__).parents[1] / "recipes" / "image_classification"


@dataclass
class TrainedModelArguments:
    """A trained model, and how its images are prepared."""

    model_name_or_path: str | None = field(
        metadata={"help": "Trained weights: a folder or Hub id of a Twins model, also timm's."}
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an image processor other than the model's."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the crop in pixels; the share of the image that it shows is kept."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run code that comes with the model; on the Hub, at the commit --model_revision."},
    )
    code_revision: str | None = field(
        default=None,
        metadata={"help": "Commit of the code, where the model's auto_map names another repository (repo--module)."},
    )

    @property
    def source(self) -> str:
        """The folder or Hub id of the model."""
        return str(self.model_name_or_path)


@dataclass
class ModelArguments(TrainedModelArguments):
    """The model to train."""

    one_of: ClassVar = (("model_name_or_path", "config_name"),)
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Trained weights to start from: a folder or Hub id of a Twins model, also timm's."},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "Start from random weights: a published variant (twins-svt-small), or a folder or Hub id."},
    )
    num_channels: int | None = field(
        default=None, metadata={"help": "Image channels, if not the model's: its first convolution is then adapted."}
    )

    @property
    def source(self) -> str:
        """The folder or Hub id of the model, or the name of a published variant."""
        return str(self.model_name_or_path or self.config_name)


@dataclass
class ImageArguments:
    """A dataset of images with labels."""

    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a folder that is one."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration, where it has several."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images; found if not given."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the labels; found if not given."})
    class_names_file: str | None = field(
        default=None, metadata={"help": "File with one label name per line, in the order of their numbers."}
    )
    check_images: bool = field(
        default=True,
        metadata={"help": "Decode every image once, beforehand, and skip those that cannot be decoded."},
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only this many evaluation images."})


@dataclass
class DataArguments(ImageArguments):
    """The images to train on, and others to evaluate on."""

    one_of: ClassVar = (("train_dir", "dataset_name"),)
    train_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with a sub-folder of images for each label, or with .parquet files, or .tar (webdataset)."
        },
    )
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for the evaluation images."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to hold out for evaluation if none are given."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Stream the training images from where they are instead of preparing them all first."},
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Buffer of streamed images to draw the next one from."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only this many training images; in a stream, the images of an epoch."}
    )


@dataclass
class ClassificationRecipe(RecipeArguments):
    """What a recipe sets for image classification, beyond what recipes of every task set."""

    FILES: ClassVar[tuple[str, ...]] = (*RecipeArguments.FILES, "confusion_matrix.png")

    freeze_backbone: bool = field(default=False, metadata={"help": "Train only the classifier."})
    lora_rank: int = field(
        default=0, metadata={"help": "Train LoRA matrices of this rank and the head; 0 for no LoRA."}
    )
    rand_augment: bool = field(default=False, metadata={"help": "timm's rand-m9-mstd0.5-inc1, as the authors use."})
    color_jitter: float = field(default=0.0, metadata={"help": "Range of brightness, contrast and saturation."})
    random_erasing: float = field(default=0.0, metadata={"help": "Probability that a rectangle becomes noise."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability that an image is mirrored."})
    min_crop_scale: float = field(default=0.08, metadata={"help": "Smallest share of an image that a crop shows."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Alpha of mixup's Beta distribution; 0 for none."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "Alpha of CutMix's; with both, each step uses one."})
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Share of the target that is spread over all labels."}
    )
    class_weights: str = field(
        default="none",
        metadata={"help": "Against rare labels: none, loss (weights it), or sampling (draws them more often)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("random_erasing", "horizontal_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be from 0 to 1, got {getattr(self, name)}.")
        for name in ("color_jitter", "mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"--min_crop_scale must be above 0 and at most 1, got {self.min_crop_scale}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label_smoothing must be at least 0 and below 1, got {self.label_smoothing}.")

    def options_needing_full_weights(self) -> list[str]:
        return super().options_needing_full_weights() + (["--lora_rank"] if self.lora_rank > 0 else [])
