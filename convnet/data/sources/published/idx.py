"""MNIST's files: train-images-idx3-ubyte and its three companions, plain or gzip; also EMNIST's and Fashion-MNIST's.

An IDX file is a magic number (0, 0, 8 for bytes, the number of axes), the length of each axis as 4 bytes, highest
first, and the values. `t10k` is the test split. Grey becomes three equal channels.

EMNIST (emnist-letters-train-images-idx3-ubyte, ...) has its pictures transposed; they are turned upright. What its
labels mean stands in emnist-letters-mapping.txt: a label and the codes of its characters, `1 65 97`.
"""

import gzip
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data.sources.listing import SPLITS, Reason, Source, array_source, shown, slug
from convnet.errors import DataError, UsageError
from convnet.io.atomic import CHUNK, regular

NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(?P<gz>\.gz)?", re.I
)
LARGEST = 2 << 30  # bytes of the values of one file
LONGEST = 1 << 16  # bytes of a mapping
DEFLATE = 1032  # no gzip holds more than this times its size


def is_idx(names: Iterable[str]) -> bool:
    """Whether a folder with these names holds IDX pictures."""
    return any((match := NAME.fullmatch(name)) and match["what"].lower() == "images" for name in names)


def idx_folders(root: Path, names: list[str]) -> list[Path]:
    """The folders below that hold IDX pictures as torchvision lays them: MNIST/raw below its root, raw below MNIST."""
    below = [root / name / "raw" for name in sorted(names)] if "raw" not in names else []
    inside = [root / "raw", *below, *(root / name for name in sorted(names) if name.upper().endswith("MNIST"))]
    return [folder for folder in inside if folder.is_dir() and is_idx(os.listdir(folder))]


def open_idx(root: Path, prefix: str | None = None) -> Source:
    """The source of a folder of IDX files; of several sets in it the one whose names begin with `prefix`.

    Raises: UsageError when a file of the set is missing, or the set must be chosen; DataError when one is damaged.
    """
    prefix, sets, others = _sets(root, prefix)
    if "train" not in sets:
        raise UsageError(f"{shown(root)} holds IDX files but no train-images-idx3-ubyte; put it there")
    arrays = {split: _split(sets[split], split, root) for split in SPLITS if split in sets}
    numbers = sorted({int(n) for _, labels in arrays.values() for n in np.unique(labels)})
    classes, notes = _classes(root, prefix, numbers)
    name = slug(root.parent if root.name == "raw" else root)
    if prefix.lower().startswith("emnist-"):
        name = prefix.strip("-_.")
        arrays = {split: (images.transpose(0, 2, 1), labels) for split, (images, labels) in arrays.items()}
        notes.append("EMNIST's pictures are stored transposed: they were turned upright")
    if "test" not in arrays:
        notes.append("there is no test split: t10k-images-idx3-ubyte is missing")
    sides = {side for images, _ in arrays.values() for side in images.shape[1:]}
    size = sides.pop() if len(sides) == 1 else None
    splits = {
        split: (images, [int(k) for k in np.searchsorted(numbers, labels)])
        for split, (images, labels) in arrays.items()
    }
    return array_source(name, "IDX", classes, splits, _grey, size, others, notes)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(picture[:, :, None], 3, axis=2)


def _classes(root: Path, prefix: str, labels: list[int]) -> tuple[tuple[str, ...], list[str]]:
    """The names of the classes, which are the labels that occur, in order; and notes.

    Raises: DataError when the mapping beside the files is damaged, or lacks a label.
    """
    path = root / f"{prefix}mapping.txt"
    names, notes = {label: str(label) for label in labels}, []
    if os.path.lexists(path):
        names = _mapping(path)
        if lacking := [label for label in labels if label not in names]:
            raise DataError(f"{shown(path)} lacks the label {lacking[0]}, which pictures have; get it again")
        if unused := sorted(names.keys() - set(labels)):
            notes.append(f"{shown(path.name)}: no picture has the labels {_some(unused)}; they are no classes")
    elif labels != list(range(len(labels))):
        notes.append(
            f"the labels are {_some(labels)}; output k of a net is the k-th of them from 0, and class names are numbers"
        )
    return tuple(names[label] for label in labels), notes


def _some(labels: list[int]) -> str:
    return ", ".join(map(str, labels)) if len(labels) < 7 else f"{labels[0]}, {labels[1]} ... {labels[-1]}"


