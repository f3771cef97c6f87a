"""The verb extract: its arguments and what it prints."""

from pathlib import Path
from typing import Annotated

import typer

from convnet.cli.options import AsJson, Checkpoint, Device, Precision, Quiet, Split
from convnet.cli.progress_bar import plain, shown
from convnet.cli.verb import choose_device, print_json, print_lines

Views = Annotated[str, typer.Option(help="Averaged over: single, ten-crop, nine, multi-crop, 144-crop, dense.")]
Scales = Annotated[str | None, typer.Option(help="Shorter sides, as 256,384,512 [the training's own].")]


def extract(
    checkpoint: Checkpoint,
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="STORE|FOLDER|PICTURE...", help="A store, or any pictures: no classes needed."),
    ],
    stages: Annotated[str | None, typer.Option(help="As fc7,pool5 or conv2.0, or all [before the classes].")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write [features/NET-PICTURES].")] = None,
    kind: Annotated[str, typer.Option("--format", metavar="npy|hdf5|parquet", help="Of the arrays.")] = "npy",
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of their numbers.")] = "float32",
    normalize: Annotated[bool, typer.Option("--normalize", help="Each picture's of a stage to the length 1.")] = False,
    views: Views = "single",
    scales: Scales = None,
    split: Split = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Writes what a net makes of pictures: convnet extract runs/photos stimuli/ --stages conv5,fc7

    The activations of its stages, as arrays on the disk, with the pictures' names in the same order: docs/features.md.
    A stopped extraction goes on by the same command. Pictures that can't be read are named, and left out.
    """
    from convnet.data.sources.listing import slug
    from convnet.evaluation.trained_net import TrainedNet, checkpoint_at
    from convnet.io.atomic import sha256_file
    from convnet.io.signals import on_signals
    from convnet.retrieval.activations import before_classes, stages_of
    from convnet.retrieval.extract import extract as write
    from convnet.retrieval.pictures import pictures_at

    file = checkpoint_at(checkpoint)
    net = TrainedNet.load(file, choose_device(device, precision))
    chosen = stages_of(net, stages) if stages else [before_classes(net)]
    folder = out or Path("features") / f"{slug(file.resolve().parent)}-{slug(pictures[0])}"
    with shown(quiet) as progress, on_signals() as stop:
        found = write(net, sha256_file(file), pictures_at(pictures, split, progress), folder, chosen, kind=kind,
                      dtype=dtype, normalize=normalize, views=views, scales=scales, progress=progress,
                      stop=stop)  # fmt: skip
    if as_json:
        print_json({"folder": str(folder), **found.meta})
        return
    print_lines([f"{folder}: {len(found.keys):,} pictures"])
    for stage, row in found.meta["arrays"].items():
        shape = " x ".join(f"{side:,}" for side in row["shape"])
        print(plain(f"{stage}: {row['file']}, {dtype} {shape}, {row['what']}"))
