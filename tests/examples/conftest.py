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
"""Fixtures of the tests of the examples."""

from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from classification_utils import digit_images, save_start, write_parquet


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The first 360 of scikit-learn's digits in a .parquet file, as images with text labels."""
    return write_parquet(tmp_path_factory.mktemp("digits"), *digit_images(360))


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A tiny model to start from, for images of 16 pixels."""
    return save_start(tmp_path_factory.mktemp("start"))


@pytest.fixture
def one_process():
    """Reset Accelerate's state, so that it does not carry over to the next run."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(autouse=True)
def no_pause_after_streams(monkeypatch):
    """`datasets` waits for five seconds at the end of a stream of several files."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
