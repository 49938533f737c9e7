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
"""The API of the classification Space, started with `python app.py`, and called with gradio_client."""

import asyncio
import base64
import csv
import importlib.util
import json
import re
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_twins._utils.command_line import parse_arguments, run

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hostile_files import archive, saved, write_unusable, write_unusable_archives, write_unusual
from loopback_hub import serve_hub
from PIL import Image
from space_server import SPACES, digit_image, digit_label, pixels, run_client_example, serve
from testing_utils import save_small_svt, tiny_config
from twins_space.models import ModelError, ModelShelf

from hf_twins import (
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    attention_maps,
    grad_cam,
)


SPACE = SPACES / "image_classification"
MODELS = ("twins-svt-digits", "twins-pcpvt-digits")
# Indices of scikit-learn's digits: one of each, which both models classify correctly.
DIGITS = range(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(SPACE, tmp_path_factory.mktemp("classification") / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> Client:
    return server.client()


@pytest.fixture
def digit(tmp_path) -> Path:
    digit_image(3).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


@pytest.fixture(scope="module")
def local_models() -> dict[str, tuple[TwinsForImageClassification, TwinsImageProcessor]]:
    """The same models, without a server."""
    return {
        name: (
            TwinsForImageClassification.from_pretrained(SPACE / "models" / name).eval(),
            TwinsImageProcessor.from_pretrained(SPACE / "models" / name),
        )
        for name in MODELS
    }


def probabilities(model, processor, image: Image.Image, side: int = 32) -> dict[str, float]:
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    with torch.inference_mode():
        logits = model(**processor(image.convert("RGB"), return_tensors="pt", **sizes)).logits[0]
    return {model.config.id2label[index]: value for index, value in enumerate(logits.softmax(0).tolist())}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("resolution", "side"), [(100, 32), (150, 48)])
def test_classify_returns_the_output_of_the_model(client, local_models, digit, name, resolution, side):
    label, seen, details = client.predict(handle_file(digit), name, resolution, api_name="/classify")
    expected = probabilities(*local_models[name], digit_image(3), side)
    assert label["label"] == max(expected, key=expected.get) == digit_label(3)
    assert len(label["confidences"]) == 5
    for each in label["confidences"]:
        assert each["confidence"] == pytest.approx(expected[each["label"]], abs=1e-4)
    assert re.fullmatch(rf"{name}: input of {side} x {side} pixels, \d+ ms", details)
    assert pixels(seen).shape == (side * -(-320 // side), side * -(-320 // side), 3)


@pytest.mark.parametrize("page", ["README.md", "app.py"])
def test_example_of_a_call_from_python_runs(page, server, digit, capsys):
    run_client_example(SPACE / page, server, digit)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{digit_label(3)} 0.")


@pytest.mark.slow
def test_model_of_another_task_is_refused(tmp_path):
    """Its classifier would have random weights."""
    TwinsForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path)
    TwinsImageProcessor().save_pretrained(tmp_path)
    shelf = ModelShelf({"another": str(tmp_path)}, runpy.run_path(str(SPACE / "app.py"))["load"])
    with pytest.raises(
        ModelError, match="The model another cannot be loaded: it does not exist, is of another kind, or"
    ):
        shelf.get("another")


def test_classify_needs_only_an_image(client, tmp_path):
    for index in DIGITS:
        digit_image(index).save(tmp_path / "digit.png")
        label, *_ = client.predict(handle_file(tmp_path / "digit.png"), api_name="/classify")
        assert label["label"] == digit_label(index)


def test_seen_crop_is_exact(client, tmp_path):
    wide = Image.new("L", (192, 96), 90)
    wide.paste(digit_image(3), (48, 0))
    wide.save(tmp_path / "wide.png")
    _, seen, _ = client.predict(handle_file(tmp_path / "wide.png"), api_name="/classify")
    crop = wide.resize((64, 32), Image.Resampling.BICUBIC).crop((16, 0, 48, 32)).convert("RGB")
    # Each pixel is shown as a square of 10 x 10 pixels.
    assert np.abs(pixels(seen)[5::10, 5::10] - np.asarray(crop, dtype=float)).max() <= 3


def cells(overlay: str, side: int) -> np.ndarray:
    """The mean brightness of each of `side x side` squares of an image."""
    gray = pixels(overlay).mean(-1)
    size = len(gray) // side
    return gray.reshape(side, size, side, size).mean((1, 3)).flatten()


def test_explain_returns_the_maps_of_the_model(client, local_models, digit):
    model, processor = local_models[MODELS[0]]
    inputs = processor(digit_image(3).convert("RGB"), return_tensors="pt")["pixel_values"]
    cam = grad_cam(model, inputs, stage="stage2")[0]
    overlay, caption = client.predict(handle_file(digit), stage="stage2", opacity=1, api_name="/explain")
    assert caption == "Grad-CAM of stage2, 8 x 8 values of 4 x 4 pixels"
    brightness = cells(overlay, 8)
    assert np.corrcoef(brightness, cam.flatten().numpy())[0, 1] > 0.8
    arguments = {"method": "Attention", "stage": "stage1", "layer": "2", "opacity": 1}
    overlay, caption = client.predict(handle_file(digit), **arguments, api_name="/explain")
    assert caption == "Attention of stage1, 4 x 4 values of 8 x 8 pixels"
    received = attention_maps(model, inputs)[1].received()[0].mean(0)
    brightness = cells(overlay, 4)
    assert np.corrcoef(brightness, received.flatten().numpy())[0, 1] > 0.8


def test_opacity_goes_from_the_image_to_the_map(client, digit):
    _, seen, _ = client.predict(handle_file(digit), api_name="/classify")
    shown = {
        opacity: pixels(client.predict(handle_file(digit), opacity=opacity, api_name="/explain")[0])
        for opacity in (0, 0.5, 1)
    }
    assert np.array_equal(shown[0], pixels(seen))
    assert np.abs(shown[0.5] - (shown[0] + shown[1]) / 2).max() <= 1


def test_compare_returns_the_output_of_each_model(client, local_models, digit):
    results = client.predict(handle_file(digit), *MODELS, api_name="/compare")
    for name, label, overlay, details in zip(MODELS, results[0::3], results[1::3], results[2::3]):
        expected = probabilities(*local_models[name], digit_image(3))
        assert label["confidences"][0]["confidence"] == pytest.approx(max(expected.values()), abs=1e-4)
        assert pixels(overlay).shape == (320, 320, 3)
        assert details.startswith(name)


def test_describe_model_lists_the_models_in_memory(client):
    said = client.predict(MODELS[1], api_name="/describe_model")
    assert said.startswith(f"**{MODELS[1]}** is loaded: 0.2 M parameters, 10 labels, 32 x 32 pixels. In memory: ")


def test_batch_returns_a_table_and_the_same_as_csv(client, tmp_path):
    members = {f"folder/{index}.png": saved(digit_image(index), "PNG") for index in range(12)}
    (tmp_path / "digits.zip").write_bytes(archive({**members, "=1+1.png": b"no image"}))
    digit_image(18).save(tmp_path / "eight.png")
    files = [handle_file(tmp_path / "digits.zip"), handle_file(tmp_path / "eight.png")]
    job = client.submit(files, api_name="/classify_batch")
    table, download = job.result(timeout=120)
    assert table["headers"] == ["file", "label", "probability", "problem"]
    rows = table["data"]
    # Names of members include their folders and the archive, which distinguishes them from other files.
    assert [row[0] for row in rows] == [*(f"digits.zip/{name}" for name in (*members, "=1+1.png")), "eight.png"]
    assert [row[1] for row in rows] == [*map(digit_label, range(12)), "", digit_label(18)]
    assert "not a supported image" in rows[12][3]
    # The table grew during the run.
    assert len(job.outputs()) > 1
    with Path(download).open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == table["headers"]
    assert read[1][:2] == ["digits.zip/folder/0.png", digit_label(0)]


def fails(client: Client, *arguments, **options) -> str:
    with pytest.raises(AppError) as caught:
        client.predict(*arguments, **options)
    message = str(caught.value)
    assert not re.search(r"Traceback|/tmp|/home|/usr|\.py\b", message)
    return message


def test_invalid_files_give_one_sentence_and_the_server_keeps_running(server, client, digit, tmp_path):
    image = digit_image(3, side=200)
    unusable, unusual = write_unusable(tmp_path, image), write_unusual(tmp_path, image)
    archives = write_unusable_archives(tmp_path, image)
    Image.new("L", (1, 1)).save(tmp_path / "pixel.png")

    def send_all() -> None:
        for path, sentence in unusable.values():
            assert sentence in fails(client, handle_file(path), api_name="/classify")
        for path, sentence in archives.values():
            if path.name == "broken.zip":
                # Such a file is treated as one that is not an image.
                continue
            assert sentence in fails(client, [handle_file(path)], api_name="/classify_batch")
        for path in unusual.values():
            assert client.predict(handle_file(path), api_name="/classify")[0]["label"] == digit_label(3), path.name
        assert client.predict(handle_file(tmp_path / "pixel.png"), api_name="/classify")[0]["label"]

    # Call it once, so that everything that is loaded on first use is loaded.
    client.predict(handle_file(digit), api_name="/classify")
    before = server.megabytes()
    for _ in range(2):
        send_all()
    after = server.megabytes()
    print(f"\nmemory before {before:.0f} MB, after {after:.0f} MB")
    assert after - before < 50
    assert client.predict(handle_file(digit), api_name="/classify")[0]["label"] == digit_label(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "Attention", "layer": "7"}, "stage3 of this model has the layers 1 to 2"),
        ({"layer": ["last"]}, None),
        ({"model_name": "../../etc"}, "Model must be one of twins-svt-digits, twins-pcpvt-digits, got '../../etc'"),
        ({"model_name": [MODELS[0]]}, r"Model must be one of .*, got \['twins-svt-digits'\]"),
        ({"resolution": 100_000}, "Input resolution must be a number from 50 to 200, got 100000"),
        ({"resolution": "100"}, "Input resolution must be a number from 50 to 200, got '100'"),
        ({"opacity": None}, "Opacity of the overlay must be a number from 0 to 1, got None"),
        ({"method": ["Grad-CAM"]}, "Explanation must be one of Grad-CAM, Attention, Attention rollout, got "),
        ({"stage": "stage9"}, f"{MODELS[0]} has stage1, stage2, stage3.*: choose one of these"),
        ({"stage": {"a": 1}}, f"{MODELS[0]} has stage1, stage2, stage3.*: choose one of these"),
    ],
    ids=[
        "layer",
        "layers",
        "model",
        "models",
        "resolution",
        "text",
        "opacity",
        "methods",
        "stage",
        "stages",
    ],
)
def test_invalid_arguments_give_one_sentence(client, digit, arguments, message):
    if message is None:
        # Layers count for attention alone.
        assert client.predict(handle_file(digit), **arguments, api_name="/explain")[1].startswith("Grad-CAM")
    else:
        assert re.search(message, fails(client, handle_file(digit), **arguments, api_name="/explain"))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "null", "[100]"])
