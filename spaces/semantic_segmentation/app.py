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
"""Serve a page that shows what Twins recognizes in each part of an image.

    python spaces/semantic_segmentation/app.py
    python spaces/semantic_segmentation/app.py --model path/to/a/converted/upernet

It starts with a model that OpenMMLab trained on ADE20K, once that is downloaded and converted; until then, or if it
cannot be downloaded, with a small bundled model for handwritten digits.
"""

import io
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run


HERE = Path(__file__).resolve().parent
# The code that the Spaces share, and the conversion, are next to this file in an assembled Space, and further up in
# the repository.
sys.path += [str(HERE.parent), str(HERE / "conversion"), str(HERE.parents[1] / "conversion")]

from twins_space.temporary_files import use_own_folder


if __name__ == "__main__":
    # Before Gradio is imported, which reads the environment then.
    use_own_folder()

import gradio as gr
import numpy as np
import PIL.Image
from checkpoint_formats import convert_checkpoint, image_processor
from checkpoint_sources import open_checkpoint
from downloads import cache_folder, read_kept
from twins_space import models, page, uploads

from hf_twins import load_model
from hf_twins._utils.drawing import class_areas, is_background, label_colors, mask_image, overlay_mask
from hf_twins.checkpoints import published_checkpoints
from hf_twins.image_processing_twins import likeliest_classes
from hf_twins.loading import CroppingProcessorError


OPACITY = 0.6
LEGEND_COLUMNS = ["color", "class", "pixels", "%"]
BATCH_COLUMNS = ["file", "class", "pixels", "%", "problem"]
ADE20K, DIGITS = "150 ADE20K classes", "10 digits"
# The published model that the page starts with.
DEFAULT = "twins-svt-small-semantic-fpn-ade20k"
EXAMPLES = HERE / "examples"
PHOTOGRAPHS = {"palace": EXAMPLES / "china.jpg", "coffee": EXAMPLES / "coffee.jpg"}
SCENES = {f"scene {index}": EXAMPLES / f"scene_{index}.jpg" for index in range(1, 7)}
ABOUT = f"""
### From Python, or any other language

This page is also available as an API, without a key. *Use via API*, at the bottom, lists each endpoint's arguments.

```python
from gradio_client import Client, handle_file

client = Client("{page.LOCAL_ADDRESS}")
overlay, areas, mask, details = client.predict(handle_file("image.png"), api_name="/segment")
print(areas["data"], mask)
```

| endpoint | inputs | outputs |
|---|---|---|
| `/segment` | image, model, resolution, opacity | the classes in colors over the image; the area of each; the mask as a PNG; time and size |
| `/segment_batch` | files, model, resolution | a table of areas; the same table as a CSV file |
| `/describe_model` | model | its size and labels, and which models are in memory |

Assistants that support MCP can call the same endpoints as tools at `{page.LOCAL_ADDRESS}/gradio_api/mcp/`.

The mask has the size of the image. It is a palette PNG: its pixels are class indices, shown in the colors of this page. For a
model with more than 256 classes, it is a grayscale PNG with 16 bits per pixel.

{page.LIMITS}

### Credits

Twins is the work of [Chu et al., NeurIPS 2021](https://huggingface.co/papers/2104.13840). Digits in the example scenes:
[Optical Recognition of Handwritten Digits](https://archive.ics.uci.edu/dataset/80) (CC BY 4.0), from scikit-learn; the
bundled model was not trained on them. Photographs: *china*, by danielbuechele (CC BY 2.0), from scikit-learn; *coffee*, by Rachel
Michetti (CC0), from scikit-image. The ADE20K models were trained and published by
[OpenMMLab](https://github.com/open-mmlab/mmsegmentation/tree/main/configs/twins).
"""


def published_models() -> dict[str, str]:
    """The URLs of the published ADE20K models by name, the default first."""
    found = {name: entry["url"] for name, entry in published_checkpoints().items() if "ade20k_miou" in entry}
    return {name: found[name] for name in sorted(found, key=lambda name: name != DEFAULT)}


