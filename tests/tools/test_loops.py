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
"""Lightning's fit loop trains like a plain PyTorch loop."""

import lightning
import pytest
import torch
from testing_utils import FAMILIES
from tool_models import make_images, make_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


NUM_IMAGES, BATCH_SIZE = 6, 2


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        pixel_values, labels = batch
        return self.model(pixel_values, labels=labels).loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        pixel_values, labels = batch
        self.log("loss", self.model(pixel_values, labels=labels).loss, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-2)


# Lightning calls PyTorch in a deprecated way.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
# Lightning recommends more workers even for six images, and warns if a model is not in training mode.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*in eval mode")
@pytest.mark.parametrize("kind", ["classifier", "segmentation", "upernet"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lightning_trains_like_a_plain_loop(family, kind, tmp_path):
    images = make_images(NUM_IMAGES, 16, 24)
    labels = torch.randint(4, (NUM_IMAGES,) if kind == "classifier" else (NUM_IMAGES, 16, 24))
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH_SIZE)
    models = [make_model(kind, family) for _ in range(2)]
    for model in models:
        # Dropout is disabled, because the loops would draw its random numbers in different orders.
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        model.train()
    actual, expected = models
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(actual), loader, loader)
    optimizer = make_optimizer(expected)
    for _ in range(2):
        for batch, batch_labels in loader:
            optimizer.zero_grad()
            expected(batch, labels=batch_labels).loss.backward()
            optimizer.step()
    for (name, parameter), other in zip(actual.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-5, msg=name)
    # The trained model is saved and loaded as usual.
    actual.save_pretrained(tmp_path / "model")
    loaded = type(actual).from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, actual.eval()(images).logits, rtol=0, atol=1e-5)
