"""What changes within a run by its recipe, and by hand: layers' rates, colour, the pictures, the learning rate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convnet import checkpoint
from convnet.data import augment
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import Interrupted, UsageError
from convnet.io.signals import Stop
from convnet.recipe import Recipe, load_recipe, with_settings
from convnet.training import hand, metrics_log
from convnet.training.data import choose_data
from convnet.training.run import fresh_net
from convnet.training.train import train
from runs import Notes

FEW = with_settings(load_recipe("lenet5_small"), ["epochs=3", "batch=64"])
SAME = ("last.ckpt", "best.ckpt", "metrics.jsonl", "metrics.csv", "recipe.toml")


@pytest.fixture(scope="module")
def no_val(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """300 digits to train on, 50 to test."""
    source = open_source("digits")
    splits = ["train"] * 300 + ["test"] * 50
    entries = [replace(entry, split=split) for entry, split in zip(source.entries, splits, strict=False)]
    return prepare(replace(source, entries=entries), tmp_path_factory.mktemp("no_val") / "store", size=28)


def result(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in SAME if (out / name).exists()}


def rates(out: Path) -> list[float]:
    return [row["lr"] for row in metrics_log.read(out / "metrics.jsonl") if row["kind"] == "epoch"]


def weights(out: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return checkpoint.load(out / name).weights


def test_a_layer_stays_as_it_was_or_from_an_epoch_on(few_digits: Store, tmp_path: Path) -> None:
    recipe = replace(FEW, layer_lr={"c1": 0.0, "c3@2": 0.0, "f6": 0.5}, momentum=0.0, keep_epochs=(1, 2))
    train(recipe, few_digits, tmp_path / "run")
    first, second, last = (weights(tmp_path / "run", f"{name}.ckpt") for name in ("epoch-0001", "epoch-0002", "last"))
    begun = fresh_net(recipe, 10).state_dict()
    assert torch.equal(begun["c1.weight"], last["c1.weight"])
    assert torch.equal(begun["c1.bias"], last["c1.bias"])
    assert not torch.equal(begun["c3.weight"], first["c3.weight"])
    assert torch.equal(first["c3.weight"], second["c3.weight"])
    assert not torch.equal(first["c5.weight"], second["c5.weight"])
    velocity = checkpoint.load(tmp_path / "run" / "last.ckpt").velocity
    assert velocity is not None
    assert "c1.weight" not in velocity
    assert "c3.weight" in velocity


def test_the_layers_rates_and_decays_are_the_formulas(few_digits: Store, tmp_path: Path) -> None:
    """Of one step from nothing: w' - w = -lr factor (gradient + decay w); two runs differ by the factors alone."""
    one = replace(FEW, epochs=1, batch=1024, momentum=0.0, decay=0.0, lr=1e-3)
    moved = {}
    for name, changes in {
        "plain": {},
        "own": {"layer_lr": {"c5": 4.0, "f6.bias": 0.25}, "layer_decay": {"c3": 2.0}},
    }.items():
        train(replace(one, **changes), few_digits, tmp_path / name)
        end, begun = weights(tmp_path / name), fresh_net(one, 10).state_dict()
        moved[name] = {key: end[key].double() - begun[key].double() for key in begun}
    for key, factor in {"c5.weight": 4.0, "c5.bias": 4.0, "f6.weight": 1.0, "f6.bias": 0.25, "c1.weight": 1.0}.items():
        torch.testing.assert_close(moved["own"][key], factor * moved["plain"][key], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(
        moved["own"]["c3.weight"] - moved["plain"]["c3.weight"], -1e-3 * 2.0 * begun["c3.weight"].double(),
        rtol=1e-3, atol=1e-7,
    )  # fmt: skip


def test_the_colour_shift_ends(photos: Store) -> None:
    recipe, ids = Recipe(size=32, crop=24, colour_std=0.1, colour_epochs=2), np.arange(5)
    shifts = [augment.sample(recipe, photos.statistics, epoch, ids).colour for epoch in (1, 2, 3)]
    assert shifts[0].all()
    assert shifts[1].all()
    assert not shifts[2].any()


def test_what_was_held_out_is_trained_on_from_an_epoch_on(no_val: Store, tmp_path: Path) -> None:
    recipe = replace(FEW, epochs=3, validation=0.2, fold_epoch=3, keep_epochs=(3,), batch=60, lr_steps=())
    out, stop = tmp_path / "run", Stop()
    summary = train(recipe, no_val, out)
    rows = [row for row in metrics_log.read(out / "metrics.jsonl") if row["kind"] == "epoch"]
    assert ["val_top1_error" in row for row in rows] == [True, True, False]
    assert [row["step"] for row in rows] == [4, 8, 13]
    assert "validation" not in summary
    assert summary["best_epoch"] == 3
    assert all(torch.equal(weights(out, "best.ckpt")[name], weight) for name, weight in weights(out).items())
    with pytest.raises(Interrupted):
        train(recipe, no_val, tmp_path / "cut", progress=Notes(stop, 10), stop=stop)
    train(recipe, no_val, tmp_path / "cut", resume=True)
    assert result(tmp_path / "cut") == result(out)


def test_only_what_was_held_out_of_train_can_be_folded_in(few_digits: Store, no_val: Store) -> None:
    with pytest.raises(UsageError, match=r"fold_epoch = 2: .* has a val split of its own"):
        choose_data(replace(FEW, validation=0.2, fold_epoch=2), few_digits)
    with pytest.raises(UsageError, match=r"holds none out \(validation = 0\)"):
        choose_data(replace(FEW, validation=0.0, fold_epoch=2), no_val)
    with pytest.raises(UsageError, match=r'fold_epoch = 2: needs schedule = "steps" or "cosine"'):
        replace(FEW, schedule="plateau", lr_steps=(), fold_epoch=2)


def test_the_rate_by_hand_and_resumed(few_digits: Store, tmp_path: Path) -> None:
    """A rate that is asked for before and within a run holds from the next epoch on; killed and resumed too."""
    recipe = replace(FEW, lr=0.02, lr_steps=(), batch=16)
    out, stop = tmp_path / "run", Stop()
    with pytest.raises(Interrupted):  # in epoch 1
        train(recipe, few_digits, out, progress=Notes(stop, 5), stop=stop)
    assert "--resume --out" in hand.ask(out, "drop")
    hand.ask(out, "0.005")
    stop, notes = Stop(), Notes()
    notes.stop, notes.after = stop, 40  # in epoch 3
    with pytest.raises(Interrupted):
        train(recipe, few_digits, out, resume=True, progress=notes, stop=stop)
    assert "by hand: the rate was 0.02 and is 0.002 from epoch 2 on" in notes.lines
    train(recipe, few_digits, out, resume=True)
    assert rates(out) == [0.02, 0.005, 0.005]
    whole = tmp_path / "whole"
    with pytest.raises(Interrupted):
        train(recipe, few_digits, whole, progress=Notes(stop := Stop(), 5), stop=stop)
    for change in ("drop", "0.005"):
        hand.ask(whole, change)
    train(recipe, few_digits, whole, resume=True)
    assert result(whole) == result(out)


def test_what_is_no_rate_and_a_damaged_row(few_digits: Store, tmp_path: Path) -> None:
    recipe, out = replace(FEW, epochs=2, lr=0.02, lr_steps=()), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, few_digits, out, progress=Notes(stop := Stop(), 2), stop=stop)
    for wrong in ("fast", "0", "-1", "nan", "1000"):
        with pytest.raises(UsageError, match="a rate is a number above 0, at most 100, or the word drop"):
            hand.ask(out, wrong)
    hand.ask(out, "0.5")
    hand.ask(out, "0.01")
    rows = (out / "lr.jsonl").read_bytes().splitlines(keepends=True)
    (out / "lr.jsonl").write_bytes(
        rows[0].replace(b"0.5", b"0.7") + json.dumps({"lr": "fast"}).encode() + b"\n" + rows[1]
    )
    notes = Notes()
    train(recipe, few_digits, out, resume=True, progress=notes)
    assert rates(out) == [0.02, 0.01]
    assert any("line 1: damaged" in line and "the rate stays" in line for line in notes.lines)
    assert any("line 2: fast is no rate; the rate stays" in line for line in notes.lines)
    with pytest.raises(UsageError, match="has ended, after epoch 2"):
        hand.ask(out, "drop")
