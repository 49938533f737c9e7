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
"""The page of a Space: its components, error messages, command line, and server."""

import csv
import html
import io
import json
import logging
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np
import PIL.Image
from gradio.utils import get_upload_folder
from transformers.utils.logging import disable_progress_bar

from .drawing import ExplanationError
from .models import ModelError, ModelShelf
from .uploads import FORMAT_NAMES, MAX_FILE_SIZE, MAX_IMAGES, MAX_PIXELS, UploadError, read_upload


logger = logging.getLogger(__name__)

MODEL_VARIABLE = "TWINS_MODEL"
# Numbers of requests, and of batches, that are processed at a time, and of requests that may wait. Others are refused.
CONCURRENCY, BATCH_CONCURRENCY, QUEUE_SIZE = 16, 2, 256
# Seconds after which the files of the page's visitors are deleted.
FILE_LIFETIME = 3600
LIMITS = (
    f"Images: {FORMAT_NAMES}, at most {MAX_FILE_SIZE >> 20} MB and {MAX_PIXELS // 10**6} megapixels each (a quarter of this for 32 "
    "bits per channel). The first frame is read and turned upright; 16 bits per channel are scaled to 8; transparent areas become "
    f"white. Batches: at most {MAX_IMAGES} images, also in zip archives. Uploads are deleted after {FILE_LIFETIME // 3600} hour."
)
# The URL in the API examples, which the page replaces by its own.
LOCAL_ADDRESS = "http://127.0.0.1:7860"
PHONE = "@media (max-width: 640px)"
# Gradio puts `.gradio-container ... .contain` before each selector.
CSS = f"""
button[role=tab].selected {{ color: var(--primary-600); }}
.dark button[role=tab].selected {{ color: var(--primary-300); }}
.error-message p {{ border-left: 4px solid #dc2626; margin: 0; padding: 8px 12px; }}
{PHONE} {{
    /* So that an image, the examples and the answer share a screen. */
    .main-image {{ height: 170px !important; }}
    /* So that no word breaks in a column of a table: less padding, and not Gradio's fixed-width font. */
    [role=columnheader], [role=gridcell], .cell-wrap {{ padding: 2px !important; }}
    [role=columnheader] span, [role=gridcell] span {{ font-family: var(--font) !important; font-size: 12px !important; }}
    #segmentation {{ height: 200px !important; }}
    .examples .gallery {{ flex-wrap: nowrap !important; overflow-x: auto; }}
    .examples .gallery-item {{ flex: none; }}
}}
"""
# Gradio does not name the buttons around images. For screen readers, this adds the file names of examples, and the
# names of results.
NAME_BUTTONS = """() => {
    const name = (selector, find) => document.querySelectorAll(`${selector}:not([aria-label])`).forEach(button => {
        button.setAttribute("aria-label", find(button).replace(/\\..*$/, "").replaceAll(/[-_]/g, " "));
    });
    const nameAll = () => {
        name(".examples .gallery-item", button => button.querySelector("img").src.split("/").pop());
        name(".result-image .image-container > button", button => button.closest(".result-image").id);
    };
    new MutationObserver(nameAll).observe(document.body, { childList: true, subtree: true });
    nameAll();
}"""
# The theme makes small print readable, for which Gradio's default has too little contrast.
THEME = gr.themes.Default(primary_hue="indigo").set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_cancel_background_fill="*neutral_600",
    button_cancel_background_fill_dark="*neutral_600",
)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Show users of the page and the API a short error message, and log the rest."""
    try:
        yield
    except (UploadError, ModelError, ExplanationError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("a request failed")
        raise gr.Error(
            "Something went wrong on the server, not with your input: try again later.", print_exception=False
        ) from error


def first_that_answers(names: Sequence[str], answer: Callable[[str], Any]) -> tuple[str, Any]:
    """The name and the answer of the first model that can be used; errors of models before it are logged.

    Raises:
        gr.Error: if no model can be used.
    """
    for name in names[:-1]:
        try:
            return name, answer(name)
        except gr.Error as error:
            logger.warning("%s cannot be used: %s", name, error.message)
    return names[-1], answer(names[-1])


def image_input(**options: Any) -> gr.Image:
    """An image that a visitor uploads, pastes or takes with a webcam."""
    image = gr.Image(
        label="Image",
        type="pil",
        sources=["upload", "webcam", "clipboard"],
        height=300,
        elem_classes="main-image",
        **options,
    )
    # Gradio would open the file before any of our code runs: an invalid file would cause an error without an
    # explanation, and 16 bits per channel would be clipped at 255. For a subclass, Gradio would write a stub file next
    # to the source code.
    image.preprocess = read_or_error  # type: ignore[method-assign, assignment]
    return image


def api_image() -> gr.Image:
    """The image of an API endpoint. Unlike the page's own, it has no example for its default value."""
    return image_input(visible=False)


def read_or_error(payload: Any) -> PIL.Image.Image | UploadError | None:
    """Read the image that was sent, or return its error, which `require` raises later, where it can be shown."""
    if payload is None or not payload.path:
        return None
    try:
        return read_upload(Path(payload.path))
    except UploadError as error:
        return error


