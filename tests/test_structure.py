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

"""The structure of the project: which modules may import which, and what `import hf_twins` loads."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_twins


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_twins"
SCRIPTS = sorted((ROOT / "examples").rglob("*.py"))
# Modules of the extras and their dependencies.
OPTIONAL = (
    "sklearn",
    "matplotlib",
    "datasets",
    "accelerate",
    "gradio",
    "timm",
    "peft",
    "pycocotools",
    "pyarrow",
    "onnx",
)


def imported_modules(file: Path) -> Iterator[str]:
    """The full names of the modules that a file imports anywhere."""
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""])
            yield base.rstrip(".")
            yield from (f"{base.rstrip('.')}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["examples", "conversion", "hf_twins"])
def test_nothing_changes_the_search_path(folder):
    for file in (ROOT / folder).rglob("*.py"):
        assert "sys.path" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT / "examples")))
def test_example_imports_no_other_example(script):
    names = {file.stem for file in SCRIPTS}
    assert not {module.split(".")[0] for module in imported_modules(script)} & names


def test_package_imports_nothing_above_it():
    for file in PACKAGE.rglob("*.py"):
        modules = set(imported_modules(file))
        for folder in ("conversion", "examples", "spaces", "tests"):
            assert not any(module.split(".")[0] == folder for module in modules), (file, folder)
        inner = {module.removeprefix("hf_twins.") for module in modules if module.startswith("hf_twins.")}
        parts = file.relative_to(PACKAGE).parts
        if parts[0] != "training":
            assert not any(module.split(".")[0] == "training" for module in inner), file
        elif len(parts) > 2:
            # A training task may import shared modules and its own.
            tasks = {folder.name for folder in (PACKAGE / "training").iterdir() if (folder / "__init__.py").is_file()}
            others = {f"training.{task}" for task in tasks - {parts[1]}}
            assert not any(module.startswith(tuple(others)) for module in inner), file


# The fast tests above read imports from the code.
@pytest.mark.slow
def test_import_works_and_stays_light_without_extras():
    code = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import hf_twins
from hf_twins import TwinsConfig, TwinsForImageClassification, TwinsImageProcessor
assert set(hf_twins.__all__) <= set(dir(hf_twins))
lazy = [name for name in sys.modules if name.startswith("hf_twins.")]
assert not [name for name in lazy if name.split(".")[1] in {{"training", "interpretation", "remote_code"}}], lazy
for name in hf_twins.__all__:
    getattr(hf_twins, name)
try:
    import hf_twins.training
except ImportError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert 'must be installed for this part of hf_twins: pip install "hf_twins[train]"' in process.stdout


def public_modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(hf_twins.__path__, "hf_twins."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            yield module.name


@pytest.mark.parametrize("name", sorted(public_modules()))
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, name
    exported = getattr(module, "__all__", None)
    for public, value in vars(module).items():
        if public.startswith("_") or (exported is not None and public not in exported):
            continue
        if inspect.isclass(value) and value.__module__ == name:
            # A dataclass without a docstring gets its signature as its docstring.
            documented = (value.__doc__ or f"{public}(").strip()
            assert not documented.startswith(f"{public}("), f"{name}.{public}"


def test_scripts_are_read_from_top_to_bottom():
    too_long = {
        str(script.relative_to(ROOT)): len(script.read_text(encoding="utf-8").splitlines()) for script in SCRIPTS
    }
    assert {script: lines for script, lines in too_long.items() if lines > 460} == {}
