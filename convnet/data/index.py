"""Where does each picture of a split lie, of which class is it, and what is it called?

A small index, and any behind a URL, is read whole and held against its sha256. A large one is mapped, and PER_BLOCK
rows are held against their own sha256 when one of them is first used; so are the names. Those digests stand in
SPLIT.blocks.npy, which the header's sha256 covers: 15 million pictures open in the time of 34 MB, and nothing is used
that wasn't checked.
"""

import hashlib
import io
import json
import math
import mmap
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, overload

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from convnet.data.store_header import shard_name
from convnet.errors import DataError
from convnet.io import atomic, strict_json
from convnet.io.npy import HEADER_BYTES
from convnet.io.strict_json import Json
from convnet.io.urls import Place

BLOCK = 512  # bytes: tar's unit
ROW = np.dtype(
    [
        ("shard", "<u4"),  # number in the file's name
        ("offset", "<u8"),  # of the record in the shard, bytes
        ("length", "<u8"),  # of the record, bytes
        ("payload", "<u8"),  # of the .npy or .jpg member, bytes; it begins BLOCK bytes into the record
        ("label", "<i4"),
        ("height", "<u4"),  # pixels as stored
        ("width", "<u4"),
        ("sum", "<u8"),  # `weighted_sum` of the record: looked at when a picture is read, a tenth of a sha256's time
        ("sha256", "u1", (32,)),  # of the record: looked at by `convnet check`
    ]
)
MAPPED = 1 << 26  # bytes: a larger index has digests of its blocks, and is mapped
PER_BLOCK = 32  # rows, 2.5 KB: each picture of a batch may be the first of its block, which is then hashed
DIGESTS = np.dtype([("rows", "u1", (32,)), ("names", "u1", (32,)), ("end", "<u8")])  # end: of the names, bytes
PORTION = 1 << 16  # rows that are looked at together
Scalar = TypeVar("Scalar", bound=np.generic)
Read = Callable[[str], bytes]  # a file that the header lists, checked against its sha256


class Row(NamedTuple):
    """A ROW before it is in the index; sha256 in hexadecimal."""

    shard: int
    offset: int
    length: int
    payload: int
    label: int
    height: int
    width: int
    sum: int
    sha256: str


