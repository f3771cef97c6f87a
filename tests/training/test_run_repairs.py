"""A run's folder after damage, and a run that is told to stop in the middle of a long step: nothing is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convnet import checkpoint, device
from convnet.cli.resolve import resume_run
from convnet.data.store import Store
from convnet.errors import DataError, Interrupted, UsageError
from convnet.io import strict_json
from convnet.io.processes import Processes
from convnet.io.signals import SIGNALS, Stop, on_signals
from convnet.progress import Silent
from convnet.recipe import load_recipe, with_settings
from convnet.training import metrics_log
from convnet.training.data import choose_data
from convnet.training.run import begin
from convnet.training.step import EagerSteps
from convnet.training.train import interruptible, train

RECIPE = with_settings(load_recipe("lenet5_small"), ["epochs=3", "batch=256"])
SAME = ("last.ckpt", "best.ckpt", "metrics.jsonl", "metrics.csv", "recipe.toml")


class Notes(Silent):
    """Remembers warnings; asks `stop` once some epochs have ended."""

    def __init__(self, stop: Stop | None = None, epochs: int = 0) -> None:
        self.lines: list[str] = []
        self.stop, self.epochs = stop, epochs

    def note(self, text: str) -> None:
        if self.stop is not None and text.startswith(f"epoch {self.epochs}/"):
            self.stop.ask(15)

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def whole(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(RECIPE, digits, out)
    return out


@pytest.fixture(scope="module")
def half(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped a step after its second epoch, which is its best."""
    out, stop = tmp_path_factory.mktemp("half") / "run", Stop()
    with pytest.raises(Interrupted):
        train(RECIPE, digits, out, progress=Notes(stop, 2), stop=stop)
    kept = checkpoint.load(out / "last.ckpt")
    assert (kept.position.epoch, kept.position.batch) == (3, 1)
    assert kept.position.best_error == kept.position.validation_errors[-1]
    return out


def resumed(out: Path) -> list[str]:
    """Goes on as the command does; the warnings."""
    notes = Notes()
    store, recipe, _ = resume_run(None, out, [], notes)
    train(recipe, store, out, resume=True, progress=notes)
    return notes.lines


def bytes_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in SAME}


def flip(path: Path, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
    path.write_bytes(data)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, lambda path: path.write_bytes(b"\0" * 4096)])
