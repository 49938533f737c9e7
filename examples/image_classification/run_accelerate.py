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
r"""Fine-tune a Twins image classifier in an explicit Accelerate training loop that you can modify.

    accelerate launch examples/image_classification/run_accelerate.py --model_name_or_path timm/twins_svt_small.in1k \
        --train_dir path/to/images --output_dir outputs/mine

It supports the recipes of `run_trainer.py`, and its options have the same meaning. Without dropout, the loss of each
step is the same as with `run_trainer.py`.
"""

import itertools
import json
import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from hf_twins._utils.command_line import run

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import SchedulerType

from hf_twins import parameter_groups
from hf_twins._utils.files import check_is_apart
from hf_twins._utils.progress import describe_metrics, progress_bar
from hf_twins.training.averaging import WeightAverage
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
from hf_twins.training.loop import (
    FiniteCheck,
    check_training_options,
    create_scheduler,
    has_stopped_improving,
    why_training_is_over,
)
from hf_twins.training.reports import finish_run, run_settings
from hf_twins.training.runs import begin_run, resumed_checkpoint
from hf_twins.training.trainer import (
    EpochSampler,
    check_sharding,
    full_weights,
    one_at_a_time,
    scaled_learning_rate,
)


logger = logging.getLogger(__name__)
# File with the state of the run in a checkpoint, in addition to the files that Accelerate saves.
STATE_FILE = "state.json"


