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
"""Write the Spaces' example images, from images that scikit-learn and scikit-image ship under free licenses.

All digits, including those in the scenes, are held out by `train_digit_models.py`.

    python spaces/prepare_examples.py
"""

from pathlib import Path

from hf_twins._utils.command_line import run

import numpy as np
import PIL.Image
import skimage.data
from digit_scenes import digit_scene
from sklearn.datasets import load_digits, load_sample_image
from train_digit_models import MIN_DIGIT_SIDE, SCENE_SIDE, split_handwriting


SPACES = Path(__file__).parent
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut")
DIGIT_SIDE, SCENE_FACTOR, NUM_SCENES = 128, 4, 6


def main() -> None:
    digits = load_digits()
    _, held_out = split_handwriting(seed=0)
    folder = SPACES / "image_classification" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        index = next(index for index in held_out if digits.target[index] == digit)
        image = PIL.Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
        image.resize((DIGIT_SIDE, DIGIT_SIDE), PIL.Image.Resampling.BICUBIC).save(
            folder / f"digit_{digit}.png", optimize=True
        )
    for name in PHOTOGRAPHS:
        PIL.Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg", quality=85, optimize=True)

    folder = SPACES / "semantic_segmentation" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(NUM_SCENES):
        # These seeds differ from those of the scenes that the model was trained and evaluated on.
        size = (SCENE_SIDE, SCENE_SIDE if seed % 2 else 96)
        image = digit_scene(100_000 + seed, size, 5, held_out, MIN_DIGIT_SIDE).image
        image = image.resize((image.width * SCENE_FACTOR, image.height * SCENE_FACTOR), PIL.Image.Resampling.BICUBIC)
        image.save(folder / f"scene_{seed + 1}.jpg", quality=90, optimize=True)
    for name, photograph in (("china", load_sample_image("china.jpg")), ("coffee", skimage.data.coffee())):
        PIL.Image.fromarray(photograph).save(folder / f"{name}.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    run(main)
