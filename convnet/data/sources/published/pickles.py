"""What does a python batch of CIFAR hold? A pickle of plain values and of the arrays that numpy writes."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError
from convnet.io.pickles import Machine, RefusedError, no_state

GROWTH = 4  # times its size: what a pickle may make of its bytes; a batch in protocol 0 makes half of them


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

    def numpy(self) -> NDArray[Any]:
        """The array itself, read-only."""
        values = np.frombuffer(self.data, np.dtype(self.dtype))
        return values.reshape(self.shape, order="F" if self.fortran else "C")


def read_pickle(data: bytes, name: str) -> Any:
    """The value of a pickle of any protocol: dict, list, tuple, str, bytes, int, float, None, bool, Array.

    Raises: DataError that names the opcode or global which is refused, or says that the pickle is damaged.
    """
    try:
        return Machine(CALLS, _set_state, room=GROWTH * len(data)).run(io.BytesIO(data))
    except RefusedError as error:
        raise DataError(f"{name}: {error}; it is not read, since a pickle can run any code") from error
    except Exception as error:  # genops and a wrong order of opcodes raise whatever they stumble over
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name} is a damaged python batch ({text}); get it again") from error


def _set_state(target: Any, state: Any) -> int:
    """Sets what numpy keeps beside an array's or a type's name; how many bytes that made."""
    if type(target) is _Dtype:
        if type(state) is not tuple or type(state[1]) is not str:
            raise ValueError("a type without an order of bytes")
        target.order = {"<": "<", ">": ">", "|": "=", "=": "="}[state[1]]
        return 0
    if type(target) is Array:
        _, shape, dtype, fortran, data = state
        target.shape, target.dtype, target.fortran, target.data = _array(data, dtype, shape, bool(fortran))
        return len(target.data)
    return no_state(target, state)


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
        raise RefusedError(f"it holds an array of {text[:20]!r}")
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
    raise RefusedError("it calls numpy.ndarray")


CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")), _reconstruct),
    **dict.fromkeys((f"numpy.{core}.multiarray scalar" for core in ("core", "_core")), _scalar),
    **dict.fromkeys((f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")), _frombuffer),
    "numpy ndarray": _refuse,
    "numpy dtype": _dtype,
    "_codecs encode": _encode,
    **dict.fromkeys((f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("bytes", "bytearray")),
                    _plain_bytes),
}  # fmt: skip
