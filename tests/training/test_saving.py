"""Checkpoints that are written beside the training: nothing is lost or torn."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convnet import checkpoint, hardware
from convnet.checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from convnet.data.store import Store
from convnet.errors import DiskError, Diverged, Interrupted
from convnet.io import atomic
from convnet.io.signals import Stop
from convnet.progress import Silent
from convnet.recipe import load_recipe, with_settings
from convnet.training import run as running
from convnet.training import saving
from convnet.training.saving import Saving, is_finite
from convnet.training.step import EagerSteps
from convnet.training.train import train
from forked import run as forked

RECIPE = with_settings(load_recipe("lenet5_small"), ["epochs=3", "batch=63", "save_minutes=1000"])  # 5 steps an epoch
NAMES = (LAST, BEST, "metrics.jsonl", "metrics.csv")
SECONDS = 60  # after which something hangs


@pytest.fixture(scope="module")
def undisturbed(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(RECIPE, few_digits, out)
    return out


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Writer]":
    with Writer(monkeypatch) as writer:
        yield writer


class Writer:
    """The thread that writes waits before its `waits_at`-th file until it is let go, or fails there. The first is 1.

    wrote: what it has written, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits_at, self.fails_at = 0, 0
        self.error: BaseException = OSError(28, "No space left on device")
        self.wrote: list[str] = []
        self.waits, self.go = threading.Event(), threading.Event()
        save = checkpoint.save

        def saved(path: Path, kept: Checkpoint, **options: Any) -> None:
            if threading.current_thread().name != "save":
                return save(path, kept, **options)
            self.wrote.append(path.name)
            if len(self.wrote) == self.waits_at:
                self.waits.set()
                assert self.go.wait(SECONDS), "nobody lets the writer go"
            if len(self.wrote) == self.fails_at:
                with atomic.disk_errors(path):
                    raise self.error
            return save(path, kept, **options)

        monkeypatch.setattr(checkpoint, "save", saved)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()


class At(Silent):
    """Does something at a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act, self.steps = step, act, 0

    def update(self, done: int, **values: str) -> None:
        self.steps += "step" in values
        if "step" in values and self.steps == self.step:
            self.act()


def content(out: Path, names: tuple[str, ...] = NAMES) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names}


def no_thread() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "save"]


def goes_on_undisturbed(few_digits: Store, out: Path, undisturbed: Path) -> None:
    assert no_thread()
    train(RECIPE, few_digits, out, resume=True)
    assert content(out) == content(undisturbed)
    assert not [path.name for path in out.iterdir() if path.name.endswith(".part")]


def test_what_is_written_late_is_what_there_was(
    few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer
) -> None:
    """The first epoch's checkpoints are written while the second's steps move the weights and add to the record."""
    writer.waits_at = 1
    train(RECIPE, few_digits, tmp_path / "run", progress=At(9, writer.go.set))
    assert writer.waits.is_set()
    names = (*NAMES, PREVIOUS)
    assert content(tmp_path / "run", names) == content(undisturbed, names)
    assert writer.wrote[:2] == [BEST, LAST], "last.ckpt says that all before it is done"
    assert no_thread()


def test_the_end_of_a_run_waits_for_its_checkpoints(
    few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer
) -> None:
    """Whose best net is then tested, and told."""
    writer.waits_at, out = 1, tmp_path / "run"
    timer = threading.Timer(0.2, writer.go.set)
    timer.start()
    summary = train(replace(RECIPE, epochs=1), few_digits, out)
    timer.join()
    assert summary["best_epoch"] == 1
    assert checkpoint.load(out / LAST).position.epoch == 2
    assert no_thread()


@pytest.mark.parametrize("file", [1, 2], ids=["best", "last"])
def test_a_disk_that_is_full_meanwhile_ends_the_run_at_its_next_step(
    file: int, few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer
) -> None:
    out, writer.fails_at = tmp_path / "run", file

    def wait() -> None:
        for thread in (each for each in threading.enumerate() if each.name == "save"):
            thread.join()

    meanwhile = At(6, wait)
    with pytest.raises(DiskError, match=rf"{(BEST, LAST)[file - 1]}: disk full; free some space") as caught:
        train(RECIPE, few_digits, out, progress=meanwhile)
    assert caught.value.exit_code == 5
    assert meanwhile.steps == 6, "the first of the next epoch"
    assert checkpoint.load(out / LAST).position.step == 0
    goes_on_undisturbed(few_digits, out, undisturbed)


def test_a_disk_that_is_full_at_the_very_end_is_told(
    few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer
) -> None:
    out = tmp_path / "run"
    writer.fails_at = len(checkpoint.load(undisturbed / LAST).position.validation_errors) + 1
    with pytest.raises(DiskError, match="disk full"):
        train(RECIPE, few_digits, out)
    assert not (out / "summary.json").exists()
    goes_on_undisturbed(few_digits, out, undisturbed)


def test_a_failure_of_the_writer_that_is_ours_is_not_hidden(few_digits: Store, tmp_path: Path, writer: Writer) -> None:
    writer.fails_at, writer.error = 1, AssertionError("our own mistake")
    with pytest.raises(AssertionError, match="our own mistake"):
        train(RECIPE, few_digits, tmp_path / "run")
    assert no_thread()


def test_told_to_stop_meanwhile_it_saves_when_the_writer_is_done(
    few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer
) -> None:
    out, stop, writer.waits_at = tmp_path / "run", Stop(), 1

    def ask() -> None:
        stop.signal = signal.SIGTERM
        assert writer.waits.wait(SECONDS)
        threading.Timer(0.2, writer.go.set).start()

    with pytest.raises(Interrupted, match="step 7; everything is saved"):
        train(RECIPE, few_digits, out, progress=At(7, ask), stop=stop)
    assert checkpoint.load(out / LAST).position.step == 7
    assert checkpoint.load(out / PREVIOUS).position.step == 5
    goes_on_undisturbed(few_digits, out, undisturbed)


@pytest.mark.parametrize(("at", "before"), [(5, 0), (7, 5)])
def test_a_step_that_is_cut_meanwhile_is_saved_when_the_writer_is_done(
    at: int, before: int, few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By another thread, as the process ends in the middle of a step; the first one after a save is not saved again."""
    out, stop, writer.waits_at = tmp_path / "run", Stop(), 1
    gradients, left = EagerSteps.gradients, list[str]()

    class Cut(Exception):  # noqa: N818 - it stands for the end of the process
        pass

    def cut(text: str) -> None:
        left.append(text)
        raise Cut

    def calculated(step: EagerSteps, images: Tensor, labels: Tensor, number: int, *more: Any) -> Any:
        if number == at:
            assert writer.waits.wait(SECONDS)
            threading.Timer(0.2, writer.go.set).start()
            stop.cut(cut)
        return gradients(step, images, labels, number, *more)

    with monkeypatch.context() as patch:
        patch.setattr(EagerSteps, "gradients", calculated)
        with pytest.raises(Cut):
            train(RECIPE, few_digits, out, stop=stop)
    assert left[0].startswith(f"stopped in epoch 2, step {at}; everything is saved")
    assert checkpoint.load(out / LAST).position.step == at
    assert checkpoint.load(out / PREVIOUS).position.step == before
    goes_on_undisturbed(few_digits, out, undisturbed)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_a_run_waits_for_the_writer(
    error: type[BaseException], few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer
) -> None:
    out, writer.waits_at = tmp_path / "run", 1

    def end() -> None:
        threading.Timer(0.2, writer.go.set).start()
        raise error

    with pytest.raises(error):
        train(RECIPE, few_digits, out, progress=At(7, end))
    assert checkpoint.load(out / LAST).position.step == 5
    goes_on_undisturbed(few_digits, out, undisturbed)


