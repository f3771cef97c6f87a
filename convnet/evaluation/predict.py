"""What does a trained net say of a picture? Its most probable classes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convnet.data.decode import BadPicture, opened
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit, fitted
from convnet.data.sources.listing import LARGEST
from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluation.inference import Picture, posteriors
from convnet.evaluation.views import Look, Protocol, protocol
from convnet.io import atomic

PICTURES = 32  # at a time
Read = tuple[Picture, tuple[str, ...]] | str  # a picture and notes, or the reason why there is none


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, best first; or the reason why there is none, in `failed`.

    `notes` say what is odd about it, as "first frame of 12".
    """

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    failed: str | None = None
    notes: tuple[str, ...] = ()


def predict(
    net: nn.Module,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    paths: Iterable[Path],
    device: Device,
    *,
    top: int = 5,
    views_name: str = "single",
    scales: str | None = None,
) -> Iterator[Prediction]:
    """Predictions in the order of `paths`. Each picture is scaled as in preparation, and looked at by a protocol.

    A picture that can't be read gives a Prediction with the reason in `failed`; nothing is raised for it.
    """
    if top < 1:
        raise UsageError(f"--top {top}: must be at least 1")
    asked = protocol(views_name, preprocessing, scales)
    net, _ = device.narrowed(net)
    batch: list[tuple[Path, Read]] = []
    for path in paths:
        batch.append((path, read_picture(path, asked.looks, preprocessing.fit)))
        if len(batch) == PICTURES:
            yield from _predict(net, preprocessing, classes, batch, device, top, asked)
            batch = []
    yield from _predict(net, preprocessing, classes, batch, device, top, asked)


def _predict(
    net: nn.Module,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    batch: list[tuple[Path, Read]],
    device: Device,
    top: int,
    asked: Protocol,
) -> Iterator[Prediction]:
    pictures = [read[0] for _, read in batch if not isinstance(read, str)]
    rows: Iterator[NDArray[np.float64]] = iter(())
    if pictures:
        rows = iter(asked.mean(posteriors(net, pictures, asked.looks, preprocessing, device)))
    for path, read in batch:
        if isinstance(read, str):
            yield Prediction(path, failed=read)
            continue
        row = next(rows)
        best = np.argsort(-row, kind="stable")[:top]
        names, probabilities = tuple(classes[k] for k in best), tuple(float(row[k]) for k in best)
        yield Prediction(path, names, probabilities, notes=read[1])


def read_picture(path: Path, looks: Sequence[Look], fit: Fit) -> Read:
    """The picture at the looks' scales, fitted as in preparation, and notes; or why not."""
    try:
        with opened(atomic.read(path, LARGEST)) as (picture, notes):
            return {look.scale: np.asarray(fitted(picture, look.scale, fit)) for look in looks}, notes
    except BadPicture as error:
        return str(error)
    except IsADirectoryError:
        return "a folder; name its pictures, as FOLDER/*"
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
