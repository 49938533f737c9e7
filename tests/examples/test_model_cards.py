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

"""The code in the model cards that the training scripts write loads and runs the model."""

import json

import pytest
import run_accelerate
import run_trainer
from card_utils import run_card
from classification_utils import blank_figures, options


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("extra", [[], ["--lora_rank", "2"]], ids=["whole", "lora"])
def test_card_of_a_classifier(extra, digits, start, tmp_path, capsys):
    output = tmp_path / "digits"
    arguments = options(digits, start, output)
    if extra:
        arguments[0] = "--model_name_or_path"
    metrics = run_trainer.main([*arguments, "--num_train_epochs", "1", *extra])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"Accuracy on 40 evaluation images: {metrics['eval_accuracy']:.1%}. Look at {output}")
    assert "'label'" in run_card(output)
    if extra:
        # PEFT imports Accelerate.
        assert "'label'" in run_card(output / "adapter", needs=("peft", "accelerate"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("extra", [[], ["--ema_decay", "0.5"]], ids=["plain", "averaged"])
def test_final_weights_are_evaluated_once(extra, digits, start, tmp_path, monkeypatch):
    evaluations = []

    def count(evaluate):
        return lambda *arguments: evaluations.append(arguments) or evaluate(*arguments)

    monkeypatch.setattr(run_trainer, "classification_metrics", count(run_trainer.classification_metrics))
    monkeypatch.setattr(run_accelerate, "predict", count(run_accelerate.predict))
    with blank_figures():
        run_trainer.main([*options(digits, start, tmp_path / "trainer"), *extra])
        assert len(evaluations) == 2
        run_accelerate.main([*options(digits, start, tmp_path / "accelerate"), *extra])
    # Evaluations are after each of two epochs, with the weights that would be saved.
    assert len(evaluations) == 2 + 2
    for name in ("trainer", "accelerate"):
        history = json.loads((tmp_path / name / "report.json").read_text())["history"]
        assert [entry["epoch"] for entry in history if "eval_accuracy" in entry] == [1, 2]
