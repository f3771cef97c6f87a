"""How do the runs in a folder go, now? What each has written of itself so far, read again when its files change."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from convnet.checkpoint import BEST, LAST
from convnet.errors import ConvnetError
from convnet.io import atomic
from convnet.io.strict_json import Json, unseal
from convnet.recipe import load_recipe
from convnet.report import NAME as REPORT
from convnet.report.record import FILES
from convnet.serve.desk import Gone
from convnet.training import metrics_log
from convnet.training.run import METRICS, TIMING
from convnet.visualize.curves import COLUMNS
from convnet.visualize.labels import printable

RUNS = 200  # of a folder that are told of
EPOCHS = 1000  # points of a curve


class Runs:
    """A run, or the runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: dict[str, tuple[tuple[tuple[int, int], ...], Json]] = {}

    def paths(self) -> dict[str, Path]:
        """{name: the run's folder}, by name; the latest RUNS of them."""
        if is_run(self.folder):
            return {printable(self.folder.resolve().name): self.folder}
        try:
            runs = [each for each in self.folder.iterdir() if is_run(each)]
        except OSError:
            return {}
        latest = sorted(runs, key=_changed)[-RUNS:]
        return {printable(run.name): run for run in sorted(latest)}

    def path(self, name: str) -> Path:
        """Raises: Gone."""
        paths = self.paths()
        if name not in paths:
            raise Gone(f"no run {printable(name)!r} is there")
        return paths[name]

    def report(self, name: str) -> bytes:
        """Its page. Raises: Gone when there is none."""
        try:
            return atomic.read(self.path(name) / REPORT, metrics_log.LARGEST)
        except OSError:
            raise Gone(f"{printable(name)} has no report yet; convnet report makes it") from None

    def all(self) -> list[Json]:
        """What each run says of itself."""
        paths = self.paths()
        rows = [self._row(name, path) for name, path in paths.items()]
        self._told = {name: told for name, told in self._told.items() if name in paths}
        return rows

    def _row(self, name: str, path: Path) -> Json:
        stamp = tuple(_changed(path / each) for each in (*FILES, BEST, LAST, REPORT))
        if name not in self._told or self._told[name][0] != stamp:
            try:
                self._told[name] = stamp, _read(name, path)
            except ConvnetError as error:  # it is being written, or is damaged
                self._told[name] = stamp, {"name": name, "error": str(error), "curves": {}}
        row = dict(self._told[name][1])
        if "error" not in row:
            row["state"] = "done" if row["summary"] else "running" if is_held(path) else "stopped"
        return row


def is_run(folder: Path) -> bool:
    return any((folder / each).is_file() for each in (*FILES, BEST, LAST))


def checkpoint_of(run: Path) -> Path | None:
    """Its best net, or its last."""
    return next((run / each for each in (BEST, LAST) if (run / each).is_file()), None)


def version_of(run: Path) -> str | None:
    """Another text when its net is another one; None while there is none."""
    path = checkpoint_of(run)
    return None if path is None else "-".join(map(str, (path.name, *_changed(path))))


def is_held(run: Path) -> bool:
    """Whether a living process trains in it, by the folder's lock (`atomic.lock`), which is only read: to take it for a
    moment could keep a training from beginning."""
    try:
        owner = re.match(r"process (\d+) ", atomic.read(run / ".lock", atomic.TEXT).decode(errors="replace"))
        if owner:
            os.kill(int(owner[1]), 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    return owner is not None


def _read(name: str, path: Path) -> Json:
    """Raises: ConvnetError for files that are damaged."""
    rows = metrics_log.read(path / METRICS)
    epochs, steps = ([row for row in rows if row.get("kind") == kind] for kind in ("epoch", "step"))
    recipe = load_recipe(path / "recipe.toml") if (path / "recipe.toml").is_file() else None
    last = rows[-1] if rows else {}
    seconds = [_number(row.get("seconds")) or 0.0 for row in metrics_log.read(path / TIMING)]
    n_epochs = recipe.epochs if recipe else None
    left = (n_epochs - len(epochs)) * sum(seconds) / len(seconds) if n_epochs and seconds else None
    return {
        "name": name,
        "net": recipe.net if recipe else None,
        "epoch": len(epochs),
        "epochs": n_epochs,
        "step": last.get("step"),
        "lr": _number(last.get("lr")),
        "loss": _number((steps or [last])[-1].get("loss")),
        "seconds": sum(seconds),
        "seconds_left": left,
        "summary": _summary(path),
        "has_net": checkpoint_of(path) is not None,
        "net_version": version_of(path),
        "has_report": (path / REPORT).is_file(),
        "curves": {column: _thinned(_number(row.get(column)) for row in epochs) for column in COLUMNS},
        "steps": {key: _thinned(_number(row.get(key)) for row in steps) for key in ("step", "loss")},
    }


def _summary(path: Path) -> Json | None:
    """The errors with which a run has ended; None while it hasn't."""
    try:
        summary = unseal(atomic.read(path / "summary.json", atomic.TEXT))
        scores = {name: summary.get(name) for name in ("validation", "test")}
        keys = ("n", "top1_error", "top5_error")
        return {name: {key: each[key] for key in keys} for name, each in scores.items() if isinstance(each, dict)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        return {}


def _thinned(values: Iterable[float | None]) -> list[float | None]:
    """At most EPOCHS of them, the last one always."""
    all_of_them = list(values)
    step = -(-len(all_of_them) // EPOCHS) or 1
    return all_of_them[::-1][::step][::-1]


def _number(value: metrics_log.Value) -> float | None:
    """A number that JSON can hold."""
    return float(value) if isinstance(value, int | float) else None


def _changed(path: Path) -> tuple[int, int]:
    """Another one when a file was written; the latest is the largest."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
