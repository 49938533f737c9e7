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
"""Fine-tune a small Twins-SVT on real images, save it, load it back and classify with it.

Without options it learns scikit-learn's handwritten digits (1,797 images, no download) in about a minute on two CPU
cores. The output folder is a complete repository: weights, image processor, model card, results and a figure.

    python examples/quickstart.py
    python examples/quickstart.py --dataset path/to/images          # a folder with a sub-folder of images for each label
    python examples/quickstart.py --dataset AI-Lab-Makerere/beans   # a dataset on the Hub
    python examples/quickstart.py --variant twins-pcpvt-small       # a published architecture, with random weights
    python examples/quickstart.py --model_name_or_path path/or/hub-id   # trained weights to start from
"""

import math
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from hf_twins._utils.command_line import run

import matplotlib
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_twins import TwinsConfig, TwinsForImageClassification, TwinsImageProcessor, load_model
from hf_twins._utils.cards import model_card, origin_fields, usage_code
from hf_twins._utils.extras import require_extra
from hf_twins._utils.files import check_is_apart, write_atomically
from hf_twins._utils.images import applied_rules, check_shape, convert_image, log_applied_rules
from hf_twins._utils.labels import label_fields
from hf_twins.training.image_classification.arguments import DataArguments
from hf_twins.training.image_classification.data import load_images as load_labeled_images
from hf_twins.training.runs import Run, begin_run, check_output_dir, files_of, save_pretrained
from hf_twins.training.trainer import one_at_a_time, show_progress


@dataclass
class QuickstartArguments:
    # Files that are written in addition to the model.
    FILES: ClassVar[tuple[str, ...]] = ("results.png", "eval_results.json")

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Output folder."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "Folder with a sub-folder of images for each label, or Hub id; the digits if not given."},
    )
    variant: str | None = field(
        default=None, metadata={"help": "Published variant to build with random weights, e.g. twins-svt-small."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "aliases": ["--model"],
            "help": "Trained weights to start from: folder or Hub id, also a timm model, or an authors' file.",
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels; 32 for the small model, 224 for a published variant."},
    )
    epochs: int = field(default=12, metadata={"help": "Passes over the training images."})
    max_steps: int = field(default=-1, metadata={"help": "Stop after this many steps; -1 for all epochs."})
    batch_size: int = field(default=32, metadata={"help": "Images per step."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Highest learning rate; 1e-3 from random weights, 1e-4 from trained ones."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove the files of the run in --output_dir, but no others."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the weights, the split and the order of the images."})


def load_digits_images() -> Dataset:
    """Load scikit-learn's digits, 8 x 8 pixels with 17 gray levels, as a dataset of images."""
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in digits.target_names])})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def load_images(dataset: str | None, seed: int) -> DatasetDict:
    """Load the dataset as `train` and `test`, with the columns `image` and `label`."""
    if dataset is None:
        return load_digits_images().train_test_split(test_size=0.2, stratify_by_column="label", seed=seed)
    is_folder = Path(dataset).exists()
    source = DataArguments(
        train_dir=dataset if is_folder else None, dataset_name=None if is_folder else dataset, train_val_split=0.2
    )
    splits = load_labeled_images(source, seed)
    return DatasetDict({"train": splits["train"], "test": splits["validation"]})


def create_model(
    arguments: QuickstartArguments, labels: list[str]
) -> tuple[TwinsForImageClassification, TwinsImageProcessor]:
    """Create the model with a head for `labels`, and its image processor."""
    label_names = label_fields(labels)
    if arguments.model_name_or_path is not None:
        if arguments.variant is not None or arguments.image_size is not None:
            raise ValueError("--variant and --image-size are for a new model, but --model has its own.")
        # The trained head is replaced if its labels differ.
        return load_model(arguments.model_name_or_path, "image-classification", allow_new_weights=True, **label_names)
    if arguments.variant is not None:
        image_size = arguments.image_size or 224
        config = TwinsConfig.from_variant(arguments.variant, **label_names)
        # The crop shows the same share of the image as in published models.
        shortest_edge = image_size * 256 // 224
    else:
        image_size = shortest_edge = arguments.image_size or 32
        config = TwinsConfig(
            patch_size=2,
            hidden_sizes=[32, 64, 128, 256],
            num_attention_heads=[1, 2, 4, 8],
            depths=[2, 2, 2, 2],
            sr_ratios=[4, 2, 1, 1],
            window_size=4,
            **label_names,
        )
    processor = TwinsImageProcessor(
        size={"shortest_edge": shortest_edge}, crop_size={"height": image_size, "width": image_size}
    )
    return TwinsForImageClassification(config), processor


