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
"""The names of weights in checkpoint formats, as tables that work in both directions."""

import re
from collections.abc import Iterable, Mapping

import torch


NameRow = tuple[str, ...]

# Each row has a module of the authors' models, and the hf_twins modules whose weights it holds, stacked if there are
# several. {layer} is any block of a {stage}, {window} is one with locally-grouped attention and {global} one with
# global attention.
ORIGINAL_NAMES: tuple[NameRow, ...] = (
    ("patch_embeds.{stage}.proj.", "twins.encoder.patch_embeddings.{stage}.projection."),
    ("patch_embeds.{stage}.norm.", "twins.encoder.patch_embeddings.{stage}.layernorm."),
    ("pos_block.{stage}.proj.0.", "twins.encoder.stages.{stage}.position_encoding.projection."),
    ("blocks.{stage}.{layer}.norm1.", "twins.encoder.stages.{stage}.layers.{layer}.layernorm_before."),
    (
        "blocks.{stage}.{window}.attn.qkv.",
        "twins.encoder.stages.{stage}.layers.{window}.attention.q_proj.",
        "twins.encoder.stages.{stage}.layers.{window}.attention.k_proj.",
        "twins.encoder.stages.{stage}.layers.{window}.attention.v_proj.",
    ),
    ("blocks.{stage}.{global}.attn.q.", "twins.encoder.stages.{stage}.layers.{global}.attention.q_proj."),
    (
        "blocks.{stage}.{global}.attn.kv.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.k_proj.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.v_proj.",
    ),
    (
        "blocks.{stage}.{global}.attn.sr.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.sequence_reduction.projection.",
    ),
    (
        "blocks.{stage}.{global}.attn.norm.",
        "twins.encoder.stages.{stage}.layers.{global}.attention.sequence_reduction.layernorm.",
    ),
    ("blocks.{stage}.{layer}.attn.proj.", "twins.encoder.stages.{stage}.layers.{layer}.attention.o_proj."),
    ("blocks.{stage}.{layer}.norm2.", "twins.encoder.stages.{stage}.layers.{layer}.layernorm_after."),
    ("blocks.{stage}.{layer}.mlp.fc1.", "twins.encoder.stages.{stage}.layers.{layer}.mlp.fc1."),
    ("blocks.{stage}.{layer}.mlp.fc2.", "twins.encoder.stages.{stage}.layers.{layer}.mlp.fc2."),
    ("norm.", "twins.layernorm."),
    ("head.", "classifier."),
)


class NameTable:
    """Maps the names of a checkpoint format to those of hf_twins and back.

    Args:
        rows: see `ORIGINAL_NAMES`. Any other placeholder in a row stands for any number.
        unused: prefixes of the names of weights that checkpoints of the format may contain but models never use.
    """

    def __init__(self, rows: tuple[NameRow, ...], unused: tuple[str, ...] = ()):
        self.rows = rows
        self.unused = unused
        self.source_patterns = [re.compile(name_pattern(source_name)) for source_name, *_ in rows]
        self.hf_patterns = [re.compile(name_pattern(hf_name)) for _, hf_name, *_ in rows]

    def window_layers(self, keys: Iterable[str]) -> set[tuple[int, int]]:
        """The (stage, block) of each block with locally-grouped attention, given weight names of the format."""
        matches = [
            match.groupdict() for key in keys for pattern in self.source_patterns if (match := pattern.fullmatch(key))
        ]
        return {(int(numbers["stage"]), int(numbers["window"])) for numbers in matches if "window" in numbers}

    def to_hf(self, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the format's weights to hf_twins names; stacked weights are split into views.

        Raises:
            ValueError: if a name matches no row, two names give the same weight, or stacked weights cannot be split
                evenly.
        """
        converted: dict[str, torch.Tensor] = {}
        unknown, repeated = [], []
        for key, tensor in state_dict.items():
            if self.unused and key.startswith(self.unused):
                continue
            matches = [
                (row, match)
                for row, pattern in zip(self.rows, self.source_patterns)
                if (match := pattern.fullmatch(key))
            ]
            if not matches:
                unknown.append(key)
            for (_, *hf_names), match in matches:
                if len(hf_names) > 1 and (tensor.ndim == 0 or tensor.shape[0] % len(hf_names) != 0):
                    raise ValueError(
                        f"{key} must be {len(hf_names)} weights of the same height, stacked, got the shape "
                        f"{tuple(tensor.shape)}."
                    )
                for name, part in zip(hf_names, tensor.chunk(len(hf_names)) if len(hf_names) > 1 else [tensor]):
                    name = name.format(**match.groupdict()) + match["parameter"]
                    if name in converted:
                        repeated.append(name)
                    converted[name] = part
        if unknown:
            raise ValueError(f"The checkpoint has weights that no Twins model of its format has: {listed(unknown)}.")
        if repeated:
            raise ValueError(f"The checkpoint gives more than one value for {listed(repeated)}.")
        return converted

    def to_source(self, state_dict: Mapping[str, torch.Tensor], window_size: int | None) -> dict[str, torch.Tensor]:
        """Rename the weights of an hf_twins model with this `window_size` to the format's names.

        Raises:
            ValueError: if the format has no name for a weight.
        """
        converted = {}
        left_over = dict.fromkeys(state_dict)
        for key in state_dict:
            for (source_name, *hf_names), pattern in zip(self.rows, self.hf_patterns):
                if (match := pattern.fullmatch(key)) is None or not is_kind_of_layer(match.groupdict(), window_size):
                    continue
                names = [name.format(**match.groupdict()) + match["parameter"] for name in hf_names]
                parts = [state_dict[name] for name in names]
                source_name = source_name.format(**match.groupdict()) + match["parameter"]
                converted[source_name] = parts[0] if len(parts) == 1 else torch.cat(parts)
                for name in names:
                    left_over.pop(name)
        if left_over:
            raise ValueError(f"The format has no name for {listed(list(left_over))}.")
        return converted


def name_pattern(module: str) -> str:
    """The regular expression for the names of the parameters and buffers of a module in a row."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(module))
    return pattern + r"(?P<parameter>weight|bias|running_mean|running_var|num_batches_tracked)"


def is_kind_of_layer(numbers: Mapping[str, str], window_size: int | None) -> bool:
    """Whether the block with these numbers has the kind of attention that the placeholder denotes: {window} or {global}."""
    if "window" in numbers:
        return window_size is not None and int(numbers["window"]) % 2 == 0
    if "global" in numbers:
        return window_size is None or int(numbers["global"]) % 2 == 1
    return True


def listed(names: list[str], limit: int = 8) -> str:
    """List the first `limit` names and the number of the others, on one line even if names in a file contain line breaks."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = [name if name.isprintable() and len(name) <= 200 else ascii(name[:200]) for name in names[:limit]]
    return ", ".join(shown) + more
