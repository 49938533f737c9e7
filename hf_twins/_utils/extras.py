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
"""Optional dependencies, and errors with the command that installs a missing one."""

import sys
from importlib.util import find_spec
from types import TracebackType


# Maps each extra of pyproject.toml to the import names of the modules that only this extra installs.
EXTRAS = {
    "train": (
        "accelerate",
        "datasets",
        "matplotlib",
        "peft",
        "pyarrow",
        "pycocotools",
        "scipy",
        "sklearn",
        "torchmetrics",
    ),
    "convert": ("timm",),
    "demo": ("gradio",),
    "export": ("nncf", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino"),
    "dev": ("skimage",),
}


class MissingExtraError(ImportError):
    """A module of an extra is not installed; the message contains the command that installs it."""


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an extra of this package are installed.

    Args:
        extra: the extra, a key of `EXTRAS`.
        modules: import names of top-level modules; by default, all modules of the extra.

    Raises:
        MissingExtraError: if a module is missing.
    """
    missing = [module for module in modules or EXTRAS[extra] if is_missing(module)]
    if missing:
        raise MissingExtraError(
            f'{", ".join(missing)} must be installed for this part of hf_twins: pip install "hf_twins[{extra}]"',
            name=missing[0],
        )


def is_missing(module: str) -> bool:
    # None in `sys.modules` blocks the import of a module.
    return sys.modules.get(module, ...) is None or find_spec(module) is None


def exit_with_sentence_if_extra_is_missing(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A `sys.excepthook` for scripts, whose imports at the top of the file may fail before they can catch any error."""
    # The cause has the name of the missing module, if transformers raises an error of its own.
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    missing = {cause.name.partition(".")[0] for cause in causes if isinstance(cause, ImportError) and cause.name}
    try:
        for extra, modules in EXTRAS.items():
            if missing.intersection(modules):
                require_extra(extra)
    except MissingExtraError as sentence:
        print(f"error: {sentence}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
