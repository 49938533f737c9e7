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
"""Weights files: recognition by the first bytes, damaged and malicious archives, and weights in checkpoints of scripts."""

import gzip
import io
import multiprocessing
import resource
import tarfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_twins.checkpoints import StandIn, read_weights, unwrap_weights
from hf_twins.checkpoints.torch_files import read_file
from hf_twins.checkpoints.weights import logger


WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.arange(2).half()}


def saved(content: Any = WEIGHTS, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repacked(
    change: Callable[[dict[str, bytes]], Any] = lambda members: None, compression: dict[str, int] | int = 0
) -> bytes:
    """Unpack a file of `torch.save`, and pack it again."""
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content, compression if isinstance(compression, int) else compression.get(name, 0))
    return file.getvalue()


def packed_in_tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("weights.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def packed_in_zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.pth", content)
    return file.getvalue()


def array_file() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def script_file() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def overlapping() -> bytes:
    """A zip archive whose directory gives the second storage the same offset as the first one."""
    content = bytearray(saved())
    directory = content.rindex(b"PK\1\2", 0, content.rindex(b"data/1"))
    first = content.rindex(b"PK\1\2", 0, content.rindex(b"data/0"))
    assert content[directory + 46 :].startswith(b"archive/data/1")
    content[directory + 42 : directory + 46] = content[first + 42 : first + 46]
    return bytes(content)


