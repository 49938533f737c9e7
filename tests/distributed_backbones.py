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
"""Train backbones, alone and within heads, by DistributedDataParallel without `find_unused_parameters`, for three steps.

This is a script, because torchrun's processes need a file. A parameter without a gradient causes an error in the
second step.
"""

import sys

import torch
import torch.distributed as dist
from testing_utils import FAMILIES, randomize, tiny_config
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DetrConfig, DetrForObjectDetection, UperNetConfig, UperNetForSemanticSegmentation

from hf_twins import TwinsBackbone


class BackboneLoss(nn.Module):
    def __init__(self, backbone: TwinsBackbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return sum(feature_map.square().mean() for feature_map in self.backbone(pixel_values).feature_maps)


class HeadLoss(nn.Module):
    def __init__(self, model: nn.Module, labels):
        super().__init__()
        self.model, self.labels = model, labels

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, labels=self.labels).loss


def make_model(kind: str, family: str) -> nn.Module:
    if kind == "upernet":
        stages = ["stage1", "stage2", "stage3"]
        config = UperNetConfig(
            backbone_config=tiny_config(family, out_features=stages),
            hidden_size=16,
            pool_scales=[1, 2],
            auxiliary_in_channels=32,
            auxiliary_channels=8,
            num_labels=5,
        )
        model = UperNetForSemanticSegmentation(config)
        model.auxiliary_head.in_index = 1
        return HeadLoss(model, torch.randint(5, (2, 32, 40)))
    if kind == "detr":
        config = DetrConfig(
            backbone_config=tiny_config(family, out_features=["stage2"]),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=4,
            num_labels=5,
        )
        labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}] * 2
        return HeadLoss(DetrForObjectDetection(config), labels)
    out_features = {"backbone": ["stage1", "stage2"], "stem": ["stem"]}[kind]
    return BackboneLoss(TwinsBackbone(tiny_config(family, out_features=out_features)))


def train(kind: str, family: str) -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(randomize(make_model(kind, family)).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):
        torch.manual_seed(step * dist.get_world_size() + dist.get_rank())
        model(torch.randn(2, 3, 32, 40)).backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        if without:
            sys.exit(f"{kind}, {family}: no gradient for {', '.join(without)}")
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for each_kind in ("stem", "backbone", "upernet", "detr"):
        for each_family in FAMILIES:
            train(each_kind, each_family)
            if dist.get_rank() == 0:
                print(each_kind, each_family)
    dist.destroy_process_group()
