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
"""Image processor class for Twins, PIL backend."""

from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.utils import auto_docstring

from .image_processing_twins import TwinsImageProcessorKwargs, TwinsImageProcessorMixin


@auto_docstring(
    custom_intro="""
    Prepares images for Twins models as [`TwinsImageProcessor`] does, but only with PIL and NumPy: torchvision need not be
    installed.
    """
)
class TwinsImageProcessorPil(TwinsImageProcessorMixin, PilBackend):
    valid_kwargs = TwinsImageProcessorKwargs

    def resize(self, image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resize an image of any number of channels.

        Args:
            image: array `(num_channels, height, width)`.
            args, kwargs: passed on to the backend.
        """
        resize = super().resize
        if image.shape[0] in (1, 3):
            return resize(image, *args, **kwargs)
        # Pillow would take the last of two or four channels for transparency, and multiply the others by it.
        return np.concatenate([resize(channel[None], *args, **kwargs) for channel in image])


__all__ = ["TwinsImageProcessorPil"]
