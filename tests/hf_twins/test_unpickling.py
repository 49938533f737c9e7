"""The interpreter of pickles, compared with PyTorch's loader for valid files, and attacked by malicious ones."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import pickle
import re
import struct
import sys
import threading
import tracemalloc
import types
import uuid
from typing import Any

import numpy as np
import pytest
import torch
from audit import audited
from torch import nn

from hf_twins.checkpoints import StandIn, read_checkpoint, unpickling
from hf_twins.checkpoints.unpickling import DamagedPickleError, Global, RefusedPickleError, load_pickle


# Valid files


class Settings(dict):
    """Like the classes of Lightning and mmengine, whose attributes are items."""

    __getattr__ = dict.__getitem__


class Color(enum.Enum):
    RED = 1


class Names(collections.UserList):
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1

    class Inner:
        def method(self) -> None:
            pass


def tied() -> list[torch.Tensor]:
    weight = torch.randn(3, 4)
    return [weight, weight, weight[1:], weight.T]


def itself() -> list[Any]:
    content: list[Any] = [1]
    content.append(content)
    return content


def trained() -> torch.optim.Optimizer:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


HONEST = {
    "float32": torch.randn(3, 4),
    "float64": torch.randn(2).double(),
    "float16": torch.randn(5).half(),
    "bfloat16": torch.randn(5).bfloat16(),
    "float8": torch.randn(5).to(torch.float8_e4m3fn),
    "int64": torch.arange(5),
    "int8": torch.arange(5, dtype=torch.int8),
    "uint16": torch.arange(5).to(torch.uint16),
    "bool": torch.tensor([True, False]),
    "complex64": torch.randn(3, dtype=torch.complex64),
    "a number in a tensor": torch.tensor(3.5),
    "an empty tensor": torch.empty(0, 3),
    "transposed": torch.randn(3, 4).T,
    "strided": torch.randn(10)[1::3],
    "expanded": torch.randn(1).expand(100),
    "tied": tied(),
    "requires gradients": torch.randn(3, requires_grad=True),
    "parameter": nn.Parameter(torch.randn(3)),
    "tensor with attributes": torch.randn(2),
    "parameter with attributes": nn.Parameter(torch.randn(2)),
    "state_dict": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(),
    "optimizer": trained().state_dict(),
    "scheduler": torch.optim.lr_scheduler.StepLR(trained(), 3).state_dict(),
    "random state": torch.get_rng_state(),
    "numpy's random state": np.random.RandomState(0).get_state(),
    "numpy number": np.float64(3.5),
    "numpy array": np.arange(5.0),
    "text": "ä\u4e2d\ud800",
    "long text": "a" * 300,
    "bytes": b"\xff" * 300,
    "bytearray": bytearray(b"abc"),
    "integers": [0, 1, -1, 255, 65536, -(2**31), 2**63, 10**400],
    "floats": [0.5, float("inf"), -0.0],
    "constants": (None, True, False, ()),
    "tuples": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "lists": [[], [[1]], list(range(2000))],
    "a list in itself": itself(),
    "dictionaries": {1: {2: {}}, "a": 1, None: 2, (1, "b"): 3, 1.5: 4, b"c": 5},
    "OrderedDict": collections.OrderedDict(b=1, a=2),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "Counter": collections.Counter("aab"),
    "set": {1},
    "frozenset": frozenset({1}),
    "complex": 1j,
    "Namespace": argparse.Namespace(lr=0.1, output_dir=pathlib.PurePosixPath("a")),
    "path": pathlib.PurePosixPath("a/b"),
    "dates": [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)],
    "numbers of the standard library": [decimal.Decimal("0.1"), fractions.Fraction(1, 3)],
    "UUID": uuid.UUID(int=1),
    "partial": functools.partial(nn.LayerNorm, eps=1e-6),
    "regular expression": re.compile("a"),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "subclass of dict": Settings(a=1),
    "subclass of list": Names([1]),
    "enum": Color.RED,
    "object with slots": Slots(),
    "object of a class in a class": Slots.Inner(),
    "class": nn.GELU,
    "function": nn.functional.relu,
    "method": Slots.Inner().method,
    "module": nn.Linear(2, 2),
    "Size": torch.Size([2, 3]),
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "error": ValueError("a"),
    "range": [range(3), slice(1, 2)],
}
for _name in ("tensor with attributes", "parameter with attributes"):
    HONEST[_name].note = "kept by PyTorch"
# Functions that create objects of another class.
MADE_BY = {
    "numpy.ndarray": ("numpy._core.multiarray._reconstruct", "numpy._core.numeric._frombuffer"),
    "numpy.float64": ("numpy._core.multiarray.scalar",),
    "re.Pattern": ("re._compile",),
    "builtins.bytes": ("_codecs.encode",),
    "builtins.method": (f"{__name__}.Slots.Inner.method",),
}


def assert_same(ours: Any, expected: Any, depth: int = 0) -> None:
    if isinstance(expected, torch.Tensor):
        assert ours.dtype == expected.dtype
        assert ours.stride() == expected.stride()
        # Tensors of some dtypes cannot be compared.
        comparable = torch.float32 if expected.dtype in (torch.float8_e4m3fn, torch.uint16) else expected.dtype
        assert torch.equal(ours.to(comparable), expected.detach().to(comparable))
    elif isinstance(ours, StandIn):
        if isinstance(ours, Global):
            kinds = [str(expected), f"{getattr(expected, '__module__', '')}.{getattr(expected, '__qualname__', '')}"]
            if isinstance(expected, enum.Enum):
                # Some versions of Python (3.11.2) save a member as an attribute of its class.
                kinds.append(f"{type(expected).__module__}.{type(expected).__qualname__}.{expected.name}")
        else:
            kinds = [f"{type(expected).__module__}.{type(expected).__qualname__}"]
        assert ours.name in [*kinds, *(name for kind in kinds for name in MADE_BY.get(kind, ()))]
    elif isinstance(expected, dict):
        assert type(ours) is dict
        assert len(ours) == len(expected)
        for (our_key, our_value), (key, value) in zip(ours.items(), expected.items()):
            assert isinstance(our_key, StandIn) or our_key == key
            assert_same(our_value, value, depth + 1)
    elif isinstance(expected, list | tuple):
        assert type(ours) is type(expected)
        assert len(ours) == len(expected)
        if depth < 5:
            for our_value, value in zip(ours, expected):
                assert_same(our_value, value, depth + 1)
    else:
        assert type(ours) is type(expected)
        assert ours == expected


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.filterwarnings("ignore")  # PyTorch's warnings about its own files
def test_valid_file_is_read_as_by_pytorch(tmp_path, kind):
    content = {"content": HONEST[kind], "beside": torch.ones(2)}
    file = tmp_path / "checkpoint.pth"
    for protocol, zipped in ((2, True), (3, True), (4, True), (5, True), (2, False), (4, False)):
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        # PyTorch cannot read everything that it writes in the older format.
        expected = content if not zipped and kind in ("uint16", "float8") else torch.load(file, weights_only=False)
        assert_same(read_checkpoint(file), expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Written by Python 3.13.0, in which pathlib's classes have another module.
        (
            b"\x80\x02cargparse\nNamespace\nq\x00)\x81q\x01}q\x02X\n\x00\x00\x00output_dirq\x03cpathlib._local\nPosixPath\n"
            b"q\x04X\x07\x00\x00\x00outputsq\x05\x85q\x06Rq\x07sb.",
            "<argparse.Namespace>",
        ),
        (
            b"\x80\x04\x95[\x00\x00\x00\x00\x00\x00\x00\x8c\x08argparse\x94\x8c\tNamespace\x94\x93\x94)\x81\x94}\x94\x8c\n"
            b"output_dir\x94\x8c\x0epathlib._local\x94\x8c\tPosixPath\x94\x93\x94\x8c\x07outputs\x94\x85\x94R\x94sb.",
            "<argparse.Namespace>",
        ),
        # Written by Python 2.7.18, where str is bytes, and builtins have other names.
        (
            b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01(]q\x02(U\x01aq\x03K\x01e]q\x04(U\x01bq\x05c__builtin__\nxrange\nq"
            b"\x06K\x00K\x03K\x01\x87q\x07Rq\x08ee\x85q\tRq\n.",
            "{'a': 1, 'b': <builtins.range>}",
        ),
    ],
    ids=["3.13", "3.13, protocol 4", "2.7"],
)
def test_pickles_of_other_versions_of_python_are_read(content, expected):
    assert repr(load_pickle(content)) == expected


# Attacks


class Call:
    """A malicious object, which calls a function when it is loaded by `pickle`."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def named(name: str, *arguments: Any) -> bytes:
    """A pickle that calls the function with this name, by the older and the newer opcode for names."""
    module, _, function = name.rpartition(".")
    content = pickle.dumps(arguments, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{function}\n".encode() + content + b"R."


# Names that are refused, although they would do nothing here, because a valid file does not need them.
REFUSED = (
    "os.system",
    "posix.system",
    "nt.system",
    "os.popen",
    "os.execv",
    "subprocess.Popen",
    "subprocess.check_output",
    "commands.getoutput",
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "builtins.open",
    "builtins.__import__",
    "builtins.globals",
    "builtins.setattr",
    "builtins.getattr.__call__",
    "__builtin__.eval",
    "__builtin__.execfile",
    "importlib.import_module",
    "runpy.run_path",
    "runpy._run_code",
    "pty.spawn",
    "socket.create_connection",
    "webbrowser.open",
    "shutil.rmtree",
    "code.InteractiveInterpreter",
    "timeit.timeit",
    "cProfile.run",
    "pdb.run",
    "bdb.Bdb.run",
    "asyncio.run",
    "ctypes.CDLL",
    "marshal.loads",
    "pickle.loads",
    "_pickle.loads",
    "types.FunctionType",
    "types.CodeType",
    "operator.methodcaller",
    "functools.reduce",
    "functools.partialmethod",
    "collections.namedtuple.__call__",
    "logging.config.listen",
    "sys.modules.clear",
    "sys.settrace",
    "pathlib.Path.unlink",
    "typing.get_type_hints.__globals__",
    "zipimport.zipimporter",
    "pydoc.locate",
    "pkgutil.resolve_name",
    "inspect.stack",
    "gc.get_objects",
    "_io.FileIO",
    "io.open",
    "io.open_code",
    "lib2to3.pgen2.pgen.generate_grammar",
    "distutils.file_util.write_file",
    "venv.create",
    "ensurepip.bootstrap",
)
# Names that would run code or write files in other loaders, but are only names here.
HARMLESS = (
    "torch.load",
    "torch.hub.load",
    "torch.serialization.load",
    "torch.jit.load",
    "torch.fx.graph_module._forward_from_src",
    "torch._inductor.codecache.compile_file",
    "torch.utils.collect_env.run",
    "torch.os.system",
    "torch.serialization.os.system",
    "numpy.load",
    "numpy.testing._private.utils.runstring",
    "numpy.f2py.crackfortran.getlincoef",
    "pip._internal.cli.main.main",
    "setuptools.sandbox.execfile",
    "transformers.dynamic_module_utils.get_class_from_dynamic_module",
    "hf_twins.checkpoints.unpickling.StandIn",
    "__main__.anything",
    "a_module_that_is_not_there.f",
)


@pytest.mark.parametrize("name", REFUSED)
def test_name_that_runs_code_is_refused(name):
    with audited() as events, pytest.raises(RefusedPickleError):
        load_pickle(named(name, "touch /tmp/never"))
    assert events == []


@pytest.mark.parametrize("name", HARMLESS)
def test_other_name_is_only_a_name(name):
    modules = set(sys.modules)
    with audited() as events:
        loaded = load_pickle(named(name, "touch /tmp/never"))
    assert type(loaded) is StandIn
    assert loaded.name == name
    assert events == []
    assert set(sys.modules) == modules


def opcodes(*parts: bytes | str) -> bytes:
    return b"\x80\x02" + b"".join(part.encode("latin-1") if isinstance(part, str) else part for part in parts) + b"."


REBUILD = "ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # This would change the attributes of a function for the entire process.
        (opcodes(REBUILD, "}X\x0c\0\0\0__defaults__)sb"), "sets attributes of torch._utils._rebuild_tensor_v2"),
        (opcodes("ccollections\nOrderedDict\n", "}X\x01\0\0\0aK\x01sb"), "sets attributes of collections.OrderedDict"),
        (opcodes("ctorch\nsave\n", "X\x01\0\0\0aK\x01s"), "sets items of torch.save"),
        (opcodes("ctorch\nsave\n", "(X\x01\0\0\0aK\x01u"), "sets items of torch.save"),
        (opcodes("ctorch\nsave\n", "K\x01a"), "appends to torch.save"),
        (opcodes("K\x01", "K\x01a"), "appends to int"),
        (opcodes(")", "(K\x01e"), "appends to tuple"),
        (opcodes("K\x01)R"), "calls int"),
        (opcodes("ctorch\nsave\n", "K\x01R"), "calls torch.save"),
        (opcodes("}", "]K\x01s"), "has list for a key"),
        (opcodes("}", b"\x8a\x09" + b"\1" * 9, "K\x01s"), "more than 64 bits"),
        (opcodes(")Q"), "do not fit"),
        (opcodes("X\x04\0\0\0file\x85Q"), "refers to something outside"),
        (opcodes("X\x07\0\0\0storageK\x01K\x01\x87Q"), "refers to something outside"),
        (b"\x80\x06N.", "protocol 6"),
        (b"(dp0\n.", "opcode DICT, which torch.save does not write"),
        (b"cposix\nsystem\n(S'id'\ntR.", "posix.system"),
        (b"(S'id'\niposix\nsystem\n.", "opcode STRING"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x02Ppersistent\n.", "opcode PERSID"),
        (b"\x80\x02h\x05.", "do not fit"),
        (b"\x80\x020.", "do not fit"),
        (b"\x80\x02.", "do not fit"),
        (b"\x80\x02N", "has no end"),
        (b"\x80\x02X\x04\0\0\0abc", "has no end"),
        (b"\x80\x02]Q.", "refers to something outside of it by list"),
        (named("torch.serialization._get_layout", "\x1b[2J"), "names a class by something other than a name"),
        (named("builtins.getattr", 1, "\x1b[2J\n"), "names a class by something other than a name"),
        (named("builtins.getattr", 1, "a" * 300), "names a class by something other than a name"),
        (named("collections.OrderedDict", ["ab"]), "has str for a key and its value"),
        (b"\x80\x04K\x01K\x02\x93.", "names a class by something other than text"),
        (b"\x80\x04\x8c\x01a\x8c\x02b\n\x93.", "names a class by something other than a name"),
        (named("collections.OrderedDict", {"a": 1}, 3)[:-2] + b"\x81b.", "do not fit"),
    ],
)
def test_opcodes_that_access_external_objects_are_refused(content, message):
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    with audited() as events, pytest.raises((DamagedPickleError, RefusedPickleError), match=message):
        load_pickle(content)
    assert events == []
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def deep(opcode: bytes, depth: int = 30_000) -> bytes:
    return opcodes("K\x01", opcode * depth)


