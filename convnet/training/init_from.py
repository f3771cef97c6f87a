"""What may a net begin with from another checkpoint? Each tensor is taken, fresh or left over, and the reason is told.

From its own net it takes all that fits: to go on with other classes, or with pictures of another size. From another net
it takes the layers that its paper takes from there (`Net.starts`: VGG's B to E from a trained A). All else keeps the
recipe's initial values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.evaluation.trained_net import checkpoint_at
from convnet.io import atomic
from convnet.nets.describe import own_name
from convnet.nets.layers import Net
from convnet.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """What a net began with.

    file       the checkpoint's name
    sha256     of that file
    net        the net that it holds
    taken      names of the tensors that were copied, in the order of the net
    fresh      the net's other tensors, and why they keep their initial values
    left_over  the checkpoint's other tensors, and why they were not taken
    warnings   what the taken weights were not trained for
    """

    file: str
    sha256: str
    net: str
    taken: tuple[str, ...]
    fresh: Mapping[str, str]
    left_over: Mapping[str, str]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report for a person: every tensor by its name, those with one reason together."""
        counts = f"{len(self.taken)} tensors taken, {len(self.fresh)} fresh, {len(self.left_over)} left over"
        yield f"begins with {self.file} ({self.net}, sha256 {self.sha256}): {counts}"
        yield f"taken: {', '.join(self.taken)}"
        for title, reasons in (("fresh", self.fresh), ("left over", self.left_over)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name, own in reasons.items() if own == reason]
                yield f"{title}, as {reason}: {', '.join(names)}"


def take_over(net: Net, recipe: Recipe, classes: tuple[str, ...], path: Path) -> Start:
    """Copies into `recipe`'s fresh net, on the CPU, what it may begin with from the checkpoint or run at `path`.

    classes: those of the net; what belongs to the classes of the checkpoint is taken only where they are the same.

    Raises: DataError for a damaged file; UsageError when it holds a net with which this one doesn't begin, or when
    nothing of it fits.
    """
    path = checkpoint_at(path)
    sha256, kept = atomic.sha256_file(path), checkpoint.load(path)
    here, there = own_name(recipe.net), own_name(kept.recipe.net)
    if there != here and there not in net.starts:
        known = " or ".join([here, *net.starts])
        raise UsageError(f"{path} holds the net {there}; {here} can begin with a trained {known}: choose another")
    lent = net.starts.get(there)
    taken, fresh = [], {}
    for name, own in net.state_dict().items():
        reason = _why_not(name, own, kept.weights.get(name), lent, f"{path.name} ({there})")
        if classes != kept.classes and net.is_of_classes(name):
            reason = f"{path.name} has other classes"
        if reason:
            fresh[name] = reason
            continue
        with torch.no_grad():
            own.copy_(kept.weights[name])
        taken.append(name)
    if not taken:
        raise UsageError(f"{path}: none of its tensors fits {here}, as {next(iter(fresh.values()))}")
    left_over = {name: fresh.get(name, f"{here} has none") for name in kept.weights if name not in taken}
    return Start(path.name, sha256, there, tuple(taken), fresh, left_over, _warnings(recipe, kept, path))


def _why_not(name: str, own: Tensor, other: Tensor | None, lent: tuple[str, ...] | None, whose: str) -> str:
    """Why a tensor is not taken; "" when it is. lent: the layers that may be, None for all."""
    if other is None:
        return f"{whose} has none"
    if lent is not None and name.rpartition(".")[0] not in lent:
        return f"only {', '.join(lent)} are taken from {whose}"
    if (own.shape, own.dtype) != (other.shape, other.dtype):
        return f"{whose} has another shape: {_shape(other)}, not {_shape(own)}"
    return ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _warnings(recipe: Recipe, kept: Checkpoint, path: Path) -> tuple[str, ...]:
    """What is done to pixels must be what the weights learned from; the mean's own numbers may differ."""
    done = kept.preprocessing
    pairs = {
        "channels": (done.channels, recipe.channels),
        "mean": ("none" if done.mean is None else "subtracted", "none" if recipe.mean == "none" else "subtracted"),
        "scale": (done.scale, recipe.scale),
        "offset": (done.offset, recipe.offset),
    }
    return tuple(
        f"the pixels' {name} was {theirs} where {path.name} was trained, and is {ours} in recipe {recipe.name}: its "
        f"weights fit the former; change it with --set {name}=..."
        for name, (theirs, ours) in pairs.items()
        if theirs != ours
    )
