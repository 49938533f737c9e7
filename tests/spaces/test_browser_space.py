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
"""The Space that runs its model in the browser, tested in a real browser, as published, with the CDN's files from npm."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import assemble
import numpy as np
import pytest
import torch
from browser_model import check_page_can_use
from browser_utils import answer_as_cdn, launch_chromium, npm_package, serve_static_spaces
from huggingface_hub import HfApi, RepoCard
from loopback_hub import serve_hub
from PIL import Image
from playwright.sync_api import BrowserContext, Page, Route, expect
from testing_utils import save_small_svt, tiny_config

from hf_twins import (
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
    load_model,
)
from hf_twins.export.run_exported import convert_image
from hf_twins.export.source import ExportableModel, Source


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "spaces" / "browser"
EXAMPLES = ROOT / "spaces" / "image_classification" / "examples"
DIGITS = ROOT / "spaces" / "image_classification" / "models" / "twins-svt-digits"
SCREENSHOTS = ROOT / "outputs" / "screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Timeout for a slow machine that runs other tests, too.
PATIENCE = 120_000


@dataclass
class Space:
    """A served static Space.

    Args:
        folder: folder of the Space.
        url: URL of the Space.
        model: the Space's model in PyTorch.
    """

    folder: Path
    url: str
    model: TwinsForImageClassification

    @property
    def model_folder(self) -> Path:
        (folder,) = self.folder.glob("model-*")
        return folder

    @torch.inference_mode()
    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.model(torch.from_numpy(pixel_values)).logits.numpy()

    def top_5(self, file: Path) -> list[tuple[str, float]]:
        """The five most likely labels of an image and their probabilities, computed by PyTorch."""
        processor = TwinsImageProcessorPil.from_pretrained(self.model_folder)
        with Image.open(file) as image:
            logits = self.logits(processor(image, return_tensors="np").pixel_values)
        best = torch.from_numpy(logits)[0].softmax(0).topk(5)
        return [
            (self.model.config.id2label[index], score)
            for index, score in zip(best.indices.tolist(), best.values.tolist())
        ]


@pytest.fixture(scope="module")
def spaces(tmp_path_factory) -> Iterator[dict[str, Space]]:
    """Spaces with a bundled digit model from its folder, and with the default model on the loopback Hub, also published."""
    npm_package("onnxruntime-web")
    folder = tmp_path_factory.mktemp("spaces")
    timm = save_small_svt(tmp_path_factory.mktemp("timm"))
    assemble.main(["browser", "--output_dir", str(folder / "digits"), "--model", str(DIGITS)])
    with (
        serve_hub({"timm/twins_svt_small.in1k": timm}, tokens={"hf_write": "write"}) as hub,
        hub.in_process(tmp_path_factory.mktemp("home"), token="hf_write"),
    ):
        arguments = [
            "browser",
            "--output_dir",
            str(folder / "imagenet"),
            "--push_to_hub",
            "--repo_id",
            "somebody/twins",
        ]
        assemble.main(arguments)
        files = {str(file.relative_to(folder / "imagenet")) for file in folder.glob("imagenet/**/*") if file.is_file()}
        assert {*HfApi().list_repo_files("somebody/twins", repo_type="space")} - {".gitattributes"} == files
        assert RepoCard.load("somebody/twins", repo_type="space").data.sdk == "static"
    models = {
        "digits": TwinsForImageClassification.from_pretrained(DIGITS).eval(),
        "imagenet": load_model(timm)[0].eval(),
    }
    with serve_static_spaces(folder) as url:
        yield {name: Space(folder / name, f"{url}/{name}/", model) for name, model in models.items()}


@pytest.fixture(scope="module")
def context(spaces) -> Iterator[BrowserContext]:
    """A browser with a cache and a camera; checks at the end that requests only went to this machine and the CDN."""
    outside = []

    def note(request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "https://cdn.jsdelivr.net/", "data:", "blob:")):
            outside.append(request.url)

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with launch_chromium("--use-fake-device-for-media-stream") as browser:
        context = browser.new_context(viewport=DESKTOP)
        context.set_default_timeout(PATIENCE)
        context.on("request", note)
        context.route(re.compile("^https:"), answer_as_cdn)
        yield context
        context.close()
    assert outside == []


@pytest.fixture(scope="module")
def page(context, spaces) -> Page:
    """The default model's page, opened once. Tests may leave it in any state, and start with their own image."""
    page = context.new_page()
    page.goto(spaces["imagenet"].url)
    return page


