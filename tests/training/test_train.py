"""The loop: it learns, a refactoring doesn't change a digit, and nothing that happens to it loses or changes a run."""

import json
import math
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from convnet import checkpoint
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Split, Store
from convnet.errors import DataError, DiskError, Diverged, Interrupted, UsageError
from convnet.evaluation.trained_net import TrainedNet
from convnet.io import atomic, prefetch
from convnet.io.signals import Stop
from convnet.nets import create_model
from convnet.progress import Silent
from convnet.recipe import Recipe, list_recipes, load_recipe, with_settings
from convnet.training import metrics_log
from convnet.training import train as loop
from convnet.training.data import choose_data
from convnet.training.train import train
from forked import run as forked
from runs import Notes
from thin import SMALL as SMALL_NET
from thin import shapes_of, thinned

SMALL = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=64"])
FEW = replace(SMALL, batch=16)  # of a quarter of the pictures: 20 steps an epoch too


def result(out: Path) -> dict[str, bytes]:
    """What must not differ between two runs that are the same."""
    return {name: (out / name).read_bytes() for name in ("last.ckpt", "best.ckpt", "metrics.jsonl", "metrics.csv")}


@pytest.fixture(scope="module")
def undisturbed(few_digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(FEW, few_digits, out)
    return out


@pytest.mark.numerical
def test_the_default_job_learns_the_digits(digits: Store, tmp_path: Path) -> None:
    summary = train(with_settings(load_recipe("lenet5_small"), ["epochs=8", "lr_steps=[6]"]), digits, tmp_path / "run")
    assert summary["test"]["n"] == 359
    # Eight epochs haven't settled: with first weights that differ by 1e-6 it was 0.006 to 0.042 in 47 runs, 0.064 on
    # another processor. A net that learns nothing is wrong on 0.9.
    assert summary["test"]["top1_error"] <= 0.15
    assert summary["parameters"] == 60_000


@pytest.mark.numerical
def test_golden_loss(digits: Store, tmp_path: Path) -> None:
    """20 seeded steps: a change that isn't meant to alter results leaves them. Other machines round a little."""
    train(with_settings(SMALL, ["epochs=1"]), digits, tmp_path / "run")
    rows = [row for row in metrics_log.read(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "step"]
    losses = [row["loss"] for row in rows]
    assert len(losses) == 20
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-4)


@pytest.mark.numerical
def test_the_loop_is_the_formula(digits: Store, tmp_path: Path) -> None:
    """Five steps written out: the same batches, cross entropy, and the paper's rule in float64 velocity arithmetic."""
    recipe = with_settings(SMALL, ["loss=softmax", "net_options.output=linear", "decay=0.01", "lr=0.05", "epochs=1"])
    recipe = replace(recipe, batch=256, bias_lr_factor=2.0)
    train(recipe, digits, tmp_path / "run")
    found = checkpoint.load(tmp_path / "run" / "last.ckpt")
    from convnet.data.loader import Loader
    from convnet.data.preprocess import of_recipe

    net = create_model("lenet5", num_classes=10, seed=recipe.seed, output="linear")
    split = digits.split("train")
    pre = of_recipe(recipe, digits.mean_picture, None)
    load = Loader(split, digits.statistics, np.arange(split.n), recipe, pre, torch.device("cpu"), 0)
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for batch in load.epoch(1):
        net.zero_grad()
        F.cross_entropy(net(batch.images), batch.labels).backward()
        with torch.no_grad():
            for name, w in net.named_parameters():
                rate = 0.05 * (2 if name.endswith("bias") else 1)
                velocity[name] = 0.9 * velocity[name] - 0.01 * rate * w - rate * w.grad
                w += velocity[name]
    for name, w in net.named_parameters():
        torch.testing.assert_close(found.weights[name], w.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def large_photos(photos: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same pictures at 256 pixels."""

    source = open_source(photos.path.parent / "source")
    return prepare(source, tmp_path_factory.mktemp("large") / "store", size=256)


@pytest.mark.numerical
@pytest.mark.parametrize("part", [8, pytest.param(1, marks=pytest.mark.large)])
@pytest.mark.parametrize("name", sorted({*list_recipes()} - {"fine_tuning"}))  # which begins with a net
def test_a_real_step_of_every_recipe(
    name: str, part: int, digits: Store, photos: Store, large_photos: Store, tmp_path: Path
) -> None:
    """The recipe's own net, preprocessing and rule, on the few pictures at hand; every day a large net is thin, as a
    whole one's checkpoint has half a gigabyte or more."""
    recipe = load_recipe(name)
    store = next(store for store in (digits, photos, large_photos) if store.size == recipe.size)
    is_small = sum(parameter.numel() for parameter in shapes_of(recipe.net).parameters()) <= SMALL_NET
    with thinned(1 if is_small else part):
        check_a_step(replace(recipe, batch=4, fold_epoch=0), store, tmp_path)  # these stores have a val split


def check_a_step(recipe: Recipe, store: Store, folder: Path) -> None:
    stop = Stop()
    notes = Notes(stop, 1)
    with pytest.raises(Interrupted, match="stopped in epoch 1, step 1"):
        train(recipe, store, folder / "run", progress=notes, stop=stop)
    assert not [line for line in notes.lines if "warning: after 0 steps" in line]
    kept = checkpoint.load(folder / "run" / "last.ckpt")
    assert kept.position.step == 1
    assert kept.recipe == recipe
    assert 0 < kept.position.loss_sum / 4 < 100
    assert any(v.abs().max() > 0 for v in (kept.velocity or {}).values())
    assert checkpoint.rebuild(kept).num_classes == len(store.classes)


def test_the_same_seed_twice_gives_the_same_run_and_another_seed_another(
    few_digits: Store, undisturbed: Path, tmp_path: Path
) -> None:
    train(FEW, few_digits, tmp_path / "again", workers=3)
    assert result(tmp_path / "again") == result(undisturbed)
    train(replace(FEW, seed=1), few_digits, tmp_path / "other")
    assert result(tmp_path / "other")["metrics.jsonl"] != result(undisturbed)["metrics.jsonl"]


@pytest.mark.parametrize("step", [1, 7, 19, 20, 21, 33])
def test_stopped_at_any_step_and_resumed_it_is_as_if_never_stopped(
    step: int, few_digits: Store, undisturbed: Path, tmp_path: Path
) -> None:
    out, stop = tmp_path / "run", Stop()
    with pytest.raises(Interrupted, match=f"step {step}; everything is saved"):
        train(FEW, few_digits, out, progress=Notes(stop, step), stop=stop)
    train(FEW, few_digits, out, resume=True, workers=2)
    assert result(out) == result(undisturbed)
    assert sum(row["pictures"] for row in metrics_log.read(out / "timing.jsonl")) == 2 * 315


def test_stopped_in_validation_it_validates_again(
    few_digits: Store, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stop, evaluate = tmp_path / "run", Stop(), TrainedNet.evaluate

    def evaluated(net: TrainedNet, *arguments: Any, **options: Any) -> Any:
        stop.signal = signal.SIGTERM
        return evaluate(net, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainedNet, "evaluate", evaluated)
        with pytest.raises(Interrupted, match="stopped in epoch 1, step 20; everything is saved"):
            train(FEW, few_digits, out, stop=stop)
    assert (at := checkpoint.load(out / "last.ckpt").position).epoch == 1
    assert (at.batch, at.validation_errors) == (20, ())
    train(FEW, few_digits, out, resume=True)
    assert result(out) == result(undisturbed)


def test_killed_at_random_moments(few_digits: Store, tmp_path: Path) -> None:
    check_kills(few_digits, tmp_path, kills=20, seed=0)


@pytest.mark.large
def test_killed_at_random_moments_large(few_digits: Store, tmp_path: Path) -> None:
    check_kills(few_digits, tmp_path, kills=100, seed=1)


def check_kills(few_digits: Store, folder: Path, kills: int, seed: int) -> None:
    (ended,) = forked("kill_driver:main", [(1, [str(few_digits.path), str(folder), str(kills), str(seed)])])
    assert ended.codes == [0], ended.stderr
    report = json.loads(ended.stdout)
    print(report)
    assert report["kills"] == kills
    assert report["after_the_first_save"] > kills // 2
    assert not report["different"]


def test_more_epochs_go_on_where_the_run_ended(few_digits: Store, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(replace(FEW, epochs=1), few_digits, out)
    summary = train(FEW, few_digits, out, resume=True)
    assert summary["epochs"] == 2
    assert (out / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    weights = [checkpoint.load(place / "last.ckpt").weights for place in (out, undisturbed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    few_digits: Store, undisturbed: Path, tmp_path: Path
) -> None:
    out, stop = tmp_path / "run", Stop()
    with pytest.raises(Interrupted):
        train(FEW, few_digits, out, progress=Notes(stop, 25), stop=stop)
    data = bytearray((out / "last.ckpt").read_bytes())
    data[-100] ^= 1
    (out / "last.ckpt").write_bytes(data)
    notes = Notes()
    train(FEW, few_digits, out, resume=True, progress=notes)
    assert any("last.ckpt: damaged record" in line and line.startswith("warning") for line in notes.lines)
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize("asked", [False, True])
def test_a_picture_that_is_never_read_ends_the_run_which_goes_on_later(
    few_digits: Store, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """As of a network disk that is gone: nobody waits for good, and who asks to end is heard."""
    out, stop, calls, gone = tmp_path / "run", Stop(), iter(range(100)), threading.Event()

    def hang(split: Split) -> None:
        if next(calls) >= 9:
            stop.signal = signal.SIGTERM if asked else None
            gone.wait()

    with monkeypatch.context() as patch:
        patch.setattr(Split, "check_lengths", hang)
        patch.setattr(prefetch, "SECONDS", 60 if asked else 0.2)
        patch.setattr(prefetch, "GRACE", 0.1)
        patch.setattr("convnet.data.loader.PIECE", 1)  # a step's pictures at a time
        text = (
            r"stopped in epoch 1, step \d; everything" if asked else r"16 pictures in train-00000.tar could not be read"
        )
        with pytest.raises(Interrupted if asked else DataError, match=text):
            train(FEW, few_digits, out, stop=stop)
    gone.set()
    train(FEW, few_digits, out, resume=True)
    assert result(out) == result(undisturbed)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_net(digits: Store, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch 1, step \d+; .* --set lr=10, ") as caught:
        train(with_settings(SMALL, ["lr=100", "decay=100", "momentum=0.999999"]), digits, out)
    assert caught.value.exit_code == 4
    report = json.loads((out / "diverged.json").read_text(encoding="utf-8"))
    assert len(report["pictures"]) in (64, 1259 % 64)
    assert set(report["pictures"]) <= set(digits.split("train").keys)
    assert report["step"] == metrics_log.read(out / "metrics.jsonl")[-1]["step"] + 1, "each step before it has a row"
    kept = checkpoint.load(out / "last.ckpt")
    assert all(bool(torch.isfinite(w).all()) for w in kept.weights.values())


def test_weights_that_are_not_finite_are_not_saved(digits: Store, tmp_path: Path) -> None:
    out, stop = tmp_path / "run", Stop()
    recipe = with_settings(SMALL, ["lr=100", "decay=100", "momentum=0.999999", "epochs=9", "save_minutes=1e-9"])
    with pytest.raises(Diverged):
        train(recipe, digits, out, stop=stop)
    kept = checkpoint.load(out / "last.ckpt")
    assert all(bool(torch.isfinite(w).all()) for w in kept.weights.values())


def test_a_full_disk_is_named(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timing.jsonl", "metrics.jsonl"):
        out = tmp_path / name

        def full(path: Path, *how: Any, name: str = name, **more: Any) -> IO[bytes]:
            return open("/dev/full", "ab", buffering=0) if path.name == name else open(path, *how, **more)

        monkeypatch.setattr(metrics_log, "open", full, raising=False)
        with pytest.raises(DiskError, match=rf"{name}: disk full; free some space") as caught:
            train(SMALL, digits, out)
        assert caught.value.exit_code == 5
        assert checkpoint.load_newest(out)[0].position.step >= 0


def test_a_second_run_in_the_same_folder_is_refused(few_digits: Store, undisturbed: Path, tmp_path: Path) -> None:
    with (
        atomic.lock(tmp_path / "run", "training"),
        pytest.raises(UsageError, match=r"is in use by process \d+ \(training"),
    ):
        train(FEW, few_digits, tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run; go on with it by --resume, or choose another folder with --out"):
        train(FEW, few_digits, undisturbed)
    with pytest.raises(DataError, match="no checkpoint"):
        train(FEW, few_digits, tmp_path / "empty", resume=True)


def test_resuming_refuses_another_recipe_or_store(few_digits: Store, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was trained by another recipe"):
        train(replace(FEW, lr=0.1), few_digits, undisturbed, resume=True)

    other = prepare(open_source("digits"), tmp_path / "store", size=28, encoding="jpeg")
    with pytest.raises(UsageError, match="was trained on another store"):
        train(FEW, other, undisturbed, resume=True)
    (tmp_path / "net alone").mkdir()
    shutil.copy(undisturbed / "best.ckpt", tmp_path / "net alone" / "last.ckpt")
    with pytest.raises(DataError, match="holds no velocity; it can be tested, but not resumed"):
        train(FEW, few_digits, tmp_path / "net alone", resume=True)


def test_a_run_on_jpegs_says_and_keeps_what_decodes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convnet.data import decode

    store = prepare(open_source("digits"), tmp_path / "store", size=28, encoding="jpeg")
    recipe, notes, again = replace(SMALL, epochs=1, batch=512), Notes(), Notes()
    train(recipe, store, tmp_path / "run", progress=notes)
    assert f"pictures decoded by {decode.stored_by()}" in notes.lines
    monkeypatch.setattr("convnet.training.run.stored_by", lambda: "a lens 1.0")
    train(replace(recipe, epochs=2), store, tmp_path / "run", resume=True, progress=again)
    assert "pictures decoded by a lens 1.0" in again.lines
    assert any(f"decoder was {decode.stored_by()} and is a lens 1.0" in line for line in again.lines)


def test_a_net_that_does_not_learn_is_noticed_once_it_is_clear(
    photos: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SMALL, net_options={"output": "linear"}, loss="softmax", size=32, pad=0, lr=1e-9, epochs=3)
    notes = Notes()
    train(recipe, photos, tmp_path / "run", progress=notes)
    warnings = [line for line in notes.lines if line.startswith("warning")]
    assert len(warnings) == 2
    assert "ln 3 is 1.099" in warnings[0]
    assert "it has not begun to learn; try another rate (--set lr=...)" in warnings[0]
    notes = Notes()
    train(replace(recipe, name="mine", epochs=2), photos, tmp_path / "mine", progress=notes)
    assert "for so small a set there is --recipe lenet5_small --net lenet5; otherwise try" in notes.lines[-1]
    learning = Notes()
    train(replace(SMALL, epochs=3), Store(photos_digits(photos, tmp_path)), tmp_path / "learning", progress=learning)
    assert not [line for line in learning.lines if line.startswith("warning")]
    monkeypatch.setattr("convnet.training.health.LONG", 1)
    notes = Notes()
    train(replace(recipe, epochs=1), photos, tmp_path / "long", progress=notes)
    assert notes.lines[-1].startswith("warning: after 1 epoch the training error is")


def test_a_net_of_distances_has_until_its_fifth_epoch(digits: Store, tmp_path: Path) -> None:
    """Its loss falls long before its error does, so it is no sign."""
    notes = Notes()
    train(with_settings(SMALL, ["lr=1e-30", "batch=1024", "epochs=6"]), digits, tmp_path / "run", progress=notes)
    (warning,) = (line for line in notes.lines if line.startswith("warning"))
    assert warning.startswith("warning: after 5 epochs the training error is")
    assert "(the entropy of the classes is 2.30" in warning


def test_a_class_that_is_held_out_whole_is_no_fault(tmp_path: Path) -> None:
    """Its share of the training pictures is 0, whose logarithm the entropy does not need."""
    for name, n in {"a": 8, "b": 8, "c": 1}.items():
        (tmp_path / "source" / "train" / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng(ord(name) + i).integers(0, 256, (28, 28, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "source" / "train" / name / f"{i}.png")
    store, notes = prepare(open_source(tmp_path / "source", split=0), tmp_path / "store", size=28), Notes()
    recipe = replace(SMALL, net_options={"output": "linear"}, loss="softmax", lr=1e-9, validation=0.3)
    labels = store.split("train").labels
    some = (replace(recipe, seed=seed) for seed in range(100))
    recipe = next(each for each in some if 2 not in labels[choose_data(each, store).train_ids])
    train(recipe, store, tmp_path / "run", progress=notes)
    assert notes.lines[-1].startswith("epoch 2/2")


def test_a_run_that_can_not_begin_leaves_nothing(digits: Store, tmp_path: Path) -> None:
    for changes, text in (
        (["crop=30"], "lenet5 takes pictures with sides of 32"),
        (["channels=rgb"], "takes 1 channel"),
    ):
        with pytest.raises(UsageError, match=text):
            train(with_settings(SMALL, changes), digits, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is not empty \(it holds 'cat.jpg'\); choose a new folder with --out"):
        train(SMALL, digits, tmp_path / "photos")
    with pytest.raises(UsageError, match="leaves none of the 1259 pictures"):
        choose_data(replace(SMALL, validation=0.9999), no_val(digits))


def no_val(store: Store) -> Store:
    store = Store(store.path)
    del store.splits["val"]
    return store


def photos_digits(photos: Store, folder: Path) -> Path:

    return prepare(open_source("digits"), folder / "digits", size=28).path


def test_what_is_validated_on(digits: Store, tmp_path: Path) -> None:
    data = choose_data(SMALL, digits)
    assert data.val is not None
    assert data.val.name == "val"
    assert len(data.val_ids) == 179
    with pytest.raises(UsageError, match=r"holds pictures of 28 pixels, recipe alexnet wants 256; .*--size 256"):
        choose_data(Recipe(), digits)


def test_a_share_of_train_is_held_out_when_there_is_no_val(tmp_path: Path) -> None:

    for split, n in {"train": 20, "test": 5}.items():
        for name in "ab":
            (tmp_path / "source" / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (28, 28), (i, i, 200)).save(tmp_path / "source" / split / name / f"{i}.png")
    store = prepare(open_source(tmp_path / "source"), tmp_path / "store", size=28)
    data = choose_data(replace(SMALL, validation=0.25), store)
    assert len(data.val_ids) == 10
    assert sorted([*data.val_ids, *data.train_ids]) == list(range(40))
    assert choose_data(replace(SMALL, validation=0.0), store).val is None
    recipe = replace(SMALL, net_options={"output": "linear"}, loss="softmax", validation=0.0, epochs=1)
    summary = train(recipe, store, tmp_path / "run")
    assert (summary["checkpoint"], summary["best_epoch"], summary["test"]["n"]) == ("last.ckpt", 1, 10)
    assert "validation" not in summary
    with pytest.raises(UsageError, match=r"has no val split; hold out a part of train with --set validation=0\.1"):
        choose_data(replace(SMALL, validation=0.0, schedule="plateau", lr_steps=()), store)


def test_the_run_folder(undisturbed: Path, few_digits: Store) -> None:
    assert load_recipe(undisturbed / "recipe.toml") == FEW
    rows = metrics_log.read(undisturbed / "metrics.jsonl")
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert all(0 <= row["val_top1_error"] <= 1 and math.isfinite(row["train_loss"]) for row in epochs)
    assert (undisturbed / "metrics.csv").read_text(encoding="utf-8").count("\n") == 3
    environment = json.loads((undisturbed / "environment.json").read_text(encoding="utf-8"))
    assert environment["threads"] == torch.get_num_threads()
    assert environment["store_sha256"] == few_digits.identity
    summary = json.loads((undisturbed / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 40
    assert {path.name for path in undisturbed.iterdir()} == {
        "best.ckpt", "environment.json", "last.ckpt", "last.previous.ckpt", "metrics.csv", "metrics.jsonl",
        "recipe.toml", "summary.json", "timing.jsonl",
    }  # fmt: skip


def epochs_of(out: Path) -> list[metrics_log.Row]:
    return [row for row in metrics_log.read(out / "metrics.jsonl") if row["kind"] == "epoch"]


def test_what_is_told_at_the_end_is_the_best_nets(few_digits: Store, undisturbed: Path, tmp_path: Path) -> None:
    """The third epoch begins with a net without weights, which learns nothing: the best stays the second's."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    kept = checkpoint.load(out / "last.ckpt")
    for tensors in (kept.weights, kept.velocity or {}):
        for tensor in tensors.values():
            tensor.zero_()
    checkpoint.save(out / "last.ckpt", kept)
    summary = train(replace(FEW, epochs=3), few_digits, out, resume=True)
    assert (summary["epochs"], summary["best_epoch"], summary["checkpoint"]) == (3, 2, "best.ckpt")
    best = TrainedNet.load(out, "cpu")
    for name, split in {"validation": "val", "test": "test"}.items():
        scores = best.evaluate(few_digits.split(split))
        told = {"n": scores.n, "top1_error": scores.top1, "top5_error": scores.top5, "loss": scores.loss}
        assert summary[name] == pytest.approx(told)
    errors = [row["val_top1_error"] for row in epochs_of(out)]
    assert summary["validation"]["top1_error"] == errors[1] < errors[2]


class Shown(Notes):
    """Remembers what a bar is told, too."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[object, ...]] = []
        self.updates: list[dict[str, object]] = []
        self.ends = 0

    def start(self, what: str, total: int, done: int = 0, after: int = 0, unit: str = "pictures") -> None:
        self.starts.append((what, total, done, after, unit))

    def update(self, done: int, **values: str) -> None:
        self.updates.append({"done": done, **values})

    def finish(self) -> None:
        self.ends += 1


def test_what_is_shown_and_kept_of_two_epochs(digits: Store, tmp_path: Path) -> None:
    """40 steps of 32 pictures, the last of 11: a row after every second, from the first on."""
    out, shown = tmp_path / "run", Shown()
    summary = train(replace(SMALL, batch=32), digits, out, progress=shown)
    rows = metrics_log.read(out / "metrics.jsonl")
    epochs, steps = ([row for row in rows if row["kind"] == kind] for kind in ("epoch", "step"))
    assert [row["step"] for row in steps] == list(range(1, 81, 2))
    assert {row["lr"] for row in rows} == {0.002}
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 40), (2, 80)]
    assert shown.starts == [
        ("epoch 1/2", 1259, 0, 1259, "pictures"),
        ("epoch 2/2", 1259, 0, 0, "pictures"),
        ("testing (test, single)", 359, 0, 0, "pictures"),
    ]
    assert shown.ends == 3
    training = [values for values in shown.updates if "step" in values]
    assert [values["done"] for values in training] == 2 * [*range(32, 1259, 32), 1259]
    assert [values["step"] for values in training] == 2 * [f"{i}/40" for i in range(1, 41)]
    last, first = training[39], epochs[0]
    assert last["loss"] == f"{first['train_loss']:.3f}"
    assert last["error"] == f"train {first['train_error']:.1%}"
    assert training[40]["error"] == f"train {training[40]['error'].split()[1]} val {first['val_top1_error']:.1%}"
    lines = [line for line in shown.lines if line.startswith("epoch ")]
    assert lines[0] == (
        f"epoch 1/2  lr 0.002  train loss {first['train_loss']:.4f} error {first['train_error']:.2%}"
        f"  val loss {first['val_loss']:.4f} error {first['val_top1_error']:.2%}"
    )
    times = metrics_log.read(out / "timing.jsonl")
    assert [(row["epoch"], row["pictures"]) for row in times] == [(1, 1259), (2, 1259)]
    seconds = sum(row["seconds"] for row in times)
    told = {"net": "lenet5", "recipe": "lenet5_small", "parameters": 60_000, "classes": 10, "epochs": 2, "steps": 80}
    told |= {"training_seconds": seconds, "pictures_per_second": 2518 / seconds, "checkpoint": "best.ckpt"}
    assert told.items() <= summary.items()
    assert summary["left_out"] == {"skipped": 0, "failed": 0}


def test_of_equal_errors_the_latest_net_is_the_best(digits: Store, tmp_path: Path) -> None:
    summary = train(with_settings(SMALL, ["lr=1e-30", "batch=512"]), digits, tmp_path / "run")
    first, second = (row["val_top1_error"] for row in epochs_of(tmp_path / "run"))
    assert first == second
    assert summary["best_epoch"] == 2


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_pictures(undisturbed: Path) -> None:
    """Of 20 steps, each with a row; the last has 11 pictures, the others 16."""
    steps = [row for row in metrics_log.read(undisturbed / "metrics.jsonl") if row["kind"] == "step"]
    for epoch in epochs_of(undisturbed):
        own = [row for row in steps if row["epoch"] == epoch["epoch"]]
        sizes = [16] * 19 + [315 - 19 * 16]
        assert epoch["train_loss"] == pytest.approx(np.average([row["loss"] for row in own], weights=sizes))
        assert epoch["train_error"] == pytest.approx(np.average([row["error"] for row in own], weights=sizes))


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, 6), (1000, 0)])
def test_within_an_epoch_it_is_saved_as_often_as_the_recipe_says(
    minutes: float, saved: int, digits: Store, tmp_path: Path
) -> None:
    """Of a run that ends without a warning after its seventh step."""

    class Ends(Silent):
        def update(self, done: int, **values: str) -> None:
            if done == 7 * 64:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, save_minutes=minutes), digits, tmp_path / "run", progress=Ends())
    assert checkpoint.load(tmp_path / "run" / "last.ckpt").position.step == saved


@pytest.mark.parametrize("name", ["threads", "device", "forms", "torch", "decoder", "pixels"])
def test_what_differs_from_the_run_before_is_told(
    name: str, few_digits: Store, undisturbed: Path, tmp_path: Path
) -> None:
    out, notes, stop = tmp_path / "run", Notes(), Stop()
    shutil.copytree(undisturbed, out)
    kept = checkpoint.load(out / "last.ckpt")
    checkpoint.save(out / "last.ckpt", replace(kept, provenance={**kept.provenance, name: "another"}))
    stop.ask(15)
    with pytest.raises(Interrupted):
        train(replace(FEW, epochs=3), few_digits, out, resume=True, progress=notes, stop=stop)
    (warning,) = (line for line in notes.lines if line.startswith("warning"))
    assert warning.startswith(f"warning: {name} was another and is {kept.provenance.get(name)}: the run goes on, but")


def test_a_long_runs_record_gets_fewer_rows_an_epoch_and_its_table_is_whole_at_the_end(
    few_digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FEWER_FROM", 2)
    train(replace(FEW, epochs=5, save_minutes=60.0), few_digits, tmp_path / "run")
    rows = metrics_log.read(tmp_path / "run" / "metrics.jsonl")
    numbers = [sum(row["kind"] == "step" and row["epoch"] == epoch for row in rows) for epoch in range(1, 6)]
    assert numbers == [20, 20, 20, 10, 10]
    table = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[1] for line in table] == ["epoch", "1", "2", "3", "4", "5"]


def test_the_epochs_that_the_recipe_keeps_are_kept(undisturbed: Path, few_digits: Store, tmp_path: Path) -> None:
    train(with_settings(FEW, ["keep_epochs=[1, 2, 7]"]), few_digits, tmp_path / "run")
    kept = {path.name: checkpoint.load(path) for path in (tmp_path / "run").glob("epoch-*.ckpt")}
    assert set(kept) == {"epoch-0001.ckpt", "epoch-0002.ckpt"}
    last = checkpoint.load(undisturbed / "last.ckpt").weights
    assert all(torch.equal(kept["epoch-0002.ckpt"].weights[name], last[name]) for name in last)
    assert not all(torch.equal(kept["epoch-0001.ckpt"].weights[name], last[name]) for name in last)
    assert kept["epoch-0001.ckpt"].velocity is None


GOLDEN: list[float] = [
    63.87114,
    63.11263,
    61.53407,
    59.12773,
    54.20655,
    43.8236,
    31.21914,
    38.82773,
    38.98013,
    45.64265,
    37.23985,
    38.08589,
    37.93006,
    36.38978,
    36.43158,
    37.01685,
    31.57511,
    32.63639,
    37.78712,
    41.56887,
]
