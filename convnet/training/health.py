"""Does a net begin to learn? What goes wrong early is told in one line that names the setting to change.

What is looked at: the activations of a few pictures at a few of the first steps (dead units, activations that explode),
the loss of the first epoch (a rate that is too high), and that of the first epochs (a net that ignores its pictures).
"""

import json

import numpy as np
import torch
from torch import Tensor

from convnet.checkpoint import Position
from convnet.data.loader import Batch
from convnet.nets import evaluating, recipe_of
from convnet.progress import Progress
from convnet.training.data import Data
from convnet.training.run import Run

LOOKS = (0, 10, 100, 1000)  # steps before which activations are looked at
PICTURES = 32  # of a batch, that are looked at
DEAD = 0.95  # share of a layer's maps, or units, that are 0 for all of them at the last look; before it, all of them
FEW = 8  # maps; of a layer with fewer, or pictures, nothing is said
EXPLODED = 300  # times the pictures' root mean square, or 1
WORSE = 1.3  # times the loss of a net that ignores its pictures
STUCK = 0.985  # this near to the loss and the error of a net that ignores its pictures
STUCK_EPOCHS = range(2, 6)  # in which it is looked for,
LONG = 5000  # and in the first, if it has so many steps


class _Summaries(dict[str, Tensor]):
    """What a net fills with its stages: of each it keeps (root mean square, share of its maps that are 0), no more."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, Tensor] = {}

    def __setitem__(self, stage: str, x: Tensor) -> None:
        super().__setitem__(stage, x.new_empty(0))
        size = torch.linalg.vector_norm(x, dtype=torch.float32) / x.numel() ** 0.5
        alive = (x != 0).any(dim=[dim for dim in range(x.ndim) if dim != 1])
        dead = 1 - alive.float().mean() if x.shape[1] >= FEW <= len(x) else torch.zeros_like(size)
        self.stages[stage] = torch.stack([size, dead])


def look(run: Run, batch: Batch, progress: Progress) -> None:
    """Warns of units that are dead and of activations that explode, by some of the pictures of a batch."""
    if run.in_parts or not run.processes.is_first or not len(batch.images):
        return
    images, summaries = batch.images[: min(PICTURES, run.step.micro_batch or PICTURES)], _Summaries()
    with torch.no_grad(), evaluating(run.step.net), run.step.device.autocast():
        run.step.net(images, summaries)
    if run.recipe.loss == "rbf":  # whose outputs are squared distances
        summaries.stages.popitem()
    pixels = float(images.float().square().mean().sqrt())
    sizes = torch.stack([*summaries.stages.values()]).tolist()  # a device synchronisation
    step, lr = run.position.step, f"a lower rate (--set lr={run.recipe.lr / 10:g})"
    others = [f"--set init={init}" for init in run.net.inits if init != run.recipe.init] + ["--set scale=..."]
    cure = lr if step else f"other initial values, or smaller pixels ({', '.join(others)})"
    for stage, (size, dead) in zip(summaries.stages, sizes, strict=True):
        if not size <= EXPLODED * max(pixels, 1.0):
            _warn(run, progress, f"{stage} is {size:.3g} and the pictures {pixels:.3g} (root mean square): the "
                                 f"activations explode from layer to layer; try {cure}")  # fmt: skip
            return
        if dead >= (DEAD if step >= LOOKS[-1] else 1):
            _warn(run, progress, f"{dead:.0%} of {stage} is 0 for all of {len(images)} pictures: these units are dead, "
                                 f"and learn no more; try {cure}")  # fmt: skip
            return


def _warn(run: Run, progress: Progress, what: str) -> None:
    if not run.warned:
        progress.warn(f"after {run.position.step:,} steps {what}")
    run.warned = True


def check_epoch(run: Run, data: Data, epoch: Position, progress: Progress) -> None:
    """Warns when the loss of an epoch that has ended says that the rate is too high, or that nothing is learned."""
    if run.recipe.loss == "softmax" and epoch.epoch == 1 and run.processes.is_first:
        _warn_if_too_fast(run, data, progress)
    if epoch.epoch in STUCK_EPOCHS or (epoch.epoch == 1 and epoch.step >= LONG):
        _warn_if_stuck(run, data, epoch, progress)


def _ignorant(run: Run, data: Data) -> float:
    """The loss of a net that ignores its pictures and knows the classes' shares: their entropy, ln K if equal."""
    shares, smoothing = data.shares, run.recipe.label_smoothing
    if run.recipe.balance != "none":
        shares = (shares > 0) / (shares > 0).sum()
    shares = (1 - smoothing) * shares + smoothing / len(shares)
    return -float((shares[shares > 0] * np.log(shares[shares > 0])).sum()) * sum(run.net.loss_weights.values())


def _warn_if_too_fast(run: Run, data: Data, progress: Progress) -> None:
    """The median loss in the second half of the first epoch is above what a net has that learns nothing at all."""
    rows = [json.loads(line) for line in run.record.splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "step" and row["epoch"] == 1]
    late = losses[len(losses) // 2 :]
    loss, ignorant = float(np.median(late)), _ignorant(run, data)
    if len(losses) > 4 and loss > WORSE * max(ignorant, losses[0]):
        progress.warn(
            f"in the first epoch the loss rose from {losses[0]:.3g} to {loss:.3g} (a net that ignores its pictures has "
            f"{ignorant:.3g}): the rate is too high; try --set lr={run.recipe.lr / 10:g}"
        )


def _warn_if_stuck(run: Run, data: Data, epoch: Position, progress: Progress) -> None:
    """Says when a net still ignores its pictures."""
    loss, error = epoch.loss_sum / epoch.pictures, epoch.errors / epoch.pictures
    shares, entropy = data.shares, _ignorant(run, data)
    at_entropy = STUCK < loss / max(entropy, 1e-9) < 2 - STUCK
    late = run.recipe.loss == "rbf" and epoch.epoch == STUCK_EPOCHS[-1]  # whose loss falls long before the error does
    if not (at_entropy or late) or error < STUCK * (1 - shares.max()):
        return
    heads = sum(run.net.loss_weights.values())
    equal = shares.min() == shares.max() or run.recipe.balance != "none"
    what = f"ln {(shares > 0).sum()}" if equal else "the entropy of the classes"
    what = what if heads == 1 else f"{heads:g} times {what}"
    hint = "try another rate (--set lr=...)"
    small = recipe_of(run.recipe.net, len(data.train_ids))
    if small not in (recipe_of(run.recipe.net), run.recipe.name):
        hint = f"for so small a set there is --recipe {small} --net {run.recipe.net}; otherwise {hint}"
    epochs = f"{epoch.epoch} epochs" if epoch.epoch > 1 else "1 epoch"
    progress.warn(
        f"after {epochs} the training error is {error:.1%} and the loss {loss:.3f} ({what} is "
        f"{entropy:.3f}): the net ignores its pictures, it has not begun to learn; {hint}"
    )
