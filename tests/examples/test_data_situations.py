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
"""Data of users in all scripts: used as intended, or refused by name. `tests/situations.md` lists all situations."""

import json
import os
from pathlib import Path

import attention_maps
import batch_predict
import evaluate_classification
import extract_features
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import quickstart
import run_accelerate
import run_trainer
import torch
from classification_utils import save_start
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage
from testing_utils import tiny_config

from hf_twins import TWINS_VARIANTS, TwinsConfig, TwinsForImageClassification, TwinsImageProcessor
from hf_twins._utils.labels import label_fields
from hf_twins.checkpoints import imagenet_class_names
from hf_twins.export.to_openvino import list_images as calibration_images
from hf_twins.training.image_classification.reports import draw_confusion_matrix
from hf_twins.training.object_detection.reports import draw_objects
from hf_twins.training.semantic_segmentation.drawing import class_shares, draw_rows, legend_entries
from hf_twins.training.semantic_segmentation.reports import draw_class_iou, per_class


pytestmark = pytest.mark.usefixtures("one_process")
SCRIPTS = [pytest.param(run_trainer, id="run_trainer"), pytest.param(run_accelerate, id="run_accelerate")]
SYNSETS = ["n01440764", "n15075141"]


def write(folder: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (20, 18), (index * 37 % 256, 90, 160)).save(folder / name, "PNG")
    return folder


def strange_folder(folder: Path) -> Path:
    """Write six images of each of three labels, one of them a link, among files that systems create."""
    for label in ("bullet train", "linked", "cat$"):
        write(folder / "data" / label / "2021", *(f"x test {index}.PNG" for index in range(3)))
        write(folder / "data" / label / "2022 val", *(f"train_{index}[1].jpeg" for index in range(3)))
    (folder / "data" / "linked").rename(folder / "elsewhere")
    (folder / "data" / "linked").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "up").symlink_to(folder / "data")
    write(folder / "data", "cover.png", ".ipynb_checkpoints/1.png")
    (folder / "data" / "cat$" / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "data" / "cover.png").read_bytes())
    return folder / "data"


