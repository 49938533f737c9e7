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
"""Train the small models bundled with the Spaces, on handwritten digits from scikit-learn.

Two classifiers of single digits, one of each family of Twins, and a Semantic FPN that finds digits in scenes composed
of them. Nothing is downloaded. An existing model is replaced once the new one is complete.

    OMP_NUM_THREADS=1 python spaces/train_digit_models.py
    ... --only twins-svt-digits --output_dir outputs/spaces --epochs 1
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import ArgumentParser

import numpy as np
import torch
from digit_scenes import digit_scene
from huggingface_hub import EvalResult, ModelCardData
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate
from tqdm import tqdm

from hf_twins import (
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsPreTrainedModel,
    parameter_groups,
)
from hf_twins._utils.cards import model_card, usage_code
from hf_twins._utils.files import use_default_permissions
from hf_twins._utils.labels import label_fields


SPACES = Path(__file__).parent
# Sides in pixels. The classifiers are trained with several sides, because visitors can choose the resolution.
DIGIT_SIDE, DIGIT_SIDES, SCENE_SIDE = 32, (16, 24, 32, 32, 32, 48), 64
# Minimum side at which a digit in a scene is easy to recognize.
MIN_DIGIT_SIDE = 22
NUM_SCENES, NUM_HELD_OUT_SCENES = 3000, 300
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
ARCHITECTURE: dict[str, Any] = {
    "patch_size": 2,
    "hidden_sizes": [16, 32, 48, 64],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [2, 2, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [4, 2, 1, 1],
}


@dataclass(frozen=True)
class DigitModel:
    """A model to train.

    Args:
        space: folder of the model's Space.
        window_size: side of attention windows; None for PCPVT.
        epochs: passes over the training data.
        start: model whose encoder training starts from.
    """

    space: str
    window_size: int | None
    epochs: int
    start: str | None = None


MODELS = {
    "twins-svt-digits": DigitModel("image_classification", window_size=4, epochs=90),
    "twins-pcpvt-digits": DigitModel("image_classification", window_size=None, epochs=90),
    "twins-svt-digit-scenes": DigitModel("semantic_segmentation", window_size=4, epochs=8, start="twins-svt-digits"),
}

Batches = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def split_handwriting(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices in `load_digits` of the training digits, and of the held-out fifth."""
    labels = load_digits().target
    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return np.sort(train), np.sort(held_out)


def draw_digits(images: torch.Tensor, side: int) -> torch.Tensor:
    """Augment digits to look like those that users may upload: larger or smaller, rotated, shifted, paler, smooth or blocky.

    Args:
        images: `(batch_size, 1, height, width)`, from 0 to 1.
        side: side of the result in pixels.

    Returns:
        `(batch_size, 3, side, side)`, from 0 to 1.
    """
    batch_size = len(images)
    mode = ("nearest-exact", "bilinear", "bicubic")[int(torch.randint(3, ()))]
    enlarged = interpolate(images, size=8 * int(torch.randint(2, 9, ())), mode=mode).clamp(0, 1)
    angle = 0.4 * (torch.rand(batch_size) - 0.5)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    zoom = 0.95 + 0.6 * torch.rand(batch_size, 1, 1)
    shift = 0.25 * (torch.rand(batch_size, 2, 1) - 0.5)
    grid = affine_grid(torch.cat([turn * zoom, shift], 2), [batch_size, 1, side, side], align_corners=False)
    drawn = grid_sample(enlarged, grid, align_corners=False)
    paleness = 0.5 + 0.5 * torch.rand(batch_size, 1, 1, 1)
    noise = 0.04 * torch.randn_like(drawn) * (torch.rand(batch_size, 1, 1, 1) < 0.5)
    return (drawn * paleness + noise).clamp(0, 1).expand(-1, 3, -1, -1)


