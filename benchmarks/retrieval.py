"""How good are codes, and how fast are searches?

    python benchmarks/retrieval.py quality TRAIN.index TEST.index [--pixels] [--seeds 3] [--hold-out 2]
    python benchmarks/retrieval.py codes [--n 1000000] [--bits 128] [--top 100]
    python benchmarks/retrieval.py features FOLDER [--n 1000000] [--features 4096]

quality: of two indexes by features of a store with classes, every picture of TEST is searched in TRAIN. Printed: mean
average precision over all of TRAIN, by class, and precision of the first ten, each with the 95 % interval of the mean
over the pictures of TEST; pictures at the same distance in an order chosen at random, as names tell classes. Coders are
fitted on TRAIN; --hold-out: on all but some classes at a time, whose pictures of TEST alone are then searched.
--pixels: of pictures of 32 x 32, read where the index's names say, in place of the features.

codes: random codes; features: a random index in FOLDER, searched from the disk, with the most memory that was taken.
"""

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.svm import LinearSVC

from convnet import hardware
from convnet.data.preprocess import Preprocessing
from convnet.report.sheet import pictures_by_name
from convnet.retrieval import codes, hamming, products, quality
from convnet.retrieval.index import Contents, Index, load, write
from convnet.retrieval.search import search

BITS = (32, 64, 128, 256)
SIDE = 32  # pixels
HOW = Preprocessing(size=SIDE, pad=0, crop=SIDE, channels="rgb", mean=None, scale=1.0, offset=0.0, shorter_side=SIDE)


