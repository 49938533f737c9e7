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
"""The command line of the scripts: recipes, headings, and one-sentence error messages."""

import errno
import logging
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from hf_twins._utils.command_line import MAX_STEPS_VARIABLE, ArgumentParser, parse_arguments, run

import pytest

from hf_twins._utils.files import ReadError
from hf_twins.training.image_classification import arguments as classification
from hf_twins.training.object_detection import arguments as detection
from hf_twins.training.semantic_segmentation import arguments as segmentation


@dataclass
class DataArguments:
    one_of: ClassVar = (("train_dir", "dataset_name"),)

    train_dir: str | None = field(default=None, metadata={"help": "Folder of images."})
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub."})


@dataclass
class LoopArguments:
    output_dir: str = field(metadata={"help": "Folder to write."})
    recipe: str = field(default="short", metadata={"help": "Where defaults come from."})
    max_steps: int = field(default=-1, metadata={"help": "Number of steps."})
    learning_rate: float = field(default=0.5, metadata={"help": "Learning rate."})
    decay_epochs: list[int] = field(default_factory=list, metadata={"help": "Epochs."})
    shuffle: bool = field(default=True, metadata={"help": "Draw images in random order."})
    mode: Literal["fast", "exact"] = field(default="exact", metadata={"help": "How."})
    scheduler: dict | str | None = field(default=None, metadata={"help": "Arguments of the scheduler."})


@pytest.fixture
def recipes(tmp_path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "short.toml").write_text("max_steps = 3\n")
    (folder / "long.toml").write_text("max_steps = 30\nlearning_rate = 1\n")
    return folder


def parse(recipes: Path, *arguments: object) -> LoopArguments:
    words = ["--train_dir", "x", "--output_dir", "y", *map(str, arguments)]
    return parse_arguments(DataArguments, LoopArguments, recipes=recipes, arguments=words)[1]


def error_of(capsys, *classes: type, arguments: list[str], recipes: Path | None = None) -> str:
    with pytest.raises(SystemExit):
        parse_arguments(*classes, recipes=recipes, arguments=arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_recipe_is_a_name_or_a_file_and_the_command_line_overrides_it(recipes, tmp_path):
    assert parse(recipes).max_steps == 3
    assert parse(recipes, "--recipe", "long").max_steps == 30
    assert parse(recipes, "--recipe=long").learning_rate == 1
    assert parse(recipes, "--max_steps", 4, "--recipe", "long").max_steps == 4
    own = tmp_path / "own.toml"
    own.write_text('mode = "fast"\ndecay_epochs = [1, 2]\nshuffle = false\nscheduler = { power = 2 }\n')
    values = parse(recipes, "--recipe", own, "--decay-epochs", 3)
    assert (values.mode, values.decay_epochs, values.shuffle, values.scheduler) == ("fast", [3], False, {"power": 2})
    assert values.max_steps == -1


def test_recipe_can_set_required_options(recipes):
    @dataclass
    class RequiredArguments:
        batch_size: int = field(metadata={"help": "Images of a batch."})

    (recipes / "whole.toml").write_text('batch_size = 2\ndataset_name = "there"\n')
    data, _, required = parse_arguments(
        *(DataArguments, LoopArguments, RequiredArguments),
        recipes=recipes,
        arguments=["--recipe", "whole", "--output_dir", "here"],
    )
    assert (data.dataset_name, required.batch_size) == ("there", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat = 1", "learning_rat is not an option, did you mean learning_rate?"),
        (
            'output_dir = "here"',
            "output_dir is for a single run, not for a recipe: give --output_dir on the command line",
        ),
        ('train_dir = "here"', "train_dir is for a single run, not for a recipe"),
        ('recipe = "long"', "recipe is not an option"),
        ('max_steps = "3"', "max_steps must be int, got '3'"),
        ("max_steps = 3.5", "max_steps must be int, got 3.5"),
        ("max_steps = true", "max_steps must be int, got True"),
        ("learning_rate = true", "learning_rate must be float, got True"),
        ("shuffle = 1", "shuffle must be bool, got 1"),
        ("decay_epochs = 3", r"decay_epochs must be list[int], got 3"),
        ('decay_epochs = ["3"]', r"decay_epochs must be list[int], got ['3']"),
        ('mode = "slow"', "mode must be typing.Literal['fast', 'exact'], got 'slow'"),
        ("[train]\nmax_steps = 3", "train is not an option"),
        ("max_steps: 3", "own.toml is not TOML: "),
    ],
)
def test_mistake_in_a_recipe_is_named_with_its_file(recipes, tmp_path, capsys, content, message):
    own = tmp_path / "own.toml"
    own.write_text(content)
    arguments = ["--train_dir", "x", "--output_dir", "y", "--recipe", str(own)]
    error = error_of(capsys, DataArguments, LoopArguments, arguments=arguments, recipes=recipes)
    assert message in error
    assert str(own) in error


def test_unknown_recipe_is_refused_and_existing_ones_are_named(recipes, capsys):
    arguments = ["--train_dir", "x", "--output_dir", "y", "--recipe", "shrot"]
    error = error_of(capsys, DataArguments, LoopArguments, arguments=arguments, recipes=recipes)
    assert error.endswith("--recipe must be one of long, short, or a TOML file, got 'shrot'")


def test_all_missing_options_are_named_at_once(capsys):
    error = error_of(capsys, DataArguments, LoopArguments, arguments=[])
    assert error.endswith("missing: --output_dir, --train_dir or --dataset_name (see --help)")


def test_unknown_options_are_named_with_the_most_similar_option(capsys):
    error = error_of(
        capsys, DataArguments, LoopArguments, arguments=["--outputdir", "x", "--zzz=1", "--max_step", "1"]
    )
    assert (
        "--outputdir is not an option, did you mean --output_dir?; --zzz is not an option; --max_step is not" in error
    )
    arguments = ["--output_dir", "x", "--train_dir", "y", "more"]
    assert "unexpected arguments: more" in error_of(capsys, DataArguments, LoopArguments, arguments=arguments)


def test_options_can_be_written_with_hyphens():
    arguments = ["--train-dir", "x-y", "--output-dir=a-b", "--max-steps", "2", "--no-shuffle"]
    data, loop = parse_arguments(DataArguments, LoopArguments, arguments=arguments)
    assert (data.train_dir, loop.output_dir, loop.max_steps, loop.shuffle) == ("x-y", "a-b", 2, False)
    parser = ArgumentParser()
    parser.add_argument("--push_to_hub", action="store_true")
    parser.add_argument("file")
    assert parser.parse_args(["--push-to-hub", "--", "--a-b"]).file == "--a-b"


def test_help_shows_headings_defaults_recipes_and_required_options(recipes, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(DataArguments, LoopArguments, recipes=recipes, arguments=["--help", "--recipe", "long"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--output_dir OUTPUT_DIR [options]\n" in text.partition("\n\n")[0] + "\n"
    assert text.index("data options:\n  Required: --train_dir or --dataset_name.\n") < text.index("loop options:\n")
    words = " ".join(text.split())
    assert "--output_dir OUTPUT_DIR Folder to write. (required)" in words
    assert "--learning_rate LEARNING_RATE Learning rate. (default: 1)" in words
    assert "long, short, or a TOML file with options. (default: short)" in words
    assert "--no_shuffle The same as --shuffle false." in words
    assert "--output-dir" not in text


def test_environment_variable_limits_the_number_of_steps(recipes, monkeypatch, capsys, caplog):
    monkeypatch.setenv(MAX_STEPS_VARIABLE, "2")
    with caplog.at_level(logging.WARNING):
        assert parse(recipes, "--recipe", "long").max_steps == 2
    assert "HF_TWINS_MAX_STEPS is set: training stops after 2 steps." in caplog.text
    assert parse(recipes, "--max_steps", 1).max_steps == 1
    assert parse(recipes, "--max_steps", -1).max_steps == 2
    monkeypatch.setenv(MAX_STEPS_VARIABLE, "few")
    with pytest.raises(SystemExit):
        parse(recipes)
    assert "HF_TWINS_MAX_STEPS must be a number of training steps, got 'few'" in capsys.readouterr().err


def test_recipes_match_those_of_the_authors():
    """These values were used for the published results, and mistakes in them would not be noticed otherwise."""
    expected = {
        classification.RECIPES / "imagenet-from-scratch.toml": {"num_train_epochs": 300, "learning_rate": 5e-4},
        segmentation.RECIPES / "ade20k-semantic-fpn.toml": {"max_steps": 80_000, "learning_rate": 1e-4},
        segmentation.RECIPES / "ade20k-upernet.toml": {
            "max_steps": 160_000,
            "learning_rate": 6e-5,
            "weight_decay": 0.01,
        },
        detection.RECIPES / "retinanet-1x.toml": {"learning_rate": 1e-4, "weight_decay": 1e-4, "num_train_epochs": 12},
        detection.RECIPES / "retinanet-3x.toml": {"learning_rate": 1e-4, "weight_decay": 0.05, "num_train_epochs": 36},
        detection.RECIPES / "mask-rcnn-1x.toml": {"learning_rate": 2e-4, "weight_decay": 1e-4, "num_train_epochs": 12},
        detection.RECIPES / "mask-rcnn-3x.toml": {"learning_rate": 1e-4, "weight_decay": 0.05, "num_train_epochs": 36},
    }
    for file, values in expected.items():
        assert values.items() <= tomllib.loads(file.read_text(encoding="utf-8")).items(), file.stem


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ReadError(
                "Caught ReadError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\nOSError: "
                "[Errno 5] Input/output error\n\nThe above exception was\n\nhf_twins._utils.files.ReadError: a.png: gone.\n"
            ),
            r"^error: a\.png: gone\.$",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            r"^error: a data loading process has died \(DataLoader worker \(pid 7\) is killed by signal: Killed\): "
            r"is there enough memory\? Start again, perhaps with fewer --dataloader_num_workers\.$",
        ),
        (
            RuntimeError("Too many open files. Communication with the workers is no longer possible."),
            r"^error: too many open files: raise the number .*\(ulimit -n\).*, and start again\.$",
        ),
        (RuntimeError("received 0 items of ancdata"), r"^error: too many open files: raise"),
        (
            RuntimeError("DataLoader timed out after 600 seconds"),
            r"^error: data loading timed out \(.*600 seconds\): raise the number of files",
        ),
        (OSError(errno.EMFILE, "Too many open files"), r"^error: \[Errno 24\] Too many open files: raise the number"),
    ],
    ids=["reading", "killed", "too many files", "sockets", "lost batch", "system"],
)
def test_errors_of_data_loading_processes_are_one_sentence(error, message):
    def fail(arguments: DataArguments) -> None:
        raise error

    with pytest.raises(SystemExit, match=message):
        run(fail, DataArguments, arguments=["--train_dir", "x"])


def test_other_errors_keep_their_traceback():
    def fail(arguments: DataArguments) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(fail, DataArguments, arguments=["--train_dir", "x"])


@pytest.mark.slow
def test_interrupted_script_ends_in_one_line(tmp_path):
    script = tmp_path / "script.py"
    # A real signal would depend on the shell, which makes background processes ignore it.
    script.write_text("import hf_twins._utils.command_line\nraise KeyboardInterrupt\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stderr.endswith("\nstopped by Ctrl-C\n")
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "utf-8:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_scripts_print_what_the_terminal_cannot_show_escaped(environment, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import hf_twins._utils.command_line\nprint('\\udce9 \\U0001f353')\n", encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        env=variables | {"PYTHONCOERCECLOCALE": "0"} | environment,
    )
    assert done.returncode == 0, done.stderr.decode(errors="backslashreplace")
    strawberry = rb"\U0001f353" if "LC_ALL" in environment else "\N{STRAWBERRY}".encode()
    assert done.stdout == rb"\udce9 " + strawberry + b"\n"
