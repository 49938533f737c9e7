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
"""An interpreter of pickles that imports and calls nothing that a pickle names.

A pickle is a program that names classes and functions and calls them. Here, names are never imported. The few names
that tensors and dictionaries are written with are mapped to functions of this module. Every other object that a pickle
builds becomes a [`StandIn`], which only keeps the name of its class.
"""

import io
import mmap
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

import torch


# A training script's checkpoint has ten thousand to a hundred thousand opcodes. Each may take a few hundred bytes of
# memory.
MAX_OPCODES = 5_000_000
# Maximum number of arguments of a call. Without a limit, a small file that repeats a call with many arguments could
# keep the reader busy for hours.
MAX_ARGUMENTS = 100
MAX_DIMENSIONS = 64
MAX_NAME_LENGTH = 200
MAX_KEY_LENGTH = 1000

# Names in Python and its standard library that only hold data. Other names in them can do harm and are not needed in a
# checkpoint, so a file with such a name is refused, although it would not be imported here.
STANDARD_DATA = re.compile(
    r"""
    argparse\.Namespace | array\.(array|_array_reconstructor) | _codecs\.encode
    | builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|getattr|int|list|object|range|set|slice|str|tuple|type
        |abs|len|max|min|round|sorted|sum|Ellipsis|NoneType|NotImplemented|\w*Error|\w*Exception|\w*Warning)
    | (collections|datetime|decimal|enum|fractions|ipaddress|itertools|math|numbers|pathlib|pathlib\._local|statistics|typing
        |uuid|zoneinfo)\.\w+
    | copyreg\.(_reconstructor|__newobj__|__newobj_ex__) | functools\.partial | inspect\._empty | _?io\.(BytesIO|StringIO)
    | logging\.(Logger|getLogger) | operator\.(?!methodcaller)\w+ | signal\.Signals | random\.Random | re\.(_compile|RegexFlag)
    | time\.struct_time | types\.(SimpleNamespace|MappingProxyType|GenericAlias)
    """,
    re.VERBOSE,
)
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt8": torch.quint8,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
    # An untyped storage consists of bytes; the tensors in it specify the dtype.
    "Untyped": torch.uint8,
}


class UnreadableFileError(ValueError):
    """A file does not contain weights; the message says what it is and what to do."""


class RefusedPickleError(UnreadableFileError):
    """A pickle names something that runs code; the message is the name."""


class DamagedPickleError(UnreadableFileError):
    """A pickle is not one that `torch.save` writes; the message says why."""


class CutOffPickleError(DamagedPickleError):
    """A pickle is truncated."""


class StandIn:
    """Stands in for an object in a pickle, with the name of its class or of the function that would have created it."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Global(StandIn):
    """The name of a class or function in a pickle."""

    __slots__ = ()


@dataclass(frozen=True)
class Storage:
    """Memory of tensors; without `content`, tensors become stand-ins.

    `is_foreign` means that it was written in another byte order, and its numbers of type `dtype` were byte-swapped.
    """

    dtype: torch.dtype
    content: torch.UntypedStorage | None
    is_foreign: bool = False


@dataclass(frozen=True)
class StorageId:
    """A pickle's reference to a storage of `numel` numbers, or to a view of `view_numel` numbers from `view_offset` on."""

    key: str
    dtype: torch.dtype
    numel: int
    view_offset: int = 0
    view_numel: int | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def load_pickle(
    content: bytes | IO[bytes] | mmap.mmap, load_storage: Callable[[StorageId], Storage] | None = None
) -> Any:
    """Read a pickle of protocol 2 to 5 as tensors, dictionaries, lists, tuples, numbers, text, and stand-ins.

    Args:
        content: the pickle, or a file that is read from its current position to the end of the pickle.
        load_storage: returns the memory of tensors.

    Raises:
        RefusedPickleError: if the pickle names something that runs code.
        DamagedPickleError: if it is not a valid pickle, or has more than `MAX_OPCODES` opcodes.
        CutOffPickleError: if the pickle is truncated.
        UnreadableFileError: if `load_storage` raises it.
    """
    interpreter = Interpreter(load_storage)
    file = cast(IO[bytes], io.BytesIO(content) if isinstance(content, bytes) else content)
    try:
        for _ in range(MAX_OPCODES):
            if not (code := file.read(1)):
                raise CutOffPickleError("it has no end")
            opcode = OPCODES[code]
            handle = HANDLERS.get(opcode.name)
            if handle is None:
                raise DamagedPickleError(f"it has the opcode {opcode.name}, which torch.save does not write")
            handle(interpreter, read_argument(opcode, file))
            if opcode.name == "STOP":
                return interpreter.stack.pop()
        raise DamagedPickleError(f"it has more than {MAX_OPCODES} opcodes")
    except UnreadableFileError:
        raise
    except Exception as error:
        # Arbitrary bytes cause all kinds of errors: an unknown opcode, an empty stack, an argument of the wrong type,
        # or a tensor that PyTorch cannot create.
        raise DamagedPickleError("its opcodes do not fit each other") from error


