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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from convnet.data.store import Split
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation import prediction_records
from convnet.evaluation.inference import BATCH
from convnet.evaluation.pictures import PICTURES, check_gives
from convnet.evaluation.prediction_records import Floats, Records
from convnet.evaluation.trained_net import TrainedNet, infer_split
from convnet.evaluation.views import Look, Protocol
from convnet.io import atomic, safetensors, strict_json
from convnet.io.processes import ALONE, Processes
from convnet.io.signals import Stop
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress

Block = list[dict[Look, Floats]]  # for each member, float32 (m, K) of each look: what it says of the next m pictures
FORMAT = "convnet answers"
WRITTEN = "file that convnet evaluate --posteriors wrote", "evaluate again"
DIGESTS = "sha256"  # the name of the tensor that holds them


@dataclass(frozen=True)
class Predictor:
    """A net that was asked, and how it looked. `identity` names its weights; `trained`: the shorter side S of its
    training, pixels."""

    name: str
    identity: str
    trained: int
    protocols: tuple[Protocol, ...]

    @property
    def looks(self) -> tuple[Look, ...]:
        return tuple(dict.fromkeys(look for protocol in self.protocols for look in protocol.looks))

    def to_dict(self) -> Json:
        """As JSON can hold it."""
        protocols = [
            {"name": protocol.name, "parts": [[[look.name, look.scale] for look in part] for part in protocol.parts]}
            for protocol in self.protocols
        ]
        return {"name": self.name, "identity": self.identity, "trained": self.trained, "protocols": protocols}

    @classmethod
    def from_dict(cls, row: Json) -> "Predictor":
        """Raises: KeyError, TypeError, ValueError."""
        protocols = []
        for protocol in row["protocols"]:
            parts = (tuple(Look(str(name), int(scale)) for name, scale in part) for part in protocol["parts"])
            protocols.append(Protocol(str(protocol["name"]), tuple(parts)))
        return cls(str(row["name"]), str(row["identity"]), int(row["trained"]), tuple(protocols))


@dataclass(frozen=True)
class Member:
    """A net to be asked, and how it looks: its protocols are by its own preprocessing. `identity` names its weights."""

    name: str
    identity: str
    net: TrainedNet
    protocols: tuple[Protocol, ...]

    @property
    def predictor(self) -> Predictor:
        preprocessing = self.net.preprocessing
        return Predictor(self.name, self.identity, preprocessing.shorter_side or preprocessing.size, self.protocols)

    @property
    def looks(self) -> tuple[Look, ...]:
        return self.predictor.looks


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

    @property
    def columns(self) -> list[tuple[int, Look]]:
        """What a picture's row of probabilities holds, end to end: each member's looks."""
        return [(i, look) for i, member in enumerate(self.members) for look in member.looks]

    def meta(self) -> Json:
        """What was asked of whom, as JSON can hold it: equal questions have equal predictions."""
        members = [member.to_dict() for member in self.members]
        names = {"store": self.store, "split": self.split, "classes": list(self.classes), "keys": list(self.keys)}
        return names | {"members": members}


def ask(
    members: Sequence[Member],
    split: Split,
    *,
    batch: int = BATCH,
    file: Path | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
    processes: Processes = ALONE,
) -> Predictions:
    """What every member says about every picture of a split; each picture is decoded once for all of them.

    file: where the predictions are kept, which is made now; what it holds already isn't asked again. Without one the
    nets are asked whenever `blocks` is called. batch: crops in a forward pass. processes: with which this one shares
    the pictures; without a file each has the blocks of all, and must call for them; with one the first writes and has
    them, the others have none.

    Raises, now or in `blocks`: UsageError when the store can't give what is asked, or `file` holds something else or is
    being made by another process; DataError when it is damaged; NotFinite; Interrupted.
    """
    for member in members:
        check_gives(split, member.looks, member.net.preprocessing)
    blocks, store = partial(_asked, members, split, batch, progress, stop, processes), split.store
    predictors, keys = tuple(member.predictor for member in members), tuple(split.keys)
    predictions = Predictions(store.identity, split.name, store.classes, keys, split.labels[:], predictors, blocks)
    if file is None:
        return predictions
    is_new = processes.together(lambda: not file.exists() or prediction_records.part_of(file).exists())[0]
    if is_new:
        with ExitStack() as stack:
            begin = partial(_begun, file, predictions, stack, progress)
            records = processes.each(lambda: begin() if processes.is_first else None)
            done = processes.together(lambda: split.n if records is None else records.n)[0]
            for block in blocks(done, "the same command goes on"):
                processes.each(partial(_add, records, predictions, block))
            if records is not None:
                _write(file, predictions, records)
    if not processes.is_first:
        return replace(predictions, blocks=lambda: iter(()))
    loaded = load(file, progress)
    if loaded.meta() != predictions.meta():
        raise UsageError(f"{file} is about other nets, views or pictures; choose another file with --posteriors")
    if not is_new:
        progress.note(f"{file} holds these predictions already")
    return loaded