@pytest.fixture
def empty_page(context, spaces) -> Iterator[Page]:
    """An empty page, in which scripts of the Space can be imported."""
    page = context.new_page()
    page.goto(f"{spaces['digits'].url}style.css")
    yield page
    page.close()


def answer(page: Page) -> list[tuple[str, float]]:
    """The five labels and their probabilities, best first."""
    expect(page.locator("#labels li")).to_have_count(5, timeout=PATIENCE)
    items = [item.inner_text().split("\n") for item in page.locator("#labels li").all()]
    return [(label, float(percent.rstrip("%")) / 100) for label, percent in items]


def choose(page: Page, file: Path | list[Path]) -> None:
    page.locator("#file").set_input_files(file)


def click_example(page: Page, name: str) -> None:
    page.get_by_role("button", name=f"Example: {name}").click()
    wait_for_answer_to(page, f"Example: {name}")


def wait_for_answer_to(page: Page, name: str) -> None:
    expect(page.locator("#preview")).to_have_attribute("alt", name)
    expect(page.locator("#labels li")).to_have_count(5, timeout=PATIENCE)


LIBRARY = re.search(r"https://cdn[^\"]+", (PAGE / "index.html").read_text(encoding="utf-8"))[0]
RUN_MODEL = """async ([library, folder, dtype, values, dims]) => {
    const { AutoModel, Tensor, env } = await import(library);
    Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, localModelPath: "/" });
    const model = await AutoModel.from_pretrained(folder, { dtype, device: "wasm" });
    const { logits } = await model({ pixel_values: new Tensor("float32", Float32Array.from(values), dims) });
    return [Array.from(logits.data), logits.dims, model.config.model_type];
}"""


@pytest.mark.slow
def test_same_tensor_gives_the_logits_of_pytorch(empty_page, spaces):
    for name, side in (("digits", 32), ("imagenet", 224)):
        space = spaces[name]
        # The file that is loaded if no dtype is named.
        config = json.loads((space.model_folder / "config.json").read_text())
        assert config["transformers.js_config"] == {"dtype": "q8"}
        pixel_values = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
        expected = space.logits(pixel_values)
        folder = space.model_folder.relative_to(space.folder.parent).as_posix()
        # The difference is relative to the norm of the logits.
        for dtype, tolerance in (("fp32", 1e-5), ("fp16", 5e-3), ("q8", 3e-2)):
            arguments = [LIBRARY, folder, dtype, pixel_values.ravel().tolist(), list(pixel_values.shape)]
            values, dims, model_type = empty_page.evaluate(RUN_MODEL, arguments)
            difference = np.array(values).reshape(dims) - expected
            relative = np.linalg.norm(difference) / np.linalg.norm(expected)
            print(f"{name}, {dtype}: largest difference {abs(difference).max():.1e}, relative L2 {relative:.1e}")
            assert relative <= tolerance
            assert abs(difference).max() <= {"fp32": 1e-3, "fp16": 1e-2, "q8": 0.2}[dtype]
            assert model_type == "twins"


