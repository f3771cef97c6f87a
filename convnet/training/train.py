"""How does a net learn? The loop, in plain sight: epochs, steps, the paper's update rule, checkpoints, validation.

A run is a folder:

    metrics.jsonl    a row every few steps and one an epoch; the same for the same recipe, store and machine
    metrics.csv      the epochs as a table
    timing.jsonl     seconds and pictures of each epoch (apart, because they differ from run to run)
    last.ckpt        everything to go on from; last.previous.ckpt is the one before
    best.ckpt        the net with the smallest validation error
    epoch-0005.ckpt  the net after an epoch of the recipe's keep_epochs
    events.out.tfevents.*   the curves for TensorBoard, where they are asked for
    recipe.toml      the recipe; environment.json: versions, device, store; summary.json: the result
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic

import torch

from convnet import checkpoint
from convnet.checkpoint import BEST, KEPT, LAST
from convnet.data import device_loader
from convnet.data.device_loader import Feed, Resident
from convnet.data.loader import Loader
from convnet.data.store import Store
from convnet.device import choose as choose_device
from convnet.device import keep_memory
from convnet.errors import DataError, Diverged, Interrupted, UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.metrics import Scores
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic, strict_json
from convnet.io.processes import ALONE, Parallel, Processes
from convnet.io.signals import Stop
from convnet.io.strict_json import Json
from convnet.nets import describe
from convnet.progress import SILENT, Progress
from convnet.recipe import Recipe, load_recipe
from convnet.training import hand, health, metrics_log, schedule, step, tensorboard
from convnet.training.data import Data, choose_data
from convnet.training.micro_batch import MicroBatch, peak_bytes
from convnet.training.run import (
    METRICS,
    TIMING,
    Run,
    begin,
    diverged,
    lower_rate,
    picture_shape,
    save,
    snapshot,
    write_table,
)
from convnet.training.step import StepResult, Steps

ROWS_AN_EPOCH = 20  # step rows in metrics.jsonl
FEWER_FROM = 100  # epoch from which they get fewer, and metrics.csv rarer: else each epoch would write more


def train(
    recipe: Recipe | atomic.PathLike,
    store: Store | atomic.PathLike,
    out: atomic.PathLike,
    *,
    resume: bool = False,
    init_from: atomic.PathLike | None = None,
    device: str | torch.device = "auto",
    workers: int = 1,
    micro_batch: MicroBatch | None = None,
    resident: Resident = "auto",
    progress: Progress = SILENT,
    stop: Stop | None = None,
    command: str = "",
    processes: Processes = ALONE,
    parallel: Parallel = "data",
    events: bool = False,
) -> Json:
    """Trains by `recipe` (or the one of that name or file) on `store` in the run folder `out`; returns its summary.

    resume: goes on from the newest whole checkpoint in `out`, as if never stopped (bitwise on the CPU with as many
    threads). init_from: a checkpoint whose weights a new run begins with, as far as its net has them (init_from.py).
    workers: threads that read ahead; they change nothing. micro_batch: pictures that go through the net at once, "auto"
    for as many as fit; of a larger batch the gradients are accumulated (micro_batch.py). resident: on a CUDA device,
    whether the training pictures lie in its memory, and how (device_loader.py). processes: with which this one trains
    together (`io.processes.joined`); each calls `train` alike, and the first one writes. parallel: by "columns" each
    holds one column of the net (nets/column_parallel.py), by "fully-connected" each has its part of every batch in the
    convolutions, and its units of the fully connected layers (nets/connected_parallel.py). events: for TensorBoard too.

    Raises: UsageError when recipe, store and folder don't fit; Diverged; Interrupted after saving; DiskError.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(atomic.as_path(recipe, "the recipe"))
    store, out = store if isinstance(store, Store) else Store(store, progress), atomic.as_path(out, "the run's folder")
    _check_before(events, micro_batch, processes)
    source = None if init_from is None else atomic.as_path(init_from, "init_from")
    data = choose_data(recipe, store)
    chosen = choose_device(recipe.precision, device)
    n_columns = describe.check_parallel(parallel, recipe.net, recipe.net_options, processes.n)
    if parallel == "columns":
        processes = processes.over_columns(n_columns, chosen.device.type)
    processes = replace(processes, split=parallel == "fully-connected")
    if chosen.device.type == "cpu":
        keep_memory()
    device_loader.check(resident, chosen.device, recipe)  # before there is a run's folder
    pixels = device_loader.pixels(resident)
    try:
        with _locked(out, processes):
            run = begin(recipe, data, out, chosen, resume, command, progress, source, micro_batch, pixels, processes)
            run.events = _events(run) if events and processes.is_first else None
            with run.saving:
                data = _train_epochs(run, data, workers, resident, progress, stop)
            return _finish(run, data, device, progress, stop)
    finally:
        with suppress(OSError):
            out.rmdir()  # only if it is empty: a run that could not begin leaves nothing


