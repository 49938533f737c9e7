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
"""Models and losses for the recipes, shared by both training scripts."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchvision.transforms import v2
from transformers import PreTrainedModel

from hf_twins import TWINS_VARIANTS, TwinsForImageClassification, TwinsImageProcessor, load_model
from hf_twins._utils.cards import model_card, origin_fields, quoted
from hf_twins._utils.files import write_json
from hf_twins._utils.labels import label_fields, label_names
from hf_twins.checkpoints.channels import adapt_channels, adapt_stem
from hf_twins.loading import (
    ADAPTER_LABELS_NAME,
    MissingProcessorError,
    load_image_processor,
    load_pretrained,
)
from hf_twins.training.image_classification.arguments import (
    ClassificationRecipe,
    ModelArguments,
    TrainedModelArguments,
)
from hf_twins.training.runs import save_pretrained
from hf_twins.training.trainer import mixed_seed, twins_config


logger = logging.getLogger(__name__)
# All linear layers of a block.
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def check_output_dir(arguments: ModelArguments, recipe: ClassificationRecipe, output_dir: Path) -> None:
    """Raise a ValueError if the merged model would replace the base model, which the adapter needs."""
    if (
        recipe.lora_rank > 0
        and Path(arguments.source).exists()
        and output_dir.resolve() == Path(arguments.source).resolve()
    ):
        raise ValueError(
            f"--output_dir must be another folder than the model that is adapted, {output_dir}: the adapter needs it."
        )


def create_model(
    arguments: ModelArguments, recipe: ClassificationRecipe, labels: Sequence[str]
) -> tuple[PreTrainedModel | PeftModel, TwinsImageProcessor]:
    """Create the model with a head for `labels`, of which only the recipe's part is trainable, and its image processor.

    Raises:
        OSError: if the model is not found.
        ValueError: if the arguments contradict each other.
    """
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("Give either --model_name_or_path or --config_name.")
    if recipe.lora_rank > 0 and arguments.model_name_or_path is None:
        raise ValueError("--lora_rank adapts trained weights: give --model_name_or_path instead of --config_name.")
    fields = label_fields(labels)
    drop_path_rate = recipe.drop_path_rate_of(lambda: twins_config(arguments.source, arguments.model_revision))
    if drop_path_rate is not None:
        fields["drop_path_rate"] = drop_path_rate
    if arguments.model_name_or_path is not None:
        # The trained head is replaced if its labels differ.
        model = load_pretrained(
            arguments.source,
            "image-classification",
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            code_revision=arguments.code_revision,
            allow_new_weights=True,
            **fields,
        )
        if arguments.num_channels is not None:
            adapt_stem(model, arguments.num_channels)
    else:
        if arguments.num_channels is not None:
            fields["num_channels"] = arguments.num_channels
        model = TwinsForImageClassification(twins_config(arguments.source, arguments.model_revision, **fields))
    processor = create_processor(arguments, model.config.num_channels)
    if recipe.lora_rank > 0:
        lora = LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=LORA_TARGETS)
        lora.modules_to_save = ["classifier"]
        return get_peft_model(model, lora, revision=arguments.model_revision), processor
    if recipe.freeze_backbone:
        model.base_model.requires_grad_(False)
    return model, processor


def load_trained(arguments: TrainedModelArguments) -> tuple[Any, TwinsImageProcessor]:
    """Load the trained classifier that the arguments name, and its image processor.

    Raises:
        OSError: if the model or its image processor is not found.
        ValueError: if the model is not a classifier, or would run code that is not pinned to a commit.
    """
    model, processor = load_model(
        arguments.source,
        "image-classification",
        image_processor=arguments.image_processor_name,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        code_revision=arguments.code_revision,
    )
    return model, adapt_processor(processor, arguments.image_size, model.config.num_channels)


def create_processor(arguments: TrainedModelArguments, num_channels: int) -> TwinsImageProcessor:
    """Create the image processor: the checkpoint's or, if it has none, the one that the authors evaluate with."""
    processor: Any = TwinsImageProcessor()
    if arguments.image_processor_name is not None:
        # The revision belongs to the model's repository, not to this one.
        processor = load_image_processor(arguments.image_processor_name)
    elif arguments.source not in TWINS_VARIANTS:
        try:
            processor = load_image_processor(arguments.source, arguments.model_revision)
        except MissingProcessorError:
            logger.warning(f"{arguments.source} has no image processor: using the authors' evaluation settings.")
    return adapt_processor(processor, arguments.image_size, num_channels)