def normalize(images: torch.Tensor, processor: TwinsImageProcessor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (images - mean) / std


def train(model: TwinsPreTrainedModel, batches: Batches, num_steps: int) -> None:
    """Train for `num_steps` steps on an endless series of batches."""
    optimizer = torch.optim.AdamW(parameter_groups(model, LEARNING_RATE, weight_decay=0.05))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps, pct_start=0.1)
    model.train()
    for _, (pixel_values, labels) in zip(tqdm(range(num_steps), unit="step", mininterval=5), batches()):
        logits = model(pixel_values).logits
        if logits.ndim == 4:
            logits = interpolate(logits, size=labels.shape[1:], mode="bilinear")
        loss = cross_entropy(logits, labels, label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def train_classifier(window_size: int | None, epochs: int, seed: int) -> tuple[TwinsPreTrainedModel, Any, float]:
    """Train a classifier, and return it with its image processor and its accuracy on held-out digits."""
    digits = load_digits()
    images, targets = torch.tensor(digits.images / 16).float().unsqueeze(1), torch.tensor(digits.target)
    training, held_out = split_handwriting(seed)
    fields = label_fields([f"digit {digit}" for digit in range(10)])
    model = TwinsForImageClassification(TwinsConfig(**ARCHITECTURE, window_size=window_size, **fields))
    processor = TwinsImageProcessor(
        size={"shortest_edge": DIGIT_SIDE}, crop_size={"height": DIGIT_SIDE, "width": DIGIT_SIDE}
    )

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for indices in torch.tensor(training)[torch.randperm(len(training))].split(BATCH_SIZE):
                side = DIGIT_SIDES[int(torch.randint(len(DIGIT_SIDES), ()))]
                yield normalize(draw_digits(images[indices], side), processor), targets[indices]

    train(model, batches, epochs * -(-len(training) // BATCH_SIZE))
    test_images = [(digits.images[index] * 255 / 16).astype(np.uint8) for index in held_out]
    with torch.inference_mode():
        logits = model(**processor([np.stack([image] * 3, -1) for image in test_images], return_tensors="pt")).logits
    return model, processor, (logits.argmax(1) == targets[held_out]).float().mean().item()


def train_segmenter(start: Path, epochs: int, seed: int) -> tuple[TwinsPreTrainedModel, Any, float]:
    """Train a segmentation model from the encoder of a classifier.

    Returns the model, its image processor, and its mean IoU on scenes of held-out digits.
    """
    training, held_out = split_handwriting(seed)
    fields = label_fields(["background"] + [f"digit {digit}" for digit in range(10)])
    model = TwinsForSemanticSegmentation.from_pretrained(start, fpn_hidden_size=24, decoder_hidden_size=24, **fields)
    processor = TwinsImageProcessor(size={"shortest_edge": SCENE_SIDE}, do_center_crop=False)
    images, masks = compose_scenes(range(NUM_SCENES), training, processor)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for indices in torch.randperm(NUM_SCENES).split(BATCH_SIZE):
                yield images[indices], masks[indices]

    train(model, batches, epochs * -(-NUM_SCENES // BATCH_SIZE))
    images, masks = compose_scenes(range(NUM_SCENES, NUM_SCENES + NUM_HELD_OUT_SCENES), held_out, processor)
    with torch.inference_mode():
        logits = torch.cat(
            [interpolate(model(batch).logits, SCENE_SIDE, mode="bilinear") for batch in images.split(64)]
        )
    labels = logits.argmax(1)
    ious = [
        ((labels == index) & (masks == index)).sum() / ((labels == index) | (masks == index)).sum()
        for index in fields["id2label"]
    ]
    return model, processor, torch.stack(ious).mean().item()


def compose_scenes(seeds: range, handwriting: np.ndarray, processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = [
        digit_scene(seed, (SCENE_SIDE, SCENE_SIDE), handwriting=handwriting, min_side=MIN_DIGIT_SIDE)
        for seed in tqdm(seeds, unit="scene")
    ]
    images = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes])).permute(0, 3, 1, 2) / 255
    return normalize(images, processor), torch.from_numpy(np.stack([scene.mask for scene in scenes])).long()


def write_card(name: str, model: TwinsPreTrainedModel, seed: int, epochs: int, result: float, folder: Path) -> None:
    """Write the model card, with the result."""
    is_classifier = isinstance(model, TwinsForImageClassification)
    task = "image-classification" if is_classifier else "image-segmentation"
    metric = ("accuracy", "accuracy") if is_classifier else ("mean_iou", "mean IoU")
    data = "held-out digits of scikit-learn" if is_classifier else "scenes of held-out digits of scikit-learn"
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=task,
        tags=["twins", "vision"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type="scikit-learn-digits",
                dataset_name=data,
                metric_type=metric[0],
                metric_name=metric[1],
                metric_value=round(result, 4),
            )
        ],
    )
    kind = "Twins-PCPVT" if model.config.window_size is None else "Twins-SVT"
    if is_classifier:
        what = f"A {kind} that classifies white handwritten digits on black, one per image of {DIGIT_SIDE} pixels"
    else:
        what = f"A {kind} with a Semantic FPN that finds bright handwritten digits on a dark ground"
    model_card(
        metadata,
        name,
        f"{what}. With {model.num_parameters():,} parameters, it is small enough to bundle with a demo, which "
        "can then start without a network. It knows only such digits: for any other image, it still predicts one.\n\n"
        f"Trained from {'random weights' if is_classifier else 'the weights of a classifier of single digits'} by `spaces/train_digit_models.py` of hf_twins for {epochs} epochs, seed {seed}, on four "
        "fifths of the 1,797 digits that scikit-learn ships "
        "([Optical Recognition of Handwritten Digits](https://archive.ics.uci.edu/dataset/80), 8 x 8 pixels, CC BY 4.0), "
        f"{'enlarged, rotated, shifted and faded' if is_classifier else f'composed into {NUM_SCENES:,} scenes'}.",
        usage_code(type(model).__name__, name),
        f"| data | {metric[1]} |\n|---|---|\n| {data} | {result:.1%} |",
    ).save(folder / "README.md")


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--only", choices=MODELS, nargs="+", default=list(MODELS), help="train only these")
    parser.add_argument("--output_dir", type=Path, default=SPACES, help="folder that contains the Spaces")
    parser.add_argument("--epochs", type=int, help="passes over the data; each model has its own by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the order")
    arguments = parser.parse_args()
    for name in arguments.only:
        digit_model = MODELS[name]
        epochs = arguments.epochs or digit_model.epochs
        torch.manual_seed(arguments.seed)
        if digit_model.start is None:
            model, processor, result = train_classifier(digit_model.window_size, epochs, arguments.seed)
        else:
            start = arguments.output_dir / MODELS[digit_model.start].space / "models" / digit_model.start
            model, processor, result = train_segmenter(start, epochs, arguments.seed)
        folder = arguments.output_dir / digit_model.space / "models" / name
        unfinished = folder.with_suffix(".tmp")
        model.save_pretrained(unfinished)
        use_default_permissions(unfinished / "model.safetensors")
        processor.save_pretrained(unfinished)
        write_card(name, model, arguments.seed, epochs, result, unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        print(f"{name}: {result:.1%} on held-out data, {model.num_parameters():,} parameters, in {folder}")


if __name__ == "__main__":
    main()