def image_output(label: str, **options: Any) -> gr.Image:
    """An image that is shown pixel by pixel; its label, which would cover a corner of it, is for screen readers only."""
    image = gr.Image(
        label=label,
        show_label=False,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=re.sub(r"\W+", "-", label.lower()),
        elem_classes="result-image",
        **options,
    )
    postprocess = image.postprocess

    def postprocess_alone(value: PIL.Image.Image | np.ndarray | None) -> Any:
        if value is not None:
            value = PIL.Image.fromarray(value) if isinstance(value, np.ndarray) else value.copy()
            # Gradio names files by their content. Without a unique entry, it would overwrite a file that may just be
            # sent to another visitor.
            value.info["answer"] = uuid4().hex
        return postprocess(value)

    image.postprocess = postprocess_alone  # type: ignore[method-assign, assignment]
    return image


def result_file(name: str, content: bytes) -> str:
    """Keep a file for a visitor, as long as Gradio keeps its own, and return its path."""
    # For the same reason, each file has its own folder.
    file = Path(get_upload_folder()) / uuid4().hex / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return str(file)


def require(image: PIL.Image.Image | UploadError | None) -> PIL.Image.Image:
    if image is None:
        raise UploadError("There is no image yet: upload, paste or take one, or choose an example.")
    if isinstance(image, UploadError):
        raise image
    return image


# Spreadsheets evaluate cells that begin with these characters. Some of them also start a new cell at other separators,
# regardless of quotes: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = re.compile(r"(^|[\t\r\n,;|\"'])(\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=[\t\r\n])")