@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv", "recipe.toml", "environment.json", "timing.jsonl"])
def test_a_resumed_run_repairs_its_folder(
    name: str, damage: Callable[[Path], None], half: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(half, out)
    damage(out / name)
    warnings = resumed(out)
    assert bytes_of(out) == bytes_of(whole)
    assert json.loads((out / "summary.json").read_text())["epochs"] == 3
    for line in ("metrics.jsonl", "timing.jsonl"):
        metrics_log.read(out / line)
    assert strict_json.unseal((out / "environment.json").read_bytes())["store"]
    if name == "recipe.toml" and damage is not tear:  # TOML that is cut short may still be whole
        assert any("recipe.toml is not the recipe of this run's checkpoint" in line for line in warnings)


def test_a_process_that_is_not_the_first_writes_nothing(
    digits: Store, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("convnet.training.run.EagerSteps", lambda *what, processes: EagerSteps(*what))  # not joined
    shutil.copytree(half, out)
    tear(out / "timing.jsonl")
    before = {path: path.read_bytes() for path in out.iterdir()}
    data, where = choose_data(RECIPE, digits), device.choose("fp32", "cpu")
    begin(RECIPE, data, out, where, True, "", Silent(), processes=Processes(1, 2))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_bit_in_any_row_of_the_record_changes_nothing(half: Path, whole: Path, tmp_path: Path) -> None:
    for seed in range(5):
        out = tmp_path / f"run{seed}"
        shutil.copytree(half, out)
        flip(out / "metrics.jsonl", seed)
        resumed(out)
        assert bytes_of(out) == bytes_of(whole)


def other_seed(path: Path) -> None:
    """The best net of another run, whole."""
    kept = checkpoint.load(path)
    recipe = with_settings(kept.recipe, ["seed=7"])
    checkpoint.save(path, checkpoint.Checkpoint(**{**vars(kept), "recipe": recipe}))


@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, other_seed])
def test_a_best_net_that_is_the_present_one_is_written_anew(
    damage: Callable[[Path], None], whole: Path, tmp_path: Path
) -> None:
    """The run has ended; its last epoch was its best."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    damage(out / "best.ckpt")
    (out / "summary.json").unlink()
    assert any("best.ckpt" in line and "written anew" in line for line in resumed(out))
    assert bytes_of(out) == bytes_of(whole)
    again, before = (strict_json.unseal((run / "summary.json").read_bytes()) for run in (out, whole))
    assert again == before


@pytest.mark.parametrize("damage", [flip, other_seed])
def test_a_best_net_that_is_lost_is_told_and_the_run_ends(
    damage: Callable[[Path], None], half: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(half, out)
    damage(out / "best.ckpt")
    assert any("the net of epoch 2, the best so far" in line and "is lost" in line for line in resumed(out))
    best = checkpoint.load(out / "best.ckpt")
    assert best.recipe.seed == RECIPE.seed
    assert strict_json.unseal((out / "summary.json").read_bytes())["best_epoch"] == 3


def test_more_epochs_are_remembered(half: Path, tmp_path: Path) -> None:
    """From the first moment on, though recipe.toml is lost."""
    out, stop = tmp_path / "run", Stop()
    shutil.copytree(half, out)
    store, recipe, _ = resume_run(None, out, ["epochs=5"], Notes())
    stop.ask(15)
    with pytest.raises(Interrupted):
        train(recipe, store, out, resume=True, stop=stop)
    (out / "recipe.toml").unlink()
    assert resume_run(None, out, [], Notes())[1].epochs == 5


def test_a_folder_without_a_whole_checkpoint_says_what_is_damaged(half: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="holds no run to resume"):
        resume_run(None, out, [], Notes())
    shutil.copytree(half, out)
    for name in ("last.ckpt", "last.previous.ckpt"):
        (out / name).write_bytes((out / name).read_bytes()[:100])
    with pytest.raises(DataError, match=r"last.ckpt: damaged header.*last.previous.ckpt: damaged header"):
        resume_run(None, out, [], Notes())


def test_a_seal_finds_every_flipped_bit() -> None:
    content = {"net": "lenet5", "errors": [0.1, None], "é": {"a": True}}
    data = strict_json.seal(content)
    assert strict_json.unseal(data) == content
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"."):
            strict_json.unseal(bytes(flipped))
    assert strict_json.unseal(b'{"net": "lenet5"}') == {"net": "lenet5"}, "of an earlier version"


# Stopping


CHILD = """
import hashlib, sys
from pathlib import Path
import torch
from convnet.cli import app as cli; from convnet.training import step; from convnet.io import signals as stop
stop.PATIENCE = float(sys.argv.pop(1))
gradients = step.EagerSteps.gradients
def slow(self, images, labels, number, *more):
    outcome = gradients(self, images, labels, number, *more)
    if number == 7:
        print("in a long step", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # half an hour in one operation
    return outcome
step.EagerSteps.gradients = slow
sys.argv = ["convnet", *sys.argv[1:]]
cli.main()
"""


def long_step(digits: Store, out: Path, patience: float = 0.2) -> "subprocess.Popen[str]":
    """A run that has come to a step that would take half an hour; after a signal it waits for it for `patience`."""
    settings = [f"--set={text}" for text in ("epochs=3", "batch=256")]
    command = ["train", str(digits.path), "--recipe", "lenet5_small", *settings, "--out", str(out), "-q"]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(patience), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    if child.stdout.readline() != "in a long step\n":
        child.kill()
        raise AssertionError(child.communicate())
    return child


def test_sigterm_cuts_a_long_step_and_nothing_is_lost(digits: Store, whole: Path, tmp_path: Path) -> None:
    child = long_step(digits, tmp_path / "run")
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "stopped in epoch 2, step 7; everything is saved" in said
    assert "go on with: convnet train --resume --out" in said
    kept = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert kept.position.step == 7
    times = metrics_log.read(tmp_path / "run" / "timing.jsonl")  # of both epochs, the one that was cut too
    assert [row["pictures"] for row in times] == [1259, 512]
    assert all(row["seconds"] > 0 for row in times)
    resumed(tmp_path / "run")
    same = {name: data for name, data in bytes_of(tmp_path / "run").items() if not name.endswith("ckpt")}
    assert same == {name: data for name, data in bytes_of(whole).items() if name in same}
    one, other = (checkpoint.load(out / "last.ckpt") for out in (tmp_path / "run", whole))
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)
    assert one.velocity is not None
    assert other.velocity is not None
    assert all(torch.equal(one.velocity[name], other.velocity[name]) for name in other.velocity)


def test_a_second_signal_leaves_at_once(digits: Store, tmp_path: Path) -> None:
    """In the middle of an operation too; every file is whole."""
    child = long_step(digits, tmp_path / "run", patience=600)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)  # two of one kind may arrive as one
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert checkpoint.load_newest(tmp_path / "run")[0].position.step == 5, "it saved, which the first signal does"


def test_asked_twice_it_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Python's own handler too, which may come before the thread that listens."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    stop = Stop()
    assert not stop
    stop.ask(signal.SIGTERM)
    assert stop
    assert stop.signal == signal.SIGTERM
    assert left == []
    stop.ask(signal.SIGINT)
    assert left == [130]


def test_within_the_block_signals_ask_and_after_it_they_do_what_they_did() -> None:
    before, unused = [signal.getsignal(number) for number in SIGNALS], lowest_unused()
    for number in SIGNALS:
        with on_signals() as stop:
            assert not stop
            assert "signals" in [thread.name for thread in threading.enumerate()]
            signal.raise_signal(number)
            assert stop.signal == number
        assert stop.over.is_set()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in [thread.name for thread in threading.enumerate()]
    for thread in [thread for thread in threading.enumerate() if thread.name == "cut"]:
        thread.join(60)  # it has been told to end
        assert not thread.is_alive()
    assert lowest_unused() <= unused, "both ends of each pipe are closed"


def lowest_unused() -> int:
    """The file descriptor that is given next."""
    os.close(number := os.dup(0))
    return number


def test_the_buffers_of_a_cut_step_are_those_before_it(digits: Store, tmp_path: Path) -> None:
    """Batch norm's running means move in the forward pass, which a cut step takes back."""
    run = begin(RECIPE, choose_data(RECIPE, digits), tmp_path, device.choose("fp32", "cpu"), False, "", Notes())
    run.net.add_module("norm", torch.nn.BatchNorm2d(3))
    run.position = replace(run.position, step=1)  # what is saved already isn't saved again
    stop, left = Stop(), []

    class Left(Exception):  # noqa: N818 - it stands for the end of the process
        pass

    def leave(text: str) -> None:
        left.append(text)
        raise Left

    with interruptible(run, stop):
        dict(run.net.named_buffers())["norm.running_mean"].add_(1.0)
        with pytest.raises(Left):
            stop.cut(leave)
    assert "everything is saved" in left[0]
    assert torch.equal(checkpoint.load(tmp_path / "last.ckpt").weights["norm.running_mean"], torch.zeros(3))


def test_what_may_be_cut_is_waited_for_and_nothing_else_is_cut() -> None:
    stop, left, waits = Stop(), list[str](), 0

    class Over(threading.Event):
        """Comes after a block was waited for twice in vain, and once more where it went on."""

        def wait(self, timeout: float | None = None) -> bool:
            nonlocal waits
            waits += 1
            return waits % 3 == 0

    stop.over = Over()
    stop.cut(left.append)
    assert (left, waits) == ([], 3)
    with stop.may_cut(lambda: "saved"):
        stop.cut(left.append)
    assert left == ["saved", "saved"]
    stop.cut(left.append)
    assert left == ["saved", "saved"]


@pytest.mark.parametrize("verb", ["prepare", "check"])
def test_sigterm_ends_other_verbs_by_130(verb: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wait")
    code = (
        "import sys, convnet.cli.stores\n"
        "from convnet.cli import app as cli\n"
        "def wait(*arguments, **options):\n"
        "    print('at work', flush=True)\n"
        f"    open({str(tmp_path / 'wait')!r}).read()\n"
        "convnet.cli.stores.open_for = wait\n"
        f"sys.argv = ['convnet', {verb!r}, 'digits'] + ['store'] * ({verb!r} == 'prepare')\n"
        "cli.main()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "at work\n"
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert said.strip().splitlines()[-1] == "convnet: stopped; run the same command again"
