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
"""Serve a page that shows what Twins recognizes in an image, and where it looked.

    python spaces/image_classification/app.py
    python spaces/image_classification/app.py --model outputs/quickstart timm/twins_svt_small.in1k

It starts with a published ImageNet model or, if none is cached and the Hub cannot be reached, with one of two small
bundled models of handwritten digits.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run


HERE = Path(__file__).resolve().parent
# The code that the Spaces share is next to this file in an assembled Space, and one folder up in the repository.
sys.path.append(str(HERE.parent))

from twins_space.temporary_files import use_own_folder


if __name__ == "__main__":
    # Before Gradio is imported, which reads the environment then.
    use_own_folder()

import gradio as gr
import numpy as np
import PIL.Image
from twins_space import drawing, models, page, uploads

from hf_twins import TWINS_VARIANTS, load_model
from hf_twins._utils.labels import distinct_names
from hf_twins._utils.scores import class_scores


TOP_K, OPACITY = 5, 0.5
BATCH_COLUMNS = ["file", "label", "probability", "problem"]
IMAGENET = "1,000 ImageNet classes"
DIGITS = "10 digits"
# The first one is the page's default, and the Space's metadata asks for it to be downloaded when the Space is built.
PUBLISHED = {
    name: f"timm/{name.replace('-', '_')}.in1k"
    for name in ("twins-svt-small", *TWINS_VARIANTS)
    if name in TWINS_VARIANTS
}
EXAMPLES = HERE / "examples"
PHOTOGRAPHS = {
    "cat": EXAMPLES / "chelsea.jpg",
    "coffee": EXAMPLES / "coffee.jpg",
    "astronaut": EXAMPLES / "astronaut.jpg",
}
DIGIT_IMAGES = {f"digit {digit}": EXAMPLES / f"digit_{digit}.png" for digit in (7, 0, 1, 2, 3, 4, 5, 6, 8, 9)}
ABOUT = f"""
### From Python, or any other language

This page is also available as an API, without a key. *Use via API*, at the bottom, lists each endpoint's arguments.

```python
from gradio_client import Client, handle_file

client = Client("{page.LOCAL_ADDRESS}")
prediction, seen, details = client.predict(handle_file("image.png"), api_name="/classify")
print(prediction["label"], prediction["confidences"][0]["confidence"])
```

| endpoint | inputs | outputs |
|---|---|---|
| `/classify` | image, model, resolution | the five most probable labels; the model's input; time and size |
| `/explain` | image, model, resolution, method, stage, layer (`"1"`, ..., or `"last"`), opacity | the overlay; its caption |
| `/compare` | image, two models, resolution | for each model: labels, overlay, time and size |
| `/classify_batch` | files, model, resolution | a table; the same table as a CSV file |
| `/describe_model` | model | its size and labels, and which models are in memory |

Assistants that support MCP can call the same endpoints as tools at `{page.LOCAL_ADDRESS}/gradio_api/mcp/`.

{page.LIMITS}

### What the explanations show

**Grad-CAM**: which regions of a stage's output increase the score of the predicted label. **Attention**: how much attention each
region receives from all tokens, averaged over the heads of a layer. Layers with locally-grouped attention (LSA) attend within
windows, layers with global sub-sampled attention (GSA) to one token per square. **Attention rollout**: how much each input token of
a stage contributes to the stage's output. They show where a model looked, not why.

### Credits

