"""scikit-learn's digits: 1,797 pictures of 8 x 8, the data set that needs no download.

Values 0..16 become round(v * 255 / 16). The split is fixed: per class, in the order drawn by
permutation(n, 0, stream("digits"), label), the first round(0.2 n) are test, the next round(0.1 n) val, the rest train.
Keys hold the row in scikit-learn's order: `val/00042`.
"""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.data.sources.listing import IN_MEMORY, SPLITS, Entry, Source, array_stamp
from convnet.io import rng

FILE = "sklearn/datasets/data/digits.csv.gz"  # a row: 64 values of 0 to 16, the label


def _table() -> NDArray[np.float64]:
    """(1797, 65), from scikit-learn's file: to import the library takes longer than to train an epoch."""
    if (path := Path(str(distribution("scikit-learn").locate_file(FILE)))).is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))


def open_digits() -> Source:
    """The digits, split into train (1,257), val (180) and test (360)."""
    table = _table()
    pixels, target = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), table[:, 64].astype(int)
    part_of = np.full(len(pixels), "train", dtype="U5")
    for label in range(10):
        rows = np.flatnonzero(target == label)
        rows = rows[rng.permutation(len(rows), 0, rng.stream("digits"), label)]
        n_test, n_val = round(0.2 * len(rows)), round(0.1 * len(rows))
        part_of[rows[:n_test]] = "test"
        part_of[rows[n_test : n_test + n_val]] = "val"

    def read(entry: Entry) -> NDArray[np.uint8]:
        return np.repeat(pixels[int(entry.key.split("/")[1])][:, :, None], 3, axis=2)

    entries = [
        Entry(f"{part}/{row:05d}", part, int(target[row]), IN_MEMORY, array_stamp(pixels[row]))
        for part in SPLITS
        for row in np.flatnonzero(part_of == part)
    ]
    classes = tuple(str(label) for label in range(10))
    notes = ("split 20 % of each class into test and 10 % into val, always the same",)
    return Source("digits", "scikit-learn's digits", classes, entries, (), (), 8, notes, read)
