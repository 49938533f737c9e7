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
"""What all training scripts share: recipes, a resumable order of examples, and checkpoints.

The random choices for an example depend only on the seed, the epoch and its index in the dataset, so that an
interrupted run resumes with the same results.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, TrainOutput, has_length

from hf_twins import TWINS_VARIANTS, TwinsConfig, parameter_groups, published_variant
from hf_twins._utils.files import exclusive_folder
from hf_twins._utils.progress import describe_metrics, progress_bar
from hf_twins.training.averaging import Averaging, WeightAverage
from hf_twins.training.checksums import find_damage
from hf_twins.training.loop import (
    FiniteCheck,
    check_training_options,
    create_scheduler,
    has_stopped_improving,
    why_training_is_over,
)
from hf_twins.training.runs import (
    REPLACED,
    Run,
    is_main_process,
    is_of_same_run,
    read_run,
    resumed_checkpoint,
)


logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Prefix of the Trainer's checkpoint names, before the number of the step.
TRAINER_PREFIX = "checkpoint-"
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


@dataclass
class RecipeArguments:
    """Options of every recipe; each task adds more."""

    recipe: str = field(default="fine-tune", metadata={"help": "Which of RECIPES sets the defaults of the rest."})
    scale_learning_rate: bool = field(
        default=False,
        metadata={"help": "Scale --learning_rate from 512 images per step to the actual number."},
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from block to block, in (0, 1]."}
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth of the last block; by default that of --drop_path_rates."}
    )
    drop_path_rates: dict | str | None = field(
        default=None,
        metadata={"help": "The same for each published variant, and `other` for any other architecture, as JSON."},
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of a moving average of the weights to evaluate and save; 0: none."}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after this many evaluations without improvement; 0: never."}
    )

    license: str | None = field(
        default=None,
        metadata={
            "help": "License in the trained model's card, as the Hub calls it (apache-2.0); by default that in the card of the "
            "model it starts from."
        },
    )

    # Files that a script of this task writes in addition to the model. Not an option.
    FILES: ClassVar[tuple[str, ...]] = ("report.json", "curves.png")

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start a new run, removing the files of the one in --output_dir, but no others."},
    )

    def __post_init__(self) -> None:
        rates = self.drop_path_rates
        if isinstance(rates, str):
            try:
                rates = json.loads(rates)
            except ValueError:
                rates = None
        if self.drop_path_rates is not None and not is_rate_of_variants(rates):
            raise ValueError(
                f"--drop_path_rates must be a JSON object with a number from 0 to 1 for `other` and for any of "
                f"{', '.join(TWINS_VARIANTS)}, got {self.drop_path_rates}."
            )
        self.drop_path_rates = rates

    def drop_path_rate_of(self, load_config: Callable[[], TwinsConfig]) -> float | None:
        """The rate for an architecture, loaded only if needed; None to keep the rate of its configuration."""
        if self.drop_path_rate is not None or not isinstance(self.drop_path_rates, dict):
            return self.drop_path_rate
        variant = published_variant(load_config().to_dict())
        return self.drop_path_rates.get(variant, self.drop_path_rates["other"])

    def options_needing_full_weights(self) -> list[str]:
        """The options in use that do not work with sharded weights."""
        return ["--ema_decay"] if self.ema_decay > 0 else []


def is_rate_of_variants(rates: Any) -> bool:
    return (
        isinstance(rates, dict)
        and "other" in rates
        and rates.keys() <= {"other", *TWINS_VARIANTS}
        and all(isinstance(rate, int | float) and 0 <= rate < 1 for rate in rates.values())
    )


# Defaults that differ from the Trainer's, so that a script trains and evaluates without further options.
TRAINER_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 3,
    "logging_strategy": "epoch",
    # The filter would log 0 for a loss that is not finite, and wait for the device at each step to check it.
    "logging_nan_inf_filter": False,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "remove_unused_columns": False,
    # PyTorch warns about pinned memory if there is no accelerator.
    "dataloader_pin_memory": torch.accelerator.is_available(),
    # Without this, Accelerate does not recognize that processes that torchrun starts on CPUs form one group.
    "use_cpu": not torch.accelerator.is_available(),
    "report_to": "none",
    # Only the trained model is published, not a folder that is still being written.
    "hub_strategy": "end",
}


def one_at_a_time(run: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator that refuses a run while another one writes to its `output_dir`, an attribute of an argument of `run`."""

    @functools.wraps(run)
    def run_alone(*arguments: Any) -> Result:
        if not is_main_process():
            return run(*arguments)
        output_dir = next(each.output_dir for each in arguments if hasattr(each, "output_dir"))
        with exclusive_folder(Path(output_dir)):
            return run(*arguments)

    return run_alone


