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
"""Forbidden code: calls that execute the content of files or untrusted input, and GitHub actions that are not pinned."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from transformers.dynamic_module_utils import resolve_trust_remote_code


ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    file for folder in ("hf_twins", "conversion", "examples", "spaces") for file in ROOT.glob(f"{folder}/**/*.py")
)
# Forbidden are the builtin `eval`, but not methods of this name, and modules whose file formats are programs.
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "joblib.load",
    "dill.load",
    "dill.loads",
}
FORBIDDEN |= {
    f"{module}.{function}" for module in ("pickle", "marshal", "shelve") for function in ("load", "loads", "open")
}


def forbidden_calls(source: str) -> list[str]:
    """Find forbidden calls, each as its line and the reason."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN:
            found.append(f"{node.lineno}: {name}")
        if name.endswith(".register_for_checkpointing"):
            # Accelerate unpickles the state of registered objects when training is resumed.
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and arguments.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if arguments.get("shell") == "True":
            found.append(f"{node.lineno}: shell=True")
        if arguments.get("trust_remote_code") == "True" and "revision" not in arguments:
            found.append(f"{node.lineno}: trust_remote_code=True without a revision")
        if arguments.get("allow_pickle") == "True":
            found.append(f"{node.lineno}: allow_pickle=True")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "pickle.load(file)",
        "accelerator.register_for_checkpointing(scheduler)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(file, allow_pickle=True)",
    ],
)
def test_forbidden_calls_are_found(source):
    assert forbidden_calls(source)


def test_no_code_runs_the_content_of_files():
    assert len(SOURCES) > 50
    found = {str(file.relative_to(ROOT)): forbidden_calls(file.read_text(encoding="utf-8")) for file in SOURCES}
    assert {file: calls for file, calls in found.items() if calls} == {}


def receivers_of_trust_remote_code(source: str) -> set[str]:
    """The functions that get `trust_remote_code`, directly or in a dictionary of arguments, with a value other than False."""
    receivers = set()
    for node in ast.walk(ast.parse(source)):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords] if isinstance(node, ast.Call) else []
        if isinstance(node, ast.Dict):
            pairs += [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
        if any(name == "trust_remote_code" and ast.unparse(value) != "False" for name, value in pairs):
            receivers.add(ast.unparse(node.func) if isinstance(node, ast.Call) else "a dictionary")
    return receivers


def test_remote_code_is_run_only_where_its_commit_is_checked():
    passing = {
        str(file.relative_to(ROOT)): receivers
        for file in SOURCES
        if (receivers := receivers_of_trust_remote_code(file.read_text(encoding="utf-8")))
    }
    assert passing.pop("hf_twins/loading/__init__.py") == {"load_pretrained", "a dictionary"}
    assert "pinned_code_revision(" in (ROOT / "hf_twins/loading/__init__.py").read_text(encoding="utf-8")
    # Other modules pass the argument to that module.
    assert passing == {"hf_twins/training/image_classification/models.py": {"load_model", "load_pretrained"}}


def test_refusing_remote_code_asks_no_question(monkeypatch):
    said = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    assert "or confirm transformers' prompt at a terminal; with `trust_remote_code=False`, there is no prompt" in said
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert resolve_trust_remote_code(None, "somebody/twins", has_local_code=False, has_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        resolve_trust_remote_code(False, "somebody/twins", has_local_code=False, has_remote_code=True)


def test_actions_are_pinned_to_commits():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    uses = [
        use for file in workflows for use in re.findall(r"uses: (\S+)( +# v[\d.]+)?", file.read_text(encoding="utf-8"))
    ]
    assert len(uses) > 3
    for action, version in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert version, f"{action}: say which version this is"


def test_workflows_have_only_the_permissions_that_they_need():
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = file.read_text(encoding="utf-8")
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE), file
        assert "persist-credentials: false" in text, file
        assert "pull_request_target" not in text, file
        # Values that anybody can set: a title, the name of a branch, a message.
        assert not re.search(r"\$\{\{ *github\.(event\.(?!release)|head_ref)", text), file


def test_dependencies_are_audited_between_pushes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    # YAML parses `on` as a Boolean.
    (schedule,) = workflow[True]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \d", schedule["cron"]), "once a week"
    # Neither run cancels the other.
    assert "github.event_name" in workflow["concurrency"]["group"]
    assert "pip-audit" in workflow["jobs"]["audit"]["steps"][-1]["run"]


def test_job_that_may_publish_runs_no_code_of_the_project():
    """Everything that is installed or run in a job has the permissions of the job."""
    jobs = {
        f"{file.stem}.{name}": job
        for file in (ROOT / ".github" / "workflows").glob("*.yml")
        for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items()
        if job.get("permissions", {}).get("id-token") == "write"
    }
    assert set(jobs) == {"publish_to_hub.publish", "release.publish"}
    for name, job in jobs.items():
        assert job["needs"] == "build", name
        assert job["environment"], f"{name}: a maintainer has to be asked"
        for step in job["steps"]:
            assert not step.get("uses", "").startswith("actions/checkout@"), name
            assert "cache" not in step.get("with", {}), f"{name}: other jobs write the cache"
            installed = re.findall(r"pip install (.*)", " ".join(step.get("run", "").split()))
            for package in " ".join(installed).replace("--no-deps --only-binary :all:", "").split():
                assert re.fullmatch(r"[\w-]+==[\w.]+", package), f"{name} installs {package}: give its only version"