def adapt_processor(processor: Any, image_size: int | None, num_channels: int) -> TwinsImageProcessor:
    """Adapt an image processor to a number of channels and a size; the crop shows the same share of an image as before.

    Raises:
        ValueError: if `image_size` is given, and the processor does not make all images the same size.
    """
    changes: dict[str, Any] = {}
    if image_size is not None:
        size = {name: side for name, side in dict(processor.size).items() if side is not None}
        changes["size"] = {"height": image_size, "width": image_size}
        if processor.do_center_crop:
            crop = processor.crop_size
            changes["crop_size"] = changes["size"]
            changes["size"] = {
                name: round(image_size * side / (crop.width if name == "width" else crop.height))
                for name, side in size.items()
            }
        elif size.keys() != {"height", "width"}:
            raise ValueError(
                "--image_size is the side of the crop, but the image processor does not crop: leave it out, or give "
                "another one, with --image_processor_name."
            )
    return TwinsImageProcessor.from_dict(adapt_channels(processor, num_channels).to_dict() | changes)


class BatchMixer:
    """Mixup (https://huggingface.co/papers/1710.09412) and CutMix (https://huggingface.co/papers/1905.04899) of a batch.

    It is applied in the training step and not in the loader, so that the mix depends only on the seed and the step.
    """

    def __init__(self, arguments: ClassificationRecipe, num_labels: int, seed: int):
        self.seed = seed
        self.transforms: list[v2.Transform] = []
        if arguments.mixup_alpha > 0:
            self.transforms.append(v2.MixUp(alpha=arguments.mixup_alpha, num_classes=num_labels))
        if arguments.cutmix_alpha > 0:
            self.transforms.append(v2.CutMix(alpha=arguments.cutmix_alpha, num_classes=num_labels))

    def __call__(self, batch: dict[str, torch.Tensor], step: Sequence[int]) -> dict[str, torch.Tensor]:
        """Mix a batch, whose `labels` become `(batch_size, num_labels)`; unchanged if neither is enabled."""
        if not self.transforms:
            return batch
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, *step))
            pixel_values, labels = v2.RandomChoice(self.transforms)(batch["pixel_values"], batch["labels"])
        return batch | {"pixel_values": pixel_values, "labels": labels}


class ClassificationLoss:
    """Cross entropy of logits and labels, which are numbers or, for mixed images, shares of the labels.

    Args:
        label_smoothing: share of the target that is spread over all labels.
        class_weights: weights of the labels in the loss, `(num_labels,)`.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None):
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The mean over the batch or, if `num_items` is given, the batch's part of the mean over `num_items` images."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        losses = nn.functional.cross_entropy(
            logits.float(), labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        return losses.mean() if num_items is None else losses.sum() / num_items


def balancing_weights(labels: Sequence[int], num_labels: int) -> torch.Tensor:
    """Weights that make all labels count equally; 0 for labels without an image."""
    shares = torch.bincount(torch.as_tensor(labels), minlength=num_labels) / len(labels)
    return torch.where(shares > 0, 1 / (shares * (shares > 0).sum()), 0.0)


def loss_weights(recipe: ClassificationRecipe, labels: Sequence[int], num_labels: int) -> torch.Tensor | None:
    """The weight of each label in the loss, if the recipe uses them; `labels` are those of the training images."""
    if recipe.class_weights not in ("none", "loss", "sampling"):
        raise ValueError(f"--class_weights must be none, loss or sampling, got {recipe.class_weights}.")
    return balancing_weights(labels, num_labels) if recipe.class_weights == "loss" else None


def labels_of_stream(recipe: ClassificationRecipe) -> list[int]:
    """Return an empty list, because the labels of a stream are unknown before it is read.

    Raises:
        ValueError: if the recipe needs the labels.
    """
    if recipe.class_weights != "none":
        raise ValueError(f"--class_weights {recipe.class_weights} counts labels, which a stream cannot: leave it out.")
    return []


def sampling_weights(recipe: ClassificationRecipe, labels: Sequence[int], num_labels: int) -> torch.Tensor | None:
    """The weight of each image in the sampling, if the recipe uses them."""
    if recipe.class_weights != "sampling":
        return None
    return balancing_weights(labels, num_labels)[torch.as_tensor(labels)]


ADAPTER_USAGE = """import hf_twins
from transformers import pipeline

