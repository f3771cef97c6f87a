"""What does a user's word mean? A store, or a source that becomes one; a net, or nothing at all, becomes a recipe."""

from dataclasses import replace
from pathlib import Path

from convnet.checkpoint import LAST, Summary, load_newest, peek
from convnet.cli.stores import forget_unpacked, make_store, open_for, refuse_columns
from convnet.data.fitness import classes_line, refuse_unfit
from convnet.data.prepare import holds, settings_for
from convnet.data.sources import ANY, ColumnNames, Source
from convnet.data.sources.listing import slug
from convnet.data.store import Store, is_store
from convnet.errors import ConvnetError, UsageError, unknown
from convnet.io import atomic
from convnet.io.strict_json import Json, unseal
from convnet.nets import MODELS, recipe_of
from convnet.nets.describe import skeleton
from convnet.progress import Progress
from convnet.recipe import Recipe, load_recipe, with_settings
from convnet.training.fine_tuning import fine_tuning
from convnet.training.init_from import init_from
from convnet.training.run import fresh_net
from convnet.training.series import recipe_called
from convnet.weights import FOLDER
from convnet.weights.download import KNOWN

LENET_SIDE = 28  # pixels: pictures up to this side are taken for characters
STORES = Path("stores")  # where `convnet train` puts the stores that it makes itself


def start_at(given: Path | None) -> Path | None:
    """The checkpoint or run that a net is to begin with: one that is there, or known weights by their name."""
    if given is None or given.exists() or str(given) not in KNOWN:
        return given
    path = FOLDER / f"{given}.ckpt"
    if not path.exists():
        raise UsageError(f"{given} is not here yet: convnet import {given} fetches it, and makes {path}")
    return path


def plan_run(
    data: str,
    net: str | None,
    recipe: str | None,
    settings: list[str],
    progress: Progress,
    start: Path | None = None,
    layout: str | None = None,
    columns: ColumnNames = ANY,
) -> tuple[Store, Recipe]:
    """The store and the recipe of a new run; the store is made first when `data` is not one yet.

    start: the checkpoint that the run is to begin with; one that doesn't fit is told before a store is made.
    """
    if net is not None and net not in MODELS:
        raise UsageError(unknown("net", net, MODELS))
    chosen = recipe_called(recipe) if recipe is not None else None
    with_settings(chosen or Recipe(), settings)  # a wrong setting is told before long work begins
    path = Path(data)
    if data != "digits" and is_store(path):
        refuse_columns(data, columns)
        store = Store(path, progress)
        numbers = {name: split["per_class"] for name, split in store.header["splits"].items()}
        progress.note(classes_line(store.classes, numbers))
        refuse_unfit(data, store.classes, numbers)
        return store, _recipe(chosen, net, store.size, store.split("train").n, settings, progress, start, store.classes)
    place = STORES / f"{slug(path)}-unpacked"
    source = open_for(data, place, layout=layout, columns=columns)
    n = sum(entry.split == "train" for entry in source.entries)
    plan = _recipe(chosen, net, source.natural_size, n, settings, progress, start, source.classes)
    _try(plan, source.classes, start)
    made = _store_for(source, plan.size)
    if not is_store(made):
        progress.note(f"{data} is not a store yet: preparing {made}")
    store = make_store(source, made, settings_for(source, plan.size, "raw", None), progress)
    forget_unpacked(place)
    return store, plan


def _try(plan: Recipe, classes: tuple[str, ...], start: Path | None) -> None:
    """Makes the net as the run will, to say now what is wrong with recipe or start."""
    net = fresh_net(plan, len(classes))
    if start is not None:
        init_from(net, plan, classes, start)


def _recipe(
    chosen: Recipe | None,
    net: str | None,
    side: int | None,
    n: int,
    settings: list[str],
    progress: Progress,
    start: Path | None,
    classes: tuple[str, ...],
) -> Recipe:
    """The recipe that was asked for, or the one that suits net and data, or a net to begin with; with the net and the
    settings asked for."""
    if chosen is None and net is None and start is not None:
        chosen = fine_tuning(start, classes, n, side)
        progress.note(f"recipe {chosen.name} for {chosen.net} and {n:,} training pictures; --recipe chooses another")
    elif chosen is None:
        chosen, what = _suiting(net, side, n)
        progress.note(f"recipe {chosen.name}, chosen for {what}; --recipe chooses another")
    elif net is not None:
        chosen = replace(chosen, net=net)
    return with_settings(chosen, settings)


def _store_for(source: Source, size: int) -> Path:
    """stores/NAME-SIZE; with a number behind it where other pictures of that name were prepared before."""
    settings, number = settings_for(source, size, "raw", None), 1
    while True:
        path = STORES / (f"{source.name}-{size}" if number == 1 else f"{source.name}-{size}-{number}")
        if not is_store(path) or holds(path, source, settings):
            return path
        number += 1


def _suiting(net: str | None, side: int | None, n: int) -> tuple[Recipe, str]:
    """The recipe for a net (None: by the pictures' side, None for photos) and n training pictures; for what it is.

    A recipe of another net gets the net's own crop.
    """
    if net is None:
        net = "lenet5" if side is not None and side <= LENET_SIDE else "alexnet"
    recipe, what = load_recipe(recipe_of(net, n)), f"{n:,} training pictures"
    if recipe.net != net:
        recipe = replace(recipe, net=net, crop=skeleton(net).input_size)
        what = f"{net} (crop {recipe.crop}) and {what}"
    return recipe, what


def resume_run(
    data: str | None, out: Path | None, settings: list[str], progress: Progress
) -> tuple[Store, Recipe, Path]:
    """The store, the recipe and the folder of a run to go on with; of its recipe only the epochs may change."""
    if out is None:
        runs = sorted(path.parent for path in Path("runs").glob("*/last.ckpt"))
        known = f" (runs here: {', '.join(map(str, runs))})" if runs else ""
        raise UsageError(f"--resume needs the run's folder: convnet train --resume --out runs/NAME{known}")
    kept = peek(out)
    if kept is None:
        if not (out / LAST).exists():
            raise UsageError(f"{out} holds no run to resume (no {LAST}); start one without --resume")
        load_newest(out)  # says what is damaged
        raise AssertionError("a checkpoint whose header is damaged was loaded")
    plan = with_settings(kept.recipe, settings)
    _tell_other_recipe(out / "recipe.toml", kept.recipe, progress)
    if data is not None and is_store(Path(data)):
        return Store(Path(data), progress), plan, out
    path = Path(str(_environment(out, kept).get("store")))
    if not is_store(path):
        raise UsageError(f"the store {path} is not there; if it moved: convnet train STORE --resume --out {out}")
    if data is not None:
        progress.note(f"{data} is not a store: going on with the run's own, {path}")
    return Store(path, progress), plan, out


def _tell_other_recipe(path: Path, kept: Recipe, progress: Progress) -> None:
    """The checkpoint's recipe is the run's; the file beside it is for people, and written anew."""
    try:
        same = replace(load_recipe(path), epochs=kept.epochs) == kept
    except ConvnetError:
        same = False
    if not same:
        progress.warn(f"{path} is not the recipe of this run's checkpoint, which goes on; it is written anew")


def _environment(out: Path, kept: Summary) -> Json:
    """Where and how the run went on last: environment.json, or if that is damaged what the checkpoint says."""
    try:
        return unseal(atomic.read(out / "environment.json", atomic.TEXT))
    except (OSError, ValueError):
        return kept.provenance


def free_folder(parent: Path, name: str) -> Path:
    """parent/name, or parent/name-2, -3 ... where something is there already."""
    number, path = 1, parent / name
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path
