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
"""The page around the models: its parts, its errors, its command line, and how it is served."""

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from .pictures import FORMAT_NAMES, MAX_FILE_SIZE, MAX_PICTURES, MAX_PIXELS, PictureError, read_picture


logger = logging.getLogger(__name__)

MODEL_VARIABLE = "TWINS_MODEL"
# Requests that are worked on at a time, and that may wait: beyond that, people are told to come back.
CONCURRENCY, BATCH_CONCURRENCY, QUEUE_SIZE = 16, 2, 256
# Seconds after which the files of the page's visitors are deleted.
FILE_LIFETIME = 3600
LIMITS = (
    f"Pictures: {FORMAT_NAMES}, at most {MAX_FILE_SIZE >> 20} MB and {MAX_PIXELS // 10**6} megapixels each (a quarter of these with "
    "32 bits a pixel). The first frame is read, upright; 16 bits a pixel are scaled to 8, and what is transparent is composited "
    "on white. Batches: at most "
    f"{MAX_PICTURES} pictures, also in zip archives. What is sent is deleted after {FILE_LIFETIME // 3600} hour."
)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Let whoever is at the page, or at its API, read one sentence of ours, and the log have the rest."""
    try:
        yield
    except (PictureError, ModelError, ExplanationError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("a request failed")
        raise gr.Error(
            "Something went wrong here, not with what you sent: try again later.", print_exception=False
        ) from error


def picture_input() -> gr.Image:
    """A picture that somebody uploads, pastes or takes with a webcam."""
    image = gr.Image(label="Picture", type="pil", sources=["upload", "webcam", "clipboard"], height=300)
    # Gradio would open the file in a way of its own, before any of our code runs: a bad one would get an error without a
    # sentence, and one of 16 bits would be cut off at 255. Not in a subclass: it would write a stub beside the source of it.
    image.preprocess = read_upload  # type: ignore[method-assign]
    return image


def read_upload(payload: Any) -> PIL.Image.Image | None:
    if payload is None or not payload.path:
        return None
    with errors_for_people():
        return read_picture(Path(payload.path))


def picture_output(label: str, **options: Any) -> gr.Image:
    """A picture that is shown pixel by pixel; its label, which would cover a corner of it, is for screen readers alone."""
    image = gr.Image(
        label=label, show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"], **options
    )
    postprocess = image.postprocess

    def postprocess_alone(value: PIL.Image.Image | np.ndarray | None) -> Any:
        if value is not None:
            value = PIL.Image.fromarray(value) if isinstance(value, np.ndarray) else value.copy()
            # Gradio names files by their content, and writes once more into one that somebody else may just be sent.
            value.info["answer"] = uuid4().hex
        return postprocess(value)

    image.postprocess = postprocess_alone  # type: ignore[method-assign, assignment]
    return image


def result_file(name: str, content: bytes) -> str:
    """Keep a file for whoever asked for it, as long as Gradio keeps its own, and give its path."""
    # A folder of its own, for the same reason.
    file = Path(get_upload_folder()) / uuid4().hex / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return str(file)


def require(image: PIL.Image.Image | None) -> PIL.Image.Image:
    if image is None:
        raise PictureError("There is no picture yet: upload, paste or take one, or choose an example.")
    return image


def write_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """A table as a file, in which no name of a file is a formula for a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(
        [f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell for cell in row]
        for row in rows
    )
    return text.getvalue().encode()


def model_selector(shelf: ModelShelf, label: str = "Model", value: str | None = None) -> gr.Dropdown:
    return gr.Dropdown(shelf.names, value=value or shelf.names[0], label=label)


def resolution_slider() -> gr.Slider:
    return gr.Slider(
        *(50, 200, 100),
        step=12.5,
        label="Input resolution",
        info="Percent of the size that the model was trained with.",
    )


def example_gallery(folder: Path, pattern: str, image: gr.Image, label: str) -> None:
    gr.Examples(
        sorted(str(file) for file in folder.glob(pattern)),
        image,
        cache_examples=False,
        label=label,
        api_visibility="private",
        examples_per_page=12,
    )


def batch_tab(
    shelf: ModelShelf, action: Callable, api_name: str, columns: Sequence[str], kinds: Sequence[Any]
) -> None:
    """Several pictures, and a table that grows while one watches.

    Args:
        shelf: the models.
        action: of files, model and resolution; yields the rows of the table, and at last its file.
        api_name: of the endpoint.
        columns: the table's headers.
        kinds: Gradio's types of the columns.
    """
    with gr.Row():
        with gr.Column():
            files = gr.File(
                label=f"Pictures, or zip archives of pictures (at most {MAX_PICTURES} pictures)",
                file_count="multiple",
                height=160,
            )
        with gr.Column():
            model = model_selector(shelf)
            resolution = resolution_slider()
    with gr.Row():
        start = gr.Button("Start", variant="primary")
        stop = gr.Button("Stop", variant="stop")
    table = gr.Dataframe(headers=list(columns), datatype=kinds, interactive=False, wrap=True, label="Results")
    download = gr.File(label="Table as CSV", interactive=False, height=140)
    running = start.click(
        action,
        [files, model, resolution],
        [table, download],
        api_name=api_name,
        concurrency_limit=BATCH_CONCURRENCY,
        # The table can be seen meanwhile.
        show_progress_on=download,
    )
    stop.click(None, cancels=[running], api_visibility="private")


def only_with_picture(action: Callable, num_outputs: int) -> Callable:
    """An action for what is changed on the page, which clears its results where there is no picture."""

    def act(image: PIL.Image.Image | None, *others: Any) -> Any:
        return (None,) * num_outputs if image is None else action(image, *others)

    return act


@dataclass
class PageArguments:
    """Options of a page."""

    model: list[str] = field(
        default_factory=lambda: os.environ.get(MODEL_VARIABLE, "").split(),
        metadata={
            "help": "Models to offer before the others, the first one as the default: folders, or repositories on the Hub "
            f"(also in the environment variable {MODEL_VARIABLE}, with spaces between)."
        },
    )


def serve(build: Callable[[list[str]], gr.Blocks], args: PageArguments) -> None:
    """Build a page for the models asked for, and serve it where `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT` say."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    disable_progress_bar()
    demo = build(args.model)
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENCY)
    demo.launch(
        theme=gr.themes.Default(primary_hue="indigo"),
        max_file_size=MAX_FILE_SIZE,
        show_error=False,
        # It would print an address with a token in it.
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        share=False,
        footer_links=["api", "settings"],
    )


def blocks(title: str) -> gr.Blocks:
    return gr.Blocks(title=title, analytics_enabled=False, delete_cache=(FILE_LIFETIME, FILE_LIFETIME))
