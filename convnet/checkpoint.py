"""What is kept of a run, so that one file rebuilds the net, its preprocessing and the exact place in training?

docs/checkpoint.md states every byte. A sha256 covers each, so damage is found; nothing in the file is ever executed.
"""

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet import recipe
from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing
from convnet.errors import ConvnetError, DataError, UsageError
from convnet.io import atomic, safetensors, strict_json
from convnet.io.strict_json import Json
from convnet.nets import make, model
from convnet.nets.layers import Net
from convnet.recipe import Recipe

LAST, PREVIOUS, BEST = "last.ckpt", "last.previous.ckpt", "best.ckpt"  # names in a run's folder
KEPT = "epoch-{:04d}.ckpt"  # the net after that epoch

MAGIC = b"\x89CNVNET\n"  # no text file begins so, and a transfer that changes line ends breaks it
VERSION = 3  # 1 had no record, 2 no unaveraged; both are still read
FRAME = struct.Struct("<8sIQ32s")  # magic, version, length of the header, sha256: 52 bytes, the same in every version
MAX_HEADER = 2 << 20  # bytes; a header of 22,000 classes has about 1 MiB
SECTIONS = ("weights", "velocity", "unaveraged", "preprocessing", "record")  # in this order; only the first must be
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links answer
COUNTS = ("epoch", "batch", "step", "rows", "errors", "pictures")  # of a position
Payload = dict[str, Tensor] | bytes | bytearray  # of a section
T = TypeVar("T")


@dataclass(frozen=True)
class Position:
    """Where in training a run is.

    epoch              the epoch in progress; the first is 1
    batch              steps done in this epoch
    step               steps done in all
    rows               rows that the record of the run (metrics.jsonl) had
    loss_sum           sum over this epoch's pictures of the loss
    errors             of this epoch's pictures, how many were wrong
    pictures           pictures seen in this epoch
    validation_errors  share wrong after each finished epoch
    best_error         the smallest of them that a checkpoint was kept for; None before the first
    hand               (epoch, rate): what somebody made the learning rate from an epoch on; of equal epochs the last
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    errors: int = 0
    pictures: int = 0
    validation_errors: tuple[float, ...] = ()
    best_error: float | None = None
    hand: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that is kept of a run.

    recipe         every choice of the run
    preprocessing  what happened to pictures before the net saw them
    classes        their names, in the order of the net's outputs
    weights        the net's parameters and buffers by name
    velocity       the update rule's state by name; None where only the net is kept
    unaveraged     where `weights` are an average, those with which training goes on; None where only the net is kept
    position       where in training the run is
    provenance     what JSON holds: versions, threads, device, the store's sha256, the command
    record         the lines of metrics.jsonl so far, which a resumed run writes anew; None where only the net is kept
    """

    recipe: Recipe
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    weights: dict[str, Tensor]
    velocity: dict[str, Tensor] | None = None
    position: Position = Position()
    provenance: Json = field(default_factory=dict)
    record: bytes | bytearray | None = None
    unaveraged: dict[str, Tensor] | None = None


def save(path: atomic.PathLike, checkpoint: Checkpoint, *, keep_previous: bool = False) -> None:
    """Writes a checkpoint: whoever reads `path` finds the former file or the whole new one. Copies tensors to the CPU.

    keep_previous: the former file, if it is whole, stays as NAME.previous.EXT. Raises: DiskError; the former file is
    then as it was.
    """
    path = atomic.as_path(path, "the checkpoint")
    payloads = _payloads(checkpoint)
    header = _header(path, checkpoint, payloads)
    with atomic.atomic(path) as file:
        file.write(FRAME.pack(MAGIC, VERSION, len(header), _digest(VERSION, header)) + header)
        for payload in payloads.values():
            for piece in _pieces(payload):
                file.write(piece)
        if keep_previous and _is_whole(path):
            file.flush()
            os.fsync(file.fileno())  # the new file is on the disk before the former one changes its name
            _keep_previous(path)


def load(path: atomic.PathLike) -> Checkpoint:
    """The checkpoint in a file, its tensors on the CPU. Raises: DataError naming the file and the damage."""
    path = atomic.as_path(path, "the checkpoint")
    try:
        with open(path, "rb", opener=atomic.regular) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def load_newest(folder: atomic.PathLike) -> tuple[Checkpoint, Path, list[str]]:
    """The newest whole checkpoint of a run's folder, its path, and warnings that name what was damaged.

    Raises: DataError when there is none.
    """
    folder = atomic.as_path(folder, "the run's folder")
    paths = (folder / LAST, folder / PREVIOUS)
    if not any(path.exists() for path in paths):
        raise DataError(f"{folder}: no checkpoint ({LAST} or {PREVIOUS}) in this folder")
    damages: list[str] = []
    for path in paths:
        try:
            return load(path), path, [f"{damage}; going on from {path.name}" for damage in damages]
        except DataError as error:
            damages.append(str(error))
    raise DataError("; ".join(damages))


