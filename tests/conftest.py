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
"""No network, no traces in the user's cache, the same random numbers in every test."""

import atexit
import ctypes
import gc
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator


# Before the libraries are imported, which read them once.
HF_HOME = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
os.environ["HF_HOME"] = HF_HOME
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of tests that run side by side would wait for each other: 30 times as long, now and then. Set in the workers alone,
# because they inherit what is set in the process that starts them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    num_workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))

import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from transformers.utils import logging  # noqa: E402


def pytest_collection_finish() -> None:
    """What was imported stays. To look for garbage among it takes half a second each time, as often as something is loaded."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    # Libraries look at their end for what was not freed.
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back() -> Iterator[None]:
    """Large models leave gigabytes with the allocator: more than two processes and those that they start may have."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def modules_end_offline() -> Iterator[None]:
    """What a test undoes in the wrong order lets all later ones of its worker wait for the Hub, and pass."""
    yield
    offline = {constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE") == "1"}
    assert offline == {True}, "a test of this module has left the Hub online"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test that reaches beyond this machine fail, wherever it runs."""
    connect = socket.socket.connect

    def connect_to_loopback(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)


@pytest.fixture(autouse=True)
def seeded() -> None:
    # For accelerators that are not in use yet, `torch.manual_seed` notes where it was called from: longer than most tests.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def accelerators_keep_their_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail that seeds those of GPUs."""

    def fail(seed: int) -> None:
        raise AssertionError("the random numbers of GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def fresh_compiler() -> None:
    """Compiled code is kept by the code it comes from, in however many models, and its amount is limited."""
    torch.compiler.reset()