@pytest.mark.slow
def test_same_image_gives_the_label_of_pytorch(page, context, spaces):
    # Random weights decide less clearly than those for digits, so int8 may change the order of their labels.
    choose(page, EXAMPLES / "chelsea.jpg")
    page.get_by_label("Precision and backend").select_option("float32-wasm")
    assert_answer_is_that_of_pytorch(page, spaces["imagenet"], "float32", EXAMPLES / "chelsea.jpg", 0.005)
    page.get_by_label("Precision and backend").select_option("int8-wasm")

    digits = context.new_page()
    digits.goto(spaces["digits"].url)
    # The page of the digit model has no photographs as examples.
    expect(digits.get_by_role("status")).to_have_text("The model is ready: choose an image.", timeout=PATIENCE)
    expect(digits.get_by_role("group", name="Example images")).to_be_hidden()
    for file in (EXAMPLES / "chelsea.jpg", EXAMPLES / "digit_7.png"):
        choose(digits, file)
        for precision, tolerance in (("int8", 0.05), ("float32", 0.005)):
            digits.get_by_label("Precision and backend").select_option(f"{precision}-wasm")
            assert_answer_is_that_of_pytorch(digits, spaces["digits"], precision, file, tolerance)
    digits.close()


@pytest.mark.slow
def test_scores_of_several_labels_without_names_are_those_of_pytorch(context, spaces):
    """transformers leaves the names LABEL_0, LABEL_1, ... out of a configuration."""
    digits = spaces["digits"]
    space = Space(digits.folder.with_name("unnamed"), digits.url.replace("/digits/", "/unnamed/"), digits.model)
    shutil.copytree(digits.folder, space.folder)
    file = space.model_folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"id2label": None, "problem_type": "multi_label_classification"}))
    page = context.new_page()
    page.goto(space.url)
    page.get_by_label("Precision and backend").select_option("float32-wasm")
    choose(page, EXAMPLES / "digit_7.png")
    wait_for_answer_to(page, "digit_7.png")
    expect(page.locator("#details")).to_contain_text("float32", timeout=PATIENCE)
    processor = TwinsImageProcessorPil.from_pretrained(space.model_folder)
    with Image.open(EXAMPLES / "digit_7.png") as image:
        logits = space.logits(processor(image.convert("RGB"), return_tensors="np").pixel_values)
    best = torch.from_numpy(logits)[0].sigmoid().topk(5)
    actual = answer(page)
    assert actual[0][0] == f"LABEL_{best.indices[0]}" == "LABEL_7"
    assert [score for _, score in actual] == pytest.approx(best.values.tolist(), abs=0.005)
    page.close()


def assert_answer_is_that_of_pytorch(page: Page, space: Space, precision: str, file: Path, tolerance: float) -> None:
    wait_for_answer_to(page, file.name)
    labels = f"one of {space.model.config.num_labels:,} labels"
    expect(page.locator("#details")).to_have_text(
        re.compile(
            rf"^\d+ ms for the model, \d+ ms to resize the image; {precision}, WebAssembly, \d+ threads?; {labels}$"
        ),
        timeout=PATIENCE,
    )
    actual, expected = answer(page), space.top_5(file)
    assert actual[0][0] == expected[0][0]
    assert [score for _, score in actual] == pytest.approx([score for _, score in expected], abs=tolerance)


