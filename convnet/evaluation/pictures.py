"""Which pictures does a net look at, and at which scales? Those of a store's split, or of files."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from convnet.data.decode import BadPicture, open_picture
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit, fitted, scaled
from convnet.data.sources.listing import LARGEST
from convnet.data.store import Pixels, Split, Store
from convnet.errors import DataError, UsageError, check_type
from convnet.evaluation.views import IN_SQUARE, Look, square_at
from convnet.io import atomic
from convnet.io.prefetch import in_order
from convnet.io.signals import Stop

PICTURES = 64  # read at a time
Source = atomic.PathLike | Pixels  # a picture: a file, or uint8 (H, W, 3)
Picture = Mapping[int, Pixels]  # {scale: uint8 (H, W, 3)}: one picture, its shorter side scaled, bicubic


def split_to_test(store: Store, name: str | None = None) -> Split:
    """The split that was asked for by name, or the first of test, val and train that has pictures.

    Raises: UsageError when the store has no such split.
    """
    filled = (each for each in ("test", "val", "train") if each in store.splits and store.split(each).n)
    return store.split(check_type("split", name or next(filled, "test"), str, "train, val or test"))


def check_gives(split: Split, looks: Sequence[Look], preprocessing: Preprocessing) -> None:
    """Raises: UsageError naming the preparation that would do, when the store can't give what is to be looked at."""
    store, size = split.store, preprocessing.size
    if split.n == 0:
        raise UsageError(f"{store.path} has no pictures in its split {split.name}; choose another with --split")
    if store.fit != preprocessing.fit:
        raise UsageError(
            f"{store.path} holds pictures fitted by {store.fit}, and the net knows them by {preprocessing.fit}: "
            f"prepare the source with --fit {preprocessing.fit}"
        )
    largest = max(look.scale for look in looks)
    for look in looks:
        square = square_at(preprocessing, look.scale)
        if store.encoding == "raw" and (look.scale, square) != (store.shorter_side, store.size):
            needed = f"--size {size} --shorter-side {preprocessing.shorter_side}"
            if look.scale != preprocessing.shorter_side:
                needed = f"--encoding jpeg --size {size} --shorter-side {largest}"
            raise UsageError(
                f"{store.path} holds pictures of {store.size} pixels in a shorter side of {store.shorter_side}, and "
                f"{look} needs {square} in {look.scale}: prepare the source with {needed}"
            )
        if look.scale > store.shorter_side:
            raise UsageError(
                f"{store.path} holds pictures with a shorter side of {store.shorter_side} pixels, too small for "
                f"{look}: prepare the source with --encoding jpeg --size {size} --shorter-side {largest}"
            )


def seen(split: Split, looks: Sequence[Look]) -> str | None:
    """What a user should know of the pictures that this store gives, if anything."""
    store, scales = split.store, sorted({look.scale for look in looks})
    if store.encoding == "raw" and any(look.name not in IN_SQUARE for look in looks):
        return f"{store.path} holds central squares only: no view sees what was cut off (--encoding jpeg keeps all)"
    if store.encoding == "jpeg" and scales != [store.shorter_side]:
        text = ", ".join(str(scale) for scale in scales if scale != store.shorter_side)
        return f"pictures are resized from the store's shorter side of {store.shorter_side} pixels to {text}"
    return None


def read(
    split: Split, chosen: NDArray[np.int64], looks: Sequence[Look], stop: Stop | None = None, n: int | None = None
) -> Iterator[tuple[NDArray[np.int64], list[Picture]]]:
    """The pictures `chosen` at the looks' scales, n (None: PICTURES) at a time and with their ids; a thread reads the
    next ones.

    Raises: Interrupted when `stop` is asked for while a picture is waited for.
    """
    size = n or PICTURES
    parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    pictures = in_order(lambda part: _pictures(split, part, looks), split.ahead(parts), split.describe, stop=stop)
    yield from zip(parts, pictures, strict=True)


def _pictures(split: Split, ids: NDArray[np.int64], looks: Sequence[Look]) -> list[Picture]:
    split.check_lengths()
    return [at_scales(split.picture(i), split.store.shorter_side, looks) for i in ids.tolist()]


def at_scales(pixels: Pixels, now: int, looks: Sequence[Look]) -> Picture:
    """A picture at every scale that the looks need; its shorter side has (in a raw store: had) `now` pixels.

    Raises: BadPicture if it is too elongated to be scaled.
    """
    return {look.scale: scaled(pixels, look.scale, now) for look in looks}


def read_picture(source: Source, looks: Sequence[Look], fit: Fit) -> tuple[Picture, tuple[str, ...]]:
    """The picture in a file, or uint8 (H, W, 3), at the looks' scales, fitted as in preparation; and notes.

    Raises: DataError with the reason why there is none, without the file's name; UsageError for no picture at all.
    """
    scales = {look.scale for look in looks}
    try:
        if isinstance(source, np.ndarray):
            return {scale: fitted(_whole(source), scale, fit) for scale in scales}, ()
        with open_picture(atomic.read(atomic.as_path(source, "a picture"), LARGEST)) as (pixels, notes):
            return {scale: fitted(pixels, scale, fit) for scale in scales}, notes
    except BadPicture as error:
        raise DataError(str(error)) from error
    except IsADirectoryError as error:
        raise UsageError("a folder; name its pictures, as FOLDER/*") from error
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def name_of(source: Source, place: int) -> str:
    """What messages call a picture: its path, or `picture 3`."""
    return f"picture {place}" if isinstance(source, np.ndarray) else str(atomic.as_path(source, "a picture"))


def _whole(pixels: Pixels) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(f"a picture is {pixels.dtype} {list(pixels.shape)}; it must be a path, or uint8 (H, W, 3)")
    return np.ascontiguousarray(pixels)
