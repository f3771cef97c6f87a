"""AlexNet's relatives against functions written by hand, grouped convolutions, and their published initial values."""

import copy
import math
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.errors import UsageError
from convnet.nets import trace
from convnet.nets.alexnet import AlexNet
from convnet.nets.convolutions import Columns
from convnet.nets.describe import multiply_adds as explained
from convnet.nets.layers import Net
from thin import images_for, new_thin_net, shapes_of, thin_net

ONES = ("conv2", "conv4", "conv5", "fc6", "fc7")
MEMBERS = [
    *("alexnet", "alexnet_2012", "caffenet", "alexnet_caffe", "alexnet_bn", "alexnet_conv6", "alexnet_half"),
    *("alexnet_1col", "alexnet_4col", "alexnet_no_lrn", "alexnet_pool2", "alexnet_no_exchange", "alexnet_no_conv3"),
    *("alexnet_no_conv2", "alexnet_no_conv4", "alexnet_no_conv5", "alexnet_tanh", "alexnet_half_2012"),
    *("alexnet_no_lrn_2012", "alexnet_pool2_2012", "alexnet_no_exchange_2012"),
]


def in_float64(name: str) -> tuple[Net, Tensor]:
    net = copy.deepcopy(thin_net(name)).eval().double()
    with torch.no_grad():
        for key, parameter in net.named_parameters():  # maps so large that every normalisation shows
            parameter.mul_(3 if key.startswith("conv") else 1)
    return net, images_for(net).double()


def weights(net: Net, layer: str) -> tuple[Tensor, Tensor, int]:
    """A layer's weights, biases and number of groups, as `F.conv2d` takes them."""
    module = net.get_submodule(layer)
    convolutions = list(module) if isinstance(module, Columns) else [module]
    weight = torch.cat([conv.get_parameter("weight") for conv in convolutions])
    return weight, torch.cat([conv.get_parameter("bias") for conv in convolutions]), len(convolutions)


def conv(net: Net, layer: str, x: Tensor) -> Tensor:
    weight, bias, groups = weights(net, layer)
    if layer == "conv1":
        return F.conv2d(x, weight, bias, stride=4)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)


def top(net: Net, x: Tensor) -> Tensor:
    """Layers 3 to 8, which all of them share."""
    for layer in ("conv3", "conv4", "conv5"):
        x = F.relu(conv(net, layer, x))
    x = F.max_pool2d(x, 3, 2).flatten(1)
    for layer in ("fc6", "fc7"):
        x = F.relu(F.linear(x, *weights(net, layer)[:2]))
    return F.linear(x, *weights(net, "fc8")[:2])


def within_map(x: Tensor) -> Tensor:
    total = F.conv2d(x.flatten(0, 1)[:, None] ** 2, x.new_ones(1, 1, 5, 5), padding=2).view(x.shape)
    return x / (1 + 0.001 / 25 * total) ** 0.75


def by_hand_2012(net: Net, x: Tensor) -> Tensor:
    def lrn(x: Tensor) -> Tensor:
        halves = x.chunk(net.columns, 1)
        return torch.cat([F.local_response_norm(half, 5, alpha=1e-4, beta=0.75, k=2) for half in halves], 1)

    x = F.relu(F.max_pool2d(lrn(conv(net, "conv1", F.pad(x, (0, 3, 0, 3)))), 3, 2))
    x = F.max_pool2d(within_map(lrn(F.relu(conv(net, "conv2", x)))), 3, 2)
    return top(net, x)


def by_hand_caffenet(net: Net, x: Tensor) -> Tensor:
    for layer in ("conv1", "conv2"):
        x = F.max_pool2d(F.relu(conv(net, layer, x)), 3, 2)
        x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1)
    return top(net, x)


def by_hand_caffe(net: Net, x: Tensor) -> Tensor:
    for layer in ("conv1", "conv2"):
        x = F.local_response_norm(F.relu(conv(net, layer, x)), 5, alpha=1e-4, beta=0.75, k=1)
        x = F.max_pool2d(x, 3, 2)
    return top(net, x)


def by_hand_paper(net: Net, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 3, 0, 3))
    for layer in ("conv1", "conv2"):
        x = F.local_response_norm(F.relu(conv(net, layer, x)), 5, alpha=5e-4, beta=0.75, k=2)
        x = F.max_pool2d(x, 3, 2)
    return top(net, x)


FORMS = {
    "alexnet": by_hand_paper,
    "alexnet_half": by_hand_paper,
    "alexnet_4col": by_hand_paper,
    "alexnet_2012": by_hand_2012,
    "alexnet_half_2012": by_hand_2012,
    "caffenet": by_hand_caffenet,
    "alexnet_caffe": by_hand_caffe,
}


