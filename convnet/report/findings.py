"""What does a report show of a net and its pictures? Each section's content, the pictures as text within the page."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from convnet.data.store import Pixels, Split, Store
from convnet.errors import UsageError
from convnet.evaluation.metrics import Scores
from convnet.evaluation.pictures import split_to_test
from convnet.evaluation.seen import Seen, from_store, some
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
from convnet.nets.layers import Net
from convnet.progress import Progress
from convnet.recipe import Recipe
from convnet.training.run import choose_data
from convnet.visualize import plot
from convnet.visualize.classes import DOUBT, Classes, classes
from convnet.visualize.duplicates import LIKE, near_duplicates
from convnet.visualize.filters import filters, name_of, pictures_of
from convnet.visualize.neighbours import Neighbours, neighbours
from convnet.visualize.panels import choose, percent

PICTURES = 2000  # validation pictures that are looked at, if not told otherwise
TRAINED = 20_000  # training pictures among which copies are looked for
SEARCHED = 1000  # training pictures among which neighbours are looked for
PANELS, MISTAKES, PAIRS, EXAMPLES, QUERIES, TWINS = 12, 12, 9, 4, 4, 12  # how many of each are shown
LARGE, SMALL = 192, 128  # pixels of a picture on the page
QUALITY = 82  # of their JPEG
COARSE = 64  # pixels: pictures up to this side are kept as they are and shown enlarged


@dataclass(frozen=True)
class Asked:
    """A run's net and what it is asked about: pictures `ids` of `tested` (of `total`), training pictures `train_ids`.

    net: computes as in a test. quick: for what needs no exact figure.
    """

    net: TrainedNet
    quick: TrainedNet
    names: tuple[str, ...]
    tested: Split
    ids: NDArray[np.int64]
    total: int
    train: Split
    train_ids: NDArray[np.int64]


def pictures_of_run(recipe: Recipe, store: Store, most: int) -> tuple[Split, NDArray[np.int64], int, NDArray[np.int64]]:
    """What a run is shown on: the split, its pictures (at most `most`), how many there are, the training pictures.

    The test pictures; where there are none those of validation. Raises: UsageError when there are neither.
    """
    data = choose_data(recipe, store)
    split = split_to_test(store)
    if split.name != "train":
        return split, some(split.n, most), split.n, data.train_ids
    if data.val is None:
        raise UsageError(f"{store.path} has training pictures only, so errors are not known")
    return split, data.val_ids[some(len(data.val_ids), most)], len(data.val_ids), data.train_ids


def kernels(net: Net) -> list[dict[str, Any]]:
    """The first layer's kernels, a sheet a column."""
    shown = filters(net)
    sheets = []
    for i, column in enumerate(shown.columns):
        across = min(16, len(column)) if len(column) > 36 else min(8, len(column))
        sheet = plot.tiles(list(pictures_of(column)), across, ground=np.nan)
        seen = np.isfinite(sheet)
        pixels = np.round(np.where(seen, sheet, 0) * 255).astype(np.uint8)
        pixels = np.dstack([pixels, np.where(seen[..., :1], 255, 0).astype(np.uint8)])  # gaps let the page through
        what = f"{len(column)} kernels of {shown.layer}, {column.shape[2]} x {column.shape[3]}"
        sheets.append({"src": _png(pixels), "alt": what, "title": name_of(shown, i)})
    return sheets


def panels(asked: Asked, found: Scores) -> list[dict[str, Any]]:
    """Some pictures, drawn by chance, each with its true class and bars."""
    places = {int(i): row for row, i in enumerate(found.ids)}
    rows = [places[int(i)] for i in choose(found, PANELS)]
    return [_panel(asked, found, row) for row in rows]


def mistakes(asked: Asked, found: Classes) -> list[dict[str, Any]]:
    """The most confident mistakes; `doubt` marks those whose label is to be looked at."""
    doubts = set(found.doubts.tolist())
    return [_panel(asked, found.scores, row) | {"doubt": row in doubts} for row in found.mistakes[:MISTAKES].tolist()]


def pairs(asked: Asked, found: Classes) -> list[dict[str, Any]]:
    """The most confused pairs with pictures."""
    return [
        {
            "label": asked.names[pair.label],
            "said": asked.names[pair.said],
            "count": pair.count,
            "n": pair.n,
            "pictures": [
                _shot(_tested(asked, found.scores, row), SMALL)
                | {"text": percent(float(found.scores.probabilities[row, 0]))}
                for row in pair.rows[:EXAMPLES].tolist()
            ],
        }
        for pair in found.pairs[:PAIRS]
    ]


def table(asked: Asked, found: Classes) -> list[dict[str, Any]]:
    """The classes, a row each: errors with interval, and the class that they are most often taken for."""
    rows = []
    for row in found.rows:
        taken = "" if row.taken_for is None else asked.names[row.taken_for[0]]
        rows.append(
            {
                "name": asked.names[row.k],
                "n": row.n,
                "top1": row.top1,
                "top5": row.top5,
                "low": (row.interval or (0.0, 0.0))[0],
                "high": (row.interval or (0.0, 0.0))[1],
                "taken": taken,
                "times": 0 if row.taken_for is None else row.taken_for[1],
            }
        )
    return rows


def twins(asked: Asked, found: Classes) -> list[dict[str, Any]]:
    """Pictures that are in the training pictures too, the surest first."""
    rows = []
    for twin in (found.twins or ())[:TWINS]:
        ours = from_store(asked.tested, [twin.first], asked.net.preprocessing)[0]
        theirs = from_store(asked.train, [twin.second], asked.net.preprocessing)[0]
        alike = "the same bytes" if twin.exact else f"correlation {twin.likeness:.3f}"
        rows.append(
            {
                "pictures": [_shot(ours, SMALL), _shot(theirs, SMALL)],
                "labels": [asked.names[int(each.label or 0)] for each in (ours, theirs)],
                "text": f"{alike}, mirrored" if twin.mirrored else alike,
            }
        )
    return rows


def nearest(asked: Asked, found: Scores, progress: Progress, stop: Stop | None) -> list[dict[str, Any]]:
    """Some pictures with their neighbours, by features and by pixels."""
    queries = from_store(asked.tested, found.ids[some(len(found.ids), QUERIES, seed=1)], asked.net.preprocessing)
    ids = asked.train_ids[some(len(asked.train_ids), SEARCHED)]
    both = neighbours(asked.quick, queries, asked.train, ids=ids, progress=progress, stop=stop)
    return [
        {"query": _shot(query, LARGE) | {"label": _label(asked, query)}, "by": [_row(asked, each, q) for each in both]}
        for q, query in enumerate(queries)
    ]


def ask(asked: Asked, progress: Progress, stop: Stop | None) -> Classes:
    """What the net says of its pictures, and which of them are in the training pictures too."""
    among = asked.train_ids[some(len(asked.train_ids), TRAINED)]
    found = asked.net.evaluate(asked.tested, ids=asked.ids, progress=progress, stop=stop)
    alike = near_duplicates(
        asked.tested, asked.train, first_ids=asked.ids, second_ids=among, progress=progress, stop=stop
    )
    return classes(found, alike)


def rules(asked: Asked) -> dict[str, str]:
    """How the findings were made, in words."""
    among = min(TRAINED, len(asked.train_ids))
    return {
        "doubt": DOUBT,
        "twins": f"the same bytes in the store, or grey thumbnails that correlate by {LIKE} or more; "
        f"{len(asked.ids):,} pictures against {among:,} of {len(asked.train_ids):,} training pictures",
        "nearest": f"among {min(SEARCHED, len(asked.train_ids)):,} of {len(asked.train_ids):,} training pictures"
        + (", computed in bf16" if asked.quick.device.dtype != torch.float32 else ""),
    }


def _row(asked: Asked, found: Neighbours, q: int) -> dict[str, Any]:
    query, shots = found.queries[q], []
    for picture, distance in zip(found.nearest[q], found.distances[q].tolist(), strict=True):
        text = f"{distance:,.0f}" if distance >= 100 else f"{distance:.2f}"
        own = query.label is not None and query.label == picture.label
        shots.append(_shot(picture, SMALL) | {"label": _label(asked, picture), "text": text, "own": own})
    return {"measure": found.measure, "pictures": shots}


def _panel(asked: Asked, found: Scores, row: int) -> dict[str, Any]:
    label = int(found.labels[row])
    bars = [
        {"name": asked.names[k], "p": p, "text": percent(p), "right": k == label}
        for k, p in zip(found.top[row].tolist(), found.probabilities[row].tolist(), strict=True)
    ]
    return _shot(_tested(asked, found, row), LARGE) | {"label": asked.names[label], "bars": bars, "doubt": False}


def _tested(asked: Asked, found: Scores, row: int) -> Seen:
    return from_store(asked.tested, [int(found.ids[row])], asked.net.preprocessing)[0]


def _label(asked: Asked, picture: Seen) -> str:
    return "" if picture.label is None else asked.names[picture.label]


def _shot(picture: Seen, side: int) -> dict[str, Any]:
    """A picture for the page: its bytes as text, and its name in the source."""
    height, width = picture.pixels.shape[:2]
    coarse = max(height, width) <= COARSE
    src = _png(picture.pixels) if coarse else _jpeg(picture.pixels, side)
    return {"src": src, "key": picture.name, "coarse": coarse}


def _png(pixels: Pixels) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _jpeg(pixels: Pixels, side: int) -> str:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
