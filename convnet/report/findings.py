"""What does a report show of a net and its pictures? Each section's content, the pictures as text within the page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from convnet.data.index import Numbers
from convnet.data.store import Split, Store
from convnet.errors import UsageError
from convnet.evaluation.metrics import Scores
from convnet.evaluation.pictures import split_to_test
from convnet.evaluation.seen import Seen, from_store, some
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.strict_json import Json
from convnet.nets.layers import Net
from convnet.progress import Progress
from convnet.recipe import Recipe
from convnet.training.data import choose_data
from convnet.visualize import plot
from convnet.visualize.classes import DOUBT, classes, confused_pairs
from convnet.visualize.duplicates import LIKE, Duplicate, near_duplicates
from convnet.visualize.filters import filters, name_of, pictures_of
from convnet.visualize.neighbours import distance_text, neighbours
from convnet.visualize.panels import choose, percent

PICTURES = 2000  # validation pictures that are looked at, if not told otherwise
TRAINED = 20_000  # training pictures among which copies are looked for
SEARCHED = 1000  # training pictures among which neighbours are looked for
PANELS, MISTAKES, PAIRS, EXAMPLES, QUERIES, DUPLICATES = 12, 12, 9, 4, 4, 12  # how many of each are shown
CLASSES = 1000  # in the table and in the matrix
LARGE, SMALL = 192, 128  # pixels of a picture on the page
QUALITY = 82  # of their JPEG
COARSE = 64  # pixels: pictures up to this side are kept as they are and shown enlarged
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """A run's net and the pictures that it is shown on: `ids` of a split (of `total`), and of the training split."""

    net: TrainedNet  # computes as in a test
    quick: TrainedNet  # for what needs no exact figure
    names: tuple[str, ...]  # of the classes
    split: Split
    ids: Ints
    total: int
    train: Split
    train_ids: Numbers

    def picture(self, i: int) -> Seen:
        return from_store(self.split, [i], self.net.preprocessing)[0]

    def label(self, picture: Seen) -> str:
        return "" if picture.label is None else self.names[picture.label]


def pictures_of_run(recipe: Recipe, store: Store, most: int) -> tuple[Split, Ints, int, Numbers]:
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


def kernels(net: Net) -> list[Json]:
    """The first layer's kernels, a sheet a column."""
    shown = filters(net)
    sheets = []
    for i, column in enumerate(shown.columns):
        across = min(16, len(column)) if len(column) > 36 else min(8, len(column))
        sheet = plot.tiles(list(pictures_of(column)), across, ground=np.nan)
        opaque = np.isfinite(sheet[..., :1])  # gaps let the page through
        pixels = np.round(np.concatenate([np.where(opaque, sheet, 0), opaque], 2) * 255).astype(np.uint8)
        what = f"{len(column)} kernels of {shown.layer}, {column.shape[2]} x {column.shape[3]}"
        sheets.append({"src": _source(Image.fromarray(pixels), "png"), "alt": what, "title": name_of(shown, i)})
    return sheets


def sections(subject: Subject, progress: Progress) -> Json:
    """What is told of the net's pictures, section by section."""
    among = subject.train_ids[some(len(subject.train_ids), TRAINED)]
    scores = subject.net.evaluate(subject.split, ids=subject.ids, progress=progress)
    copies = near_duplicates(subject.split, subject.train, first_ids=subject.ids, second_ids=among, progress=progress)
    summary, shown = classes(scores, copies), most_wrong(scores, CLASSES)
    rows = {int(i): row for row, i in enumerate(scores.ids)}
    doubts = set(summary.doubts.tolist())
    return {
        "split": subject.split.name,
        "n": len(subject.ids),
        "total": subject.total,
        "names": subject.names,
        "rules": rules(subject),
        "panels": [_panel(subject, scores, rows[i]) for i in choose(scores, PANELS).tolist()],
        "mistakes": [
            _panel(subject, scores, row) | {"doubt": row in doubts} for row in summary.mistakes[:MISTAKES].tolist()
        ],
        "n_mistakes": len(summary.mistakes),
        "n_doubts": len(doubts),
        "pairs": pairs(subject, scores),
        "n_classes": len(subject.names),
        "table": [summary.rows[k] for k in shown.tolist()],
        "duplicates": [_duplicate(subject, pair) for pair in copies[:DUPLICATES]],
        "n_duplicates": len(copies),
        "nearest": nearest(subject, scores, progress),
        "matrix": _matrix(subject, scores, shown),
    }


