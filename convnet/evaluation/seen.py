"""What does a net see of a picture? The centre crop, as pixels to show and as the net's input."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.augment import to_input
from convnet.data.decode import BadPicture, opened
from convnet.data.frames import Settings, fit
from convnet.data.preprocess import Preprocessing
from convnet.data.sources.listing import LARGEST
from convnet.data.store import Pixels, Split, centre_square, crop_square
from convnet.errors import DataError, UsageError
from convnet.evaluation.evaluate import check_gives
from convnet.evaluation.inference import at_scales
from convnet.evaluation.views import centre, protocol
from convnet.io.atomic import read
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
        found.append(Seen(split.keys[i], _crop(frame, preprocessing), int(split.labels[i])))
    return found


def in_parts(
    split: Split, ids: NDArray[np.int64], preprocessing: Preprocessing, n: int
) -> Iterator[tuple[NDArray[np.int64], list[Seen]]]:
    """The pictures `ids` of a split n at a time, with their ids; a thread reads the next ones. Raises: UsageError."""
    parts = [ids[first : first + n] for first in range(0, len(ids), n)]
    yield from zip(parts, in_order(lambda part: from_store(split, part, preprocessing), parts, split.told), strict=True)


def from_files(paths: Sequence[Path], preprocessing: Preprocessing) -> list[Seen]:
    """Pictures in files, scaled as in preparation. Raises: DataError, or UsageError for a folder, naming the file."""
    return [Seen(str(path), _crop(_square(path, preprocessing), preprocessing)) for path in paths]


def net_input(pictures: Sequence[Seen], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """float32 (N, C, crop, crop): what the net takes."""
    crops = np.stack([picture.pixels for picture in pictures])
    return to_input(crops, centre(preprocessing, len(pictures)), preprocessing, device)


def _square(path: Path, preprocessing: Preprocessing) -> Pixels:
    side = preprocessing.shorter_side or preprocessing.size
    settings = Settings(preprocessing.size, side, "raw", fit=preprocessing.fit)
    try:
        with opened(read(path, LARGEST)) as (picture, _):
            return np.asarray(fit(picture, settings))
    except BadPicture as error:
        raise DataError(f"{path}: {error}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder, neither a picture nor a store; name pictures in it") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _crop(square: Pixels, preprocessing: Preprocessing) -> Pixels:
    how = centre(preprocessing, 1)
    square = centre_square(square, preprocessing.size)
    return np.array(crop_square(square, int(how.tops[0]), int(how.lefts[0]), preprocessing.crop))
