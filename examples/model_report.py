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
"""What every trained model has beside it: a report to read by program, and a card."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from whole_files import write_json, write_whole

import hf_twins


CARD = """---
{metadata}
---

# {name}

A Twins {kind} ({start}), trained by the recipe `{recipe}` of hf_twins on {dataset}.

| | |
|---|---|
{results}

{figures}

## Settings

```json
{settings}
```
"""


def write_report_and_card(
    output_dir: Path,
    report: dict[str, Any],
    settings: dict[str, Any],
    kind: str,
    task: str,
    metric_types: dict[str, str],
    figures: dict[str, str],
) -> None:
    """Write `report.json` and the model card into the model's folder.

    Args:
        output_dir: of the model.
        report: what was measured, with `metrics` among it.
        settings: what the run was told, with `recipe`, `start` and `dataset` among it.
        kind: of model, as it is told to people.
        task: of the Hub.
        metric_types: the Hub's name of each metric, where it has one of its own.
        figures: the files of pictures, by what they show.
    """
    versions = {
        "hf_twins": hf_twins.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    report = report | {"settings": settings, "versions": versions}
    write_json(output_dir / "report.json", report, default=str)
    metrics = report["metrics"]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=task,
            dataset_name=str(settings["dataset"]),
            metric_type=metric_types.get(name, name),
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in metrics.items()
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["twins", "hf_twins"],
        model_name=output_dir.name,
        eval_results=results,
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=output_dir.name,
        kind=kind,
        start=settings["start"],
        recipe=settings["recipe"],
        dataset=settings["dataset"],
        results="\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items()),
        figures="\n\n".join(f"![{caption}]({file})" for caption, file in figures.items()),
        settings=json.dumps(settings | {"versions": versions}, indent=2, default=str),
    )
    write_whole(output_dir / "README.md", ModelCard(card).save)
