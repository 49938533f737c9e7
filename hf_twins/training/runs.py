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
"""Training runs: the files in their output folder, and how they are resumed or replaced.

Before a run trains, it writes `run.json` into its output folder: its identity (see `run_identity.py`) and the names of
the files that it writes. Each checkpoint has a copy of the identity, and `checksums.json`, which is written last: a
checkpoint without it is incomplete.
"""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from hf_twins._utils.files import check_can_be_folder, use_default_permissions, write_json
from hf_twins._utils.image_folders import listed
from hf_twins._utils.publishing import LOADED
from hf_twins.loading import ADAPTER_LABELS_NAME
from hf_twins.training.checksums import (
    CHECKSUMS_NAME,
    find_damage,
    is_inside,
    remove_checkpoint,
    remove_files,
    write_checksums,
)
from hf_twins.training.run_identity import MAY_GROW, compare_identities, flattened, option_defaults, run_identity


logger = logging.getLogger(__name__)
RUN_NAME = "run.json"
CHECKPOINT = re.compile(r"(checkpoint-|step_)\d+")
# Suffix of the checkpoint that a new one of the same step replaces, kept until the new one is complete.
REPLACED = ".replaced"
# Files that every script writes; see `files_of` for those of a particular script.
MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "all_results.json")
ADAPTER_FILES = tuple(
    f"adapter/{name}"
    for name in (
        *("adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json", "README.md"),
        ADAPTER_LABELS_NAME,
    )
)


@dataclass
class Run:
    """A training run and the files that it writes.

    Call its methods in all processes; only the main process writes.

    Attributes:
        output_dir: output folder.
        identity: see `run_identity`.
        files: files of the trained model and its report, written or yet to be written, relative to the output folder.
        checkpoints: names of the checkpoint folders, in the order in which they were written or last resumed from.
        replaces: run whose files are removed before this run writes its first file.
    """

    output_dir: Path
    identity: dict[str, Any]
    files: list[str] = field(default_factory=lambda: list(MODEL_FILES))
    checkpoints: list[str] = field(default_factory=list)
    replaces: "Run | None" = None

    def start_writing(self) -> None:
        """Remove the run that this one replaces. It is kept until now, in case this run fails before it writes."""
        if self.replaces is not None and is_main_process():
            # The record of the replaced run is removed last, so that a kill in between leaves no unlisted files.
            self.replaces.remove()
            self.replaces = None
            self.write()

    def write(self) -> None:
        values = {"identity": self.identity, "files": self.files, "checkpoints": self.checkpoints}
        write_json(self.output_dir / RUN_NAME, values)

    def start_checkpoint(self, name: str) -> Path:
        """Return an empty folder for a new checkpoint.

        If the newest checkpoint has the same name, it is kept under another name until the new one is complete. An
        older checkpoint of that name is removed: training was resumed from before it, so it is no longer part of the
        run.
        """
        self.start_writing()
        folder = self.output_dir / name
        if is_main_process():
            replaced = folder.with_name(name + REPLACED)
            if self.checkpoints[-1:] != [name]:
                remove_checkpoint(replaced)
            elif (folder / CHECKSUMS_NAME).is_file():
                remove_checkpoint(replaced)
                folder.replace(replaced)
            remove_checkpoint(folder)
            self.checkpoints = [*(each for each in self.checkpoints if each != name), name]
            self.write()
        wait_for_all()
        return folder

    def finish_checkpoint(self, name: str, limit: int | None = None, best: str | None = None) -> None:
        """Mark a checkpoint as complete, and remove the oldest checkpoints of the run.

        Args:
            name: folder name of the checkpoint.
            limit: number of checkpoints to keep; None or 0 for all.
            best: folder name of a checkpoint to keep regardless of the limit.
        """
        wait_for_all()
        if not is_main_process():
            return
        folder = self.output_dir / name
        write_json(folder / RUN_NAME, {"identity": self.identity, "files": self.files})
        write_checksums(folder)
        remove_checkpoint(folder.with_name(name + REPLACED))
        removable = [each for each in self.checkpoints if each not in (name, best)]
        for old in removable[: max(len(self.checkpoints) - limit, 0)] if limit and limit > 0 else []:
            self.remove_checkpoint(old)
            self.checkpoints.remove(old)
        self.write()

    def remove_checkpoint(self, name: str) -> None:
        for folder in (name, name + REPLACED):
            remove_checkpoint(self.output_dir / folder)

    def written_files(self) -> list[str]:
        """The files of the run that exist, without links."""
        return [name for name in self.files if is_own_file(self.output_dir, name)]

    def remove(self) -> None:
        """Remove the run's files, and nothing else in its folder."""
        for name in self.checkpoints:
            self.remove_checkpoint(name)
        remove_files(self.output_dir, [*self.files, RUN_NAME])


