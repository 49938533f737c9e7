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
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_twins import TWINS_VARIANTS, TwinsConfig, TwinsForImageClassification


def model_without_weights(name: str) -> TwinsForImageClassification:
    with torch.device("meta"):
        # Eager, because the counter knows matrix products but not every attention kernel.
        return TwinsForImageClassification._from_config(TwinsConfig.from_variant(name), attn_implementation="eager")


def giga_multiply_adds(model: TwinsForImageClassification, image_size: int) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_variant_has_the_published_number_of_parameters(name):
    model = model_without_weights(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == TWINS_VARIANTS[name].num_parameters


@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_variant_has_the_published_flops(name):
    assert giga_multiply_adds(model_without_weights(name), 224) == pytest.approx(TWINS_VARIANTS[name].flops, rel=0.03)


@pytest.mark.parametrize(("name", "largest_exponent"), [("twins-svt-small", 1.10), ("twins-pcpvt-small", 1.17)])
def test_cost_grows_almost_linearly_with_pixels(name, largest_exponent):
    model = model_without_weights(name)
    exponent = math.log(giga_multiply_adds(model, 896) / giga_multiply_adds(model, 224)) / math.log(16)
    assert exponent < largest_exponent
