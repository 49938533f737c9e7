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
"""Every script starts as a process, from any folder, without pytest's search path."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from hf_twins._utils.extras import EXTRAS


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("conversion", "examples", "spaces")


def has_main_guard(file: Path) -> bool:
    """Whether a file has `if __name__ == "__main__":` at its top level, with any quotes and order of operands."""
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
# A process that has already imported the slow modules, and starts each script in a fork of itself.
STARTER = """
import json, os, runpy, sys
import accelerate, datasets, hf_twins, matplotlib.figure, sklearn.metrics, timm, transformers.trainer, torchvision.transforms.v2

for line in sys.stdin:
    job = json.loads(line)
    if (pid := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
for stream, name in ((1, "stdout"), (2, "stderr")):
    os.dup2(os.open(os.path.join(job["folder"], name), os.O_WRONLY | os.O_CREAT), stream)
for name in [*sys.modules]:
    if name.partition(".")[0] in job["missing"]:
        del sys.modules[name]
sys.modules |= dict.fromkeys(job["missing"])
os.chdir(os.path.join(job["folder"], "elsewhere"))
# As it is for a script that is started.
sys.path[0] = os.path.dirname(job["words"][0])
sys.argv = job["words"]
code = 1
try:
    runpy.run_path(job["words"][0], run_name="__main__")
    code = 0
except SystemExit as end:
    code = end.code if isinstance(end.code, int) else bool(end.code)
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
except BaseException:
    sys.excepthook(*sys.exc_info())
sys.stdout.flush()
sys.stderr.flush()
# An ordinary end takes three seconds to free everything that was imported.
os._exit(code)
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> Iterator[subprocess.Popen]:
    # Only `hf_twins` can be imported, but not `conversion` and `examples`, unlike from the root of the repository.
    packages = tmp_path_factory.mktemp("packages")
    (packages / "hf_twins").symlink_to(ROOT / "hf_twins")
    # The terminal is wide, so that names are not split between lines.
    environment = os.environ | {"PYTHONPATH": str(packages), "COLUMNS": "1000"}
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def start(starter, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Start a script in an empty folder, where modules may be missing."""

    def start(script: Path, *words: str, missing: Iterable[str] = ()):
        (tmp_path / "elsewhere").mkdir()
        job = {"folder": str(tmp_path), "words": [str(script), *words], "missing": [*missing]}
        print(json.dumps(job), file=starter.stdin, flush=True)
        code = int(starter.stdout.readline())
        return subprocess.CompletedProcess(
            script, code, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
        )

    return start


def test_scripts_are_found():
    assert len(SCRIPTS) > 20
    assert {path.split("/")[0] for path in SCRIPTS} == set(FOLDERS)


def described_options(text: str) -> dict[str, str]:
    """Parse the options in the output of `--help`, with their descriptions."""
    entries = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    # An option and its values end with two spaces, or at the end of the line.
    parts = [re.split(r"  +|\n", entry.partition("\n\n")[0], maxsplit=1) for entry in entries]
    return {name: " ".join(description.split()) for name, description in parts}


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_script_shows_its_usage_when_started_from_another_folder(script, start, tmp_path):
    skip_without_development_extra(script)
    process = start(SCRIPTS[script], "--help")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"usage: {SCRIPTS[script].name} "), process.stdout
    # The description of the script precedes the options.
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


def imported_at_the_top(file: Path) -> set[str]:
    """The modules that a file imports at its top, including modules of extras that those modules import."""
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} | (
        {"training"} if any(".training" in name for name in names) else set()
    )


EXTRA_OF_MODULE = {module: extra for extra, modules in EXTRAS.items() for module in modules}


def skip_without_development_extra(script: str, besides: str | None = None) -> None:
    """Skip a script that needs a module outside the extra for tests, because that one would be reported as missing first."""
    for module in imported_at_the_top(SCRIPTS[script]) & {*EXTRAS["dev"]} - {besides}:
        pytest.importorskip(module, reason="an extra for development only")


MISSING = [
    (script, module)
    for script, file in SCRIPTS.items()
    for imported in [imported_at_the_top(file)]
    for module in sorted(imported & EXTRA_OF_MODULE.keys() or ({"torchmetrics"} if "training" in imported else set()))
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "module"), MISSING)
def test_missing_extra_gives_one_sentence(script, module, start):
    skip_without_development_extra(script, besides=module)
    process = start(SCRIPTS[script], "--help", missing=[module])
    assert process.returncode == 1
    assert process.stderr == (
        f"error: {module} must be installed for this part of hf_twins: "
        f'pip install "hf_twins[{EXTRA_OF_MODULE[module]}]"\n'
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_script_starts_without_extras_or_names_the_extra_to_install(script, start):
    words = [] if script == "examples/benchmark.py" else ["--help"]
    process = start(SCRIPTS[script], *words, missing=EXTRA_OF_MODULE)
    if process.returncode == 0:
        assert process.stdout.startswith("usage: ")
    else:
        assert re.fullmatch(r'error: [\w, ]+ must be installed .*: pip install "hf_twins\[\w+\]"\n', process.stderr)


def test_failing_script_ends_with_one_sentence_and_status_1(start, tmp_path):
    output = tmp_path / "converted"
    process = start(SCRIPTS["conversion/convert_twins_to_hf.py"], "missing.pth", "--output", str(output))
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*missing\.pth.*\n", process.stderr)
    assert not output.exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_scripts_import_their_neighbors_by_name(folder):
    """An editable installation adds the root to the search path, but users may have installed a wheel."""
    for file in ROOT.glob(f"{folder}/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not {name.split(".")[0] for name in names} & set(FOLDERS), f"{file}:{getattr(node, 'lineno', 0)}"