@pytest.mark.parametrize(
    ("endpoint", "data"),
    [
        ("classify", '[{image}, "{model}", {number}]'),
        ("explain", '[{image}, "{model}", {number}, "Grad-CAM", "stage1", "last", 0.5]'),
        ("compare", '[{image}, "{model}", "{model}", {number}]'),
        ("classify_batch", '[[{image}], "{model}", {number}]'),
    ],
)
def test_values_that_are_not_numbers_give_one_sentence(server, digit, endpoint, data, number):
    """Sent as text, because clients refuse to send NaN."""
    url = f"{server.url}/gradio_api"
    with digit.open("rb") as file:
        (path,) = httpx.post(f"{url}/upload", files={"files": file}, trust_env=False).json()
    image = json.dumps({"path": path, "meta": {"_type": "gradio.FileData"}})
    body = f'{{"data": {data.format(image=image, model=MODELS[0], number=number)}}}'
    headers = {"Content-Type": "application/json"}
    event = httpx.post(f"{url}/call/{endpoint}", content=body, headers=headers, trust_env=False).json()["event_id"]
    answer = httpx.get(f"{url}/call/{endpoint}/{event}", trust_env=False, timeout=60).text
    assert "Input resolution must be a number from 50 to 200, got " in answer


def test_missing_image_gives_one_sentence(client):
    assert "There is no image yet" in fails(client, None, api_name="/classify")
    assert "There is no image in these files" in fails(client, [], api_name="/classify_batch")


