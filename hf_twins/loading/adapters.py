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
"""Loads PEFT adapters, merged into their base models."""

import warnings
from typing import Any

from .._utils.labels import label_fields
from .sources import ADAPTER_CONFIG_NAME, naming_source, read_fields, read_json
from .tasks import MODEL_CLASSES, saved_class
from .weights import check_weights, load_class


# File with the labels of an adapter's own head in the order of their ids, which PEFT's configuration cannot hold.
ADAPTER_LABELS_NAME = "label_names.json"
# The prefix that PEFT adds to the names of a model's weights.
PEFT_PREFIX = "base_model.model."


def base_model(name: str, adapter: dict[str, Any]) -> tuple[str, str]:
    """The name and revision of the model that an adapter was trained on."""
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name} does not say which model it adapts: set base_model_name_or_path in its {ADAPTER_CONFIG_NAME}."
        )
    return base, adapter.get("revision") or "main"


def load_adapter(name: str, revision: str, **options: Any) -> Any:
    """Load the base model of an adapter, and merge the adapter into it.

    Raises:
        OSError: if the base model cannot be loaded.
        ValueError: if the adapter does not fit the base model, or some weights are missing in both.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    adapter = read_json(name, ADAPTER_CONFIG_NAME, revision)
    base, base_revision = base_model(name, adapter)
    with naming_source(base):
        fields = read_fields(base, base_revision)
    if fields is None:
        raise ValueError(f"{name} is an adapter of {base}, which is an adapter itself: merge that one first.")
    base_class = saved_class(base, fields)
    # The adapter's model class may differ from that of the saved base model, such as a classifier on a backbone.
    model_class = MODEL_CLASSES.get((adapter.get("auto_mapping") or {}).get("base_model_class", base_class))
    if model_class is None:
        raise ValueError(f"{name} adapts a class other than {', '.join(MODEL_CLASSES)}: merge it yourself.")
    try:
        weights = load_peft_weights(name, device="cpu", revision=revision)
    except ValueError as error:
        raise OSError(f"cannot load {name}: it has {ADAPTER_CONFIG_NAME}, but no adapter weights") from error
    own_weights = {key.removeprefix(PEFT_PREFIX): weight for key, weight in weights.items()}
    head = next((weight for key, weight in own_weights.items() if key.endswith("classifier.weight")), None)
    if head is not None:
        # An adapter with its own head has its own labels.
        names = read_json(name, ADAPTER_LABELS_NAME, revision, list) or [
            f"LABEL_{index}" for index in range(len(head))
        ]
        options |= label_fields(names)
    with naming_source(base):
        model, new_weights = load_class(model_class, base, revision=base_revision, **options)
    check_weights(name, model, new_weights - own_weights.keys(), None, allow_new_weights=False)
    try:
        # PEFT ignores unexpected weights, and initializes weights that the adapter lacks. Both are errors here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, name, revision=revision)
        loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if differing := loaded.keys() ^ weights.keys():
            raise ValueError(f"only one of them has {min(differing)}")
        return adapted.merge_and_unload()
    except (AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} does not fit its base model {base}: {str(error).splitlines()[0]}") from error
