"""Preprocessing: what is done to a picture before the net; it travels with the weights, a checkpoint is enough."""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnet.data.resize import FITS, Fit
from convnet.errors import DataError, UsageError
from convnet.io.strict_json import Json
from convnet.recipe import RANGES, Recipe

MAX_SIDE = 8192  # pixels: the largest shorter side


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """From a stored picture to the net's input: pad, subtract the mean, crop, x scale + offset.

    size      side of the stored square, pixels
    pad       black pixels added on every side
    crop      side of the net's input, pixels
    channels  "rgb" or "grey"
    mean      float32 grey levels 0 to 255 that are subtracted: (3,), (size, size, 3), or None for nothing
    scale     the difference is multiplied by this
    offset    and this is added
    shorter_side  pixels to which a picture's shorter side was scaled before the square was cut out; None: size
    fit       "crop"; or "pad", "squash": the whole picture was made a square of shorter_side (`convnet/data/resize.py`)

    Two are equal when their content is.
    """

    size: int
    pad: int
    crop: int
    channels: Literal["rgb", "grey"]
    mean: NDArray[np.float32] | None
    scale: float
    offset: float
    shorter_side: int | None = None
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        if self.shorter_side is None:
            object.__setattr__(self, "shorter_side", self.size)
        if self.mean is None:
            return
        if self.mean.dtype != np.float32 or self.mean.shape not in ((3,), (self.size, self.size, 3)):
            rule = f"float32 of shape (3,) or ({self.size}, {self.size}, 3)"
            raise DataError(f"the mean is {self.mean.dtype} of shape {self.mean.shape}; it must be {rule}")
        if not np.isfinite(self.mean).all():
            raise DataError("the mean holds values that are not finite")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Preprocessing):
            return NotImplemented
        if to_dict(self) != to_dict(other):
            return False
        return self.mean is None or other.mean is None or np.array_equal(self.mean, other.mean)

    def __hash__(self) -> int:
        return hash(tuple(to_dict(self).values()))


def of_recipe(
    recipe: Recipe,
    mean_picture: NDArray[np.floating] | None,
    mean_colour: NDArray[np.floating] | None,
    shorter_side: int | None = None,
    fit: Fit = "crop",
    start: Preprocessing | None = None,
) -> Preprocessing:
    """The preprocessing that a recipe asks for, with the means, the shorter side and the fit of a store.

    start: of the net that a run begins with.

    mean_picture  (size, size, 3) grey levels; needed when recipe.mean is "picture"
    mean_colour   (3,) grey levels; needed when recipe.mean is "rgb"

    Raises: DataError when the store lacks the mean, or has one of another size.
    """
    if recipe.mean == "start" and (start is None or start.mean is None):
        raise UsageError('mean = "start": needs a net to begin with from whose pictures a mean was subtracted')
    begun = None if start is None else start.mean
    mean = {"picture": mean_picture, "rgb": mean_colour, "none": None, "start": begun}[recipe.mean]
    if mean is None and recipe.mean != "none":
        raise DataError(f'the store has no mean {recipe.mean}; prepare it again, or set mean = "none"')
    if mean is not None and mean.ndim == 3 and mean.shape != (recipe.size, recipe.size, 3):
        shape = " x ".join(str(side) for side in mean.shape)
        raise DataError(f"the mean picture is {shape}, the recipe's size {recipe.size}; set size, or prepare again")
    return Preprocessing(
        size=recipe.size,
        pad=recipe.pad,
        crop=recipe.crop,
        channels=recipe.channels,
        mean=None if mean is None else np.asarray(mean, np.float32),
        scale=recipe.scale,
        offset=recipe.offset,
        shorter_side=shorter_side,
        fit=fit,
    )


def to_dict(preprocessing: Preprocessing) -> Json:
    """What JSON holds of it; `mean` is only whether there is one: its numbers are stored as a tensor.

    "crop" isn't said: earlier readers, which know no other fit, read such files and refuse the others.
    """
    values = {each.name: getattr(preprocessing, each.name) for each in fields(preprocessing)}
    values["mean"] = preprocessing.mean is not None
    if preprocessing.fit == "crop":
        del values["fit"]
    return values


def from_dict(values: Json, mean: NDArray[np.float32] | None) -> Preprocessing:
    """The inverse of `to_dict`, given the mean's numbers. Raises: DataError when a value can't be one."""
    kinds = {"size": int, "pad": int, "crop": int, "channels": str, "mean": bool, "scale": float, "offset": float}
    kinds |= {"shorter_side": int, "fit": str}
    values = {"fit": "crop", **values}
    for name in sorted(kinds.keys() ^ values.keys()):
        raise DataError(f"{name} is {'missing' if name in kinds else 'not a field'}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise DataError(f"{name} is not {kind.__name__}")
    if values["mean"] != (mean is not None):
        raise DataError(f"the mean is {'missing' if mean is None else 'not announced'}")
    for name in ("size", "pad", "crop", "scale", "offset"):
        if values[name] not in RANGES[name]:
            raise DataError(f"{name} is {values[name]:.6g}, it must be {RANGES[name]}")
    if not values["size"] <= values["shorter_side"] <= MAX_SIDE:
        raise DataError(f"shorter_side is {values['shorter_side']}, it must be {values['size']} to {MAX_SIDE}")
    if values["fit"] not in FITS:
        raise DataError(f"fit is none of {', '.join(FITS)}")
    if values["channels"] not in ("rgb", "grey") or values["crop"] > values["size"] + 2 * values["pad"]:
        raise DataError("channels is neither rgb nor grey, or crop exceeds size + 2 pad")
    return Preprocessing(**{**values, "mean": mean})
