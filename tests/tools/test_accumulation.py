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
"""Accumulated batches have the gradient of one batch, with transformers' Trainer and every loss."""

import gc
from collections.abc import Callable

import pytest
import torch
from testing_utils import FAMILIES, randomize, tiny_config
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_twins import TwinsForImageClassification, TwinsForSemanticSegmentation


NUM_IMAGES, SIZE, NUM_LABELS = 8, 16, 5
# Batch size, and number of batches per step; the last step has batches of 3, 3 and 2 images.
SPLITS = {"8 x 1": (1, 8), "2 x 4": (4, 2), "3, 3 and 2": (3, 3)}
LABELS: dict[str, Callable[[], torch.Tensor]] = {
    "single_label_classification": lambda: torch.randint(NUM_LABELS, (NUM_IMAGES,)),
    "multi_label_classification": lambda: torch.randint(2, (NUM_IMAGES, NUM_LABELS)).double(),
    "regression": lambda: torch.randn(NUM_IMAGES, NUM_LABELS).double(),
    "regression of one target": lambda: torch.randn(NUM_IMAGES).double(),
}


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer collects garbage in every run, which takes longer than the rest."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class KeepGradients(TrainerCallback):
    """Keeps the gradients that the optimizer is about to use."""

    def __init__(self):
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]


