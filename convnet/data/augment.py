"""Data augmentation: crop, mirror, colour shift, mean, scale; pure functions of a batch and its random numbers.

The random numbers are functions of (seed, epoch, picture): the order of work can't change them (AlexNet section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data import boxes
from convnet.data.boxes import Boxes
from convnet.data.preprocess import Preprocessing
from convnet.data.statistics import Statistics
from convnet.data.store import Pixels, Split
from convnet.io import rng
from convnet.kernels.cpu import augment as augment_cpu
from convnet.recipe import Recipe

LUMA = (19595, 38470, 7471)  # of 65536: ITU-R 601, as Pillow's mode L
CHUNK = 32  # pictures of a jpeg store that are held decoded at a time


@dataclass(frozen=True)
class Augmentation:
    """What is done to each of N pictures.

    tops, lefts: int64 (N,), the crop's first row and column in the stored square; negative in a padded border.
    boxes: where crops are scaled, the parts of the square that are resized to them (boxes.py); tops and lefts are 0.
    mirrored: bool (N,). colour: float32 (N, 3), grey levels added to R, G and B.
    """

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    colour: NDArray[np.float32]
    boxes: Boxes | None = None

    @property
    def corners(self) -> NDArray[np.int64]:
        """int64 (N, 2): tops and lefts."""
        return np.stack([self.tops, self.lefts], 1)

    def part(self, of: slice) -> "Augmentation":
        """That of some of the pictures."""
        scaled = None if self.boxes is None else self.boxes[of]
        return Augmentation(self.tops[of], self.lefts[of], self.mirrored[of], self.colour[of], scaled)


def sample(recipe: Recipe, statistics: Statistics, epoch: int, ids: NDArray[np.int64]) -> Augmentation:
    """The augmentation of the training pictures `ids` in `epoch`.

    Paper: AlexNet 4.1: random crops and mirrors; to each picture [p1 p2 p3] [a1 l1, a2 l2, a3 l3] is added, with the
    eigenvectors p and eigenvalues l of the RGB covariance and a ~ N(0, 0.1). Differs: nothing, but the text leaves the
    pixels' scale open; the eigenvalues are those of pixels in 0..1 (in 0..255 the shift would be 1,500 grey levels).
    """
    n = len(ids)
    margin = recipe.size + 2 * recipe.pad - recipe.crop
    centre = np.full(n, margin // 2 - recipe.pad, np.int64)
    tops, lefts, mirrored = centre, centre, np.zeros(n, bool)
    scaled = boxes.sample(recipe, epoch, ids) if boxes.are_scaled(recipe) else None
    if scaled is not None:
        tops = lefts = np.zeros(n, np.int64)
    elif recipe.random_crop:
        n_offsets = margin + 1 if recipe.far_edge else max(margin, 1)
        places = rng.integers(n_offsets, recipe.seed, rng.stream("crop"), epoch, ids[:, None], np.arange(2))
        if recipe.crop_at == "corners":
            five = np.array([(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)])
            places = five[rng.integers(len(five), recipe.seed, rng.stream("crop"), epoch, ids)]
        tops, lefts = places[:, 0] - recipe.pad, places[:, 1] - recipe.pad
    if recipe.mirror:
        mirrored = rng.uniform(recipe.seed, rng.stream("mirror"), epoch, ids) < 0.5
    shift = np.zeros((n, 3))
    if recipe.colour_std and epoch <= (recipe.colour_epochs or epoch):
        factors = rng.normal(recipe.seed, rng.stream("colour"), epoch, ids[:, None], np.arange(3))
        magnitudes = statistics.eigenvalues / 255**2 * 255
        if recipe.colour_by == "std":  # the released net's: the root of the eigenvalue
            magnitudes = np.sqrt(statistics.eigenvalues)
        shift = (factors * recipe.colour_std * magnitudes) @ statistics.eigenvectors.T
    return Augmentation(tops, lefts, mirrored, shift.astype(np.float32), scaled)


def to_input(
    crops: Pixels,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The net's input from uint8 (N, h, w, 3): `dtype` (N, C, h, w), channels-last, on `device`.

    In this order: grey (by recipe), minus the mean at the crop's own place, colour shift, mirror, scale, offset, all in
    float32; then the cast.
    """
    if not augment_cpu.available(device, dtype):
        return plain_input(crops, augmentation, preprocessing, device, dtype)
    n, height, width, _ = crops.shape
    images = empty_images(n, height, width, preprocessing, dtype)
    corners = np.zeros((n, 2), np.int64)
    _augment_in_c(images, list(np.ascontiguousarray(crops)), corners, augmentation, preprocessing)
    return images


