"""What is the state of a run, and how does one begin, go on and stay on the disk?"""

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from convnet import __version__, checkpoint
from convnet.checkpoint import BEST, LAST, PREVIOUS, Checkpoint, Position
from convnet.data import preprocess
from convnet.data.decode import stored_by
from convnet.data.store import Store
from convnet.device import Device
from convnet.errors import DataError, Diverged, UsageError
from convnet.evaluation.trained_net import checkpoint_at
from convnet.io import atomic, strict_json
from convnet.io.processes import ALONE, Processes
from convnet.io.strict_json import Json
from convnet.nets import create_model
from convnet.nets.batch_norm import has_batch_norm
from convnet.nets.column_parallel import Share, column_of
from convnet.nets.connected_parallel import parts_of
from convnet.nets.layers import Net
from convnet.progress import Progress
from convnet.recipe import Recipe, to_toml
from convnet.training import memory_layout, metrics_log, micro_batch
from convnet.training.averaging import layout
from convnet.training.data import Data
from convnet.training.init_from import init_from
from convnet.training.micro_batch import MicroBatch
from convnet.training.saving import Saving, is_finite
from convnet.training.schedule import check_layers
from convnet.training.step import EagerSteps
from convnet.training.tensorboard import Events

ADDED = ("forms", "pixels", "processes")  # to what a checkpoint says of its run, after the first ones were written
NOT_BITWISE = "the run goes on, but not bitwise as if never stopped"
METRICS, TIMING, HAND = "metrics.jsonl", "timing.jsonl", "lr.jsonl"  # in a run's folder; HAND: what `convnet lr` asked
OURS = (METRICS, TIMING, HAND, "metrics.csv", "recipe.toml", "environment.json", "summary.json", "diverged.json", BEST)


@dataclass
class Run:
    """The state of a run: what a checkpoint keeps, and where it is kept."""

    recipe: Recipe
    data: Data
    preprocessing: preprocess.Preprocessing
    net: Net
    step: EagerSteps
    position: Position
    provenance: Json
    out: Path
    saved: float  # monotonic seconds of the last save
    record: bytearray  # what metrics.jsonl has; one piece, as many small ones take half as much again
    share: Share  # of the net's tensors, which this process holds
    processes: Processes = ALONE  # that train together; the first one writes
    last_ids: NDArray[np.int64] | None = None  # pictures of the last step
    warned: bool = False  # of activations (health.py)
    events: Events | None = None  # for TensorBoard, where it is asked for
    saving: Saving = field(default_factory=Saving)

    @cached_property
    def batch_norms(self) -> dict[str, BatchNorm]:
        """The net's, by their paths: looked for once, as there are steps of a millisecond."""
        return {path: each for path, each in self.net.named_modules() if isinstance(each, BatchNorm)}

    @property
    def in_parts(self) -> bool:
        """Whether this process holds a part of the net; what looks at the whole net is then done by all."""
        return self.processes.holders.n > 1


def begin(
    recipe: Recipe,
    data: Data,
    out: Path,
    device: Device,
    resume: bool,
    command: str,
    progress: Progress,
    source: Path | None = None,
    size: MicroBatch | None = None,
    pixels: str = "as stored",
    processes: Processes = ALONE,
) -> Run:
    """A run with its initial weights (those that the checkpoint `source` has, loaded from it), or the one in `out`.

    size: of the micro-batch. processes: that train together; only the first one writes to `out`.
    """
    if resume and source is not None:
        raise UsageError(f"a run that goes on has weights already; leave out --start-from {source}, or --resume")
    store = data.store
    here = environment(device, store, command) | {"pixels": pixels, "processes": layout(processes, recipe)}
    if resume:
        net, state = _resumed(recipe, store, out, here, progress, repair=processes.is_first)
    else:
        net, state = _fresh(recipe, store, here, source, progress)
        processes.together(lambda: _make_room(out) if processes.is_first else None)
    recorded = state.provenance.get("layout", memory_layout.CHANNELS_LAST) if resume else None
    chosen = memory_layout.choose(net, recipe, device, recorded, processes.n)
    device, here = chosen.of(device), here | {"layout": chosen.name}
    n_parameters, share = sum(p.numel() for p in net.parameters()), Share.of(net, processes)
    if processes.holders.n > 1:
        net = parts_of(net, processes) if processes.split else column_of(net, processes.holders)
    net = device.take(net)
    step = EagerSteps(net, recipe, device, processes=processes)
    if state.velocity is not None:
        step.load(share.take(state.velocity), share.take(state.weights))
    if recipe.balance == "loss":
        step.class_weights = torch.from_numpy(data.class_weights).to(device.device)
    step.micro_batch = micro_batch.choose(step, picture_shape(recipe), size, progress)
    provenance, record = dict(state.provenance), bytearray(state.record or b"")
    run = Run(recipe, data, state.preprocessing, net, step, state.position, provenance, out, monotonic(), record,
              share, processes)  # fmt: skip
    _keep_rounding(run, chosen.name, recorded, progress)
    progress.note(f"{recipe.net}, {n_parameters:,} parameters; {device.reason}; {chosen}; {device.forms()}")
    if "decoder" in here:
        progress.note(f"pictures decoded by {here['decoder']}")
    _warn(run, progress)
    present = snapshot(run, velocity=False) if resume else None
    if not resume or state.recipe != recipe:
        save(run)  # a disk that can't hold the run says so now; of a resumed run the epochs may have changed
    if not processes.is_first:
        return run
    if present is not None:
        _check_best(run, present, progress)
    atomic.write_atomic(out / "recipe.toml", to_toml(recipe).encode())  # what lies beside the checkpoints, anew
    atomic.write_atomic(out / "environment.json", strict_json.seal(here))
    atomic.write_atomic(out / METRICS, run.record)
    write_table(run)
    return run