def _mapping(path: Path) -> dict[int, str]:
    """{label: characters} of a file of lines `label code` or `label code code`: `1 65 97` is Aa."""
    names: dict[int, str] = {}
    with open(path, encoding="ascii", errors="replace", opener=regular) as file:
        lines = file.read(LONGEST).splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and (len(words) < 2 or not all(word.isdigit() and int(word) < 128 for word in words)):
            raise DataError(f"{shown(path)}, line {number}: {line[:40]!r} is no label with codes of ASCII characters")
        if words and names.setdefault(int(words[0]), text := "".join(chr(int(word)) for word in words[1:])) != text:
            raise DataError(f"{shown(path)}, line {number}: label {words[0]} is there twice")
    if len(set(names.values())) < len(names):
        raise DataError(f"{shown(path)}: two labels have the same characters")
    return names


def _sets(root: Path, prefix: str | None) -> tuple[str, dict[str, dict[str, Path]], list[Reason]]:
    """The prefix, {train or test: {images or labels: path}}, and what belongs to neither; a plain file beats its .gz.

    Raises: UsageError when there are several sets and none is chosen.
    """
    matches = {name: NAME.fullmatch(name) for name in sorted(os.listdir(root))}
    prefixes = sorted({match["prefix"] for match in matches.values() if match})
    if prefix is None and len(prefixes) > 1:
        first = next(name for name, match in matches.items() if match and match["what"].lower() == "images")
        raise UsageError(
            f"{shown(root)} holds several IDX sets: {', '.join(word.rstrip('-') or 'train' for word in prefixes)}; "
            f"point at the images of one, as in: convnet prepare {shown(root / first)} STORE"
        )
    prefix = prefixes[0] if prefix is None else prefix
    sets: dict[str, dict[str, Path]] = {}
    others: list[Reason] = []
    for name, match in matches.items():
        if match is None or match["prefix"] != prefix:
            if name != f"{prefix}mapping.txt":
                others.append((shown(name), "not an IDX file of this set"))
            continue
        files = sets.setdefault("train" if match["part"].lower() == "train" else "test", {})
        if (former := files.setdefault(match["what"].lower(), root / name)) != root / name:
            others.append((shown(name), f"{shown(former.name)} is used"))
    return prefix, sets, others


def _split(files: dict[str, Path], split: str, root: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of a split."""
    for what, n_axes in (("images", 3), ("labels", 1)):
        if what not in files:
            name = f"{'train' if split == 'train' else 't10k'}-{what}-idx{n_axes}-ubyte"
            raise UsageError(f"{shown(root)}: {name} is missing; put it there, plain or as .gz")
    images, labels = read_idx(files["images"], 3), read_idx(files["labels"], 1)
    if len(images) != len(labels):
        name = shown(files["labels"])
        raise DataError(f"{name}: {len(labels):,} labels for {len(images):,} images; get both files again")
    if min(images.shape[1:]) < 1:
        raise DataError(f"{shown(files['images'])}: pictures of {images.shape[1]} x {images.shape[2]} pixels")
    return images, labels


def read_idx(path: Path, n_axes: int) -> NDArray[np.uint8]:
    """The uint8 array of an IDX file with so many axes; memory is bounded by the file, whatever its header claims.

    Raises: DataError when it is damaged or of another kind.
    """
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) if packed else file as stream:
                return _values(stream, path, n_axes, size * (DEFLATE if packed else 1))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{shown(path)} is damaged or cut short ({error}); get it again") from error


def _values(stream: io.BufferedIOBase, path: Path, n_axes: int, most: int) -> NDArray[np.uint8]:
    head = stream.read(4 + 4 * n_axes)
    if len(head) < 4 + 4 * n_axes or head[:4] != bytes((0, 0, 8, n_axes)):
        raise DataError(
            f"{shown(path)}: begins with {head[:4].hex(' ')}, but an IDX file of {n_axes} axes with 00 00 08 0{n_axes}"
        )
    shape = struct.unpack(f">{n_axes}I", head[4:])
    expected = math.prod(shape)
    if expected > most or expected > LARGEST:
        raise DataError(f"{shown(path)}: its header claims {' x '.join(map(str, shape))} values, more than it can hold")
    data = bytearray()
    while len(data) <= expected and (piece := stream.read(min(CHUNK, expected + 1 - len(data)))):
        data += piece
    if len(data) != expected:
        longer = "more" if len(data) > expected else f"{len(data):,}"
        raise DataError(f"{shown(path)}: {expected:,} values expected, {longer} found; get it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
