"""Weights that a net begins with from another checkpoint: each tensor loaded, missing or unexpected, and why.

From its own net it loads all that fits: to go on with other classes, or with pictures of another size. From another net
it loads the layers that its paper takes from there (`Net.starts`: VGG's B to E from a trained A). All else keeps the
recipe's initial values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from convnet import checkpoint
from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.evaluation.trained_net import checkpoint_at
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.nets.describe import own_name
from convnet.nets.layers import Net
from convnet.recipe import Recipe

STORED = {"loaded": "taken", "missing": "fresh", "unexpected": "left_over"}  # what checkpoints call them


@dataclass(frozen=True)
class LoadReport:
    """What a net began with.

    file        the checkpoint's name
    sha256      of that file
    net         the net that it holds
    loaded      names of the tensors that were copied, in the order of the net
    missing     the net's other tensors, and why they keep their initial values
    unexpected  the checkpoint's other tensors, and why they were not loaded
    warnings    what the loaded weights were not trained for
    """

    file: str
    sha256: str
    net: str
    loaded: tuple[str, ...]
    missing: Mapping[str, str]
    unexpected: Mapping[str, str]
    warnings: tuple[str, ...]

    def to_dict(self) -> Json:
        return {STORED.get(name, name): value for name, value in asdict(self).items()}

    def lines(self) -> Iterator[str]:
        """The report for a person: every tensor by its name, those with one reason together."""
        counts = f"{len(self.loaded)} tensors loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        yield f"begins with {self.file} ({self.net}, sha256 {self.sha256}): {counts}"
        yield f"loaded: {', '.join(self.loaded)}"
        for title, reasons in (("missing", self.missing), ("unexpected", self.unexpected)):
            for reason in dict.fromkeys(reasons.values()):
                yield f"{title}, as {reason}: {', '.join(name for name in reasons if reasons[name] == reason)}"


def init_from(net: Net, recipe: Recipe, classes: tuple[str, ...], path: Path) -> LoadReport:
    """Copies into `recipe`'s fresh net, on the CPU, what it may begin with from the checkpoint or run at `path`.

    classes: those of the net; what belongs to the classes of the checkpoint is loaded only where they are the same.

    Raises: DataError for a damaged file; UsageError when it holds a net with which this one doesn't begin, or when
    nothing of it fits.
    """
    path = checkpoint_at(path)
    sha256, source = atomic.sha256_file(path), checkpoint.load(path)
    here, there = own_name(recipe.net), own_name(source.recipe.net)
    if there != here and there not in net.starts:
        known = " or ".join([here, *net.starts])
        raise UsageError(f"{path} holds the net {there}; {here} can begin with a trained {known}: choose another")
    layers, imported = net.starts.get(there), source.provenance.get("imported")
    untrained = imported.get("missing", ()) if isinstance(imported, dict) else ()
    loaded, missing = [], {}
    for name, own in net.state_dict().items():
        reason = _why_not(name, own, source.weights.get(name), layers, f"{path.name} ({there})")
        if not reason and name in untrained:
            reason = f"{path.name} has initial values there: the file that it was imported from had none"
        if classes != source.classes and net.is_of_classes(name):
            reason = f"{path.name} has other classes"
        if reason:
            missing[name] = reason
            continue
        with torch.no_grad():
            own.copy_(source.weights[name])
        loaded.append(name)
    if not loaded:
        raise UsageError(f"{path}: none of its tensors fits {here}, as {next(iter(missing.values()))}")
    unexpected = {name: missing.get(name, f"{here} has none") for name in source.weights if name not in loaded}
    return LoadReport(path.name, sha256, there, tuple(loaded), missing, unexpected, _warnings(recipe, source, path))


def _why_not(name: str, own: Tensor, other: Tensor | None, layers: tuple[str, ...] | None, source: str) -> str:
    """Why a tensor is not loaded; "" when it is. layers: those that may be, None for all."""
    if other is None:
        return f"{source} has none"
    if layers is not None and name.rpartition(".")[0] not in layers:
        return f"only {', '.join(layers)} are loaded from {source}"
    if (own.shape, own.dtype) != (other.shape, other.dtype):
        shapes = [" x ".join(map(str, tensor.shape)) for tensor in (other, own)]
        return f"{source} has another shape: {shapes[0]}, not {shapes[1]}"
    return ""


def _warnings(recipe: Recipe, source: Checkpoint, path: Path) -> tuple[str, ...]:
    """What is done to pixels must be what the weights learned from; the mean's own numbers may differ."""
    there = source.preprocessing
    pairs = {
        "channels": (there.channels, recipe.channels),
        "mean": ("none" if there.mean is None else "subtracted", "none" if recipe.mean == "none" else "subtracted"),
        "scale": (there.scale, recipe.scale),
        "offset": (there.offset, recipe.offset),
    }
    return tuple(
        f"the pixels' {name} was {theirs} where {path.name} was trained, and is {ours} in recipe {recipe.name}: its "
        f"weights fit the former; change it with --set {name}=..."
        for name, (theirs, ours) in pairs.items()
        if theirs != ours
    )
