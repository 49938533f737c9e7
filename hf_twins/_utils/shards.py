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
"""Divides any number of images to predict into shards, which are read one at a time, with one output file each.

The SHA-256 of each output file is stored next to it, in a file that `sha256sum --check` reads. The output is complete
if both files exist and match.
"""

import contextlib
import functools
import hashlib
import logging
import lzma
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow.parquet
import torch

from .files import ReadError, check_is_apart, is_read_error, read_again, write_atomically
from .fingerprints import dataset_fingerprint, file_digest, files_fingerprint
from .image_folders import Listing, data_files, list_folder, listed, one_line, warn_of_others
from .images import (
    ImageError,
    decoding_fault,
    describe_unsupported,
    image_source,
    is_image_file,
    open_image,
    unsupported_format,
)


logger = logging.getLogger(__name__)


class ShardError(ValueError):
    """A .parquet or .tar file of images is damaged."""


@contextlib.contextmanager
def opened_parquet(file: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Open a .parquet file; raise a ShardError that names it if it is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            yield parquet
    except (pyarrow.ArrowException, OSError) as error:
        if is_read_error(error):
            raise
        raise ShardError(f"{file} is broken: {error}") from error


@contextlib.contextmanager
def opened_tar(file: str) -> Iterator[tarfile.TarFile]:
    """Open a .tar file; raise a ShardError that names it if it is damaged."""
    try:
        with tarfile.open(file) as archive:
            yield archive
    # Damaged archives also raise the errors of their compression.
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if is_read_error(error):
            raise
        # tarfile's message has one line for each compression that it has tried.
        raise ShardError(f"{file} is broken: {' '.join(str(error).split())}") from error


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a .tar file.

    Raises:
        tarfile.ReadError: after the last readable member, if the archive does not end there.
    """
    yield from archive
    # `tarfile` mistakes a damaged header or the end of a truncated file for the end of the archive, which must be a
    # block of zeros.
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(
            f"it is truncated or damaged at byte {archive.offset}, after {len(archive.getmembers())} members"
        )


def is_link(member: tarfile.TarInfo) -> bool:
    """Whether a member is a symbolic link, or the second name of a file, which GNU tar stores as a hard link."""
    return member.issym() or member.islnk()


@functools.lru_cache(maxsize=1)
def members_by_name(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The members of an archive by their normalized names, because `tarfile` itself would search all of them for each link."""
    return {posixpath.normpath(member.name): member for member in archive.getmembers()}


def linked_file(link: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The file in an archive that a link leads to, through other links if necessary; None if there is no such file."""
    member: tarfile.TarInfo | None = link
    followed: set[str] = set()
    while member is not None and is_link(member) and member.name not in followed:
        followed.add(member.name)
        # A symbolic link is relative to its folder, and a hard link to the root of the archive.
        folder = posixpath.dirname(member.name) if member.issym() else ""
        member = by_name.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
    return member if member is not None and member.isfile() else None


def check_tar(file: str | Path) -> None:
    """Check an archive that `datasets` will read, and log which members it leaves out because they are links.

    Raises:
        ShardError: if it cannot be read from its first member to its last.
    """

    def read() -> list[str]:
        with opened_tar(str(file)) as archive:
            return [member.name for member in tar_members(archive) if is_link(member)]

    links = read_again(read, file)
    if links:
        logger.warning(
            f"Left out of {one_line(str(file))}: {len(links)} links to files ({listed(links)}). Store the files instead, with "
            "tar --dereference --hard-dereference."
        )


def archive_fingerprint(file: str) -> str:
    """The fingerprint of a .tar or .parquet file, read once as long as its size and time are the same."""
    status = read_again(Path(file).stat, file)
    return fingerprint_of_version(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def fingerprint_of_version(file: str, size: int, time: int) -> str:
    return files_fingerprint(Path(file).parent, [Path(file).name])


@dataclass(frozen=True)
class FileShard:
    """A shard of image files below a folder."""

    folder: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder

    @property
    def contents(self) -> Any:
        return self.files

    def fingerprint(self) -> str:
        return files_fingerprint(self.folder, self.files)

    def images(self, start: int, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of every `step`-th image from `start` on, and its `bytes` or the `path` of its file."""
        for file in islice(self.files, start, None, step):
            yield file, {"path": str(Path(self.folder, file)), "bytes": None}


@dataclass(frozen=True)
class TarShard:
    """A shard that is a .tar file in WebDataset's format."""

    file: str

    @property
    def name(self) -> str:
        return self.file

    @property
    def contents(self) -> Any:
        return Path(self.file).name

    def fingerprint(self) -> str:
        return archive_fingerprint(self.file)

    def images(self, start: int, step: int) -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
        """Yield images as [`FileShard.images`] does, or an ImageError for a member that is unsupported or leads to no file."""
        with opened_tar(self.file) as archive:
            # Images that cannot be opened are yielded, too, so that they are reported.
            members = (
                member
                for member in tar_members(archive)
                if not member.isdir() and (is_image_file(member.name) or unsupported_format(member.name) is not None)
            )
            for member in islice(members, start, None, step):
                yield f"{Path(self.file).name}/{member.name}", self.image(archive, member)

    def image(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any] | ImageError:
        file: tarfile.TarInfo | None = member
        if is_link(member):
            file = linked_file(member, members_by_name(archive))
        if file is None:
            return ImageError(f"is a link to {member.linkname}, which is not a file in the archive")
        if not file.isfile():
            return ImageError("is neither a file nor a link to one")
        unsupported = unsupported_format(member.name)
        if unsupported is not None:
            return ImageError(describe_unsupported(unsupported))
        content: Any = archive.extractfile(file)
        return {"path": member.name, "bytes": content.read()}


@dataclass(frozen=True)
class ParquetShard:
    """A shard of row groups of a .parquet file with a column of images, as `datasets` writes them."""

    file: str
    row_groups: tuple[int, ...]
    first_row: int
    column: str

    @property
    def name(self) -> str:
        return self.file

    @property
    def contents(self) -> Any:
        return Path(self.file).name, self.row_groups, self.first_row, self.column

    def fingerprint(self) -> str:
        return archive_fingerprint(self.file)

    def images(self, start: int, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        with opened_parquet(self.file) as parquet:
            rows = (
                row.as_py()
                for batch in parquet.iter_batches(64, row_groups=list(self.row_groups), columns=[self.column])
                for row in batch.column(self.column)
            )
            for number, image in islice(enumerate(rows, self.first_row), start, None, step):
                yield f"{Path(self.file).name}#{number}", {"bytes": image} if isinstance(image, bytes) else image


@dataclass(frozen=True)
class DatasetShard:
    """A shard of rows of a dataset that `datasets` has loaded, with undecoded images."""

    split: Any
    rows: range
    column: str

    @property
    def name(self) -> str:
        return f"split {self.split.split}"

    @property
    def contents(self) -> Any:
        return self.rows

    def fingerprint(self) -> str:
        """Empty, because there is one fingerprint for the entire split."""
        return ""

    def images(self, start: int, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in islice(self.rows, start, None, step):
            yield f"{self.split.split}#{row}", self.split[row][self.column]


Shard = FileShard | TarShard | ParquetShard | DatasetShard


def find_shards(
    folder: str, shard_size: int, column: str | None = None, output_dir: str | Path | None = None
) -> list[Shard]:
    """Divide the images of a folder into shards: its .parquet or .tar files or, without them, all image files below it.

    Args:
        folder: folder of the images.
        shard_size: number of images per shard; .tar files and row groups of .parquet files are not divided.
        column: column of the images in .parquet files; inferred if not given.
        output_dir: folder that the run writes to.

    Raises:
        ValueError: if there are no images, or files written to `output_dir` could replace them.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"--input_dir must be a folder of images, of .parquet or of .tar files, got {folder}.")
    data = [str(file) for file in data_files(folder)]
    if data:
        check_output(output_dir, data)
        warn_of_others(folder, data)
        if data[0].lower().endswith(".tar"):
            return [TarShard(file) for file in data]
        shards = [shard for file in data for shard in parquet_shards(file, shard_size, column)]
        if not shards:
            raise ValueError(f"The .parquet files of {folder} have no rows.")
        return list(shards)
    listing = list_folder(folder)
    check_output(output_dir, [listing])
    listing.warn()
    files = listing.files
    if not files:
        raise ValueError(f"{folder} has no images, no .parquet and no .tar files.")
    return [FileShard(folder, tuple(files[start : start + shard_size])) for start in range(0, len(files), shard_size)]


def check_output(output_dir: str | Path | None, inputs: Iterable[str | Listing]) -> None:
    """Raise a ValueError if .parquet files written next to the inputs would be read as inputs by the next run."""
    if output_dir is not None:
        check_is_apart(output_dir, inputs, is_recursive=False)


def shards_fingerprint(shards: list[Shard]) -> str:
    """The fingerprint of the images, by names and order, which does not depend on where their folder is."""
    if isinstance(shards[0], DatasetShard):
        return dataset_fingerprint(shards[0].split)
    return hashlib.sha256(ascii([shard.contents for shard in shards]).encode()).hexdigest()


def digest_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.sha256")


def write_output(output: Path, write: Callable[[Path], Any]) -> None:
    """Write the output file of a shard atomically, and its SHA-256 next to it."""
    write_atomically(output, write)
    text = f"{file_digest(output)}  {output.name}\n"
    write_atomically(digest_file(output), lambda partial: partial.write_text(text, encoding="utf-8"))


def is_finished(output: Path) -> bool:
    """Whether an output file exists and is complete; an incomplete one is named in the log.

    Raises:
        ReadError: if the file cannot be read.
    """
    if not output.exists():
        return False
    try:
        recorded = digest_file(output).read_bytes()
    except FileNotFoundError:
        logger.warning(f"{output} has no {digest_file(output).name} beside it and is ignored: its run was stopped.")
        return False
    if recorded != f"{file_digest(output)}  {output.name}\n".encode():
        logger.warning(f"{output} or {digest_file(output).name} is damaged, and is ignored.")
        return False
    return True


def parquet_shards(file: str, shard_size: int, column: str | None) -> Iterator[ParquetShard]:
    with opened_parquet(file) as parquet:
        schema = parquet.schema_arrow
        column = column or image_column(file, schema)
        if column not in schema.names:
            raise ValueError(f"--image_column_name must be one of {', '.join(schema.names)}, got {column}.")
        kind = schema.field(column).type
        if not has_images(kind):
            raise ValueError(f"--image_column_name must be a column of images, got {column}, a column of {kind}.")
        sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
    start = first_row = num_rows = 0
    for index, size in enumerate(sizes):
        num_rows += size
        if num_rows >= shard_size or (num_rows > 0 and index == len(sizes) - 1):
            yield ParquetShard(file, tuple(range(start, index + 1)), first_row, column)
            start, first_row, num_rows = index + 1, first_row + num_rows, 0


def has_images(kind: Any) -> bool:
    """Whether a type of pyarrow holds encoded images: bytes, or a struct that has them."""
    if pyarrow.types.is_struct(kind):
        return "bytes" in [child.name for child in kind]
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def image_column(file: str, schema: Any) -> str:
    columns = [field.name for field in schema if pyarrow.types.is_struct(field.type) and has_images(field.type)]
    if len(columns) != 1:
        raise ValueError(
            f"Which column of {file} has the images? Set --image_column_name to one of {', '.join(schema.names)}."
        )
    return columns[0]


class ShardImages(torch.utils.data.IterableDataset):
    """The prepared images of a shard, each with its index and name, divided among the workers of a loader.

    Unusable images have None as `pixel_values`, and an `error` that says why; `applied` lists the changes made to an
    image. The last example of each worker is not an image: it has the `count` of the worker's images, or the
    `failure`, a ReadError or ShardError, whose message would get a traceback if the worker raised it.
    """

    def __init__(self, shard: Shard, prepare: Callable[[PIL.Image.Image], torch.Tensor]):
        self.shard, self.prepare = shard, prepare

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker: Any = torch.utils.data.get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        count = 0
        try:
            for path, image in self.images(start, step):
                yield {"place": start + count * step, "path": path, **self.prepared(image)}
                count += 1
        except (ReadError, ShardError) as error:
            yield {"failure": error}
            return
        yield {"count": count}

    def images(self, start: int, step: int) -> Iterator[tuple[str, dict[str, Any] | ImageError]]:
        """Yield the images of the shard, which is reopened if the system fails to continue reading."""
        images: Iterator[tuple[str, dict[str, Any] | ImageError]] = self.shard.images(start, step)
        count = 0

        def read() -> tuple[str, dict[str, Any] | ImageError] | None:
            nonlocal images
            try:
                return next(images, None)
            except OSError:
                images = self.shard.images(start + count * step, step)
                raise

        while (named := read_again(read, self.shard.name)) is not None:
            yield named
            count += 1

    def prepared(self, image: dict[str, Any] | ImageError | None) -> dict[str, Any]:
        if isinstance(image, ImageError):
            return {"pixel_values": None, "error": str(image)}
        if image is None or (image.get("bytes") is None and image.get("path") is None):
            return {"pixel_values": None, "error": "there is no image"}
        decoded = None
        applied: Counter[str] = Counter()
        try:
            decoded = open_image(image_source(image), applied=applied)
            pixel_values = self.prepare(decoded)
        except ReadError:
            raise
        except ImageError as error:
            return {"pixel_values": None, "error": str(error)}
        # Pillow's decoders raise all kinds of errors, and preprocessing may raise others for unusual images.
        except Exception as error:
            reason = decoding_fault(error) if decoded is None else f"cannot be prepared: {error!r}"
            return {"pixel_values": None, "error": reason}
        # Arrays are sent through a pipe. PyTorch sends tensors by open files: a worker that cannot open more files
        # would lose them, and the main process would wait forever.
        return {"pixel_values": pixel_values.numpy(), "error": None, "applied": list(applied)}


def check_is_complete(places: list[int], counts: list[int], num_workers: int, shard: Shard) -> None:
    """Raise a ReadError if images from the workers are missing; each worker reports its count at the end.

    A worker that cannot open more files loses the images that it was about to send.
    """
    if len(counts) != max(num_workers, 1) or places != list(range(sum(counts))):
        raise ReadError(
            f"Images of {shard.name} were lost between data loading processes: raise the number of files that a "
            "process may open (ulimit -n), or give fewer --dataloader_num_workers, and start again."
        )
