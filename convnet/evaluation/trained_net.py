"""What is a trained net? The net, what is done to a picture before it, its classes, and where it computes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from convnet import checkpoint
from convnet.checkpoint import BEST, LAST, Checkpoint, rebuild
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split, Store
from convnet.device import Device, choose
from convnet.errors import UsageError
from convnet.evaluation import seen
from convnet.evaluation.evaluate import Scores, evaluate, split_to_test
from convnet.evaluation.predict import Prediction, predict
from convnet.io.atomic import PathLike, as_path
from convnet.nets import features, trace
from convnet.nets.layers import Net

Pictures = PathLike | Sequence[PathLike] | Tensor


@dataclass(frozen=True, eq=False)
class TrainedNet:
    """A net that has learned, and all that it takes to ask it.

    net            an ordinary nn.Module, in eval mode, on its device
    preprocessing  from a picture to what the net takes
    classes        their names, in the order of the net's outputs
    device         where and in which precision it computes
    """

    net: Net
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    device: Device

    def predict(
        self, pictures: PathLike | Sequence[PathLike], *, top: int = 5, views: str = "single", scales: str | None = None
    ) -> list[Prediction]:
        """The most probable classes of pictures in files, in their order; what can't be read says why in `failed`.

        views, scales: a test protocol, as `convnet predict --views` knows them. Raises: UsageError.
        """
        found = predict(
            self.net, self.preprocessing, self.classes, _paths(pictures), self.device,
            top=top, views_name=views, scales=scales,
        )  # fmt: skip
        return list(found)

    def evaluate(
        self, store: Store | PathLike, split: str | None = None, *, views: str = "single", scales: str | None = None
    ) -> Scores:
        """Top-1 and top-5 error, n, errors by class and confusion, on a store's test pictures or on another split.

        The store's labels are matched to the net's classes by name. Raises: UsageError, DataError.
        """
        found = store if isinstance(store, Store) else Store(as_path(store, "the store"))
        chosen: Split = split_to_test(found.with_labels_of(self.classes, "the net"), split)
        return evaluate(self.net, chosen, self.preprocessing, self.device, views_name=views, scales=scales)

    def images(self, pictures: Pictures) -> Tensor:
        """float32 (N, C, crop, crop) on the device: the central crops of pictures in files, as the net takes them.

        A tensor of such images is only brought to the device. Raises: DataError for a file that is no picture.
        """
        if isinstance(pictures, Tensor):
            return pictures.to(self.device.device)
        shown = seen.from_files(_paths(pictures), self.preprocessing)
        return seen.net_input(shown, self.preprocessing, self.device.device)

    def trace(self, pictures: Pictures, stages: Sequence[str] | None = None) -> dict[str, Tensor]:
        """{stage: activation (N, ...)} of pictures, or of images, for all stages or these. Raises: UsageError."""
        with self.device.autocast():
            return trace(self.net, self.images(pictures), stages)

    def features(self, pictures: Pictures, stage: str) -> Tensor:
        """(N, D): the activation of a stage, flattened, for each picture. Raises: UsageError."""
        with self.device.autocast():
            return features(self.net, self.images(pictures), stage)


def load(path: PathLike, *, device: str = "auto", precision: Literal["auto", "fp32", "bf16"] = "fp32") -> TrainedNet:
    """The net of a checkpoint, or the best of a run's folder, on a device ("auto", "cpu", "cuda", "cuda:1", "mps").

    Raises: UsageError when there is none, or no such device; DataError naming the file and its damage.
    """
    return trained(checkpoint.load(checkpoint_at(as_path(path, "the checkpoint"))), choose(precision, str(device)))


def trained(kept: Checkpoint, where: Device) -> TrainedNet:
    """A checkpoint's net on a device. Raises: DataError when its weights don't fit its net."""
    return TrainedNet(where.take(rebuild(kept)), kept.preprocessing, kept.classes, where)


def checkpoint_at(path: Path) -> Path:
    """The checkpoint that a file or a run's folder stands for. Raises: UsageError when there is none."""
    if path.is_dir():
        inside = [path / name for name in (BEST, LAST) if (path / name).is_file()]
        if not inside:
            raise UsageError(f"{path} holds no checkpoint ({BEST} or {LAST})")
        path = inside[0]
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; a run keeps its own in runs/NAME/{BEST}")
    return path


def _paths(pictures: PathLike | Sequence[PathLike]) -> list[Path]:
    several = [pictures] if isinstance(pictures, str | os.PathLike) else pictures
    return [as_path(each, "a picture") for each in several]
