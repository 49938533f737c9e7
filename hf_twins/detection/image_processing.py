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
"""Image processor of RetinaNet and Mask R-CNN with a Twins backbone."""

from typing import Any

import torch
from transformers import DetrImageProcessor


class TwinsDetectorImageProcessor(DetrImageProcessor):
    """DETR's image processor, with the predictions of a [`TwinsForObjectDetection`] in place of DETR's.

    Images are resized, normalized and padded as for DETR. Boxes of annotations are not converted to DETR's relative
    format, because the model takes their left, top, right and bottom in pixels.
    """

    do_convert_annotations = False

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """Scale predictions to the original images.

        Args:
            outputs: a [`~hf_twins.detection.TwinsDetectorOutput`].
            threshold: predictions with this score or a lower one are discarded.
            target_sizes: heights and widths of the original images, `(batch_size, 2)`; without them, predictions are
                relative to the images that the model was called with.

        Returns:
            For each image a dictionary with `boxes` `(num_objects, 4)`, left, top, right and bottom in pixels, `scores`
            and `labels` `(num_objects,)`, best first, and, for Mask R-CNN, `masks` `(num_objects, height, width)`, True on
            the object.

        Raises:
            ValueError: if there is not one target size for each image.
        """
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        sizes = outputs.image_sizes.tolist()
        target_sizes = sizes if target_sizes is None else torch.as_tensor(target_sizes).tolist()
        if len(target_sizes) != len(sizes):
            raise ValueError(
                f"target_sizes must be the height and width of each of the {len(sizes)} images, got "
                f"{len(target_sizes)}."
            )
        results = []
        for index, ((height, width), (target_height, target_width)) in enumerate(zip(sizes, target_sizes)):
            is_kept = outputs.scores[index] > threshold
            scale = outputs.boxes.new_tensor(2 * [target_width / width, target_height / height])
            result = {
                "boxes": outputs.boxes[index][is_kept] * scale,
                "scores": outputs.scores[index][is_kept],
                "labels": outputs.labels[index][is_kept],
            }
            if outputs.get("masks") is not None:
                masks = outputs.masks[index][is_kept][:, None]
                size = (int(target_height), int(target_width))
                result["masks"] = paste_masks_in_image(masks, result["boxes"], size)[:, 0] > 0.5
            results.append(result)
        return results
