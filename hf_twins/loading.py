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
"""Load a trained Twins model and its image processor from whatever a user names.

`from_pretrained` builds the class that it is called on, with newly initialized weights where the checkpoint has none.
`load_model` looks at what the checkpoint holds, builds what a task needs, and refuses what was not trained for it.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, cached_file, logging

from ._utils.code_revision import pinned_code_revision
from ._utils.extras import MissingExtraError, require_extra
from ._utils.labels import label_fields, label_names
from .checkpoints.channels import adapt_channels, adapt_stem
from .checkpoints.reader import naming
from .configuration_twins import TWINS_ARCHITECTURES, WEIGHTS_SUFFIXES, TwinsConfig
from .image_processing_twins import TwinsImageProcessor
from .modeling_twins import TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsModel


ADAPTER_CONFIG_NAME = "adapter_config.json"
# A list of the labels of an adapter's own head, in the order of their ids: PEFT's configuration has no place for them.
ADAPTER_LABELS_NAME = "label_names.json"
# What PEFT puts before the names of a model's weights.
PEFT_PREFIX = "base_model.model."
# In the names of weights.
ENCODER_STAGE = re.compile(r"^(?:backbone\.|twins\.)?encoder\.(?:patch_embeddings|stages)\.(\d+)\.")
LABEL_FIELDS = ("id2label", "label2id", "num_labels")
# The classes that a checkpoint can have been saved from.
MODEL_CLASSES: dict[str, Any] = {
    model_class.__name__: model_class
    for model_class in (
        TwinsForImageClassification,
        TwinsForSemanticSegmentation,
        UperNetForSemanticSegmentation,
        TwinsBackbone,
        TwinsModel,
    )
}


@dataclass(frozen=True)
class Task:
    """What a task needs.

    Args:
        description: the kind of model, with its article.
        model_class: class of the model; an UperNet stays one.
        sources: names of the classes whose checkpoints hold all of its weights.
        auto_class: transformers' class for models that bring their code.
    """

    description: str
    model_class: Any
    sources: tuple[str, ...]
    auto_class: Any


TASKS = {
    "image-classification": Task(
        "an image classifier",
        TwinsForImageClassification,
        ("TwinsForImageClassification",),
        AutoModelForImageClassification,
    ),
    "semantic-segmentation": Task(
        "a semantic segmentation model",
        TwinsForSemanticSegmentation,
        ("TwinsForSemanticSegmentation", "UperNetForSemanticSegmentation"),
        AutoModelForSemanticSegmentation,
    ),
    "image-feature-extraction": Task(
        "a Twins model with its final layer norm",
        TwinsModel,
        ("TwinsModel", "TwinsForImageClassification"),
        AutoModel,
    ),
    "backbone": Task(
        "a Twins encoder",
        TwinsBackbone,
        ("TwinsBackbone", "TwinsModel", "TwinsForImageClassification", "TwinsForSemanticSegmentation"),
        AutoBackbone,
    ),
}


class MissingProcessorError(OSError):
    """A model is there, and no image processor with it."""


class CroppingProcessorError(ValueError):
    """An image processor crops images, of which a segmentation model has to see the whole."""


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
    """A trained Twins model and its image processor, ready to predict.

    ```python
    model, processor = load_model("timm/twins_svt_small.in1k", "image-classification")
    ```

    Args:
        name_or_path: folder or Hub id of a model in transformers' format (a classifier, Semantic FPN, UperNet on Twins,
            `TwinsBackbone` or `TwinsModel`) or in timm's; file of the authors', or a folder with one; folder or Hub id of a
            PEFT adapter of any of these, which is merged into its base model.
        task: what the model is needed for:

            - `"image-classification"`: gives a [`TwinsForImageClassification`],
            - `"semantic-segmentation"`: gives a [`TwinsForSemanticSegmentation`] or a [`UperNetForSemanticSegmentation`],
            - `"image-feature-extraction"`: gives a [`TwinsModel`], also of a classifier,
            - `"backbone"`: gives a [`TwinsBackbone`], also of a classifier or a Semantic FPN,
            - None: gives what was saved.
        image_processor: folder or Hub id of another image processor than the model's own.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run the code that the model brings, at the commit `revision`, or `code_revision` where
            it is in another repository. An adapter's base model, and image processors, never bring theirs.
        code_revision: commit of the other repository that the model's `auto_map` names.
        dtype: data type of the weights; `"auto"` keeps that of the checkpoint.
        allow_new_weights: whether the model is going to be trained: then a head that is missing, or has other labels, is
            newly initialized.
        config_fields: fields of the configuration to change; of an UperNet, those that are not labels are its backbone's.
            With `num_channels`, the weights of the first convolution are adapted, and the image processor.

    Returns:
        The model, in evaluation mode, and its image processor.

    Raises:
        OSError: if there is no such model or no image processor with it, or they cannot be reached.
        ValueError: if it is another kind of model than the task needs, or lacks weights; if the image processor crops and
            the task is semantic segmentation; if code would be run that is not pinned to a commit.
        ImportError: if it is an adapter, and PEFT is not installed.
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
            f"The image processor of {image_processor or name_or_path} has do_center_crop=True, with which a model sees a "
            "part of each image only: save it with do_center_crop=False."
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
    """The model of [`load_model`] without an image processor; arguments and errors are the same."""
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
        # The code that Twins models bring is this package's, which transformers prefers to it.
        elif trust_remote_code and "auto_map" in fields and fields.get("model_type") != TwinsConfig.model_type:
            options |= {"trust_remote_code": True, "code_revision": code_revision}
            model, new_weights = load_class(auto_class(name, fields, task), name, revision=revision, **options)
        else:
            saved = saved_class(name, fields)
            check_kind(name, saved, task, allow_new_weights)
            model, new_weights = load_class(class_of_task(task, saved), name, revision=revision, **options)
    check_weights(name, model, new_weights, task, allow_new_weights)
    try:
        label_names(model.config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return model.eval()


def load_image_processor(name_or_path: str | os.PathLike, revision: str = "main") -> Any:
    """The image processor of a model, by the class that it was saved as; code that the model brings is not run.

    timm's models have timm's preprocessing, the authors' files that of the authors' evaluation, and an adapter without an
    image processor that of its base model.

    Args:
        name_or_path: folder, file or Hub id of the model, as [`load_model`] takes it.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        OSError: if there is none (`MissingProcessorError`), or it cannot be reached.
    """
    name = str(name_or_path)
    with naming_source(name):
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
            # Where the connection fails, it is not known whether there is one.
            cached_file(name, IMAGE_PROCESSOR_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
            raise MissingProcessorError(
                f"cannot load {name}: it has no image processor ({IMAGE_PROCESSOR_NAME}); save there the one that the model "
                "was trained with, by its save_pretrained"
            ) from error
        saved = fields.get("image_processor_type") or fields.get("feature_extractor_type") or "TwinsImageProcessor"
        if saved.startswith("TwinsImageProcessor"):
            return TwinsImageProcessor.from_dict(fields)
        return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)


@contextlib.contextmanager
def naming_source(name: str) -> Iterator[None]:
    """Let every error be a sentence that names the source, and that tells a mistyped path from a Hub id."""
    check_name(name)
    try:
        with naming(name):
            yield
    except SafetensorError as error:
        raise OSError(f"cannot load {name}: its weights are damaged ({error})") from error
    except OSError as error:
        if str(error).startswith("cannot load "):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not Path(name).exists():
            reason = f"there is no such folder, and on the Hub: {reason}"
        raise OSError(f"cannot load {name}: {reason}") from error


def check_name(name: str) -> None:
    """Raise an OSError if this is neither a file nor a folder, and cannot be the id of a model on the Hub."""
    if Path(name).exists():
        return
    if name in TWINS_ARCHITECTURES:
        raise OSError(
            f"cannot load {name}: this is the name of an architecture, not of trained weights: name a folder, or a model on "
            f"the Hub such as timm/{name.replace('-', '_')}.in1k"
        )
    if not can_be_hub_id(name):
        raise OSError(f"cannot load {name}: there is no such file or folder")


def can_be_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(WEIGHTS_SUFFIXES)


@contextlib.contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Keep transformers from reporting which weights are new or unused: where it matters, it is an error here."""
    verbosity = logging.get_verbosity()
    if is_quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def find_file(name: str, file_name: str, revision: str) -> str | None:
    """The path of a file of a folder or repository; None if it is not there, or cannot be reached."""
    if Path(name).is_file():
        return None
    return cached_file(
        name,
        file_name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def read_json(name: str, file_name: str, revision: str) -> Any:
    """The content of a file of a folder or repository; None if it is not there, or cannot be reached.

    Raises:
        OSError: if it is damaged.
    """
    file = find_file(name, file_name, revision)
    try:
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"cannot load {name}: its {file_name} is damaged ({error})") from error


def read_fields(name: str, revision: str) -> dict[str, Any] | None:
    """The configuration, in transformers' form whatever the format of the checkpoint; None of an adapter without its model.

    Raises:
        OSError: if there is neither a model nor an adapter.
        ImportError: if there is an adapter, and PEFT is not installed.
    """
    if find_file(name, ADAPTER_CONFIG_NAME, revision) is not None:
        # Where it is missing, transformers ignores an adapter that was saved together with its model.
        try:
            require_extra("train", "peft")
        except MissingExtraError as error:
            raise MissingExtraError(f"{name} is a PEFT adapter: {error}", name=error.name) from None
        if find_file(name, CONFIG_NAME, revision) is None:
            return None
    fields, _ = TwinsConfig.get_config_dict(name, revision=revision)
    # Where there is no file, the fields are empty, but for the commit.
    if not fields.keys() - {"_commit_hash"}:
        raise OSError(
            f"cannot load {name}: it has neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME} nor a file of the authors' weights "
            f"({', '.join(WEIGHTS_SUFFIXES)})"
        )
    return fields


def saved_class(name: str, fields: dict[str, Any]) -> str:
    """The name of the class that a checkpoint was saved from.

    Raises:
        ValueError: if it is none of `MODEL_CLASSES`.
    """
    # The files of timm and of the authors do not say, and hold classifiers.
    model_type = fields.get("model_type", TwinsConfig.model_type)
    architectures = fields.get("architectures") or [TwinsForImageClassification.__name__]
    if model_type == UperNetConfig.model_type:
        backbone_type = (fields.get("backbone_config") or {}).get("model_type")
        if backbone_type == TwinsConfig.model_type:
            return UperNetForSemanticSegmentation.__name__
        raise ValueError(f"{name} holds an UperNet on a backbone of type {backbone_type!r}: name one on Twins.")
    if model_type != TwinsConfig.model_type or architectures[0] not in MODEL_CLASSES:
        kind = f"{architectures[0]} of type" if fields.get("architectures") else "model of type"
        raise ValueError(
            f"{name} holds a {kind} {model_type!r}, which is none of {', '.join(MODEL_CLASSES)}: name another model."
        )
    return architectures[0]


def check_kind(name: str, saved: str, task: str | None, allow_new_weights: bool) -> None:
    """Raise a ValueError if what the class `saved` holds is not what the task needs."""
    if task is None or saved in TASKS[task].sources:
        return
    # Of an UperNet, the weights of the encoder have other names.
    if allow_new_weights and saved != UperNetForSemanticSegmentation.__name__:
        return
    raise ValueError(
        f"{name} holds a {saved}, but {TASKS[task].description} is needed ({' or '.join(TASKS[task].sources)}): name "
        "another model, or fine-tune this one first."
    )


def class_of_task(task: str | None, saved: str) -> Any:
    """The class to build of a checkpoint that was saved from the class `saved`."""
    if task is None or saved == UperNetForSemanticSegmentation.__name__:
        return MODEL_CLASSES[saved]
    return TASKS[task].model_class


def auto_class(name: str, fields: dict[str, Any], task: str | None) -> Any:
    """transformers' class for a model that brings its code."""
    for key, each in TASKS.items():
        if task in (None, key) and each.auto_class.__name__ in fields["auto_map"]:
            return each.auto_class
    raise ValueError(
        f"{name} brings no code for the task, only for {', '.join(fields['auto_map'])}: name another model."
    )


def load_class(model_class: Any, name: Any, **options: Any) -> tuple[Any, set[str]]:
    """The model, and the names of its weights that the checkpoint lacks or has in another shape."""
    num_channels = None
    if model_class is UperNetForSemanticSegmentation and name is not None:
        labels = {key: options.pop(key) for key in LABEL_FIELDS if key in options}
        num_channels = options.pop("num_channels", None)
        changes = {key: options.pop(key) for key in list(options) if key not in ("dtype", "revision")}
        config: Any = UperNetConfig.from_pretrained(name, revision=options["revision"], **labels)
        config.backbone_config = TwinsConfig.from_dict(config.backbone_config.to_dict() | changes)
        options["config"] = config
    model, info = model_class.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if num_channels is not None:
        adapt_stem(model, num_channels)
    check_depth(str(name), model, info["unexpected_keys"])
    return model, {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


def check_depth(name: str, model: Any, unused_weights: Iterable[str]) -> None:
    """Raise a ValueError if a checkpoint has weights of layers that its configuration does not.

    Another task's head may be left out, and so may the stages that a backbone does not build.
    """
    stages = {match[1] for key in model.state_dict() if (match := ENCODER_STAGE.search(key))}
    is_backbone = isinstance(model, TwinsBackbone)
    for key in sorted(unused_weights):
        match = ENCODER_STAGE.search(key)
        if match and (match[1] in stages or not is_backbone):
            raise ValueError(
                f"{name} has weights of a larger model than its configuration, such as {key}: it is another model's "
                f"configuration; name a folder with both files of one model."
            )


def check_weights(name: str, model: Any, new_weights: set[str], task: str | None, allow_new_weights: bool) -> None:
    """Raise a ValueError if weights are newly initialized that should be trained."""
    if allow_new_weights:
        # Whatever else is new, the encoder begins with trained weights.
        new_weights = {key for key in new_weights if key.endswith("patch_embeddings.0.projection.weight")}
    if new_weights:
        raise ValueError(
            f"{name} lacks {len(new_weights)} weights of {type(model).__name__}, or has them in another shape, such as "
            f"{min(new_weights)}: name another model, or fine-tune this one first."
        )
    if task == "image-classification" and model.config.num_labels == 0:
        raise ValueError(f"{name} has no labels, but {TASKS[task].description} is needed: name another model.")


def base_model(name: str, adapter: dict[str, Any]) -> tuple[str, str]:
    """Name and revision of the model that an adapter was trained on."""
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name} does not say which model it adapts: set base_model_name_or_path in its {ADAPTER_CONFIG_NAME}."
        )
    return base, adapter.get("revision") or "main"


