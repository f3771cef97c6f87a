"""Which pictures are in two splits, or nearly? A test that holds what was trained on is too good.

Two measures. Exact: the same bytes in the store. Near: the correlation of two grey thumbnails of 16 x 16, which stays
near 1 under other compression, size, brightness and contrast, and the same of the mirrored picture. Pictures that
correlate need not be copies: the pairs are to be looked at.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.data.store import Pixels, Split
from convnet.progress import SILENT, Progress
from convnet.visualize.search import Ints

SIDE = 16  # pixels of a thumbnail
LIKE = 0.97  # least correlation of near-duplicates: no two of 4,000 and 1,000 different photos have 0.966
FLAT = 4.0  # grey levels: thumbnails with a smaller standard deviation have too little in them to be compared
BLOCK = 2048  # pictures held at a time, of those that are searched
EVERY = 64  # pictures between two reports to the progress


@dataclass(frozen=True)
class Duplicate:
    """Two pictures that are alike: their positions in the two splits."""

    first: int
    second: int
    correlation: float  # of their thumbnails, to 1
    exact: bool  # their bytes are the same
    mirrored: bool  # it is the one's mirror image that is like the other


def near_duplicates(
    first: Split,
    second: Split,
    *,
    first_ids: Ints | None = None,
    second_ids: Ints | None = None,
    least: float = LIKE,
    progress: Progress = SILENT,
) -> list[Duplicate]:
    """The pictures of `first` that are in `second` too, each with the one that is most like it; the surest first.

    That is the first one with the same bytes, or else the one whose thumbnail correlates most, if by `least` or more.
    Flat pictures are only found when they are exact copies. first_ids, second_ids: the pictures to look at, all by
    default. Of `second` few are held at a time.
    """
    ours_ids = np.arange(first.n) if first_ids is None else first_ids
    theirs_ids = np.arange(second.n) if second_ids is None else second_ids
    if not len(ours_ids):
        return []
    (ours,) = _prints(first, ours_ids, len(ours_ids), progress)
    nearest = _Nearest(ours)
    for theirs in _prints(second, theirs_ids, BLOCK, progress):
        nearest.add(theirs)
    return sorted(nearest.duplicates(least), key=lambda each: (not each.exact, -each.correlation, each.first))


class _Prints(NamedTuple):
    """ids: int64 (n,). digests: of the stored bytes. thumbnails: float32 (n, SIDE * SIDE), of mean 0 and length 1."""

    ids: Ints
    digests: list[bytes]
    thumbnails: NDArray[np.float32]


class _Nearest:
    """For each of n pictures the most alike so far: correlation float32 (n,), its id, whether mirrored or exact."""

    def __init__(self, ours: _Prints) -> None:
        n = len(ours.ids)
        self.ours = ours
        mirrored = ours.thumbnails.reshape(n, SIDE, SIDE)[:, :, ::-1].reshape(n, -1)
        self.thumbnails = ((ours.thumbnails, False), (mirrored, True))
        self.correlation = np.full(n, -1, np.float32)
        self.ids = np.zeros(n, np.int64)
        self.mirrored, self.exact = np.zeros(n, bool), np.zeros(n, bool)
        self.rows: dict[bytes, list[int]] = {}
        for row, digest in enumerate(ours.digests):
            self.rows.setdefault(digest, []).append(row)

    def add(self, theirs: _Prints) -> None:
        """Takes more pictures into account."""
        for thumbnails, mirrored in self.thumbnails:
            for top in range(0, len(thumbnails), BLOCK):
                products = thumbnails[top : top + BLOCK] @ theirs.thumbnails.T
                columns, best = products.argmax(1), products.max(1)
                better = (best > self.correlation[top : top + BLOCK]) & ~self.exact[top : top + BLOCK]
                rows = top + np.flatnonzero(better)
                self.correlation[rows], self.ids[rows] = best[better], theirs.ids[columns[better]]
                self.mirrored[rows] = mirrored
        for i, digest in zip(theirs.ids.tolist(), theirs.digests, strict=True):
            rows = np.array([row for row in self.rows.get(digest, ()) if not self.exact[row]], np.int64)
            self.exact[rows], self.correlation[rows], self.ids[rows], self.mirrored[rows] = True, 1, i, False

    def duplicates(self, least: float) -> list[Duplicate]:
        rows = np.flatnonzero(self.exact | (self.correlation >= least))
        columns = (self.ours.ids, self.ids, self.correlation.clip(max=1), self.exact, self.mirrored)
        return [Duplicate(*values) for values in zip(*(column[rows].tolist() for column in columns), strict=True)]


def thumbnail(square: Pixels) -> NDArray[np.float32]:
    """float32 (SIDE, SIDE): mean 0 and length 1, or all 0 for a flat picture.

    Pillow's grey, averaged over areas; so two thumbnails' product is their correlation.
    """
    small = Image.fromarray(square).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float32)
    values = values - values.mean()
    return values / np.float32(np.linalg.norm(values)) if values.std() >= FLAT else np.zeros_like(values)


def _prints(split: Split, ids: Ints, most: int, progress: Progress) -> Iterator[_Prints]:
    """Those of the pictures `ids`, at most so many at a time."""
    progress.start(f"looking for duplicates ({split.name})", len(ids))
    for begin in range(0, len(ids), most):
        part = ids[begin : begin + most]
        digests, thumbnails = [], np.empty((len(part), SIDE * SIDE), np.float32)
        for k, i in enumerate(part.tolist()):
            digests.append(hashlib.sha256(split.payload(i).data).digest())
            thumbnails[k] = thumbnail(split.square(i)).reshape(-1)
            if k % EVERY == 0:
                progress.update(begin + k)
        yield _Prints(part, digests, thumbnails)
    progress.finish()
