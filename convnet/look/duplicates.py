"""Which pictures are in two splits, or nearly? A test that holds what was trained on is too good.

Two measures. Exact: the same bytes in the store. Near: the correlation of two grey thumbnails of 16 x 16, which stays
near 1 under other compression, size, brightness and contrast, and the same of the mirrored picture. Pictures that
correlate need not be copies: the pairs are to be looked at.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.errors import Interrupted
from convnet.progress import SILENT, Progress
from convnet.stop import Stop
from convnet.store import Pixels, Split

SIDE = 16  # pixels of a thumbnail
LIKE = 0.97  # least correlation of near-duplicates: no two of 4,000 and 1,000 different photos have 0.966
FLAT = 4.0  # grey levels: thumbnails with a smaller standard deviation have too little in them to be compared
BLOCK = 2048  # thumbnails in a product
EVERY = 64  # pictures between two reports to the progress


@dataclass(frozen=True)
class Twin:
    """Two pictures that are alike: their positions in the two splits, and the correlation of their thumbnails, to 1.

    exact: their bytes are the same. mirrored: it is the one's mirror image that is like the other.
    """

    first: int
    second: int
    likeness: float
    exact: bool
    mirrored: bool


@dataclass(frozen=True)
class _Prints:
    """ids: int64 (n,). digests: of the stored bytes. thumbnails: float32 (n, SIDE * SIDE), of mean 0 and length 1."""

    ids: NDArray[np.int64]
    digests: list[bytes]
    thumbnails: NDArray[np.float32]


def near_duplicates(
    first: Split,
    second: Split,
    *,
    first_ids: NDArray[np.int64] | None = None,
    second_ids: NDArray[np.int64] | None = None,
    least: float = LIKE,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> list[Twin]:
    """Pairs of a picture of `first` and one of `second` with the same bytes or thumbnails that correlate, best first.

    first_ids, second_ids: the pictures to look at, all by default. least: from this correlation on. Flat pictures are
    only found when they are exact copies. Raises: Interrupted when `stop` is asked for.
    """
    ours, theirs = (
        _prints(split, np.arange(split.n) if ids is None else ids, progress, stop)
        for split, ids in ((first, first_ids), (second, second_ids))
    )
    found = {(twin.first, twin.second): twin for twin in _exact(ours, theirs)}
    for mirrored in (False, True):
        for twin in _alike(ours, theirs, least, mirrored):
            key = (twin.first, twin.second)
            if key not in found or not (found[key].exact or found[key].likeness >= twin.likeness):
                found[key] = twin
    return sorted(found.values(), key=lambda twin: (not twin.exact, -twin.likeness, twin.first, twin.second))


def thumbnail(square: Pixels) -> NDArray[np.float32]:
    """float32 (SIDE, SIDE): mean 0 and length 1, or all 0 for a flat picture.

    Pillow's grey, averaged over areas; so two thumbnails' product is their correlation.
    """
    small = Image.fromarray(square).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float32)
    values = values - values.mean()
    return values / np.float32(np.linalg.norm(values)) if values.std() >= FLAT else np.zeros_like(values)


def _prints(split: Split, ids: NDArray[np.int64], progress: Progress, stop: Stop | None) -> _Prints:
    digests, thumbnails = [], np.empty((len(ids), SIDE * SIDE), np.float32)
    progress.start(f"looking for duplicates ({split.name})", len(ids))
    for k, i in enumerate(ids.tolist()):
        digests.append(hashlib.sha256(split.payload(i).data).digest())
        thumbnails[k] = thumbnail(split.square(i)).reshape(-1)
        if k % EVERY == 0:
            progress.update(k)
            if stop:
                raise Interrupted(f"stopped while looking for duplicates in {split.name}")
    progress.finish()
    return _Prints(ids, digests, thumbnails)


def _exact(ours: _Prints, theirs: _Prints) -> list[Twin]:
    places: dict[bytes, list[int]] = {}
    for i, digest in zip(ours.ids.tolist(), ours.digests, strict=True):
        places.setdefault(digest, []).append(i)
    return [
        Twin(i, j, 1.0, exact=True, mirrored=False)
        for j, digest in zip(theirs.ids.tolist(), theirs.digests, strict=True)
        for i in places.get(digest, ())
    ]


def _alike(ours: _Prints, theirs: _Prints, least: float, mirrored: bool) -> list[Twin]:
    asked = ours.thumbnails
    if mirrored:
        asked = asked.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(asked), -1)
    found = []
    for top in range(0, len(asked), BLOCK):
        for left in range(0, len(theirs.thumbnails), BLOCK):
            products = asked[top : top + BLOCK] @ theirs.thumbnails[left : left + BLOCK].T
            for row, column in np.argwhere(products >= least).tolist():
                i, j = int(ours.ids[top + row]), int(theirs.ids[left + column])
                found.append(Twin(i, j, min(1.0, float(products[row, column])), exact=False, mirrored=mirrored))
    return found
