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
"""The default device for models."""

import torch


def default_device() -> torch.device:
    """The accelerator, if there is one, and otherwise the CPU."""
    # Without the check, this returns the accelerator that PyTorch was built for, even if it is not present.
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
