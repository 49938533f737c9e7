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
"""The recipes match the tables on the pages, which name the source of each option."""

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_twins import TWINS_VARIANTS, TwinsConfig
from hf_twins.training.image_classification import arguments as classification
from hf_twins.training.object_detection import arguments as detection
from hf_twins.training.semantic_segmentation import arguments as segmentation
from hf_twins.training.trainer import RecipeArguments, twins_config


EXAMPLES = Path(__file__).parents[3] / "examples"
OPTIONS = {
    classification: classification.ClassificationRecipe,
    segmentation: segmentation.SegmentationRecipe,
    detection: detection.DetectionRecipe,
}
RECIPES = [
    (classification, "imagenet-from-scratch"),
    (segmentation, "ade20k-semantic-fpn"),
    (segmentation, "ade20k-upernet"),
    *((detection, f"{detector}-{schedule}") for detector in ("retinanet", "mask-rcnn") for schedule in ("1x", "3x")),
]


def table_of(task: Any, recipe: str) -> dict[str, Any]:
    """The values in the column of a recipe, by option."""
    page = (EXAMPLES / task.RECIPES.name / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in page.splitlines() if line[:1] == "|"]
    start = next(index for index, row in enumerate(rows) if row[0] == "option" and f"`{recipe}`" in row)
    column = rows[start].index(f"`{recipe}`")
    values = {}
    for row in rows[start + 2 :]:
        if row[0] == "-":
            continue
        if not re.fullmatch("`[a-z_]+`", row[0]):
            break
        values[row[0].strip("`")] = tomllib.loads(f"value = {row[column].strip('`')}")["value"]
    return values


@pytest.mark.parametrize(("task", "recipe"), RECIPES, ids=lambda value: value if isinstance(value, str) else "")
def test_table_on_the_page_matches_the_recipe(task, recipe):
    written = tomllib.loads((task.RECIPES / f"{recipe}.toml").read_text(encoding="utf-8"))
    defaults = {
        each.name: each.default_factory() if each.default is MISSING else each.default
        for kind in (TrainingArguments, task.DataArguments, task.ModelArguments, OPTIONS[task])
        for each in fields(kind)
        if (each.default, each.default_factory) != (MISSING, MISSING)
    }
    table = table_of(task, recipe)
    assert table == {name: written.get(name, defaults[name]) for name in table}
    assert written.keys() <= table.keys()
    own = {each.name for each in fields(OPTIONS[task])} - {each.name for each in fields(RecipeArguments)}
    # Options that the recipe leaves off have no line in the table.
    assert {name for name in own if defaults[name] or name in written} - {"class_weights"} <= table.keys()


def test_drop_path_follows_the_architecture():
    recipe = RecipeArguments(drop_path_rates='{"twins-svt-base": 0.3, "other": 0.1}')

    def rate(name: str, recipe: RecipeArguments = recipe) -> float | None:
        return recipe.drop_path_rate_of(lambda: twins_config(name, "main", num_labels=3))

    assert [rate(name) for name in TWINS_VARIANTS] == [
        0.3 if name == "twins-svt-base" else 0.1 for name in TWINS_VARIANTS
    ]
    given = RecipeArguments(drop_path_rate=0.0, drop_path_rates={"other": 0.1})
    assert rate("twins-svt-base", given) == 0.0
    assert rate("twins-svt-base", RecipeArguments()) is None
    assert recipe.drop_path_rate_of(lambda: TwinsConfig(depths=[1, 1, 1, 1])) == 0.1


@pytest.mark.parametrize(
    "rates", ['{"twins-svt-base": 0.3}', '{"other": 1.0}', '{"other": 0.1, "svt": 0.2}', "0.3", "base=0.3"]
)
def test_drop_path_rates_of_unknown_variants_are_refused(rates):
    with pytest.raises(
        ValueError, match="--drop_path_rates must be a JSON object with a number from 0 to 1 for `other`"
    ):
        RecipeArguments(drop_path_rates=rates)