def short_training(start: Path, folder: Path, output: Path) -> list[str]:
    return [
        *("--config_name", str(start), "--train_dir", str(folder), "--output_dir", str(output), "--max_steps", "1"),
        *("--per_device_train_batch_size", "8", "--report_to", "none"),
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_folder_is_learned_regardless_of_its_names(script, start, tmp_path, caplog):
    folder = strange_folder(tmp_path)
    script.main(short_training(start, folder, tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["id2label"] == {"0": "bullet train", "1": "cat$", "2": "linked"}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["per_label"].keys() == {"bullet train", "cat$", "linked"}
    assert (tmp_path / "run" / "confusion_matrix.png").is_file()
    for part in (
        "(cover.png)",
        "(.ipynb_checkpoints)",
        "1 links to a folder that they are in (linked/up)",
        r"(cat$/caf\xe9.png)",
    ):
        assert part in caplog.text


@pytest.mark.parametrize("script", SCRIPTS)
def test_unusable_data_is_refused_before_anything_is_written(script, start, tmp_path):
    png = (write(tmp_path, "a.png") / "a.png").read_bytes()
    (tmp_path / "data").mkdir()
    columns = {"image": [png] * 4, "fine": [0, 1, 0, 1], "coarse": [1, 1, 0, 0], "text": ["a", "b", "c", "d"]}
    two = ClassLabel(names=["a", "b"])
    features = Features({"image": Image(), "fine": two, "coarse": two, "text": Value("string")})
    images = pa.array([{"bytes": each, "path": None} for each in columns["image"]])
    table = pa.table(columns | {"image": images}).cast(features.arrow_schema)
    pq.write_table(table, tmp_path / "data" / "test.parquet")
    arguments = short_training(start, tmp_path / "data", tmp_path / "run")
    with pytest.raises(SystemExit, match="must hold training images, got only images of test, going by its names"):
        script.main(arguments)
    (tmp_path / "data" / "test.parquet").rename(tmp_path / "data" / "train.parquet")
    with pytest.raises(SystemExit, match=r"Which column is the label.* one of image, fine, coarse, text"):
        script.main(arguments)
    arguments[2:4] = ["--dataset_name", str(write(tmp_path / "pets", "cat/1.png", "dog/2.png"))]
    with pytest.raises(SystemExit, match="is a folder of images: give it as --train_dir instead of --dataset_name"):
        script.main(arguments)
    assert not (tmp_path / "run").exists()


def evaluate(start: Path, folder: Path, *options: object) -> dict:
    arguments = ["--model_name_or_path", start, "--dataset_dir", folder, "--dataloader_num_workers", 0, *options]
    return evaluate_classification.main([str(argument) for argument in arguments])


def brightness_model(folder: Path, names: list[str]) -> Path:
    """Save a classifier that predicts label n for an image with brightness 50 * n."""
    config = tiny_config(num_labels=len(names), id2label=dict(enumerate(names)))
    model = TwinsForImageClassification(config)
    model.save_pretrained(folder)
    TwinsImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_labels_that_differ_only_in_case_are_counted_separately(tmp_path, monkeypatch):
    names = ["A", "B", "a", "b"]
    start = brightness_model(tmp_path / "start", names)
    for number, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        PILImage.new("RGB", (16, 16), (50 * number,) * 3).save(tmp_path / "data" / name / "1.png")
    expected = {}

    def forward(self, pixel_values, **kwargs):
        processor = TwinsImageProcessor.from_pretrained(start)
        red = pixel_values[:, 0, 0, 0] * processor.image_std[0] + processor.image_mean[0]
        numbers = (red * 255 / 50).round().long()
        expected["seen"] = sorted(numbers.tolist())
        return type("Output", (), {"logits": torch.nn.functional.one_hot(numbers, 4).float()})

    monkeypatch.setattr(TwinsForImageClassification, "forward", forward)
    results = evaluate(start, tmp_path / "data")
    assert expected["seen"] == [0, 1, 2, 3]
    assert (results["images"], results["eval_accuracy"]) == (4, 1.0)


def test_images_without_labels_are_not_evaluated(start, tmp_path, caplog):
    png = (write(tmp_path, "a.png") / "a.png").read_bytes()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(n) for n in range(10)])})
    (tmp_path / "data").mkdir()
    for labels, images in (([-1, -1], [png, png]), ([3, -1, None, 4], [png, png, png, None])):
        images = pa.array([None if each is None else {"bytes": each, "path": None} for each in images])
        table = pa.table({"image": images, "label": labels}).cast(features.arrow_schema)
        pq.write_table(table, tmp_path / "data" / "0.parquet")
        if set(labels) == {-1}:
            with pytest.raises(
                SystemExit, match="No image of the dataset has a label: give another --label_column_name"
            ):
                evaluate(start, tmp_path / "data")
        else:
            assert evaluate(start, tmp_path / "data")["images"] == 1
    assert "2 images of the dataset have no label and are left out: image 1, image 2." in caplog.text
    assert "1 images of the dataset have no image and are left out: image 3." in caplog.text


def test_validation_part_is_evaluated(start, tmp_path, capsys):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        write(tmp_path / "data" / split, *(f"{label}/{index}.png" for label in "01" for index in range(count)))
    assert evaluate(start, tmp_path / "data")["images"] == 4
    assert evaluate(start, tmp_path / "data", "--split", "test")["images"] == 2
    with pytest.raises(
        SystemExit, match=r"--split must be a split of .*/val, which is not divided into splits, got test\."
    ):
        evaluate(start, tmp_path / "data" / "val", "--split", "test")