def write_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Convert a table to a CSV file in which no text, such as the name of a file, is evaluated as a spreadsheet formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([FORMULA.sub(r"\1'\2", cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue().encode()


def model_selector(shelf: ModelShelf, label: str = "Model", value: str | None = None, info: str = "") -> gr.Dropdown:
    """A selector of models, each with what it can recognize."""
    choices = [(shelf.title(name), name) for name in shelf.names]
    return checked(gr.Dropdown(choices, value=value or shelf.names[0], label=label, info=info or None))


def resolution_slider() -> gr.Slider:
    return checked(
        gr.Slider(
            *(50, 200, 100),
            step=12.5,
            label="Input resolution",
            info="Percent of the image size that the model was trained with.",
        )
    )


def opacity_slider(value: float) -> gr.Slider:
    return checked(gr.Slider(0, 1, value, step=0.05, label="Opacity of the overlay"))


def checked(component: Any) -> Any:
    """Make a slider, or a dropdown or radio of texts, refuse any other value by name.

    Gradio's own checks accept NaN and lists of choices, and fail on other types without a sentence.
    """
    preprocess = component.preprocess

    def preprocess_checked(value: Any) -> Any:
        if isinstance(component, gr.Slider):
            expected = f"a number from {component.minimum} to {component.maximum}"
            # The comparison is also false for NaN.
            is_valid = isinstance(value, int | float) and component.minimum <= value <= component.maximum
        else:
            choices = [choice for _, choice in component.choices]
            expected = f"one of {', '.join(choices)}"
            is_valid = isinstance(value, str) and value in choices
        if not is_valid:
            raise gr.Error(f"{component.label} must be {expected}, got {reprlib.repr(value)}.", print_exception=False)
        return preprocess(value)

    component.preprocess = preprocess_checked
    return component


def sendable(name: str, file: Path) -> str:
    """Copy an example to the served files, so that its URL does not reveal the app's folder."""
    return result_file(f"{name.replace(' ', '_')}{file.suffix}", file.read_bytes())


def example_gallery(examples: dict[str, Path], image: gr.Image) -> None:
    """A gallery of example images. `gr.Examples` would ignore clicks while it processes another one."""
    copies = [sendable(name, file) for name, file in examples.items()]
    gallery = gr.Dataset(
        components=[gr.Image(render=False)],
        samples=[[copy] for copy in copies],
        type="index",
        label="Examples",
        samples_per_page=len(examples),
        elem_classes="examples",
    )
    gallery.click(
        lambda index: copies[index],
        gallery,
        image,
        queue=False,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )


def error_message() -> gr.HTML:
    """An element for errors, which are shown in place of the results, and read out by screen readers."""
    return gr.HTML(visible=False, elem_classes="error-message")


def for_page(action: Callable, num_results: int, num_kept: int = 0) -> Callable:
    """Handle a change on the page: show the results of an action, or its error instead.

    Args:
        action: takes an image and other inputs; raises `gr.Error`.
        num_results: number of results of the action, which are cleared on an error, or if there is no image.
        num_kept: number of further outputs, which do not change in these cases.

    Returns:
        A function of the same inputs, which returns the update of an [`error_message`] after the outputs of the
        action.
    """
    nothing = (*(None,) * num_results, *(gr.skip() for _ in range(num_kept)))

    def act(image: Any, *others: Any) -> Any:
        if image is None:
            return (*nothing, show_error(None))
        try:
            return (*action(image, *others), show_error(None))
        except gr.Error as error:
            return (*nothing, show_error(error))

    return act


def show_error(error: gr.Error | None) -> Any:
    message = "" if error is None else f'<p role="alert">{html.escape(str(error.message))}</p>'
    return gr.update(value=message, visible=error is not None)


def on_change(
    events: Sequence[Any], action: Callable, inputs: Sequence[Any], outputs: Sequence[Any], **options: Any
) -> None:
    """Run an action on several events, one run at a time for each visitor. The last run has the latest inputs.

    All events share one Gradio listener, so that no result for earlier inputs arrives after that for later inputs.
    """
    gr.on(events, action, list(inputs), list(outputs), trigger_mode="always_last", api_visibility="private", **options)


def endpoint(action: Callable, inputs: Sequence[Any], outputs: Sequence[Any], api_name: str, **options: Any) -> None:
    """Add an API endpoint for an action, which no event of the page starts."""
    gr.on([], action, list(inputs), list(outputs), api_name=api_name, **options)


def describe_api(demo: gr.Blocks, text: str) -> None:
    """Add the description of the API, with examples that use the URL of this Space as seen in the visitor's browser."""
    shown = gr.Markdown(text)
    demo.load(
        None,
        None,
        shown,
        js=f"() => {json.dumps(text)}.replaceAll({LOCAL_ADDRESS!r}, window.location.origin)",
        api_visibility="private",
    )


def batch_tab(
    shelf: ModelShelf,
    action: Callable,
    api_name: str,
    columns: Sequence[str],
    kinds: Sequence[Any],
    widths: Sequence[int],
    default: str,
) -> None:
    """Add a tab for several images, with a table that grows while they are processed.

    Args:
        shelf: the models.
        action: takes files, model and resolution; yields the rows of the table, and finally its file.
        api_name: name of the endpoint.
        columns: the table's headers.
        kinds: Gradio's types of the columns.
        widths: widths of the columns, in percent.
        default: name of the model selected initially.
    """
    with gr.Row():
        with gr.Column():
            files = gr.File(
                label=f"Images, or zip archives of images (at most {MAX_IMAGES} images)",
                file_count="multiple",
                height=160,
            )
        with gr.Column():
            model = model_selector(shelf, value=default)
            resolution = resolution_slider()
    with gr.Row():
        start = gr.Button("Start", variant="primary")
        stop = gr.Button("Stop", variant="stop")
    problem = error_message()
    table = gr.Dataframe(
        headers=list(columns),
        datatype=kinds,
        column_widths=[f"{width}%" for width in widths],
        interactive=False,
        wrap=True,
        label="Results",
    )
    download = gr.File(label="Table as CSV", interactive=False, height=140)
    inputs, outputs = [files, model, resolution], [table, download]

    def act(
        files: list[str] | None,
        model_name: str,
        resolution: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio finds out by it that progress is reported
    ) -> Iterator[tuple[Any, ...]]:
        try:
            for results in action(files, model_name, resolution, progress):
                yield (*results, show_error(None))
        except gr.Error as error:
            yield None, None, show_error(error)

    running = start.click(
        act,
        inputs,
        [*outputs, problem],
        api_visibility="private",
        concurrency_limit=BATCH_CONCURRENCY,
        # Progress must not be shown on the table, which would cover it.
        show_progress_on=download,
    )
    stop.click(None, cancels=[running], api_visibility="private")
    endpoint(action, inputs, outputs, api_name, concurrency_limit=BATCH_CONCURRENCY)


def models_of_environment() -> list[str]:
    """The models in the environment variable: one folder, whose path may have spaces, or several separated by spaces."""
    value = os.environ.get(MODEL_VARIABLE, "").strip()
    return [value] if value and Path(value).is_dir() else value.split()


@dataclass
class PageArguments:
    """Options of a page."""

    model: list[str] = field(
        default_factory=models_of_environment,
        metadata={
            "help": "Models to list before the others, the first one as the default: folders, or repositories on the Hub "
            f"(also in the environment variable {MODEL_VARIABLE}, separated by spaces)."
        },
    )


def serve(build: Callable[[list[str]], gr.Blocks], args: PageArguments) -> None:
    """Build a page for the given models, and serve it at `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for chatty in ("httpx", "mcp"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    disable_progress_bar()
    demo = build(args.model)
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENCY)
    demo.launch(
        theme=THEME,
        css=CSS,
        js=NAME_BUTTONS,
        max_file_size=MAX_FILE_SIZE,
        # Show the messages of Gradio's own errors, also to API clients. They have no traceback.
        show_error=True,
        # Monitoring would print a URL with a token.
        enable_monitoring=False,
        ssr_mode=False,
        # Assistants can use the Space if Gradio's extra `mcp` is installed.
        mcp_server=find_spec("mcp") is not None,
        share=False,
        footer_links=["api", "settings"],
    )


def blocks(title: str) -> gr.Blocks:
    return gr.Blocks(title=title, analytics_enabled=False, delete_cache=(FILE_LIFETIME, FILE_LIFETIME))
