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
"""Fine-tune a Twins image classifier with transformers' Trainer.

    python examples/image_classification/run_trainer.py --model_name_or_path timm/twins_svt_small.in1k \
        --train_dir path/to/images --output_dir outputs/mine

`--recipe` chooses fine-tune (the default), imagenet-from-scratch, linear-probe or lora; every option of it can be given
another value. `run_accelerate.py` does the same in a loop to read and change.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from classification_arguments import DataArguments, ModelArguments, RecipeArguments, parse_arguments
from classification_data import (
    EpochSampler,
    LabelledImages,
    collate,
    evaluation_transform,
    load_images,
    training_transform,
)
from classification_report import classification_metrics, write_report
from classification_training import (
    BatchMixer,
    ClassificationLoss,
    WeightAverage,
    create_model,
    find_checkpoint,
    loss_weights,
    push_folder,
    sampling_weights,
    save_model,
    scaled_learning_rate,
    write_results,
)
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_twins import parameter_groups


logger = logging.getLogger(__name__)


class TwinsTrainer(Trainer):
    """The Trainer with a recipe: its own parameter groups, order of images, and mixing of batches."""

    def __init__(self, *args: Any, recipe: RecipeArguments, sampler: EpochSampler, mixer: BatchMixer, **kwargs: Any):
        self.recipe, self.sampler, self.mixer = recipe, sampler, mixer
        self.micro_step = 0
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            trained: Any = self.model if model is None else model
            groups = parameter_groups(trained, args.learning_rate, args.weight_decay, self.recipe.layer_decay)
            self.optimizer = torch.optim.AdamW(groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.sampler

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        # Counted within the step, so that it is the same after training was resumed.
        step = (self.state.global_step, self.micro_step, self.args.process_index)
        self.micro_step = 0 if self.accelerator.sync_gradients else self.micro_step + 1
        return super().training_step(model, self.mixer(inputs, step), num_items_in_batch)


class Averaging(TrainerCallback):
    """Lets the average of the weights follow the training, and be part of its checkpoints."""

    def __init__(self, average: WeightAverage, checkpoint: Path | None):
        self.average, self.checkpoint = average, checkpoint

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            self.average.load(self.checkpoint)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.average.save(Path(str(args.output_dir), f"checkpoint-{state.global_step}"))


class EpochOfSampler(TrainerCallback):
    """Tells the sampler the epoch also where training is resumed within one, which accelerate does not."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


# What differs from the Trainer's own defaults: train and evaluate without further options.
DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 3,
    "logging_strategy": "epoch",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "remove_unused_columns": False,
    "metric_for_best_model": "accuracy",
    # Where there is no accelerator to copy to, PyTorch warns of it.
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "report_to": "none",
}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    model_arguments, data_arguments, recipe, training_arguments = parse_arguments(
        ModelArguments, DataArguments, RecipeArguments, TrainingArguments, defaults=DEFAULTS, arguments=arguments
    )
    set_seed(training_arguments.seed)
    try:
        return train(model_arguments, data_arguments, recipe, training_arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, recipe: RecipeArguments, args: TrainingArguments
) -> dict[str, float]:
    """Train, evaluate, and write the model, its processor, and what was measured, into the output folder."""
    output_dir = Path(str(args.output_dir))
    if recipe.ema_decay > 0 and args.load_best_model_at_end:
        raise ValueError(
            "--ema_decay and --load_best_model_at_end are two answers to which weights are kept: give one."
        )
    checkpoint_files = ["trainer_state.json"] + ([WeightAverage.FILE] if recipe.ema_decay > 0 else [])
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir, "checkpoint-", checkpoint_files)
    with args.main_process_first(desc="loading images"):
        images = load_images(data_arguments, args.seed)
    names = images["train"].features["label"].names
    model, processor = create_model(model_arguments, recipe, names)
    sampler = EpochSampler(
        len(images["train"]), args.seed, sampling_weights(recipe, images["train"]["label"], len(names))
    )
    loss = ClassificationLoss(recipe.label_smoothing, loss_weights(recipe, images["train"]["label"], len(names)))
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    args.learning_rate = scaled_learning_rate(args.learning_rate, recipe, images_per_step)
    callbacks: list[TrainerCallback] = [EpochOfSampler(sampler)]
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay > 0 else None
    if average is not None:
        callbacks.append(Averaging(average, checkpoint))
    if recipe.early_stopping_patience > 0:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    num_channels = model.config.num_channels
    evaluation_images: Any = LabelledImages(images["validation"], evaluation_transform(processor), num_channels)
    trainer = TwinsTrainer(
        model=model,
        args=args,
        train_dataset=LabelledImages(images["train"], training_transform(recipe, processor), num_channels, args.seed),
        eval_dataset=evaluation_images,
        processing_class=processor,
        data_collator=collate,
        compute_metrics=lambda prediction: classification_metrics(prediction.predictions, prediction.label_ids),
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss(
            outputs.logits, labels, num_items_in_batch
        ),
        callbacks=callbacks,
        recipe=recipe,
        sampler=sampler,
        mixer=BatchMixer(recipe, len(names), args.seed),
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)

    if average is not None:
        average.copy_to(model)
    prediction: Any = trainer.predict(evaluation_images, metric_key_prefix="eval")
    if trainer.is_world_process_zero():
        save_model(model, processor, output_dir)
        settings = {
            "recipe": recipe.recipe,
            "start": model_arguments.model_name_or_path or f"{model_arguments.config_name}, random weights",
            "dataset": data_arguments.dataset_name or data_arguments.train_dir,
            "model": vars(model_arguments),
            "data": vars(data_arguments),
            "recipe_values": vars(recipe),
            "training": args.to_sanitized_dict(),
        }
        history = trainer.state.log_history
        write_report(output_dir, names, prediction.predictions, prediction.label_ids, history, settings)
        write_results(
            output_dir, prediction.metrics | {"epoch": trainer.state.epoch, "steps": trainer.state.global_step}
        )
        if args.push_to_hub:
            push_folder(output_dir, args.hub_model_id, bool(args.hub_private_repo))
    return prediction.metrics


if __name__ == "__main__":
    main()
