"""Which samples lie in WebDataset shards? Members of a tar that share their name up to the first dot are one sample.

picture   the one member that is a picture: KEY.jpg, KEY.png, ... or KEY.npy, uint8 pixels (H, W, 3) or (H, W)
label     KEY.cls, a number or a name; without it `cls` or `label` in KEY.json
split     of several shards the word train, val or test in a shard's name or its folder's

Keys are the members' names, for several shards below the shard's: `train-000000/00017.jpg`. Labels that are all whole
numbers are ordered as numbers. convnet's own shards are such tars (docs/store.md).
"""

import io
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data.image_formats import BadPicture
from convnet.data.sources.listing import (
    SPELLINGS,
    Entry,
    File,
    Parts,
    Source,
    failed,
    in_order,
    make_source,
    read_entry,
    shown,
    words_of,
)
from convnet.data.sources.tars import list_tar
from convnet.errors import DataError, UsageError
from convnet.io import npy

LABELS = ("cls", "json")  # ends of the members that hold a label
LONGEST = 1 << 20  # bytes of a label's member
NUMBER = re.compile(r"\d{1,18}", re.A)


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: what stands before its members' names in keys, its split, its files."""

    above: Parts
    split: str
    files: list[File]


@dataclass(slots=True)
class Sample:
    """The members of one sample."""

    pictures: list[File] = field(default_factory=list)
    labels: dict[str, File] = field(default_factory=dict)  # by their end: cls, json
    problem: str | None = None


def is_shard(files: list[File]) -> bool:
    """Whether a tar's files are samples: there are KEY.cls, or pictures in one folder each with its KEY.json."""
    ends = {_key(file)[1] for file in files}
    pictures = [file for file in files if file.problem is None]
    with_json = {_key(file)[0] for file in files if _key(file)[1] == "json"}
    flat = len({file.parts[:-1] for file in pictures}) == 1
    return "cls" in ends or (flat and all(_key(file)[0] in with_json for file in pictures))


def shards_in(root: Path, names: Iterable[str]) -> list[Shard]:
    """The shards of a folder of them; nothing when it is another folder.

    Raises: UsageError when a name has two splits in it, or only some have one.
    """
    inside = sorted(name for name in names if not name.startswith("."))
    folders = [name for name in inside if (root / name).is_dir()]
    if any(name.lower() not in SPELLINGS for name in folders):
        return []
    paths = [root / name for name in inside if name not in folders]
    paths += [root / folder / name for folder in folders for name in sorted(os.listdir(root / folder))]
    shards = [path for path in paths if path.name.lower().endswith(".tar") and path.is_file()]
    if not shards or not is_shard(list_tar(shards[0])[0]):
        return []
    splits = {path: _split(path.relative_to(root)) for path in shards}
    without = [path for path in shards if splits[path] is None]
    if without and len(without) < len(shards):
        with_split = next(path for path in shards if splits[path] is not None)
        raise UsageError(
            f"{shown(root)}: {shown(with_split.name)} names a split and {shown(without[0].name)} does not; "
            "put the shards into train/, val/ and test/"
        )
    return [
        Shard(tuple(map(shown, path.relative_to(root).with_suffix("").parts)), split or "train", list_tar(path)[0])
        for path, split in splits.items()
    ]


def _split(path: Path) -> str | None:
    """The split that the words of a shard's path name."""
    splits = {SPELLINGS[word] for word in words_of(str(path)) if word in SPELLINGS}
    if len(splits) > 1:
        raise UsageError(f"{shown(path)} names two splits, {' and '.join(sorted(splits))}; call it by one of them")
    return splits.pop() if splits else None


def open_shards(root: Path, shards: list[Shard]) -> Source:
    """The source of these shards' samples.

    Raises: UsageError when a sample has several pictures, or no sample has a label that is understood.
    """
    pictures: list[tuple[File, str, str]] = []  # with split and label
    left_out: list[File] = []
    for shard in shards:
        samples, others = _samples(shard, root)
        left_out += [replace(file, parts=(*shard.above, *file.parts)) for file in others]
        for sample in samples:
            try:
                label, problem = _label(sample), ""
            except ValueError as error:
                label, problem = "", str(error)
            for file in sample.pictures:
                parts = (*shard.above, *file.parts)
                if problem:
                    left_out.append(failed(parts, problem))
                else:
                    pictures.append((replace(file, parts=parts), shard.split, label))
    if not pictures:
        problems = [file.problem[1] for file in left_out if file.problem and file.problem[0] == "failed"]
        reason = problems[0] if problems else "none there"
        raise UsageError(f"{shown(root)}: WebDataset samples without a usable label ({reason}); give each a KEY.cls")
    names = {label for _, _, label in pictures}
    labels = {name: label for label, name in enumerate(in_order(names))}
    entries = [file.entry(split, labels[label]) for file, split, label in pictures]
    notes = [f"{len(shards)} shards"] if len(shards) > 1 else []
    notes += ["classes are named by the numbers in the shards"] if all(map(NUMBER.fullmatch, names)) else []
    return make_source(root, "WebDataset", tuple(labels), entries, left_out, notes, _read)


