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
"""Run an exported Twins model on images, without hf_twins, transformers or PyTorch's model.

    python examples/export/run_exported.py --model_dir outputs/onnx image.png

Every export has a copy of this program next to its model: `outputs/onnx/run_exported.py` works wherever the folder is.
"""

import runpy
from pathlib import Path


if __name__ == "__main__":
    # The program is run by its path, because importing it would import the package, and so PyTorch and transformers,
    # which it does not need.
    program = Path(__file__).resolve().parents[2] / "hf_twins" / "export" / "run_exported.py"
    runpy.run_path(str(program), run_name="__main__")
