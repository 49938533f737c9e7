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
"""Evaluation of classifiers: accuracies, their comparison with published ones, and matching of labels."""

import json

import datasets
import evaluate_classification
import pytest
import torch
from classification_utils import write_digit_folder
from PIL import Image
from timm.data import ImageNetInfo

from hf_twins import (
    TWINS_VARIANTS,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsImageProcessor,
)
from hf_twins.checkpoints import imagenet_class_names


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def folder(tmp_path):
    return write_digit_folder(tmp_path / "digits", 37)


def run(start, folder, *more: object) -> dict:
    arguments = ["--model_name_or_path", start, "--dataset_dir", folder, "--dataloader_num_workers", 0, *more]
    return evaluate_classification.main([str(argument) for argument in arguments])


def test_accuracy_equals_that_of_single_images(start, folder, tmp_path, capsys, caplog):
    (folder / "3" / "half.png").write_bytes(next((folder / "3").iterdir()).read_bytes()[:60])
    results = run(start, folder, "--per_device_eval_batch_size", 8, "--output_dir", tmp_path / "results")
    model = TwinsForImageClassification.from_pretrained(start).eval()
    processor = TwinsImageProcessor.from_pretrained(start)
    ranks, labels, predictions = [], [], []
    for file in sorted(folder.rglob("*.png")):
        if file.name != "half.png":
            with torch.no_grad():
                logits = model(**processor(Image.open(file).convert("RGB"), return_tensors="pt")).logits[0]
            labels.append(int(file.parent.name))
            predictions.append(int(logits.argmax()))
            ranks.append(logits.argsort(descending=True).tolist().index(labels[-1]))
    assert len(ranks) == 37
    assert results["eval_accuracy"] == sum(rank == 0 for rank in ranks) / 37
    assert results["eval_top5_accuracy"] == sum(rank < 5 for rank in ranks) / 37
    assert results["corrupt_images"] == 1
    written = (tmp_path / "results" / "all_results.json").read_text()
    assert json.loads(written) == results
    assert len(results["model_fingerprint"]) == len(results["images_fingerprint"]) == 64
    assert str(tmp_path) not in written
    printed = capsys.readouterr().out
    assert f"| measured | {100 * results['eval_accuracy']:.2f} |" in printed
    assert "37 images (resized to 18, crop 16 x 16; float32)" in printed
    assert "1 images could not be decoded and were skipped" in printed
    assert "published" not in printed
    assert caplog.messages[-1].startswith(
        "The dataset's labels are the model's by another name: 0 = LABEL_0, 1 = LABEL_1, "
    )
    per_label = json.loads((tmp_path / "results" / "per_label.json").read_text())
    assert list(per_label) == [f"LABEL_{label}" for label in range(10)]
    f1 = {}
    for label in range(10):
        predicted, true = predictions.count(label), labels.count(label)
        both = sum(pair == (label, label) for pair in zip(labels, predictions))
        f1[label] = 2 * both / (predicted + true)
        assert per_label[f"LABEL_{label}"] == pytest.approx(
            {"precision": both / max(predicted, 1), "recall": both / true, "f1": f1[label], "images": true}
        )
    worst = min(f1, key=lambda label: f1[label])
    assert f"Lowest F1: LABEL_{worst} {f1[worst]:.3f} ({labels.count(worst)} images), " in printed


def test_results_of_different_runs_are_not_replaced(start, folder, tmp_path):
    output = ["--output_dir", tmp_path / "results"]
    run(start, folder, *output)
    before = (tmp_path / "results" / "all_results.json").read_bytes()
    next((folder / "3").iterdir()).unlink()
    with pytest.raises(SystemExit, match="results holds the files of a run with other images: give another"):
        run(start, folder, *output)
    with pytest.raises(SystemExit, match="with another model; other images: give another"):
        run(start, folder, *output, "--image_size", 24)
    (tmp_path / "results" / "settings.json").unlink()
    with pytest.raises(SystemExit, match=r"results holds all_results\.json, but no settings\.json of the run"):
        run(start, folder, *output)
    assert (tmp_path / "results" / "all_results.json").read_bytes() == before


