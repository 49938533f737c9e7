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
"""Tables of the formats of Twins checkpoints: how to recognize each, its weight names, and its settings.

Sources: https://github.com/Meituan-AutoML/Twins (`gvt.py`, `segmentation/gvt.py`), timm's `twins.py`, mmpretrain's
`backbones/twins.py`, mmsegmentation's `backbones/twins.py`, `necks/fpn.py`, `decode_heads/{uper,fpn,fcn}_head.py`.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, UperNetConfig, UperNetForSemanticSegmentation
from transformers.image_utils import PILImageResampling

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsModel,
    published_variant,
)
from hf_twins._utils.labels import label_names
from hf_twins.checkpoints import (
    BATCH_COUNTER,
    ORIGINAL_NAMES,
    NameRow,
    NameTable,
    StandIn,
    check_one_type,
    check_weights,
    infer_config,
    known_label_fields,
    listed,
)


def with_names(
    rows: Iterable[NameRow], replacements: Mapping[str, str] | None = None, prefix: str = "twins."
) -> list[NameRow]:
    """Copy rows, with the format's names replaced by regular expressions, and another prefix of the hf_twins names."""
    renamed = []
    for source_name, *hf_names in rows:
        for pattern, replacement in (replacements or {}).items():
            source_name = re.sub(pattern, replacement, source_name)
        renamed.append((source_name, *(re.sub(r"^twins\.", prefix, name) for name in hf_names)))
    return renamed


ENCODER = [row for row in ORIGINAL_NAMES if row[1].startswith("twins.encoder.")]
STAGE_NORMS: list[NameRow] = [("norm_list.{stage}.", "twins.encoder.stages.{stage}.layernorm.")]

# OpenMMLab's names for modules that mmcv builds.
OPENMMLAB = {
    r"^patch_embeds\.\{stage\}\.proj\.": "patch_embeds.{stage}.projection.",
    r"^pos_block\.\{stage\}\.proj\.0\.": "position_encodings.{stage}.proj.",
    r"\.mlp\.fc1\.": ".ffn.layers.0.0.",
    r"\.mlp\.fc2\.": ".ffn.layers.1.",
}
MMPRETRAIN_NAMES = [
    *with_names(ENCODER, OPENMMLAB | {r"^blocks\.": "stages.", r"^": "backbone."}),
    ("backbone.norm_after_stage3.", "twins.layernorm."),
    ("head.fc.", "classifier."),
]

# mmsegmentation's global attention is PyTorch's MultiheadAttention, which stacks queries, keys and values.
ATTENTION = "twins.encoder.stages.{stage}.layers.{global}.attention."
MMSEG_ENCODER = [
    *with_names(
        [row for row in ENCODER if not re.search(r"\.attn\.(q|kv|proj)\.", row[0])],
        OPENMMLAB | {r"^blocks\.": "layers."},
    ),
    ("layers.{stage}.{global}.attn.attn.in_proj_", *(f"{ATTENTION}{name}_proj." for name in ("q", "k", "v"))),
    ("layers.{stage}.{global}.attn.attn.out_proj.", f"{ATTENTION}o_proj."),
    ("layers.{stage}.{window}.attn.proj.", "twins.encoder.stages.{stage}.layers.{window}.attention.o_proj."),
    *STAGE_NORMS,
]

# mmsegmentation's heads, which the authors used, too. {level} is a level of the pyramid, {step} a layer on the path to
# it.
UPERNET_HEADS: list[NameRow] = [
    ("decode_head.conv_seg.", "decode_head.classifier."),
    ("auxiliary_head.conv_seg.", "auxiliary_head.classifier."),
]
for _module in (
    "decode_head.psp_modules.{level}.1.",
    "decode_head.bottleneck.",
    "decode_head.lateral_convs.{level}.",
    "decode_head.fpn_convs.{level}.",
    "decode_head.fpn_bottleneck.",
    "auxiliary_head.convs.{step}.",
):
    UPERNET_HEADS += [(f"{_module}conv.", f"{_module}conv."), (f"{_module}bn.", f"{_module}batch_norm.")]
SEMANTIC_FPN_HEADS: list[NameRow] = [
    ("neck.lateral_convs.{level}.conv.", "neck.lateral_convs.{level}."),
    ("neck.fpn_convs.{level}.conv.", "neck.output_convs.{level}."),
    ("decode_head.scale_heads.{level}.{step}.conv.", "decode_head.scale_heads.{level}.{step}.convolution."),
    ("decode_head.scale_heads.{level}.{step}.bn.", "decode_head.scale_heads.{level}.{step}.normalization."),
    ("decode_head.conv_seg.", "decode_head.classifier."),
]

