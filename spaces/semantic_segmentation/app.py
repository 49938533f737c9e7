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
"""A page where a person drops a picture and sees which part of it Twins takes for what.

    python spaces/semantic_segmentation/app.py
    python spaces/semantic_segmentation/app.py --model path/to/a/converted/upernet

It starts with a small Semantic FPN, for handwritten digits in small scenes, that lies beside it.
"""

import io
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import gradio as gr
import numpy as np
import PIL.Image
import torch


HERE = Path(__file__).resolve().parent
# What the Spaces share lies beside this file once the Space is assembled, and one folder up in the repository.
sys.path.append(str(HERE.parent))

from twins_space import models, page, pictures

from hf_twins import load_model
from hf_twins._utils.drawing import class_areas, label_colors, mask_image, overlay_mask
from hf_twins.loading import CroppingProcessorError


LEGEND_COLUMNS = ["color", "class", "pixels", "%"]
BATCH_COLUMNS = ["file", "class", "pixels", "%", "problem"]
ABOUT = f"""
### From Python, or any other language

Everything above is also an API, without a key. *Use via API*, at the bottom of the page, has each endpoint's arguments.

```python
from gradio_client import Client, handle_file

client = Client("https://ORG-NAME.hf.space")  # or http://127.0.0.1:7860
overlay, legend, mask, details = client.predict(handle_file("picture.png"), api_name="/segment")
print(legend["data"], mask)
```

| endpoint | takes | gives |
|---|---|---|
| `/segment` | picture, model, resolution, opacity | the classes in colors over the picture; the area of each; the mask as a PNG file; how long it took |
| `/segment_batch` | files, model, resolution | a table of areas; the same as a CSV file |
| `/describe_model` | model | what it is, and which models are in memory |

The mask is as large as the picture. It is a palette PNG: its pixels are the classes' indices, its colors those of the page.
Of a model with more than 256 classes, it is a gray PNG with 16 bits a pixel.

{page.LIMITS}

### Credits

Twins is the work of [Chu et al., NeurIPS 2021](https://huggingface.co/papers/2104.13840). Digits in the gallery's scenes:
[Optical Recognition of Handwritten Digits](https://archive.ics.uci.edu/dataset/80) (CC BY 4.0), from scikit-learn; the
bundled model has not seen this handwriting.
"""


def load(location: str) -> tuple[Any, Any]:
    try:
        return load_model(location, "semantic-segmentation")
    except CroppingProcessorError as error:
        raise models.ModelError(
            f"The image processor of {Path(location).name} crops images (do_center_crop=True), but segmentation needs the "
            "whole image: choose another model."
        ) from error


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def legend(areas: list[tuple[int, str, int, float]], labels: list[str]) -> dict[str, Any]:
    """The table of areas, with a cell in the color of each class."""
    palette = label_colors(labels).tolist()
    colors = [palette[index] for index, *_ in areas]
    styles = [
        # On dark colors their name is white.
        [f"background: rgb{tuple(color)}; color: {'black' if sum(color) > 382 else 'white'}", "", "", ""]
        for color in colors
    ]
    rows = [["#{:02x}{:02x}{:02x}".format(*color), *area[1:]] for color, area in zip(colors, areas)]
    return {"headers": LEGEND_COLUMNS, "data": rows, "metadata": {"styling": styles}}


