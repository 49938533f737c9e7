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
"""Run an exported Twins model on images, without hf_twins, transformers or PyTorch's model.

    python run_exported.py image.png other.jpg
    python run_exported.py --json image.png                           # one JSON object per image
    python run_exported.py --inference_precision bf16 image.png       # OpenVINO, on CPUs that multiply bfloat16

It needs NumPy, Pillow and the runtime that the model was exported for: onnxruntime, openvino, torch or executorch.
Each export has a copy of this file next to its model, which the copy runs unless `--model_dir` names another folder.
From Python:

    from run_exported import load_runtime
    logits = load_runtime("outputs/onnx", threads=2)(pixel_values)
"""

import argparse
import io
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import PIL.ImageOps


# PostScript files are programs, which Pillow runs by Ghostscript, whatever the extension of the file.
PIL.EpsImagePlugin.gs_binary = False
# Images are resized by their shorter side, so a very long one would exhaust the memory.
MAX_ASPECT_RATIO = 100
# Decoding passes over all pixels once per scan of a JPEG, and a malicious file can have thousands.
MAX_JPEG_SCANS = 50
# Many camera raw files are TIFFs, of which Pillow would open a small preview.
CAMERA_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw")
# The markers of a JPEG, except those that occur within the data of a scan.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# The TIFF tags that list the strips and tiles of an image.
TIFF_STRIPS, TIFF_TILES = 273, 324
# Pillow's mode by the number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DESCRIPTION_NAME = "twins_export.json"
PREPROCESSING_NAME = "preprocessor_config.json"


class Session(Protocol):
    """A loaded model, which maps a batch of pixels to a list of outputs."""

    def __call__(self, pixel_values: np.ndarray) -> list[np.ndarray]: ...


def onnx_session(file: Path, threads: int | None, precision: str) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(None, {"pixel_values": pixel_values})


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report every start over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None stands for "not there"
    import openvino

    return openvino


def openvino_session(file: Path, threads: int | None, precision: str) -> Session:
    # The precision is always set, because OpenVINO's default is bfloat16 on some CPUs.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = import_openvino().Core().compile_model(file, "CPU", options)
    # The outputs are copied, because OpenVINO writes the next outputs to the same memory.
    return lambda pixel_values: [array.copy() for array in compiled(pixel_values).values()]


