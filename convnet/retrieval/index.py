"""An index of pictures on disk: names, labels, features or codes, and of which net. docs/retrieval.md has every byte.

It is one safetensors file with the pictures in the order of their names. Every byte is under a sha256: of all but the
features one that is held on opening, and of the features one for each block, held when the block is first read: so
features may be larger than the memory. Whatever changes an index writes it anew and puts it in the old one's place.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from convnet.errors import DataError, UsageError
from convnet.io import atomic, safetensors, strict_json
from convnet.retrieval.codes import PQ, Coder, Layer
from convnet.retrieval.hamming import Codes, Words, by_rows, by_words
from convnet.retrieval.products import CENTRES

FORMAT = "convnet index 1"
WRITTEN = "index that convnet index wrote", "index again"
BLOCK = 1 << 18  # bytes of features under one sha256
PIECE = 64  # blocks that are searched at a time
Features = NDArray[np.float16]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Contents:
    """What an index says beside its numbers.

    checkpoint  the file of the net
    sha256      of that file
    stage       whose activations the features are
    n_features  D, of a picture
    names       of the pictures, in order
    classes     the labels' names
    coder       the kind of its codes, or ""
    made        the sha256 of what was asked for when it was made; "" once pictures were added or removed
    """

    checkpoint: str
    sha256: str
    stage: str
    n_features: int
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    coder: str = ""
    made: str = ""

    @property
    def n(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Index:
    """An index that was opened; its features are read from the file as they are asked for.

    labels  int64 (n,): places in `classes`, -1 where nobody knows
    words   the codes, as `hamming.nearest` searches them; None without
    """

    path: Path
    contents: Contents
    labels: Ints
    coder: Coder | None
    words: Words | None
    has_features: bool
    _digests: tuple[bytes, ...] = field(repr=False)
    _begin: int = field(repr=False)  # bytes before the features
    _stamp: tuple[int, ...] = field(repr=False)
    _held: set[int] = field(default_factory=set, repr=False)  # blocks whose sha256 was right

    @cached_property
    def n_rows(self) -> int:
        """Of a block."""
        return rows_of(self.contents.n_features)

    @property
    def codes(self) -> Codes | None:
        """uint8 (n, bytes)."""
        return None if self.words is None else by_rows(self.words)

    def label(self, i: int) -> str:
        """The class of a picture, "" where nobody knows."""
        return "" if self.labels[i] < 0 else self.contents.classes[self.labels[i]]

    def check_checkpoint(self, checkpoint: Path) -> None:
        """Raises: UsageError when the features are of another net than the one in that file."""
        if (digest := atomic.sha256_file(checkpoint)) != self.contents.sha256:
            raise UsageError(
                f"{self.path} is of a checkpoint whose sha256 is {self.contents.sha256[:12]}..., and {checkpoint} has "
                f"{digest[:12]}...; name the checkpoint that the index was made with, or make another index"
            )

    def blocks(self) -> Iterator[Features]:
        """All features, float16 (m, D) at a time. Raises: DataError for damage."""
        step = PIECE * self.n_rows
        for at in range(0, self.contents.n, step):
            yield self.features(np.arange(at, min(at + step, self.contents.n)))

    def features(self, ids: Ints) -> Features:
        """float16 (m, D): of the pictures at these positions. Raises: DataError for damage."""
        assert self.has_features
        found = np.empty((len(ids), self.contents.n_features), np.float16)
        numbers = ids // self.n_rows
        with atomic.reading(self.path, *WRITTEN), open(self.path, "rb", opener=atomic.regular) as file:
            if _stamp(file.fileno()) != self._stamp:
                raise UsageError(f"{self.path} has changed since it was opened; run the same command again")
            for number in np.unique(numbers).tolist():
                chosen = numbers == number
                found[chosen] = self._block(file.fileno(), number)[ids[chosen] - number * self.n_rows]
        return found

    def _block(self, handle: int, number: int) -> Features:
        size = 2 * self.contents.n_features
        first, last = (min(each * self.n_rows, self.contents.n) * size for each in (number, number + 1))
        data = os.pread(handle, last - first, self._begin + first)
        if number not in self._held:
            if hashlib.sha256(data).digest() != self._digests[number]:
                raise DataError(f"it is damaged: the sha256 of block {number} of the features does not match")
            self._held.add(number)
        return np.frombuffer(data, np.float16).reshape(-1, self.contents.n_features)


def rows_of(n_features: int) -> int:
    """How many pictures' features are under one sha256."""
    return max(1, BLOCK // (2 * n_features))


def write(
    path: Path,
    contents: Contents,
    labels: Ints,
    features: Callable[[Ints], Features] | None,
    coder: Coder | None = None,
    codes: Codes | None = None,
) -> None:
    """Writes an index in the place of what is at `path`. features: of pictures by position, or None for none at all.

    Raises: DiskError; the former file is then untouched.
    """
    small = {"labels": torch.from_numpy(labels), "meta": _bytes(json.dumps(asdict(contents)).encode())}
    if coder is not None and codes is not None:
        small["codes"] = torch.from_numpy(codes)
        for i, layer in enumerate(coder.layers):
            small |= {f"coder.{i}.{k}": torch.from_numpy(np.ascontiguousarray(part)) for k, part in enumerate(layer)}
    content: dict[str, torch.Tensor | safetensors.LazyTensor] = {**small}
    digests: list[bytes] = []
    if features is not None:
        step = rows_of(contents.n_features)

        def rows() -> Iterator[bytes]:
            for at in range(0, contents.n, step):
                data = features(np.arange(at, min(at + step, contents.n))).tobytes()
                digests.append(hashlib.sha256(data).digest())
                yield data

        shape = contents.n, contents.n_features
        content["features"] = safetensors.LazyTensor(torch.float16, shape, rows)
        content["digests"] = safetensors.LazyTensor(torch.uint8, (-(-contents.n // step), 32), lambda: iter(digests))
    seal = safetensors.LazyTensor(torch.uint8, (32,), lambda: iter([_seal(header, small, digests)]))
    pieces = safetensors.pieces({**content, "seal": seal}, {"format": FORMAT})
    header = bytes(next(pieces))
    atomic.write_atomic(path, chain([header], map(bytes, pieces)))


def load(place: atomic.PathLike) -> Index:
    """The index in a file. Raises: UsageError when there is none; DataError when it isn't one, or is damaged."""
    path = atomic.as_path(place, "the index")
    if not path.is_file():
        raise UsageError(f"{path}: no such index; convnet index CHECKPOINT STORE {path} makes it")
    with atomic.reading(path, *WRITTEN):
        with open(path, "rb", opener=atomic.regular) as file:
            stamp = _stamp(file.fileno())
        whole = torch.from_file(str(path), size=stamp[1], dtype=torch.uint8)  # mapped
        tensors, metadata = safetensors.parse_all(whole)
        if metadata != {"format": FORMAT}:
            raise DataError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        features, digests, seal = (tensors.pop(name, None) for name in ("features", "digests", "seal"))
        header = bytes(whole[: 8 + int.from_bytes(bytes(whole[:8].numpy()), "little")].numpy())
        table = [] if digests is None else [bytes(row) for row in digests.numpy()]
        if seal is None or _seal(header, tensors, table) != bytes(seal.numpy()):
            raise DataError("it is damaged: its sha256 does not match")
        return _checked(path, tensors, features, tuple(table), stamp, whole)


def _checked(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    features: torch.Tensor | None,
    digests: tuple[bytes, ...],
    stamp: tuple[int, ...],
    whole: torch.Tensor,
) -> Index:
    """The index, whose bytes are as they were written; but by whom is not known."""
    contents, labels = _contents(bytes(tensors["meta"].numpy())), np.array(tensors["labels"].numpy())
    n, d = contents.n, contents.n_features
    if (
        labels.shape != (n,)
        or labels.dtype != np.int64
        or not ((labels >= -1) & (labels < len(contents.classes))).all()
    ):
        raise DataError(f"its labels are not {n} of {len(contents.classes)} classes")
    given = (torch.float16, (n, d), -(-n // rows_of(d)))
    if features is not None and (features.dtype, tuple(features.shape), len(digests)) != given:
        raise DataError(f"its features are not {n} rows of {d}")
    coder, words = _coded(tensors, contents)
    begin = 0 if features is None else features.data_ptr() - whole.data_ptr()
    return Index(path, contents, labels, coder, words, features is not None, digests, begin, stamp)


def _contents(text: bytes) -> Contents:
    contents = Contents(**strict_json.parse(text))
    names, classes = tuple(contents.names), tuple(contents.classes)
    words = contents.checkpoint, contents.sha256, contents.stage, contents.coder, contents.made
    texts = (*words, *names, *classes)
    if not all(isinstance(text, str) for text in texts) or type(contents.n_features) is not int:
        raise DataError("what it says of itself is of the wrong kind")
    contents = replace(contents, names=names, classes=classes)
    if contents.n_features < 1 or list(names) != sorted(set(names)):
        raise DataError("it has no features, or its names are not in order")
    return contents


def _coded(tensors: Mapping[str, torch.Tensor], contents: Contents) -> tuple[Coder | None, Words | None]:
    if not contents.coder:
        return None, None
    n_layers = sum(name.startswith("coder.") for name in tensors) // 2
    layers = tuple(
        (np.array(tensors[f"coder.{i}.0"].numpy()), np.array(tensors[f"coder.{i}.1"].numpy())) for i in range(n_layers)
    )
    fit = _parts_fit if contents.coder == PQ else _layers_fit
    if any(part.dtype != np.float32 for layer in layers for part in layer) or not fit(layers, contents.n_features):
        raise DataError("its coder's layers don't fit each other")
    coder, codes = Coder(contents.coder, layers), tensors["codes"].numpy()
    if codes.dtype != np.uint8 or codes.shape != (contents.n, -(-coder.n_bits // 8)):
        raise DataError(f"its codes are not {contents.n} of {coder.n_bits} bits")
    if contents.coder == PQ and (codes >= [len(biases) for _, biases in layers]).any():
        raise DataError("its codes name centres that it lacks")
    return coder, by_words(codes)


def _layers_fit(layers: Sequence[Layer], width: int) -> bool:
    """Each layer reads what the one before gives, the first one the features."""
    for weights, biases in layers:
        if biases.ndim != 1 or weights.shape != (width, *biases.shape):
            return False
        (width,) = biases.shape
    return bool(layers)


def _parts_fit(layers: Sequence[Layer], width: int) -> bool:
    """Each layer reads its own part of the features, and has 1 to 256 centres."""
    if any(b.ndim != 1 or w.shape[1:] != b.shape or not 1 <= len(b) <= CENTRES for w, b in layers):
        return False
    return bool(layers) and sum(len(weights) for weights, _ in layers) == width


def _seal(header: bytes, small: Mapping[str, torch.Tensor], digests: Sequence[bytes]) -> bytes:
    """The sha256 of all but the features, whose own are `digests`."""
    digest = hashlib.sha256(header)
    for name in sorted(small):
        digest.update(small[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(b"".join(digests))
    return digest.digest()


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _stamp(handle: int) -> tuple[int, ...]:
    status = os.fstat(handle)
    return status.st_ino, status.st_size, status.st_mtime_ns