OTHER_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty: fetch it again"),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 96\n",
        "is a Git LFS pointer instead of the file: fetch the file with `git lfs pull`",
    ),
    "page": (lambda: b"\n<!DOCTYPE html>\n<html>", "is a web page instead of the file, .*: open the address"),
    "XML": (lambda: b'<?xml version="1.0"?><Error/>', "is a web page instead of the file"),
    "JSON": (lambda: b'{"model_type": "twins", "a": 1}', "is a JSON file: pass the weights file beside it"),
    "text with a brace": (
        lambda: b"weights {",
        "is a text file that begins with 'weights {': a weights file is needed",
    ),
    "text": (
        lambda: b"Entry not found",
        "is a text file that begins with 'Entry not found': a weights file is needed",
    ),
    "zip": (
        lambda: packed_in_zip(saved()),
        r"is a zip archive of weights\.pth, which holds other files: unpack it, and",
    ),
    "empty zip": (lambda: repacked(dict.clear), "is a zip archive of nothing"),
    "tar": (lambda: packed_in_tar(saved()), "is a tar archive, which holds other files: unpack it, and"),
    "gzip": (
        lambda: gzip.compress(saved()),
        "is compressed by gzip, .*: unpack it, and pass the weights file in it",
    ),
    "NumPy": (array_file, "is a NumPy array: PyTorch weights are needed"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes it: PyTorch weights are needed"),
    "GGUF": (lambda: b"GGUF\3\0\0\0", "is a GGUF file: PyTorch weights are needed"),
    "TorchScript": (script_file, r"is a TorchScript program, .*: save the state_dict\(\) of what torch\.jit\.load"),
    "other pickle": (
        lambda: b"\x80\x04]\x94.",
        "is a pickle not written by torch.save: save the weights with torch.save",
    ),
    "cut zip": (lambda: saved()[:-100], "is incomplete, as after an interrupted download: fetch it again"),
    "cut storages": (
        lambda: saved(_use_new_zipfile_serialization=False)[:-1],
        "is incomplete, as after an interrupted download: fetch it again",
    ),
    "cut pickle": (
        lambda: saved(_use_new_zipfile_serialization=False)[:100],
        "is incomplete, as after an interrupted download: fetch it again",
    ),
    "cut after the first number": (
        lambda: saved(_use_new_zipfile_serialization=False)[:15],
        "is incomplete, as after an interrupted download: fetch it again",
    ),
    "cut safetensors": (lambda: (500).to_bytes(8, "little") + b'{"a":', "is incomplete"),
    "noise": (lambda: bytes(range(1, 256)), "is not a weights file, or it is damaged"),
    "compressed members": (
        lambda: repacked(compression=zipfile.ZIP_DEFLATED),
        "was compressed after it was saved: unpack it, and pack it again without compression",
    ),
    "compressed storages": (
        lambda: repacked(compression={"archive/data/0": zipfile.ZIP_DEFLATED}),
        "was compressed after it was saved: unpack it, and pack it again without compression",
    ),
    "missing storage": (lambda: repacked(lambda members: members.pop("archive/data/1")), "a part of it is missing"),
    "short storage": (
        lambda: repacked(lambda members: members.update({"archive/data/0": b"abc"})),
        "one of its storages is smaller than the tensors in it",
    ),
    "overlapping storages": (overlapping, "its parts overlap"),
    "model": (
        lambda: saved(nn.Linear(2, 2)),
        r"got torch\.nn\.modules\.linear\.Linear: save the state_dict\(\) of the",
    ),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # warnings of torch.jit
def test_first_bytes_tell_what_a_file_is(tmp_path, kind, suffix):
    write, message = OTHER_FILES[kind]
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(write())
    with pytest.raises(ValueError, match=message) as error:
        read_weights(file)
    assert str(error.value).startswith(str(file))
    assert len(str(error.value).splitlines()) == 1


def assert_same_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> None:
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


def test_content_and_not_the_suffix_determines_how_a_file_is_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.pth")
    assert_same_weights(read_weights(tmp_path / "weights.pth"))
    for zipped in (True, False):
        torch.save(WEIGHTS, tmp_path / "weights.safetensors", _use_new_zipfile_serialization=zipped)
        assert_same_weights(read_weights(tmp_path / "weights.safetensors"))


def test_file_of_another_byte_order_is_read(tmp_path):
    def swap(members: dict[str, bytes]) -> None:
        members["archive/byteorder"] = b"big"
        members["archive/data/0"] = np.frombuffer(members["archive/data/0"], "<f4").astype(">f4").tobytes()
        members["archive/data/1"] = np.frombuffer(members["archive/data/1"], "<f2").astype(">f2").tobytes()

    (tmp_path / "weights.pth").write_bytes(repacked(swap))
    assert_same_weights(read_weights(tmp_path / "weights.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_changed_weights_are_not_written_to_the_file(tmp_path, zipped):
    file = tmp_path / "weights.pth"
    file.write_bytes(before := saved(_use_new_zipfile_serialization=zipped))
    for weight in read_weights(file).values():
        weight.fill_(7)
    assert file.read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (torch.ones(1).expand(10**9, 64), "64000000000 numbers in 4 bytes"),
        (
            torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**9, 64), check_invariants=True),
            "torch.sparse_coo",
        ),
        (torch.ones(10**9, 64, device="meta"), "without values"),
        (torch.empty(10**9, 0), r"nothing of the shape \(1000000000, 0\)"),
        (torch.ones(2, dtype=torch.complex64).conj().imag, "view of a complex tensor"),
    ],
    ids=["expanded", "sparse", "meta", "zero wide", "conjugate"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_head_that_claims_a_billion_classes_is_refused(tmp_path, weight, kind, zipped):
    """It is refused before anything of this size is created."""
    torch.save({"head.weight": weight}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"got head\.weight \({kind}\)"):
        read_weights(tmp_path / "a.pth")


def test_weights_that_share_a_little_memory_are_refused(tmp_path):
    weight = torch.ones(100, 100)
    torch.save({f"{number}.weight": weight for number in range(4)}, tmp_path / "tied.pth")
    assert len(read_weights(tmp_path / "tied.pth")) == 4
    torch.save({f"{number}.weight": weight for number in range(1000)}, tmp_path / "many.pth")
    with pytest.raises(ValueError, match="has weights of 40000000 bytes that share 40000 bytes: save a copy of each"):
        read_weights(tmp_path / "many.pth")


# Wrappers around weights


MODEL = {
    "patch_embeds.0.proj.weight": torch.ones(2, 3),
    "blocks.0.0.attn.qkv.weight": torch.ones(6, 2),
    "head.weight": torch.ones(4, 2),
}
OPENMMLAB = {
    "backbone.patch_embeds.0.projection.weight": torch.ones(2, 3),
    "backbone.stages.0.0.attn.qkv.weight": torch.ones(6, 2),
    "head.fc.weight": torch.ones(4, 2),
}
SEGMENTER = {
    "backbone.patch_embeds.0.proj.weight": torch.ones(2, 3),
    "neck.lateral_convs.0.conv.weight": torch.ones(2, 3),
    "decode_head.conv_seg.weight": torch.ones(4, 2),
}


def under(prefix: str, weights: dict[str, torch.Tensor] = MODEL) -> dict[str, Any]:
    return {prefix + name: weight for name, weight in weights.items()}


LOSS = {"criterion.weight": torch.ones(4)}


@pytest.mark.parametrize(
    ("content", "expected", "left_out"),
    [
        (under("module."), MODEL, []),
        (under("_orig_mod.module."), MODEL, []),
        (under("model.") | LOSS, MODEL, ["criterion.weight"]),
        (under("model.") | {"loss_fn.teacher.conv.weight": torch.ones(3, 3)}, MODEL, ["loss_fn.teacher.conv.weight"]),
        (under("net.encoder.") | {"val_acc.total": torch.tensor(1)}, MODEL, ["val_acc.total"]),
        (under("backbone."), MODEL, []),
        (under("model.backbone."), MODEL, []),
        (OPENMMLAB, OPENMMLAB, []),
        (under("model.", OPENMMLAB) | LOSS, OPENMMLAB, ["criterion.weight"]),
        (SEGMENTER, SEGMENTER, []),
        (under("module.", SEGMENTER), SEGMENTER, []),
        (under("model.") | under("model_ema.module."), MODEL, list(under("model_ema.module."))),
        (MODEL | under("ema."), MODEL, list(under("ema."))),
        (OPENMMLAB | under("ema.", OPENMMLAB), OPENMMLAB, list(under("ema.", OPENMMLAB))),
        (
            {name.replace("blocks.0.0.", "blocks.0._checkpoint_wrapped_module.0."): MODEL[name] for name in MODEL},
            MODEL,
            [],
        ),
        (
            {
                f"_fsdp_wrapped_module.{name.replace('attn', '_fsdp_wrapped_module.attn')}": MODEL[name]
                for name in MODEL
            },
            MODEL,
            [],
        ),
        ({"state_dict": under("_forward_module.model."), "epoch": 3}, MODEL, []),
        ({"model": "alt_gvt_small", "state_dict": MODEL}, MODEL, []),
        ({"model": MODEL, "state_dict": MODEL}, MODEL, []),
        ({"model_ema": under("module.") | {"n_averaged": torch.tensor(3)}}, MODEL, []),
        ({"network": MODEL, "optimizer": {"state": {}}}, MODEL, []),
        ({"model": {"state_dict": MODEL}}, MODEL, []),
        ({"model": {"depths": [1]}, "state_dict": MODEL}, MODEL, []),
        ({"model": StandIn("timm.models.twins.Twins"), "state_dict": MODEL}, MODEL, []),
    ],
)
def test_prefix_precedes_the_name_of_the_first_weights(content, expected, left_out):
    weights, names = unwrap_weights(content, "a.pth")
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in expected.items()
    }
    assert names == left_out