def fill(
    images: Tensor, split: Split, ids: NDArray[np.int64], augmentation: Augmentation, preprocessing: Preprocessing
) -> None:
    """Writes what `to_input` gives for the crops of the pictures `ids` to `images`; nothing is cut out first.

    images: (N, C, crop, crop), channels-last, in a place and dtype to which `augment_cpu.available` says yes.
    """
    if split.is_mapped and augmentation.boxes is None:
        addresses, shards = split.addresses(ids)
        squares = augment_cpu.Squares(addresses, split.store.size, shards)
        _augment_in_c(images, squares, augmentation.corners, augmentation, preprocessing)
        return
    for first in range(0, len(ids), CHUNK):
        part = slice(first, first + CHUNK)
        chunk = augmentation.part(part)
        pictures = stored(split, ids[part], chunk.boxes, preprocessing.crop)
        _augment_in_c(images[part], pictures, chunk.corners, chunk, preprocessing)


def stored(split: Split, ids: NDArray[np.int64], scaled: Boxes | None, crop: int) -> list[Pixels]:
    """The pictures `ids` as they lie in the store, or, where crops are scaled, their boxes resized to crops."""
    squares = (split.square(i) for i in ids.tolist())
    if scaled is None:
        return list(squares)
    return [boxes.resized(square, box, crop) for square, box in zip(squares, scaled, strict=True)]


def empty_images(n: int, height: int, width: int, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Memory for N images, (N, C, height, width), channels-last."""
    channels = 1 if preprocessing.channels == "grey" else 3
    return torch.empty(n, channels, height, width, dtype=dtype, memory_format=torch.channels_last)


def _augment_in_c(
    images: Tensor,
    pictures: Sequence[Pixels] | augment_cpu.Squares,
    corners: NDArray[np.int64],
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> None:
    """The pass in C, of crops that lie in `pictures` at `corners`."""
    mean, colour = preprocessing.mean, augmentation.colour
    if preprocessing.channels == "grey":
        mean = None if mean is None else _grey(mean)
        colour = _grey(colour) if colour.any() else colour[:, :1]
    augment_cpu.augment(pictures, corners, augmentation.mirrored, colour, mean, images,
                        mean_corners=augmentation.corners, scale=preprocessing.scale,
                        offset=preprocessing.offset)  # fmt: skip


def plain_input(
    crops: Pixels, augmentation: Augmentation, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The plain form of `to_input`, for any device."""
    pixels = torch.from_numpy(crops).to(device, non_blocking=True).permute(0, 3, 1, 2)
    grey = preprocessing.channels == "grey"
    images = (_luma(pixels.to(torch.int32)) if grey else pixels).to(torch.float32)
    if preprocessing.mean is not None:
        mean = _mean_crops(preprocessing, augmentation, len(crops[0]), device)
        images -= mean_luma(mean) if grey else mean
    if augmentation.colour.any():
        colour = torch.from_numpy(augmentation.colour).to(device)[:, :, None, None]
        images += mean_luma(colour) if grey else colour
    if augmentation.mirrored.any():
        mirrored = torch.from_numpy(augmentation.mirrored).to(device)[:, None, None, None]
        images = torch.where(mirrored, images.flip(3), images)
    images *= preprocessing.scale
    if preprocessing.offset:
        images += preprocessing.offset
    return images.to(dtype)


def _grey(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (..., 3) -> (..., 1)."""
    planes = torch.from_numpy(values.reshape(-1, 3).T.copy())[:, None]
    return mean_luma(planes).numpy().reshape(*values.shape[:-1], 1)


def _luma(pixels: Tensor) -> Tensor:
    """int32 (N, 3, H, W) -> int32 (N, 1, H, W), exact for grey pictures."""
    red, green, blue = (pixels[:, c : c + 1] * LUMA[c] for c in range(3))
    return (red + green + blue + 32768) >> 16


def mean_luma(values: Tensor) -> Tensor:
    """float (..., 3, H, W) -> (..., 1, H, W)."""
    weights = torch.tensor(LUMA, dtype=values.dtype, device=values.device) / 65536
    return (values * weights[:, None, None]).sum(-3, keepdim=True)


def _mean_crops(preprocessing: Preprocessing, augmentation: Augmentation, crop: int, device: torch.device) -> Tensor:
    """float32 (N or 1, 3, crop or 1, crop or 1): the mean under each crop; 0 in a padded border."""
    assert preprocessing.mean is not None
    mean = torch.as_tensor(preprocessing.mean).to(device)
    if mean.ndim == 1:
        return mean[None, :, None, None]
    pad = preprocessing.pad
    picture = torch.nn.functional.pad(mean.permute(2, 0, 1), (pad, pad, pad, pad))
    places = list(zip((augmentation.tops + pad).tolist(), (augmentation.lefts + pad).tolist(), strict=True))
    if len(set(places)) == 1:
        places = places[:1]
    return torch.stack([picture[:, top : top + crop, left : left + crop] for top, left in places])