class Segmentation:
    """What the page's buttons and the API's endpoints do."""

    def __init__(self, shelf: models.ModelShelf):
        self.shelf = shelf

    def find_mask(
        self, model: models.LoadedModel, image: PIL.Image.Image, resolution: float
    ) -> tuple[np.ndarray, models.Output]:
        """The class of each pixel of a picture, `(height, width)`, and what it comes from."""
        output = model(model.prepare(image, resolution))
        logits = torch.nn.functional.interpolate(
            output.logits.unsqueeze(0), size=(image.height, image.width), mode="bilinear"
        )
        return logits[0].argmax(0).numpy(), output

    def areas(self, model: models.LoadedModel, mask: np.ndarray) -> list[tuple[int, str, int, float]]:
        """Index, name, pixels and percentage of each class in a mask, the largest first."""
        return [
            (index, model.labels[index], area, round(100 * area / mask.size, 2))
            for index, area in class_areas(mask, len(model.labels)).items()
        ]

    def segment(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float, opacity: float
    ) -> tuple[PIL.Image.Image, dict[str, Any], str, str]:
        """Say what each pixel of a picture is: the classes in colors over the picture, the area of each, and the mask as a
        PNG file."""
        with page.errors_for_people():
            model = self.shelf.get(model_name)
            image = page.require(image)
            mask, output = self.find_mask(model, image, resolution)
            overlay = overlay_mask(image, mask, model.labels, opacity)
            height, width = output.pixel_values.shape[1:]
            details = f"{model.name} saw {height} x {width} pixels and took {output.seconds * 1000:.0f} ms."
            areas = legend(self.areas(model, mask), model.labels)
            return overlay, areas, page.result_file("mask.png", png(mask_image(mask, model.labels))), details

    def segment_batch(
        self, files: list[str] | None, model_name: str, resolution: float, progress: gr.Progress = gr.Progress()
    ) -> Iterator[tuple[list[list[Any]], str | None]]:
        """Say what is in each of several pictures, or zip archives of pictures: a table of areas, also as a CSV file."""
        with page.errors_for_people():
            found = pictures.list_pictures([Path(file) for file in files or []])
            progress((0, len(found)), desc=f"Loading {model_name}")
            model = self.shelf.get(model_name)
        rows: list[list[Any]] = []
        for count, (name, image) in enumerate(pictures.read_pictures(found), start=1):
            with page.errors_for_people():
                if isinstance(image, pictures.PictureError):
                    rows.append([name, "", None, None, str(image)])
                else:
                    mask, _ = self.find_mask(model, image, resolution)
                    rows += [[name, *area[1:], ""] for area in self.areas(model, mask)]
            progress((count, len(found)), desc=f"{count} of {len(found)} pictures")
            # So that the table grows before one's eyes, and stopping loses nothing.
            if count % 10 == 0:
                yield rows, None
        yield rows, page.result_file("areas.csv", page.write_csv(BATCH_COLUMNS, rows))

    def describe_model(self, model_name: str) -> str:
        """Load a model, and say what it is and which ones are in memory."""
        with page.errors_for_people():
            return self.shelf.describe(model_name)


def build(asked_for: list[str]) -> gr.Blocks:
    bundled = [str(folder) for folder in sorted((HERE / "models").iterdir())]
    actions = Segmentation(models.ModelShelf(models.name_locations([*asked_for, *bundled]), load))
    with page.blocks("Twins: semantic segmentation") as demo:
        gr.Markdown(
            "# What Twins sees, pixel by pixel\n\nBring a picture: a [Twins vision transformer]"
            "(https://huggingface.co/papers/2104.13840) says what each part of it is. The bundled model knows bright "
            "handwritten digits on a dark ground, and nothing else."
        )
        with gr.Tab("Segment"):
            segment_tab(actions)
        with gr.Tab("Batch"):
            kinds = ["str", "str", "number", "number", "str"]
            page.batch_tab(actions.shelf, actions.segment_batch, "segment_batch", BATCH_COLUMNS, kinds)
        with gr.Tab("API and credits"):
            gr.Markdown(ABOUT)
    return demo


def segment_tab(actions: Segmentation) -> None:
    with gr.Row():
        with gr.Column():
            image = page.picture_input()
            model = page.model_selector(actions.shelf)
            status = gr.Markdown("The model is loaded when it is first needed.")
            resolution = page.resolution_slider()
            start = gr.Button("Segment", variant="primary")
            page.example_gallery(HERE / "examples", "*.jpg", image, "Scenes of handwritten digits")
        with gr.Column():
            overlay = page.picture_output("What is where", height=300, elem_id="overlay")
            opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity of the overlay")
            details = gr.Markdown(container=False)
            legend = gr.Dataframe(
                headers=LEGEND_COLUMNS, datatype=["str", "str", "number", "number"], interactive=False, label="Areas"
            )
            mask = gr.File(label="Mask as PNG", interactive=False, height=100)
    inputs, outputs = [image, model, resolution, opacity], [overlay, legend, mask, details]
    private: dict[str, Any] = {"api_visibility": "private"}

    described = model.change(actions.describe_model, model, status, api_name="describe_model")
    segmented = start.click(actions.segment, inputs, outputs, api_name="segment")
    segmented.success(actions.describe_model, model, status, **private, show_progress="hidden")
    for changed in (image.change, described.success, resolution.release, opacity.release):
        again = changed(page.only_with_picture(actions.segment, len(outputs)), inputs, outputs, **private)
        again.success(actions.describe_model, model, status, **private, show_progress="hidden")


if __name__ == "__main__":
    run(partial(page.serve, build), page.PageArguments)
