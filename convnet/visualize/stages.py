"""Which stage of a net is shown when none is named? And does it have what is asked of it?"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.errors import UsageError, unknown
from convnet.evaluation.inference import NotFinite
from convnet.nets.layers import Net
from convnet.visualize.receptive_fields import receptive_fields

THINNED = r"(avg)?pool|norm|within|s\d"  # stages that pool, sub-sample or normalise what came before


def last_maps(activations: Mapping[str, Tensor], skipped: str = THINNED) -> str:
    """The last stage (N, C, H, W) with more than one place whose name doesn't begin with the pattern `skipped`.

    AlexNet's is relu5, VGG's relu5_3, GoogLeNet's inception_5b, LeNet-5's c3.
    """
    return next(stage for stage in reversed(with_maps(activations)) if not re.match(skipped, stage))


def last_convolution(net: Net) -> str:
    """As `last_maps`, before its ReLU, tanh or batch norm: AlexNet's is conv5, NIN's the last 1x1 convolution."""
    fields = receptive_fields(net)
    shapes = {stage: torch.empty(1, 1, len(each.rows.first), len(each.columns.first)) for stage, each in fields.items()}
    return last_maps(shapes, f"{THINNED}|relu|tanh|bn|data")


def check_has_maps(activations: Mapping[str, Tensor], stage: str) -> None:
    """Raises: UsageError for a stage that the net doesn't have, or that has no places; it names those that have."""
    known = with_maps(activations)
    if stage not in known:
        raise UsageError(unknown("stage with maps", stage, known))


def with_maps(activations: Mapping[str, Tensor]) -> list[str]:
    """The stages (N, C, H, W) with more than one place."""
    return [name for name, x in activations.items() if x.ndim == 4 and x.shape[2] * x.shape[3] > 1]


def check_maps(stage: str, n_maps: int, chosen: Iterable[int]) -> None:
    """Raises: UsageError for a map that the stage doesn't have."""
    for channel in chosen:
        if not 0 <= channel < n_maps:
            raise UsageError(f"{stage} has the maps 0 to {n_maps - 1}, no map {channel}")


def check_finite(stage: str, values: NDArray[np.generic], names: Sequence[str]) -> None:
    """Of values (N, ...) of N pictures. Raises: NotFinite naming the first picture that has others."""
    good = np.isfinite(values).reshape(len(values), -1).all(1)
    if not good.all():
        raise NotFinite(f"{stage} of {names[int(good.argmin())]!r} is not finite; the net's weights may be damaged")