def _keep_rounding(run: Run, layout: str, recorded: str | None, progress: Progress) -> None:
    """What rounds otherwise, kept for the run's next beginning; a warning where it isn't as the run began.

    recorded: the layout that the run began with, if it goes on.
    """
    first = run.provenance.setdefault("pictures_at_once", run.step.micro_batch)
    if first != run.step.micro_batch:
        progress.warn(f"{first} pictures at once are now {run.step.micro_batch}: {NOT_BITWISE}")
    if run.provenance.setdefault("layout", recorded or layout) != layout:
        progress.warn(f"layout was {recorded} and is {layout}: {NOT_BITWISE}")


def _warn(run: Run, progress: Progress) -> None:
    """Of what is learned otherwise than somebody may think."""
    store = run.data.store
    if len(store.classes) == 1:
        progress.warn(f"{store.path} has one class: no answer can be wrong, and nothing is learned")
    if run.processes.data.n > 1 and has_batch_norm(run.net) and not run.recipe.sync_batch_norm:
        progress.warn(
            "batch norm sees the mean and variance of each process's part of a batch: that is another step than the "
            "whole batch's; in a new run --set sync_batch_norm=true lets it see the whole"
        )


def _fresh(
    recipe: Recipe, store: Store, environment: Json, source: Path | None, progress: Progress
) -> tuple[Net, Checkpoint]:
    """The net of a new run, and its state but for the weights."""
    mean = store.statistics.mean_rgb
    begun = checkpoint.load(checkpoint_at(source)).preprocessing if source and recipe.mean == "start" else None
    preprocessing = preprocess.of_recipe(recipe, store.mean_picture, mean, store.shorter_side, store.fit, begun)
    net, provenance = fresh_net(recipe, len(store.classes)), environment
    if source is not None:
        loaded = init_from(net, recipe, store.classes, source)
        provenance = environment | {"start": loaded.to_dict()}
        for line in loaded.lines():
            progress.note(line)
        for warning in loaded.warnings:
            progress.warn(warning)
    return net, Checkpoint(recipe, preprocessing, store.classes, {}, provenance=provenance)


def _resumed(
    recipe: Recipe, store: Store, out: Path, environment: Json, progress: Progress, repair: bool
) -> tuple[Net, Checkpoint]:
    """The net and the state of the run in `out`; `repair`: what lies beside its checkpoints is mended where it must."""
    state, path, warnings = checkpoint.load_newest(out)
    for warning in warnings:
        progress.warn(warning)
    _check_same(state, recipe, environment, store, path, progress)
    net = checkpoint.rebuild(replace(state, recipe=recipe))
    if state.unaveraged is not None:
        net = checkpoint.rebuild(replace(state, recipe=recipe, weights=state.unaveraged))
    if not repair:
        return net, state
    record = _record(state, out, progress)
    if lost := metrics_log.keep_whole(out / TIMING):
        progress.warn(f"{out / TIMING} is damaged: the run's time leaves out {lost} of its rows")
    progress.note(f"going on from {path}: epoch {state.position.epoch}, step {state.position.step:,}")
    return net, replace(state, record=record)


