"""The verb show: `convnet show WHAT CHECKPOINT ...`; each WHAT is a command of its own, with its own options.

The commands that need only a net or a run's record stand in `show_net.py`, those that ask about units in
`show_unit.py`, about single pictures in `show_picture.py`, those that go through a data set in `show_data.py`.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from convnet.cli.options import Verb, output
from convnet.cli.progress_bar import plain
from convnet.cli.verb import guarded, print_lines
from convnet.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convnet.evaluation.seen import Seen
    from convnet.evaluation.trained_net import TrainedNet

P = ParamSpec("P")
Out = Annotated[
    Path | None,
    output(help="The picture to write, .png or .svg; one that is there is written over [WHAT.png]."),
]
Pictures = Annotated[
    list[Path], typer.Argument(metavar="STORE|PICTURE...", help="Pictures, or a store that --ids chooses them from.")
]
Ids = Annotated[str | None, typer.Option(help="Pictures of the store by number, as 0,17,402 [3 of them].")]
Layer = Annotated[str | None, typer.Option(help="A stage of the net, as convnet explain lists them.")]

show = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="What a net has learned, as a picture: convnet show WHAT CHECKPOINT ... --out FILE",
)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Adds a WHAT, named as the function, with what happens to every verb; in the list, what it shows."""
    shows = (function.__doc__ or "").partition(": convnet")[0]
    return show.command(function.__name__, cls=Verb, short_help=shows)(guarded(_with_warnings(function)))


def _with_warnings(function: Callable[P, None]) -> Callable[P, None]:
    """The command, with what its picture lacks told in a line."""

    @wraps(function)
    def telling(*arguments: P.args, **options: P.kwargs) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", "no font here has")
            function(*arguments, **options)
        for warning in caught:
            print(plain(f"warning: {warning.message}"), file=sys.stderr)

    return telling


def target(out: Path | None, what: str) -> Path:
    """The file to write: --out, or WHAT.png here. Raises: UsageError for another ending than .png and .svg."""
    from convnet.visualize.plot import check_suffix

    path = out or Path(f"{what}.png")
    check_suffix(path)
    return path


def seen_at(paths: list[Path], net: "TrainedNet", ids: str | None, split: str | None, most: int = 3) -> list["Seen"]:
    """The pictures, as the net sees them; without --ids `most` of a store's, evenly spaced.

    A file's true class is its folder's name where the net has a class of that name. Raises: UsageError, DataError.
    """
    from convnet.data.store import is_store
    from convnet.evaluation import seen

    if len(paths) == 1 and is_store(paths[0]):
        chosen = net.split_of(paths[0], split)
        if chosen.n == 0:
            raise UsageError(f"{paths[0]} has no pictures in its split {chosen.name}; choose another with --split")
        places = numbers("--ids", ids) or [i * chosen.n // most for i in range(min(most, chosen.n))]
        for i in places:
            if not 0 <= i < chosen.n:
                raise UsageError(f"--ids {i}: {chosen.name} has the pictures 0 to {chosen.n - 1}")
        return seen.from_store(chosen, places, net.preprocessing)
    if ids is not None or split is not None:
        raise UsageError("--ids and --split choose pictures of a store; here pictures are named")
    labels = {name: k for k, name in enumerate(net.classes)}
    pictures = seen.from_files(paths, net.preprocessing)
    folders = [path.absolute().parent.name for path in paths]
    return [replace(picture, label=labels.get(folder)) for picture, folder in zip(pictures, folders, strict=True)]


def numbers(option: str, text: str | None) -> list[int] | None:
    """The numbers that an option lists, as `3,17`. Raises: UsageError."""
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: whole numbers with commas between them") from None


def write(figure: "Figure", path: Path, *others: Path) -> None:
    """Writes a picture, and tells where it is, and what lies beside it."""
    from convnet.visualize.plot import save

    save(figure, path)
    print_lines(f"written: {file}" for file in (path, *others))
