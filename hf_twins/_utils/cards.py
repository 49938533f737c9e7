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

"""Model cards: what a model is, and code that loads it, for everything here that writes a model folder."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import cached_file


# By the name of the model's class; the others extract features.
PIPELINES = {
    "TwinsForImageClassification": "image-classification",
    "TwinsForSemanticSegmentation": "image-segmentation",
    "UperNetForSemanticSegmentation": "image-segmentation",
}
IMPORT = "import hf_twins  # registers Twins with transformers\n"
CLASSIFY = """{imports}from transformers import pipeline

classify = pipeline("image-classification", {location}{trust})
print(classify("picture.jpg"))"""
SEGMENT = """{imports}from transformers import pipeline

segment = pipeline("image-segmentation", {location}{trust})
print([(each["label"], each["mask"]) for each in segment("picture.jpg")])"""
EXTRACT = """import hf_twins
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained({location})
model = hf_twins.{model_class}.from_pretrained({location})"""
DETECT = """{imports}from transformers import pipeline

# hf_twins.detection.load_detector also takes several images at once, and returns Mask R-CNN's masks.
detect = pipeline("object-detection", model={location})
for found in detect("picture.jpg", threshold=0.5):
    print(found["label"], round(found["score"], 2), found["box"])"""
USAGE = {"image-classification": CLASSIFY, "image-segmentation": SEGMENT, "object-detection": DETECT}


def quoted(text: str) -> str:
    """A text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def pipeline_tag(architecture: str) -> str:
    """The Hub's name for what models of a class do, given the name of the class."""
    if architecture.endswith("ForObjectDetection"):
        return "object-detection"
    return PIPELINES.get(architecture, "image-feature-extraction")


def usage_code(architecture: str, location: str, trust_remote_code: bool = False) -> str:
    """Python code that loads a model and runs it on an image.

    Args:
        architecture: name of the model's class.
        location: Hub id or folder that it is loaded from.
        trust_remote_code: whether the code is loaded from there too, and not from the installed package.
    """
    return USAGE.get(pipeline_tag(architecture), EXTRACT).format(
        location=quoted(location),
        model_class=architecture,
        imports="" if trust_remote_code else IMPORT,
        # The hash of the commit cannot be in the commit.
        trust=', trust_remote_code=True, revision="COMMIT"' if trust_remote_code else "",
    )


def origin_fields(
    base: str | None, dataset: str | None, license_id: str | None = None, revision: str = "main"
) -> dict[str, Any]:
    """What a card's front matter says of where a trained model comes from; what is not known is left out.

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
    # The base model of a folder is that folder's.
    base_model = base if is_hub_id(base) else parent.get("base_model")
    if base_model is not None:
        fields["base_model"] = base_model
    if is_hub_id(dataset):
        fields["datasets"] = [dataset]
    return fields


def is_hub_id(name: str | None) -> bool:
    """Whether a name that was loaded from is that of a repository, and not of a file or folder."""
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
        # Whatever the parser raises about what somebody has written.
        return {}


def model_card(metadata: ModelCardData, title: str, description: str, usage: str, *sections: str) -> ModelCard:
    """The card of a model folder.

    Args:
        metadata: the card's front matter.
        title: its heading.
        description: what the model is, in a paragraph.
        usage: Python code that loads it.
        sections: what else there is to say, in Markdown.
    """
    blocks = [f"---\n{metadata.to_yaml()}\n---", f"# {title}", description, f"## Usage\n\n```python\n{usage}\n```"]
    return ModelCard(sign("\n\n".join([*blocks, *sections]) + "\n"))


# Ends a generated card, with the hash of the text above it: a card that somebody has edited has another.
SIGNATURE = "\n<!-- Generated by hf_twins, and not edited if this is the SHA-256 of the text above: {} -->\n"


def sign(text: str) -> str:
    """The text of a generated card, signed; again, if it was signed before and has changed."""
    text = re.sub(re.escape(SIGNATURE).replace(r"\{\}", "[0-9a-f]{64}") + "$", "", text)
    return text + SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest())


def is_generated(text: str) -> bool:
    """Whether a card is as it was generated: it says nothing that its repository's owner has written."""
    text = text.replace("\r\n", "\n")
    return sign(text) == text
