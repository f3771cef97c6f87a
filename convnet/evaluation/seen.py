"""What does a net see of a picture? The centre crop, as pixels to show and as the net's input."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Pixels, Split
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.pictures import at_scales, centre_crop, check_gives, read_picture
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import protocol
from convnet.io import rng
from convnet.io.prefetch import in_order


@dataclass(frozen=True)
class Seen:
    """A picture as the net sees it: its name, the centre crop uint8 (crop, crop, 3), and its class if that is known."""

    name: str
    pixels: Pixels
    label: int | None = None


def from_store(split: Split, ids: Iterable[int], preprocessing: Preprocessing) -> list[Seen]:
    """The pictures `ids` of a store's split, scaled as the net's training set was where the store has larger ones.

    Raises: UsageError naming the preparation that would do, when the store can't give what the net sees.
    """
    looks, side = protocol("single", preprocessing).looks, split.store.shorter_side
    check_gives(split, looks, preprocessing)
    found = []
    for i in map(int, ids):
        frame = at_scales(split.picture(i), side, looks)[looks[0].scale]
        found.append(Seen(split.keys[i], centre_crop(frame, preprocessing), int(split.labels[i])))
    return found


def in_parts(
    split: Split, ids: NDArray[np.int64], preprocessing: Preprocessing, n: int
) -> Iterator[tuple[NDArray[np.int64], list[Seen]]]:
    """The pictures `ids` of a split n at a time, with their ids; a thread reads the next ones. Raises: UsageError."""
    parts = [ids[first : first + n] for first in range(0, len(ids), n)]
    yield from zip(parts, in_order(lambda part: from_store(split, part, preprocessing), parts, split.told), strict=True)


def from_files(paths: Sequence[Path], preprocessing: Preprocessing) -> list[Seen]:
    """Pictures in files, fitted as in preparation. Raises: DataError, or UsageError for a folder, naming the file."""
    looks, found = protocol("single", preprocessing).looks, []
    for path in paths:
        try:
            frame = read_picture(path, looks, preprocessing.fit)[0][looks[0].scale]
        except ConvnetError as error:
            raise type(error)(f"{path}: {error}") from error
        found.append(Seen(str(path), centre_crop(frame, preprocessing)))
    return found


def net_input(pictures: Sequence[Seen], net: TrainedNet) -> Tensor:
    """float32 (N, C, crop, crop): what the net takes."""
    return net.to_input([picture.pixels for picture in pictures])


def some(n: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """int64: `most` of the positions 0 .. n-1 in rising order, sampled by the seed; all where there are no more.

    >>> some(10, 3).tolist(), some(2, 3).tolist()
    ([4, 7, 8], [0, 1])
    """
    if most < 1:
        raise UsageError(f"{most} pictures: at least 1 must be looked at")
    return np.sort(rng.permutation(n, seed, rng.stream("look"))[:most])
