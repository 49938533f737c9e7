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
r"""Train a detector with a Twins backbone on data in COCO's format, with transformers' Trainer.

    python examples/object_detection/run_detection.py --detector retinanet --model_name_or_path timm/twins_svt_small.in1k \
        --train_dir train2017 --train_annotations instances_train2017.json \
        --validation_dir val2017 --validation_annotations instances_val2017.json --output_dir outputs/mine

`--recipe` chooses fine-tune (the default), or one of the authors' schedules: retinanet-1x, retinanet-3x, mask-rcnn-1x,
mask-rcnn-3x; every option of it can be overridden.
"""

import math
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import torch
from accelerate.utils import gather_object
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from hf_twins._utils.files import check_is_apart
from hf_twins._utils.progress import progress_bar
from hf_twins.detection import Detector, TwinsForObjectDetection
from hf_twins.training.loop import number_of_warmup_steps
from hf_twins.training.object_detection.arguments import RECIPES, DataArguments, DetectionRecipe, ModelArguments
from hf_twins.training.object_detection.data import (
    EvaluationImages,
    TrainingImages,
    collate,
    collate_for_detr,
    load_splits,
    training_transform,
)
from hf_twins.training.object_detection.models import create_detector
from hf_twins.training.object_detection.reports import (
    average_precision,
    draw_predictions,
    mask_run_lengths,
    write_report,
)
from hf_twins.training.reports import finish_run, run_settings
from hf_twins.training.runs import begin_run, save_pretrained
from hf_twins.training.trainer import (
    TRAINER_DEFAULTS,
    EpochSampler,
    RecipeTrainer,
    full_weights,
    one_at_a_time,
    scaled_learning_rate,
    trainer_checkpoint,
)


# Factor of the learning rate at the first step, as in the authors' schedules.
WARMUP_RATIO = 0.001


class DetectionTrainer(RecipeTrainer):
    """A Trainer that lowers the learning rate at the recipe's epochs, and evaluates average precision.

    `predict` returns a tuple as `predictions`: the detections by image index in the dataset, the average
    precisions, and those by category.
    """

    recipe: DetectionRecipe

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if not self.recipe.decay_epochs:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            trained: Any = self.optimizer if optimizer is None else optimizer
            warmup_steps = number_of_warmup_steps(self.args.warmup_steps, num_training_steps)
            images_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            steps_per_epoch = math.ceil(len(self.sampler) / images_per_step)

            def factor(step: int) -> float:
                num_decays = sum(step >= epoch * steps_per_epoch for epoch in self.recipe.decay_epochs)
                missing = max(1 - step / warmup_steps, 0) if warmup_steps > 0 else 0
                return (1 - missing * (1 - WARMUP_RATIO)) * 0.1**num_decays

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trained, factor)
        return self.lr_scheduler

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        model: Any = self.model
        detector = Detector(model.eval(), self.processing_class)
        found: list[tuple[int, dict[str, Any]]] = []
        for batch in progress_bar(
            dataloader, desc=description, disable=self.args.disable_tqdm or not self.is_world_process_zero()
        ):
            batch = self._prepare_inputs(batch)
            sizes = torch.stack([labels["orig_size"] for labels in batch["labels"]])
            with self.compute_loss_context_manager():
                predictions: list[dict[str, Any]] = detector.detect(batch, sizes)
            for labels, prediction in zip(batch["labels"], predictions):
                if "masks" in prediction:
                    # The uncompressed masks of an entire dataset would not fit in memory.
                    prediction["masks"] = [mask_run_lengths(mask) for mask in prediction["masks"]]
                found.append((int(labels["image_id"]), prediction))
        # Some images are evaluated by two processes, so that all processes have equally many. They are counted once.
        by_image = dict(gather_object(found))
        images: Any = dataloader.dataset
        precisions, per_category = average_precision(images.split, by_image)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in precisions.items()}
        results: Any = (by_image, precisions, per_category)
        return EvalLoopOutput(predictions=results, label_ids=None, metrics=metrics, num_samples=len(images))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    return run(
        train,
        *(ModelArguments, DataArguments, DetectionRecipe, TrainingArguments),
        recipes=RECIPES,
        defaults=TRAINER_DEFAULTS | {"metric_for_best_model": "ap"},
        arguments=arguments,
    )


@one_at_a_time
def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: DetectionRecipe,
    args: TrainingArguments,
) -> dict[str, float]:
    """Train, evaluate, and write the model, its image processor and the results to the output folder."""
    set_seed(args.seed)
    output_dir = Path(str(args.output_dir))
    # Sub-folders are checked as well, because image names in the annotations may contain folders.
    check_is_apart(output_dir, [data_arguments.train_dir, data_arguments.validation_dir])
    check_is_apart(output_dir, [data_arguments.train_annotations, data_arguments.validation_annotations])
    checkpoint = trainer_checkpoint(args, recipe)
    needs_masks = model_arguments.detector == "mask-rcnn"
    with args.main_process_first(desc="loading annotations"):
        splits = load_splits(data_arguments, args.seed, needs_masks)
    model, processor = create_detector(model_arguments, recipe, splits["train"].names)
    train_images = TrainingImages(splits["train"], training_transform(recipe, processor), needs_masks, args.seed)
    evaluation_images = EvaluationImages(splits["validation"], processor)
    sampler = EpochSampler(len(train_images), args.seed)
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    training_run = begin_run(
        checkpoint,
        [model_arguments, data_arguments, recipe, args],
        labels=splits["train"].names,
        splits=splits,
        model=model,
        processor=processor,
        num_processes=args.world_size,
    )
    args.learning_rate = scaled_learning_rate(args.learning_rate, recipe, images_per_step)
    trainer = DetectionTrainer(
        model=model,
        args=args,
        train_dataset=train_images,
        eval_dataset=evaluation_images,
        processing_class=processor,
        data_collator=collate if isinstance(model, TwinsForObjectDetection) else collate_for_detr,
        recipe=recipe,
        sampler=sampler,
        run=training_run,
        checkpoint=checkpoint,
    )
    trainer.train()

    # `evaluate` would return only the metrics.
    output: Any = trainer.predict(evaluation_images, metric_key_prefix="eval")
    (predictions, precisions, per_category), metrics = output.predictions, output.metrics
    results = trainer.log_result(metrics) | {"per_category": per_category}
    weights = full_weights(trainer.accelerator, trainer.model_wrapped)
    if trainer.is_world_process_zero():
        training_run.start_writing()
        save_pretrained(model, processor, output_dir, weights)
        settings = {"detector": model_arguments.detector} | run_settings(
            model_arguments, data_arguments, recipe, data_arguments.train_annotations, args.to_sanitized_dict()
        )
        draw_predictions(splits["validation"], predictions, output_dir / "predictions.png")
        write_report(
            output_dir,
            precisions,
            per_category,
            trainer.state.log_history,
            settings,
        )
        masks = f" (masks {precisions['mask_ap']:.3f})" if "mask_ap" in precisions else ""
        summary = f"AP on {len(evaluation_images)} evaluation images: {precisions.get('ap', 0):.3f}{masks}."
        finish_run(args, results, summary, "predictions.png")
    return metrics


if __name__ == "__main__":
    main()
