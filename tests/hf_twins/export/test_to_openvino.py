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
"""Export to OpenVINO: every head at every size, with named outputs."""

import pytest
import torch
from PIL import Image
from testing_utils import randomize, tiny_config

from hf_twins import TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsImageProcessor
from hf_twins.export import to_openvino
from hf_twins.export.folder import relative_distance, verification_shapes
from hf_twins.export.run_exported import import_openvino
from hf_twins.export.source import ExportableModel, Source
from hf_twins.export.to_onnx import export_onnx
from hf_twins.export.to_openvino import convert_to_openvino, export_openvino, load_images
from hf_twins.export.to_torch import export_torch


FIELDS = {
    "hidden_sizes": [16, 32],
    "num_attention_heads": [1, 2],
    "depths": [2, 2],
    "mlp_ratios": [2, 2],
    "sr_ratios": [2, 1],
    "out_features": ["stage1", "stage2"],
    "fpn_hidden_size": 8,
    "decoder_hidden_size": 8,
}


def test_images_for_calibration_are_checked(tmp_path):
    with pytest.raises(OSError, match=r"--calibration_dir must be a folder of images, got .*nowhere"):
        load_images(tmp_path / "nowhere", None, 300)
    (tmp_path / "digits").mkdir()
    for index in range(9):
        Image.new("L", (4, 4)).save(tmp_path / "digits" / f"{index}.png")
    with pytest.raises(
        ValueError, match="--calibration_dir must have at least ten images, preferably hundreds, got 9"
    ):
        load_images(tmp_path, None, 300)
    with pytest.raises(ValueError, match="--max_calibration_samples must be at least ten, preferably hundreds, got 4"):
        load_images(tmp_path, None, 4)
    Image.new("L", (4, 4)).save(tmp_path / "last.png")
    assert load_images(tmp_path, lambda image: image.size, 300) == [(4, 4)] * 10


def test_images_for_calibration_are_converted_to_the_channels_of_the_model(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for index in range(10):
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / f"{index}.png")
    calibrated = []

    def stop(model, images):
        calibrated.extend(images)
        raise InterruptedError

    monkeypatch.setattr(to_openvino, "convert_to_openvino", lambda source: None)
    monkeypatch.setattr(to_openvino, "quantize", stop)
    model = TwinsForImageClassification(tiny_config("pcpvt", num_channels=1, **FIELDS))
    processor = TwinsImageProcessor(do_convert_rgb=False, image_mean=[0.5], image_std=[0.5])
    with pytest.raises(InterruptedError):
        export_openvino(
            Source(ExportableModel(model), processor, (32, 32)), tmp_path / "out", "int8", tmp_path / "images"
        )
    assert {image.shape for image in calibrated} == {(1, 1, 224, 224)}


@pytest.mark.parametrize("export", [export_onnx, export_openvino, export_torch])
def test_unsupported_dtype_is_refused(export, tmp_path):
    model = ExportableModel(TwinsForImageClassification(tiny_config("pcpvt", **FIELDS)))
    with pytest.raises(ValueError, match=r"dtype must be float32 or .*, got 'float64'"):
        export(Source(model, None, (32, 32)), tmp_path / "out", dtype="float64")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        ("svt", TwinsForImageClassification),
        ("pcpvt", TwinsForImageClassification),
        ("pcpvt", TwinsForSemanticSegmentation),
        ("svt", TwinsBackbone),
    ],
)
def test_every_head_computes_the_same_at_any_size(family, model_class):
    source = Source(ExportableModel(randomize(model_class(tiny_config(family, **FIELDS)))), None, (32, 32))
    model = convert_to_openvino(source)
    assert [port.get_names() for port in model.inputs] == [{"pixel_values"}]
    assert [port.get_names() for port in model.outputs] == [{name} for name in source.model.output_names]
    compiled = import_openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # In addition to the sizes that every export is verified with: one window, and an incomplete one.
    for shape in [*verification_shapes(source), (1, 8, 8), (3, 18, 21), (2, 33, 57), (1, 27, 41)]:
        pixel_values = source.random_images(*shape)
        with torch.inference_mode():
            expected = source.model(pixel_values)
        for actual, tensor in zip(compiled(pixel_values.numpy()).values(), expected, strict=True):
            assert actual.shape == tensor.shape
            assert relative_distance(actual, tensor.numpy()) < 5e-6
