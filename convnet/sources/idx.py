"""MNIST's files: train-images-idx3-ubyte and its three companions, plain or gzip; also EMNIST's and Fashion-MNIST's.

An IDX file is a magic number (0, 0, 8 for bytes, the number of axes), the length of each axis as 4 bytes, highest
first, and the values. `t10k` is the test split. Grey becomes three equal channels.
"""

import gzip
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError, UsageError
from convnet.files import CHUNK
from convnet.sources.listing import SPLITS, Entry, Source, array_stamp, shown, slug

NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(?P<gz>\.gz)?", re.I
)
LARGEST = 2 << 30  # bytes of the values of one file
DEFLATE = 1032  # no gzip holds more than this times its size


def is_idx(names: list[str]) -> bool:
    """Whether a folder with these names holds IDX pictures."""
    return any((match := NAME.fullmatch(name)) and match["what"].lower() == "images" for name in names)


def open_idx(where: Path) -> Source:
    """The source of a folder of IDX files.

    Raises: UsageError when a file of the set is missing; DataError when one is damaged.
    """
    sets, others = _sets(where)
    parts = [(part, *_part(sets, part, where)) for part in SPLITS if part in sets]
    if not parts or parts[0][0] != "train":
        raise UsageError(f"{shown(where)} holds IDX files but no train-images-idx3-ubyte; put it there")
    n_classes = 1 + max(int(labels.max(initial=0)) for _, _, labels in parts)
    arrays = {part: images for part, images, _ in parts}
    entries = [
        Entry(f"{part}/{number:05d}", part, int(label), (part, number), array_stamp(arrays[part][number]))
        for part, _, labels in parts
        for number, label in enumerate(labels)
    ]

    def read(entry: Entry) -> NDArray[np.uint8]:
        part, number = entry.place
        return np.repeat(arrays[part][number][:, :, None], 3, axis=2)

    sizes = {side for images in arrays.values() for side in images.shape[1:]}
    classes = tuple(str(label) for label in range(n_classes))
    notes = () if "test" in arrays else ("there is no test split: t10k-images-idx3-ubyte is missing",)
    skipped = tuple((name, "not an IDX file of this set") for name in others)
    size = sizes.pop() if len(sizes) == 1 else None
    return Source(slug(where), "IDX", classes, entries, skipped, (), size, notes, read)


def _sets(where: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """{train or test: {images or labels: path}}, and the names that belong to neither; a plain file beats its .gz."""
    sets: dict[str, dict[str, Path]] = {}
    prefixes, others = set(), []
    for name in sorted(os.listdir(where)):
        match = NAME.fullmatch(name)
        if match is None:
            others.append(shown(name))
            continue
        prefixes.add(match["prefix"])
        files = sets.setdefault("train" if match["part"].lower() == "train" else "test", {})
        if match["what"].lower() in files:
            others.append(shown(name))
        else:
            files[match["what"].lower()] = where / name
    if len(prefixes) > 1:
        raise UsageError(f"{shown(where)} holds several IDX sets: {', '.join(sorted(prefixes))}; keep one in a folder")
    return sets, others


def _part(sets: dict[str, dict[str, Path]], part: str, where: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of a split."""
    for what in ("images", "labels"):
        if what not in sets[part]:
            name = f"{'train' if part == 'train' else 't10k'}-{what}-idx{3 if what == 'images' else 1}-ubyte"
            raise UsageError(f"{shown(where)}: {name} is missing; put it there, plain or as .gz")
    images, labels = read_idx(sets[part]["images"], 3), read_idx(sets[part]["labels"], 1)
    if len(images) != len(labels):
        name = shown(sets[part]["labels"])
        raise DataError(f"{name}: {len(labels):,} labels for {len(images):,} images; get both files again")
    if min(images.shape[1:]) < 1:
        raise DataError(f"{shown(sets[part]['images'])}: pictures of {images.shape[1]} x {images.shape[2]} pixels")
    return images, labels


def read_idx(path: Path, n_axes: int) -> NDArray[np.uint8]:
    """The uint8 array of an IDX file with so many axes; memory is bounded by the file, whatever its header claims.

    Raises: DataError when it is damaged or of another kind.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{shown(path)} is not a regular file")
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) if packed else file as stream:
                return _values(stream, path, n_axes, status.st_size * (DEFLATE if packed else 1))  # type: ignore[arg-type]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{shown(path)} is damaged or cut short ({error}); get it again") from error


def _values(stream: IO[bytes], path: Path, n_axes: int, most: int) -> NDArray[np.uint8]:
    head = stream.read(4 + 4 * n_axes)
    if len(head) < 4 + 4 * n_axes or head[:4] != bytes((0, 0, 8, n_axes)):
        raise DataError(
            f"{shown(path)}: begins with {head[:4].hex(' ')}, but an IDX file of {n_axes} axes with 00 00 08 0{n_axes}"
        )
    shape = struct.unpack(f">{n_axes}I", head[4:])
    expected = 1
    for length in shape:
        expected *= length
    if expected > most or expected > LARGEST:
        raise DataError(f"{shown(path)}: its header claims {' x '.join(map(str, shape))} values, more than it can hold")
    data = bytearray()
    while len(data) <= expected and (piece := stream.read(min(CHUNK, expected + 1 - len(data)))):
        data += piece
    if len(data) != expected:
        longer = "more" if len(data) > expected else f"{len(data):,}"
        raise DataError(f"{shown(path)}: {expected:,} values expected, {longer} found; get it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
