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
"""The command line of most scripts here: options are the fields of dataclasses, and mistakes end in one sentence."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import HfArgumentParser

from .extras import MissingExtraError


Result = TypeVar("Result")


def run(
    function: Callable[..., Result],
    *dataclasses: type,
    recipes: dict[str, dict[str, Any]] | None = None,
    defaults: dict[str, Any] | None = None,
    arguments: list[str] | None = None,
) -> Result:
    """Call `function` with the command line as these dataclasses; exit with a sentence if it cannot be done.

    See `parse_arguments`.
    """
    try:
        return function(*parse_arguments(*dataclasses, recipes=recipes, defaults=defaults, arguments=arguments))
    # safetensors has its own for a disk that is full.
    except (OSError, ValueError, SafetensorError, MissingExtraError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        # What PyTorch says where a file cannot be written to its end.
        if "inline_container" not in str(error):
            raise
        sys.exit(f"error: a file cannot be written, is the disk full? {str(error).splitlines()[0]}")
    # Those of a connection, which the Hub's client lets through, are no OSErrors.
    except httpx.HTTPError as error:
        sys.exit(
            f"error: the connection to the Hub failed, start again when it is back: {error or type(error).__name__}"
        )


def parse_arguments(
    *dataclasses: type,
    recipes: dict[str, dict[str, Any]] | None = None,
    defaults: dict[str, Any] | None = None,
    arguments: list[str] | None = None,
) -> tuple[Any, ...]:
    """The command line as these dataclasses, with the recipe's values, or else `defaults`, for what it does not say.

    Exits with a sentence if there is no such recipe, or an option is unknown.

    Args:
        dataclasses: whose fields are the options.
        recipes: values of options, by the name that `--recipe` takes.
        defaults: other than the dataclasses'.
        arguments: words of the command line; the process's own if not given.
    """
    parser = HfArgumentParser(dataclasses)  # type: ignore[arg-type]  # which is declared for something else
    words = sys.argv[1:] if arguments is None else arguments
    parser.set_defaults(**defaults or {})
    if recipes is not None:
        recipe = parser.get_default("recipe")
        for index, word in enumerate(words):
            if word == "--recipe" and index + 1 < len(words):
                recipe = words[index + 1]
            elif word.startswith("--recipe="):
                recipe = word.partition("=")[2]
        if recipe not in recipes:
            parser.error(f"--recipe must be one of {', '.join(recipes)}, got {recipe!r}")
        parser.set_defaults(**recipes[recipe])
    return parser.parse_args_into_dataclasses(args=words)
