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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet.data.image_formats import BadPicture
from convnet.data.sources.listing import SPELLINGS, Entry, Found, Parts, Source, finish, in_order, read_piece, shown
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
    found: list[Found]


@dataclass(slots=True)
class Sample:
    """The members of one sample."""

    pictures: list[Found] = field(default_factory=list)
    labels: dict[str, Found] = field(default_factory=dict)  # by their end: cls, json
    problem: str | None = None


def is_shard(found: list[Found]) -> bool:
    """Whether a tar's files are samples: there are KEY.cls, or pictures in one folder each with its KEY.json."""
    ends = {_key(file)[1] for file in found}
    if "cls" in ends or not found:
        return "cls" in ends
    flat = len({file.parts[:-1] for file in found if file.problem is None}) == 1
    named = {_key(file)[0] for file in found if _key(file)[1] == "json"}
    return flat and bool(named) and all(_key(file)[0] in named for file in found if file.problem is None)


def shards_in(where: Path, names: Iterable[str]) -> list[tuple[Path, str | None]]:
    """The tars of a folder of shards and the split each is named for; nothing when it is another folder.

    Raises: UsageError when a name has two splits in it, or only some have one.
    """
    inside = sorted(name for name in names if not name.startswith("."))
    folders = [name for name in inside if (where / name).is_dir()]
    if any(name.lower() not in SPELLINGS for name in folders):
        return []
    paths = [where / name for name in inside if name not in folders]
    paths += [where / folder / name for folder in folders for name in sorted(os.listdir(where / folder))]
    shards = [path for path in paths if path.name.lower().endswith(".tar") and path.is_file()]
    if not shards or not is_shard(list_tar(shards[0], shown(shards[0]))[0]):
        return []
    splits = [(path, _split(path.relative_to(where))) for path in shards]
    without = [path for path, split in splits if split is None]
    if without and len(without) < len(splits):
        with_split = next(path for path, split in splits if split is not None)
        raise UsageError(
            f"{shown(where)}: {shown(with_split.name)} names a split and {shown(without[0].name)} does not; "
            "put the shards into train/, val/ and test/"
        )
    return splits


def _split(path: Path) -> str | None:
    """The split that the words of a shard's path name."""
    splits = {SPELLINGS[word] for word in re.split(r"[^a-z]+", str(path).lower()) if word in SPELLINGS}
    if len(splits) > 1:
        raise UsageError(f"{shown(path)} names two splits, {' and '.join(sorted(splits))}; call it by one of them")
    return splits.pop() if splits else None


def open_shard_folder(where: Path, splits: list[tuple[Path, str | None]]) -> Source:
    """The source of a folder of shards, as `shards_in` lists them."""
    shards = []
    for path, split in splits:
        above = path.relative_to(where).with_suffix("").parts
        shards.append(Shard(tuple(map(shown, above)), split or "train", list_tar(path, shown(path))[0]))
    return open_shards(where, shards)


def open_shards(where: Path, shards: list[Shard]) -> Source:
    """The source of these shards' samples.

    Raises: UsageError when a sample has several pictures, or no sample has a label that is understood.
    """
    pictures: list[tuple[Found, str, int | str]] = []  # with split and label
    left_out: list[Found] = []
    for shard in shards:
        samples, others = _samples(shard, where)
        left_out += [Found((*shard.above, *file.parts), None, "", file.problem) for file in others]
        for sample in samples:
            reason, label = _label(sample)
            for file in sample.pictures:
                key = (*shard.above, *file.parts)
                if label is None:
                    left_out.append(Found(key, None, "", ("failed", reason)))
                else:
                    pictures.append((Found(key, file.place, file.stamp), shard.split, label))
    if not pictures:
        first = next(
            (file.problem[1] for file in left_out if file.problem and file.problem[0] == "failed"), "none there"
        )
        raise UsageError(f"{shown(where)}: WebDataset samples without a usable label ({first}); give each a KEY.cls")
    numbers = all(isinstance(label, int) for _, _, label in pictures)
    names = {str(label) for _, _, label in pictures}
    labels = {name: label for label, name in enumerate(in_order(names))}
    entries = [
        Entry("/".join(file.parts), split, labels[str(label)], file.place, file.stamp)
        for file, split, label in pictures
    ]
    notes = [f"{len(shards)} shards"] if len(shards) > 1 else []
    notes += ["classes are named by the numbers in the shards"] if numbers else []
    return finish(where, "WebDataset", tuple(labels), entries, left_out, notes, _read)


