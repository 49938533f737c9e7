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
"""Optional dependencies: a missing one is named, with the command that installs it."""

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A module of an extra is not installed; the message is a sentence with the command that installs it."""


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an extra of this package are installed.

    Args:
        extra: the extra, a key of `[project.optional-dependencies]` in pyproject.toml.
        modules: top-level modules, by the names that they are imported by.

    Raises:
        MissingExtraError: if one is missing.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f'{", ".join(missing)} must be installed for this part of hf_twins: pip install "hf_twins[{extra}]"',
            name=missing[0],
        )
