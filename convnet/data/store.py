"""The store on disk: one folder, for any tar tool, mapped without decoding, checked by sha256.

    store.json         the header and commit mark: written last, with its own sha256
    train-00000.tar    a shard: per picture one member NNNNNNNNN.npy (raw) or .jpg (jpeg) and one NNNNNNNNN.cls (label)
    train.index.npy    one ROW for each picture: shard, offset, length, label, height, width, sum and sha256
    train.keys.jsonl   one JSON string for each picture: its name in the source
    mean.npy           the mean picture of the training split, float32 (size, size, 3)
    left_out.jsonl     what was skipped or failed, and what is odd about used pictures, each with the reason

docs/store.md states every byte. A record is everything from a picture's tar header to the next picture's, so that the
records' hashes cover a whole shard.
"""

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data.decode import BadPicture, decode_stored
from convnet.data.index import BLOCK, Index, as_array, check_size, mapped
from convnet.data.resize import Fit, centre_square
from convnet.data.statistics import Statistics
from convnet.data.store_header import MAX_HEADER, header_bytes, is_whole, parse, read_header, shard_name
from convnet.data.store_header import is_store as is_store
from convnet.errors import DataError, UsageError, unknown
from convnet.io import atomic, npy, strict_json
from convnet.io.remote import IN_FLIGHT, Ahead, NotThereError, Remote
from convnet.io.strict_json import Json
from convnet.io.urls import Url, place
from convnet.progress import SILENT, Progress

TRAILER = bytes(2 * BLOCK)  # ends a shard
MAX_FILE, MAX_RECORD = 1 << 32, 1 << 27  # bytes of what a stranger's server may send as one
AHEAD = 128 << 20  # bytes of records that are fetched from a URL before they are asked for
LEFT_OUT = {"status", "key", "reason"}
Pixels = NDArray[np.uint8]


# writing


def record(position: int, label: int, suffix: str, payload: bytes) -> bytes:
    """The bytes of one picture in a shard: header, payload, padding, and the .cls member with its label."""
    before, after = around(position, label, suffix, len(payload))
    return b"".join((before, payload, after))


def around(position: int, label: int, suffix: str, length: int) -> tuple[bytes, bytes]:
    """What of a picture's record stands before its payload of `length` bytes, and what behind it."""
    text, name = str(label).encode(), f"{position:09d}."
    behind = bytes(-length % BLOCK), _tar_header(f"{name}cls", len(text)), text, bytes(-len(text) % BLOCK)
    return _tar_header(f"{name}{suffix}", length), b"".join(behind)


def _tar_header(name: str, size: int) -> bytes:
    """As Python's tarfile writes it (USTAR, mode 644, everything else zero), twenty times as fast."""
    nameless, total = _nameless(size)
    head, called = bytearray(nameless), name.encode()
    head[: len(called)] = called
    head[148:156] = b"%06o\0 " % (total + sum(called))
    return bytes(head)


@lru_cache(maxsize=64)
def _nameless(size: int) -> tuple[bytes, int]:
    """The header without the name, and the sum of its bytes."""
    head = bytearray(BLOCK)
    head[100:136] = b"0000644\0" + 2 * b"0000000\0" + b"%011o\0" % size
    head[136:157] = b"00000000000\0" + 8 * b" " + b"0"
    head[257:265] = b"ustar\x0000"
    return bytes(head), sum(head)


def weighted_sum(record: Pixels) -> int:
    """The sum of 1, 3, 5 ... times the record's 64-bit words (little-endian), modulo 2^64.

    Odd weights: a change of one bit, or of one word, always changes it, and so does nearly every exchange of two.
    """
    words = record.view("<u8")
    return int(words.dot(_weights(len(words))))


@lru_cache(maxsize=4)
def _weights(n: int) -> NDArray[np.uint64]:
    return np.arange(1, 2 * n, 2, dtype=np.uint64)


# reading