def write_table(run: Run) -> None:
    """metrics.csv: the epochs of the record, if one has ended."""
    if b'"kind": "epoch"' in run.record:
        rows = metrics_log.Rows(run.out / METRICS, _Epochs(run.record))
        metrics_log.write_csv(rows, run.out / "metrics.csv")


@dataclass(frozen=True)
class _Epochs:
    """The lines of a record that are of epochs, one at a time: all that there are would be held with each epoch."""

    record: bytearray

    def __iter__(self) -> Iterator[bytes]:
        for found in re.finditer(rb'^.*"kind": "epoch".*\n', self.record, re.M):
            yield found[0]


def _record(kept: Checkpoint, out: Path, progress: Progress) -> bytes:
    """The record when the checkpoint was written: its own, or of an earlier version's what is whole."""
    if kept.record is not None:
        return bytes(kept.record)
    lost = metrics_log.keep_whole(out / METRICS, kept.position.rows)
    rows = metrics_log.read(out / METRICS)
    if lost or len(rows) < kept.position.rows:
        progress.warn(f"{out / METRICS} has lost rows; the run goes on without them")
    return b"".join(metrics_log.line(row) for row in rows)


def _check_best(run: Run, present: Checkpoint, progress: Progress) -> None:
    """best.ckpt must be whole and this run's best; if it isn't, it's written anew where that is possible.

    present: the net of this moment."""
    at, path = run.position, run.out / BEST
    if at.best_error is None:
        return
    epoch = 1 + max(n for n, error in enumerate(at.validation_errors) if error == at.best_error)
    try:
        best = checkpoint.load(path) if path.exists() else None
        problem = "is not there" if best is None else _not_ours(best, run, epoch)
    except DataError as error:
        problem = f"is damaged ({error})"
    if problem is None:
        return
    if (at.epoch, at.batch) == (epoch + 1, 0):  # the net of this moment is the best
        progress.warn(f"{path} {problem}: written anew")
        checkpoint.save(path, present)
        return
    run.position = replace(at, best_error=None)
    with atomic.disk_errors(path):
        path.unlink(missing_ok=True)
    progress.warn(
        f"{path} {problem}: the net of epoch {epoch}, the best so far ({at.best_error:.2%} validation error), is lost; "
        f"{BEST} will be the best of the epochs that follow, or {LAST} where none does"
    )


def _not_ours(best: Checkpoint, run: Run, epoch: int) -> str | None:
    """What shows that a checkpoint is not that of this run after that epoch."""
    if replace(best.recipe, epochs=run.recipe.epochs) != run.recipe:
        return "is another run's: its recipe differs"
    if best.provenance.get("store_sha256") != run.provenance.get("store_sha256"):
        return "is another run's: it was trained on another store"
    errors = run.position.validation_errors[:epoch]
    if best.position.epoch != epoch + 1 or best.position.validation_errors != errors:
        return f"is another net than that of epoch {epoch}"
    return None


def fresh_net(recipe: Recipe, n_classes: int) -> Net:
    """The recipe's net with its initial weights, tried on one black picture.

    Raises: UsageError when net, options, classes, channels or crop don't fit together.
    """
    net = create_model(recipe.net, num_classes=n_classes, init=recipe.init, seed=recipe.seed, **recipe.net_options)
    check_layers(recipe, (name for name, _ in net.named_parameters()))
    with torch.inference_mode():
        net.eval()(torch.zeros(1, *picture_shape(recipe)))
    return net.train()


def picture_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(C, H, W) of what the recipe's net sees."""
    return (1 if recipe.channels == "grey" else 3), recipe.crop, recipe.crop


def _make_room(out: Path) -> None:
    """Leaves `out` without a former run's files: those of one that was killed before its first checkpoint go."""
    if (out / LAST).exists() or (out / PREVIOUS).exists():
        raise UsageError(f"{out} holds a run; go on with it by --resume, or choose another folder with --out")
    strange = sorted(path.name for path in out.iterdir() if path.name not in OURS and not path.name.startswith("."))
    if strange:
        raise UsageError(f"{out} is not empty (it holds {strange[0]!r}); choose a new folder with --out")
    for name in OURS:
        with atomic.disk_errors(out / name):
            (out / name).unlink(missing_ok=True)


