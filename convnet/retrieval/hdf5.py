"""An HDF5 file of whole arrays, written without a library: superblock 0, a root group of links, contiguous data.

Its bytes are a function of its content alone, and rows pass through without being held. What is where:

    0     superblock: where the root group is, how long the file is
    96    the root group's header: a link for each array
    then  each array's header: shape, type and where its data are
    then  the data, array by array

Source: HDF5 File Format Specification 3.0, sections II.A, IV.A.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

UNDEFINED = b"\xff" * 8
FLOATS = {
    2: (15, 10, 5, 0, 10, 15),
    4: (31, 23, 8, 0, 23, 127),
}  # bytes: sign, exponent, mantissa: places and sizes, bias
SPACE, LINK_INFO, TYPE, FILL, LINK, LAYOUT = 1, 2, 3, 5, 6, 8  # kinds of messages


class Layout(NamedTuple):
    """What stands before the data, and the byte at which each array begins."""

    head: bytes
    offsets: dict[str, int]


def layout(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]) -> Layout:
    """Of arrays by name, with their shapes and types: float16, float32, int64, or `S` and a length for UTF-8 texts."""
    links = {name: _message(LINK, _link(name, 0)) for name in arrays}
    info = _message(LINK_INFO, b"\0\0" + UNDEFINED * 2)
    at = 96 + len(_header([info, *links.values()]))
    sizes = {name: len(_array(shape, dtype, 0)) for name, (shape, dtype) in arrays.items()}
    data, offsets, headers = at + sum(sizes.values()), dict[str, int](), list[bytes]()
    for name, (shape, dtype) in arrays.items():
        offsets[name] = data
        links[name] = _message(LINK, _link(name, at))
        headers.append(_array(shape, dtype, data))
        at += sizes[name]
        data += -(-math.prod(shape) * dtype.itemsize // 8) * 8
    superblock = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
    superblock += struct.pack("<Q", 0) + UNDEFINED + struct.pack("<Q", data) + UNDEFINED
    superblock += struct.pack("<QQI20x", 0, 96, 0)
    return Layout(superblock + _header([info, *links.values()]) + b"".join(headers), offsets)


def padded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """An array's bytes, up to where the next one may begin."""
    size = 0
    for piece in pieces:
        size += len(piece)
        yield piece
    yield bytes(-size % 8)


def _link(name: str, at: int) -> bytes:
    text = name.encode()
    return bytes([1, 0b10001, 1]) + struct.pack("<H", len(text)) + text + struct.pack("<Q", at)  # hard, name in UTF-8


def _array(shape: tuple[int, ...], dtype: np.dtype[np.generic], at: int) -> bytes:
    """An array's header."""
    space = bytes([1, len(shape), 0, 0, 0, 0, 0, 0]) + struct.pack(f"<{len(shape)}Q", *shape)
    where = bytes([3, 1]) + struct.pack("<QQ", at, math.prod(shape) * dtype.itemsize)
    fill = bytes([2, 1, 2, 0])  # early, where the user sets one, none
    return _header(
        [_message(kind, data) for kind, data in ((SPACE, space), (TYPE, _type(dtype)), (FILL, fill), (LAYOUT, where))]
    )


def _type(dtype: np.dtype[np.generic]) -> bytes:
    size = struct.pack("<I", dtype.itemsize)
    if dtype.kind == "S":
        return b"\x13\x11\0\0" + size  # filled up with zeros, UTF-8
    bits = 8 * dtype.itemsize
    if dtype.kind == "i":
        return b"\x10\x08\0\0" + size + struct.pack("<HH", 0, bits)
    sign, *places, bias = FLOATS[dtype.itemsize]
    return bytes([0x11, 0x20, sign, 0]) + size + struct.pack("<HH4BI", 0, bits, *places, bias)


def _message(kind: int, data: bytes) -> bytes:
    data += bytes(-len(data) % 8)
    return struct.pack("<HHB3x", kind, len(data), 0) + data


def _header(messages: list[bytes]) -> bytes:
    body = b"".join(messages)
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body
