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
"""Number formats that this machine multiplies in hardware."""

import torch


# By PyTorch's names; without the dot products of bfloat16, oneDNN converts to float32 and back.
INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2"),
}


def multiplies(device: torch.device, dtype: torch.dtype) -> bool | None:
    """Whether a device has instructions for products in a half precision; None if that is not known."""
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return None
    capabilities = cpu_capabilities()
    # Other processors than x86 have other names.
    known = [capabilities[name] for name in INSTRUCTIONS[dtype] if name in capabilities]
    return any(known) if known else None


def cpu_capabilities() -> dict[str, bool]:
    """The instruction sets of this CPU."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name: value for name, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    # Older versions of PyTorch.
    checks = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {name: getattr(torch.cpu, check)() for name, check in checks.items() if hasattr(torch.cpu, check)}
