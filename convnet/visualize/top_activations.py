"""Which pictures excite a map most? For each map of some stages the nine with its strongest units, in one pass.

Zeiler and Fergus 2013, figure 2: the top nine activations of a feature map across the validation pictures. A picture
is there once, with the strongest unit that it has in the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.data.store import Split
from convnet.errors import UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.progress import SILENT, Progress
from convnet.visualize.deconv import Unit
from convnet.visualize.search import Ints, Smallest, batches
from convnet.visualize.stages import check_finite, check_maps

NINE = 9  # pictures, as in the paper


@dataclass(frozen=True, eq=False)
class TopActivations:
    """For each of M maps of a stage the n pictures (or all, if fewer) with the strongest units, strongest first.

    Ties: the earlier in the split.
    """

    stage: str
    maps: Ints  # (M,)
    ids: Ints  # (M, n), positions in the split
    activations: NDArray[np.float32]  # (M, n)
    rows: Ints  # (M, n), the unit's place; 0 in a stage of features
    columns: Ints  # (M, n)

    def units(self, m: int) -> list[Unit]:
        """The n units of map m of `maps`."""
        places = zip(self.rows[m].tolist(), self.columns[m].tolist(), strict=True)
        return [Unit(int(self.maps[m]), row, column) for row, column in places]

    def strongest_maps(self, n_maps: int) -> Ints:
        """int64: the positions in `maps` of those with the largest mean over their n pictures, largest first."""
        return np.argsort(-self.activations.mean(1, dtype=np.float64), kind="stable")[:n_maps]


def top_activations(
    net: TrainedNet,
    split: Split,
    stages: Mapping[str, Sequence[int] | None],
    *,
    n: int = NINE,
    ids: Ints | None = None,
    after: int = 0,
    progress: Progress = SILENT,
) -> dict[str, TopActivations]:
    """{stage: its strongest pictures} among those of a split (or its pictures `ids`), which are read once for all.

    stages: {stage of the net, or column of it: the numbers of its maps; None is all}. after: pictures that later
    searches will read, for the time left.

    Raises: UsageError for a stage or map that the net doesn't have, or a store that doesn't fit; NotFinite.
    """
    if not stages:
        raise UsageError("name at least one stage to search")
    searches: dict[str, _Search] = {}
    ids = None if ids is None else np.sort(ids)
    for part, pictures in batches(split, ids, net.preprocessing, progress, after):
        for stage, activation in net.trace(net.images(pictures), stages).items():
            if stage not in searches:
                searches[stage] = _Search(stage, stages[stage], activation, n)
            searches[stage].add(part, activation, [picture.name for picture in pictures])
    return {stage: search.result() for stage, search in searches.items()}


class _Search:
    """The n strongest pictures so far of M maps of a stage with activations (N, C, H, W) or (N, D)."""

    def __init__(self, stage: str, maps: Sequence[int] | None, activation: Tensor, n: int) -> None:
        n_maps, *sides = activation.shape[1:]
        check_maps(stage, n_maps, maps or ())
        self.stage, self.sides = stage, sides or [1, 1]
        self.maps = np.arange(n_maps) if maps is None else np.array(maps, np.int64)
        self.best = Smallest(len(self.maps), n)

    def add(self, ids: Ints, activation: Tensor, names: Sequence[str]) -> None:
        """activation: of the pictures `ids`, which rise from call to call."""
        maps = activation[:, torch.from_numpy(self.maps).to(activation.device)]
        values, units = maps.reshape(*maps.shape[:2], -1).max(2)
        strongest = values.double().cpu().numpy()  # a device synchronisation
        check_finite(self.stage, strongest, names)
        self.best.add(-strongest.T, ids * self.sides[0] * self.sides[1] + units.T.cpu().numpy())

    def result(self) -> TopActivations:
        ids, units = np.divmod(self.best.numbers, self.sides[0] * self.sides[1])
        activations = (-self.best.values).astype(np.float32)
        return TopActivations(self.stage, self.maps, ids, activations, *np.divmod(units, self.sides[1]))
