"""Which pictures are in two splits, or nearly? A test that holds what was trained on is too good.

Two measures. Exact: the same bytes in the store. Near: the correlation of two grey thumbnails of 16 x 16, which stays
near 1 under other compression, size, brightness and contrast, and the same of the mirrored picture. Pictures that
correlate need not be copies: the pairs are to be looked at.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.data.store import Pixels, Split
from convnet.progress import SILENT, Progress
from convnet.visualize.search import Ints, Smallest

SIDE = 16  # pixels of a thumbnail
LIKE = 0.97  # least correlation of near-duplicates: no two of 4,000 and 1,000 different photos have 0.966
FLAT = 4.0  # grey levels: thumbnails with a smaller standard deviation have too little in them to be compared
BLOCK = 2048  # pictures held at a time, of those that are searched
EVERY = 64  # pictures at a time, between two reports to the progress


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
    if not len(ours_ids) or not len(theirs_ids):
        return []
    (ours,) = _prints(first, ours_ids, len(ours_ids), progress)
    mirrored = ours.thumbnails.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(ours_ids), -1)
    digests, same_bytes = set(ours.digests), dict[bytes, int]()
    nearest = Smallest(len(ours_ids), 1)  # by less correlation; the numbers are 2 x id, and 1 more of a mirror image
    for theirs in _prints(second, theirs_ids, BLOCK, progress):
        for i, digest in zip(theirs.ids.tolist(), theirs.digests, strict=True):
            if digest in digests:
                same_bytes.setdefault(digest, i)
        for turned, thumbnails in enumerate((ours.thumbnails, mirrored)):
            columns, correlations = _most_alike(thumbnails, theirs.thumbnails)
            nearest.add(-correlations[:, None], (2 * theirs.ids[columns] + turned)[:, None])
    duplicates = []
    for i, digest, less, number in zip(
        ours_ids, ours.digests, nearest.values[:, 0], nearest.numbers[:, 0], strict=True
    ):
        if digest in same_bytes:
            duplicates.append(Duplicate(int(i), same_bytes[digest], 1.0, True, False))
        elif -less >= least:
            duplicates.append(Duplicate(int(i), int(number) // 2, min(1.0, float(-less)), False, bool(number % 2)))
    return sorted(duplicates, key=lambda each: (not each.exact, -each.correlation, each.first))


def _most_alike(
    ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of our thumbnails which of theirs correlates most, the first of equals, and how much; in blocks."""
    products = (ours[top : top + BLOCK] @ theirs.T for top in range(0, len(ours), BLOCK))
    columns, best = zip(*((part.argmax(1), part.max(1).astype(np.float64)) for part in products), strict=True)
    return np.concatenate(columns), np.concatenate(best)


class _Prints(NamedTuple):
    """ids: int64 (n,). digests: of the stored bytes. thumbnails: float32 (n, SIDE * SIDE), of mean 0 and length 1."""

    ids: Ints
    digests: list[bytes]
    thumbnails: NDArray[np.float32]


def thumbnails(squares: Sequence[Pixels]) -> NDArray[np.float32]:
    """float32 (n, SIDE * SIDE) of n squares of one size: mean 0 and length 1, or all 0 for a flat picture.

    Pillow's grey, averaged over areas; so two thumbnails' product is their correlation. All squares are one picture on
    the way there and back: Pillow takes longer to begin with a picture than to shrink it.
    """
    n, side = len(squares), len(squares[0])
    grey, small = Image.fromarray(np.concatenate(squares)).convert("L"), Image.new("L", (SIDE, n * SIDE))
    for k in range(n):
        one = grey.crop((0, k * side, side, (k + 1) * side))
        small.paste(one.resize((SIDE, SIDE), Image.Resampling.BOX), (0, k * SIDE))
    values = np.asarray(small, np.float32).reshape(n, -1)
    values = values - values.mean(1, keepdims=True)
    lengths = np.sqrt([row @ row for row in values])
    return np.asarray(values / np.where(values.std(1) >= FLAT, lengths, np.float32(np.inf))[:, None])


def _prints(split: Split, ids: Ints, most: int, progress: Progress) -> Iterator[_Prints]:
    """Those of the pictures `ids`, at most so many at a time."""
    progress.start(f"looking for duplicates ({split.name})", len(ids))
    for begin in range(0, len(ids), most):
        part = ids[begin : begin + most]
        digests, found = [], np.empty((len(part), SIDE * SIDE), np.float32)
        for first in range(0, len(part), EVERY):
            progress.update(begin + first)
            some = part[first : first + EVERY].tolist()
            digests += [hashlib.sha256(split.payload(i).data).digest() for i in some]
            found[first : first + EVERY] = thumbnails([split.square(i) for i in some])
        yield _Prints(part, digests, found)
    progress.finish()
