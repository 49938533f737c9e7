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
"""What identifies a run: which options must match, what a damaged checkpoint says, and which files are the run's own."""

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
from safetensors.torch import save_file
from testing_utils import tiny_config
from transformers import TrainingArguments

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins._utils.files import exclusive_folder, new_output, write_atomically
from hf_twins.training.image_classification import arguments as classification
from hf_twins.training.image_classification.data import load_images
from hf_twins.training.object_detection import arguments as detection
from hf_twins.training.object_detection.data import CocoImages
from hf_twins.training.reports import run_settings, write_report_and_card
from hf_twins.training.runs import (
    ADAPTER_FILES,
    MAY_DIFFER,
    MAY_GROW,
    NO_LIMIT,
    Run,
    begin_run,
    check_output_dir,
    compare_identities,
    files_of,
    find_checkpoint,
    find_damage,
    may_differ,
    option_defaults,
    option_values,
    read_run,
    run_identity,
    save_pretrained,
    write_checksums,
)
from hf_twins.training.semantic_segmentation import arguments as segmentation
from hf_twins.training.semantic_segmentation.data import ImageMaskPairs
from hf_twins.training.semantic_segmentation.inference import InferenceArguments
from hf_twins.training.trainer import RecipeArguments


PAGE = Path(__file__).parents[3] / "examples" / "image_classification" / "README.md"
DATA = {"train_dir": "images", "train_annotations": "a.json"}
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
# Of each kind, some that must match: what the table says is compared with itself otherwise.
MUST_MATCH = {
    *("learning_rate", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type"),
    *("weight_decay", "warmup_steps", "ema_decay", "drop_path_rate", "horizontal_flip", "early_stopping_patience"),
    *("max_grad_norm", "bf16", "fp16", "mixed_precision", "optim", "eval_strategy", "train_val_split", "check_images"),
    *("max_train_samples", "image_size", "ignore_data_skip", "dataloader_in_order", "dataloader_drop_last"),
}
IDENTITY = {
    "options": {"seed": 1, "num_train_epochs": 2.0, "max_steps": -1},
    "labels": ["cat", "dog"],
    "data": {"train": {"images": 8, "fingerprint": "a" * 64}},
    "model": "b" * 64,
    "num_processes": 1,
}


def changed(value):
    """Another value than this, of its type where it has one."""
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
            # Setting --streaming makes another option count.
            named = [text for text in differing + grown if text.startswith(f"--{field.name} ")]
            verdicts[field.name] = "differs" if named and differing else "grows" if grown else "may differ"
            expected = "may differ" if field.name in reasons else "grows" if field.name in MAY_GROW else "differs"
            if field.name in NO_LIMIT:
                # The default is no limit, of which nothing is larger.
                expected = "differs"
            assert verdicts[field.name] == expected, field.name
    assert {name for name in MUST_MATCH if verdicts.get(name, "differs") != "differs"} == set()


def test_tables_of_options_name_options_of_scripts_alone_and_are_those_of_the_page():
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


def test_workers_of_a_stream_and_checkpoints_to_choose_from_must_match():
    assert may_differ("dataloader_num_workers", {"streaming": False})
    assert not may_differ("dataloader_num_workers", {"streaming": True})
    assert may_differ("save_steps", {"load_best_model_at_end": False})
    assert not may_differ("save_steps", {"load_best_model_at_end": True})


def test_secrets_and_folders_are_no_part_of_what_is_recorded(tmp_path):
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
def test_what_differs_is_named_with_both_values(changes, differing, grown):
    assert compare_identities(IDENTITY, IDENTITY | changes) == (differing, grown)


def write_labels(folder: Path) -> Path:
    return write_images(folder, {"cat": 4, "dog": 4})


def identity_of(folder: Path, **changes) -> dict:
    """That of a run on the images in a folder."""
    torch.manual_seed(changes.pop("seed", 0))
    names = changes.pop("names", ["cat", "dog"])
    splits = load_images(classification.DataArguments(train_dir=str(folder), train_val_split=0.25), 0)
    model = TwinsForImageClassification(tiny_config(num_labels=2, **changes.pop("config", {})))
    processor = TwinsImageProcessor(**changes)
    return run_identity([RecipeArguments()], names, splits, model, processor, 1)


def repaint(folder: Path) -> None:
    """Other pixels in a file of the same size and time."""
    file = folder / "cat" / "0.png"
    status = file.stat()
    content = bytearray(file.read_bytes())
    image = PILImage.open(file)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(file)
    if file.stat().st_size != status.st_size:
        file.write_bytes(content[:-13] + bytes([content[-13] ^ 1]) + content[-12:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_identity_is_of_content_and_not_of_places_and_times(tmp_path):
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
def test_other_model_processor_or_order_of_labels_is_another_run(changes, named, tmp_path):
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


def write_checkpoint(folder: Path, **identity) -> Path:
    """A checkpoint of a run in the folder that it is in."""
    run = read_run(folder.parent) or Run(folder.parent, IDENTITY | identity)
    run.start_checkpoint(folder.name).mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.bin", "state.json"):
        (folder / name).write_text(name)
    run.finish_checkpoint(folder.name)
    return folder


@pytest.mark.parametrize("kind", ["checkpoint-4", "step_4"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_of_each_file_of_a_checkpoint_is_named_and_the_one_before_taken(kind, damage, tmp_path, caplog):
    prefix = kind.removesuffix("4")
    older = write_checkpoint(tmp_path / f"{prefix}2")
    whole = write_checkpoint(tmp_path / kind)
    assert find_checkpoint("latest", tmp_path, prefix) == whole
    files = sorted(file for file in whole.rglob("*") if file.is_file())
    assert {file.name for file in files} >= {"model.safetensors", "run.json", "checksums.json"}
    for file in files:
        content = file.read_bytes()
        if damage == "remove":
            file.unlink()
        else:
            flipped = bytes([content[len(content) // 2] ^ 1])
            file.write_bytes(
                content[: len(content) // 2] + (flipped + content[len(content) // 2 + 1 :]) * (damage == "flip")
            )
        assert file.name in (find_damage(whole) or "no damage") or file.name == "checksums.json"
        with pytest.raises(
            ValueError, match=r"^--resume_from_checkpoint must be 'latest' or a complete checkpoint, got "
        ):
            find_checkpoint(str(whole), tmp_path, prefix)
        caplog.clear()
        assert find_checkpoint("latest", tmp_path, prefix) == older
        assert f"{whole} is skipped, because it is not complete: " in caplog.text
        file.write_bytes(content)
    assert find_checkpoint(str(whole), tmp_path, prefix) == whole


def test_without_a_whole_checkpoint_a_run_starts_from_the_beginning(tmp_path, caplog):
    assert find_checkpoint(None, tmp_path, "step_") is None
    (tmp_path / "step_3").mkdir()
    (tmp_path / "step_3" / "state.json").write_text("{}")
    assert find_checkpoint("latest", tmp_path, "step_") is None
    assert "starting from the beginning" in caplog.text
    with pytest.raises(ValueError, match="there is no such folder"):
        find_checkpoint(str(tmp_path / "none"), tmp_path, "step_")


def test_checkpoint_that_is_saved_again_is_kept_until_the_new_one_is_whole(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-4")
    run = read_run(tmp_path)
    run.start_checkpoint("checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_text("half")
    assert find_checkpoint("latest", tmp_path, "checkpoint-") == tmp_path / "checkpoint-4.replaced"
    check_output_dir(tmp_path, resumes=True, overwrites=False)
    # Killed before the folder was made again.
    shutil.rmtree(tmp_path / "checkpoint-4")
    check_output_dir(tmp_path, resumes=True, overwrites=False)
    run.start_checkpoint("checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_text("whole")
    run.finish_checkpoint("checkpoint-4", limit=1)
    assert find_checkpoint("latest", tmp_path, "checkpoint-") == tmp_path / "checkpoint-4"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "run.json"}


def test_rotation_removes_the_oldest_of_the_run_alone(tmp_path):
    (tmp_path / "step_1").mkdir()
    for step in (2, 4, 10):
        write_checkpoint(tmp_path / f"step_{step}")
    (tmp_path / "step_2" / "notes.txt").write_text("mine")
    run = read_run(tmp_path)
    # Begun again from step 4: that of step 10 is of the time before.
    (run.start_checkpoint("step_6")).mkdir()
    (tmp_path / "step_6" / "state.json").write_text("{}")
    run.finish_checkpoint("step_6", limit=2, best="step_4")
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.parent == tmp_path}
    assert left == {"step_1", "step_2", "step_4", "step_6", "run.json"}
    assert [path.name for path in (tmp_path / "step_2").iterdir()] == ["notes.txt"]
    assert read_run(tmp_path).checkpoints == ["step_4", "step_6"]


@dataclasses.dataclass
class Options(RecipeArguments):
    output_dir: str = ""
    model_name_or_path: str | None = None
    resume_from_checkpoint: str | None = None
    seed: int = 1
    num_train_epochs: int = 2


def begin(output_dir: Path, checkpoint: Path | None = None, **options) -> Run:
    """What a script does before it trains, on next to nothing."""
    torch.manual_seed(0)
    arguments = Options(output_dir=str(output_dir), **options)
    check_output_dir(output_dir, arguments.resume_from_checkpoint is not None, arguments.overwrite_output_dir)
    split = Dataset.from_dict({"label": [0, 1]})
    model = TwinsForImageClassification(tiny_config(num_labels=2))
    return begin_run(
        checkpoint,
        [arguments],
        labels=["cat", "dog"],
        splits={"train": split},
        model=model,
        processor=TwinsImageProcessor(),
        num_processes=1,
    )


def finished_run(folder: Path) -> Run:
    """A run with a checkpoint and a model, among what is somebody's own."""
    folder.mkdir()
    for name in (".env", "id_rsa", "notes.txt"):
        (folder / name).write_text("mine")
    run = begin(folder)
    write_checkpoint(folder / "step_2")
    for name in ("model.safetensors", "config.json", "README.md"):
        (folder / name).write_text("the run's")
    return run


def test_folder_of_a_run_is_used_again_only_if_told(tmp_path):
    finished_run(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"has the files of a run: resume it with --resume_from_checkpoint latest, replace"
    ):
        begin(tmp_path / "run")
    with pytest.raises(ValueError, match="contradict each other"):
        begin(tmp_path / "run", resume_from_checkpoint="latest", overwrite_output_dir=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run = begin(tmp_path / "run", overwrite_output_dir=True, seed=2)
    # A run that fails before it has anything to save costs nothing: the other can still be resumed.
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    begin(tmp_path / "run", tmp_path / "run" / "step_2", resume_from_checkpoint="latest")
    run.start_writing()
    assert read_run(tmp_path / "run") == run
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".env", "id_rsa", "notes.txt", "run.json"]
    assert run.checkpoints == []
    # Nothing is lost of a run that has not written anything.
    begin(tmp_path / "run", seed=3)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "README.md", "adapter", "adapter_model.safetensors", "checkpoint-7", "pytorch_model.bin"],
)
@pytest.mark.parametrize("options", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}])
def test_files_that_no_run_has_named_are_refused(name, options, tmp_path):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"{name}, which no run lists as its own in run.json: move what you want to"):
        begin(tmp_path, **options)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("start", [".", "step_2"])
def test_model_that_training_starts_from_is_not_removed(start, tmp_path):
    finished_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^--overwrite_output_dir would remove --model_name_or_path, "):
        begin(tmp_path / "run", overwrite_output_dir=True, model_name_or_path=str(tmp_path / "run" / start))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert find_damage(tmp_path / "run" / "step_2") is None


def test_other_run_is_not_resumed_and_nothing_is_written(tmp_path):
    checkpoint = finished_run(tmp_path / "run").output_dir / "step_2"
    # Also where it was copied to, alone.
    copied = shutil.copytree(checkpoint, tmp_path / "copied")
    identity = json.loads((tmp_path / "run" / "run.json").read_text())
    for place in (checkpoint, copied):
        with pytest.raises(
            ValueError, match=rf"^{place} is from a run that differs in --seed 1, now 2\. Resume it with"
        ):
            begin(tmp_path / "new", place, resume_from_checkpoint=str(place), seed=2)
    with pytest.raises(ValueError, match=r"run is from a run that differs in --seed 1, now 2\. Resume it with"):
        begin(tmp_path / "run", None, resume_from_checkpoint="latest", seed=2)
    assert not (tmp_path / "new").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == identity


def test_longer_run_is_resumed_and_says_what_that_means(tmp_path, caplog):
    checkpoint = finished_run(tmp_path / "run").output_dir / "step_2"
    run = begin(tmp_path / "run", checkpoint, resume_from_checkpoint="latest", num_train_epochs=4)
    assert (
        "(--num_train_epochs 2, now 4). With more epochs or steps, the learning rate follows the longer" in caplog.text
    )
    assert read_run(tmp_path / "run") == run
    assert run.checkpoints == ["step_2"]


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "..\\outside", "C:\\outside", "", "."]
)
@pytest.mark.parametrize("kind", ["files", "checkpoints"])
def test_names_outside_of_the_folder_are_refused(kind, name, tmp_path):
    (tmp_path / "outside").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"identity": IDENTITY, kind: [name]}))
    with pytest.raises(
        ValueError, match=r"run\.json must hold the identity of a run and the names of files in its fold"
    ):
        begin(folder, overwrite_output_dir=True)
    assert (tmp_path / "outside").exists()


