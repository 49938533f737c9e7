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
"""The API of the segmentation Space, started with `python app.py`, and called with gradio_client."""

import csv
import json
import re
import runpy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_formats import convert_checkpoint
from digit_scenes import digit_scene
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hostile_files import archive, saved, write_unusable, write_unusable_archives
from loopback_hub import serve_hub
from PIL import Image
from source_checkpoints import TINY, source_weights
from space_server import SPACES, digit_image, pixels, run_client_example, save_published, serve
from train_digit_models import MIN_DIGIT_SIDE, split_handwriting
from transformers import SegformerImageProcessor
from twins_space.models import LoadedModel, ModelError

from hf_twins import TwinsForSemanticSegmentation, TwinsImageProcessor
from hf_twins.checkpoints import published


SPACE = SPACES / "semantic_segmentation"
MODEL = "twins-svt-digit-scenes"
SIZES = ((64, 96), (64, 64), (80, 64))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(SPACE, tmp_path_factory.mktemp("segmentation") / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> Client:
    return server.client()


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Image.Image, np.ndarray]]:
    """Scenes of digits that the model was not trained on."""
    _, held_out = split_handwriting(seed=0)
    scenes = [
        digit_scene(200_000 + index, size, handwriting=held_out, min_side=MIN_DIGIT_SIDE)
        for index, size in enumerate(SIZES * 8)
    ]
    return [(scene.image, scene.mask) for scene in scenes]


@pytest.fixture(scope="module")
def segment_locally():
    """A function that computes the mask by the same model without a server."""
    model = TwinsForSemanticSegmentation.from_pretrained(SPACE / "models" / MODEL).eval()
    processor = TwinsImageProcessor.from_pretrained(SPACE / "models" / MODEL)

    def segment(image: Image.Image) -> np.ndarray:
        with torch.inference_mode():
            logits = model(**processor(image, return_tensors="pt")).logits
        return torch.nn.functional.interpolate(logits, image.size[::-1], mode="bilinear")[0].argmax(0).numpy()

    return segment


@pytest.mark.parametrize("page", ["README.md", "app.py"])
def test_example_of_a_call_from_python_runs(page, server, scenes, tmp_path, capsys):
    scenes[0][0].save(tmp_path / "scene.png")
    run_client_example(SPACE / page, server, tmp_path / "scene.png")
    assert re.fullmatch(r"\[\[.+\]\] .+\.png", capsys.readouterr().out.splitlines()[-1])


def test_segment_returns_the_output_of_the_model(client, scenes, segment_locally, tmp_path):
    for image, truth in scenes[:3]:
        image.save(tmp_path / "scene.png")
        overlay, legend, mask, details = client.predict(handle_file(tmp_path / "scene.png"), api_name="/segment")
        expected = segment_locally(image)
        with Image.open(mask) as file:
            assert file.format == "PNG"
            found = np.asarray(file)
        assert (found == expected).mean() > 0.999
        # Most of the ink is segmented correctly.
        assert ((found > 0) & (truth > 0)).sum() > 0.7 * (truth > 0).sum()
        assert legend["headers"] == ["color", "class", "pixels", "%"]
        assert sum(row[2] for row in legend["data"]) == expected.size
        assert sum(row[3] for row in legend["data"]) == pytest.approx(100, abs=0.1)
        for color, name, count, _ in legend["data"]:
            index = 0 if name == "background" else 1 + int(name.removeprefix("digit "))
            assert count == pytest.approx((expected == index).sum(), abs=5)
            # The background is not painted.
            assert re.fullmatch("#[0-9a-f]{6}" if index else "", color)
        assert pixels(overlay).shape == (*expected.shape, 3)
        assert details.startswith(f"{MODEL}: input of ")


def test_opacity_goes_from_the_image_to_the_mask(client, scenes, tmp_path):
    image, _ = scenes[0]
    image.save(tmp_path / "scene.png")
    clear, _, mask, _ = client.predict(handle_file(tmp_path / "scene.png"), opacity=0, api_name="/segment")
    assert np.array_equal(pixels(clear), np.asarray(image, dtype=float))
    opaque, *_ = client.predict(handle_file(tmp_path / "scene.png"), opacity=1, api_name="/segment")
    with Image.open(mask) as file:
        colors, is_background = np.asarray(file.convert("RGB"), dtype=float), np.asarray(file) == 0
    # The background, the first class, is not painted.
    assert np.array_equal(pixels(opaque), np.where(is_background[..., None], pixels(clear), colors))