# Needs PEFT: pip install "hf_twins[train]"
adapter = {folder}
model, processor = hf_twins.load_model(adapter, "image-classification"{channels})
classify = pipeline("image-classification", model=model, image_processor=processor)
print(classify("image.jpg"))"""
PEFT_USAGE = """## With PEFT itself

PEFT needs a base model with the adapter's labels, because the adapter replaces the classifier:

```python
import json

import hf_twins
from peft import PeftConfig, PeftModel

adapter = {folder}
with open(f"{{adapter}}/{labels_name}", encoding="utf-8") as file:
    names = json.load(file)
config = PeftConfig.from_pretrained(adapter)
base = hf_twins.TwinsForImageClassification.from_pretrained(
    config.base_model_name_or_path,
    revision=config.revision or "main",
    id2label=dict(enumerate(names)),
    label2id={{name: number for number, name in enumerate(names)}},
    ignore_mismatched_sizes=True{channels},
)
model = PeftModel.from_pretrained(base, adapter).eval()
```"""


def save_adapter(model: PeftModel, processor: TwinsImageProcessor, folder: Path) -> None:
    """Save only the adapter, with its image processor and label names, which may differ from the base model's."""
    adapter = model.peft_config["default"]
    if adapter.base_model_name_or_path and Path(adapter.base_model_name_or_path).exists():
        # An absolute path is found from any working directory.
        adapter.base_model_name_or_path = str(Path(adapter.base_model_name_or_path).resolve())
    save_pretrained(model, processor, folder)
    labels = label_names(model.config)
    write_json(folder / ADAPTER_LABELS_NAME, labels)
    base = str(adapter.base_model_name_or_path)
    is_local = Path(base).exists()
    metadata = ModelCardData(
        library_name="peft",
        pipeline_tag="image-classification",
        tags=["twins", "lora"],
        **origin_fields(adapter.base_model_name_or_path, dataset=None),
    )
    # The card may be published, and must not reveal the user's folder names.
    name = Path(base).name if is_local else base
    description = f"A LoRA adapter of the Twins model {name}, for {len(labels)} labels."
    if is_local:
        description += (
            f" {name} is a folder on the computer where the adapter was trained: elsewhere, put the path of a copy "
            "into `base_model_name_or_path` of `adapter_config.json`."
        )
    channels = f", num_channels={model.config.num_channels}" if model.config.num_channels != 3 else ""
    values = {"folder": quoted(str(folder)), "channels": channels, "labels_name": ADAPTER_LABELS_NAME}
    card = model_card(
        metadata, folder.parent.name, description, ADAPTER_USAGE.format(**values), PEFT_USAGE.format(**values)
    )
    card.save(folder / "README.md")


def save_model(
    model: PreTrainedModel | PeftModel,
    processor: TwinsImageProcessor,
    output_dir: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save the model and its image processor to a folder. An adapter is saved both merged into its base model and alone.

    Args:
        model: trained model.
        processor: image processor of the model.
        output_dir: the model folder.
        weights: full weights of the model, if it is sharded.
    """
    if isinstance(model, PeftModel):
        save_adapter(model, processor, output_dir / "adapter")
        # Merge into a copy, because the model may be trained further.
        model = copy.deepcopy(model).merge_and_unload()
    save_pretrained(model, processor, output_dir, weights)