def _asked(
    members: Sequence[Member],
    split: Split,
    batch: int,
    progress: Progress,
    stop: Stop | None,
    processes: Processes,
    done: int = 0,
    further: str = "--posteriors FILE would let it go on",
) -> Iterator[Block]:
    """Asks the nets about the pictures from `done` on: each process about one block of them after the other, so that
    batches hold the same pictures, and give the same to the last bit, whatever the processes."""
    ids = np.arange(done, split.n)
    own = ids[(ids - done) // PICTURES % processes.n == processes.rank]
    blocks = _own(members, split, own, batch, progress, stop, done, further)
    for _ in range(0, len(ids), PICTURES * processes.n):
        yield from (block for block in processes.together(lambda: next(blocks, None)) if block is not None)
    processes.each(lambda: deque(blocks, 0))  # which have ended, and say so


def _own(
    members: Sequence[Member],
    split: Split,
    own: NDArray[np.int64],
    batch: int,
    progress: Progress,
    stop: Stop | None,
    done: int,
    further: str,
) -> Iterator[Block]:
    several = f", {len(members)} nets" if len(members) > 1 else ""
    title, asked = f"testing ({split.name}{several})", [(member.net, member.looks) for member in members]
    try:
        for ids, of_nets in infer_split(asked, split, own, title=title, done=done, total=split.n, batch=batch,
                                        progress=progress, stop=stop):  # fmt: skip
            yield [{look: rows.astype(np.float32) for look, rows in of_net.items()} for of_net in of_nets]
            split.passed(int(ids[0]))
    except Interrupted as error:
        raise Interrupted(f"{error}; {further}") from None


# the file


def load(path: Path, progress: Progress = SILENT) -> Predictions:
    """The predictions in a file. Raises: DataError when it isn't one, or is damaged; of its rows, in `blocks`."""
    with atomic.reading(path, *WRITTEN):
        with open(path, "rb", opener=atomic.regular) as file:
            size = os.fstat(file.fileno()).st_size
        whole = torch.from_file(str(path), size=size, dtype=torch.uint8)  # mapped: only its start is read
        tensors = safetensors.parse(whole)
        text = tensors["meta"].numpy().tobytes()
        meta = strict_json.parse(text)
        labels = tensors["labels"].numpy().copy()
        n, k = len(meta["keys"]), len(meta["classes"])
        if labels.dtype != np.int64 or labels.shape != (n,) or n == 0 or labels.min() < 0 or labels.max() >= k:
            raise DataError(f"its labels are not {n} classes of {k}")
        header = bytes(whole[: 8 + int.from_bytes(bytes(whole[:8]), "little")].numpy())
        digests = _digests(tensors.pop(DIGESTS, None), header, labels, text)
        members = tuple(map(Predictor.from_dict, meta["members"]))
        offsets: dict[tuple[int, Look], int] = {}
        blocks = partial(_read, path, len(members), (n, k), offsets, digests)
        names = meta["store"], meta["split"], tuple(meta["classes"]), tuple(meta["keys"])
        predictions = Predictions(*names, labels, members, blocks)
        for i, look in predictions.columns:
            rows = tensors[f"{i}/{look}"]
            if rows.dtype != torch.float32 or rows.shape != (n, k):
                raise DataError(f"its probabilities are not {n} rows of {k} classes")
            offsets[i, look] = rows.data_ptr() - whole.data_ptr()
        if others := tensors.keys() - {"meta", "labels", *(f"{i}/{look}" for i, look in offsets)}:
            raise DataError(f"it holds {min(others)!r}, which no evaluation writes")
        if digests is None:
            progress.warn(f"{path} is of an earlier version, without sha256: damage to it can't be told")
        return predictions


def _digests(tensor: torch.Tensor | None, header: bytes, labels: NDArray[np.int64], meta: bytes) -> list[bytes] | None:
    """The sha256 of each block, None in a file of an earlier version. Raises: DataError for other damage."""
    if tensor is None:
        return None
    digests = [bytes(row) for row in tensor.numpy()]
    if len(digests) != -(-len(labels) // PICTURES) + 1 or _seal(header, labels, meta, digests[:-1]) != digests[-1]:
        raise DataError("it is damaged: its sha256 does not match")
    return digests[:-1]


def _read(
    path: Path,
    n_members: int,
    shape: tuple[int, int],
    offsets: Mapping[tuple[int, Look], int],
    digests: Sequence[bytes] | None,
) -> Iterator[Block]:
    """The blocks of a file of n pictures and K classes; offsets: bytes to each look's probabilities, float32 (n, K)."""
    n, k = shape
    with atomic.reading(path, *WRITTEN), open(path, "rb", opener=atomic.regular) as file:
        for number, first in enumerate(range(0, n, PICTURES)):
            m = min(PICTURES, n - first)
            block: Block = [{} for _ in range(n_members)]
            for (i, look), offset in offsets.items():
                data = os.pread(file.fileno(), 4 * m * k, offset + 4 * first * k)
                block[i][look] = np.frombuffer(data, np.float32).reshape(m, k)
            rows = [row for of_member in block for row in of_member.values()]
            if digests is not None and prediction_records.digest(np.concatenate(rows, 1)) != digests[number]:
                raise DataError(f"it is damaged: the sha256 of pictures {first:,} to {first + m - 1:,} does not match")
            if not all(np.isfinite(each).all() for each in rows):
                raise DataError("its probabilities are not finite")
            yield block


def _begun(path: Path, predictions: Predictions, stack: ExitStack, progress: Progress) -> Records | None:
    """What there is in FILE.part, held for this process; None where the file is made."""
    stack.enter_context(atomic.lock(path, "evaluating", is_folder=False))
    if path.exists():  # another process has just made it, or was killed before it could remove the records
        prediction_records.forget(path)
        return None
    width = len(predictions.columns) * len(predictions.classes)
    return stack.enter_context(prediction_records.opened(path, predictions.meta(), width, progress))


def _add(records: Records | None, predictions: Predictions, block: Block) -> None:
    if records is not None:
        records.add(np.concatenate([block[i][look] for i, look in predictions.columns], 1))


def _write(path: Path, predictions: Predictions, records: Records) -> None:
    """Writes the file of all pictures' records."""
    columns, n_classes, labels = predictions.columns, len(predictions.classes), predictions.labels
    text = bytearray(json.dumps(predictions.meta()).encode())
    content: dict[str, torch.Tensor | safetensors.LazyTensor] = {
        "meta": torch.frombuffer(text, dtype=torch.uint8),
        "labels": torch.from_numpy(labels),
    }
    for place, (i, look) in enumerate(columns):
        numbers = partial(records.columns, place * n_classes, n_classes)
        content[f"{i}/{look}"] = safetensors.LazyTensor(torch.float32, (len(labels), n_classes), numbers)
    digests = [*records.digests, bytes(32)]  # the last one's place
    content[DIGESTS] = safetensors.LazyTensor(torch.uint8, (len(digests), 32), lambda: iter(digests))
    pieces = safetensors.pieces(content, {"format": FORMAT})
    header = next(pieces)
    digests[-1] = _seal(bytes(header), labels, bytes(text), records.digests)
    atomic.write_atomic(path, map(bytes, chain([header], pieces)))


def _seal(header: bytes, labels: NDArray[np.int64], meta: bytes, digests: Sequence[bytes]) -> bytes:
    """The sha256 of all of a file but its probabilities, whose own are `digests`."""
    return hashlib.sha256(b"".join([header, labels.tobytes(), meta, *digests])).digest()
