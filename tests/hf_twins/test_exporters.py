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
"""transformers' exporters for every class: the exported model accepts any batch and size, and its outputs match PyTorch.

transformers' own tests of exporters, `ExportTesterMixin`, are not in its source distribution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from testing_utils import TWO_STAGES, randomize, tiny_config
from torch import nn
from torch.export import Dim
from transformers.exporters.auto import EXPORT_BACKENDS, get_exporter_class

from hf_twins import TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsModel


# Warnings while exporting are ignored, because only the exported models are tested.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXPORTERS = ["dynamo", "onnx", "openvino"]
# Exporters that cannot run here are tested for the error that users get.
NOT_INSTALLED = {"executorch": "executorch"}

MODEL_CLASSES = [TwinsModel, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsBackbone]
FIELDS = {**TWO_STAGES, "out_features": ["stem", "stage1", "stage2"]}
# Batch size, height and width.
SAMPLE = (2, 40, 44)
# The second stage has windows of 3 tokens of 4 pixels: a single column of windows, or several.
ONE_WINDOW, WINDOWS = (2, 40, 11), (2, 40, 24)
# Sizes that differ from those used for exporting.
SIZES = [(1, 32, 32), (2, 48, 24), (1, 27, 41), (2, 33, 57), (3, 18, 21)]
# Largest difference of an output, relative to its largest value. Measured: 1.2e-6, float32 rounds at 6e-8.
TOLERANCE = 5e-6
# Options of `ExportedModel.to`. If the CPU supports bfloat16, OpenVINO uses it by default, with errors of 2e-2.
RUNNERS: dict[str, dict[str, Any]] = {"openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}}}


def tensors_of(outputs: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors in a model's outputs, by their path."""
    items = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
    tensors = {}
    for name, value in items:
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, Sequence):
            tensors |= tensors_of(value, f"{prefix}{name}.")
    return tensors


def export(exporter: str, model: nn.Module, sample: tuple[int, int, int] = SAMPLE) -> Any:
    batch_size, height, width = sample
    dynamic_shapes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    config = EXPORT_BACKENDS[exporter].config(dynamic=True, dynamic_shapes=dynamic_shapes)
    inputs = {"pixel_values": torch.randn(batch_size, 3, height, width)}
    exported = get_exporter_class(exporter)().export(model, inputs, config)
    return exported.to(**RUNNERS.get(exporter, {}))


def assert_computes_the_same(exported: Any, model: nn.Module, sizes: list[tuple[int, int, int]]) -> None:
    for batch_size, height, width in sizes:
        pixel_values = torch.randn(batch_size, 3, height, width)
        with torch.no_grad():
            expected = tensors_of(model(pixel_values))
        actual = tensors_of(exported(pixel_values=pixel_values))
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].shape == tensor.shape, name
            difference = (actual[name] - tensor).abs().max() / tensor.abs().max()
            assert difference < TOLERANCE, f"{name} of {batch_size} images of {height} x {width}: {difference:.1e}"


@pytest.mark.parametrize(
    ("exporter", "family", "model_class"),
    # Heads do not depend on the family. Two of the exporters start from a program of torch.export, the third exporter.
    [
        *(("dynamo", "svt", model_class) for model_class in MODEL_CLASSES),
        *((exporter, "svt", model_class) for exporter in EXPORTERS[1:] for model_class in MODEL_CLASSES[1:]),
        *((exporter, "pcpvt", TwinsForImageClassification) for exporter in EXPORTERS),
    ],
)
def test_exported_model_computes_the_same(exporter, family, model_class):
    # The export includes hidden states, in addition to the other outputs.
    model = randomize(model_class(tiny_config(family, **FIELDS, output_hidden_states=True)))
    exported = export(exporter, model)
    # torch.export specializes on whether the sample has a single window per row, which is tested below.
    assert_computes_the_same(exported, model, SIZES if exporter == "dynamo" else [*SIZES, ONE_WINDOW])
    # Hidden states are the first patch embeddings and the output of each stage, as images.
    with torch.no_grad():
        outputs = exported(pixel_values=torch.randn(2, 3, 40, 44))
    expected = [(2, 16, 20, 22), (2, 16, 20, 22), (2, 32, 10, 11)]
    assert [tuple(hidden_state.shape) for hidden_state in outputs.hidden_states] == expected


@pytest.fixture(scope="module", params=EXPORTERS)
def classifier(request) -> tuple[str, nn.Module, Any]:
    """The name of an exporter, a model, and its export."""
    torch.manual_seed(0)
    model = randomize(TwinsForImageClassification(tiny_config(**FIELDS)))
    return request.param, model, export(request.param, model)


def test_exported_model_returns_no_hidden_states_by_default(classifier):
    _, model, exported = classifier
    assert_computes_the_same(exported, model, SIZES[2:3])
    assert set(exported(pixel_values=torch.randn(2, 3, 40, 44))) == {"logits"}


def test_exported_model_saves_and_reloads(tmp_path, classifier):
    from transformers.exporters import ExportedModel

    exporter, model, exported = classifier
    exported.save_pretrained(tmp_path)
    # torch.export's files are pickles, for which transformers requires the same consent as for code.
    reloaded = ExportedModel.from_pretrained(
        tmp_path, trust_remote_code=exporter == "dynamo", **RUNNERS.get(exporter, {})
    )
    assert reloaded.config.to_dict()["hidden_sizes"] == model.config.hidden_sizes
    assert_computes_the_same(reloaded, model, SIZES[2:3])


SETTLED = "torch.export settles by the sample whether windows are one in a row, for memory layout and shapes"


@pytest.mark.parametrize(
    ("exporter", "sample", "size"),
    [
        pytest.param(exporter, sample, size, id=f"{exporter}-{case}", marks=marks)
        for exporter, case, sample, size, marks in (
            # Programs of torch.export have guards.
            (
                "dynamo",
                "fewer",
                WINDOWS,
                ONE_WINDOW,
                pytest.mark.xfail(reason=SETTLED, raises=AssertionError, strict=True),
            ),
            (
                "dynamo",
                "more",
                ONE_WINDOW,
                WINDOWS,
                pytest.mark.xfail(reason=SETTLED, raises=AssertionError, strict=True),
            ),
            ("onnx", "more", ONE_WINDOW, WINDOWS, ()),
            # The runtime raises an error for mismatched shapes.
            (
                "openvino",
                "more",
                ONE_WINDOW,
                WINDOWS,
                pytest.mark.xfail(reason=SETTLED, raises=RuntimeError, strict=True),
            ),
        )
    ],
)
def test_exported_model_takes_images_of_one_window(exporter, sample, size):
    model = randomize(TwinsModel(tiny_config("svt", **FIELDS)))
    assert_computes_the_same(export(exporter, model, sample), model, [size])


def test_every_exporter_is_tested_or_listed():
    assert set(EXPORT_BACKENDS) == {*EXPORTERS, *NOT_INSTALLED}


@pytest.mark.parametrize(("exporter", "package"), NOT_INSTALLED.items())
def test_missing_exporter_raises_an_error(exporter, package):
    # If it becomes installable, it must be tested above.
    with pytest.raises(ImportError, match=package):
        get_exporter_class(exporter)()