def torch_session(file: Path, threads: int | None, precision: str) -> Session:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    package = torch._inductor.aoti_load_package(str(file))

    def run(pixel_values: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = package(pixel_values=torch.from_numpy(pixel_values))
        return [output.numpy() for output in ([outputs] if torch.is_tensor(outputs) else outputs)]

    return run


def executorch_session(file: Path, threads: int | None, precision: str) -> Session:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")

    def run(pixel_values: np.ndarray) -> list[np.ndarray]:
        # The program accepts only one image at a time.
        images = [method.execute([image]) for image in torch.from_numpy(pixel_values).split(1)]
        return [torch.cat(parts).numpy() for parts in zip(*images)]

    return run


SESSIONS = {
    "onnx": onnx_session,
    "openvino": openvino_session,
    "torch": torch_session,
    "executorch": executorch_session,
}


class Runtime:
    """An exported model, ready to run.

    Args:
        description: content of the export's `twins_export.json`.
        session: the loaded model.
    """

    def __init__(self, description: dict[str, Any], session: Session):
        self.description, self.session = description, session

    def __call__(self, pixel_values: np.ndarray) -> np.ndarray:
        """Compute the first output, for classifiers the logits `(batch_size, num_labels)`; see `run`."""
        return self.run(pixel_values)[self.description["outputs"][0]]

    def run(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs, by name.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalized, float32.

        Raises:
            ValueError: if the model does not support this shape.
        """
        expected, shape = self.description, pixel_values.shape
        if pixel_values.dtype.kind != "f":
            raise ValueError(
                f"pixel_values must be floating point, got {pixel_values.dtype}: rescale and normalize them, as Preprocessing does."
            )
        if len(shape) != 4 or shape[1] != expected["num_channels"]:
            raise ValueError(
                f"pixel_values must have the shape (batch_size, {expected['num_channels']}, height, width), got {shape}."
            )
        if expected["size"] is not None and list(shape[2:]) != expected["size"]:
            height, width = expected["size"]
            raise ValueError(
                f"The model was exported for images of {height} x {width}, got {shape[2]} x {shape[3]}: export it with "
                "--height and --width."
            )
        if min(shape[2:]) < expected["min_size"]:
            raise ValueError(f"Images must be at least {expected['min_size']} pixels high and wide, got {shape[2:]}.")
        outputs = self.session(np.ascontiguousarray(pixel_values, dtype=np.float32))
        return dict(zip(expected["outputs"], outputs))


def load_runtime(folder: str | Path, threads: int | None = None, precision: str = "f32") -> Runtime:
    """Load the model in the folder of an export.

    Args:
        folder: the folder.
        threads: number of threads; by default, the runtime decides.
        precision: precision of OpenVINO's computations, "f32" or "bf16"; other runtimes use that of the export.

    Raises:
        OSError: if the folder is not an export, or is damaged.
        ValueError: if the runtime does not support this precision, or `threads` is less than 1.
    """
    description = read_json(Path(folder, DESCRIPTION_NAME))
    runtime = description["runtime"]
    if precision not in ("f32", "bf16"):
        raise ValueError(f"precision must be f32 or bf16, got {precision}.")
    if precision != "f32" and runtime != "openvino":
        raise ValueError(f"precision {precision} is only for OpenVINO models, got one for {runtime}.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    file = Path(folder, description["file"])
    if not file.is_file():
        raise OSError(f"{file} is missing: export the model again.")
    try:
        session = SESSIONS[runtime](file, threads, precision)
    except (ImportError, MemoryError):
        raise
    # Each runtime raises its own kinds of errors.
    except Exception as error:
        raise OSError(
            f"{file} cannot be loaded: it is damaged, or was made for another version of its runtime. Export the model again."
        ) from error
    return Runtime(description, session)


def read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"{file.parent} must be an export folder with {file.name}.") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged, {error}: export the model again.") from error


class Preprocessing:
    """Converts images to exactly the same pixels as the image processor with Pillow.

    Args:
        settings: content of `preprocessor_config.json`.
        num_channels: number of channels that images are converted to; without it, to RGB if `do_convert_rgb` is set.

    Raises:
        ValueError: if the settings require anything but resizing, cropping, rescaling and normalizing.
    """

    def __init__(self, settings: dict[str, Any], num_channels: int | None = None):
        if settings.get("do_pad"):
            raise ValueError(
                "This program does not pad images, but do_pad asks for it: pad them beforehand, or export with do_pad=False."
            )
        self.settings = settings
        self.mode = MODES.get(num_channels or 0, "RGB" if settings["do_convert_rgb"] else None)

    def __call__(self, image: PIL.Image.Image) -> np.ndarray:
        """Convert an image to pixels `(1, num_channels, height, width)`, float32."""
        settings = self.settings
        image = convert_image(image, self.mode)
        if settings["do_resize"]:
            size = self.resized(image.size)
            # Each channel by itself: Pillow would multiply the others by the fourth, as if it were transparency.
            channels = [channel.resize(size, resample=settings["resample"]) for channel in image.split()]
            image = PIL.Image.merge(image.mode, channels)
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if settings["do_center_crop"]:
            pixels = center_crop(pixels, settings["crop_size"]["height"], settings["crop_size"]["width"])
        if settings["do_rescale"]:
            # As in transformers, pixels are rescaled in float64.
            pixels = (pixels.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
        if settings["do_normalize"]:
            mean, std = (np.array(settings[name], np.float32)[:, None, None] for name in ("image_mean", "image_std"))
            pixels = (pixels.astype(np.float32) - mean) / std
        return pixels[None].astype(np.float32)

    def resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The width and height after resizing, of an image of this width and height."""
        size, (width, height) = self.settings["size"], image_size
        if set(size) == {"height", "width"}:
            return size["width"], size["height"]
        if set(size) != {"shortest_edge"}:
            raise ValueError(f"size must have height and width, or shortest_edge, got {size}.")
        edge = size["shortest_edge"]
        return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


# The code below, up to `to_eight_bits`, is copied from hf_twins, because this file must not import the package.
class ImageError(ValueError):
    """An image cannot be used; the message is a sentence that says why."""


# The TIFF tag that says whether numbers are signed.
TIFF_SAMPLE_FORMAT = 339
# Maps Pillow's modes other than channels from 0 to 255 to the mode that keeps the number of channels.
KEPT_CHANNELS = {"1": "L", "LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "RGBa": "RGBA"}


def convert_image(image: PIL.Image.Image, mode: str | None = "RGB") -> PIL.Image.Image:
    """Convert an image to channels from 0 to 255, by the rules of the entire package.

    16-bit pixels (`I;16`) are divided by 257 and rounded, so that 65535 becomes 255; 32-bit integers (`I`) too, if
    they are from 0 to 65535. Fractions (`F`) from 0 to 1 are multiplied by 255. Transparent pixels are composited on
    white. Color profiles are ignored.

    Args:
        image: the image, in any mode of Pillow.
        mode: "L", "RGB" or "RGBA", which keeps transparency; None keeps the number of channels, with a palette
            resolved.

    Raises:
        ImageError: if 32-bit integers are not from 0 to 65535, or fractions not from 0 to 1.
    """
    if image.mode.startswith(("I", "F")):
        image = to_eight_bits(image)
    if image.mode in ("La", "LAB"):
        # Pillow cannot convert these modes to any other mode.
        image = image.convert("LA" if image.mode == "La" else "RGB")
    mode = mode or KEPT_CHANNELS.get(image.mode, image.mode)
    if image.has_transparency_data and (mode != "RGBA" or image.mode != "RGBA"):
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:
            # A PNG with 16 bits per channel has a transparent color of 16 bits, but Pillow reads only the upper 8 of
            # pixels.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in key)
        image = image.convert("RGBA")
        if mode != "RGBA" and image.getchannel("A").getextrema() != (255, 255):
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image of integers with more than 8 bits, or of fractions, to a gray image of mode `L`.

    Raises:
        ImageError: as for [`convert_image`].
    """
    gray = np.empty((image.height, image.width), np.uint8)
    transparent = image.info.get("transparency")
    # Convert in strips to save memory, because wider numbers take more bytes.
    height = max(2**20 // max(image.width, 1), 1)
    for top in range(0, image.height, height):
        pixels = np.asarray(image.crop((0, top, image.width, min(top + height, image.height))))
        if image.mode == "I" and getattr(image, "tag_v2", {}).get(TIFF_SAMPLE_FORMAT) == (1,):
            # Pillow has no mode for unsigned 32-bit integers of a TIFF, and reads them as signed.
            pixels = pixels.view(np.uint32)
        largest = 1 if image.mode == "F" else 65535
        # The comparisons are also false for NaN.
        if not (pixels.min() >= 0 and pixels.max() <= largest):
            kind = "fractions" if image.mode == "F" else "32-bit integers"
            raise ImageError(
                f"An image has {kind} from {pixels.min():g} to {pixels.max():g} as pixels, but only 0 "
                f"to {largest} is read: save it with 8 or 16 bits per channel."
            )
        scaled = np.rint(255 * pixels) if image.mode == "F" else (pixels.astype(np.uint32) + 128) // 257
        gray[top : top + height] = scaled if transparent is None else np.where(pixels == transparent, 255, scaled)
    return PIL.Image.fromarray(gray)


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop the center of `(num_channels, height, width)`, and pad it with zeros if it is smaller than the crop."""
    missing = [max(wanted - side, 0) for wanted, side in zip((height, width), pixels.shape[1:])]
    before = [amount // 2 for amount in missing]
    pixels = np.pad(pixels, [(0, 0), *((first, amount - first) for first, amount in zip(before, missing))])
    # As in the image processor, halves of pixels are rounded to even.
    top, left = round((pixels.shape[1] - height) / 2), round((pixels.shape[2] - width) / 2)
    return pixels[:, top : top + height, left : left + width]


def read_image(file: Path, applied: Counter[str] | None = None) -> PIL.Image.Image:
    """Read the first image in a file, turned upright according to its EXIF orientation.

    Args:
        file: the file.
        applied: counter of the changes that are made to images when they are read.

    Raises:
        ImageError: if the image cannot be used, for any reason; the message begins with the name of the file.
    """
    applied = Counter() if applied is None else applied
    try:
        if file.exists() and not file.is_file():
            raise ImageError("it is not a file")
        if file.suffix.lower() in CAMERA_RAW:
            raise ImageError("camera raw images are not supported: convert it to JPEG or PNG")
        with PIL.Image.open(file) as opened:
            if max(opened.size) > MAX_ASPECT_RATIO * min(opened.size):
                raise ImageError(
                    f"it is too long, {opened.width} x {opened.height} pixels: one side may be at most {MAX_ASPECT_RATIO} "
                    "times the other, crop it"
                )
            check_scans(opened)
            opened.load()
            size, before = opened.size, opened.im
            PIL.ImageOps.exif_transpose(opened, in_place=True)
            applied["are turned upright, as their EXIF orientation says"] += (
                opened.im is not before or opened.size != size
            )
            applied["have a range other than 0 to 255 and are scaled to it"] += opened.mode.startswith(("I", "F"))
            applied["have transparent pixels: composited on white, unless the model has four channels"] += (
                opened.has_transparency_data
            )
            # The image is converted here, so that an error names the file.
            return to_eight_bits(opened) if opened.mode.startswith(("I", "F")) else opened
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{file} cannot be used: it is not an image, or Pillow does not read its format: convert it to JPEG or PNG."
        ) from error
    # Pillow's decoders raise all kinds of errors.
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise ImageError(f"{file} cannot be used: {reason}.") from error


# This function and the next one are copied from hf_twins, too.
def check_scans(image: PIL.Image.Image) -> None:
    """Raise an ImageError if an opened JPEG, or TIFF of JPEGs, has so many scans that decoding it would take very long."""
    is_jpeg = image.format in ("JPEG", "MPO")
    file: Any = getattr(image, "fp", None)
    if file is None or not (is_jpeg or "jpeg" in str(image.info.get("compression"))):
        return
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    # A quick upper bound, which also counts these bytes in profiles, previews, or a video after the image.
    if content.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return
    # Each strip or tile of a TIFF is a JPEG that covers only its part of the pixels.
    tags: Any = {} if is_jpeg else getattr(image, "tag_v2", {})
    parts = max(len(tags.get(TIFF_STRIPS, ())), len(tags.get(TIFF_TILES, ())), 1)
    scans = count_scans(content) if is_jpeg else content.count(b"\xff\xda")
    if scans > MAX_JPEG_SCANS * parts:
        raise ImageError(
            f"it is a JPEG of {scans} scans, more than the {MAX_JPEG_SCANS} allowed: save it again, not progressive"
        )


def count_scans(content: bytes) -> int:
    """Count the scans of the first image in the bytes of a JPEG; data after its end does not count."""
    position = scans = 0
    while (found := JPEG_MARKER.search(content, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        # Skip the data of the marker, which may contain bytes that look like markers.
        position = found.end() + max(int.from_bytes(content[found.end() : found.end() + 2], "big"), 2)
    return scans


def say_applied_rules(applied: Counter[str]) -> None:
    """Print how many images were changed when they were read, and how."""
    for rule, count in applied.items():
        if count:
            print(f"note: {count} images {rule}.", file=sys.stderr)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    # Neither branch overflows, unlike 1 / (1 + exp(-x)).
    return np.exp(-np.logaddexp(0, -logits))


def identity(logits: np.ndarray) -> np.ndarray:
    return logits


SCORES = {"softmax": softmax, "sigmoid": sigmoid, "identity": identity}


def classify(
    runtime: Runtime, preprocessing: Preprocessing, image: PIL.Image.Image, labels: dict[str, str], top_k: int
) -> Any:
    """Return the most likely labels of an image, best first, with their scores.

    Scores are probabilities that sum to 1 or, if an image can have several labels, one probability per label. For a
    regression, they are the outputs of the model.
    """
    scores = SCORES[runtime.description["scores"]](runtime(preprocessing(image))[0])
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[str(index)], "score": float(scores[index])} for index in best]


def positive(number: str) -> int:
    if int(number) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return int(number)


def printable(path: Path) -> str:
    """Convert a path, which may contain invalid UTF-8, to valid text."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def main(arguments: list[str] | None = None) -> None:
    # Names of labels that the encoding of the terminal lacks are printed escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    folder = Path(__file__).resolve().parent
    is_export = (folder / DESCRIPTION_NAME).is_file()
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path, help="Image files.")
    parser.add_argument(
        "--model_dir",
        default=folder if is_export else None,
        required=not is_export,
        help="Export folder.",
    )
    parser.add_argument("--top_k", type=positive, default=5, help="Number of labels to print for each image.")
    parser.add_argument("--threads", type=positive, help="Number of threads; the runtime's choice without it.")
    parser.add_argument(
        "--inference_precision",
        choices=["f32", "bf16"],
        default="f32",
        help="Precision of an OpenVINO model.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object per image instead of text.")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except ImportError as error:
        sys.exit(f"error: this model needs {error.name or error}: pip install {error.name or error}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    config = read_json(Path(args.model_dir, "config.json"))
    if config["architectures"] != ["TwinsForImageClassification"]:
        raise ValueError(
            f"This program classifies images, but {args.model_dir} holds a {config['architectures'][0]}: call "
            "load_runtime(folder).run(pixel_values) from Python."
        )
    runtime = load_runtime(args.model_dir, args.threads, args.inference_precision)
    settings = read_json(Path(args.model_dir, PREPROCESSING_NAME))
    preprocessing = Preprocessing(settings, runtime.description["num_channels"])
    form = "9.4g" if runtime.description["scores"] == "identity" else "7.2%"
    applied: Counter[str] = Counter()
    skipped = 0
    for file in args.images:
        try:
            labels = classify(runtime, preprocessing, read_image(file, applied), config["id2label"], args.top_k)
        except ValueError as error:
            fault = error if isinstance(error, ImageError) else ImageError(f"{file} cannot be used: {error}")
            if len(args.images) == 1:
                raise fault from error
            print(f"skipped: {fault}", file=sys.stderr)
            skipped += 1
            continue
        if args.json:
            print(json.dumps({"image": os.fspath(file), "labels": labels}))
        else:
            print(printable(file), *(f"  {entry['score']:{form}}  {entry['label']}" for entry in labels), sep="\n")
    say_applied_rules(applied)
    if skipped == len(args.images):
        raise ImageError(f"None of the {skipped} images can be used.")


if __name__ == "__main__":
    main()
