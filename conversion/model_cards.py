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
"""The model card of a converted checkpoint: its origin, verification and use."""

from collections.abc import Mapping

from checkpoint_formats import Conversion
from checkpoint_sources import Checkpoint
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from verification import backbone_config

from hf_twins import TWINS_VARIANTS
from hf_twins._utils import cards


# License of the weights that the authors, timm and OpenMMLab publish. The license of other checkpoints is unknown.
PUBLISHED_LICENSE = "apache-2.0"
PAPER = "https://huggingface.co/papers/2104.13840"
SECTIONS = """{install}

## Where it comes from

| | |
|---|---|
| source | {origin} |
| SHA-256 of the source | `{sha256}` |
| format of the source | {source_format} |
| parameters | {num_parameters:,} |
| largest relative difference to the source | {difference:.1e} |

The weights are the source's, renamed. Before they were written, the model was compared on noise with the source's
own architecture and weights; the difference above is the largest over every stage's feature map and the outputs,
in float32. Its configuration matches the source: `window_padding="{window_padding}"`,
`patch_padding={patch_padding}`, `layer_norm_eps={layer_norm_eps}`.

{results}

## Citation

```bibtex
@inproceedings{{chu2021twins,
  title     = {{Twins: Revisiting the Design of Spatial Attention in Vision Transformers}},
  author    = {{Xiangxiang Chu and Zhi Tian and Yuqing Wang and Bo Zhang and Haibing Ren and Xiaolin Wei and Huaxia Xia and Chunhua Shen}},
  booktitle = {{NeurIPS 2021}},
  url       = {{https://openreview.net/forum?id=5kTlVBkzSRx}},
  year      = {{2021}}
}}
```"""


def model_card(
    conversion: Conversion, checkpoint: Checkpoint, differences: Mapping[str, float], repo_id: str, remote_code: bool
) -> ModelCard:
    """Create the model card, with its metadata.

    Args:
        conversion: the converted model.
        checkpoint: the checkpoint that it was converted from.
        differences: result of `verify`.
        repo_id: Hub id in the card's example.
        remote_code: whether the repository includes the code.
    """
    model = conversion.model
    config = backbone_config(model)
    name = conversion.variant or "Twins"
    title = f"{name} {TASKS.get(type(model).__name__, 'backbone')}"
    return cards.model_card(
        card_data(conversion, checkpoint, name),
        title,
        f"A [Twins]({PAPER}) vision transformer ({'SVT' if config.window_size else 'PCPVT'}), converted from "
        f"{checkpoint.origin}.",
        cards.usage_code(type(model).__name__, repo_id, remote_code),
        SECTIONS.format(
            install=(
                "The code is in this repository and runs with `trust_remote_code=True`: read it and set `revision` to "
                "the hash of the commit that you read. With `pip install hf_twins` and `import hf_twins`, that "
                "package's code is used instead."
                if remote_code
                else "It needs the hf_twins package: `pip install hf_twins`."
            ),
            origin=source_text(checkpoint),
            sha256=checkpoint.sha256,
            source_format=conversion.source_format.name,
            num_parameters=model.num_parameters(),
            difference=max(differences.values()),
            window_padding=config.window_padding,
            patch_padding=config.patch_padding,
            layer_norm_eps=config.layer_norm_eps,
            results=results_text(conversion, checkpoint),
        ),
    )


def source_text(checkpoint: Checkpoint) -> str:
    """The source and, if its hash is that of a published file, the URL of that file."""
    url = (checkpoint.published or {}).get("url", checkpoint.origin)
    return checkpoint.origin if url == checkpoint.origin else f"{checkpoint.origin}, published as {url}"


TASKS = {
    "TwinsForImageClassification": "image classifier",
    "UperNetForSemanticSegmentation": "UperNet",
    "TwinsForSemanticSegmentation": "Semantic FPN",
}


def card_data(conversion: Conversion, checkpoint: Checkpoint, name: str) -> ModelCardData:
    results = published_results(conversion, checkpoint)
    data = {
        "license": checkpoint.license or (PUBLISHED_LICENSE if checkpoint.published or results else None),
        "library_name": "transformers",
        "tags": ["twins", "vision", "hf_twins"],
        "pipeline_tag": cards.pipeline_tag(type(conversion.model).__name__),
        "model_name": (checkpoint.published or {}).get("name", name),
        "base_model": checkpoint.repo_id,
        "datasets": sorted({result.dataset_type for result in results}),
        "eval_results": results,
    }
    return ModelCardData(**{key: value for key, value in data.items() if value})


def published_results(conversion: Conversion, checkpoint: Checkpoint) -> list[EvalResult]:
    """Published results, for the card's model-index."""
    published = checkpoint.published or {}
    publisher, url = "OpenMMLab", published.get("url")
    if conversion.variant and checkpoint.repo_id == f"timm/{conversion.variant.replace('-', '_')}.in1k":
        published = {"imagenet_top1": TWINS_VARIANTS[conversion.variant].imagenet_top1_timm}
        publisher, url = "timm", f"https://huggingface.co/{checkpoint.repo_id}"
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset.lower(),
            dataset_name=dataset,
            metric_type=metric,
            metric_name=name,
            metric_value=published[key],
            source_name=f"published by {publisher}, not measured again",
            source_url=url,
        )
        for key, (task, dataset, metric, name) in RESULTS.items()
        if key in published
    ]


# Maps keys of published results to the task, dataset, metric and name of the metric.
RESULTS = {
    "imagenet_top1": ("image-classification", "ImageNet-1k", "accuracy", "top-1 accuracy (%)"),
    "ade20k_miou": ("image-segmentation", "ADE20K", "mean_iou", "mIoU (%), single scale"),
    "ade20k_miou_multi_scale_flip": ("image-segmentation", "ADE20K", "mean_iou", "mIoU (%), multi-scale and flip"),
}


def results_text(conversion: Conversion, checkpoint: Checkpoint) -> str:
    results = published_results(conversion, checkpoint)
    if not results:
        return "No results are known for this checkpoint."
    lines = [f"| {result.dataset_name} | {result.metric_name} | {result.metric_value} |" for result in results]
    return "\n".join([f"Results {results[0].source_name}:\n", "| dataset | metric | value |", "|---|---|---|", *lines])
