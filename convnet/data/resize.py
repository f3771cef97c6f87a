"""Resizing, bicubic: how a picture is stored. Three ways to fit it to a side S.

crop    its shorter side to S, the longer one with it; a square is cut out of the middle later
pad     its longer side to S, the shorter one with it; the rest of the square is mid-grey, half of it on either side
squash  both sides to S, so that its aspect is lost
"""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.data.decode import MAX_PIXELS, BadPicture
from convnet.errors import UsageError
from convnet.io.strict_json import Json
from convnet.kernels.cpu.pictures import resize as cpu_resize

Pixels = NDArray[np.uint8]  # (H, W, 3)
Fit = Literal["crop", "pad", "squash"]
FITS: tuple[Fit, ...] = get_args(Fit)
Encoding = Literal["raw", "jpeg"]
SUFFIX: dict[Encoding, str] = {"raw": "npy", "jpeg": "jpg"}
JPEG_SIDE = 65535  # pixels: a JPEG can't be longer
FILL = (128, 128, 128)  # of what a padded picture leaves free: near every mean, so near 0 for the net
MAX_RESIZED = 1 << 26  # pixels of a resized picture: bounds memory for extreme aspect ratios


@dataclass(frozen=True)
class Settings:
    """How pictures are stored: squares of `size` pixels (raw), or frames with shorter side `shorter_side` (jpeg).

    fit: what makes the frame; of "pad" and "squash" it is a square of `shorter_side`.
    """

    size: int
    shorter_side: int
    encoding: Encoding
    max_pixels: int = MAX_PIXELS  # a picture of more is refused
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise UsageError(f"--size {self.size}: must be 1 to 4096 pixels")
        if not self.size <= self.shorter_side <= 8192:
            raise UsageError(f"--shorter-side {self.shorter_side}: must be {self.size} (the size) to 8192 pixels")
        encoding_of(self.encoding)
        fit_of(self.fit)

    @property
    def stored(self) -> Json:
        """What a store's header says of them; the limit isn't there, as it changes no picture, nor is "crop"."""
        left_out = ("max_pixels", "fit") if self.fit == "crop" else ("max_pixels",)
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def encoding_of(text: str) -> Encoding:
    """Raises: UsageError for an encoding that isn't known."""
    for encoding in SUFFIX:
        if text == encoding:
            return encoding
    raise UsageError(f"--encoding {text}: must be raw or jpeg")


def fit_of(text: str) -> Fit:
    """Raises: UsageError for a fit that isn't known."""
    for fit in FITS:
        if text == fit:
            return fit
    raise UsageError(f"--fit {text}: must be {', '.join(FITS)}")


def scaled(pixels: Pixels, shorter_side: int, now: int) -> Pixels:
    """A picture (H, W, 3) scaled by `shorter_side` / `now`, bicubic; its sides are rounded, a half to the even number.

    Raises: BadPicture when it is so elongated that the scaled picture would not fit into memory.
    """
    return pixels if shorter_side == now else bicubic(pixels, *_scaled_sides(pixels, shorter_side, now))


def bicubic(pixels: Pixels, height: int, width: int) -> Pixels:
    """A picture resized, bicubic: Pillow's pixels, whichever makes them."""
    out = np.empty((height, width, 3), np.uint8)
    _bicubic_part(pixels, height, width, out)
    return out


def fitted(pixels: Pixels, side: int, fit: Fit) -> Pixels:
    """A picture (H, W, 3) with its shorter side of `side` pixels (crop), or a square of them that holds all of it.

    Raises: BadPicture when a picture to be cropped is so elongated that the scaled one would not fit into memory.
    """
    if fit == "crop":
        return scaled(pixels, side, min(pixels.shape[:2]))
    if fit == "squash":
        return pixels if pixels.shape[:2] == (side, side) else bicubic(pixels, side, side)
    inside = scaled(pixels, side, max(pixels.shape[:2]))
    if inside.shape[:2] == (side, side):
        return inside
    frame = np.full((side, side, 3), FILL, np.uint8)
    top, left = (side - inside.shape[0]) // 2, (side - inside.shape[1]) // 2
    frame[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return frame


def to_frame(pixels: Pixels, settings: Settings) -> Pixels:
    """What a jpeg store keeps of a picture: all of it, fitted to S, bicubic.

    Raises: BadPicture when it is so elongated that the scaled picture would not fit into memory, or into a JPEG.
    """
    height, width, _ = pixels.shape
    if settings.fit == "crop" and round(max(height, width) * settings.shorter_side / min(height, width)) > JPEG_SIDE:
        raise BadPicture(f"its {width} x {height} pixels are too elongated to resize")
    return fitted(pixels, settings.shorter_side, settings.fit)


def to_square(pixels: Pixels, settings: Settings, out: Pixels) -> None:
    """Fills `out` with what a raw store keeps of a picture: the central square of it, fitted to S, bicubic.

    Raises: BadPicture when it is so elongated that the scaled picture would not fit into memory.
    """
    side = settings.shorter_side
    if settings.fit == "pad":
        out[:] = centre_square(fitted(pixels, side, settings.fit), settings.size)
    else:
        sides = _scaled_sides(pixels, side, min(pixels.shape[:2])) if settings.fit == "crop" else (side, side)
        _bicubic_part(pixels, *sides, out)


def _scaled_sides(pixels: Pixels, shorter_side: int, now: int) -> tuple[int, int]:
    """Height and width of a picture scaled by `shorter_side` / `now`. Raises: BadPicture."""
    height, width = (max(1, round(side * shorter_side / now)) for side in pixels.shape[:2])
    if height * width > MAX_RESIZED and shorter_side != now:
        raise BadPicture(f"its {pixels.shape[1]} x {pixels.shape[0]} pixels are too elongated to resize")
    return height, width


def _bicubic_part(pixels: Pixels, height: int, width: int, out: Pixels) -> None:
    """Fills `out` with the middle of a picture resized; only that is worked out where C serves."""
    corner = (height - out.shape[0]) // 2, (width - out.shape[1]) // 2
    old_height, old_width, _ = pixels.shape
    upright = old_height - height > 2 * max(old_width - width, 0) or old_height > 100 * old_width
    if not upright and cpu_resize.available():  # some of Pillow's versions begin with the columns
        cpu_resize.resize_part(pixels, height, width, corner, out)
        return
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    left, top = corner[1], corner[0]
    out[:] = np.asarray(resized.crop((left, top, left + out.shape[1], top + out.shape[0])))


def centre_square(pixels: Pixels, size: int) -> Pixels:
    """The central size x size pixels; where the margin is odd, the smaller part is above and to the left."""
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
