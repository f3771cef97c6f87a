"""The commands of `convnet show` that go through a data set: panels, neighbours, confusion, classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnet.cli.options import Checkpoint, Device, Names, Quiet, Split
from convnet.cli.progress_bar import shown
from convnet.cli.show import Layer, Out, command, target, write
from convnet.cli.verb import load_net, print_lines
from convnet.errors import UsageError

if TYPE_CHECKING:
    from convnet.data import store as data
    from convnet.evaluation.trained_net import TrainedNet
    from convnet.visualize.classes import Classes

TOLD = 10  # lines of each kind of finding
LETTERS = 40  # of a class's name in a line
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store with the net's classes.")]
Seed = Annotated[int, typer.Option(help="Draws the pictures.")]


@command
def panels(
    checkpoint: Checkpoint,
    pictures: Annotated[list[Path], typer.Argument(metavar="STORE|PICTURES...", help="A store, or pictures.")],
    n: Annotated[int, typer.Option(help="How many pictures of a store.")] = 8,
    only_errors: Annotated[bool, typer.Option("--only-errors", help="Only pictures that the net gets wrong.")] = False,
    most_confident_errors: Annotated[
        bool, typer.Option("--most-confident-errors", help="The errors that it is surest of.")
    ] = False,
    split: Split = None,
    seed: Seed = 0,
    names: Names = None,
    device: Device = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Pictures and five bars, the right one red: convnet show panels runs/photos stores/photos --only-errors

    AlexNet's figure 4, left: each picture with its true class, and the classes that the net holds most probable.
    """
    from convnet.data.store import is_store
    from convnet.evaluation.seen import from_files, from_store, some
    from convnet.visualize import panels as find
    from convnet.visualize.labels import first_names
    from convnet.visualize.panels import Which, choose, draw_panels

    which: Which = "confident errors" if most_confident_errors else "errors" if only_errors else "any"
    path = target(out, "panels")
    net, called = _net(checkpoint, names, device)
    with shown(quiet) as progress:
        if len(pictures) == 1 and is_store(pictures[0]):
            tested = net.split_of(pictures[0], split)
            ids = some(tested.n, n, seed) if which == "any" else None
            found = net.evaluate(tested, ids=ids, progress=progress)
            chosen = from_store(tested, choose(found, n, which, seed), net.preprocessing)
        elif which != "any":
            raise UsageError("errors are known of a store's pictures only: name a store in place of pictures")
        else:
            chosen = from_files(pictures, net.preprocessing)
    write(draw_panels(find(net, chosen), first_names(called)), path)


