"""How did a run go, and what did its net learn? One page for people: everything in one file, no request to any host.

page.html is the page, filled in with autoescape; page.css and page.js are put into it. A content security policy
lets that one script run and nothing be fetched. What is missing (the store, the net, the summary) is said on the page.
"""

import base64
import hashlib
from dataclasses import replace
from importlib.resources import files as resources
from importlib.resources.abc import Traversable
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from convnet import __version__
from convnet.checkpoint import Checkpoint
from convnet.data.store import Store
from convnet.device import choose
from convnet.errors import UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress
from convnet.report import chart, findings
from convnet.report.findings import PICTURES, Subject
from convnet.report.record import choices, facts, figures, left_out, read
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
    device: str = "auto",
    progress: Progress = SILENT,
) -> Path:
    """Writes the page of the run in a folder, to `out` or report.html there; returns where.

    store: where the run's store is now, if it moved. names: a file with classes' names for people. pictures: how many
    of the test or validation pictures are looked at; the errors on top are the run's own, of all. device: as
    `device.choose` takes it. What is missing is said on the page, and to `progress`.

    Raises: UsageError when the folder holds no run; DataError when `names` can't be read; DiskError.
    """
    if pictures < 1:
        raise UsageError(f"--pictures {pictures}: at least 1 must be looked at")
    run = atomic.as_path(run, "the run's folder")
    target = run / NAME if out is None else atomic.as_path(out, "out")
    record = read(run, store)
    page: Json = {
        "title": printable(run.resolve().name),
        "figures": record.attempt("the errors", lambda: figures(record)),
        "facts": record.attempt("the summary", lambda: facts(record)) or [],
        "choices": choices(record),
        "charts": [] if record.curves is None else chart.charts(record.curves),
        "left_out": left_out(record),
        "listed": LISTED,
        "sections": None,
        "kernels": None,
    }
    if (checkpoint := record.checkpoint) is not None:
        classes = first_names(class_names(checkpoint.classes, names))
        net = TrainedNet.of(checkpoint, choose("fp32", device))
        page["kernels"] = record.attempt("the kernels", lambda: findings.kernels(net.net))
        if (opened := record.store) is not None:
            quick = replace(net, device=choose("auto", device))
            page["sections"] = record.attempt(
                "what the net says of pictures",
                lambda: findings.sections(_subject(checkpoint, net, quick, classes, opened, pictures), progress),
            )
    page["missing"] = record.missing
    atomic.write_atomic(target, render("page.html", page).encode(errors="replace"))
    for text in record.missing:
        progress.warn(f"the page lacks {text}")
    return target


def _subject(
    checkpoint: Checkpoint, net: TrainedNet, quick: TrainedNet, classes: tuple[str, ...], opened: Store, pictures: int
) -> Subject:
    store = opened.with_labels_of(checkpoint.classes, "the net")
    split, ids, total, train_ids = findings.pictures_of_run(checkpoint.recipe, store, pictures)
    return Subject(net, quick, classes, split, ids, total, opened.split("train"), train_ids)


def render(name: str, page: Json, folder: Traversable | None = None, *, is_alone: bool = True) -> str:
    """A page by the template of that name, in this folder or another; all have one head, head.html, and one style.

    is_alone: everything is in the one file; else style and scripts are served beside it.
    """
    ours = resources("convnet.report")
    parts = {each: ours.joinpath(each).read_text(encoding="utf-8") for each in ("head.html", "page.css", "page.js")}
    parts[name] = (folder or ours).joinpath(name).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader(parts),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(parts["page.js"].encode()).digest()).decode()
    return environment.get_template(name).render(
        **page,
        css=Markup(parts["page.css"] if is_alone else ""),
        js=Markup(parts["page.js"]),
        script=f"'sha256-{digest}'" if "{{ js }}" in parts[name] else "",
        version=__version__,
    )


def _inert(value: object) -> object:
    """Text without control characters; what is markup already is ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


__all__ = ["NAME", "PICTURES", "render", "report"]