@pytest.mark.parametrize(
    "content",
    [
        opcodes(b"\x8d" + struct.pack("<Q", 2**60), "a"),
        opcodes(b"\x8e" + struct.pack("<Q", 2**40), "a"),
        opcodes(b"\x8b" + struct.pack("<i", 2**31 - 1), "a"),
        opcodes("]r\xff\xff\xff\x7f"),
        named("builtins.bytearray", 10**12),
        named("builtins.bytes", 10**12),
        named("builtins.range", 10**12),
        named("builtins.list", "a"),
        named("torch.Size", 10**12),
        named("torch._utils._rebuild_meta_tensor_no_storage", 1, (10**9, 10**9), (10**9, 1), False),
        named("torch._utils._rebuild_sparse_tensor", None, (None, None, (10**9, 10**9))),
        deep(b"\x85"),
        opcodes("}K\x01", b"\x85" * 50_000, "K\x01s"),
        opcodes("(" * 30_000),
        opcodes("]" * 30_000, "a" * 29_999),
        # A list that is used repeatedly.
        opcodes("]q\0(", "]" * 1000, "e0", ("ccollections\nOrderedDict\nh\0\x85R0" * 10_000), "N"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_memory_and_depth_are_bounded_by_the_file(content):
    tracemalloc.start()
    try:
        load_pickle(content)
    except DamagedPickleError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 40e6


def test_keys_that_take_long_to_compare_become_stand_ins():
    content = {("a", 1): 1, "a" * 2000: 2, b"a" * 2000: 3, "a": 4}
    assert repr(load_pickle(pickle.dumps(content, 4))) == "{<tuple>: 1, <str>: 2, <bytes>: 3, 'a': 4}"


def test_opcodes_are_limited(monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_OPCODES", 1000)
    load_pickle(opcodes("]", "(K\x01e" * 300))
    with pytest.raises(DamagedPickleError, match="more than 1000 opcodes"):
        load_pickle(opcodes("]", "(K\x01e" * 400))
    pairs = pickle.dumps([("a", 1)] * 100, protocol=2)[2:-1]
    again = opcodes(pairs, b"q\xff0", b"ccollections\nOrderedDict\nh\xff\x85R0" * 20, "N")
    monkeypatch.setattr(unpickling, "MAX_OPCODES", 1500)
    with pytest.raises(DamagedPickleError, match="copies the same items again and again"):
        load_pickle(again)


def test_files_are_read_in_threads_without_shared_state(tmp_path):
    """One file has a forbidden name, and the others have all allowed ones."""
    contents = [{"args": argparse.Namespace(number=number), "w": torch.full((50,), number)} for number in range(7)]
    files = [tmp_path / f"{number}.pth" for number in range(8)]
    for file, content in zip(files, [*contents, {"args": Call(os.system, ("true",))}]):
        torch.save(content, file)
    allowed = torch.serialization.get_safe_globals()
    failures: list[Any] = []

    def read(number: int) -> None:
        for _ in range(20):
            try:
                content = read_checkpoint(files[number])
            except ValueError as error:
                if number != 7 or "posix.system" not in str(error):
                    failures.append(error)
            else:
                if number == 7 or not torch.equal(content["w"], torch.full((50,), number)):
                    failures.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert torch.serialization.get_safe_globals() == allowed
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace was not an allowed"):
        torch.load(files[0], weights_only=True)
