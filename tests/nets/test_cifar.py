"""The CIFAR-10 nets against cuda-convnet's settings."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnet.errors import UsageError
from convnet.nets import MODELS, create_model, trace
from convnet.recipe import load_recipe
from steps import pictures

NAMES = ("cifar_26", "cifar_18", "cifar_13", "cifar_11", "cifar_relu", "cifar_tanh")
STD = {
    "cifar_26": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc64": 0.1, "fc10": 0.1},
    "cifar_18": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
    "cifar_13": {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
    "cifar_11": {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01},
    "cifar_relu": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
    "cifar_tanh": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
}
MACS = {"cifar_26": 12_354_176, "cifar_18": 12_298_240, "cifar_13": 18_517_248, "cifar_11": 19_512_576}


@pytest.mark.parametrize("name", NAMES)
def test_initial_values_are_the_settings(name: str) -> None:
    for key, parameter in create_model(name, seed=0).named_parameters():
        layer, kind = key.split(".")
        if kind == "bias":
            assert not parameter.any()
        else:
            # A standard deviation estimated from n values is off by 1 / sqrt(2 n).
            tolerance = 4 / (2 * parameter.numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(STD[name][layer], rel=tolerance), key
            assert abs(parameter.mean().item()) < 4 * STD[name][layer] / parameter.numel() ** 0.5, key


@pytest.mark.parametrize("name", MACS)
def test_multiply_adds(name: str) -> None:
    with torch.device("meta"):
        net = MODELS[name]().eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, net.input_size, net.input_size))
    assert counter.get_total_flops() == 2 * MACS[name]


def test_recipes_name_their_nets_and_input() -> None:
    for name in ("cifar_26", "cifar_18", "cifar_13", "cifar_11"):
        recipe = load_recipe(name)
        assert (recipe.net, recipe.crop) == (name, create_model(name, seed=0).input_size)
        assert (recipe.size, recipe.lr * recipe.bias_lr_factor) == (32, 0.002)


def test_18_is_the_figures_net_with_normalisation() -> None:
    net, bare = create_model("cifar_18", seed=0).eval(), create_model("cifar_relu", seed=0).eval()
    stages, images = trace(net, pictures(2, 32)), pictures(2, 32)
    x = F.relu(F.max_pool2d(F.conv2d(images, net.conv1.weight, net.conv1.bias, padding=2), 3, 2, ceil_mode=True))
    torch.testing.assert_close(stages["relu1"], x.detach())
    squares = F.conv2d(x.square(), torch.ones(32, 1, 3, 3), padding=1, groups=32)
    torch.testing.assert_close(stages["norm1"], (x * (1 + 5e-5 / 9 * squares) ** -0.75).detach())
    assert [s for s in stages if not s.startswith("norm")] == list(trace(bare, images))


def test_11_normalises_over_nine_maps() -> None:
    stages = trace(create_model("cifar_11", seed=0), 100 * pictures(2, 24))
    for before, after in (("pool1", "norm1"), ("relu2", "norm2")):
        torch.testing.assert_close(stages[after], F.local_response_norm(stages[before], 9, 0.001, 0.75, 1.0))


def test_average_pools_count_the_pixels_inside_only() -> None:
    stages = trace(create_model("cifar_26", seed=0), 100 * pictures(1, 32))
    x, y = stages["relu2"], stages["pool2"]
    torch.testing.assert_close(y[..., -1, -1], x[..., 14:, 14:].mean((2, 3)))
    torch.testing.assert_close(y[..., 0, -1], x[..., :3, 14:].mean((2, 3)))


def test_tanh_takes_the_place_of_relu() -> None:
    stages = trace(create_model("cifar_tanh", seed=0), pictures(1, 32))
    assert torch.equal(stages["tanh1"], torch.tanh(stages["pool1"]))
    assert [s for s in stages if s.startswith("tanh")] == ["tanh1", "tanh2", "tanh3"]


@pytest.mark.parametrize("name", NAMES)
def test_input_sizes(name: str) -> None:
    low, high = (24, 27) if name in ("cifar_13", "cifar_11") else (32, 39)
    with torch.device("meta"):
        net: nn.Module = MODELS[name]().eval()
        assert net(torch.empty(1, 3, low, high)).shape == (1, 10)
        for side in (low - 1, high + 1):
            with pytest.raises(UsageError, match=rf"{name} takes pictures with sides of {low} to {high} pixels, got"):
                net(torch.empty(1, 3, side, low))


def test_local_weights_move_without_a_change() -> None:
    """`to` lays them out as the products read them: shape, values, gradient and what a checkpoint has stay."""
    net, moved = create_model("cifar_13", seed=0), create_model("cifar_13", seed=0).to("cpu")
    for (name, weight), (_, other) in zip(net.state_dict().items(), moved.state_dict().items(), strict=True):
        assert torch.equal(weight, other), name
    weight = moved.get_parameter("local3.weight")
    assert not weight.is_contiguous()
    images = pictures(2, 24)
    for each in (net, moved):
        each.train()(images).square().sum().backward()
    torch.testing.assert_close(weight.grad, net.get_parameter("local3.weight").grad)
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()  # no copy


def test_local_weights_are_shared_between_processes() -> None:
    net = create_model("cifar_13", seed=0).share_memory()
    assert all(weight.is_shared() for weight in net.parameters())