@command
def neighbours(
    checkpoint: Checkpoint,
    store: StorePath,
    pictures: Annotated[list[Path] | None, typer.Argument(help="Pictures to ask about [drawn from --split].")] = None,
    n: Annotated[int, typer.Option(help="How many pictures to draw.")] = 5,
    layer: Layer = None,
    split: Split = None,
    seed: Seed = 0,
    names: Names = None,
    device: Device = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """The training pictures nearest to a picture, by features and by pixels: convnet show neighbours RUN STORE

    AlexNet's figure 4, right: the six with the smallest Euclidean distance in the layer before the classes; for
    contrast the six whose pixels are nearest.
    """
    from convnet.evaluation.seen import from_files, from_store, some
    from convnet.visualize import neighbours as find
    from convnet.visualize.labels import first_names
    from convnet.visualize.neighbours import draw_neighbours

    path = target(out, "neighbours")
    net, called = _net(checkpoint, names, device)
    train = net.split_of(store, "train")
    if pictures:
        queries = from_files(pictures, net.preprocessing)
    else:
        tested = net.split_of(store, split)
        queries = from_store(tested, some(tested.n, n, seed), net.preprocessing)
    with shown(quiet) as progress:
        found = find(net, queries, train, layer=layer, progress=progress)
    write(draw_neighbours(found, first_names(called)), path)


@command
def confusion(
    checkpoint: Checkpoint,
    store: StorePath,
    split: Split = None,
    names: Names = None,
    device: Device = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Which classes are taken for which: convnet show confusion runs/photos stores/photos

    The confusion matrix; beside it, as .csv, all its counts.
    """
    from convnet.io import atomic
    from convnet.visualize.confusion import confusion_csv, draw_confusion
    from convnet.visualize.labels import first_names

    path = target(out, "confusion")
    net, called = _net(checkpoint, names, device)
    with shown(quiet) as progress:
        scores = net.evaluate(store, split=split, progress=progress)
    table = path.with_suffix(".csv")
    atomic.write_atomic(table, confusion_csv(scores, called))
    write(draw_confusion(scores, first_names(called)), path, table)


@command
def classes(
    checkpoint: Checkpoint,
    store: StorePath,
    split: Split = None,
    names: Names = None,
    device: Device = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Errors class by class, and where labels may be to blame: convnet show classes runs/photos stores/photos

    The most confused pairs and the most confident mistakes with pictures; labels to look at; pictures that are in train
    too, the same bytes or nearly. Beside it, as .csv, the table of the classes.
    """
    from convnet.io import atomic
    from convnet.visualize import classes as find
    from convnet.visualize.classes import classes_csv, draw_classes
    from convnet.visualize.duplicates import near_duplicates
    from convnet.visualize.labels import first_names

    path = target(out, "classes")
    net, called = _net(checkpoint, names, device)
    short, tested, train = first_names(called), net.split_of(store, split), net.split_of(store, "train")
    with shown(quiet) as progress:
        duplicates = None if tested.name == "train" else near_duplicates(tested, train, progress=progress)
        result = find(net.evaluate(tested, progress=progress), duplicates)
    table = path.with_suffix(".csv")
    atomic.write_atomic(table, classes_csv(result.rows, called))
    _tell(result, tested, train, short)
    write(draw_classes(result, tested, train, net.preprocessing, short), path, table)


def _tell(result: "Classes", tested: "data.Split", train: "data.Split", names: Sequence[str]) -> None:
    """The findings in words, of each kind the first few."""
    from convnet.visualize.classes import DOUBT
    from convnet.visualize.duplicates import LIKE
    from convnet.visualize.plot import shortened

    scores, called = result.scores, [shortened(name, LETTERS) for name in names]
    pairs = [f"{called[p.label]} taken for {called[p.predicted]}: {p.count:,} of {p.n:,}" for p in result.pairs]
    _list("most often confused", pairs)
    doubts = [
        f"{tested.keys[scores.ids[row]]}: labelled {called[scores.labels[row]]}, the net says "
        f"{called[scores.predicted[row]]} ({scores.probabilities[row, 0]:.1%})"
        for row in result.doubts
    ]
    _list(f"labels to look at ({DOUBT})", doubts)
    if result.duplicates is None:
        return
    duplicates = []
    for pair in result.duplicates:
        correlation = f"{'mirrored, ' if pair.mirrored else ''}correlation {pair.correlation:.3f}"
        labels = "" if tested.labels[pair.first] == train.labels[pair.second] else "; under two labels"
        files = f"{tested.name} {tested.keys[pair.first]} and train {train.keys[pair.second]}"
        duplicates.append(f"{files}: {'the same bytes' if pair.exact else correlation}{labels}")
    _list(f"in {tested.name} and train (the same bytes, or thumbnails that correlate by {LIKE} or more)", duplicates)


def _list(title: str, lines: Sequence[str]) -> None:
    print(f"{title}:" if lines else f"{title}: none")
    more = [f"... and {len(lines) - TOLD:,} more"] if len(lines) > TOLD else []
    print_lines(f"  {line}" for line in [*lines[:TOLD], *more])


def _net(checkpoint: Path, names: Path | None, device: str) -> tuple["TrainedNet", tuple[str, ...]]:
    """The net, and what its classes are called, with all synonyms."""
    from convnet.visualize.labels import class_names

    net = load_net(checkpoint, device)
    return net, class_names(net.classes, names)