def test_results_for_different_label_names_are_not_replaced(start, tmp_path):
    (tmp_path / "data").mkdir()
    rows = {"image": [Image.new("RGB", (18, 18))] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    ).to_parquet(tmp_path / "data" / "a.parquet")
    for name, lines in (("one", "3\n5\n"), ("two", "5\n3\n")):
        (tmp_path / name).write_text(lines)
    output = ["--output_dir", tmp_path / "results", "--class_names_file"]
    run(start, tmp_path / "data", *output, tmp_path / "one")
    with pytest.raises(SystemExit, match="results holds the files of a run with other labels: give another"):
        run(start, tmp_path / "data", *output, tmp_path / "two")


def test_labels_are_found_by_name_number_and_wordnet_id():
    labels = {0: "tench, Tinca tinca", 1: "Goldfish", 2: "shark"}
    assert evaluate_classification.label_numbers(["goldfish", "shark"], labels) == [1, 2]
    assert evaluate_classification.label_numbers(["0", "2"], labels) == [0, 2]
    with pytest.raises(ValueError, match="1 labels of the dataset are not the model's, such as cow: sub-folders"):
        evaluate_classification.label_numbers(["cow", "shark"], labels)
    with pytest.raises(ValueError, match="1 labels of the dataset are not the model's, such as 7"):
        evaluate_classification.label_numbers(["1", "7"], labels)
    imagenet = dict(enumerate(TwinsConfig(num_labels=1000).id2label.values()))
    synsets = ImageNetInfo().label_names()
    assert evaluate_classification.label_numbers(synsets, imagenet) == list(range(1000))
    assert evaluate_classification.label_numbers(synsets[::-1], imagenet) == list(range(1000))[::-1]
    others = [f"n{10_000_000 + 37 * index:08}" for index in range(1000)]
    with pytest.raises(
        ValueError, match=r"n10000000, n10000037, .*, and 990 more are not among ImageNet-1k's classes"
    ):
        evaluate_classification.label_numbers(others, imagenet)
    # These are the first class, tench, and the last, toilet tissue, in any order.
    assert evaluate_classification.label_numbers(["n15075141", "n01440764"], imagenet) == [999, 0]
    with pytest.raises(ValueError, match="n00000001 is not among ImageNet-1k's classes"):
        evaluate_classification.label_numbers(["n00000001"], imagenet)


