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
"""Coverage-guided fuzzing of the readers of weights and images with arbitrary bytes.

    python tests/attacks/fuzz_readers.py weights --seconds 600
    python tests/attacks/fuzz_readers.py pickles --seconds 600
    python tests/attacks/fuzz_readers.py images --seconds 600

If a reader neither returns a result nor raises a documented error, the script stops with status 77, and writes the
bytes to `outputs/fuzzing`: add a test for them.
"""

import argparse
import contextlib
import io
import pickle
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import atheris


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/attacks", "conversion", "spaces")]

# Only the libraries that read files are instrumented. Instrumenting all of PyTorch and transformers would take
# minutes.
with atheris.instrument_imports(include=["PIL", "safetensors"]):
    import PIL.Image  # noqa: F401
    import safetensors  # noqa: F401

# These are imported below code (E402), after the instrumentation, which must not include them.
from test_fuzzing import (  # noqa: E402
    KEYS_THAT_ARE_DOUBLED,
    STORAGE_REFERENCE,
    WEIGHTS_FILES,
    amplified,
    image_files,
    read_pickle,
)
from twins_space.uploads import UploadError, read_upload  # noqa: E402

from hf_twins import checkpoints  # noqa: E402
from hf_twins._utils import images  # noqa: E402
from hf_twins.checkpoints import torch_files, unpickling  # noqa: E402


torch_files.read_zip = atheris.instrument_func(torch_files.read_zip)
torch_files.read_legacy = atheris.instrument_func(torch_files.read_legacy)
for opcode, handle in unpickling.HANDLERS.items():
    unpickling.HANDLERS[opcode] = atheris.instrument_func(handle)
for name, build in unpickling.BUILDERS.items():
    unpickling.BUILDERS[name] = atheris.instrument_func(build)
images.convert_image = atheris.instrument_func(images.convert_image)


def read_weights_of(content: bytes) -> None:
    # The reader needs the name of a file, which is in memory if temporary files are.
    with tempfile.NamedTemporaryFile(suffix=".safetensors" if content[8:9] == b"{" else ".pth") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(ValueError):
            checkpoints.read_weights(file.name)


def read_image_of(content: bytes) -> None:
    with contextlib.suppress(UploadError):
        read_upload(io.BytesIO(content))


def pickle_of(protocol: int) -> bytes:
    content = {"a": OrderedDict(b=[1, 0.5, (None, True)]), "args": argparse.Namespace(path=Path("a")), "set": {b"c"}}
    return pickle.dumps(content, protocol)


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "weights": (read_weights_of, [*WEIGHTS_FILES.values(), KEYS_THAT_ARE_DOUBLED]),
    "pickles": (
        read_pickle,
        [b"\x80\x02}" + STORAGE_REFERENCE + b"\x89Nts.", *map(pickle_of, (2, 4)), *amplified(1000, 10).values()],
    ),
    "images": (read_image_of, image_files()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    args = parser.parse_args()
    # Ignore what libraries log about the content of the files.
    warnings.simplefilter("ignore")
    read, seeds = TARGETS[args.target]
    found = ROOT / "outputs" / "fuzzing"
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(seed)
        options = [f"-max_total_time={args.seconds}", "-max_len=16384", "-timeout=30", f"-artifact_prefix={found}/"]
        # The reported memory of the process is not limited, because it includes the peak of the parent process.
        options += ["-rss_limit_mb=0", "-malloc_limit_mb=1024", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], corpus, *options], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
