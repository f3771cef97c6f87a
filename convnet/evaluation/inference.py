"""Inference: what does a net say of pictures, looked at by a test protocol? Probabilities, averaged over the views.

A picture is decoded once and scaled once for each scale; crops are batched over pictures and views, whole pictures with
others of their shape. No forward pass holds more pixels than `batch` crops of the net's own input, but at least one
picture.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnet.data.augment import to_input
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import bicubic, centre_square
from convnet.data.store import Pixels
from convnet.device import Device
from convnet.errors import DataError
from convnet.evaluation.pictures import Picture
from convnet.evaluation.views import IN_SQUARE, WITHOUT_MIRRORS, Box, Look, boxes, fixed, square_at
from convnet.nets.layers import Net, sliding

BATCH = 32  # crops in a forward pass: VGG-D at 224 needs 2.5 GB for them
Weighted = tuple[int, Box, float]  # a picture, a crop of it, and its share in the mean
Rows = Callable[[nn.Module, Tensor, Device], NDArray[np.float64]]  # (net, images, device) -> a row of each image


class NotFinite(DataError):  # noqa: N818 - the state of the net
    """The net's output for a picture is NaN or infinite."""


def probabilities(net: nn.Module, images: Tensor, device: Device) -> NDArray[np.float64]:
    """float64 (N, K): the softmax of the net's logits; of a map of class scores its mean over space (VGG 3.2)."""
    with device.autocast():
        logits = net(images)
    scores = logits.float() if logits.ndim == 2 else logits.float().mean((2, 3))
    return np.asarray(scores.softmax(1).cpu().double())  # a device synchronisation: the result is needed


@torch.no_grad()
def infer(
    net: nn.Module,
    pictures: Sequence[Picture],
    looks: Sequence[Look],
    preprocessing: Preprocessing,
    device: Device,
    batch: int = BATCH,
    rows: Rows = probabilities,
) -> dict[Look, NDArray[np.float64]]:
    """float64 (N, K) for each look: the probabilities of N pictures, or other `rows`, averaged over the look's views.

    The net must be in eval mode. Crops of the central square are treated as in training, with its border; at another
    scale than the training's, and elsewhere, they lose the mean picture's mean colour.

    Raises: UsageError for dense with a net that can't slide.
    """
    found: dict[Look, NDArray[np.float64]] = {}
    for scale in dict.fromkeys(look.scale for look in looks):
        frames = [picture[scale] for picture in pictures]
        for look in looks:
            if look.scale != scale:
                continue
            with device.autocast():  # around all passes, so that weights are cast once (inference_mode keeps no casts)
                if look.name == "dense":
                    found[look] = _dense(cast(Net, net), frames, preprocessing, device, batch, rows)
                else:
                    found[look] = _crops(net, frames, look, preprocessing, device, batch, rows)
    return found


def _crops(
    net: nn.Module,
    frames: Sequence[Pixels],
    look: Look,
    preprocessing: Preprocessing,
    device: Device,
    batch: int,
    rows: Rows,
) -> NDArray[np.float64]:
    how = _by_mean_colour(preprocessing)
    if look.name in IN_SQUARE:
        how = _of_square(preprocessing, look.scale)
        frames = [centre_square(frame, how.size) for frame in frames]
    jobs = list(_jobs(frames, look.name, preprocessing))
    mean = np.zeros((len(frames), 0))
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        crops = np.stack([_cut(frames[i], box, preprocessing.crop) for i, box, _ in part])
        tops, lefts = np.array([(box.top, box.left) for _, box, _ in part]).T
        images = to_input(crops, fixed(tops, lefts), how, device.device)
        alone = look.name in WITHOUT_MIRRORS
        of_crops = rows(net, images, device) if alone else _with_mirrors(net, images, device, batch, rows)
        mean = mean if first else np.zeros((len(frames), of_crops.shape[1]))
        for (i, _, share), row in zip(part, of_crops, strict=True):
            mean[i] += row * share
    return mean


