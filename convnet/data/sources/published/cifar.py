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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet.data.sources.listing import Entry, Source, array_stamp, shown
from convnet.data.sources.published.pickles import Array, read_pickle
from convnet.errors import DataError, UsageError
from convnet.io.atomic import read

SIDE = 32  # pixels
PIXELS = 3 * SIDE * SIDE  # bytes of one picture
PUBLISHED = {10: 10_000, 100: 50_000}  # pictures of one training file
LARGEST = 1 << 30  # bytes of one file
FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python")
ARCHIVE = re.compile(r"cifar-100?-(python|binary)\.(tar\.gz|tgz|tar)", re.I)  # as they are published


def is_cifar(names: Iterable[str]) -> bool:
    """Whether files of these names are CIFAR's. `train`, `test` and `meta` must be files: folders may be called so."""
    there = set(names)
    batches = any(re.fullmatch(r"data_batch_\d+(\.bin)?", name) for name in there)
    return batches or {"train.bin", "test.bin"} <= there or {"train", "test", "meta"} <= there


def cifar_folders(where: Path, names: list[str]) -> list[Path]:
    """CIFAR's folders and archives as published, in a folder with these names; one that is unpacked counts once."""
    inside = [name for name in FOLDERS if name in names and (where / name).is_dir()]
    packed = [name for name in sorted(names) if ARCHIVE.fullmatch(name) and (where / name).is_file()]
    unpacked = {_stem(name) for name in inside}
    return [where / name for name in [*inside, *(name for name in packed if _stem(name) not in unpacked)]]


def _stem(name: str) -> str:
    """What folder and archive of one data set share: cifar-10-batches-py and cifar-10-python.tar.gz -> 10 py."""
    return re.sub(r"cifar-(100?)-(?:batches-)?(py|bin).*", r"\1 \2", name.lower())


def open_cifar(where: Path) -> Source:
    """The source of a folder of CIFAR files; see `cifar_of`."""
    return cifar_of({name: partial(read, where / name, LARGEST) for name in os.listdir(where)}, where)


def cifar_of(files: Mapping[str, Callable[[], bytes]], where: Path) -> Source:
    """The source of CIFAR's files, by their names; `where` is the folder or archive that holds them.

    Raises: UsageError when a file is missing; DataError when one is damaged.
    """
    names = sorted(files)
    binary = any(name.endswith(".bin") for name in names)
    hundred, parts = _files(names, ".bin" if binary else "")
    if not parts["train"]:
        raise UsageError(f"{shown(where)}: CIFAR's training file is missing; put it there")
    meta = _meta_name(hundred, binary)
    classes = _classes(files[meta](), where / meta, hundred, binary) if meta in names else ()
    notes = [] if classes else [f"{meta} is missing: the classes are named by their numbers"]
    n_classes = len(classes) or (100 if hundred else 10)
    arrays, entries = _arrays(files, parts, where, hundred, n_classes, _binary if binary else _python)
    if "test" not in arrays:
        notes.append("there is no test split: its file is missing")
    used = {*parts["train"], *parts["test"], meta}
    skipped = tuple((shown(name), "not a CIFAR batch") for name in names if name not in used)

    def picture(entry: Entry) -> NDArray[np.uint8]:
        part, number = entry.place
        planes = arrays[part][number].reshape(3, SIDE, SIDE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    kind = f"CIFAR-{100 if hundred else 10}, {'binary' if binary else 'python batches'}"
    classes = classes or tuple(str(label) for label in range(n_classes))
    name = "cifar100" if hundred else "cifar10"
    return Source(name, kind, classes, entries, skipped, (), SIDE, tuple(notes), picture)


Batch = tuple[NDArray[np.uint8], list[int]]  # pixels (N, 3072) and labels


def _arrays(
    files: Mapping[str, Callable[[], bytes]],
    parts: dict[str, list[str]],
    where: Path,
    hundred: bool,
    n_classes: int,
    read: Callable[[bytes, Path, bool, int], Batch],
) -> tuple[dict[str, NDArray[np.uint8]], list[Entry]]:
    """The pixels (N, 3072) of each split, its batches one after the other, and the entries."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    entries: list[Entry] = []
    for part in [part for part, group in parts.items() if group]:
        batches = [read(files[name](), where / name, hundred, n_classes) for name in parts[part]]
        arrays[part] = np.concatenate([pixels for pixels, _ in batches]) if len(batches) > 1 else batches[0][0]
        labels = [label for _, group in batches for label in group]
        entries += [
            Entry(f"{part}/{n:05d}", part, label, (part, n), array_stamp(arrays[part][n]))
            for n, label in enumerate(labels)
        ]
    return arrays, entries


def _files(names: list[str], end: str) -> tuple[bool, dict[str, list[str]]]:
    """Whether it is CIFAR-100, and the files of each split that are there, in order."""
    batches = [name for name in names if re.fullmatch(rf"data_batch_\d+{re.escape(end)}", name)]
    batches.sort(key=lambda name: int(name.removesuffix(end).rsplit("_", 1)[1]))
    if batches:
        return False, {"train": batches, "test": [name for name in names if name == f"test_batch{end}"]}
    return True, {part: [name for name in names if name == f"{part}{end}"] for part in ("train", "test")}


def _meta_name(hundred: bool, binary: bool) -> str:
    if binary:
        return "fine_label_names.txt" if hundred else "batches.meta.txt"
    return "meta" if hundred else "batches.meta"


def _classes(data: bytes, path: Path, hundred: bool, binary: bool) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels."""
    if binary:
        names: Any = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        names = _item(_table(path, data), "fine_label_names" if hundred else "label_names", path)
        names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in _list(names, path)]
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DataError(f"{shown(path)}: no list of different class names; get it again")
    return tuple(name.encode("utf-8", "backslashreplace").decode() for name in names)


