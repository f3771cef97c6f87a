"""A trained net is one thing: the net, what is done to pictures before it, its classes, and the device it runs on.

    net = convnet.load("runs/photos")
    net.evaluate("stores/photos", views="ten-crop").top1
    net.predict(["holiday/1.jpg"], top=3)
    net.features(["holiday/1.jpg"], "fc7")

Everything that asks a net about a split goes through `infer_split`: a test, a table of several nets, a report.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet import checkpoint, device, nets
from convnet.checkpoint import BEST, LAST, Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split, Store
from convnet.device import Device
from convnet.errors import ConvnetError, Interrupted, UsageError, check_type
from convnet.evaluation.inference import BATCH, NotFinite, Rows, infer, probabilities
from convnet.evaluation.metrics import Scores, Tally, concatenated, most_probable
from convnet.evaluation.pictures import PICTURES as CHUNK
from convnet.evaluation.pictures import Picture, Source, check_gives, name_of, read, read_picture, split_to_test
from convnet.evaluation.seen import Seen, from_files, to_images
from convnet.evaluation.views import Look, Protocol, protocol
from convnet.io import atomic
from convnet.io.processes import ALONE, Processes
from convnet.io.signals import Stop
from convnet.io.strict_json import Json
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.recipe import Recipe

PICTURES = 32  # files that are read and predicted at a time
Sources = Source | Iterable[Source] | Iterable[Seen] | Tensor
T = TypeVar("T")
Probabilities = dict[Look, NDArray[np.float64]]  # (N, K) of each look


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, best first; or the reason why there is none, in `failed`.

    `notes` say what is odd about it, as "first frame of 12".
    """

    name: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    failed: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TrainedNet:
    """A net and all that it needs to be asked about pictures.

    net            where `device` says
    preprocessing  what is done to a picture before the net
    classes        their names, in the order of the net's outputs
    device         where it computes, and in which arithmetic
    recipe         how it was trained; None where nobody says
    provenance     versions, device, store and command of its training, as far as they are known
    name           what messages call it
    """

    net: Net
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    device: Device
    recipe: Recipe | None = None
    provenance: Json = field(default_factory=dict)
    name: str = "the net"

    @classmethod
    def load(
        cls,
        path: atomic.PathLike,
        device: str | torch.device | Device = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "fp32",
    ) -> "TrainedNet":
        """The net of a checkpoint, or of a run's folder (its best), in eval mode on its device.

        Raises: UsageError when there is none, or no such device; DataError naming the file and the damage.
        """
        file = checkpoint_at(atomic.as_path(path, "the checkpoint"))
        return cls.of(checkpoint.load(file), choose(device, precision), str(file))

    @classmethod
    def of(cls, kept: Checkpoint, device: Device, name: str = "the net") -> "TrainedNet":
        """The net of a checkpoint that is in memory. Raises: DataError when its weights don't fit."""
        net = device.take(checkpoint.rebuild(kept))
        return cls(net, kept.preprocessing, kept.classes, device, kept.recipe, kept.provenance, name)

    def evaluate(
        self,
        store: Split | Store | atomic.PathLike,
        split: str | None = None,
        *,
        views: str = "single",
        scales: str | None = None,
        ids: NDArray[np.int64] | None = None,
        batch: int = BATCH,
        progress: Progress = SILENT,
        stop: Stop | None = None,
        processes: Processes = ALONE,
    ) -> Scores:
        """Tests the net on a split of a store (None: test if there is one, else val), or on its pictures `ids`.

        A store's classes are matched by name; a Split is taken as it is. views, scales: as `views.protocol` knows them.
        batch: crops in a forward pass, which bounds memory. processes: with which this one shares the pictures; each
        gets the scores of all, and they are those of one process to the last bit.

        Raises: NotFinite when the net's outputs aren't finite, naming the picture; UsageError when classes, sizes or
        views don't fit; Interrupted when `stop` is asked for.
        """
        asked = protocol(views, self.preprocessing, scales)
        tested = store if isinstance(store, Split) else self.split_of(store, split)
        chosen = np.arange(tested.n) if ids is None else ids
        own = chosen[processes.part(len(chosen), CHUNK)]
        title = f"testing ({tested.name}, {views})"

        def scores() -> Scores:
            tally = Tally(views, tested.name, tested.store.classes, tested.labels[own], own)
            for _, (found,) in infer_split(
                [(self, asked.looks)], tested, own, title=title, batch=batch, progress=progress, stop=stop
            ):
                tally.add(asked.mean(found))
            return tally.scores()

        return concatenated(processes.together(scores))

    def split_of(self, store: Store | atomic.PathLike, name: str | None = None) -> Split:
        """The split to test on (None: test, or else val, or train), with labels by the net's classes.

        Raises: UsageError when the store has a class that the net lacks, or no such split.
        """
        opened = store if isinstance(store, Store) else Store(store)
        return split_to_test(opened.with_labels_of(self.classes, self.name), name)

    def predict(
        self, pictures: Source | Iterable[Source], top: int = 5, *, views: str = "single", scales: str | None = None
    ) -> list[Prediction]:
        """The `top` most probable classes of each picture, in the order of `pictures`.

        Each is fitted as in preparation, and looked at by a protocol. One that can't be read gives a Prediction with
        the reason in `failed`; nothing is raised for it.
        """
        return list(self.predictions(pictures, top, views=views, scales=scales))

    def predictions(
        self, pictures: Source | Iterable[Source], top: int = 5, *, views: str = "single", scales: str | None = None
    ) -> Iterator[Prediction]:
        """What `predict` gives, as pictures are read. Raises: UsageError, at once."""
        if check_type("top", top, (int, np.integer), "a number of classes") < 1:
            raise UsageError(f"--top {top}: must be at least 1")
        return self._predict(_several(pictures), top, protocol(views, self.preprocessing, scales))

    def _predict(self, pictures: Iterable[Source], top: int, asked: Protocol) -> Iterator[Prediction]:
        computing, batch = self.narrowed(), list[tuple[Prediction, Picture | None]]()
        for i, source in enumerate(pictures):
            name = name_of(source, i)
            try:
                picture, notes = read_picture(source, asked.looks, self.preprocessing.fit)
                batch.append((Prediction(name, notes=notes), picture))
            except ConvnetError as error:
                batch.append((Prediction(name, failed=str(error)), None))
            if len(batch) == PICTURES:
                yield from computing._predict_batch(batch, top, asked)
                batch = []
        yield from computing._predict_batch(batch, top, asked)

    def _predict_batch(
        self, batch: Sequence[tuple[Prediction, Picture | None]], top: int, asked: Protocol
    ) -> Iterator[Prediction]:
        good = [(told.name, picture) for told, picture in batch if picture is not None]
        if good:
            found = asked.mean(self.infer([picture for _, picture in good], asked.looks, [name for name, _ in good]))
            rows = iter(zip(found, most_probable(found, top), strict=True))
        for told, picture in batch:
            if picture is not None:
                row, best = next(rows)
                names = tuple(self.classes[k] for k in best)
                told = replace(told, classes=names, probabilities=tuple(row[best].tolist()))
            yield told

    def trace(self, pictures: Sources, stages: Iterable[str] | None = None) -> dict[str, Tensor]:
        """{stage: activation} of the pictures' centre crops, without gradients; `nets.trace` says more.

        pictures: files, or uint8 (H, W, 3) each; or what the net takes, a tensor (N, C, H, W).
        """
        with self.device.autocast():
            return nets.trace(self.net, self.images(pictures), [stages] if isinstance(stages, str) else stages)

    def features(self, pictures: Sources, stage: str) -> Tensor:
        """(N, D): the activation of a stage of the pictures' centre crops, flat. Raises: UsageError, DataError."""
        return self.trace(pictures, [check_type("stage", stage, str, "the name of a stage")])[stage].flatten(1)

    def images(self, pictures: Sources) -> Tensor:
        """float32 (N, C, crop, crop) on the device: the centre crops of pictures, fitted as in preparation."""
        if isinstance(pictures, Tensor):
            return pictures.to(self.device.device)
        crops = from_files(_several(pictures), self.preprocessing)
        if not crops:
            raise UsageError("no pictures: name at least one")
        return to_images(crops, self.preprocessing, self.device.device)

    def narrowed(self) -> "TrainedNet":
        """This net with its weights in the arithmetic's own type, for many passes; `Device.narrowed` says more."""
        return replace(self, net=self.device.narrowed(self.net)[0])

    def infer(
        self,
        pictures: Sequence[Picture],
        looks: Sequence[Look],
        names: Sequence[str],
        batch: int = BATCH,
        rows: Rows = probabilities,
    ) -> Probabilities:
        """The probabilities of pictures by look, or other `rows` of them, in eval mode.

        Raises: NotFinite with the first bad picture's name.
        """
        with nets.evaluating(self.net):
            found = infer(self.net, pictures, looks, self.preprocessing, self.device, batch, rows)
        for of_look in found.values():
            if not (good := np.isfinite(of_look).all(1)).all():
                name = names[int(good.argmin())]
                raise NotFinite(f"the net's output for {name!r} is not finite; its weights may be damaged")
        return found


