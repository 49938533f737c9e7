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
import re
from pathlib import Path
from typing import Any

import pytest
import run_accelerate
import run_trainer
import torch
from card_utils import run_card
from classification_utils import blank_figures, options, write_images
from huggingface_hub import HfApi
from loopback_hub import serve_hub

from hf_twins import TwinsForImageClassification


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


@pytest.mark.usefixtures("one_process")
def test_card_of_a_published_adapter_loads_it_from_the_hub(start, tmp_path):
    """With the labels of the adapter, by this package and by PEFT itself, and without the folders of its author."""
    write_images(tmp_path / "train", {"cat": 4, "dog": 4})
    (tmp_path / "home").mkdir()
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        HfApi().create_repo("me/base")
        HfApi().upload_folder(repo_id="me/base", folder_path=start)
        for base in ("me/base", str(start)):
            arguments = ["--model_name_or_path", base, "--train_dir", str(tmp_path / "train"), "--max_steps", "1"]
            arguments += ["--output_dir", str(tmp_path / "run"), "--lora_rank", "2", "--overwrite_output_dir"]
            with blank_figures():
                run_trainer.main([*arguments, "--push_to_hub", "true", "--hub_model_id", "me/animals"])
            card = Path(HfApi().hf_hub_download("me/animals", "adapter/README.md")).read_text()
            assert str(tmp_path) not in card
            assert str(start) not in card
            title = base if base == "me/base" else start.name
            assert f"A LoRA adapter of the Twins model {title}, for 2 labels." in card
            assert ("put the path of a copy into `base_model_name_or_path`" in card) == (base != "me/base")
            names: dict[str, Any] = {}
            for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
                exec(code.replace('print(classify("image.jpg"))', ""), names)  # noqa: S102  # the card's code is ours
            pixel_values = torch.randn(2, 3, 16, 16)
            merged = TwinsForImageClassification.from_pretrained(tmp_path / "run").eval()
            assert names["base"].config.id2label == merged.config.id2label == {0: "cat", 1: "dog"}
            with torch.no_grad():
                expected = merged(pixel_values).logits
                for loaded in (names["model"], names["classify"].model):
                    torch.testing.assert_close(loaded(pixel_values).logits, expected, rtol=0, atol=1e-5)


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
