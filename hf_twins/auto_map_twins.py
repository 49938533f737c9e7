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
"""What a saved configuration or image processor says about code files beside it."""

from typing import Any


class TwinsAutoMapMixin:
    """Saves no `auto_map` that the saved folder would not live up to.

    transformers copies code files beside what it saves only if its class was registered for an Auto class, as the
    classes of remote code are. What was published with its code, loaded by the installed package and saved again, must
    not keep an `auto_map` that points at files which are not there.
    """

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, ready for JSON."""
        output = super().to_dict()  # type: ignore[misc]  # of the class that this is mixed into
        if self._auto_class is None:  # type: ignore[attr-defined]
            output.pop("auto_map", None)
        return output
