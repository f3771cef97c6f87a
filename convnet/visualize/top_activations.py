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
from convnet.errors import Interrupted, UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.seen import in_parts
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress
from convnet.visualize.deconv import Unit, check_maps

NINE = 9  # pictures, as in the paper
BATCH = 16  # pictures at a time; their activations in the stages that are searched are held

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Strongest:
    """For each of M maps of a stage the n pictures with the strongest units, strongest first; of equals the earlier.

    maps: int64 (M,). ids: int64 (M, n), positions in the split. activations: float32 (M, n). rows, columns: int64
    (M, n), the unit's place; 0 in a stage of features. n is smaller where there are fewer pictures.
    """

    stage: str
    maps: Ints
    ids: Ints
    activations: NDArray[np.float32]
    rows: Ints
    columns: Ints

    def units(self, m: int) -> list[Unit]:
        """The n units of map m of `maps`."""
        places = zip(self.rows[m].tolist(), self.columns[m].tolist(), strict=True)
        return [Unit(int(self.maps[m]), row, column) for row, column in places]

    def most_excited(self, n_maps: int) -> Ints:
        """int64: the positions in `maps` of those with the largest mean over their n pictures, largest first."""
        return np.argsort(-self.activations.mean(1, dtype=np.float64), kind="stable")[:n_maps]


def top_activations(
    net: TrainedNet,
    split: Split,
    wanted: Mapping[str, Sequence[int] | None],
    *,
    n: int = NINE,
    ids: Ints | None = None,
    after: int = 0,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> dict[str, Strongest]:
    """{stage: its strongest pictures} among those of a split (or its pictures `ids`), which are read once for all.

    wanted: {stage of the net, or column of it: the numbers of its maps; None is all}. after: pictures that later
    searches will read, for the time left.

    Raises: UsageError for a stage or map that the net doesn't have, or a store that doesn't fit; NotFinite;
    Interrupted when `stop` is asked for.
    """
    if not wanted:
        raise UsageError("name at least one stage to search")
    chosen = np.arange(split.n) if ids is None else np.sort(ids)
    best: dict[str, _Best] = {}
    done = 0
    progress.start(f"searching ({split.name})", len(chosen), after=after)
    for part, pictures in in_parts(split, chosen, net.preprocessing, BATCH):
        for stage, maps in net.trace(net.images(pictures), wanted).items():
            if stage not in best:
                best[stage] = _Best(stage, wanted[stage], maps, n)
            best[stage].add(part, maps, [picture.name for picture in pictures])
        done += len(part)
        progress.update(done)
        if stop:
            raise Interrupted(f"stopped after {done:,} of {len(chosen):,} pictures")
    progress.finish()
    return {stage: each.found() for stage, each in best.items()}


class _Best:
    """The n strongest pictures so far of M maps of a stage: arrays (M, <= n)."""

    def __init__(self, stage: str, maps: Sequence[int] | None, activation: Tensor, n: int) -> None:
        check_maps(stage, activation.shape[1], maps or ())
        self.stage, self.n = stage, n
        self.maps = np.arange(activation.shape[1]) if maps is None else np.array(maps, np.int64)
        self.width = activation.shape[-1] if activation.ndim == 4 else 1
        self.ids, self.places = (np.empty((len(self.maps), 0), np.int64) for _ in range(2))
        self.activations = np.empty((len(self.maps), 0), np.float32)

    def add(self, ids: Ints, activation: Tensor, names: Sequence[str]) -> None:
        """activation: (N, C, H, W) or (N, D) of the pictures `ids`, which rise from call to call."""
        maps = activation[:, torch.from_numpy(self.maps).to(activation.device)]
        values, places = maps.reshape(*maps.shape[:2], -1).max(2)
        found = values.float().T.cpu().numpy()  # a device synchronisation
        if not np.isfinite(found).all():
            name = names[int(np.flatnonzero(~np.isfinite(found).all(0))[0])]
            raise NotFinite(f"{self.stage} of {name!r} is not finite; the net's weights may be damaged")
        known = np.concatenate([self.activations, found], 1)
        order = np.argsort(-known, axis=1, kind="stable")[:, : self.n]
        self.activations = np.take_along_axis(known, order, 1)
        self.ids = self._kept(self.ids, np.broadcast_to(ids, found.shape), order)
        self.places = self._kept(self.places, places.T.cpu().numpy(), order)

    def found(self) -> Strongest:
        rows, columns = np.divmod(self.places, self.width)
        return Strongest(self.stage, self.maps, self.ids, self.activations, rows, columns)

    @staticmethod
    def _kept(known: Ints, more: Ints, order: Ints) -> Ints:
        return np.take_along_axis(np.concatenate([known, more], 1), order, 1)