def twins_config(name: str, revision: str, **fields: Any) -> TwinsConfig:
    """The configuration of a published variant, a folder or a repository, with `fields` overriding its own."""
    if name in TWINS_VARIANTS:
        return TwinsConfig.from_variant(name, **fields)
    return TwinsConfig.from_pretrained(name, revision=revision, **fields)


def mixed_seed(*parts: int) -> int:
    """Combine several numbers into one seed; similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class EpochSampler(Sampler[tuple[int, int]]):
    """Sample every example once per epoch or, with weights, draw as many with replacement.

    The order depends only on the seed and the epoch. The sampler yields pairs (epoch, index), because the augmentation
    of an example depends on both.

    Args:
        num_examples: size of the dataset.
        seed: random seed of the order.
        weights: relative frequency at which each example is drawn.
    """

    def __init__(self, num_examples: int, seed: int, weights: torch.Tensor | None = None):
        self.num_examples, self.seed, self.weights, self.epoch = num_examples, seed, weights, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_examples, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.num_examples, replacement=True, generator=generator)
        yield from ((self.epoch, index) for index in order.tolist())


def scaled_learning_rate(learning_rate: float, recipe: RecipeArguments, images_per_step: int) -> float:
    """Scale a learning rate for 512 images per step to the actual number, as the authors do, if the recipe asks for it."""
    return learning_rate * images_per_step / 512 if recipe.scale_learning_rate else learning_rate


class RecipeTrainer(Trainer):
    """The Trainer with a recipe, which sets the parameter groups and an order of examples that resumed runs continue.

    Args:
        recipe: the recipe.
        sampler: sampler of the examples, or the dataset itself if it is a stream; its `set_epoch` is called.
        run: run that the checkpoints belong to.
        checkpoint: checkpoint that training resumes from.
    """

    def __init__(
        self,
        *args: Any,
        recipe: RecipeArguments,
        sampler: Any,
        run: Run,
        checkpoint: Path | None = None,
        **kwargs: Any,
    ):
        self.recipe, self.sampler, self.run, self.checkpoint = recipe, sampler, run, checkpoint
        self.is_over = False
        super().__init__(*args, **kwargs)
        check_sharding(self.accelerator.distributed_type, bool(self.args.fsdp), recipe)
        self.add_callback(EpochOfSampler(sampler))
        if checkpoint is not None and self.args.load_best_model_at_end:
            self.add_callback(BestOfResumedRun(best_checkpoint(checkpoint, run.output_dir)))
        self.average = WeightAverage(self.model, recipe.ema_decay) if recipe.ema_decay > 0 else None
        if self.average is not None:
            self.add_callback(Averaging(self.average, checkpoint))
        show_progress(self)
        self.finite_check = FiniteCheck(self.accelerator)
        self.add_callback(StopIfNotFinite(self.finite_check))
        if recipe.early_stopping_patience > 0:
            self.add_callback(EarlyStopping(recipe.early_stopping_patience))
        elif not self.args.load_best_model_at_end and self.args.save_strategy != SaveStrategy.BEST:
            self.add_callback(NoLastEvaluation())
        # This callback must be the last one, because the files that other callbacks save belong to the checkpoint.
        self.add_callback(FinishedCheckpoints(run, self.args.save_total_limit))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, from the checkpoint if there is one. The model ends up with the averaged weights, if there are any."""
        if self.checkpoint is not None:
            resume_from_checkpoint = str(self.checkpoint)
        # The Trainer would remove old checkpoints before the new one is complete, and other folders of similar names.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        if self.average is not None:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self.average.load(self.state.best_model_checkpoint)
            trained: Any = self.model
            self.average.copy_to(trained)
        return output

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        num_epochs, *others, num_steps = super().set_initial_training_values(args, dataloader)
        if self.checkpoint is not None:
            state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
            patience = self.recipe.early_stopping_patience
            results = evaluation_results(args, state) if patience > 0 else []
            reason = why_training_is_over(state.global_step, int(num_steps or 0), results, patience)
            if reason is not None:
                logger.warning(
                    f"There is nothing left to train, because the training of {self.checkpoint} is over: {reason}. "
                    "Its model is evaluated and written again."
                )
                # With any epochs left, the Trainer would take at least one more step.
                num_epochs = 0
                self.is_over = True
        return num_epochs, *others, num_steps

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # At the end of a training without a step, the Trainer would log a loss and a speed of 0.
        if not (self.is_over and "train_loss" in logs):
            super().log(logs, *args, **kwargs)

    def log_result(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Log the evaluation of the trained model; return it for `all_results.json`, with the length of the training.

        With `--load_best_model_at_end`, the model is that of a checkpoint, which is named. Its evaluation is already
        in the history; logged again, it would be taken for that of the last epoch.
        """
        results: dict[str, Any] = metrics | {"epoch": self.state.epoch, "steps": self.state.global_step}
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if best is None:
            self.log(metrics)
            return results
        results["evaluated_checkpoint"] = Path(best).name.removesuffix(REPLACED)
        if self.is_world_process_zero():
            tqdm.write(f"{results['evaluated_checkpoint']}, the best one, {describe_metrics(metrics)}")
        return results

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.finite_check.note(loss, self.state.global_step + 1)
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            if is_optimizer_factory(optimizer_class) or {"params", "model", "optimizer_dict"} & options.keys():
                raise ValueError(f"--optim {self.args.optim} groups the parameters itself: choose another.")
            groups = parameter_groups(
                trained, self.args.learning_rate, self.args.weight_decay, self.recipe.layer_decay
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            trained: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = create_scheduler(self.args, trained, num_training_steps)
            # Tells the Trainer to create a new scheduler if it trains again.
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context for evaluating during training, with the weights that would be saved.

        A checkpoint of an epoch's last step is saved before the evaluation, and a run that resumes from it skips that
        evaluation. So an evaluation must not affect the random numbers of the next epoch.
        """
        model: Any = self.model
        with torch.random.fork_rng(), nullcontext() if self.average is None else self.average.applied_to(model):
            yield

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.evaluating():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.run.start_checkpoint(f"{TRAINER_PREFIX}{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        drop_last, is_training = self.args.dataloader_drop_last, kwargs.get("is_training", False)
        # Evaluation must never drop the last batch.
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            loader = super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        if is_training and drop_last and len(loader) == 0:
            raise ValueError(
                f"--dataloader_drop_last leaves no batch of {len(self.sampler)} training images: give a smaller "
                f"--per_device_train_batch_size than {self.args.per_device_train_batch_size}, or --dataloader_drop_last false."
            )
        return loader


# Trainer options that must be off with a recipe, and why: they would have no effect, or make a run fail after
# training.
OFF = {
    "label_smoothing_factor": "it is for the Trainer's own loss; the recipe's is --label_smoothing",
    "data_seed": "the order of the examples follows --seed",
    "remove_unused_columns": "images are prepared from all columns",
    "label_names": "each task has a fixed name for its labels",
    "prediction_loss_only": "results are measured by predictions",
    "batch_eval_metrics": "results are measured over all images at once",
    "include_for_metrics": "results are measured by predictions and labels alone",
    "bf16_full_eval": "the model that was evaluated is saved, in the precision it was trained in",
    "fp16_full_eval": "the model that was evaluated is saved, in the precision it was trained in",
    "use_liger_kernel": "there are no Liger kernels for Twins",
    "neftune_noise_alpha": "it adds noise to word embeddings",
    "use_cache": "Twins has no cache",
    "optim_target_modules": "the optimizers that take it group the parameters themselves",
    "do_predict": "there are only training and evaluation images",
}


def refuse_options(args: TrainingArguments, recipe: RecipeArguments) -> None:
    """Raise a ValueError for Trainer options that have no effect with a recipe, instead of ignoring them."""
    for name, reason in OFF.items():
        value = getattr(args, name, None)
        # 0 is a valid data seed.
        if value or (name == "data_seed" and value is not None):
            raise ValueError(f"--{name} must be left out: {reason}; got {value}.")
    if not args.eval_do_concat_batches:
        raise ValueError("--eval_do_concat_batches must be true: results are measured over all images at once.")
    if args.train_sampling_strategy != "random":
        raise ValueError(
            "--train_sampling_strategy must be random: the order of the examples is the recipe's, so that training can "
            f"be resumed; got {args.train_sampling_strategy}."
        )
    if args.auto_find_batch_size:
        of_batches = [name for name in ("scale_learning_rate", "decay_epochs") if getattr(recipe, name, None)]
        if of_batches:
            raise ValueError(
                f"--auto_find_batch_size and --{of_batches[0]} contradict each other: the learning rate "
                "would stay that for the batch size tried first; give --per_device_train_batch_size instead."
            )
    if (
        args.load_best_model_at_end
        and (args.eval_strategy, args.save_strategy) == (IntervalStrategy.STEPS, SaveStrategy.STEPS)
        and args.eval_steps != args.save_steps
    ):
        raise ValueError(
            f"--load_best_model_at_end needs a checkpoint of each evaluation: --save_steps must be --eval_steps, got {args.save_steps} "
            f"and {args.eval_steps}."
        )
    if args.push_to_hub and args.hub_strategy != "end":
        raise ValueError(
            f"--hub_strategy must be end: the trained model is published, with the run's own files; got {args.hub_strategy}."
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "--enable_jit_checkpoint would end a run as if it were finished, with a checkpoint that cannot be resumed: "
            "leave it out, and save checkpoints more often with --save_strategy steps and --save_steps."
        )
    if recipe.early_stopping_patience > 0 and args.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            "--early_stopping_patience needs evaluations: --eval_strategy must be epoch or steps, got no."
        )


def check_sharding(distributed_type: DistributedType, asks_for_fsdp: bool, recipe: RecipeArguments) -> None:
    """Warn if FSDP was requested but training is not sharded, which Accelerate ignores silently.

    Raises:
        ValueError: if training is sharded and the recipe needs unsharded weights.
    """
    asks_for_fsdp = asks_for_fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    if asks_for_fsdp and distributed_type != DistributedType.FSDP:
        logger.warning(
            f"FSDP was requested, but this run is not sharded ({distributed_type.value}): it needs more than one "
            "process, started by accelerate launch or torchrun, and accelerators, not CPUs."
        )
    options = recipe.options_needing_full_weights()
    if distributed_type in SHARDED and options:
        raise ValueError(
            f"{', '.join(options)} needs unsharded weights, which sharded training does not have: leave it out."
        )


def full_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, Any] | None:
    """The full weights of a sharded model, in the main process; None if the model is not sharded.

    Call it in all processes.
    """
    return accelerator.get_state_dict(model) if accelerator.distributed_type in SHARDED else None


