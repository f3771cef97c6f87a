"""What do several nets say of the same pictures? Their probabilities, asked for once, and kept in a file if one wants.

They are never all in memory: who reads them gets those of some pictures at a time.

The file (safetensors) holds `meta`, JSON as uint8: split, store, classes, keys and for each member its name, checkpoint
and protocols; `labels`, int64 (n,); `MEMBER/LOOK`, float32 (n, K), as `0/ten-crop at 256`; and `sha256`, uint8
(B + 1, 32): of each PICTURES pictures' probabilities (picture by picture, all looks in meta's order), and the last of
the file's header, labels, meta and the rows before. A block is held against its own when it is read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnet.data.store import Split
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation import prediction_records
from convnet.evaluation.inference import BATCH
from convnet.evaluation.pictures import PICTURES, check_gives
from convnet.evaluation.prediction_records import Floats
from convnet.evaluation.trained_net import TrainedNet, infer_split
from convnet.evaluation.views import Look, Protocol
from convnet.io import atomic, safetensors, strict_json
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress

Block = list[dict[Look, Floats]]  # for each member, float32 (m, K) of each look: what it says of the next m pictures
FORMAT = "convnet answers"
DIGESTS = "sha256"  # the name of the tensor that holds them


@dataclass(frozen=True)
class Member:
    """A net to be asked, and how it looks: its protocols are by its own preprocessing. `identity` names its weights."""

    name: str
    identity: str
    net: TrainedNet
    protocols: tuple[Protocol, ...]

    @property
    def looks(self) -> tuple[Look, ...]:
        return tuple(dict.fromkeys(look for each in self.protocols for look in each.looks))


@dataclass(frozen=True)
class Predictor:
    """A net that was asked, and how it looked. `trained`: the shorter side S of its training, pixels."""

    name: str
    identity: str
    trained: int
    protocols: tuple[Protocol, ...]


@dataclass(frozen=True)
class Predictions:
    """What nets say of the n pictures `keys` of a store's split, whose classes are `labels`, int64 (n,).

    blocks: gives their probabilities, PICTURES pictures at a time, each time that it is called: read from a file, or
    asked of the nets again. Raises what `ask` says.
    """

    store: str
    split: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    members: tuple[Predictor, ...]
    blocks: Callable[[], Iterator[Block]]


def ask(
    members: Sequence[Member],
    split: Split,
    *,
    batch: int = BATCH,
    keep: Path | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Predictions:
    """What every member says about every picture of a split; each picture is decoded once for all of them.

    keep: the file of the predictions, which is made now; what it holds already isn't asked again. Without one the nets
    are asked whenever `blocks` is called. batch: crops in a forward pass.

    Raises, now or in `blocks`: UsageError when the store can't give what is asked, or `keep` holds something else or is
    being made by another process; DataError when it is damaged; NotFinite; Interrupted.
    """
    for member in members:
        check_gives(split, member.looks, member.net.preprocessing)
    meta = _meta(members, split)
    blocks = partial(_asked, members, split, batch, progress, stop)
    if keep is None:
        return _predictions(meta, split.labels, blocks)
    is_new = not keep.exists()
    if is_new or prediction_records.part_of(keep).exists():
        with atomic.lock(keep, "evaluating", is_folder=False):
            if keep.exists():  # another process has just made it, or was killed before it could remove the records
                prediction_records.forget(keep)
            else:
                _make(keep, meta, split.labels, blocks, progress)
    kept = load(keep, progress)
    if _meta_of(kept) != meta:
        raise UsageError(f"{keep} is about other nets, views or pictures; choose another file with --posteriors")
    if not is_new:
        progress.note(f"{keep} holds these predictions already")
    return kept


def _asked(
    members: Sequence[Member],
    split: Split,
    batch: int,
    progress: Progress,
    stop: Stop | None,
    done: int = 0,
    further: str = "--posteriors FILE would let it go on",
) -> Iterator[Block]:
    """Asks the nets about the pictures from `done` on."""
    several = f", {len(members)} nets" if len(members) > 1 else ""
    title, asked = f"testing ({split.name}{several})", [(member.net, member.looks) for member in members]
    try:
        for ids, found in infer_split(
            asked, split, np.arange(done, split.n), title=title, done=done, batch=batch, progress=progress, stop=stop
        ):
            yield [{look: rows.astype(np.float32) for look, rows in of_net.items()} for of_net in found]
            split.passed(int(ids[0]))
    except Interrupted as error:
        raise Interrupted(f"{error}; {further}") from None


# the file


def load(path: Path, progress: Progress = SILENT) -> Predictions:
    """The predictions in a file. Raises: DataError when it isn't one, or is damaged; of its rows, in `blocks`."""
    with _reading(path):
        with open(path, "rb", opener=atomic.regular) as file:
            size = os.fstat(file.fileno()).st_size
        whole = torch.from_file(str(path), size=size, dtype=torch.uint8)  # mapped: only its start is read
        found = safetensors.parse(whole)
        text = found["meta"].numpy().tobytes()
        meta = strict_json.parse(text)
        labels = found["labels"].numpy().copy()
        shape = len(meta["keys"]), len(meta["classes"])
        _check_labels(labels, *shape)
        places = []
        for i, look in _all_looks(meta):
            rows = found[f"{i}/{look}"]
            if rows.dtype != torch.float32 or rows.shape != shape:
                raise DataError(f"its probabilities are not {shape[0]} rows of {shape[1]} classes")
            places.append(rows.data_ptr() - whole.data_ptr())
        if others := found.keys() - {"meta", "labels", DIGESTS, *(f"{i}/{look}" for i, look in _all_looks(meta))}:
            raise DataError(f"it holds {min(others)!r}, which no evaluation writes")
        header = bytes(whole[: 8 + int.from_bytes(bytes(whole[:8]), "little")].numpy())
        digests = _digests(found, header, labels, text)
        if digests is None:
            progress.warn(f"{path} is of an earlier version, without sha256: damage to it can't be told")
        return _predictions(meta, labels, partial(_read, path, meta, places, digests))


