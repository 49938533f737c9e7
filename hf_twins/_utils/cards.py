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

import json

from huggingface_hub import ModelCard, ModelCardData


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
    return ModelCard("\n\n".join([*blocks, *sections]) + "\n")