def is_own_file(folder: Path, name: str) -> bool:
    """Whether a file exists, and neither it nor a folder on its path below `folder` is a link."""
    path = PurePosixPath(name)
    return (folder / path).is_file() and not any((folder / part).is_symlink() for part in (path, *path.parents[:-1]))


def read_run(folder: Path) -> Run | None:
    """Read the record of the run in a folder; None if it has no `run.json`.

    Raises:
        ValueError: if the record is invalid.
    """
    file = folder / RUN_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, or give another --output_dir.") from error
    try:
        run = Run(folder, values["identity"], values.get("files", []), values.get("checkpoints", []))
        list(flattened(run.identity))
        is_safe = all(map(is_inside, run.files)) and all(map(CHECKPOINT.fullmatch, run.checkpoints))
    except (AttributeError, KeyError, TypeError):
        is_safe = False
    if not is_safe:
        raise ValueError(
            f"{file} must hold the identity of a run and the names of files in its folder: remove it, or give another --output_dir."
        )
    return run


def find_run(output_dir: Path, resumes: bool) -> Run | None:
    """Find the run of an output folder.

    If a run resumes and the record is damaged or missing, it is rebuilt from the checkpoints.

    Raises:
        ValueError: if the record is damaged and there is no complete checkpoint to resume.
    """
    damage = None
    try:
        run = read_run(output_dir)
    except ValueError as error:
        run, damage = None, error
    if run is not None or not output_dir.is_dir():
        return run
    if not resumes:
        if damage is not None:
            raise ValueError(f"{damage} --resume_from_checkpoint rebuilds it from checkpoints.") from damage
        return None
    folders = [path for path in output_dir.iterdir() if CHECKPOINT.fullmatch(path.name) and find_damage(path) is None]
    folders.sort(key=lambda path: int(re.sub(r"\D", "", path.name)))
    runs = [(path.name, found) for path in folders if (found := read_run(path)) is not None]
    if not runs:
        if damage is not None:
            raise damage
        return None
    newest = runs[-1][1]
    checkpoints = [name for name, found in runs if found.identity == newest.identity]
    return Run(output_dir, newest.identity, newest.files, checkpoints)


def files_of(arguments: Iterable[Any]) -> list[str]:
    """The files of the trained model and its report that a script writes, given the instances of its options."""
    return [*MODEL_FILES, *(name for part in arguments for name in getattr(part, "FILES", ()))]


def check_output_dir(output_dir: Path, resumes: bool, overwrites: bool, files: Sequence[str] = MODEL_FILES) -> None:
    """Raise a ValueError if a run would overwrite existing files in its output folder, or mix its files with them.

    Args:
        output_dir: output folder, which need not exist.
        resumes: whether the run resumes the run in this folder.
        overwrites: whether the run replaces the run in this folder.
        files: files that the run writes, other than checkpoints.
    """
    if resumes and overwrites:
        raise ValueError("--resume_from_checkpoint and --overwrite_output_dir contradict each other: give one.")
    check_can_be_folder(output_dir)
    run = find_run(output_dir, resumes)
    files = [*files, *(() if run is None else run.files)]
    found = sorted(path.name for path in output_dir.glob("*") if is_of_a_run(path.name, files))
    linked = sorted({name for name in [*found, *files] if (output_dir / name).is_symlink()})
    linked = [name for name in linked if not CHECKPOINT.fullmatch(name)]
    if linked:
        raise ValueError(
            f"{output_dir} has {listed(linked)}, which would be written through a link: remove the link, or give another "
            "--output_dir."
        )
    own = set() if run is None else {name.partition("/")[0] for name in run.files} | {*run.checkpoints}
    others = [name for name in found if name.removesuffix(REPLACED) not in own]
    if others:
        raise ValueError(
            f"{output_dir} has {listed(others)}, which no run lists as its own in {RUN_NAME}: move what you want to "
            "keep, or give another --output_dir."
        )
    if found and not resumes and not overwrites:
        has_checkpoints = run is not None and any((output_dir / name).is_dir() for name in run.checkpoints)
        resuming = " resume it with --resume_from_checkpoint latest," if has_checkpoints else ""
        raise ValueError(
            f"{output_dir} has the files of a run:{resuming} replace it with --overwrite_output_dir, or change --output_dir."
        )


