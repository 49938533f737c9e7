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
"""The average of the weights, compared with timm's."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from hf_twins.training.averaging import WeightAverage


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def train_a_step(trained: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*trained.parameters(), *trained.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))


def assert_same(actual: nn.Module, expected: nn.Module) -> None:
    weights = expected.state_dict()
    for name, weight in actual.state_dict().items():
        torch.testing.assert_close(weight, weights[name])


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_warm_up_of_the_average_matches_timm_also_after_resuming(decay, tmp_path):
    torch.manual_seed(0)
    trained, averaged = model(), model()
    ours, timms = WeightAverage(trained, decay), ModelEmaV3(trained, decay, use_warmup=True)
    for step in range(1, 41):
        train_a_step(trained)
        ours.update(trained)
        timms.update(trained, step=step)
        if step == 7:
            ours.save(tmp_path)
            ours = WeightAverage(model(), decay)
            ours.load(tmp_path)
        ours.copy_to(averaged)
        assert_same(averaged, timms.module)


def test_average_is_applied_to_the_model_temporarily():
    trained, averaged = model(), model()
    average = WeightAverage(trained, 0.9)
    for _ in range(3):
        train_a_step(trained)
        average.update(trained)
    average.copy_to(averaged)
    own = {name: weight.clone() for name, weight in trained.state_dict().items()}
    with average.applied_to(trained):
        assert_same(trained, averaged)
    assert all(torch.equal(weight, own[name]) for name, weight in trained.state_dict().items())
    with pytest.raises(ZeroDivisionError), average.applied_to(trained):
        _ = 1 / 0
    assert all(torch.equal(weight, own[name]) for name, weight in trained.state_dict().items())
    average.copy_to(trained)
    assert_same(trained, averaged)