def test_batch_returns_a_table_and_the_same_as_csv(client, scenes, tmp_path):
    members = {f"{index}.png": saved(image, "PNG") for index, (image, _) in enumerate(scenes[:6])}
    (tmp_path / "scenes.zip").write_bytes(archive(members | {"broken.png": b"no image"}))
    table, download = client.predict([handle_file(tmp_path / "scenes.zip")], api_name="/segment_batch")
    assert table["headers"] == ["file", "class", "pixels", "%", "problem"]
    for name, (image, _) in zip(members, scenes):
        assert sum(row[2] for row in table["data"] if row[0] == name) == image.width * image.height
    assert "not a supported image" in table["data"][-1][4]
    with Path(download).open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(table["data"])


def test_invalid_files_give_one_sentence_and_the_server_keeps_running(server, client, tmp_path):
    unusable = write_unusable(tmp_path, digit_image(3))
    archives = write_unusable_archives(tmp_path, digit_image(3))
    digit_image(3).save(tmp_path / "digit.png")
    client.predict(handle_file(tmp_path / "digit.png"), api_name="/segment")
    before = server.megabytes()
    for path, sentence in unusable.values():
        with pytest.raises(AppError, match=sentence):
            client.predict(handle_file(path), api_name="/segment")
    for name in ("traversal.zip", "bomb.zip"):
        path, sentence = archives[name]
        with pytest.raises(AppError, match=sentence):
            client.predict([handle_file(path)], api_name="/segment_batch")
    assert server.megabytes() - before < 50
    assert client.predict(handle_file(tmp_path / "digit.png"), api_name="/segment")[1]["data"]


def test_images_of_all_sizes_are_segmented(client, tmp_path):
    for size in ((1, 1), (300, 20), (333, 257)):
        Image.effect_noise(size, 80).save(tmp_path / "noise.png")
        *_, mask, _ = client.predict(handle_file(tmp_path / "noise.png"), resolution=150, api_name="/segment")
        with Image.open(mask) as file:
            assert file.size == size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": [MODEL]}, "Model must be one of twins-svt-digit-scenes, got "),
        ({"resolution": None}, "Input resolution must be a number from 50 to 200, got None"),
        ({"opacity": "1"}, "Opacity of the overlay must be a number from 0 to 1, got '1'"),
    ],
    ids=["models", "resolution", "opacity"],
)
def test_bad_arguments_get_a_sentence(client, tmp_path, arguments, message):
    digit_image(3).save(tmp_path / "digit.png")
    with pytest.raises(AppError, match=message):
        client.predict(handle_file(tmp_path / "digit.png"), **arguments, api_name="/segment")


def test_describe_model_lists_the_models_in_memory(client):
    said = client.predict(MODEL, api_name="/describe_model")
    assert said.startswith(f"**{MODEL}** is loaded: 0.2 M parameters, 11 labels, 64 pixels. In memory: {MODEL}.")


@pytest.mark.slow
def test_simultaneous_clients_get_their_own_answers(server, scenes, segment_locally, tmp_path):
    expected = [segment_locally(image) for image, _ in scenes]
    for index, (image, _) in enumerate(scenes):
        image.save(tmp_path / f"{index}.png")
    clients = list(ThreadPoolExecutor(8).map(lambda _: server.client(), scenes))

    def ask(index: int) -> float:
        _, _, mask, _ = clients[index].predict(handle_file(tmp_path / f"{index}.png"), api_name="/segment")
        with Image.open(mask) as file:
            return float((np.asarray(file) == expected[index]).mean())

    with ThreadPoolExecutor(len(scenes)) as pool:
        assert min(pool.map(ask, range(len(scenes)))) > 0.999


def test_model_with_another_image_processor_loads_and_one_that_crops_does_not(scenes, tmp_path):
    load = runpy.run_path(str(SPACE / "app.py"))["load"]
    TwinsForSemanticSegmentation.from_pretrained(SPACE / "models" / MODEL).save_pretrained(tmp_path)
    processor = SegformerImageProcessor(size={"shortest_edge": 40, "longest_edge": 160})
    processor.save_pretrained(tmp_path)
    image, _ = scenes[0]
    prepared = LoadedModel("another", *load(str(tmp_path))).prepare(image)
    assert torch.equal(prepared, processor(image, return_tensors="pt").pixel_values[0])
    TwinsImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"crops images \(do_center_crop=True\), .* choose another model"):
        load(str(tmp_path))


