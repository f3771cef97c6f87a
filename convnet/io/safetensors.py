"""The safetensors format: 8 bytes of length, a JSON header, the numbers of the tensors end to end.

Our own reader and writer, because both must be frugal: writing copies nothing, reading gives views of one buffer, and a
lying header costs no memory. Format: https://huggingface.co/docs/safetensors (version 0.x, little-endian).
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeGuard

import torch
from torch import Tensor

from convnet.errors import DataError
from convnet.io import strict_json

MAX_HEADER = 8 << 20  # bytes; a net of 150 tensors has about 15 KiB, the names of 22,000 classes about 1 MiB
SEAL, UNSEALED = "sha256", "0" * 64  # the name of a digest in the metadata, and what stands in its place
MAX_SIDE = 1 << 40  # elements along one axis
DTYPES = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is written without being in memory: its numbers come piece by piece."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    data: Callable[[], Iterator[bytes]]

    def element_size(self) -> int:
        return self.dtype.itemsize

    def numel(self) -> int:
        return math.prod(self.shape)


def pieces(
    tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece, a function of names, contents and metadata alone.

    Wide elements come first, then the names in order, so that each tensor lies at a multiple of its elements' width.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    for name in order:
        tensor = tensors[name]
        if isinstance(tensor, LazyTensor):
            yield from tensor.data()
            continue
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # a synchronisation when it is on a GPU
        yield flat.view(torch.uint8).numpy().data


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of `pieces` with one text more in the metadata, before the others: `sha256`, that of the whole file
    with 64 zeros in its place."""
    digest = hashlib.sha256()
    for piece in pieces(tensors, {SEAL: UNSEALED, **metadata}):
        digest.update(piece)
    yield from pieces(tensors, {SEAL: digest.hexdigest(), **metadata})


def is_as_sealed(data: Tensor, digest: str) -> bool:
    """Whether the bytes of a file are as `sealed` gave them, whose metadata say this sha256."""
    length = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    header = data[:length].numpy().tobytes().replace(digest.encode(), UNSEALED.encode(), 1)
    content = hashlib.sha256(header)
    content.update(data[length:].numpy().data)
    return content.hexdigest() == digest


def parse(data: Tensor) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file (uint8, one axis): views of `data` where their place allows it.

    Raises: DataError for bytes that aren't a safetensors file, or have gaps, overlaps, unknown types or odd shapes.
    """
    return parse_all(data)[0]


def parse_all(data: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors as `parse` gives them, and the texts that the writer added, its metadata. Raises: DataError."""
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise DataError(f"the header of the tensors says it has {length} bytes")
    try:
        header = strict_json.parse(data[8 : 8 + length].numpy().tobytes())
    except ValueError as error:
        raise DataError(f"the header of the tensors is not JSON: {error}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise DataError("the metadata of the tensors are no texts")
    values, end, tensors = data[8 + length :], 0, {}
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or stop > len(values):
            raise DataError(f"tensor {name!r}: its place {begin} to {stop} is wrong")
        end, flat = stop, values[begin:stop]
        aligned = flat if flat.storage_offset() % dtype.itemsize == 0 else flat.clone()
        tensors[name] = aligned.view(dtype).reshape(shape)
    if end != len(values):
        raise DataError(f"{len(values) - end} bytes after the tensors belong to none")
    return tensors, metadata


def _entry(name: str, entry: object) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one tensor; the types are checked, not yet the place."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"tensor {name!r}: needs dtype, shape and data_offsets")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DataError(f"tensor {name!r}: unknown dtype {str(dtype)[:20]!r}")
    if not _counts(shape) or len(shape) > 8 or not _counts(place) or len(place) != 2:
        raise DataError(f"tensor {name!r}: its shape or place is not a short list of counts")
    return DTYPES[dtype], tuple(shape), place[0], place[1]


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= MAX_SIDE for each in value)
