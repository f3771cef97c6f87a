"""Network in Network against the authors' settings and the published counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from convnet.errors import UsageError
from convnet.nets import MODELS, create_model, trace
from convnet.nets.nin import NINCifar10, NINImageNet, NINSmall
from convnet.recipe import load_recipe
from steps import pictures


@pytest.mark.parametrize(
    ("cls", "parameters", "gmac"),
    [(NINCifar10, 966_986, 0.2225), (NINImageNet, 7_595_176, 1.100), (NINSmall, 81_960, 0.05675)],
)
def test_parameters_and_multiply_adds(cls: type, parameters: int, gmac: float) -> None:
    with torch.device("meta"):
        net = cls().eval()
        assert sum(p.numel() for p in net.parameters()) == parameters
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, net.input_size, net.input_size))
    assert counter.get_total_flops() / 2 == pytest.approx(gmac * 1e9, rel=5e-4)


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_imagenet", "nin_small"])
def test_initial_values(name: str) -> None:
    for key, parameter in create_model(name, seed=0).named_parameters():
        layer, kind = key.split(".")
        if kind == "bias":
            assert not parameter.any()
            continue
        std = 0.01 if name == "nin_imagenet" and layer in ("conv1", "conv3", "cccp8") else 0.05
        if name == "nin_small":
            std = math.sqrt(2 / parameter[0].numel())
        assert parameter.std().item() == pytest.approx(std, rel=4 / (2 * parameter.numel()) ** 0.5), key


def test_logits_are_the_means_of_the_last_maps() -> None:
    for name, last in (("nin_cifar10", "cccp6"), ("nin_small", "cccp3")):
        net = create_model(name, seed=0).eval()
        stages = trace(net, pictures(2, 36))
        assert stages[last].shape[1] == net.num_classes
        assert bool((stages[last] >= 0).all())
        torch.testing.assert_close(net(pictures(2, 36)).detach(), stages[last].mean((2, 3)))


def test_each_stage_is_its_layer_and_relu() -> None:
    net = create_model("nin_small", seed=0)
    images = pictures(2, 32)
    stages = trace(net, images)
    conv1, cccp1 = net.get_submodule("conv1"), net.get_submodule("cccp1")
    with torch.no_grad():
        assert torch.equal(stages["conv1"], F.relu(conv1(images)))
        assert torch.equal(stages["cccp1"], F.relu(cccp1(stages["conv1"])))


def test_dropout_is_in_training_only() -> None:
    net, images = create_model("nin_cifar10", seed=0), pictures(1, 16)
    with torch.no_grad():
        net.train()
        assert not torch.equal(net(images), net(images))
        net.eval()
        assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(("name", "low"), [("nin_cifar10", 4), ("nin_imagenet", 39), ("nin_small", 7)])
def test_any_input_from_the_smallest_on(name: str, low: int) -> None:
    with torch.device("meta"):
        net = MODELS[name]().eval()
        for sides in ((low, low), (low, low + 1), (300, low), (257, 301)):
            assert net(torch.empty(1, 3, *sides)).shape == (1, net.num_classes)
        with pytest.raises(
            UsageError, match=f"{name} takes pictures with sides of at least {low} pixels, got {low - 1}"
        ):
            net(torch.empty(1, 3, low - 1, low))


def test_recipes_name_their_nets() -> None:
    for name in ("nin_cifar10", "nin_imagenet"):
        recipe = load_recipe(name)
        assert (recipe.net, recipe.crop, recipe.decay_biases) == (name, create_model(name, seed=0).input_size, False)