class Numbers(Protocol):
    """int64 (n,): an array, or what gives the numbers at some positions when they are asked for; [:] is all of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int | slice | NDArray[np.int64], /) -> NDArray[np.int64]: ...


class Index:
    """The rows of a split. Raises, here or when a row is used: DataError for damage and for what can't be.

    path, header: of the store. read: reads its small files.
    """

    def __init__(self, path: Place, header: Json, split: str, read: Read) -> None:
        self.path, self.split, self.n = path, split, int(header["splits"][split]["n"])
        self._header, listed = header, header["files"]
        self.file, self.mapped = path / f"{split}.index.npy", None
        self.digests: NDArray[np.void] | None = None
        large, name = listed[self.file.name]["bytes"] > MAPPED, f"{split}.blocks.npy"
        if isinstance(self.file, Path) and large and name in listed:
            self.digests = as_array(path / name, read(name), (-(-self.n // PER_BLOCK),), DIGESTS)
            self.mapped = mapped(self.file, listed[self.file.name]["bytes"])
        data = read(self.file.name) if self.mapped is None else self.mapped
        self._rows = as_array(self.file, data, (self.n,), ROW)
        self._columns = [self._rows[name] for name in ("shard", "offset", "payload")]
        self._checked = np.full(-(-self.n // PER_BLOCK), self.digests is None)
        if self.digests is None:
            self._check_rows(slice(None))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, at: int | slice | NDArray[np.int64]) -> NDArray[np.void]:
        """The ROWs at some positions, checked."""
        if self.digests is not None:
            self._check(at)
        return self._rows[at]

    def place(self, i: int) -> tuple[int, int, int]:
        """Picture i's shard, and of its member in it the offset and the length, bytes."""
        if not self._checked[i // PER_BLOCK]:
            self._check(i)
        shard, offset, payload = (column.item(i) for column in self._columns)
        return shard, offset + BLOCK, payload

    def shards(self, ids: NDArray[np.int64]) -> list[int]:
        """The shards of pictures, without a look at the disk: of those whose rows have been checked."""
        known = ids[self._checked[ids // PER_BLOCK]]
        return list(map(int, np.unique(self._rows["shard"][known])))

    def labels(self, table: NDArray[np.int64]) -> Numbers:
        """The pictures' classes, of which k is called table[k]: an array, or of a mapped index what gives parts."""
        return Labels(self, table) if self.digests is not None else table[self._rows["label"]]

    def names(self, read: Read) -> Sequence[str]:
        """What the pictures were called in the source."""
        file = self.path / f"{self.split}.keys.jsonl"
        if self.digests is not None and isinstance(file, Path):
            return Names(file, self.n, self.digests, int(self._header["files"][file.name]["bytes"]))
        try:
            names = read_names(read(file.name))
        except ValueError as error:
            raise DataError(f"{file} is no list of keys: {error}; prepare the store again") from error
        if len(names) != self.n:
            raise DataError(f"{file} has {len(names):,} keys of {self.n:,}; prepare the store again")
        return names

    def check_length(self) -> None:
        """Raises: DataError when the index is mapped, and has been cut."""
        if self.mapped is not None:
            check_size(self.file, self.mapped, len(self.mapped))

    def _check(self, at: int | slice | NDArray[np.int64]) -> None:
        """Holds the blocks of these rows, if they weren't yet, against their digests."""
        assert self.digests is not None
        blocks, digests = _blocks(at, self.n), self.digests["rows"]
        blocks = blocks[~self._checked[blocks]]
        for block in blocks.tolist():
            rows = self._rows[block * PER_BLOCK : (block + 1) * PER_BLOCK]
            if hashlib.sha256(rows.data).digest() != digests[block].tobytes():
                raise DataError(
                    f"{self.file} is damaged in rows {block * PER_BLOCK:,} to {block * PER_BLOCK + len(rows) - 1:,}: "
                    "their sha256 does not match; prepare the store again"
                )
        rows_of = (blocks[:, None] * PER_BLOCK + np.arange(PER_BLOCK)).ravel()
        self._check_rows(rows_of[rows_of < self.n])
        self._checked[blocks] = True

    @cached_property
    def _sizes(self) -> NDArray[np.uint64]:
        """Of the shards, bytes; and 0, of those that aren't there."""
        n_shards, listed = self._header["splits"][self.split]["shards"], self._header["files"]
        return np.array([*(listed[shard_name(self.split, k)]["bytes"] for k in range(n_shards)), 0], np.uint64)

    def _check_rows(self, at: slice | NDArray[np.int64]) -> None:
        """Raises: DataError when a row leads out of its shard, or to a class that isn't there."""
        header, rows = self._header, self._rows[at]
        label, length, payload = (rows[name] for name in ("label", "length", "payload"))
        size = self._sizes[np.minimum(rows["shard"], len(self._sizes) - 1)]
        right = (label >= 0) & (label < len(header["classes"])) & (payload <= length - np.uint64(BLOCK))
        right &= (length % BLOCK == 0) & (length >= BLOCK) & (length <= size) & (rows["offset"] <= size - length)
        if header["encoding"] == "raw":
            right &= payload == HEADER_BYTES + 3 * header["size"] ** 2
        if not right.all():
            row = np.arange(self.n)[at][~right][0]
            raise DataError(f"{self.file}: row {row} is impossible; prepare the store again")


class Labels:
    """The classes of a large split's pictures; of each row class k is table[k]."""

    def __init__(self, rows: Index, table: NDArray[np.int64]) -> None:
        self.rows, self.table = rows, table

    def __len__(self) -> int:
        return self.rows.n

    def __getitem__(self, at: int | slice | NDArray[np.int64]) -> NDArray[np.int64]:
        if not isinstance(at, slice):
            return np.asarray(self.table[self.rows[at]["label"]])
        places = range(self.rows.n)[at]
        labels = np.empty(len(places), np.int64)
        for first in range(0, len(places), PORTION):
            part = places[first : first + PORTION]
            labels[first : first + len(part)] = self[np.arange(part.start, part.stop, part.step)]
        return labels


class Names(Sequence[str]):
    """What the pictures of a large split were called: a block is read, and held against its digest, when it's used."""

    def __init__(self, file: Path, n: int, digests: NDArray[np.void], n_bytes: int) -> None:
        self.file, self.n, self.digests, self.n_bytes = file, n, digests, n_bytes
        self._last: tuple[int, list[str]] = (-1, [])

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        places = range(self.n)[at]
        return self._name(places) if isinstance(places, int) else [self._name(i) for i in places]

    def _name(self, i: int) -> str:
        block, names = self._last
        if block != i // PER_BLOCK:
            block = i // PER_BLOCK
            self._last = block, names = block, self._block(block)
        return names[i % PER_BLOCK]

    def _block(self, block: int) -> list[str]:
        """Raises: DataError when the block's names aren't those that were written."""
        begin, end = (int(self.digests["end"][k]) if k >= 0 else 0 for k in (block - 1, block))
        right = min(PER_BLOCK, self.n - block * PER_BLOCK)
        try:
            if not 0 <= begin <= end <= self.n_bytes:
                raise ValueError(f"they would lie at byte {begin:,} to {end:,}")
            with open(self.file, "rb", opener=atomic.regular) as file:
                data = os.pread(file.fileno(), end - begin, begin)
            names = read_names(data)
            if hashlib.sha256(data).digest() != self.digests["names"][block].tobytes() or len(names) != right:
                raise ValueError("their sha256 does not match")
        except (OSError, ValueError) as error:
            first, again = block * PER_BLOCK, "prepare the store again"
            what = f"the names {first:,} to {first + right - 1:,} are damaged"
            raise DataError(f"{self.file}: {what}: {error}; {again}") from error
        return names


def _blocks(at: int | slice | NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The blocks of the rows at some positions."""
    if isinstance(at, np.ndarray):
        return np.unique(at % n // PER_BLOCK)
    places = range(n)[at]
    ids = np.array([places]) if isinstance(places, int) else np.arange(places.start, places.stop, places.step)
    return np.unique(ids // PER_BLOCK)


def mapped(file: Path, n_bytes: int) -> mmap.mmap:
    """A file of a store that is mapped. Raises: DataError when it isn't there, or isn't so long."""
    try:
        with open(file, "rb", opener=atomic.regular) as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}; prepare the store again") from error
    check_size(file, data, n_bytes)
    return data


def check_size(file: Place, data: mmap.mmap, n_bytes: int) -> None:
    """Raises: DataError when a mapped file has another size: reading beyond its end would end the process (SIGBUS)."""
    if data.size() != n_bytes:
        raise DataError(f"{file} has {data.size()} bytes instead of {n_bytes}; prepare the store again")


def as_array(
    file: Place, data: bytes | mmap.mmap, shape: tuple[int, ...], dtype: "np.dtype[Scalar]"
) -> NDArray[Scalar]:
    """The content of a .npy file, which must hold an array of this shape: a stranger's could claim any."""
    begin = 10 + int.from_bytes(data[8:10], "little")
    header = f"{{'descr': {npy.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    n_bytes = math.prod(shape) * dtype.itemsize
    if data[:8] != b"\x93NUMPY\x01\0" or data[10:begin].rstrip() != header or len(data) != begin + n_bytes:
        raise DataError(f"{file} has an unknown layout; prepare the store again")
    return np.frombuffer(data, dtype, offset=begin).reshape(shape)


# writing


def index_files(split: str, rows: list[Row], keys: list[str]) -> dict[str, bytes]:
    """The bytes of a split's index and key list, and of the digests of their blocks where the index is large."""
    index = np.array([(*row[:8], tuple(bytes.fromhex(row.sha256))) for row in rows], ROW)
    lines = [json.dumps(key).encode() + b"\n" for key in keys]
    files = {f"{split}.index.npy": npy_bytes(index), f"{split}.keys.jsonl": b"".join(lines)}
    if len(files[f"{split}.index.npy"]) > MAPPED:
        files[f"{split}.blocks.npy"] = npy_bytes(digests(index, lines))
    return files


def digests(index: NDArray[np.void], lines: Sequence[bytes]) -> NDArray[np.void]:
    """DIGESTS of each PER_BLOCK rows and of the lines with their names."""
    found, end = np.empty(-(-len(index) // PER_BLOCK), DIGESTS), 0
    for block, first in enumerate(range(0, len(index), PER_BLOCK)):
        names = b"".join(lines[first : first + PER_BLOCK])
        end += len(names)
        parts = (hashlib.sha256(data).digest() for data in (index[first : first + PER_BLOCK].data, names))
        found[block] = (*(np.frombuffer(part, np.uint8) for part in parts), end)
    return found


def npy_bytes(array: NDArray[Scalar]) -> bytes:
    """An array as the bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def read_names(data: bytes) -> list[str]:
    """The names in a key list. Raises: ValueError when it is none."""
    names = [strict_json.value(line) for line in data.splitlines()]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a key is no text")
    return names