def _key(file: Found) -> tuple[Parts, str]:
    """What the members of a sample share, and the end in which they differ, in small letters."""
    stem, _, end = file.parts[-1].partition(".")
    return (*file.parts[:-1], stem), end.lower()


def _samples(shard: Shard, where: Path) -> tuple[list[Sample], list[Found]]:
    """The samples of a shard, and the members that are no part of one."""
    samples: dict[Parts, Sample] = {}
    others = []
    for file in shard.found:
        key, end = _key(file)
        sample = samples.setdefault(key, Sample())
        if file.problem is not None and file.problem[0] == "failed":
            if end.split(" ")[0] in LABELS:  # numbered, as it is there twice
                sample.problem = f"its {end.split(' ')[0]}: {file.problem[1]}"
            others.append(file)
        elif end in LABELS:
            sample.labels[end] = file
        elif file.problem is None or end == "npy":
            sample.pictures.append(Found(file.parts, file.place, file.stamp))
        else:
            others.append(file)
    for key, sample in samples.items():
        if len(sample.pictures) > 1:
            names = [shown(file.parts[-1]) for file in sample.pictures]
            raise UsageError(
                f"{shown(where)}: the sample {'/'.join(key)!r} has several pictures, {' and '.join(names[:3])}; "
                "which of them is meant isn't known: make shards with one picture in a sample"
            )
        if not sample.pictures:
            others += [
                Found(f.parts, None, "", ("failed", "a label without a picture")) for f in sample.labels.values()
            ]
    return list(samples.values()), others


def _label(sample: Sample) -> tuple[str, int | str | None]:
    """Why a sample has no label, or its label."""
    if sample.problem is not None:
        return sample.problem, None
    file = sample.labels.get("cls") or sample.labels.get("json")
    if file is None:
        return "its sample has neither a .cls nor a .json", None
    if file.place[2] > LONGEST:
        return f"its label has {file.place[2]:,} bytes", None
    try:
        text = read_piece(Entry("", "", 0, file.place, file.stamp)).decode("utf-8").strip()
        value = text if "cls" in sample.labels else _in_json(text)
    except (BadPicture, ValueError, RecursionError) as error:
        return f"its label can't be read: {error}", None
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return "", int(value)
    if type(value) is int and 0 <= value < 10**18:
        return "", value
    if type(value) is not str:
        return f"its label is a {type(value).__name__}, neither a number from 0 nor a name", None
    if not value or not value.isprintable() or re.fullmatch(r"[-+]?[\d.]+", value):
        return f"its label {value[:40]!r} is neither a number from 0 nor a name", None
    return "", value


def _in_json(text: str) -> Any:
    """The label in a sample's JSON. Raises: ValueError when it has none, or two that differ."""
    table = json.loads(text)
    values = [table[name] for name in ("cls", "label") if name in table] if isinstance(table, dict) else []
    if not values:
        known = f": it has {', '.join(map(str, list(table)[:5]))}" if isinstance(table, dict) else ""
        raise ValueError(f"its JSON has neither 'cls' nor 'label'{known}")
    if any(value != values[0] for value in values):
        raise ValueError("'cls' and 'label' in its JSON differ")
    return values[0]


def _read(entry: Entry) -> bytes | NDArray[np.uint8]:
    data = read_piece(entry)
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