@dataclass
class LoopArguments:
    """The options of `TrainingArguments` that the loop supports, under the same names."""

    output_dir: str = field(metadata={"help": "Output folder for the model, its checkpoints and the report."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training images."})
    max_steps: int = field(default=-1, metadata={"help": "Stop after this many steps; -1 for all epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Training batch size per process."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation batch size per process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per step."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Highest learning rate."})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's, except for norms, biases and PEG."})
    # As in TrainingArguments, the default is a string, which the parser converts.
    lr_scheduler_type: SchedulerType = field(default="linear", metadata={"help": "Schedule of the learning rate."})  # type: ignore[assignment]
    lr_scheduler_kwargs: dict | str | None = field(default=None, metadata={"help": "Its arguments, as JSON."})
    warmup_steps: float = field(default=0, metadata={"help": "Warmup steps, or, below 1, their share of all steps."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient norm to clip to; 0 for no clipping."})
    mixed_precision: str | None = field(default=None, metadata={"help": "no, fp16 or bf16; by default Accelerate's."})
    activation_checkpointing: bool = field(
        default=False,
        metadata={"aliases": ["--gradient_checkpointing"], "help": "Recompute activations to save memory."},
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the model."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Data loading workers per process."})
    checkpointing_steps: str = field(default="epoch", metadata={"help": "Steps between checkpoints, or epoch."})
    save_total_limit: int = field(default=3, metadata={"help": "Number of newest checkpoints to keep."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "Path of a checkpoint, or latest."})
    report_to: str = field(default="none", metadata={"help": "Tracker: tensorboard, trackio, ..., or none."})
    seed: int = field(default=42, metadata={"help": "Seed of the weights, split, order and augmentation."})
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the model at the end."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Hub id to publish as."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Create a new repository as private."})


def main(arguments: list[str] | None = None) -> dict[str, float]:
    return run(
        *(train, ModelArguments, DataArguments, ClassificationRecipe, LoopArguments),
        recipes=RECIPES,
        arguments=arguments,
    )


@one_at_a_time
def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, recipe: ClassificationRecipe, args: LoopArguments
) -> dict[str, float]:
    """Train, evaluate, and write the model, its processor and the results to the output folder."""
    check_training_options(args, recipe)
    if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        raise ValueError(f"--lr_scheduler_type {args.lr_scheduler_type} needs evaluation results: use run_trainer.py.")
    output_dir = Path(args.output_dir)
    # Targets of links in the folders are checked after the folders have been listed.
    check_is_apart(output_dir, [data_arguments.train_dir, data_arguments.validation_dir], follow_links=False)
    check_is_apart(output_dir, [data_arguments.dataset_name])
    check_output_dir(model_arguments, recipe, output_dir)
    checkpoint = resumed_checkpoint(args, recipe, "step_")
    accelerator = Accelerator(
        # The loop accumulates gradients itself, because Accelerate would divide the last, shorter step of an epoch by
        # the number of batches in a complete step.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        # As with the Trainer, each run has its own folder.
        project_config=ProjectConfiguration(
            str(output_dir), str(output_dir / "runs" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
        ),
        # Without an accelerator, the processes that torchrun starts must be told to use CPUs.
        cpu=not torch.accelerator.is_available(),
    )
    check_sharding(accelerator.distributed_type, False, recipe)
    set_seed(args.seed)

    # Load the data, and create a model for its labels.
    with accelerator.main_process_first():
        images = load_images(data_arguments, args.seed, output_dir)
    names = images["train"].features["label"].names
    model, processor = create_model(model_arguments, recipe, names)
    num_channels = model.config.num_channels
    preparation = Preparation(training_transform(recipe, processor, num_channels), num_channels, args.seed)
    loader_options: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": args.dataloader_num_workers,
        # The loader has its own generator, so that it does not affect the random numbers of dropout.
        "generator": torch.Generator(),
    }
    train_loader: Any
    sampler: Any
    if data_arguments.streaming:
        labels = labels_of_stream(recipe)
        sampler = StreamedImages(
            *(images["train"], preparation, data_arguments.max_train_samples, args.per_device_train_batch_size),
            *(data_arguments.shuffle_buffer_size, accelerator.process_index, accelerator.num_processes),
        )
        train_loader = stream_loader(sampler, args.dataloader_num_workers, accelerator.device)
    else:
        labels = images["train"]["label"]
        train_images = LabeledImages(images["train"], preparation)
        sampler = EpochSampler(len(train_images), args.seed, sampling_weights(recipe, labels, len(names)))
        train_loader = accelerator.prepare(
            DataLoader(train_images, args.per_device_train_batch_size, sampler=sampler, **loader_options)
        )
    evaluation_images = LabeledImages(images["validation"], Preparation(evaluation_transform(processor), num_channels))
    evaluation_loader = accelerator.prepare(
        DataLoader(evaluation_images, args.per_device_eval_batch_size, **loader_options)
    )

    # Apply the recipe.
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    images_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    learning_rate = scaled_learning_rate(args.learning_rate, recipe, images_per_step)
    groups = parameter_groups(model, learning_rate, args.weight_decay, recipe.layer_decay)
    # Some schedules derive their minimum from the optimizer's default learning rate.
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    loss_function = ClassificationLoss(recipe.label_smoothing, loss_weights(recipe, labels, len(names)))
    mixer = BatchMixer(recipe, len(names), args.seed)
    args.mixed_precision = accelerator.mixed_precision
    training_run = begin_run(
        checkpoint,
        [model_arguments, data_arguments, recipe, args],
        labels=names,
        splits=images,
        model=model,
        processor=processor,
        num_processes=accelerator.num_processes,
    )
    raw_model: Any = model
    trained: Any = torch.compile(model) if args.torch_compile else model
    model, optimizer = accelerator.prepare(trained, optimizer)
    average = WeightAverage(raw_model, recipe.ema_decay) if recipe.ema_decay > 0 else None
    finite_check = FiniteCheck(accelerator)
    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    num_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    scheduler = create_scheduler(args, optimizer, num_steps)
    accelerator.init_trackers(output_dir.name, config=plain_values(vars(args) | vars(recipe)))

    # Start at the beginning, or after a step within an epoch.
    step = epoch = batches_done = 0
    history: list[dict[str, float]] = []
    # The loss summed over the steps of this epoch.
    loss_sum = torch.zeros((), device=accelerator.device)
    if checkpoint is not None:
        state = load_checkpoint(accelerator, average, checkpoint)
        step, epoch, batches_done, history = (state[name] for name in ("step", "epoch", "batches_done", "history"))
        loss_sum.fill_(state["loss_sum"])
        scheduler.load_state_dict(state["scheduler"])
        reason = why_training_is_over(step, num_steps, accuracies(history), recipe.early_stopping_patience)
        if reason is not None:
            logger.warning(
                f"There is nothing left to train, because the training of {checkpoint} is over: {reason}. Its "
                "model is evaluated and written again."
            )
    checkpoint_every = None if args.checkpointing_steps == "epoch" else int(args.checkpointing_steps)

    def save_checkpoint() -> None:
        finite_check.check(raw_model, step)
        folder = training_run.start_checkpoint(f"step_{step}")
        accelerator.save_state(str(folder))
        loss_sum_of_all: Any = accelerator.reduce(loss_sum, "mean")
        if accelerator.is_main_process:
            if average is not None:
                average.save(folder)
            state: dict[str, Any] = {"step": step, "epoch": epoch, "batches_done": batches_done, "history": history}
            # These are saved here, because Accelerate would read back the state of registered objects by unpickling.
            state |= {"loss_sum": float(loss_sum_of_all), "scheduler": scheduler.state_dict()}
            (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        training_run.finish_checkpoint(folder.name, args.save_total_limit)

    # Train.
    predictions: Any = None
    evaluation_labels: Any = None
    progress = progress_bar(
        desc="Training", total=num_steps, initial=step, unit=" steps", disable=not accelerator.is_local_main_process
    )
    # The loop also runs if all steps are done, but the run was interrupted before it evaluated the last epoch.
    while batches_done > 0 or not why_training_is_over(
        step, num_steps, accuracies(history), recipe.early_stopping_patience
    ):
        model.train()
        loader = accelerator.skip_first_batches(train_loader, batches_done) if batches_done else train_loader
        # Accelerate's loader counts epochs from 0, and does not pass them to the sampler if batches are skipped.
        loader.set_epoch(epoch)
        sampler.set_epoch(epoch)
        for batches in itertools.islice(grouped(loader, args.gradient_accumulation_steps), max(num_steps - step, 0)):
            num_images: Any = torch.tensor(sum(len(batch["labels"]) for batch in batches), device=accelerator.device)
            num_images = accelerator.reduce(num_images, "sum")
            for micro_step, batch in enumerate(batches):
                is_last = micro_step == len(batches) - 1
                # DeepSpeed's engine reads this flag, because it takes the step itself.
                accelerator.gradient_state._set_sync_gradients(is_last)
                mixed = mixer(batch, (step, micro_step, accelerator.process_index))
                with nullcontext() if is_last else accelerator.no_sync(model):
                    logits = model(pixel_values=mixed["pixel_values"]).logits
                    # The loss is the mean over all images of the step, times the number of processes, whose gradients
                    # are averaged.
                    loss = loss_function(logits, mixed["labels"], num_images) * accelerator.num_processes
                    accelerator.backward(loss)
                loss_sum += loss.detach()
                finite_check.note(loss, step + 1)
            batches_done += len(batches)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            # In fp16, a step whose gradients overflow is skipped.
            if not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            optimizer.zero_grad()
            step += 1
            progress.update()
            if average is not None:
                average.update(raw_model)
            if step % finite_check.INTERVAL == 0:
                finite_check.check(raw_model, step)
            # If training ends within an epoch, the checkpoint must not count the epoch as complete, so that a run with
            # more steps can continue it.
            ends_within_epoch = step == num_steps and batches_done < len(train_loader)
            if ends_within_epoch if checkpoint_every is None else step % checkpoint_every == 0:
                save_checkpoint()
        finite_check.check(raw_model, step)
        steps_in_epoch = math.ceil(batches_done / args.gradient_accumulation_steps)
        loss_of_all: Any = accelerator.reduce(loss_sum / steps_in_epoch, "mean")
        is_whole = batches_done >= len(train_loader)
        epoch += 1
        batches_done = 0
        loss_sum.zero_()
        # Evaluate the weights that would be saved.
        with nullcontext() if average is None else average.applied_to(raw_model):
            predictions, evaluation_labels = predict(accelerator, model, evaluation_loader)
        metrics = {
            f"eval_{name}": value for name, value in classification_metrics(predictions, evaluation_labels).items()
        }
        entry = {"epoch": epoch, "step": step, "loss": float(loss_of_all), **metrics}
        history.append(entry)
        accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=step)
        if accelerator.is_main_process:
            tqdm.write(describe_metrics(entry))
        # Save the evaluation, so that a resumed run knows if it was stopped early. Checkpoints within an epoch have no
        # evaluation.
        if is_whole and (
            checkpoint_every is None or has_stopped_improving(accuracies(history), recipe.early_stopping_patience)
        ):
            save_checkpoint()

    # Write the results.
    progress.close()
    if average is not None:
        average.copy_to(raw_model)
    if predictions is None:
        # Otherwise, the last evaluation was that of the final weights.
        predictions, evaluation_labels = predict(accelerator, model, evaluation_loader)
    metrics = {f"eval_{name}": value for name, value in classification_metrics(predictions, evaluation_labels).items()}
    weights = full_weights(accelerator, model)
    if accelerator.is_main_process:
        training_run.start_writing()
        save_model(raw_model, processor, output_dir, weights)
        dataset = data_arguments.dataset_name or data_arguments.train_dir
        settings = run_settings(model_arguments, data_arguments, recipe, dataset, vars(args))
        write_report(output_dir, names, predictions, evaluation_labels, history, settings)
        results = metrics | {"epoch": epoch, "steps": step}
        finish_run(args, results, summary(results, len(evaluation_images)), "confusion_matrix.png")
    accelerator.end_training()
    return metrics


def load_checkpoint(accelerator: Accelerator, average: WeightAverage | None, checkpoint: Path) -> dict[str, Any]:
    """Restore the model, optimizer, random numbers and average; return the checkpoint's state of the run."""
    try:
        accelerator.load_state(str(checkpoint))
        if average is not None:
            average.load(checkpoint)
    except (RuntimeError, UnpicklingError) as error:
        # PyTorch's message about an unsafe pickle explains how to run its code, so it is replaced.
        is_pickle = isinstance(error, UnpicklingError)
        reason = "a file in it holds more than tensors and numbers" if is_pickle else str(error).splitlines()[0]
        raise ValueError(f"{checkpoint} must be a checkpoint that this run wrote: {reason}.") from error
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))


def grouped(loader: Any, size: int) -> Iterator[list[Any]]:
    """Yield groups of `size` batches, one per step; the last step of an epoch may have fewer."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


@torch.no_grad()
def predict(accelerator: Accelerator, model: Any, loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute the logits and labels of all images, in every process."""
    model.eval()
    logits, labels = [], []
    for batch in loader:
        outputs = model(pixel_values=batch["pixel_values"])
        # This leaves out images that were repeated to fill the last batch.
        gathered = accelerator.gather_for_metrics((outputs.logits.float(), batch["labels"]))
        logits.append(gathered[0].cpu().numpy())
        labels.append(gathered[1].cpu().numpy())
    return np.concatenate(logits), np.concatenate(labels)


def accuracies(history: list[dict[str, float]]) -> list[float]:
    """The accuracy of each evaluation so far."""
    return [entry["eval_accuracy"] for entry in history]


def plain_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert settings to numbers and strings, which trackers accept."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}


if __name__ == "__main__":
    main()
