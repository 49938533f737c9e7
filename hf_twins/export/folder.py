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
"""Writes the files next to an exported model, and compares its outputs with PyTorch's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_twins._utils.scores import class_scores
from hf_twins.export import run_exported
from hf_twins.export.run_exported import DESCRIPTION_NAME, load_runtime
from hf_twins.export.source import Source


# Maximum relative L2 distance of any output from PyTorch's output in float32.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2, "int8": 3e-2}


def check_dtype(dtype: str, *supported: str) -> None:
    """Raise a ValueError if a format does not support this dtype."""
    if dtype not in supported:
        raise ValueError(f"dtype must be {' or '.join(supported)}, got {dtype!r}.")


def describe(folder: Path, source: Source, runtime: str, file: str, size: tuple[int, int] | None, **more: Any) -> None:
    """Write the files needed to run the model: labels, preprocessing, a description of the export, and a program to run it.

    Args:
        folder: the folder of the export.
        source: the model that was exported.
        runtime: the runtime of the model's file: "onnx", "openvino", "torch" or "executorch".
        file: path of the model's file, relative to the folder.
        size: the only supported height and width; None if any size is supported.
        more: further entries of the description, such as the dtype.
    """
    source.config.save_pretrained(folder)
    # transformers leaves out the names of two labels if they are LABEL_0 and LABEL_1.
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"id2label": source.config.id2label}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    source.processor.save_pretrained(folder)
    description = {
        "runtime": runtime,
        "file": file,
        "outputs": source.model.output_names,
        "size": size,
        "min_size": source.config.min_image_size,
        "num_channels": source.config.num_channels,
        **more,
    }
    if source.config.architectures == ["TwinsForImageClassification"]:
        description["scores"] = scores_function(source.config)
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(run_exported.__file__, folder / "run_exported.py")


def scores_function(config: Any) -> str:
    """The function that converts logits to scores, "softmax", "sigmoid" or "identity", as in [`class_scores`]."""
    logits = torch.arange(float(config.num_labels))
    scores = class_scores(logits, config)
    functions = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "identity": logits}
    return next(name for name, expected in functions.items() if torch.equal(scores, expected))


def verification_shapes(source: Source, max_batch: int = 3) -> list[tuple[int, int, int]]:
    """Batch sizes, heights and widths to compare: one and several images, with sizes that fill windows and that do not."""
    height, width = source.size
    minimum = source.config.min_image_size
    return [
        (1, height, width),
        (max_batch, height + 1, width + 15),
        (2, 2 * height - 5, width),
        (1, minimum, 2 * width + 2),
        (2, max(minimum, height // 2 + 1), max(minimum, width // 2)),
    ]


def relative_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """The L2 norm of the difference, divided by the L2 norm of `expected`."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@torch.inference_mode()
def verify(folder: Path, source: Source, shapes: list[tuple[int, int, int]], tolerance: float) -> float:
    """Run the export on random images, as users would, and compare every output with PyTorch's.

    Args:
        folder: the folder of the export.
        source: the model that was exported.
        shapes: batch sizes, heights and widths of the images.
        tolerance: the maximum allowed relative L2 distance.

    Returns:
        The largest relative L2 distance.

    Raises:
        ValueError: if the distance is larger than the tolerance.
    """
    print("comparing with PyTorch ...", flush=True)
    runtime = load_runtime(folder)
    largest = 0.0
    for shape in shapes:
        pixel_values = source.random_images(*shape)
        outputs = runtime.run(pixel_values.numpy())
        for name, expected in zip(source.model.output_names, source.model(pixel_values)):
            distance = relative_distance(outputs[name], expected.numpy())
            # `distance > tolerance` would be false for NaN.
            if not distance <= tolerance:
                raise ValueError(
                    f"The export's {name} of {shape[0]} images of {shape[1]} x {shape[2]} differs from PyTorch's by "
                    f"{distance:.2g} (relative L2), more than {tolerance:.0e}."
                )
            largest = max(largest, distance)
    print(f"largest relative L2 distance from PyTorch in float32: {largest:.1e}, allowed: {tolerance:.0e}")
    return largest
