"""What is the state of a run, and how does one begin, go on and stay on the disk?"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnet import __version__, checkpoint, device, draws, files, fit, preprocess, runlog
from convnet.checkpoint import BEST, LAST, PREVIOUS, Checkpoint, Position
from convnet.decode import stored_by
from convnet.errors import DataError, Diverged, UsageError
from convnet.fit import AtOnce
from convnet.nets import create_model
from convnet.nets.layers import Net
from convnet.progress import Progress
from convnet.recipe import Recipe, to_toml
from convnet.start import take_over
from convnet.step import Step
from convnet.store import Split, Store

STORED = "as stored"  # pixels that the net sees
ADDED = ("forms", "pixels")  # to what a checkpoint says of its run, after the first ones were written
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"  # names in a run's folder
OURS = (METRICS, TIMING, "metrics.csv", "recipe.toml", "environment.json", "summary.json", "diverged.json", BEST)


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on: pictures of a store by their positions. `val` is None when there is none."""

    store: Store
    train: Split
    train_ids: NDArray[np.int64]
    val: Split | None
    val_ids: NDArray[np.int64]


@dataclass
class Run:
    """The state of a run: what a checkpoint keeps, and where it is kept."""

    recipe: Recipe
    preprocessing: preprocess.Preprocessing
    classes: tuple[str, ...]
    net: Net
    step: Step
    position: Position
    provenance: Mapping[str, Any]
    where: device.Device
    out: Path
    saved: float  # monotonic seconds of the last save


def choose_data(recipe: Recipe, store: Store) -> Data:
    """What to train and validate on: the store's val split, or the share of train that the recipe holds out."""
    if store.size != recipe.size:
        raise UsageError(
            f"{store.path} holds pictures of {store.size} pixels, recipe {recipe.name} wants {recipe.size}; "
            f"prepare the source with --size {recipe.size}, or choose --set size={store.size} and a crop that fits"
        )
    split = store.split("train")
    everything = np.arange(split.n)
    if "val" in store.splits and store.splits["val"].n:
        val = store.split("val")
        return Data(store, split, everything, val, np.arange(val.n))
    order = draws.permutation(split.n, recipe.seed, draws.stream("validation"))
    held = round(recipe.validation * split.n)
    if held >= split.n:
        raise UsageError(f"validation = {recipe.validation:g} leaves none of the {split.n} pictures to train on")
    if held:
        return Data(store, split, np.sort(order[held:]), split, np.sort(order[:held]))
    if recipe.schedule == "plateau":
        raise UsageError(
            f"recipe {recipe.name} lowers its rate by the validation error, but {store.path} has no val split; "
            "hold out a part of train with --set validation=0.1"
        )
    return Data(store, split, everything, None, everything[:0])


def begin(
    recipe: Recipe,
    data: Data,
    out: Path,
    where: device.Device,
    resume: bool,
    command: str,
    progress: Progress,
    start: Path | None = None,
    at_once: AtOnce | None = None,
    pixels: str = STORED,
) -> Run:
    """A run with fresh weights, or with those that it may take from the checkpoint `start`, or the one in `out`."""
    if resume and start is not None:
        raise UsageError(f"a run that goes on has weights already; leave out --start-from {start}, or --resume")
    store = data.store
    environment = _environment(where, store, command) | {"pixels": pixels}
    if not resume:
        mean = store.statistics.mean_rgb
        preprocessing = preprocess.of_recipe(recipe, store.mean_picture, mean, store.shorter_side)
        net = fresh_net(recipe, len(store.classes))
        position, provenance, velocity = Position(), dict(environment), None
        if start is not None:
            provenance["start"] = _begin_with(net, recipe, store, start, progress)
        _make_room(out)
    else:
        kept, path, warnings = checkpoint.load_newest(out)
        for warning in warnings:
            progress.warn(warning)
        _check_same(kept, recipe, environment, store, path, progress)
        preprocessing, position, provenance = kept.preprocessing, kept.position, dict(kept.provenance)
        net, velocity = checkpoint.rebuild(replace(kept, recipe=recipe)), kept.velocity
        if runlog.truncate(out / METRICS, position.rows) < position.rows:
            progress.warn(f"{out / 'metrics.jsonl'} has lost rows; the run goes on without them")
        progress.note(f"going on from {path}: epoch {position.epoch}, step {position.step:,}")
    files.write_atomic(out / "recipe.toml", to_toml(recipe).encode())  # resuming may have changed the epochs
    files.write_atomic(out / "environment.json", json.dumps(environment, indent=1).encode())
    net = where.take(net)
    step = Step(net, recipe, where)
    if velocity is not None:
        step.rule.load(velocity)
    step.piece = fit.choose(step, picture_shape(recipe), at_once, progress)
    _check_pieces(provenance, step.piece, progress)
    run = Run(recipe, preprocessing, store.classes, net, step, position, provenance, where, out, monotonic())
    progress.note(
        f"{recipe.net}, {sum(p.numel() for p in net.parameters()):,} parameters; {where.reason}; {where.forms()}"
    )
    if "decoder" in environment:
        progress.note(f"pictures decoded by {environment['decoder']}")
    if len(store.classes) == 1:
        progress.warn(f"{store.path} has one class: no answer can be wrong, and nothing is learned")
    if not resume:
        save(run)  # a disk that can't hold the run says so now
    return run


