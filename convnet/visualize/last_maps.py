"""Which maps are a net's last, from which one can still tell where something is?"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from convnet.errors import UsageError, unknown

THINNED = re.compile(r"((avg)?pool|norm|within|s\d)")  # stages that pool, sub-sample or normalise what came before


def last_maps(activations: Mapping[str, Tensor]) -> str:
    """The last stage (N, C, H, W) with more than one place that is not pooled, sub-sampled or normalised maps.

    AlexNet's is relu5, VGG's relu5_3, GoogLeNet's inception_5b, LeNet-5's c3.
    """
    return [stage for stage in _with_maps(activations) if not THINNED.match(stage)][-1]


def check_has_maps(activations: Mapping[str, Tensor], stage: str) -> None:
    """Raises: UsageError for a stage that the net doesn't have, or that has no places; it names those that have."""
    known = list(_with_maps(activations))
    if stage not in known:
        raise UsageError(unknown("stage with maps", stage, known))


def _with_maps(activations: Mapping[str, Tensor]) -> Iterable[str]:
    return [name for name, x in activations.items() if x.ndim == 4 and x.shape[2] * x.shape[3] > 1]