def test_files_of_the_server_cannot_be_read(server):
    def get(path: str) -> httpx.Response:
        return httpx.get(f"{server.url}{path}", trust_env=False, follow_redirects=True)

    app = SPACE / "app.py"
    for path in (app, SPACE / "README.md", SPACE / "models" / MODELS[0] / "config.json", "/etc/passwd", server.log):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file=../../../../../../..", "/static/../"):
            response = get(f"{prefix}{path}")
            assert response.status_code in (403, 404, 405), f"{prefix}{path}: {response.status_code}"
    for path in ("/etc/passwd", str(app)):
        payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [payload, MODELS[0], 100], "fn_index": None}
        response = httpx.post(f"{server.url}/gradio_api/call/classify", json=body, trust_env=False)
        answer = get(f"/gradio_api/call/classify/{response.json()['event_id']}").text
        assert "event: error" in answer
        # The reason is given in one sentence, not in a traceback.
        assert re.search(r'"error": "[^"\\]+"', answer), answer
        assert "root:" not in answer
        assert "Traceback" not in answer


def test_assistants_can_call_the_endpoints(server, digit):
    """The client is that of the Model Context Protocol's own library."""
    pytest.importorskip("mcp", reason="gradio[mcp] is not installed")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    def sent(content: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    async def call() -> tuple[dict[str, Any], list[Any]]:
        async with (
            streamable_http_client(f"{server.url}/gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            images = (sent(digit.read_bytes()), sent(b"no image"))
            return tools, [await session.call_tool("classify", {"image": image}) for image in images]

    tools, (answer, failure) = asyncio.run(call())
    assert set(tools) == {"classify", "explain", "compare", "classify_batch", "describe_model"}
    # Assistants get the docstrings as descriptions.
    assert tools["classify"].description.startswith("Classify an image with a Twins model.")
    assert "percent" in tools["classify"].inputSchema["properties"]["resolution"]["description"]
    assert tools["classify"].inputSchema["required"] == ["image"]
    assert not answer.isError
    assert digit_label(3) in answer.content[0].text
    assert failure.isError
    assert "This is not a supported image" in failure.content[0].text


def test_page_and_configuration_reveal_no_paths_of_the_server(server):
    for path in ("/", "/config", "/gradio_api/info"):
        content = httpx.get(f"{server.url}{path}", trust_env=False).text
        assert str(SPACES) not in content, path
        assert "Traceback" not in content


def test_log_has_no_url_with_a_token(server):
    assert "monitoring" not in server.log.read_text()


@pytest.fixture
def app():
    """The app's module, without a server."""
    spec = importlib.util.spec_from_file_location("classification_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_labels_with_the_same_name_are_distinguished(app):
    labels = ["crane", "dog", "crane"]
    logits = torch.tensor([3.0, 1.0, 2.0])
    for problem_type, scores in ((None, logits.softmax(-1)), ("multi_label_classification", logits.sigmoid())):
        config = tiny_config(num_labels=3, problem_type=problem_type)
        model = SimpleNamespace(labels=labels, model=SimpleNamespace(config=config))
        answer = app.Classification(None).top_labels(model, SimpleNamespace(logits=logits))
        assert list(answer) == ["crane (0)", "crane (2)", "dog"]
        assert list(answer.values()) == pytest.approx(scores[[0, 2, 1]].tolist())


def test_selector_lists_the_available_models(app, monkeypatch, tmp_path):
    monkeypatch.setattr(app.models, "hub_answers", lambda: False)
    shelf, said = app.find_models([])
    assert tuple(shelf.names) == MODELS
    assert shelf.title(MODELS[0]) == "twins-svt-digits: 10 digits"
    assert said == "Offline: the Hub cannot be reached, so none of the published models can be chosen."

    # Cached models and the models given by the user come first.
    monkeypatch.setattr(app.models, "is_cached", lambda repo_id: "svt_small" in repo_id)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "twins", "id2label": {"0": "a", "1": "b"}}')
    shelf, said = app.find_models(["somebody/twins", str(tmp_path / "mine")])
    assert list(shelf.names) == ["somebody/twins", "mine", "twins-svt-small", *MODELS]
    assert shelf.locations["twins-svt-small"] == "timm/twins_svt_small.in1k"
    assert shelf.title("twins-svt-small") == "twins-svt-small: 1,000 ImageNet classes"
    assert shelf.title("mine") == "mine: 2 labels"
    assert "so 1 of the published models" in said

    monkeypatch.setattr(app.models, "hub_answers", lambda: True)
    shelf, said = app.find_models([])
    assert len(shelf.names) == 8
    assert shelf.names[0] == "twins-svt-small"
    assert "Offline" not in said


def test_published_model_answers_a_photograph_on_the_first_visit(app, tmp_path):
    """`timm/twins_svt_small.in1k` of the loopback Hub has random weights."""
    small_svt = save_small_svt(tmp_path / "timm")
    with serve_hub({"timm/twins_svt_small.in1k": small_svt}) as hub, hub.in_process(tmp_path / "home"):
        shelf, notice = app.find_models([])
        assert notice == "Published models are downloaded when you first choose them."
        default, example, answer, notice = app.first_answer(app.Classification(shelf), notice)
        model = shelf.get("twins-svt-small")
        labels = model(model.prepare(app.uploads.read_upload(example))).logits.softmax(-1)
    assert (default, example.name) == ("twins-svt-small", "chelsea.jpg")
    assert len(answer[0]) == 5
    assert max(answer[0].values()) == pytest.approx(labels.max().item(), abs=1e-6)
    assert list(app.examples_for(example))[:4] == ["cat", "coffee", "astronaut", "digit 7"]


def test_default_model_that_cannot_be_loaded_is_replaced_with_a_notice(app, tmp_path):
    (tmp_path / "mine").mkdir()
    shelf, notice = app.find_models([str(tmp_path / "mine")])
    default, example, answer, notice = app.first_answer(app.Classification(shelf), notice)
    assert (default, example.name) == (MODELS[0], "digit_7.png")
    assert next(iter(answer[0])) == "digit 7"
    assert notice.startswith("mine could not be used, so the page starts with another model.")


def save_model(folder: Path, **fields) -> str:
    TwinsForImageClassification(tiny_config(**fields)).save_pretrained(folder)
    TwinsImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_default_that_the_page_cannot_use_is_replaced_and_said_so(app, tmp_path):
    shelf, notice = app.find_models([save_model(tmp_path / "gray", num_channels=1)])
    default, *_, notice = app.first_answer(app.Classification(shelf), notice)
    assert default == MODELS[0]
    assert notice.startswith("gray could not be used, so the page starts with another model.")


@pytest.mark.parametrize("num_stages", [1, 2])
def test_page_has_the_stages_of_the_model(app, tmp_path, num_stages):
    names = ("hidden_sizes", "num_attention_heads", "depths", "mlp_ratios", "sr_ratios")
    fields = {name: tiny_config().to_dict()[name][:num_stages] for name in names}
    shelf, notice = app.find_models([save_model(tmp_path / "small", **fields), str(SPACE / "models" / MODELS[0])])
    actions = app.Classification(shelf)
    default, example, answer, _ = app.first_answer(actions, notice)
    assert default == "small"
    stage_update = answer[5]
    assert (stage_update["choices"], stage_update["value"]) == (["stage1", "stage2"][:num_stages], "stage1")
    # A stage that was chosen for a larger model.
    image = app.uploads.read_upload(example)
    *_, caption, stage_update, _, _ = actions.answer(image, "small", 100, "Grad-CAM", "stage3", "last", 0.5)
    assert stage_update["value"] == "stage1"
    assert "of stage1" in caption
    assert len(actions.compare(image, "small", MODELS[0], 100)) == 6


def test_model_of_the_command_line_or_the_environment_is_the_default(app, monkeypatch):
    def models(*words: str) -> list[str]:
        (args,) = parse_arguments(app.page.PageArguments, arguments=[*words])
        return args.model

    assert models() == []
    monkeypatch.setenv("TWINS_MODEL", "one/model another/model")
    assert models() == ["one/model", "another/model"]
    assert models("--model", "a/third") == ["a/third"]


def test_missing_model_ends_the_start_with_one_sentence(app):
    with pytest.raises(SystemExit, match="error: --model must be a folder or a Hub id, got not/a/folder"):
        run(partial(app.page.serve, app.build), app.page.PageArguments, arguments=["--model", "not/a/folder"])


@pytest.mark.parametrize("name", MODELS)
def test_bundled_models_reach_the_accuracy_in_their_cards(name):
    folder = SPACE / "models" / name
    assert (folder / "model.safetensors").stat().st_size < 2**20
    accuracy = float(re.search(r"\| ([\d.]+)% \|", (folder / "README.md").read_text())[1])
    assert accuracy > 95
