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
"""A number that tells whether results of two runs are the same model's, whatever it is called."""

import hashlib
from typing import Any

import torch


def model_digest(model: Any, processor: Any) -> str:
    """What tells these weights and this preprocessing from others."""
    digest = hashlib.sha256(processor.to_json_string().encode())
    for tensor in model.state_dict().values():
        # As bytes, because NumPy does not know all of PyTorch's numbers.
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
