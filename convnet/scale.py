"""How does a picture get its size? Its shorter side is scaled, bicubic, and the longer one with it."""

from PIL import Image

from convnet.decode import BadPicture

MAX_PIXELS = 1 << 26  # of a resized picture: bounds memory for extreme aspect ratios


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
