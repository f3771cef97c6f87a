"""Which parts of a picture does a net look at when it is tested? The papers' protocols, as values.

    single       the centre crop
    ten-crop     the four corners and the centre of the central square, and their mirrors (AlexNet section 4.1)
    nine         3 x 3 crops of the central square at its first, middle and last offsets (cuda-convnet: 0, 4, 8)
    multi-crop   5 x 5 crops on a regular grid over the whole picture, and their mirrors (VGG section 3.2)
    144-crop     at 4 scales the left, centre and right square (top, centre, bottom); of each the corners, the centre
                 and the square itself, resized; and their mirrors (GoogLeNet section 7)
    dense        the whole picture and its mirror: the net slides over it (VGG section 3.2)

The probabilities of a picture's views are averaged, over the scales too; dense averages the class scores over space
before the softmax. `a+b` is the mean of the protocols a and b (VGG table 5: multi-crop & dense).

A scale Q is the number of pixels that the picture's shorter side is scaled to. The central square then has the side of
the training square, times Q, divided by the training's own shorter side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from convnet.data.augment import Augmentation
from convnet.data.preprocess import MAX_SIDE, Preprocessing
from convnet.errors import UsageError, check_type, unknown

T = TypeVar("T")
NAMES = ("single", "ten-crop", "nine", "multi-crop", "144-crop", "dense")
IN_SQUARE = ("single", "ten-crop", "nine")  # their crops lie in the central square, where the mean picture is known
BORDERED = (*IN_SQUARE, "dense")  # they see the border of `pad` pixels that training had
WITHOUT_MIRRORS = ("single", "nine")
GRID = 5  # crops in a row and in a column: VGG section 3.2
SCALES_144 = (256, 288, 320, 352)  # pixels, for crops of 224: GoogLeNet section 7
CROP_144 = 224
# By name: Q = S (VGG table 3), and for a fixed S and one that varied in training (VGG table 4), each for S = 256
RULES = ("train", "vgg-fixed", "vgg-jittered")


@dataclass(frozen=True)
class Box:
    """A square region of a picture: its first row and column (negative in a padded border), its side, pixels."""

    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Look:
    """A protocol at one scale; it prints itself as `ten-crop at 256`."""

    name: str
    scale: int

    def __str__(self) -> str:
        return f"{self.name} at {self.scale}"

    def n_views(self) -> int:
        """How many forward passes it is worth, for a picture that isn't square."""
        return {"single": 1, "ten-crop": 10, "nine": 9, "multi-crop": 2 * GRID**2, "144-crop": 36, "dense": 2}[
            self.name
        ]


@dataclass(frozen=True)
class Protocol:
    """What `--views` and `--scales` ask for: the mean over its parts of the mean over each part's scales."""

    name: str
    parts: tuple[tuple[Look, ...], ...]

    def __str__(self) -> str:
        """`multi-crop+dense at 256, 384, 512`; parts with other scales each by itself."""
        names = [self.name] if "+" not in self.scales else [part[0].name for part in self.parts]
        return " + ".join(f"{name} at {text}" for name, text in zip(names, self.scales.split(" + "), strict=True))

    @property
    def scales(self) -> str:
        """`256, 384`, where all parts have the same; otherwise part by part."""
        return " + ".join(one_if_equal([", ".join(str(look.scale) for look in part) for part in self.parts]))

    @property
    def looks(self) -> tuple[Look, ...]:
        """Everything that is looked at, once each."""
        return tuple(dict.fromkeys(look for part in self.parts for look in part))

    def mean(self, probabilities: Mapping[Look, NDArray[np.floating]]) -> NDArray[np.float64]:
        """float64 (N, K) from the probabilities (N, K) of each look."""
        means = [np.mean([probabilities[look] for look in part], axis=0, dtype=np.float64) for part in self.parts]
        return np.asarray(np.mean(means, axis=0))


def one_if_equal(values: Sequence[T]) -> Sequence[T]:
    """One value where all are equal; otherwise all of them."""
    return values[:1] if len(set(values)) == 1 else values


def protocol(name: str, preprocessing: Preprocessing, scales: str | None = None) -> Protocol:
    """The protocol of that name, as `ten-crop` or `multi-crop+dense`, for a net with that preprocessing.

    scales: `256,384,512`; or by name `train` (Q = S, the training's own), `vgg-fixed` (S - 32, S, S + 32),
    `vgg-jittered` (S, 1.5 S, 2 S: 256, 384, 512 for S = 256). None: `train`, and for 144-crop 256, 288, 320, 352, in
    proportion for crops of another size than 224.

    Raises: UsageError for a name that isn't known, or scales at which the crop doesn't fit.
    """
    names = check_type("views", name, str, f"text, as ten-crop; known: {', '.join(NAMES)}").split("+")
    for each in names:
        if each not in NAMES:
            raise UsageError(unknown("views", each, NAMES))
    if len(set(names)) < len(names):
        raise UsageError(f"views {name}: the same protocol twice")
    return Protocol(name, tuple(tuple(_looks(each, preprocessing, scales)) for each in names))


