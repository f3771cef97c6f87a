"""The verbs that measure: doctor and benchmark this machine, reproduce the papers' results; what they print."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from convnet.cli.launch import typed
from convnet.cli.options import AsJson, Device, Precision, Quiet, computing, output
from convnet.cli.progress_bar import columns, plain, shown
from convnet.cli.verb import print_json, print_lines, stopping
from convnet.errors import UsageError
from convnet.progress import Progress

if TYPE_CHECKING:
    from convnet.benchmark import forms
    from convnet.io.strict_json import Json
    from convnet.results import Result
    from convnet.results.data import Data
    from convnet.results.plan import Plan


def doctor(
    folder: Annotated[Path, typer.Argument(help="Whose disk is measured.")] = Path(),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What is on this machine, what is chosen, what would make it faster: convnet doctor

    Devices, processor, memory, threads, compilers, packages, and the rates of the disk (at most 256 MiB are written,
    read and gone). Exit code 0 whatever is missing.
    """
    from convnet import threads
    from convnet.benchmark.doctor import examine, lines

    threads.configure()
    with shown(quiet or as_json) as progress:
        examined = examine(folder, progress)
    if as_json:
        print_json(examined)
    else:
        print_lines(lines(examined, columns()))


def benchmark(
    net: Annotated[
        list[str] | None,
        typer.Option(help="A net, vgg* or main: alexnet zfnet nin_imagenet googlenet vgg_a vgg_d."),
    ] = None,
    batch: Annotated[
        int | None,
        computing(help="Pictures in a step [64, on CUDA 1024; VGG a quarter]."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Turns of everything, at least 5.")] = 5,
    precision: Precision = "auto",
    device: Device = "auto",
    store: Annotated[
        Path | None, typer.Option(help="What the loader reads [a raw store made for it, then gone].")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Plain PyTorch and other libraries too.")] = True,
    memory: Annotated[
        bool, typer.Option("--memory", help="The CPU's peak memory too, in fresh processes; on CUDA always.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Seconds for all turns of one form; what takes longer is told.")] = 120.0,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to try it; the rates say nothing.")] = False,
    out: Annotated[Path, output(help="The picture to write, .png or .svg.")] = Path("benchmark.png"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How fast is this machine with these nets? convnet benchmark --net alexnet

    Training and inference, against plain PyTorch and this machine's own matrix products; the loader; everything
    together; by turns in one run. Without --net: on CUDA main, otherwise alexnet and googlenet (some minutes).
    """
    from convnet import threads
    from convnet.benchmark import Options
    from convnet.benchmark import benchmark as measure
    from convnet.benchmark.figure import benchmark_figure
    from convnet.benchmark.table import table_lines
    from convnet.benchmark.timing import Budget
    from convnet.visualize.plot import check_suffix, save

    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision}: must be auto, fp32 or bf16")
    check_suffix(out)
    budget = Budget(repeats, least=0.0, limit=limit) if quick else Budget(repeats, limit=limit)
    threads.configure()
    options = Options(
        tuple(net or ()), batch, cast("forms.Precision", precision), budget, plain, memory, store, quick, device
    )
    with shown(quiet) as progress:
        result = measure(options, progress, shlex.join(["convnet", *sys.argv[1:]]))
    save(benchmark_figure(result), out)
    if as_json:
        print_json(result | {"picture": str(out)})
    else:
        print_lines([*table_lines(result), f"written: {out}"])


def reproduce(
    result: Annotated[str | None, typer.Argument(help="A result's name; without it all are listed.")] = None,
    data: Annotated[str | None, typer.Option(help="The pictures, as convnet prepare takes them, or a store.")] = None,
    out: Annotated[Path | None, output(help="The experiment's folder [results/RESULT-DATA].")] = None,
    seeds: Annotated[str | None, typer.Option(help="As 0..2 [the experiment's].")] = None,
    budget: Annotated[str | None, typer.Option(help="As 2h or 30m: fewer epochs of every net, and it is said.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look: data, nets, time, memory and disk.")] = False,
    table: Annotated[bool, typer.Option("--table", help="The table of docs/results.md: paper, others, ours.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A paper's result on your data: convnet reproduce alexnet.fig1 --data cifar10/

    Trains the nets behind a published table or figure, and sets paper, others and yours side by side. Stopped or
    killed, the same command goes on.
    """
    from convnet.results import result as find
    from convnet.results.shown import lines, ours, remarks

    if table:
        print_lines(ours())
        return
    if result is None:
        _list(data, as_json)
        return
    asked = find(result)
    if data is None:
        kinds = "; ".join(f"{one.data}: {one.shows}" for one in asked.experiments)
        raise UsageError(f"{result} needs --data; it has experiments for {kinds}" if kinds else asked.none)
    with shown(quiet) as progress:
        made, pictures, out = _planned(asked, data, out, seeds, _hours(budget), device, progress)
        if dry_run:
            _print_plan(made, pictures, out, device, as_json)
            return
        content, page = _run(made, pictures, out, device, progress)
    if as_json:
        print_json(content)
        return
    for what, value in (*asked.published, *asked.reproduced):
        print(f"published: {what}: {value}")
    print_lines(_table(lines(content)))
    print_lines(remarks(content))
    print(f"page: {plain(str(page))}")


def _list(data: str | None, as_json: bool) -> None:
    """All results, and with data which they suffice for."""
    from convnet.results.data import Data
    from convnet.results.plan import RATES
    from convnet.results.shown import catalogue, listing

    rows = catalogue(None if data is None else Data.at(data))
    if as_json:
        print_json(rows)
    else:
        print_lines([*_table(listing(rows, data is not None)), RATES])


def _planned(
    result: "Result",
    data: str,
    out: Path | None,
    seeds: str | None,
    budget: float | None,
    device: str,
    progress: Progress,
) -> "tuple[Plan, Data, Path]":
    """The plan, the one that is in the folder if there is one; the pictures; and the folder."""
    from convnet.results.data import Data
    from convnet.results.plan import begun, plan
    from convnet.results.reproduce import slug
    from convnet.training.series import numbers

    pictures, chosen = Data.at(data, progress), None if seeds is None else numbers(seeds)
    experiment = result.experiment(pictures.kind, pictures.classes)
    out = out or Path("results") / f"{slug(result.id)}-{pictures.name}"
    made = begun(out, result, experiment, chosen or experiment.seeds)
    if made is None:
        made = plan(result, pictures, chosen, budget, device)
    return made, pictures, out


def _run(made: "Plan", data: "Data", out: Path, device: str, progress: Progress) -> "tuple[Json, Path]":
    """Trains, tests and writes all; what results.json has, and the page."""
    from convnet.io import atomic
    from convnet.results.plan import free_memory, keep
    from convnet.results.reproduce import run
    from convnet.results.shown import page
    from convnet.results.table import write

    hours = f", about {made.hours:.2g} hours" if made.hours is not None else ""
    progress.note(f"{made.result.id} on {data.name}: {made.n_runs()} nets{hours}; folder {out}")
    for lack in data.lacks(made.experiment):
        progress.warn(f"{data.name} has {lack}: these figures are not those of {made.experiment.data}")
    free = free_memory(device)
    if made.memory is not None and free is not None and made.memory > free:
        progress.warn(f"a step takes about {_gb(made.memory)} GB of memory, and {_gb(free)} GB are free")
    out.mkdir(parents=True, exist_ok=True)
    with stopping(typed(), out, progress) as stop, atomic.lock(out, "reproducing"):
        made = keep(out, made)
        content = write(out, made, run(made, data, out, device, progress, stop, typed()))
        return content, page(out, content)


def _hours(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(h|m)", text)
    if match is None or not float(match[1]):
        raise UsageError(f"--budget {text}: write hours or minutes, as 2h or 30m")
    return float(match[1]) / (1 if match[2] == "h" else 60)


def _print_plan(made: "Plan", data: "Data", out: Path, device: str, as_json: bool) -> None:
    from convnet.results.plan import free_memory

    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    sizes = {recipe.size for recipe in made.recipes.values()} if data.store is None else set()
    needed = sum(3 * size * size * sum(data.n.values()) for size in sizes)
    plan = {
        "result": made.result.id,
        "data": f"{data.name}: {data.kind}, {len(data.classes):,} classes, {sum(data.n.values()):,} pictures",
        "suffices": ", ".join(data.lacks(made.experiment)) or "yes",
        "shows": made.experiment.shows,
        "nets": {name: f"{recipe.net}, {recipe.epochs} epochs" for name, recipe in made.recipes.items()},
        "trainings": made.n_runs(),
        "hours": made.hours and round(made.hours, 2),
        "memory_gb": _gb(made.memory),
        "free_memory_gb": _gb(free_memory(device)),
        "stores_gb": _gb(needed),
        "free_gb": _gb(shutil.disk_usage(place).free),
        "folder": str(out),
    }
    if as_json:
        print_json(plan)
        return
    for name, value in plan.items():
        print(f"{name.replace('_', ' ')}: {'not known' if value is None else plain(str(value))}")


def _gb(n: int | None) -> float | None:
    return None if n is None else round(n / 1e9, 2)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
