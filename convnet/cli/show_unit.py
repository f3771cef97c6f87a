"""The commands of `convnet show` that ask about units: maps, deconv."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from convnet.cli.progress_bar import shown
from convnet.cli.show import Checkpoint, Layer, Out, Quiet, Split, command, target, written
from convnet.cli.verb import Place, loaded
from convnet.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convnet.data.store import Split as StoreSplit
    from convnet.evaluation.trained_net import TrainedNet
    from convnet.nets.layers import Net
    from convnet.progress import Progress
    from convnet.visualize.deconv import Form
    from convnet.visualize.search import Ints

Maps = Annotated[str | None, typer.Option("--maps", help="Numbers of maps, as 3,17; the first is 0.")]


@command
def maps(
    checkpoint: Checkpoint,
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    layer: Layer = None,
    maps: Maps = None,
    place: Place = "auto",
    out: Out = None,
) -> None:
    """A layer's activations for a picture: convnet show maps runs/photos dog.jpg --layer relu1

    Every map, or those of --maps, on one scale; the net's columns apart. Without --layer the last convolution.
    """
    from convnet.evaluation.seen import from_files
    from convnet.visualize import maps as find
    from convnet.visualize import plot
    from convnet.visualize.maps import draw_maps
    from convnet.visualize.stages import last_convolution

    path = target(out, "maps")
    net = loaded(checkpoint, place)
    (seen,) = from_files([picture], net.preprocessing)
    found = find(net, seen, layer or last_convolution(net.net), _numbers(maps))
    plot.save(draw_maps(found), path)
    written(path)


@command
def deconv(
    checkpoint: Checkpoint,
    store: Annotated[Path | None, typer.Argument(metavar="STORE", help="The pictures to search.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Stages, as conv3,conv5 [the last convolution].")] = None,
    maps: Maps = None,
    n: Annotated[int, typer.Option("--n", help="Without --maps: so many that are excited most.")] = 6,
    picture: Annotated[Path | None, typer.Option("--picture", help="Project this picture's strongest units.")] = None,
    over_training: Annotated[
        bool, typer.Option("--over-training", help="After each epoch that the run kept (recipe: keep_epochs).")
    ] = False,
    split: Split = None,
    among: Annotated[int | None, typer.Option("--among", help="Search so many pictures, drawn [all].")] = None,
    form: Annotated[str, typer.Option("--form", help="deconv, guided or gradient: the way back.")] = "deconv",
    place: Place = "auto",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """What maps look for, by the deconvnet: convnet show deconv runs/photos stores/photos --layer conv3 --maps 3,17

    For each map the nine pictures that excite it most: what did it, projected down to the pixels, and beside it what
    the unit sees (Zeiler and Fergus, figures 2 and 4). The store is read once for all layers.
    """
    from convnet.visualize import plot
    from convnet.visualize.deconv import checked_form

    path = target(out, "deconv")
    wanted = _Wanted(layer.split(",") if layer else [], _numbers(maps), n, checked_form(form))
    if wanted.maps is not None and len(wanted.layers) != 1:
        raise UsageError("--maps are those of one layer: name it with --layer")
    if n < 1:
        raise UsageError(f"--n {n}: at least 1 map")
    with shown(quiet) as progress:
        if picture is not None:
            if store is not None or over_training or split is not None or among is not None:
                raise UsageError("--picture takes the place of a store, --split, --among and --over-training")
            made = _of_picture(loaded(checkpoint, place), picture, wanted)
        elif store is None:
            raise UsageError("name a store to search, or a picture with --picture")
        elif over_training:
            made = _of_epochs(checkpoint, place, _pictures(store, split, among), wanted, progress)
        else:
            made = _of_store(loaded(checkpoint, place), _pictures(store, split, among), wanted, progress)
        plot.save(made, path)
    written(path)


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
    """The pictures of a store that are searched; `ids` is None for all."""

    split: "StoreSplit"
    ids: "Ints | None"
    text: str


def _of_store(net: "TrainedNet", where: _Searched, wanted: _Wanted, progress: "Progress") -> "Figure":
    """Zeiler and Fergus, figure 2."""
    from convnet.visualize import top_activations
    from convnet.visualize.project import draw_features, project

    found = top_activations(net, where.split, wanted.of(net.net), ids=where.ids, progress=progress)
    features = []
    for each in found.values():
        which = range(len(each.maps)) if wanted.maps is not None else each.strongest_maps(wanted.n)
        features += project(net, each, which, where.split, wanted.form)
    best = f"the {found[features[0].stage].ids.shape[1]} pictures of {where.text}"
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


def _of_epochs(checkpoint: Path, place: str, where: _Searched, wanted: _Wanted, progress: "Progress") -> "Figure":
    """Zeiler and Fergus, figure 4."""
    from convnet.visualize.project import draw_evolution, epoch_checkpoints, over_training

    kept = epoch_checkpoints(checkpoint.parent if checkpoint.is_file() else checkpoint)
    last = loaded(kept[max(kept)], place)
    found = over_training(
        kept, wanted.of(last.net), where.split, last.device, most=wanted.n, form=wanted.form, ids=where.ids,
        progress=progress,
    )  # fmt: skip
    text = f"After each epoch the picture of {where.text} that excited the map most, and its activation. Above: "
    text += f"{TITLES[wanted.form]} of the unit, each scaled by itself. Below: what it sees."
    return draw_evolution(found, list(kept), text)


TITLES = {"deconv": "the deconvnet's projection", "guided": "the guided gradient", "gradient": "the gradient"}


def _pictures(path: Path, split: str | None, among: int | None) -> _Searched:
    from convnet.data.store import Store
    from convnet.evaluation.pictures import split_to_test
    from convnet.evaluation.seen import some

    found = split_to_test(Store(path), split)
    ids = some(found.n, among) if among is not None else None
    n = found.n if ids is None else len(ids)
    return _Searched(found, ids, f"{found.name} ({n:,} searched)")


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--maps {text}: whole numbers with commas between them") from None
