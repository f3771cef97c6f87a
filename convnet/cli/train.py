"""The verbs train and lr: their arguments and what they print."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from convnet import hardware, threads
from convnet.cli.launch import launch, own_device, restarted, typed
from convnet.cli.options import (
    AsJson,
    ColumnsOverProcesses,
    Device,
    LabelColumn,
    Layout,
    MicroBatch,
    NameColumn,
    Processes,
    Quiet,
    Resident,
    SplitColumn,
    output,
)
from convnet.cli.progress_bar import plain, shown
from convnet.cli.report import after_training
from convnet.cli.verb import left_out, print_json
from convnet.errors import DataError, DiskError, Interrupted, UsageError
from convnet.progress import Progress

if TYPE_CHECKING:
    from convnet.data import device_loader
    from convnet.io.signals import Stop
    from convnet.io.strict_json import Json
    from convnet.recipe import Recipe


def train(
    data: Annotated[str | None, typer.Argument(help="A store, or anything that can be prepared [digits].")] = None,
    net: Annotated[str | None, typer.Option(help="The net, by name [the recipe's].")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a .toml file [chosen by the data].")] = None,
    out: Annotated[Path | None, output(help="The run's folder [runs/RECIPE-DATA].")] = None,
    epochs: Annotated[int | None, typer.Option(help="The most passes over the training pictures.")] = None,
    start_from: Annotated[Path | None, typer.Option(help="A checkpoint or run whose weights the net takes.")] = None,
    batch: MicroBatch = None,
    resident: Resident = "auto",
    device: Device = "auto",
    processes: Processes = 1,
    columns_over_processes: ColumnsOverProcesses = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A field of the recipe, as lr=0.02.")] = None,
    layout: Layout = None,
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
    from convnet.cli.resolve import free_folder, plan_run, resume_run
    from convnet.data.sources import ColumnNames
    from convnet.device import choose
    from convnet.io.processes import from_environment, joined
    from convnet.training.train import train as run

    changes = [*([f"epochs={epochs}"] if epochs is not None else []), *(settings or [])]
    micro_batch, pictures = _micro_batch(batch), cast("device_loader.Resident", resident)  # train checks the word
    together, device = from_environment(), own_device(device)
    place = choose(device=device).device.type  # one that isn't there is told before pictures are prepared
    columns = ColumnNames(name_column, label_column, split_column)
    with shown(quiet or not together.is_first) as progress:
        if resume:
            if net is not None or recipe is not None or settings or columns:
                raise UsageError("--resume goes on with the run's own net, recipe and store; only --epochs may change")
            store, chosen, out = resume_run(data, out, changes, progress)
        else:
            store, chosen = plan_run(data or "digits", net, recipe, changes, progress, start_from, layout, columns)
            out = out or free_folder(Path("runs"), f"{chosen.name}-{store.header['source']['name']}")
        if processes > 1 and together.n == 1:
            options = {"--out": out, "--device": device, "--resident": resident, "--start-from": start_from,
                       "--batch": batch, "--epochs": epochs if resume else None, "--resume": resume, "--quiet": quiet,
                       "--json": as_json, "--columns-over-processes": columns_over_processes}  # fmt: skip
            sys.exit(launch(processes, store.path, chosen, options))
        resume = resume or (restarted() and (out / "last.ckpt").exists())
        workers, used = 1 if store.encoding == "raw" else threads.most(), _threads(chosen, out if resume else None)
        progress.note(f"recipe {chosen.name}, {store.path}: {store.describe()}; run folder {out}; {used}")
        with _stopping(out, progress) as stop, joined("nccl" if place == "cuda" else "gloo") as together:
            summary = run(chosen, store, out, resume=resume, init_from=start_from, device=device, workers=workers,
                          micro_batch=micro_batch, resident=pictures, progress=progress, stop=stop, command=typed(),
                          processes=together, columns_over_processes=columns_over_processes)  # fmt: skip
        page = after_training(out, progress, device) if together.is_first else None
    if together.is_first:
        _print_summary(summary, out, page, as_json)


def lr(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    change: Annotated[str, typer.Argument(help="drop (divide it as the schedule does), or the new rate.")],
) -> None:
    """Changes the learning rate of a training by hand: convnet lr runs/photos drop

    From the next epoch on; the schedule goes on from there. It is logged, and resuming goes through the same rates.
    """
    from convnet.training.hand import ask

    print(f"{change}: {ask(run, change)}")


@contextmanager
def _stopping(out: Path, progress: Progress) -> Iterator["Stop"]:
    """Asks a run to end on a signal; whatever ends it says how to go on."""
    from convnet.checkpoint import LAST, PREVIOUS
    from convnet.io.signals import on_signals

    again = shlex.join(["convnet", "train", "--resume", "--out", str(out)])

    def leave(text: str) -> None:
        progress.finish()
        print(f"convnet: {plain(text)}; go on with: {again}", file=sys.stderr, flush=True)

    try:
        with on_signals(leave) as stop:
            yield stop
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with: {again}") from error
    except (DataError, DiskError) as error:
        if not any((out / name).exists() for name in (LAST, PREVIOUS)):
            raise  # nothing is there to go on with
        raise type(error)(str(error).replace("run the same command again", f"go on with: {again}")) from error


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


def _print_summary(summary: "Json", out: Path, page: Path | None, as_json: bool) -> None:
    if as_json:
        print_json({"run": str(out), "report": str(page) if page else None, **summary})
        return
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
    print(f"net: {out / summary['checkpoint']}")
    if page is not None:
        print(f"report: {page}")