def gradient(
    model: PreTrainedModel, examples: list[dict], batch_size: int, num_batches: int, folder, **options
) -> torch.Tensor:
    """The gradient of the single step that the Trainer takes with all examples."""
    keeper = KeepGradients()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=num_batches,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=examples, callbacks=[keeper], **options).train()
    model.zero_grad()
    return torch.cat(keeper.gradients)


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def without_batch_statistics(model: nn.Module) -> nn.Module:
    """Freeze batch norms, which depend on how images are batched, regardless of the loss."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm2d(child.num_features))
    return model


def make_examples(labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    images = torch.randn(NUM_IMAGES, 3, SIZE, SIZE, dtype=torch.float64)
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels)]


def segmentation_labels(ignore_index: int) -> torch.Tensor:
    """Labels in which a different part of each image has no class: from 4 of 16 rows to all rows."""
    labels = torch.randint(NUM_LABELS, (NUM_IMAGES, SIZE, SIZE))
    for image, num_ignored in zip(labels, (4, 16, 5, 12, 15, 7, 10, 13)):
        image[:num_ignored] = ignore_index
    return labels


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_batches_have_the_gradient_of_one_batch(family, problem_type, tmp_path):
    labels = LABELS[problem_type]()
    num_labels = NUM_LABELS if problem_type != "regression of one target" else 1
    config = tiny_config(family, num_labels=num_labels, problem_type=problem_type.split(" ")[0])
    model = randomize(TwinsForImageClassification(config)).double()
    examples = make_examples(labels)
    # The expected gradient, without the Trainer, is that of the mean over the entire batch.
    model(torch.stack([example["pixel_values"] for example in examples]), labels=labels).loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    for batch_size, num_batches in SPLITS.values():
        actual = gradient(model, examples, batch_size, num_batches, tmp_path)
        assert relative_difference(actual, expected) < 1e-6


@pytest.mark.parametrize("ignore_index", [255, -100])
@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_segmentation_batches_have_the_gradient_of_one_batch(family, ignore_index, tmp_path):
    config = tiny_config(
        family,
        num_labels=NUM_LABELS,
        semantic_loss_ignore_index=ignore_index,
        classifier_dropout_prob=0.0,
        fpn_hidden_size=16,
        decoder_hidden_size=16,
    )
    model = without_batch_statistics(randomize(TwinsForSemanticSegmentation(config))).double()
    labels = segmentation_labels(ignore_index)
    examples = make_examples(labels)
    model(torch.stack([example["pixel_values"] for example in examples]), labels=labels).loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    if ignore_index != -100:
        # The Trainer counts labels other than -100, including these, whose loss is 0.
        expected *= (labels != ignore_index).double().mean()
    for batch_size, num_batches in SPLITS.values():
        actual = gradient(model, examples, batch_size, num_batches, tmp_path)
        assert relative_difference(actual, expected) < 1e-6


@pytest.mark.parametrize("model_class", [TwinsForImageClassification, TwinsForSemanticSegmentation])
def test_losses_can_be_divided_by_any_kind_of_number(model_class):
    model = randomize(model_class(tiny_config(num_labels=NUM_LABELS, problem_type="multi_label_classification")))
    images = torch.randn(2, 3, SIZE, SIZE)
    is_classifier = model_class is TwinsForImageClassification
    labels = torch.rand(2, NUM_LABELS) if is_classifier else torch.randint(NUM_LABELS, (2, SIZE, SIZE))
    with torch.no_grad():
        mean = model(images, labels=labels).loss
        for number in (80, torch.tensor(80), torch.tensor(80.0)):
            loss = model(images, labels=labels, num_items_in_batch=number).loss
            torch.testing.assert_close(loss, mean * labels.numel() / 80)


def test_loss_function_of_the_user_is_called_as_in_transformers():
    model = TwinsForImageClassification(tiny_config())
    model.loss_function = lambda labels, logits, config, num_items_in_batch=None, **kwargs: num_items_in_batch * 2.0
    assert model(torch.randn(1, 3, 8, 8), labels=torch.ones(1), num_items_in_batch=3).loss == 6.0


@pytest.mark.parametrize("family", FAMILIES)
def test_upernet_averages_accumulated_batches_if_configured(family, tmp_path):
    """The loss of transformers' UperNet is a mean, so only batches with equal numbers of labeled pixels are exact."""
    backbone_config = tiny_config(family, out_features=["stage1", "stage2", "stage3"])
    fields = {"hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": NUM_LABELS}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone_config, **fields))
    model = without_batch_statistics(randomize(model)).double()
    labels = torch.randint(NUM_LABELS, (NUM_IMAGES, SIZE, SIZE))
    labels[:, :4] = 255
    examples = make_examples(labels)
    expected = gradient(model, examples, NUM_IMAGES, 1, tmp_path)
    # UperNet's forward accepts any keyword, so the Trainer assumes that it divides the loss. Then the gradient is too
    # large by the number of batches.
    wrong = gradient(model, examples, 1, 8, tmp_path)
    assert relative_difference(wrong, 8 * expected) < 1e-6
    model.accepts_loss_kwargs = False
    for batch_size, num_batches in ((1, 8), (4, 2)):
        actual = gradient(model, examples, batch_size, num_batches, tmp_path)
        assert relative_difference(actual, expected) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_detr_averages_accumulated_batches(family, tmp_path):
    """The Trainer does not count boxes, so only batches with equal numbers of boxes are exact."""
    fields = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 4, "dropout": 0.0}
    fields |= {
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    backbone_config = tiny_config(family, out_features=["stage3"])
    model = randomize(DetrForObjectDetection(DetrConfig(backbone_config=backbone_config, **fields)))

    def collate(examples: list[dict]) -> dict:
        images = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": images, "labels": [example["labels"] for example in examples]}

    examples = [
        {
            "pixel_values": torch.randn(3, 32, 32),
            "labels": {"class_labels": torch.tensor([index % 2]), "boxes": torch.rand(1, 4) / 2 + 0.1},
        }
        for index in range(NUM_IMAGES)
    ]
    expected = gradient(model, examples, NUM_IMAGES, 1, tmp_path, data_collator=collate)
    for batch_size, num_batches in ((1, 8), (4, 2)):
        actual = gradient(model, examples, batch_size, num_batches, tmp_path, data_collator=collate)
        # Parts of DETR's loss are computed in float32, whatever the model's dtype.
        assert relative_difference(actual, expected) < 1e-5
