"""The verbs that bring weights in and out: their arguments and what they print."""

from pathlib import Path
from typing import Annotated

import typer

from convnet.cli.options import AsJson, Checkpoint, Fit, Quiet, output
from convnet.cli.progress_bar import shown
from convnet.cli.verb import print_json, print_lines
from convnet.errors import UsageError


def import_(
    file: Annotated[str, typer.Argument(help="A file of weights, or a known one's name: vgg16.torchvision.")],
    net: Annotated[str | None, typer.Option(help="The net it is for [as the file says, or is known].")] = None,
    out: Annotated[Path | None, output(help="The checkpoint to write [weights/NAME.ckpt].")] = None,
    mean: Annotated[Path | None, typer.Option(help="Caffe's mean: .binaryproto or .npy, BGR.")] = None,
    classes: Annotated[Path | None, typer.Option(help="A name a line, or synset_words.txt.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="A layer of another name, THEIRS=OURS; repeatable.")] = None,
    entry: Annotated[str | None, typer.Option(help="Which of several sets in the file: state_dict_ema.")] = None,
    channels: Annotated[str | None, typer.Option(help="What the first layer reads, rgb or bgr [Caffe's rule].")] = None,
    pixels: Annotated[str | None, typer.Option(help="How torchvision scaled pixels: imagenet or half.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what fits, as from a file without fc.")] = False,
    fit: Fit = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Others' weights to a checkpoint: convnet import bvlc_alexnet.caffemodel --net alexnet_caffe --mean mean.npy

    Caffe's .caffemodel, state dicts of torchvision, timm and of trainings (.pth, .ckpt), .npz; nothing in them is run.
    A .safetensors that `export` wrote needs no options. The report names every tensor: where it went and what was done.
    """
    from convnet.data.resize import fit_of
    from convnet.weights import import_weights

    with shown(quiet or as_json) as progress:
        written, report = import_weights(
            file, net, out, mean=mean, classes=classes, partial=partial, pixels=pixels, rename=_pairs(rename or []),
            entry=entry, channels=channels, fit=None if fit is None else fit_of(fit), progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({"checkpoint": str(written), **report.to_dict()})
    else:
        print_lines([*report.lines(), f"net: {written}"])


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        theirs, _, ours = text.partition("=")
        if not theirs or not ours or theirs in pairs:
            raise UsageError(f"--rename {text}: must be THEIRS=OURS, as fc8_flowers=fc8, each of theirs once")
        pairs[theirs] = ours
    return pairs


def export(
    checkpoint: Checkpoint,
    file: Annotated[
        Path, typer.Argument(help="What to write: .onnx, .safetensors, .caffemodel, .npz, .html; a folder.")
    ],
    names: Annotated[str, typer.Option(help="Of a .safetensors: convnet, torchvision, timm, caffe.")] = "convnet",
    hub: Annotated[bool, typer.Option("--hub", help="A folder: weights, timm's config.json, a model card.")] = False,
    takes: Annotated[
        str, typer.Option("--input", metavar="crop|picture|file", help="What an .onnx takes; the others resize inside.")
    ] = "crop",
    floats: Annotated[bool, typer.Option("--float", help="An .onnx takes float32 grey levels, not uint8.")] = False,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="An .onnx in int8, by this store's pictures; its cost is said."),
    ] = None,
    runtime: Annotated[Path | None, typer.Option(help="Of an .html: the folder dist of onnxruntime-web.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A net for other programs: convnet export runs/photos/best.ckpt photos.onnx

    An .onnx takes pixels and gives probabilities; it's compared with torch before it's there. Others hold the weights,
    under our names, torchvision's or Caffe's; a .caffemodel has its .prototxt beside. Nothing is written over.
    """
    from convnet.checkpoint import load
    from convnet.data.store import Store
    from convnet.evaluation.trained_net import checkpoint_at
    from convnet.export import export as run
    from convnet.export.hub import export_hub

    if hub and (names != "convnet" or floats or takes != "crop" or runtime or int8):
        raise UsageError("--hub writes weights, and chooses their names: leave out what is for other files")
    if hub:
        written = export_hub(checkpoint, file)
    else:
        with shown(quiet or as_json) as progress:
            store = None if int8 is None else Store(int8, progress)
            written = run(load(checkpoint_at(checkpoint)), file, names=names, floats=floats, takes=takes,
                          runtime=runtime, int8=store, progress=progress)  # fmt: skip
    if as_json:
        print_json(written.to_dict())
        return
    print_lines(f"note: {note}" for note in written.notes)
    if written.difference is not None:
        of = "" if written.int8 is None else "of the net in fp32, "
        print(f"{of}onnxruntime gives torch's probabilities; the largest difference is {written.difference:.1e}")
    if written.int8 is not None:
        print_lines(written.int8.lines())
    print_lines(["written: " + ", ".join(map(str, written.files))])