RUN_PROCESSOR = """async ([url, settings]) => {
    const { createImageProcessor } = await import("./image_processor.js");
    const image = await createImageBitmap(await (await fetch(url)).blob());
    const { data, dims } = createImageProcessor(settings)(image);
    return [btoa(new Uint8Array(data.buffer).reduce((text, byte) => text + String.fromCharCode(byte), "")), dims];
}"""
SIZES = {"size": {"shortest_edge": 62}, "crop_size": {"height": 56, "width": 56}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "size", "mode"),
    [
        (SIZES, (451, 300), "RGB"),
        (SIZES, (31, 47), "RGB"),
        (SIZES, (63, 62), "RGBA"),
        (SIZES, (90, 1117), "L"),
        # The image is read in several strips.
        (SIZES, (1500, 1401), "RGB"),
        ({"size": {"height": 37, "width": 52}, "do_center_crop": False, "resample": 2}, (97, 133), "RGB"),
        ({"size": {"shortest_edge": 31}, "crop_size": {"height": 40, "width": 27}, "resample": 1}, (97, 133), "RGB"),
        ({"do_resize": False, "crop_size": {"height": 91, "width": 64}, "image_mean": [0.5] * 3}, (71, 90), "RGB"),
        ({"do_normalize": False, "do_rescale": False, "do_center_crop": False, **SIZES}, (71, 90), "RGB"),
    ],
    ids=["reduced", "enlarged", "transparent", "long", "large", "bilinear", "lanczos", "cropped", "plain"],
)
def test_pixels_equal_those_of_the_processor(empty_page, settings, size, mode):
    width, height = size
    # The image has smooth shapes and noise, which reveal filters that ring or do not antialias.
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (3 + channel) + y * y / 900) for channel in range(len(mode))]
    noise = np.random.default_rng(0).integers(-60, 60, (height, width, len(mode)))
    pixels = np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels.squeeze(), mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    processors = [kind(**settings) for kind in (TwinsImageProcessorPil, TwinsImageProcessor)]
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    encoded, dims = empty_page.evaluate(RUN_PROCESSOR, [url, processors[0].to_dict()])
    actual = np.frombuffer(base64.b64decode(encoded), np.float32).reshape(dims)
    for processor in processors:
        expected = np.asarray(processor(convert_image(image), return_tensors="np").pixel_values)
        assert actual.shape == expected.shape
        # The difference is in steps of 8 bits, which Pillow rounds to after resizing.
        step = processor.rescale_factor if processor.do_rescale else 1
        std = np.array(processor.image_std if processor.do_normalize else [1.0] * 3)[:, None, None]
        steps = abs(actual - expected) * std / step
        # The browser rounds differently when it blends with white.
        exact = isinstance(processor, TwinsImageProcessorPil) and mode != "RGBA"
        assert steps.max() <= (0.01 if exact else 1.01)


