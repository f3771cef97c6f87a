"""The commands of `convnet show` that need only a net or a run's record: filters, specialisation, curves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from convnet.cli.options import Checkpoint
from convnet.cli.show import Out, command, target, write
from convnet.cli.verb import load_net
from convnet.errors import UsageError


@command
def filters(
    checkpoint: Checkpoint,
    layer: Annotated[str | None, typer.Option(help="A layer with kernels, as conv2 [the first].")] = None,
    most: Annotated[int, typer.Option(help="Of a layer that reads maps: how many kernels a column.")] = 16,
    slices: Annotated[int, typer.Option(help="Of a layer that reads maps: how many of a kernel's inputs.")] = 24,
    out: Out = None,
) -> None:
    """The kernels, by column: convnet show filters runs/photos

    The first layer's as AlexNet's figure 3, with each kernel's share of colour; any other layer's as grey tiles.
    """
    from convnet.visualize.filters import draw_filters, name_of
    from convnet.visualize.filters import filters as of

    path = target(out, "filters")
    if min(most, slices) < 1:
        raise UsageError("--most and --slices must be at least 1")
    kernels = of(load_net(checkpoint, "cpu").net, layer)
    for column in range(len(kernels.column_colour)):
        print(name_of(kernels, column) or f"{kernels.layer}: reads grey pictures")
    write(draw_filters(kernels, most, slices), path)


@command
def specialisation(checkpoint: Checkpoint, out: Out = None) -> None:
    """What each column of a net learned: convnet show specialisation runs/photos

    The first layer's kernels by column: how much of each is colour, how selective it is for orientation, and at which
    frequency and direction it lies.
    """
    import numpy as np

    from convnet.visualize.specialisation import draw_specialisation
    from convnet.visualize.specialisation import specialisation as of

    path = target(out, "specialisation")
    result = of(load_net(checkpoint, "cpu").net)
    for i, column in enumerate(result.columns):
        medians = {name: float(np.nanmedian(getattr(column, name))) for name in ("colour", "selectivity", "frequency")}
        print(f"column {i}, medians: " + ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))
    write(draw_specialisation(result), path)


@command
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Runs' folders.")],
    out: Out = None,
) -> None:
    """Loss and errors by epoch: convnet show curves runs/relu runs/tanh

    One run: loss and errors, and where the learning rate changed. Several: their errors in one picture, as AlexNet's
    figure 1.
    """
    from convnet.visualize.curves import curves as of
    from convnet.visualize.curves import draw_curves

    path = target(out, "curves")
    drawn = [of(run) for run in runs]
    counts = Counter(run.name for run in drawn)
    for i, folder in enumerate(runs):
        if counts[drawn[i].name] > 1:
            drawn[i] = replace(drawn[i], name=f"{folder.resolve().parent.name}/{drawn[i].name}")
    write(draw_curves(drawn), path)
