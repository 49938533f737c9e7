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
"""Models and losses as the recipes want them: what both training scripts share."""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classification_arguments import ModelArguments, RecipeArguments
from classification_data import mixed_seed
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_twins import TWINS_VARIANTS, TwinsConfig, TwinsForImageClassification, TwinsImageProcessor


logger = logging.getLogger(__name__)
# Every linear layer of a block.
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def create_model(
    arguments: ModelArguments, recipe: RecipeArguments, labels: Sequence[str]
) -> tuple[PreTrainedModel | PeftModel, TwinsImageProcessor]:
    """The model with a head for `labels`, of which the recipe's part is trainable, and its image processor.

    Raises:
        OSError: if there is no such model.
        ValueError: if the arguments contradict each other.
    """
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("Give either --model_name_or_path or --config_name.")
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    if recipe.drop_path_rate is not None:
        fields["drop_path_rate"] = recipe.drop_path_rate
    if arguments.model_name_or_path is not None:
        options: dict[str, Any] = {"revision": arguments.model_revision}
        model_class: Any = TwinsForImageClassification
        if arguments.trust_remote_code:
            model_class, options["trust_remote_code"] = AutoModelForImageClassification, True
        # The trained head is replaced where it has other labels.
        model = model_class.from_pretrained(
            arguments.model_name_or_path, ignore_mismatched_sizes=True, **options, **fields
        )
        if arguments.num_channels is not None:
            adapt_stem(model, arguments.num_channels)
    else:
        if arguments.num_channels is not None:
            fields["num_channels"] = arguments.num_channels
        model = TwinsForImageClassification(create_config(str(arguments.config_name), fields))
    processor = create_processor(arguments, model.config.num_channels)
    if recipe.lora_rank > 0:
        lora = LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=LORA_TARGETS)
        lora.modules_to_save = ["classifier"]
        return get_peft_model(model, lora), processor
    if recipe.freeze_backbone:
        model.base_model.requires_grad_(False)
    return model, processor


def create_config(name: str, fields: dict[str, Any]) -> TwinsConfig:
    if name in TWINS_VARIANTS:
        return TwinsConfig.from_variant(name, **fields)
    return TwinsConfig.from_pretrained(name, **fields)


def adapt_stem(model: PreTrainedModel, num_channels: int) -> None:
    """Let a trained model take images of other channels, with the sum of what its patches gave before."""
    projection: Any = model.get_input_embeddings()
    if projection.in_channels == num_channels:
        return
    # Each new channel is the mean of the old ones, so that a grey picture gives what it gave as three equal channels.
    weight = projection.weight.detach().mean(1, keepdim=True) * projection.in_channels / num_channels
    projection.weight = nn.Parameter(weight.repeat(1, num_channels, 1, 1))
    projection.in_channels = model.config.num_channels = num_channels


def create_processor(arguments: ModelArguments, num_channels: int) -> TwinsImageProcessor:
    """The checkpoint's image processor; at another size, with the same share of the picture in the crop."""
    name = arguments.image_processor_name or arguments.model_name_or_path or arguments.config_name
    try:
        processor: Any = TwinsImageProcessor.from_pretrained(str(name))
    except OSError:
        # A variant's name, or weights that were saved alone: as the authors evaluate.
        processor = TwinsImageProcessor()
    changes: dict[str, Any] = {}
    if arguments.image_size is not None:
        share = processor.size.shortest_edge / processor.crop_size.height
        changes["crop_size"] = {"height": arguments.image_size, "width": arguments.image_size}
        changes["size"] = {"shortest_edge": round(arguments.image_size * share)}
    if num_channels != len(processor.image_mean):
        changes["do_convert_rgb"] = False
        for name in ("image_mean", "image_std"):
            changes[name] = num_channels * [float(np.mean(getattr(processor, name)))]
    return TwinsImageProcessor.from_dict(processor.to_dict() | changes)


class BatchMixer:
    """Mixup (https://huggingface.co/papers/1710.09412) and CutMix (https://huggingface.co/papers/1905.04899) of a batch.

    In the step and not in the loader, so that what is mixed how depends on nothing but the seed and the step.
    """

    def __init__(self, arguments: RecipeArguments, num_labels: int, seed: int):
        self.seed = seed
        self.transforms: list[v2.Transform] = []
        if arguments.mixup_alpha > 0:
            self.transforms.append(v2.MixUp(alpha=arguments.mixup_alpha, num_classes=num_labels))
        if arguments.cutmix_alpha > 0:
            self.transforms.append(v2.CutMix(alpha=arguments.cutmix_alpha, num_classes=num_labels))

    def __call__(self, batch: dict[str, torch.Tensor], step: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch with `labels` of shape `(batch_size, num_labels)`, where anything is to be mixed."""
        if not self.transforms:
            return batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, *step))
            pixel_values, labels = v2.RandomChoice(self.transforms)(batch["pixel_values"], batch["labels"])
        return batch | {"pixel_values": pixel_values, "labels": labels}


class ClassificationLoss:
    """Cross entropy of logits and labels, which are numbers or, where images were mixed, shares.

    Args:
        label_smoothing: share of the target that is spread over all labels.
        class_weights: `(num_labels,)`, of the labels in the loss.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None):
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The mean over the batch, or the share that it has in the mean over `num_items` images."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        losses = nn.functional.cross_entropy(
            logits.float(), labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        return losses.mean() if num_items is None else losses.sum() / num_items


