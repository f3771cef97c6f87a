"""The verb show: `convnet show WHAT CHECKPOINT ...`; each WHAT is a command of its own, with its own options.

The commands that need only a net or a run's record stand in `cli_show_net.py`, those that ask about single units and
pictures in `cli_show_unit.py`, those that go through a data set in `cli_show_data.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from convnet.cli_verb import guarded
from convnet.terminal import plain

P = ParamSpec("P")
Out = Annotated[
    Path | None,
    typer.Option("--out", help="The picture to write, .png or .svg; one that is there is written over [WHAT.png]."),
]
Layer = Annotated[str | None, typer.Option("--layer", help="A stage of the net, as convnet explain lists them.")]

show = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="What a net has learned, as a picture: convnet show WHAT CHECKPOINT ... --out FILE",
)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Adds a WHAT, named as the function, with what happens to every verb."""
    return show.command(function.__name__)(guarded(function))


def target(out: Path | None, what: str) -> Path:
    """The file to write: --out, or WHAT.png here. Raises: UsageError for another ending than .png and .svg."""
    from convnet.look.draw import check_suffix

    path = out or Path(f"{what}.png")
    check_suffix(path)
    return path


def written(path: Path) -> None:
    """Tells where a picture is."""
    print(f"written: {plain(str(path))}")  # noqa: T201
