"""Does every net learn by its recipe? 20 steps of the real loop: on 4 pictures, small, every day; on 8 at full size at
night.

`pytest -m large tests/nets/test_nets_learn.py -n0 -s` prints the table of docs/nets.md.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_nets import NAMES

from convnet import device
from convnet.checkpoint import Position
from convnet.cli.resolve import plan_run
from convnet.data.loader import Loader
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import Diverged, UsageError
from convnet.nets import MODELS, recipe_of
from convnet.progress import SILENT
from convnet.recipe import Recipe, list_recipes, load_recipe
from convnet.training.data import Data
from convnet.training.run import Run, begin
from convnet.training.step import choose
from convnet.training.train import train_epoch
from thin import of_each_kind, shapes_of, thinned

PICTURES, STEPS, LAST = 8, 20, 5
FEW = 4  # pictures of a small net: at rates from 0.03 to 10 times its own it learns, or doesn't, as with 8
FALL = 0.995  # of the loss of a net that ignores its pictures or learns nothing
FROZEN = 1e-30  # a rate that changes no weight
WHOLE = 8_000_000  # parameters: a net that has no more stays as it is
THIN = 8  # the others have an eighth of their maps and units
# Of the recipe's rate, where the whole one is too much for the same eight pictures again and again.
HERE = dict.fromkeys(
    (
        "nin_imagenet",
        "googlenet_caffe",
        "vgg_d",
        *(net for net in NAMES if net.startswith("vgg") and net.endswith("_bn")),
    ),
    0.3,
)
OWN = ("lenet5", "alexnet", "alexnet_2012", "caffenet", "alexnet_owt", "zfnet", "vgg_a", "vgg_d")  # of large sets
NOT_ON_EIGHT = OWN[1:6] + OWN[7:]  # that don't start on 8 pictures by these


@pytest.fixture(scope="session")
def stores(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Store]:
    """{side: store}; digits at 28, at 32 and 256 36 training pictures in 4 classes: noise around the class's colour."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, colour in {"blue": (0, 0, 50), "green": (0, 50, 0), "grey": (17, 17, 17), "red": (50, 0, 0)}.items():
        (folder / "source" / name).mkdir(parents=True)
        for i in range(10):
            pixels = generator.integers(0, 180, (36, 44, 3), np.uint8) + np.array(colour, np.uint8)
            Image.fromarray(pixels).save(folder / "source" / name / f"{i}.png")
    source = open_source(folder / "source")
    return {28: digits, **{side: prepare(source, folder / f"store{side}", size=side) for side in (32, 256)}}


# Which recipe


def test_every_net_has_one_recipe_and_one_at_most_for_small_sets() -> None:
    """A recipe of its own name, or another's; with a crop, channels and initial values that the net takes."""
    for net, made in MODELS.items():
        assert recipe_of(net) == (made.recipe or made.name)
        assert (net in list_recipes()) == (recipe_of(net) == net)
        for recipe in (load_recipe(recipe_of(net)), load_recipe(recipe_of(net, 8))):
            shapes = shapes_of(net)
            assert recipe.init in shapes.inits
            assert (1 if recipe.channels == "grey" else 3) == shapes.in_channels
            assert recipe.size + 2 * recipe.pad >= shapes.input_size
            if recipe.net == net or recipe.name == recipe_of(net):
                assert recipe.crop == shapes.input_size, net
    of_nets = {recipe_of(net, n) for net in MODELS for n in (8, None)}
    assert set(list_recipes()) - of_nets == {"fine_tuning", "alexnet_modern"}  # of any net; beside the net's own


def test_limits_of_small_sets() -> None:
    assert [recipe_of("lenet5", n) for n in (0, 9_999, 10_000, None)] == [*["lenet5_small"] * 2, *["lenet5"] * 2]
    assert [recipe_of("zfnet", n) for n in (99_999, 100_000)] == ["alexnet_small", "zfnet"]
    with pytest.raises(UsageError, match="unknown net 'zfnett': did you mean 'zfnet'"):
        recipe_of("zfnett")


def test_a_net_alone_chooses_its_recipe_and_crop(stores: dict[int, Store]) -> None:
    """And another's recipe can be asked for; then its crop stays, as it was asked for."""

    def planned(net: str | None, recipe: str | None = None) -> tuple[str, str, int]:
        plan = plan_run(str(stores[256].path), net, recipe, [], SILENT)[1]
        return plan.name, plan.net, plan.crop

    assert planned(None) == ("alexnet_small", "alexnet", 224)
    assert planned("alexnet_tanh") == ("alexnet_small", "alexnet_tanh", 224)
    assert planned("alexnet_caffe") == ("caffenet_small", "alexnet_caffe", 227)
    assert planned("alexnet_owt") == ("caffenet_small", "alexnet_owt", 224)
    assert planned("alexnet_bn") == ("alexnet_bn", "alexnet_bn", 227)
    assert planned("vgg16_bn") == ("vgg_small", "vgg16_bn", 224)
    assert planned("alexnet_bn", "alexnet") == ("alexnet", "alexnet_bn", 224)
    assert planned("googlenet_bn", "vgg_d") == ("vgg_d", "googlenet_bn", 224)


# Learning


def recipe_for(net: str, stores: dict[int, Store]) -> tuple[Recipe, Store]:
    """What `convnet train STORE --net NET` chooses, and the store."""
    store = stores[load_recipe(recipe_of(net, PICTURES)).size]
    return plan_run(str(store.path), net, None, [], SILENT)[1], store