def infer_split(
    asked: Sequence[tuple[TrainedNet, Sequence[Look]]],
    split: Split,
    ids: NDArray[np.int64],
    *,
    title: str,
    done: int = 0,
    total: int | None = None,
    batch: int = BATCH,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Iterator[tuple[NDArray[np.int64], list[Probabilities]]]:
    """What each net says of the pictures `ids` of a split, by look: some pictures at a time, each decoded once for all.

    For the progress: `done` pictures were asked before; `total` are asked in all, by processes of which this is one.

    Raises: UsageError when the store can't give what is asked; NotFinite; Interrupted when `stop` is asked for.
    """
    for net, looks in asked:
        check_gives(split, looks, net.preprocessing)
    every = tuple(dict.fromkeys(look for _, looks in asked for look in looks))
    computing = [(net.narrowed(), looks) for net, looks in asked]
    total, before, own = total or done + len(ids), done, 0
    progress.start(title, total, done)
    for part, pictures in read(split, ids, every, stop):
        names = [split.keys[i] for i in part.tolist()]
        yield part, [net.infer(pictures, looks, names, batch) for net, looks in computing]
        own += len(part)
        done = before + (total - before) * own // len(ids)
        progress.update(done)
        if stop:
            raise Interrupted(f"stopped after {done:,} of {total:,} pictures")
    progress.finish()


def checkpoint_at(path: Path) -> Path:
    """The checkpoint that a user means by a file or a run's folder. Raises: UsageError when there is none."""
    if path.is_dir():
        found = [path / name for name in (BEST, LAST) if (path / name).is_file()]
        if not found:
            raise UsageError(f"{path} holds no checkpoint ({BEST} or {LAST})")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; a run keeps its own in runs/NAME/{BEST}")
    return path


def checkpoints_at(path: Path) -> list[Path]:
    """The checkpoint that a user means, or those of all runs in a folder of runs, in the order of their names.

    Raises: UsageError when there is none, and for a run there that has not ended.
    """
    if not path.is_dir() or any((path / name).is_file() for name in (BEST, LAST)):
        return [checkpoint_at(path)]
    runs = [run for run in path.iterdir() if any((run / name).is_file() for name in (BEST, LAST))]
    for run in runs:
        if not (run / "summary.json").exists():
            raise UsageError(f"{run} has not ended; go on with it (convnet train --resume), or name the runs of {path}")
    return [checkpoint_at(run) for run in sorted(runs, key=_natural)] or [checkpoint_at(path)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """seed-2 before seed-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def choose(where: str | torch.device | Device, precision: Literal["auto", "fp32", "bf16"]) -> Device:
    """The device of that name; one that was chosen already stays."""
    if isinstance(where, Device):
        return where
    return device.choose(precision, check_type("device", where, (str, torch.device), "auto, cpu, cuda, cuda:N or mps"))


def _several(pictures: Source | Iterable[T]) -> Iterable[T | Source]:
    """A single picture is a list of one."""
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, str | os.PathLike):
        return [pictures]
    return check_type("pictures", pictures, Iterable, "paths, or uint8 (H, W, 3) each")


load = TrainedNet.load
