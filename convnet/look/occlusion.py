"""What does a net look at? A grey square slides over the picture, and we see what it costs. Paper: ZF 4.2, figure 6.

The square has the mean grey of the training pictures: the level g is the mean of the preprocessing's mean colour or
picture, rounded (128 where nothing is subtracted), in R, G and B. The net's input there is what it would be of a
picture with such pixels: (g - mean) x scale + offset, about 0 for nets that subtract a mean. The paper says no more
than "a grey square".

The square's upper left corner takes the rows and columns 0, stride, 2 stride ... as far as the square fits, and the
last that fits, so that strides up to the square's side leave no pixel out. For each place three things are noted:

    activity      the sum over the feature map that has the largest sum in the whole picture, of a chosen stage
    probability   of a class: the true one where it is known, else the most probable of the whole picture
    best          the most probable class
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.device import Device
from convnet.errors import UsageError
from convnet.evaluate import NotFinite
from convnet.look.last_maps import check_has_maps, last_maps
from convnet.look.seen import Seen, net_input
from convnet.nets import Only, trace
from convnet.nets.layers import Net
from convnet.posteriors import BATCH
from convnet.preprocess import Preprocessing
from convnet.progress import SILENT, Progress
from convnet.store import Pixels

BOX, STRIDE = 32, 8  # pixels; the paper gives none
MID_GREY = 128


@dataclass(frozen=True, eq=False)
class Occlusion:
    """The three maps of a picture, (P, Q): the square's row and column, whose upper left corners are tops and lefts.

    layer, map    the stage and the number of the map whose sum is `activity`
    label         the class whose probability is noted
    grey, box     the square's level, 0..255, and side, pixels
    tops, lefts   int64 (P,) and (Q,), pixels
    activity      float32 (P, Q), and float for the whole picture
    probability   float64 (P, Q), 0..1, and for the whole picture
    best          int64 (P, Q), classes, and for the whole picture
    """

    picture: Seen
    layer: str
    map: int
    label: int
    grey: int
    box: int
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    activity: NDArray[np.float32]
    probability: NDArray[np.float64]
    best: NDArray[np.int64]
    whole_activity: float
    whole_probability: float
    whole_best: int

    def covered(self, row: int, column: int) -> Pixels:
        """uint8 (crop, crop, 3): the picture with the square at that place."""
        pixels = self.picture.pixels.copy()
        top, left = self.tops[row], self.lefts[column]
        pixels[top : top + self.box, left : left + self.box] = self.grey
        return pixels


def occlusion(
    net: Net,
    picture: Seen,
    preprocessing: Preprocessing,
    device: Device,
    *,
    label: int | None = None,
    layer: str | None = None,
    box: int = BOX,
    stride: int = STRIDE,
    batch: int = BATCH,
    progress: Progress = SILENT,
) -> Occlusion:
    """The three maps of a picture; the net is in eval mode. layer: None is the last stage with maps, after its ReLU.

    label: None is the picture's own class, or the most probable one where that isn't known.

    Raises: UsageError for a square or stride that doesn't fit, or a stage without maps; NotFinite.
    """
    check(box, stride, preprocessing.crop)
    image = net_input([picture], preprocessing, device.device)
    with device.autocast():
        found = trace(net, image)
    layer = last_maps(found) if layer is None else layer
    check_has_maps(found, layer)
    sums = found[layer].float().sum((2, 3))[0]
    chosen = int(sums.argmax())
    whole = next(reversed(found.values())).float().softmax(1)[0].double().cpu().numpy()
    label = label if label is not None else picture.label if picture.label is not None else int(whole.argmax())

    grey = level(preprocessing)
    square = net_input([Seen("", np.full_like(picture.pixels, grey))], preprocessing, device.device)
    tops = lefts = places(preprocessing.crop, box, stride)
    activity, posteriors = _slide(
        net, image, square, list(product(tops.tolist(), lefts.tolist())), (layer, chosen, box), device, batch, progress
    )
    if not np.isfinite(posteriors).all():
        raise NotFinite(f"the net's posterior of {picture.name} is not finite; its weights may be damaged")
    shape = len(tops), len(lefts)
    return Occlusion(
        picture=picture,
        layer=layer,
        map=chosen,
        label=label,
        grey=grey,
        box=box,
        tops=tops,
        lefts=lefts,
        activity=activity.reshape(shape),
        probability=posteriors[:, label].reshape(shape).copy(),
        best=posteriors.argmax(1).reshape(shape),
        whole_activity=float(sums[chosen]),
        whole_probability=float(whole[label]),
        whole_best=int(whole.argmax()),
    )


def level(preprocessing: Preprocessing) -> int:
    """The grey of the square, 0..255.

    >>> from convnet.preprocess import Preprocessing
    >>> level(Preprocessing(256, 0, 224, "rgb", np.float32([124, 117, 104]), 1.0, 0.0))
    115
    """
    mean = preprocessing.mean
    return MID_GREY if mean is None else round(float(np.clip(mean.mean(dtype=np.float64), 0, 255)))


def places(side: int, box: int, stride: int) -> NDArray[np.int64]:
    """int64: the first pixels of the squares along a side.

    >>> places(224, 32, 64).tolist(), places(224, 32, 50).tolist()
    ([0, 64, 128, 192], [0, 50, 100, 150, 192])
    """
    return np.unique([*range(0, side - box + 1, stride), side - box])


def check(box: int, stride: int, side: int) -> None:
    """Raises: UsageError when a square doesn't fit into the net's input of `side` pixels, or the stride is below 1."""
    if not 1 <= box <= side:
        raise UsageError(f"--box {box}: must be 1 to {side} pixels, the side of the net's input")
    if stride < 1:
        raise UsageError(f"--stride {stride}: must be at least 1 pixel")


@torch.no_grad()
def _slide(
    net: Net,
    image: Tensor,
    square: Tensor,
    corners: Sequence[tuple[int, int]],
    what: tuple[str, int, int],
    device: Device,
    batch: int,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """float32 (places,): the sum over the map; float64 (places, K): the posteriors. what: stage, map, side of the box.

    The pictures of a batch differ only under their squares, which are painted and wiped off in place.
    """
    layer, chosen, box = what
    images = image.repeat(min(batch, len(corners)), 1, 1, 1)
    images = images.contiguous(memory_format=device.memory_format)
    sums, rows = [], []
    progress.start("occlusion", len(corners), unit="places")
    with device.autocast():  # around all passes, so that weights are cast once
        for first in range(0, len(corners), batch):
            part = corners[first : first + batch]
            for i, (top, left) in enumerate(part):
                images[i, :, top : top + box, left : left + box] = square[0, :, top : top + box, left : left + box]
            stages = Only([layer])  # the others' memory is used again
            logits = net(images[: len(part)], stages)
            sums.append(stages[layer][:, chosen].float().sum((1, 2)))
            rows.append(logits.float().softmax(1))
            for i, (top, left) in enumerate(part):
                images[i, :, top : top + box, left : left + box] = image[0, :, top : top + box, left : left + box]
            progress.update(first + len(part))
    progress.finish()
    return torch.cat(sums).cpu().numpy(), torch.cat(rows).double().cpu().numpy()  # a device synchronisation