def _key(file: File) -> tuple[Parts, str]:
    """What the members of a sample share, and the end in which they differ, in small letters."""
    stem, _, end = file.parts[-1].partition(".")
    return (*file.parts[:-1], stem), end.lower()


def _samples(shard: Shard, root: Path) -> tuple[list[Sample], list[File]]:
    """The samples of a shard, and the members that are no part of one."""
    samples: dict[Parts, Sample] = {}
    others = []
    for file in shard.files:
        key, end = _key(file)
        sample = samples.setdefault(key, Sample())
        if file.problem is not None and file.problem[0] == "failed":
            if end.split(" ")[0] in LABELS:  # numbered, as it is there twice
                sample.problem = f"its {end.split(' ')[0]}: {file.problem[1]}"
            others.append(file)
        elif end in LABELS:
            sample.labels[end] = file
        elif file.problem is None or end == "npy":
            sample.pictures.append(replace(file, problem=None))
        else:
            others.append(file)
    for key, sample in samples.items():
        if len(sample.pictures) > 1:
            names = [shown(file.parts[-1]) for file in sample.pictures]
            raise UsageError(
                f"{shown(root)}: the sample {'/'.join(key)!r} has several pictures, {' and '.join(names[:3])}; "
                "which of them is meant isn't known: make shards with one picture in a sample"
            )
        if not sample.pictures:
            others += [failed(file.parts, "a label without a picture") for file in sample.labels.values()]
    return list(samples.values()), others


def _label(sample: Sample) -> str:
    """The label of a sample, a name or a number. Raises: ValueError with the reason why it has none."""
    if sample.problem is not None:
        raise ValueError(sample.problem)
    file = sample.labels.get("cls") or sample.labels.get("json")
    if file is None or file.place is None:
        raise ValueError("its sample has neither a .cls nor a .json")
    if file.place.length > LONGEST:
        raise ValueError(f"its label has {file.place.length:,} bytes")
    try:
        text = read_entry(file.entry()).decode("utf-8").strip()
        value = text if "cls" in sample.labels else _in_json(text)
    except (BadPicture, ValueError, RecursionError) as error:
        raise ValueError(f"its label can't be read: {error}") from error
    if type(value) is int and 0 <= value < 10**18:
        return str(value)
    if type(value) is not str:
        raise ValueError(f"its label is a {type(value).__name__}, neither a number from 0 nor a name")
    if NUMBER.fullmatch(value):
        return str(int(value))
    if not value or not value.isprintable() or re.fullmatch(r"[-+]?[\d.]+", value):
        raise ValueError(f"its label {value[:40]!r} is neither a number from 0 nor a name")
    return value


def _in_json(text: str) -> object:
    """The label in a sample's JSON. Raises: ValueError when it has none, or two that differ."""
    table = json.loads(text)
    names = list(table) if isinstance(table, dict) else []
    values = [table[name] for name in ("cls", "label") if name in names]
    if not values:
        known = f": it has {', '.join(names[:5])}" if names else ""
        raise ValueError(f"its JSON has neither 'cls' nor 'label'{known}")
    if any(value != values[0] for value in values):
        raise ValueError("'cls' and 'label' in its JSON differ")
    label: object = values[0]
    return label


def _read(entry: Entry) -> bytes | NDArray[np.uint8]:
    data = read_entry(entry)
    return _pixels(data) if entry.key.lower().endswith(".npy") else data


def _pixels(data: bytes) -> NDArray[np.uint8]:
    """The picture of a .npy member. Raises: BadPicture when it is no uint8 array (H, W, 3) or (H, W)."""
    stream = io.BytesIO(data)
    try:
        shape, dtype, fortran = npy.read_header(stream)
    except DataError as error:
        raise BadPicture(f"a .npy that isn't read: {error}") from error
    size = math.prod(shape)
    if dtype != np.uint8 or shape[2:] not in ((), (3,)) or len(shape) < 2 or size < 1:
        raise BadPicture(f"a .npy of {dtype} {shape}; pictures are uint8 (H, W, 3) or (H, W)")
    if size != len(data) - stream.tell():
        raise BadPicture("a .npy cut short or too long")
    pixels = np.frombuffer(data, np.uint8, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(pixels if len(shape) == 3 else np.repeat(pixels[:, :, None], 3, axis=2))