class Store:
    """A committed store in a folder or behind a URL, open for reading; safe to use from several threads.

    progress: is told once when a server has to be asked again.

    Raises: UsageError when there is none at `path`; DataError when the header or an index is damaged.
    """

    def __init__(self, path: atomic.PathLike | Url, progress: Progress = SILENT) -> None:
        self.path = place(path, "the store")
        self.remote = Remote(self.path, progress) if isinstance(self.path, Url) else None
        self.header = read_header(self.path) if isinstance(self.path, Path) else self._fetched_header()
        self.encoding: str = self.header["encoding"]
        self.size: int = self.header["size"]
        self.shorter_side: int = self.header["shorter_side"]
        self.fit: Fit = self.header.get("fit", "crop")
        self.classes: tuple[str, ...] = tuple(self.header["classes"])
        self.splits = {name: Split(self, name) for name in self.header["splits"]}

    def split(self, name: str) -> "Split":
        """Raises: UsageError when the store has no such split."""
        if name not in self.splits:
            raise UsageError(f"{self.path}: {unknown('split', name, self.splits)}")
        return self.splits[name]

    def with_labels_of(self, classes: Sequence[str], owner: str) -> "Store":
        """This store with the labels of `owner`, a net with these classes: each picture's by its class's name.

        Raises: UsageError when the net lacks a class of the store, naming some.
        """
        if self.classes == tuple(classes):
            return self
        number = {name: k for k, name in enumerate(classes)}
        if lacking := [name for name in self.classes if name not in number]:
            some = ", ".join(repr(name) for name in lacking[:3])
            raise UsageError(
                f"{self.path} has {len(lacking)} classes that {owner} lacks, as {some}; the net's are "
                f"{', '.join(repr(name) for name in classes[:3])} ...: name them alike (convnet import --classes), or "
                "prepare a store with classes of the net"
            )
        other, table = copy(self), np.array([number[name] for name in self.classes], np.int64)
        other.classes = tuple(classes)
        other.splits = {name: split.labelled(other, table) for name, split in self.splits.items()}
        return other

    @property
    def identity(self) -> str:
        """A sha256 for the whole content: the header lists the hashes of the indexes, these those of all records."""
        return hashlib.sha256(header_bytes(self.header)).hexdigest()

    @cached_property
    def mean_picture(self) -> NDArray[np.float32]:
        """float32 (size, size, 3), 0..255."""
        shape, data = (self.size, self.size, 3), self.read_file("mean.npy")
        return as_array(self.path / "mean.npy", data, shape, np.dtype(np.float32)).copy()  # torch wants to write

    @cached_property
    def statistics(self) -> Statistics:
        numbers = self.header["statistics"]
        names = ("mean_rgb", "covariance", "eigenvalues", "eigenvectors")
        return Statistics(numbers["n"], *(np.array(numbers[name], np.float64) for name in names))

    def _fetched_header(self) -> Json:
        assert self.remote is not None
        try:
            data = self.remote.whole("store.json", MAX_HEADER, is_whole)
        except NotThereError as error:
            raise UsageError(
                f"{self.path} is not a store (it has no store.json); copy one there that is whole"
            ) from error
        self.remote.keep(hashlib.sha256(data).hexdigest())
        return parse(data, self.path / "store.json")

    def read_file(self, name: str) -> bytes:
        """A file that the header lists, checked against its sha256."""
        path, listed = self.path / name, self.header["files"][name]
        if isinstance(path, Url):
            assert self.remote is not None
            most = min(listed["bytes"], MAX_FILE)
            return self.remote.whole(name, most, lambda data: hashlib.sha256(data).hexdigest() == listed["sha256"])
        try:
            data = atomic.read(path, listed["bytes"])
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; prepare the store again") from error
        if hashlib.sha256(data).hexdigest() != listed["sha256"]:
            raise DataError(f"{path} is damaged: its sha256 does not match; prepare the store again")
        return data

    def left_out(self) -> list[dict[str, str]]:
        """What preparation skipped, could not use, or found odd: its status, key and reason. Raises: DataError."""
        name = "left_out.jsonl"
        try:
            rows = [strict_json.parse(line) for line in self.read_file(name).splitlines()]
            if any(row.keys() != LEFT_OUT or not all(isinstance(x, str) for x in row.values()) for row in rows):
                raise ValueError(f"a row of other names than {', '.join(sorted(LEFT_OUT))}")
        except ValueError as error:
            raise DataError(f"{self.path / name} is damaged: {error}; prepare the store again") from error
        return rows

    def describe(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{name} {split.n:,}" for name, split in self.splits.items())
        left = self.header["counts"]["skipped"] + self.header["counts"]["failed"]
        kind = f"{self.encoding} {self.size} x {self.size}" + (f" by {self.fit}" if self.fit != "crop" else "")
        return f"{len(self.classes)} classes, {kind}, {parts}{f'; {left:,} left out (left_out.jsonl)' if left else ''}"


class Split:
    """The pictures of one split. Each record's sum is checked when it is read for the first time."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.n = store.header["splits"][name]["n"]
        self.rows = Index(store.path, store.header, name, store.read_file)
        self._table = np.arange(len(store.classes))
        self.labels = self.rows.labels(self._table)
        self._checked = np.zeros(self.n, bool)
        self._maps: dict[int, Pixels] = {}
        self._files: dict[int, mmap.mmap] = {}
        self._records = Ahead(store.remote, self._fetch) if store.remote is not None else None

    def labelled(self, store: Store, table: NDArray[np.int64]) -> "Split":
        """The same pictures as a split of `store`, label k as table[k]."""
        other = copy(self)
        other.store, other._table = store, table[self._table]
        other.labels = self.rows.labels(other._table)
        return other

    @cached_property
    def keys(self) -> Sequence[str]:
        """The pictures' names in the source."""
        return self.rows.names(self.store.read_file)

    def payload(self, i: int) -> Pixels:
        """The bytes of picture i's member, mapped, not copied; of a store behind a URL in memory.

        Raises: DataError naming the shard and the picture when the record's sum does not match.
        """
        if self._records is not None:
            try:
                return self._records.take(i)[BLOCK : BLOCK + self.rows.place(i)[2]]
            except DataError as error:  # named here: in a thread that fetches, names could wait for all of these
                raise DataError(f"picture {self._called(i)}: {error}") from error
        if not self._checked[i]:
            self.verify(i)
            self._checked[i] = True
        shard, offset, length = self.rows.place(i)
        return self._map(shard)[offset : offset + length]

    def ahead(self, parts: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """The parts, in whose order pictures will be read; a store behind a URL fetches those that follow."""
        if self._records is None:
            return iter(parts)
        shards = range(self.store.header["splits"][self.name]["shards"])
        n_bytes = sum(self.store.header["files"][shard_name(self.name, k)]["bytes"] for k in shards)
        return self._records.parts(parts, max(IN_FLIGHT, AHEAD * self.n // max(n_bytes, 1)))

    def _fetch(self, i: int) -> Pixels:
        """The record of picture i from behind the store's URL."""
        assert self.store.remote is not None
        row = self.rows[i]
        file = shard_name(self.name, int(row["shard"]))
        first, length = int(row["offset"]), int(row["length"])

        def is_record(data: bytes) -> bool:
            return len(data) == length and weighted_sum(np.frombuffer(data, np.uint8)) == row["sum"]

        if length > MAX_RECORD:
            raise DataError(f"{self.store.path / file}: {length:,} bytes are more than the {MAX_RECORD:,} of any")
        data = self.store.remote.part(file, first, length, is_record, f"{self.name}-{i:09d}")
        return np.frombuffer(data, np.uint8)

    def _called(self, i: int) -> str:
        """A picture's key, or its number where a server that fails doesn't give the keys: it isn't waited for again."""
        assert self.store.remote is not None
        with self.store.remote.impatient():
            try:
                return repr(self.keys[i])
            except DataError:
                return f"{i} of {self.name}"

    def verify(self, i: int) -> None:
        """Raises: DataError when the record of picture i is not what was written."""
        row = self.rows[i]
        shard = self._map(int(row["shard"]))
        content = shard[int(row["offset"]) : int(row["offset"] + row["length"])]
        if len(content) != row["length"] or weighted_sum(content) != row["sum"]:
            file = self.store.path / shard_name(self.name, int(row["shard"]))
            raise DataError(f"{file} is damaged at picture {self.keys[i]!r}; prepare the store again")

    def picture(self, i: int) -> Pixels:
        """uint8 (H, W, 3): the fixed square of a raw store, the full frame of a jpeg store."""
        return self._decoded(i) if self.store.encoding == "jpeg" else self.square(i)

    def square(self, i: int) -> Pixels:
        """uint8 (size, size, 3): the central square of picture i; of a raw store mapped, not copied."""
        size = self.store.size
        if self.store.encoding == "jpeg":
            return centre_square(self._decoded(i), size)
        return self.payload(i)[npy.HEADER_BYTES :].reshape(size, size, 3)

    @property
    def is_mapped(self) -> bool:
        """Whether the squares lie in memory as they are."""
        return self.store.encoding == "raw" and self._records is None

    def addresses(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Pixels]]:
        """int64 (N,): where the squares of pictures begin, where they are mapped, and the shards, to be held meanwhile:
        a hundred at once take the time of a few by `square`."""
        for i in ids[~self._checked[ids]].tolist():
            self.payload(i)
        rows = self.rows[ids]
        numbers, which = np.unique(rows["shard"], return_inverse=True)
        shards = [self._map(number) for number in numbers.tolist()]
        begins = np.array([shard.__array_interface__["data"][0] for shard in shards], np.int64)
        return begins[which] + rows["offset"].astype(np.int64) + (BLOCK + npy.HEADER_BYTES), shards

    def _decoded(self, i: int) -> Pixels:
        try:
            return decode_stored(self.payload(i))
        except BadPicture as error:
            raise DataError(f"{self.store.path}: {self.keys[i]!r}: {error}") from error

    def crops(self, ids: NDArray[np.int64], tops: NDArray[np.int64], lefts: NDArray[np.int64], crop: int) -> Pixels:
        """uint8 (N, crop, crop, 3): a crop of the central square of each picture `ids`, at row `tops`, column `lefts`.

        Offsets may be negative or reach beyond the square: what lies outside is black (LeNet-5's border).
        """
        out = np.empty((len(ids), crop, crop, 3), np.uint8)
        for k, (i, top, left) in enumerate(zip(ids.tolist(), tops.tolist(), lefts.tolist(), strict=True)):
            out[k] = crop_square(self.square(i), top, left, crop)
        return out

    def check_lengths(self) -> None:
        """Raises: DataError when a shard or the index is mapped, and has been cut."""
        self.rows.check_length()
        for shard, file in list(self._files.items()):  # other threads may map more
            check_size(self.store.path / shard_name(self.name, shard), file, len(file))

    def _map(self, shard: int) -> Pixels:
        if (known := self._maps.get(shard)) is not None:
            return known
        path = self.store.path / shard_name(self.name, shard)
        assert isinstance(path, Path)
        self._files[shard] = mapped(path, self.store.header["files"][path.name]["bytes"])
        self._maps[shard] = pixels = np.frombuffer(self._files[shard], np.uint8)
        return pixels

    def describe(self, ids: NDArray[np.int64]) -> str:
        """Where these pictures lie, for people; without a look at the disk."""
        shards = ", ".join(shard_name(self.name, k) for k in self.rows.shards(ids))
        return f"{self.store.path}: {len(ids)} pictures in {shards}"

    def passed(self, i: int) -> None:
        """Gives back the memory of shards before that of picture i: who goes through a split once needs it no more."""
        now = self.rows.place(i)[0]
        for shard in list(self._maps):
            if shard < now:
                self._maps.pop(shard, None)
                self._files.pop(shard, None)


def crop_square(square: Pixels, top: int, left: int, crop: int) -> Pixels:
    """uint8 (crop, crop, 3): a crop of a square that may reach over its edges, where it is black."""
    size = len(square)
    if top >= 0 and left >= 0 and top + crop <= size and left + crop <= size:
        return square[top : top + crop, left : left + crop]
    out = np.zeros((crop, crop, 3), np.uint8)
    rows = slice(max(top, 0), min(top + crop, size))
    columns = slice(max(left, 0), min(left + crop, size))
    if rows.start < rows.stop and columns.start < columns.stop:
        out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = square[rows, columns]
    return out


def write_files(folder: Path, contents: dict[str, bytes]) -> Json:
    """Writes small files of a store; gives their entries for the header."""
    for name, data in contents.items():
        atomic.write_atomic(folder / name, data)
    return {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
