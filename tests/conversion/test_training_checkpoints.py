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
"""Conversion of complete training checkpoints of mmengine, Lightning, and timm's and DeiT's scripts."""

import argparse
import gzip
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_formats import FORMATS
from conversion_utils import fails, run
from source_checkpoints import (
    RECORDED,
    TINY,
    OfficialBackbone,
    OpenMMLabBackbone,
    Structure,
    number_weights,
    source_weights,
    timm_model,
)
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import nn

from hf_twins import TwinsForImageClassification
from hf_twins.checkpoints import read_weights


DATA = Path(__file__).parents[1] / "data"
TABLES = {each.name: each.table for each in FORMATS}


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "converted"


def assert_converted(
    output: Path, weights: dict[str, torch.Tensor], source_format: str = "authors' classification"
) -> Any:
    model = TwinsForImageClassification.from_pretrained(output)
    expected = TABLES[source_format].to_hf(weights)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    return model


def recorded(name: str, tmp_path: Path) -> Path:
    """A file that `record_checkpoints.py` recorded from the library in its name."""
    file = tmp_path / name
    file.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return file


def test_checkpoint_of_mmengine_converts(tmp_path, output, capsys):
    """It has a message hub with history buffers, NumPy numbers, and a ConfigDict."""
    run(recorded("mmengine-0.10.7.pth", tmp_path), "--output", output)
    model = Structure(
        backbone=OpenMMLabBackbone(RECORDED, "stages", norms="norm_after_stage3"),
        head=Structure(fc=nn.Linear(RECORDED.hidden_sizes[-1], 2)),
    )
    weights = dict(number_weights(model).state_dict())
    assert assert_converted(output, weights, "mmpretrain").config.id2label == {0: "cat", 1: "dog"}
    assert "labels    2, cat, dog\n" in capsys.readouterr().out


def test_checkpoint_of_lightning_converts(tmp_path, output, capsys):
    """It has hyperparameters (AttributeDict, yacs' CfgNode, a path), and a class-weighted loss."""
    source = recorded("lightning-2.6.6.ckpt", tmp_path)
    run(source, "--output", output)
    model = assert_converted(output, dict(number_weights(OfficialBackbone(RECORDED, num_classes=2)).state_dict()))
    assert torch.equal(TwinsForImageClassification.from_pretrained(source).classifier.weight, model.classifier.weight)
    assert "left out  criterion.weight\n" in capsys.readouterr().out


def test_checkpoint_of_timms_training_script_converts(tmp_path, output):
    """timm's `train.py` saves with these classes; the folder has one file, with the suffix .pth.tar."""
    model = timm_model(TINY["svt"], 5)
    average = ModelEmaV3(model, decay=0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    average.update(model)
    args = argparse.Namespace(model="twins_svt_small", lr=0.1, output=Path("outputs"), local_rank=0)
    folder = tmp_path / "run"
    folder.mkdir()
    saver = CheckpointSaver(
        model,
        optimizer,
        args,
        average,
        NativeScaler(device="cpu"),
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(0, metric=81.2)
    for file in folder.iterdir():
        if file.name != "last.pth.tar":
            file.unlink()
    run(folder, "--output", output)
    assert_converted(output, dict(model.state_dict()))
    averaged = read_weights(folder / "last.pth.tar", averaged=True)
    assert averaged.keys() == model.state_dict().keys()
    assert all(torch.equal(averaged[name], weight) for name, weight in average.module.state_dict().items())
    assert torch.equal(
        TwinsForImageClassification.from_pretrained(folder).classifier.weight, model.state_dict()["head.weight"]
    )


@pytest.fixture
def pathlib_of_python_3_13(monkeypatch) -> type:
    """Simulate Python 3.13, whose pickles name another module for paths than other versions."""
    module = types.ModuleType("pathlib._local")

    class PosixPath:
        def __init__(self, *parts: str):
            self.parts = parts

        def __reduce__(self) -> Any:
            return PosixPath, self.parts

    PosixPath.__module__, PosixPath.__qualname__ = "pathlib._local", "PosixPath"
    module.PosixPath = PosixPath
    monkeypatch.setitem(sys.modules, "pathlib._local", module)
    return PosixPath


@pytest.mark.parametrize("protocol", [2, 4])
def test_checkpoint_of_deits_script_converts(tmp_path, output, pathlib_of_python_3_13, protocol):
    """The authors' training script is DeiT's, here with Python 3.13. Its arguments are a Namespace that contains a path."""
    weights = source_weights("official", TINY["svt"])
    content = {
        "model": weights,
        "optimizer": torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict(),
        "lr_scheduler": {"base_values": [0.1], "metric": None},
        "epoch": 3,
        "model_ema": {name: weight / 2 for name, weight in weights.items()},
        "scaler": {},
        "args": argparse.Namespace(lr=0.1, output_dir=pathlib_of_python_3_13("outputs"), model="alt_gvt_small"),
    }
    torch.save(content, tmp_path / "checkpoint.pth", pickle_protocol=protocol)
    run(tmp_path / "checkpoint.pth", "--output", output)
    assert_converted(output, weights)


def test_object_in_place_of_the_weights_is_refused(tmp_path, output):
    """The conversion must not use the weights under the next key, which may be different ones."""
    weights = source_weights("official", TINY["svt"])
    torch.save({"model": argparse.Namespace(), "state_dict_ema": weights}, tmp_path / "checkpoint.pth")
    error = fails(tmp_path / "checkpoint.pth", "--output", output)
    assert "holds argparse.Namespace under 'model', where the weights should be: save the state_dict()" in error
    assert not output.exists()


def test_mixed_dtypes_are_converted_to_the_requested_one(tmp_path, output):
    weights = source_weights("official", TINY["svt"])
    mixed = {name: weight if "norm" in name else weight.half() for name, weight in weights.items()}
    torch.save(mixed, tmp_path / "mixed.pth")
    assert "must all be of one type, got" in (error := fails(tmp_path / "mixed.pth", "--output", output))
    assert "set --dtype" in error
    run(tmp_path / "mixed.pth", "--output", output, "--dtype", "float32")
    assert_converted(output, {name: weight.float() for name, weight in mixed.items()})


@pytest.mark.parametrize("meta", ["twins", None, 3, ["a"]])
def test_meta_of_other_toolboxes_is_not_read(tmp_path, output, capsys, meta):
    torch.save({"meta": meta, "state_dict": source_weights("mmseg-backbone", TINY["svt"])}, tmp_path / "a.pth")
    run(tmp_path / "a.pth", "--dry_run")
    # The names must not be the default ones of every configuration.
    assert "labels    none\n" in capsys.readouterr().out
