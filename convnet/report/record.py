"""What does a run's folder say of itself? Its result, recipe, environment and curves, as far as they are there.

Nothing here is needed: what is missing or damaged is named in `missing`, and the rest is told.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from convnet.checkpoint import BEST, LAST, Checkpoint, load
from convnet.data.store import Store, is_store
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.metrics import interval
from convnet.io import atomic
from convnet.io.strict_json import Json, unseal
from convnet.progress import clock
from convnet.recipe import Recipe, load_recipe, to_dict
from convnet.training.run import METRICS, TIMING
from convnet.visualize.curves import Curves, curves

FILES = (METRICS, TIMING, "summary.json", "environment.json", "recipe.toml")  # what `convnet train` leaves
T = TypeVar("T")


@dataclass
class Record:
    """A run: what its files hold, None where they hold nothing. missing: what a reader should know is not there."""

    run: Path
    summary: Json | None = None
    environment: Json | None = None
    recipe: Recipe | None = None
    curves: Curves | None = None
    checkpoint: Checkpoint | None = None
    store: Store | None = None
    missing: list[str] = field(default_factory=list)

    def attempt(self, what: str, function: Callable[[], T]) -> T | None:
        """What the function returns; None if the run's files don't hold it, and `missing` says so."""
        try:
            return function()
        except ConvnetError as error:
            self.missing.append(f"{what}: {error}")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            self.missing.append(f"{what}: {type(error).__name__}: {error}")
        return None


def read(run: Path, store: Path | None = None) -> Record:
    """The record of the run in a folder. store: where its store is now; None is where it was.

    Raises: UsageError when the folder holds no run.
    """
    if not any((run / name).is_file() for name in (*FILES, BEST, LAST)):
        raise UsageError(f"{run} holds no run (none of {', '.join(FILES)}); name a folder that convnet train made")
    record = Record(run)
    record.summary = _json(record, "summary.json", "the run has not finished")
    record.environment = _json(record, "environment.json", "hardware and versions are those of the net")
    record.recipe = record.attempt("the recipe", lambda: load_recipe(run / "recipe.toml"))
    record.curves = record.attempt("the curves", lambda: curves(run))
    record.checkpoint = record.attempt("the net", lambda: _checkpoint(run))
    if record.checkpoint is not None:  # whose every byte has been checked
        record.recipe = record.checkpoint.recipe
        record.environment = record.environment or dict(record.checkpoint.provenance)
    record.store = record.attempt("the pictures", lambda: store_of(record.environment or {}, store))
    return record


def _json(record: Record, name: str, meaning: str) -> Json | None:
    path = record.run / name
    try:
        return unseal(atomic.read(path, atomic.TEXT))
    except FileNotFoundError:
        record.missing.append(f"there is no {name}: {meaning}")
    except (OSError, ValueError) as error:
        record.missing.append(f"{path} is damaged, {meaning}: {error}")
    return None


def _checkpoint(run: Path) -> Checkpoint:
    """The run's best net; the last where there is no best, as without validation."""
    for name in (BEST, LAST):
        if (run / name).is_file():
            return load(run / name)
    raise UsageError(f"{run} holds neither {BEST} nor {LAST}, so nothing can be asked of it")


def store_of(environment: Json, given: Path | None = None, advice: str = "name it with --store") -> Store:
    """The store that a run was trained on, or `given`; another one at its place is not shown as if it were.

    Raises: UsageError where it is not there, or another one.
    """
    path = environment.get("store") if given is None else given
    if not isinstance(path, str | Path):
        raise UsageError(f"the run does not say which store it was trained on; {advice}")
    if not is_store(Path(path)):
        raise UsageError(f"the store {path} is not there; if it moved, {advice}")
    store = Store(Path(path))
    if environment.get("store_sha256") not in (None, store.identity):
        raise UsageError(f"{path} is another store than the one that the run was trained on")
    return store


# for people


def figures(record: Record) -> list[Json]:
    """Each tested split's title, n, errors and their 95 % intervals, the most honest first."""
    rows = []
    for name, title in (("test", "test"), ("validation", "validation; it chose the net")):
        scores = (record.summary or {}).get(name)
        if not isinstance(scores, dict):
            continue
        n, row = int(scores["n"]), {"name": name, "title": title, "n": int(scores["n"])}
        for error in ("top1", "top5"):
            rate = float(scores[f"{error}_error"])
            low, high = interval(rate, n)
            row[error] = {"rate": rate, "low": low, "high": high}
        rows.append(row)
    return rows


def facts(record: Record) -> list[tuple[str, str]]:
    """What the summary says beside the errors: (name, value)."""
    summary, environment, recipe, store = record.summary or {}, record.environment or {}, record.recipe, record.store
    rows: list[tuple[str, object]] = [
        ("net", summary.get("net") or (recipe.net if recipe else None)),
        ("recipe", summary.get("recipe") or (recipe.name if recipe else None)),
    ]
    if "parameters" in summary:
        rows.append(("parameters", f"{summary['parameters']:,}"))
    if store is not None:
        rows.append(("pictures", store.describe()))
        rows.append(("source", f"{store.header['source']['name']} ({store.header['source']['kind']})"))
    if "epochs" in summary:
        best = f"; the net is that of epoch {summary['best_epoch']}" if "best_epoch" in summary else ""
        rows.append(("training", f"{summary['epochs']} epochs, {summary['steps']:,} steps{best}"))
        speed = f"{clock(summary['training_seconds'])}, {summary['pictures_per_second']:,.0f} pictures a second"
        rows.append(("time", speed))
    elif record.curves is not None:
        planned = f" of {recipe.epochs}" if recipe else ""
        rows.append(("training", f"{int(record.curves.epochs[-1])}{planned} epochs so far"))
    versions = [f"{name} {environment[name]}" for name in ("convnet", "torch", "python") if environment.get(name)]
    rows += [(title, environment.get(name)) for name, title in (("device", "hardware"), ("threads", "threads"))]
    rows += [("system", environment.get("platform")), ("versions", ", ".join(versions))]
    rows += [(title, environment.get(name)) for name, title in (("store", "store"), ("store_sha256", "its sha256"))]
    rows.append(("command", environment.get("command")))
    return [(title, str(value)) for title, value in rows if value]


def choices(record: Record) -> list[tuple[str, str]]:
    """The recipe, field by field."""
    rows = []
    for name, value in (to_dict(record.recipe) if record.recipe else {}).items():
        if isinstance(value, dict):
            rows += [(f"{name}.{option}", _text(setting)) for option, setting in value.items()]
        else:
            rows.append((name, _text(value)))
    return rows


def left_out(record: Record) -> list[dict[str, str]]:
    """What the store's preparation skipped, could not use, or found odd: status, key, reason."""
    store = record.store
    return record.attempt("the list of pictures that were left out", store.left_out) or [] if store else []


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
