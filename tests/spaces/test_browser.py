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
"""The pages in a real browser. Screenshots are written to outputs/screenshots."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_utils import axe_script, launch_chromium
from hostile_files import archive, saved
from loopback_hub import serve_hub
from playwright.sync_api import Browser, Page, expect
from space_server import SPACES, Server, digit_image, digit_label, save_published, serve


pytestmark = pytest.mark.slow

SCREENSHOTS = Path(__file__).parents[2] / "outputs" / "screenshots"
CLASSIFICATION, SEGMENTATION = SPACES / "image_classification", SPACES / "semantic_segmentation"
DESKTOP, TABLET, PHONE = (
    {"width": 1280, "height": 900},
    {"width": 820, "height": 1180},
    {"width": 390, "height": 844},
)
# Findings of axe-core in Gradio's own elements, by rule and a part of the element.
GRADIO_FINDINGS = {
    # The empty cell of a results panel has a label without a role.
    ("aria-prohibited-attr", 'aria-label="Empty value"'),
    # The button next to the list of files is in a box that accepts files, too.
    ("nested-interactive", 'aria-label="common.upload"'),
    # Colors of strings and punctuation in blocks of code.
    ("color-contrast", 'class="token '),
}
# Timeout for a slow machine.
PATIENCE = 20_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def classification(tmp_path_factory) -> Iterator[Server]:
    with serve(CLASSIFICATION, tmp_path_factory.mktemp("classification") / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory) -> Iterator[Server]:
    with serve(SEGMENTATION, tmp_path_factory.mktemp("segmentation") / "log.txt") as server:
        yield server


@pytest.fixture
def open_page(chromium):
    """Open a server's page, and check at the end that it sent no requests to other machines."""
    pages: list[Page] = []
    outside: list[str] = []

    def note(request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            outside.append(request.url)

    def open_page(server: Server, theme: str = "light", viewport: dict[str, int] = DESKTOP) -> Page:
        page = chromium.new_page(viewport=viewport, has_touch=viewport is PHONE)
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.on("request", note)
        page.goto(f"{server.url}/?__theme={theme}")
        page.get_by_role("heading", name="What Twins sees").wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()
    assert outside == []


def upload(page: Page, file: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(file)


def settle(page: Page) -> None:
    """Wait until nothing is being computed."""
    page.wait_for_timeout(300)
    page.wait_for_function("!document.querySelector('.progress-text, .generating, .eta-bar')", timeout=PATIENCE)
    page.wait_for_timeout(300)


def shoot(page: Page, name: str) -> None:
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def findings(page: Page) -> list[tuple[str, str]]:
    """Serious and critical findings of axe-core outside Gradio's own elements, as rule and element."""
    violations = page.evaluate("axe.run()")["violations"]
    return [
        (violation["id"], node["html"])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not any(violation["id"] == rule and part in node["html"] for rule, part in GRADIO_FINDINGS)
    ]


def assert_fits(page: Page) -> None:
    """Check that nothing is wider than the window, where it would be cut off or need scrolling."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def assert_no_word_breaks_in_headings(page: Page) -> None:
    """Check that one-word headings of tables are on one line."""
    lines = """headings => headings.map(heading => {
        const text = document.createRange();
        text.selectNodeContents(heading);
        return [heading.textContent, new Set([...text.getClientRects()].map(line => line.top)).size];
    })"""
    headings = page.locator("th span.text:visible").evaluate_all(lines)
    assert len(headings) >= 4
    assert [name for name, num_lines in headings if num_lines != 1] == []


@pytest.fixture
def digit(tmp_path) -> Path:
    digit_image(3).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def result(page: Page):
    return page.get_by_test_id("label-output-value").first


def overlay(page: Page):
    return page.locator("#where-the-model-looked img, #segmentation img").first


def overlay_source(page: Page) -> str:
    """The URL of the overlay's image."""
    # The image is loaded only when it is visible.
    overlay(page).scroll_into_view_if_needed()
    overlay(page).wait_for()
    return overlay(page).get_attribute("src") or ""


def example(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True).filter(visible=True).first


def open_options(page: Page) -> None:
    page.get_by_role("button", name="Options").click()


def is_on_screen(page: Page, locator) -> bool:
    """Whether an element is completely visible without scrolling."""
    box = locator.bounding_box()
    height = page.viewport_size["height"]
    return page.evaluate("window.scrollY") == 0 and box["y"] >= 0 and box["y"] + box["height"] <= height


def test_first_visit_shows_a_result_and_a_tap_on_a_phone_another_one(open_page, classification, segmentation):
    page = open_page(classification, viewport=PHONE)
    expect(result(page)).to_have_text("digit 7")
    expect(page.get_by_text("Offline: the Hub cannot be reached, so none of the published models")).to_have_count(1)
    assert is_on_screen(page, result(page))
    example(page, "digit 0").tap()
    expect(result(page)).to_have_text("digit 0")
    assert is_on_screen(page, result(page))
    assert overlay_source(page)

    page = open_page(segmentation, viewport=PHONE)
    expect(page.get_by_role("gridcell", name="background")).to_be_visible()
    before = overlay(page).get_attribute("src")
    assert is_on_screen(page, overlay(page))
    example(page, "scene 2").tap()
    expect(overlay(page)).not_to_have_attribute("src", before)
    assert is_on_screen(page, overlay(page))


def test_upload_shows_the_label_and_where_the_model_looked(open_page, classification, digit):
    page = open_page(classification)
    before = overlay_source(page)
    upload(page, digit)
    expect(result(page)).to_have_text(digit_label(3))
    expect(overlay(page)).not_to_have_attribute("src", before)
    open_options(page)
    expect(page.get_by_text("twins-svt-digits is loaded")).to_be_visible()
    page.get_by_role("radio", name="Attention", exact=True).check()
    expect(page.get_by_text("Attention of stage3")).to_be_visible()
    # This layer exists only in this model's stage.
    page.get_by_role("combobox", name="Stage").click()
    page.get_by_role("option", name="stage1").click()
    expect(page.get_by_text("Attention of stage1")).to_be_visible()


def test_sliders_dropdowns_and_examples_work_by_keyboard(open_page, classification):
    page = open_page(classification)
    example(page, "digit 4").focus()
    page.keyboard.press("Enter")
    expect(result(page)).to_have_text("digit 4")
    open_options(page)
    page.get_by_role("slider", name=re.compile("Input resolution")).first.focus()
    page.keyboard.press("End")
    expect(page.get_by_text("twins-svt-digits: input of 64 x 64 pixels")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("twins-svt-digits: input of 60 x 60 pixels")).to_be_visible()
    settle(page)
    before = overlay_source(page)
    page.get_by_role("slider", name=re.compile("Opacity")).focus()
    page.keyboard.press("End")
    expect(overlay(page)).not_to_have_attribute("src", before)
    page.get_by_role("combobox", name="Model").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_text("twins-pcpvt-digits: input of 60 x 60 pixels")).to_be_visible()


def test_last_of_fast_clicks_wins(open_page, classification):
    page = open_page(classification)
    # The first request arrives late.
    page.evaluate("""() => {
        const send = window.fetch;
        let isFirst = true;
        window.fetch = async (...request) => {
            if (isFirst && String(request[0].url ?? request[0]).includes("/queue/join")) {
                isFirst = false;
                await new Promise(resolve => setTimeout(resolve, 1500));
            }
            return send(...request);
        };
    }""")
    for name in ("digit 1", "digit 2", "digit 0", "digit 5"):
        example(page, name).click()
        page.wait_for_timeout(150)
    expect(result(page)).to_have_text("digit 5")
    # No further result arrives.
    page.wait_for_timeout(2500)
    expect(result(page)).to_have_text("digit 5")


def test_page_starts_with_the_published_model_once_it_is_available(open_page, tmp_path):
    with serve_hub(files=tmp_path / "files") as hub:
        table, _ = save_published(tmp_path / "files", hub.endpoint)
        (tmp_path / "run_app.py").write_text(
            "import pathlib, runpy\n"
            "from hf_twins.checkpoints import published\n"
            f"published.PUBLISHED_FILE = pathlib.Path({str(table)!r})\n"
            f"runpy.run_path({str(SEGMENTATION / 'app.py')!r}, run_name='__main__')\n"
        )
        # The download is slow.
        hub.stall_downloads(6, times=1, pattern="fpn.pth")
        environment = {"TORCH_HOME": str(tmp_path / "torch"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint}
        with serve(tmp_path, tmp_path / "log.txt", script="run_app.py", **environment) as server:
            page = open_page(server)
            expect(page.get_by_text("An ADE20K model is being downloaded: reload this page later.")).to_be_visible()
            expect(page.get_by_role("gridcell", name="background")).to_be_visible()
            while "loaded twins-svt-small-semantic-fpn-ade20k" not in server.log.read_text():
                page.wait_for_timeout(200)
            page.reload()
            model = page.get_by_role("combobox", name="Model").first
            expect(model).to_have_value("twins-svt-small-semantic-fpn-ade20k: 150 ADE20K classes")
            expect(page.get_by_text("twins-svt-small-semantic-fpn-ade20k: input of 512 x")).to_be_visible()


@pytest.mark.parametrize("space", ["classification", "segmentation"])
def test_invalid_file_gives_an_error_and_clears_the_old_result(open_page, request, space, digit, tmp_path):
    page = open_page(request.getfixturevalue(space))
    (tmp_path / "broken.png").write_bytes(digit.read_bytes()[:300])
    overlay_source(page)
    upload(page, tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("This image is broken or incomplete")
    expect(overlay(page)).to_have_count(0)
    expect(result(page)).to_have_count(0)
    assert "Traceback" not in page.content()
    # The next result replaces the error.
    upload(page, digit)
    overlay_source(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_two_models_are_compared_as_soon_as_there_is_an_image(open_page, classification):
    page = open_page(classification)
    page.get_by_role("tab", name="Compare").click()
    example(page, "digit 3").click()
    expect(page.get_by_text("twins-svt-digits: input of")).to_have_count(2)
    expect(page.get_by_text("twins-pcpvt-digits: input of")).to_be_visible()
    settle(page)
    shoot(page, "classification_compare")
    assert_fits(page)


def start_batch(page: Page, file: Path):
    page.get_by_role("tab", name="Batch").click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator("input[type=file]").first.set_input_files(file)
    panel.get_by_label(file.name).wait_for()
    panel.get_by_role("button", name="Start").click()
    return panel


def test_batch_shows_progress_and_can_be_stopped(open_page, classification, tmp_path):
    # The images are large, so that there is time to stop.
    image = saved(digit_image(0, side=1500), "JPEG", quality=30)
    (tmp_path / "digits.zip").write_bytes(archive({f"{index}.jpg": image for index in range(200)}))
    page = open_page(classification)
    panel = start_batch(page, tmp_path / "digits.zip")
    panel.get_by_text(re.compile(r"\d+ of 200 images")).first.wait_for()
    panel.get_by_role("button", name="Stop").click()
    settle(page)
    expect(panel.get_by_label("predictions.csv")).to_have_count(0)


def test_api_is_documented_on_the_page(open_page, classification):
    page = open_page(classification)
    page.get_by_role("tab", name="API").click()
    for endpoint in ("/classify", "/explain", "/compare", "/classify_batch", "/describe_model"):
        expect(page.get_by_role("cell", name=endpoint, exact=True)).to_be_visible()
    # The URL is that of this Space.
    expect(page.locator("pre").first).to_contain_text(f'Client("{classification.url}")')
    shoot(page, "classification_api")
    assert_fits(page)


@pytest.mark.parametrize("space", ["classification", "segmentation"])
def test_pages_fit_and_are_accessible(open_page, request, tmp_path, space):
    """First visit, result, error and batch are checked by axe-core, if installed, and saved as screenshots."""
    page = open_page(request.getfixturevalue(space))
    axe = axe_script()
    if axe is not None:
        page.evaluate(axe)

    def keep(state: str) -> None:
        settle(page)
        for theme in ("light", "dark"):
            page.evaluate("isDark => document.body.classList.toggle('dark', isDark)", theme == "dark")
            for viewport in (PHONE, TABLET, DESKTOP):
                page.set_viewport_size(viewport)
                page.wait_for_timeout(200)
                shoot(page, f"{space}_{state}_{viewport['width']}_{theme}")
                assert_fits(page)
            # Names and colors do not depend on the width.
            if axe is not None:
                assert findings(page) == [], f"{state}, {theme}"

    overlay(page).wait_for()
    keep("first")
    before = overlay(page).get_attribute("src")
    example(page, "digit 3" if space == "classification" else "scene 2").click()
    expect(overlay(page)).not_to_have_attribute("src", before)
    keep("answer")
    (tmp_path / "broken.png").write_bytes(b"no image")
    upload(page, tmp_path / "broken.png")
    page.get_by_role("alert").wait_for()
    keep("error")
    members = {f"{folder}/image.png": saved(digit_image(index), "PNG") for index, folder in enumerate(("a", "b"))}
    (tmp_path / "images.zip").write_bytes(archive(members | {"c/image.png": b"no image"}))
    panel = start_batch(page, tmp_path / "images.zip")
    panel.get_by_role("gridcell", name="a/image.png").first.wait_for()
    keep("batch")
    page.set_viewport_size(PHONE)
    settle(page)
    assert_no_word_breaks_in_headings(page)
    with page.expect_download() as download:
        panel.locator("a[download$='.csv']").click()
    assert "c/image.png" in Path(download.value.path()).read_text()
    if axe is None:
        pytest.skip("the pages fit, but axe-core is not installed: run tests/install_npm_packages, which needs npm")


def test_dark_page_is_dark(open_page, segmentation):
    page = open_page(segmentation, "dark")
    assert page.evaluate("document.body.classList.contains('dark')")
