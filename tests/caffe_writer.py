"""Caffe's files written by hand: an independent writer of the wire format, for the tests of its reader."""

import struct
from typing import Any

import numpy as np


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(array: np.ndarray, *, legacy: bool = False, double: bool = False, raw: int | None = None) -> bytes:
    """A BlobProto; the legacy shape has four sides, ones in front. raw: NVCaffe's type of raw_data, 0, 1 or 2."""
    if legacy:
        sides = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(number(i, side) for i, side in enumerate(sides, 1))
    else:
        shape = message(7, message(1, b"".join(varint(side) for side in array.shape)))
    if raw is not None:
        return shape + number(10, raw) + message(12, array.astype(("<f8", "<f4", "<f2")[raw]).tobytes())
    return shape + message(8 if double else 5, array.astype("<f8" if double else "<f4").tobytes())


def net(layers: dict[str, list[np.ndarray]], version: int, **how: Any) -> bytes:
    """A NetParameter of V1 or V2 layers with their blobs, among fields that a reader must skip."""
    data = message(1, b"a net") + message(3, b"data") + b"".join(number(4, side) for side in (10, 3, 227, 227))
    for name, arrays in {"data": [], **layers, "relu": []}.items():
        blobs = [blob(array, **how) for array in arrays]
        if version == 1:
            layer = message(2, b"below") + message(3, name.encode()) + message(4, name.encode()) + number(5, 4)
            layer += b"".join(message(6, each) for each in blobs) + b"\x3d" + struct.pack("<f", 1.0)
            data += message(2, layer)
        else:
            layer = message(1, name.encode()) + message(2, b"Convolution") + message(3, b"below")
            layer += message(6, b"\x1d" + struct.pack("<f", 2.0)) + b"".join(message(7, each) for each in blobs)
            data += message(100, layer)
    return data