def balancing_weights(labels: Sequence[int], num_labels: int) -> torch.Tensor:
    """A weight for each label that makes all of them count the same; 0 for those without an image."""
    shares = torch.bincount(torch.as_tensor(labels), minlength=num_labels) / len(labels)
    return torch.where(shares > 0, 1 / (shares * (shares > 0).sum()), 0.0)


def loss_weights(recipe: RecipeArguments, labels: Sequence[int], num_labels: int) -> torch.Tensor | None:
    """The weight of each label in the loss, if the recipe wants one."""
    if recipe.class_weights not in ("none", "loss", "sampling"):
        raise ValueError(f"--class_weights must be none, loss or sampling, got {recipe.class_weights}.")
    return balancing_weights(labels, num_labels) if recipe.class_weights == "loss" else None


def sampling_weights(recipe: RecipeArguments, labels: Sequence[int], num_labels: int) -> torch.Tensor | None:
    """The weight of each image in the sampling, if the recipe wants one."""
    if recipe.class_weights != "sampling":
        return None
    return balancing_weights(labels, num_labels)[torch.as_tensor(labels)]


class WeightAverage:
    """The exponential moving average of a model's weights, as part of the run's checkpoints.

    Args:
        model: to be followed.
        decay: of the average, from step to step.
    """

    FILE = "average.pt"

    def __init__(self, model: nn.Module, decay: float):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update(self, model: nn.Module) -> None:
        self.average.update_parameters(model)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.average.module.state_dict())

    def save(self, checkpoint: str | Path) -> None:
        """Whole, or not at all."""
        partial = Path(checkpoint, f"{self.FILE}.partial")
        torch.save(self.average.state_dict(), partial)
        partial.replace(partial.with_name(self.FILE))

    def load(self, checkpoint: str | Path) -> None:
        self.average.load_state_dict(torch.load(Path(checkpoint, self.FILE), weights_only=True))


def scaled_learning_rate(learning_rate: float, recipe: RecipeArguments, images_per_step: int) -> float:
    """The authors' rule: a learning rate for 512 images is scaled to those of a step."""
    return learning_rate * images_per_step / 512 if recipe.scale_learning_rate else learning_rate


def find_checkpoint(resume_from: str | None, output_dir: str | Path, prefix: str, files: Sequence[str]) -> Path | None:
    """The checkpoint to resume from.

    Args:
        resume_from: path of a checkpoint, or "latest" (or "True") for the newest whole one of the run; None for none.
        output_dir: of the run.
        prefix: of the names of its checkpoints, before a number.
        files: those that are written into a checkpoint after everything else; JSON is read, so that half of it shows.

    Raises:
        ValueError: if there is no such checkpoint, or it is not whole.
    """
    if resume_from is None:
        return None
    if resume_from.lower() not in ("latest", "auto", "true"):
        if not is_whole(Path(resume_from), files):
            raise ValueError(
                f"--resume_from_checkpoint must be 'latest' or a whole checkpoint, with {', '.join(files)}, got "
                f"{resume_from}."
            )
        return Path(resume_from)
    numbered = [
        (int(folder.name.removeprefix(prefix)), folder)
        for folder in Path(output_dir).glob(f"{prefix}*")
        if folder.name.removeprefix(prefix).isdecimal()
    ]
    for _, folder in sorted(numbered, reverse=True):
        if is_whole(folder, files):
            return folder
        logger.warning(f"{folder} is not whole, and is left out.")
    logger.warning(f"{output_dir} has no whole checkpoint: starting from the beginning.")
    return None


def is_whole(checkpoint: Path, files: Sequence[str]) -> bool:
    try:
        for file in files:
            if file.endswith(".json"):
                json.loads((checkpoint / file).read_text(encoding="utf-8"))
            elif not (checkpoint / file).is_file():
                return False
    except (OSError, ValueError):
        return False
    return True


def save_model(model: PreTrainedModel | PeftModel, processor: TwinsImageProcessor, output_dir: Path) -> None:
    """The model and its processor, as a folder to load or to publish; of an adapter, also itself."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(output_dir / "adapter"))
        # Merged into a copy: the model may still be trained.
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(str(output_dir))
    processor.save_pretrained(output_dir)


def write_results(output_dir: Path, metrics: dict[str, Any]) -> None:
    """`all_results.json`, as transformers' and accelerate's examples write it."""
    (output_dir / "all_results.json").write_text(
        json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def push_folder(output_dir: Path, repo_id: str | None, is_private: bool) -> None:
    """Publish a model's folder, without the checkpoints of its training."""
    api = HfApi()
    url = api.create_repo(repo_id or output_dir.resolve().name, private=is_private or None, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id, folder_path=output_dir, ignore_patterns=["checkpoint-*", "step_*", "runs/*"]
    )
    logger.info(f"published as {url}")