def is_of_a_run(name: str, files: Sequence[str]) -> bool:
    """Whether a file or folder in an output folder has one of the names that runs write, or is one of `files`."""
    is_file = name in files or name == "adapter" or LOADED.fullmatch(name)
    return bool(is_file or CHECKPOINT.fullmatch(name.removesuffix(REPLACED)))


def begin_run(
    checkpoint: Path | None,
    arguments: Sequence[Any],
    *,
    labels: Sequence[str],
    splits: dict[str, Any],
    model: Any,
    processor: Any,
    num_processes: int,
) -> Run:
    """Record a run in its output folder, before it trains; log the numbers of its labels, and what it resumes from.

    Args:
        checkpoint: checkpoint that the run resumes from.
        arguments: instances of the dataclasses whose fields are the options, including `output_dir` and
            `overwrite_output_dir`. Their attributes `FILES` name the files that the run writes.
        labels: names of the labels, in the order of their numbers.
        splits: images of `train` and `validation`.
        model: model before training.
        processor: image processor of the model.
        num_processes: number of processes that train together.

    Raises:
        ValueError: if the run differs from the run that it resumes. The message says which options, labels, images or
            models differ.
    """
    options = {name: value for part in arguments for name, value in vars(part).items()}
    output_dir = Path(options["output_dir"])
    if not is_main_process():
        return Run(output_dir, {})
    # Names may look like numbers: folders called 1, 2 and 10 are the labels 0, 2 and 1.
    numbered = [f"{number} = {name}" for number, name in enumerate(labels)]
    logger.warning(f"{len(labels)} labels by number: {listed(numbered)}.")
    identity = run_identity(arguments, labels, splits, model, processor, num_processes)
    run = Run(output_dir, identity, files_of(arguments))
    if options.get("lora_rank", 0) > 0:
        run.files += ADAPTER_FILES
    resumes = options.get("resume_from_checkpoint") is not None
    previous = find_run(output_dir, resumes)
    if resumes:
        resumed = previous if checkpoint is None else read_run(checkpoint)
        if checkpoint is not None and resumed is None:
            raise ValueError(
                f"{checkpoint} must have the {RUN_NAME} of the run that wrote it: give another checkpoint."
            )
        if resumed is not None:
            check_is_same(resumed, run, option_defaults(arguments))
        if previous is not None:
            # The run in the output folder must be the same one too, or the files of two runs would be mixed.
            check_is_same(without_lengths(previous), without_lengths(run), option_defaults(arguments))
            run.checkpoints = previous.checkpoints
        if checkpoint is not None and checkpoint.resolve().parent == output_dir.resolve():
            # The resumed checkpoint becomes the latest. Checkpoints written after it are no longer part of this
            # training, and are the first to be removed.
            name = checkpoint.name.removesuffix(REPLACED)
            run.checkpoints = [*(each for each in run.checkpoints if each != name), name]
        if checkpoint is not None:
            logger.warning(f"Resuming from {checkpoint}.")
    elif previous is not None and options["overwrite_output_dir"]:
        check_is_no_start(output_dir, options)
        run.replaces = previous
        return run
    run.write()
    return run


def without_lengths(run: Run) -> Run:
    """The run without the options that set its length."""
    options = {name: value for name, value in run.identity["options"].items() if name not in MAY_GROW}
    return dataclasses.replace(run, identity=run.identity | {"options": options})


def is_of_same_run(checkpoint: Path, run: Run) -> bool:
    """Whether a checkpoint belongs to the run, regardless of the run's length."""
    other = read_run(checkpoint)
    if other is None:
        return False
    # Options that only one of the two has are not compared, since they differ between versions of transformers.
    before, now = ({**each.identity, **without_lengths(each).identity["options"]} for each in (other, run))
    return all(before[name] == now[name] for name in before.keys() & now.keys() - {"options"})


def check_is_no_start(output_dir: Path, options: dict[str, Any]) -> None:
    """Raise a ValueError if overwriting would remove the model that training starts from."""
    for name in ("model_name_or_path", "config_name"):
        start = Path(options.get(name) or os.devnull).resolve()
        if output_dir.resolve() in (start, *start.parents):
            raise ValueError(
                f"--overwrite_output_dir would remove --{name}, {options[name]}: give another --output_dir, or move the model."
            )


