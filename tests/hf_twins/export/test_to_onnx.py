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
"""Export to ONNX: impossible opsets are refused."""

import pytest
import torch
from torch import nn

from hf_twins.export import to_onnx
from hf_twins.export.source import Source


class Means(nn.Module):
    """A model that exports in a second; like that of Twins, its ReduceMean cannot be converted to opset 17."""

    output_names = ["logits"]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(pixel_values.mean((2, 3)))


@pytest.fixture
def source(monkeypatch) -> Source:
    def program(source):
        return torch.export.export(source.model, (), {"pixel_values": torch.ones(2, 3, 8, 8)}, strict=False)

    monkeypatch.setattr(to_onnx, "dynamic_program", program)
    return Source(Means(), None, (8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("opset_version", [17, 99])
def test_impossible_opset_is_refused(source, tmp_path, capfd, opset_version):
    with pytest.raises(ValueError, match=f"--opset_version {opset_version} is not possible: PyTorch .* with 18, or"):
        to_onnx.export_onnx(source, tmp_path / "onnx", opset_version=opset_version)
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("opset_version", [18, 23])
def test_opset_is_the_requested_one(source, tmp_path, opset_version):
    import onnx

    to_onnx.save_onnx(source, tmp_path / "model.onnx", opset_version)
    (opset,) = onnx.load(tmp_path / "model.onnx").opset_import
    assert (opset.domain, opset.version) == ("", opset_version)