class Summary(NamedTuple):
    """What the header of a run's newest checkpoint says, read without its tensors."""

    path: Path
    recipe: Recipe
    provenance: Json


def peek(folder: Path) -> Summary | None:
    """The header of the newest checkpoint of a run's folder whose header is whole; None where there is none."""
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            with open(path, "rb", opener=atomic.regular) as file:
                header, _ = _sections(file, os.fstat(file.fileno()).st_size)
            return Summary(path, recipe.from_dict(_of(header, "recipe", dict)), _of(header, "provenance", dict))
        except (OSError, ConvnetError):
            continue
    return None


def rebuild(checkpoint: Checkpoint) -> Net:
    """The net of a checkpoint with its weights, in eval mode, on the CPU. Raises: DataError when they don't fit."""
    chosen, n_classes = checkpoint.recipe, len(checkpoint.classes)
    try:
        _check_shapes(chosen.net, {**chosen.net_options, "num_classes": n_classes}, checkpoint.weights)
        net = make(chosen.net, chosen.net_options, num_classes=n_classes)
        net.load_state_dict(checkpoint.weights)
    except (UsageError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the weights don't fit net {chosen.net}: {' '.join(str(error).split())}") from error
    return net.eval()


def _check_shapes(name: str, options: Json, weights: dict[str, Tensor]) -> None:
    """A net takes no memory before its weights are known to be there. Raises: ValueError, UsageError."""
    with torch.device("meta"):
        needed = model(name)(**options).state_dict()
    for weight in needed.keys() & weights.keys():
        if needed[weight].shape != weights[weight].shape:
            there, wanted = (list(each[weight].shape) for each in (weights, needed))
            raise ValueError(f"{weight} has shape {there}, the net needs {wanted}")
    if missing := sorted(needed.keys() - weights.keys()):
        raise ValueError(f"{missing[0]} is missing")


# Writing


def _payloads(checkpoint: Checkpoint) -> dict[str, Payload]:
    """What the sections hold, in the order of the file: tensors, as one safetensors file each, or bytes."""
    mean = checkpoint.preprocessing.mean
    payloads: dict[str, Payload | None] = {
        "weights": checkpoint.weights,
        "velocity": checkpoint.velocity,
        "unaveraged": checkpoint.unaveraged,
        "preprocessing": None if mean is None else {"mean": torch.from_numpy(mean)},
        "record": checkpoint.record,
    }
    return {name: payload for name, payload in payloads.items() if payload is not None}


def _pieces(payload: Payload) -> Iterator[memoryview | bytes | bytearray]:
    return iter([payload]) if isinstance(payload, (bytes, bytearray)) else safetensors.pieces(payload)


def _header(path: Path, checkpoint: Checkpoint, payloads: dict[str, Payload]) -> bytes:
    sections = []
    for name, payload in payloads.items():
        digest, length = hashlib.sha256(), 0
        for piece in _pieces(payload):
            digest.update(piece)
            length += len(piece)
        sections.append({"name": name, "length": length, "sha256": digest.hexdigest()})
    content = {
        "recipe": recipe.to_dict(checkpoint.recipe),
        "preprocessing": preprocess.to_dict(checkpoint.preprocessing),
        "classes": list(checkpoint.classes),
        "position": {name: value for name, value in vars(checkpoint.position).items() if value or name != "hand"},
        "provenance": dict(checkpoint.provenance),
        "sections": sections,
    }
    try:
        header = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise ConvnetError(f"{path}: not saved: the position or provenance holds NaN or infinity") from error
    if len(header) > MAX_HEADER:
        raise ConvnetError(f"{path}: not saved: the header has {len(header)} bytes, at most {MAX_HEADER} are allowed")
    return header


def _digest(version: int, header: bytes) -> bytes:
    """The sha256 of all bytes before the sections but for itself."""
    return hashlib.sha256(FRAME.pack(MAGIC, version, len(header), b"")[:-32] + header).digest()


def _keep_previous(path: Path) -> None:
    """Gives the former file its second name; `path` and the new name are whole at every instant."""
    previous = path.with_name(f"{path.stem}.previous{path.suffix}")
    link = path.with_name(f".{previous.name}.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.replace(path, previous)  # until the new file has its name, the previous one is the newest
        return
    try:
        os.replace(link, previous)
    finally:
        link.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether `path` is a checkpoint without damage: a damaged one must not take the previous one's place."""
    try:
        with open(path, "rb", opener=atomic.regular) as file:
            for section in _sections(file, os.fstat(file.fileno()).st_size)[1]:
                _verify(file, section)
    except (OSError, DataError):
        return False
    return True


# Reading


class _Section(NamedTuple):
    name: str
    length: int
    sha256: str


def _read(file: BufferedReader, size: int) -> Checkpoint:
    header, sections = _sections(file, size)
    found: dict[str, dict[str, Tensor]] = {}
    record: bytes | None = None
    for section in sections:
        data = torch.empty(section.length, dtype=torch.uint8)
        _verify(file, section, data.numpy().data)
        if section.name == "record":
            record = data.numpy().tobytes()
            continue
        try:
            found[section.name] = safetensors.parse(data)
        except DataError as error:
            raise DataError(f"{section.name}: {error}") from error
    try:
        classes = _of(header, "classes", list)
        if not all(isinstance(name, str) for name in classes):
            raise DataError("a class is no text")
        return Checkpoint(
            recipe=recipe.from_dict(_of(header, "recipe", dict), "recipe"),
            preprocessing=preprocess.from_dict(_of(header, "preprocessing", dict), _mean(found)),
            classes=tuple(classes),
            weights=found["weights"],
            velocity=found.get("velocity"),
            position=_position(_of(header, "position", dict)),
            provenance=_of(header, "provenance", dict),
            record=record,
            unaveraged=found.get("unaveraged"),
        )
    except ConvnetError as error:  # what a recipe calls a wrong argument is bad data here
        raise DataError(f"header: {error}") from error


def _sections(file: BufferedReader, size: int) -> tuple[Json, list[_Section]]:
    """The header, its sha256 verified, and the sections that it announces, which fill the file exactly."""
    frame = file.read(FRAME.size)
    if not frame or frame[:8] != MAGIC[: len(frame)]:
        raise DataError("not a convnet checkpoint, or its first bytes are damaged")
    if len(frame) < FRAME.size:
        raise DataError(f"damaged header: the file ends after {size} bytes")
    _, version, length, digest = FRAME.unpack(frame)
    if length > min(MAX_HEADER, size - FRAME.size):
        raise DataError(f"damaged header: it should have {length} bytes, the file has {size}")
    data = file.read(length)
    if _digest(version, data) != digest:
        raise DataError("damaged header: its sha256 is wrong")
    if not 1 <= version <= VERSION:
        raise DataError(f"written by a newer convnet (format {version}; this one reads 1 to {VERSION}): update convnet")
    try:
        header = strict_json.parse(data)
    except ValueError as error:
        raise DataError(f"header: {error}") from error
    sections = [_section(entry) for entry in _of(header, "sections", list)]
    names = [section.name for section in sections]
    if names != [name for name in SECTIONS if name in names] or "weights" not in names:
        raise DataError(f"header: the sections must be {', '.join(SECTIONS)}, in this order")
    end = FRAME.size + length + sum(section.length for section in sections)
    if size != end:
        raise DataError(f"damaged: the file has {size} bytes, its header says {end}")
    return header, sections


def _verify(file: BufferedReader, section: _Section, into: memoryview | None = None) -> None:
    """Reads a section, into memory where there is some, and compares its sha256."""
    piece = memoryview(bytearray(atomic.CHUNK))
    digest, done = hashlib.sha256(), 0
    while done < section.length:
        wanted = min(atomic.CHUNK, section.length - done)
        part = piece[:wanted] if into is None else into[done : done + wanted]
        n_read = file.readinto(part)
        if not n_read:
            raise DataError(f"damaged {section.name}: the file ends within it")
        digest.update(part[:n_read])
        done += n_read
    if digest.hexdigest() != section.sha256:
        raise DataError(f"damaged {section.name}: the sha256 is wrong")


def _of(header: Json, name: str, kind: type[T]) -> T:
    value = header.get(name)
    if type(value) is not kind:
        raise DataError(f"header: {name} is missing or no {kind.__name__}")
    return value


def _section(entry: object) -> _Section:
    if not isinstance(entry, dict) or entry.keys() != {"name", "length", "sha256"}:
        raise DataError("header: a section needs name, length and sha256")
    name, length, sha256 = _of(entry, "name", str), _of(entry, "length", int), _of(entry, "sha256", str)
    if length < 0:
        raise DataError("header: a section has a negative length")
    return _Section(name, length, sha256)


def _mean(found: dict[str, dict[str, Tensor]]) -> NDArray[np.float32] | None:
    if "preprocessing" not in found:
        return None
    mean = found["preprocessing"].get("mean")
    if mean is None or len(found["preprocessing"]) != 1 or mean.dtype != torch.float32:
        raise DataError("preprocessing must hold one float32 tensor, mean")
    return mean.numpy()


def _position(values: Json) -> Position:
    names, values = [each.name for each in fields(Position)], {"hand": [], **values}
    for name in sorted(set(names) ^ values.keys()):
        raise DataError(f"position {name} is {'missing' if name in names else 'unknown'}")
    errors, hand = values["validation_errors"], values["hand"]
    if not (
        isinstance(errors, list)
        and all(type(each) is float for each in errors)
        and isinstance(hand, list)
        and all(isinstance(each, list) and [type(part) for part in each] == [int, float] for each in hand)
        and all(type(values[name]) is int and values[name] >= 0 for name in COUNTS)
        and type(values["loss_sum"]) is float
        and (values["best_error"] is None or type(values["best_error"]) is float)
    ):
        raise DataError("a value of position has a wrong type")
    return Position(**{**values, "validation_errors": tuple(errors), "hand": tuple(map(tuple, hand))})
