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
"""The identity of a run: the options, labels and images that must match when it is resumed."""

import copy
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

from hf_twins._utils.command_line import parse_arguments

import pytest
import run_accelerate
import torch
from classification_utils import write_images
from datasets import Dataset
from PIL import Image as PILImage
from testing_utils import tiny_config
from training_utils import IDENTITY
from transformers import TrainingArguments

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins.training.image_classification import arguments as classification
from hf_twins.training.image_classification.data import load_images
from hf_twins.training.object_detection import arguments as detection
from hf_twins.training.object_detection.data import CocoImages
from hf_twins.training.run_identity import (
    MAY_DIFFER,
    MAY_GROW,
    NO_LIMIT,
    compare_identities,
    may_differ,
    option_defaults,
    option_values,
    run_identity,
)
from hf_twins.training.semantic_segmentation import arguments as segmentation
from hf_twins.training.semantic_segmentation.data import ImageMaskPairs
from hf_twins.training.semantic_segmentation.inference import InferenceArguments
from hf_twins.training.trainer import RecipeArguments


PAGE = Path(__file__).parents[3] / "examples" / "image_classification" / "README.md"
CLASSES = {
    "run_trainer": (
        *(classification.ModelArguments, classification.DataArguments, classification.ClassificationRecipe),
        TrainingArguments,
    ),
    "run_accelerate": (
        *(classification.ModelArguments, classification.DataArguments, classification.ClassificationRecipe),
        run_accelerate.LoopArguments,
    ),
    "run_segmentation": (
        *(segmentation.ModelArguments, segmentation.DataArguments, segmentation.SegmentationRecipe),
        *(InferenceArguments, TrainingArguments),
    ),
    "run_detection": (
        *(detection.ModelArguments, detection.DataArguments, detection.DetectionRecipe),
        TrainingArguments,
    ),
}
# Some options of each kind that must match, since the table is otherwise only compared with itself.
MUST_MATCH = {
    *("learning_rate", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type"),
    *("weight_decay", "warmup_steps", "ema_decay", "drop_path_rate", "horizontal_flip", "early_stopping_patience"),
    *("max_grad_norm", "bf16", "fp16", "mixed_precision", "optim", "eval_strategy", "train_val_split", "check_images"),
    *("max_train_samples", "image_size", "ignore_data_skip", "dataloader_in_order", "dataloader_drop_last"),
}


def changed(value):
    """A different value, of the same type if there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 1] if isinstance(value, list) else f"{value}-other"


@pytest.mark.parametrize("script", CLASSES)
def test_each_option_of_a_script_must_match_may_grow_or_has_a_reason(script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    words = ["--output_dir", "out", "--config_name", "twins-svt-small"]
    words += ["--train_dir", "images"] + ["--train_annotations", "a.json"] * (script == "run_detection")
    arguments = parse_arguments(*CLASSES[script], arguments=words)
    before = IDENTITY | {"options": option_values(arguments)}
    assert compare_identities(before, before) == ([], [])
    reasons = {name: reason for reason, names in MAY_DIFFER.items() for name in names}
    verdicts = {}
    for place, part in enumerate(arguments):
        for field in dataclasses.fields(part):
            others = [*arguments]
            others[place] = copy.copy(part)
            setattr(others[place], field.name, changed(getattr(part, field.name)))
            differing, grown = compare_identities(before, IDENTITY | {"options": option_values(others)})
            # With --streaming, another option must match, too.
            named = [text for text in differing + grown if text.startswith(f"--{field.name} ")]
            verdicts[field.name] = "differs" if named and differing else "grows" if grown else "may differ"
            expected = "may differ" if field.name in reasons else "grows" if field.name in MAY_GROW else "differs"
            if field.name in NO_LIMIT:
                # The default is no limit, and no value is larger.
                expected = "differs"
            assert verdicts[field.name] == expected, field.name
    assert {name for name in MUST_MATCH if verdicts.get(name, "differs") != "differs"} == set()


def test_tables_of_options_name_only_existing_options_and_match_the_page():
    options = {field.name for classes in CLASSES.values() for each in classes for field in dataclasses.fields(each)}
    named = [name for names in MAY_DIFFER.values() for name in names] + [*MAY_GROW]
    assert len(set(named)) == len(named)
    assert set(named) <= options
    rows = [
        f"| {', '.join(f'`--{name}`' for name in names)} | may differ | {reason} |"
        for reason, names in MAY_DIFFER.items()
    ] + [f"| `--{name}` | may grow | {reason} |" for name, reason in MAY_GROW.items()]
    text = PAGE.read_text(encoding="utf-8")
    assert [row for row in rows if row not in text.splitlines()] == []
    assert text.count("| may differ |") == len(MAY_DIFFER)


def test_workers_of_a_stream_and_candidates_for_the_best_checkpoint_must_match():
    assert may_differ("dataloader_num_workers", {"streaming": False})
    assert not may_differ("dataloader_num_workers", {"streaming": True})
    assert may_differ("save_steps", {"load_best_model_at_end": False})
    assert not may_differ("save_steps", {"load_best_model_at_end": True})


def test_secrets_and_folders_are_not_recorded(tmp_path):
    (args,) = parse_arguments(
        TrainingArguments, arguments=["--output_dir", str(tmp_path), "--hub_token", "hf_secret", "--run_name", "x"]
    )
    assert not re.search(f"hf_secret|{tmp_path}", json.dumps(option_values([args])))


def test_option_of_a_future_version_must_have_its_default():
    @dataclasses.dataclass
    class Future:
        seed: int = 1
        new_loss: str = "plain"

    before = IDENTITY | {"options": {"seed": 1}}
    for value, differing in (("plain", []), ("other", ["--new_loss plain, now other"])):
        now = IDENTITY | {"options": option_values([Future(new_loss=value)])}
        assert compare_identities(before, now, option_defaults([Future()]))[0] == differing


@pytest.mark.parametrize(
    ("changes", "differing", "grown"),
    [
        ({"labels": ["cat", "fox"]}, ["label 1 dog, now fox"], []),
        ({"labels": ["cat", "dog", "fox"]}, ["label 2 None, now fox"], []),
        ({"model": "c" * 64}, ["another model"], []),
        ({"num_processes": 2}, ["number of processes 1, now 2"], []),
        (
            {"data": {"train": {"images": 9, "fingerprint": "d" * 64}}},
            ["number of images in train 8, now 9", "other images or labels in train"],
            [],
        ),
        ({"options": {"seed": 1, "num_train_epochs": 3.0, "max_steps": -1}}, [], ["--num_train_epochs 2.0, now 3.0"]),
        ({"options": {"seed": 1, "num_train_epochs": 1.0, "max_steps": -1}}, ["--num_train_epochs 2.0, now 1.0"], []),
        ({"options": {"seed": 1, "num_train_epochs": 2.0, "max_steps": 5}}, ["--max_steps -1, now 5"], []),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_differences_are_named_with_both_values(changes, differing, grown):
    assert compare_identities(IDENTITY, IDENTITY | changes) == (differing, grown)


def write_labels(folder: Path) -> Path:
    return write_images(folder, {"cat": 4, "dog": 4})


def identity_of(folder: Path, **changes) -> dict:
    """The identity of a run on the images in a folder."""
    torch.manual_seed(changes.pop("seed", 0))
    names = changes.pop("names", ["cat", "dog"])
    splits = load_images(classification.DataArguments(train_dir=str(folder), train_val_split=0.25), 0)
    model = TwinsForImageClassification(tiny_config(num_labels=2, **changes.pop("config", {})))
    processor = TwinsImageProcessor(**changes)
    return run_identity([RecipeArguments()], names, splits, model, processor, 1)


def repaint(folder: Path) -> None:
    """Change pixels in a file without changing its size and time."""
    file = folder / "cat" / "0.png"
    status = file.stat()
    content = bytearray(file.read_bytes())
    image = PILImage.open(file)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(file)
    if file.stat().st_size != status.st_size:
        file.write_bytes(content[:-13] + bytes([content[-13] ^ 1]) + content[-12:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_identity_depends_on_content_and_not_on_paths_and_times(tmp_path):
    expected = identity_of(write_labels(tmp_path / "images"))
    copied = shutil.copytree(tmp_path / "images", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    assert identity_of(copied) == expected
    repaint(copied)
    differing, _ = compare_identities(expected, identity_of(copied))
    assert differing
    assert {text.rpartition(" ")[0] for text in differing} == {"other images or labels in"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, ["another model"]),
        ({"config": {"drop_path_rate": 0.5}}, ["another model"]),
        ({"do_normalize": False}, ["another model"]),
        ({"names": ["dog", "cat"]}, ["label 0 cat, now dog", "label 1 dog, now cat"]),
    ],
)
def test_different_model_processor_or_order_of_labels_is_another_run(changes, named, tmp_path):
    folder = write_labels(tmp_path / "images")
    assert compare_identities(identity_of(folder), identity_of(folder, **changes)) == (named, [])


def test_renamed_label_folder_is_another_run(tmp_path):
    folder = write_labels(tmp_path / "images")
    before = identity_of(folder)
    (folder / "dog").rename(folder / "fox")
    differing, _ = compare_identities(before, identity_of(folder, names=["cat", "fox"]))
    assert "label 1 dog, now fox" in differing
    assert len(differing) > 1


def test_pairs_and_boxes_are_compared_by_content(tmp_path, monkeypatch):
    fingerprints = []
    for place in ("here", "there"):
        for part in ("images", "annotations"):
            (tmp_path / place / part).mkdir(parents=True)
            PILImage.new("L", (8, 8), 1).save(tmp_path / place / part / "a.png")
        monkeypatch.chdir(tmp_path / place)
        pairs = ImageMaskPairs(segmentation_folder("."))
        objects = CocoImages(Path("images"), [{"id": 1, "file_name": "a.png"}], ["cat"], {1: [{"bbox": [0, 0, 1, 1]}]})
        fingerprints.append((pairs.fingerprint(), objects.fingerprint()))
    assert fingerprints[0] == fingerprints[1]
    PILImage.new("L", (8, 8), 2).save("annotations/a.png")
    assert pairs.fingerprint() != fingerprints[0][0]
    assert dataclasses.replace(objects, annotations={1: [{"bbox": [0, 0, 1, 2]}]}).fingerprint() != fingerprints[0][1]
    PILImage.new("L", (8, 8), 2).save("images/a.png")
    assert objects.fingerprint() != fingerprints[0][1]
    data = [{"train": {"fingerprint": fingerprint}} for fingerprint in (fingerprints[0][1], objects.fingerprint())]
    differing, _ = compare_identities(IDENTITY | {"data": data[0]}, IDENTITY | {"data": data[1]})
    assert differing == ["other images or labels in train"]


def segmentation_folder(folder: str) -> Dataset:
    from hf_twins.training.semantic_segmentation.data import load_folder

    return load_folder(folder)


def test_removed_option_is_not_compared():
    before = IDENTITY | {"options": IDENTITY["options"] | {"removed_option": False}}
    assert compare_identities(before, IDENTITY) == ([], [])
