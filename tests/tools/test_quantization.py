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
"""8-bit weights on a CPU, by torchao and by bitsandbytes."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from testing_utils import FAMILIES, randomize, tiny_config
from tool_models import EVERY_MODEL, assert_same_outputs, make_images, make_model, outputs_of
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, MappingType, quantize_
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PvtV2Config,
    PvtV2ForImageClassification,
    TorchAoConfig,
)

from hf_twins import TwinsForImageClassification


# With this many labels, logits are not all small by chance, which would make the relative error large.
NUM_LABELS = 100
TORCHAO_CONFIGS = [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig]


def relative_error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((tensor - other).norm() / other.norm()) for tensor, other in zip(actual, expected, strict=True))


@pytest.mark.skipif(
    b"getattr" in pickle.dumps(MappingType.SYMMETRIC, protocol=2),
    reason="some versions of Python (3.11.2) save a member of torchao's enums by getattr, which torch.load refuses",
)
@pytest.mark.parametrize("config_class", TORCHAO_CONFIGS)
@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_torchao_int8_saved_and_reloaded(kind, family, config_class):
    model, images = make_model(kind, family), make_images()
    quantized = copy.deepcopy(model)
    quantize_(quantized, config_class())
    outputs = outputs_of(quantized, images)
    # The tolerance is for narrow layers with random weights, whose rounding errors do not average out as in trained
    # models.
    assert 0 < relative_error(outputs, outputs_of(model, images)) < 0.1
    buffer = io.BytesIO()
    torch.save(quantized.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer, weights_only=True), assign=True)
    assert_same_outputs(model, outputs, images)


@pytest.mark.slow
@pytest.mark.parametrize("config_class", TORCHAO_CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_torchao_int8_by_from_pretrained(family, config_class, tmp_path):
    images = make_images()
    make_model("classifier", family).save_pretrained(tmp_path / "model")
    quantized = TwinsForImageClassification.from_pretrained(
        tmp_path / "model", quantization_config=TorchAoConfig(config_class()), device_map="cpu"
    )
    outputs = outputs_of(quantized, images)
    quantized.save_pretrained(tmp_path / "quantized")
    assert_same_outputs(TwinsForImageClassification.from_pretrained(tmp_path / "quantized"), outputs, images)


def bitsandbytes_error(model: PreTrainedModel, images: torch.Tensor, folder) -> float:
    """The relative L2 distance of logits with 8-bit layers from those in float32."""
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map="cpu",
        dtype=torch.float32,
    )
    layers = {type(module).__name__ for module in loaded.modules()}
    assert "Linear8bitLt" in layers
    return relative_error(outputs_of(loaded, images), outputs_of(model, images))


def pvt_v2() -> PreTrainedModel:
    fields = {"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4], "depths": [2, 2, 2, 2]}
    return PvtV2ForImageClassification(PvtV2Config(**fields, mlp_ratios=[2, 2, 2, 2], num_labels=NUM_LABELS))


def test_bitsandbytes_8_bit_is_as_accurate_as_for_pvt_v2(tmp_path):
    pytest.importorskip("bitsandbytes")
    images = make_images(4, 64, 96)
    builders = {
        "pvt_v2": pvt_v2,
        **{
            family: partial(TwinsForImageClassification, tiny_config(family, num_labels=NUM_LABELS))
            for family in FAMILIES
        },
    }
    errors: dict[str, list[float]] = {}
    for name, build in builders.items():
        # Compare six random models of each, because a single one may be good by chance.
        for seed in range(6):
            torch.manual_seed(seed)
            error = bitsandbytes_error(randomize(build()), images, tmp_path / f"{name}-{seed}")
            errors.setdefault(name, []).append(error)
    for family in FAMILIES:
        assert max(errors[family]) <= 0.02
        assert sum(errors[family]) <= sum(errors["pvt_v2"])


@pytest.mark.parametrize(("kind", "family"), [case for case in EVERY_MODEL if case.values[0] != "classifier"])
def test_bitsandbytes_8_bit_in_other_models(kind, family, tmp_path):
    pytest.importorskip("bitsandbytes")
    # Height and width are odd, so that windows are padded.
    assert bitsandbytes_error(make_model(kind, family), make_images(2, 33, 40), tmp_path) <= 0.05
