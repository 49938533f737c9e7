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
"""Publishing a model together with its code, for users who have transformers but not this package."""

import json
import os
import shutil
from pathlib import Path

from ._utils.files import write_json
from .image_processing_twins import PROCESSOR_AUTO_MAP


# There is an entry for every Auto class, regardless of the class that the model was saved from.
CONFIG_AUTO_MAP = {
    "AutoConfig": "configuration_twins.TwinsConfig",
    "AutoModel": "modeling_twins.TwinsModel",
    "AutoModelForImageClassification": "modeling_twins.TwinsForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_twins.TwinsForSemanticSegmentation",
    "AutoBackbone": "modeling_twins.TwinsBackbone",
}


def save_remote_code(save_directory: str | os.PathLike) -> list[str]:
    """Add the model code to a saved model, so that `trust_remote_code=True` loads it without this package.

    Args:
        save_directory: a folder that `save_pretrained` wrote, with a `config.json` and optionally a
            `preprocessor_config.json`.

    Returns:
        The paths of the code files written.

    Raises:
        FileNotFoundError: if `save_directory` has no `config.json`.
        ValueError: if the model is not a Twins model but, for example, a DETR or UperNet with a Twins backbone.
    """
    save_directory = Path(save_directory)
    config_file = save_directory / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{save_directory} has no config.json: save the model there first, with model.save_pretrained."
        )
    config = json.loads(config_file.read_text(encoding="utf-8"))
    backbone = config.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("model_type") == "twins":
        raise ValueError(
            f"{config_file} is for a model with a Twins backbone (model_type {config.get('model_type')!r}), but only "
            "Twins models can be saved with code: load it where hf_twins is installed, after `import hf_twins`."
        )
    if config.get("model_type") != "twins":
        raise ValueError(
            f"{config_file} must be that of a Twins model (model_type 'twins'), got {config.get('model_type')!r}."
        )
    code_files = [shutil.copy(source, save_directory) for source in sorted(Path(__file__).parent.glob("*_twins.py"))]
    # Keys are not sorted, because label 10 would come before label 2.
    write_json(config_file, config | {"auto_map": CONFIG_AUTO_MAP})
    processor_file = save_directory / "preprocessor_config.json"
    if processor_file.is_file():
        processor = json.loads(processor_file.read_text(encoding="utf-8"))
        # Older segmentation models have an image processor of another model, which is part of transformers.
        if processor.get("image_processor_type") in ("TwinsImageProcessor", "TwinsImageProcessorPil"):
            write_json(processor_file, processor | {"auto_map": PROCESSOR_AUTO_MAP})
    return [str(path) for path in code_files]