def read_argument(opcode: pickletools.OpcodeInfo, file: IO[bytes]) -> Any:
    if opcode.arg is None:
        return None
    try:
        return opcode.arg.reader(file)
    except Exception as error:
        if file.read(1):
            raise
        raise CutOffPickleError("it has no end") from error


class Interpreter:
    """The state of reading one pickle. Opcodes change nothing outside of it."""

    def __init__(self, load_storage: Callable[[StorageId], Storage] | None):
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # A pickle can use an argument repeatedly. Without a limit, a few bytes would copy a long list each time.
        self.copies_left = MAX_OPCODES

    # The methods below implement opcodes. Those for constants and for the structure of the bytes are in the table
    # `HANDLERS`.

    def check_protocol(self, protocol: int) -> None:
        if not 2 <= protocol <= 5:
            raise DamagedPickleError(f"it is a pickle of protocol {protocol}, but only 2 to 5 are read")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def pop_mark(self, _: None = None) -> list[Any]:
        items = self.stack
        self.stack = self.outer_stacks.pop()
        return items

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def make_tuple(self, length: int) -> None:
        items = tuple(self.stack[-length:])
        if len(items) < length:
            raise DamagedPickleError("its stack is too short")
        self.stack[-length:] = [items]

    def make_frozenset(self, _: None) -> None:
        self.pop_mark()
        self.push(StandIn("builtins.frozenset"))

    def append(self, _: None) -> None:
        item = self.stack.pop()
        self.extend_last([item])

    def extend_last(self, items: list[Any]) -> None:
        """Extend a list; items of a stand-in are dropped."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not StandIn:
            raise DamagedPickleError(f"it appends to {kind_of(target)}")

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items_of_last([key, value])

    def set_items_of_last(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                set_item(target, key, value)
        elif type(target) is not StandIn:
            raise DamagedPickleError(f"it sets items of {kind_of(target)}")

    def build(self, _: None) -> None:
        """Drop the attributes of an object, because stand-ins, and dictionaries in place of subclasses, have none."""
        self.stack.pop()
        if type(self.stack[-1]) not in (StandIn, dict, list):
            raise DamagedPickleError(f"it sets attributes of {kind_of(self.stack[-1])}")

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickleError("it names a class by something other than text")
        # Protocols up to 2 use the module names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = checked_name(f"{module}.{name}")
        if full_name.partition(".")[0] in sys.stdlib_module_names and not STANDARD_DATA.fullmatch(full_name):
            raise RefusedPickleError(full_name)
        self.push(Global(full_name))

    def global_of_text(self, names: str) -> None:
        self.push_global(*names.split(" ", 1))

    def global_of_stack(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def call(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.result_of(function, arguments))

    def call_with_keywords(self, _: None) -> None:
        self.stack.pop()
        self.call(None)

    def load_persistent(self, _: None) -> None:
        persistent_id = self.stack.pop()
        if type(persistent_id) is not tuple or len(persistent_id) > MAX_ARGUMENTS:
            raise DamagedPickleError(f"it refers to something outside of it by {kind_of(persistent_id)}")
        kind, *details = persistent_id
        if kind == "module":
            # A class, of which the older format also stores the source code.
            self.push(details[0])
        elif kind == "storage" and self.load_storage is not None:
            self.push(self.load_storage(parse_storage_id(*details)))
        else:
            raise DamagedPickleError("it refers to something outside of it other than a tensor storage")

    def result_of(self, function: Any, arguments: Any) -> Any:
        """The result of a call: a tensor or dictionary built by a function of this module, or a stand-in."""
        if not isinstance(function, StandIn) or type(arguments) is not tuple:
            raise DamagedPickleError(f"it calls {kind_of(function)}")
        if type(function) is Global and function.name in BUILDERS:
            if len(arguments) > MAX_ARGUMENTS:
                raise DamagedPickleError(f"it calls {function.name} with {len(arguments)} arguments")
            return BUILDERS[function.name](self, *arguments)
        return StandIn(function.name)


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an item, unless hashing the key could take forever, as for very large integers.

    Tuples, whose hashes a file can make collide, and long strings cannot be names of weights, and become stand-ins.
    """
    if type(key) is tuple or (isinstance(key, str | bytes) and len(key) > MAX_KEY_LENGTH):
        key = StandIn(type(key).__name__)
    if not isinstance(key, str | bytes | int | float | StandIn | torch.Tensor | None):
        raise DamagedPickleError(f"it has {kind_of(key)} for a key")
    if isinstance(key, int) and key.bit_length() > 64:
        raise DamagedPickleError("it has a number of more than 64 bits for a key")
    target[key] = value


