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
"""Files written by `torch.save`, in both formats, and errors for other kinds of files."""

import mmap
import os
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors.torch import load_file

from .names import listed
from .unpickling import (
    CutOffPickleError,
    DamagedPickleError,
    RefusedPickleError,
    Storage,
    StorageId,
    UnreadableFileError,
    load_pickle,
)


ZIP_START, EMPTY_ZIP = b"PK\x03\x04", b"PK\x05\x06"
# The values of the first two pickles in the older format, which precede a description of the machine.
LEGACY_START = [0x1950A86A20F9469CFC6C, 1001]

# The limit of the safetensors format. Larger values mean that the file is something else, such as text.
MAX_SAFETENSORS_HEADER = 100_000_000
# Alignment in bytes that suffices for numbers of any dtype.
MAX_ALIGNMENT = 8

# First bytes of files that are often found in place of a checkpoint, with what they are and what to do.
COMPRESSED = "which holds other files: unpack it, and pass the weights file in it"
OTHER_FILES = {
    b"version https://git-lfs": "is a Git LFS pointer instead of the file: fetch the file with `git lfs pull`",
    b"\x1f\x8b": f"is compressed by gzip, {COMPRESSED}",
    b"BZh": f"is compressed by bzip2, {COMPRESSED}",
    b"\xfd7zXZ": f"is compressed by xz, {COMPRESSED}",
    b"\x28\xb5\x2f\xfd": f"is compressed by Zstandard, {COMPRESSED}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7-Zip archive, {COMPRESSED}",
    b"Rar!": f"is a RAR archive, {COMPRESSED}",
    b"\x89HDF": "is an HDF5 file, as Keras writes it: PyTorch weights are needed",
    b"GGUF": "is a GGUF file: PyTorch weights are needed",
    b"\x93NUMPY": "is a NumPy array: PyTorch weights are needed",
}
OTHER_PAGE = (
    "is a web page instead of the file, perhaps a login page: open the address in a browser, and use the address of "
    "the download itself"
)
CUT_OFF = "is incomplete, as after an interrupted download: fetch it again"


