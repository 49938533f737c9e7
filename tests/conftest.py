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
"""Fixtures for all tests: no network, no files left behind, the same random numbers in every test."""

import atexit
import ctypes
import gc
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


# Windows has no `fcntl` locks: there, the files of a killed run have to be removed by hand.
if sys.platform != "win32":
    import fcntl


TEMPORARY_PREFIX = "twins-tests-"


def lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor that is returned is closed, None if another run has locked or removed it."""
    if sys.platform == "win32":
        return None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                return descriptor
        os.close(descriptor)
    return None


def use_temporary_folder() -> None:
    """Let this process, and those it starts, write their temporary files to a folder that is removed at the end.

    Libraries leave theirs behind: PyTorch's compiler gigabytes of code, Gradio's client a folder for each file that it
    downloads, a killed browser its profile. Folders of runs that were killed are removed, too.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{TEMPORARY_PREFIX}*"):
        descriptor = lock(left)
        if descriptor is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    # `tmp_path` stays where pytest would create it, because the files of failed tests are kept.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(parent))
    folder = Path(tempfile.mkdtemp(prefix=f"new-{TEMPORARY_PREFIX}"))
    # It remains locked until this process ends. Without the lock, another run would take it for one that was left.
    lock(folder)
    folder = folder.rename(parent / folder.name.removeprefix("new-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


# The processes of parallel tests inherit the folder, which outlives them, also if they are killed.
if "PYTEST_XDIST_WORKER" not in os.environ:
    use_temporary_folder()

# These variables must be set before the libraries are imported, which read them once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of parallel tests would wait for each other, sometimes for 30 times as long. This is set only in the workers,
# because they would inherit variables of the process that starts them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    num_workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))

import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from transformers.utils import logging  # noqa: E402


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which would otherwise take half a second at each loading."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    # Some libraries check for objects that were not freed when they exit.
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back() -> Iterator[None]:
    """Return memory to the system, because large models leave gigabytes with the allocator, too much for two workers."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def modules_end_offline() -> Iterator[None]:
    """Fail if a module leaves the Hub online, because all later tests of the worker would wait for the Hub, and still pass."""
    yield
    offline = {constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE") == "1"}
    assert offline == {True}, "a test of this module has left the Hub online"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test fail if it connects to another machine."""
    connect = socket.socket.connect

    def connect_to_loopback(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)


@pytest.fixture(autouse=True)
def seeded() -> None:
    # `torch.manual_seed` records a stack trace for accelerators that are not initialized, which takes longer than most
    # tests.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def accelerators_keep_their_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test fail if it seeds the random numbers of GPUs."""

    def fail(seed: int) -> None:
        raise AssertionError("the random numbers of GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def fresh_compiler() -> None:
    """Reset the compiler, which caches a limited number of compilations for each function, across all models."""
    torch.compiler.reset()
