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
"""The models of a Space: they are loaded on first use, few are kept in memory, and requests are batched."""

import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, get_session, validate_repo_id
from transformers.utils import CONFIG_NAME

from hf_twins import TwinsConfig
from hf_twins._utils.labels import label_names

from .uploads import UploadError


logger = logging.getLogger(__name__)

# Files that `assemble.py --model` adds to a Space: a list of models, by Hub id or folder, and the parent of these
# folders.
MODEL_LIST, OWN_MODELS = "models.txt", "own_models"
# Two models must fit in memory, so that they can be compared.
MAX_LOADED = 2
MAX_BATCH_SIZE = 16
# Maximum size of an input, since a model's memory grows with it.
MAX_INPUT_PIXELS = 2**21
# Timeout in seconds for the test at the start whether the Hub can be reached.
HUB_TIMEOUT = 3.0


class ModelError(ValueError):
    """A model is not available; the message is for the visitor."""


@dataclass(frozen=True)
class Output:
    """A model's output for one image.

    Args:
        logits: logits of the image, without a batch dimension, float32.
        pixel_values: the model's input, `(num_channels, height, width)`, normalized.
        seconds: time that the batch took.
        batch_size: number of images in the batch, since simultaneous requests are computed together.
    """

    logits: torch.Tensor
    pixel_values: torch.Tensor
    seconds: float
    batch_size: int


class LoadedModel:
    """A model with its image processor.

    Requests that arrive while the model is busy wait. Those with inputs of the same size are then processed in one
    batch, in the thread of the first request.

    Args:
        name: name on the page.
        model: a classifier or a segmentation model.
        processor: image processor of the model.
    """

    def __init__(self, name: str, model: Any, processor: Any):
        self.name = name
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.processor = processor
        self.config = getattr(model.config, "backbone_config", None) or model.config
        if not isinstance(self.config, TwinsConfig):
            raise ModelError(f"{name} is not a Twins model: choose another.")
        if self.config.num_channels != 3:
            raise ModelError(
                f"{name} has num_channels={self.config.num_channels}, but this page has RGB images: choose another model."
            )
        if self.input_pixels(self.input_sizes(100), (1, 1)) > MAX_INPUT_PIXELS:
            raise ModelError(
                f"{name} takes inputs of more than {MAX_INPUT_PIXELS:,} pixels, the maximum of this page: choose another model."
            )
        self.waiting: list[tuple[torch.Tensor, Future[Output]]] = []
        self.waiting_lock = threading.Lock()
        self.running = threading.Lock()

    @property
    def labels(self) -> list[str]:
        return label_names(self.model.config)

    def prepare(self, image: PIL.Image.Image, resolution: float = 100) -> torch.Tensor:
        """Prepare an image as the model's input, `(num_channels, height, width)`.

        Args:
            image: image from a visitor.
            resolution: size of the input, in percent of the image processor's.

        Raises:
            UploadError: if the model's input would be too large.
        """
        sizes = self.input_sizes(resolution)
        if self.input_pixels(sizes, image.size) > MAX_INPUT_PIXELS:
            raise UploadError("This image is too large or too long for this resolution: lower it, or crop the image.")
        # A single image needs no padding.
        return self.processor(image, do_pad=False, return_tensors="pt", **sizes)["pixel_values"][0]

    def input_sizes(self, resolution: float) -> dict[str, dict[str, int]]:
        """The image processor's options `size` and, if it crops, `crop_size`, at a resolution in percent."""
        names = ("size", "crop_size") if self.processor.do_center_crop else ("size",)
        return {name: self.scaled(getattr(self.processor, name), resolution) for name in names}

    def input_pixels(self, sizes: dict[str, dict[str, int]], image_size: tuple[int, int]) -> float:
        """The number of pixels of the model's input for an image, at most."""
        short, long = sorted(image_size)
        if "crop_size" in sizes:
            return math.prod(sizes["crop_size"].values())
        if not self.processor.do_resize:
            return short * long
        if "shortest_edge" in sizes["size"]:
            return sizes["size"]["shortest_edge"] ** 2 * long / short
        return math.prod(sizes["size"].values())

    def scaled(self, sizes: Any, percent: float) -> dict[str, int]:
        return {
            name: max(math.floor(side * percent / 100 + 0.5), self.config.min_image_size)
            for name, side in dict(sizes).items()
            if side is not None
        }

    def __call__(self, pixel_values: torch.Tensor) -> Output:
        future: Future[Output] = Future()
        with self.waiting_lock:
            self.waiting.append((pixel_values, future))
        with self.running:
            while not future.done():
                self.run_next_batch()
        return future.result()

    def run_next_batch(self) -> None:
        with self.waiting_lock:
            shape = self.waiting[0][0].shape
            batch = [request for request in self.waiting if request[0].shape == shape][:MAX_BATCH_SIZE]
            taken = {id(future) for _, future in batch}
            self.waiting = [request for request in self.waiting if id(request[1]) not in taken]
        inputs, futures = zip(*batch)
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                logits = self.model(torch.stack(inputs).to(self.device)).logits.float().cpu()
        except Exception as error:
            for future in futures:
                future.set_exception(error)
            return
        seconds = time.perf_counter() - start
        for pixel_values, each, future in zip(inputs, logits, futures):
            future.set_result(Output(each.clone(), pixel_values, seconds, len(batch)))