def read_file(file: str | os.PathLike) -> Any:
    """Read a file written by `torch.save` or safetensors, whatever its extension, without importing or running anything.

    Tensors are views of the memory-mapped file where the format allows it. Changing them does not change the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has another format, is damaged, or names something that runs code.
    """
    path = Path(file)
    size = path.stat().st_size
    with path.open("rb") as opened:
        start = opened.read(512)
    with unreadable(path):
        if start.startswith((ZIP_START, EMPTY_ZIP)):
            return read_zip(path)
        header_size = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and header_size <= MAX_SAFETENSORS_HEADER:
            if 8 + header_size > size:
                raise UnreadableFileError(CUT_OFF)
            return load_file(path)
        if start[:1] == b"\x80":
            return read_legacy(path)
        raise UnreadableFileError(describe(path, start))


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Convert errors of reading a file to one sentence that names the file and says what to do."""
    try:
        yield
    except RefusedPickleError as error:
        name = str(error).removeprefix("builtins.")
        raise ValueError(
            f"{path} was not loaded: it holds {name} beside weights, and loading that could run code. Ask for a file "
            "with weights alone."
        ) from None
    except CutOffPickleError as error:
        raise ValueError(f"{path} {CUT_OFF}.") from error
    except DamagedPickleError as error:
        raise ValueError(f"{path} is not a weights file, or it is damaged: {error}.") from error
    except UnreadableFileError as error:
        raise ValueError(f"{path} {error}.") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} {CUT_OFF}.") from error
    except FileNotFoundError:
        raise
    except Exception as error:
        # The readers of these formats raise various errors for invalid bytes.
        raise ValueError(f"{path} is not a weights file, or it is damaged.") from error


def describe(path: Path, start: bytes) -> str:
    """Say what kind of file this is, judging by its first bytes, and what to do."""
    if not start:
        return "is empty: fetch it again"
    for other_start, description in OTHER_FILES.items():
        if start.startswith(other_start):
            return description
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return OTHER_PAGE
    if text.startswith((b"{", b"[")):
        return "is a JSON file: pass the weights file beside it"
    if tarfile.is_tarfile(path):
        return f"is a tar archive, {COMPRESSED}"
    if start.isascii() and not any(byte < 9 for byte in start):
        return f"is a text file that begins with {start[:40].decode()!r}: a weights file is needed"
    return "is not a weights file, or it is damaged"


def read_storage(opened: IO[bytes], mapped: torch.UntypedStorage, offset: int, nbytes: int) -> torch.UntypedStorage:
    """Return a part of a file: a view of the mapped file, or a copy if its numbers would not be aligned."""
    if offset + nbytes > mapped.nbytes():
        raise UnreadableFileError(CUT_OFF)
    if offset % MAX_ALIGNMENT == 0:
        return cast(torch.UntypedStorage, mapped[offset : offset + nbytes])
    # Read from the file, because copying from the mapping would take twice the memory.
    content = torch.empty(nbytes, dtype=torch.uint8)
    opened.seek(offset)
    opened.readinto(content.numpy())  # type: ignore[attr-defined]  # which every file opened for bytes has
    return content.untyped_storage()


def map_file(path: Path) -> torch.UntypedStorage:
    # The mapping is private, so that changing a tensor does not change the file.
    return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, path.stat().st_size))


def read_zip(path: Path) -> Any:
    """Read the format of PyTorch 1.6 and later, a zip archive of a pickle and one file for each storage."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as opened:
        members = {member.filename: member for member in archive.infolist()}
        listing = listed(list(members), limit=3) or "nothing"
        roots = [
            name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise UnreadableFileError(f"is a zip archive of {listing}, {COMPRESSED}")
        (root,) = roots
        if f"{root}constants.pkl" in members:
            raise UnreadableFileError(
                "is a TorchScript program, not weights alone: save the state_dict() of what torch.jit.load returns"
            )
        # Members must not overlap, so that their total size is limited by the size of the file.
        starts = sorted({member.header_offset for member in members.values()})
        if len(starts) < len(archive.infolist()):
            raise DamagedPickleError("its parts overlap")
        ends = dict(zip(starts, [*starts[1:], archive.start_dir], strict=True))

        def find(name: str) -> tuple[int, int]:
            """Return the offset of a member in the file, and its number of bytes."""
            member = members.get(root + name)
            if member is None:
                raise DamagedPickleError("a part of it is missing")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise UnreadableFileError(
                    "was compressed after it was saved: unpack it, and pack it again without compression"
                )
            opened.seek(member.header_offset)
            name_length, extra_length = struct.unpack("<26x2H", opened.read(30))
            offset = member.header_offset + 30 + name_length + extra_length
            if offset + member.file_size > ends[member.header_offset]:
                raise DamagedPickleError("its parts overlap")
            return offset, member.file_size

        def read(name: str) -> bytes:
            offset, size = find(name)
            opened.seek(offset)
            return opened.read(size)

        is_foreign = f"{root}byteorder" in members and read("byteorder") != sys.byteorder.encode()
        mapped = map_file(path)
        storages: dict[str, torch.UntypedStorage] = {}

        def load_storage(storage_id: StorageId) -> Storage:
            stored = storages.get(storage_id.key)
            if stored is None:
                offset, size = find(f"data/{storage_id.key}")
                stored = storages[storage_id.key] = read_storage(opened, mapped, offset, size)
                if is_foreign:
                    stored.byteswap(storage_id.dtype)
            if stored.nbytes() < storage_id.nbytes:
                raise DamagedPickleError("one of its storages is smaller than the tensors in it")
            return Storage(storage_id.dtype, stored, is_foreign)

        return load_pickle(read("data.pkl"), load_storage)


def read_legacy(path: Path) -> Any:
    """Read the format before PyTorch 1.6, a pickle followed by the storages that it refers to."""
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for expected in LEGACY_START:
            # The type is checked first, because comparing a crafted object of another type could take forever.
            if type(found := load_pickle(content)) is not int or found != expected:
                raise UnreadableFileError("is a pickle not written by torch.save: save the weights with torch.save")
        load_pickle(content)
        start = content.tell()
        # The offsets of the storages are known only after the pickle, so it is read twice.
        named: dict[str, StorageId] = {}

        def name_storage(storage_id: StorageId) -> Storage:
            named.setdefault(storage_id.key, storage_id)
            return Storage(storage_id.dtype, None)

        load_pickle(content, name_storage)
        keys = load_pickle(content)
        if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(named):
            raise DamagedPickleError("its list of storages is not that of its tensors")
        mapped = map_file(path)
        storages: dict[str, torch.UntypedStorage] = {}
        offset = content.tell()
        for key in keys:
            numel = int.from_bytes(content[offset : offset + 8], "little")
            if numel != named[key].numel:
                raise DamagedPickleError("one of its storages is not as large as its tensors say")
            storages[key] = read_storage(opened, mapped, offset + 8, named[key].nbytes)
            offset += 8 + named[key].nbytes

        def load_storage(storage_id: StorageId) -> Storage:
            stored = storages[storage_id.key]
            if storage_id.view_numel is not None:
                first = storage_id.view_offset * storage_id.dtype.itemsize
                last = first + storage_id.view_numel * storage_id.dtype.itemsize
                if not 0 <= first <= last <= stored.nbytes():
                    raise DamagedPickleError("one of its storages is smaller than the tensors in it")
                stored = stored[first:last]
            return Storage(storage_id.dtype, stored)

        content.seek(start)
        return load_pickle(content, load_storage)
