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
"""Progress bars on a terminal, and plain lines if standard error is a file or a pipe."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from huggingface_hub.utils import disable_progress_bars
from tqdm import tqdm
from transformers.utils import logging


# Seconds between lines in a log file.
LOG_INTERVAL = 30.0
# Values that the Trainer logs but are not worth printing.
UNREAD = {"steps_per_second", "total_flos", "epoch", "step"}


class LogLines:
    """Stream that writes each state of a progress bar on a separate line, without control characters."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip("\r\n ")
        if line:
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """tqdm's progress bar on a terminal; elsewhere one line every half minute, and nothing for shorter tasks.

    Args:
        iterable, options: as for tqdm.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, **options)
    plain = {"file": LogLines(sys.stderr), "ascii": True, "ncols": 0}
    seldom = dict.fromkeys(("delay", "mininterval", "maxinterval"), LOG_INTERVAL)
    return tqdm(iterable, **options | plain | seldom)


def quiet_libraries() -> None:
    """Disable the progress bars of libraries if they would fill a log file."""
    if sys.stderr.isatty():
        return
    disable_progress_bars()
    logging.disable_progress_bar()
    # Only some scripts import `datasets`.
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        datasets.disable_progress_bars()


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Format a log entry of the Trainer: "epoch 3, evaluation: loss 0.1335, accuracy 95.83%, 2.7 s, 134.1 images/s"."""
    kinds = {"eval_": "evaluation", "train_": "training", "test_": "test"}
    # Full names are compared, because a class may be called "step".
    unread = UNREAD | {prefix + name for prefix in kinds for name in UNREAD}
    values = {name: value for name, value in metrics.items() if name not in unread}
    prefix = next((prefix for prefix in kinds if values and all(name.startswith(prefix) for name in values)), "")
    when = [f"epoch {metrics['epoch']:.4g}"] if "epoch" in metrics else []
    heading = ", ".join([*when, *([kinds[prefix]] if prefix else [])])
    described = ", ".join(_describe(name.removeprefix(prefix), value) for name, value in values.items())
    return f"{heading}: {described}" if heading else described


def _describe(name: str, value: Any) -> str:
    # Newer versions of the Trainer log some numbers as text.
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"{name.replace('_', ' ')} {value}"
    if name == "runtime":
        return f"{number:.1f} s"
    if name == "samples_per_second":
        return f"{number:.1f} images/s"
    form = ".2%" if name.endswith("accuracy") else ".2e" if name == "learning_rate" else ".4g"
    return f"{name.replace('_', ' ')} {number:{form}}"