def is_downloaded(address: str) -> bool:
    return read_kept(cache_folder(address)) is not None


def load_published(name: str) -> tuple[Any, Any]:
    """Download a published checkpoint, unless it is cached, check its hash, and convert it."""
    checkpoint = open_checkpoint(name)
    conversion = convert_checkpoint(checkpoint.weights, checkpoint.meta)
    return conversion.model, image_processor(conversion)


def load(location: str) -> tuple[Any, Any]:
    if location in published_models():
        return load_published(location)
    try:
        return load_model(location, "semantic-segmentation")
    except CroppingProcessorError as error:
        raise models.ModelError(
            f"The image processor of {Path(location).name} crops images (do_center_crop=True), but segmentation needs the "
            "whole image: choose another model."
        ) from error


def encode_png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def readable_on(color: list[int]) -> str:
    """Black or white, whichever has more contrast on a color by WCAG's relative luminance."""
    linear = [(value / 255 / 12.92) if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in color]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "black" if luminance > 0.179 else "white"


def legend(areas: list[tuple[int, str, int, float]], labels: list[str]) -> dict[str, Any]:
    """The table of areas, with a cell in the color of each class; the background has no color over the image."""
    palette = label_colors(labels).tolist()
    rows, styles = [], []
    for index, name, *numbers in areas:
        color, style = "", ""
        if not is_background(name):
            color = "#{:02x}{:02x}{:02x}".format(*palette[index])
            style = f"background: {color}; color: {readable_on(palette[index])}"
        rows.append([color, name, *numbers])
        styles.append([style, "", "", ""])
    return {"headers": LEGEND_COLUMNS, "data": rows, "metadata": {"styling": styles}}


class Segmentation:
    """Functions of the page and the API endpoints.

    Args:
        shelf: the models.
    """

    def __init__(self, shelf: models.ModelShelf):
        self.shelf = shelf
        # Resizing takes more memory than anything else here, and uses all cores, so that more at a time would not be faster.
        self.resizing = threading.Lock()

    def find_mask(
        self, model: models.LoadedModel, image: PIL.Image.Image, resolution: float
    ) -> tuple[np.ndarray, models.Output]:
        """Compute the class of each pixel of an image, `(height, width)`, and return it with the model's output."""
        output = model(model.prepare(image, resolution))
        with self.resizing:
            return likeliest_classes(output.logits, (image.height, image.width)).numpy(), output

    def areas(self, model: models.LoadedModel, mask: np.ndarray) -> list[tuple[int, str, int, float]]:
        """The index, name, pixels and percentage of each class in a mask, largest first."""
        return [
            (index, model.labels[index], area, round(100 * area / mask.size, 2))
            for index, area in class_areas(mask, len(model.labels)).items()
        ]

    def segment(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float, opacity: float
    ) -> tuple[PIL.Image.Image, dict[str, Any], str, str]:
        """Segment an image with a Twins model.

        Args:
            image: the image to segment.
            model_name: one of the models that this Space offers.
            resolution: size of the model's input, in percent of the size that the model was trained with.
            opacity: opacity of the colors, from 0 (only the image) to 1 (only the mask).

        Returns:
            The classes in colors over the image, a table of the area of each class, the mask as a PNG file of class
            indices, and the time that it took.
        """
        with page.errors_for_people():
            model = self.shelf.get(model_name)
            image = page.require(image)
            mask, output = self.find_mask(model, image, resolution)
            overlay = overlay_mask(image, mask, model.labels, opacity)
            height, width = output.pixel_values.shape[1:]
            details = f"{model.name}: input of {height} x {width} pixels, {output.seconds * 1000:.0f} ms"
            areas = legend(self.areas(model, mask), model.labels)
            return overlay, areas, page.result_file("mask.png", encode_png(mask_image(mask, model.labels))), details

    def segment_batch(
        self, files: list[str] | None, model_name: str, resolution: float, progress: gr.Progress = gr.Progress()
    ) -> Iterator[tuple[list[list[Any]], str | None]]:
        """Segment several images, or zip archives of images, with a Twins model.

        Args:
            files: image files and zip archives.
            model_name: one of the models that this Space offers.
            resolution: size of the model's input, in percent of the size that the model was trained with.

        Returns:
            A table of the area of each class in each image, and the same table as a CSV file.
        """
        with page.errors_for_people():
            found = uploads.list_images([Path(file) for file in files or []])
            progress((0, len(found)), desc=f"Loading {model_name}")
            model = self.shelf.get(model_name)
        rows: list[list[Any]] = []
        for count, (name, image) in enumerate(uploads.read_images(found), start=1):
            with page.errors_for_people():
                if isinstance(image, uploads.UploadError):
                    rows.append([name, "", None, None, str(image)])
                else:
                    mask, _ = self.find_mask(model, image, resolution)
                    rows += [[name, *area[1:], ""] for area in self.areas(model, mask)]
            progress((count, len(found)), desc=f"{count} of {len(found)} images")
            # Yield intermediate results, so that the table grows, and stopping loses nothing.
            if count % 10 == 0:
                yield rows, None
        yield rows, page.result_file("areas.csv", page.write_csv(BATCH_COLUMNS, rows))

    def describe_model(self, model_name: str) -> str:
        """Load a Twins model and describe it.

        Args:
            model_name: one of the models that this Space offers.

        Returns:
            Its numbers of parameters and labels and its input size, and which models are in memory.
        """
        with page.errors_for_people():
            return self.shelf.describe(model_name)

    def answer(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float, opacity: float
    ) -> tuple[Any, ...]:
        """Everything that the page shows for an image: results of `segment`, and the model status."""
        return *self.segment(image, model_name, resolution, opacity), self.describe_model(model_name)