def checked_name(name: Any) -> str:
    """Check a name in a pickle, which may appear in a message."""
    if type(name) is not str or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise DamagedPickleError("it names a class by something other than a name")
    return name


def kind_of(value: Any) -> str:
    return value.name if isinstance(value, StandIn) else type(value).__name__


def parse_storage_id(storage_type: Any, key: Any, location: Any, numel: Any, view: Any = None) -> StorageId:
    """Parse a reference to a storage, and ignore the device that it was saved from."""
    # Older versions include the device type: torch.cuda.FloatStorage.
    match = re.fullmatch(r"torch\.(?:\w+\.)?(\w+)Storage", storage_type.name)
    is_key = type(key) is str and len(key) <= MAX_NAME_LENGTH
    if match is None or match[1] not in STORAGE_DTYPES or not is_key or not is_size(numel):
        raise DamagedPickleError("it has a tensor storage that is not one of PyTorch's")
    _, view_offset, view_numel = view or (None, 0, None)
    return StorageId(key, STORAGE_DTYPES[match[1]], numel, view_offset, view_numel)


def is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


# Replacements of the functions that tensors and dictionaries are written with.


def build_dict(interpreter: Interpreter, *arguments: Any) -> dict[Any, Any]:
    # A defaultdict has a factory before its items, and Python 2 wrote each item as a list of two elements.
    items = next((each for each in arguments if isinstance(each, dict | list)), {})
    interpreter.copies_left -= len(items)
    if interpreter.copies_left < 0:
        raise DamagedPickleError("it copies the same items again and again")
    built: dict[Any, Any] = {}
    for item in items.items() if isinstance(items, dict) else items:
        # Only tuples and lists are unpacked, because a tensor can claim to have any number of elements.
        if type(item) not in (tuple, list):
            raise DamagedPickleError(f"it has {kind_of(item)} for a key and its value")
        key, value = item
        set_item(built, key, value)
    return built