def _train_epochs(
    run: Run, data: Data, workers: int, resident: Resident, progress: Progress, stop: Stop | None
) -> Data:
    """All that are still to do; what the last one was trained and validated on."""
    recipe, steps, feed = run.recipe, step.choose(run.step, progress.note), None
    while not schedule.finished(recipe, run.position.epoch, run.position.validation_errors, run.position.hand):
        if recipe.fold_epoch and run.position.epoch >= recipe.fold_epoch and data.val is not None:
            data, feed = data.folded, None
        feed = feed or _feed(run, data, workers, resident, progress, stop)
        train_epoch(run, steps, feed, progress, stop)
        _end_epoch(run, data, progress, stop)
    return data


def _check_before(events: bool, micro_batch: MicroBatch | None, processes: Processes) -> None:
    """Raises: UsageError for what shows before there is a store."""
    if events:
        tensorboard.check()
    if processes.n > 1 and micro_batch == "auto":
        raise UsageError("--batch auto measures one process's memory; for several say how many pictures go at once")


def _events(run: Run) -> tensorboard.Events:
    return tensorboard.Events(run.out, run.out / TIMING, metrics_log.read(run.out / METRICS))


def _feed(run: Run, data: Data, workers: int, resident: Resident, progress: Progress, stop: Stop | None) -> Feed:
    """The training batches, from where they are read best."""
    device = run.step.device.device
    loader = Loader(data.train, data.store.statistics, data.train_ids, run.recipe, run.preprocessing, device,
                    workers, run.step.input_dtype, stop, run.processes.data)  # fmt: skip
    if run.processes.n > 1:  # no picture lies on the device: each process reads its own part
        return loader
    step_bytes = partial(peak_bytes, run.step, picture_shape(run.recipe))
    return device_loader.choose(loader, resident, step_bytes, progress)


@contextmanager
def _locked(out: Path, processes: Processes) -> Iterator[None]:
    """The run's folder is the first process's alone. Raises: in every process what is raised there."""
    with ExitStack() as stack:

        def lock() -> None:
            if processes.is_first:
                stack.enter_context(atomic.lock(out, "training"))

        processes.together(lock)
        yield


def train_epoch(run: Run, steps: Steps, loader: Feed, progress: Progress, stop: Stop | None) -> None:
    """The steps of the epoch that are still to do."""
    recipe, epoch = run.recipe, run.position.epoch
    if run.position.batch == 0:
        hand.take(run, progress)
    lr = schedule.rate(recipe, epoch, run.position.validation_errors, run.position.hand)
    began, first = monotonic(), run.position.pictures
    per_epoch = len(loader.ids)
    progress.start(f"epoch {epoch}/{recipe.epochs}", per_epoch, first, per_epoch * (recipe.epochs - epoch))
    run.step.begin(epoch)

    def count(results: list[StepResult]) -> None:
        for result in results:
            _count(run, result, lr, loader)
            _show(run, progress, len(loader))

    def log_time() -> None:
        seconds, pictures = monotonic() - began, run.position.pictures - first
        if run.processes.is_first:
            metrics_log.append(run.out / TIMING, {"epoch": epoch, "seconds": seconds, "pictures": pictures})

    try:
        for batch in run.processes.agreed(loader.epoch(epoch, run.position.batch), lambda: bool(stop)):
            number = run.position.step + steps.pending
            if number in health.LOOKS:
                count(steps.wait())
                health.look(run, batch, progress)
            steps.forward_backward(batch, number, partial(interruptible, run, stop, log_time))
            count(steps.update(lr))
            run.saving.check()
            if is_due(run):
                count(steps.wait())
                save(run, beside=True)
        count(steps.wait())
    except (DataError, Interrupted) as error:  # also a store that was damaged while it was read: what was learned stays
        count(steps.wait())
        save(run)
        raise error if isinstance(error, DataError) else Interrupted(_stopped(run)) from None
    finally:
        log_time()


