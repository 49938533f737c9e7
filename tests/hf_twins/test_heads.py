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
"""Every head of transformers that takes a `backbone_config`: trained, saved and padded with a Twins backbone, or refused.

tests/README.md lists them. These tests fail if a head stops working, or starts to work.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from testing_utils import FAMILIES, randomize, rectangle_mask, tiny_config
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_twins import TwinsBackbone, TwinsModel, pass_pixel_mask_to_backbone


pytestmark = pytest.mark.slow

BATCH_SIZE = 2
# The sides are different, and not multiples of any stride of the tiny backbones.
ODD_SIZE = (69, 97)
WHOLE_STRIDES = (64, 96)

THREE_STAGES = {"out_features": ["stage1", "stage2", "stage3"]}
FOUR_STAGES = {
    "hidden_sizes": [16, 32, 48, 64],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [2, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TRANSFORMER = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 6,
}
DETR = TRANSFORMER | {"d_model": 32}
# Masks are computed from the queries' channels and heads, in groups of 8.
DETR_MASKS = TRANSFORMER | {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
RT_DETR = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 32, 48],
    "feat_strides": [2, 4, 8],
    "decoder_in_channels": [32, 32, 32],
}
MASKS = {
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 10,
    "train_num_points": 50,
    "num_labels": 3,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 1100,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CLIP_TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "projection_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "pad_token_id": 0,
}


def images(height: int, width: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(BATCH_SIZE, 3, height, width)}


def images_and_labels(height: int, width: int) -> dict[str, Any]:
    return images(height, width) | {"labels": torch.randint(0, 4, (BATCH_SIZE, height, width))}


def images_and_boxes(height: int, width: int) -> dict[str, Any]:
    labels = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}
    return images(height, width) | {"labels": [dict(labels) for _ in range(BATCH_SIZE)]}


def images_and_box_masks(height: int, width: int) -> dict[str, Any]:
    inputs = images_and_boxes(height, width)
    for labels in inputs["labels"]:
        labels["masks"] = torch.randint(0, 2, (1, height, width)).float()
    return inputs


def images_and_masks(height: int, width: int) -> dict[str, Any]:
    return images(height, width) | {
        "mask_labels": [torch.randint(0, 2, (2, height, width)).float() for _ in range(BATCH_SIZE)],
        "class_labels": [torch.tensor([0, 1]) for _ in range(BATCH_SIZE)],
    }


def images_tasks_and_masks(height: int, width: int) -> dict[str, Any]:
    return images_and_masks(height, width) | {
        "task_inputs": torch.randint(0, 50, (BATCH_SIZE, 7)),
        "text_inputs": torch.randint(0, 50, (BATCH_SIZE, 6, 7)),
    }


def images_text_and_boxes(height: int, width: int) -> dict[str, Any]:
    # "[CLS] a . b . [SEP]", with the ids of these tokens in BERT's vocabulary.
    return images_and_boxes(height, width) | {"input_ids": torch.tensor([[101, 5, 1012, 2, 1012, 102]] * BATCH_SIZE)}


def images_and_classes(height: int, width: int) -> dict[str, Any]:
    classes, task = torch.randint(1, 40, (2 * BATCH_SIZE, 5)), torch.randint(1, 40, (BATCH_SIZE, 5))
    return images(height, width) | {
        "classes_input_ids": classes,
        "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": task,
        "tasks_attention_mask": torch.ones_like(task),
        "classes_structure": torch.full((BATCH_SIZE,), 2),
    }


def video_and_text(height: int, width: int) -> dict[str, Any]:
    # The head supports only one video (`TvpVisualInputEmbedding` reshapes positions by the batch size).
    return {
        "pixel_values": torch.randn(1, 2, 3, height, width),
        "input_ids": torch.randint(0, 50, (1, 6)),
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
        "labels": [torch.tensor([10.0]), torch.tensor([0.1]), torch.tensor([0.5])],
    }


def images_and_trimaps(height: int, width: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(BATCH_SIZE, 4, height, width)}


@dataclass(frozen=True)
class Head:
    """A small model of transformers.

    Args:
        model: name of the model class.
        backbone: fields of the Twins backbone, in addition to those of `tiny_config`.
        fields: fields of the model's configuration.
        inputs: creates the inputs for images of a height and width.
        has_loss: whether the model computes a loss; otherwise, the test computes one from the first output.
        size: size of the images in pixels. Some heads add feature maps of neighboring strides, and so need multiples.
    """

    model: str
    backbone: dict[str, Any]
    fields: dict[str, Any]
    inputs: Callable[[int, int], dict[str, Any]] = images_and_boxes
    has_loss: bool = True
    size: tuple[int, int] = ODD_SIZE

    def build(self, family: str) -> nn.Module:
        model_class = getattr(transformers, self.model)
        # Each call creates a configuration, because models modify it.
        fields = {name: dict(value) if isinstance(value, dict) else value for name, value in self.fields.items()}
        config = model_class.config_class(backbone_config=tiny_config(family, **self.backbone), **fields)
        return randomize_backbone(model_class(config)).eval()


def randomize_backbone(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, TwinsBackbone | TwinsModel):
            randomize(module)
    return model


LAST_STAGE = {"out_features": ["stage3"]}
HEADS = {
    "upernet": Head(
        "UperNetForSemanticSegmentation",
        THREE_STAGES,
        {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_in_channels": 48, "num_labels": 4},
        images_and_labels,
    ),
    "detr": Head("DetrForObjectDetection", LAST_STAGE, DETR),
    "detr-masks": Head("DetrForSegmentation", FOUR_STAGES, DETR_MASKS, images_and_box_masks),
    "conditional_detr": Head("ConditionalDetrForObjectDetection", LAST_STAGE, DETR),
    "conditional_detr-masks": Head("ConditionalDetrForSegmentation", FOUR_STAGES, DETR_MASKS, images_and_box_masks),
    "deformable_detr": Head(
        "DeformableDetrForObjectDetection",
        {"out_features": ["stage2", "stage3"]},
        DETR | {"num_feature_levels": 3, "two_stage": True, "with_box_refine": True},
    ),
    "dab-detr": Head("DabDetrForObjectDetection", LAST_STAGE, TRANSFORMER | {"hidden_size": 32}),
    "table-transformer": Head("TableTransformerForObjectDetection", LAST_STAGE, DETR),
    "rt_detr": Head("RTDetrForObjectDetection", THREE_STAGES, DETR | RT_DETR, size=WHOLE_STRIDES),
    "rt_detr_v2": Head("RTDetrV2ForObjectDetection", THREE_STAGES, DETR | RT_DETR, size=WHOLE_STRIDES),
    "d_fine": Head("DFineForObjectDetection", THREE_STAGES, DETR | RT_DETR, size=WHOLE_STRIDES),
    "deimv2": Head("Deimv2ForObjectDetection", THREE_STAGES, DETR | RT_DETR, size=WHOLE_STRIDES),
    "maskformer": Head(
        "MaskFormerForInstanceSegmentation",
        FOUR_STAGES,
        {
            "decoder_config": DETR | {"model_type": "detr"},
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "num_labels": 3,
        },
        images_and_masks,
    ),
    "mask2former": Head(
        "Mask2FormerForUniversalSegmentation",
        FOUR_STAGES,
        MASKS | {"feature_size": 32, "feature_strides": [2, 4, 8, 16]},
        images_and_masks,
    ),
    "oneformer": Head(
        "OneFormerForUniversalSegmentation",
        FOUR_STAGES,
        {name: value for name, value in MASKS.items() if name != "mask_feature_size"}
        | {
            "is_training": True,
            "conv_dim": 64,
            "mask_dim": 64,
            "hidden_dim": 64,
            "strides": [2, 4, 8, 16],
            "text_encoder_width": 64,
            "text_encoder_context_length": 7,
            "text_encoder_num_layers": 1,
            "text_encoder_vocab_size": 50,
            "text_encoder_n_ctx": 4,
            "task_seq_len": 7,
            "query_dec_layers": 1,
        },
        images_tasks_and_masks,
    ),
    "grounding-dino": Head(
        "GroundingDinoForObjectDetection",
        {"out_features": ["stage2", "stage3"]},
        DETR | {"text_config": BERT, "num_feature_levels": 3, "max_text_len": 8, "num_labels": 3},
        images_text_and_boxes,
    ),
    "mm-grounding-dino": Head(
        "MMGroundingDinoForObjectDetection",
        {"out_features": ["stage2", "stage3"]},
        DETR | {"text_config": BERT, "num_feature_levels": 3, "max_text_len": 8, "num_labels": 3},
        images_text_and_boxes,
    ),
    "omdet-turbo": Head(
        "OmDetTurboForObjectDetection",
        THREE_STAGES,
        {
            "text_config": CLIP_TEXT,
            # The norms are for Swin's feature maps, which timm returns with channels last.
            "apply_layernorm_after_vision_backbone": False,
            "text_projection_in_dim": 32,
            "text_projection_out_dim": 32,
            "task_encoder_hidden_dim": 32,
            "class_embed_dim": 32,
            "num_queries": 6,
            "encoder_hidden_dim": 16,
            "vision_features_channels": [16, 16, 16],
            "encoder_in_channels": [16, 32, 48],
            "encoder_attention_heads": 2,
            "encoder_dim_feedforward": 32,
            "decoder_hidden_dim": 16,
            "decoder_num_heads": 2,
            "decoder_num_layers": 2,
            "decoder_dim_feedforward": 32,
        },
        images_and_classes,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "tvp": Head(
        "TvpForVideoGrounding",
        LAST_STAGE,
        {
            "num_frames": 2,
            "max_img_size": 96,
            "visual_prompt_size": 8,
            "vocab_size": 50,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        video_and_text,
        # The model adds its prompts around square images.
        size=(96, 96),
    ),
    "pp_doclayout_v2": Head(
        "PPDocLayoutV2ForObjectDetection",
        THREE_STAGES,
        DETR
        | RT_DETR
        | {
            "num_labels": 3,
            "class_thresholds": [0.5, 0.5, 0.5],
            "class_order": [0, 1, 2],
            "reading_order_config": {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "coordinate_size": 5,
                "shape_size": 6,
                "max_position_embeddings": 40,
                "num_classes": 3,
            },
        },
        images,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "pp_doclayout_v3": Head(
        "PPDocLayoutV3ForObjectDetection",
        FOUR_STAGES,
        DETR
        | RT_DETR
        | {
            "encoder_in_channels": [32, 48, 64],
            "feat_strides": [4, 8, 16],
            "x4_feat_dim": 16,
            "mask_feature_channels": [16, 16],
            "num_prototypes": 8,
            "num_labels": 3,
        },
        images,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "pp_doclayout_v4": Head(
        "PPDocLayoutV4ForObjectDetection",
        THREE_STAGES,
        TRANSFORMER | RT_DETR | {"hidden_size": 32, "num_labels": 3},
        images,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "pp_ocrv5_mobile_det": Head(
        "PPOCRV5MobileDetForObjectDetection",
        FOUR_STAGES,
        {"neck_out_channels": 16, "layer_list_out_channels": [8, 8, 8, 8]},
        images,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "pp_ocrv6_small_det": Head(
        "PPOCRV6SmallDetForObjectDetection",
        FOUR_STAGES,
        {"neck_out_channels": 16, "layer_list_out_channels": [16, 32, 48, 64]},
        images,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "slanet": Head(
        "SLANetForTableRecognition",
        FOUR_STAGES | {"out_features": ["stage2", "stage3", "stage4"]},
        {"post_conv_out_channels": 16, "out_channels": 10, "hidden_size": 16, "max_text_length": 5},
        images,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
    "vitmatte": Head(
        "VitMatteForImageMatting",
        # The inputs are images with trimaps. The model has as many strides of 2 as the backbone up to its feature map.
        LAST_STAGE | {"num_channels": 4},
        {"hidden_size": 48, "convstream_hidden_sizes": [8, 8], "fusion_hidden_sizes": [16, 8, 8]},
        images_and_trimaps,
        has_loss=False,
        size=WHOLE_STRIDES,
    ),
}
# The heads above that support any size, except that they add feature maps.
WANT_WHOLE_STRIDES = [name for name, head in HEADS.items() if head.size == WHOLE_STRIDES]


@dataclass(frozen=True)
class Misfit:
    """A model of transformers that needs a property of its backbone that Twins does not have.

    Args:
        model: name of the model class.
        error: regular expression for the error, when the model is created or called.
        fields: fields of the model's configuration.
    """

    model: str
    error: str
    fields: dict[str, Any] = field(default_factory=dict)


DEPTH = {"neck_hidden_sizes": [16, 16, 16, 16], "fusion_hidden_size": 16}
SAM = {"backbone_channel_list": [64, 48, 32, 16], "fpn_hidden_size": 16}
MISFITS = {
    "dpt": Misfit("DPTForDepthEstimation", "too many values to unpack", DEPTH),
    "depth_anything": Misfit("DepthAnythingForDepthEstimation", "too many values to unpack", DEPTH),
    "prompt_depth_anything": Misfit("PromptDepthAnythingForDepthEstimation", "too many values to unpack", DEPTH),
    "zoedepth": Misfit(
        "ZoeDepthForDepthEstimation",
        "Sizes of tensors must match",
        DEPTH | {"readout_type": "ignore", "bin_configurations": [{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0}]},
    ),
    "chmv2": Misfit(
        "CHMv2ForDepthEstimation", "cls_tokens", {"post_process_channels": [16] * 4, "fusion_hidden_size": 16}
    ),
    "tipsv2_dpt": Misfit("Tipsv2DptForDepthEstimation", "num_register_tokens", DEPTH),
    "vitpose": Misfit("VitPoseForPoseEstimation", "image_size"),
    "lw_detr": Misfit("LwDetrForObjectDetection", "pretrain_image_size", {"projector_scale_factors": [1.0]}),
    "rf_detr": Misfit("RfDetrForObjectDetection", "use_mask_token", {"projector_scale_factors": [1.0]}),
    "sam2_vision_model": Misfit("Sam2VisionModel", "intermediate_hidden_states", SAM),
    "sam3_vision_model": Misfit("Sam3VisionModel", ".", {"fpn_hidden_size": 16}),
    "edgetam_vision_model": Misfit("EdgeTamVisionModel", "permute", SAM),
    "uvdoc": Misfit("UVDocModel", "resnet_head"),
    "pp_ocrv5_server_det": Misfit("PPOCRV5ServerDetForObjectDetection", "stage_out_channels"),
    "pp_ocrv5_server_rec": Misfit("PPOCRV5ServerRecForTextRecognition", "stage_out_channels"),
    "pp_ocrv5_mobile_rec": Misfit("PPOCRV5MobileRecForTextRecognition", "block_configs"),
    "pp_ocrv6_medium_det": Misfit("PPOCRV6MediumDetForObjectDetection", "stage_out_channels"),
    "pp_ocrv6_small_rec": Misfit("PPOCRV6SmallRecForTextRecognition", "block_configs"),
    "pp_ocrv6_tiny_rec": Misfit("PPOCRV6TinyRecForTextRecognition", "block_configs"),
}


def with_families(names: list[str]) -> pytest.MarkDecorator:
    """Run a test for each head and family, and skip heads that an older transformers version does not have."""
    return pytest.mark.parametrize(
        ("name", "family"),
        [pytest.param(name, family, id=f"{name}-{family}") for name in names for family in FAMILIES],
    )


@pytest.fixture(autouse=True)
def in_this_transformers(request) -> None:
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name is not None:
        model = (HEADS | MISFITS)[name].model
        if not hasattr(transformers, model):
            pytest.skip(f"transformers {transformers.__version__} has no {model}")


def backbone_of(model: nn.Module) -> TwinsBackbone:
    (backbone,) = (module for module in model.modules() if isinstance(module, TwinsBackbone))
    return backbone


@dataclass(frozen=True)
class Call:
    """A model's outputs, and the inputs and outputs of its backbone."""

    outputs: Any
    pixel_values: torch.Tensor
    feature_maps: tuple[torch.Tensor, ...]


