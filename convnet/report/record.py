"""What does a run's folder say of itself? Its result, recipe, environment and curves, as far as they are there.

Nothing here is needed: what is missing or damaged is named in `missing`, and the rest is told.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnet.checkpoint import BEST, LAST, Checkpoint, load
from convnet.data.store import Store, is_store
from convnet.errors import ConvnetError, UsageError
from convnet.evaluation.metrics import interval
from convnet.io import atomic
from convnet.io.strict_json import unseal
from convnet.progress import clock
from convnet.recipe import Recipe, load_recipe, to_dict
from convnet.training.run import METRICS, TIMING
from convnet.visualize.curves import Curves, curves

FILES = (METRICS, TIMING, "summary.json", "environment.json", "recipe.toml")  # what `convnet train` leaves


@dataclass
class Record:
    """A run: what its files hold, None where they hold nothing. missing: what a reader should know is not there."""

    run: Path
    summary: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    recipe: Recipe | None = None
    curves: Curves | None = None
    checkpoint: Checkpoint | None = None
    file: Path | None = None  # of the checkpoint
    store: Store | None = None
    missing: list[str] = field(default_factory=list)


def read(run: Path, store: Path | None = None) -> Record:
    """The record of the run in a folder. store: where its store is now; None is where it was.

    Raises: UsageError when the folder holds no run.
    """
    if not any((run / name).is_file() for name in (*FILES, BEST, LAST)):
        raise UsageError(f"{run} holds no run (none of {', '.join(FILES)}); name a folder that convnet train made")
    record = Record(run)
    record.summary = _json(record, "summary.json", "the run has not finished")
    record.environment = _json(record, "environment.json", "hardware and versions are those of the net")
    try:
        record.recipe = load_recipe(run / "recipe.toml")
    except ConvnetError as error:
        record.missing.append(f"the recipe: {error}")
    try:
        record.curves = curves(run)
    except ConvnetError as error:
        record.missing.append(f"the curves: {error}")
    _read_checkpoint(record)
    if record.checkpoint is not None:  # whose every byte has been checked
        record.recipe = record.checkpoint.recipe
        record.environment = record.environment or dict(record.checkpoint.provenance)
    _open_store(record, store)
    return record


def _json(record: Record, name: str, meaning: str) -> dict[str, Any] | None:
    path = record.run / name
    try:
        return unseal(atomic.read(path, atomic.TEXT))
    except FileNotFoundError:
        record.missing.append(f"there is no {name}: {meaning}")
    except (OSError, ValueError) as error:
        record.missing.append(f"{path} is damaged, {meaning}: {error}")
    return None


def _read_checkpoint(record: Record) -> None:
    """The run's best net; the last where there is no best, as without validation."""
    file = next((record.run / name for name in (BEST, LAST) if (record.run / name).is_file()), None)
    if file is None:
        record.missing.append(f"the net: {record.run} holds neither {BEST} nor {LAST}, so nothing can be asked of it")
        return
    try:
        record.checkpoint, record.file = load(file), file
    except ConvnetError as error:
        record.missing.append(f"the net: {error}")


def _open_store(record: Record, given: Path | None) -> None:
    """The store that the run was trained on; another one at its place is not shown as if it were."""
    noted = (record.environment or {}).get("store")
    path = given or (Path(noted) if isinstance(noted, str) else None)
    if path is None:
        record.missing.append("the pictures: the run does not say which store it was trained on; name it with --store")
        return
    if not is_store(path):
        record.missing.append(f"the pictures: the store {path} is not there; if it moved, name it with --store")
        return
    try:
        store = Store(path)
    except ConvnetError as error:
        record.missing.append(f"the pictures: {error}")
        return
    wanted = (record.environment or {}).get("store_sha256")
    if wanted is not None and store.identity != wanted:
        record.missing.append(f"the pictures: {path} is another store than the one that the run was trained on")
        return
    record.store = store


# for people


def figures(record: Record) -> list[dict[str, Any]]:
    """Each tested split's title, n, errors and their 95 % intervals, the most honest first."""
    found = []
    for name, title in (("test", "test"), ("validation", "validation; it chose the net")):
        scores = (record.summary or {}).get(name)
        if not isinstance(scores, dict):
            continue
        n, errors = int(scores["n"]), (float(scores["top1_error"]), float(scores["top5_error"]))
        rows = [{"rate": rate, "low": low, "high": high} for rate in errors for low, high in [interval(rate, n)]]
        found.append({"name": name, "title": title, "n": n, "top1": rows[0], "top5": rows[1], "loss": scores["loss"]})
    return found


def facts(record: Record) -> list[tuple[str, str]]:
    """What the summary says beside the errors: (name, value)."""
    rows: list[tuple[str, str]] = []
    summary, environment, store = record.summary or {}, record.environment or {}, record.store
    for name, title in (("net", "net"), ("recipe", "recipe")):
        value = summary.get(name) or getattr(record.recipe, {"net": "net", "recipe": "name"}[name], None)
        if value:
            rows.append((title, str(value)))
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
        planned = f" of {record.recipe.epochs}" if record.recipe else ""
        rows.append(("training", f"{int(record.curves.epochs[-1])}{planned} epochs so far"))
    for name, title in (("device", "hardware"), ("threads", "threads"), ("platform", "system")):
        if environment.get(name) is not None:
            rows.append((title, str(environment[name])))
    versions = [f"{name} {environment[name]}" for name in ("convnet", "torch", "python") if environment.get(name)]
    if versions:
        rows.append(("versions", ", ".join(versions)))
    for name, title in (("store", "store"), ("store_sha256", "its sha256"), ("command", "command")):
        if environment.get(name):
            rows.append((title, str(environment[name])))
    return rows


def choices(record: Record) -> list[tuple[str, str]]:
    """The recipe, field by field."""
    if record.recipe is None:
        return []
    rows = []
    for name, value in to_dict(record.recipe).items():
        if isinstance(value, dict):
            rows += [(f"{name}.{option}", _text(each)) for option, each in value.items()]
        else:
            rows.append((name, _text(value)))
    return rows


def left_out(record: Record) -> list[dict[str, str]]:
    """What the store's preparation skipped, could not use, or found odd: status, key, reason."""
    if record.store is None:
        return []
    try:
        return record.store.left_out()
    except ConvnetError as error:
        record.missing.append(f"the list of pictures that were left out: {error}")
        return []


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