def find_models(asked_for: list[str]) -> tuple[models.ModelShelf, str]:
    """The models that the page offers, and a notice about those to download."""
    bundled = models.name_locations([str(folder) for folder in sorted((HERE / "models").iterdir())])
    own = models.name_locations(asked_for)
    addresses = published_models()
    is_online = models.answers(addresses[DEFAULT]) if DEFAULT in addresses else False
    published = {name: name for name, address in addresses.items() if is_online or is_downloaded(address)}
    # The models given by the user come last, so that they override bundled and published ones of the same name.
    locations = bundled | published | own
    shelf = models.ModelShelf(
        {name: locations[name] for name in [*own, *published, *bundled]},
        load,
        recognized=dict.fromkeys(bundled, DIGITS) | dict.fromkeys(published, ADE20K) | models.count_labels(own),
    )
    if is_online:
        return shelf, "Published models are downloaded when you first choose them."
    return shelf, f"Offline: {'other' if published else 'the'} ADE20K models cannot be downloaded."


def first_answer(actions: Segmentation, notice: str) -> tuple[str, Path, tuple[Any, ...], str]:
    """The default model, an example with its results, which the page opens with, and the notice to show."""
    shelf = actions.shelf
    digits = [name for name in shelf.names if shelf.recognized.get(name) == DIGITS]
    first = shelf.names[0]

    def example_for(name: str) -> Path:
        return next(iter((SCENES if name in digits else PHOTOGRAPHS).values()))

    def answer(name: str) -> tuple[Any, ...]:
        return actions.answer(uploads.read_upload(example_for(name)), name, 100, OPACITY)

    if shelf.locations[first] == DEFAULT and not is_downloaded(published_models()[DEFAULT]):
        default, result = digits[0], answer(digits[0])
        notice = "An ADE20K model is being downloaded: reload this page later."
    else:
        default, result = page.first_that_answers([first, *digits], answer)
        if default != first:
            notice = f"{first} could not be used, so the page starts with another model. {notice}"
    return default, example_for(default), result, notice