def _begin_with(net: Net, recipe: Recipe, store: Store, path: Path, progress: Progress) -> dict[str, Any]:
    """Takes over what the net may from a checkpoint, and tells it; returns what all of the run's checkpoints keep."""
    start = take_over(net, recipe, store.classes, path)
    for line in start.lines():
        progress.note(line)
    for warning in start.warnings:
        progress.warn(warning)
    return start.to_dict()


def fresh_net(recipe: Recipe, n_classes: int) -> Net:
    """The recipe's net with its initial weights, tried on one black picture.

    Raises: UsageError when net, options, classes, channels or crop don't fit together.
    """
    options: dict[str, Any] = dict(recipe.net_options)
    net = create_model(recipe.net, num_classes=n_classes, init=recipe.init, seed=recipe.seed, **options)
    with torch.inference_mode():
        net.eval()(torch.zeros(1, *picture_shape(recipe)))
    return net.train()


def picture_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(C, H, W) of what the recipe's net sees."""
    return (1 if recipe.channels == "grey" else 3), recipe.crop, recipe.crop


def _check_pieces(provenance: dict[str, Any], piece: int, progress: Progress) -> None:
    """The run's first number of pictures at once is kept; another one rounds otherwise."""
    was = provenance.setdefault("pictures_at_once", piece)
    if was != piece:
        progress.warn(f"{was} pictures at once are now {piece}: the run goes on, but not bitwise as if never stopped")


def _make_room(out: Path) -> None:
    """Leaves `out` without a former run's files: those of one that was killed before its first checkpoint go."""
    if (out / LAST).exists() or (out / PREVIOUS).exists():
        raise UsageError(f"{out} holds a run; go on with it by --resume, or choose another folder with --out")
    strange = sorted(path.name for path in out.iterdir() if path.name not in OURS and not path.name.startswith("."))
    if strange:
        raise UsageError(f"{out} is not empty (it holds {strange[0]!r}); choose a new folder with --out")
    for name in OURS:
        (out / name).unlink(missing_ok=True)


def _check_same(
    kept: Checkpoint, recipe: Recipe, environment: Mapping[str, Any], store: Store, path: Path, progress: Progress
) -> None:
    """Only the number of epochs may change when a run goes on."""
    if replace(kept.recipe, epochs=recipe.epochs) != recipe:
        raise UsageError(f"{path} was trained by another recipe; resume with its own, recipe.toml in the run's folder")
    if kept.provenance.get("store_sha256") != environment["store_sha256"]:
        raise UsageError(f"{path} was trained on another store than {store.path}; resume with the store it began with")
    if kept.velocity is None:
        raise DataError(f"{path} holds no velocity; it can be tested, but not resumed")
    for name in ("threads", "device", "forms", "torch", "decoder", "pixels"):
        was, now = kept.provenance.get(name), environment.get(name)
        if name not in kept.provenance and name in ADDED:
            continue  # a run of an earlier version
        if was != now:
            progress.warn(f"{name} was {was} and is {now}: the run goes on, but not bitwise as if never stopped")


def _environment(where: device.Device, store: Store, command: str) -> dict[str, Any]:
    return {
        "convnet": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": where.reason,
        "forms": where.forms(),
        "threads": where.threads,
        "store": str(store.path.resolve()),
        "store_sha256": store.identity,
        **({"decoder": stored_by()} if store.encoding == "jpeg" else {}),
        "command": command,
    }


def save(run: Run) -> None:
    """last.ckpt, the one before it kept. Raises: Diverged rather than save weights that aren't finite."""
    if not all(bool(torch.isfinite(weight).all()) for weight in run.net.parameters()):  # a device synchronisation
        raise Diverged(f"the weights are no longer finite; the last good net is {run.out / LAST}; try a lower rate")
    checkpoint.save(run.out / LAST, snapshot(run, velocity=True), keep_previous=True)
    run.saved = monotonic()


def snapshot(run: Run, velocity: bool) -> Checkpoint:
    return Checkpoint(
        recipe=run.recipe,
        preprocessing=run.preprocessing,
        classes=run.classes,
        weights=dict(run.net.state_dict()),
        velocity=run.step.rule.state() if velocity else None,
        position=run.position,
        provenance=run.provenance,
    )
