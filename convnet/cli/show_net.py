"""The commands of `convnet show` that need only a net or a run's record: filters, specialisation, curves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from convnet.cli.show import Checkpoint, Out, command, target, written
from convnet.cli.verb import loaded
from convnet.errors import UsageError


@command
def filters(
    checkpoint: Checkpoint,
    layer: Annotated[str | None, typer.Option("--layer", help="A layer with kernels, as conv2 [the first].")] = None,
    most: Annotated[int, typer.Option(help="Of a layer that reads maps: how many kernels a column.")] = 16,
    slices: Annotated[int, typer.Option(help="Of a layer that reads maps: how many of a kernel's inputs.")] = 24,
    out: Out = None,
) -> None:
    """The kernels, by column: convnet show filters runs/photos

    The first layer's as AlexNet's figure 3, with each kernel's share of colour; any other layer's as grey tiles.
    """
    from convnet.visualize import plot
    from convnet.visualize.filters import draw_filters, name_of
    from convnet.visualize.filters import filters as of

    path = target(out, "filters")
    if min(most, slices) < 1:
        raise UsageError("--most and --slices must be at least 1")
    found = of(loaded(checkpoint, "cpu").net, layer)
    plot.save(draw_filters(found, most, slices), path)
    for column in range(len(found.column_colour)):
        print(name_of(found, column) or f"{found.layer}: reads grey pictures")  # noqa: T201
    written(path)


@command
def specialisation(checkpoint: Checkpoint, out: Out = None) -> None:
    """What each column of a net learned: convnet show specialisation runs/photos

    The first layer's kernels by column: how much of each is colour, how selective it is for orientation, and at which
    frequency and direction it lies.
    """
    import numpy as np

    from convnet.visualize import plot
    from convnet.visualize.specialisation import draw_specialisation
    from convnet.visualize.specialisation import specialisation as of

    path = target(out, "specialisation")
    found = of(loaded(checkpoint, "cpu").net)
    plot.save(draw_specialisation(found), path)
    for i, each in enumerate(found.columns):
        medians = {name: float(np.nanmedian(getattr(each, name))) for name in ("colour", "selectivity", "frequency")}
        print(f"column {i}, medians: " + ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))  # noqa: T201
    written(path)


@command
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Runs' folders.")],
    out: Out = None,
) -> None:
    """Loss and errors by epoch: convnet show curves runs/relu runs/tanh

    One run: loss and errors, and where the learning rate changed. Several: their errors in one picture, as AlexNet's
    figure 1.
    """
    from convnet.visualize import plot
    from convnet.visualize.curves import curves as of
    from convnet.visualize.curves import draw_curves

    path = target(out, "curves")
    found = [of(run) for run in runs]
    taken = Counter(each.name for each in found)
    for i, run in enumerate(runs):
        if taken[found[i].name] > 1:
            found[i] = replace(found[i], name=f"{run.resolve().parent.name}/{found[i].name}")
    plot.save(draw_curves(found), path)
    written(path)
