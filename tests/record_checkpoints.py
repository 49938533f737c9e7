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
"""Record the checkpoints in `data/`, written by libraries that the tests do not need.

    pip install mmengine lightning yacs
    python tests/record_checkpoints.py

Each is what its library's own trainer saves after a step with a tiny Twins model.
"""

import gzip
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.runner import Runner
from source_checkpoints import RECORDED, OfficialBackbone, OpenMMLabBackbone, number_weights
from torch import nn
from yacs.config import CfgNode


DATA = Path(__file__).with_name("data")


def loss_of(model: nn.Module) -> torch.Tensor:
    return sum(parameter.sum() for parameter in model.parameters())  # type: ignore[return-value]  # never an int: there are some


class MMPretrainClassifier(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = OpenMMLabBackbone(RECORDED, "stages", norms="norm_after_stage3")
        self.head = nn.Module()
        self.head.fc = nn.Linear(RECORDED.hidden_sizes[-1], 2)

    def forward(self, *inputs: Any, **options: Any) -> dict[str, torch.Tensor]:
        return {"loss": loss_of(self)}


def record_mmengine(folder: Path) -> Path:
    model = number_weights(MMPretrainClassifier())
    dataset = torch.utils.data.TensorDataset(torch.ones(2, 1))
    dataset.metainfo = {"classes": ("cat", "dog"), "palette": [[0, 0, 0], [1, 1, 1]]}  # type: ignore[attr-defined]
    runner = Runner(
        model,
        work_dir=str(folder / "mmengine"),
        train_dataloader={
            "dataset": dataset,
            "batch_size": 1,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        experiment_name="recorded",
    )
    runner.message_hub.update_info("settings", ConfigDict(model={"type": "Twins"}))
    runner.train()
    return folder / "mmengine" / "epoch_1.pth"


class Classifier(lightning.LightningModule):
    def __init__(self, settings: Any, output_dir: Path):
        super().__init__()
        self.save_hyperparameters()
        self.model = OfficialBackbone(RECORDED, num_classes=2)
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return loss_of(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def record_lightning(folder: Path) -> Path:
    model = Classifier(CfgNode({"MODEL": {"NAME": "svt"}}), output_dir=folder)
    number_weights(model.model)
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=folder, filename="lightning")
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoints],
        enable_progress_bar=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 1))))
    return folder / "lightning.ckpt"


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for record in (record_mmengine, record_lightning):
            file = record(Path(temporary))
            # The bytes are written by the library. Weights are repeated numbers, so that a few KB remain after
            # compression.
            (DATA / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
