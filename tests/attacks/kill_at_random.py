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
"""Kill every long-running script repeatedly at random moments, and check that nothing is lost, repeated or incomplete.

    python tests/attacks/kill_at_random.py --kills 20

Each job is first run undisturbed, to measure its time and record its output. Then it is started, killed by SIGKILL or
SIGTERM after a random part of this time, and started again as its user would, until it has been killed the given
number of times by each signal. Finally, it runs to its end. After each kill, files with final names must be complete.
In the end, the output must be that of the undisturbed run, without other files. The script prints a table in Markdown.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tqdm import tqdm


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "conversion", "examples/image_classification")]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
# The jobs take seconds. A job that takes this long hangs: it prints its stack, and fails.
MINUTES_TO_HANG = 5


@dataclass(frozen=True)
class Job:
    """A script to kill.

    Args:
        name: name of the script.
        run: starts the script as a user would after an interruption; called in a separate process.
        check: raises an error if files in the output folder are incomplete; called after each kill.
        outcome: returns the output of a finished run, for comparison.
        start_afresh: removes the output of a finished run, so that there is something to do again.
    """

    name: str
    run: Callable[[Path], Any]
    check: Callable[[Path], Any]
    outcome: Callable[[Path], Any]
    start_afresh: Callable[[Path], Any]


def files_of(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def weights_of(folder: Path) -> list[tuple[str, list[float]]]:
    return [(name, weight.tolist()) for name, weight in sorted(load_file(folder / "model.safetensors").items())]


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def conversion_job(folder: Path) -> Job:
    import convert_twins_to_hf
    from source_checkpoints import TINY, source_weights

    source = folder / "source.pth"
    torch.save(source_weights("official", TINY["svt"]), source)

    def run(output: Path) -> None:
        if not (output / "model").exists():
            convert_twins_to_hf.main([str(source), "--output", str(output / "model")])

    def check(output: Path) -> None:
        if (output / "model").exists():
            convert_twins_to_hf.check_report(output / "model")

    return Job("conversion/convert_twins_to_hf.py", run, check, files_of, remove)


def publishing_job(folder: Path, hub: Any) -> Job:
    import convert_twins_to_hf
    from source_checkpoints import TINY, source_weights

    source = folder / "source.pth"
    torch.save(source_weights("official", TINY["svt"]), source)

    def published() -> dict[str, str]:
        if ("model", REPO_ID) not in hub.repositories:
            return {}
        return {name: blob.oid for name, blob in hub.repository(REPO_ID).branches["main"].files.items()}

    def run(output: Path) -> None:
        arguments = [str(source), "--output", str(output / "model"), "--push-to-hub", "--repo-id", REPO_ID]
        convert_twins_to_hf.main(arguments)

    def check(output: Path) -> None:
        # There is one commit, with the complete folder or nothing.
        names = set(published()) - {".gitattributes"}
        if names:
            assert names == set(files_of(output / "model")), names

    def outcome(output: Path) -> Any:
        return published(), files_of(output)

    def start_afresh(output: Path) -> None:
        remove(output)
        hub.repositories.clear()

    return Job("the same, with --push-to-hub", run, check, outcome, start_afresh)


REPO_ID = "somebody/twins"


def flip_a_bit(checkpoints: list[Path]) -> None:
    """Change one bit in a file of the newest checkpoint if there is another one, so that training need not start over."""
    if len(checkpoints) > 1:
        newest = max(checkpoints, key=lambda checkpoint: int(re.sub(r"\D", "", checkpoint.name)))
        # A forked process inherits the state of its parent's random numbers.
        chance = random.SystemRandom()
        file = chance.choice([file for file in newest.rglob("*") if file.is_file() and file.stat().st_size > 0])
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1
        file.write_bytes(content)


def training_job(folder: Path, script: str, is_damaged: bool = False) -> Job:
    """Create a training job; if `is_damaged`, the newest checkpoint is damaged before each resume."""
    import importlib

    from classification_utils import digit_images, options, save_start, write_parquet

    module = importlib.import_module(script)
    start, digits = folder / "start", folder / "digits"
    if not start.exists():
        save_start(start)
        write_parquet(digits, *digit_images(360))
    every_two = ["--checkpointing_steps", "2"]
    if script == "run_trainer":
        every_two = ["--save_strategy", "steps", "--save_steps", "2", "--disable_tqdm", "true"]
    # The average of the weights must be resumed, too.
    every_two += ["--ema_decay", "0.9"]

    def run(output: Path) -> None:
        resume = ["--resume_from_checkpoint", "latest"] if output.exists() else []
        if is_damaged:
            flip_a_bit([*output.glob("checkpoint-*"), *output.glob("step_*")])
        module.main([*options(digits, start, output), *every_two, "--dataloader_num_workers", "0", *resume])

    def check(output: Path) -> None:
        results = output / "all_results.json"
        if results.exists():
            json.loads(results.read_text())

    def outcome(output: Path) -> Any:
        return weights_of(output), json.loads((output / "all_results.json").read_text())["eval_accuracy"]

    name = f"image_classification/{script}"
    return Job(f"damaged checkpoints of {name}" if is_damaged else f"{name}.py", run, check, outcome, remove)


def evaluation_job(folder: Path) -> Job:
    import evaluate_classification
    from classification_utils import save_start, write_digit_folder

    start, digits = folder / "start", folder / "digit_folder"
    if not start.exists():
        save_start(start)
    write_digit_folder(digits, 400)

    def run(output: Path) -> None:
        arguments = ["--model_name_or_path", start, "--dataset_dir", digits, "--output_dir", output]
        evaluate_classification.main([str(argument) for argument in [*arguments, "--dataloader_num_workers", 0]])

    def results(output: Path) -> Any:
        file = output / "all_results.json"
        return json.loads(file.read_text())["eval_accuracy"] if file.exists() else None

    return Job("image_classification/evaluate_classification.py", run, results, results, remove)


def prediction_job(folder: Path) -> Job:
    import batch_predict
    import pyarrow.parquet
    from classification_utils import save_start, write_digit_folder

    from hf_twins._utils.shards import digest_file, is_finished

    start, digits = folder / "start", folder / "digit_folder"
    if not start.exists():
        save_start(start)
    write_digit_folder(digits, 400)

    def run(output: Path) -> None:
        arguments = ["--model_name_or_path", start, "--input_dir", digits, "--output_dir", output, "--shard_size", 8]
        batch_predict.main([str(argument) for argument in [*arguments, "--dataloader_num_workers", 0]])

    inputs = sorted(str(file.relative_to(digits)) for file in digits.rglob("*.png"))

    def rows(output: Path) -> Any:
        found = []
        for file in output.glob("*.parquet"):
            of_file = pyarrow.parquet.read_table(file).to_pylist()
            shard = int(file.stem.split("-")[1])
            assert [row["path"] for row in of_file] == inputs[8 * shard : 8 * shard + 8], (
                f"{file.name} has other images"
            )
            assert is_finished(file) or not digest_file(file).exists(), f"{file.name} is not what its digest says"
            found += of_file
        assert len({row["path"] for row in found}) == len(found), "an image was predicted twice"
        return sorted((row["path"], row["label"]) for row in found)

    return Job("image_classification/batch_predict.py", run, rows, lambda out: (rows(out), files_of(out)), remove)


@contextlib.contextmanager
def all_jobs(folder: Path) -> Iterator[list[Job]]:
    from loopback_hub import serve_hub

    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(folder / "home", token="hf_write"):
        yield [
            conversion_job(folder),
            publishing_job(folder, hub),
            *(
                training_job(folder, script, is_damaged)
                for is_damaged in (False, True)
                for script in ("run_trainer", "run_accelerate")
            ),
            evaluation_job(folder),
            prediction_job(folder),
        ]


def start_process(job: Job, output: Path, log: Path) -> int:
    """Start a process for the job, and return its id. It is forked, because imports would take longer than the job."""
    process = os.fork()
    if process:
        return process
    status = 1
    faulthandler.dump_traceback_later(60 * MINUTES_TO_HANG, exit=True, file=os.fdopen(os.dup(2), "w"))
    try:
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        job.run(output)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_to_the_end(job: Job, output: Path, log: Path) -> float:
    started = time.monotonic()
    _, status = os.waitpid(start_process(job, output, log), 0)
    if status != 0:
        raise RuntimeError(f"{job.name} ended with status {status}.")
    return time.monotonic() - started


def torment(job: Job, folder: Path, kills: int, log: Path, seed: int = 0) -> dict[str, Any]:
    """Kill a job `kills` times by each signal, and compare its output with that of an undisturbed run.

    Returns:
        The name of the job, the number of kills by each signal, how many of them came before any output, how many runs
        had finished before their kill, and the seconds of an undisturbed run.

    Raises:
        AssertionError: if output was lost, repeated or incomplete.
        RuntimeError: if a run fails without being killed.
    """
    chance = random.Random(seed)
    output = folder / "output"
    job.start_afresh(output)
    seconds = run_to_the_end(job, output, log)
    expected = job.outcome(output)
    job.start_afresh(output)
    counts = dict.fromkeys((*SIGNALS, "finished", "empty"), 0)
    progress = tqdm(total=kills * len(SIGNALS), desc=job.name, unit=" kills")
    for number in SIGNALS:
        while counts[number] < kills:
            process = start_process(job, output, log)
            time.sleep(chance.uniform(0, 1.1 * seconds))
            os.kill(process, number)
            _, status = os.waitpid(process, 0)
            if os.WIFSIGNALED(status):
                died_of = signal.Signals(os.WTERMSIG(status))
                assert died_of == number, (
                    f"{job.name} died of {died_of.name} when it was to be killed by {number.name}"
                )
                counts[number] += 1
                progress.update()
                counts["empty"] += not output.exists() or not any(output.iterdir())
                job.check(output)
            else:
                assert status == 0, f"{job.name} ended with status {status} after it had been killed"
                counts["finished"] += 1
                assert job.outcome(output) == expected, f"{job.name} left something else than when undisturbed"
                job.start_afresh(output)
    progress.close()
    run_to_the_end(job, output, log)
    assert job.outcome(output) == expected, f"{job.name} left something else than when undisturbed"
    job.start_afresh(output)
    return {"job": job.name, "seconds": seconds, **{str(getattr(key, "name", key)): counts[key] for key in counts}}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each script, by each signal (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="kill the scripts whose names have one of these parts"
    )
    parser.add_argument("--log", type=Path, default=os.devnull, help="file for what the scripts print")
    args = parser.parse_args(arguments)
    # A forked process has only one of its parent's threads.
    torch.set_num_threads(1)
    # tqdm's lock is shared with forked processes: one killed while drawing would keep it, and all others would wait
    # forever. Also, no thread of tqdm may hold the lock during a fork.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    results = []
    with tempfile.TemporaryDirectory() as folder:
        # Do not write to the user's cache. The libraries read these variables once, when they are imported.
        os.environ["HF_HOME"] = f"{folder}/home"
        with all_jobs(Path(folder)) as jobs:
            for job in jobs:
                if args.only is None or any(part in job.name for part in args.only):
                    results.append(torment(job, Path(folder), args.kills, args.log))
    print("| script | seconds undisturbed | SIGKILL | SIGTERM | before any output | finished first |")
    print("|---|---|---|---|---|---|")
    for each in results:
        print(
            f"| `{each['job']}` | {each['seconds']:.1f} | {each['SIGKILL']} | {each['SIGTERM']} | {each['empty']} | "
            f"{each['finished']} |"
        )
    return results


if __name__ == "__main__":
    main()
