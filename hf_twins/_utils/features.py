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
"""Frozen image features, computed by a model and its image processor."""

import itertools

import PIL.Image
import torch

from ..loading import load_model
from .devices import default_device
from .fingerprints import model_fingerprint
from .images import mode_of_model


POOLED = "pooled"


class FeatureExtractor:
    """A model and its image processor, which extract features of images in the `mode` of the model.

    Args:
        model_name_or_path: model, as for [`load_model`].
        features: `["pooled"]` for the input vector of a classifier's head, or names of stages for their feature maps.

    Raises:
        OSError: if the model or its image processor is not found.
        ValueError: if the model lacks weights that the features need, has no such stage, or takes images of a number of
            channels that no mode of Pillow has.
    """

    def __init__(self, model_name_or_path: str, features: list[str]):
        self.features = features
        if features == [POOLED]:
            self.model, self.processor = load_model(model_name_or_path, "image-feature-extraction")
        else:
            self.model, self.processor = load_model(model_name_or_path, "backbone", out_features=features)
        self.mode = mode_of_model(self.model.config)
        self.model.to(default_device())

    @property
    def fingerprint(self) -> str:
        """A fingerprint of the model and its preprocessing."""
        return model_fingerprint(self.model, self.processor)

    @torch.inference_mode()
    def __call__(self, images: list[PIL.Image.Image]) -> list[dict[str, torch.Tensor]]:
        """Extract the features of images of any sizes.

        Returns:
            For each image, its features by name: `(hidden_size,)`, or `(hidden_size, height, width)` for a stage.
        """
        inputs = [self.processor(image, return_tensors="pt")["pixel_values"] for image in images]
        results = []
        # A processor that crops gives all images one size. Otherwise, consecutive images of one size form a batch.
        for _, batch in itertools.groupby(inputs, key=lambda pixel_values: pixel_values.shape):
            outputs = self.model(torch.cat(list(batch)).to(self.model.device))
            values = [outputs.pooler_output] if self.features == [POOLED] else outputs.feature_maps
            results += [
                dict(zip(self.features, image_values)) for image_values in zip(*(value.cpu() for value in values))
            ]
        return results