def is_due(run: Run) -> bool:
    """Whether it's time to save; by columns all must, when the first one's clock says so."""
    due = run.processes.is_first and monotonic() - run.saved > 60 * run.recipe.save_minutes
    return run.processes.any(due) if run.in_parts else due


@contextmanager
def interruptible(run: Run, stop: Stop | None, saved: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Around the gradients of a step, which a signal need not wait for: no weight has moved yet.

    saved: is called when the step is cut and the run is saved, before the process ends. By columns a step is waited
    for, as no process can save without the others.
    """
    if stop is None or run.in_parts:
        yield
        return
    buffers = {
        f"{name}.{own}": buffer.clone()
        for name, norm in run.batch_norms.items()
        for own, buffer in norm.named_buffers()
    }

    def keep() -> str:
        save(run, buffers)
        saved()
        return _stopped(run)

    with stop.may_cut(keep):
        yield


def _stopped(run: Run) -> str:
    return f"stopped in epoch {run.position.epoch}, step {run.position.step:,}; everything is saved in {run.out}"


def _count(run: Run, result: StepResult, lr: float, loader: Feed) -> None:
    """Moves the position by one step; every few steps a row. Raises: Diverged when its loss is not finite."""
    ids, loss, wrong = result
    n, at = len(ids), run.position
    run.last_ids = ids
    if not math.isfinite(loss):
        raise diverged(run, f"the loss became {loss} in", at.step + 1)
    run.position = replace(
        at,
        batch=at.batch + 1,
        step=at.step + 1,
        loss_sum=at.loss_sum + loss * n,
        errors=at.errors + wrong,
        pictures=at.pictures + n,
    )
    n_rows = max(1, ROWS_AN_EPOCH * FEWER_FROM // max(at.epoch, FEWER_FROM))
    if at.batch % max(1, len(loader) // n_rows) == 0:
        row: dict[str, metrics_log.Value] = {"kind": "step", "epoch": at.epoch, "step": at.step + 1, "lr": lr}
        _log(run, row | {"loss": loss, "error": wrong / n})


def _log(run: Run, row: metrics_log.Row) -> None:
    if run.processes.is_first:
        run.record.extend(metrics_log.append(run.out / METRICS, row))
        if run.events is not None:
            run.events.add(row)
    run.position = replace(run.position, rows=run.position.rows + 1)


def _show(run: Run, progress: Progress, steps: int) -> None:
    at = run.position
    errors = {"train": f"{at.errors / at.pictures:.1%}"}
    if at.validation_errors:
        errors["val"] = f"{at.validation_errors[-1]:.1%}"
    shown = ", ".join(f"{name} {error}" for name, error in errors.items())
    progress.update(at.pictures, step=f"{at.batch}/{steps}", loss=f"{at.loss_sum / at.pictures:.3f}", error=shown)


def _end_epoch(run: Run, data: Data, progress: Progress, stop: Stop | None) -> None:
    """Validation, the epoch's row, and the checkpoints."""
    at, epoch = run.position, run.position.epoch
    lr = schedule.rate(run.recipe, epoch, at.validation_errors, at.hand)
    row: dict[str, metrics_log.Value] = {"kind": "epoch", "epoch": epoch, "step": at.step, "lr": lr}
    row |= {"train_loss": at.loss_sum / at.pictures, "train_error": at.errors / at.pictures}
    best, folded = False, data is not run.data
    errors = at.validation_errors
    kept = snapshot(run, velocity=False)
    if data.val is not None:
        if run.in_parts or run.step.average:
            net = TrainedNet.of(kept, run.step.device)
        else:
            net = TrainedNet(run.net, run.preprocessing, data.store.classes, run.step.device)
        try:
            with interruptible(run, stop):
                scores = net.evaluate(data.val, ids=data.val_ids, stop=stop, processes=run.processes)
        except Interrupted:
            save(run)  # at the end of the epoch's steps: resuming validates again
            raise Interrupted(_stopped(run)) from None
        except NotFinite as error:
            raise Diverged(f"{error}; {lower_rate(run)}") from error
        row |= {"val_loss": scores.loss, "val_top1_error": scores.top1, "val_top5_error": scores.top5}
        best = at.best_error is None or scores.top1 <= at.best_error  # of equals the later
        errors = (*errors, scores.top1)
    _log(run, row)
    run.position = replace(
        run.position,
        epoch=epoch + 1,
        batch=0,
        loss_sum=0.0,
        errors=0,
        pictures=0,
        validation_errors=errors,
        best_error=errors[-1] if best else None if folded else at.best_error,
    )
    if epoch % max(1, epoch // FEWER_FROM) == 0 and run.processes.is_first:
        write_table(run)
    also = [BEST] if best or folded else []  # nothing tells later nets apart: the last is taken
    also += [KEPT.format(epoch)] if epoch in run.recipe.keep_epochs else []
    save(run, gathered=kept.weights, also=also, beside=True)
    progress.finish()
    progress.note(_epoch_line(row, run.recipe.epochs))
    health.check_epoch(run, data, at, progress)


def _epoch_line(row: metrics_log.Row, epochs: int) -> str:
    text = f"epoch {row['epoch']}/{epochs}  lr {row['lr']:g}"
    text += f"  train loss {row['train_loss']:.4f} error {row['train_error']:.2%}"
    if "val_loss" in row:
        text += f"  val loss {row['val_loss']:.4f} error {row['val_top1_error']:.2%}"
    return text


def _finish(run: Run, data: Data, device: str | torch.device, progress: Progress, stop: Stop | None) -> Json:
    """Tests the best net once on the pictures that had no part in training; writes summary.json."""
    processes = run.processes
    if processes.is_first:
        write_table(run)  # of a long run the last epochs may be missing
    processes.wait()  # for the first one's files
    has_best = (run.out / BEST).exists()
    chosen = run.out / (BEST if has_best else LAST)
    kept = checkpoint.load(chosen)
    net = TrainedNet.of(kept, choose_device("fp32", device))  # as `convnet evaluate` does
    times = metrics_log.read(run.out / TIMING)
    seconds, pictures = (sum(float(row[name] or 0) for row in times) for name in ("seconds", "pictures"))
    counts = data.store.header["counts"]
    summary: Json = {
        "net": run.recipe.net,
        "recipe": run.recipe.name,
        "parameters": sum(p.numel() for p in net.net.parameters()),
        "classes": len(data.store.classes),
        "epochs": run.position.epoch - 1,
        "steps": run.position.step,
        "checkpoint": chosen.name,
        "best_epoch": kept.position.epoch - 1,
        "training_seconds": seconds,
        "pictures_per_second": pictures / seconds if seconds else 0.0,
        "left_out": {"skipped": counts["skipped"], "failed": counts["failed"]},
    }
    if data.val is not None:
        scores = net.evaluate(data.val, ids=data.val_ids, stop=stop, processes=processes)
        summary["validation"] = _figures(scores)
    if "test" in data.store.splits and data.store.splits["test"].n:
        test = data.store.split("test")
        summary["test"] = _figures(net.evaluate(test, progress=progress, stop=stop, processes=processes))
    if not processes.is_first:
        return summary
    for name in (METRICS, TIMING):  # until the run has ended, resuming repairs them
        atomic.sync_file(run.out / name)
    atomic.write_atomic(run.out / "summary.json", strict_json.seal(summary))
    return summary


def _figures(scores: Scores) -> Json:
    return {"n": scores.n, "top1_error": scores.top1, "top5_error": scores.top5, "loss": scores.loss}
