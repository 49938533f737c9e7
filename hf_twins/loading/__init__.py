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
"""Load a trained Twins model and its image processor from any kind of source.

`from_pretrained` builds the class that it is called on, and initializes weights that are missing in the checkpoint.
`load_model` inspects the checkpoint, builds the class that a task needs, and refuses a checkpoint not trained for the
task.
"""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, cached_file

from .._utils.code_revision import pinned_code_revision
from ..checkpoints.channels import adapt_channels
from ..configuration_twins import TwinsConfig
from ..image_processing_twins import TwinsImageProcessor
from .adapters import ADAPTER_LABELS_NAME, base_model, load_adapter
from .sources import ADAPTER_CONFIG_NAME, can_be_hub_id, find_file, naming_source, quiet, read_fields, read_json
from .tasks import MODEL_CLASSES, TASKS, Task, auto_class, check_kind, class_of_task, saved_class
from .weights import LABEL_FIELDS, check_weights, load_class


__all__ = [
    "ADAPTER_LABELS_NAME",
    "MODEL_CLASSES",
    "TASKS",
    "CroppingProcessorError",
    "MissingProcessorError",
    "Task",
    "can_be_hub_id",
    "load_image_processor",
    "load_model",
    "load_pretrained",
]


class MissingProcessorError(OSError):
    """A model comes without an image processor."""


class CroppingProcessorError(ValueError):
    """An image processor crops images, but a segmentation model must see entire images."""


def load_model(
    name_or_path: str | os.PathLike,
    task: str | None = None,
    *,
    image_processor: str | os.PathLike | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    allow_new_weights: bool = False,
    **config_fields: Any,
) -> tuple[Any, Any]:
    """Load a trained Twins model and its image processor, ready to predict.

    ```python
    model, processor = load_model("timm/twins_svt_small.in1k", "image-classification")
    ```

    Args:
        name_or_path: folder or Hub id of a model in transformers' format (a classifier, Semantic FPN, UperNet on
            Twins, `TwinsBackbone` or `TwinsModel`) or in timm's; an authors' file, or a folder with one; folder or Hub
            id of a PEFT adapter of any of these, which is merged into its base model.
        task: what the model is needed for:

            - `"image-classification"`: a [`TwinsForImageClassification`],
            - `"semantic-segmentation"`: a [`TwinsForSemanticSegmentation`] or a [`UperNetForSemanticSegmentation`],
            - `"image-feature-extraction"`: a [`TwinsModel`], also from a classifier,
            - `"backbone"`: a [`TwinsBackbone`], also from a classifier or a Semantic FPN,
            - None: the class that was saved.
        image_processor: folder or Hub id of an image processor other than the model's own.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run code that comes with the model, at commit `revision`, or `code_revision` if
            it is in another repository. Code of an adapter's base model or of an image processor is never run.
        code_revision: commit of the other repository that the model's `auto_map` names.
        dtype: data type of the weights; `"auto"` keeps that of the checkpoint.
        allow_new_weights: whether to initialize a head that is missing or has other labels, for a model that will be
            trained.
        config_fields: configuration fields to change; for an UperNet, all but the labels are those of its backbone.
            With `num_channels`, the first convolution and the image processor are adapted.

    Returns:
        The model, in evaluation mode, and its image processor.

    Raises:
        OSError: if the model or its image processor is missing or cannot be reached.
        ValueError: if the model is not of the kind that the task needs, or lacks weights; if the image processor crops
            and the task is semantic segmentation; if code would be run that is not pinned to a commit.
        ImportError: if the model is an adapter, and PEFT is not installed.
    """
    model = load_pretrained(
        name_or_path,
        task,
        revision=revision,
        trust_remote_code=trust_remote_code,
        code_revision=code_revision,
        dtype=dtype,
        allow_new_weights=allow_new_weights,
        **config_fields,
    )
    if image_processor is None:
        processor = load_image_processor(name_or_path, revision)
    else:
        processor = load_image_processor(image_processor)
    if "num_channels" in config_fields:
        processor = adapt_channels(processor, config_fields["num_channels"])
    if task == "semantic-segmentation" and getattr(processor, "do_center_crop", None):
        raise CroppingProcessorError(
            f"The image processor of {image_processor or name_or_path} has do_center_crop=True, which shows the "
            "model only part of each image: save it with do_center_crop=False."
        )
    return model, processor


