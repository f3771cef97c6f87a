"""In which layout does a training compute? Measured where no kernel in C serves, kept, told, the same on resuming."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from convnet import checkpoint
from convnet.data.store import Store
from convnet.device import Device
from convnet.device import choose as choose_device
from convnet.errors import UsageError
from convnet.io import strict_json
from convnet.kernels.cpu import compiled
from convnet.nets import create_model
from convnet.nets.describe import summary
from convnet.nets.layers import Net
from convnet.recipe import Recipe, load_recipe
from convnet.training import memory_layout
from convnet.training.memory_layout import CHANNELS_LAST, CONTIGUOUS, choose, known, measured
from convnet.training.step import EagerSteps
from convnet.training.train import train
from runs import Notes
from thin import THIN, thinned

FASTER = {CHANNELS_LAST: 1.2, CONTIGUOUS: 1.0}  # seconds: NCHW is faster, clearly


@pytest.fixture
def thin() -> Iterator[None]:
    with thinned(THIN):
        yield


@pytest.fixture(autouse=True)
def without_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kernel in C serves, every net is worth measuring, and the cache is empty."""
    monkeypatch.delenv(memory_layout.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "available", lambda: False)
    monkeypatch.setattr(memory_layout, "WORTH", 0)


@pytest.fixture
def cpu() -> Device:
    return choose_device("fp32", "cpu")


@pytest.fixture
def recipe() -> Recipe:
    return replace(load_recipe("cifar_13"), batch=4)


@pytest.fixture
def net(recipe: Recipe) -> Net:
    return create_model(recipe.net, num_classes=10, init=recipe.init, seed=0)


