"""How good is a net on pictures it has not seen? Top-1 and top-5 error, per class, and the confusion matrix.

The paper (section 2): the top-1 error is the share of pictures whose most probable class is wrong; the top-5 error the
share whose class isn't among the five most probable. Posteriors are softmax outputs averaged over a picture's views.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnet.augment import to_input
from convnet.device import Device
from convnet.errors import DataError, Interrupted, UsageError
from convnet.preprocess import Preprocessing
from convnet.progress import SILENT, Progress
from convnet.stop import Stop
from convnet.store import Pixels, Split, crop_square
from convnet.views import View, views

BATCH = 64  # pictures; a view at a time


class NotFinite(DataError):  # noqa: N818 - the state of the net
    """The net's output for a picture is NaN or infinite."""


@dataclass(frozen=True)
class Scores:
    """The result of a test of n pictures over K classes.

    ranks: int64 (n,), the place of the true class among the posteriors, 0 is the best. Of classes that are equally
    probable, the one with the lower index comes first. With K <= 5 classes no picture can be a top-5 error.
    predicted, labels: int64 (n,). loss: the mean of -log posterior of the true class, nats.
    """

    views: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    ranks: NDArray[np.int64]
    loss: float

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of wrong pictures, 0 to 1."""
        return float((self.ranks >= 1).mean())

    @property
    def top5(self) -> float:
        return float((self.ranks >= 5).mean())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(K, K): entry [i, j] counts pictures of class i that were taken for class j."""
        k = len(self.classes)
        return np.bincount(self.labels * k + self.predicted, minlength=k * k).reshape(k, k)

    def per_class(self) -> list[dict[str, Any]]:
        """For each class its name, n, and its top-1 and top-5 error (None where n is 0)."""
        rows = []
        for k, name in enumerate(self.classes):
            ranks = self.ranks[self.labels == k]
            errors = [float((ranks >= place).mean()) if len(ranks) else None for place in (1, 5)]
            rows.append({"class": name, "n": len(ranks), "top1_error": errors[0], "top5_error": errors[1]})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "split": self.split,
            "views": self.views,
            "n": self.n,
            "top1_error": self.top1,
            "top5_error": self.top5,
            "loss": self.loss,
            "per_class": self.per_class(),
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    net: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: Device,
    *,
    views_name: str = "single",
    ids: NDArray[np.int64] | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Scores:
    """Tests `net` on a split of a store (or on its pictures `ids`). The net is in eval mode meanwhile.

    Raises: NotFinite when the net's outputs aren't finite, naming the picture; UsageError when classes or sizes don't
    fit; Interrupted when `stop` is asked for.
    """
    _check_fits(preprocessing, split)
    chosen = np.arange(split.n) if ids is None else ids
    labels = split.labels[chosen]
    ranks, predicted, losses = [], [], []
    done = 0
    progress.start(f"testing ({split.name}, {views_name})", len(chosen))
    for part, posteriors in _posteriors(net, split, preprocessing, device, views(views_name, preprocessing), chosen):
        if not np.isfinite(posteriors).all():
            bad = part[~np.isfinite(posteriors).all(1)][0]
            raise NotFinite(f"the net's output for {split.keys[bad]!r} is not finite; its weights may be damaged")
        truth = split.labels[part]
        ranks.append(rank(posteriors, truth))
        predicted.append(posteriors.argmax(1))
        losses.append(-np.log(np.maximum(posteriors[np.arange(len(part)), truth], 1e-300)))
        if stop:
            raise Interrupted(f"stopped while testing on {split.name}")
        done += len(part)
        progress.update(done)
    progress.finish()
    return Scores(
        views_name,
        split.name,
        split.store.classes,
        labels,
        np.concatenate(predicted),
        np.concatenate(ranks),
        float(np.concatenate(losses).mean()),
    )


def _check_fits(preprocessing: Preprocessing, split: Split) -> None:
    store = split.store
    if (preprocessing.size, preprocessing.shorter_side) != (store.size, store.shorter_side):
        needed = f"--size {preprocessing.size} --shorter-side {preprocessing.shorter_side}"
        raise UsageError(
            f"{store.path} holds pictures of {store.size} pixels in a shorter side of {store.shorter_side}; "
            f"the net was trained on others: prepare the source with {needed}"
        )
    if split.n == 0:
        raise UsageError(f"{store.path} has no pictures in its split {split.name}; choose another with --split")


def rank(posteriors: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (N,): how many classes come before the true one; among equals the lower index comes first.

    >>> rank(np.array([[0.2, 0.5, 0.2, 0.1]]), np.array([2])).tolist()
    [2]
    """
    truth = np.take_along_axis(posteriors, labels[:, None], 1)
    before = (posteriors > truth) | ((posteriors == truth) & (np.arange(posteriors.shape[1]) < labels[:, None]))
    return np.asarray(before.sum(1), np.int64)


@torch.inference_mode()
def posterior(net: nn.Module, images: torch.Tensor, device: Device) -> NDArray[np.float64]:
    """float64 (N, K): the softmax of the net's logits."""
    with device.autocast():
        logits = net(images)
    return np.asarray(logits.float().softmax(1).cpu().double())  # a device synchronisation: the result is needed


def mean_posterior(
    net: nn.Module, squares: Sequence[Pixels], looks: Sequence[View], preprocessing: Preprocessing, device: Device
) -> NDArray[np.float64]:
    """float64 (N, K): the posteriors of N squares, uint8 (size, size, 3), averaged over the views."""
    outputs = []
    for view in looks:
        crops = np.stack([crop_square(square, view.top, view.left, preprocessing.crop) for square in squares])
        images = to_input(crops, view.of(len(squares)), preprocessing, device.device)
        outputs.append(posterior(net, images, device))
    return np.asarray(np.mean(outputs, axis=0))


def _posteriors(
    net: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: Device,
    looks: list[View],
    chosen: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    training = net.training
    net.eval()
    try:
        for first in range(0, len(chosen), BATCH):
            part = chosen[first : first + BATCH]
            squares = [split.square(i) for i in part.tolist()]  # decoded once for all views
            yield part, mean_posterior(net, squares, looks, preprocessing, device)
    finally:
        net.train(training)
