"""Which part of a stored picture is a training crop, where crops are scaled: at VGG's scales, or of GoogLeNet's sizes.

A box is cut out of the stored square and resized to the crop, bicubic, as pictures are prepared (resize.py): Pillow's,
which smooths what it makes smaller, and rounds to whole grey levels. The net then sees it as any crop.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnet.io import rng
from convnet.recipe import Recipe

Boxes = NDArray[np.float64]  # (N, 4): left, top, right and bottom edge in a stored square, pixels


def are_scaled(recipe: Recipe) -> bool:
    """Whether a recipe's training crops are resized, rather than cut out as they are stored."""
    return recipe.smallest_size > 0 or recipe.crop_area < 1


def sample(recipe: Recipe, epoch: int, ids: NDArray[np.int64]) -> Boxes:
    """The boxes of the training pictures `ids` in `epoch`, by a recipe whose crops are scaled.

    Paper: VGG 3.1: each picture is rescaled to a shorter side S sampled from [256, 512], a crop of 224 cut out of it:
    in the stored square that is a side of crop x size / S. GoogLeNet 6: "size is distributed evenly between 8 % and
    100 % of the image area with aspect ratio constrained to the interval [3/4, 4/3]". Differs: nothing; the ratio's
    logarithm is uniform within what the square has room for, so that the area is uniform for every box.
    """

    def uniform(name: str) -> NDArray[np.float64]:
        return rng.uniform(recipe.seed, rng.stream(name), epoch, ids)

    if recipe.smallest_size:
        n_scales = recipe.size - recipe.smallest_size + 1
        scale = recipe.smallest_size + rng.integers(n_scales, recipe.seed, rng.stream("scale"), epoch, ids)
        width = height = recipe.crop * recipe.size / scale
        n_places, pixel = scale - recipe.crop + 1, recipe.size / scale  # of the scaled picture
        left, top = (pixel * np.floor(uniform(edge) * n_places) for edge in ("left", "top"))
    else:
        area = recipe.crop_area + (1 - recipe.crop_area) * uniform("area")
        most = np.minimum(np.log(recipe.crop_aspect), -np.log(area))  # of a wider box the sides would leave the square
        ratio = np.exp((2 * uniform("aspect") - 1) * most)
        width, height = recipe.size * np.sqrt(area * ratio), recipe.size * np.sqrt(area / ratio)
        left, top = uniform("left") * (recipe.size - width), uniform("top") * (recipe.size - height)
    edges = np.stack([left, top, left + width, top + height], 1)
    return np.clip(edges, 0.0, recipe.size)  # roundings


def resized(square: NDArray[np.uint8], box: NDArray[np.float64], crop: int) -> NDArray[np.uint8]:
    """uint8 (crop, crop, 3): a box of a stored square, resized."""
    left, top, right, bottom = box.tolist()
    image = Image.fromarray(square)
    return np.asarray(image.resize((crop, crop), Image.Resampling.BICUBIC, (left, top, right, bottom)))
