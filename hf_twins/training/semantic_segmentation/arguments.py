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
"""What the scripts of this folder can be told, and the recipes that tell it all at once.

A recipe is a set of defaults: `--recipe fine-tune --learning_rate 1e-3` is that recipe with another learning rate. Names are
those of transformers' own examples where these have one.
"""

from dataclasses import dataclass, field
from typing import Any

from hf_twins.training.trainer import RecipeArguments


HEADS = ("semantic-fpn", "upernet")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Trained weights to start from: a folder or Hub id, of a segmentation model, or of a classifier or "
            "backbone, of ours or of timm's, that gets a new head."
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
        metadata={
            "help": "Side in pixels of the crops that are trained on, and short side of the pictures that are evaluated."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})


@dataclass
class DataArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a folder that is one."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration, where it has several."}
    )
    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with images/ and annotations/, PNG masks with the names of the images."},
    )
    validation_dir: str | None = field(default=None, metadata={"help": "The same, of images to evaluate on."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to evaluate on where there are no others."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images; found if not given."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the masks; found if not given."})
    do_reduce_labels: bool = field(
        default=False,
        metadata={"help": "Masks have 0 where there is no class, and the classes from 1, as in ADE20K."},
    )
    class_names_file: str | None = field(
        default=None, metadata={"help": "File with the name of a class a line, in the order of their numbers."}
    )
    check_images: bool = field(
        default=True,
        metadata={"help": "Decode every pair once, before training, and leave out those that do not fit."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many evaluation images."})


@dataclass
class SegmentationRecipe(RecipeArguments):
    min_scale: float = field(default=0.5, metadata={"help": "Smallest size of a picture that a crop is taken of, as"})
    max_scale: float = field(default=2.0, metadata={"help": "and largest, relative to --image_size."})
    max_class_share: float = field(
        default=0.75, metadata={"help": "Share of a crop that one class may have; others are drawn instead."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability that an image is mirrored."})
    photometric_distortion: bool = field(
        default=True, metadata={"help": "Change brightness, contrast, saturation and hue."}
    )


# The authors', as they gave them to mmsegmentation, https://github.com/open-mmlab/mmsegmentation, configs/twins: of Semantic
# FPN `fpn_alt_gvt_s_512x512_80k_ade20k.py` and `twins_schedule_80k.py` (32 images a step, on eight GPUs), of UperNet
# `upernet_alt_gvt_l_512x512_160k_ade20k_swin_setting.py` (16); and what is usual for trained weights and little data.
RECIPES: dict[str, dict[str, Any]] = {
    "fine-tune": {
        "num_train_epochs": 50,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 1.0, "lr_end": 0.0},
        "warmup_steps": 0.05,
        "per_device_train_batch_size": 8,
        "drop_path_rate": 0.1,
    },
    "ade20k-semantic-fpn": {
        "head": "semantic-fpn",
        "max_steps": 80_000,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 0.9, "lr_end": 1e-6},
        "max_grad_norm": 0.0,
        "drop_path_rate": 0.2,
        "do_reduce_labels": True,
        "eval_strategy": "steps",
        "eval_steps": 8000,
        "save_strategy": "steps",
        "save_steps": 8000,
    },
    "ade20k-upernet": {
        "head": "upernet",
        "max_steps": 160_000,
        "per_device_train_batch_size": 16,
        "learning_rate": 6e-5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 1.0, "lr_end": 0.0},
        "warmup_steps": 1500,
        "max_grad_norm": 0.0,
        # 0.3 for Twins-SVT-L.
        "drop_path_rate": 0.2,
        "do_reduce_labels": True,
        "eval_strategy": "steps",
        "eval_steps": 16_000,
        "save_strategy": "steps",
        "save_steps": 16_000,
    },
}
