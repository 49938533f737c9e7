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
"""A page where a person drops a picture and sees what Twins says, and where it looks.

    python spaces/image_classification/app.py
    python spaces/image_classification/app.py --model outputs/quickstart timm/twins_svt_small.in1k

It starts with two small models of handwritten digits that lie beside it, and offers the six published variants where
there is a network, or where they were downloaded before.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import gradio as gr
import numpy as np
import PIL.Image


HERE = Path(__file__).resolve().parent
# What the Spaces share lies beside this file once the Space is assembled, and one folder up in the repository.
sys.path.append(str(HERE.parent))

from twins_space import drawing, models, page, pictures

from hf_twins import TWINS_VARIANTS, load_model
from hf_twins._utils.labels import distinct_names


TOP_K = 5
BATCH_COLUMNS = ["file", "label", "probability", "problem"]
ABOUT = f"""
### From Python, or any other language

Everything above is also an API, without a key. *Use via API*, at the bottom of the page, has each endpoint's arguments.

```python
from gradio_client import Client, handle_file

client = Client("https://ORG-NAME.hf.space")  # or http://127.0.0.1:7860
label, seen, details = client.predict(handle_file("picture.png"), api_name="/classify")
print(label["label"], label["confidences"][0]["confidence"])
```

| endpoint | takes | gives |
|---|---|---|
| `/classify` | picture, model, resolution | label with the five largest probabilities; what the model saw; how long it took |
| `/explain` | picture, model, resolution, method, stage, layer (`"1"`, ..., or `"last"`), opacity | the overlay; what it is |
| `/compare` | picture, two models, resolution | label, overlay and time of each |
| `/classify_batch` | files, model, resolution | a table; the same as a CSV file |
| `/describe_model` | model | what it is, and which models are in memory |

{page.LIMITS}

### What the pictures of attention show

**Grad-CAM**: which parts of a stage's output speak for the label. **Attention**: the attention that all tokens pay to each
place, the mean of a layer's heads; layers with locally-grouped attention (LSA) look within windows only, those with global
sub-sampled attention (GSA) at a square of tokens at a time. **Attention rollout**: how much of what a stage gives comes from
each token that the stage was given. None of them is a proof: they show where the model read, not why.

### Credits