def check_is_same(resumed: Run, run: Run, defaults: dict[str, Any]) -> None:
    # Older versions did not record the classes of the options.
    if resumed.identity.get("arguments", run.identity["arguments"]) != run.identity["arguments"]:
        raise ValueError(
            f"{resumed.output_dir} is from a run of another script: resume it with that one, or start a new run in "
            "another --output_dir."
        )
    differing, grown = compare_identities(resumed.identity, run.identity, defaults)
    if differing:
        more = f"; and {len(differing) - 10} more" if len(differing) > 10 else ""
        raise ValueError(
            f"{resumed.output_dir} is from a run that differs in {'; '.join(differing[:10])}{more}. Resume it with "
            "the same values, or start a new run in another --output_dir."
        )
    if grown:
        logger.warning(
            f"The run may last longer than the one that it resumes ({'; '.join(grown)}). With more epochs or steps, the learning "
            "rate follows the longer schedule from here on: the model differs from one trained this long from the start."
        )


def resumed_checkpoint(args: Any, recipe: Any, prefix: str) -> Path | None:
    """Check the output folder, and return the checkpoint that a run resumes from.

    Args:
        args: options with `output_dir` and `resume_from_checkpoint`.
        recipe: options with `overwrite_output_dir`, and the names of the files that are written in `FILES`.
        prefix: prefix of checkpoint names, before the number.

    Raises:
        ValueError: if the checkpoint is missing or incomplete, or the folder has the files of another run.
    """
    output_dir = Path(str(args.output_dir))
    # Only the main process checks: the others may get here after it has begun to write.
    if is_main_process():
        resumes = args.resume_from_checkpoint is not None
        check_output_dir(output_dir, resumes, recipe.overwrite_output_dir, files_of([recipe]))
    return find_checkpoint(args.resume_from_checkpoint, output_dir, prefix)


def find_checkpoint(resume_from: str | None, output_dir: str | Path, prefix: str) -> Path | None:
    """Find the checkpoint to resume from.

    Args:
        resume_from: path of a checkpoint, or "latest" (or "True") for the newest complete one of the run; None for
            none.
        output_dir: output folder of the run.
        prefix: prefix of checkpoint names, before the number.

    Raises:
        ValueError: if the checkpoint is missing or incomplete, or has only a model.
    """
    if resume_from is None:
        return None
    if resume_from.lower() not in ("latest", "auto", "true"):
        damage = find_damage(Path(resume_from))
        if damage is not None:
            raise ValueError(
                f"--resume_from_checkpoint must be 'latest' or a complete checkpoint, got {resume_from}: {damage}."
            )
        return trainable(Path(resume_from))
    run = find_run(Path(output_dir), resumes=True)
    written = [] if run is None else run.checkpoints
    numbered = []
    for folder in Path(output_dir).glob(f"{prefix}*"):
        number = folder.name.removesuffix(REPLACED).removeprefix(prefix)
        if number.isdecimal():
            name = f"{prefix}{number}"
            # The step number alone does not give the order if the run was resumed from an older checkpoint.
            place = written.index(name) if name in written else -1
            numbered.append((place, int(number), not folder.name.endswith(REPLACED), folder))
    for *_, folder in sorted(numbered, reverse=True):
        damage = find_damage(folder)
        if damage is None:
            return trainable(folder)
        logger.warning(f"{folder} is skipped, because it is not complete: {damage}.")
    logger.warning(f"{output_dir} has no complete checkpoint: starting from the beginning.")
    return None


def trainable(checkpoint: Path) -> Path:
    """Return the checkpoint if training can resume from it.

    Raises:
        ValueError: if the Trainer saved only the model: training would continue with a new optimizer and schedule.
    """
    # These files are saved together with the optimizer, also if it is sharded.
    if (checkpoint / "trainer_state.json").is_file() and not any(checkpoint.glob("rng_state*.pth")):
        raise ValueError(
            f"{checkpoint} has only the model, without its optimizer and schedule (--save_only_model), and cannot be "
            "resumed: start a new run from it with --model_name_or_path, in another --output_dir."
        )
    return checkpoint


def save_pretrained(model: Any, processor: Any, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Save a model and its image processor, with the default permissions of new files.

    Args:
        model: trained model, or adapter.
        processor: image processor of the model.
        folder: model folder.
        weights: full weights of the model, if it is sharded.
    """
    # Adapters do not accept `state_dict=None`.
    model.save_pretrained(str(folder), **({} if weights is None else {"state_dict": weights}))
    for name in ("model", "adapter_model"):
        for file in folder.glob(f"{name}*.safetensors"):
            use_default_permissions(file)
    processor.save_pretrained(folder)


def is_main_process() -> bool:
    """Whether this is the first of the processes that train together."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Wait until all processes that train together reach this point."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
