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
"""Saving, loading, compiling and exporting, which transformers supports for every model."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from testing_utils import FAMILIES, TWO_STAGES, randomize, rectangle_mask, tiny_config
from torch import nn
from torch.export import Dim
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    DetrConfig,
    DetrForObjectDetection,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    default_data_collator,
    pipeline,
)

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
    TwinsModel,
)
from hf_twins.modeling_twins import TwinsLayer, TwinsPatchEmbeddings


MODEL_CLASSES = [TwinsModel, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsBackbone]


def first_output(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(*inputs)[0]
    return output[-1] if isinstance(output, tuple) else output


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_saved_model_computes_the_same(tmp_path, model_class, family, max_shard_size):
    model = randomize(model_class(tiny_config(family, use_stage_norm=True)))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert list(tmp_path.glob("*.safetensors"))
    reloaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not reloaded.training
    pixel_values = torch.randn(2, 3, 29, 41)
    assert torch.equal(first_output(model, pixel_values), first_output(reloaded, pixel_values))


@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_model_loads_in_the_requested_dtype(tmp_path, model_class, dtype):
    randomize(model_class(tiny_config())).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert first_output(model, torch.randn(1, 3, 29, 41, dtype=dtype)).dtype == dtype


def test_classifier_is_a_checkpoint_of_model_and_backbone(tmp_path):
    classifier = randomize(TwinsForImageClassification(tiny_config()))
    classifier.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 29, 41)
    for model_class in (TwinsModel, TwinsBackbone):
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        expected = classifier.twins(pixel_values, output_hidden_states=True)
        if model_class is TwinsModel:
            assert torch.equal(model(pixel_values).pooler_output, expected.pooler_output)
        else:
            assert torch.equal(model(pixel_values).feature_maps[0], expected.hidden_states[-1])


@pytest.mark.parametrize("use_stage_norm", [False, True])
def test_classifier_is_a_checkpoint_of_a_segmentation_model(tmp_path, use_stage_norm):
    classifier = randomize(TwinsForImageClassification(tiny_config(use_stage_norm=use_stage_norm)))
    classifier.save_pretrained(tmp_path)
    model, info = TwinsForSemanticSegmentation.from_pretrained(tmp_path, num_labels=7, output_loading_info=True)
    # Only the new head is reported as untrained; the unused classifier is not reported.
    assert info["missing_keys"] == {key for key in model.state_dict() if key.startswith(("neck.", "decode_head."))}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, weight in model.twins.state_dict().items():
        assert torch.equal(weight, classifier.twins.state_dict()[name]), name
    # The weights are initialized as in a new model, and not uninitialized memory.
    layer = model.decode_head.scale_heads[1][0]
    assert layer.convolution.weight.std().item() == pytest.approx((2 / (128 * 3 * 3)) ** 0.5, rel=0.05)
    assert (layer.normalization.running_var == 1).all()
    assert (layer.normalization.running_mean == 0).all()
    assert layer.normalization.num_batches_tracked == 0
    assert (model.decode_head.classifier.bias == 0).all()


def test_segmentation_model_is_a_checkpoint_of_a_backbone(tmp_path):
    model = randomize(TwinsForSemanticSegmentation(tiny_config()))
    model.save_pretrained(tmp_path)
    backbone, info = TwinsBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    pixel_values = torch.randn(1, 3, 29, 41)
    expected = model.twins(pixel_values, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(backbone(pixel_values).feature_maps[0], expected)


@pytest.mark.parametrize("model_class", [TwinsModel, TwinsBackbone])
def test_model_and_backbone_are_checkpoints_of_a_classifier(tmp_path, model_class):
    model = randomize(model_class(tiny_config()))
    model.save_pretrained(tmp_path)
    classifier, info = TwinsForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    missing = {key for key in info["missing_keys"] if not key.startswith("classifier.")}
    assert missing == (set() if model_class is TwinsModel else {"twins.layernorm.weight", "twins.layernorm.bias"})
    for name, weight in model.state_dict().items():
        assert torch.equal(classifier.twins.state_dict()[name], weight)
    assert (classifier.twins.layernorm.weight == 1).all() or model_class is TwinsModel


def test_head_for_other_labels_is_new_and_the_rest_is_kept(tmp_path):
    model = randomize(TwinsForImageClassification(tiny_config()))
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes"):
        TwinsForImageClassification.from_pretrained(tmp_path, num_labels=9)
    other, info = TwinsForImageClassification.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert other.classifier.weight.shape == (9, 48)
    assert (other.classifier.bias == 0).all()
    assert torch.equal(other.twins.layernorm.weight, model.twins.layernorm.weight)


def test_missing_weights_are_initialized_as_in_a_new_model(tmp_path):
    model = randomize(TwinsForImageClassification(tiny_config()))
    state_dict = model.state_dict()
    name = "twins.encoder.stages.1.layers.1.attention.sequence_reduction.projection.weight"
    del state_dict[name]
    model.save_pretrained(tmp_path, state_dict=state_dict)
    reloaded, info = TwinsForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {name}
    expected_std = (2 / (32 * 2 * 2)) ** 0.5
    assert reloaded.state_dict()[name].std().item() == pytest.approx(expected_std, rel=0.1)


def test_model_without_memory_for_its_weights():
    with torch.device("meta"):
        model = TwinsForImageClassification(TwinsConfig.from_variant("twins-svt-large"))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_every_tensor_in_the_state_dict_is_a_parameter():
    # Other tensors could be missed by loading, sharding or casting.
    assert not list(TwinsForImageClassification(tiny_config()).buffers())


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_fsdp_plan_shards_exactly_the_existing_blocks(model_class):
    model = model_class(tiny_config())
    modules = dict(model.named_modules())
    sharded = set()
    for pattern in model.fsdp_plan:
        expression = re.escape(pattern).replace(r"\*", r"\d+")
        matches = {name for name in modules if re.fullmatch(expression, name)}
        assert matches, pattern
        sharded |= matches
    blocks = {name for name, module in modules.items() if isinstance(module, TwinsLayer | TwinsPatchEmbeddings)}
    assert sharded == blocks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "model_class", "window_padding"),
    # test_exporters.py tests torch.export with the other classes. Padding is part of the encoder, which all classes
    # share.
    [
        ("svt", TwinsForImageClassification, "masked"),
        ("pcpvt", TwinsBackbone, "masked"),
        ("svt", TwinsBackbone, "zeros"),
        ("svt", TwinsBackbone, "authors_segmentation"),
    ],
)
def test_exported_model_takes_any_batch_and_size(family, model_class, window_padding):
    config = tiny_config(family, **TWO_STAGES, window_padding=window_padding)
    model = randomize(model_class(config))
    dynamic_shapes = {
        "pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
    }
    program = torch.export.export(
        model, (), {"pixel_values": torch.randn(2, 3, 40, 44)}, dynamic_shapes=dynamic_shapes, strict=False
    )
    exported = program.module()
    for shape in ((2, 3, 40, 44), (3, 3, 33, 47), (1, 3, 36, 36), (5, 3, 96, 60)):
        pixel_values = torch.randn(shape)
        with torch.no_grad():
            output = exported(pixel_values=pixel_values)[0]
        output = output[-1] if isinstance(output, (tuple, list)) else output
        expected = first_output(model, pixel_values)
        # Segmentation logits are up to 10, and the summation order of convolutions depends on memory layouts.
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * max(1, expected.abs().max().item()))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
def test_model_compiles_to_one_graph(fresh_compiler, family, masked, model_class):
    model = randomize(model_class(tiny_config(family, **TWO_STAGES)))
    # This includes all of torch.compile except the generation of machine code, which is slow and independent of the
    # model.
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False, backend="aot_eager")
    pixel_values, labels = torch.randn(2, 3, 33, 47), torch.tensor([1, 2])
    if model_class is TwinsForSemanticSegmentation:
        labels = torch.randint(0, 5, (2, 33, 47))
    pixel_mask = rectangle_mask([(33, 20), (17, 47)], 33, 47) if masked else None
    outputs = [same(pixel_values, pixel_mask, labels=labels) for same in (model, compiled)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=0, atol=2e-5)
    for output in outputs:
        output.loss.backward()
    for parameter, other in zip(model.parameters(), compiled.parameters(), strict=True):
        # Compare norms, because a ReLU of the segmentation head may switch at an input that is 0 up to rounding.
        assert (other.grad - parameter.grad).norm() < 1e-2 * parameter.grad.norm() + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("watched", ["nothing", "hook", "adapter"])
def test_compiled_training_works_with_any_kind_of_projection(watched, fresh_compiler):
    """Projections are computed as one product, unless one of them has a hook or was replaced."""
    torch.manual_seed(0)
    model = randomize(TwinsForImageClassification(tiny_config("svt", **TWO_STAGES))).train()
    pixel_values, labels = torch.randn(2, 3, 33, 47), torch.tensor([1, 2])
    if watched == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    elif watched == "hook":
        for name, module in model.named_modules():
            if name.endswith("v_proj"):
                module.register_forward_hook(lambda module, args, output: 2 * output)
    losses, gradients = [], []
    for compute in (model, torch.compile(model, dynamic=False, backend="aot_eager")):
        model.zero_grad()
        loss = compute(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([each.grad.clone() for each in model.parameters() if each.grad is not None])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_compiled_model_computes_the_same_at_any_size(fresh_compiler):
    # The model has both kinds of attention. Compiling with symbolic sizes takes minutes.
    model = randomize(TwinsForImageClassification(tiny_config("svt", **TWO_STAGES)))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=True)
    with torch.no_grad():
        for height, width in ((40, 44), (36, 36), (33, 47)):
            pixel_values = torch.randn(2, 3, height, width)
            torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_hidden_states_can_be_requested_first_after_compiling(fresh_compiler):
    model = TwinsModel(tiny_config(**TWO_STAGES)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    pixel_values = torch.randn(1, 3, 36, 36)
    assert compiled(pixel_values).hidden_states is None
    assert len(compiled(pixel_values, output_hidden_states=True).hidden_states) == 3


def test_auto_classes_know_twins(tmp_path):
    TwinsForImageClassification(tiny_config()).save_pretrained(tmp_path)
    TwinsImageProcessor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is TwinsConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is TwinsModel
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is TwinsForImageClassification
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is TwinsForSemanticSegmentation
    assert type(AutoBackbone.from_config(tiny_config())) is TwinsBackbone
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is TwinsImageProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend="pil")) is TwinsImageProcessorPil


@pytest.fixture
def repository(tmp_path):
    """A folder like a repository on the Hub."""
    labels = {0: "zero", 1: "one", 2: "two", 3: "three", 4: "four"}
    config = tiny_config(num_labels=5, id2label=labels, label2id={name: index for index, name in labels.items()})
    randomize(TwinsForImageClassification(config)).save_pretrained(tmp_path)
    TwinsImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def images():
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def test_image_classification_pipeline(repository, images):
    classifier = pipeline("image-classification", str(repository))
    processor = AutoImageProcessor.from_pretrained(repository)
    model = AutoModelForImageClassification.from_pretrained(repository)
    with torch.no_grad():
        probabilities = model(**processor(images, return_tensors="pt")).logits.softmax(-1)
    for answers, expected in zip(classifier(images, top_k=5), probabilities, strict=True):
        assert [answer["score"] for answer in answers] == pytest.approx(
            expected.sort(descending=True)[0].tolist(), abs=1e-5
        )
        assert answers[0]["label"] == model.config.id2label[expected.argmax().item()]


@pytest.mark.parametrize("pool", [False, True])
def test_image_feature_extraction_pipeline(repository, images, pool):
    extractor = pipeline("image-feature-extraction", str(repository), pool=pool)
    features = torch.tensor(extractor(images[0]))
    assert features.shape == ((1, 48) if pool else (1, 48, 4, 4))
    assert features.isfinite().all()


SEGMENTATION_LABELS = dict(enumerate(["sky", "roof", "wall", "tree", "flower"]))


@pytest.fixture
def segmentation_folder(tmp_path):
    """A saved segmentation model; each test saves its own image processor."""
    randomize(TwinsForSemanticSegmentation(tiny_config(id2label=SEGMENTATION_LABELS))).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "processor",
    [
        TwinsImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}, do_center_crop=False),
        TwinsImageProcessor(size={"height": 48, "width": 64}, do_center_crop=False, do_pad=True),
        TwinsImageProcessorPil(do_resize=False, do_center_crop=False, do_reduce_labels=True),
        SegformerImageProcessor(size={"height": 48, "width": 64}),
    ],
    ids=["short side", "fixed, padding", "as it is", "another model's"],
)
def test_image_segmentation_pipeline(segmentation_folder, images, processor):
    processor.save_pretrained(segmentation_folder)
    segmenter = pipeline("image-segmentation", str(segmentation_folder))
    model = TwinsForSemanticSegmentation.from_pretrained(segmentation_folder)
    labels = list(SEGMENTATION_LABELS.values())
    assert type(segmenter.model) is TwinsForSemanticSegmentation
    # The sides are not multiples of a patch or of each other.
    odd = [images[0].crop((200, 100, 303, 171)), images[1].crop((100, 100, 167, 199))]
    for image, answers in zip(odd, segmenter(odd), strict=True):
        with torch.no_grad():
            logits = model(segmenter.image_processor(image, return_tensors="pt").pixel_values).logits
        classes = nn.functional.interpolate(logits, size=(image.height, image.width), mode="bilinear").argmax(1)[0]
        assert len(answers) > 1
        assert {answer["label"] for answer in answers} == {
            SEGMENTATION_LABELS[each] for each in classes.unique().tolist()
        }
        for answer in answers:
            expected = classes.numpy() == labels.index(answer["label"])
            # If two classes have almost equal scores, either may be predicted.
            assert ((np.array(answer["mask"]) > 0) == expected).mean() > 0.999


def test_image_segmentation_pipeline_refuses_a_processor_that_crops(segmentation_folder, images):
    TwinsImageProcessor(size={"shortest_edge": 48}, crop_size=40).save_pretrained(segmentation_folder)
    with pytest.raises(ValueError, match="Post-processing needs do_center_crop=False"):
        pipeline("image-segmentation", str(segmentation_folder))(images[0])
    processor = AutoImageProcessor.from_pretrained(segmentation_folder, do_center_crop=False)
    (answer, *_) = pipeline("image-segmentation", str(segmentation_folder), image_processor=processor)(images[0])
    assert answer["mask"].size == images[0].size


@pytest.mark.parametrize("size", [{"shortest_edge": 32, "longest_edge": 128}, {"height": 32, "width": 40}], ids=str)
def test_transformers_script_for_semantic_segmentation_trains_evaluates_and_saves(segmentation_folder, size, images):
    """This does the same as run_semantic_segmentation.py, with its albumentations written out."""
    TwinsImageProcessor(size=size, do_center_crop=False).save_pretrained(segmentation_folder)
    label2id = {name: str(index) for index, name in SEGMENTATION_LABELS.items()}
    hub = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(segmentation_folder, label2id=label2id, id2label=SEGMENTATION_LABELS, **hub)
    model = AutoModelForSemanticSegmentation.from_pretrained(segmentation_folder, config=config, **hub)
    image_processor = AutoImageProcessor.from_pretrained(segmentation_folder, do_reduce_labels=True, **hub)
    assert image_processor.do_reduce_labels
    if "shortest_edge" in image_processor.size:
        height, width = image_processor.size["shortest_edge"], image_processor.size["shortest_edge"]
    else:
        height, width = image_processor.size["height"], image_processor.size["width"]
    assert (height, width) == ((32, 32) if "shortest_edge" in size else (32, 40))

    examples = []
    for image in images:
        pixels = np.array(image.convert("RGB"))[100 : 100 + height, 50 : 50 + width]
        # Classes depend on brightness; 0 is the background, which is not a class.
        brightness = pixels.mean(2).astype(np.uint8) // 43
        labels = np.where(brightness == 0, 255, brightness.astype(np.int64) - 1)
        normalized = (pixels / 255 - np.array(image_processor.image_mean)) / np.array(image_processor.image_std)
        examples.append(
            {
                "pixel_values": torch.from_numpy(normalized).permute(2, 0, 1).float(),
                "labels": torch.from_numpy(labels),
            }
        )
        # The image processor itself prepares the images in the same way.
        inputs = image_processor(pixels, brightness, do_resize=False, return_tensors="pt")
        torch.testing.assert_close(inputs.pixel_values[0], examples[-1]["pixel_values"], rtol=0, atol=1e-5)
        assert torch.equal(inputs.labels[0], examples[-1]["labels"])

    def compute_metrics(eval_pred):
        logits, labels = eval_pred
        upsampled = nn.functional.interpolate(torch.from_numpy(logits), size=labels.shape[-2:], mode="bilinear")
        return {"accuracy": (upsampled.argmax(1).numpy() == labels)[labels != 255].mean()}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=segmentation_folder / "trained",
            max_steps=2,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
        ),
        train_dataset=examples,
        eval_dataset=examples,
        compute_metrics=compute_metrics,
        processing_class=image_processor,
        data_collator=default_data_collator,
    )
    assert np.isfinite(trainer.train().training_loss)
    trainer.save_model()
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_loss"])
    assert 0 <= metrics["eval_accuracy"] <= 1
    trained = AutoImageProcessor.from_pretrained(segmentation_folder / "trained")
    assert trained.to_dict() == image_processor.to_dict()
    answers = pipeline("image-segmentation", str(segmentation_folder / "trained"))(images[0])
    assert {answer["mask"].size for answer in answers} == {images[0].size}


@pytest.mark.parametrize("window_padding", ["masked", "authors_segmentation"])
def test_upernet_on_a_twins_backbone_saves_and_reloads(tmp_path, window_padding):
    backbone_config = tiny_config(
        window_padding=window_padding, use_stage_norm=True, out_features=["stage1", "stage2", "stage3"]
    )
    config = UperNetConfig(
        backbone_config=backbone_config, hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=48, num_labels=4
    )
    model = randomize(UperNetForSemanticSegmentation(config))
    pixel_values = torch.randn(2, 3, 41, 50)
    logits = first_output(model, pixel_values)
    assert logits.shape == (2, 4, 41, 50)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_config"]["window_padding"] == window_padding
    reloaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(reloaded.backbone) is TwinsBackbone
    # Results are not identical, because rounding of convolutions depends on the memory layout of loaded weights.
    torch.testing.assert_close(first_output(reloaded, pixel_values), logits, rtol=0, atol=1e-5)
    # The head may also request other outputs of the backbone.
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, logits)
    assert len(outputs.hidden_states) == 4


def test_detr_on_a_twins_backbone_trains():
    config = DetrConfig(
        backbone_config=tiny_config(out_features=["stage3"]),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=4,
    )
    model = DetrForObjectDetection(config)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    outputs = model(torch.randn(1, 3, 41, 50), labels=labels)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.backbone.parameters())