@pytest.mark.slow
def test_page_works_by_keyboard(page):
    click_example(page, "a cat")
    before = answer(page)
    page.get_by_role("link", name="Twins vision transformer").focus()
    for name in ("Choose an image", "Use the webcam", "Example: a cat", "Example: a cup of coffee"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Enter")
    wait_for_answer_to(page, "Example: a cup of coffee")
    assert answer(page) != before
    page.get_by_label("Precision and backend").focus()
    for key, precision in (("ArrowDown", "float32"), ("ArrowUp", "int8")):
        page.keyboard.press(key)
        expect(page.locator("#details")).to_contain_text(precision, timeout=PATIENCE)


@pytest.mark.slow
def test_images_are_pasted_dropped_and_photographed(page, context):
    transfer = """(kind) => {
        const data = new DataTransfer();
        for (const name of kind === "drop two" ? ["a.png", "b.png"] : ["a.png"]) {
            data.items.add(new File([Uint8Array.from(atob(PNG), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
        }
        document.dispatchEvent(kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data })
            : new DragEvent("drop", { dataTransfer: data }));
    }""".replace("PNG", repr(base64.b64encode((EXAMPLES / "digit_4.png").read_bytes()).decode()))
    answers = []
    for kind in ("paste", "drop"):
        click_example(page, "a cat")
        page.evaluate(transfer, kind)
        wait_for_answer_to(page, "a.png")
        answers.append(answer(page))
    choose(page, EXAMPLES / "digit_4.png")
    wait_for_answer_to(page, "digit_4.png")
    assert answers == [answer(page)] * 2
    page.evaluate(transfer, "drop two")
    expect(page.get_by_role("alert")).to_have_text("Drop one image file at a time; got 2.")

    # The camera is not permitted at first.
    page.get_by_role("button", name="Use the webcam").click()
    expect(page.get_by_role("alert")).to_have_text(
        "The webcam is not allowed on this page: allow it in the browser, or choose an image file."
    )
    context.grant_permissions(["camera"])
    page.get_by_role("button", name="Use the webcam").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.wait_for_function("document.getElementById('video').videoWidth > 0")
    page.keyboard.press("Enter")
    wait_for_answer_to(page, "Photo from the webcam")
    expect(page.get_by_label("Webcam", exact=True)).to_be_hidden()
    expect(page.get_by_role("button", name="Use the webcam")).to_be_focused()


@pytest.mark.slow
def test_last_of_fast_clicks_wins(page):
    click_example(page, "an astronaut")
    expected = answer(page)
    click_example(page, "a cat")
    assert answer(page) != expected

    def answer_late(route: Route) -> None:
        page.wait_for_timeout(500)
        route.continue_()

    page.route("**/coffee.jpg", answer_late)
    for name in ("a cup of coffee", "an astronaut", "a cup of coffee", "a cat", "an astronaut"):
        page.get_by_role("button", name=f"Example: {name}").click()
    # Wait for the late results, too.
    page.wait_for_timeout(1500)
    wait_for_answer_to(page, "Example: an astronaut")
    assert answer(page) == expected
    page.unroute("**/coffee.jpg")


@pytest.mark.slow
def test_unusable_file_gives_one_sentence_and_leaves_a_clean_page(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("L", (8000, 7000)).save(tmp_path / "vast.png")
    Image.new("L", (2100, 100)).save(tmp_path / "long.png")
    for name, message in (
        ("notes.txt", "notes.txt is not an image that this browser can read: choose a JPEG, PNG or WebP file."),
        ("vast.png", "vast.png has 8000 x 7000 pixels: choose an image of at most 50 megapixels."),
        ("long.png", "long.png has 2100 x 100 pixels: crop it; one side may be at most 20 times the other."),
    ):
        choose(page, tmp_path / name)
        expect(page.get_by_role("alert")).to_have_text(message)
        expect(page.locator("#labels li")).to_have_count(0)
        expect(page.locator("#preview")).to_be_hidden()
    page.set_viewport_size(PHONE)
    page.screenshot(path=SCREENSHOTS / "browser_error_390.png")
    page.set_viewport_size(DESKTOP)
    click_example(page, "a cat")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("WebAssembly", "This browser has no WebAssembly, which the model needs: allow it, or use another browser."),
        (
            "space.json",
            "The model cannot be loaded, because space.json is missing: reload the page, or assemble the Space",
        ),
        (
            "transformers.min.js",
            "transformers.js cannot be loaded from cdn.jsdelivr.net: check the connection and reload",
        ),
        (
            "model_quantized.onnx",
            "The model cannot be loaded in int8 on WebAssembly: reload the page, or choose another",
        ),
    ],
)
def test_failed_loading_gives_one_sentence(context, spaces, fault, message):
    # Use a new browser context, which has no cached files.
    fresh = context.browser.new_context()
    fresh.set_default_timeout(PATIENCE)
    fresh.route(re.compile("^https:"), answer_as_cdn)
    if fault == "WebAssembly":
        fresh.add_init_script("delete window.WebAssembly")
    else:
        fresh.route(re.compile(rf"/{re.escape(fault)}$"), lambda route: route.fulfill(status=404))
    page = fresh.new_page()
    page.goto(spaces["digits"].url)
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.locator("#progress")).to_be_hidden()
    fresh.close()


