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
"""Record events of Python's audit hooks (PEP 578): imports, compiled or executed code, files, processes, sockets."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


# The recorded events of the thread that listens.
LISTENERS: dict[int, list[str]] = {}


def record_event(event: str, arguments: tuple[Any, ...]) -> None:
    if (events := LISTENERS.get(threading.get_ident())) is not None:
        events.append(event)


# The hook cannot be removed, but has no measurable cost.
sys.addaudithook(record_event)


@contextmanager
def audited() -> Iterator[list[str]]:
    """Context that records the audit events of this thread."""
    LISTENERS[threading.get_ident()] = events = []
    try:
        yield events
    finally:
        del LISTENERS[threading.get_ident()]