def load_pretrained(
    name_or_path: str | os.PathLike,
    task: str | None = None,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    allow_new_weights: bool = False,
    **config_fields: Any,
) -> Any:
    """Load a model as [`load_model`] does, but without an image processor; arguments and errors are the same."""
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, or None, got {task!r}.")
    name = str(name_or_path)
    options: dict[str, Any] = {"dtype": dtype, **config_fields}
    with naming_source(name), quiet(not allow_new_weights):
        if trust_remote_code:
            code_revision = pinned_code_revision(name, revision, code_revision)
        fields = read_fields(name, revision)
        if fields is None:
            labels = {key: options.pop(key) for key in LABEL_FIELDS if key in options}
            new_weights: set[str] = set()
            model = load_adapter(name, revision, **options)
            check_kind(name, type(model).__name__, task, allow_new_weights)
            model_class = class_of_task(task, type(model).__name__)
            if labels or not isinstance(model, model_class):
                config = type(model.config).from_dict(model.config.to_dict() | labels)
                model, new_weights = load_class(
                    model_class, None, config=config, state_dict=model.state_dict(), dtype=dtype
                )
            model.name_or_path = model.config.name_or_path = name
        # Twins models may come with a copy of this package's code, but transformers prefers the installed package.
        elif trust_remote_code and "auto_map" in fields and fields.get("model_type") != TwinsConfig.model_type:
            options |= {"trust_remote_code": True, "code_revision": code_revision}
            model, new_weights = load_class(auto_class(name, fields, task), name, revision=revision, **options)
        else:
            saved = saved_class(name, fields)
            check_kind(name, saved, task, allow_new_weights)
            model, new_weights = load_class(class_of_task(task, saved), name, revision=revision, **options)
    check_weights(name, model, new_weights, task, allow_new_weights)
    return model.eval()


def load_image_processor(name_or_path: str | os.PathLike, revision: str = "main") -> Any:
    """Load a model's image processor as the class that was saved, without running code that comes with the model.

    timm's models use timm's preprocessing, the authors' files use that of the authors' evaluation, and an adapter
    without an image processor uses that of its base model.

    Args:
        name_or_path: folder, file or Hub id of the model, as for [`load_model`].
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        OSError: if the image processor is missing (`MissingProcessorError`) or cannot be reached.
    """
    name = str(name_or_path)
    with naming_source(name):
        read_json(name, IMAGE_PROCESSOR_NAME, revision)
        try:
            fields, _ = TwinsImageProcessor.get_image_processor_dict(name, revision=revision)
        except OSError as error:
            if find_file(name, IMAGE_PROCESSOR_NAME, revision) is not None:
                raise
            adapter = read_json(name, ADAPTER_CONFIG_NAME, revision)
            if adapter is not None:
                return load_image_processor(*base_model(name, adapter))
            if not Path(name).exists() and find_file(name, CONFIG_NAME, revision) is None:
                raise
            # This raises an error if the connection fails, since the image processor may then exist.
            cached_file(name, IMAGE_PROCESSOR_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
            raise MissingProcessorError(
                f"cannot load {name}: it has no image processor ({IMAGE_PROCESSOR_NAME}); with "
                "save_pretrained, save there the one that the model was trained with"
            ) from error
        saved = fields.get("image_processor_type") or fields.get("feature_extractor_type") or "TwinsImageProcessor"
        if saved.startswith("TwinsImageProcessor"):
            return TwinsImageProcessor.from_dict(fields)
        return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