def _check_same(
    kept: Checkpoint, recipe: Recipe, environment: Json, store: Store, path: Path, progress: Progress
) -> None:
    """Only the number of epochs may change when a run goes on."""
    if replace(kept.recipe, epochs=recipe.epochs) != recipe:
        raise UsageError(f"{path} was trained by another recipe; resume with its own, recipe.toml in the run's folder")
    if kept.provenance.get("store_sha256") != environment["store_sha256"]:
        raise UsageError(f"{path} was trained on another store than {store.path}; resume with the store it began with")
    if kept.velocity is None:
        raise DataError(f"{path} holds no velocity; it can be tested, but not resumed")
    if recipe.average and kept.unaveraged is None:
        raise DataError(f"{path} holds only the weights' average; it can be tested, but not resumed")
    for name in ("threads", "device", "forms", "torch", "decoder", "pixels", "processes"):
        was, now = kept.provenance.get(name), environment.get(name)
        if name not in kept.provenance and name in ADDED:
            continue  # a run of an earlier version
        if was != now:
            progress.warn(f"{name} was {was} and is {now}: {NOT_BITWISE}")


def environment(device: Device, store: Store, command: str) -> Json:
    """On what a run is made: versions, machine, device, store and command."""
    return {
        "convnet": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.reason,
        "forms": device.forms(),
        "threads": device.threads,
        "store": str(store.path.resolve()),
        "store_sha256": store.identity,
        **({"decoder": stored_by()} if store.encoding == "jpeg" else {}),
        "command": command,
    }


def save(
    run: Run,
    buffers: Mapping[str, Tensor] | None = None,
    gathered: Mapping[str, Tensor] | None = None,
    also: Sequence[str] = (),
    beside: bool = False,
) -> None:
    """last.ckpt, the one before it kept, and first the files `also`, with the net alone.

    buffers: those of the net at the position, where a step that has begun may have changed them (batch norm's).
    gathered: the whole net's weights, where they are known. beside: the files may be written while training goes on.

    Raises: Diverged rather than save weights that aren't finite; DiskError, of this save or of the one before.
    """
    finite = is_finite(run.net.parameters())  # a device synchronisation
    if run.processes.any(not finite) if run.in_parts else not finite:
        raise diverged(run, "the weights are no longer finite after", run.position.step)
    if not (run.processes.is_first or run.in_parts):
        return
    kept = snapshot(run, velocity=True, gathered=gathered)
    if not run.processes.is_first:
        return
    moving = kept.weights if kept.unaveraged is None else kept.unaveraged
    moving.update({name: value for name, value in (buffers or {}).items() if name in moving})
    run.saving.save(run.out, kept, also, beside)
    run.saved = monotonic()


def diverged(run: Run, what: str, step: int) -> Diverged:
    """The error of a run whose last step is the one at which it happened; its pictures are named in diverged.json."""
    path, epoch = run.out / "diverged.json", run.position.epoch
    keys = [] if run.last_ids is None else [run.data.train.keys[i] for i in run.last_ids.tolist()]
    report = {"what": what, "epoch": epoch, "step": step, "pictures": keys}
    if run.processes.is_first:
        atomic.write_atomic(path, json.dumps(report, indent=1).encode())
    return Diverged(f"{what} epoch {epoch}, step {step:,}; its pictures are in {path}; {lower_rate(run)}")


def lower_rate(run: Run) -> str:
    """What to do when a run has diverged: its own recipe can't change, so another run takes the last good net."""
    lr, last = f"--set lr={run.recipe.lr / 10:g}", run.out / LAST
    again = f"convnet train {run.data.store.path} --recipe {run.out / 'recipe.toml'} {lr}"
    return f"the last good net is {last}; try a lower rate: {again}, from the beginning or with --start-from {last}"


def snapshot(run: Run, velocity: bool, gathered: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """The run as it is, `weights` the average where one is kept. By columns every process asks, and gets the whole."""
    weights, average = run.net.state_dict(), run.step.average
    return Checkpoint(
        recipe=run.recipe,
        preprocessing=run.preprocessing,
        classes=run.data.store.classes,
        weights=dict(gathered) if gathered else run.share.gather({**weights, **average}),
        unaveraged=run.share.gather(weights) if velocity and average else None,
        velocity=run.share.gather(run.step.rule.state()) if velocity else None,
        position=run.position,
        provenance=run.provenance,
        record=run.record if velocity else None,
    )
