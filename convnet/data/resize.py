"""How does a picture get its size? By bicubic scaling, in one of three ways.

crop    its shorter side to S, the longer one with it; a square is cut out of the middle later
pad     its longer side to S, the shorter one with it; the rest of the square is mid-grey, half of it on either side
squash  both sides to S, so that its aspect is lost
"""

from typing import Literal, get_args

from PIL import Image

from convnet.data.decode import BadPicture
from convnet.errors import UsageError

Fit = Literal["crop", "pad", "squash"]
FITS: tuple[Fit, ...] = get_args(Fit)
FILL = (128, 128, 128)  # of what a padded picture leaves free: near every mean, so near 0 for the net
MAX_PIXELS = 1 << 26  # of a resized picture: bounds memory for extreme aspect ratios


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
    if width * height > MAX_PIXELS:
        raise BadPicture(f"its {image.width} x {image.height} pixels are too elongated to resize")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def fitted(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """An RGB picture with its shorter side of `side` pixels (crop), or a square of them that holds all of it.

    Raises: BadPicture when a picture to be cropped is so elongated that the scaled one would not fit into memory.
    """
    if fit == "crop":
        return scaled(image, side, min(image.size))
    if fit == "squash":
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)
    inside = scaled(image, side, max(image.size))
    if inside.size == (side, side):
        return inside
    frame = Image.new("RGB", (side, side), FILL)
    frame.paste(inside, ((side - inside.width) // 2, (side - inside.height) // 2))
    return frame
