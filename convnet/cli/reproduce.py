"""The verb reproduce: its arguments and what it prints."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnet.cli.launch import typed
from convnet.cli.options import AsJson, Device, Quiet, output
from convnet.cli.progress_bar import plain, shown
from convnet.cli.verb import print_json, print_lines, stopping
from convnet.errors import UsageError

if TYPE_CHECKING:
    from convnet.data.sources import Source
    from convnet.results.reproduce import Plan


def reproduce(
    result: Annotated[str | None, typer.Argument(help="A result's name; without it all are listed.")] = None,
    data: Annotated[str | None, typer.Option(help="The pictures, as convnet prepare takes them.")] = None,
    out: Annotated[Path | None, output(help="The experiment's folder [results/RESULT-DATA].")] = None,
    seeds: Annotated[str | None, typer.Option(help="As 0..2 [the experiment's].")] = None,
    budget: Annotated[str | None, typer.Option(help="As 2h or 30m: fewer epochs of every net, and it is said.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look: data, nets, time and disk.")] = False,
    table: Annotated[bool, typer.Option("--table", help="The table of docs/results.md: paper, others, ours.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A paper's result on your data: convnet reproduce alexnet.fig1 --data cifar10/

    Trains the nets behind a published table or figure, and sets paper, others and yours side by side. Stopped or
    killed, the same command goes on.
    """
    from convnet.data.sources import open_source
    from convnet.io import atomic
    from convnet.results import result as find
    from convnet.results import shown as show
    from convnet.results.reproduce import keep, plan, run, slug, write
    from convnet.training.series import numbers

    if table or result is None:
        print_lines(show.ours() if table else _table(show.catalogue()))
        return
    asked = find(result)
    if data is None:
        kinds = "; ".join(f"{one.data}: {one.shows}" for one in asked.experiments)
        raise UsageError(f"{result} needs --data; it has experiments for {kinds}" if kinds else asked.none)
    with shown(quiet) as progress:
        source = open_source(data)
        made, hours = plan(asked, source, numbers(seeds) if seeds is not None else None, _hours(budget))
        out = out or Path("results") / f"{slug(result)}-{source.name}"
        if dry_run:
            _print_plan(made, source, hours, out, as_json)
            return
        progress.note(f"{result} on {source.name}: {made.n_runs()} nets, about {hours:.2g} hours; folder {out}")
        out.mkdir(parents=True, exist_ok=True)
        with stopping(typed(), out, progress) as stop:
            with atomic.lock(out, "reproducing"):
                made = keep(out, made)
                measured = run(made, source, out, device, progress, stop)
                content = write(out, made, measured)
                where = show.page(out, content)
    if as_json:
        print_json(content)
        return
    for what, value in (*asked.published, *asked.reproduced):
        print(f"published: {what}: {value}")
    print_lines(_table(show.lines(content)))
    if made.shortened < 1:
        print(f"shortened to {made.shortened:.2%} of the epochs: the nets are not at their end")
    print(f"page: {plain(str(where))}")


def _hours(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(h|m)", text)
    if match is None or not float(match[1]):
        raise UsageError(f"--budget {text}: write hours or minutes, as 2h or 30m")
    return float(match[1]) / (1 if match[2] == "h" else 60)


def _print_plan(made: "Plan", source: "Source", hours: float, out: Path, as_json: bool) -> None:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    sizes = {recipe.size for recipe in made.recipes.values()}
    needed = sum(3 * size * size * len(source.entries) for size in sizes) / 1e9
    plan = {
        "result": made.result.id,
        "data": f"{source.name}: {source.kind}, {len(source.entries):,} pictures",
        "shows": made.experiment.shows,
        "nets": {name: f"{recipe.net}, {recipe.epochs} epochs" for name, recipe in made.recipes.items()},
        "trainings": made.n_runs(),
        "hours": round(hours, 2),
        "stores_gb": round(needed, 2),
        "free_gb": round(shutil.disk_usage(place).free / 1e9, 1),
        "folder": str(out),
    }
    if as_json:
        print_json(plan)
        return
    for name, value in plan.items():
        print(f"{name.replace('_', ' ')}: {plain(str(value))}")


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
