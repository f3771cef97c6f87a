"""The blobs of a `.caffemodel` (V1 and V2 layers) and the mean of a `.binaryproto`, as Caffe writes them.

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
                  data                     5   float32, packed
                  shape                    7   bytes
                  double_data              8   float64, packed
                  raw_data_type           10   varint, NVCaffe's: 0 double, 1 float, 2 half
                  raw_data                12   bytes, NVCaffe's
BlobShape         dim                      1   varint, packed or not

Every other field is skipped by its length. Levels are fixed, so nothing recurses. All numbers of an array lie in one
piece, as Caffe writes them. Format:
https://protobuf.dev/programming-guides/encoding, caffe.proto of Caffe 1.0 and of NVIDIA's Caffe 0.17.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.errors import DataError
from convnet.weights.archives import data_errors, mapped, reading
from convnet.weights.state_dict import FileTensor

VARINT, BYTES = 0, 2  # wire types
WIDTHS = {1: 8, 5: 4}  # bytes of the others
DATA, DOUBLE_DATA, RAW_DATA = 5, 8, 12  # fields of BlobProto
RAW_TYPES: tuple[np.dtype[np.floating], ...] = (np.dtype("<f8"), np.dtype("<f4"), np.dtype("<f2"))  # of raw_data
MAX_FIELDS = 500_000  # of a file; GoogLeNet has about 5,000
MAX_LAYERS = 10_000  # with weights
MAX_BLOBS = 16  # of a layer; batch norm has 3
MAX_AXES = 8
MAX_SIDE = 1 << 40  # along one axis
MAX_NAME = 256  # bytes


class Field(NamedTuple):
    """One field: its number, wire type, and value (varint) or place."""

    number: int
    wire: int
    value: int
    begin: int
    end: int


@dataclass
class Blob:
    """Where one array lies. `legacy` is a shape of before 2015, {field: side}; `numbers` are one field."""

    dims: list[int] = field(default_factory=list)
    legacy: dict[int, int] = field(default_factory=dict)
    numbers: list[Field] = field(default_factory=list)
    raw_type: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        if self.dims or not self.legacy:
            return tuple(self.dims)
        return tuple(self.legacy.get(number, 0) for number in (1, 2, 3, 4))

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of the numbers. Raises: DataError for NVCaffe's integers, and for two fields, which could say two things."""
        if len(self.numbers) > 1 or any(each.wire != BYTES for each in self.numbers):
            raise DataError("a blob's numbers are not packed, or lie in two pieces")
        kind = {DATA: 1, DOUBLE_DATA: 0, RAW_DATA: self.raw_type}[self.numbers[0].number if self.numbers else DATA]
        if kind >= len(RAW_TYPES):
            raise DataError(f"its raw_data are of type {kind}; 0 (double), 1 (float) and 2 (half) are read")
        return RAW_TYPES[kind]


def read_net(path: Path) -> list[FileTensor]:
    """The blobs of a `.caffemodel` as `LAYER.weight`, `LAYER.bias`, then `LAYER.blob2`, in the order of the file.

    Raises: DataError for anything that isn't one, with the byte where it goes wrong.
    """
    with reading(path, "can't be read as a .caffemodel: "):
        data = mapped(path).numpy().data
        return [_tensor(data, name, blob) for name, blob in _net(Wire(data)).items()]


def read_mean(path: Path) -> NDArray[np.float32]:
    """The mean in a `.binaryproto`: float32 (3, H, W), BGR. Raises: DataError."""
    with reading(path, "can't be read as a .binaryproto: "):
        data = mapped(path).numpy().data
        mean = _tensor(data, "mean", _blob(Wire(data), 0, len(data)))
        shape = mean.shape[1:] if len(mean.shape) == 4 and mean.shape[0] == 1 else mean.shape
        if len(shape) != 3 or shape[0] != 3:
            raise DataError(f"a mean of shape {mean.shape}; it must be (1, 3, H, W)")
        return mean.read().to(torch.float32).reshape(shape).numpy()


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


def _net(wire: Wire) -> dict[str, Blob]:
    """{name: blob} in the order of the file."""
    blobs: dict[str, Blob] = {}
    seen: set[str] = set()
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
        seen.add(name)
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
    for each in wire.fields(begin, end):
        if each.number in (DATA, DOUBLE_DATA, RAW_DATA):
            blob.numbers = [*blob.numbers[:1], each]
        elif each.number == 10 and each.wire == VARINT:
            blob.raw_type = each.value
        elif each.number == 7 and each.wire == BYTES:
            blob.dims += _dims(wire, each)
        elif each.number in (1, 2, 3, 4) and each.wire == VARINT:
            blob.legacy[each.number] = _side(each.value)
        if len(blob.dims) > MAX_AXES:
            raise DataError(f"byte {begin}: a blob of more than {MAX_AXES} axes")
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


def _tensor(data: memoryview, name: str, blob: Blob) -> FileTensor:
    with data_errors(f"{name}: "):
        dtype = blob.dtype
    begin, end = (blob.numbers[0].begin, blob.numbers[0].end) if blob.numbers else (0, 0)
    n, rest = divmod(end - begin, dtype.itemsize)
    if rest:
        raise DataError(f"{name}: {end - begin:,} bytes are no numbers of {dtype.itemsize} bytes")
    if n != math.prod(blob.shape):
        raise DataError(f"{name} has {n:,} numbers, its shape {blob.shape} needs {math.prod(blob.shape):,}")

    def read() -> Tensor:
        return torch.from_numpy(np.frombuffer(data[begin:end], dtype).reshape(blob.shape).copy())

    return FileTensor(name, blob.shape, dtype.name, read)