def load_adapter(name: str, revision: str, **options: Any) -> Any:
    """The base model with the adapter merged into it.

    Raises:
        OSError: if the base model cannot be loaded.
        ValueError: if the adapter does not fit it, or does not hold the weights that it lacks.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    adapter = read_json(name, ADAPTER_CONFIG_NAME, revision)
    base, base_revision = base_model(name, adapter)
    with naming_source(base):
        fields = read_fields(base, base_revision)
    if fields is None:
        raise ValueError(f"{name} is an adapter of {base}, which is an adapter itself: merge that one first.")
    base_class = saved_class(base, fields)
    # The adapter may be of another class than its base model was saved from, such as of a classifier on a backbone.
    model_class = MODEL_CLASSES.get((adapter.get("auto_mapping") or {}).get("base_model_class", base_class))
    if model_class is None:
        raise ValueError(f"{name} is an adapter of another class than {', '.join(MODEL_CLASSES)}: merge it yourself.")
    try:
        weights = load_peft_weights(name, device="cpu", revision=revision)
    except ValueError as error:
        raise OSError(f"cannot load {name}: it has {ADAPTER_CONFIG_NAME}, but no weights of an adapter") from error
    own_weights = {key.removeprefix(PEFT_PREFIX): weight for key, weight in weights.items()}
    head = next((weight for key, weight in own_weights.items() if key.endswith("classifier.weight")), None)
    if head is not None:
        # The labels of the base model are not those of another head.
        names = read_json(name, ADAPTER_LABELS_NAME, revision) or [f"LABEL_{index}" for index in range(len(head))]
        options |= label_fields(names)
    with naming_source(base):
        model, new_weights = load_class(model_class, base, revision=base_revision, **options)
    check_weights(name, model, new_weights - own_weights.keys(), None, allow_new_weights=False)
    try:
        # PEFT leaves out what has no place in the model, and initializes what the adapter lacks: an error here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, name, revision=revision)
        loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if differing := loaded.keys() ^ weights.keys():
            raise ValueError(f"only one of them has {min(differing)}")
        return adapted.merge_and_unload()
    except (AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} does not fit its base model {base}: {str(error).splitlines()[0]}") from error