def call(model: nn.Module, inputs: dict[str, Any]) -> Call:
    seen = []
    handle = backbone_of(model).register_forward_hook(
        lambda module, args, kwargs, output: seen.append((*args, *kwargs.values(), output)), with_kwargs=True
    )
    torch.manual_seed(1)
    outputs = model(**inputs)
    handle.remove()
    (passed,) = seen
    return Call(outputs, passed[0], passed[-1].feature_maps)


def real_tensors(outputs: Any) -> list[torch.Tensor]:
    """All real-valued outputs, such as logits, boxes, masks and alphas, except the loss."""
    values = [value for name, value in outputs.items() if not name.startswith("loss")]
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


@with_families(list(HEADS))
def test_head_trains_its_twins_backbone(name, family):
    head = HEADS[name]
    model = head.build(family).train()
    result = call(model, head.inputs(*head.size))
    assert len(result.feature_maps) == len(head.backbone["out_features"])
    if head.has_loss:
        loss = result.outputs.loss.sum()
    else:
        assert getattr(result.outputs, "loss", None) is None
        loss = sum(tensor.square().mean() for tensor in real_tensors(result.outputs) if tensor.requires_grad)
    assert loss.isfinite()
    loss.backward()
    gradients = {name: weight.grad for name, weight in backbone_of(model).named_parameters() if weight.requires_grad}
    assert {name for name, gradient in gradients.items() if gradient is None} == set()
    assert {name for name, gradient in gradients.items() if not gradient.isfinite().all()} == set()
    # Gradients flow from the head down to the pixels.
    assert any(gradient.abs().max() > 0 for name, gradient in gradients.items() if "patch_embeddings.0" in name)


