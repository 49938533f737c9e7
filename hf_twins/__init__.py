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
"""Twins vision transformers for the Hugging Face ecosystem.

Importing this package registers Twins with transformers' Auto classes. Configuration, models and image processors are
imported at once, everything else when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

# Importing `detection` registers the detectors.
from . import detection as detection
from .checkpoints import CheckpointReader
from .configuration_twins import TwinsConfig
from .image_processing_pil_twins import TwinsImageProcessorPil
from .image_processing_twins import TwinsImageProcessor
from .modeling_twins import (
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsModel,
    TwinsPreTrainedModel,
)
from .variants import TWINS_VARIANTS, TwinsVariant, published_variant


if TYPE_CHECKING:
    from .inference_optimization import optimize_for_inference
    from .interpretation import LayerAttention, attention_maps, attention_rollout, grad_cam
    from .loading import load_model
    from .optimizer_groups import parameter_groups
    from .pixel_mask import pass_pixel_mask_to_backbone
    from .remote_code import save_remote_code

__version__ = "0.1.0"

# This makes models, configurations and image processors load timm's and the authors' checkpoints, too.
TwinsConfig.checkpoint_reader = CheckpointReader()

# With `exist_ok`, importing the package again (a reload, or a second copy) is not an error, and the import keeps
# working if transformers adds its own Twins.
AutoConfig.register(TwinsConfig.model_type, TwinsConfig, exist_ok=True)
AutoModel.register(TwinsConfig, TwinsModel, exist_ok=True)
AutoModelForImageClassification.register(TwinsConfig, TwinsForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(TwinsConfig, TwinsForSemanticSegmentation, exist_ok=True)
AutoBackbone.register(TwinsConfig, TwinsBackbone, exist_ok=True)
AutoImageProcessor.register(
    TwinsConfig,
    image_processor_classes={"torchvision": TwinsImageProcessor, "pil": TwinsImageProcessorPil},
    exist_ok=True,
)
# The pipeline of image segmentation looks up supported classes in a mapping of names, to which `register` adds nothing.
# Without this entry, it logs that the model is not supported, and then uses it anyway.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[TwinsConfig.model_type] = TwinsForSemanticSegmentation.__name__

__all__ = [
    "TWINS_VARIANTS",
    "LayerAttention",
    "TwinsBackbone",
    "TwinsConfig",
    "TwinsForImageClassification",
    "TwinsForSemanticSegmentation",
    "TwinsImageProcessor",
    "TwinsImageProcessorPil",
    "TwinsModel",
    "TwinsPreTrainedModel",
    "TwinsVariant",
    "attention_maps",
    "attention_rollout",
    "grad_cam",
    "load_model",
    "optimize_for_inference",
    "parameter_groups",
    "pass_pixel_mask_to_backbone",
    "published_variant",
    "save_remote_code",
]

# Maps each public name that is imported on first use to its module.
LAZY_NAMES = {
    "LayerAttention": "interpretation",
    "attention_maps": "interpretation",
    "attention_rollout": "interpretation",
    "grad_cam": "interpretation",
    "load_model": "loading",
    "optimize_for_inference": "inference_optimization",
    "parameter_groups": "optimizer_groups",
    "pass_pixel_mask_to_backbone": "pixel_mask",
    "save_remote_code": "remote_code",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{LAZY_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY_NAMES})