@pytest.mark.parametrize("name", FORMS)
def test_orders_and_constants_are_those_written_by_hand(name: str) -> None:
    net, images = in_float64(name)
    with torch.no_grad():
        torch.testing.assert_close(net(images), FORMS[name](net, images), rtol=1e-10, atol=1e-12)
        for form in {by_hand_paper, by_hand_2012} if net.input_size == 224 else {by_hand_caffenet, by_hand_caffe}:
            assert (form is FORMS[name]) == torch.allclose(net(images), form(net, images), rtol=1e-6)


@pytest.mark.parametrize(("name", "n"), [("alexnet", 2), ("alexnet_4col", 4)])
def test_columns_are_grouped_convolutions(name: str, n: int) -> None:
    net = thin_net(name).eval()
    images = images_for(net)
    assert weights(net, "conv2")[2] == weights(net, "conv4")[2] == weights(net, "conv5")[2] == n
    assert weights(net, "conv3")[2] == 1
    with torch.no_grad():
        torch.testing.assert_close(net(images), by_hand_paper(net, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_side_that_gives_6_by_6_is_taken(name: str) -> None:
    net = shapes_of(name)
    with pytest.raises(UsageError) as caught:
        net(torch.empty(1, 3, 10, 10, device="meta"))
    smallest, largest = (int(word) for word in str(caught.value).split() if word.isdigit() and len(word) == 3)
    assert str(caught.value).startswith(f"{name} takes pictures with sides of {smallest} to {largest} pixels")
    for side, right in ((smallest - 1, False), (smallest, True), (largest, True), (largest + 1, False)):
        images = torch.empty(1, 3, net.input_size, side, device="meta")
        if right:
            assert trace(net, images)["pool5"].shape[2:] == (6, 6)
        else:
            with pytest.raises(UsageError, match=f"got {net.input_size} x {side}"):
                net(images)
    assert smallest <= net.input_size <= largest


def test_a_side_outside_would_not_give_6_by_6(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MEMBERS:
        net = shapes_of(name)
        assert isinstance(net, AlexNet)
        sides = net.sides
        for side in (sides[0] - 1, sides[-1] + 1):
            monkeypatch.setattr(type(net), "sides", range(side, side + 1))
            stages: dict[str, torch.Tensor] = {}
            with suppress(RuntimeError, ValueError):
                net(torch.empty(2, 3, side, side, device="meta"), stages)
            assert stages["pool5"].shape[2:] != (6, 6)
            monkeypatch.undo()


def test_owt_takes_63_pixels_and_more() -> None:
    net = shapes_of("alexnet_owt")
    for side in (63, 300):
        assert trace(net, torch.empty(1, 3, side, side, device="meta"))["avgpool"].shape == (1, 256, 6, 6)
    with pytest.raises(UsageError, match="alexnet_owt takes pictures with sides of at least 63 pixels, got 62 x 224"):
        net(torch.empty(1, 3, 62, 224, device="meta"))


@pytest.mark.parametrize(
    ("name", "stds", "biases"),
    [
        ("alexnet_2012", {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}, dict.fromkeys(ONES, 1)),
        ("caffenet", {"fc6": 0.005, "fc7": 0.005}, dict.fromkeys(ONES, 1)),
        ("alexnet_caffe", {"fc6": 0.005, "fc7": 0.005}, dict.fromkeys(ONES, 0.1)),
        ("alexnet_conv6", {"conv6": 0.03}, dict.fromkeys(("conv2", "conv4", "conv5", "conv6", "fc7", "fc8"), 1)),
        ("alexnet_half", {}, dict.fromkeys(ONES, 1)),
        ("alexnet_tanh", {}, {}),
    ],
)
def test_initial_values(name: str, stds: dict[str, float], biases: dict[str, float]) -> None:
    net = new_thin_net(name)
    net.initialize("paper", torch.Generator().manual_seed(2))
    for key, parameter in net.named_parameters():
        layer = key.partition(".")[0]
        if key.endswith("bias"):
            assert bool((parameter == biases.get(layer, 0)).all()), key
        else:
            spread = 5 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(stds.get(layer, 0.01), rel=spread), key


def test_initial_values_of_batch_norm_and_torchvision() -> None:
    for key, parameter in new_thin_net("alexnet_bn").named_parameters():
        if parameter.ndim > 1:
            std = math.sqrt(2 / parameter[0].numel())
            assert parameter.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * parameter.numel())), key
        else:
            assert bool((parameter == float(key == "data.weight")).all()), key
    net = new_thin_net("alexnet_owt")
    net.initialize("paper", torch.Generator().manual_seed(2))
    for key, parameter in net.named_parameters():
        bound = net.get_parameter(key.replace("bias", "weight"))[0].numel() ** -0.5
        assert 0.5 * bound < parameter.abs().max().item() <= bound, key


def test_conv6_and_batch_norm_in_their_places() -> None:
    net, images = in_float64("alexnet_conv6")
    stages = trace(net, images)
    weight, bias, _ = weights(net, "conv6")
    torch.testing.assert_close(stages["conv6"], F.conv2d(stages["pool5"], weight, bias, padding=1))
    torch.testing.assert_close(stages["fc7"], F.linear(stages["relu6"].flatten(1), *weights(net, "fc7")[:2]))
    net, images = in_float64("alexnet_bn")
    net.train()
    recorded: dict[str, Tensor] = {}
    net(images, recorded)
    for stage in ("data", "bn2"):
        x = recorded[stage]
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros_like(x[0, :, 0, 0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(x.std((0, 2, 3)), torch.ones_like(x[0, :, 0, 0]), atol=1e-2, rtol=0)


def test_ablations_change_what_they_say() -> None:
    net, images = in_float64("alexnet_tanh")
    stages = trace(net, images)
    for n in range(1, 8):
        before = stages[f"conv{n}" if n < 6 else f"fc{n}"]
        torch.testing.assert_close(stages[f"tanh{n}"], before.tanh())
    net, images = in_float64("alexnet_pool2")
    stages = trace(net, images)
    torch.testing.assert_close(stages["pool1"], F.max_pool2d(stages["norm1"], 2, 2))
    net, images = in_float64("alexnet_no_exchange")
    before = trace(net, images, ["pool5.0", "pool5.1"])
    with torch.no_grad():  # what column 1 sees never reaches column 0 before fc6
        net.get_parameter("conv2.1.weight").zero_()
    after = trace(net, images, ["pool5.0", "pool5.1"])
    assert torch.equal(before["pool5.0"], after["pool5.0"])
    assert not torch.equal(before["pool5.1"], after["pool5.1"])


@pytest.mark.parametrize(
    ("name", "sides", "multiply_adds"),
    [  # the settings files' nets, sides of the maps and multiply-adds, by hand from the settings
        ("alexnet_pool2_2012", (55, 28, 26, 13, 13, 13, 11, 6), 686_891_552),
        ("alexnet_half_2012", (55, 27, 27, 13, 13, 13, 13, 6), 391_514_384),
        ("alexnet_no_lrn_2012", (55, 27, 27, 13, 13, 13, 13, 6), 724_406_816),
        ("alexnet_no_exchange_2012", (55, 27, 27, 13, 13, 13, 13, 6), 724_323_872),
    ],
)
def test_the_measured_nets_have_the_sizes_of_their_settings(
    name: str, sides: tuple[int, ...], multiply_adds: int
) -> None:
    stages = trace(shapes_of(name), torch.empty(1, 3, 224, 224, device="meta"))
    shown = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert tuple(stages[stage].shape[2] for stage in shown) == sides
    by_hand = 0
    for key, weight in shapes_of(name).named_parameters():
        if weight.ndim == 4:
            by_hand += weight.numel() * stages[key.partition(".")[0]][0, 0].numel()
        elif weight.ndim == 2:
            by_hand += weight.numel()
    assert explained(shapes_of(name)) == by_hand == multiply_adds


def test_columns_without_communication_meet_in_the_last_layer_only() -> None:
    """Changed weights of column 1, from conv2 to fc7, never reach column 0; fc8 reads both. Against layers by hand."""
    net, images = in_float64("alexnet_no_exchange_2012")
    layers = [f"conv{n}" for n in range(2, 6)] + ["fc6", "fc7"]
    before = trace(net, images)
    with torch.no_grad():
        x = before["pool5"].chunk(2, 1)
        for layer in ("fc6", "fc7"):
            x = [F.relu(F.linear(own.flatten(1), *list(net.get_submodule(f"{layer}.{i}").parameters())))
                 for i, own in enumerate(x)]  # fmt: skip
        torch.testing.assert_close(before["relu7"], torch.cat(x, 1))
        torch.testing.assert_close(before["fc8"], F.linear(torch.cat(x, 1), *weights(net, "fc8")[:2]))
        for layer in layers:
            net.get_parameter(f"{layer}.1.weight").mul_(0.5)
    after = trace(net, images)
    for layer in layers:
        zero, one = (torch.stack([all_[layer].chunk(2, 1)[i] for all_ in (before, after)]) for i in (0, 1))
        assert torch.equal(zero[0], zero[1]), layer
        assert not torch.equal(one[0], one[1]), layer
    assert not torch.equal(before["fc8"], after["fc8"])


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "alexnet_owt", "zfnet", "vgg_a"])
def test_dropout_off_leaves_training_without_chance(name: str) -> None:
    net = new_thin_net(name, dropout=0).train()
    images = images_for(net)
    assert torch.equal(net(images), net(images))
    net = new_thin_net(name).train()
    assert not torch.equal(net(images), net(images))
