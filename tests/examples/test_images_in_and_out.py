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

"""Rules for all scripts: they read the same pixels, and never write among their inputs."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import attention_maps
import batch_predict
import evaluate_segmentation
import extract_features
import numpy as np
import predict_detection
import predict_segmentation
import pytest
import quickstart
import run_accelerate
import run_detection
import run_segmentation
import run_trainer
import search_features
import torch
from detection_utils import write_scenes
from hostile_files import saved
from PIL import ExifTags, Image
from torchvision.transforms import v2
from tqdm import tqdm
from twins_space.uploads import read_upload

from hf_twins import TwinsConfig, TwinsImageProcessor, TwinsImageProcessorPil
from hf_twins._utils.images import read_image
from hf_twins._utils.shards import FileShard, ShardImages
from hf_twins.detection import Detector
from hf_twins.export import run_exported
from hf_twins.training.data import LabeledImages
from hf_twins.training.image_classification.data import Preparation
from hf_twins.training.image_classification.folders import load_folder
from hf_twins.training.object_detection.data import CocoImages
from hf_twins.training.semantic_segmentation import data as segmentation
from hf_twins.training.semantic_segmentation.inference import InferenceArguments, segment


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return saved(image, "PNG", exif=exif)


GRAY = np.linspace(0, 65535, 30 * 20, dtype=np.uint16).reshape(20, 30)
COLORS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8))
FILES = {
    "deep.png": saved(Image.fromarray(GRAY), "PNG"),
    "big_endian.tif": saved(Image.frombytes("I;16B", (30, 20), GRAY.astype(">u2").tobytes()), "TIFF"),
    "integers.tif": saved(Image.fromarray(GRAY.astype(np.int32)), "TIFF"),
    "fractions.tif": saved(Image.fromarray((GRAY / 65535).astype(np.float32)), "TIFF"),
    "transparent.png": saved(COLORS, "PNG"),
    "gray_transparent.png": saved(COLORS.convert("LA"), "PNG"),
    "palette.gif": saved(COLORS.convert("RGB").quantize(8), "GIF", transparency=3),
    "palette.png": saved(COLORS.convert("RGB").quantize(8), "PNG", transparency=bytes([0, 40, 255, 80])),
    "cmyk.jpg": saved(COLORS.convert("RGB").convert("CMYK"), "JPEG"),
    "one_bit.png": saved(COLORS.convert("1"), "PNG"),
    "lab.tif": saved(Image.frombytes("LAB", (30, 20), COLORS.convert("RGB").tobytes()), "TIFF"),
    "turned.png": turned(COLORS.convert("RGB")),
    "pages.tif": saved(COLORS.convert("RGB"), "TIFF", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
}
PLAIN = {"do_resize": False, "do_center_crop": False, "do_normalize": False, "do_rescale": False}


class Recorder:
    """A model or an image processor that records its inputs, and returns nothing."""

    def __call__(self, images, **kwargs):
        self.pixels = np.asarray(images[0] if isinstance(images, list) else images)
        raise InterruptedError


def given_to(recorder: Recorder, call) -> np.ndarray:
    with pytest.raises(InterruptedError):
        call()
    return recorder.pixels


@pytest.mark.parametrize("name", FILES)
def test_every_reader_returns_the_same_pixels(name, tmp_path):
    for folder in ("all/cat", "all/dog", "images", "annotations"):
        (tmp_path / folder).mkdir(parents=True)
    file = tmp_path / "all" / "cat" / name
    for copy in (file, tmp_path / "all" / "dog" / name, tmp_path / "images" / name):
        copy.write_bytes(FILES[name])
    expected = np.asarray(read_image(file))
    assert expected.shape == ((30, 20, 3) if name == "turned.png" else (20, 30, 3))
    Image.new("L", expected.shape[1::-1]).save(tmp_path / "annotations" / f"{file.stem}.png")
    with Image.open(file) as opened:
        opened.load()

    found = {"Space": read_upload(file)}
    # Training, evaluation and batch prediction of classifiers.
    preparation = Preparation(v2.PILToTensor(), 3)
    split = load_folder(str(tmp_path / "all"))
    found["classification"] = LabeledImages(split, preparation)[0]["pixel_values"].permute(1, 2, 0)
    example, _ = ShardImages(
        FileShard(str(tmp_path / "all"), (f"cat/{name}",)),
        lambda image: preparation({"image": image, "label": 0})["pixel_values"],
    )
    found["batch_predict"] = example["pixel_values"].transpose(1, 2, 0)
    # Features.
    ((_, image),) = extract_features.readable_images(file.parent, [name], tqdm(disable=True), Counter())
    found["extract_features"] = image
    # Segmentation: training, and evaluation and prediction.
    pair = segmentation.ImageMaskPairs(segmentation.load_folder(str(tmp_path)))[0]
    both = segmentation.Preparation(lambda *images: images, False)(pair, 0)
    found["segmentation"] = both["pixel_values"].permute(1, 2, 0)
    model, recorder = SimpleNamespace(config=TwinsConfig()), Recorder()
    recorder.size, recorder.do_resize = {}, False
    found["segment"] = given_to(recorder, lambda: segment(model, recorder, pair["image"], InferenceArguments()))
    # Detection: training and evaluation, and prediction from Python.
    entry = {"file_name": name, "height": expected.shape[0], "width": expected.shape[1]}
    found["detection"] = CocoImages(file.parent, [entry], ["cat"]).open(0)
    found["detector"] = given_to(recorder, lambda: Detector(None, recorder)([opened]))
    # Exported models, and both image processors, which do not turn images that the caller opened.
    preprocessing = run_exported.Preprocessing(TwinsImageProcessorPil(**PLAIN).to_dict())
    found["exported"] = preprocessing(run_exported.read_image(file))[0].transpose(1, 2, 0)
    for processor in (TwinsImageProcessor(**PLAIN), TwinsImageProcessorPil(**PLAIN)):
        pixel_values = torch.as_tensor(processor(opened, return_tensors="pt").pixel_values[0])
        found[type(processor).__name__] = pixel_values.permute(1, 2, 0)
    for reader, pixels in found.items():
        wanted = expected
        if name == "turned.png" and reader.startswith(("detector", "TwinsImage")):
            wanted = np.rot90(expected)
        assert np.array_equal(np.asarray(pixels), wanted), reader


def command(script: str, inputs: Path, output: Path) -> list[str]:
    model = ["--model_name_or_path", "none"]
    coco = ["--train_dir", str(inputs), "--train_annotations", str(inputs / "annotations.json")]
    return {
        "predict_segmentation": [*model, "--images", str(inputs)],
        "predict_detection": [*model, "--images", str(inputs)],
        "attention_maps": [*model, "--image", str(inputs / "0.png")],
        "batch_predict": [*model, "--input_dir", str(inputs)],
        "extract_features": [*model, "--input_dir", str(inputs)],
        "run_trainer": [*model, "--train_dir", str(inputs)],
        "run_accelerate": [*model, "--train_dir", str(inputs)],
        "run_segmentation": [*model, "--train_dir", str(inputs.parent)],
        "run_detection": [*model, *coco],
        "quickstart": ["--dataset", str(inputs)],
    }[script] + ["--output_dir", str(output)]


@pytest.fixture
def inputs(tmp_path) -> Path:
    return write_scenes(tmp_path / "images", range(2))


SCRIPTS = {
    "predict_segmentation": predict_segmentation.main,
    "predict_detection": predict_detection.main,
    "batch_predict": batch_predict.main,
    "run_trainer": run_trainer.main,
    "run_accelerate": run_accelerate.main,
    "run_segmentation": run_segmentation.main,
    "run_detection": run_detection.main,
}
RECURSIVE = {"run_trainer", "run_accelerate", "run_segmentation", "run_detection"}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("script", "place"),
    [*((script, "") for script in SCRIPTS), *((script, "run") for script in SCRIPTS if script in RECURSIVE)],
)
def test_outputs_among_inputs_are_refused(script, place, inputs):
    before = {file: file.read_bytes() for file in inputs.iterdir()}
    with pytest.raises(
        SystemExit, match=r"error: --output_dir must be another folder than .*images, where the input is"
    ):
        SCRIPTS[script](command(script, inputs, inputs / place))
    assert {file: file.read_bytes() for file in inputs.iterdir()} == before


@pytest.mark.parametrize("script", [extract_features, quickstart, attention_maps], ids=lambda script: script.__name__)
def test_outputs_among_inputs_are_refused_by_scripts_without_arguments(script, inputs, monkeypatch, tiny_models):
    arguments = [str(tiny_models) if word == "none" else word for word in command(script.__name__, inputs, inputs)]
    monkeypatch.setattr("sys.argv", [script.__name__, *arguments])
    with pytest.raises(SystemExit, match=r"--output_dir must be another folder than .*images, where the input is"):
        script.main()
    assert {file.suffix for file in inputs.iterdir()} == {".png", ".json"}


@pytest.fixture
def tiny_models(start) -> Path:
    return start


def test_contact_sheet_cannot_replace_an_image(inputs, start, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        [
            "extract_features",
            *command("extract_features", inputs, tmp_path / "features"),
            "--model_name_or_path",
            str(start),
        ],
    )
    extract_features.main()
    query = tmp_path / "query.png"
    Image.new("RGB", (20, 20)).save(query)
    before = query.read_bytes()
    for sheet, message in (
        (inputs / "neighbors.png", "The folder of --contact_sheet must be another folder than .*images"),
        (query, "--contact_sheet must be a file other than --query"),
        (tmp_path / "features" / "index.png", "The folder of --contact_sheet must be another folder than .*features"),
    ):
        arguments = ["--features", str(tmp_path / "features"), "--query", str(query), "--contact_sheet", str(sheet)]
        monkeypatch.setattr("sys.argv", ["search_features", *arguments])
        with pytest.raises(SystemExit, match=message):
            search_features.main()
    assert query.read_bytes() == before
    assert not (inputs / "neighbors.png").exists()


@pytest.mark.parametrize("place", ["data/images/0.png", "data/annotations/0.png", "model/config.json"])
def test_results_of_segmentation_cannot_replace_input(place, tmp_path):
    file = tmp_path / place
    for folder in ("data/images", "data/annotations", "model"):
        (tmp_path / folder).mkdir(parents=True)
    file.write_text("input")
    arguments = [
        "--model_name_or_path",
        tmp_path / "model",
        "--validation_dir",
        tmp_path / "data",
        "--output_file",
        file,
    ]
    with pytest.raises(
        SystemExit, match=r"The folder of --output_file must be another folder than .*, where the input is"
    ):
        evaluate_segmentation.main([str(argument) for argument in arguments])
    assert file.read_text() == "input"
