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
"""The pages in a real browser, as people use them. What they look like is kept in outputs/screenshots."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_utils import launch_chromium
from hostile_files import archive, saved
from playwright.sync_api import Browser, Page, expect
from space_server import SPACES, Server, digit_image, digit_label, serve


pytestmark = pytest.mark.slow

SCREENSHOTS = Path(__file__).parents[2] / "outputs" / "screenshots"
CLASSIFICATION, SEGMENTATION = SPACES / "image_classification", SPACES / "semantic_segmentation"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# On a slow machine.
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
    """Open a server's page; at the end, nothing outside this machine was asked for."""
    pages: list[Page] = []
    outside: list[str] = []

    def note(request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            outside.append(request.url)

    def open_page(server: Server, theme: str = "light", viewport: dict[str, int] = DESKTOP) -> Page:
        page = chromium.new_page(viewport=viewport)
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
    page.wait_for_timeout(500)
    page.wait_for_function("!document.querySelector('.progress-text, .generating, .eta-bar')", timeout=PATIENCE)
    page.wait_for_timeout(500)


def shoot(page: Page, name: str) -> None:
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def assert_fits(page: Page) -> None:
    """Nothing is wider than the window, which would be cut off or have to be scrolled to."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.fixture
def digit(tmp_path) -> Path:
    digit_image(3).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def result(page: Page):
    return page.get_by_test_id("label-output-value").first


def overlay_source(page: Page) -> str:
    """Where the picture of the overlay is from."""
    # It is not loaded before it can be seen.
    page.locator("#overlay").scroll_into_view_if_needed()
    image = page.locator("#overlay img").first
    image.wait_for()
    return image.get_attribute("src") or ""


def test_upload_says_what_it_is_and_where_the_model_looked(open_page, classification, digit):
    page = open_page(classification)
    shoot(page, "classification_start")
    upload(page, digit)
    expect(result(page)).to_have_text(digit_label(3))
    before = overlay_source(page)
    settle(page)
    expect(page.get_by_text("twins-svt-digits is loaded")).to_be_visible()
    shoot(page, "classification_light")
    assert_fits(page)

    page.get_by_role("radio", name="Attention", exact=True).check()
    expect(page.get_by_text("Attention of stage3")).to_be_visible()
    settle(page)
    attention = overlay_source(page)
    assert attention != before
    page.get_by_role("slider", name=re.compile("Opacity")).focus()
    page.keyboard.press("End")
    page.get_by_role("slider", name=re.compile("Opacity")).dispatch_event("pointerup")
    expect(page.locator("#overlay img").first).not_to_have_attribute("src", attention)
    settle(page)
    shoot(page, "classification_attention")


def test_slider_and_model_change_what_is_computed(open_page, classification, digit):
    page = open_page(classification)
    upload(page, digit)
    expect(page.get_by_text(re.compile("twins-svt-digits saw 32 x 32 pixels"))).to_be_visible()
    settle(page)
    slider = page.get_by_role("slider", name=re.compile("Input resolution")).first
    slider.focus()
    page.keyboard.press("End")
    slider.dispatch_event("pointerup")
    expect(page.get_by_text(re.compile("twins-svt-digits saw 64 x 64 pixels"))).to_be_visible()
    settle(page)
    page.get_by_role("combobox", name="Model").first.click()
    page.get_by_role("option", name="twins-pcpvt-digits").click()
    expect(page.get_by_text(re.compile("twins-pcpvt-digits saw 64 x 64 pixels"))).to_be_visible()
    expect(page.get_by_text("twins-pcpvt-digits is loaded")).to_be_visible()
    settle(page)
    shoot(page, "classification_other_model")


def test_example_is_classified_by_keyboard(open_page, classification):
    page = open_page(classification)
    example = page.locator("button.gallery-item").first
    example.focus()
    page.keyboard.press("Enter")
    expect(result(page)).to_have_text(re.compile(r"digit \d"))


def test_bad_file_gets_a_sentence(open_page, classification, digit, tmp_path):
    page = open_page(classification)
    (tmp_path / "broken.png").write_bytes(digit.read_bytes()[:300])
    upload(page, tmp_path / "broken.png")
    expect(page.get_by_text("This picture is broken or incomplete")).to_be_visible()
    page.wait_for_timeout(500)
    shoot(page, "classification_error")
    assert "Traceback" not in page.content()
    # The page goes on.
    page.reload()
    upload(page, digit)
    expect(result(page)).to_have_text(digit_label(3))


def test_two_models_are_compared(open_page, classification, digit):
    page = open_page(classification)
    page.get_by_role("tab", name="Compare").click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator("input[type=file]").first.set_input_files(digit)
    panel.locator("img").first.wait_for()
    panel.get_by_role("button", name="Compare").click()
    expect(panel.get_by_text(re.compile("twins-svt-digits saw"))).to_be_visible()
    expect(panel.get_by_text(re.compile("twins-pcpvt-digits saw"))).to_be_visible()
    settle(page)
    shoot(page, "classification_compare")
    assert_fits(page)


def test_batch_shows_progress_and_a_table(open_page, classification, tmp_path):
    members = {f"{index}.png": saved(digit_image(index), "PNG") for index in range(150)}
    (tmp_path / "digits.zip").write_bytes(archive(members | {"broken.png": b"no picture"}))
    page = open_page(classification)
    page.get_by_role("tab", name="Batch").click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "digits.zip")
    panel.get_by_label("digits.zip").wait_for()
    panel.get_by_role("button", name="Start").click()
    panel.get_by_text(re.compile(r"\d+ of 151 pictures")).first.wait_for()
    # At once, before it is over.
    page.screenshot(path=SCREENSHOTS / "classification_batch_progress.png")
    panel.get_by_label("predictions.csv").wait_for()
    settle(page)
    expect(panel.get_by_role("gridcell", name=digit_label(0)).first).to_be_visible()
    shoot(page, "classification_batch")
    with page.expect_download() as download:
        panel.locator("a[download='predictions.csv']").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 152


def test_batch_can_be_stopped(open_page, classification, tmp_path):
    members = {f"{index}.png": saved(digit_image(index), "PNG") for index in range(200)}
    (tmp_path / "digits.zip").write_bytes(archive(members))
    page = open_page(classification)
    page.get_by_role("tab", name="Batch").click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "digits.zip")
    panel.get_by_label("digits.zip").wait_for()
    panel.get_by_role("button", name="Start").click()
    panel.get_by_text(re.compile(r"\d+ of 200 pictures")).first.wait_for()
    panel.get_by_role("button", name="Stop").click()
    settle(page)
    expect(panel.get_by_label("predictions.csv")).to_have_count(0)


@pytest.mark.parametrize(("name", "theme", "viewport"), [("dark", "dark", DESKTOP), ("phone", "light", PHONE)])
def test_dark_and_on_a_phone(open_page, classification, digit, name, theme, viewport):
    page = open_page(classification, theme, viewport)
    upload(page, digit)
    expect(result(page)).to_have_text(digit_label(3))
    overlay_source(page)
    settle(page)
    shoot(page, f"classification_{name}")
    assert_fits(page)
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")


def test_api_is_explained_on_the_page(open_page, classification):
    page = open_page(classification)
    page.get_by_role("tab", name="API and credits").click()
    for endpoint in ("/classify", "/explain", "/compare", "/classify_batch", "/describe_model"):
        expect(page.get_by_role("cell", name=endpoint, exact=True)).to_be_visible()
    shoot(page, "classification_api")
    assert_fits(page)


@pytest.mark.parametrize(
    ("name", "theme", "viewport"),
    [("light", "light", DESKTOP), ("dark", "dark", DESKTOP), ("phone", "light", PHONE)],
    ids=["light", "dark", "phone"],
)
def test_segmentation_shows_overlay_legend_and_mask(open_page, segmentation, name, theme, viewport):
    page = open_page(segmentation, theme, viewport)
    upload(page, SEGMENTATION / "examples" / "scene_1.jpg")
    page.get_by_label("mask.png").wait_for()
    expect(page.get_by_role("gridcell", name="background")).to_be_visible()
    overlay_source(page)
    settle(page)
    shoot(page, f"segmentation_{name}")
    assert_fits(page)
