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

"""Model cards, which describe a model and show code that loads it, for all scripts that write a model folder."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import cached_file


# Maps the name of a model class to its pipeline. Models of all other classes extract features.
PIPELINES = {
    "TwinsForImageClassification": "image-classification",
    "TwinsForSemanticSegmentation": "image-segmentation",
    "UperNetForSemanticSegmentation": "image-segmentation",
}
IMPORT = "import hf_twins  # registers Twins with transformers\n"
CLASSIFY = """{imports}from transformers import pipeline

classify = pipeline("image-classification", {location}{trust})
print(classify("image.jpg"))"""
SEGMENT = """{imports}from transformers import pipeline

segment = pipeline("image-segmentation", {location}{trust})
print([(each["label"], each["mask"]) for each in segment("image.jpg")])"""
EXTRACT = """import hf_twins
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained({location})
model = hf_twins.{model_class}.from_pretrained({location})"""
DETECT = """{imports}from transformers import pipeline

# hf_twins.detection.load_detector also takes several images at once, and returns Mask R-CNN's masks.
detect = pipeline("object-detection", model={location})
for found in detect("image.jpg", threshold=0.5):
    print(found["label"], round(found["score"], 2), found["box"])"""
USAGE = {"image-classification": CLASSIFY, "image-segmentation": SEGMENT, "object-detection": DETECT}


def quoted(text: str) -> str:
    """Convert text to a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def pipeline_tag(architecture: str) -> str:
    """The Hub's name for the task of a model class."""
    if architecture.endswith("ForObjectDetection"):
        return "object-detection"
    return PIPELINES.get(architecture, "image-feature-extraction")


def usage_code(architecture: str, location: str, trust_remote_code: bool = False) -> str:
    """Python code that loads a model and runs it on an image.

    Args:
        architecture: name of the model's class.
        location: Hub id or folder that the model is loaded from.
        trust_remote_code: whether the model's code is loaded from there too, instead of from the installed package.
    """
    return USAGE.get(pipeline_tag(architecture), EXTRACT).format(
        location=quoted(location),
        model_class=architecture,
        imports="" if trust_remote_code else IMPORT,
        # A placeholder, because a commit cannot contain its own hash.
        trust=', trust_remote_code=True, revision="COMMIT"' if trust_remote_code else "",
    )


def origin_fields(
    base: str | None, dataset: str | None, license_id: str | None = None, revision: str = "main"
) -> dict[str, Any]:
    """The fields of a card's front matter that describe the origin of a trained model, without those that are unknown.

    Args:
        base: folder or Hub id of the model that training started from; None for random weights.
        dataset: folder or Hub id of the dataset.
        license_id: the Hub's identifier of the model's license; that of the base model's card by default.
        revision: branch, tag or commit of the base model.
    """
    parent = card_metadata(base, revision) if base is not None else {}
    fields: dict[str, Any] = {
        name: parent[name] for name in ("license", "license_name", "license_link") if name in parent
    }
    if license_id is not None:
        fields = {"license": license_id}
    # If the model was trained from a local folder, take the base model from the card in that folder.
    base_model = base if is_hub_id(base) else parent.get("base_model")
    if base_model is not None:
        fields["base_model"] = base_model
    if is_hub_id(dataset):
        fields["datasets"] = [dataset]
    return fields


def is_hub_id(name: str | None) -> bool:
    """Whether `name` is a repository on the Hub, and not a file or folder."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return not Path(str(name)).exists()


def card_metadata(name: str, revision: str = "main") -> dict[str, Any]:
    """The front matter of the card of a model folder or repository; empty if there is none, or it cannot be read."""
    flags = ("gated_repo", "missing_entries", "connection_errors")
    try:
        card = cached_file(
            name, "README.md", revision=revision, **{f"_raise_exceptions_for_{flag}": False for flag in flags}
        )
    except (OSError, httpx.HTTPError):
        return {}
    try:
        return (metadata_load(card) if card is not None else None) or {}
    except Exception:
        # The YAML parser raises various errors for invalid front matter.
        return {}


def model_card(metadata: ModelCardData, title: str, description: str, usage: str, *sections: str) -> ModelCard:
    """Create the card of a model folder.

    Args:
        metadata: front matter of the card.
        title: heading of the card.
        description: what the model is, in one paragraph.
        usage: Python code that loads the model.
        sections: further sections in Markdown.
    """
    blocks = [f"---\n{metadata.to_yaml()}\n---", f"# {title}", description, f"## Usage\n\n```python\n{usage}\n```"]
    return ModelCard(sign("\n\n".join([*blocks, *sections]) + "\n"))


# Last line of a generated card, with the hash of the text above it. If the card was edited, the hash no longer
# matches.
SIGNATURE = "\n<!-- Generated by hf_twins, and not edited if this is the SHA-256 of the text above: {} -->\n"


def sign(text: str) -> str:
    """Append the signature to the text of a generated card, replacing any earlier one."""
    text = re.sub(re.escape(SIGNATURE).replace(r"\{\}", "[0-9a-f]{64}") + "$", "", text)
    return text + SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest())


def is_generated(text: str) -> bool:
    """Whether a card was generated and not edited since."""
    text = text.replace("\r\n", "\n")
    return sign(text) == text