class TrainingProgress(ProgressCallback):
    """Progress bars and logs that are readable in a log file, where the Trainer prints dictionaries and control characters."""

    training_bar: Any
    prediction_bar: Any

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = progress_bar(
                desc="Training", total=state.max_steps, unit=" steps", disable=args.disable_tqdm
            )

    def on_prediction_step(
        self, args: TrainingArguments, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.prediction_bar is None and has_length(eval_dataloader):
            self.prediction_bar = progress_bar(
                desc="Evaluating", total=len(eval_dataloader), unit=" batches", leave=False, disable=args.disable_tqdm
            )
        if self.prediction_bar is not None:
            self.prediction_bar.update(1)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            tqdm.write(describe_metrics(logs))


def show_progress(trainer: Trainer) -> None:
    """Make a Trainer show its progress by `TrainingProgress` instead of its own callback."""
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    trainer.add_callback(TrainingProgress())


class EpochOfSampler(TrainerCallback):
    """Sets the epoch of the sampler, also if training resumes within an epoch, where Accelerate does not set it."""

    def __init__(self, sampler: Any):
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


class BestOfResumedRun(TrainerCallback):
    """Tells the Trainer where the best checkpoint of the resumed run is now; the recorded path may be outdated."""

    def __init__(self, best: Path | None):
        self.best = best

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        state.best_model_checkpoint = None if self.best is None else str(self.best)


class NoLastEvaluation(TrainerCallback):
    """Skips the evaluation after the last step, because the script evaluates the final weights itself."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = False

    on_epoch_end = on_step_end


class FinishedCheckpoints(TrainerCallback):
    """Marks checkpoints as complete, and removes old ones of the run."""

    def __init__(self, run: Run, limit: int | None):
        self.run, self.limit = run, limit

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint).name
        self.run.finish_checkpoint(f"{TRAINER_PREFIX}{state.global_step}", self.limit, best)


class StopIfNotFinite(TrainerCallback):
    """Stops training with an error when the loss is not finite, before the model is logged, evaluated or saved."""

    def __init__(self, check: FiniteCheck):
        self.check = check

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        is_used = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if is_used or state.global_step % self.check.INTERVAL == 0:
            self.check.check(kwargs["model"], state.global_step)

    on_epoch_end = on_step_end


class EarlyStopping(TrainerCallback):
    """Stops training that no longer improves. Unlike transformers' callback, it keeps counting when a run resumes."""

    def __init__(self, patience: int):
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if has_stopped_improving(evaluation_results(args, state), self.patience):
            control.should_training_stop = True
            # A checkpoint of this step may have been written before its evaluation.
            control.should_save = args.save_strategy != SaveStrategy.NO


def evaluation_results(args: TrainingArguments, state: TrainerState) -> list[float]:
    """The results of a run's evaluations so far, with signs such that greater is better.

    Raises:
        ValueError: if the evaluations lack `--metric_for_best_model`.
    """
    name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    evaluations = [entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)]
    if evaluations and not all(name in entry for entry in evaluations):
        raise ValueError(
            f"--metric_for_best_model must be one of {', '.join(sorted(evaluations[-1]))}, got {args.metric_for_best_model}."
        )
    sign = -1 if args.greater_is_better is False else 1
    return [sign * entry[name] for entry in evaluations]


