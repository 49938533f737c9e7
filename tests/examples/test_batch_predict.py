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
"""Every image is predicted exactly once, from any source and after any number of interruptions."""

import errno
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import batch_predict
import psutil
import pyarrow.parquet
import pytest
import torch
from accelerate.state import AcceleratorState
from classification_utils import digit_images, write_digit_folder, write_parquet
from hostile_files import long_png
from PIL import Image
from testing_utils import fail_to_read

from hf_twins import TwinsForImageClassification, TwinsImageProcessor
from hf_twins._utils.files import exclusive_folder
from hf_twins._utils.shards import FileShard, ShardImages, write_output


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with 35 digits, a corrupt file with the name of an image, and a text file."""
    folder = write_digit_folder(tmp_path / "digits", 35)
    (folder / "3" / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def command(start: object, source: object, output: object, *more: object) -> list[str]:
    arguments = ["--model_name_or_path", start, "--input_dir", source, "--output_dir", output, "--shard_size", 10]
    return [str(argument) for argument in [*arguments, "--dataloader_num_workers", 0, *more]]


def read(output: Path) -> list[dict]:
    return [row for file in sorted(output.glob("*.parquet")) for row in pyarrow.parquet.read_table(file).to_pylist()]


def test_predictions_equal_those_of_the_model(start, folder, tmp_path, capsys):
    summary = batch_predict.main(command(start, folder, tmp_path / "out", "--top_k", 3))
    rows = read(tmp_path / "out")
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in (".png", ".jpg"))
    assert [row["path"] for row in rows] == files
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 4
    assert summary == {"images": 36, "errors": 1}
    assert "36 images in 4 files" in capsys.readouterr().out
    model = TwinsForImageClassification.from_pretrained(start).eval()
    processor = TwinsImageProcessor.from_pretrained(start)
    for row in rows:
        if row["path"].endswith(".jpg"):
            assert row["error"].startswith("cannot be decoded: ")
            assert row["label"] is row["score"] is row["labels"] is None
            continue
        with torch.no_grad():
            logits = model(**processor(Image.open(folder / row["path"]).convert("RGB"), return_tensors="pt")).logits
        scores, numbers = logits.softmax(-1)[0].topk(3)
        assert row["labels"] == [model.config.id2label[number] for number in numbers.tolist()]
        assert row["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
        assert (row["label"], row["score"]) == (row["labels"][0], row["scores"][0])
        assert row["error"] is None


def test_labels_of_which_an_image_can_have_several_have_probabilities_of_their_own(start, folder, tmp_path):
    model = TwinsForImageClassification.from_pretrained(start, problem_type="multi_label_classification").eval()
    processor = TwinsImageProcessor.from_pretrained(start)
    for each in (model, processor):
        each.save_pretrained(tmp_path / "model")
    batch_predict.main(command(tmp_path / "model", folder, tmp_path / "out", "--top_k", 3))
    row = next(row for row in read(tmp_path / "out") if row["path"] == "3/003.png")
    with torch.no_grad():
        logits = model(**processor(Image.open(folder / row["path"]).convert("RGB"), return_tensors="pt")).logits
    assert row["scores"] == pytest.approx(logits.sigmoid()[0].topk(3).values.tolist(), abs=1e-5)


def test_column_of_texts_is_refused_by_name(start, tmp_path):
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"]}), tmp_path / "data" / "train.parquet")
    options = command(start, tmp_path / "data", tmp_path / "out", "--image_column_name", "image")
    for source, kind in (("--input_dir", "string"), ("--dataset_name", r"Value\('string'\)")):
        options[2] = source
        message = rf"^error: --image_column_name must be a column of images, got image, a column of {kind}\.$"
        with pytest.raises(SystemExit, match=message):
            batch_predict.main(options)


def test_image_that_is_too_long_is_an_error(start, folder, tmp_path):
    (folder / "3" / "long.png").write_bytes(long_png())
    assert batch_predict.main(command(start, folder, tmp_path / "out")) == {"images": 37, "errors": 2}
    errors = {row["path"]: row["error"] for row in read(tmp_path / "out")}
    assert (
        "long.png is too long, 1 x 65535 pixels: one side may be at most 100 times the other" in errors["3/long.png"]
    )


def test_image_that_cannot_be_prepared_is_an_error(folder):
    def prepare(image):
        if image.mode == "CMYK":
            raise ValueError("four colors")
        return torch.zeros(3, 16, 16)

    Image.new("CMYK", (9, 9)).save(folder / "a.jpg")
    shard = FileShard(str(folder), ("a.jpg", "3/broken.jpg", "3/003.png"))
    *examples, end = ShardImages(shard, prepare)
    assert end == {"count": 3}
    assert [example["error"] for example in examples] == [
        "cannot be prepared: ValueError('four colors')",
        "cannot be decoded: it is not an image of a format that Pillow reads",
        None,
    ]
    assert [example["pixel_values"] is None for example in examples] == [True, True, False]


@pytest.mark.parametrize("kind", ["tar", "parquet", "dataset"])
def test_other_sources_give_the_same_predictions(kind, start, tmp_path):
    images, labels = digit_images(23)
    folder = tmp_path / "files"
    folder.mkdir()
    for index, image in enumerate(images):
        image.save(folder / f"{index:02}.png")
    batch_predict.main(command(start, folder, tmp_path / "expected"))
    expected = [(row["label"], pytest.approx(row["score"], abs=1e-6)) for row in read(tmp_path / "expected")]

    source = tmp_path / "source"
    source.mkdir()
    if kind == "tar":
        for name, part in (("a.tar", images[:12]), ("b.tar", images[12:])):
            with tarfile.open(source / name, "w") as archive:
                for index, image in enumerate(part):
                    for suffix, content in ((".png", encode_png(image)), (".cls", b"0")):
                        member = tarfile.TarInfo(f"{index:03}{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        names = [f"a.tar/{index:03}.png" for index in range(12)] + [f"b.tar/{index:03}.png" for index in range(11)]
    else:
        write_parquet(source, images, labels)
        names = [f"train{'.parquet' if kind == 'parquet' else ''}#{index}" for index in range(23)]
    if kind == "parquet":
        table = pyarrow.parquet.read_table(source / "train.parquet")
        pyarrow.parquet.write_table(table, source / "train.parquet", row_group_size=4)
    arguments = command(start, source, tmp_path / "out")
    if kind == "dataset":
        arguments[2] = "--dataset_name"
    batch_predict.main(arguments)
    rows = read(tmp_path / "out")
    assert [row["path"] for row in rows] == names
    assert [(row["label"], row["score"]) for row in rows] == expected
    # With row groups of four images, shards of at least ten have twelve images.
    assert len(list((tmp_path / "out").glob("*.parquet"))) == {"tar": 2, "parquet": 2, "dataset": 3}[kind]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_damaged_archive_is_named_after_all_others_are_predicted(workers, start, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.tar", "b.tar", "c.tar"):
        with tarfile.open(source / name, "w") as archive:
            for index, image in enumerate(digit_images(5)[0]):
                member = tarfile.TarInfo(f"{index}.png")
                member.size = len(encode_png(image))
                archive.addfile(member, io.BytesIO(encode_png(image)))
    whole = (source / "b.tar").read_bytes()
    # The damage is in the content of the second image, which comes after the header and block of the first, and a
    # header.
    (source / "b.tar").write_bytes(whole[: 3 * 512 + 50])
    (source / "c.tar").write_bytes(b"no archive")
    arguments = command(start, source, tmp_path / "out", "--dataloader_num_workers", workers)
    sentence = r"^error: 2 files cannot be read to the end .*, and start again\. \S+/b.tar is broken: .*; \S+/c.tar is broken: "
    for _ in range(2):
        with pytest.raises(SystemExit, match=sentence):
            batch_predict.main(arguments)
        assert [row["path"] for row in read(tmp_path / "out")] == [f"a.tar/{index}.png" for index in range(5)]
    for name in ("b.tar", "c.tar"):
        (source / name).write_bytes(whole)
    assert batch_predict.main(arguments) == {"images": 15, "errors": 0}


def encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_workers_divide_a_shard(start, folder, tmp_path):
    batch_predict.main(command(start, folder, tmp_path / "one", "--shard_size", 100))
    more = ["--dataloader_num_workers", 2, "--shard_size", 100, "--per_device_eval_batch_size", 4]
    batch_predict.main(command(start, folder, tmp_path / "two", *more))
    assert [row["path"] for row in read(tmp_path / "one")] == [row["path"] for row in read(tmp_path / "two")]
    assert [row["label"] for row in read(tmp_path / "one")] == [row["label"] for row in read(tmp_path / "two")]


def test_only_missing_files_are_predicted_again(start, folder, tmp_path):
    output = tmp_path / "out"
    batch_predict.main(command(start, folder, output))
    expected = read(output)
    files = sorted(output.glob("*.parquet"))
    times = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    files[2].with_name(f".{files[2].name}.partial-0123abcd").write_bytes(b"half")
    files[2].unlink()
    batch_predict.main(command(start, folder, output))
    assert read(output) == expected
    assert not list(output.glob("*.partial-*"))
    for file in (files[0], files[3]):
        assert file.stat().st_mtime_ns == times[file]


def test_predictions_of_different_runs_are_not_mixed(start, folder, tmp_path):
    output = tmp_path / "out"
    batch_predict.main(command(start, folder, output))
    with pytest.raises(
        SystemExit,
        match="holds the files of a run with shard_size 10, now 7; other images: give another --output_dir",
    ):
        batch_predict.main(command(start, folder, output, "--shard_size", 7))
    (folder / "new.png").write_bytes((folder / "3" / "003.png").read_bytes())
    with pytest.raises(SystemExit, match="holds the files of a run with other images"):
        batch_predict.main(command(start, folder, output))


def test_moved_or_touched_folders_are_treated_as_the_same(start, folder, tmp_path, monkeypatch):
    batch_predict.main(command(start, folder, tmp_path / "out"))
    next((tmp_path / "out").glob("*.parquet")).unlink()
    expected = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    for source in (folder, start):
        shutil.copytree(source, tmp_path / "moved" / Path(source).name)
    for file in (tmp_path / "moved").rglob("*.png"):
        os.utime(file, (0, 0))
    monkeypatch.chdir(tmp_path / "moved")
    batch_predict.main(command(Path(start).name, folder.name, tmp_path / "out"))
    assert len(read(tmp_path / "out")) == 36
    assert {path: path.stat().st_mtime_ns for path in expected} == expected
    assert str(tmp_path) not in (tmp_path / "out" / "settings.json").read_text()


def test_images_that_changed_after_their_prediction_are_named(start, folder, tmp_path):
    output = tmp_path / "out"
    batch_predict.main(command(start, folder, output))
    content = (folder / "3" / "003.png").read_bytes()
    (folder / "3" / "003.png").write_bytes(content[:-1] + b"x")
    name = next(
        file.name
        for file in sorted(output.glob("*.parquet"))
        if "3/003.png" in str(pyarrow.parquet.read_table(file)["path"].to_pylist())
    )
    with pytest.raises(SystemExit, match=rf"{name} has the predictions of images in \S+ that have changed since"):
        batch_predict.main(command(start, folder, output))
    (output / name).unlink()
    assert batch_predict.main(command(start, folder, output)) == {"images": 36, "errors": 1}


def test_complete_file_without_a_fingerprint_is_named(folder, tmp_path):
    file = tmp_path / "rows.parquet"
    write_output(file, lambda partial: pyarrow.parquet.write_table(pyarrow.table({"path": ["3/003.png"]}), partial))
    with pytest.raises(
        ValueError, match=r"rows\.parquet has the predictions of images in \S+ that have changed since"
    ):
        batch_predict.find_pending([FileShard(str(folder), ("3/003.png",))], [file])


def test_damaged_file_is_detected_and_predicted_again(start, folder, tmp_path, caplog):
    output = tmp_path / "out"
    batch_predict.main(command(start, folder, output, "--shard_size", 20))
    untouched, damaged = sorted(output.glob("*.parquet"))
    whole, time = damaged.read_bytes(), untouched.stat().st_mtime_ns
    damaged.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    batch_predict.main(command(start, folder, output, "--shard_size", 20))
    assert f"{damaged} or {damaged.name}.sha256 is damaged" in caplog.text
    assert untouched.name not in caplog.text
    assert damaged.read_bytes() == whole
    assert untouched.stat().st_mtime_ns == time


def test_run_ends_with_one_sentence_if_the_system_cannot_read_an_image(start, folder, tmp_path, monkeypatch):
    """The image is not corrupt: it is predicted in a later run, when it can be read."""
    output = tmp_path / "out"
    with monkeypatch.context() as context:
        fail_to_read("003.png", errno.EIO, context)
        message = (
            r"^error: \S+/003\.png could not be read in 2 tries \(Input/output error\): start again when it can\.$"
        )
        with pytest.raises(SystemExit, match=message):
            batch_predict.main(command(start, folder, output))
    assert batch_predict.main(command(start, folder, output)) == {"images": 36, "errors": 1}


@pytest.mark.slow
def test_few_open_files_lose_no_image(start, folder, tmp_path):
    """Workers that cannot open more files could not send tensors, each of which needs a file."""
    output = tmp_path / "out"
    arguments = command(start, folder, output, "--dataloader_num_workers", 2, "--per_device_eval_batch_size", 1)
    limit = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); sys.argv = sys.argv[1:]; "
    )
    limited = [
        sys.executable,
        "-c",
        f"{limit}runpy.run_path(sys.argv[0], run_name='__main__')",
        batch_predict.__file__,
    ]
    done = subprocess.run([*limited, *arguments], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: "), done.stderr
        assert "ulimit -n" in last, done.stderr
    # Files with final names are complete.
    assert batch_predict.main(arguments) == {"images": 36, "errors": 1}


@pytest.mark.parametrize("change", ["weights", "id2label", "image_size", "mixed_precision"])
def test_predictions_of_another_model_with_the_same_name_are_not_mixed(change, start, folder, tmp_path):
    """For example, the model was trained again in the same folder, or other preprocessing is requested."""
    name, output = shutil.copytree(start, tmp_path / "model"), tmp_path / "out"
    batch_predict.main(command(name, folder, output))
    next(output.glob("*.parquet")).unlink()
    options, differing = [], "another model"
    if change == "id2label":
        config = json.loads((name / "config.json").read_text())
        config["id2label"]["0"] = "another"
        (name / "config.json").write_text(json.dumps(config))
    elif change == "weights":
        model = TwinsForImageClassification.from_pretrained(name)
        torch.nn.init.constant_(model.classifier.bias, 1.0)
        model.save_pretrained(name)
    elif change == "image_size":
        options = ["--image_size", 24]
    else:
        options, differing = ["--mixed_precision", "bf16"], "mixed_precision no, now bf16"
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match=f"holds the files of a run with {differing}: give another --output_dir"):
        batch_predict.main(command(name, folder, output, *options))


def test_output_of_a_running_script_is_not_modified(start, folder, tmp_path):
    with (
        exclusive_folder(tmp_path / "out"),
        pytest.raises(SystemExit, match=r"Another run is writing to .*out: wait for it, or give another --output_dir"),
    ):
        batch_predict.main(command(start, folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_wrong_input_is_named(start, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source, more, message in (
        (
            tmp_path / "missing",
            [],
            "--input_dir must be a folder of images, of .parquet or of .tar files, got .*missing",
        ),
        (tmp_path / "empty", [], "empty has no images, no .parquet and no .tar files"),
        (folder, ["--shard_size", 0], "--shard_size must be at least 1, got 0"),
        (folder, ["--dataset_name", folder], "Give either --input_dir or --dataset_name"),
    ):
        with pytest.raises(SystemExit, match=message):
            batch_predict.main(command(start, source, tmp_path / "out", *more))
    # These options are for models to train.
    for option in ("--config_name", "--num_channels"):
        with pytest.raises(SystemExit):
            batch_predict.main(command(start, folder, tmp_path / "out", option, 1))
        assert f"{option} is not an option" in capsys.readouterr().err
    write_parquet(tmp_path / "tables", *digit_images(4))
    with pytest.raises(SystemExit, match="--image_column_name must be one of photo, digit, got photograph"):
        batch_predict.main(command(start, tmp_path / "tables", tmp_path / "out", "--image_column_name", "photograph"))


def test_names_that_are_not_valid_text_are_kept(start, folder, tmp_path):
    (folder / "3" / "003.png").rename(folder / "3" / os.fsdecode(b"\xff.png"))
    batch_predict.main(command(start, folder, tmp_path / "out"))
    assert "3/\\xff.png" in [row["path"] for row in read(tmp_path / "out")]


@pytest.mark.slow
def test_two_repeatedly_killed_processes_predict_every_image_exactly_once(start, tmp_path):
    """One process is killed by attacks/kill_at_random.py."""
    folder = write_digit_folder(tmp_path / "digits", 1600)
    output = tmp_path / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(start, folder, output, "--shard_size", 8)

    def begin() -> subprocess.Popen:
        return subprocess.Popen(
            [*launcher, batch_predict.__file__, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )

    random.seed(0)
    for _ in range(2):
        process = begin()
        before = len(list(output.glob("*.parquet")))
        while len(list(output.glob("*.parquet"))) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
        # torchrun's workers outlive torchrun.
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in everyone:
            one.kill()
        psutil.wait_procs(everyone)
        process.communicate()
    assert 2 <= len(list(output.glob("*.parquet"))) < 200
    process = begin()
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert "1600 images in 200 files" in printed
    paths = [row["path"] for row in read(output)]
    assert sorted(paths) == sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
    assert not list(output.glob("*.partial-*"))
    assert json.loads((output / "settings.json").read_text())["shard_size"] == 8