@with_families(list(HEADS))
def test_head_saves_and_reloads_its_twins_backbone(tmp_path, name, family):
    head = HEADS[name]
    model = head.build(family)
    inputs = head.inputs(*head.size)
    with torch.no_grad():
        outputs = call(model, inputs).outputs
    model.save_pretrained(tmp_path)
    reloaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    configs = [backbone_of(model).config.to_dict(), backbone_of(reloaded).config.to_dict()]
    for config in configs:
        # Loading sets this field.
        config.pop("dtype")
    assert configs[0] == configs[1]
    with torch.no_grad():
        result = call(reloaded, inputs)
        # Load only the backbone from the same weights.
        backbone = TwinsBackbone(tiny_config(family, **head.backbone)).eval()
        backbone.load_state_dict(backbone_of(model).state_dict())
        expected = backbone(result.pixel_values).feature_maps
    # Results are not identical, because rounding of convolutions depends on the memory layout of loaded weights.
    tensors = real_tensors(outputs)
    assert tensors
    for actual, expected_tensor in zip(real_tensors(result.outputs), tensors, strict=True):
        torch.testing.assert_close(actual, expected_tensor, rtol=1e-4, atol=1e-4)
    for actual, own in zip(result.feature_maps, expected, strict=True):
        torch.testing.assert_close(actual, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_head_gets_the_same_feature_maps_with_hidden_states(name):
    head = HEADS[name]
    model = head.build("svt")
    inputs = head.inputs(*head.size)
    with torch.no_grad():
        expected = call(model, inputs).feature_maps
        for kwargs in ({"output_hidden_states": True, "output_attentions": True}, {}):
            feature_maps = call(model, inputs | kwargs).feature_maps
            for actual, own in zip(feature_maps, expected, strict=True):
                torch.testing.assert_close(actual, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WANT_WHOLE_STRIDES)
def test_head_that_needs_multiples_of_the_stride_refuses_other_sizes(name):
    # The head needs multiples. The backbone supports any size, as tests of other heads show.
    head = HEADS[name]
    model = head.build("svt")
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"(?i)sizes? of tensor"):
        model(**head.inputs(*ODD_SIZE))


