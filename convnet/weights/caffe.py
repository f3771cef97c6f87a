"""What does a Caffe file hold? The blobs of a `.caffemodel` (V1 and V2 layers), the mean of a `.binaryproto`.

Our own reader of the few protocol buffer messages that matter; numbers stay in the mapped file until they're asked for.

message           field               number   wire type
NetParameter      layers (V1)              2   bytes
                  layer (V2)             100   bytes
V1LayerParameter  layer (V0)               1   bytes: refused
                  name                     4   bytes
                  blobs                    6   bytes
LayerParameter    name                     1   bytes
                  blobs                    7   bytes
BlobProto         num, channels,      1, 2, 3, 4   varint: the legacy shape
                  height, width
                  data                     5   float32, packed or not
                  shape                    7   bytes
                  double_data              8   float64, packed or not
                  raw_data_type           10   varint, NVCaffe's: 0 double, 1 float, 2 half
                  raw_data                12   bytes, NVCaffe's
BlobShape         dim                      1   varint, packed or not

Every other field is skipped by its length. Levels are fixed, so nothing recurses. Format:
https://protobuf.dev/programming-guides/encoding, caffe.proto of Caffe 1.0 and of NVIDIA's Caffe 0.17.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.errors import DataError
from convnet.io.atomic import regular
from convnet.weights.found import Found

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types
WIDTHS = {FOUR_BYTES: 4, EIGHT_BYTES: 8}
RAW_TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f8"),
    1: np.dtype("<f4"),
    2: np.dtype("<f2"),
}  # of raw_data; 3 and 4 are integers
MAX_FIELDS = 500_000  # of a file; GoogLeNet has about 5,000
MAX_LAYERS = 10_000  # with weights
MAX_BLOBS = 16  # of a layer; batch norm has 3
MAX_PIECES = 256  # of a blob's numbers; Caffe writes one
MAX_AXES = 8
MAX_SIDE = 1 << 40  # along one axis
MAX_NAME = 256  # bytes
RUN = 1 << 16  # records looked at together


class Piece(NamedTuple):
    """`n` numbers from byte `begin` on, one every `stride` bytes."""

    begin: int
    n: int
    stride: int


@dataclass
class Blob:
    """Where one array's numbers lie. `shape` is None when the file gives none."""

    dims: list[int] = field(default_factory=list)
    legacy: dict[int, int] = field(default_factory=dict)
    floats: list[Piece] = field(default_factory=list)
    doubles: list[Piece] = field(default_factory=list)
    raw: list[Piece] = field(default_factory=list)  # in bytes
    raw_type: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        if self.dims or not self.legacy:
            return tuple(self.dims)
        return tuple(self.legacy.get(number, 0) for number in (1, 2, 3, 4))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers. Raises: DataError for NVCaffe's integers."""
        if self.raw and self.raw_type not in RAW_TYPES:
            raise DataError(f"its raw_data are of type {self.raw_type}; 0 (double), 1 (float) and 2 (half) are read")
        return RAW_TYPES[self.raw_type if self.raw else 0 if self.doubles else 1]

    @property
    def pieces(self) -> list[Piece]:
        """Where the numbers lie. Raises: DataError when they lie in two forms, which could say two things."""
        if sum(map(bool, (self.floats, self.doubles, self.raw))) > 1:
            raise DataError("a blob has numbers in two of data, double_data and raw_data")
        width = self.dtype.itemsize
        if any(piece.n % width for piece in self.raw):
            raise DataError(f"raw_data of {self.raw[0].n:,} bytes are no numbers of {width} bytes")
        return [Piece(piece.begin, piece.n // width, width) for piece in self.raw] or self.doubles or self.floats


class Field(NamedTuple):
    """One field: its number, wire type, and value (varint) or place."""

    number: int
    wire: int
    value: int
    begin: int
    end: int


def read_net(path: Path) -> list[Found]:
    """The blobs of a `.caffemodel` as `LAYER.weight`, `LAYER.bias`, then `LAYER.blob2`, in the order of the file.

    Raises: DataError for anything that isn't one, with the byte where it goes wrong.
    """
    data = _mapped(path)
    try:
        return [_found(data, name, blob) for name, blob in _net(Wire(data)).items()]
    except DataError as error:
        raise DataError(f"{path}: can't be read as a .caffemodel: {error}") from error


def read_mean(path: Path) -> NDArray[np.float32]:
    """The mean in a `.binaryproto`: float32 (3, H, W), BGR. Raises: DataError."""
    data = _mapped(path)
    try:
        found = _found(data, "mean", _blob(Wire(data), 0, len(data)))
        shape = found.shape[1:] if len(found.shape) == 4 and found.shape[0] == 1 else found.shape
        if len(shape) != 3 or shape[0] != 3:
            raise DataError(f"a mean of shape {found.shape}; it must be (1, 3, H, W)")
        return found.read().to(torch.float32).reshape(shape).numpy()
    except DataError as error:
        raise DataError(f"{path}: can't be read as a .binaryproto: {error}") from error


def _mapped(path: Path) -> memoryview:
    try:
        with open(path, "rb", opener=regular) as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise DataError(f"{path}: empty file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


class Wire:
    """Fields of the wire format within bounds. The number of fields in the whole file is limited."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.n_fields = 0

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """(value, the place after it), unsigned, 64 bits at most."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise DataError(f"byte {at}: a number goes past its message's end")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value, at
        raise DataError(f"byte {at}: a number of more than 64 bits")

    def next(self, at: int, end: int) -> Field:
        """The field at `at`; the next one begins at its `end`."""
        self.n_fields += 1
        if self.n_fields > MAX_FIELDS:
            raise DataError(f"more than {MAX_FIELDS:,} fields; no net has so many")
        tag, begin = self.varint(at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 1 << 29:
            raise DataError(f"byte {at}: field number {number}; it must be 1 to {(1 << 29) - 1}")
        if wire == VARINT:
            value, after = self.varint(begin, end)
            return Field(number, wire, value, begin, after)
        if wire == BYTES:
            length, begin = self.varint(begin, end)
        elif wire in WIDTHS:
            length = WIDTHS[wire]
        else:
            raise DataError(f"byte {at}: wire type {wire}, which Caffe doesn't use")
        if length > end - begin:
            raise DataError(f"byte {at}: field {number} of {length:,} bytes goes past its message's end")
        return Field(number, wire, 0, begin, begin + length)

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """All fields of a message."""
        while begin < end:
            each = self.next(begin, end)
            yield each
            begin = each.end

    def run(self, first: Field, end: int) -> tuple[int, int]:
        """(records, the place after them): fields of fixed width and the same one-byte tag, as `first`, in a row."""
        width = WIDTHS[first.wire] + 1
        begin, n = first.begin - 1, 1
        tag = self.data[begin]
        while (room := min((end - begin) // width - n, RUN)) > 0:
            start = begin + n * width
            tags = np.frombuffer(self.data[start : start + room * width], np.uint8)[::width]
            others = np.flatnonzero(tags != tag)
            n += int(others[0]) if len(others) else room
            if len(others):
                break
        return n, begin + n * width


def _net(wire: Wire) -> dict[str, Blob]:
    """{name: blob} in the order of the file."""
    blobs: dict[str, Blob] = {}
    seen: dict[str, None] = {}
    versions = set()
    for each in wire.fields(0, len(wire.data)):
        if each.number not in (2, 100):
            continue
        versions.add(each.number)
        if each.wire != BYTES or len(versions) > 1:
            raise DataError(f"byte {each.begin}: a layer is no message, or V1 and V2 layers are mixed")
        name, own = _layer(wire, each)
        if not own:
            continue
        if name in seen or len(seen) >= MAX_LAYERS:
            raise DataError(f"two layers {name!r} with weights, or more than {MAX_LAYERS:,} layers")
        seen[name] = None
        kinds = ["weight", "bias", *(f"blob{i}" for i in range(2, MAX_BLOBS))]
        blobs |= {f"{name}.{kind}": blob for kind, blob in zip(kinds, own, strict=False)}
    if not blobs:
        raise DataError("no layer with weights; is it a .caffemodel?")
    return blobs


def _layer(wire: Wire, layer: Field) -> tuple[str, list[Blob]]:
    is_v1 = layer.number == 2
    name_number, blobs_number = (4, 6) if is_v1 else (1, 7)
    name, blobs = "", []
    for each in wire.fields(layer.begin, layer.end):
        if is_v1 and each.number == 1:
            raise DataError("V0 layers, from before 2014; convert the file with Caffe's upgrade_net_proto_binary")
        if each.number not in (name_number, blobs_number):
            continue
        if each.wire != BYTES:
            raise DataError(f"byte {each.begin}: a layer's field {each.number} has wire type {each.wire}, not {BYTES}")
        if each.number == name_number:
            name = _name(wire, each)
        else:
            blobs.append(_blob(wire, each.begin, each.end))
            if len(blobs) > MAX_BLOBS:
                raise DataError(f"layer {name!r} has more than {MAX_BLOBS} blobs")
    return name, blobs


def _name(wire: Wire, each: Field) -> str:
    if each.end - each.begin > MAX_NAME:
        raise DataError(f"byte {each.begin}: a layer's name of {each.end - each.begin:,} bytes")
    try:
        name = bytes(wire.data[each.begin : each.end]).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"byte {each.begin}: a layer's name is no UTF-8") from error
    if not name.isprintable():
        raise DataError(f"byte {each.begin}: a layer's name holds control characters")
    return name


def _blob(wire: Wire, begin: int, end: int) -> Blob:
    blob = Blob()
    while begin < end:
        each = wire.next(begin, end)
        begin = each.end
        if each.wire in WIDTHS:  # numbers that are not packed: one field each
            n, begin = wire.run(each, end) if each.number < 16 else (1, begin)
            if (each.number, each.wire) in ((5, FOUR_BYTES), (8, EIGHT_BYTES)):
                pieces = blob.floats if each.number == 5 else blob.doubles
                pieces.append(Piece(each.begin, n, WIDTHS[each.wire] + 1))
        elif each.number in (5, 8) and each.wire == BYTES:
            width, pieces = (4, blob.floats) if each.number == 5 else (8, blob.doubles)
            if (each.end - each.begin) % width:
                raise DataError(f"byte {each.begin}: {each.end - each.begin:,} bytes are no numbers of {width} bytes")
            pieces.append(Piece(each.begin, (each.end - each.begin) // width, width))
        elif each.number == 12 and each.wire == BYTES:
            blob.raw = [Piece(each.begin, each.end - each.begin, 1)]  # not repeated: the last one counts
        elif each.number == 10 and each.wire == VARINT:
            blob.raw_type = each.value
        elif each.number == 7 and each.wire == BYTES:
            blob.dims += _dims(wire, each)
        elif each.number in (1, 2, 3, 4) and each.wire == VARINT:
            blob.legacy[each.number] = _side(each.value)
        if len(blob.dims) > MAX_AXES or len(blob.floats) + len(blob.doubles) > MAX_PIECES:
            raise DataError(f"byte {begin}: a blob of more than {MAX_AXES} axes or {MAX_PIECES} pieces")
    return blob


def _dims(wire: Wire, shape: Field) -> list[int]:
    dims: list[int] = []
    for each in wire.fields(shape.begin, shape.end):
        if each.number != 1:
            continue
        if each.wire == VARINT:
            dims.append(_side(each.value))
        elif each.wire == BYTES:
            at = each.begin
            while at < each.end and len(dims) <= MAX_AXES:
                value, at = wire.varint(at, each.end)
                dims.append(_side(value))
    return dims


def _side(value: int) -> int:
    if value > MAX_SIDE:
        raise DataError(f"a blob has a side of {value:,}")
    return value


def _found(data: memoryview, name: str, blob: Blob) -> Found:
    pieces, dtype = _numbers(name, blob)
    n, wanted = sum(piece.n for piece in pieces), math.prod(blob.shape)
    if n != wanted:
        raise DataError(f"{name} has {n:,} numbers, its shape {blob.shape} needs {wanted:,}")

    def read() -> Tensor:
        numbers, done = np.empty(n, dtype), 0
        for piece in pieces:
            records = np.ndarray((piece.n,), dtype, data, piece.begin, (piece.stride,))
            numbers[done : done + piece.n] = records
            done += piece.n
        return torch.from_numpy(numbers).reshape(blob.shape)

    return Found(name, blob.shape, dtype.name, read)


def _numbers(name: str, blob: Blob) -> tuple[list[Piece], np.dtype[Any]]:
    try:
        return blob.pieces, blob.dtype
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