@pytest.mark.parametrize(
    "content",
    [
        {"model": {}, "model_ema": MODEL},
        {"model": under("model.") | {f"model_ema.{name}": MODEL[name] for name in MODEL}},
        under("") | under("ema_model.module."),
    ],
)
def test_averaged_weights_are_recognized_by_key_or_prefix(content):
    weights, _ = unwrap_weights(content, "a.pth", averaged=True)
    assert weights.keys() == MODEL.keys()


def in_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            under("student.") | under("teacher."),
            r"several models, under names that begin with 'student\.', 'teacher\.'",
        ),
        (MODEL | under("teacher."), r"several models, under names that begin with '', 'teacher\.': save only the one"),
        ({"student": MODEL, "teacher": MODEL | {}}, "weights under each of student, teacher: save only those"),
        ({"state_dict": MODEL, "model": MODEL | {}}, "weights under each of state_dict, model: save only those"),
        ({"model": 3, "model_ema": MODEL}, "holds int under 'model', where the weights should be"),
        ({"model": StandIn("torch.nn.Module"), "ema": MODEL}, r"holds torch\.nn\.Module under 'model'"),
        ({"state_dict": None, "model": MODEL}, "holds NoneType under 'state_dict', where the weights should be"),
        ({"state_dict": "a", "model_ema": MODEL}, "holds str under 'state_dict'"),
        # A separate classifier of the training script is not part of the backbone, and must not be dropped silently.
        (
            under("backbone.", {name: MODEL[name] for name in list(MODEL)[:2]}) | {"head.weight": torch.ones(4, 2)},
            r"begin with 'backbone\.', and beside it head\.weight, which may be layers of it: save the model alone",
        ),
        (
            under("model.") | {"projector.weight": torch.ones(4, 2)},
            r"beside it projector\.weight, which may be layers",
        ),
        (under("model.") | {"aux_classifier.bias": torch.ones(4)}, r"beside it aux_classifier\.bias"),
        (MODEL | {"head.weight": 3}, r"got head\.weight \(int\)"),
        (MODEL | {"_orig_mod.head.weight": MODEL["head.weight"]}, "under the same names with and without wrappers"),
        (MODEL | {3: torch.ones(1)}, "must map names to tensors, but the keys 3 are not strings"),
        (in_itself(), r"got model \(dict\)"),
        ({"model": []}, "holds list under 'model'"),
    ],
)
def test_several_sets_of_weights_are_refused_by_name(content, message):
    with pytest.raises(ValueError, match=message) as error:
        unwrap_weights(content, "a.pth")
    assert len(str(error.value).splitlines()) == 1