def test_weights_that_are_not_finite_are_no_best_net(
    few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is one written that training has spoiled since: the copy is of before."""
    out = tmp_path / "run"
    save = running.save

    def spoiled(run: running.Run, *arguments: Any, **options: Any) -> None:
        if run.position.epoch == 3:
            with torch.no_grad():
                next(iter(run.net.parameters())).flatten()[0] = float("nan")
        save(run, *arguments, **options)

    monkeypatch.setattr("convnet.training.train.save", spoiled)
    with pytest.raises(Diverged, match="the weights are no longer finite after epoch 3, step 10"):
        train(RECIPE, few_digits, out)
    for name in (LAST, BEST):
        kept = checkpoint.load(out / name)
        assert kept.position.epoch == 2
        assert all(bool(torch.isfinite(weight).all()) for weight in kept.weights.values())


@pytest.mark.parametrize("short", ["free", "unknown", "allocation"])
def test_where_memory_is_short_it_is_written_at_once(
    short: str, few_digits: Store, undisturbed: Path, tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = 2 * 4 * 60_000
    if short == "allocation":

        def none(*_: object) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(saving, "_copies", none)
    else:
        free = None if short == "unknown" else int(n_bytes / saving.SHARE) - 1
        monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(None, free, None))
    train(RECIPE, few_digits, tmp_path / "run")
    assert writer.wrote == []
    assert content(tmp_path / "run") == content(undisturbed)


def test_a_copy_has_what_the_tensors_had_and_is_its_own() -> None:
    """In every layout and type that a net has."""
    images = torch.randn(3, 4, 5, 6)
    layouts = {
        "plain": images,
        "channels_last": images.to(memory_format=torch.channels_last),
        "turned": images.mT,
        "parameter": torch.nn.Parameter(images.clone()),
        "count": torch.tensor(3),
        "narrow": images.bfloat16(),
        "none": torch.empty(0, 3),
    }
    copies = saving._copies(layouts)
    assert copies is not None
    before = {name: tensor.detach().clone() for name, tensor in layouts.items()}
    for name, tensor in layouts.items():
        tensor.data.zero_()
        assert copies[name].dtype == tensor.dtype
        assert torch.equal(copies[name], before[name])
        assert copies[name].is_contiguous()
        assert not copies[name].requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found_and_large_ones_are_no_fault(bad: float) -> None:
    tensors = [torch.full((7, 3), 3e38), torch.zeros(5), torch.nn.Parameter(torch.full((4,), -3e38)), torch.zeros(())]
    assert is_finite(tensors)
    for tensor in tensors:
        flat = tensor.data.view(-1)
        former = flat[-1].item()
        flat[-1] = bad
        assert not is_finite(tensors)
        flat[-1] = former
    both = torch.tensor([float("inf"), -float("inf")])
    assert not is_finite([both])


def test_an_error_is_raised_once_and_by_whoever_comes_first(tmp_path: Path, writer: Writer) -> None:
    kept = small_checkpoint({"weight": torch.ones(3)})
    for comes_first in ("check", "wait", "save", "leave"):
        saver, writer.fails_at = Saving(), len(writer.wrote) + 1
        saver.save(tmp_path, kept, beside=True)
        assert saver._thread is not None
        if comes_first == "check":
            saver._thread.join()
        with pytest.raises(DiskError, match="disk full"):
            raises(saver, comes_first, tmp_path, kept)
        saver.check()
        saver.wait()
        saver.save(tmp_path, kept)
        assert checkpoint.load(tmp_path / LAST).weights["weight"].tolist() == [1, 1, 1]


def raises(saver: Saving, by: str, out: Path, kept: Checkpoint) -> None:
    if by == "check":
        saver.check()
    elif by == "wait":
        saver.wait()
    elif by == "save":
        saver.save(out, kept)
    else:
        with saver:
            pass


def small_checkpoint(weights: Mapping[str, Tensor]) -> Checkpoint:
    from convnet.data.preprocess import of_recipe

    recipe = replace(RECIPE, mean="none")
    return Checkpoint(recipe, of_recipe(recipe, None, None), ("a", "b"), dict(weights), velocity={})


MOMENTS = (  # of the writer: what it is about to do with which file for how manieth time, and in which epoch that is
    *((operation, f".{BEST}.part", 1, 1) for operation in ("open", "fsync")),
    ("replace", BEST, 1, 1),  # the second epoch has no best net
    *(("open", f".{LAST}.part", epoch, epoch) for epoch in (1, 2)),
    *(("fsync", f".{LAST}.part", i, 1 + (i > 2)) for i in (1, 2, 3, 4)),  # before the former one's new name, and after
    *(("replace", name, epoch, epoch) for name in (PREVIOUS, LAST) for epoch in (1, 2)),
)


def test_killed_at_each_moment_of_a_write_beside_the_training(few_digits: Store, tmp_path: Path) -> None:
    """By SIGKILL in the thread that writes, while the other trains; with one thread, on which the numbers depend."""
    torch.set_num_threads(1)
    undisturbed = tmp_path / "undisturbed"
    train(RECIPE, few_digits, undisturbed)
    jobs = [
        (1, [str(few_digits.path), str(tmp_path / f"run{i}"), *map(str, moment[:3])])
        for i, moment in enumerate(MOMENTS)
    ]
    ended = forked("test_saving:killed", jobs)
    for i, (moment, job) in enumerate(zip(MOMENTS, ended, strict=True)):
        assert job.codes == [-signal.SIGKILL], f"{moment}: {job.stderr}"
        out = tmp_path / f"run{i}"
        kept, path, warnings = checkpoint.load_newest(out)
        assert (path.name, warnings) == (LAST, []), moment
        assert kept.position.epoch == moment[3], moment
        train(RECIPE, few_digits, out, resume=True)
        assert content(out) == content(undisturbed), moment
    print(json.dumps({"kills": len(ended)}))


def killed(store: str, out: str, operation: str, name: str, time: str) -> None:
    """Trains, in a process of its own, and is killed when the thread that writes is about to do that for that time."""
    torch.set_num_threads(1)
    real = {each: getattr(os, each) for each in ("fsync", "replace")}
    times = 0

    def at(done: str, place: Any) -> None:
        nonlocal times
        if threading.current_thread().name == "save" and done == operation and Path(place).name == name:
            times += 1
            if times == int(time):
                os.kill(os.getpid(), signal.SIGKILL)

    def fsync(handle: int) -> None:
        at("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        real["fsync"](handle)

    def replaced(old: Any, new: Any) -> None:
        at("replace", new)
        real["replace"](old, new)

    def opened(file: Any, *more: Any, **options: Any) -> Any:
        at("open", file)
        return open(file, *more, **options)

    os.fsync, os.replace = fsync, replaced  # type: ignore[assignment]
    atomic.open = opened  # type: ignore[attr-defined]
    train(RECIPE, Store(store), out)
