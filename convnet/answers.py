"""What did several nets say of the same pictures? Their posteriors, asked for once and kept in a file.

The file (safetensors) holds `meta`, JSON as uint8: split, store, classes, keys and for each member its name, checkpoint
and protocols; `labels`, int64 (n,); and `MEMBER/LOOK`, float32 (n, K), as `0/ten-crop at 256`.

While it is made, FILE.part holds a line that says what is asked, and a record a picture: all its posteriors and their
CRC-32. Who asks the same again goes on behind the last whole record.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnet import files, strictjson, tensors
from convnet.device import Device
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluate import PICTURES, check_gives, finite, read
from convnet.nets.layers import Net
from convnet.posteriors import BATCH, posteriors
from convnet.preprocess import Preprocessing
from convnet.progress import SILENT, Progress
from convnet.stop import Stop
from convnet.store import Split
from convnet.views import Look, Protocol

Floats = NDArray[np.float32]
FORMAT = "convnet answers"


@dataclass(frozen=True)
class Member:
    """A net to be asked, and how it looks: its protocols are by its own preprocessing. `identity` names its weights."""

    name: str
    identity: str
    net: Net
    preprocessing: Preprocessing
    protocols: tuple[Protocol, ...]

    @property
    def looks(self) -> tuple[Look, ...]:
        return tuple(dict.fromkeys(look for each in self.protocols for look in each.looks))


@dataclass(frozen=True)
class Answer:
    """What one net said: float32 (n, K) for each look. `trained`: the shorter side S of its training, pixels."""

    name: str
    identity: str
    trained: int
    protocols: tuple[Protocol, ...]
    posteriors: Mapping[Look, Floats]


@dataclass(frozen=True)
class Answers:
    """What nets said of the n pictures `keys` of a store's split, whose classes are `labels`, int64 (n,)."""

    store: str
    split: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    members: tuple[Answer, ...]


def ask(
    members: Sequence[Member],
    split: Split,
    device: Device,
    *,
    batch: int = BATCH,
    keep: Path | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Answers:
    """Asks every member about every picture of a split; each picture is decoded once for all of them.

    keep: the file of the answers; what it holds already isn't asked again. batch: crops in a forward pass.

    Raises: UsageError when the store can't give what is asked, or `keep` holds something else; NotFinite; Interrupted.
    """
    for member in members:
        check_gives(split, member.looks, member.preprocessing)
        member.net.eval()
    meta = _meta(members, split)
    if keep is not None and keep.exists():
        kept = load(keep)
        if _meta_of(kept) != meta:
            raise UsageError(f"{keep} holds the answers to other questions; choose another file with --posteriors")
        progress.note(f"{keep} holds these answers already")
        return kept
    looks = tuple(dict.fromkeys(look for member in members for look in member.looks))
    width = sum(len(member.looks) for member in members) * len(split.store.classes)
    nets = [device.narrowed(member.net)[0] for member in members]
    with _rows(keep, meta, width) as rows:
        done = rows.n
        several = f", {len(members)} nets" if len(members) > 1 else ""
        progress.start(f"testing ({split.name}{several})", split.n, done)
        try:
            for ids, pictures in read(split, np.arange(done, split.n), looks, stop):
                parts = []
                for net, member in zip(nets, members, strict=True):
                    found = posteriors(net, pictures, member.looks, member.preprocessing, device, batch)
                    parts += [finite(split, ids, found)[look] for look in member.looks]
                rows.add(np.concatenate(parts, 1).astype(np.float32))
                progress.update(rows.n)
        except Interrupted:
            further = "the same command goes on" if keep else "--posteriors FILE would let it go on"
            raise Interrupted(f"stopped after {rows.n:,} of {split.n:,} pictures; {further}") from None
        progress.finish()
        result = _answers(meta, split.labels, rows.all())
        if keep is not None:
            save(keep, result)
    return result


def save(path: Path, answers: Answers) -> None:
    """Writes the file that `load` reads."""
    meta = torch.frombuffer(bytearray(json.dumps(_meta_of(answers)).encode()), dtype=torch.uint8)
    found = {"meta": meta, "labels": torch.from_numpy(answers.labels)}
    for i, member in enumerate(answers.members):
        found |= {f"{i}/{look}": torch.from_numpy(rows) for look, rows in member.posteriors.items()}
    files.write_atomic(path, map(bytes, tensors.pieces(found, {"format": FORMAT})))


def load(path: Path) -> Answers:
    """The answers in a file. Raises: DataError when it isn't one, or is damaged."""
    try:
        found = tensors.parse(torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8))
        meta = strictjson.parse(found["meta"].numpy().tobytes())
        labels = found["labels"].numpy()
        parts = [found[f"{i}/{look}"].numpy() for i, look in _all_looks(meta)]
        return _checked(meta, labels, parts)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (DataError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path} is no file of posteriors that convnet evaluate wrote: {error}") from error


