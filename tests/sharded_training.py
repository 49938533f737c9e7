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
"""Train tiny models for five steps, sharded if there are several processes, and print the losses, one line per model.

This is a script, because torchrun's processes need a file.
"""

import os

import torch
import torch.distributed as dist
from testing_utils import randomize, tiny_config
from torch.distributed.fsdp import fully_shard
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from hf_twins import TwinsForImageClassification, parameter_groups


def shard(model: TwinsForImageClassification) -> None:
    """Shard modules according to the model's plan, and the remaining weights with the entire model."""
    for name, module in model.named_modules():
        if replace_layer_number_by_wildcard(name) in model.fsdp_plan:
            fully_shard(module)
    fully_shard(model)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert held < 0.6 * total, (held, total)


def train(family: str, checkpoints: bool) -> list[float]:
    torch.manual_seed(0)
    model = randomize(TwinsForImageClassification(tiny_config(family))).train()
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if size > 1:
        shard(model)
    if checkpoints:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-3, weight_decay=0.05))
    losses = []
    for step in range(5):
        torch.manual_seed(step)
        images, labels = torch.randn(8, 3, 24, 28), torch.randint(5, (8,))
        own = slice(rank * 8 // size, (rank + 1) * 8 // size)
        loss = model(pixel_values=images[own], labels=labels[own]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / size
        if size > 1:
            dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    for case in (("svt", False), ("svt", True), ("pcpvt", False), ("pcpvt", True)):
        case_losses = train(*case)
        if int(os.environ.get("RANK", 0)) == 0:
            print(*case_losses)
    if dist.is_initialized():
        dist.destroy_process_group()
