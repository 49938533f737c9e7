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
"""The files of a run: damaged checkpoints, resumed and replaced runs, and the files that belong to the run."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from testing_utils import tiny_config
from training_utils import IDENTITY

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins._utils.files import exclusive_folder, new_output, write_atomically
from hf_twins.training.checksums import find_damage, write_checksums
from hf_twins.training.image_classification import arguments as classification
from hf_twins.training.reports import run_settings, write_report_and_card
from hf_twins.training.runs import (
    ADAPTER_FILES,
    Run,
    begin_run,
    check_output_dir,
    files_of,
    find_checkpoint,
    read_run,
    save_pretrained,
)
from hf_twins.training.trainer import RecipeArguments


def write_checkpoint(folder: Path, **identity) -> Path:
    """Write a checkpoint of a run whose output folder is the parent of `folder`."""
    run = read_run(folder.parent) or Run(folder.parent, IDENTITY | identity)
    run.start_checkpoint(folder.name).mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.bin", "state.json"):
        (folder / name).write_text(name)
    run.finish_checkpoint(folder.name)
    return folder


@pytest.mark.parametrize("kind", ["checkpoint-4", "step_4"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_checkpoint_is_named_and_the_previous_one_is_used(kind, damage, tmp_path, caplog):
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


def test_run_without_a_complete_checkpoint_starts_from_the_beginning(tmp_path, caplog):
    assert find_checkpoint(None, tmp_path, "step_") is None
    (tmp_path / "step_3").mkdir()
    (tmp_path / "step_3" / "state.json").write_text("{}")
    assert find_checkpoint("latest", tmp_path, "step_") is None
    assert "starting from the beginning" in caplog.text
    with pytest.raises(ValueError, match="there is no such folder"):
        find_checkpoint(str(tmp_path / "none"), tmp_path, "step_")


def test_replaced_checkpoint_is_kept_until_the_new_one_is_complete(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-4")
    run = read_run(tmp_path)
    run.start_checkpoint("checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_text("half")
    assert find_checkpoint("latest", tmp_path, "checkpoint-") == tmp_path / "checkpoint-4.replaced"
    check_output_dir(tmp_path, resumes=True, overwrites=False)
    # The run was killed before it created the folder again.
    shutil.rmtree(tmp_path / "checkpoint-4")
    check_output_dir(tmp_path, resumes=True, overwrites=False)
    run.start_checkpoint("checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_text("whole")
    run.finish_checkpoint("checkpoint-4", limit=1)
    assert find_checkpoint("latest", tmp_path, "checkpoint-") == tmp_path / "checkpoint-4"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "run.json"}


def test_rotation_removes_only_the_oldest_checkpoints_of_the_run(tmp_path):
    (tmp_path / "step_1").mkdir()
    for step in (2, 4, 10):
        write_checkpoint(tmp_path / f"step_{step}")
    (tmp_path / "step_2" / "notes.txt").write_text("mine")
    run = read_run(tmp_path)
    # The run was resumed from step 4, so the checkpoint of step 10 is older.
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
    """Do what a script does before it trains, with minimal data."""
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
    """A run with a checkpoint and a model, in a folder with other files of the user."""
    folder.mkdir()
    for name in (".env", "id_rsa", "notes.txt"):
        (folder / name).write_text("mine")
    run = begin(folder)
    write_checkpoint(folder / "step_2")
    for name in ("model.safetensors", "config.json", "README.md"):
        (folder / name).write_text("the run's")
    return run


def test_folder_of_a_run_is_reused_only_if_requested(tmp_path):
    finished_run(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"has the files of a run: resume it with --resume_from_checkpoint latest, replace"
    ):
        begin(tmp_path / "run")
    with pytest.raises(ValueError, match="contradict each other"):
        begin(tmp_path / "run", resume_from_checkpoint="latest", overwrite_output_dir=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run = begin(tmp_path / "run", overwrite_output_dir=True, seed=2)
    # If the new run fails before it saves anything, the old run can still be resumed.
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    begin(tmp_path / "run", tmp_path / "run" / "step_2", resume_from_checkpoint="latest")
    run.start_writing()
    assert read_run(tmp_path / "run") == run
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".env", "id_rsa", "notes.txt", "run.json"]
    assert run.checkpoints == []
    # Replacing a run that has not written anything removes nothing.
    begin(tmp_path / "run", seed=3)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "README.md", "adapter", "adapter_model.safetensors", "checkpoint-7", "pytorch_model.bin"],
)
@pytest.mark.parametrize("options", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}])
def test_files_that_no_run_lists_are_refused(name, options, tmp_path):
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


def test_different_run_is_not_resumed_and_nothing_is_written(tmp_path):
    checkpoint = finished_run(tmp_path / "run").output_dir / "step_2"
    # The same holds for a checkpoint that was copied to another folder.
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


def test_longer_run_is_resumed_with_a_warning(tmp_path, caplog):
    checkpoint = finished_run(tmp_path / "run").output_dir / "step_2"
    run = begin(tmp_path / "run", checkpoint, resume_from_checkpoint="latest", num_train_epochs=4)
    assert (
        "(--num_train_epochs 2, now 4). With more epochs or steps, the learning rate follows the longer" in caplog.text
    )
    assert read_run(tmp_path / "run") == run
    assert run.checkpoints == ["step_2"]
    assert f"Resuming from {checkpoint}." in caplog.messages


def test_numbers_of_labels_are_logged(tmp_path, caplog):
    begin(tmp_path)
    assert caplog.messages == ["2 labels by number: 0 = cat, 1 = dog."]


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "..\\outside", "C:\\outside", "", "."]
)
@pytest.mark.parametrize("kind", ["files", "checkpoints"])
def test_names_outside_the_folder_are_refused(kind, name, tmp_path):
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
def test_damaged_record_of_a_run_gives_one_sentence(content, tmp_path):
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


def test_first_checkpoint_of_a_run_replaces_the_previous_run(tmp_path):
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
    # The output folder is empty, or that of the same run when it was longer.
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


def test_latest_checkpoint_is_the_newest_and_not_that_of_the_highest_step(tmp_path):
    finished_run(tmp_path / "run")
    for step in (4, 8, 12):
        write_checkpoint(tmp_path / "run" / f"step_{step}")
    run = begin(tmp_path / "run", tmp_path / "run" / "step_4", resume_from_checkpoint="step_4")
    assert find_checkpoint("latest", tmp_path / "run", "step_") == tmp_path / "run" / "step_4"
    # The run was killed while writing, so the checkpoint with this number belongs to the earlier training.
    run.start_checkpoint("step_8").mkdir()
    assert find_checkpoint("latest", tmp_path / "run", "step_") == tmp_path / "run" / "step_4"
    (tmp_path / "run" / "step_8" / "state.json").write_text("{}")
    run.finish_checkpoint("step_8", limit=2)
    assert find_checkpoint("latest", tmp_path / "run", "step_") == tmp_path / "run" / "step_8"
    assert read_run(tmp_path / "run").checkpoints == ["step_4", "step_8"]


def test_checkpoint_with_only_a_model_is_not_resumed(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-2")
    (checkpoint / "trainer_state.json").write_text("{}")
    write_checksums(checkpoint)
    for resumed in ("latest", str(checkpoint)):
        with pytest.raises(ValueError, match=rf"^{checkpoint} has only the model, without its optimizer and sched"):
            find_checkpoint(resumed, tmp_path, "checkpoint-")
    (checkpoint / "rng_state_0.pth").write_text("numbers")
    assert find_checkpoint("latest", tmp_path, "checkpoint-") == checkpoint


def test_files_of_other_scripts_are_kept(tmp_path):
    names = ("results.png", "predictions.png", "class_iou.png", "eval_results.json")
    run = finished_run(tmp_path / "run")
    for name in names:
        (tmp_path / "run" / name).write_text("mine")
    assert set(run.written_files()) == {"model.safetensors", "config.json", "README.md"}
    begin(tmp_path / "run", tmp_path / "run" / "step_2", resume_from_checkpoint="latest")
    begin(tmp_path / "run", overwrite_output_dir=True).start_writing()
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in names)
    # Files that the run is going to write are refused.
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
def test_record_of_a_resumed_run_is_rebuilt_from_its_checkpoints(content, tmp_path):
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
def test_output_that_cannot_be_a_folder_gives_one_sentence(kind, tmp_path):
    path = tmp_path / "run"
    path.write_text("mine") if kind == "a file" else path.symlink_to(tmp_path / "nowhere")
    for folder in (path, path / "below"):
        with pytest.raises(
            ValueError, match=rf"^--output_dir must be an existing or new folder, but {path} is {kind}: give"
        ):
            begin(folder)
        with pytest.raises(ValueError, match=rf"but {path} is {kind}: give another\.$"), exclusive_folder(folder):
            pass


def test_only_the_first_of_several_processes_compares_and_writes(tmp_path, monkeypatch):
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
