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
"""Object detection with a Twins backbone: RetinaNet, Mask R-CNN, and the detectors of transformers.

[`TwinsForObjectDetection`] and its image processor are registered with transformers' Auto classes when `hf_twins` is
imported, so that `AutoModelForObjectDetection.from_pretrained` and `pipeline("object-detection")` load it.
[`load_detector`] loads any detector with a Twins backbone, ready to detect.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from .configuration import TwinsDetectorConfig
from .image_processing import TwinsDetectorImageProcessor
from .modeling import TwinsDetectorOutput, TwinsForObjectDetection


if TYPE_CHECKING:
    from .loading import Detector, load_detector

AutoConfig.register(TwinsDetectorConfig.model_type, TwinsDetectorConfig, exist_ok=True)
AutoModelForObjectDetection.register(TwinsDetectorConfig, TwinsForObjectDetection, exist_ok=True)
AutoImageProcessor.register(
    TwinsDetectorConfig, image_processor_classes={"torchvision": TwinsDetectorImageProcessor}, exist_ok=True
)
# For this task, pipelines look up supported classes in a mapping of names, to which `register` adds nothing. Without
# this entry, they log that the model is not supported, and then use it anyway.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[TwinsDetectorConfig.model_type] = TwinsForObjectDetection.__name__

__all__ = [
    "Detector",
    "TwinsDetectorConfig",
    "TwinsDetectorImageProcessor",
    "TwinsDetectorOutput",
    "TwinsForObjectDetection",
    "load_detector",
]


def __getattr__(name: str) -> Any:
    if name not in ("Detector", "load_detector"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".loading", __name__), name)
