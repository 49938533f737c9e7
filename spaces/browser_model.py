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
"""Exports the model of the browser Space to ONNX next to the page, and writes the description that the page reads."""

import hashlib
import json
import shutil
from pathlib import Path

from huggingface_hub import RepoCard

from hf_twins.export.source import Source, load_source
from hf_twins.export.to_onnx import FILE_NAMES, FOLDER_NAME, export_onnx


DEFAULT_MODEL = "timm/twins_svt_small.in1k"
# Photographs for models that know the 1,000 classes of ImageNet, as nearly all published models do.
EXAMPLES = {"chelsea.jpg": "a cat", "coffee.jpg": "a cup of coffee", "astronaut.jpg": "an astronaut"}
# Pillow's filters that `image_processor.js` implements.
RESAMPLING_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


def export_model(space: Path, model_name_or_path: str, examples: Path) -> None:
    """Add a model to the folder of the page, and example images if the model knows their labels.

    Args:
        space: folder with the page.
        model_name_or_path: classifier of RGB images, as for `load_source`.
        examples: folder with the example images.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        OSError: if the model is missing or cannot be reached.
        ValueError: if the model is not a classifier of RGB images, needs preprocessing that the page does not support,
            or the outputs of its export differ.
    """
    source = load_source(model_name_or_path)
    check_page_can_use(source, model_name_or_path)
    exported = space / "model"
    export_onnx(source, exported, ("int8", "float16", "float32"))
    # Browsers cache files by their URL, so each model needs its own.
    folder = exported.rename(space / f"model-{content_hash(exported)}")
    is_on_hub = not Path(model_name_or_path).exists()
    # Other models do not know the classes of these images.
    shown = EXAMPLES if source.config.num_labels == 1000 else {}
    description = {
        "model": model_name_or_path if is_on_hub else Path(model_name_or_path).resolve().name,
        "url": f"https://huggingface.co/{model_name_or_path}" if is_on_hub else None,
        "folder": folder.name,
        "sizes": {dtype: (folder / FOLDER_NAME / name).stat().st_size for dtype, name in FILE_NAMES.items()},
        "examples": [{"file": f"examples/{file}", "name": name} for file, name in shown.items()],
    }
    (space / "space.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    card = RepoCard.load(space / "README.md")
    card.data.models = [model_name_or_path] if is_on_hub else []
    card.save(space / "README.md")
    if shown:
        (space / "examples").mkdir()
    for file in shown:
        shutil.copy(examples / file, space / "examples")


def check_page_can_use(source: Source, name: str) -> None:
    """Raise a ValueError if the page cannot show a model's outputs, or prepare its inputs."""
    architecture, channels = type(source.model.model).__name__, source.config.num_channels
    if architecture != "TwinsForImageClassification" or channels != 3:
        raise ValueError(
            f"The page classifies RGB images, but {name} holds a {architecture} for images of {channels} channels: pass a "
            "classifier of RGB images."
        )
    settings = source.processor.to_dict()
    resample = settings["resample"]
    if settings.get("do_pad") or (settings["do_resize"] and resample not in RESAMPLING_FILTERS):
        raise ValueError(
            f"The page resizes images by {', '.join(RESAMPLING_FILTERS.values())} and does not pad them, but the processor of "
            f"{name} has do_pad={settings.get('do_pad')}, resample={resample}: pass another model."
        )


def content_hash(folder: Path) -> str:
    """A hash, with twelve digits, of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