def _digests(
    found: Mapping[str, torch.Tensor], header: bytes, labels: NDArray[np.int64], meta: bytes
) -> list[bytes] | None:
    """The sha256 of each block, None in a file of an earlier version. Raises: DataError for other damage."""
    if DIGESTS not in found:
        return None
    digests = [bytes(row) for row in found[DIGESTS].numpy()]
    if len(digests) != -(-len(labels) // PICTURES) + 1 or _seal(header, labels, meta, digests[:-1]) != digests[-1]:
        raise DataError("it is damaged: its sha256 does not match")
    return digests[:-1]


def _read(path: Path, meta: dict[str, Any], places: Sequence[int], digests: Sequence[bytes] | None) -> Iterator[Block]:
    """The blocks of a file; places: of each look's probabilities in it, bytes."""
    n, k = len(meta["keys"]), len(meta["classes"])
    with _reading(path), open(path, "rb", opener=atomic.regular) as file:
        for number, first in enumerate(range(0, n, PICTURES)):
            m = min(PICTURES, n - first)
            data = [os.pread(file.fileno(), 4 * m * k, place + 4 * first * k) for place in places]
            rows = [np.frombuffer(each, np.float32).reshape(m, k) for each in data]
            if digests is not None and prediction_records.digest(np.concatenate(rows, 1)) != digests[number]:
                raise DataError(f"it is damaged: the sha256 of pictures {first:,} to {first + m - 1:,} does not match")
            if not all(np.isfinite(each).all() for each in rows):
                raise DataError("its probabilities are not finite")
            yield _block(meta, rows)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (DataError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{path} is no file that convnet evaluate --posteriors wrote: {error}; evaluate again"
        ) from error


def _check_labels(labels: NDArray[np.int64], n: int, k: int) -> None:
    if labels.dtype != np.int64 or labels.shape != (n,) or n == 0 or labels.min() < 0 or labels.max() >= k:
        raise DataError(f"its labels are not {n} classes of {k}")


def _meta(members: Sequence[Member], split: Split) -> dict[str, Any]:
    """What is asked of whom, as JSON can hold it: equal questions have equal predictions."""
    asked = [
        (m.name, m.identity, m.net.preprocessing.shorter_side or m.net.preprocessing.size, m.protocols) for m in members
    ]
    return _described(split.store.identity, split.name, split.store.classes, split.keys, asked)


def _meta_of(predictions: Predictions) -> dict[str, Any]:
    asked = [(m.name, m.identity, m.trained, m.protocols) for m in predictions.members]
    return _described(predictions.store, predictions.split, predictions.classes, predictions.keys, asked)


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


def _predictions(
    meta: Mapping[str, Any], labels: NDArray[np.int64], blocks: Callable[[], Iterator[Block]]
) -> Predictions:
    members = tuple(
        Predictor(str(m["name"]), str(m["identity"]), int(m["trained"]), _protocols(m)) for m in meta["members"]
    )
    return Predictions(
        meta["store"], meta["split"], tuple(meta["classes"]), tuple(meta["keys"]), labels, members, blocks
    )


def _block(meta: Mapping[str, Any], rows: Sequence[Floats]) -> Block:
    """The probabilities of some pictures by member and look, from those of all looks in the order of `_all_looks`."""
    block: Block = [{} for _ in meta["members"]]
    for (i, look), own in zip(_all_looks(meta), rows, strict=True):
        block[i][look] = own
    return block


def _make(
    path: Path,
    meta: dict[str, Any],
    labels: NDArray[np.int64],
    blocks: Callable[[int, str], Iterator[Block]],
    progress: Progress,
) -> None:
    """Writes the file from the records in FILE.part; blocks(done, further) gives those that are still missing."""
    looks, n_classes = _all_looks(meta), len(meta["classes"])
    with prediction_records.opened(path, meta, len(looks) * n_classes, progress) as records:
        for block in blocks(records.n, "the same command goes on"):
            records.add(np.concatenate([block[i][look] for i, look in looks], 1))
        text = bytearray(json.dumps(meta).encode())
        content: dict[str, torch.Tensor | safetensors.Coming] = {
            "meta": torch.frombuffer(text, dtype=torch.uint8),
            "labels": torch.from_numpy(labels),
        }
        for place, (i, look) in enumerate(looks):
            columns = partial(records.columns, place * n_classes, n_classes)
            content[f"{i}/{look}"] = safetensors.Coming(torch.float32, (len(labels), n_classes), columns)
        digests = [*records.digests, bytes(32)]  # the last one's place
        content[DIGESTS] = safetensors.Coming(torch.uint8, (len(digests), 32), lambda: iter(digests))
        pieces = safetensors.pieces(content, {"format": FORMAT})
        header = next(pieces)
        digests[-1] = _seal(bytes(header), labels, bytes(text), records.digests)
        atomic.write_atomic(path, map(bytes, chain([header], pieces)))


def _seal(header: bytes, labels: NDArray[np.int64], meta: bytes, digests: Sequence[bytes]) -> bytes:
    """The sha256 of all of a file but its probabilities, whose own are `digests`."""
    return hashlib.sha256(b"".join([header, labels.tobytes(), meta, *digests])).digest()