def _binary(data: bytes, path: Path, hundred: bool, n_classes: int) -> Batch:
    record = PIXELS + (2 if hundred else 1)
    if not data or len(data) % record:
        whole = record * PUBLISHED[100 if hundred else 10]
        raise DataError(
            f"{shown(path)}: {len(data):,} bytes are not a multiple of {record:,} (a published training file has "
            f"{whole:,}); get it again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, record - PIXELS :], _checked(rows[:, record - PIXELS - 1].tolist(), n_classes, path)


def _python(data: bytes, path: Path, hundred: bool, n_classes: int) -> Batch:
    table = _table(path, data)
    labels = _list(_item(table, "fine_labels" if hundred else "labels", path), path)
    array = _item(table, "data", path)
    pixels = array.numpy() if isinstance(array, Array) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS) or not labels:
        found = f"{pixels.dtype} {pixels.shape}" if pixels is not None else type(array).__name__
        raise DataError(f"{shown(path)}: data is {found}, but must be uint8 ({len(labels)}, {PIXELS}); get it again")
    return pixels, _checked(labels, n_classes, path)


def _checked(labels: list[Any], n_classes: int, path: Path) -> list[int]:
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < n_classes:
            what = str(label)[:20] if type(label) is int and label.bit_length() < 64 else type(label).__name__
            raise DataError(f"{shown(path)}: picture {number} has the label {what}, but there are {n_classes} classes")
    return labels


def _table(path: Path, data: bytes) -> dict[Any, Any]:
    table = read_pickle(data, shown(path))
    if not isinstance(table, dict):
        raise DataError(f"{shown(path)}: holds no table, but {type(table).__name__}")
    return table


def _item(table: dict[Any, Any], key: str, path: Path) -> Any:
    for name in (key, key.encode()):
        if name in table:
            return table[name]
    raise DataError(f"{shown(path)}: has no '{key}'; is it a CIFAR batch?")


def _list(value: Any, path: Path) -> list[Any]:
    if isinstance(value, Array):
        return list(value.numpy().ravel().tolist())
    if not isinstance(value, list | tuple):
        raise DataError(f"{shown(path)}: a list is expected, {type(value).__name__} found")
    return list(value)