class ModelShelf:
    """Models by name. They are loaded on first use, and the least recently used are evicted.

    Args:
        locations: maps the name of each model on the page to its folder or Hub id. The first model is the default.
        load: loads a model and an image processor from a folder or Hub id.
        capacity: number of models to keep in memory.
        recognized: maps names of models to what they can recognize, such as "10 digits", if known.
    """

    def __init__(
        self,
        locations: dict[str, str],
        load: Callable[[str], tuple[Any, Any]],
        capacity: int = MAX_LOADED,
        recognized: dict[str, str] | None = None,
    ):
        self.locations = locations
        self.recognized = recognized or {}
        self.load = load
        self.capacity = capacity
        self.loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self.lock = threading.Lock()
        self.loading = {name: threading.Lock() for name in locations}

    @property
    def names(self) -> list[str]:
        return list(self.locations)

    def title(self, name: str) -> str:
        return f"{name}: {self.recognized[name]}" if name in self.recognized else name

    def get(self, name: str) -> LoadedModel:
        """Return the model with this name, and load it if needed.

        Raises:
            ModelError: if there is no such model, or it cannot be loaded.
        """
        if name not in self.locations:
            raise ModelError(f"There is no model of this name here: choose one of {', '.join(self.names)}.")
        # One request loads the model, and others for the same model wait. Requests for other models do not wait,
        # because loading may include a download.
        with self.loading[name]:
            with self.lock:
                if name in self.loaded:
                    self.loaded.move_to_end(name)
                    return self.loaded[name]
                # Evict before loading, so that the new model does not exceed the capacity.
                self.make_room()
            model = self.load_model(name)
            with self.lock:
                self.make_room()
                self.loaded[name] = model
            return model

    def make_room(self) -> None:
        while len(self.loaded) >= self.capacity:
            self.loaded.popitem(last=False)

    def load_model(self, name: str) -> LoadedModel:
        start = time.perf_counter()
        try:
            model = LoadedModel(name, *self.load(self.locations[name]))
        except ModelError:
            raise
        # transformers and huggingface_hub raise many kinds of errors, whose messages must not be shown to visitors.
        except Exception as error:
            logger.exception("cannot load the model %s", self.locations[name])
            raise ModelError(
                f"The model {name} cannot be loaded: it does not exist, is of another kind, or cannot be downloaded. "
                "Choose another."
            ) from error
        logger.info("loaded %s in %.1f s", name, time.perf_counter() - start)
        return model

    def describe(self, name: str) -> str:
        """The model status, in Markdown."""
        model = self.get(name)
        size = model.processor.crop_size if model.processor.do_center_crop else model.processor.size
        pixels = " x ".join(str(side) for side in dict(size).values() if side is not None)
        return (
            f"**{name}** is loaded: {model.model.num_parameters() / 1e6:,.1f} M parameters, {len(model.labels):,} labels, "
            f"{pixels} pixels. In memory: {', '.join(self.loaded)}."
        )


def name_locations(locations: Sequence[str]) -> dict[str, str]:
    """Map names on the page to folders and Hub ids. Only the last part of a folder's path is its name, to keep paths private.

    Raises:
        ValueError: if a location is neither a folder nor a valid Hub id.
    """
    named: dict[str, str] = {}
    for location in locations:
        name = location
        if Path(location).is_dir():
            name = Path(location).resolve().name
        else:
            try:
                validate_repo_id(location)
            except HFValidationError as error:
                raise ValueError(
                    f"--model must be a folder or a Hub id, got {location}: there is no such folder."
                ) from error
        if location in named.values():
            continue
        count = 2
        while name in named:
            name = f"{name.removesuffix(f' ({count - 1})')} ({count})"
            count += 1
        named[name] = location
    return named


def listed_models(space: Path) -> list[str]:
    """The models that a Space was assembled with, the default first."""
    try:
        names = (space / MODEL_LIST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [str(space / name) if (space / name).is_dir() else name for name in names]


def count_labels(locations: dict[str, str]) -> dict[str, str]:
    """The number of labels of each model that is in a local folder, if its configuration has it."""
    counts = {}
    for name, location in locations.items():
        try:
            fields = json.loads(Path(location, CONFIG_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if "model_type" in fields:
            # transformers does not save `id2label` if a configuration has the two default labels.
            counts[name] = f"{len(fields.get('id2label', range(2))):,} labels"
    return counts


def is_cached(repo_id: str) -> bool:
    return any(
        isinstance(try_to_load_from_cache(repo_id, file), str) for file in ("model.safetensors", "pytorch_model.bin")
    )


def hub_answers() -> bool:
    """Whether the Hub can be reached."""
    return answers(constants.ENDPOINT)


def answers(address: str) -> bool:
    """Whether a server can be reached, tested by one short request; False without a request in offline mode."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(address, timeout=HUB_TIMEOUT)
    # Any error means that there is no network connection.
    except Exception:
        return False
    return True