@pytest.mark.parametrize("content", ["[]", "{}", "null", "{", '{"identity": []}', '{"identity": {"options": {}}}'])
def test_damaged_record_of_a_run_is_a_sentence(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json (is damaged|must hold the identity of a run)"):
        begin(tmp_path)


def test_overwriting_follows_no_links(tmp_path):
    run = finished_run(tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("model.safetensors", "README.md"):
        (other / name).write_text("mine")
    folder = run.output_dir
    shutil.rmtree(folder / "step_2")
    (folder / "step_2").symlink_to(other)
    (folder / "adapter").symlink_to(other)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(other / "README.md")
    run = read_run(folder)
    run.files += ["adapter/README.md"]
    assert run.written_files() == ["model.safetensors", "README.md"]
    run.remove()
    assert sorted(path.name for path in other.iterdir()) == ["README.md", "model.safetensors"]
    assert not (folder / "step_2").is_symlink()
    assert not (folder / "config.json").is_symlink()


def test_first_checkpoint_of_a_run_takes_the_place_of_the_one_that_it_replaces(tmp_path):
    finished_run(tmp_path / "run")
    run = begin(tmp_path / "run", overwrite_output_dir=True, seed=2)
    run.start_checkpoint("step_1")
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [".env", "id_rsa", "notes.txt", "run.json"]
    assert read_run(tmp_path / "run").checkpoints == ["step_1"]


def test_run_is_not_mixed_with_the_one_in_the_output_folder(tmp_path):
    checkpoint = finished_run(tmp_path / "a").output_dir / "step_2"
    for name in "bc":
        (tmp_path / name).mkdir()
    begin(tmp_path / "b", seed=2)
    before = (tmp_path / "b" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"b is from a run that differs in --seed 2, now 1\."):
        begin(tmp_path / "b", checkpoint, resume_from_checkpoint=str(checkpoint))
    assert (tmp_path / "b" / "run.json").read_bytes() == before
    # Into an empty folder, and into that of the same run when it was longer.
    begin(tmp_path / "c", checkpoint, resume_from_checkpoint=str(checkpoint), num_train_epochs=4)
    begin(tmp_path / "c", checkpoint, resume_from_checkpoint=str(checkpoint))


def test_run_of_another_script_is_named_as_such(tmp_path, monkeypatch):
    @dataclasses.dataclass
    class OtherOptions(Options):
        pass

    finished_run(tmp_path / "run")
    monkeypatch.setitem(globals(), "Options", OtherOptions)
    with pytest.raises(ValueError, match=r"step_2 is from a run of another script: resume it with that one, or"):
        begin(tmp_path / "run", tmp_path / "run" / "step_2", resume_from_checkpoint="latest", seed=2)


def test_option_that_is_none_any_more_is_not_compared():
    before = IDENTITY | {"options": IDENTITY["options"] | {"removed_option": False}}
    assert compare_identities(before, IDENTITY) == ([], [])


def test_latest_is_the_newest_and_not_the_one_of_the_highest_number(tmp_path):
    finished_run(tmp_path / "run")
    for step in (4, 8, 12):
        write_checkpoint(tmp_path / "run" / f"step_{step}")
    run = begin(tmp_path / "run", tmp_path / "run" / "step_4", resume_from_checkpoint="step_4")
    assert find_checkpoint("latest", tmp_path / "run", "step_") == tmp_path / "run" / "step_4"
    # Killed while it writes: the one of that number is of the training before.
    run.start_checkpoint("step_8").mkdir()
    assert find_checkpoint("latest", tmp_path / "run", "step_") == tmp_path / "run" / "step_4"
    (tmp_path / "run" / "step_8" / "state.json").write_text("{}")
    run.finish_checkpoint("step_8", limit=2)
    assert find_checkpoint("latest", tmp_path / "run", "step_") == tmp_path / "run" / "step_8"
    assert read_run(tmp_path / "run").checkpoints == ["step_4", "step_8"]


def test_model_alone_is_not_resumed(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-2")
    (checkpoint / "trainer_state.json").write_text("{}")
    write_checksums(checkpoint)
    for resumed in ("latest", str(checkpoint)):
        with pytest.raises(ValueError, match=rf"^{checkpoint} has only the model, without its optimizer and sched"):
            find_checkpoint(resumed, tmp_path, "checkpoint-")
    (checkpoint / "rng_state_0.pth").write_text("numbers")
    assert find_checkpoint("latest", tmp_path, "checkpoint-") == checkpoint


def test_files_of_other_scripts_are_somebodys_own(tmp_path):
    names = ("results.png", "predictions.png", "class_iou.png", "eval_results.json")
    run = finished_run(tmp_path / "run")
    for name in names:
        (tmp_path / "run" / name).write_text("mine")
    assert set(run.written_files()) == {"model.safetensors", "config.json", "README.md"}
    begin(tmp_path / "run", tmp_path / "run" / "step_2", resume_from_checkpoint="latest")
    begin(tmp_path / "run", overwrite_output_dir=True).start_writing()
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in names)
    # What is going to be written is refused.
    (tmp_path / "run" / "curves.png").write_text("mine")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has curves\.png, which no run lists as its own"):
        check_output_dir(tmp_path / "run", resumes=False, overwrites=True, files=files_of([Options()]))


@pytest.mark.parametrize("name", ["adapter", "adapter/adapter_config.json", "config.json"])
def test_links_are_not_written_through(name, tmp_path):
    finished_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    run.files += ADAPTER_FILES
    run.write()
    (tmp_path / "mine").mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "mine")
    for options in ({"resume_from_checkpoint": "latest"}, {"overwrite_output_dir": True}):
        with pytest.raises(ValueError, match=rf"run has {name}, which would be written through a link: remove the"):
            begin(tmp_path / "run", **options)


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_record_of_a_run_that_is_resumed_is_rebuilt_from_its_checkpoints(content, tmp_path):
    run = finished_run(tmp_path / "run")
    write_checkpoint(tmp_path / "run" / "step_10")
    expected = read_run(run.output_dir)
    record = run.output_dir / "run.json"
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(ValueError, match=r"resume_from_checkpoint rebuilds it from|no run lists as its own"):
        begin(run.output_dir)
    with pytest.raises(ValueError, match=r"run that differs in --seed 1, now 2\."):
        begin(run.output_dir, run.output_dir / "step_10", resume_from_checkpoint="latest", seed=2)
    assert find_checkpoint("latest", run.output_dir, "step_") == run.output_dir / "step_10"
    begin(run.output_dir, run.output_dir / "step_10", resume_from_checkpoint="latest")
    assert read_run(run.output_dir) == expected


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
def test_output_that_cannot_be_a_folder_is_a_sentence(kind, tmp_path):
    path = tmp_path / "run"
    path.write_text("mine") if kind == "a file" else path.symlink_to(tmp_path / "nowhere")
    for folder in (path, path / "below"):
        with pytest.raises(
            ValueError, match=rf"^--output_dir must be an existing or new folder, but {path} is {kind}: give"
        ):
            begin(folder)
        with pytest.raises(ValueError, match=rf"but {path} is {kind}: give another\.$"), exclusive_folder(folder):
            pass


def test_of_several_processes_the_first_alone_compares_and_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    finished = begin(tmp_path)
    assert not (tmp_path / "run.json").exists()
    finished.start_checkpoint("step_2")
    finished.finish_checkpoint("step_2")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weights_have_the_permissions_of_other_new_files(mask, tmp_path):
    before = os.umask(mask)
    try:
        weights = {"weight": torch.zeros(1)}
        write_atomically(tmp_path / "shard.safetensors", lambda partial: save_file(weights, partial))
        with new_output(tmp_path / "converted") as folder:
            save_file(weights, folder / "model.safetensors")
        model = TwinsForImageClassification(tiny_config())
        (tmp_path / "id_rsa").write_text("mine")
        (tmp_path / "id_rsa").chmod(0o600)
        save_pretrained(model, TwinsImageProcessor(), tmp_path)
        (tmp_path / "step_2").mkdir()
        save_file(weights, tmp_path / "step_2" / "model.safetensors")
        write_checksums(tmp_path / "step_2")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "id_rsa"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}
    assert (tmp_path / "id_rsa").stat().st_mode & 0o777 == 0o600


def test_card_and_report_have_no_absolute_paths(tmp_path):
    data = tmp_path / "home-of-somebody" / "flowers"
    arguments = classification.ModelArguments(config_name=str(tmp_path / "start"))
    settings = run_settings(
        arguments,
        classification.DataArguments(train_dir=str(data), class_names_file=f"~/{data.name}.txt"),
        classification.ClassificationRecipe(),
        str(data),
        {"output_dir": str(tmp_path / "run"), "resume_from_checkpoint": "../other/step_2", "betas": [0.9, 0.99]},
    )
    (tmp_path / "run").mkdir()
    kinds = {"kind": "classifier", "task": "image-classification", "metric_types": {}, "figures": {}, "usage": ""}
    write_report_and_card(tmp_path / "run", {"metrics": {"accuracy": 0.5}}, settings, **kinds)
    for name in ("README.md", "report.json"):
        text = (tmp_path / "run" / name).read_text()
        assert "flowers" in text
        assert not re.search(f"{tmp_path}|home-of-somebody|~|\\.\\.", text), name
    assert settings["data"]["train_dir"] == str(data)
