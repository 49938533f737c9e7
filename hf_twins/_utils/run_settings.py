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
"""Records the settings that the files in an output folder depend on, so that files of different runs are not mixed."""

import json
import re
from pathlib import Path
from typing import Any

from .files import write_json


SETTINGS_NAME = "settings.json"
ORIGINS = "origins"
# A SHA-256, as `fingerprints.py` returns it.
FINGERPRINT = re.compile("[0-9a-f]{64}")


def record_settings(
    output_dir: Path, settings: dict[str, Any], origins: dict[str, str] | None = None, outputs: str | None = None
) -> None:
    """Write the settings of a run into its output folder, or check that they match those recorded there.

    Args:
        output_dir: the output folder, created if needed.
        settings: JSON values of everything that the output depends on.
        outputs: pattern of the names of output files. Such files must not exist unless settings are recorded.
        origins: locations of the inputs, which may change between runs. Those of the last run are kept as `origins`.

    Raises:
        ValueError: if the folder has files of a run with other settings, which the message names, or without recorded
            settings, or the settings are damaged.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / SETTINGS_NAME
    recorded = read_settings(output_dir) if file.exists() else None
    left = sorted(path.name for path in output_dir.glob(outputs)) if outputs and recorded is None else []
    if left:
        raise ValueError(
            f"{output_dir} holds {left[0]}, but no {SETTINGS_NAME} of the run that wrote it: give another --output_dir, or remove "
            "it."
        )
    written = settings if origins is None else settings | {ORIGINS: origins}
    if recorded is not None and (differing := describe_differences(recorded, settings)):
        raise ValueError(
            f"{output_dir} holds the files of a run with {'; '.join(differing)}: give another --output_dir, or remove it."
        )
    if recorded != written:
        write_json(file, written)


def describe_differences(recorded: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Describe each setting that differs, with both values, except for fingerprints."""
    # Convert to JSON values, since tuples were recorded as lists.
    settings = json.loads(json.dumps(settings))
    differing = []
    for name in dict.fromkeys([*recorded, *settings]):
        if name == ORIGINS:
            continue
        if name in recorded and name in settings and recorded[name] == settings[name]:
            continue
        values = [each.get(name) for each in (recorded, settings)]
        if any(isinstance(value, str) and FINGERPRINT.fullmatch(value) for value in values):
            differing.append(f"another {name}" if name == "model" else f"other {name}")
        else:
            differing.append(f"{name} {values[0]}, now {values[1]}")
    return differing


def read_settings(output_dir: Path) -> dict[str, Any]:
    """Read the settings of the run that wrote to a folder.

    Raises:
        ValueError: if they are missing or damaged.
    """
    file = output_dir / SETTINGS_NAME
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{output_dir} has no {SETTINGS_NAME}: give the --output_dir of a run.") from None
    except (IsADirectoryError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): give another folder, or remove it.") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} must hold the settings of a run by their names: give another folder, or remove it.")
    return settings
