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
"""Shards: damaged ones are refused, their images have fingerprints, and their output files are complete."""

import errno
import gzip
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from testing_utils import fail_to_read

from hf_twins._utils import files, shards
from hf_twins._utils.files import ReadError
from hf_twins._utils.shards import (
    FileShard,
    ParquetShard,
    ShardError,
    ShardImages,
    TarShard,
    check_is_complete,
    check_tar,
    find_shards,
    is_finished,
    shards_fingerprint,
    write_output,
)


NAMES = tuple(f"{index}.png" for index in range(5))


def write_images(folder: Path) -> Path:
    folder.mkdir()
    for index, name in enumerate(NAMES):
        Image.new("L", (8, 8), index).save(folder / name)
    return folder


def write_tar(folder: Path) -> Path:
    images = write_images(folder / "images")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in NAMES:
            archive.add(images / name, name)
    return folder / "a.tar"


def write_table(folder: Path) -> Path:
    images = write_images(folder / "images")
    rows = [{"bytes": (images / name).read_bytes(), "path": name} for name in NAMES]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def examples_of(shard: shards.Shard) -> list[dict]:
    return list(ShardImages(shard, lambda image: torch.zeros(1)))


def test_output_is_complete_with_its_digest_which_sha256sum_reads(tmp_path):
    output = tmp_path / "rows.parquet"
    assert not is_finished(output)
    write_output(output, lambda partial: partial.write_bytes(b"rows"))
    assert is_finished(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.parquet", "rows.parquet.sha256"]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "rows.parquet.sha256"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.parquet.sha256"])
def test_every_damaged_byte_of_an_output_is_detected(name, tmp_path, caplog):
    output = tmp_path / "rows.parquet"
    write_output(output, lambda partial: partial.write_bytes(b"rows"))
    whole = (tmp_path / name).read_bytes()
    for position in range(len(whole)):
        caplog.clear()
        (tmp_path / name).write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert not is_finished(output)
        assert f"{output} or rows.parquet.sha256 is damaged" in caplog.text
    (tmp_path / name).write_bytes(whole[:-1])
    assert not is_finished(output)
    (tmp_path / name).write_bytes(whole)
    assert is_finished(output)


def test_output_of_a_run_that_was_killed_before_its_digest_does_not_count(tmp_path, caplog):
    output = tmp_path / "rows.parquet"
    write_output(output, lambda partial: partial.write_bytes(b"rows"))
    (tmp_path / "rows.parquet.sha256").unlink()
    assert not is_finished(output)
    assert "has no rows.parquet.sha256 beside it and is ignored" in caplog.text


@pytest.mark.parametrize(
    ("places", "counts", "num_workers"),
    [([0, 2], [2, 1], 2), ([0, 1], [2], 2), ([], [], 2), ([0, 1, 1], [2, 1], 2), ([], [], 0), ([0], [2], 0)],
    ids=["one lost", "worker lost", "all lost", "one twice", "nothing", "one of two"],
)
def test_images_lost_between_processes_are_detected(places, counts, num_workers):
    check_is_complete([0, 1, 2], [2, 1], 2, FileShard("folder", NAMES))
    check_is_complete([], [0], 0, TarShard("empty.tar"))
    with pytest.raises(ReadError, match="Images of folder were lost between data loading processes"):
        check_is_complete(places, counts, num_workers, FileShard("folder", NAMES))


@pytest.mark.parametrize("write", [write_images, write_tar, write_table], ids=["folder", "tar", "parquet"])
def test_fingerprint_of_a_copy_is_the_same_but_changed_images_differ(write, tmp_path):
    (tmp_path / "one").mkdir()
    written = write(tmp_path / "one" / "images" if write is write_images else tmp_path / "one")
    folder = written if written.is_dir() else written.parent
    copy = shutil.copytree(folder, tmp_path / "copy")
    (first, *_), copied = find_shards(str(folder), 2), find_shards(str(copy), 2)
    assert copied[0].fingerprint() == first.fingerprint()
    assert shards_fingerprint(copied) == shards_fingerprint(find_shards(str(folder), 2))
    assert shards_fingerprint(find_shards(str(copy), 5)) != shards_fingerprint(copied) or write is write_tar
    changed = copy / NAMES[0] if write is write_images else copy / written.name
    content = changed.read_bytes()
    changed.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    assert copied[0].fingerprint() != first.fingerprint()
    # Only names are compared, so that a damaged archive can be replaced.
    assert shards_fingerprint(copied) == shards_fingerprint(find_shards(str(folder), 2))
    changed.rename(changed.with_stem("another"))
    assert shards_fingerprint(find_shards(str(copy), 2)) != shards_fingerprint(copied)