def _checked(meta: dict[str, Any], labels: NDArray[np.int64], parts: list[Floats]) -> Answers:
    n, k = len(meta["keys"]), len(meta["classes"])
    if labels.dtype != np.int64 or labels.shape != (n,) or n == 0 or labels.min() < 0 or labels.max() >= k:
        raise DataError(f"its labels are not {n} classes of {k}")
    for rows in parts:
        if rows.dtype != np.float32 or rows.shape != (n, k) or not np.isfinite(rows).all():
            raise DataError(f"its posteriors are not {n} finite rows of {k} classes")
    return _answers(meta, labels, np.concatenate(parts, 1))


def _meta(members: Sequence[Member], split: Split) -> dict[str, Any]:
    """What is asked of whom, as JSON can hold it: equal questions have equal answers."""
    asked = [(m.name, m.identity, m.preprocessing.shorter_side or m.preprocessing.size, m.protocols) for m in members]
    return _described(split.store.identity, split.name, split.store.classes, split.keys, asked)


def _meta_of(answers: Answers) -> dict[str, Any]:
    asked = [(m.name, m.identity, m.trained, m.protocols) for m in answers.members]
    return _described(answers.store, answers.split, answers.classes, answers.keys, asked)


def _described(
    store: str,
    split: str,
    classes: Sequence[str],
    keys: Sequence[str],
    asked: Sequence[tuple[str, str, int, tuple[Protocol, ...]]],
) -> dict[str, Any]:
    members = [
        {
            "name": name,
            "identity": identity,
            "trained": trained,
            "protocols": [
                {"name": each.name, "parts": [[[look.name, look.scale] for look in part] for part in each.parts]}
                for each in protocols
            ],
        }
        for name, identity, trained, protocols in asked
    ]
    return {"store": store, "split": split, "classes": list(classes), "keys": list(keys), "members": members}


def _protocols(member: Mapping[str, Any]) -> tuple[Protocol, ...]:
    return tuple(
        Protocol(
            str(each["name"]),
            tuple(tuple(Look(str(name), int(scale)) for name, scale in part) for part in each["parts"]),
        )
        for each in member["protocols"]
    )


def _all_looks(meta: Mapping[str, Any]) -> list[tuple[int, Look]]:
    """The columns of a record: each member's looks."""
    return [
        (i, look)
        for i, member in enumerate(meta["members"])
        for look in dict.fromkeys(look for each in _protocols(member) for look in each.looks)
    ]


def _answers(meta: Mapping[str, Any], labels: NDArray[np.int64], rows: Floats) -> Answers:
    """rows: float32 (n, looks of all members x K)."""
    k = len(meta["classes"])
    found: list[dict[Look, Floats]] = [{} for _ in meta["members"]]
    for place, (i, look) in enumerate(_all_looks(meta)):
        found[i][look] = np.ascontiguousarray(rows[:, place * k : (place + 1) * k])
    members = tuple(
        Answer(str(m["name"]), str(m["identity"]), int(m["trained"]), _protocols(m), posteriors)
        for m, posteriors in zip(meta["members"], found, strict=True)
    )
    return Answers(meta["store"], meta["split"], tuple(meta["classes"]), tuple(meta["keys"]), labels, members)


# the records while they grow


class _Rows:
    """Records in memory, or in a file that outlives a stop. `n`: how many there are."""

    def __init__(self, file: IO[bytes] | None, width: int) -> None:
        self.file, self.width, self.n = file, width, 0
        self.blocks: list[Floats] = []

    def add(self, rows: Floats) -> None:
        self.n += len(rows)
        self.blocks.append(rows)
        if self.file is not None:
            for row in rows:
                data = row.tobytes()
                self.file.write(data + zlib.crc32(data).to_bytes(4, "little"))
            self.file.flush()
            os.fsync(self.file.fileno())

    def take(self, data: bytes) -> int:
        """Takes the whole records in `data`, as many as were read at a time: batches then hold the same pictures as if
        never stopped, and give the same to the last bit. How many bytes they have."""
        size, rows = 4 * self.width + 4, []
        for first in range(0, len(data) - size + 1, size):
            body, crc = data[first : first + size - 4], data[first + size - 4 : first + size]
            if zlib.crc32(body).to_bytes(4, "little") != crc:
                break
            rows.append(np.frombuffer(body, np.float32)[None])
        self.n = len(rows) - len(rows) % PICTURES
        self.blocks = rows[: self.n]
        return self.n * size

    def all(self) -> Floats:
        """float32 (n, width)."""
        return np.concatenate(self.blocks)


@contextmanager
def _rows(keep: Path | None, meta: Mapping[str, Any], width: int) -> Iterator[_Rows]:
    """The records so far; the file goes when the block ends well."""
    if keep is None:
        yield _Rows(None, width)
        return
    question = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest().encode() + b"\n"
    path = keep.with_name(f"{keep.name}.part")
    with files.disk_errors(path):
        with open(files.in_place(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
            rows = _Rows(file, width)
            begun = file.read(len(question)) == question
            end = len(question) + (rows.take(file.read()) if begun else 0)
            file.seek(0)
            file.write(question)
            file.seek(end)
            file.truncate()
            yield rows
        path.unlink()
