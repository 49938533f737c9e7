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
"""Find an image's nearest neighbors among the vectors of `extract_features.py`, by cosine similarity.

    python examples/feature_extraction/search_features.py --features outputs/features --query image.png --top_k 5

Neighbors are printed, and the first hundred are drawn, nearest first. Only one batch of vectors is held in memory at a time.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

import matplotlib
import pyarrow.parquet
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_twins._utils.features import POOLED, FeatureExtractor
from hf_twins._utils.files import ReadError, check_is_apart, write_atomically
from hf_twins._utils.images import ImageError, log_applied_rules, read_image
from hf_twins._utils.run_settings import ORIGINS, read_settings
from hf_twins._utils.shards import is_finished


# An existing file of this name is replaced, but no other.
DEFAULT_SHEET = "neighbors.png"
# Maximum number of neighbors to draw, because the time to lay out a figure grows with the square of their number.
MAX_DRAWN = 100
# Settings of `extract_features.py` that say where its inputs are.
PLACES = ("model_name_or_path", "input_dir")


@dataclass
class SearchArguments:
    features: str = field(metadata={"help": "The --output_dir of extract_features.py."})
    query: str = field(metadata={"help": "Image to find neighbors of."})
    top_k: int = field(default=5, metadata={"help": "Number of neighbors."})
    contact_sheet: str = field(default=DEFAULT_SHEET, metadata={"help": "New image file to draw."})


def check_settings(features: Path) -> dict[str, Any]:
    """Read the settings of the run that extracted the vectors.

    Raises:
        ValueError: if there are no vectors, or the settings are damaged.
    """
    settings = read_settings(features)
    origins = settings.get(ORIGINS)
    named = [settings.get("model"), *(origins.get(name) if isinstance(origins, dict) else None for name in PLACES)]
    if not isinstance(settings.get("features"), list) or not all(isinstance(each, str) for each in named):
        raise ValueError(
            f"--features must be the --output_dir of extract_features.py, got {features}, whose settings are another script's or "
            "damaged: run extract_features.py into a new folder."
        )
    if settings["features"] != [POOLED]:
        raise ValueError(
            f"{features} holds maps of {', '.join(settings['features'])}: extract with --features pooled."
        )
    return settings


def find_origin(features: Path, name: str) -> str:
    """Resolve a folder relative to the folder of the vectors; a Hub id is returned unchanged."""
    folder = features / name
    return str(folder.resolve()) if folder.exists() else name


def find_shards(features: Path) -> list[Path]:
    shards = sorted(features.glob("features-*-of-*.parquet"))
    numbers = [re.fullmatch(r"features-(\d+)-of-(\d+)", shard.stem) for shard in shards]
    expected = int(numbers[0][2]) if numbers and numbers[0] else None
    if len(shards) != expected:
        raise ValueError(
            f"{features} has {len(shards)} of {expected or 'its'} files: run extract_features.py again to continue."
        )
    if not all(map(is_finished, shards)):
        raise ValueError(f"{features} has incomplete files: run extract_features.py again to continue.")
    return shards


def read_vectors(shards: list[Path], batch_size: int = 4096) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield paths and vectors `(batch_size, hidden_size)`, batch by batch."""
    for shard in shards:
        with pyarrow.parquet.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size):
                vectors = torch.tensor(batch["feature"].flatten().to_numpy())
                yield batch["path"].to_pylist(), vectors.unflatten(0, (batch.num_rows, -1))


def nearest_neighbors(query: torch.Tensor, shards: list[Path], top_k: int) -> list[tuple[float, str]]:
    """The `top_k` images most similar to the query `(hidden_size,)`, each with its cosine similarity, nearest first."""
    best: list[tuple[float, str]] = []
    for paths, vectors in read_vectors(shards):
        similarities, indices = torch.cosine_similarity(query, vectors).topk(min(top_k, len(paths)))
        best += [(similarity, paths[index]) for similarity, index in zip(similarities.tolist(), indices.tolist())]
        best = sorted(best, key=lambda neighbor: (-neighbor[0], neighbor[1]))[:top_k]
    return best


# Dollar signs in names must not be parsed as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw_contact_sheet(query: Path, input_dir: Path, neighbors: list[tuple[float, str]], path: Path) -> None:
    """Draw the query, and its neighbors with their similarities.

    Raises:
        ValueError: if the file cannot be written.
    """
    num_columns = min(6, len(neighbors) + 1)
    num_rows = -(-(len(neighbors) + 1) // num_columns)
    figure = Figure(figsize=(2.2 * num_columns, 2.5 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
    draw_image(grid[0], query, f"query: {query.name}")
    for axes, (similarity, name) in zip(grid[1:], neighbors):
        draw_image(axes, input_dir / name, f"{similarity:.4f}\n{name}")
    for axes in grid:
        axes.set_axis_off()
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path} cannot be written ({reason}): give another --contact_sheet.") from error


def draw_image(axes: Axes, path: Path, title: str) -> None:
    # The end of a long path is more informative than its beginning.
    lines = [line if len(line) <= 28 else f"...{line[-25:]}" for line in title.splitlines()]
    axes.set_title("\n".join(lines), fontsize=8)
    try:
        axes.imshow(read_image(path))
    except (ImageError, ReadError):
        axes.text(0.5, 0.5, "no longer there", ha="center", va="center")


def check_contact_sheet(path: Path, query: Path) -> None:
    """Raise a ValueError if the file to draw exists, unless its name is the default, or has no folder."""
    if path.resolve() == query.resolve():
        raise ValueError(f"--contact_sheet must be a file other than --query, got {query}.")
    if not path.parent.is_dir():
        raise ValueError(f"--contact_sheet must be in an existing folder, got {path}.")
    if path.is_dir() or (os.path.lexists(path) and path != Path(DEFAULT_SHEET)):
        raise ValueError(f"--contact_sheet must be a new file, but {path} exists: remove it, or give another.")


def search_features(arguments: SearchArguments) -> None:
    """Print the neighbors, and then draw the first of them."""
    if arguments.top_k < 1:
        raise ValueError(f"--top_k must be at least 1, got {arguments.top_k}.")
    features, query = Path(arguments.features), Path(arguments.query)
    contact_sheet = Path(arguments.contact_sheet)
    settings, shards = check_settings(features), find_shards(features)
    model, input_dir = (find_origin(features, settings[ORIGINS][name]) for name in PLACES)
    for folder, is_recursive in ((input_dir, True), (features, False)):
        check_is_apart(contact_sheet.parent, [folder], is_recursive, "The folder of --contact_sheet")
    check_contact_sheet(contact_sheet, query)
    extractor = FeatureExtractor(model, settings["features"])
    if extractor.fingerprint != settings["model"]:
        raise ValueError(
            f"{model} differs in configuration, weights or preprocessing from the model of {features}: extract them "
            "again."
        )
    applied: Counter[str] = Counter()
    image = read_image(query, extractor.mode, applied)
    log_applied_rules(applied)
    neighbors = nearest_neighbors(extractor([image])[0]["pooled"], shards, arguments.top_k)
    for similarity, path in neighbors:
        print(f"{similarity:.4f}  {path}")
    sys.stdout.flush()
    draw_contact_sheet(query, Path(input_dir), neighbors[:MAX_DRAWN], contact_sheet)
    shown = f", which shows the first {MAX_DRAWN} of {len(neighbors)}" if len(neighbors) > MAX_DRAWN else ""
    print(f"Look at {contact_sheet}{shown}.")


def main() -> None:
    run(search_features, SearchArguments)


if __name__ == "__main__":
    main()
