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
import io
import sys

import pytest

from hf_twins._utils import progress
from hf_twins._utils.progress import describe_metrics, progress_bar


def test_log_has_lines_without_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    with progress_bar(total=3, desc="outer", unit=" steps") as bar:
        for _ in range(3):
            for _ in progress_bar(range(2), desc="inner", leave=False):
                pass
            bar.update()
    log = capsys.readouterr().err
    assert "\r" not in log
    assert "\x1b" not in log
    lines = log.splitlines()
    assert all(line.startswith(("inner: ", "outer: ")) for line in lines)
    assert any("3/3" in line for line in lines)


def test_short_tasks_are_not_logged(capsys):
    for _ in progress_bar(range(100_000), desc="Reading"):
        pass
    assert capsys.readouterr().err == ""


def test_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in progress_bar(range(3), desc="Reading"):
        pass
    assert terminal.getvalue().startswith("\rReading:   0%|")


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        (
            {"loss": 0.27341, "grad_norm": 1.1771, "learning_rate": 0.0009873, "epoch": 2.0},
            "epoch 2: loss 0.2734, grad norm 1.177, learning rate 9.87e-04",
        ),
        (
            {
                "eval_loss": 0.13349,
                "eval_accuracy": 0.9583,
                "eval_runtime": 2.684,
                "eval_samples_per_second": 134.1,
                "eval_steps_per_second": 2.2,
                "epoch": 2.5,
            },
            "epoch 2.5, evaluation: loss 0.1335, accuracy 95.83%, 2.7 s, 134.1 images/s",
        ),
        (
            {
                "train_runtime": 9.0,
                "train_samples_per_second": 3.0,
                "total_flos": 1e9,
                "train_loss": "0.5",
                "epoch": 1,
            },
            "epoch 1, training: 9.0 s, 3.0 images/s, loss 0.5",
        ),
        ({"epoch": 3, "step": 12, "loss": 0.5, "eval_accuracy": 1.0}, "epoch 3: loss 0.5, eval accuracy 100.00%"),
        ({"loss": 2}, "loss 2"),
        ({"eval_ap_step": 0.5, "eval_epoch": 1, "eval_note": "none"}, "evaluation: ap step 0.5, note none"),
    ],
)
def test_metrics_are_one_line(metrics, line):
    assert describe_metrics(metrics) == line