def _with_mirrors(net: nn.Module, images: Tensor, device: Device, most: int, rows: Rows) -> NDArray[np.float64]:
    """The rows of N pictures and of their mirrors, averaged; in one pass if 2 N are not more than `most`."""
    mirrors, n = images.flip(3), len(images)
    if 2 * n > most:
        return (rows(net, images, device) + rows(net, mirrors, device)) / 2
    both = rows(net, torch.cat([images, mirrors]), device)
    return (both[:n] + both[n:]) / 2


def _jobs(frames: Sequence[Pixels], name: str, preprocessing: Preprocessing) -> Iterator[Weighted]:
    """Every crop that differs, view by view, so that crops of one place of the square follow each other."""
    sizes = [(len(frame), len(frame[0])) for frame in frames]
    views = {(height, width): _shares(boxes(name, height, width, preprocessing)) for height, width in set(sizes)}
    for n in range(max(map(len, views.values()))):
        for i, size in enumerate(sizes):
            if n < len(views[size]):
                yield i, *views[size][n]


def _shares(views: list[Box]) -> list[tuple[Box, float]]:
    """The crops that differ, each with its share of all."""
    return [(box, n / len(views)) for box, n in Counter(views).items()]


def _cut(frame: Pixels, box: Box, crop: int) -> Pixels:
    """uint8 (crop, crop, 3): a region of a picture, black outside of it, resized if it has another side."""
    height, width = frame.shape[:2]
    rows = slice(max(box.top, 0), min(box.top + box.side, height))
    columns = slice(max(box.left, 0), min(box.left + box.side, width))
    region = frame[rows, columns]
    if region.shape[:2] != (box.side, box.side):
        padded = np.zeros((box.side, box.side, 3), np.uint8)
        padded[rows.start - box.top : rows.stop - box.top, columns.start - box.left : columns.stop - box.left] = region
        region = padded
    if box.side == crop:
        return region
    return bicubic(region, crop, crop)


def _dense(
    net: Net, frames: Sequence[Pixels], preprocessing: Preprocessing, device: Device, batch: int, rows: Rows
) -> NDArray[np.float64]:
    slid = sliding(net)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, frame in enumerate(frames):
        shapes.setdefault(frame.shape, []).append(i)
    found: dict[int, NDArray[np.float64]] = {}
    for (height, width, _), members in shapes.items():
        most = max(1, batch * preprocessing.crop**2 // (height * width))
        for first in range(0, len(members), most):
            part = members[first : first + most]
            images = _whole(np.stack([frames[i] for i in part]), preprocessing, device)
            found.update(zip(part, _with_mirrors(slid, images, device, most, rows), strict=True))
    return np.stack([found[i] for i in range(len(frames))])


def _whole(pixels: Pixels, preprocessing: Preprocessing, device: Device) -> Tensor:
    """float32 (N, C, H + 2 pad, W + 2 pad): whole pictures in the border that training had."""
    n, pad = len(pixels), preprocessing.pad
    how = _by_mean_colour(preprocessing)
    nowhere = fixed(np.zeros(n, np.int64), np.zeros(n, np.int64))
    if pad and how is preprocessing:  # the mean colour was taken off the black border too
        pixels = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        return to_input(pixels, nowhere, how, device.device)
    images = to_input(pixels, nowhere, how, device.device)
    return F.pad(images, (pad,) * 4, value=preprocessing.offset) if pad else images


def _by_mean_colour(preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing for places at which no mean picture is known."""
    mean = preprocessing.mean
    if mean is None or mean.ndim == 1:
        return preprocessing
    return replace(preprocessing, mean=mean.mean((0, 1), dtype=np.float64).astype(np.float32))


def _of_square(preprocessing: Preprocessing, scale: int) -> Preprocessing:
    """The preprocessing of the central square at that scale."""
    if scale == preprocessing.shorter_side:
        return preprocessing
    size, how = square_at(preprocessing, scale), _by_mean_colour(preprocessing)
    mean = how.mean
    if mean is not None and how is not preprocessing:  # so that the border is 0, as around a mean picture
        mean = np.full((size, size, 3), mean)
    return replace(how, size=size, mean=mean, shorter_side=scale)
