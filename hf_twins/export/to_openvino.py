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
"""Export to OpenVINO, for batches of any size, height and width, in float32 or int8."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_twins import TwinsForImageClassification
from hf_twins._utils.extras import require_extra
from hf_twins._utils.files import new_output
from hf_twins._utils.image_folders import list_images
from hf_twins._utils.progress import progress_bar
from hf_twins.export.folder import TOLERANCES, check_dtype, describe, relative_distance, verification_shapes, verify
from hf_twins.export.run_exported import (
    PREPROCESSING_NAME,
    Preprocessing,
    import_openvino,
    load_runtime,
    read_image,
    read_json,
    say_applied_rules,
)
from hf_twins.export.source import Source, dynamic_program


# Minimum share of images for which int8 must predict the same label as float32.
MIN_AGREEMENT = 0.99


def export_openvino(
    source: Source,
    output_dir: str | Path,
    dtype: str = "float32",
    calibration_dir: str | Path | None = None,
    max_calibration_samples: int = 300,
) -> None:
    """Export a model to a folder in OpenVINO's format.

    Args:
        source: the model; a classifier for int8.
        output_dir: output folder, new or empty.
        dtype: "float32", or "int8", which quantizes weights and activations of all linear layers except the
            classifier.
        calibration_dir: folder of images for int8, searched with its sub-folders. Four fifths of them calibrate the
            model, and the rest are used to compare it with float32.
        max_calibration_samples: maximum number of images to draw from the folder.

    Raises:
        ImportError: if a package of the extra `export` is missing.
        OSError: if the folder of images does not exist.
        ValueError: if the folder exists, int8 is not possible, or the export's outputs differ.
    """
    require_extra("export", "openvino", *(["nncf"] if dtype == "int8" else []))
    check_dtype(dtype, "float32", "int8")
    if (dtype == "int8") != (calibration_dir is not None):
        raise ValueError("--dtype int8 and --calibration_dir belong together: give both or neither.")
    if dtype == "int8" and not isinstance(source.model.model, TwinsForImageClassification):
        raise ValueError(f"--dtype int8 is for classifiers, got a {type(source.model.model).__name__}.")
    with new_output(Path(output_dir)) as folder:
        describe(folder, source, runtime="openvino", file="model.xml", size=None, dtype=dtype)
        print("translating to OpenVINO, which can take minutes ...", flush=True)
        model = convert_to_openvino(source)
        if calibration_dir is None:
            save_openvino(model, folder / "model.xml")
            verify(folder, source, verification_shapes(source), TOLERANCES["float32"])
        else:
            preprocessing = Preprocessing(read_json(folder / PREPROCESSING_NAME), source.config.num_channels)
            images = load_images(Path(calibration_dir), preprocessing, max_calibration_samples)
            held_out = images[::5]
            print(f"calibrating with {len(images) - len(held_out)} images, which can take minutes ...", flush=True)
            quantized = quantize(model, [image for index, image in enumerate(images) if index % 5])
            save_openvino(quantized, folder / "model.xml")
            check_agreement(folder, source, held_out)


def convert_to_openvino(source: Source) -> Any:
    """Convert the model to an `openvino.Model` in float32, with the source's names for input and outputs."""
    model = import_openvino().convert_model(dynamic_program(source))
    for output, name in zip(model.outputs, source.model.output_names):
        output.get_tensor().set_names({name})
    return model


def save_openvino(model: Any, file: Path) -> None:
    """Write the graph to `file`, and the weights next to it."""
    import_openvino().save_model(model, file, compress_to_fp16=False)


def load_images(folder: Path, preprocessing: Preprocessing, max_samples: int) -> list[np.ndarray]:
    """Load images of a folder as `(1, num_channels, height, width)`, in a random order that is the same in each run.

    Raises:
        OSError: if the folder does not exist.
        ValueError: if the folder has fewer than ten images, or fewer than ten are requested.
    """
    if max_samples < 10:
        raise ValueError(f"--max_calibration_samples must be at least ten, preferably hundreds, got {max_samples}.")
    if not folder.is_dir():
        raise OSError(f"--calibration_dir must be a folder of images, got {folder}.")
    files = list_images(folder)
    if len(files) < 10:
        raise ValueError(f"--calibration_dir must have at least ten images, preferably hundreds, got {len(files)}.")
    order = np.random.default_rng(0).permutation(len(files))[:max_samples]
    applied: Counter[str] = Counter()
    images = [
        preprocessing(read_image(files[index], applied)) for index in progress_bar(order, desc="reading", unit="image")
    ]
    say_applied_rules(applied)
    return images


def quantize(model: Any, images: Sequence[np.ndarray]) -> Any:
    """Quantize weights and activations to 8 bits by NNCF's SmoothQuant, with ranges calibrated on the images."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # Otherwise, NNCF logs every operator that it leaves unchanged.
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(images, lambda image: {"pixel_values": image}),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        # If activations were scaled to their rare extremes, the error would be a third larger.
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM
        ),
        # The classifier and the convolutions take little of the time, but quantizing either would double the error of
        # the logits.
        ignored_scope=nncf.IgnoredScope(
            names=[classifier_name(model)], types=["Convolution", "GroupConvolution"], validate=False
        ),
    )


def classifier_name(model: Any) -> str:
    """OpenVINO's name for the matrix product that computes the logits, which is the last one."""
    node = model.get_results()[0]
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    return node.get_friendly_name()


@torch.inference_mode()
def check_agreement(folder: Path, source: Source, images: Sequence[np.ndarray]) -> None:
    """Compare the export with PyTorch in float32, on images that were not used for calibration.

    Raises:
        ValueError: if the logits or the predicted labels differ too much.
    """
    print("comparing with PyTorch ...", flush=True)
    runtime = load_runtime(folder)
    expected = np.concatenate([source.model(torch.from_numpy(image))[0].numpy() for image in images])
    actual = np.concatenate([runtime(image) for image in images])
    distance = relative_distance(actual, expected)
    agreement = float((actual.argmax(1) == expected.argmax(1)).mean())
    found = f"{len(images)} held-out images: logits differ by {distance:.2%} (relative L2), {agreement:.2%} same top-1"
    if not (distance <= TOLERANCES["int8"] and agreement >= MIN_AGREEMENT):
        raise ValueError(
            f"int8 is not close enough to float32 ({found}; at most {TOLERANCES['int8']:.0%} and at least "
            f"{MIN_AGREEMENT:.0%} are required): calibrate with more images of the model's kind, or keep float32."
        )
    print(found)
