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
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_twins import TWINS_VARIANTS, TwinsConfig, TwinsForImageClassification, published_variant


def model_without_weights(name: str) -> TwinsForImageClassification:
    with torch.device("meta"):
        # Attention is eager, because the counter supports matrix products but not every attention kernel.
        return TwinsForImageClassification._from_config(TwinsConfig.from_variant(name), attn_implementation="eager")


# FLOPs (G) and parameters (M) of UperNet for ADE20K with 512 x 512 pixels, from the authors' README.
PUBLISHED_UPERNET = {
    "twins-pcpvt-small": (234, 54.6),
    "twins-pcpvt-base": (250, 74.3),
    "twins-pcpvt-large": (269, 91.5),
    "twins-svt-small": (228, 54.4),
    "twins-svt-base": (261, 88.5),
    "twins-svt-large": (297, 133),
}


def giga_multiply_adds(model: torch.nn.Module, image_size: int) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_variant_is_found_by_its_fields(name):
    fields = TwinsConfig.from_variant(name).to_dict()
    assert published_variant(fields) == name
    for other in ({"depths": [1, 1, 1, 1]}, {"sr_ratios": [4, 2, 1, 1]}, {"window_size": 5}):
        assert published_variant(fields | other) is None
    del fields["hidden_sizes"]
    assert published_variant(fields) is published_variant({}) is None


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


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_upernet_has_the_published_parameters_and_flops(name):
    variant, (flops, num_parameters) = TWINS_VARIANTS[name], PUBLISHED_UPERNET[name]
    backbone_config = TwinsConfig.from_variant(
        name,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        use_stage_norm=variant.window_size is not None,
    )
    config = UperNetConfig(backbone_config=backbone_config, num_labels=150)
    with torch.device("meta"):
        model = UperNetForSemanticSegmentation._from_config(config, attn_implementation="eager")
    # The authors' models still have the classifier's norm and 1000-class head, which are never used.
    unused = 1002 * variant.hidden_sizes[-1] + 1000
    assert (model.num_parameters() + unused) / 1e6 == pytest.approx(num_parameters, rel=0.01)
    assert giga_multiply_adds(model, 512) == pytest.approx(flops, rel=0.01)