def test_numbered_folders_get_their_names_from_a_file(tmp_path):
    names = [f"class {letter}" for letter in "abcdefghijk"]
    start = brightness_model(tmp_path / "start", names[::-1])
    folder = write(tmp_path / "data", *(f"{number}/1.png" for number in (0, 1, 2, 10)))
    (tmp_path / "names.txt").write_text("\ufeff" + "\r\n".join(names) + "\r\n\r\n")
    data = evaluate_classification.ImageArguments(class_names_file=str(tmp_path / "names.txt"))
    images, _ = evaluate_classification.load_evaluation_images(
        data, evaluate_classification.EvaluationArguments(dataset_dir=str(folder))
    )
    id2label = TwinsConfig.from_pretrained(start).id2label
    labels = evaluate_classification.label_numbers(images.features["label"].names, id2label)
    assert [id2label[labels[label]] for label in images["label"]] == ["class a", "class b", "class k", "class c"]


def test_every_image_of_a_folder_is_predicted(start, tmp_path, caplog):
    folder = strange_folder(tmp_path)
    arguments = ["--model_name_or_path", start, "--input_dir", folder, "--output_dir", tmp_path / "out"]
    batch_predict.main([str(argument) for argument in [*arguments, "--dataloader_num_workers", 0]])
    (file,) = (tmp_path / "out").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["error"] for row in rows] == [None] * 20
    assert {r"cat$/caf\xe9.png", "cover.png", "linked/2021/x test 0.PNG"} < {row["path"] for row in rows}
    assert "1 links to a folder that they are in (linked/up)" in caplog.text


def test_rows_without_an_image_have_no_prediction(start, tmp_path):
    png = (write(tmp_path, "a.png") / "a.png").read_bytes()
    (tmp_path / "data").mkdir()
    images = pa.array([{"bytes": png, "path": None}, None, {"bytes": None, "path": None}])
    pq.write_table(pa.table({"image": images}), tmp_path / "data" / "0.parquet")
    arguments = ["--model_name_or_path", start, "--input_dir", tmp_path / "data", "--output_dir", tmp_path / "out"]
    batch_predict.main([str(argument) for argument in [*arguments, "--dataloader_num_workers", 0]])
    (file,) = (tmp_path / "out").glob("*.parquet")
    errors = [row["error"] for row in pq.read_table(file).to_pylist()]
    assert errors == [None, "there is no image", "there is no image"]


def test_folder_of_images_is_refused_as_a_dataset_to_predict(start, tmp_path):
    folder = write(tmp_path / "pets", "train/1.png", "test/2.png")
    arguments = ["--model_name_or_path", start, "--dataset_name", folder, "--output_dir", tmp_path / "out"]
    with pytest.raises(
        SystemExit, match="pets is a folder of images: give it as --input_dir instead of --dataset_name"
    ):
        batch_predict.main([str(argument) for argument in arguments])


def test_features_are_extracted_only_for_images_with_valid_paths(tmp_path, caplog):
    paths = extract_features.find_images(strange_folder(tmp_path))
    assert len(paths) == 19
    assert {"cover.png", "linked/2021/x test 0.PNG", "cat$/2022 val/train_2[1].jpeg"} < set(paths)
    assert r"1 images whose names are not UTF-8: rename them (cat$/caf\xe9.png)" in caplog.text


def test_calibration_images_are_found_through_links(tmp_path):
    assert len(calibration_images(strange_folder(tmp_path))) == 20


def test_ambiguous_label_must_be_given_by_number():
    config = tiny_config(num_labels=3, id2label={0: "crane", 1: "dog", 2: "crane"})
    model = TwinsForImageClassification(config)
    assert attention_maps.choose_label("dog", model, torch.zeros(0)) == 1
    assert attention_maps.choose_label("2", model, torch.zeros(0)) == 2
    with pytest.raises(ValueError, match="--label crane names several labels, 0 and 2: give an index"):
        attention_maps.choose_label("crane", model, torch.zeros(0))


# Names with formulas, with special characters of Matplotlib, Markdown, f-strings and terminals, and a repeated name.
NAMES = ["$x_1^{$", r"\frac{", "_background_", "a\nb", "50% {x}", "`|", "cat", "cat"]


