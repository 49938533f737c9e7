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
"""A Space, started as a user starts it, and clients for it."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from gradio_client import Client
from PIL import Image
from sklearn.datasets import load_digits
from source_checkpoints import TINY, source_checkpoint, source_weights
from twins_space.page import LOCAL_ADDRESS


SPACES = Path(__file__).parents[1] / "spaces"
START_SECONDS = 240


@dataclass
class Server:
    """A running page.

    Args:
        url: URL of the page.
        process: process that serves the page.
        log: file with the output of the process.
    """

    url: str
    process: subprocess.Popen
    log: Path

    def client(self) -> Client:
        return Client(self.url, verbose=False, analytics_enabled=False, download_files=self.log.parent / "downloads")

    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextmanager
def serve(
    folder: Path,
    log: Path,
    *arguments: str,
    script: str = "app.py",
    python: str | Path = sys.executable,
    **environment: str,
) -> Iterator[Server]:
    """Run `python app.py` of a folder, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(log.parent / "gradio"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **environment,
    }
    with log.open("w") as output:
        command = [str(python), str(folder / script), *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables, cwd=log.parent)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the page did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/config", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def run_client_example(page: Path, server: Server, image: Path) -> None:
    """Run the example of a call from Python that a page shows, with this server and image."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    code = code.replace("{page.LOCAL_ADDRESS}", LOCAL_ADDRESS)
    for shown, used in ((LOCAL_ADDRESS, server.url), ("image.png", str(image))):
        assert shown in code
        code = code.replace(shown, used)
    exec(compile(code, page.name, "exec"), {})  # noqa: S102  # the page's code is ours


def save_published(files: Path, endpoint: str) -> tuple[Path, dict]:
    """Write a substitute for the published ADE20K model that the segmentation Space starts with, on a download site.

    Args:
        files: folder with the files of the site.
        endpoint: URL of the site.

    Returns:
        The file with the table of published checkpoints, and the only entry of the table.
    """
    weights = source_weights("mmseg-semantic-fpn", TINY["svt"], num_classes=150)
    files.mkdir(exist_ok=True)
    file = files / "fpn.pth"
    torch.save(source_checkpoint("mmseg-semantic-fpn", weights), file)
    entry = {
        "name": "twins-svt-small-semantic-fpn-ade20k",
        "variant": "twins-svt-small",
        "url": f"{endpoint}/files/{file.name}",
        "sha256_prefix": hashlib.sha256(file.read_bytes()).hexdigest()[:8],
        "ade20k_miou": 44.47,
    }
    table = files.parent / "table.json"
    table.write_text(json.dumps([entry]))
    return table, entry


def pixels(path: str) -> np.ndarray:
    """Read an image that a client received, as an array of signed numbers."""
    with Image.open(path) as image:
        return np.asarray(image, dtype=float)


def digit_image(index: int, side: int = 96) -> Image.Image:
    """One of scikit-learn's digits, white on black."""
    image = (load_digits().images[index] * 255 / 16).astype(np.uint8)
    return Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)


def digit_label(index: int) -> str:
    return f"digit {load_digits().target[index]}"
