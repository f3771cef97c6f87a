"""The command `convnet VERB`: the only place that parses arguments, prints results and exits.

Results go to stdout, progress to stderr. Errors are one line. Exit codes: errors.py.
"""

import gc
import io
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from convnet import __version__, threads
from convnet.cli import show_data as _data  # noqa: F401 - each adds its commands to show
from convnet.cli import show_net as _net  # noqa: F401
from convnet.cli import show_picture as _picture  # noqa: F401
from convnet.cli import show_unit as _unit  # noqa: F401
from convnet.cli.evaluate import evaluate, fuse, predict
from convnet.cli.features import extract, fit_classifier, index, search
from convnet.cli.launch import end, is_ended
from convnet.cli.measure import benchmark, doctor, reproduce
from convnet.cli.options import (
    AsJson,
    Processes,
    Verb,
)
from convnet.cli.prepare import check, merge, prepare
from convnet.cli.progress_bar import columns, plain
from convnet.cli.report import report, serve
from convnet.cli.show import show
from convnet.cli.train import lr, train
from convnet.cli.verb import guarded, print_json, print_lines
from convnet.cli.weights import export, import_
from convnet.errors import ConvnetError
from convnet.io.urls import without_secrets

if TYPE_CHECKING:
    pass

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
OBJECTS = 10_000  # between two looks for garbage; by Python's 700 those while torch is loaded take 0.2 s, and find none


def main() -> None:
    """The entry point: runs a verb and turns every error into its line and exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no reason to stop
    threads.sleep_while_waiting()
    gc.set_threshold(OBJECTS)
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
    name = function.__name__.strip("_").replace("_", "-")  # import_ is the verb import
    return app.command(name, cls=Verb)(guarded(function))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"convnet {__version__}")
        raise typer.Exit


_verb(train)
_verb(lr)


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
    parallel: Annotated[
        str | None, typer.Option(metavar="data|columns|fully-connected", help="Bytes that cross between processes.")
    ] = None,
    processes: Processes = 1,
    as_json: AsJson = False,
) -> None:
    """What is in a net, and what differs: convnet explain alexnet alexnet_2012

    Its layers; then each difference from its paper, from released nets or from OTHER, with its source.
    """
    from convnet.nets import describe, recipe_of
    from convnet.recipe import Recipe, load_recipe, with_settings

    recipe = with_settings(Recipe(), [f"net_options.{setting}" for setting in settings or []])
    step = (load_recipe(recipe_of(net)).batch, parallel, processes) if parallel else None
    explained = describe.explain(net, other, step, **recipe.net_options)
    if as_json:
        print_json(explained)
    else:
        print_lines(describe.explain_lines(explained, columns()))


for function in (prepare, merge, check, evaluate, fuse, predict, extract, fit_classifier, index, search, report,
                 reproduce, serve, import_, export, doctor, benchmark):  # fmt: skip
    _verb(function)
app.add_typer(show, name="show")


if __name__ == "__main__":
    main()
