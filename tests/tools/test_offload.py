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
"""Accelerate's offloading, which keeps weights in memory or on disk until their module runs."""

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tool_models import EVERY_MODEL, assert_same_outputs, make_images, make_model, outputs_of
from torch import nn


CPU = torch.device("cpu")
# transformers' DETR reads weights of its submodules directly, which Accelerate does not support: only its backbone can
# be offloaded.
OFFLOADED = {"detr": "model.backbone.model"}


def offloaded_part(model: nn.Module, kind: str) -> nn.Module:
    return model.get_submodule(OFFLOADED.get(kind, ""))


def is_offloaded(module: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_weights_offloaded_to_memory(kind, family):
    model, images = make_model(kind, family), make_images()
    expected = outputs_of(model, images)
    cpu_offload(offloaded_part(model, kind), execution_device=CPU)
    assert is_offloaded(offloaded_part(model, kind))
    assert_same_outputs(model, expected, images)


@pytest.mark.parametrize(("kind", "family"), EVERY_MODEL)
def test_weights_offloaded_to_disk(kind, family, tmp_path):
    model, images = make_model(kind, family), make_images()
    expected = outputs_of(model, images)
    disk_offload(offloaded_part(model, kind), tmp_path, execution_device=CPU)
    assert is_offloaded(offloaded_part(model, kind))
    assert_same_outputs(model, expected, images)


@pytest.mark.parametrize(("kind", "family"), [case for case in EVERY_MODEL if case.values[0] not in OFFLOADED])
def test_device_map_with_too_little_memory_puts_the_rest_on_disk(kind, family, tmp_path: Path):
    model, images = make_model(kind, family), make_images()
    expected = outputs_of(model, images)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": model.get_memory_footprint() // 2},
        offload_folder=tmp_path / "offload",
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert_same_outputs(loaded, expected, images)
