"""What does a trained net say of a picture? Its most probable classes."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convnet.decode import BadPicture, decode_image
from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluate import mean_posterior
from convnet.prepare import Settings, fit
from convnet.preprocess import Preprocessing
from convnet.store import Pixels
from convnet.views import View, views

BATCH = 32  # pictures at a time
Read = tuple[Pixels, tuple[str, ...]] | str  # a square and notes, or the reason why there is none


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
) -> Iterator[Prediction]:
    """Predictions in the order of `paths`. Each picture is treated as in preparation: shorter side, centre square.

    A picture that can't be read gives a Prediction with the reason in `failed`; nothing is raised for it.
    """
    if top < 1:
        raise UsageError(f"--top {top}: must be at least 1")
    looks = views(views_name, preprocessing)
    settings = Settings(preprocessing.size, preprocessing.shorter_side or preprocessing.size, "raw")
    batch: list[tuple[Path, Read]] = []
    for path in paths:
        batch.append((path, _read(path, settings)))
        if len(batch) == BATCH:
            yield from _predict(net, preprocessing, classes, batch, device, top, looks)
            batch = []
    yield from _predict(net, preprocessing, classes, batch, device, top, looks)


def _predict(
    net: nn.Module,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    batch: list[tuple[Path, Read]],
    device: Device,
    top: int,
    looks: list[View],
) -> Iterator[Prediction]:
    squares = [read[0] for _, read in batch if not isinstance(read, str)]
    rows: Iterator[NDArray[np.float64]] = iter(())
    if squares:
        rows = iter(mean_posterior(net, squares, looks, preprocessing, device))
    for path, read in batch:
        if isinstance(read, str):
            yield Prediction(path, failed=read)
            continue
        row = next(rows)
        best = np.argsort(-row, kind="stable")[:top]
        names, probabilities = tuple(classes[k] for k in best), tuple(float(row[k]) for k in best)
        yield Prediction(path, names, probabilities, notes=read[1])


def _read(path: Path, settings: Settings) -> Read:
    """uint8 (size, size, 3) and notes, or why not."""
    try:
        if not path.is_file():
            if path.is_dir():
                return "a folder; name its pictures, as FOLDER/*"
            return "not a file" if os.path.lexists(path) else "no such file"
        picture, notes = decode_image(path.read_bytes())
        return np.asarray(fit(picture, settings)), notes
    except BadPicture as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
