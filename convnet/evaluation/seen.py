"""What does a net see of a picture? The centre crop, in pixels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.augment import to_input
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import centre_square
from convnet.data.store import Pixels, Split, crop_square
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.pictures import Source, at_scales, check_gives, name_of, read_picture
from convnet.evaluation.views import centre, protocol
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
    yield from zip(
        parts, in_order(lambda part: from_store(split, part, preprocessing), parts, split.describe), strict=True
    )


def from_files(sources: Iterable[Source | Seen], preprocessing: Preprocessing) -> list[Seen]:
    """Pictures in files, or uint8 (H, W, 3) each, fitted as in preparation; what is `Seen` already stays as it is.

    Raises: DataError, or UsageError for a folder, naming the file.
    """
    looks, found = protocol("single", preprocessing).looks, []
    for i, source in enumerate(sources):
        if isinstance(source, Seen):
            found.append(source)
            continue
        name = name_of(source, i)
        try:
            frame = read_picture(source, looks, preprocessing.fit)[0][looks[0].scale]
        except ConvnetError as error:
            raise type(error)(f"{name}: {error}") from error
        found.append(Seen(name, centre_crop(frame, preprocessing)))
    return found


def centre_crop(frame: Pixels, preprocessing: Preprocessing) -> Pixels:
    """uint8 (crop, crop, 3): the centre crop, the view `single`, of a picture at the training's scale."""
    place = centre(preprocessing, 1)
    square = centre_square(frame, preprocessing.size)
    return np.array(crop_square(square, int(place.tops[0]), int(place.lefts[0]), preprocessing.crop))


def to_images(pictures: Sequence[Seen], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """float32 (N, C, crop, crop) on the device: what the net takes."""
    crops = np.stack([picture.pixels for picture in pictures])
    return to_input(crops, centre(preprocessing, len(crops)), preprocessing, device)


def some(n: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """int64: `most` of the positions 0 .. n-1 in rising order, sampled by the seed; all where there are no more.

    >>> some(10, 3).tolist(), some(2, 3).tolist()
    ([4, 7, 8], [0, 1])
    """
    if most < 1:
        raise UsageError(f"{most} pictures: at least 1 must be looked at")
    return np.sort(rng.order(n, seed, rng.stream("look"))[:most])