@pytest.mark.slow
def test_download_is_shown_in_megabytes_and_threads_are_used(context, spaces):
    space = spaces["imagenet"]
    fresh = context.browser.new_context(viewport=DESKTOP)
    fresh.set_default_timeout(PATIENCE)
    fresh.route(re.compile("^https:"), answer_as_cdn)
    # The library uses half of the cores.
    fresh.add_init_script("Object.defineProperty(navigator, 'hardwareConcurrency', { get: () => 4 })")
    fresh.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            window.said = [];
            const status = document.getElementById("status");
            new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
        })"""
    )
    page = fresh.new_page()
    page.goto(space.url)
    wait_for_answer_to(page, "Example: a cat")
    size = (space.model_folder / "onnx" / "model_quantized.onnx").stat().st_size / 1e6
    said = page.evaluate("said")
    assert f"Loading the model: 0.0 of {size:.1f} MB" in said
    assert "Starting ONNX Runtime…" in said
    assert said[-2:] == ["Classifying…", ""]
    expect(page.locator("#details")).to_contain_text("int8, WebAssembly, 2 threads; one of 1,000 labels")
    link = page.get_by_role("link", name="timm/twins_svt_small.in1k")
    assert link.get_attribute("href") == "https://huggingface.co/timm/twins_svt_small.in1k"
    assert (
        page.get_by_label("Precision and backend").locator("option").all_inner_texts()[0]
        == f"int8, WebAssembly, {size:.1f} MB"
    )
    fresh.close()


@pytest.mark.slow
def test_result_is_visible_at_once_and_named_for_screen_readers(page):
    axe = npm_package("axe-core") / "axe.min.js"
    for viewport in (DESKTOP, PHONE):
        page.set_viewport_size(viewport)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            click_example(page, "a cup of coffee")
            page.screenshot(path=SCREENSHOTS / f"browser_{viewport['width']}_{theme}.png")
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            assert page.evaluate("scrollY") == 0
            box = page.locator("#labels").bounding_box()
            assert box["y"] + box["height"] <= viewport["height"]
    page.add_script_tag(path=axe)
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        violations = page.evaluate("axe.run()")["violations"]
        assert [(found["id"], [node["target"] for node in found["nodes"]]) for found in violations] == []
    page.set_viewport_size(DESKTOP)


@pytest.mark.slow
def test_code_on_the_export_page_classifies(empty_page, spaces):
    text = (ROOT / "examples" / "export" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```js\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    space = spaces["digits"]
    html = f'<!doctype html><title>Test</title><script type="module">{code}; window.answer = label</script>'
    # The script is next to the folder with the model, which has the name on the page.
    (space.folder / "outputs").mkdir()
    (space.folder / "outputs" / "onnx").symlink_to(space.model_folder)
    (space.folder / "image.png").write_bytes((EXAMPLES / "digit_7.png").read_bytes())
    (space.folder / "lines.html").write_text(html, encoding="utf-8")
    empty_page.goto(f"{space.url}lines.html")
    empty_page.wait_for_function("window.answer")
    assert empty_page.evaluate("answer") == "digit 7"


def source(model_class: type = TwinsForImageClassification, settings: dict | None = None, **fields) -> Source:
    model = model_class(tiny_config("svt", **fields))
    return Source(ExportableModel(model), TwinsImageProcessorPil(**settings or {}), (32, 32))


def test_model_that_the_page_cannot_use_is_refused():
    check_page_can_use(source(), "somebody/model")
    with pytest.raises(
        ValueError, match="The page classifies RGB images, but m holds a TwinsBackbone for images of 3 chan"
    ):
        check_page_can_use(source(TwinsBackbone), "m")
    with pytest.raises(ValueError, match="holds a TwinsForImageClassification for images of 4 channels"):
        check_page_can_use(source(num_channels=4), "m")
    with pytest.raises(ValueError, match=r"the processor of m has do_pad=\w+, resample=0: pass another model"):
        check_page_can_use(source(settings={"resample": 0}), "m")


def test_page_names_existing_files_and_fixed_versions():
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="([^"#:]+)"', html):
        assert (PAGE / name).is_file(), name
    libraries = re.findall(r'"(https://cdn[^"]+)": "([^"]+)"', html)
    assert [re.search(r"@(\d+\.\d+\.\d+)/", url) is not None for url, _ in libraries] == [True]
    assert libraries[0][1].startswith("sha384-")
    card = RepoCard.load(PAGE / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.license) == ("static", "index.html", "apache-2.0")
    assert len(card.data.short_description) <= 60
