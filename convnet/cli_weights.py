"""The verb that brings weights in, as `cli.py` offers it: its arguments and what it prints."""

import json
from pathlib import Path
from typing import Annotated

import typer

from convnet.terminal import plain, shown


def import_(
    file: Annotated[str, typer.Argument(help="A file of weights, or a known one's name: vgg16.torchvision.")],
    net: Annotated[str | None, typer.Option(help="The net it is for [a known file's own].")] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint to write [weights/NAME.ckpt].")] = None,
    mean: Annotated[Path | None, typer.Option(help="Caffe's mean: .binaryproto or .npy, BGR.")] = None,
    classes: Annotated[Path | None, typer.Option(help="A name a line, or synset_words.txt.")] = None,
    pixels: Annotated[str | None, typer.Option(help="How torchvision scaled pixels: imagenet or half.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what fits, as from a file without fc.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Others' weights to a checkpoint: convnet import bvlc_alexnet.caffemodel --net alexnet_caffe --mean mean.npy

    Caffe's .caffemodel, state dicts of torchvision and timm (.pth, .safetensors), .npz; nothing in them is run. The
    report names every tensor: where it went and what was done to it.
    """
    from convnet.weights import import_weights

    with shown(quiet or as_json) as progress:
        written, report = import_weights(
            file, net, out, mean=mean, classes=classes, partial=partial, pixels=pixels, progress=progress
        )
    if as_json:
        print(json.dumps({"checkpoint": str(written), **report.to_dict()}, indent=1))  # noqa: T201
        return
    for line in report.lines():
        print(plain(line))  # noqa: T201
    print(f"net: {plain(str(written))}")  # noqa: T201
