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
"""A Twins model as OpenVINO's, for images of any number, height and width, in float32 or int8.

    python examples/export/export_openvino.py --model_name_or_path outputs/quickstart --output_dir outputs/openvino
    ... --dtype int8 --calibration_dir path/to/images
    python examples/export/run_exported.py --model_dir outputs/openvino --inference_precision bf16 picture.png

int8 needs pictures of the kind that the model will see: four fifths of them calibrate it, and the rest decide whether it
still computes the same. bfloat16 is chosen when the float32 model is run.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from exporting import (
    TOLERANCES,
    ExportArguments,
    Source,
    describe,
    load_source,
    relative_distance,
    run_export,
    save_onnx,
    verification_shapes,
    verify,
)
from run_exported import PREPROCESSING_NAME, Preprocessing, import_openvino, load_runtime, read_image, read_json
from tqdm import tqdm

from hf_twins import TwinsForImageClassification
from hf_twins._utils.files import new_output
from hf_twins._utils.images import is_image_file


# What has to be left of the float32 model's decisions.
MIN_AGREEMENT = 0.99
# Attention as one operator of ONNX is one of OpenVINO's too.
OPSET_VERSION = 23


@dataclass
class OpenVinoArguments(ExportArguments):
    dtype: Literal["float32", "int8"] = field(default="float32", metadata={"help": "Of weights and products."})
    calibration_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, in sub-folders or not, for int8."}
    )
    max_calibration_samples: int = field(default=300, metadata={"help": "Images that are taken of it, at random."})


def main(arguments: list[str] | None = None) -> None:
    run_export(OpenVinoArguments, export, arguments)


def export(args: OpenVinoArguments) -> Path:
    openvino = import_openvino()
    if (args.dtype == "int8") != (args.calibration_dir is not None):
        raise ValueError("--dtype int8 and --calibration_dir belong together: give both or none.")
    source = load_source(args.model_name_or_path)
    if args.dtype == "int8" and not isinstance(source.model.model, TwinsForImageClassification):
        raise ValueError(f"--dtype int8 is for classifiers, got a {type(source.model.model).__name__}.")
    with new_output(Path(args.output_dir)) as folder:
        describe(folder, source, runtime="openvino", file="model.xml", size=None, dtype=args.dtype)
        # By way of ONNX: OpenVINO's own reading of PyTorch's graphs rounds sizes in the wrong direction.
        save_onnx(source, folder / "model.onnx", OPSET_VERSION)
        model = openvino.convert_model(folder / "model.onnx")
        if args.dtype == "float32":
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
            verify(folder, source, verification_shapes(source), TOLERANCES["float32"])
        else:
            preprocessing = Preprocessing(read_json(folder / PREPROCESSING_NAME))
            images = load_images(Path(str(args.calibration_dir)), preprocessing, args.max_calibration_samples)
            held_out = images[::5]
            print(f"calibrating with {len(images) - len(held_out)} images, which can take minutes ...", flush=True)
            quantized = quantize(model, [image for index, image in enumerate(images) if index % 5])
            openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
            check_agreement(folder, source, held_out)
        del model
        (folder / "model.onnx").unlink()
    return Path(args.output_dir)


def load_images(folder: Path, preprocessing: Preprocessing, max_samples: int) -> list[np.ndarray]:
    """Images of a folder as `(1, num_channels, height, width)`, in an order that depends on their number alone.

    Raises:
        OSError: if there is no such folder.
        ValueError: if it has fewer than ten.
    """
    if not folder.is_dir():
        raise OSError(f"--calibration_dir must be a folder of images, got {folder}.")
    files = sorted(path for path in folder.rglob("*") if is_image_file(path))
    if len(files) < 10:
        raise ValueError(f"--calibration_dir must have ten images or more, better hundreds, got {len(files)}.")
    order = np.random.default_rng(0).permutation(len(files))[:max_samples]
    return [preprocessing(read_image(files[index])) for index in tqdm(order, desc="reading", unit="image")]


def quantize(model: Any, images: Sequence[np.ndarray]) -> Any:
    """The model with 8-bit weights and activations, scaled to what the images give, by NNCF's SmoothQuant."""
    import nncf

    # Not every operator that is left as it is.
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(images, lambda image: {"pixel_values": image}),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        # In 8 bits the classifier, one matrix product of many, costs more accuracy than the rest together, and SmoothQuant
        # ruins it; the convolutions, a small part of the time, cost a fifth.
        ignored_scope=nncf.IgnoredScope(
            names=[classifier_name(model)], types=["Convolution", "GroupConvolution"], validate=False
        ),
    )


def classifier_name(model: Any) -> str:
    """OpenVINO's name for the product that gives the logits: the last one."""
    node = model.get_results()[0]
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    return node.get_friendly_name()


@torch.inference_mode()
def check_agreement(folder: Path, source: Source, images: Sequence[np.ndarray]) -> None:
    """Compare with PyTorch in float32 on images that it was not calibrated with.

    Raises:
        ValueError: if the logits or the decisions differ by more than they should.
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
            f"{MIN_AGREEMENT:.0%} are wanted): calibrate with more images of the model's kind, or stay with float32."
        )
    print(found)


if __name__ == "__main__":
    main()