Twins is the work of [Chu et al., NeurIPS 2021](https://huggingface.co/papers/2104.13840). Digits:
[Optical Recognition of Handwritten Digits](https://archive.ics.uci.edu/dataset/80) (CC BY 4.0), from scikit-learn; the example
digits were not used in training. Photographs, from scikit-image: *Chelsea*, by Stéfan van der Walt (CC0); *coffee*, by
Rachel Michetti (CC0); *astronaut*, Eileen Collins, NASA (public domain).
"""


def load(location: str) -> tuple[Any, Any]:
    return load_model(location, "image-classification")


def find_models(asked_for: list[str]) -> tuple[models.ModelShelf, str]:
    """The models that the page offers, the default first, and a notice about the others."""
    bundled = [str(folder) for folder in sorted((HERE / "models").iterdir(), reverse=True)]
    is_online = models.hub_answers()
    published = {
        name: repo_id
        for name, repo_id in PUBLISHED.items()
        if repo_id not in asked_for and (is_online or models.is_cached(repo_id))
    }
    own, digits = models.name_locations(asked_for), models.name_locations(bundled)
    # The models given by the user come last, so that they override bundled and published ones of the same name.
    locations = digits | published | own
    order = [*own, *published, *digits]
    shelf = models.ModelShelf(
        {name: locations[name] for name in order},
        load,
        recognized=dict.fromkeys(digits, DIGITS) | dict.fromkeys(published, IMAGENET) | models.count_labels(own),
    )
    if is_online:
        return shelf, "Published models are downloaded when you first choose them."
    return (
        shelf,
        f"Offline: the Hub cannot be reached, so {len(published) or 'none'} of the published models can be chosen.",
    )


class Classification:
    """Functions of the page and the API endpoints.

    Args:
        shelf: the models.
    """

    def __init__(self, shelf: models.ModelShelf):
        self.shelf = shelf

    def top_labels(self, model: models.LoadedModel, output: models.Output) -> dict[str, float]:
        scores = class_scores(output.logits, model.model.config)
        top = scores.topk(min(TOP_K, len(scores)))
        # Labels with the same name would otherwise be merged.
        names = distinct_names(model.labels)
        return {names[index]: value for value, index in zip(top.values.tolist(), top.indices.tolist())}

    def details(self, model: models.LoadedModel, output: models.Output) -> str:
        height, width = output.pixel_values.shape[1:]
        shared = f", in a batch with {output.batch_size - 1} other images" if output.batch_size > 1 else ""
        return f"{model.name}: input of {height} x {width} pixels, {output.seconds * 1000:.0f} ms{shared}"

    def classify(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float
    ) -> tuple[dict[str, float], PIL.Image.Image, str]:
        """Classify an image with a Twins model.

        Args:
            image: the image to classify.
            model_name: one of the models that this Space offers.
            resolution: size of the model's input, in percent of the size that the model was trained with.

        Returns:
            The five most probable labels, the model's input as an image, and the time that it took.
        """
        with page.errors_for_people():
            model = self.shelf.get(model_name)
            output = model(model.prepare(page.require(image), resolution))
            seen = drawing.draw_input(output.pixel_values, model.processor)
            return self.top_labels(model, output), seen, self.details(model, output)

    def draw_map(
        self, image: PIL.Image.Image | None, model_name: str, resolution: float, method: str, stage: str, layer: str
    ) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """The model's input, a map of where the model looked, at the same size, and a caption."""
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
        """Show which regions of an image a Twins model looked at.

        Args:
            image: the image to explain.
            model_name: one of the models that this Space offers.
            resolution: size of the model's input, in percent of the size that the model was trained with.
            method: Grad-CAM, Attention, or Attention rollout.
            stage: stage of the model, from stage1 (fine) to stage4 (coarse).
            layer: layer of the stage for Attention, "1" to the number of layers, or "last".
            opacity: opacity of the map, from 0 (only the image) to 1 (only the map).

        Returns:
            The map over the model's input, and its caption.
        """
        with page.errors_for_people():
            seen, heat, caption = self.draw_map(image, model_name, resolution, method, stage, layer)
            return drawing.overlay(seen, heat, opacity), caption

    def answer(
        self,
        image: PIL.Image.Image | None,
        model_name: str,
        resolution: float,
        method: str,
        stage: str,
        layer: str,
        opacity: float,
    ) -> tuple[Any, ...]:
        """Everything that the page shows for an image: results of `classify` and `explain`, stages, layers, model status."""
        labels, seen, details = self.classify(image, model_name, resolution)
        with page.errors_for_people():
            model = self.shelf.get(model_name)
            # The stage and the layer may have been chosen for another model, and not exist in this one.
            stages = drawing.stage_choices(model)
            stage = stage if stage in stages else drawing.default_stage(model)
            layers = drawing.layer_choices(model, stage)
        layer = layer if layer in [value for _, value in layers] else drawing.LAST_LAYER
        overlay, caption = self.explain(image, model_name, resolution, method, stage, layer, opacity)
        state = self.describe_model(model_name)
        stage_update, layer_update = gr.update(choices=stages, value=stage), gr.update(choices=layers, value=layer)
        return labels, details, seen, overlay, caption, stage_update, layer_update, state

    def compare(
        self, image: PIL.Image.Image | None, first_model: str, second_model: str, resolution: float
    ) -> tuple[Any, ...]:
        """Compare the labels and the Grad-CAM maps that two Twins models give for an image.

        Args:
            image: the image to classify.
            first_model: one of the models that this Space offers.
            second_model: another one.
            resolution: size of the models' inputs, in percent of the size that each was trained with.

        Returns:
            For each model: the five most probable labels, Grad-CAM of its third stage, and the time that it took.
        """
        results: list[Any] = []
        with page.errors_for_people():
            for name in (first_model, second_model):
                labels, _, details = self.classify(image, name, resolution)
                stage = drawing.default_stage(self.shelf.get(name))
                seen, heat, _ = self.draw_map(image, name, resolution, "Grad-CAM", stage, drawing.LAST_LAYER)
                results += [labels, drawing.overlay(seen, heat, 0.5), details]
        return tuple(results)

    def classify_batch(
        self, files: list[str] | None, model_name: str, resolution: float, progress: gr.Progress = gr.Progress()
    ) -> Iterator[tuple[list[list[Any]], str | None]]:
        """Classify several images, or zip archives of images, with a Twins model.

        Args:
            files: image files and zip archives.
            model_name: one of the models that this Space offers.
            resolution: size of the model's input, in percent of the size that the model was trained with.

        Returns:
            A table of the most probable label of each image, and the same table as a CSV file.
        """
        with page.errors_for_people():
            found = uploads.list_images([Path(file) for file in files or []])
            progress((0, len(found)), desc=f"Loading {model_name}")
            model = self.shelf.get(model_name)
        rows: list[list[Any]] = []
        for name, image in uploads.read_images(found):
            with page.errors_for_people():
                rows.append([name, *self.classify_one(model, image, resolution)])
            progress((len(rows), len(found)), desc=f"{len(rows)} of {len(found)} images")
            # Yield intermediate results, so that the table grows, and stopping loses nothing.
            if len(rows) % 10 == 0:
                yield rows, None
        yield rows, page.result_file("predictions.csv", page.write_csv(BATCH_COLUMNS, rows))

    def classify_one(
        self, model: models.LoadedModel, image: PIL.Image.Image | uploads.UploadError, resolution: float
    ) -> tuple[str, float | None, str]:
        """The label, probability and error of an image in a batch; an invalid file does not end the batch."""
        if isinstance(image, uploads.UploadError):
            return "", None, str(image)
        ((label, probability), *_) = self.top_labels(model, model(model.prepare(image, resolution))).items()
        return label, round(probability, 4), ""

    def describe_model(self, model_name: str) -> str:
        """Load a Twins model and describe it.

        Args:
            model_name: one of the models that this Space offers.

        Returns:
            Its numbers of parameters and labels and its input size, and which models are in memory.
        """
        with page.errors_for_people():
            return self.shelf.describe(model_name)


def first_answer(actions: Classification, notice: str) -> tuple[str, Path, tuple[Any, ...], str]:
    """The default model, an example with its results, which the page opens with, and the notice to show."""
    shelf = actions.shelf
    digits = [name for name in shelf.names if shelf.recognized.get(name) == DIGITS]

    def example_for(name: str) -> Path:
        return next(iter((DIGIT_IMAGES if name in digits else PHOTOGRAPHS).values()))

    def answer(name: str) -> tuple[Any, ...]:
        # Without a stage, the model's default one is shown.
        inputs = (name, 100, drawing.METHODS[0], "", drawing.LAST_LAYER, OPACITY)
        return actions.answer(uploads.read_upload(example_for(name)), *inputs)

    default, result = page.first_that_answers([shelf.names[0], *digits], answer)
    if default != shelf.names[0]:
        notice = f"{shelf.names[0]} could not be used, so the page starts with another model. {notice}"
    return default, example_for(default), result, notice


def build(asked_for: list[str]) -> gr.Blocks:
    asked_for = [*asked_for, *models.listed_models(HERE)]
    shelf, notice = find_models(asked_for)
    actions = Classification(shelf)
    default, example, answer, notice = first_answer(actions, notice)
    with page.blocks("Twins: image classification") as demo:
        gr.Markdown(
            "# What Twins sees\n\nChoose an image: a [Twins vision transformer]"
            "(https://huggingface.co/papers/2104.13840) names what is in it and shows where it looked.",
            elem_classes="heading",
        )
        with gr.Tab("Classify"):
            classify_tab(actions, default, example, answer, notice)
        with gr.Tab("Compare"):
            compare_tab(actions, default, example)
        with gr.Tab("Batch"):
            page.batch_tab(
                shelf,
                actions.classify_batch,
                "classify_batch",
                BATCH_COLUMNS,
                ["str", "str", "number", "str"],
                (25, 21, 28, 26),
                default,
            )
        with gr.Tab("API"):
            page.describe_api(demo, ABOUT)
    return demo


def examples_for(default_example: Path) -> dict[str, Path]:
    """All examples, those for the default model first."""
    digits_first = default_example in DIGIT_IMAGES.values()
    return DIGIT_IMAGES | PHOTOGRAPHS if digits_first else PHOTOGRAPHS | DIGIT_IMAGES


def classify_tab(actions: Classification, default: str, example: Path, answer: tuple[Any, ...], notice: str) -> None:
    labels, details_text, seen_image, overlay_image, caption_text, stage_update, layer_update, state = answer
    with gr.Row():
        with gr.Column():
            image = page.image_input(value=str(example))
            page.example_gallery(examples_for(example), image)
            model = page.model_selector(actions.shelf, value=default, info=notice)
        with gr.Column():
            problem = page.error_message()
            label = gr.Label(labels, num_top_classes=TOP_K, label="Prediction")
            details = gr.Markdown(details_text, label="Time and size", container=False)
            with gr.Row():
                with gr.Column(min_width=140):
                    gr.Markdown("Where the model looked")
                    overlay = page.image_output("Where the model looked", value=overlay_image)
                with gr.Column(min_width=140):
                    gr.Markdown("The model's input")
                    seen = page.image_output("The model's input", value=seen_image)
            caption = gr.Markdown(caption_text, label="Caption", container=False)
            with gr.Accordion("Options", open=False):
                resolution = page.resolution_slider()
                method = page.checked(gr.Radio(list(drawing.METHODS), value=drawing.METHODS[0], label="Explanation"))
                with gr.Row():
                    # The stages depend on the model, and the layers on both: they are checked together.
                    stage = gr.Dropdown(
                        stage_update["choices"],
                        value=stage_update["value"],
                        label="Stage",
                        allow_custom_value=True,
                        min_width=120,
                    )
                    layer = gr.Dropdown(
                        layer_update["choices"],
                        value=drawing.LAST_LAYER,
                        label="Layer, for attention",
                        allow_custom_value=True,
                        min_width=160,
                    )
                opacity = page.opacity_slider(OPACITY)
                status = gr.Markdown(state, label="Model", container=False)
    options: list[Any] = [model, resolution, method, stage, layer, opacity]
    results = [label, details, seen, overlay, caption]
    page.on_change(
        [image.change, *(option.input for option in options)],
        page.for_page(actions.answer, len(results), num_kept=3),
        [image, *options],
        [*results, stage, layer, status, problem],
    )
    sent = page.api_image()
    page.endpoint(actions.classify, [sent, model, resolution], [label, seen, details], "classify")
    page.endpoint(actions.explain, [sent, *options], [overlay, caption], "explain")
    page.endpoint(actions.describe_model, [model], [status], "describe_model")


def compare_tab(actions: Classification, default: str, example: Path) -> None:
    others = [name for name in actions.shelf.names if name != default]
    with gr.Row():
        with gr.Column():
            image = page.image_input()
            page.example_gallery(examples_for(example), image)
        with gr.Column():
            first = page.model_selector(actions.shelf, "First model", default)
            second = page.model_selector(actions.shelf, "Second model", (others or [default])[0])
            resolution = page.resolution_slider()
    problem = page.error_message()
    outputs: list[Any] = []
    with gr.Row():
        for which in ("First model", "Second model"):
            with gr.Column():
                outputs.append(gr.Label(num_top_classes=TOP_K, label=f"{which}: prediction"))
                outputs.append(page.image_output(f"{which}: where it looked", height=300))
                outputs.append(gr.Markdown(label=f"{which}: time and size", container=False))
    options: list[Any] = [first, second, resolution]
    page.on_change(
        [image.change, *(option.input for option in options)],
        page.for_page(actions.compare, len(outputs)),
        [image, *options],
        [*outputs, problem],
    )
    page.endpoint(actions.compare, [page.api_image(), *options], outputs, "compare")


if __name__ == "__main__":
    run(partial(page.serve, build), page.PageArguments)