def begun(recipe: Recipe, store: Store, folder: Path) -> tuple[Run, Loader]:
    """A run that has not made a step, and its loader of one batch of pictures, of each class as many as can be."""
    split = store.split("train")
    turns = [np.flatnonzero(split.labels == label) for label in range(len(store.classes))]
    ids = np.array([turn[i] for i in range(recipe.batch) for turn in turns][: recipe.batch])
    data = Data(store, split, ids, None, ids[:0])
    run = begin(recipe, data, folder, device.choose(recipe.precision), False, "", SILENT)
    return run, Loader(split, store.statistics, ids, recipe, run.preprocessing, run.step.device.device, 0)


def losses(run: Run, loader: Loader, steps: range, lr: float) -> list[float]:
    """The losses of these steps (the first is 1) of the real loop at the rate `lr`, from the weights as they are; NaN
    comes last if it diverges."""
    run.recipe, found = replace(run.recipe, lr=lr), []
    for step in steps:
        run.position = Position(epoch=step, step=step - 1)
        try:
            train_epoch(run, choose(run.step, SILENT.note), loader, SILENT, None)
        except Diverged:
            return [*found, float("nan")]
        found.append(run.position.loss_sum / run.recipe.batch)
    return found


def ignorant(run: Run) -> float:
    """The loss of a net that ignores its pictures and knows the classes' shares; none is known of the RBF loss."""
    if run.recipe.loss == "rbf":
        return float("inf")
    return float(np.log(min(run.recipe.batch, len(run.data.store.classes)))) * sum(run.net.loss_weights.values())


def first_steps(recipe: Recipe, store: Store, folder: Path, lr: float, n: int) -> tuple[list[float], float]:
    """The losses of 20 steps; and what the mean of the last five is to be compared with: the smaller of what a net that
    ignores its pictures has, and what this one has with its initial weights on the same crops, mirrors, colours and
    dropped units.

    A step is an epoch of n pictures here, so the rate is kept at the beginning's.
    """
    run, loader = begun(replace(recipe, batch=n, lr_steps=()), store, folder)
    unlearned = losses(run, loader, range(STEPS - LAST + 1, STEPS + 1), FROZEN)
    stuck = min(float(np.mean(unlearned)), ignorant(run))
    return losses(run, loader, range(1, STEPS + 1), lr), stuck


def falls(found: list[float], stuck: float) -> bool:
    return float(np.mean(found[-LAST:])) < FALL * stuck


@pytest.mark.parametrize("net", of_each_kind(NAMES))
def test_loss_falls_in_small(
    net: str, stores: dict[int, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thin forms without dropout, whose noise in so few units hides what is learned; VGG and NIN see 64 pixels. An
    eighth of the units learns slower: the recipes for small sets get two or three times their rate."""
    recipe, store = recipe_for(net, stores)
    lr = recipe.lr
    small = nullcontext()
    if sum(parameter.numel() for parameter in shapes_of(net).parameters()) > WHOLE:
        small = thinned(THIN)
        monkeypatch.setattr("convnet.training.step.counted", lambda *place: nullcontext())
        monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *p, **others: x)
        if recipe.init == "he":
            recipe, lr = replace(recipe, net_options={"input_size": 64}, crop=64), 3 * lr
        elif recipe.init == "fan-in":
            lr *= 3 if net == "alexnet_conv6" else 2
        elif net == "googlenet_caffe":
            lr *= 0.5  # at the whole rate it overshoots once it has learned: 0.97, 1.15, 3.9, 5.9
    elif net == "nin_imagenet":
        recipe, lr = replace(recipe, crop=64), HERE[net] * lr
    with small:
        found, stuck = first_steps(recipe, store, tmp_path, lr, FEW)
    assert falls(found, stuck), (found, stuck)


@pytest.mark.parametrize("net", ["lenet5", "cifar_26", "nin_small", "alexnet_bn", "googlenet", "vgg_a"])
def test_a_net_that_does_not_learn_is_told_so(net: str, stores: dict[int, Store], tmp_path: Path) -> None:
    """The test of the test: at a rate of nearly nothing the loss doesn't count as falling, dropout's noise or not."""
    recipe, store = recipe_for(net, stores)
    if recipe.init == "he":
        recipe = replace(recipe, net_options={"input_size": 64}, crop=64)
    with thinned(THIN) if sum(p.numel() for p in shapes_of(net).parameters()) > WHOLE else nullcontext():
        found, stuck = first_steps(recipe, store, tmp_path, 1e-9, FEW)
    assert not falls(found, stuck), (found, stuck)


@pytest.mark.large
@pytest.mark.parametrize(
    ("net", "name"),
    [*((net, recipe_of(net, PICTURES)) for net in NAMES), *((net, recipe_of(net)) for net in OWN)],
)
def test_loss_falls_at_full_size(net: str, name: str, stores: dict[int, Store], tmp_path: Path) -> None:
    """By the recipe for small sets and, for some, by that for large ones, with which most of them don't start on 8."""
    recipe, _ = recipe_for(net, stores)
    if name != recipe.name:
        recipe = load_recipe(name)
    lr = recipe.lr * HERE.get(net, 1.0)
    found, stuck = first_steps(recipe, stores[recipe.size], tmp_path, lr, PICTURES)
    (tmp_path / "last.ckpt").unlink()  # half a gigabyte or more
    last = float(np.mean(found[-LAST:]))
    print(f"\n| `{net}` | `{name}` | {lr:g} | {stuck:.3f} | {found[0]:.3f} | {last:.4g} | {found[-1]:.4g} |")
    assert falls(found, stuck) == ((net, name) not in [(each, recipe_of(each)) for each in NOT_ON_EIGHT])
