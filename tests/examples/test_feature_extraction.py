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
"""Features of scikit-learn's digits: equal to the model's, complete after an interruption, and useful for searching."""

import errno
import json
import shutil
import sys
from pathlib import Path

import extract_features
import numpy as np
import pyarrow.parquet
import pytest
import search_features
import torch
from hostile_files import long_png
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from testing_utils import fail_to_read, randomize, tiny_config

from hf_twins import TwinsBackbone, TwinsForImageClassification, TwinsImageProcessor, TwinsModel
from hf_twins._utils.files import exclusive_folder
from hf_twins._utils.images import read_image


NUM_IMAGES = 60


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A tiny model, and a folder of digits named by their label, the last one in a sub-folder."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    randomize(TwinsForImageClassification(tiny_config("pcpvt"))).save_pretrained(folder / "model")
    TwinsImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder / "model")
    digits = load_digits()
    for index, (pixels, digit) in enumerate(zip(digits.images[:NUM_IMAGES], digits.target)):
        path = (
            folder / "images" / f"{index:02}_{digit}.png" if index < NUM_IMAGES - 1 else folder / "images/z/last.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(path)
    (folder / "images/notes.txt").write_text("no image")
    return folder


@pytest.fixture
def extract(prepared, monkeypatch, tmp_path):
    """Run `extract_features.py` with the given options, in an empty folder, with `features` as its output folder."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> list[str]:
        paths = ["--model_name_or_path", str(prepared / "model"), "--input_dir", str(prepared / "images")]
        monkeypatch.setattr(
            sys, "argv", ["extract_features.py", *paths, "--output_dir", "features", "--batch_size", "8", *options]
        )
        extract_features.main()
        return sorted(path.name for path in Path("features").glob("*"))

    return run


@pytest.fixture
def search(monkeypatch, capsys):
    def run(query: Path, *options: str) -> list[str]:
        monkeypatch.setattr(
            sys, "argv", ["search_features.py", "--features", "features", "--query", str(query), *options]
        )
        capsys.readouterr()
        search_features.main()
        return capsys.readouterr().out.splitlines()

    return run


def own_inputs(prepared: Path, path: str) -> torch.Tensor:
    processor = TwinsImageProcessor.from_pretrained(prepared / "model")
    return processor(Image.open(prepared / "images" / path).convert("RGB"), return_tensors="pt")["pixel_values"]


def read_features(folder: Path) -> tuple[list[str], np.ndarray]:
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(shard) for shard in sorted(folder.glob("*.parquet"))])
    return table["path"].to_pylist(), np.array(table["feature"].to_pylist(), dtype=np.float32)


def test_pooled_features_equal_the_models_own(prepared, extract, capsys):
    shards = [f"features-0000{number}-of-00003.parquet" for number in (1, 2, 3)]
    assert extract("--shard_size", "25") == sorted([*shards, *(f"{name}.sha256" for name in shards), "settings.json"])
    assert "60 of 60 images have their features in features." in capsys.readouterr().out
    schema = pyarrow.parquet.read_schema("features/features-00003-of-00003.parquet")
    assert schema.field("path").type == pyarrow.string()
    assert schema.field("feature").type == pyarrow.list_(pyarrow.field("element", pyarrow.float32()), 48)
    paths, features = read_features(Path("features"))
    assert paths == sorted(paths)
    assert len(paths) == NUM_IMAGES
    assert paths[-1] == "z/last.png"
    model = TwinsModel.from_pretrained(prepared / "model").eval()
    for index in (0, 30, 59):
        with torch.no_grad():
            expected = model(own_inputs(prepared, paths[index])).pooler_output[0]
        np.testing.assert_allclose(features[index], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_feature_maps_equal_the_backbones(prepared, extract):
    names = extract("--features", "stage1", "stage3", "--shard_size", "32")
    shards = [f"features-0000{number}-of-00002.safetensors" for number in (1, 2)]
    digests = [f"{name}.sha256" for name in shards]
    assert names == sorted([*shards, *digests, "features.safetensors.index.json", "settings.json"])
    weight_map = json.loads(Path("features/features.safetensors.index.json").read_text())["weight_map"]
    assert len(weight_map) == 2 * NUM_IMAGES
    backbone = TwinsBackbone.from_pretrained(prepared / "model", out_features=["stage1", "stage3"]).eval()
    with torch.no_grad():
        first, third = backbone(own_inputs(prepared, "z/last.png")).feature_maps
    with safe_open(f"features/{weight_map['z/last.png/stage1']}", framework="pt") as tensors:
        assert tensors.get_tensor("z/last.png/stage1").shape == (16, 8, 8)
        torch.testing.assert_close(tensors.get_tensor("z/last.png/stage1"), first[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tensors.get_tensor("z/last.png/stage3"), third[0], rtol=1e-4, atol=1e-5)
        assert tensors.get_tensor("z/last.png/stage3").shape == (48, 2, 2)


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_images_are_read_in_the_mode_of_the_model(num_channels, mode, tmp_path, extract, search):
    torch.manual_seed(0)
    model = randomize(TwinsForImageClassification(tiny_config("pcpvt", num_channels=num_channels))).eval()
    processor = TwinsImageProcessor(
        size={"height": 16, "width": 16},
        do_center_crop=False,
        do_convert_rgb=False,
        image_mean=[0.5] * num_channels,
        image_std=[0.5] * num_channels,
    )
    for each in (model, processor):
        each.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    images = [Image.merge("RGBA", [Image.effect_noise((20, 20), 80) for _ in range(4)]) for _ in range(2)]
    for image, name in zip((images[0], images[1].convert("RGB")), ("a.png", "b.png")):
        image.save(tmp_path / "images" / name)
    extract("--model_name_or_path", str(tmp_path / "model"), "--input_dir", str(tmp_path / "images"))
    paths, features = read_features(Path("features"))
    for path, vector in zip(paths, features):
        pixel_values = processor(read_image(tmp_path / "images" / path, mode), return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = model.twins(pixel_values).pooler_output[0]
        np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert search(tmp_path / "images" / "a.png")[0] == "1.0000  a.png"


def test_images_of_different_sizes_have_separate_features(prepared, tmp_path, extract):
    model, images = tmp_path / "model", tmp_path / "images"
    TwinsForImageClassification.from_pretrained(prepared / "model").save_pretrained(model)
    TwinsImageProcessor(do_resize=False, do_center_crop=False).save_pretrained(model)
    images.mkdir()
    for name, size in (("a", (8, 8)), ("b", (20, 11)), ("c", (20, 11)), ("d", (8, 8))):
        Image.effect_noise(size, 80).save(images / f"{name}.png")
    extract("--model_name_or_path", str(model), "--input_dir", str(images), "--features", "stage1")
    maps = load_file("features/features-00001-of-00001.safetensors")
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "a.png/stage1": (4, 4),
        "b.png/stage1": (5, 10),
        "c.png/stage1": (5, 10),
        "d.png/stage1": (4, 4),
    }
    assert not torch.equal(maps["b.png/stage1"], maps["c.png/stage1"])


def test_interrupted_extraction_resumes(prepared, extract, monkeypatch):
    """If it is killed in the middle of the second file, it leaves no incomplete file, and does not repeat the first."""
    write_table = pyarrow.parquet.write_table
    num_written = 0

    def write_and_die(table, path):
        nonlocal num_written
        if num_written == 1:
            path.write_bytes(b"PAR1 and no more")
            raise KeyboardInterrupt
        num_written += 1
        write_table(table, path)

    with monkeypatch.context() as context:
        context.setattr(pyarrow.parquet, "write_table", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            extract("--shard_size", "25")
    first = Path("features/features-00001-of-00003.parquet")
    assert [path.name for path in Path("features").glob("*.parquet")] == [first.name]
    before = first.stat().st_mtime_ns
    assert len(extract("--shard_size", "25")) == 7
    assert first.stat().st_mtime_ns == before
    resumed = read_features(Path("features"))
    extract("--shard_size", "25", "--output_dir", "again")
    uninterrupted = read_features(Path("again"))
    assert resumed[0] == uninterrupted[0]
    assert np.array_equal(resumed[1], uninterrupted[1])


def test_corrupt_images_are_counted_named_and_left_out(prepared, tmp_path, extract, capsys):
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    whole = (prepared / "images/z/last.png").read_bytes()
    (images / "a.png").write_bytes(whole)
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "long.png").write_bytes(long_png())
    (images / "sub/empty.jpg").write_bytes(b"")
    for features, shard in (("pooled", "1-of-00004.parquet"), ("stage2", "1-of-00004.safetensors")):
        options = ["--input_dir", str(images), "--shard_size", "1", "--features", features, "--output_dir", features]
        for _ in range(2):
            extract(*options)
            printed = capsys.readouterr()
            assert "1 of 4 images have their features in" in printed.out
            assert "Skipped 3 images that cannot be used: cut.png, long.png, sub/empty.jpg." in printed.out
        assert Path(f"{features}/features-0000{shard}").exists()


def test_neighbors_equal_those_of_scikit_learn(prepared, extract, search):
    extract("--shard_size", "7")
    paths, features = read_features(Path("features"))
    reference = NearestNeighbors(n_neighbors=9, metric="cosine").fit(features)
    for index in (3, 58):
        printed = search(prepared / "images" / paths[index], "--top_k", "9")
        distances, indices = reference.kneighbors(features[index : index + 1])
        assert [line.split(maxsplit=1)[1] for line in printed[:-1]] == [paths[other] for other in indices[0]]
        similarities = [float(line.split()[0]) for line in printed[:-1]]
        np.testing.assert_allclose(similarities, 1 - distances[0], atol=1e-4)
        assert printed[0] == f"1.0000  {paths[index]}"
    assert printed[-1] == "Look at neighbors.png."
    sheet = np.asarray(Image.open("neighbors.png").convert("L"))
    assert sheet.shape[1] > sheet.shape[0] > 400
    assert sheet.std() > 20


def test_most_nearest_neighbors_have_the_same_label(extract):
    """This holds even for random weights; by chance, it would be a tenth."""
    extract()
    paths, features = read_features(Path("features"))
    shards = search_features.find_shards(Path("features"))
    same = []
    for path, feature in zip(paths[:-1], features):
        neighbors = search_features.nearest_neighbors(torch.tensor(feature), shards, top_k=2)
        assert neighbors[0][1] == path
        same.append(neighbors[1][1][3] == path[3])
    assert np.mean(same) > 0.5


def test_missing_neighbor_is_reported(prepared, tmp_path, extract, search):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        (images / name).write_bytes((prepared / "images/z/last.png").read_bytes())
    extract("--input_dir", str(images))
    (images / "b.png").unlink()
    assert str(tmp_path) not in Path("features/settings.json").read_text()
    printed = search(images / "a.png")
    assert [line.split()[1] for line in printed[:-1]] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model_name_or_path", "not-here"],
            "error: cannot load not-here: there is no such folder, and on the Hub: ",
        ),
        (["--input_dir", "not-here"], "--input_dir must be a folder of images, but not-here is not a folder"),
        (["--input_dir", "."], "--input_dir must be a folder of images, but . has none"),
        (
            ["--features", "pooled", "stage1"],
            "--features must be pooled, or stages in their order .*'pooled', 'stage1'",
        ),
        (["--features", "stage2", "stage1"], "--features must be pooled, or stages in their order"),
        (["--features", "stage4"], "stage4"),
        (["--shard_size", "0"], "--shard_size must be at least 1, got 0"),
        (["--batch_size", "-1"], "--batch_size must be at least 1, got -1"),
    ],
    ids=["model", "folder", "empty", "mixed", "order", "stage", "shard size", "batch size"],
)
def test_extraction_names_invalid_input_without_a_traceback(extract, options, message):
    with pytest.raises(SystemExit, match=message):
        extract(*options)
    assert not Path("features").exists()


def test_features_of_different_settings_are_not_mixed(prepared, tmp_path, extract, search):
    extract()
    with pytest.raises(
        SystemExit, match="features holds the files of a run with shard_size 256, now 10: give another --output_dir"
    ):
        extract("--shard_size", "10")
    model = tmp_path / "model"
    torch.manual_seed(1)
    randomize(TwinsForImageClassification(tiny_config("pcpvt"))).save_pretrained(model)
    TwinsImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(model)
    with pytest.raises(SystemExit, match="with another model: give"):
        extract("--model_name_or_path", str(model))
    extract("--model_name_or_path", str(model), "--output_dir", "features2")
    randomize(TwinsForImageClassification(tiny_config("pcpvt"))).save_pretrained(model)
    with pytest.raises(SystemExit, match="weights or preprocessing from the model of features2"):
        search(prepared / "images/z/last.png", "--features", "features2")


@pytest.mark.parametrize("name", ["features-00001-of-00002.parquet", "features-00001-of-00002.safetensors"])
def test_damaged_file_is_detected_and_written_again(name, prepared, extract, search, caplog):
    options = ["--shard_size", "30", "--features", "pooled" if name.endswith(".parquet") else "stage3"]
    extract(*options)
    damaged = Path("features", name)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-99] + bytes([whole[-99] ^ 1]) + whole[-98:])
    if name.endswith(".parquet"):
        with pytest.raises(SystemExit, match=r"features has incomplete files: run extract_features\.py again"):
            search(prepared / "images/z/last.png")
    extract(*options)
    assert f"features/{name} or {name}.sha256 is damaged, and is ignored" in caplog.text
    assert "00002-of-00002" not in caplog.text
    assert damaged.read_bytes() == whole


def test_features_of_moved_folders_are_resumed_and_found(prepared, tmp_path, extract, search):
    extract("--shard_size", "30")
    kept = Path("features/features-00001-of-00002.parquet")
    kept, before = Path("moved/again") / kept, kept.stat().st_mtime_ns
    Path("features/features-00002-of-00002.parquet").unlink()
    shutil.move("features", "moved/again/features")
    shutil.copytree(prepared / "model", "moved/model")
    shutil.copytree(prepared / "images", "moved/images")
    folder = ["--output_dir", "moved/again/features", "--input_dir", "moved/images"]
    extract("--shard_size", "30", *folder, "--model_name_or_path", "moved/model")
    assert kept.stat().st_mtime_ns == before
    origins = json.loads(Path("moved/again/features/settings.json").read_text())["origins"]
    assert origins == {"model_name_or_path": "../../model", "input_dir": "../../images"}
    shutil.move("moved", "elsewhere")
    printed = search(Path("elsewhere/images/z/last.png"), "--features", "elsewhere/again/features")
    assert printed[0] == "1.0000  z/last.png"


def test_features_of_changed_images_are_not_mixed(prepared, tmp_path, extract):
    images = shutil.copytree(prepared / "images", tmp_path / "images")
    extract("--input_dir", str(images))
    content = (images / "z/last.png").read_bytes()
    (images / "z/last.png").write_bytes(content[:-1] + b"x")
    with pytest.raises(SystemExit, match="holds the files of a run with other images: give another --output_dir"):
        extract("--input_dir", str(images))


def test_run_ends_with_one_sentence_if_the_system_cannot_read_an_image(extract, monkeypatch):
    with monkeypatch.context() as context:
        fail_to_read("00_0.png", errno.ESTALE, context)
        with pytest.raises(SystemExit, match=r"00_0\.png could not be read in 2 tries \(Stale file handle\)"):
            extract()
    extract()
    assert read_features(Path("features"))[0][0] == "00_0.png"


def test_contact_sheet_replaces_only_the_default_one(prepared, extract, search):
    query = prepared / "images/z/last.png"
    extract()
    for _ in range(2):
        assert search(query)[-1] == "Look at neighbors.png."
    assert search(query, "--contact_sheet", "new.png")[-1] == "Look at new.png."
    Path("thesis.png").write_text("thesis")
    Path("link.png").symlink_to("nowhere.png")
    for name in ("new.png", "thesis.png", "link.png", "features"):
        with pytest.raises(
            SystemExit, match=f"^error: --contact_sheet must be a new file, but {name} exists: remove it"
        ):
            search(query, "--contact_sheet", name)
    with pytest.raises(SystemExit, match=r"^error: --contact_sheet must be in an existing folder, got none/a\.png\.$"):
        search(query, "--contact_sheet", "none/a.png")
    assert Path("thesis.png").read_text() == "thesis"


def test_neighbors_are_printed_even_if_they_cannot_be_drawn(prepared, extract, monkeypatch, capsys):
    def fail(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    extract()
    capsys.readouterr()
    monkeypatch.setattr(search_features, "write_atomically", fail)
    arguments = ["--features", "features", "--query", str(prepared / "images/z/last.png")]
    monkeypatch.setattr(sys, "argv", ["search_features.py", *arguments])
    message = r"^error: neighbors\.png cannot be written \(Permission denied\): give another --contact_sheet\.$"
    with pytest.raises(SystemExit, match=message):
        search_features.main()
    assert capsys.readouterr().out.startswith("1.0000  z/last.png\n")


def test_only_the_first_neighbors_are_drawn(prepared, extract, search, monkeypatch):
    drawn = []
    monkeypatch.setattr(search_features, "MAX_DRAWN", 7)
    monkeypatch.setattr(search_features, "draw_contact_sheet", lambda query, folder, some, path: drawn.extend(some))
    extract()
    printed = search(prepared / "images/z/last.png", "--top_k", "50")
    assert len(printed) == 51
    assert printed[-1] == "Look at neighbors.png, which shows the first 7 of 50."
    assert [path for _, path in drawn] == [line.split(maxsplit=1)[1] for line in printed[:7]]


def test_models_that_lack_the_features_are_refused(tmp_path, extract):
    """A backbone has no final layer norm, so its vectors would depend on random weights."""
    TwinsBackbone(tiny_config("pcpvt")).save_pretrained(tmp_path / "backbone")
    TwinsImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(tmp_path / "backbone")
    model = ["--model_name_or_path", str(tmp_path / "backbone")]
    with pytest.raises(
        SystemExit, match=r"^error: \S+backbone holds a TwinsBackbone, but a Twins model with its final"
    ):
        extract(*model)
    assert not Path("features").exists()
    assert "features-00001-of-00001.safetensors" in extract(*model, "--features", "stage2")


def test_folder_of_a_running_script_is_not_modified(extract):
    with (
        exclusive_folder(Path("features")),
        pytest.raises(
            SystemExit, match="Another run is writing to features: wait for it, or give another --output_dir"
        ),
    ):
        extract()
    assert not Path("features").exists()


def test_search_names_invalid_input_without_a_traceback(prepared, extract, search):
    query = prepared / "images/z/last.png"
    with pytest.raises(SystemExit, match=r"features has no settings\.json"):
        search(query)
    extract("--shard_size", "25")
    for options, message in (
        (["--top_k", "0"], "--top_k must be at least 1, got 0"),
        (["--query", "not-here.png"], "error: .*not-here.png"),
        (["--query", "features/settings.json"], "error: features/settings.json cannot be decoded: it is not an image"),
    ):
        with pytest.raises(SystemExit, match=message):
            search(query, *options)
    Path("features/features-00002-of-00003.parquet").unlink()
    with pytest.raises(SystemExit, match=r"features has 2 of 3 files: run extract_features\.py again"):
        search(query)
    Path("other").mkdir()
    origins = '{"model_name_or_path": "x"}'
    for damaged in (
        "",
        "[]",
        '{"model": "x", "top_k": 5}',
        f'{{"model": "x", "features": ["pooled"], "origins": {origins}}}',
    ):
        Path("other/settings.json").write_text(damaged)
        with pytest.raises(
            SystemExit, match=r"^error: .*other(/settings\.json (is damaged|must hold)|, whose settings are)"
        ):
            search(query, "--features", "other")
    extract("--features", "stage1", "--output_dir", "maps")
    with pytest.raises(SystemExit, match="maps holds maps of stage1: extract with --features pooled"):
        search(query, "--features", "maps")
    assert not Path("neighbors.png").exists()
