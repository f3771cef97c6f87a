"""On a CUDA device: the same run twice, stopped or not, is bitwise the same; its numbers are the CPU's."""

import json
import warnings
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_nets import NAMES
from test_train import large_photos, result
from torch import Tensor

from conftest import Run
from convnet import checkpoint, device
from convnet.data.device_loader import Resident
from convnet.data.store import Store
from convnet.errors import Interrupted
from convnet.evaluation.trained_net import TrainedNet
from convnet.io.signals import Stop
from convnet.nets import create_model, recipe_of
from convnet.nets.layers import Net
from convnet.recipe import Recipe, load_recipe, with_settings
from convnet.training.step import EagerSteps
from convnet.training.train import train
from runs import Notes
from thin import SMALL, shapes_of, thinned

__all__ = ["large_photos"]
PLACE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
# What torch says isn't deterministic; it is in the nets' memory layout, where no two threads add to one number.
SAID = {"adaptive_avg_pool2d_backward_cuda"}
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # torch warns of cuBLAS in several streams, but gives each stream its own workspace


def made(name: str) -> Net:
    """The net at its full size, quickly: large ones with weights that the device draws."""
    if sum(weight.numel() for weight in shapes_of(name).parameters()) <= SMALL:
        return create_model(name, seed=0)
    net: Net = deepcopy(shapes_of(name)).to_empty(device=PLACE)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, 0, 0.01)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
    return net


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_every_net_is_the_same_twice(name: str, precision: str) -> None:
    recipe, where = load_recipe(recipe_of(name, 8)), device.choose(precision, PLACE)
    step = EagerSteps(where.take(made(name)).train(), replace(recipe, net=name), where)
    net, size = step.net, step.net.input_size
    images = torch.randn(8, net.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(where.device, step.input_dtype, memory_format=torch.channels_last)
    labels = (torch.arange(8) % net.num_classes).to(where.device)

    def gradients() -> dict[str, Tensor]:
        step.gradients(images, labels, 0)
        found = {rule: step.rule.computed(rule).grad for rule in step.rule.parameters}
        return {rule: gradient.clone() for rule, gradient in found.items() if gradient is not None}

    first = gradients()
    assert any(gradient.count_nonzero() for gradient in first.values())
    assert [rule for rule, gradient in gradients().items() if not torch.equal(gradient, first[rule])] == []
    assert complaints(gradients) <= SAID


def complaints(work: object) -> set[str]:
    """The operations of `work` of which torch says that they aren't deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()  # type: ignore[operator]
    finally:
        torch.use_deterministic_algorithms(False)
    lines = [str(each.message) for each in caught]
    return {line.split()[0] for line in lines if "determinis" in line and CUBLAS not in line}


PARTS = {"lenet5_small": 1, "cifar_18": 1, "alexnet_small": 8}  # one map or unit for each so many


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("lenet5_small", ["batch=64", "precision=fp32"], "auto"),
        ("lenet5_small", ["batch=64"], "auto"),
        ("cifar_18", ["batch=8"], "auto"),
        ("cifar_18", ["batch=8", "precision=fp32"], "no"),
        ("alexnet_small", ["batch=8"], "auto"),
        ("alexnet_small", ["batch=8", "precision=fp32"], "no"),
    ],
)
def test_the_same_run_twice_and_stopped_is_bitwise_the_same(
    name: str, settings: list[str], kept: Resident, digits: Store, photos: Store, large_photos: Store, tmp_path: Path
) -> None:
    recipe = with_settings(load_recipe(name), ["epochs=2", "lr_steps=[]", *settings])
    store = next(store for store in (digits, photos, large_photos) if store.size == recipe.size)
    with thinned(PARTS[name]) if PARTS[name] > 1 else nullcontext():
        for out in ("one", "other"):
            train(recipe, store, tmp_path / out, device=PLACE, resident=kept)
        assert result(tmp_path / "one") == result(tmp_path / "other")
        for after in (2, 9):  # before the steps are a graph, and after
            stop, out = Stop(), f"stopped {after}"
            with pytest.raises(Interrupted):
                train(
                    recipe, store, tmp_path / out, device=PLACE, resident=kept, progress=Notes(stop, after), stop=stop
                )
            train(recipe, store, tmp_path / out, device=PLACE, resident=kept, resume=True)
            assert result(tmp_path / out) == result(tmp_path / "one"), out


RECIPE: Recipe = with_settings(load_recipe("lenet5_small"), ["epochs=2", "batch=64", "precision=fp32"])


@pytest.fixture(scope="module")
def runs(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{device: the folder of a run there}."""
    folder = tmp_path_factory.mktemp("runs")
    for place in ("cpu", PLACE):
        train(RECIPE, digits, folder / place, device=place)
    return {place: folder / place for place in ("cpu", PLACE)}


def test_the_runs_numbers_are_the_cpus(runs: dict[str, Path]) -> None:
    """float32 sums in another order: after 40 steps the weights differ in the fourth digit at most."""
    one, other = (checkpoint.load(out / "last.ckpt") for out in runs.values())
    for name, weight in one.weights.items():
        torch.testing.assert_close(other.weights[name], weight, rtol=1e-3, atol=1e-3)
    assert other.position.loss_sum == pytest.approx(one.position.loss_sum, rel=1e-3)


def test_one_net_is_tested_alike_on_both(runs: dict[str, Path], digits: Store) -> None:
    one, other = (TrainedNet.load(runs["cpu"], place).evaluate(digits) for place in runs)
    assert other.n == one.n == 359
    assert other.loss == pytest.approx(one.loss, rel=1e-3)
    assert (other.predicted != one.predicted).sum() <= 1  # two classes may be equally likely


def test_the_command_predicts_alike_on_both(runs: dict[str, Path], digits: Store, run: Run) -> None:
    from PIL import Image

    Image.fromarray(digits.split("test").square(0)).save("digit.png")
    rows = []
    for place in runs:
        code, out, err = run("predict", runs["cpu"], "digit.png", "--json", "--device", place)
        assert code == 0, err
        rows.append(json.loads(out))
    probabilities = [np.array(numbers(row)) for row in rows]
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=1e-3)


def numbers(value: object) -> list[float]:
    """All the fractions in a JSON document, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []
