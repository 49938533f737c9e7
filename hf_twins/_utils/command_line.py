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
"""The command lines of the scripts: options are the fields of dataclasses, and errors are one sentence.

    run(train, ModelArguments, TrainingArguments, recipes=RECIPES)

calls `train` with one instance of each dataclass. `--help` shows the docstring of the script, and the options of each
dataclass under their own heading. Every option can also be written with hyphens (`--output-dir`). A dataclass can
require one of several options by an attribute `one_of: ClassVar = (("train_dir", "dataset_name"),)`.

A recipe is a TOML file with any options except `OPTIONS_OF_A_RUN`. `--recipe` takes a name in `recipes`, or a path.
Options of the command line have precedence over the recipe, and the recipe over `defaults`.

The environment variable `HF_TWINS_MAX_STEPS` limits the number of training steps of every script that has
`--max_steps`.
"""

import argparse
import difflib
import errno
import io
import logging
import os
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import HfArgumentParser

from .extras import MissingExtraError, exit_with_sentence_if_extra_is_missing
from .files import ADVICE
from .progress import quiet_libraries


def _end_in_one_line(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        # The line break ends the line of a progress bar.
        print("\nstopped by Ctrl-C", file=sys.stderr)
    else:
        exit_with_sentence_if_extra_is_missing(kind, error, traceback)


# Scripts import this module before modules of extras, which may be missing (see the order of imports in
# pyproject.toml).
sys.excepthook = _end_in_one_line
# Names of files that are not valid text, and labels that the encoding of the terminal lacks, are printed escaped.
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Options that set what a single run reads, writes and publishes, and not how it trains. Those with the prefix `hub_`
# are treated alike.
OPTIONS_OF_A_RUN = {
    "output_dir",
    "overwrite_output_dir",
    "push_to_hub",
    "resume_from_checkpoint",
    "train_annotations",
    "train_dir",
    "validation_annotations",
    "validation_dir",
}
MAX_STEPS_VARIABLE = "HF_TWINS_MAX_STEPS"


def run(
    function: Callable[..., Result],
    *dataclasses: type,
    recipes: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    arguments: list[str] | None = None,
) -> Result:
    """Call `function` with the command line as dataclasses; exit with a one-sentence message if that fails.

    Args:
        function: called with one instance of each dataclass.
        dataclasses, recipes, defaults, arguments: see `parse_arguments`.

    Raises:
        SystemExit: if the command line is invalid, or reading, writing, data loading or the connection to the Hub
            fails.
    """
    quiet_libraries()
    try:
        return function(*parse_arguments(*dataclasses, recipes=recipes, defaults=defaults, arguments=arguments))
    # safetensors raises its own error if the disk is full.
    except (OSError, ValueError, SafetensorError, MissingExtraError) as error:
        sys.exit(f"error: {_last_sentence(error)}")
    except RuntimeError as error:
        fault = _fault_of_workers(str(error))
        if fault is not None:
            sys.exit(f"error: {fault}")
        # PyTorch raises this error if it cannot write a file completely.
        if "inline_container" not in str(error):
            raise
        sys.exit(f"error: a file cannot be written, is the disk full? {str(error).splitlines()[0]}")
    # Connection errors that the Hub's client does not convert are not OSErrors.
    except httpx.HTTPError as error:
        sys.exit(
            f"error: the connection to the Hub failed, start again when it is back: {error or type(error).__name__}"
        )


def _fault_of_workers(text: str) -> str | None:
    """Say what failed if `text` is PyTorch's RuntimeError about data loading processes; otherwise None."""
    if "Too many open files" in text or "ancdata" in text:
        return f"too many open files: {ADVICE[errno.EMFILE]}, and start again."
    if text.startswith("DataLoader timed out"):
        return f"data loading timed out ({text.rstrip('.')}): {ADVICE[errno.EMFILE]}, and start again."
    if text.startswith("DataLoader worker"):
        first = text.splitlines()[0].strip().rstrip(".")
        return (
            f"a data loading process has died ({first}): is there enough memory? Start again, perhaps with fewer "
            "--dataloader_num_workers."
        )
    return None


def _last_sentence(error: Exception) -> str:
    """The message of an error and what to do, without the traceback that PyTorch prepends in a data loading process."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in ADVICE:
        return f"{text}: {ADVICE[error.errno]}."
    if not (text.startswith("Caught ") and "DataLoader worker" in text.splitlines()[0]):
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]


def parse_arguments(
    *dataclasses: type,
    recipes: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    arguments: list[str] | None = None,
) -> tuple[Any, ...]:
    """Parse the command line into dataclasses.

    Args:
        dataclasses: the classes whose fields are the options.
        recipes: folder of TOML files that `--recipe` accepts by name; one of the dataclasses must have the field
            `recipe`.
        defaults: default values that override those of the dataclasses.
        arguments: words of the command line; `sys.argv[1:]` if not given.

    Returns:
        One instance of each dataclass, in their order.

    Raises:
        SystemExit: with a one-sentence message, if an option in the command line or in a recipe is unknown, missing or
            has an invalid value.
    """
    parser = _DataclassParser(dataclasses)
    parser.set_defaults(**defaults or {})
    words = sys.argv[1:] if arguments is None else arguments
    if recipes is not None:
        _apply_recipe(parser, recipes, words)
    parsed = parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    _limit_steps(parser, parsed)
    return parsed


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option once, with underscores, and says that it is required or what its default is."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        values = self._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        return f"{', '.join(names)} {values}".strip() if names else super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._StoreFalseAction):
            return f"The same as --{action.dest} false."
        return f"{action.help} (required)" if action.required else super()._get_help_string(action)


class _Mixin(argparse.ArgumentParser):
    """Additions to argparse's parser, for both parsers below."""

    def __init__(self, *args: Any, **kwargs: Any):
        # The description is the docstring of the script that was started.
        defaults = {"description": sys.modules["__main__"].__doc__, "formatter_class": _Formatter}
        # With abbreviations, a new option could change the meaning of an old command line.
        super().__init__(*args, **defaults | {"allow_abbrev": False} | kwargs)

    def format_help(self) -> str:
        # The usage line shows only required options, because all options are listed below it.
        required = [action for action in self._actions if action.required]
        words = [
            word for action in required for word in (*action.option_strings[:1], action.metavar or action.dest.upper())
        ]
        self.usage = " ".join(["%(prog)s", *map(str, words), "[options]"])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments, and report all unknown and missing ones in one error message."""
        words = self.with_underscores(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        # As in argparse, words with spaces are values.
        names = [word.partition("=")[0] for word in options if word.startswith("--") and " " not in word]
        unknown = [name for name in names if name not in self._option_string_actions]
        if unknown:
            problems = [f"{name} is not an option{_suggestion(name, self._option_string_actions)}" for name in unknown]
            self.error(f"{'; '.join(problems)} (see --help)")
        if not {"-h", "--help"} & {*options}:
            self.check_required({self._option_string_actions[name].dest for name in names})
        parsed, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unexpected arguments: {' '.join(map(str, rest))} (see --help)")
        return parsed, rest

    def check_required(self, given: set[str]) -> None:
        """Nothing to check here, because argparse itself reports missing options."""

    def with_underscores(self, words: Iterable[str]) -> list[str]:
        """Replace the hyphens in names of options by underscores."""
        replaced = []
        for word in words:
            name, equals, value = word.partition("=")
            underscored = f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
            replaced.append(underscored + equals + value if underscored in self._option_string_actions else word)
        return replaced


class ArgumentParser(_Mixin):
    """Parser for scripts with positional arguments, whose help and error messages look like those of the other scripts."""


class _DataclassParser(_Mixin, HfArgumentParser):
    """transformers' parser of dataclasses, with a heading for each of them."""

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        # transformers groups its options by this attribute.
        if (dtype.__module__, dtype.__name__) == ("transformers.training_args", "TrainingArguments"):
            dtype._argument_group_name = "options of transformers.TrainingArguments"
        else:
            words = re.findall("[A-Z][a-z]*", dtype.__name__.removesuffix("Arguments"))
            dtype._argument_group_name = f"{' '.join(words).lower()} options"
        super()._add_dataclass_arguments(dtype)
        groups = [" or ".join(f"--{name}" for name in names) for names in getattr(dtype, "one_of", ())]
        self._action_groups[-1].description = f"Required: {'; '.join(groups)}." if groups else None

    def check_required(self, given: set[str]) -> None:
        given |= {action.dest for action in self._actions if action.default is not None}
        missing = [f"--{action.dest}" for action in self._actions if action.required and action.dest not in given]
        groups = [names for dtype in self.dataclass_types for names in getattr(dtype, "one_of", ())]
        missing += [" or ".join(f"--{name}" for name in names) for names in groups if not given & {*names}]
        if missing:
            self.error(f"missing: {', '.join(missing)} (see --help)")


def _suggestion(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""


def _apply_recipe(parser: _DataclassParser, recipes: Path, words: Iterable[str]) -> None:
    """Use the values of the recipe that the command line names as defaults."""
    files = {file.stem: file for file in sorted(recipes.glob("*.toml"))}
    option = parser._option_string_actions["--recipe"]
    option.help = f"Where the defaults of other options come from: {', '.join(files)}, or a TOML file with options."
    name = str(option.default)
    for word, following in zip(words := parser.with_underscores(words), [*words[1:], None]):
        if word == "--recipe" and following is not None:
            name = following
        elif word.startswith("--recipe="):
            name = word.partition("=")[2]
    file = files.get(name, Path(name))
    if not file.is_file():
        parser.error(f"--recipe must be one of {', '.join(files)}, or a TOML file, got {name!r}")
    values = _read_recipe(parser, file)
    parser.set_defaults(**values)
    for action in parser._actions:
        if action.dest in values:
            action.required = False


def _read_recipe(parser: _DataclassParser, file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        parser.error(f"{file} is not TOML: {error}")
    hints = {name: hint for dtype in parser.dataclass_types for name, hint in get_type_hints(dtype).items()}
    options = {name: hints[name] for name in {action.dest for action in parser._actions} - {"help", "recipe"}}
    for name, value in values.items():
        if name not in options:
            parser.error(f"{file}: {name} is not an option{_suggestion(name, options)}")
        if name in OPTIONS_OF_A_RUN or name.startswith("hub_"):
            parser.error(f"{file}: {name} is for a single run, not for a recipe: give --{name} on the command line")
        if not _is_value_of(options[name], value):
            expected = getattr(options[name], "__name__", None) if isinstance(options[name], type) else options[name]
            parser.error(f"{file}: {name} must be {expected}, got {value!r}")
    return values


def _is_value_of(hint: Any, value: Any) -> bool:
    """Whether a value from a TOML file is valid for a field with this type."""
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return any(_is_value_of(each, value) for each in get_args(hint))
    if kind is Literal:
        return value in get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(_is_value_of(each, item) for each in get_args(hint) for item in value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in [member.value for member in kind]
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _limit_steps(parser: argparse.ArgumentParser, parsed: tuple[Any, ...]) -> None:
    """Limit `--max_steps` to the value of the environment variable, which tests set."""
    limit = os.environ.get(MAX_STEPS_VARIABLE)
    if not limit:
        return
    if not limit.isdecimal() or int(limit) == 0:
        parser.error(
            f"the environment variable {MAX_STEPS_VARIABLE} must be a number of training steps, got {limit!r}"
        )
    for options in parsed:
        if hasattr(options, "max_steps"):
            logger.warning(f"{MAX_STEPS_VARIABLE} is set: training stops after {limit} steps.")
            options.max_steps = min(int(limit), options.max_steps) if options.max_steps > 0 else int(limit)