def trainer_checkpoint(args: TrainingArguments, recipe: RecipeArguments) -> Path | None:
    """The complete checkpoint that a run of the Trainer resumes from; see `resumed_checkpoint`.

    Raises:
        ValueError: as in `resumed_checkpoint`, or if options have no effect, before any files are overwritten.
    """
    check_training_options(args, recipe)
    refuse_options(args, recipe)
    checkpoint = resumed_checkpoint(args, recipe, TRAINER_PREFIX)
    if checkpoint is not None and args.load_best_model_at_end:
        best_checkpoint(checkpoint, Path(str(args.output_dir)))
    return checkpoint


def best_checkpoint(checkpoint: Path, output_dir: Path) -> Path | None:
    """The best checkpoint so far of the run that a checkpoint belongs to; None if there was none.

    The recorded path may by now be that of another run's checkpoint, so the content of the folder is checked.

    Args:
        checkpoint: checkpoint that training resumes from.
        output_dir: output folder of the run that resumes.

    Raises:
        ValueError: if the best checkpoint is missing or damaged.
    """
    file = checkpoint / "trainer_state.json"
    # Without this file, another script wrote the checkpoint, and `begin_run` raises an error.
    recorded = TrainerState.load_from_json(str(file)).best_model_checkpoint if file.is_file() else None
    if recorded is None:
        return None
    name = Path(recorded).name
    if name == checkpoint.name.removesuffix(REPLACED):
        return checkpoint
    run = read_run(checkpoint)
    for folder in (checkpoint.parent / name, output_dir / name, Path(recorded)):
        if find_damage(folder) is None and run is not None and is_of_same_run(folder, run):
            return folder
    raise ValueError(
        f"{checkpoint} needs the best checkpoint of its run, {name}, but there is no intact copy "
        "beside it or in --output_dir: put it there, or resume from an older checkpoint."
    )