@pytest.fixture
def app():
    """The app's module, without a server."""
    return SimpleNamespace(**runpy.run_path(str(SPACE / "app.py")))


def test_requests_at_once_resize_one_at_a_time(app, monkeypatch):
    shelf, _ = app.find_models([])
    segmentation, model = app.Segmentation(shelf), shelf.get(MODEL)
    running, most = 0, 0

    def likeliest_classes(*arguments):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return torch.zeros(8, 8)

    monkeypatch.setitem(app.Segmentation.find_mask.__globals__, "likeliest_classes", likeliest_classes)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: segmentation.find_mask(model, Image.new("RGB", (64, 64)), 100), range(4)))
    assert most == 1


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site with the published model, and the model's entry in the table."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with serve_hub(files=tmp_path / "files") as hub, hub.in_process(tmp_path / "home"):
        table, entry = save_published(tmp_path / "files", hub.endpoint)
        monkeypatch.setattr(published, "PUBLISHED_FILE", table)
        yield SimpleNamespace(hub=hub, table=table, entry=entry)


@pytest.mark.slow
def test_published_model_is_downloaded_checked_and_converted(app, site, monkeypatch):
    shelf, notice = app.find_models([])
    assert shelf.names == [app.DEFAULT, MODEL]
    assert shelf.title(app.DEFAULT) == f"{app.DEFAULT}: 150 ADE20K classes"
    # The page starts with the digit model while the published one is downloaded.
    default, example, _, notice = app.first_answer(app.Segmentation(shelf), notice)
    assert (default, example.name) == (MODEL, "scene_1.jpg")
    assert notice == "An ADE20K model is being downloaded: reload this page later."
    is_ready = threading.Event()
    app.prepare(shelf, app.DEFAULT, is_ready)
    assert is_ready.is_set()

    # From then on, the page starts with the published model, also without a network.
    loaded = shelf.get(app.DEFAULT)
    # This is undone before `site`; in the reverse order, all later tests would be online.
    with monkeypatch.context() as patch:
        patch.setattr(app.models.constants, "HF_HUB_OFFLINE", True)
        shelf, notice = app.find_models([])
        assert notice == "Offline: other ADE20K models cannot be downloaded."
        default, example, answer, _ = app.first_answer(app.Segmentation(shelf), notice)
        assert (default, example.name) == (app.DEFAULT, "china.jpg")
    # The result must equal that of the conversion to a folder.
    weights = source_weights("mmseg-semantic-fpn", TINY["svt"], num_classes=150)
    expected = convert_checkpoint(weights, {}).model.eval()
    for model in (loaded, shelf.get(app.DEFAULT)):
        assert model.processor.size.shortest_edge == 512
        assert model.labels[0] == "wall"
        pixel_values = torch.rand(3, 64, 64)
        assert torch.equal(model(pixel_values).logits, expected(pixel_values[None]).logits[0].detach())
    assert sum(row[2] for row in answer[1]["data"]) == 640 * 427


def test_published_file_with_another_hash_is_refused(app, site, caplog):
    site.entry["sha256_prefix"] = "00000000"
    site.table.write_text(json.dumps([site.entry]))
    shelf, _ = app.find_models([])
    with pytest.raises(ModelError, match=f"The model {app.DEFAULT} cannot be loaded"):
        shelf.get(app.DEFAULT)
    assert 'expected "00000000"' in caplog.text


def test_page_without_a_network_has_only_the_digit_model(app):
    shelf, notice = app.find_models([])
    assert shelf.names == [MODEL]
    assert notice == "Offline: the ADE20K models cannot be downloaded."


def test_bundled_model_reaches_the_result_in_its_card():
    folder = SPACE / "models" / MODEL
    assert (folder / "model.safetensors").stat().st_size < 2**20
    mean_iou = float(re.search(r"\| ([\d.]+)% \|", (folder / "README.md").read_text())[1])
    assert mean_iou > 50