def prepare(shelf: models.ModelShelf, name: str, is_ready: threading.Event) -> None:
    """Download and convert a model, while the page starts with another."""
    try:
        shelf.get(name)
    except models.ModelError:
        # The reason is in the log, and visitors who choose the model get an error message.
        return
    is_ready.set()


def build(asked_for: list[str]) -> gr.Blocks:
    shelf, notice = find_models([*asked_for, *models.listed_models(HERE)])
    actions = Segmentation(shelf)
    default, example, answer, notice = first_answer(actions, notice)
    with page.blocks("Twins: semantic segmentation") as demo:
        gr.Markdown(
            "# What Twins sees\n\nChoose an image: a [Twins vision transformer]"
            "(https://huggingface.co/papers/2104.13840) labels each part of it.",
        )
        with gr.Tab("Segment"):
            image, model = segment_tab(actions, default, example, answer, notice)
        with gr.Tab("Batch"):
            kinds = ["str", "str", "number", "number", "str"]
            widths = (25, 22, 17, 15, 21)
            page.batch_tab(shelf, actions.segment_batch, "segment_batch", BATCH_COLUMNS, kinds, widths, default)
        with gr.Tab("API"):
            page.describe_api(demo, ABOUT)
        if shelf.locations[shelf.names[0]] == DEFAULT != default:
            start_later(demo, shelf, image, model)
    return demo


def start_later(demo: gr.Blocks, shelf: models.ModelShelf, image: gr.Image, model: gr.Dropdown) -> None:
    """Make the page start with the published model and a photograph as soon as the model is available."""
    is_ready = threading.Event()
    photograph = page.sendable("palace", PHOTOGRAPHS["palace"])

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    chosen = demo.load(
        lambda: gr.update(value=DEFAULT, info="") if is_ready.is_set() else gr.skip(), None, model, **private
    )
    # The image is set after the model, because its change starts the segmentation, which must use the new model.
    chosen.success(lambda name: photograph if name == DEFAULT else gr.skip(), model, image, **private)
    threading.Thread(target=prepare, args=(shelf, DEFAULT, is_ready), daemon=True).start()


def segment_tab(
    actions: Segmentation, default: str, example: Path, answer: tuple[Any, ...], notice: str
) -> tuple[gr.Image, gr.Dropdown]:
    overlay_image, areas, mask_file, details_text, state = answer
    with gr.Row():
        with gr.Column():
            image = page.image_input(value=str(example))
            photographs_first = example in PHOTOGRAPHS.values()
            page.example_gallery(PHOTOGRAPHS | SCENES if photographs_first else SCENES | PHOTOGRAPHS, image)
            model = page.model_selector(actions.shelf, value=default, info=notice)
        with gr.Column():
            problem = page.error_message()
            overlay = page.image_output("Segmentation", value=overlay_image, height=300)
            legend = gr.Dataframe(
                areas,
                headers=LEGEND_COLUMNS,
                datatype=["str", "str", "number", "number"],
                column_widths=["24%", "34%", "24%", "18%"],
                interactive=False,
                label="Areas",
            )
            details = gr.Markdown(details_text, label="Time and size", container=False)
            mask = gr.File(mask_file, label="Mask as PNG", interactive=False, height=100)
            with gr.Accordion("Options", open=False):
                resolution = page.resolution_slider()
                opacity = page.opacity_slider(OPACITY)
                status = gr.Markdown(state, label="Model", container=False)
    options: list[Any] = [model, resolution, opacity]
    results = [overlay, legend, mask, details]
    page.on_change(
        [image.change, *(option.input for option in options)],
        page.for_page(actions.answer, len(results), num_kept=1),
        [image, *options],
        [*results, status, problem],
    )
    page.endpoint(actions.segment, [page.api_image(), *options], results, "segment")
    page.endpoint(actions.describe_model, [model], [status], "describe_model")
    return image, model


if __name__ == "__main__":
    run(partial(page.serve, build), page.PageArguments)
