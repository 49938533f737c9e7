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
"""Loads trained detectors with their image processors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..image_processing_twins import convert_image
from ..loading.sources import find_file, naming_source, quiet, read_json
from ..loading.weights import check_weights, new_weights
from ..pixel_mask import pass_pixel_mask_to_backbone
from .image_processing import TwinsDetectorImageProcessor
from .modeling import TwinsForObjectDetection


@dataclass
class Detector:
    """A detector with its image processor, for images of any sizes.

    Args:
        model: a [`~hf_twins.detection.TwinsForObjectDetection`], or a detector of transformers with a Twins backbone,
            in evaluation mode.
        processor: its image processor.
    """

    model: Any
    processor: Any

    @torch.no_grad()
    def __call__(self, images: list[PIL.Image.Image], threshold: float = 0.5) -> list[dict[str, torch.Tensor]]:
        """Detect objects.

        Args:
            images: images in any mode, not turned by their EXIF orientation.
            threshold: objects with this score or a lower one are discarded, in [0, 1).

        Returns:
            For each image a dictionary with `boxes` `(num_objects, 4)`, left, top, right and bottom in pixels,
            `scores` and `labels` `(num_objects,)`, best first, and, for Mask R-CNN, `masks` `(num_objects, height,
            width)`, True on the object.
        """
        images = [convert_image(image) for image in images]
        inputs = self.processor(images, return_tensors="pt").to(self.model.device)
        sizes = torch.tensor([(image.height, image.width) for image in images])
        return self.detect(inputs, sizes, threshold)

    @torch.no_grad()
    def detect(self, inputs: Any, target_sizes: torch.Tensor, threshold: float = 0.0) -> list[dict[str, torch.Tensor]]:
        """Detect objects on prepared images.

        Args:
            inputs: `pixel_values` `(batch_size, 3, height, width)` and optionally `pixel_mask` `(batch_size, height,
                width)`.
            target_sizes: height and width of the original images, `(batch_size, 2)`.
            threshold: objects with this score or a lower one are discarded, in [0, 1).

        Returns:
            The same as `__call__`, in pixels of the original images.
        """
        outputs = self.model(pixel_values=inputs["pixel_values"], pixel_mask=inputs.get("pixel_mask"))
        results = self.processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=target_sizes.to(self.model.device)
        )
        # Some image processors of transformers return objects in the order of the model's queries, not by score.
        return [
            {name: value[result["scores"].argsort(descending=True)].cpu() for name, value in result.items()}
            for result in results
        ]


def load_detector(name_or_path: str | Path, revision: str = "main") -> Detector:
    """Load a detector with a Twins backbone and its image processor.

    Supported are [`~hf_twins.detection.TwinsForObjectDetection`] and the detectors of transformers that take a
    backbone, such as DETR, which then pass their `pixel_mask` to the backbone (see
    [`~hf_twins.pass_pixel_mask_to_backbone`]).

    Args:
        name_or_path: folder or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        OSError: if there is no such folder or repository, it cannot be reached, or a file is missing or damaged.
        ValueError: if the model is not a detector with a Twins backbone, or weights are missing or unexpected.

    Example:

    ```python
    >>> from hf_twins.detection import load_detector

    >>> detector = load_detector("outputs/mine")  # doctest: +SKIP
    >>> detector([image], threshold=0.5)[0]["boxes"]  # doctest: +SKIP
    ```"""
    name = str(name_or_path)
    with naming_source(name):
        config = read_detector_config(name, revision)
        # transformers would only log missing weights, but a detector with random weights is useless: raise an error.
        with quiet(True):
            model, loading = AutoModelForObjectDetection.from_pretrained(
                name, config=config, revision=revision, output_loading_info=True, ignore_mismatched_sizes=True
            )
        check_weights(name, model, new_weights(loading))
        if loading["unexpected_keys"]:
            unused = sorted(loading["unexpected_keys"])
            raise ValueError(
                f"{name} has {len(unused)} weights that its configuration has no place for, such as {unused[0]}: "
                "pass a folder with both files of one model."
            )
        read_json(name, IMAGE_PROCESSOR_NAME, revision)
        if isinstance(model, TwinsForObjectDetection):
            # Version 0.1.0 saved transformers' class instead, whose files this class loads, too.
            processor: Any = TwinsDetectorImageProcessor.from_pretrained(name, revision=revision)
        else:
            pass_pixel_mask_to_backbone(model)
            processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    return Detector(model.eval(), processor)


def read_detector_config(name: str, revision: str) -> Any:
    """Read the configuration of a detector.

    Raises:
        OSError: if the configuration is missing or damaged.
        ValueError: if the configuration is that of another kind of model.
    """
    if Path(name).exists() and find_file(name, CONFIG_NAME, revision) is None:
        raise OSError(
            f"cannot load {name}: it has no {CONFIG_NAME}; pass a folder that "
            "examples/object_detection/run_detection.py wrote, or a Hub id"
        )
    fields = read_json(name, CONFIG_NAME, revision)
    expected = (
        f"{name} must be a detector with a Twins backbone, such as examples/object_detection/run_detection.py writes"
    )
    # The configuration is not in transformers' format, but in timm's, for example.
    if fields is not None and "model_type" not in fields:
        raise ValueError(f"{expected}, got a {CONFIG_NAME} without a model_type.")
    config = AutoConfig.from_pretrained(name, revision=revision)
    backbone = getattr(config, "backbone_config", None)
    if (
        type(config) not in AutoModelForObjectDetection._model_mapping
        or getattr(backbone, "model_type", "") != "twins"
    ):
        architecture = ", ".join(config.architectures or ["a model"])
        raise ValueError(f"{expected}, got {architecture} (model_type {config.model_type!r}).")
    return config
