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
"""Several processes give the same results as one, and every committed launch configuration is valid for Accelerate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluate_classification
import pytest
import run_accelerate
import run_trainer
import sharded_training
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from classification_utils import plain_options, write_digit_folder
from testing_utils import tiny_config

from hf_twins import TwinsForImageClassification


CONFIGS = sorted(Path(run_trainer.__file__).parents[1].glob("accelerate_configs/*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_launch_configuration_is_valid(file):
    config = load_config_from_file(str(file))
    parser = launch_command_parser()
    args, _, _ = _validate_launch_command(parser.parse_args(["--config_file", str(file), "script.py"]))
    assert args.num_processes == config.num_processes
    # Accelerate accepts any key and value in these files, so each is passed to the parser of its command line.
    for section in ("fsdp_config", "deepspeed_config"):
        for name, value in (getattr(config, section) or {}).items():
            given = parser.parse_args(
                [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value), "a"]
            )
            assert name in given.nondefault or hasattr(given, name), name
    assert yaml.safe_load(file.read_text())["mixed_precision"] in ("no", "bf16")


def test_fsdp_configuration_wraps_the_blocks_of_the_model(monkeypatch):
    file = next(file for file in CONFIGS if file.stem == "fsdp2")
    arguments = ["--config_file", str(file), "--main_process_port", "0", "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    environment = prepare_multi_gpu_env(args)
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    model = TwinsForImageClassification(tiny_config())
    plugin.set_auto_wrap_policy(model)
    classes = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {cls.__name__ for cls in classes} == set(model._no_split_modules)


def run(launcher: list[str], script: object, arguments: list[str], output: Path | None = None) -> dict:
    process = subprocess.run(
        [*launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return {} if output is None else json.loads((output / "report.json").read_text())


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TWO_CPUS = next(file for file in CONFIGS if file.stem == "cpu_2_processes")
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(TWO_CPUS),
    "--main_process_port",
    "0",
]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("script", "launcher"), [(run_trainer, TORCHRUN), (run_accelerate, LAUNCH)], ids=["trainer", "accelerate"]
)
def test_two_processes_learn_the_same_as_one(script, launcher, digits, start, tmp_path):
    """Loss curves and accuracies are compared, with the same number of images per step; an epoch's last step has fewer."""
    quiet = ["--disable_tqdm", "true"] if script is run_trainer else []
    quiet += ["--gradient_accumulation_steps", "3", "--max_grad_norm", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    script.main(plain_options(digits, start, one) + quiet)
    more = ["--per_device_train_batch_size", "8", *quiet]
    report = run(launcher, script.__file__, plain_options(digits, start, two) + more, two)
    expected = json.loads((one / "report.json").read_text())
    curves = [[entry["loss"] for entry in each["history"] if "loss" in entry] for each in (expected, report)]
    assert len(curves[0]) == 3
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert sum(map(sum, report["confusion_matrix"])) == 40
    assert report["metrics"] == pytest.approx(expected["metrics"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_two_processes_evaluate_the_same_as_one(start, tmp_path):
    folder = write_digit_folder(tmp_path / "digits", 37)
    arguments = [
        "--model_name_or_path",
        str(start),
        "--dataset_dir",
        str(folder),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    expected = evaluate_classification.main([*arguments, "--dataloader_num_workers", "0"])
    run(TORCHRUN, evaluate_classification.__file__, [*arguments, "--per_device_eval_batch_size", "4"])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["processes"] == 2
    for name in ("eval_accuracy", "eval_top5_accuracy", "images"):
        assert results[name] == expected[name]


@pytest.mark.slow
def test_sharded_training_equals_unsharded_training():
    """FSDP2 over gloo, with both families, with and without activation checkpointing. PyTorch's `fully_shard` is called
    directly, because Accelerate does not shard on CPUs."""
    script = Path(sharded_training.__file__)
    curves = []
    for launcher in ([sys.executable], TORCHRUN):
        process = subprocess.run(
            [*launcher, str(script)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)},
        )
        assert process.returncode == 0, process.stderr[-3000:]
        curves.append([[float(loss) for loss in line.split()] for line in process.stdout.splitlines()])
    assert [len(set(curve)) for curve in curves[0]] == [5] * 4
    for sharded, whole in zip(curves[1], curves[0]):
        assert sharded == pytest.approx(whole, abs=1e-6)
