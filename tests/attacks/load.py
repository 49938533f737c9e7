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
"""Load tests: does memory stay constant, and is every answer correct, under high load for a long time?

    python tests/attacks/load.py clients --clients 64 --seconds 600
    python tests/attacks/load.py switching --switches 50
    python tests/attacks/load.py predictions --images 100000

The script prints what was done, and the private memory of the process shortly after its start and at its end.
"""

import argparse
import contextlib
import io
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
from tqdm import tqdm


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from classification_utils import digit_images, save_start  # noqa: E402
from gradio_client import handle_file  # noqa: E402
from space_server import SPACES, digit_image, digit_label, serve  # noqa: E402


MODELS = tuple(sorted(folder.name for folder in (SPACES / "image_classification" / "models").iterdir()))


# Number of requests of each client before memory is measured.
WARMING_REQUESTS = 2


class MemoryWatch:
    """Measures the private memory of a process twice a second while it runs."""

    def __init__(self, process: int, seconds: float = 0.5):
        self.process, self.seconds = psutil.Process(process), seconds
        self.megabytes: list[float] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Measure immediately, because on a fast machine there may be no second measurement.
            self.megabytes.append(self.process.memory_full_info().uss / 2**20)
            while not self.stopped.wait(self.seconds):
                self.megabytes.append(self.process.memory_full_info().uss / 2**20)

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.thread.join()

    def growth(self) -> dict[str, float]:
        """The maximum in MB in the second fifth of the time, or overall if that is too short, and in the last fifth."""
        fifth = max(1, len(self.megabytes) // 5)
        warm = self.megabytes[fifth : 2 * fifth] or self.megabytes
        return {"warm": max(warm, default=0.0), "at the end": max(self.megabytes[-fifth:], default=0.0)}


def clients(folder: Path, num_clients: int, seconds: float) -> dict[str, Any]:
    """Let clients request labels of different digits from a Space, without pause, for the given time."""
    indices = range(0, 1797, 29)
    files = [folder / f"{index}.png" for index in indices]
    for index, file in zip(indices, files):
        digit_image(index).save(file)
    with serve(SPACES / "image_classification", folder / "log.txt") as server:
        expected = {
            (file, model): answer(server.client(), file, model)
            for file in tqdm(files, desc="one at a time")
            for model in MODELS
        }
        # Connect a few clients at a time, because each requests the page's configuration.
        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(lambda _: server.client(), range(num_clients)))

        def ask(number: int, index: int) -> tuple[float, bool]:
            question = files[index % len(files)], MODELS[index % len(MODELS)]
            started = time.monotonic()
            is_right = are_alike(answer(opened[number], *question), expected[question])
            return time.monotonic() - started, is_right

        def keep_asking(number: int) -> list[tuple[float, bool]]:
            done = []
            for index in itertools.count(number):
                if time.monotonic() > end:
                    return done
                done.append(ask(number, index))
            return done

        with ThreadPoolExecutor(num_clients) as pool:
            # Memory reaches its level after a number of requests, not after a time, which depends on the machine.
            list(pool.map(ask, WARMING_REQUESTS * [*range(num_clients)], itertools.count()))
            end = time.monotonic() + seconds
            with MemoryWatch(server.process.pid) as memory:
                answers = [each for done in pool.map(keep_asking, range(num_clients)) for each in done]
    taken = sorted(taken for taken, _ in answers)
    return {
        "clients": num_clients,
        "seconds": seconds,
        "answers": len(answers),
        "wrong": sum(not is_right for _, is_right in answers),
        "answers a second": len(answers) / seconds,
        "median seconds": statistics.median(taken),
        "95 % within": taken[int(0.95 * len(taken))],
        **memory.growth(),
    }


def answer(client: Any, file: Path, model: str) -> tuple[str, float]:
    label, _, details = client.predict(handle_file(file), model, api_name="/classify")
    if not details.startswith(model):
        raise RuntimeError(f"asked {model}, answered was {details}")
    return label["label"], label["confidences"][0]["confidence"]


def are_alike(one: tuple[str, float], other: tuple[str, float]) -> bool:
    """Whether two answers are equal up to rounding, since batches are composed differently each time."""
    return one[0] == other[0] and abs(one[1] - other[1]) <= 1e-3


def switching(folder: Path, switches: int) -> dict[str, Any]:
    """Request another one of four models from a Space each time. It keeps two, so it has to reload evicted models."""
    digit_image(3).save(folder / "3.png")
    models = SPACES / "image_classification" / "models"
    copies = [shutil.copytree(models / name, folder / f"copy-of-{name}") for name in MODELS]
    names = [*MODELS, *(copy.name for copy in copies)]
    log = folder / "log.txt"
    with serve(SPACES / "image_classification", log, "--model", *map(str, copies)) as server:
        client = server.client()
        megabytes, right, loads = [], [], []
        for number in tqdm(range(switches + len(names)), desc="switching"):
            label, _ = answer(client, folder / "3.png", names[number % len(names)])
            right.append(label == digit_label(3))
            loads.append(log.read_text().count(": loaded "))
            megabytes.append(psutil.Process(server.process.pid).memory_full_info().uss / 2**20)
    warm = megabytes[len(names) :]
    fifth = max(1, len(warm) // 5)
    return {
        "switches": switches,
        "loads": loads[-1] - loads[len(names) - 1],
        "wrong": right.count(False),
        "warm": max(warm[:fifth]),
        "at the end": max(warm[-fifth:]),
    }


def predictions(folder: Path, images: int) -> dict[str, Any]:
    """Predict a number of images by `batch_predict.py` with a tiny model."""
    contents = []
    for image in digit_images()[0]:
        file = io.BytesIO()
        image.save(file, format="PNG")
        contents.append({"bytes": file.getvalue(), "path": None})
    source, output = folder / "images", folder / "predictions"
    source.mkdir()
    for part, start in enumerate(range(0, images, 2_000)):
        rows = [contents[index % len(contents)] for index in range(start, min(start + 2_000, images))]
        pyarrow.parquet.write_table(pyarrow.table({"image": rows}), source / f"{part:03}.parquet")
    command = [
        *(sys.executable, ROOT / "examples" / "image_classification" / "batch_predict.py"),
        *("--model_name_or_path", save_start(folder / "model"), "--input_dir", source, "--output_dir", output),
        *("--image_column_name", "image", "--shard_size", max(1, images // 100), "--dataloader_num_workers", 0),
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"},
    )
    # The order and time of imports depend on the machine.
    while process.poll() is None and not any(output.glob("*.parquet")):
        time.sleep(0.1)
    with MemoryWatch(process.pid) as memory:
        # Stop when the summary is printed: up to 80 MB that the process needs to exit are unrelated to the images.
        assert process.stdout is not None
        process.stdout.readline()
    process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"batch_predict.py ended with status {process.returncode}.")
    rows = sum(pyarrow.parquet.read_metadata(file).num_rows for file in output.glob("*.parquet"))
    return {"images": images, "predicted": rows, "seconds": time.monotonic() - started, **memory.growth()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clients", "switching", "predictions"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600, help="how long the clients ask")
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--images", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what == "clients":
            result = clients(folder, args.clients, args.seconds)
        elif args.what == "switching":
            result = switching(folder, args.switches)
        else:
            result = predictions(folder, args.images)
    for key, value in result.items():
        print(f"{key:17} {value:.2f}" if isinstance(value, float) else f"{key:17} {value}")


if __name__ == "__main__":
    main()
