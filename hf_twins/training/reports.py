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
"""Files saved with every trained model: results, curves, a machine-readable report and a card."""

import json
import logging
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.utils import httpx
from matplotlib.figure import Figure

import hf_twins
from hf_twins._utils.cards import model_card, origin_fields, quoted, sign
from hf_twins._utils.files import write_atomically, write_json
from hf_twins._utils.publishing import create_repository, publish_folder
from hf_twins.training.runs import RUN_NAME, read_run
from hf_twins.training.trainer import RecipeArguments


logger = logging.getLogger(__name__)


def run_settings(
    model_arguments: Any, data_arguments: Any, recipe: RecipeArguments, dataset: str | None, training: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a run for its report, the most important first."""
    return {
        "recipe": recipe.recipe,
        "start": model_arguments.model_name_or_path or f"{model_arguments.config_name}, random weights",
        "dataset": dataset,
        "model": vars(model_arguments),
        "data": vars(data_arguments),
        "recipe_values": vars(recipe),
        "training": training,
    }


def without_folders(value: Any) -> Any:
    """Replace absolute paths by their last part, in a value and everything nested in it."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    if isinstance(value, str | Path) and (Path(value).is_absolute() or str(value).startswith(("~", ".."))):
        return Path(value).name
    return value


def write_results(output_dir: Path, metrics: dict[str, Any]) -> None:
    """Write `all_results.json`, as transformers' and accelerate's examples do."""
    write_json(output_dir / "all_results.json", metrics, sort_keys=True)


def finish_run(args: Any, results: dict[str, Any], summary: str, figure: str) -> None:
    """Finish a training run: write the results, publish the model folder if requested, and print where to look.

    Args:
        args: the run's options, with `output_dir`, `push_to_hub`, `hub_model_id` and `hub_private_repo`.
        results: numbers for `all_results.json`.
        summary: the results in one sentence.
        figure: file in the output folder that shows the results.

    Raises:
        OSError: if the model cannot be published.
    """
    output_dir = Path(args.output_dir)
    write_results(output_dir, results)
    if args.push_to_hub:
        push_folder(output_dir, args.hub_model_id, bool(args.hub_private_repo))
    print(f"{summary} Look at {output_dir / figure}; {output_dir / 'README.md'} says how to load the model.")


def draw_curves(history: Sequence[dict[str, float]], panels: dict[str, dict[str, str]], path: Path) -> None:
    """Plot what a run logged over its epochs.

    Args:
        history: entries with `epoch` and logged values by name.
        panels: maps the caption of each panel to its curves, which map the name of a logged value to a caption.
        path: file to write.
    """
    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")
    for axes, (caption, curves) in zip(figure.subplots(1, len(panels)), panels.items()):
        for name, curve in curves.items():
            points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
            if points:
                axes.plot(*zip(*points), marker=".", label=curve)
        axes.set_xlabel("epoch")
        axes.set_ylabel(caption)
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def write_report_and_card(
    output_dir: Path,
    report: dict[str, Any],
    settings: dict[str, Any],
    kind: str,
    task: str,
    metric_types: dict[str, str],
    figures: dict[str, str],
    usage: str,
    library_name: str = "transformers",
) -> None:
    """Write `report.json` and the model card into the model's folder.

    Args:
        output_dir: the model folder.
        report: the results, including `metrics`.
        settings: settings of the run, see `run_settings`.
        kind: what kind of model it is, for readers of the card.
        task: the Hub's name of the task.
        metric_types: the Hub's name of each metric, if it differs from the name here.
        figures: maps the caption of each figure to its file.
        usage: Python code that loads the model.
        library_name: the Hub's name of the library that loads the model.
    """
    versions = {
        "hf_twins": hf_twins.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    # The card may be published, and must not reveal the user's folder names.
    settings, model, data = without_folders(settings), settings.get("model", {}), settings.get("data", {})
    report = report | {"settings": settings, "versions": versions}
    write_json(output_dir / "report.json", report, default=str)
    metrics = report["metrics"]
    origin = origin_fields(
        model.get("model_name_or_path"),
        data.get("dataset_name"),
        settings.get("recipe_values", {}).get("license"),
        model.get("model_revision", "main"),
    )
    results = [
        EvalResult(
            task_type=task,
            # The Hub requires an id, and a local folder has none.
            dataset_type=origin.get("datasets", [task])[0],
            dataset_name=str(settings["dataset"]),
            metric_type=metric_types.get(name, name),
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in metrics.items()
    ]
    metadata = ModelCardData(
        library_name=library_name,
        pipeline_tag=task,
        tags=["twins", "hf_twins"],
        model_name=output_dir.name,
        eval_results=results,
        **origin,
    )
    card = model_card(
        metadata,
        output_dir.name,
        f"A {kind} ({settings['start']}), trained by the recipe `{settings['recipe']}` of hf_twins on {settings['dataset']}.",
        usage,
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items())]),
        *(f"![{caption}]({file})" for caption, file in figures.items()),
        f"## Settings\n\n```json\n{json.dumps(settings | {'versions': versions}, indent=2, default=str)}\n```",
    )
    write_atomically(output_dir / "README.md", card.save)


def push_folder(output_dir: Path, repo_id: str | None, is_private: bool) -> None:
    """Publish a trained model and its report: only the files that the run lists in its record.

    Raises:
        OSError: if publishing fails; the local model is unchanged.
        ValueError: if a private repository was requested but it is public, or the folder was not written by a run.
    """
    run = read_run(output_dir)
    if run is None:
        raise ValueError(
            f"{output_dir} has no {RUN_NAME}, which lists the files to publish: give the folder of a run."
        )
    files = run.written_files()
    api = HfApi()
    repo_id = repo_id or output_dir.resolve().name
    try:
        url = create_repository(api, repo_id, is_private)
        # On the Hub, the code in the cards must load the model from the Hub.
        load_from_hub(output_dir / "README.md", quoted(str(output_dir)), quoted(url.repo_id))
        if "adapter/README.md" in files:
            load_from_hub(
                output_dir / "adapter" / "README.md",
                f"adapter = {quoted(str(output_dir / 'adapter'))}",
                "from huggingface_hub import snapshot_download\n\n"
                f'adapter = snapshot_download({quoted(url.repo_id)}, allow_patterns="adapter/*") + "/adapter"',
            )
        publish_folder(api, output_dir, url.repo_id, private=is_private, files=files)
    # huggingface_hub raises a RuntimeError when it gives up retrying an upload.
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        options = ["--private"] if is_private else []
        options += [word for name in files for word in ("--include", name)]
        raise OSError(
            f"{output_dir} has the trained model, but {repo_id} was not published: {error or type(error).__name__} Publish "
            f"it with {shlex.join(['hf', 'upload', repo_id, str(output_dir), *options])}"
        ) from error
    logger.info(f"published as {url}")


def load_from_hub(card: Path, local: str, published: str) -> None:
    """Replace `local` by `published` in the code of a generated card."""
    text = card.read_text(encoding="utf-8").replace(local, published)
    write_atomically(card, lambda partial: partial.write_text(sign(text), encoding="utf-8"))
