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
from convnet.kernels.cpu import resize as cpu_resize

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


def scaled(image: Image.Image, shorter_side: int, now: int) -> Image.Image:
    """A picture scaled by `shorter_side` / `now`, bicubic; its sides are rounded, a half to the even number.

    Raises: BadPicture when it is so elongated that the scaled picture would not fit into memory.
    """
    if shorter_side == now:
        return image
    width, height = (max(1, round(side * shorter_side / now)) for side in image.size)
    if width * height > MAX_RESIZED:
        raise BadPicture(f"its {image.width} x {image.height} pixels are too elongated to resize")
    return bicubic(image, width, height)


def bicubic(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture resized, bicubic: Pillow's pixels, whichever makes them."""
    upright = image.height - height > 2 * max(image.width - width, 0) or image.height > 100 * image.width
    if image.mode != "RGB" or upright or not cpu_resize.available():  # some of Pillow's versions begin with the columns
        return image.resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(cpu_resize.resize(np.asarray(image), height, width))


def fitted(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """An RGB picture with its shorter side of `side` pixels (crop), or a square of them that holds all of it.

    Raises: BadPicture when a picture to be cropped is so elongated that the scaled one would not fit into memory.
    """
    if fit == "crop":
        return scaled(image, side, min(image.size))
    if fit == "squash":
        return image if image.size == (side, side) else bicubic(image, side, side)
    inside = scaled(image, side, max(image.size))
    if inside.size == (side, side):
        return inside
    frame = Image.new("RGB", (side, side), FILL)
    frame.paste(inside, ((side - inside.width) // 2, (side - inside.height) // 2))
    return frame


def to_frame(image: Image.Image, settings: Settings) -> Image.Image:
    """An RGB picture fitted to S, bicubic; for a raw store its central square.

    Raises: BadPicture when it is so elongated that the scaled picture would not fit into memory, or into a JPEG.
    """
    longer = max(image.size) * settings.shorter_side / min(image.size)
    if settings.encoding == "jpeg" and settings.fit == "crop" and round(longer) > JPEG_SIDE:
        raise BadPicture(f"its {image.width} x {image.height} pixels are too elongated to resize")
    image = fitted(image, settings.shorter_side, settings.fit)
    if settings.encoding == "raw" and image.size != (settings.size, settings.size):
        left, top = (image.width - settings.size) // 2, (image.height - settings.size) // 2
        image = image.crop((left, top, left + settings.size, top + settings.size))
    return image


def centre_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central size x size pixels; where the margin is odd, the smaller part is above and to the left."""
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
