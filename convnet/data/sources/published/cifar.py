"""CIFAR-10 and CIFAR-100 as published: binary files, or python batches (pickles, read without unpickling).

                 train                     test              class names              one record
10, binary       data_batch_*.bin          test_batch.bin    batches.meta.txt         label, 3072 pixels
100, binary      train.bin                 test.bin          fine_label_names.txt     coarse, fine label, 3072 pixels
10, python       data_batch_*              test_batch        batches.meta             data, labels
100, python      train                     test              meta                     data, fine_labels

A picture is 3 planes of 32 x 32, red first. Keys count over the batches in order: `train/00000`.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data.sources.listing import Source, array_source, shown
from convnet.data.sources.published.pickles import Array, read_pickle
from convnet.errors import DataError, UsageError
from convnet.io.atomic import read

SIDE = 32  # pixels
PIXELS = 3 * SIDE * SIDE  # bytes of one picture
PUBLISHED = {10: 10_000, 100: 50_000}  # pictures of one training file
META = {".bin": {10: "batches.meta.txt", 100: "fine_label_names.txt"}, "": {10: "batches.meta", 100: "meta"}}
LARGEST = 1 << 30  # bytes of one file
FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python")
ARCHIVE = re.compile(r"cifar-100?-(python|binary)\.(tar\.gz|tgz|tar)", re.I)  # as they are published

Batch = tuple[NDArray[np.uint8], list[int]]  # pixels (N, 3072) and labels


def is_cifar(names: Iterable[str]) -> bool:
    """Whether files of these names are CIFAR's. `train`, `test` and `meta` must be files: folders may be called so."""
    there = set(names)
    batches = any(re.fullmatch(r"data_batch_\d+(\.bin)?", name) for name in there)
    return batches or {"train.bin", "test.bin"} <= there or {"train", "test", "meta"} <= there


def cifar_folders(root: Path, names: list[str]) -> list[Path]:
    """CIFAR's folders and archives as published, in a folder with these names; one that is unpacked counts once."""
    inside = [name for name in FOLDERS if name in names and (root / name).is_dir()]
    packed = [name for name in sorted(names) if ARCHIVE.fullmatch(name) and (root / name).is_file()]
    unpacked = {_stem(name) for name in inside}
    return [root / name for name in [*inside, *(name for name in packed if _stem(name) not in unpacked)]]


def _stem(name: str) -> str:
    """What folder and archive of one data set share: cifar-10-batches-py and cifar-10-python.tar.gz -> 10 py."""
    return re.sub(r"cifar-(100?)-(?:batches-)?(py|bin).*", r"\1 \2", name.lower())


def open_cifar(root: Path) -> Source:
    """The source of a folder of CIFAR files; see `cifar_of`."""
    return cifar_of({name: partial(read, root / name, LARGEST) for name in os.listdir(root)}, root)


def cifar_of(files: Mapping[str, Callable[[], bytes]], path: Path) -> Source:
    """The source of CIFAR's files, by their names; `path` is the folder or archive that holds them.

    Raises: UsageError when a file is missing; DataError when one is damaged.
    """
    names = sorted(files)
    end = ".bin" if any(name.endswith(".bin") for name in names) else ""
    batches = [name for name in names if re.fullmatch(rf"data_batch_\d+{re.escape(end)}", name)]
    batches.sort(key=lambda name: int(name.removesuffix(end).rsplit("_", 1)[1]))
    kind, test = (10, f"test_batch{end}") if batches else (100, f"test{end}")
    train = batches or [name for name in names if name == f"train{end}"]
    if not train:
        raise UsageError(f"{shown(path)}: CIFAR's training file is missing; put it there")
    meta, notes = META[end][kind], []
    if meta in files:
        classes = _classes(files[meta](), path / meta, kind, end)
    else:
        classes = tuple(str(label) for label in range(kind))
        notes.append(f"{meta} is missing: the classes are named by their numbers")
    if test not in files:
        notes.append("there is no test split: its file is missing")
    splits = {}
    for split, group in {"train": train, "test": [test] if test in files else []}.items():
        parts = [(_binary if end else _python)(files[name](), path / name, kind, len(classes)) for name in group]
        if parts:
            pixels = parts[0][0] if len(parts) == 1 else np.concatenate([pixels for pixels, _ in parts])
            splits[split] = pixels, [label for _, labels in parts for label in labels]
    skipped = [(shown(name), "not a CIFAR batch") for name in names if name not in (*train, test, meta)]
    title = f"CIFAR-{kind}, {'binary' if end else 'python batches'}"
    return array_source(f"cifar{kind}", title, classes, splits, _from_planes, SIDE, skipped, notes)


def _from_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return planes.reshape(3, SIDE, SIDE).transpose(1, 2, 0)


def _classes(data: bytes, path: Path, kind: int, end: str) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels."""
    if end:
        names: list[object] = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        values = _values(read_pickle(data, shown(path)), "fine_label_names" if kind == 100 else "label_names", path)
        names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in values]
    texts = [name.encode("utf-8", "backslashreplace").decode() for name in names if isinstance(name, str)]
    if not names or len(texts) < len(names) or len(set(names)) < len(names):
        raise DataError(f"{shown(path)}: no list of different class names; get it again")
    return tuple(texts)


def _binary(data: bytes, path: Path, kind: int, n_classes: int) -> Batch:
    record = PIXELS + (2 if kind == 100 else 1)
    if not data or len(data) % record:
        raise DataError(
            f"{shown(path)}: {len(data):,} bytes are not a multiple of {record:,} (a published training file has "
            f"{record * PUBLISHED[kind]:,}); get it again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, record - PIXELS :], _checked(rows[:, record - PIXELS - 1].tolist(), n_classes, path)


def _python(data: bytes, path: Path, kind: int, n_classes: int) -> Batch:
    table = read_pickle(data, shown(path))
    labels = _values(table, "fine_labels" if kind == 100 else "labels", path)
    array = _item(table, "data", path)
    if not isinstance(array, Array) or array.dtype[-2:] != "u1" or array.shape != (len(labels), PIXELS) or not labels:
        what = f"{np.dtype(array.dtype)} {array.shape}" if isinstance(array, Array) else type(array).__name__
        raise DataError(f"{shown(path)}: data is {what}, but must be uint8 ({len(labels)}, {PIXELS}); get it again")
    return array.numpy().astype(np.uint8, copy=False), _checked(labels, n_classes, path)


def _checked(labels: list[object], n_classes: int, path: Path) -> list[int]:
    """The labels, each from 0 to below n_classes."""
    numbers = []
    for n, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < n_classes:
            what = str(label)[:20] if type(label) is int and label.bit_length() < 64 else type(label).__name__
            raise DataError(f"{shown(path)}: picture {n} has the label {what}, but there are {n_classes} classes")
        numbers.append(label)
    return numbers


def _item(table: object, key: str, path: Path) -> object:
    """What a python batch has under a name."""
    if not isinstance(table, dict):
        raise DataError(f"{shown(path)}: holds no table, but {type(table).__name__}")
    for name in (key, key.encode()):
        if name in table:
            return table[name]
    raise DataError(f"{shown(path)}: has no '{key}'; is it a CIFAR batch?")


def _values(table: object, key: str, path: Path) -> list[object]:
    """The list that a python batch has under a name."""
    value = _item(table, key, path)
    if isinstance(value, Array):
        return list(value.numpy().ravel().tolist())
    if not isinstance(value, list | tuple):
        raise DataError(f"{shown(path)}: a list is expected, but it has {type(value).__name__}")
    return list(value)