Twins is the work of [Chu et al., NeurIPS 2021](https://huggingface.co/papers/2104.13840). Digits:
[Optical Recognition of Handwritten Digits](https://archive.ics.uci.edu/dataset/80) (CC BY 4.0), from scikit-learn; the
models have not seen those in the gallery. Photographs, from scikit-image: *Chelsea*, by Stéfan van der Walt (CC0); *coffee*, by
Rachel Michetti (CC0); *astronaut*, Eileen Collins, NASA (public domain).
"""


def load(location: str) -> tuple[Any, Any]:
    return load_model(location, "image-classification")


def find_models(asked_for: list[str]) -> tuple[dict[str, str], str]:
    """What the page offers, and a sentence that says so."""
    bundled = [str(folder) for folder in sorted((HERE / "models").iterdir(), reverse=True)]
    published = {f"{name} (ImageNet-1k)": f"timm/{name.replace('-', '_')}.in1k" for name in TWINS_VARIANTS}
    is_online = models.hub_answers()
    offered = {name: repo_id for name, repo_id in published.items() if is_online or models.is_cached(repo_id)}
    locations = models.name_locations([*asked_for, *bundled]) | offered
    if len(offered) == len(published):
        return locations, "The six published models are downloaded when they are first chosen."
    return locations, (
        f"**Offline:** the Hub cannot be reached, so {len(offered) or 'none'} of the six published models can be chosen."
    )


class Classification:
    """What the page's buttons and the API's endpoints do."""

    def __init__(self, shelf: models.ModelShelf):
        self.shelf = shelf

    def top_labels(self, model: models.LoadedModel, output: models.Output) -> dict[str, float]:
        probabilities = output.logits.softmax(-1)
        top = probabilities.topk(min(TOP_K, len(probabilities)))
        # By the name alone, one of two labels of the same name would be missing.
        names = distinct_names(model.labels)
        return {names[index]: value for value, index in zip(top.values.tolist(), top.indices.tolist())}

    def details(self, model: models.LoadedModel, output: models.Output) -> str:
        height, width = output.pixel_values.shape[1:]
        shared = f", together with {output.batch_size - 1} other pictures" if output.batch_size > 1 else ""
        return f"{model.name} saw {height} x {width} pixels and took {output.seconds * 1000:.0f} ms{shared}."

    def classify(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float
    ) -> tuple[dict[str, float], PIL.Image.Image, str]:
        """Say what is in a picture: the five most probable labels, what the model saw of the picture, and how long it
        took."""
        with page.errors_for_people():
            model = self.shelf.get(model_name)
            output = model(model.prepare(page.require(image), resolution))
            seen = drawing.draw_input(output.pixel_values, model.processor)
            return self.top_labels(model, output), seen, self.details(model, output)

    def draw_map(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float, method: str, stage: str, layer: str
    ) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """What the model saw, where it looked, as large, and what that is."""
        model = self.shelf.get(model_name)
        pixel_values = model.prepare(page.require(image), resolution)
        heat, stride = drawing.explain(model, pixel_values, method, stage, str(layer))
        seen = drawing.draw_input(pixel_values, model.processor)
        height, width = pixel_values.shape[1:]
        caption = f"{method} of {stage}, {heat.shape[0]} x {heat.shape[1]} values of {stride} x {stride} pixels"
        return seen, drawing.spread_map(heat, stride, (height, width), seen), caption

    def explain(
        self,
        image: PIL.Image.Image | None,
        model_name: str,
        resolution: float,
        method: str,
        stage: str,
        layer: str,
        opacity: float,
    ) -> tuple[PIL.Image.Image, str]:
        """Show where a model looked in a picture: Grad-CAM, attention or attention rollout, over what it saw."""
        with page.errors_for_people():
            seen, heat, caption = self.draw_map(image, model_name, resolution, method, stage, layer)
            return drawing.overlay(seen, heat, opacity), caption

    def compare(
        self, image: PIL.Image.Image | None, first_model: str, second_model: str, resolution: float
    ) -> tuple[Any, ...]:
        """Show what two models say of one picture, and Grad-CAM of the last but one stage of each."""
        results: list[Any] = []
        with page.errors_for_people():
            for name in (first_model, second_model):
                labels, _, details = self.classify(image, name, resolution)
                stage = self.shelf.get(name).config.stage_names[-2]
                seen, heat, _ = self.draw_map(image, name, resolution, "Grad-CAM", stage, drawing.LAST_LAYER)
                results += [labels, drawing.overlay(seen, heat, 0.5), details]
        return tuple(results)

    def classify_batch(
        self, files: list[str] | None, model_name: str, resolution: float, progress: gr.Progress = gr.Progress()
    ) -> Iterator[tuple[list[list[Any]], str | None]]:
        """Say what is in each of several pictures, or zip archives of pictures: a table, and the same as a CSV file."""
        with page.errors_for_people():
            found = pictures.list_pictures([Path(file) for file in files or []])
            progress((0, len(found)), desc=f"Loading {model_name}")
            model = self.shelf.get(model_name)
        rows: list[list[Any]] = []
        for name, image in pictures.read_pictures(found):
            with page.errors_for_people():
                rows.append([name, *self.classify_one(model, image, resolution)])
            progress((len(rows), len(found)), desc=f"{len(rows)} of {len(found)} pictures")
            # So that the table grows before one's eyes, and stopping loses nothing.
            if len(rows) % 10 == 0:
                yield rows, None
        yield rows, page.result_file("predictions.csv", page.write_csv(BATCH_COLUMNS, rows))

    def classify_one(
        self, model: models.LoadedModel, image: PIL.Image.Image | pictures.PictureError, resolution: float
    ) -> tuple[str, float | None, str]:
        """Label, probability and problem of a picture in a batch, of which one bad file is not the end."""
        if isinstance(image, pictures.PictureError):
            return "", None, str(image)
        ((label, probability), *_) = self.top_labels(model, model(model.prepare(image, resolution))).items()
        return label, round(probability, 4), ""

    def describe_model(self, model_name: str) -> str:
        """Load a model, and say what it is and which ones are in memory."""
        with page.errors_for_people():
            return self.shelf.describe(model_name)

    def layers(self, model_name: str, stage: str, chosen: str) -> dict[str, Any]:
        """The choice of layers that belongs to a model and a stage; what was chosen stays if it is among them."""
        with page.errors_for_people():
            choices = drawing.layer_choices(self.shelf.get(model_name), stage)
        is_there = chosen in [value for _, value in choices]
        return gr.update(choices=choices, value=chosen if is_there else drawing.LAST_LAYER)


def build(asked_for: list[str]) -> gr.Blocks:
    locations, availability = find_models(asked_for)
    shelf = models.ModelShelf(locations, load)
    actions = Classification(shelf)
    with page.blocks("Twins: image classification") as demo:
        gr.Markdown(
            "# What Twins sees\n\nBring a picture: a [Twins vision transformer]"
            f"(https://huggingface.co/papers/2104.13840) says what it is, and where it looked. {availability}"
        )
        with gr.Tab("Classify"):
            classify_tab(actions)
        with gr.Tab("Compare"):
            compare_tab(actions)
        with gr.Tab("Batch"):
            page.batch_tab(
                shelf, actions.classify_batch, "classify_batch", BATCH_COLUMNS, ["str", "str", "number", "str"]
            )
        with gr.Tab("API and credits"):
            gr.Markdown(ABOUT)
    return demo


def classify_tab(actions: Classification) -> None:
    with gr.Row():
        with gr.Column():
            image = page.picture_input()
            model = page.model_selector(actions.shelf)
            status = gr.Markdown("The model is loaded when it is first needed.")
            resolution = page.resolution_slider()
            start = gr.Button("Classify", variant="primary")
            page.example_gallery(HERE / "examples", "digit_*.png", image, "Digits, for the digit models")
            page.example_gallery(
                HERE / "examples",
                "*.jpg",
                image,
                "Photographs, for models of ImageNet-1k (a digit model sees a digit in each)",
            )
        with gr.Column():
            label = gr.Label(num_top_classes=TOP_K, label="What it is")
            details = gr.Markdown(container=False)
            with gr.Row():
                with gr.Column(min_width=200):
                    gr.Markdown("What the model saw")
                    seen = page.picture_output("What the model saw")
                with gr.Column(min_width=200):
                    gr.Markdown("Where it looked")
                    overlay = page.picture_output("Where it looked", elem_id="overlay")
            caption = gr.Markdown(container=False)
            method = gr.Radio(list(drawing.METHODS), value=drawing.METHODS[0], label="Explanation")
            with gr.Row():
                stages = [f"stage{index}" for index in range(1, 5)]
                stage = gr.Dropdown(stages, value="stage3", label="Stage", min_width=120)
                layer = gr.Dropdown(
                    [drawing.LAST_LAYER],
                    value=drawing.LAST_LAYER,
                    label="Layer, for attention",
                    allow_custom_value=True,
                    min_width=160,
                )
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the overlay")
    picture_inputs = [image, model, resolution]
    explain_inputs = [*picture_inputs, method, stage, layer, opacity]
    explain_outputs = [overlay, caption]
    private: dict[str, Any] = {"api_visibility": "private"}

    described = model.change(actions.describe_model, model, status, api_name="describe_model")
    classified = start.click(actions.classify, picture_inputs, [label, seen, details], api_name="classify")
    explained = classified.success(actions.explain, explain_inputs, explain_outputs, api_name="explain")
    explained.success(actions.describe_model, model, status, **private, show_progress="hidden")
    stage.change(actions.layers, [model, stage, layer], layer, **private)
    for changed in (image.change, described.success, resolution.release):
        again = changed(page.only_with_picture(actions.classify, 3), picture_inputs, [label, seen, details], **private)
        shown_again = again.success(
            page.only_with_picture(actions.explain, 2), explain_inputs, explain_outputs, **private
        )
        told = shown_again.success(actions.describe_model, model, status, **private, show_progress="hidden")
        told.success(actions.layers, [model, stage, layer], layer, **private, show_progress="hidden")
    for chosen in (method.change, stage.change, layer.change, opacity.release):
        chosen(page.only_with_picture(actions.explain, 2), explain_inputs, explain_outputs, **private)


def compare_tab(actions: Classification) -> None:
    names = actions.shelf.names
    with gr.Row():
        with gr.Column():
            image = page.picture_input()
        with gr.Column():
            first = page.model_selector(actions.shelf, "First model")
            second = page.model_selector(actions.shelf, "Second model", names[min(1, len(names) - 1)])
            resolution = page.resolution_slider()
            start = gr.Button("Compare", variant="primary")
            page.example_gallery(HERE / "examples", "digit_*.png", image, "Digits")
    outputs: list[Any] = []
    with gr.Row():
        for which in ("First model", "Second model"):
            with gr.Column():
                outputs.append(gr.Label(num_top_classes=TOP_K, label=f"{which}: what it is"))
                outputs.append(page.picture_output(f"{which}: where it looked", height=300))
                outputs.append(gr.Markdown(container=False))
    start.click(actions.compare, [image, first, second, resolution], outputs, api_name="compare")


if __name__ == "__main__":
    run(partial(page.serve, build), page.PageArguments)