@pytest.mark.parametrize(
    ("names", "labels", "numbers"),
    [
        (["A", "B", "a", "b"], ["b", "a", "B", "A"], [3, 2, 1, 0]),
        (["a", "B"], ["A", "b", "c"], [0, 1]),
        (["cafe\N{COMBINING ACUTE ACCENT}"], ["tea", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"], [1]),
        # Labels are matched by name, not by position.
        (["0", "1", "10", "2"], ["0", "1", "10", "2"], [0, 1, 2, 3]),
        (["0", "1", "10", "2"], [f"LABEL_{number}" for number in range(11)], [0, 1, 10, 2]),
        (["134", "517"], imagenet_class_names(), [134, 517]),
    ],
)
def test_labels_are_distinguished_by_case_and_number(names, labels, numbers):
    assert evaluate_classification.label_numbers(names, dict(enumerate(labels))) == numbers
    # Numbers are the keys of `id2label`, in any order.
    assert evaluate_classification.label_numbers(names, dict(reversed([*enumerate(labels)]))) == numbers


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            ["crane", "tiger shark, Galeocerdo cuvieri"],
            imagenet_class_names(),
            "crane is the name of several labels of the model, 134 and 517: use",
        ),
        (["A"], ["a", "\N{LATIN SMALL LETTER A}", "b"], "A is the name of several labels of the model, 0 and 1"),
        (["1", "cat"], ["a", "b"], "1 labels of the dataset are not the model's, such as cat"),
        (["0", "1", "2"], ["1", "2", "3", "4", "5"], "1 labels of the dataset are not the model's, such as 0"),
        (["\N{SUPERSCRIPT TWO}"], ["a", "b", "c"], "1 labels of the dataset are not the model's"),
    ],
)
def test_ambiguous_label_is_refused(names, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_classification.label_numbers(names, dict(enumerate(labels)))


def test_labels_in_a_different_order_are_matched(start, folder, tmp_path):
    expected = run(start, folder)["eval_accuracy"]
    model = TwinsForImageClassification.from_pretrained(start)
    model.config.id2label = {number: f"digit {number}" for number in range(10)}
    model.save_pretrained(tmp_path / "renamed")
    TwinsImageProcessor.from_pretrained(start).save_pretrained(tmp_path / "renamed")
    for name in sorted(path.name for path in folder.iterdir()):
        # The sorted folder names have a different order than the labels.
        (folder / name).rename(folder / f"Digit {name}")
    assert run(tmp_path / "renamed", folder)["eval_accuracy"] == expected


@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_published_accuracy_is_shown_only_for_its_preprocessing(name):
    with torch.device("meta"):
        model = TwinsForImageClassification(TwinsConfig.from_variant(name))
        other = TwinsForImageClassification(TwinsConfig.from_variant(name, num_labels=10))
    authors, timm = (
        evaluate_classification.with_protocol(TwinsImageProcessor(), protocol) for protocol in ("authors", "timm")
    )
    assert evaluate_classification.published_accuracy(model, authors) == TWINS_VARIANTS[name].imagenet_top1 / 100
    assert evaluate_classification.published_accuracy(model, timm) == TWINS_VARIANTS[name].imagenet_top1_timm / 100
    assert evaluate_classification.published_accuracy(other, authors) is None
    assert (authors.size.shortest_edge, authors.crop_size.height) == (256, 224)
    assert (timm.size.shortest_edge, timm.crop_size.height) == (248, 224)


def test_protocol_keeps_the_colors_of_the_checkpoint():
    checkpoint = TwinsImageProcessor(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.1], image_std=[0.3], do_convert_rgb=False
    )
    processor = evaluate_classification.with_protocol(checkpoint, "timm")
    assert (processor.image_mean, processor.image_std, processor.do_convert_rgb) == ((0.1,), (0.3,), False)
    pixel_values = processor(Image.new("L", (300, 280), 255), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, torch.full((1, 1, 224, 224), 3.0))


@pytest.mark.parametrize(("measured", "differs"), [(0.8161, False), (0.8179, False), (0.8155, True), (0.5, True)])
def test_differences_above_a_tenth_of_a_point_are_reported(measured, differs):
    results = {
        "eval_accuracy": measured,
        "eval_top5_accuracy": 0.95,
        "published_accuracy": 0.817,
        "images": 50_000,
        "corrupt_images": 0,
        "images_per_second": 123.4,
        "processes": 2,
        "device": "cpu",
        "precision": "bf16",
        "preprocessing": "resized to 256, crop 224 x 224",
    }
    text = evaluate_classification.report(results)
    assert "| published | 81.70 |" in text
    assert "123.4 images/s in 2 process(es) on cpu" in text
    assert ("more than 0.1" in text) == differs


def test_wrong_options_are_named(start, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate_classification.main([])
    assert "missing: --model_name_or_path, --dataset_dir or --dataset_name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="Give either --dataset_dir or --dataset_name"):
        run(start, folder, "--dataset_name", "x")
    with pytest.raises(SystemExit, match="--protocol must be checkpoint, authors or timm, got best"):
        run(start, folder, "--protocol", "best")
    with pytest.raises(SystemExit, match="--image_size and --protocol both set the image size: give one"):
        run(start, folder, "--protocol", "timm", "--image_size", 32)
    for option in ("--train_dir", "--validation_dir", "--streaming", "--max_train_samples", "--num_channels"):
        with pytest.raises(SystemExit):
            run(start, folder, option, 1)
        assert f"{option} is not an option" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="missing must be a folder"):
        run(start, tmp_path / "missing")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "a.png").write_text("no image")
    with pytest.raises(SystemExit, match="No image of the dataset can be used"):
        run(start, tmp_path / "broken")