@pytest.mark.parametrize("write", [write_tar, write_table], ids=["tar", "parquet"])
def test_fingerprint_of_an_archive_depends_on_its_middle(write, tmp_path):
    archive = write(tmp_path)
    shard = TarShard(str(archive)) if write is write_tar else ParquetShard(str(archive), (0, 1), 0, "image")
    digests = set()
    for middle in (b"0", b"1"):
        archive.write_bytes(b"0" * 200_000 + middle + b"0" * 200_000)
        # Within the resolution of the file system's clock, both versions would have the same time.
        os.utime(archive, (0, int(middle)))
        digests.add(shard.fingerprint())
    assert len(digests) == 2


def test_archive_of_many_shards_is_read_once(tmp_path, monkeypatch):
    file = str(write_table(tmp_path))
    read = []
    monkeypatch.setattr(shards, "files_fingerprint", lambda folder, names: read.extend(names) or "0" * 64)
    first, second = find_shards(str(tmp_path), 3)
    assert (first.fingerprint(), second.fingerprint()) == ("0" * 64, "0" * 64)
    assert read == ["a.parquet"]
    os.utime(file, (0, 0))
    second.fingerprint()
    assert read == ["a.parquet", "a.parquet"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOENT, errno.EACCES])
def test_image_that_the_system_cannot_read_is_a_failure_and_not_a_row(number, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images")
    fail_to_read("2.png", number, monkeypatch)
    *rows, end = examples_of(FileShard(str(folder), NAMES))
    assert [row["path"] for row in rows] == ["0.png", "1.png"]
    assert isinstance(end["failure"], ReadError)
    assert str(folder / "2.png") in str(end["failure"])


@pytest.mark.parametrize("write", [write_tar, write_table], ids=["tar", "parquet"])
@pytest.mark.parametrize("num_faults", [1, 9], ids=["once", "always"])
def test_reading_an_archive_continues_after_a_system_error(write, num_faults, tmp_path, monkeypatch):
    archive = str(write(tmp_path))
    shard = TarShard(archive) if write is write_tar else ParquetShard(archive, (0, 1), 0, "image")
    expected = [example.get("path") for example in examples_of(shard)]
    assert len(expected) == 6
    faults = [errno.EIO] * num_faults

    def fail_at_the_third(images):
        def images_of(self, start, step):
            for place, image in enumerate(images(self, start, step), start):
                if place == 3 and faults:
                    raise OSError(faults[-1], os.strerror(faults.pop()))
                yield image

        return images_of

    monkeypatch.setattr(files, "READING_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(type(shard), "images", fail_at_the_third(type(shard).images))
    examples = examples_of(shard)
    if num_faults == 1:
        assert [example.get("path") for example in examples] == expected
    else:
        assert [example.get("path") for example in examples] == [*expected[:3], None]
        assert str(examples[-1]["failure"]).startswith(f"{archive} could not be read in 3 tries")


@pytest.mark.parametrize("write", [write_tar, write_table], ids=["tar", "parquet"])
def test_damaged_archive_is_named(write, tmp_path):
    archive = write(tmp_path)
    whole = archive.read_bytes()
    shard = TarShard(str(archive)) if write is write_tar else ParquetShard(str(archive), (0, 1), 0, "image")
    for content in (whole[:700], b""):
        archive.write_bytes(content)
        failure = examples_of(shard)[-1]["failure"]
        assert isinstance(failure, ShardError)
        assert str(failure).startswith(f"{archive} is broken: ")
        if write is write_table:
            with pytest.raises(ShardError, match=r"a\.parquet is broken: "):
                find_shards(str(tmp_path), 2)


def damaged_tars(archive: Path) -> dict[str, bytes]:
    """The bytes of a .tar file that was truncated, or whose third header is damaged."""
    whole = archive.read_bytes()
    with tarfile.open(archive) as opened:
        start = opened.getmembers()[2].offset
    flipped = bytearray(whole)
    flipped[start + 148] ^= 0x41
    return {"header": bytes(flipped), "between": whole[:start], "in header": whole[: start + 200]}


@pytest.mark.parametrize("damage", ["header", "between", "in header"])
@pytest.mark.parametrize("is_compressed", [False, True], ids=["plain", "gzip"])
def test_tar_with_lost_members_is_refused(damage, is_compressed, tmp_path):
    archive = write_tar(tmp_path)
    content = damaged_tars(archive)[damage]
    compress = gzip.compress if is_compressed else bytes
    archive.write_bytes(compress(archive.read_bytes()))
    check_tar(archive)
    assert examples_of(TarShard(str(archive)))[-1] == {"count": 5}
    archive.write_bytes(compress(content))
    *rows, end = examples_of(TarShard(str(archive)))
    assert [row["path"] for row in rows] == ["a.tar/0.png", "a.tar/1.png"]
    assert str(end["failure"]).startswith(f"{archive} is broken: it is truncated or damaged at byte ")
    with pytest.raises(ShardError, match=r"a\.tar is broken: it is truncated or damaged at byte \d+, after 2 members"):
        check_tar(archive)


def test_links_in_a_tar_are_images_and_those_that_lead_nowhere_are_errors(tmp_path, caplog):
    write_images(tmp_path / "images")
    links = {
        "d/hard.png": (tarfile.LNKTYPE, "0.png"),
        "d/symbolic.png": (tarfile.SYMTYPE, "../1.png"),
        "d/behind.png": (tarfile.SYMTYPE, "./symbolic.png"),
        "ahead.png": (tarfile.SYMTYPE, "last.png"),
        "nowhere.png": (tarfile.SYMTYPE, "none.png"),
        "outside.png": (tarfile.SYMTYPE, "../images/0.png"),
        "absolute.png": (tarfile.SYMTYPE, str(tmp_path / "images/0.png")),
        "circle.png": (tarfile.SYMTYPE, "circle.png"),
        "folder.png": (tarfile.SYMTYPE, "d"),
        "pipe.png": (tarfile.FIFOTYPE, ""),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "images" / "0.png", "./0.png")
        archive.add(tmp_path / "images" / "1.png", "./1.png")
        archive.add(tmp_path / "images", "d", recursive=False)
        for name, (kind, target) in links.items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.linkname = kind, target
            archive.addfile(member)
        archive.add(tmp_path / "images" / "2.png", "./last.png")
    shard = TarShard(str(tmp_path / "a.tar"))
    contents = {name.removeprefix("a.tar/./"): image for name, image in shard.images(0, 1)}
    expected = {
        "0.png": 0,
        "1.png": 1,
        "d/hard.png": 0,
        "d/symbolic.png": 1,
        "d/behind.png": 1,
        "ahead.png": 2,
        "last.png": 2,
    }
    for name, number in expected.items():
        assert contents[name]["bytes"] == (tmp_path / "images" / f"{number}.png").read_bytes()
    errors = {row["path"].removeprefix("a.tar/./"): row["error"] for row in examples_of(shard)[:-1]}
    assert {name for name, error in errors.items() if error is None} == set(expected)
    for name in ("nowhere.png", "outside.png", "absolute.png", "circle.png", "folder.png"):
        assert errors[name] == f"is a link to {links[name][1]}, which is not a file in the archive"
    assert errors["pipe.png"] == "is neither a file nor a link to one"
    check_tar(shard.file)
    assert f"Left out of {shard.file}: 9 links to files (./d/hard.png, ./d/symbolic.png, " in caplog.text


def test_images_in_a_tar_of_a_format_that_pillow_does_not_open_are_errors(tmp_path):
    write_images(tmp_path / "images")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("0.png", "1.heic", "2.dng", "3.txt"):
            archive.add(tmp_path / "images" / "0.png", name)
    errors = {row["path"]: row["error"] for row in examples_of(TarShard(str(tmp_path / "a.tar")))[:-1]}
    assert errors == {
        "a.tar/0.png": None,
        "a.tar/1.heic": "HEIC images are not supported: convert this one to JPEG or PNG.",
        "a.tar/2.dng": "camera raw images are not supported: convert this one to JPEG or PNG.",
    }


def test_archives_are_found_in_any_case_and_other_files_are_named(tmp_path, caplog):
    write_tar(tmp_path).rename(tmp_path / "A.TAR")
    (tmp_path / "._A.TAR").write_bytes(b"\0\5\x16\7")
    Image.new("L", (8, 8)).save(tmp_path / "beside.png")
    assert find_shards(str(tmp_path), 2) == [TarShard(str(tmp_path / "A.TAR"))]
    assert f"Only the .TAR files of {tmp_path} are read, not what is beside them: images, beside.png." in caplog.text


def test_table_of_metadata_has_no_images(tmp_path):
    folder = write_images(tmp_path / "images")
    table = pyarrow.table({"file_name": NAMES, "label": [0] * len(NAMES)})
    pyarrow.parquet.write_table(table, folder / "metadata.parquet")
    assert find_shards(str(folder), 9) == [FileShard(str(folder), NAMES)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a.png"], "string"),
        ([[b"x"]], "list<.*: binary>"),
        ([{"path": "a.png"}], "struct<path: string>"),
        ([1], "int64"),
    ],
)
def test_column_without_images_is_named(values, kind, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"photo": values}), tmp_path / "a.parquet")
    message = f"^--image_column_name must be a column of images, got photo, a column of {kind}.$"
    with pytest.raises(ValueError, match=message):
        find_shards(str(tmp_path), 2, "photo")


def test_column_is_found_beside_others_that_begin_like_it(tmp_path):
    rows = {"image.name": ["x"], "image": pyarrow.array([b"content"], pyarrow.large_binary())}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    (shard,) = find_shards(str(tmp_path), 2, "image")
    assert list(shard.images(0, 1)) == [("a.parquet#0", {"bytes": b"content"})]


def test_tables_without_rows_are_named(tmp_path):
    table = pyarrow.parquet.read_table(write_table(tmp_path))
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"The \.parquet files of .* have no rows"):
        find_shards(str(tmp_path), 2)
