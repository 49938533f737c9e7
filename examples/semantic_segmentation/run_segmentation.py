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
r"""Train a Twins model for semantic segmentation, Semantic FPN or UperNet, with transformers' Trainer.

    python examples/semantic_segmentation/run_segmentation.py --model_name_or_path timm/twins_svt_small.in1k \
        --train_dir path/to/training --validation_dir path/to/validation --output_dir outputs/mine

`--recipe` chooses fine-tune (the default), ade20k-semantic-fpn or ade20k-upernet; every option of it can be
overridden.
"""

from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import torch
from transformers import TrainingArguments, set_seed
from transformers.training_args import ParallelMode

from hf_twins._utils.files import check_is_apart
from hf_twins.training.data import LabeledImages
from hf_twins.training.reports import finish_run, run_settings
from hf_twins.training.runs import begin_run, save_pretrained
from hf_twins.training.semantic_segmentation.arguments import (
    RECIPES,
    DataArguments,
    ModelArguments,
    SegmentationRecipe,
)
from hf_twins.training.semantic_segmentation.data import IGNORE_INDEX, Preparation, load_pairs, training_transform
from hf_twins.training.semantic_segmentation.inference import InferenceArguments
from hf_twins.training.semantic_segmentation.metrics import evaluate_pairs, segmentation_metrics
from hf_twins.training.semantic_segmentation.models import (
    backbone_config,
    checkpoint_config,
    create_model,
    create_processor,
    segmentation_labels,
)
from hf_twins.training.semantic_segmentation.reports import draw_predictions, write_report
from hf_twins.training.trainer import (
    SHARDED,
    TRAINER_DEFAULTS,
    EpochSampler,
    RecipeTrainer,
    one_at_a_time,
    scaled_learning_rate,
    trainer_checkpoint,
)


class SegmentationTrainer(RecipeTrainer):
    """A trainer that evaluates images at their own size, one by one.

    Args:
        inference: inference options.
    """

    def __init__(self, *args: Any, inference: InferenceArguments, **kwargs: Any):
        self.inference = inference
        super().__init__(*args, **kwargs)
        if self.accelerator.distributed_type in SHARDED:
            raise ValueError(
                "Each process evaluates its own images, which needs unsharded weights: leave --fsdp and DeepSpeed out."
            )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        # A batch in which no pixel has a class has a mean loss of NaN. Replace it by 0, so that it changes nothing.
        return torch.where((inputs["labels"] != IGNORE_INDEX).any(), loss, torch.zeros_like(loss))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        pairs: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        model: Any = self.model
        with self.evaluating():
            matrix = evaluate_pairs(model, self.processing_class, pairs, self.inference, self.accelerator)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in segmentation_metrics(matrix).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def main(arguments: list[str] | None = None) -> dict[str, float]:
    return run(
        train,
        *(ModelArguments, DataArguments, SegmentationRecipe, InferenceArguments, TrainingArguments),
        recipes=RECIPES,
        # The last batch is dropped, because it may be too small for batch normalization.
        defaults=TRAINER_DEFAULTS | {"metric_for_best_model": "mean_iou", "dataloader_drop_last": True},
        arguments=arguments,
    )


@one_at_a_time
def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: SegmentationRecipe,
    inference: InferenceArguments,
    args: TrainingArguments,
) -> dict[str, float]:
    """Train, evaluate, and write the model, its processor and the results to the output folder."""
    set_seed(args.seed)
    output_dir = Path(str(args.output_dir))
    folders = [data_arguments.train_dir, data_arguments.validation_dir]
    # Targets of links in the folders are checked after the folders have been listed.
    check_is_apart(
        output_dir,
        [Path(folder, part) for folder in folders if folder for part in ("images", "annotations")],
        follow_links=False,
    )
    check_is_apart(output_dir, [data_arguments.dataset_name])
    checkpoint = trainer_checkpoint(args, recipe)
    fields = checkpoint_config(model_arguments)
    with args.main_process_first(desc="loading images"):
        pairs, names = load_pairs(data_arguments, args.seed, segmentation_labels(fields), output_dir)
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if len(pairs["train"]) < args.train_batch_size * args.world_size:
        raise ValueError(
            f"There are {len(pairs['train'])} training pairs, fewer than a batch: give a --per_device_train_batch_size "
            f"below {args.per_device_train_batch_size}."
        )
    drop_path_rate = recipe.drop_path_rate_of(lambda: backbone_config(model_arguments, fields))
    model = create_model(model_arguments, fields, names, drop_path_rate)
    if args.parallel_mode == ParallelMode.DISTRIBUTED and torch.accelerator.is_available():
        # Each process has too few images for its own statistics. The authors synchronize batch norms, too.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    processor = create_processor(model_arguments, fields, data_arguments.do_reduce_labels)
    preparation = Preparation(training_transform(recipe, processor), data_arguments.do_reduce_labels, args.seed)
    train_images = LabeledImages(pairs["train"], preparation)
    training_run = begin_run(
        checkpoint,
        [model_arguments, data_arguments, recipe, inference, args],
        labels=names,
        splits=pairs,
        model=model,
        processor=processor,
        num_processes=args.world_size,
    )
    args.learning_rate = scaled_learning_rate(args.learning_rate, recipe, images_per_step)
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=train_images,
        eval_dataset=pairs["validation"],
        processing_class=processor,
        recipe=recipe,
        sampler=EpochSampler(len(train_images), args.seed),
        run=training_run,
        checkpoint=checkpoint,
        inference=inference,
    )
    trainer.train()

    matrix = evaluate_pairs(model, processor, pairs["validation"], inference, trainer.accelerator)
    metrics = {f"eval_{name}": value for name, value in segmentation_metrics(matrix).items()}
    results = trainer.log_result(metrics)
    if trainer.is_world_process_zero():
        training_run.start_writing()
        save_pretrained(model, processor, output_dir)
        draw_predictions(model, processor, pairs["validation"], inference, output_dir / "predictions.png")
        dataset = data_arguments.dataset_name or data_arguments.train_dir
        settings = run_settings(model_arguments, data_arguments, recipe, dataset, args.to_sanitized_dict()) | {
            "inference": vars(inference)
        }
        write_report(output_dir, names, matrix, trainer.state.log_history, settings)
        summary = f"Mean IoU on {len(pairs['validation'])} evaluation images: {metrics['eval_mean_iou']:.1%}."
        finish_run(args, results, summary, "predictions.png")
    return metrics


if __name__ == "__main__":
    main()
