"""How is a picture stored? The settings of a preparation, and what they make of a picture."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from convnet.data.decode import MAX_PIXELS, BadPicture
from convnet.data.resize import Fit, fit_of, fitted
from convnet.errors import UsageError

JPEG_SIDE = 65535  # pixels: a JPEG can't be longer
Encoding = Literal["raw", "jpeg"]
SUFFIX: dict[Encoding, str] = {"raw": "npy", "jpeg": "jpg"}


@dataclass(frozen=True)
class Settings:
    """How pictures are stored: squares of `size` pixels (raw), or frames with shorter side `shorter_side` (jpeg).

    fit: what makes the frame, as `resize` has it; of "pad" and "squash" it is a square of `shorter_side`.
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
        if self.encoding not in SUFFIX:
            raise UsageError(f"--encoding {self.encoding}: must be raw or jpeg")
        fit_of(self.fit)

    @property
    def stored(self) -> dict[str, Any]:
        """What a store's header says of them; the limit isn't there, as it changes no picture, nor is "crop"."""
        left_out = ("max_pixels", "fit") if self.fit == "crop" else ("max_pixels",)
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def fit(image: Image.Image, settings: Settings) -> Image.Image:
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
