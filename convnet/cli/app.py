"""The command `convnet VERB`: the only place that parses arguments, prints results and exits.

Results go to stdout, progress to stderr. Errors are one line. Exit codes: errors.py.
"""

import io
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, ParamSpec, cast

import typer

from convnet import __version__, hardware, threads
from convnet.cli import show_data as _data  # noqa: F401 - each adds its commands to show
from convnet.cli import show_net as _net  # noqa: F401
from convnet.cli import show_picture as _picture  # noqa: F401
from convnet.cli import show_unit as _unit  # noqa: F401
from convnet.cli.evaluate import evaluate, fuse, predict
from convnet.cli.launch import end, is_ended, launch, own_device, restarted, typed
from convnet.cli.machine import benchmark, doctor
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
    Verb,
    output,
)
from convnet.cli.prepare import check, merge, prepare
from convnet.cli.progress_bar import columns, plain, shown
from convnet.cli.report import after_training, report
from convnet.cli.show import show
from convnet.cli.verb import guarded, left_out, print_json, print_lines
from convnet.cli.weights import export, import_
from convnet.errors import ConvnetError, DataError, DiskError, Interrupted, UsageError
from convnet.io.urls import without_secrets
from convnet.progress import Progress

if TYPE_CHECKING:
    from convnet.data import device_loader
    from convnet.io.signals import Stop
    from convnet.io.strict_json import Json
    from convnet.recipe import Recipe

# Verbs import what they need when they run: `--help` and errors in arguments answer without loading torch.

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The classic ConvNets as their papers give them: from a folder of pictures to a trained, tested net.",
)
P = ParamSpec("P")


def main() -> None:
    """The entry point: runs a verb and turns every error into its line and exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no reason to stop
    threads.sleep_while_waiting()
    if is_ended():  # and the agent has started all anew to end the one that didn't
        sys.exit(0)
    try:
        app(standalone_mode=True)
    except ConvnetError as error:
        told, code = end(error)
        text = "\n".join(
            plain(line) for line in without_secrets(str(error)).split("\n")
        )  # a recipe's errors are a line each
        with suppress(OSError):
            if told:
                print(f"convnet: {text}", file=sys.stderr, flush=True)
        sys.exit(code)
    except RuntimeError:
        if not is_ended():
            raise
        sys.exit(0)


def _verb(function: Callable[P, None]) -> Callable[P, None]:
    """Adds a verb, with what happens to every verb."""
    return app.command(function.__name__.strip("_"), cls=Verb)(guarded(function))  # import_ is the verb import


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"convnet {__version__}")
        raise typer.Exit


# train


@_verb
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


@_verb
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


# the nets


@_verb
def nets(pattern: Annotated[str, typer.Argument(help="Names to show.")] = "*", as_json: AsJson = False) -> None:
    """Lists the nets: convnet nets "vgg*"

    Year, parameters, multiply-adds for one picture, the input (C x H x W), and whose net it is.
    """
    from convnet.nets.describe import summaries, table_lines

    rows = summaries(pattern)
    if as_json:
        print_json(rows)
    else:
        print_lines(table_lines(rows, columns()))


@_verb
def explain(
    net: Annotated[str, typer.Argument(help="A net, by name.")],
    other: Annotated[str | None, typer.Argument(help="The net to hold it against.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="An option of NET, as input_size=64.")] = None,
    by_columns: Annotated[
        bool, typer.Option("--columns", help="Bytes that cross between processes with a column each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What is in a net, and what differs: convnet explain alexnet alexnet_2012

    Its layers; then each difference from its paper, from released nets or from OTHER, with its source.
    """
    from convnet.nets import describe, recipe_of
    from convnet.recipe import Recipe, load_recipe, with_settings

    recipe = with_settings(Recipe(), [f"net_options.{setting}" for setting in settings or []])
    batch = load_recipe(recipe_of(net)).batch if by_columns else None
    explained = describe.explain(net, other, batch, **recipe.net_options)
    if as_json:
        print_json(explained)
    else:
        print_lines(describe.explain_lines(explained, columns()))


for function in (prepare, merge, check, evaluate, fuse, predict, report, import_, export, doctor, benchmark):
    _verb(function)
app.add_typer(show, name="show")


if __name__ == "__main__":
    main()
