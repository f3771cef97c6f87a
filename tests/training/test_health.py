"""What goes wrong early is told in one line that names the setting; of what goes well nothing is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convnet import device
from convnet.checkpoint import Position
from convnet.data.loader import Loader
from convnet.data.store import Store
from convnet.errors import Diverged
from convnet.nets.layers import Net
from convnet.progress import SILENT
from convnet.recipe import Recipe, load_recipe
from convnet.training import health
from convnet.training.data import choose_data
from convnet.training.run import begin
from convnet.training.train import train
from runs import Notes

RECIPE = Recipe(
    name="small", net="cifar_18", size=32, crop=32, colour_std=0.0, batch=16, epochs=1, lr=0.001, precision="fp32",
    schedule="steps",
)  # fmt: skip


def warnings(recipe: Recipe, store: Store, out: Path) -> list[str]:
    notes = Notes()
    try:
        train(recipe, store, out, progress=notes)
    except Diverged:
        notes.lines.append("warning: diverged")
    return [line.removeprefix("warning: ") for line in notes.lines if line.startswith("warning")]


def looked_at(store: Store, out: Path, fault: Callable[[Net], None], step: int = 0) -> list[str]:
    """What is said of a net after a fault is made in it."""
    data, notes = choose_data(RECIPE, store), Notes()
    out.mkdir()
    run = begin(RECIPE, data, out, device.choose("fp32", "cpu"), False, "", SILENT)
    run.position = Position(step=step)
    loader = Loader(data.train, store.statistics, data.train_ids, RECIPE, run.preprocessing, torch.device("cpu"), 0)
    with torch.no_grad():
        fault(run.net)
    modes = [module.training for module in run.net.modules()]
    for batch in loader.epoch(1):
        health.look(run, batch, notes)
    assert [module.training for module in run.net.modules()] == modes
    return notes.lines


def test_activations_that_explode(photos: Store, tmp_path: Path) -> None:
    def larger(net: Net) -> None:
        net.get_parameter("conv1.weight").mul_(1e4)
        net.get_parameter("conv2.weight").mul_(1e3)

    (line,) = looked_at(photos, tmp_path / "first", larger)  # once, of several batches
    assert "(root mean square): the activations explode from layer to layer; try other initial values" in line
    assert line.endswith("(--set scale=...)")
    (line,) = looked_at(photos, tmp_path / "later", larger, step=100)
    assert line.startswith("warning: after 100 steps ")
    assert line.endswith("try a lower rate (--set lr=0.0001)")


def test_units_that_are_dead(photos: Store, tmp_path: Path) -> None:
    def dead(net: Net) -> None:
        net.get_parameter("conv2.bias").fill_(-5e3)

    (line,) = looked_at(photos, tmp_path / "run", dead, step=10)
    assert line == (
        "warning: after 10 steps 100% of relu2 is 0 for all of 16 pictures: these units are dead, and learn no more; "
        "try a lower rate (--set lr=0.0001)"
    )
    assert looked_at(photos, tmp_path / "well", lambda net: None) == []

    def nearly(net: Net) -> None:
        net.get_parameter("conv2.bias")[1:] = -5e3

    assert looked_at(photos, tmp_path / "early", nearly, step=100) == []  # what is left may wake the others
    (line,) = looked_at(photos, tmp_path / "late", nearly, step=1000)
    assert line.startswith("warning: after 1,000 steps 97% of relu2 is 0 for all of 16 pictures")


def test_a_rate_that_is_too_high(photos: Store, tmp_path: Path) -> None:
    """By the loss of the first epoch: of a linear layer alone, whose loss is finite at any rate."""
    recipe = replace(RECIPE, layer_lr={"conv*": 0.0, "fc10": 1000.0}, decay=0.0, lr=100.0)
    (line,) = warnings(recipe, photos, tmp_path / "run")
    assert line.startswith("in the first epoch the loss rose from 1.1 to ")
    assert line.endswith("(a net that ignores its pictures has 1.1): the rate is too high; try --set lr=10")


@pytest.mark.parametrize("name", ["lenet5_small", "cifar_26", "cifar_18", "cifar_13", "cifar_11"])
def test_our_recipes_are_well(name: str, digits: Store, photos: Store, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    store = digits if recipe.size == 28 else photos
    recipe = replace(recipe, epochs=1, lr_steps=(), fold_epoch=0, keep_epochs=(), schedule="steps", batch=16)
    assert warnings(recipe, store, tmp_path / "run") == []
