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
"""Every script starts as a user starts it: as a process, from any folder, without the search path that pytest has."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("conversion", "examples", "spaces")


def has_main_guard(file: Path) -> bool:
    """Whether a file has `if __name__ == "__main__":` at its top level, however it is quoted or turned around."""
    tests = [node.test for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    return any(
        isinstance(test, ast.Compare) and {"'__main__'", "__name__"} <= {ast.unparse(part) for part in ast.walk(test)}
        for test in tests
    )


SCRIPTS = {
    str(file.relative_to(ROOT)): file
    for folder in FOLDERS
    for file in sorted(ROOT.glob(f"{folder}/**/*.py"))
    if has_main_guard(file)
}
# Scripts that take no arguments, and what they would do when started with `--help`. Only their imports are tested.
WITHOUT_ARGUMENTS = {
    "spaces/prepare_examples.py": "draws the committed example images",
}


def start(command: list[str], tmp_path: Path) -> subprocess.CompletedProcess:
    """Run Python in an empty folder, where of this repository `hf_twins` alone can be imported."""
    # The root of the repository would also let `conversion` and `examples` be imported.
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "hf_twins").symlink_to(ROOT / "hf_twins")
    (tmp_path / "elsewhere").mkdir()
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path / "elsewhere",
        # Wide, so that names are not broken between lines.
        env=os.environ | {"PYTHONPATH": str(tmp_path / "packages"), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_scripts_are_found():
    assert len(SCRIPTS) > 20
    assert {path.split("/")[0] for path in SCRIPTS} == set(FOLDERS)
    assert set(WITHOUT_ARGUMENTS) <= set(SCRIPTS)


def described_options(text: str) -> dict[str, str]:
    """The options that a `--help` lists, with their descriptions."""
    entries = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    # A name and its values are followed by two spaces, or by the end of the line.
    parts = [re.split(r"  +|\n", entry.partition("\n\n")[0], maxsplit=1) for entry in entries]
    return {name: " ".join(description.split()) for name, description in parts}


# Each start imports PyTorch and more: 250 seconds of CPU time for all scripts together.
@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - set(WITHOUT_ARGUMENTS)))
def test_script_shows_its_usage_when_started_from_another_folder(script, tmp_path):
    process = start([str(SCRIPTS[script]), "--help"], tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"usage: {SCRIPTS[script].name} "), process.stdout
    # What the script does is said before the options are listed.
    documented = ast.get_docstring(ast.parse(SCRIPTS[script].read_text(encoding="utf-8")))
    assert documented.partition("\n")[0] in process.stdout.partition("\noptions:\n")[0]
    options = described_options(process.stdout)
    assert options.pop("-h, --help")
    for name, description in options.items():
        assert re.search(r"^\w.*(\(default: .*\)|\(required\)|--\w+ false\.)$", description), (name, description)
    if ", TrainingArguments)" in SCRIPTS[script].read_text(encoding="utf-8"):
        own, _, trainers = process.stdout.partition("\noptions of transformers.TrainingArguments:\n")
        assert trainers.startswith("  --output_dir ")
        assert "\n  --model_name_or_path " in own
    if "recipes=RECIPES" in SCRIPTS[script].read_text(encoding="utf-8"):
        recipes = sorted(
            file.stem for file in (ROOT / "hf_twins/training/recipes" / Path(script).parent.name).iterdir()
        )
        assert f"{', '.join(recipes)}, or a TOML file" in options["--recipe RECIPE"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(WITHOUT_ARGUMENTS))
def test_script_without_arguments_can_be_imported_from_another_folder(script, tmp_path):
    pytest.importorskip("skimage", reason="prepare_examples.py needs scikit-image, an extra for development only")
    file = SCRIPTS[script]
    # Python puts the script's folder first when it is started, which `runpy` does not.
    code = f"import runpy, sys; sys.path[0] = {str(file.parent)!r}; runpy.run_path({str(file)!r}, run_name='imported')"
    process = start(["-c", code], tmp_path)
    assert process.returncode == 0, process.stderr
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("folder", FOLDERS)
def test_scripts_import_their_neighbours_by_name(folder):
    """An installation in editable mode puts the root on the search path, where users have installed a wheel."""
    for file in ROOT.glob(f"{folder}/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not {name.split(".")[0] for name in names} & set(FOLDERS), f"{file}:{getattr(node, 'lineno', 0)}"
