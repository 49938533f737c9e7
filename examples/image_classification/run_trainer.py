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
r"""Fine-tune a Twins image classifier with transformers' Trainer.

    python examples/image_classification/run_trainer.py --model_name_or_path timm/twins_svt_small.in1k \
        --train_dir path/to/images --output_dir outputs/mine

`--recipe` chooses fine-tune (the default), imagenet-from-scratch, linear-probe or lora; every option of it can
be overridden. `run_accelerate.py` does the same in an explicit training loop that you can modify.
"""

from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import torch
from transformers import TrainingArguments, set_seed

from hf_twins._utils.files import check_is_apart
from hf_twins.training.data import LabeledImages
from hf_twins.training.image_classification.arguments import (
    RECIPES,
    ClassificationRecipe,
    DataArguments,
    ModelArguments,
)
from hf_twins.training.image_classification.data import (
    Preparation,
    StreamedImages,
    collate,
    evaluation_transform,
    load_images,
    stream_loader,
    training_transform,
)
from hf_twins.training.image_classification.models import (
    BatchMixer,
    ClassificationLoss,
    check_output_dir,
    create_model,
    labels_of_stream,
    loss_weights,
    sampling_weights,
    save_model,
)
from hf_twins.training.image_classification.reports import classification_metrics, summary, write_report
from hf_twins.training.reports import finish_run, run_settings
from hf_twins.training.runs import begin_run
from hf_twins.training.trainer import (
    TRAINER_DEFAULTS,
    EpochSampler,
    RecipeTrainer,
    full_weights,
    one_at_a_time,
    scaled_learning_rate,
    trainer_checkpoint,
)


class ClassificationTrainer(RecipeTrainer):
    """A trainer that also mixes batches, and reads streams."""

    def __init__(self, *args: Any, mixer: BatchMixer, **kwargs: Any):
        self.mixer, self.micro_step = mixer, 0
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        if not isinstance(self.train_dataset, StreamedImages):
            return super().get_train_dataloader()
        return stream_loader(self.train_dataset, self.args.dataloader_num_workers, self.args.device)

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        # Batches are counted within the step, so that the count is the same in a resumed run.
        step = (self.state.global_step, self.micro_step, self.args.process_index)
        self.micro_step = 0 if self.accelerator.sync_gradients else self.micro_step + 1
        return super().training_step(model, self.mixer(inputs, step), num_items_in_batch)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    return run(
        train,
        *(ModelArguments, DataArguments, ClassificationRecipe, TrainingArguments),
        recipes=RECIPES,
        defaults=TRAINER_DEFAULTS | {"metric_for_best_model": "accuracy"},
        arguments=arguments,
    )


@one_at_a_time
def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: ClassificationRecipe,
    args: TrainingArguments,
) -> dict[str, float]:
    """Train, evaluate, and write the model, its processor and the results to the output folder."""
    set_seed(args.seed)
    output_dir = Path(str(args.output_dir))
    # Targets of links in the folders are checked after the folders have been listed.
    check_is_apart(output_dir, [data_arguments.train_dir, data_arguments.validation_dir], follow_links=False)
    check_is_apart(output_dir, [data_arguments.dataset_name])
    check_output_dir(model_arguments, recipe, output_dir)
    checkpoint = trainer_checkpoint(args, recipe)
    with args.main_process_first(desc="loading images"):
        images = load_images(data_arguments, args.seed, output_dir)
    names = images["train"].features["label"].names
    model, processor = create_model(model_arguments, recipe, names)
    num_channels = model.config.num_channels
    preparation = Preparation(training_transform(recipe, processor, num_channels), num_channels, args.seed)
    train_images: Any
    sampler: Any
    if data_arguments.streaming:
        labels = labels_of_stream(recipe)
        train_images = sampler = StreamedImages(
            *(images["train"], preparation, data_arguments.max_train_samples, args.train_batch_size),
            *(data_arguments.shuffle_buffer_size, args.process_index, args.world_size),
        )
    else:
        labels = images["train"]["label"]
        train_images = LabeledImages(images["train"], preparation)
        sampler = EpochSampler(len(train_images), args.seed, sampling_weights(recipe, labels, len(names)))
    evaluation_images: Any = LabeledImages(
        images["validation"], Preparation(evaluation_transform(processor), num_channels)
    )
    loss = ClassificationLoss(recipe.label_smoothing, loss_weights(recipe, labels, len(names)))
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    training_run = begin_run(
        checkpoint,
        [model_arguments, data_arguments, recipe, args],
        labels=names,
        splits=images,
        model=model,
        processor=processor,
        num_processes=args.world_size,
    )
    args.learning_rate = scaled_learning_rate(args.learning_rate, recipe, images_per_step)
    trainer = ClassificationTrainer(
        model=model,
        args=args,
        train_dataset=train_images,
        eval_dataset=evaluation_images,
        processing_class=processor,
        data_collator=collate,
        compute_metrics=lambda prediction: classification_metrics(prediction.predictions, prediction.label_ids),
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss(
            outputs.logits, labels, num_items_in_batch
        ),
        recipe=recipe,
        sampler=sampler,
        run=training_run,
        checkpoint=checkpoint,
        mixer=BatchMixer(recipe, len(names), args.seed),
    )
    trainer.train()

    prediction: Any = trainer.predict(evaluation_images, metric_key_prefix="eval")
    results = trainer.log_result(prediction.metrics)
    weights = full_weights(trainer.accelerator, trainer.model_wrapped)
    if trainer.is_world_process_zero():
        training_run.start_writing()
        save_model(model, processor, output_dir, weights)
        dataset = data_arguments.dataset_name or data_arguments.train_dir
        settings = run_settings(model_arguments, data_arguments, recipe, dataset, args.to_sanitized_dict())
        history = trainer.state.log_history
        write_report(output_dir, names, prediction.predictions, prediction.label_ids, history, settings)
        finish_run(args, results, summary(results, len(evaluation_images)), "confusion_matrix.png")
    return prediction.metrics


if __name__ == "__main__":
    main()
