"""How did a run go, and what did its net learn? One page for people: everything in one file, no request to any host.

page.html is the page, filled in with autoescape; page.css and page.js are put into it. A content security policy
lets that one script run and nothing be fetched. What is missing (the store, the net, the summary) is said on the page.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from convnet import __version__, device
from convnet.errors import ConvnetError, Interrupted, UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic
from convnet.io.signals import Stop
from convnet.progress import SILENT, Progress
from convnet.report import chart, findings, record
from convnet.report.findings import PICTURES, Asked
from convnet.report.record import Record
from convnet.visualize.labels import class_names, first_names, printable

NAME = "report.html"  # in a run's folder
LISTED = 200  # pictures that were left out, by name


def report(
    run: atomic.PathLike,
    out: atomic.PathLike | None = None,
    *,
    store: Path | None = None,
    names: Path | None = None,
    pictures: int = PICTURES,
    place: str = "auto",
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Path:
    """Writes the page of the run in a folder, to `out` or report.html there; returns where.

    store: where the run's store is now, if it moved. names: a file with classes' names for people. pictures: how many
    of the test or validation pictures are looked at; the errors on top are the run's own, of all. place: the device, as
    `device.choose` takes it. What is missing is said on the page, and to `progress`.

    Raises: UsageError when the folder holds no run; DataError when `names` can't be read; Interrupted; DiskError.
    """
    if pictures < 1:
        raise UsageError(f"--pictures {pictures}: at least 1 must be looked at")
    run = atomic.as_path(run, "the run's folder")
    target = run / NAME if out is None else atomic.as_path(out, "out")
    told = record.read(run, store)
    page: dict[str, Any] = {
        "title": printable(run.resolve().name),
        "figures": attempt(told, "the errors", lambda: record.figures(told)),
        "facts": attempt(told, "the summary", lambda: record.facts(told)),
        "choices": record.choices(told),
        "charts": [] if told.curves is None else chart.charts(told.curves),
        "left_out": record.left_out(told),
        "listed": LISTED,
        "version": __version__,
        "found": None,
        "kernels": [],
    }
    if told.checkpoint is not None:
        page |= _look(told, names, pictures, place, progress, stop)
    page["missing"] = told.missing
    atomic.write_atomic(target, _render(page).encode(errors="replace"))
    for text in told.missing:
        progress.warn(f"the page lacks {text}")
    return target


def _look(
    told: Record, names: Path | None, pictures: int, place: str, progress: Progress, stop: Stop | None
) -> dict[str, Any]:
    """The sections for which the net is needed, and of them those for which its pictures are."""
    assert told.checkpoint is not None
    kept = told.checkpoint
    called = first_names(class_names(kept.classes, names))
    net = TrainedNet.of(kept, device.choose("fp32", place))
    made: dict[str, Any] = {"kernels": attempt(told, "the kernels", lambda: findings.kernels(net.net))}
    if told.store is None:
        return made
    try:
        store = told.store.with_labels_of(kept.classes, "the net")
        split, ids, total, train_ids = findings.pictures_of_run(kept.recipe, store, pictures)
        asked = Asked(
            net,
            replace(net, device=device.choose("auto", place)),
            called,
            split,
            ids,
            total,
            told.store.split("train"),
            train_ids,
        )
        found = findings.ask(asked, progress, stop)
        made["found"] = _sections(asked, found, progress, stop)
    except Interrupted:
        raise
    except ConvnetError as error:
        told.missing.append(f"what the net says of pictures: {error}")
    return made


def _sections(asked: Asked, found: Any, progress: Progress, stop: Stop | None) -> dict[str, Any]:
    return {
        "split": asked.tested.name,
        "n": len(asked.ids),
        "total": asked.total,
        "rules": findings.rules(asked),
        "panels": findings.panels(asked, found.scores),
        "mistakes": findings.mistakes(asked, found),
        "n_mistakes": len(found.mistakes),
        "n_doubts": len(found.doubts),
        "pairs": findings.pairs(asked, found),
        "table": findings.table(asked, found),
        "twins": findings.twins(asked, found),
        "n_twins": len(found.twins or ()),
        "nearest": findings.nearest(asked, found.scores, progress, stop),
        "matrix": {"names": asked.names, "entries": found.scores.confused().tolist()},
    }


def attempt(told: Record, what: str, tell: Callable[[], list[Any]]) -> list[Any]:
    """What `tell` gives; nothing if the run's files don't hold it, and that is said."""
    try:
        return tell()
    except (ConvnetError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        told.missing.append(f"{what}: {type(error).__name__}: {error}")
        return []


def _render(page: dict[str, Any]) -> str:
    folder = resources("convnet.report")
    parts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    environment = Environment(
        loader=DictLoader(parts),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(parts["page.js"].encode()).digest()).decode()
    return environment.get_template("page.html").render(
        **page, css=Markup(parts["page.css"]), js=Markup(parts["page.js"]), script=f"'sha256-{digest}'"
    )


def _inert(value: Any) -> Any:
    """Text without control characters; what is markup already is ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


__all__ = ["NAME", "PICTURES", "report"]
