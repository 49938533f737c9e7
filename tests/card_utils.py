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

"""Run the code in model cards, as in an installation without extras."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image


# Modules of the package's extras, which `pip install hf_twins` does not install.
EXTRAS = ("sklearn", "matplotlib", "datasets", "accelerate", "gradio", "timm", "peft", "pycocotools", "pyarrow")


def run_card(folder: Path, location: str | None = None, needs: tuple[str, ...] = ()) -> str:
    """Run the Python code in the card of a model folder, next to an `image.jpg`, and return its output.

    Args:
        folder: the model folder.
        location: name of the folder in the card, if that is not its path.
        needs: modules of extras that the code may import.
    """
    code = "".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    assert code.startswith("import hf_twins"), code
    assert (location or str(folder)) in code, code
    code = code.replace(f'"{location or folder}"', f'"{folder}"')
    Image.effect_noise((48, 40), 80).convert("RGB").save(folder.parent / "image.jpg")
    block = f"import sys\nfor name in {set(EXTRAS) - set(needs)!r}:\n    sys.modules[name] = None\n"
    process = subprocess.run(
        [sys.executable, "-c", block + code], cwd=folder.parent, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
