"""The numbers that are told of a unit give its value: in every stage of nets of every kind."""

import numpy as np
import pytest
import torch

from conftest import CPU
from convnet.data.preprocess import Preprocessing
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.serve.arithmetic import Walk, arithmetic, pixel, walk
from thin import images_for, thin_net

NETS = ("lenet5", "alexnet", "zfnet", "nin_cifar10", "cifar_18", "cifar_13", "cifar_tanh", "googlenet")


def value_from(told: dict) -> float:
    """By the numbers that are told alone."""
    match told["kind"]:
        case "sum" | "distance":
            products = sum(term["sum"] for term in told["maps"]) + told["rest"]["sum"] + told.get("constant", 0)
            return {None: lambda x: x, "max(0, x)": lambda x: max(x, 0), "tanh(x)": np.tanh,
                    "1.7159 tanh(2x/3)": lambda x: 1.7159 * np.tanh(2 / 3 * x)}[told.get("then")](products)  # fmt: skip
        case "max":
            return max(np.ravel(told["maps"][0]["inputs"]))
        case "norm":
            constants = told["constants"]
            squares = sum(np.sum(np.square(term["inputs"])) for term in told["maps"])
            return told["x"] / (constants["k"] + constants["alpha"] * squares) ** constants["beta"]
        case "function":
            form = {"max(0, x)": lambda x: max(x, 0), "tanh(x)": np.tanh, "1.7159 tanh(2x/3)": None}[told["form"]]
            return form(told["x"])
    raise AssertionError(told["kind"])


@pytest.mark.parametrize("name", NETS)
def test_told_numbers_give_the_value(name: str) -> None:
    walked = walk(thin_net(name), images_for(thin_net(name), 1))
    for stage, activation in walked.stages.items():
        maps = activation[0] if activation.ndim == 4 else activation[0][:, None, None]
        scale = float(maps.abs().max()) or 1.0
        for at in (0, int(maps.argmax()), maps.numel() - 1):
            place = tuple(map(int, np.unravel_index(at, tuple(maps.shape))))
            told = arithmetic(walked, stage, place)
            assert told["value"] == float(maps[place])
            assert value_from(told) == pytest.approx(told["value"], rel=1e-3, abs=1e-3 * scale), (stage, place)
            assert told.get("is_bent", False) == stage.startswith(("inception", "head"))
            windows(walked, told)


def windows(walked: Walk, told: dict) -> None:
    """What a unit reads is what stands at that window of the stage that is named."""
    source = walked.stages.get(told["source"])
    for term in told.get("maps", []) if source is not None else []:
        top, left, height, width = told["window"]
        maps = source[0] if source.ndim == 4 else source[0][:, None, None]
        assert np.array_equal(term["inputs"], maps[term["map"], top : top + height, left : left + width].double())


def test_the_weights_are_the_layers_own() -> None:
    net = thin_net("alexnet")
    walked = walk(net, images_for(net, 1))
    told = arithmetic(walked, "conv5", (0, 5, 5))
    assert told["source"] == "relu4"
    assert told["window"] == [4, 4, 3, 3]
    first = net.conv5[0]
    assert told["constant"] == pytest.approx(float(first.bias[0].detach()), rel=1e-3, abs=1e-6)
    assert max(term["map"] for term in told["maps"]) < first.in_channels  # of its own column
    for term in told["maps"]:
        assert np.allclose(term["weights"], first.weight[0, term["map"]].detach())


@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_a_pixel_is_taken_down_to_its_colours(channels: str) -> None:
    mean = np.float32(np.random.default_rng(0).uniform(0, 255, (36, 36, 3)))
    how = Preprocessing(36, 0, 32, channels, mean, 0.5, -3.0)
    net = TrainedNet(thin_net("lenet5" if channels == "grey" else "cifar_18"), how, (), CPU)
    picture = Seen("x", np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    told = pixel(net, picture, (0, 7, 20))
    assert told["value"] == float(net.images([picture])[0, 0, 7, 20])
    subtracted = mean[9, 22] @ np.array([0.299, 0.587, 0.114]) if channels == "grey" else mean[9, 22, 0]
    assert told["mean"] == pytest.approx(subtracted, abs=0.01)
    assert (told["level"] - told["mean"]) * 0.5 - 3 == pytest.approx(told["value"], abs=1e-3)


def test_a_walk_leaves_the_net_as_it_was() -> None:
    net = thin_net("cifar_18")
    walk(net, images_for(net, 1))
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.is_grad_enabled()