def _looks(name: str, preprocessing: Preprocessing, scales: str | None) -> list[Look]:
    crop, trained = preprocessing.crop, preprocessing.shorter_side or preprocessing.size
    if scales is None and name == "144-crop":
        sides = [round(side * crop / CROP_144) for side in SCALES_144]
    else:
        sides = parse_scales(scales or "train", trained)
    for side in sides:
        least = side if name not in IN_SQUARE else square_at(preprocessing, side)
        if least + 2 * _pad(name, preprocessing) < crop:
            raise UsageError(f"{name} at {side}: a crop of {crop} pixels does not fit; choose larger --scales")
    return [Look(name, side) for side in sides]


def parse_scales(text: str, trained: int) -> list[int]:
    """Pixels of each scale in `text`; `trained` is the training's shorter side S.

    >>> parse_scales("vgg-jittered", 256), parse_scales("224, 256", 256)
    ([256, 384, 512], [224, 256])
    """
    if text in RULES:
        return {
            "train": [trained],
            "vgg-fixed": [trained - 32, trained, trained + 32],
            "vgg-jittered": [trained, trained * 3 // 2, trained * 2],
        }[text]
    sides = [word.strip() for word in check_type("scales", text, str, "text, as 256,384,512").split(",")]
    if not all(side.isascii() and side.isdigit() and 1 <= int(side) <= MAX_SIDE for side in sides):
        raise UsageError(
            f"--scales {text}: numbers of pixels from 1 to {MAX_SIDE}, as 256,384,512, or {', '.join(RULES)}"
        )
    if len({int(side) for side in sides}) < len(sides):
        raise UsageError(f"--scales {text}: the same scale twice")
    return [int(side) for side in sides]


def square_at(preprocessing: Preprocessing, scale: int) -> int:
    """Pixels: the side of the central square when the shorter side has `scale` pixels."""
    return round(preprocessing.size * scale / (preprocessing.shorter_side or preprocessing.size))


def boxes(name: str, height: int, width: int, preprocessing: Preprocessing) -> list[Box]:
    """The crops of a picture of that size, or of the central square for a protocol IN_SQUARE; not for dense.

    All but WITHOUT_MIRRORS see each crop's mirror too. Crops that coincide (a square picture has one square, not three)
    are there as often as the protocol says.

    Raises: UsageError for a picture that is smaller than a crop.
    """
    crop, pad, side = preprocessing.crop, _pad(name, preprocessing), min(height, width)
    if side + 2 * pad < crop:
        raise UsageError(f"{name}: a crop of {crop} pixels does not fit into a picture of {height} x {width}")
    if name in IN_SQUARE:
        places = [(y, x, crop) for y, x in _places(name, side, crop, pad)]
    elif name == "multi-crop":
        rows, columns = (_spread(room - crop, GRID) for room in (height, width))
        places = [(y, x, crop) for y in rows for x in columns]
    else:
        squares = zip(_spread(height - side, 3), _spread(width - side, 3), strict=True)
        places = [place for y, x in squares for place in _six(y, x, side, crop)]
    return [Box(*place) for place in places]


def _places(name: str, square: int, crop: int, pad: int) -> list[tuple[int, int]]:
    """First rows and columns of the crops in the square with its border."""
    first, middle, last = (offset - pad for offset in _spread(square + 2 * pad - crop, 3))
    if name == "single":
        return [(middle, middle)]
    if name == "nine":
        return [(y, x) for y in (first, middle, last) for x in (first, middle, last)]
    return [(first, first), (first, last), (last, first), (last, last), (middle, middle)]


def _six(top: int, left: int, side: int, crop: int) -> list[tuple[int, int, int]]:
    """Top, left and side of the corners and the centre of a square, and of the whole square."""
    first, middle, last = _spread(side - crop, 3)
    offsets = [(first, first), (first, last), (last, first), (last, last), (middle, middle)]
    return [*((top + y, left + x, crop) for y, x in offsets), (top, left, side)]


def _spread(room: int, n: int) -> list[int]:
    """n offsets from 0 to `room`, equally far from each other, rounded down."""
    return [i * room // (n - 1) for i in range(n)]


def _pad(name: str, preprocessing: Preprocessing) -> int:
    return preprocessing.pad if name in BORDERED else 0


def centre(preprocessing: Preprocessing, n: int) -> Augmentation:
    """The centre crop of n stored squares: the view `single`."""
    ((top, left),) = _places("single", preprocessing.size, preprocessing.crop, preprocessing.pad)
    return fixed(np.full(n, top), np.full(n, left))


def fixed(tops: NDArray[np.integer], lefts: NDArray[np.integer]) -> Augmentation:
    """Crops at these places of the stored squares, without mirrors and colour shift."""
    n = len(tops)
    return Augmentation(tops.astype(np.int64), lefts.astype(np.int64), np.zeros(n, bool), np.zeros((n, 3), np.float32))