MASKED = [
    name
    for name, head in HEADS.items()
    # These heads are tested in test_pixel_mask_in_heads.py.
    if name not in ("detr", "conditional_detr", "deformable_detr", "rt_detr", "d_fine", "upernet")
    and hasattr(transformers, head.model)
    and "pixel_mask" in inspect.signature(getattr(transformers, head.model).forward).parameters
]


@with_families(MASKED)
def test_head_passes_its_pixel_mask_to_the_backbone(name, family):
    head = HEADS[name]
    model = head.build(family)
    pass_pixel_mask_to_backbone(model)
    inputs = head.inputs(64, 96)
    sizes = [(64, 96), (48, 80)]
    inputs["pixel_mask"] = rectangle_mask(sizes, 64, 96)
    for key in ("labels", "mask_labels", "class_labels", "text_inputs"):
        inputs.pop(key, None)
    if name == "oneformer":
        # The texts are only for the contrastive loss, which is not computed without labels.
        model.model.is_training = False
    backbone = backbone_of(model)
    with torch.no_grad():
        feature_maps = call(model, inputs).feature_maps
        for index, (height, width) in enumerate(sizes):
            alone = backbone(inputs["pixel_values"][index : index + 1, :, :height, :width]).feature_maps
            for together, own in zip(feature_maps, alone, strict=True):
                image = together[index : index + 1, :, : own.shape[2], : own.shape[3]]
                torch.testing.assert_close(image, own, rtol=1e-4, atol=1e-4)
                assert together[index, :, own.shape[2] :].abs().sum() == 0
                assert together[index, :, :, own.shape[3] :].abs().sum() == 0


