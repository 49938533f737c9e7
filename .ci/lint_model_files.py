#!/usr/bin/env python
"""Run transformers' linter of model files (`pip install transformers-mlinter`), except for the findings argued below."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
FILES = [
    "configuration_twins.py",
    "modeling_twins.py",
    "image_processing_twins.py",
    "image_processing_pil_twins.py",
]

# (file, rule, the first name in the finding) and why it stays; `mlinter --rule TRF036` explains a rule.
ARGUED = {
    ("modeling_twins.py", "TRF041", "config.window_size"): (
        "Not a branch within one checkpoint's model: it is the difference between the two families of the paper, which "
        "the class's docstring names. Twins-SVT's checkpoints have a number, Twins-PCPVT's None."
    ),
    ("modeling_twins.py", "TRF041", "config.use_stage_norm"): (
        "The authors' segmentation checkpoints of Twins-SVT have the norm, all others do not: the configuration says so."
    ),
    ("modeling_twins.py", "TRF041", "config.patch_padding"): (
        "mmsegmentation's checkpoints are computed with it, all others without: the configuration says so."
    ),
    ("modeling_twins.py", "TRF057", "TwinsEncoder.forward"): (
        "Not public: the encoder is what the model and the backbone share, and both document the same arguments."
    ),
    ("modeling_twins.py", "TRF013", "__init__"): (
        "The common base class of the models, each of which calls post_init at its end: here it would be called twice."
    ),
    ("modeling_twins.py", "TRF036", "nn.Sequential"): (
        "The names are those of the saved checkpoints: a scale's convolutions, one after the other, with nothing between."
    ),
    ("image_processing_twins.py", "TRF057", "ImageError"): "An exception, which takes a message alone.",
    ("image_processing_twins.py", "TRF057", "TwinsImageProcessorMixin"): (
        "Not a processor: what both backends share, which document their arguments themselves."
    ),
}


def find_violations() -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # The cache would be in the user's home folder.
        command = ["mlinter", "--no-cache", "--no-progress", "--output-json", report]
        process = subprocess.run([*command, *FILES], cwd=ROOT / "hf_twins", capture_output=True, text=True)
        if not report.is_file():
            sys.exit(f"mlinter did not run: {process.stdout}{process.stderr}")
        return json.loads(report.read_text())["findings"]


def main() -> None:
    found, new = set(), []
    for violation in find_violations():
        name = re.search(r"`@?([^`(]+)", violation["message"])
        key = (Path(violation["path"]).name, violation["rule"], name.group(1) if name else "")
        found.add(key)
        if key not in ARGUED:
            new.append(f"{violation['path']}:{violation['line']}: {violation['message']}")
    if new:
        sys.exit("\n".join(["Mend these, or say why not in .ci/lint_model_files.py:", *new]))
    if gone := ARGUED.keys() - found:
        sys.exit(
            "\n".join(["Argued, but no longer found: take them out of .ci/lint_model_files.py:", *map(str, gone)])
        )
    print(f"{len(FILES)} model files, {len(found)} findings, all of them argued")


if __name__ == "__main__":
    main()
