"""What does a python batch of CIFAR hold? A pickle of plain values and of the arrays that numpy writes."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError
from convnet.io.pickles import Machine, RefusedError, no_state

GROWTH = 4  # times its size: what a pickle may make of its bytes; a batch in protocol 0 makes half of them
ORDERS = {"<": "<", ">": ">", "|": "=", "=": "="}  # of bytes, as a pickle and as numpy call them


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

    @property
    def n_bytes(self) -> int:
        return len(self.data)

    def numpy(self) -> NDArray[np.integer]:
        """The array itself, read-only."""
        values = np.frombuffer(self.data, np.dtype(self.dtype))
        return values.reshape(self.shape, order="F" if self.fortran else "C")


def read_pickle(data: bytes, name: str) -> object:
    """The value of a pickle of any protocol: dict, list, tuple, str, bytes, int, float, None, bool, Array.

    Raises: DataError that names the opcode or global which is refused, or says that the pickle is damaged.
    """
    try:
        value: object = Machine(CALLS, _set_state, room=GROWTH * len(data)).run(io.BytesIO(data))
        return value
    except RefusedError as error:
        raise DataError(f"{name}: {error}; it is not read, since a pickle can run any code") from error
    except Exception as error:  # genops and a wrong order of opcodes raise whatever they stumble over
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name} is a damaged python batch ({text}); get it again") from error


def _set_state(target: object, state: object) -> int:
    """Sets what numpy keeps beside an array's or a type's name; how many bytes that made."""
    if type(target) is _Dtype:
        if type(state) is not tuple or type(state[1]) is not str:
            raise ValueError("a type without an order of bytes")
        target.order = ORDERS[state[1]]
        return 0
    if type(target) is Array and type(state) is tuple:
        _, shape, dtype, fortran, data = state
        made = _array(data, dtype, shape, bool(fortran))
        target.shape, target.dtype, target.fortran, target.data = made.shape, made.dtype, made.fortran, made.data
        return len(made.data)
    return no_state(target, state)


def _array(data: object, dtype: object, shape: object, fortran: bool) -> Array:
    """An array whose parts fit each other."""
    if isinstance(data, str):
        data = data.encode("latin-1")  # python 2's strings
    if type(dtype) is not _Dtype or type(shape) is not tuple or not isinstance(data, bytes | bytearray):
        raise ValueError("no array of numbers")
    if len(shape) > 8 or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError("no shape")
    if int(dtype.name[1:]) * math.prod(shape) != len(data):
        raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
    return Array(shape, dtype.order + dtype.name, fortran, data)


def _dtype(name: object, *_: object) -> _Dtype:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    if type(text) is not str:
        raise ValueError("a type without a name")
    if text not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"):
        raise RefusedError(f"it holds an array of {text[:20]!r}")
    return _Dtype(text)


def _encode(text: object, encoding: object) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("no text to encode")
    return text.encode("latin-1")


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> Array:
    return _array(data, dtype, shape, order == "F")


def _scalar(dtype: object, data: object) -> int:
    return int(_array(data, dtype, (), False).numpy())


def _plain_bytes(data: object = b"", *encoding: object) -> bytes:
    return _encode(data, *encoding) if encoding else bytes(data if isinstance(data, bytes | bytearray) else b"")


def _reconstruct(*_: object) -> Array:
    return Array()


def _refuse(*_: object) -> None:
    raise RefusedError("it calls numpy.ndarray")


CALLS: dict[str, Callable[..., object]] = {
    **dict.fromkeys((f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")), _reconstruct),
    **dict.fromkeys((f"numpy.{core}.multiarray scalar" for core in ("core", "_core")), _scalar),
    **dict.fromkeys((f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")), _frombuffer),
    "numpy ndarray": _refuse,
    "numpy dtype": _dtype,
    "_codecs encode": _encode,
    **dict.fromkeys((f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("bytes", "bytearray")),
                    _plain_bytes),
}  # fmt: skip
