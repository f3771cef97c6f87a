"""The commands of `convnet show` that ask about units: maps, deconv."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from convnet.cli.options import Checkpoint, Device, Quiet, Split
from convnet.cli.progress_bar import shown
from convnet.cli.show import Layer, Out, command, numbers, target, write
from convnet.cli.verb import load_net
from convnet.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convnet.data.store import Split as StoreSplit
    from convnet.evaluation.trained_net import TrainedNet
    from convnet.nets.layers import Net
    from convnet.progress import Progress
    from convnet.visualize.deconv import Form
    from convnet.visualize.search import Ints

Maps = Annotated[str | None, typer.Option(help="Numbers of maps, as 3,17; the first is 0.")]


@command
def maps(
    checkpoint: Checkpoint,
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    layer: Layer = None,
    maps: Maps = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """A layer's activations for a picture: convnet show maps runs/photos dog.jpg --layer relu1

    Every map, or those of --maps, on one scale; the net's columns apart. Without --layer the last convolution.
    """
    from convnet.evaluation.seen import from_files
    from convnet.visualize import maps as find
    from convnet.visualize.maps import draw_maps
    from convnet.visualize.stages import last_convolution

    path = target(out, "maps")
    net = load_net(checkpoint, device)
    (seen,) = from_files([picture], net.preprocessing)
    found = find(net, seen, layer or last_convolution(net.net), numbers("--maps", maps))
    write(draw_maps(found), path)


@command
def deconv(
    checkpoint: Checkpoint,
    store: Annotated[Path | None, typer.Argument(metavar="STORE", help="The pictures to search.")] = None,
    layer: Annotated[str | None, typer.Option(help="Stages, as conv3,conv5 [the last convolution].")] = None,
    maps: Maps = None,
    n: Annotated[int, typer.Option(help="Without --maps: so many that are excited most.")] = 6,
    picture: Annotated[Path | None, typer.Option(help="Project this picture's strongest units.")] = None,
    over_training: Annotated[
        bool, typer.Option("--over-training", help="After each epoch that the run kept (recipe: keep_epochs).")
    ] = False,
    split: Split = None,
    among: Annotated[int | None, typer.Option(help="Search so many pictures, drawn [all].")] = None,
    form: Annotated[str, typer.Option(help="deconv, guided or gradient: the way back.")] = "deconv",
    device: Device = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """What maps look for, by the deconvnet: convnet show deconv runs/photos stores/photos --layer conv3 --maps 3,17

    For each map the nine pictures that excite it most: what did it, projected down to the pixels, and beside it what
    the unit sees (Zeiler and Fergus, figures 2 and 4). The store is read once for all layers.
    """
    from convnet.visualize.deconv import checked_form

    path = target(out, "deconv")
    wanted = _Wanted(layer.split(",") if layer else [], numbers("--maps", maps), n, checked_form(form))
    if wanted.maps is not None and len(wanted.layers) != 1:
        raise UsageError("--maps are those of one layer: name it with --layer")
    if n < 1:
        raise UsageError(f"--n {n}: at least 1 map")
    with shown(quiet) as progress:
        if picture is not None:
            if store is not None or over_training or split is not None or among is not None:
                raise UsageError("--picture takes the place of a store, --split, --among and --over-training")
            figure = _of_picture(load_net(checkpoint, device), picture, wanted)
        elif store is None:
            raise UsageError("name a store to search, or a picture with --picture")
        elif over_training:
            figure = _of_epochs(checkpoint, device, _pictures(store, split, among), wanted, progress)
        else:
            figure = _of_store(load_net(checkpoint, device), _pictures(store, split, among), wanted, progress)
    write(figure, path)


class _Wanted(NamedTuple):
    """Of which layers (none: the last convolution), which maps, or how many, in which form."""

    layers: list[str]
    maps: list[int] | None
    n: int
    form: "Form"

    def of(self, net: "Net") -> dict[str, list[int] | None]:
        from convnet.visualize.stages import last_convolution

        return dict.fromkeys(self.layers or [last_convolution(net)], self.maps)


class _Searched(NamedTuple):
    """The pictures of a store that are searched; ids: None for all."""

    split: "StoreSplit"
    ids: "Ints | None"
    text: str


def _of_store(net: "TrainedNet", searched: _Searched, wanted: _Wanted, progress: "Progress") -> "Figure":
    """Zeiler and Fergus, figure 2."""
    from convnet.visualize import top_activations
    from convnet.visualize.project import draw_features, project

    by_stage = top_activations(net, searched.split, wanted.of(net.net), ids=searched.ids, progress=progress)
    features = []
    for top in by_stage.values():
        which = range(len(top.maps)) if wanted.maps is not None else top.strongest_maps(wanted.n)
        features += project(net, top, which, searched.split, wanted.form)
    best = f"the {by_stage[features[0].stage].ids.shape[1]} pictures of {searched.text}"
    return draw_features(features, f"Left: {TITLES[wanted.form]} of the strongest unit in each of {best} that excite "
                         "the map most, each scaled by itself. Right: what the unit sees. The numbers are the first "
                         "and the last of these activations.")  # fmt: skip


def _of_picture(net: "TrainedNet", picture: Path, wanted: _Wanted) -> "Figure":
    from convnet.evaluation.seen import from_files
    from convnet.visualize.project import draw_features, project_picture

    (seen,) = from_files([picture], net.preprocessing)
    features = []
    for stage, chosen in wanted.of(net.net).items():
        features += project_picture(net, seen, stage, chosen, wanted.form, wanted.n)
    return draw_features(features, f"Left: {TITLES[wanted.form]} of the map's strongest unit for this picture, each "
                         "scaled by itself. Right: what the unit sees. The number is its activation.")  # fmt: skip


def _of_epochs(checkpoint: Path, device: str, searched: _Searched, wanted: _Wanted, progress: "Progress") -> "Figure":
    """Zeiler and Fergus, figure 4."""
    from convnet.visualize.project import draw_evolution, epoch_checkpoints, over_training

    epochs = epoch_checkpoints(checkpoint.parent if checkpoint.is_file() else checkpoint)
    last = load_net(epochs[max(epochs)], device)
    evolution = over_training(
        epochs, wanted.of(last.net), searched.split, last.device, most=wanted.n, form=wanted.form, ids=searched.ids,
        progress=progress
    )  # fmt: skip
    text = f"After each epoch the picture of {searched.text} that excited the map most, and its activation. Above: "
    text += f"{TITLES[wanted.form]} of the unit, each scaled by itself. Below: what it sees."
    return draw_evolution(evolution, list(epochs), text)


TITLES = {"deconv": "the deconvnet's projection", "guided": "the guided gradient", "gradient": "the gradient"}


def _pictures(path: Path, split: str | None, among: int | None) -> _Searched:
    from convnet.data.store import Store
    from convnet.evaluation.pictures import split_to_test
    from convnet.evaluation.seen import some

    chosen = split_to_test(Store(path), split)
    ids = some(chosen.n, among) if among is not None else None
    n = chosen.n if ids is None else len(ids)
    return _Searched(chosen, ids, f"{chosen.name} ({n:,} searched)")