def preprocess(batch: dict, processor: TwinsImageProcessor) -> dict:
    for image in batch["image"]:
        check_shape(image)
    return {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


# Dollar signs in names must not be parsed as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw_results(images: list, labels: list[str], predictions: list[dict], history: list[dict], path: Path) -> None:
    """Draw held-out images and their predictions, mistakes first in red, and the learning curve."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    grid_figure, curve_figure = figure.subfigures(1, 2, squeeze=False, width_ratios=[3, 2])[0]
    mistakes_first = sorted(
        range(len(images)), key=lambda index: (predictions[index]["label"] == labels[index], index)
    )
    grid_figure.suptitle("Held-out images: prediction (probability), mistakes in red and first")
    for axes, index in zip(grid_figure.subplots(4, 6).flat, mistakes_first):
        label, score = predictions[index]["label"], predictions[index]["score"]
        is_right = label == labels[index]
        axes.imshow(images[index], cmap="gray")
        axes.set_title(
            f"{label} ({score:.2f})" if is_right else f"{label} ({score:.2f}), is {labels[index]}",
            fontsize=8,
            color="black" if is_right else "red",
        )
    for axes in grid_figure.axes:
        axes.axis("off")
    loss_axes = curve_figure.subplots()
    accuracy_axes = loss_axes.twinx()
    for axes, name, caption, color in (
        (loss_axes, "loss", "training loss", "tab:blue"),
        (accuracy_axes, "eval_accuracy", "held-out accuracy", "tab:orange"),
    ):
        points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
        axes.plot(*zip(*points), color=color, marker=".")
        axes.set_ylabel(caption, color=color)
    loss_axes.set_xlabel("epoch")
    loss_axes.set_title("Learning curve")
    figure.savefig(path, dpi=120)


def write_model_card(
    arguments: QuickstartArguments, model: TwinsForImageClassification, accuracy: float, output_dir: Path
) -> None:
    dataset = arguments.dataset or "scikit-learn digits"
    start = arguments.model_name_or_path or f"{arguments.variant or 'a small Twins-SVT'} with random weights"
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["twins"],
        model_name=output_dir.name,
        **origin_fields(arguments.model_name_or_path, arguments.dataset),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="image-classification",
                dataset_name=dataset,
                dataset_split="held out",
                metric_type="accuracy",
                metric_value=round(accuracy, 4),
            )
        ],
    )
    card = model_card(
        metadata,
        output_dir.name,
        f"A Twins image classifier, fine-tuned on {dataset} from {start} for {arguments.epochs} epochs (seed "
        f"{arguments.seed}) by hf_twins' quickstart. Accuracy on held-out images: {accuracy:.1%}.",
        usage_code(type(model).__name__, str(output_dir)),
        "![Held-out images, their predictions, and the learning curve](results.png)",
    )
    write_atomically(output_dir / "README.md", card.save)


def fine_tune(
    arguments: QuickstartArguments,
    model: TwinsForImageClassification,
    processor: TwinsImageProcessor,
    dataset: DatasetDict,
    training_run: Run,
) -> list[dict]:
    """Train, evaluate after every epoch and save; return the history of loss and accuracy."""
    default_learning_rate = 1e-3 if arguments.model_name_or_path is None else 1e-4
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=arguments.output_dir,
            num_train_epochs=arguments.epochs,
            max_steps=arguments.max_steps,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size * 2,
            learning_rate=arguments.learning_rate or default_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            remove_unused_columns=False,
            # PyTorch warns about pinned memory if there is no accelerator.
            dataloader_pin_memory=torch.accelerator.is_available(),
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=dataset["train"].with_transform(partial(preprocess, processor=processor)),
        eval_dataset=dataset["test"].with_transform(partial(preprocess, processor=processor)),
        processing_class=processor,
        compute_metrics=accuracy,
    )
    show_progress(trainer)
    trainer.train()
    metrics = trainer.evaluate()
    if not math.isfinite(metrics["eval_loss"]):
        raise ValueError(
            f"The model was not saved, because its loss on the held-out images is {metrics['eval_loss']}: try a lower --learning_rate."
        )
    training_run.start_writing()
    trainer.save_metrics("eval", metrics)
    save_pretrained(model, processor, Path(arguments.output_dir))
    return trainer.state.log_history


def main() -> None:
    run(quickstart, QuickstartArguments)


@one_at_a_time
def quickstart(arguments: QuickstartArguments) -> None:
    # The Trainer would report some missing packages only when it is created.
    require_extra("train")
    set_seed(arguments.seed)
    output_dir = Path(arguments.output_dir)
    check_output_dir(output_dir, resumes=False, overwrites=arguments.overwrite_output_dir, files=files_of([arguments]))
    try:
        check_is_apart(arguments.output_dir, [arguments.dataset])
        dataset = load_images(arguments.dataset, arguments.seed)
    except (OSError, ValueError) as error:
        sys.exit(
            f"Cannot load the dataset {arguments.dataset!r}: {error}\n"
            "Give a folder with a sub-folder of images for each label, or the Hub id of an image classification dataset "
            "(which needs network access, unless it is cached). Options named above are those of "
            "image_classification/run_trainer.py, which supports them all."
        )
    labels = dataset["train"].features["label"].names
    model, processor = create_model(arguments, labels)
    training_run = begin_run(
        None, [arguments], labels=labels, splits=dict(dataset), model=model, processor=processor, num_processes=1
    )

    print(
        f"Fine-tuning {sum(parameter.numel() for parameter in model.parameters()):,} parameters on "
        f"{len(dataset['train']):,} images of {len(labels)} labels, holding out {len(dataset['test']):,}."
    )
    history = fine_tune(arguments, model, processor, dataset, training_run)

    # From here on, only the saved model is used.
    classifier = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(output_dir),
        image_processor=AutoImageProcessor.from_pretrained(output_dir),
    )
    images = list(dataset["test"]["image"])
    log_applied_rules(Counter(rule for image in images for rule in applied_rules(image)), "held-out images")
    # Convert images by the package's rules, because transformers' pipelines would clip images with 16 bits per pixel.
    images = [convert_image(image) for image in images]
    true_labels = [labels[index] for index in dataset["test"]["label"]]
    predictions = [best for (best,) in classifier(images, top_k=1, batch_size=arguments.batch_size)]
    num_right = sum(best["label"] == label for best, label in zip(predictions, true_labels))
    draw_results(images, true_labels, predictions, history, output_dir / "results.png")
    write_model_card(arguments, model, num_right / len(images), output_dir)

    code = (
        "import hf_twins; from transformers import pipeline; "
        f"print(pipeline('image-classification', {str(output_dir)!r})('image.png'))"
    )
    script, folder = shlex.quote(sys.argv[0]), shlex.quote(str(output_dir))
    print(
        f"\n{num_right} of {len(images)} held-out images right ({num_right / len(images):.1%}), classified by the model "
        f"loaded back from {output_dir}.\n"
        f"Look at {output_dir / 'results.png'}. Then:\n"
        f"  classify an image    python -c {shlex.quote(code)}\n"
        f"  your own images      python {script} --dataset path/to/images --output_dir outputs/mine\n"
        f"  train it further     python {script} --model_name_or_path {folder} --dataset path/to/images --output_dir outputs/more\n"
        f"  publish it           hf upload {shlex.quote(f'YOUR-NAME/{output_dir.name}')} {folder} --exclude run.json"
    )


if __name__ == "__main__":
    main()