def draw_predicted_images(path: Path) -> None:
    predictions = [{"label": name, "score": 1.0} for name in NAMES]
    history = [{"epoch": 1, "loss": 1.0}, {"epoch": 1, "eval_accuracy": 1.0}]
    quickstart.draw_results([PILImage.new("L", (8, 8))] * len(NAMES), NAMES, predictions, history, path)


def draw_predicted_objects(path: Path) -> None:
    boxes = torch.tensor([[1.0, 1.0, 30.0, 30.0]] * len(NAMES))
    draw_objects(PILImage.new("RGB", (64, 64)), {"boxes": boxes, "labels": torch.arange(len(NAMES))}, NAMES)
    path.touch()


def draw_predicted_masks(path: Path) -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8) // 8
    draw_rows([(PILImage.new("RGB", (8, 8)), mask, mask)], NAMES, path)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda path: draw_confusion_matrix(np.eye(8, dtype=int), NAMES, path), id="confusion matrix"),
        pytest.param(lambda path: draw_class_iou(torch.eye(8), NAMES, path), id="IoU"),
        pytest.param(draw_predicted_masks, id="masks"),
        pytest.param(draw_predicted_objects, id="objects"),
        pytest.param(draw_predicted_images, id="quickstart"),
    ],
)
def test_names_are_drawn_as_they_are(draw, tmp_path):
    draw(tmp_path / "drawing.png")
    assert (tmp_path / "drawing.png").is_file()


def test_classes_with_the_same_name_are_counted_separately():
    mask = np.array([[0, 1, 1, 2]])
    assert class_shares(mask, ["cat", "cat", "dog"]) == {"cat (1)": 0.5, "cat (0)": 0.25, "dog": 0.25}
    entries = legend_entries([mask], ["cat", "cat", "dog"], 9)
    assert [entry.get_label() for entry in entries] == ["cat (1)  50.0 %", "cat (0)  25.0 %", "dog  25.0 %"]
    assert len({entry.get_facecolor() for entry in entries}) == 3
    assert list(per_class(torch.eye(3), ["cat", "cat", "dog"])) == ["cat (0)", "cat (1)", "dog"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("labels", ["synsets", "names", "numbers"])
def test_imagenet_from_end_to_end(labels, tmp_path, capsys):
    for index, synset in enumerate(SYNSETS):
        write(
            tmp_path / "imagenet" / "train" / synset,
            *(f"{synset}_{number}.JPEG" for number in (10026, 10027, 10029, 7)),
        )
        label = {"synsets": synset, "names": imagenet_class_names()[999 * index], "numbers": str(999 * index)}[labels]
        write(
            tmp_path / "imagenet" / "val" / label,
            *(f"ILSVRC2012_val_{2 * number + index:08}.JPEG" for number in (1, 2)),
        )
    name = "twins-pcpvt-small"
    TwinsForImageClassification(
        TwinsConfig.from_variant(name, **label_fields(imagenet_class_names()))
    ).save_pretrained(tmp_path / "start")
    TwinsImageProcessor().save_pretrained(tmp_path / "start")
    capsys.readouterr()
    results = evaluate(tmp_path / "start", tmp_path / "imagenet", "--output_dir", tmp_path / "results")
    assert results["images"] == 4
    assert results["published_accuracy"] == TWINS_VARIANTS[name].imagenet_top1 / 100
    printed = capsys.readouterr().out
    assert (
        f"| measured | {100 * results['eval_accuracy']:.2f} | {100 * results['eval_top5_accuracy']:.2f} |" in printed
    )
    assert f"| published | {TWINS_VARIANTS[name].imagenet_top1:.2f} | - |" in printed
    assert json.loads((tmp_path / "results" / "all_results.json").read_text()) == results
    if labels == "synsets":
        start = save_start(tmp_path / "tiny")
        run_trainer.main(short_training(start, tmp_path / "imagenet", tmp_path / "run"))
        config = TwinsConfig.from_pretrained(tmp_path / "run")
        assert list(config.id2label.values()) == SYNSETS
        assert evaluate(tmp_path / "run", tmp_path / "imagenet")["images"] == 4
