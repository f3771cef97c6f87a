"""The verbs train and lr: their arguments and what they print."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from convnet import hardware, threads
from convnet.cli.launch import launch, own_device, restarted, typed
from convnet.cli.options import (
    AsJson,
    Device,
    LabelColumn,
    Layout,
    MicroBatch,
    NameColumn,
    Parallel,
    Processes,
    Quiet,
    Resident,
    SplitColumn,
    output,
)
from convnet.cli.progress_bar import shown
from convnet.cli.report import after_training
from convnet.cli.verb import left_out, print_json, stopping
from convnet.errors import UsageError
from convnet.progress import Progress

if TYPE_CHECKING:
    from convnet.data import device_loader
    from convnet.data.store import Store
    from convnet.io.processes import Parallel as Parallelism
    from convnet.io.strict_json import Json
    from convnet.recipe import Recipe
    from convnet.training import micro_batch as micro_batches
    from convnet.training.series import Stage


def train(
    data: Annotated[str | None, typer.Argument(help="A store, or anything that can be prepared [digits].")] = None,
    net: Annotated[str | None, typer.Option(help="The net, by name [the recipe's].")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe's name, or a .toml file [chosen by the data]; a,b: b begins with a's net."),
    ] = None,
    out: Annotated[Path | None, output(help="The run's folder [runs/RECIPE-DATA].")] = None,
    epochs: Annotated[int | None, typer.Option(help="The most passes over the training pictures.")] = None,
    seeds: Annotated[str | None, typer.Option(help="A net for each seed, as 0..4: an ensemble's members.")] = None,
    start_from: Annotated[Path | None, typer.Option(help="A checkpoint or run whose weights the net takes.")] = None,
    batch: MicroBatch = None,
    resident: Resident = "auto",
    device: Device = "auto",
    processes: Processes = 1,
    parallel: Parallel = "data",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A field of the recipe, as lr=0.02.")] = None,
    layout: Layout = None,
    events: Annotated[bool, output("--tensorboard", help="An event file in the run's folder too.")] = False,
    quiet: Quiet = False,
    name_column: NameColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    as_json: AsJson = False,
) -> None:
    """Pictures to a trained and tested net: convnet train photos/ --epochs 30

    Without arguments: LeNet-5 on 1,797 handwritten digits that come with scikit-learn, in under a minute.
    Ctrl-C saves; --resume goes on as if never stopped.
    """
    from convnet.cli.resolve import start_at
    from convnet.device import choose
    from convnet.io.processes import from_environment
    from convnet.training import series, tensorboard

    device = own_device(device)
    place = choose(device=device).device.type  # one that isn't there is told before pictures are prepared
    how = _How(device, place, batch, _micro_batch(batch), resident, processes, parallel, events, quiet, as_json)
    if events:
        tensorboard.check()
    start_from = start_at(start_from)
    changes = [*([f"epochs={epochs}"] if epochs is not None else []), *(settings or [])]
    together = from_environment()
    with shown(quiet or not together.is_first) as progress:
        if resume:
            _check_resumed(any((net, recipe, settings, seeds, name_column, label_column, split_column)), start_from)
            store, stages, out = _resumed(data, out, changes, progress)
        else:
            columns = (name_column, label_column, split_column)
            store, stages = _planned(
                data or "digits", net, recipe, changes, seeds, start_from, layout, columns, progress
            )
            out = out or _free_folder(stages, store)
            if len(stages) > 1 and together.n > 1:
                raise UsageError("several runs in one command are started by --processes, not by torchrun")
            if len(stages) > 1:
                series.write(out, stages, str(store.path))
        told = [_one(store, stage, out, how, resume, progress) for stage in stages]
    _print(told, out, store, as_json)


def _check_resumed(changes: bool, start_from: Path | None) -> None:
    """Raises: UsageError where a run that goes on is asked for what only a new one can have."""
    if changes:
        raise UsageError("--resume goes on with the run's own net, recipe and store; only --epochs may change")
    if start_from is not None:
        raise UsageError(f"a run has weights already; leave out --start-from {start_from}, or --resume")


@dataclass(frozen=True)
class _How:
    """What changes nothing of what is learned: on what it is computed, and what is shown."""

    device: str
    place: str
    batch: str | None
    micro_batch: "micro_batches.MicroBatch | None"
    resident: str
    processes: int
    parallel: str
    events: bool
    quiet: bool
    as_json: bool


def _planned(
    data: str,
    net: str | None,
    recipe: str | None,
    changes: list[str],
    seeds: str | None,
    start: Path | None,
    layout: str | None,
    columns: tuple[str | None, ...],
    progress: Progress,
) -> "tuple[Store, list[Stage]]":
    """The store and the runs on it: one, one for each seed, or one for each recipe of a chain."""
    from convnet.cli.resolve import plan_run
    from convnet.data.sources import ColumnNames
    from convnet.recipe import with_settings
    from convnet.training import series

    names = series.chain(recipe) if recipe is not None else [None]
    if len(names) > 1 and (net is not None or seeds is not None):
        raise UsageError(f"--recipe {recipe}: each recipe of a chain has its net; leave out --net, and --seeds")
    store, first = plan_run(data, net, names[0], changes, progress, start, layout, ColumnNames(*columns))
    if seeds is not None:
        return store, series.of_seeds(first, seeds, start)
    if len(names) == 1:
        return store, [series.Stage(".", first, None if start is None else str(start))]
    rest = [with_settings(series.recipe_called(name), changes) for name in names[1:] if name is not None]
    if other := [each.name for each in rest if each.size != first.size]:
        raise UsageError(f"{', '.join(other)}: a chain's nets are trained on one store, of {first.size} pixels")
    return store, series.of_chain([first, *rest], start)


def _free_folder(stages: "list[Stage]", store: "Store") -> Path:
    from convnet.cli.resolve import free_folder

    return free_folder(
        Path("runs"), f"{'-'.join(stage.recipe.name for stage in stages)}-{store.header['source']['name']}"
    )


def _resumed(
    data: str | None, out: Path | None, changes: list[str], progress: Progress
) -> "tuple[Store, list[Stage], Path]":
    """The store, the runs and the folder to go on with."""
    from convnet.cli.resolve import resume_run
    from convnet.data.store import Store
    from convnet.training import series

    found = series.read(out) if out is not None else None
    if out is None or found is None:
        store, chosen, out = resume_run(data, out, changes, progress)
        return store, [series.Stage(".", chosen)], out
    if changes:
        raise UsageError(f"{out} holds several runs, whose epochs stay as they are; name one of them")
    stages, place = found
    return Store(data or place, progress), stages, out


def _one(store: "Store", stage: "Stage", out: Path, how: _How, resume: bool, progress: Progress) -> "Json | None":
    """Trains a run, or goes on with it; its summary. None where other processes print it, or it had ended before."""
    from convnet.io.processes import from_environment, joined
    from convnet.training import series
    from convnet.training.train import train as run

    folder, together = out / stage.name, from_environment()
    if stage.name != ".":
        progress.note(f"run {stage.name}")
        if resume and series.has_ended(folder):
            return None
        resume = resume and series.has_begun(folder)
    start = None if resume else stage.begins_with(out)
    if how.processes > 1 and together.n == 1:
        options = {"--out": folder, "--device": how.device, "--resident": how.resident, "--start-from": start,
                   "--batch": how.batch, "--epochs": stage.recipe.epochs if resume else None, "--resume": resume,
                   "--quiet": how.quiet, "--json": how.as_json,
                   "--parallel": how.parallel, "--tensorboard": how.events}  # fmt: skip
        if code := launch(how.processes, store.path, stage.recipe, options):
            sys.exit(code)
        return None
    if restarted() and (folder / "last.ckpt").exists():
        resume, start = True, None
    workers, used = 1 if store.encoding == "raw" else threads.most(), _threads(stage.recipe, folder if resume else None)
    progress.note(f"recipe {stage.recipe.name}, {store.path}: {store.describe()}; run folder {folder}; {used}")
    resident = cast("device_loader.Resident", how.resident)  # train checks the word
    again = shlex.join(["convnet", "train", "--resume", "--out", str(out), *["--tensorboard"] * how.events])
    with stopping(again, folder, progress) as stop, joined("nccl" if how.place == "cuda" else "gloo") as together:
        summary = run(stage.recipe, store, folder, resume=resume, init_from=start, device=how.device, workers=workers,
                      micro_batch=how.micro_batch, resident=resident, progress=progress, stop=stop, command=typed(),
                      processes=together, parallel=cast("Parallelism", how.parallel),
                      events=how.events)  # fmt: skip
    if not together.is_first:
        return None
    page = after_training(folder, progress, how.device)
    return {"run": str(folder), "report": str(page) if page else None, **summary}


def lr(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    change: Annotated[str, typer.Argument(help="drop (divide it as the schedule does), or the new rate.")],
) -> None:
    """Changes the learning rate of a training by hand: convnet lr runs/photos drop

    From the next epoch on; the schedule goes on from there. It is logged, and resuming goes through the same rates.
    """
    from convnet.training.hand import ask

    print(f"{change}: {ask(run, change)}")


def _threads(recipe: "Recipe", resumed: Path | None) -> str:
    """Sets the threads of a run (of one that goes on, its own) and says how many, and whether other work runs."""
    from convnet.checkpoint import peek
    from convnet.nets.describe import summary

    newest = peek(resumed) if resumed is not None else None
    recorded = newest.provenance.get("threads") if newest is not None else None
    chosen = threads.configure(summary(recipe.net)["multiply_adds"] * recipe.batch, recorded)
    load, n = hardware.load() or 0.0, hardware.cores().n
    return f"{chosen}; other work runs here (load {load:.1f}, processors {n})" if load > n else str(chosen)


def _micro_batch(batch: str | None) -> "int | Literal['auto'] | None":
    if batch is None or batch == "auto":
        return "auto" if batch else None
    if batch.isdecimal() and int(batch):
        return int(batch)
    raise UsageError(f"--batch {batch}: it must be auto, or the number of pictures that go through the net at once")


def _print(told: "list[Json | None]", out: Path, store: "Store", as_json: bool) -> None:
    """The summaries of the runs that ended in this process."""
    summaries = [summary for summary in told if summary is not None]
    if as_json and summaries:
        print_json(summaries[0] if len(told) == 1 else {"series": str(out), "runs": summaries})
        return
    for summary in summaries:
        _print_summary(summary)
    if len(told) > 1 and not as_json:
        print(f"{len(told)} nets in {out}: convnet evaluate {out} {store.path} --table tests each, and their ensemble")


def _print_summary(summary: "Json") -> None:
    print(
        f"trained {summary['net']} for {summary['epochs']} epochs, {summary['steps']:,} steps, "
        f"in {summary['training_seconds']:.0f} s ({summary['pictures_per_second']:,.0f} pictures/s)"
    )
    missing = left_out(summary["left_out"])
    for name, title in (("validation", "validation (chose the net)"), ("test", "test")):
        if scores := summary.get(name):
            errors = f"top-1 error {scores['top1_error']:.2%}, top-5 error {scores['top5_error']:.2%}"
            print(f"{title}: {errors}, n {scores['n']:,}{missing}")
    if "test" not in summary:
        print("no test pictures: the validation error is a little too good; keep a test/ folder for an honest figure")
    print(f"net: {Path(summary['run']) / summary['checkpoint']}")
    if summary["report"] is not None:
        print(f"report: {summary['report']}")