@pytest.mark.parametrize("name", MISFITS)
def test_head_that_needs_another_kind_of_backbone_raises_an_error(name):
    misfit = MISFITS[name]
    with torch.no_grad(), pytest.raises(Exception, match=misfit.error):
        Head(misfit.model, FOUR_STAGES, misfit.fields).build("svt")(torch.randn(2, 3, 64, 96))


def test_hybrid_dpt_predicts_depth():
    fields = {
        "is_hybrid": True,
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "backbone_featmap_shape": [1, 48, 4, 4],
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [16, 32, 48, 48],
        "fusion_hidden_size": 16,
    }
    model = Head("DPTForDepthEstimation", THREE_STAGES | {"patch_size": 4}, fields).build("svt")
    with torch.no_grad():
        result = call(model, images(64, 64))
    assert [tuple(each.shape[1:]) for each in result.feature_maps] == [(16, 16, 16), (32, 8, 8), (48, 4, 4)]
    assert result.outputs.predicted_depth.shape == (2, 64, 64)


def test_every_head_of_transformers_is_listed():
    """Every head must be listed here and in tests/README.md, so that a new one is noticed."""
    with_backbone = {
        model_type
        for model_type, config_class in CONFIG_MAPPING.items()
        if "backbone_config" in getattr(config_class, "__dataclass_fields__", {})
        and config_class.__module__.startswith("transformers.")
    }
    assert len(with_backbone) > 30
    # MaskFormer's decoder is a DETR without its backbone.
    assert with_backbone - {"maskformer_detr", "maskformer-detr"} - HEADS.keys() - MISFITS.keys() == set()
    page = (Path(__file__).parents[1] / "README.md").read_text()
    assert {head.model for head in (HEADS | MISFITS).values() if f"`{head.model}`" not in page} == set()