def build_tensor(interpreter: Interpreter, storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Any:
    """Replaces `_rebuild_tensor_v2`, whose other arguments are `requires_grad`, hooks, and bits of complex views."""
    return tensor_in_storage(storage, storage.dtype, offset, size, stride, *others[2:])


def build_tensor_of_dtype(
    interpreter: Interpreter,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *others: Any,
) -> Any:
    if dtype.name not in DTYPES:
        return StandIn(dtype.name)
    if storage.is_foreign and storage.dtype != DTYPES[dtype.name]:
        return StandIn(f"{dtype.name} in another byte order")
    return tensor_in_storage(storage, DTYPES[dtype.name], offset, size, stride, *others)


def tensor_in_storage(
    storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any, metadata: Any = None
) -> torch.Tensor | StandIn:
    """Create a tensor as a view of a storage, after checking that the storage contains all of its elements."""
    if storage.content is None:
        return StandIn("torch.Tensor")
    if metadata:
        return StandIn("view of a complex tensor")
    if len(size) > MAX_DIMENSIONS or len(size) != len(stride) or not all(map(is_size, (offset, *size, *stride))):
        raise DamagedPickleError("it has a tensor with an invalid shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if 0 not in size and (last + 1) * dtype.itemsize > storage.content.nbytes():
        raise DamagedPickleError("it has a tensor that is larger than its storage")
    # An empty tensor may have any offset.
    offset = 0 if 0 in size else offset
    return torch.empty(0, dtype=dtype).set_(storage.content, offset, size, stride)


def build_quantized_tensor(interpreter: Interpreter, storage: Any, *others: Any) -> StandIn:
    return StandIn(str(storage.dtype))


def build_layout(interpreter: Interpreter, name: str) -> StandIn:
    return StandIn(checked_name(name))


def build_sparse_tensor(interpreter: Interpreter, layout: StandIn, *others: Any) -> StandIn:
    return StandIn(layout.name)


def build_tensor_without_values(interpreter: Interpreter, *arguments: Any) -> StandIn:
    return StandIn("without values")


def build_parameter(interpreter: Interpreter, data: Any, *others: Any) -> Any:
    if not isinstance(data, torch.Tensor | StandIn):
        raise DamagedPickleError(f"it has a parameter that holds {kind_of(data)}")
    return data


def build_tensor_of_type(
    interpreter: Interpreter, function: Any, tensor_type: Any, arguments: Any, *others: Any
) -> Any:
    """Drop the attributes of a tensor. Other tensor subclasses become stand-ins, as their elements may have another meaning."""
    if tensor_type.name not in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"):
        return StandIn(tensor_type.name)
    return interpreter.result_of(function, arguments)


def build_tensor_of_device(interpreter: Interpreter, data: Any, dtype: Any, *others: Any) -> Any:
    """Replaces the function for tensors saved from a device without storages, which are saved from a copy on the CPU."""
    if isinstance(data, torch.Tensor) and str(data.dtype) != dtype.name:
        return StandIn(dtype.name)
    return build_parameter(interpreter, data)


def build_attribute(interpreter: Interpreter, owner: Any, name: Any) -> StandIn:
    """Replaces `getattr`, which pickles use for nested classes and for methods of objects."""
    return Global(checked_name(f"{kind_of(owner)}.{checked_name(name)}"))


def build_object(interpreter: Interpreter, of_class: Any, *others: Any) -> StandIn:
    return StandIn(kind_of(of_class))


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "builtins.dict": build_dict,
    "collections.Counter": build_dict,
    "collections.OrderedDict": build_dict,
    "collections.defaultdict": build_dict,
    "torch._utils._rebuild_tensor": build_tensor,
    "torch._utils._rebuild_tensor_v2": build_tensor,
    "torch._utils._rebuild_tensor_v3": build_tensor_of_dtype,
    "torch._utils._rebuild_qtensor": build_quantized_tensor,
    "torch._utils._rebuild_sparse_tensor": build_sparse_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": build_tensor_without_values,
    "torch._utils._rebuild_parameter": build_parameter,
    "torch._utils._rebuild_parameter_with_state": build_parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": build_tensor_of_device,
    "torch._tensor._rebuild_from_type": build_tensor_of_type,
    "torch._tensor._rebuild_from_type_v2": build_tensor_of_type,
    "torch.serialization._get_layout": build_layout,
    "builtins.getattr": build_attribute,
    "copyreg._reconstructor": build_object,
    "copyreg.__newobj__": build_object,
    "copyreg.__newobj_ex__": build_object,
}

# Handlers by the opcode's name in `pickletools`, which reads the arguments. All other opcodes are refused.
HANDLERS: Mapping[str, Callable[[Interpreter, Any], Any]] = {
    "PROTO": Interpreter.check_protocol,
    "FRAME": lambda interpreter, size: None,
    "STOP": lambda interpreter, _: None,
    "MARK": Interpreter.mark,
    "POP": Interpreter.pop,
    "POP_MARK": Interpreter.pop_mark,
    "BINPUT": Interpreter.memoize,
    "LONG_BINPUT": Interpreter.memoize,
    "MEMOIZE": Interpreter.memoize,
    "BINGET": Interpreter.recall,
    "LONG_BINGET": Interpreter.recall,
    "NONE": Interpreter.push,
    "NEWTRUE": lambda interpreter, _: interpreter.push(True),
    "NEWFALSE": lambda interpreter, _: interpreter.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), Interpreter.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), Interpreter.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), Interpreter.push),
    # Strings of Python 2.
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), Interpreter.push),
    "EMPTY_TUPLE": lambda interpreter, _: interpreter.push(()),
    "TUPLE": lambda interpreter, _: interpreter.push(tuple(interpreter.pop_mark())),
    "TUPLE1": lambda interpreter, _: interpreter.make_tuple(1),
    "TUPLE2": lambda interpreter, _: interpreter.make_tuple(2),
    "TUPLE3": lambda interpreter, _: interpreter.make_tuple(3),
    "EMPTY_LIST": lambda interpreter, _: interpreter.push([]),
    "APPEND": Interpreter.append,
    "APPENDS": lambda interpreter, _: interpreter.extend_last(interpreter.pop_mark()),
    "EMPTY_DICT": lambda interpreter, _: interpreter.push({}),
    "SETITEM": Interpreter.set_item,
    "SETITEMS": lambda interpreter, _: interpreter.set_items_of_last(interpreter.pop_mark()),
    "EMPTY_SET": lambda interpreter, _: interpreter.push(StandIn("builtins.set")),
    "ADDITEMS": lambda interpreter, _: interpreter.extend_last(interpreter.pop_mark()),
    "FROZENSET": Interpreter.make_frozenset,
    "GLOBAL": Interpreter.global_of_text,
    "STACK_GLOBAL": Interpreter.global_of_stack,
    "REDUCE": Interpreter.call,
    "NEWOBJ": Interpreter.call,
    "NEWOBJ_EX": Interpreter.call_with_keywords,
    "BUILD": Interpreter.build,
    "BINPERSID": Interpreter.load_persistent,
}