def test_missing_averaged_weights_are_named():
    with pytest.raises(ValueError, match="holds no averaged weights"):
        unwrap_weights({"model": MODEL}, "a.pth", averaged=True)


def test_weights_left_out_are_logged(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(logger, "warning", said.append)
    torch.save({"state_dict": under("model.") | LOSS}, tmp_path / "a.ckpt")
    assert read_weights(tmp_path / "a.ckpt").keys() == MODEL.keys()
    assert said == [f"{tmp_path / 'a.ckpt'}: ignored weights that are not part of the model: criterion.weight."]


def test_names_in_messages_are_one_line(tmp_path):
    torch.save({"a\nb": 3, "c" * 1000: 4}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"got 'a\\nb \(int\)', 'ccc") as error:
        read_weights(tmp_path / "a.pth")
    assert len(str(error.value)) < 1000


def measured(read: Callable[[], Any], results: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    content = read()
    seconds = time.perf_counter() - start
    results.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, len(content["model"])))


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_large_file_takes_no_more_time_and_memory_than_in_pytorch(tmp_path, zipped):
    """The file has a hundred million numbers. The memory of a process includes memory-mapped files."""
    file = tmp_path / "weights.pth"
    weights = {f"{number}.weight": torch.full((1000, 1000), float(number)) for number in range(100)}
    torch.save({"model": weights}, file, _use_new_zipfile_serialization=zipped)
    context = multiprocessing.get_context("fork")
    seconds, megabytes = [], []
    for read in (partial(read_file, file), partial(torch.load, file, weights_only=True, mmap=zipped)):
        results = context.Queue()
        for _ in range(3):
            process = context.Process(target=measured, args=(read, results))
            process.start()
            process.join()
        measures = [results.get() for _ in range(3)]
        seconds.append(min(measure[0] for measure in measures))
        megabytes.append(min(measure[1] for measure in measures))
        assert {measure[2] for measure in measures} == {100}
    print(f"zip: {zipped}, seconds {seconds}, MB {megabytes}")
    # The limits are generous, because other processes may be running.
    assert seconds[0] < 2 * seconds[1] + 0.2
    assert megabytes[0] < 1.2 * megabytes[1] + 20
