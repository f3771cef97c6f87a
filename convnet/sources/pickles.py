"""What does a python batch of CIFAR hold? A pickle read as data: nothing it names is imported, nothing is called.

A stack machine over pickletools' opcodes that knows numbers, strings, bytes, lists, tuples, dicts, and the few
globals by which numpy writes an array. Any other global, and any other opcode, is refused by name.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError

MARK = object()
GLOBALS = {
    **dict.fromkeys((f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")), "reconstruct"),
    **dict.fromkeys((f"numpy.{core}.multiarray scalar" for core in ("core", "_core")), "scalar"),
    **dict.fromkeys((f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")), "frombuffer"),
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
    "__builtin__ bytearray": "bytearray",
    "builtins bytearray": "bytearray",
}
PUSHED = frozenset(
    (
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    )
)
GROWTH = 4  # times its size: what a pickle may make of its bytes; a batch in protocol 0 makes half of them
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _RefusedError(Exception):
    """The pickle does what is not done here; the text says what."""


@dataclass(slots=True)
class _Global:
    what: str


@dataclass(slots=True)
class _Dtype:
    name: str
    order: str = "="


@dataclass(slots=True)
class Array:
    """An array as the pickle describes it."""

    shape: tuple[int, ...] = (0,)
    dtype: str = "u1"
    fortran: bool = False
    data: bytes | bytearray = b""

    def numpy(self) -> NDArray[Any]:
        """The array itself, read-only."""
        values = np.frombuffer(self.data, np.dtype(self.dtype))
        return values.reshape(self.shape, order="F" if self.fortran else "C")


def read_pickle(data: bytes, name: str) -> Any:
    """The value of a pickle of any protocol: dict, list, tuple, str, bytes, int, float, None, bool, Array.

    Raises: DataError that names the opcode or global which is refused, or says that the pickle is damaged.
    """
    try:
        return _Machine(GROWTH * len(data)).run(data)
    except _RefusedError as error:
        raise DataError(f"{name}: {error}; it is not read, since a pickle can run any code") from error
    except Exception as error:  # genops and a wrong order of opcodes raise whatever they stumble over
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name} is a damaged python batch ({text}); get it again") from error


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, room: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.room = room  # bytes that calls may still make

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self.stack[-1]
            if name in PUSHED:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in ("PROTO", "FRAME"):
                continue
            elif (act := getattr(self, f"on_{name.lower()}", None)) is not None:
                act(argument)
            else:
                raise _RefusedError(f"it uses {name}")
        raise ValueError("it has no end")

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        place = len(self.stack) - 1 - next(n for n, item in enumerate(reversed(self.stack)) if item is MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def on_mark(self, _: Any) -> None:
        self.stack.append(MARK)

    def on_pop(self, _: Any) -> None:
        self.stack.pop()

    def on_pop_mark(self, _: Any) -> None:
        self.marked()

    def on_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def on_dict(self, _: Any) -> None:
        items = self.marked()
        self.stack.append({})
        self.store(items)

    def on_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.store([key, value])

    def on_setitems(self, _: Any) -> None:
        self.store(self.marked())

    def store(self, items: list[Any]) -> None:
        table = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(table) is not dict or type(key) not in (str, bytes, int):
                raise ValueError("a table with such keys")
            table[key] = value

    def on_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def on_list(self, _: Any) -> None:
        self.stack.append(self.marked())

    def on_append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def on_appends(self, _: Any) -> None:
        self.extend(self.marked())

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("no list to append to")
        self.stack[-1].extend(items)

    def on_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def on_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def on_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def on_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def on_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def on_put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    on_binget = on_long_binget = on_get

    def on_global(self, name: str) -> None:
        if name not in GLOBALS:
            raise _RefusedError(f"it names {name[:100].replace(' ', '.')!r}")
        self.stack.append(_Global(GLOBALS[name]))

    def on_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a global without a name")  # never printed: lists in lists print for ever
        self.on_global(f"{module} {name}")

    def on_reduce(self, _: Any) -> None:
        given, called = self.stack.pop(), self.stack.pop()
        if type(called) is not _Global or type(given) is not tuple:
            raise _RefusedError(f"it calls {type(called).__name__}")
        made = _BUILD[called.what](*given)
        self.count(made.data if isinstance(made, Array) else made)
        self.stack.append(made)

    def count(self, made: Any) -> None:
        """Takes new bytes off the room: a long text that is called for again and again would fill the memory."""
        self.room -= len(made) if isinstance(made, bytes | bytearray) else 0
        if self.room < 0:
            raise ValueError("it makes far more bytes than it has")

    def on_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _Dtype:
            if type(state) is not tuple or type(state[1]) is not str:
                raise ValueError("a type without an order of bytes")
            target.order = {"<": "<", ">": ">", "|": "=", "=": "="}[state[1]]
        elif type(target) is Array:
            _, shape, dtype, fortran, data = state
            target.shape, target.dtype, target.fortran, target.data = _array(data, dtype, shape, bool(fortran))
            self.count(target.data)
        else:
            raise _RefusedError(f"it sets the state of {type(target).__name__}")


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> tuple[tuple[int, ...], str, bool, bytes | bytearray]:
    """The fields of an Array, checked against each other."""
    if isinstance(data, str):
        data = data.encode("latin-1")  # python 2's strings
    if type(dtype) is not _Dtype or type(shape) is not tuple or not isinstance(data, bytes | bytearray):
        raise ValueError("no array of numbers")
    n_bytes = int(dtype.name[1:])
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError("no shape")
        n_bytes *= length
    if n_bytes != len(data) or len(shape) > 8:
        raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
    return shape, dtype.order + dtype.name, fortran, data


def _dtype(name: Any, *_: Any) -> _Dtype:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    if type(text) is not str:
        raise ValueError("a type without a name")
    if text not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"):
        raise _RefusedError(f"it holds an array of {text[:20]!r}")
    return _Dtype(text)


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("no text to encode")
    return text.encode("latin-1")


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return Array(*_array(data, dtype, shape, order == "F"))


def _scalar(dtype: Any, data: Any) -> int:
    return int(Array(*_array(data, dtype, (), False)).numpy())


def _plain_bytes(data: Any = b"", *encoding: Any) -> bytes:
    return _encode(data, *encoding) if encoding else bytes(data if isinstance(data, bytes | bytearray) else b"")


def _reconstruct(*_: Any) -> Array:
    return Array()


def _refuse(*_: Any) -> Any:
    raise _RefusedError("it calls numpy.ndarray")


_BUILD = {
    "reconstruct": _reconstruct,
    "ndarray": _refuse,
    "frombuffer": _frombuffer,
    "scalar": _scalar,
    "dtype": _dtype,
    "encode": _encode,
    "bytes": _plain_bytes,
    "bytearray": _plain_bytes,
}
