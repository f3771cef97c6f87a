"""One step: bf16 copies give what autocast gives, micro-batches what the whole batch gives, dropout is counted."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet import device
from convnet.device import Device
from convnet.io import rng
from convnet.nets import create_model
from convnet.nets.dropout import counted, dropout
from convnet.nets.layers import Net
from convnet.recipe import load_recipe
from convnet.training.optim import optimizer
from convnet.training.step import EagerSteps
from thin import thinned

BF16 = Device(torch.device("cpu"), torch.bfloat16, torch.channels_last, 1, "a test's")
FP32 = replace(BF16, dtype=torch.float32)
RECIPE = replace(load_recipe("alexnet"), lr=0.01)
FEW_MAPS = ("lenet5", "cifar_26", "nin_cifar10")
OTHERS = ["vgg_a", "googlenet", "googlenet_bn", "nin_cifar10", "lenet5", "cifar_26", "alexnet_bn"]


def small(name: str) -> tuple[Net, Tensor, Tensor]:
    """A net with an eighth of its maps and units, where it has many, and four pictures with labels."""
    options: dict[str, Any] = {"vgg_a": {"input_size": 32, "init": "he"}, "lenet5": {"output": "linear"}}.get(name, {})
    with thinned(1 if name in FEW_MAPS else 8):
        net = create_model(name, num_classes=3, seed=0, **options)
    side = options.get("input_size", net.input_size)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, net.in_channels, side, side, generator=generator)
    return BF16.take(net), images.to(memory_format=torch.channels_last), torch.tensor([0, 1, 2, 0])


def autocast_step(net: Net, images: Tensor, labels: Tensor) -> Tensor:
    """The plain form: weights in float32, cast in each step by autocast."""
    rule = optimizer(net, RECIPE)
    with BF16.autocast(), counted(RECIPE.seed, 5):
        heads = net.heads(images)
    loss = sum(w * F.cross_entropy(heads[name].float(), labels) for name, w in net.loss_weights.items())
    loss.backward()
    rule.step(RECIPE.lr)
    return loss.detach()


@pytest.mark.parametrize("name", ["alexnet", *OTHERS])
def test_copies_give_what_autocast_gives(name: str) -> None:
    net, images, labels = small(name)
    plain, *_ = small(name)
    step = EagerSteps(net, RECIPE, BF16)
    step.net.train()
    plain.train()
    loss, _ = step.gradients(images, labels, 5)
    step.rule.step(RECIPE.lr)
    expected = autocast_step(plain, images, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-3)
    first = dict(small(name)[0].named_parameters())
    state = plain.state_dict()
    for key, weight in net.state_dict().items():
        if not weight.is_floating_point():
            continue
        moved = (state[key] - first[key].detach()).norm() if key in first else state[key].norm()
        gap = float((weight - state[key]).float().norm())
        assert gap <= 0.03 * float(moved) + 1e-7, (key, gap, float(moved))


@pytest.mark.parametrize("fast", [True, False])
def test_copies_follow_the_weights_and_share_the_rest(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr("convnet.kernels.cpu.update.available", lambda *tensors: False)
    net, images, labels = small("googlenet_bn")
    step = EagerSteps(net, RECIPE, BF16)
    step.net.train()
    for number in range(2):
        step.gradients(images, labels, number)
        step.rule.step(0.01)
    own, computed = dict(net.named_parameters()), dict(step.net.named_parameters())
    assert own.keys() == computed.keys()
    kinds = set()
    for name, weight in own.items():
        kinds.add(computed[name].dtype)
        assert torch.equal(weight.detach().to(computed[name].dtype), computed[name].detach()), name
    assert kinds == {torch.float32, torch.bfloat16}  # batch norm's stay as they are
    statistics = dict(net.named_buffers())
    assert all(buffer is statistics[name] for name, buffer in step.net.named_buffers())
    assert any(float(buffer.abs().max()) > 0 for name, buffer in statistics.items() if name.endswith("running_mean"))


def test_layers_that_share_a_weight_share_its_copy() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight
    twin, copies = BF16.narrowed(torch.nn.Sequential(first, second))
    assert set(copies) == {"0.weight", "0.bias", "1.bias"}
    assert twin[0].weight is twin[1].weight is copies["0.weight"]


def test_hooks_on_layers_are_called_in_bf16() -> None:
    net, images, _ = small("alexnet")
    twin, _ = BF16.narrowed(net)
    twin.eval()
    seen: list[str] = []
    for name in ("fc6", "conv1", "conv2.1"):
        twin.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    with torch.no_grad(), BF16.autocast():
        hooked = twin(images)
        assert seen == ["conv1", "conv2.1", "fc6"]
        torch.testing.assert_close(hooked, BF16.narrowed(net)[0].eval()(images), rtol=0.05, atol=0.02)


def test_the_loss_of_distances_is_equation_9_with_20_for_its_constant() -> None:
    """-(log of e^-d over e^-20 and the sum of all e^-d), where every distance is 30 or more: d - 20, nearly."""
    net = create_model("lenet5", seed=0).train()
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    distances = -net(images).detach().double()
    assert distances.min() > 30
    labels = distances.argmin(1)
    labels[0] = (labels[0] + 1) % 10
    expected = distances[range(4), labels] + torch.log(math.exp(-20) + torch.exp(-distances).sum(1))
    loss, wrong = EagerSteps(net, replace(RECIPE, loss="rbf"), FP32).gradients(images, labels, 0)
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert int(wrong) == 1


def test_in_float32_the_net_itself_computes() -> None:
    net, *_ = small("cifar_26")
    assert FP32.narrowed(net) == (net, {})


@pytest.mark.parametrize("name", ["alexnet", "vgg_a", "googlenet", "nin_cifar10"])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_give_the_whole_batchs_step(name: str, size: int) -> None:
    """Dropout included: its draws know the picture's place in the batch.

    In float64, where other orders of sums are 1e-14 apart: in float32 they choose other places of a maximum, and
    GoogLeNet's first layer was 1e-3 apart. The losses are float32.
    """
    ends = []
    for most in (None, size):
        net, images, labels = small(name)
        step = EagerSteps(net.double(), RECIPE, FP32, most)
        step.net.train()
        loss, wrong = step.gradients(images.double(), labels, 3)
        ends.append((float(loss), int(wrong), {key: step.rule.computed(key).grad for key in step.rule.parameters}))
    (loss, wrong, whole), (part_loss, part_wrong, parts) = ends
    assert part_loss == pytest.approx(loss, rel=1e-5)
    assert part_wrong == wrong
    for key, gradient in whole.items():
        gap = float((parts[key] - gradient).norm())
        assert gap <= 1e-11 * float(gradient.norm()), key


def test_micro_batches_add_up_in_float32() -> None:
    """64 gradients that bfloat16 can't add: 1 and many of 1/512 would stay 1. A weight that is not used has none."""
    linear = nn.Linear(1, 1, bias=False)

    class One(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.unused = linear, nn.Linear(1, 1)

        def heads(self, images: Tensor) -> dict[str, Tensor]:
            y = self.fc(images)
            return {"logits": torch.cat([y, -y], 1)}

    images = torch.full((64, 1), 1 / 512)
    images[0] = 1.0
    step = EagerSteps(One(), RECIPE, BF16, 1)
    linear.weight.data.zero_()
    step.rule.bf16_weights["fc.weight"].data.zero_()
    step.gradients(images, torch.zeros(64, dtype=torch.int64), 0)
    expected = -(1 + 63 / 512) / 64  # d/dw of the mean of log(1 + e^(-2 w x)) at 0
    assert float(step.rule.bf16_weights["fc.weight"].grad) == pytest.approx(expected, rel=2**-8)


@pytest.mark.parametrize("shape", [(6, 50), (6, 4, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fast", [True, False])
def test_dropout_is_counted(
    shape: tuple[int, ...], dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By brute force from io/rng.py: over (seed, stream, step, layer), then the element in the order (N, H, W, C)."""
    if not fast:
        monkeypatch.setattr("convnet.kernels.cpu.dropout.available", lambda x: False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with counted(7, 12, first=2):
        first, second = dropout(x, 0.4, True), dropout(x, 0.4, True)
    rows = x.detach().movedim(1, -1)
    positions = np.arange(rows.numel()).reshape(rows.shape) + 2 * rows[0].numel()
    for layer, found in enumerate((first, second)):
        kept = rng.uniform(7, rng.stream("dropout"), 12, layer, positions) >= 0.4
        expected = torch.where(torch.from_numpy(kept), (rows * (1 / 0.6)).to(dtype), 0).movedim(-1, 1)
        assert torch.equal(found.detach(), expected)
        assert 0.3 < kept.mean() < 0.9
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (dx,) = torch.autograd.grad(first, x, g)
    assert torch.equal(dx != 0, (first != 0) & (g != 0))
    assert dropout(x, 0.4, False) is x
    assert dropout(x, 0.0, True) is x


def test_dropout_draws_the_same_whatever_came_before() -> None:
    x, results = torch.ones(4, 100), []
    for _ in range(2):
        torch.rand(1)
        with counted(1, 2):
            results.append(dropout(x, 0.5, True))
    assert torch.equal(*results)
    with counted(1, 3):
        other = dropout(x, 0.5, True)
    assert 0.3 < float((other == results[0]).float().mean()) < 0.7
    assert device.choose("fp32", "cpu").dtype == torch.float32


def test_outside_a_training_torch_draws() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    found = dropout(x, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(found, F.dropout(x, 0.5, True))
