"""How did training go? Loss and errors by epoch, of one run or several, from the record that each keeps of itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError, UsageError
from convnet.training import metrics_log
from convnet.visualize import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

RECORD = "metrics.jsonl"  # in a run's folder
COLUMNS = ("epoch", "lr", "train_loss", "train_error", "val_loss", "val_top1_error", "val_top5_error")
LETTERS = 24  # of a run's name


@dataclass(frozen=True, eq=False)
class Curves:
    """A run epoch by epoch: int64 (E,) epochs and float64 (E,) each of lr, losses (nats) and error rates (0..1).

    NaN where an epoch has none, as without validation pictures. The training's are means over the epoch while the net
    learns, of augmented pictures with dropout; the validation's are the net's at the epoch's end.
    """

    name: str
    epochs: NDArray[np.int64]
    lr: NDArray[np.float64]
    train_loss: NDArray[np.float64]
    train_error: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    val_top1_error: NDArray[np.float64]
    val_top5_error: NDArray[np.float64]

    def lines(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """{what: {name of a line: values}}, of losses and of errors; a line without a finite value isn't there."""
        losses = {"training": self.train_loss, "validation": self.val_loss}
        errors = {"training": self.train_error, "validation": self.val_top1_error}
        errors["validation, top 5"] = self.val_top5_error
        return {
            what: {name: values for name, values in lines.items() if np.isfinite(values).any()}
            for what, lines in (("loss, nats", losses), ("error", errors))
        }

    def lr_changes(self) -> list[tuple[int, float]]:
        """(epoch, rate) for each epoch that is the first with a new learning rate; the run's first doesn't count."""
        pairs = zip(self.lr[:-1], self.lr[1:], self.epochs[1:], strict=True)
        return [(int(epoch), float(new)) for old, new, epoch in pairs if new != old]


def curves(run: Path) -> Curves:
    """The curves of a run's folder, named as the folder.

    Raises: UsageError for a folder without a record; DataError for a record without a finished epoch, or a damaged one.
    """
    path = run / RECORD
    if not path.is_file():
        raise UsageError(f"{run}: no {RECORD} in it; name a run's folder, as convnet train --out makes it")
    rows = [row for row in metrics_log.read(path) if row.get("kind") == "epoch"]
    if not rows:
        raise DataError(f"{path}: no epoch has ended yet")
    epochs, *columns = (np.array([_number(path, row, name) for row in rows]) for name in COLUMNS)
    if not (np.isfinite(epochs).all() and (np.diff(epochs) > 0).all()):
        raise DataError(f"{path}: the epochs do not follow each other")
    return Curves(run.resolve().name, epochs.astype(np.int64), *columns)


def draw_curves(runs: Sequence[Curves]) -> "Figure":
    """One run: loss and errors, changes of the learning rate as lines. Several: figure 1's form, a line for each run.

    Paper: AlexNet figure 1 (training error by epoch, of two nets).
    """
    return _draw_one(runs[0]) if len(runs) == 1 else _draw_several(runs)


def _draw_one(run: Curves) -> "Figure":
    colours = {"training": plot.COLOURS[0], "validation": plot.COLOURS[5], "validation, top 5": plot.COLOURS[2]}
    with plot.figure(7.0, 2.9) as fig:
        for axes, (title, lines) in zip(fig.subplots(1, 2), run.lines().items(), strict=True):
            ends = []
            for name, values in lines.items():
                _line(axes, run.epochs, values, colours[name])
                ends.append((float(values[np.isfinite(values)][-1]), name, colours[name]))
            _finish(axes, title, share=title == "error")
            plot.name_ends(axes, ends, 2.0)
            for epoch, rate in run.lr_changes():
                axes.axvline(epoch - 0.5, color=plot.FAINT, linewidth=0.8, linestyle=":", zorder=0)
                place = axes.get_xaxis_transform()
                axes.text(epoch - 0.4, 1, f"lr {rate:g}", transform=place, rotation=90, va="top", fontsize=6)
        plot.note(fig, f"{plot.shortened(run.name, 60)}. Training: the mean over each epoch, while the net learned.")
    return fig


def _draw_several(runs: Sequence[Curves]) -> "Figure":
    validated = any(np.isfinite(run.val_top1_error).any() for run in runs)
    with plot.figure(7.0 if validated else 4.5, 3.0 + 0.2 * (len(runs) // 4)) as fig:
        places = fig.subplots(1, 1 + validated, squeeze=False, sharey=True)[0]
        kinds = {"train_error": "training error", "val_top1_error": "validation error"}
        for axes, (kind, title) in zip(places, kinds.items(), strict=False):
            for i, run in enumerate(runs):
                values, colour = getattr(run, kind), plot.COLOURS[i % len(plot.COLOURS)]
                style, name = ("-", "--", ":", "-.")[i % 4], plot.in_legend(plot.shortened(run.name, LETTERS))
                _line(axes, run.epochs, values, colour).set(linestyle=style, label=name)
                changes = np.isin(run.epochs, [epoch for epoch, _ in run.lr_changes()])
                axes.plot(run.epochs[changes], values[changes], "v", color=colour, markersize=4)
            _finish(axes, title, share=True)
        lines, names = places[0].get_legend_handles_labels()
        fig.legend(lines, names, loc="outside upper left", ncols=4 if validated else 2, handlelength=2.6)
        changed = any(run.lr_changes() for run in runs)
        plot.note(fig, "Triangle: the first epoch with a new learning rate." if changed else "")
    return fig


def _line(axes: "Axes", epochs: NDArray[np.int64], values: NDArray[np.float64], colour: str) -> "Line2D":
    """A line that is broken where a value isn't finite; a single epoch is a dot."""
    shown = np.where(np.isfinite(values), values, np.nan)
    return axes.plot(epochs, shown, color=colour, marker="o" if len(epochs) == 1 else "")[0]


def _finish(axes: "Axes", title: str, share: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_title(title, loc="left")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _number(path: Path, row: metrics_log.Row, name: str) -> float:
    value = row.get(name)
    try:
        return math.nan if value is None else float(value)
    except (ValueError, OverflowError):
        raise DataError(f"{path}: {name} is {value!r}, no number") from None
