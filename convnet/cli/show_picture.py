"""The commands of `convnet show` that ask about single pictures: occlusion, cam."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnet.cli.options import Checkpoint, Device, Names, Quiet, Split
from convnet.cli.progress_bar import shown
from convnet.cli.show import Ids, Layer, Out, Pictures, command, seen_at, target, write
from convnet.cli.verb import load_net, print_lines
from convnet.errors import UsageError, unknown

if TYPE_CHECKING:
    from convnet.evaluation.seen import Seen
    from convnet.evaluation.trained_net import TrainedNet

Class = Annotated[str | None, typer.Option("--class", help="A class of the net [the true one, else the predicted].")]


@command
def occlusion(
    checkpoint: Checkpoint,
    pictures: Pictures,
    box: Annotated[int, typer.Option(help="Side of the grey square, pixels.")] = 32,
    stride: Annotated[int, typer.Option(help="Pixels from one place of the square to the next.")] = 8,
    class_: Class = None,
    layer: Layer = None,
    ids: Ids = None,
    split: Split = None,
    names: Names = None,
    device: Device = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """What a grey square costs, place by place: convnet show occlusion runs/photos dog.jpg --box 48

    The sum of the strongest feature map of --layer, the class's probability, and the most probable class (Zeiler and
    Fergus, figure 6). A file's true class is its folder's name, if the net has a class of that name.
    """
    from convnet.visualize.labels import first_names
    from convnet.visualize.occlusion import check_square, draw_occlusion
    from convnet.visualize.occlusion import occlusion as of

    path = target(out, "occlusion")
    net, called, chosen = _net_and_pictures(checkpoint, pictures, ids, split, names, device)
    check_square(box, stride, net.preprocessing.crop)
    label = _class(class_, net.classes, called)
    with shown(quiet) as progress:
        maps = [of(net, seen, label=label, layer=layer, box=box, stride=stride, progress=progress) for seen in chosen]
    print_lines(
        f"{each.picture.name}: {called[each.label]} {each.whole_probability:.1%}, "
        f"at least {each.probability.min():.1%} with the square"
        for each in maps
    )
    write(draw_occlusion(maps, first_names(called)), path)


@command
def cam(
    checkpoint: Checkpoint,
    pictures: Pictures,
    top: Annotated[int, typer.Option(help="How many of the most probable classes.")] = 2,
    class_: Annotated[str | None, typer.Option("--class", help="A class of the net, in place of --top.")] = None,
    layer: Annotated[str | None, typer.Option(help="A stage with maps, for Grad-CAM there [CAM, or the last].")] = None,
    ids: Ids = None,
    split: Split = None,
    names: Names = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Where a picture speaks for a class: convnet show cam runs/photos dog.jpg --top 3

    Class activation maps of nets that end in global average pooling; for others, and at a --layer, Grad-CAM: by the
    gradient. The picture says which of the two it is.
    """
    from convnet.visualize.cam import cam as of
    from convnet.visualize.cam import draw_cam
    from convnet.visualize.labels import first_names

    path = target(out, "cam")
    if top < 1:
        raise UsageError(f"--top {top}: must be at least 1")
    net, called, chosen = _net_and_pictures(checkpoint, pictures, ids, split, names, device)
    label = _class(class_, net.classes, called)
    labels = None if label is None else (label,)
    maps = [of(net, seen, labels=labels, layer=layer, top=top) for seen in chosen]
    print(f"{maps[0][0].kind} of {maps[0][0].layer}")
    write(draw_cam(maps, first_names(called)), path)


def _net_and_pictures(
    checkpoint: Path, pictures: list[Path], ids: str | None, split: str | None, names: Path | None, device: str
) -> tuple["TrainedNet", tuple[str, ...], list["Seen"]]:
    """The net, what its classes are called, and the pictures."""
    from convnet.visualize.labels import class_names

    net = load_net(checkpoint, device)
    return net, class_names(net.classes, names), seen_at(pictures, net, ids, split)


def _class(name: str | None, classes: Sequence[str], called: Sequence[str]) -> int | None:
    """The class of that name: the net's own, one for people, or one of its synonyms. Raises: UsageError."""
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    fits = [k for k, text in enumerate(called) if name in (text, *(each.strip() for each in text.split(",")))]
    if len(fits) > 1:
        raise UsageError(f"--class {name}: names {', '.join(classes[k] for k in fits)}; choose one of these")
    if not fits:
        raise UsageError(unknown("class", name, called))
    return fits[0]