class Measure:
    """Stands for `measured`; how often it was asked."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.n = seconds, 0

    def __call__(self, *given: object) -> dict[str, float]:
        self.n += 1
        return self.seconds


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    made = Measure(dict(FASTER))
    monkeypatch.setattr(memory_layout, "measured", made)
    return made


def test_nchw_is_taken_where_it_is_clearly_faster(net: Net, recipe: Recipe, cpu: Device, measure: Measure) -> None:
    layout = choose(net, recipe, cpu)
    assert str(layout) == "NCHW (NCHW has 1.20 times the rate of channels-last, measured on 4 pictures)"
    assert layout.of(cpu) == replace(cpu, memory_format=torch.contiguous_format)
    measure.seconds[CHANNELS_LAST] = 1.04
    other = choose(net, replace(recipe, batch=5), cpu)
    assert (other.name, other.of(cpu)) == (CHANNELS_LAST, cpu)


def test_it_is_measured_once_for_what_it_depends_on(
    net: Net, recipe: Recipe, cpu: Device, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = choose(net, recipe, cpu)
    assert choose(net, replace(recipe, lr=0.5, epochs=3), cpu) == first
    assert measure.n == 1
    choose(net, replace(recipe, batch=5), cpu)
    choose(net, replace(recipe, crop=28), cpu)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "another")  # torch read it long ago
    choose(net, recipe, cpu)
    assert measure.n == 4
    files = sorted((tmp_path / "cache/convnet").glob("layout-*.json"))
    assert len(files) == 4


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"channels_last": 1.2, "contiguous": 0.0}', b'{"contiguous": "1"}'])
def test_a_damaged_file_is_measured_anew(
    damage: bytes, net: Net, recipe: Recipe, cpu: Device, measure: Measure, tmp_path: Path
) -> None:
    choose(net, recipe, cpu)
    (path,) = (tmp_path / "cache/convnet").glob("layout-*.json")
    path.write_bytes(damage)
    choose(net, recipe, cpu)
    assert (measure.n, strict_json.unseal(path.read_bytes())) == (2, FASTER)


def test_without_a_cache_it_is_measured_each_time(
    net: Net, recipe: Recipe, cpu: Device, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_layout, "own_folder", lambda: (None, "no home"))
    assert choose(net, recipe, cpu) == choose(net, recipe, cpu)
    assert measure.n == 2


def test_where_nothing_is_measured(
    net: Net, recipe: Recipe, cpu: Device, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(net, recipe, cpu, n_processes=2).name == CHANNELS_LAST
    assert choose(net, recipe, replace(cpu, dtype=torch.bfloat16)).name == CHANNELS_LAST
    assert choose(net, recipe, replace(cpu, device=torch.device("mps"))).name == CHANNELS_LAST
    assert str(choose(net, recipe, cpu, CONTIGUOUS)) == "NCHW (as the run began)"
    monkeypatch.setattr(memory_layout, "WORTH", recipe.batch * summary(recipe.net)["multiply_adds"] + 1)
    assert str(choose(net, recipe, cpu)) == "channels-last (it isn't measured for so small a net)"
    monkeypatch.setattr(memory_layout, "WORTH", 0)
    monkeypatch.setattr(compiled, "available", lambda: True)
    assert str(choose(net, recipe, cpu)) == "channels-last (as the kernels in C want it)"
    assert measure.n == 0


def test_who_says_so_has_it(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for word, title in (("contiguous", "NCHW"), ("channels_last", "channels-last")):
        monkeypatch.setenv(memory_layout.VARIABLE, word)
        assert str(known(cpu, CONTIGUOUS)) == f"{title} (by CONVNET_LAYOUT)"
    for word in ("auto", ""):
        monkeypatch.setenv(memory_layout.VARIABLE, word)
        assert known(cpu) is None
        assert str(known(cpu, CONTIGUOUS)) == "NCHW (as the run began)"
        for other in (replace(cpu, device=torch.device("cuda")), replace(cpu, dtype=torch.bfloat16)):
            assert str(known(other, CONTIGUOUS)).startswith("channels-last (always")
    monkeypatch.setenv(memory_layout.VARIABLE, "nchw")
    with pytest.raises(UsageError, match=r"unknown CONVNET_LAYOUT 'nchw'.*auto, channels_last, contiguous"):
        known(cpu)
    monkeypatch.setenv(memory_layout.VARIABLE, "contiguous")
    with pytest.raises(UsageError, match="CONVNET_LAYOUT=contiguous is for the CPU; mps computes channels-last"):
        known(replace(cpu, device=torch.device("mps")))


def test_the_measure_leaves_the_net_as_it_is(
    net: Net, recipe: Recipe, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights, and that both layouts came by turns, the first turn not counted."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen: list[torch.memory_format] = []
    gradients = EagerSteps.gradients

    def noted(step: EagerSteps, images: torch.Tensor, labels: torch.Tensor, number: int) -> object:
        seen.append(step.device.memory_format)
        assert images.is_contiguous(memory_format=step.device.memory_format)
        return gradients(step, images, labels, number)

    monkeypatch.setattr(EagerSteps, "gradients", noted)
    monkeypatch.setattr(memory_layout, "SECONDS", 1e9)
    ticks: Iterator[int] = count()
    found = measured(net, recipe, cpu, 2, clock=lambda: float(next(ticks)))
    assert found == {CHANNELS_LAST: 1.0, CONTIGUOUS: 1.0}
    first, second = torch.contiguous_format, torch.channels_last
    assert seen == [first, second, second, first] * 4
    monkeypatch.setattr(memory_layout, "SECONDS", 0.0)
    seen.clear()
    measured(net, recipe, cpu, 2)
    assert len(seen) == 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())


def test_a_run_goes_on_in_the_layout_it_began_with(
    photos: Store, tmp_path: Path, measure: Measure, monkeypatch: pytest.MonkeyPatch, thin: None
) -> None:
    """Bitwise, though another layout would be measured now; who asks for another is told that it isn't."""
    recipe = replace(load_recipe("nin_small"), epochs=2, batch=30, precision="fp32")
    train(recipe, photos, tmp_path / "whole", device="cpu")
    train(replace(recipe, epochs=1), photos, tmp_path / "run", device="cpu")
    measure.seconds[CHANNELS_LAST] = 0.5
    for path in (tmp_path / "cache/convnet").glob("layout-*.json"):
        path.unlink()
    train(recipe, photos, tmp_path / "run", device="cpu", resume=True)
    whole, resumed = (checkpoint.load(tmp_path / name / "last.ckpt") for name in ("whole", "run"))
    assert resumed.provenance["layout"] == CONTIGUOUS
    assert strict_json.unseal((tmp_path / "run/environment.json").read_bytes())["layout"] == CONTIGUOUS
    assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())
    monkeypatch.setenv(memory_layout.VARIABLE, CHANNELS_LAST)
    told = Notes()
    train(replace(recipe, epochs=3), photos, tmp_path / "run", device="cpu", resume=True, progress=told)
    warning = "layout was contiguous and is channels_last: the run goes on, but not bitwise as if never stopped"
    assert any(warning in line for line in told.lines)
    assert any("channels-last (by CONVNET_LAYOUT)" in line for line in told.lines)