def most_wrong(scores: Scores, most: int) -> Ints:
    """The classes, rising, with the most errors; ties: more pictures, then the first. All where there are no more."""
    n_classes = len(scores.classes)
    errors, sizes = (np.bincount(scores.labels[scores.ranks >= place], minlength=n_classes) for place in (1, 0))
    return np.sort(np.lexsort((-sizes, -errors))[:most])


def _matrix(subject: Subject, scores: Scores, shown: Ints) -> Json:
    """The confusion matrix among the classes `shown`: what isn't 0 by their places; sizes: each one's pictures."""
    place = np.full(len(subject.names), -1)
    place[shown] = np.arange(len(shown))
    entries = scores.confused()
    entries[:, :2] = place[entries[:, :2]]
    sizes = np.bincount(scores.labels, minlength=len(place))[shown]
    return {
        "names": [subject.names[k] for k in shown.tolist()],
        "entries": entries[(entries[:, :2] >= 0).all(1)].tolist(),
        "sizes": sizes.tolist(),
    }


def rules(subject: Subject) -> dict[str, str]:
    """How the findings were made, in words."""
    n_train = len(subject.train_ids)
    return {
        "doubt": DOUBT,
        "duplicates": f"the same bytes in the store, or grey thumbnails that correlate by {LIKE} or more; "
        f"{len(subject.ids):,} pictures against {min(TRAINED, n_train):,} of {n_train:,} training pictures",
        "nearest": f"among {min(SEARCHED, n_train):,} of {n_train:,} training pictures"
        + (", computed in bf16" if subject.quick.device.dtype != torch.float32 else ""),
    }


def nearest(subject: Subject, scores: Scores, progress: Progress) -> list[Json]:
    """Some pictures with their neighbours, by features and by pixels."""
    ids = scores.ids[some(len(scores.ids), QUERIES, seed=1)]
    queries = from_store(subject.split, ids, subject.net.preprocessing)
    among = subject.train_ids[some(len(subject.train_ids), SEARCHED)]
    rows: list[Json] = [{"query": _shot(subject, query, LARGE), "by": []} for query in queries]
    for by in neighbours(subject.quick, queries, subject.train, ids=among, progress=progress):
        for row, query, pictures, distances in zip(rows, queries, by.nearest, by.distances.tolist(), strict=True):
            shots = [
                _shot(subject, picture, SMALL)
                | {"text": distance_text(distance), "own": query.label is not None and query.label == picture.label}
                for picture, distance in zip(pictures, distances, strict=True)
            ]
            row["by"].append({"measure": by.measure, "pictures": shots})
    return rows


def pairs(subject: Subject, scores: Scores) -> list[Json]:
    """The most confused pairs of classes, each with some of its pictures, the net's most confident mistakes first."""
    found = []
    for pair in confused_pairs(scores, PAIRS):
        shots = [
            _shot(subject, subject.picture(scores.ids[row]), SMALL) | {"text": percent(scores.probabilities[row, 0])}
            for row in pair.rows[:EXAMPLES].tolist()
        ]
        names = {"label": subject.names[pair.label], "predicted": subject.names[pair.predicted]}
        found.append(names | {"count": pair.count, "n": pair.n, "pictures": shots})
    return found


def _duplicate(subject: Subject, pair: Duplicate) -> Json:
    """A picture and its copy among the training pictures."""
    copy = from_store(subject.train, [pair.second], subject.net.preprocessing)[0]
    text = "the same bytes" if pair.exact else f"correlation {pair.correlation:.3f}"
    return {
        "pictures": [_shot(subject, picture, SMALL) for picture in (subject.picture(pair.first), copy)],
        "text": f"{text}, mirrored" if pair.mirrored else text,
    }


def _panel(subject: Subject, scores: Scores, row: int) -> Json:
    """A picture with its true class and bars."""
    bars = [
        {"name": subject.names[k], "p": p, "text": percent(p), "right": k == scores.labels[row]}
        for k, p in zip(scores.top[row].tolist(), scores.probabilities[row].tolist(), strict=True)
    ]
    return _shot(subject, subject.picture(scores.ids[row]), LARGE) | {"bars": bars, "doubt": False}


def _shot(subject: Subject, picture: Seen, side: int) -> Json:
    return shot(picture, side) | {"label": subject.label(picture)}


def shot(picture: Seen, side: int) -> Json:
    """A picture for a page, at most `side` pixels wide and high: its bytes as text, its name in the source."""
    coarse = max(picture.pixels.shape[:2]) <= COARSE
    image = Image.fromarray(picture.pixels)
    if not coarse:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return {"src": _source(image, "png" if coarse else "jpeg"), "key": picture.name, "coarse": coarse}


def _source(image: Image.Image, kind: str) -> str:
    """The picture as a URL that holds it."""
    out = io.BytesIO()
    image.save(out, kind, optimize=True, quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
