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

A recipe is a set of defaults: `--recipe retinanet-1x --learning_rate 2e-4` is that recipe with another learning rate.
"""

from dataclasses import dataclass, field
from typing import Any

from hf_twins.training.trainer import RecipeArguments


@dataclass
class ModelArguments:
    detector: str = field(
        default="retinanet",
        metadata={
            "help": "retinanet or mask-rcnn, of torchvision; or detr, conditional-detr, deformable-detr, rt-detr, d-fine, of "
            "transformers."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Trained backbone to start from: a classifier's folder or Hub id, of ours or of timm's."},
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
    train_dir: str | None = field(default=None, metadata={"help": "Folder of the training images."})
    train_annotations: str | None = field(default=None, metadata={"help": "What they show: a JSON file as COCO's."})
    validation_dir: str | None = field(default=None, metadata={"help": "Folder of the images to evaluate on."})
    validation_annotations: str | None = field(default=None, metadata={"help": "The JSON file of these."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to evaluate on where there are no others."}
    )
    check_images: bool = field(
        default=True,
        metadata={"help": "Decode every image once, before training, and leave out those that cannot be."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many evaluation images."})


@dataclass
class DetectionRecipe(RecipeArguments):
    decay_epochs: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Epochs after which the learning rate is a tenth of what it was; none: --lr_scheduler_type."
        },
    )
    shortest_edge: int = field(
        default=800, metadata={"help": "Shorter side of the images in pixels; of rt-detr and d-fine, both sides."}
    )
    longest_edge: int = field(default=1333, metadata={"help": "What the longer side may not exceed, in pixels."})
    multi_scale: bool = field(
        default=False,
        metadata={"help": "Train with shorter sides from 0.6 of it, half of the images cropped before, as DETR does."},
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability that an image is mirrored."})
    window_padding: str | None = field(
        default=None, metadata={"help": "Of the backbone's windows: masked, zeros or authors_segmentation."}
    )
    stage_norm: bool = field(
        default=False,
        metadata={"help": "End the stages of a Twins-SVT backbone in a layer norm; Twins-PCPVT has none."},
    )


# The authors' (https://github.com/Meituan-AutoML/Twins/tree/main/detection/configs): 16 images a step, two on each of eight
# devices. Their SVT backbones have stage norms, all of them drop path, and windows are padded with zeros (gvt.py there).
AUTHORS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "warmup_steps": 500,
    "max_grad_norm": 0.0,
    "drop_path_rate": 0.2,
    "window_padding": "zeros",
    "stage_norm": True,
}
# "PVT setting", "Swin setting": the schedules that they compare with PVT and Swin by. Their 1x decay norms, biases and
# position encodings like the rest, by a weight so small that it was not worth an option.
AUTHORS_1X = AUTHORS | {"num_train_epochs": 12, "decay_epochs": [8, 11], "weight_decay": 1e-4}
AUTHORS_3X = AUTHORS | {"num_train_epochs": 36, "decay_epochs": [27, 33], "weight_decay": 0.05, "multi_scale": True}

RECIPES: dict[str, dict[str, Any]] = {
    "retinanet-1x": AUTHORS_1X | {"detector": "retinanet", "learning_rate": 1e-4},
    "retinanet-3x": AUTHORS_3X | {"detector": "retinanet", "learning_rate": 1e-4},
    "mask-rcnn-1x": AUTHORS_1X | {"detector": "mask-rcnn", "learning_rate": 2e-4},
    "mask-rcnn-3x": AUTHORS_3X | {"detector": "mask-rcnn", "learning_rate": 1e-4},
    "fine-tune": {
        "num_train_epochs": 24,
        "learning_rate": 2e-4,
        "weight_decay": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "layer_decay": 0.9,
        "drop_path_rate": 0.1,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "shortest_edge": 640,
        "longest_edge": 1066,
        "multi_scale": True,
    },
}