class Task:
    """Which pictures are searched for which: labels, and an order of TRAIN that tells nothing."""

    def __init__(self, train_labels: np.ndarray, labels: np.ndarray) -> None:
        self.order = np.random.default_rng(0).permutation(len(train_labels))
        self.train_labels, self.labels = train_labels[self.order], labels

    def row(self, name: str, distances: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Prints the quality of distances (Q, n); rows: the queries that count."""
        chosen = np.arange(len(self.labels)) if rows is None else rows
        nearest = np.argsort(distances[:, self.order], 1, kind="stable")
        relevant = (self.train_labels[nearest] == self.labels[:, None])[chosen]
        average, first = quality.average_precision(relevant), quality.precision(relevant, 10)
        by_class = np.mean(list(quality.by_class(average, self.labels[chosen]).values()))
        (low, high), (low10, high10) = quality.interval(average), quality.interval(first)
        cells = f"{by_class:.3f} | {low:.3f} to {high:.3f} | {first.mean():.3f} | {low10:.3f} to {high10:.3f}"
        print(f"| {name} | {cells} |", flush=True)


def euclidean(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(Q, n), squared, in float64."""
    a, b = queries.astype(np.float64), rows.astype(np.float64)
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T


def by_codes(coder: codes.Coder, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if coder.kind == codes.PQ:
        return products.distances(coder.layers, codes.unit(queries), coder.encode(rows))
    searched = hamming.by_words(coder.encode(rows))
    return np.stack([hamming.distances(hamming.by_words(code[None])[:, 0], searched) for code in coder.encode(queries)])


def own_answers(rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, searched: np.ndarray) -> np.ndarray:
    """(Q, n): 0 where a linear SVM, fitted on labelled rows, gives a query and a picture the same class, or else 1: the
    trivial code, that of the classifier's own answer, beside which all codes learned from labels have to stand."""
    model = LinearSVC(random_state=0).fit(codes.unit(rows), labels)
    of_queries, of_searched = (model.predict(codes.unit(each)) for each in (queries, searched))
    return (of_queries[:, None] != of_searched).astype(np.float64)


def features_of(index: Index) -> np.ndarray:
    return np.concatenate(list(index.blocks()))


def pixels_of(index: Index) -> np.ndarray:
    """(n, 3072): the pictures that the index is of, from a store of 256 x 256."""
    look, found = pictures_by_name(replace(HOW, size=256, crop=256, shorter_side=256)), []
    for name in index.contents.names:
        picture = look(name)
        assert not isinstance(picture, str), f"{name}: {picture}"
        found.append(np.asarray(Image.fromarray(picture.pixels).resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1))
    return np.stack(found)


def measure_quality(train: Path, test: Path, pixels: bool, seeds: int, hold_out: int) -> None:
    searched, asked = load(train), load(test)
    rows, queries = ((pixels_of if pixels else features_of)(index) for index in (searched, asked))
    task, what = Task(searched.labels, asked.labels), f"pixels, {SIDE} x {SIDE}" if pixels else searched.contents.stage
    print(f"{what}: {len(rows):,} pictures, {len(queries):,} searched for")
    print("| by | mAP | 95 % | precision of 10 | 95 % |\n|---|---|---|---|---|")
    task.row("Euclidean", euclidean(queries, rows))
    task.row("cosine", euclidean(codes.unit(queries), codes.unit(rows)))
    if hold_out:
        return measure_held_out(task, rows, queries, hold_out)
    for kind in codes.KINDS:
        for bits in BITS:
            for seed in range(seeds):
                coder = codes.fit(kind, rows, bits, seed)
                task.row(f"{kind}, {bits} bits, seed {seed}", by_codes(coder, queries, rows))
    task.row("a classifier's own answer", own_answers(rows, searched.labels, queries, rows))
    return None


def measure_held_out(task: Task, rows: np.ndarray, queries: np.ndarray, hold_out: int) -> None:
    """Each class is held out once, some at a time; the queries of all are then put together."""
    classes, labels = np.unique(task.labels), task.train_labels[np.argsort(task.order)]
    for kind in codes.KINDS:
        distances = np.empty((len(queries), len(rows)))
        for first in range(0, len(classes), hold_out):
            held = classes[first : first + hold_out]
            coder = codes.fit(kind, rows[~np.isin(labels, held)], 128)
            own = np.isin(task.labels, held)
            distances[own] = by_codes(coder, queries[own], rows)
        task.row(f"{kind}, 128 bits, fitted without the class", distances)
    for first in range(0, len(classes), hold_out):
        known, own = (np.isin(each, classes[first : first + hold_out]) for each in (labels, task.labels))
        distances[own] = own_answers(rows[~known], labels[~known], queries[own], rows)
    task.row("a classifier's own answer, fitted without the class", distances)


def measure_codes(n: int, bits: int, top: int) -> None:
    generator = np.random.default_rng(0)
    searched = hamming.by_words(generator.integers(0, 256, (n, bits // 8), np.uint8))
    queries = generator.integers(0, 256, (50, bits // 8), np.uint8)
    hamming.nearest(queries[:5], searched, top)
    before, rates, of_core = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, list[float](), list[float]()
    for _ in range(5):
        begin, busy = time.perf_counter(), time.process_time()
        hamming.nearest(queries, searched, top)
        rates.append(len(queries) / (time.perf_counter() - begin))
        of_core.append(len(queries) / (time.process_time() - busy))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told = ", ".join(
        f"{np.median(some):.0f} ({min(some):.0f} to {max(some):.0f}) queries a second of {of}"
        for some, of in ((rates, "the clock"), (of_core, "the processor"))
    )
    print(
        f"{n:,} codes of {bits} bits, {searched.nbytes / 2**20:.0f} MiB, top {top}: {told}; {more:.1f} MiB more memory"
    )


def measure_features(folder: Path, n: int, n_features: int) -> None:
    """Every row is one of 5,000, at a length of its own."""
    generator = np.random.default_rng(0)
    some, lengths = generator.standard_normal((5000, n_features), np.float32), generator.uniform(0.5, 2, n)
    path, names = folder / "random.index", tuple(f"{i:09d}" for i in range(n))
    contents = Contents("none", "0" * 64, "none", n_features, names)
    write(path, contents, np.full(n, -1), lambda ids: (some[ids % 5000] * lengths[ids, None]).astype(np.float16))
    print(f"{n:,} x {n_features:,} features, {path.stat().st_size / 1e9:.1f} GB")
    for what in ("first, with every sha256", "second"):
        index = load(path) if what[0] == "f" else index  # noqa: F821
        begin = time.perf_counter()
        search(index, some[:10], 6)
        seconds = time.perf_counter() - begin
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{what} search of 10 pictures: {seconds:.0f} s; at most {most:.2f} GB of memory so far", flush=True)
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("quality")
    verb.add_argument("train", type=Path)
    verb.add_argument("test", type=Path)
    verb.add_argument("--pixels", action="store_true")
    verb.add_argument("--seeds", type=int, default=1)
    verb.add_argument("--hold-out", type=int, default=0)
    verb = verbs.add_parser("codes")
    verb.add_argument("--n", type=int, default=1_000_000)
    verb.add_argument("--bits", type=int, default=128)
    verb.add_argument("--top", type=int, default=100)
    verb = verbs.add_parser("features")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--n", type=int, default=1_000_000)
    verb.add_argument("--features", dest="n_features", type=int, default=4096)
    given = vars(parser.parse_args())
    print(f"{hardware.processor().name}, {hardware.cores().n} cores, numpy {np.__version__}")
    {"quality": measure_quality, "codes": measure_codes, "features": measure_features}[given.pop("verb")](**given)


if __name__ == "__main__":
    main()