# Properties that cannot be inferred from weights: the padding of feature maps to complete windows or patches, and the
# epsilon of layer norms.
AUTHORS_SEGMENTATION = {
    "window_padding": "authors_segmentation",
    "patch_padding": False,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
# All published classifiers have biases, and timm's class always has.
AUTHORS_CLASSIFICATION = AUTHORS_SEGMENTATION | {"window_padding": "zeros", "qkv_bias": True}
MMSEGMENTATION = {"window_padding": "authors_segmentation", "patch_padding": True, "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class CheckpointFormat:
    """One format.

    Args:
        name: name to display.
        toolbox: toolbox that reads the format: "official", "timm", "mmpretrain" or "mmseg".
        marks: name prefixes that occur in all checkpoints of the format, but not in other formats.
        rows: names of the format and of hf_twins.
        model_class: class of the converted models; None for classifiers and backbones, which are
            distinguished by their weights.
        config: fields of the `TwinsConfig` that the format determines.
        unused: prefixes of weights that checkpoints may contain but models never use.
        wrapped: whether the weights are under "state_dict", next to "meta".
    """

    name: str
    toolbox: str
    marks: tuple[str, ...]
    rows: list[NameRow]
    model_class: type[PreTrainedModel] | None
    config: Mapping[str, Any]
    unused: tuple[str, ...] = ()
    wrapped: bool = True
    table: NameTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", NameTable(tuple(self.rows), self.unused))


# Prefixes of the heads of mmdetection's models.
DETECTION_HEADS = ("rpn_head.", "roi_head.", "bbox_head.", "mask_head.")
# Weights from ImageNet training that remain in the authors' segmentation checkpoints.
LEFT_OVER = ("backbone.norm.", "backbone.head.")

FORMATS = (
    CheckpointFormat(
        name="authors' classification",
        toolbox="official",
        marks=("patch_embeds.0.proj.", "blocks.0.0."),
        rows=list(ORIGINAL_NAMES),
        model_class=None,
        config=AUTHORS_CLASSIFICATION,
        wrapped=False,
    ),
    CheckpointFormat(
        name="timm",
        toolbox="timm",
        # These are the authors' names, too. The format is recognized by its `config.json`.
        marks=("patch_embeds.0.proj.", "blocks.0.0."),
        rows=list(ORIGINAL_NAMES),
        model_class=None,
        config=AUTHORS_CLASSIFICATION,
        wrapped=False,
    ),
    CheckpointFormat(
        name="mmpretrain",
        toolbox="mmpretrain",
        marks=("backbone.stages.0.0.",),
        rows=MMPRETRAIN_NAMES,
        model_class=None,
        # The weights are the authors', with other names.
        config={"window_padding": "zeros"},
    ),
    CheckpointFormat(
        name="mmsegmentation backbone",
        toolbox="mmseg",
        marks=("layers.0.0.",),
        rows=[*MMSEG_ENCODER, ("norm.", "twins.layernorm.")],
        model_class=None,
        config=MMSEGMENTATION,
        wrapped=False,
    ),
    CheckpointFormat(
        name="mmsegmentation UperNet",
        toolbox="mmseg",
        marks=("backbone.layers.0.0.", "decode_head.psp_modules."),
        rows=[*with_names(MMSEG_ENCODER, {r"^": "backbone."}, prefix="backbone."), *UPERNET_HEADS],
        model_class=UperNetForSemanticSegmentation,
        config=MMSEGMENTATION,
    ),
    CheckpointFormat(
        name="mmsegmentation Semantic FPN",
        toolbox="mmseg",
        marks=("backbone.layers.0.0.", "neck.lateral_convs."),
        rows=[*with_names(MMSEG_ENCODER, {r"^": "backbone."}), *SEMANTIC_FPN_HEADS],
        model_class=TwinsForSemanticSegmentation,
        config=MMSEGMENTATION,
    ),
    CheckpointFormat(
        name="authors' UperNet",
        toolbox="official",
        marks=("backbone.blocks.0.0.", "decode_head.psp_modules."),
        rows=[*with_names([*ENCODER, *STAGE_NORMS], {r"^": "backbone."}, prefix="backbone."), *UPERNET_HEADS],
        model_class=UperNetForSemanticSegmentation,
        config=AUTHORS_SEGMENTATION,
        unused=LEFT_OVER,
    ),
    CheckpointFormat(
        name="authors' Semantic FPN",
        toolbox="official",
        marks=("backbone.blocks.0.0.", "neck.lateral_convs."),
        rows=[*with_names([*ENCODER, *STAGE_NORMS], {r"^": "backbone."}), *SEMANTIC_FPN_HEADS],
        model_class=TwinsForSemanticSegmentation,
        config=AUTHORS_SEGMENTATION,
        unused=LEFT_OVER,
    ),
)


@dataclass(frozen=True)
class Conversion:
    """A checkpoint and the model that it was converted to.

    Args:
        source_format: format of the checkpoint.
        source_weights: weights of the checkpoint, with their names there.
        model: hf_twins model with the same weights, in evaluation mode; it shares memory with them.
        variant: name of the architecture, if it is a published one.
        unused: names of weights in the checkpoint that the format's models never use, and that `model` lacks.
    """

    source_format: CheckpointFormat
    source_weights: Mapping[str, torch.Tensor]
    model: PreTrainedModel
    variant: str | None
    unused: tuple[str, ...]


def convert_checkpoint(
    weights: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any] | None = None,
    timm_config: Mapping[str, Any] | None = None,
    allow_mixed_types: bool = False,
) -> Conversion:
    """Convert the weights of a checkpoint in any format to a model.

    Args:
        weights: weights by their names in the checkpoint.
        meta: metadata saved by OpenMMLab's toolboxes, with the names of the classes.
        timm_config: fields of a `TwinsConfig` read from timm's `config.json`, for a timm checkpoint.
        allow_mixed_types: whether weights may have several floating-point types; all are converted to the widest one.

    Raises:
        ValueError: if the weights are not those of a Twins model, or some are missing, unknown, repeated, of the wrong
            shape or type, or not finite. The message names them.
    """
    source_format = detect_format(weights, is_timm=timm_config is not None)
    # Check dtypes and claimed sizes before computing anything from the weights.
    check_weights(weights, "The checkpoint")
    weights = in_one_type(weights, allow_mixed_types)
    not_finite = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    if not_finite:
        raise ValueError(f"The checkpoint has NaN or infinity in {listed(not_finite)}.")
    table = source_format.table
    hf_weights = table.to_hf(weights)
    fields = dict(timm_config or infer_config(hf_weights, table.window_layers(weights)))
    if timm_config is None:
        num_labels = next((len(hf_weights[name]) for name in CLASSIFIERS if name in hf_weights), 0)
        fields |= {"num_labels": num_labels} | known_label_fields(num_labels, class_names(num_labels, meta or {}))
    model_class, config = build_config(source_format, fields | dict(source_format.config), hf_weights)
    if model_class in WITHOUT_HEAD:
        hf_weights = {name.removeprefix("twins."): weight for name, weight in hf_weights.items()}
    return Conversion(
        source_format=source_format,
        source_weights=weights,
        model=build_model(model_class, config, hf_weights),
        variant=published_variant(fields),
        unused=tuple(name for name in weights if table.unused and name.startswith(table.unused)),
    )


# Of UperNet, in mmsegmentation's configurations of Twins.
POOL_SCALES = [1, 2, 3, 6]
CLASSIFIERS = ("classifier.weight", "decode_head.classifier.weight")
# Models whose weights have no prefix. In models with a head, the prefix is "twins.".
WITHOUT_HEAD = (TwinsModel, TwinsBackbone)


def in_one_type(weights: Mapping[str, torch.Tensor], allow_mixed_types: bool) -> Mapping[str, torch.Tensor]:
    """Convert all weights to the same floating-point type, without loss."""
    if not allow_mixed_types:
        check_one_type(weights, "set --dtype to the type to write them in")
        return weights
    dtypes = {weight.dtype for name, weight in weights.items() if not name.endswith(BATCH_COUNTER)}
    widest = functools.reduce(torch.promote_types, dtypes)
    return {name: weight if name.endswith(BATCH_COUNTER) else weight.to(widest) for name, weight in weights.items()}


def detect_format(names: Iterable[str], is_timm: bool = False) -> CheckpointFormat:
    """Find the format that uses these names.

    Raises:
        ValueError: if no format does.
    """
    names = list(names)
    if any(name.startswith(DETECTION_HEADS) for name in names):
        raise ValueError(
            "This is a checkpoint of a detector of mmdetection, which cannot be converted: convert the ImageNet checkpoint, "
            "and train a detector with examples/object_detection."
        )
    for source_format in FORMATS:
        has_marks = all(any(name.startswith(mark) for name in names) for mark in source_format.marks)
        if has_marks and is_timm == (source_format.toolbox == "timm"):
            return source_format
    raise ValueError(
        f"This is not a checkpoint of a Twins model in a known format ({', '.join(each.name for each in FORMATS)}). Its "
        f"weights are called {listed(names, limit=4)}."
    )


def class_names(num_labels: int, meta: Mapping[str, Any]) -> list[str] | None:
    """The checkpoint's label names or, without them, those of ImageNet-1k or ADE20K if the number of labels matches.

    Raises:
        ValueError: if the checkpoint has something other than names, or a wrong number of names.
    """
    if (saved := saved_class_names(meta)) is not None:
        key, names = saved
        return ordered_names(names, key, num_labels)
    return ade20k_class_names() if num_labels == 150 else None


def saved_class_names(meta: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The checkpoint's label names, and the key under which they are stored.

    Raises:
        ValueError: if they may be in an object that was not loaded.
    """
    dataset = meta.get("dataset_meta")
    if isinstance(dataset, StandIn):
        raise ValueError(
            f"The checkpoint's dataset_meta is of type {dataset.name}: save it as a plain dictionary, or remove it."
        )
    fields = [(meta, "CLASSES")]
    if isinstance(dataset, Mapping):
        fields += [(dataset, "classes"), (dataset, "CLASSES")]
    for holder, key in fields:
        if holder.get(key) is not None:
            return key, holder[key]
    return None


def ade20k_class_names() -> list[str]:
    """The names of ADE20K's 150 classes, in the order of their numbers."""
    return Path(__file__).with_name("ade20k_classes.txt").read_text(encoding="utf-8").splitlines()


def ordered_names(names: Any, key: str, num_labels: int) -> list[str] | None:
    """Return names in the order of their numbers, which are the keys or the values if `names` is a dictionary."""
    if num_labels == 0:
        # In a checkpoint without a head, the names are those of the training data.
        return None
    if isinstance(names, Mapping):
        pairs = list(names.items())
        if not all(isinstance(name, str) for _, name in pairs):
            pairs = [(number, name) for name, number in pairs]
        by_number = {str(number): name for number, name in pairs}
        names = [by_number.get(str(number)) for number in range(len(pairs))]
        if None in names:
            raise ValueError(
                f"The checkpoint's {key} must number its names from 0 on, got {listed(list(by_number))}: fix it, or remove it."
            )
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"The checkpoint's {key} must be a list of names, got {names.name if isinstance(names, StandIn) else type(names).__name__}: "
            "fix it, or remove it."
        )
    if len(names) != num_labels:
        raise ValueError(
            f"The checkpoint's {key} must have a name for each of the {num_labels} classes of its head, got {len(names)}: fix "
            "it, or remove it."
        )
    return list(names)


def build_config(
    source_format: CheckpointFormat, fields: dict[str, Any], hf_weights: Mapping[str, torch.Tensor]
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Infer the class and the configuration of the model that has these weights."""
    labels = {name: fields.pop(name) for name in ("num_labels", "id2label") if name in fields}
    if source_format.model_class is UperNetForSemanticSegmentation:
        fields["out_features"] = [f"stage{stage}" for stage in range(1, len(fields["depths"]) + 1)]
        config = UperNetConfig(
            backbone_config=TwinsConfig(**fields),
            hidden_size=height(hf_weights, "decode_head.bottleneck.conv.weight"),
            auxiliary_channels=height(hf_weights, "auxiliary_head.convs.0.conv.weight", default=256),
            auxiliary_num_convs=sum(
                bool(re.match(r"auxiliary_head\.convs\.\d+\.conv\.", name)) for name in hf_weights
            ),
            use_auxiliary_head="auxiliary_head.classifier.weight" in hf_weights,
            **labels,
        )
        return UperNetForSemanticSegmentation, config
    if source_format.model_class is TwinsForSemanticSegmentation:
        fields["fpn_hidden_size"] = height(hf_weights, "neck.lateral_convs.0.weight")
        fields["decoder_hidden_size"] = height(hf_weights, "decode_head.scale_heads.0.0.convolution.weight")
        return TwinsForSemanticSegmentation, TwinsConfig(**fields, **labels)
    if "classifier.weight" in hf_weights:
        return TwinsForImageClassification, TwinsConfig(**fields, **labels)
    return (TwinsModel if "twins.layernorm.weight" in hf_weights else TwinsBackbone), TwinsConfig(**fields)


def height(weights: Mapping[str, torch.Tensor], name: str, default: int | None = None) -> int:
    if name in weights:
        return weights[name].shape[0]
    if default is None:
        raise ValueError(f"The checkpoint lacks {name}.")
    return default


def build_model(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """Build a model of these tensors, without copying them.

    Raises:
        ValueError: if weights are missing, unexpected or of the wrong shape.
    """
    with torch.device("meta"):
        model = model_class(config).eval()
    expected = model.state_dict()
    # Older checkpoints lack the counter, which is not used in evaluation.
    counters = {name: torch.tensor(0) for name in expected if name.endswith(BATCH_COUNTER)}
    weights = counters | dict(weights)
    if missing := [name for name in expected if name not in weights]:
        raise ValueError(f"The checkpoint lacks the weights of {listed(missing)}.")
    if unexpected := [name for name in weights if name not in expected]:
        raise ValueError(f"The checkpoint has weights that its model lacks: {listed(unexpected)}.")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"The checkpoint's weights of {name} must have the shape {tuple(expected[name].shape)}, got "
                f"{tuple(weight.shape)}."
            )
    model.load_state_dict(weights, assign=True)
    return model


def image_processor(conversion: Conversion, preprocessing: Mapping[str, Any] | None = None) -> TwinsImageProcessor:
    """Create the image processor of a converted model: mmsegmentation's for ADE20K, timm's evaluation transforms, or the authors'.

    Args:
        conversion: the converted model.
        preprocessing: fields of a classifier's image processor, if the checkpoint has them.
    """
    if isinstance(conversion.model, UperNetForSemanticSegmentation | TwinsForSemanticSegmentation):
        # mmsegmentation's own list has a space after one of the names.
        names = [name.strip() for name in label_names(conversion.model.config)]
        # For the published mIoU, the shorter side is 512 pixels, and the longer one at most 2048.
        return TwinsImageProcessor(
            size={"shortest_edge": 512, "longest_edge": 2048},
            resample=PILImageResampling.BILINEAR,
            do_center_crop=False,
            # In ADE20K's masks, 0 means no class. This need not be so in another dataset with 150 classes.
            do_reduce_labels=names == ade20k_class_names(),
        )
    return TwinsImageProcessor(**(preprocessing or {}))


def revert_model(model: PreTrainedModel, toolbox: str) -> tuple[CheckpointFormat, dict[str, torch.Tensor], list[str]]:
    """Convert the weights of a model to the names of a toolbox.

    Args:
        model: a model of a class in `FORMATS`, or a classifier or its parts.
        toolbox: "official", "timm", "mmpretrain" or "mmseg".

    Returns:
        The format, the weights, and the names of the model's weights that the format lacks: a classifier's
        head in mmsegmentation, where it becomes a backbone.

    Raises:
        ValueError: if the toolbox has no such model.
    """
    is_segmenter = isinstance(model, UperNetForSemanticSegmentation | TwinsForSemanticSegmentation)
    for target in FORMATS:
        if target.toolbox == toolbox and target.model_class is (type(model) if is_segmenter else None):
            break
    else:
        raise ValueError(f"{toolbox} has no model like {type(model).__name__}.")
    config: Any = getattr(model.config, "backbone_config", model.config)
    names = list(model.state_dict())
    num_stages = len({match[1] for name in names if (match := re.search(r"encoder\.stages\.(\d+)\.", name))})
    if num_stages < len(config.depths):
        raise ValueError(
            f"{target.name} has models with all {len(config.depths)} stages, but this {type(model).__name__} has only the first "
            f"{num_stages}: save one with the last stage among its out_features, or the complete model."
        )
    if toolbox == "timm" and isinstance(model, TwinsBackbone):
        raise ValueError("timm has no models without a final layer norm, such as TwinsBackbone: save a TwinsModel.")
    if list(getattr(model.config, "pool_scales", POOL_SCALES)) != POOL_SCALES:
        raise ValueError(
            f"{target.name} has only models with pool_scales={POOL_SCALES}, got {list(model.config.pool_scales)}: they cannot "
            "be converted."
        )
    if config.use_stage_norm and not any("norm_list." in source_name for source_name, *_ in target.rows):
        raise ValueError(
            f"{target.name} has no models with use_stage_norm=True: {type(model).__name__} cannot be converted."
        )
    prefix = "twins." if isinstance(model, WITHOUT_HEAD) else ""
    weights = {f"{prefix}{name}": weight for name, weight in model.state_dict().items()}
    left_out = [
        name for name in weights if target.name == "mmsegmentation backbone" and name.startswith("classifier.")
    ]
    for name in left_out:
        weights.pop(name)
    return target, target.table.to_source(weights, config.window_size), left_out
