"""LeNet-5's features in one pass against the plain form in float64, and where it serves."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convnet.data.loader import Batch
from convnet.device import Device
from convnet.kernels.cpu import compiled, lenet5
from convnet.kernels.ops import lenet5 as by_ops
from convnet.kernels.plain import plain_lenet5, scaled_tanh, sub_sample
from convnet.nets import create_model, trace
from convnet.nets.layers import Net
from convnet.nets.lenet5 import FEATURES, LeNet5, TanhLinear, TanhSparseConv2d, digit_codes, rbf_loss
from convnet.recipe import load_recipe
from convnet.training.step import EagerSteps

needs_compiler = pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())
FP32 = Device(torch.device("cpu"), torch.float32, torch.channels_last, 1, "a test's")
ROUNDING = 2.0**-23
Arguments = tuple[Tensor, list[Tensor], Tensor, Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(net: Net) -> list[Tensor]:
    return [net.get_parameter(f"{stage}.{name}") for stage in FEATURES for name in ("weight", "bias")]


def arguments(n: int, maps: int = 1, seed: int = 0, **options: str) -> Arguments:
    """Pictures, and weights of a size at which the tanhs bend but aren't flat."""
    net = create_model("lenet5", in_channels=maps, output="linear", seed=0, **options)
    weights = [randn(*each.shape, seed=seed + i) / max(1, each[0].numel()) ** 0.5
               for i, each in enumerate(weights_of(net), 1)]  # fmt: skip
    return randn(n, maps, 32, 32, seed=seed), weights, *(net.get_buffer(f"c3.{name}") for name in ("outputs", "inputs"))


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * largest)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 35), st.integers(1, 3), st.sampled_from(["table", "full"]), st.booleans(), st.integers(0, 2**31))
def test_values_and_gradients(n: int, maps: int, c3: str, channels_last: bool, seed: int) -> None:
    """Some roundings of float32, whose half is 6e-8, of sums of up to 784 n products, in any part of a vector's lanes
    and with C5's kernels in both layouts."""
    images, weights, *table = arguments(n, maps, seed, c3=c3)
    if channels_last:
        weights[8] = weights[8].contiguous(memory_format=torch.channels_last)
    own = [x.requires_grad_() for x in weights]
    exact = [x.detach().double().requires_grad_() for x in own]
    assert lenet5.available(images, own, *table) == compiled.available()
    found, expected = by_ops(images, own, *table), plain_lenet5(images.double(), exact, *table)
    near(found, expected, 2e-6)
    seeds = randn(84, seed=seed + 50).expand(found.shape)  # a gradient that isn't contiguous
    torch.autograd.backward(found, seeds)
    torch.autograd.backward(expected, seeds.double())
    for one, other in zip(own, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        near(one.grad, other.grad, 1e-5)


def last_tanh(before: Tensor) -> tuple[Tensor, Tensor]:
    """F6's tanh by the pass in C of what its biases are, all weights being 0, and its slope as the biases' gradient."""
    images, weights, *table = arguments(1)
    weights = [torch.zeros_like(each) for each in weights]
    values, slopes = [], []
    for each in torch.nn.functional.pad(before, (0, -len(before) % 84)).split(84):
        known = lenet5.told(images, [*weights[:-1], each], *table)
        features, kept = lenet5.forward(images, known)
        values.append(features[0])
        slopes.append(lenet5.backward(known, kept, torch.ones(1, 84))[-1])
    return torch.cat(values)[: len(before)], torch.cat(slopes)[: len(before)]


@needs_compiler
def test_tanh_is_within_three_roundings_and_keeps_its_range() -> None:
    """The largest error of two million values was 1.92 times 2^-23 of them, with fused products and without."""
    sizes = torch.logspace(-30, 1.2, 10_000)
    x = torch.cat([sizes, -sizes, torch.linspace(-14, 14, 20_000)])
    exact = 1.7159 * torch.tanh(2 / 3 * x.double())
    assert float(((last_tanh(x)[0].double() - exact) / exact).abs().nan_to_num().max()) < 3 * ROUNDING
    far = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 1e30, -15.0])
    values, slopes = last_tanh(far)
    torch.testing.assert_close(values, scaled_tanh(far), equal_nan=True, rtol=1e-7, atol=0)
    assert slopes[[2, 3, 6, 7]].eq(0).all()  # a saturated unit learns nothing, rather than a rounding's sign


@needs_compiler
def test_pictures_in_a_batch_change_nothing_of_each_other() -> None:
    images, weights, *table = arguments(37)
    together = lenet5.forward(images, lenet5.told(images, weights, *table))[0]
    alone = torch.cat([lenet5.forward(each, lenet5.told(each, weights, *table))[0] for each in images.split(1)])
    assert torch.equal(together, alone)
    images[5] = math.nan
    assert lenet5.forward(images, lenet5.told(images, weights, *table))[0].isnan().any(
        1
    ).nonzero().flatten().tolist() == [5]


def test_where_no_kernel_serves_it_is_the_plain_form() -> None:
    images, weights, *table = arguments(2)
    doubles = [each.double() for each in weights]
    asked = images.clone().requires_grad_()
    for unlike in (
        (images.double(), doubles),
        (asked, weights),
        (images[:0], weights),
        (images, [w.half() for w in weights]),
    ):
        assert not lenet5.available(*unlike, *table)
    assert not lenet5.available(images, [*weights[:10], weights[10][:4], weights[11][:4]], *table)
    assert torch.equal(by_ops(images.double(), doubles, *table), plain_lenet5(images.double(), doubles, *table))
    (slope,) = torch.autograd.grad(by_ops(asked, weights, *table).sum(), asked)
    assert slope.abs().max() > 0
    assert by_ops(images.to("meta"), [w.to("meta") for w in weights], *(t.to("meta") for t in table)).shape == (2, 84)


def gradients(net: Net, images: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(net(images).square().mean(), [w for w in net.parameters() if w.requires_grad]))


@pytest.mark.parametrize("frozen", [(), ("c1.weight", "s4.bias")])
def test_lenet5_learns_as_stage_by_stage(frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = create_model("lenet5", seed=0).train(), randn(3, 1, 32, 32)
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    found = gradients(net, images)
    monkeypatch.setattr(lenet5, "available", lambda *tensors: False)
    for one, other in zip(found, gradients(net, images), strict=True):
        near(one, other.double(), 1e-5)


def test_testing_is_stage_by_stage_but_for_roundings() -> None:
    """With gradients too, as pictures of what a net looks at want them."""
    net, images = create_model("lenet5", seed=0).eval(), randn(2, 1, 32, 32)
    stages = trace(net, images)
    by_hand = scaled_tanh(F.conv2d(images, net.get_parameter("c1.weight"), net.get_parameter("c1.bias")))
    assert torch.equal(stages["c1"], by_hand)
    pooled = sub_sample(by_hand, net.get_parameter("s2.weight"), net.get_parameter("s2.bias"))
    assert torch.equal(stages["s2"], scaled_tanh(pooled))
    with torch.inference_mode():
        near(net(images), stages["output"].double(), 1e-6)
    near(net(images.requires_grad_()), stages["output"].double(), 1e-6)


def test_in_training_a_hook_sees_its_stage() -> None:
    net, images, seen = create_model("lenet5", seed=0).train(), randn(2, 1, 32, 32), []
    stages: dict[str, Tensor] = {}
    net(images, stages)
    assert list(stages) == [*FEATURES, "output"]
    net.get_submodule("s2.tanh").register_forward_hook(lambda module, args, y: seen.append(y))
    net(images)
    near(seen[0], stages["s2"].double(), 1e-6)


class Doubled(TanhLinear):
    """F6 with another `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def padded(net: Net) -> None:
    vars(net.get_submodule("c1"))["padding"] = (2, 2)
    net.s2 = nn.Sequential(nn.AvgPool2d(4, 2), nn.ZeroPad2d((0, -1, 0, -1)))


CHANGES: dict[str, Callable[[Net], object]] = {
    "a stage of another kind": lambda net: setattr(
        net, "f6", nn.Sequential(nn.Flatten(), nn.Linear(120, 84), nn.ReLU())
    ),
    "none": lambda net: setattr(net, "s4", nn.Sequential(nn.AvgPool2d(2), nn.Identity())),
    "another tanh": lambda net: setattr(net.get_submodule("c5"), "tanh", nn.Tanh()),
    "another forward": lambda net: setattr(net, "f6", Doubled(120, 84)),
    "a forward of the layer's own": lambda net: vars(net.get_submodule("s2")).update(forward=nn.AvgPool2d(2)),
    "no bias": lambda net: net.get_submodule("c1").register_parameter("bias", None),
    "padding": padded,
    "a weight of another's making": lambda net: nn.utils.parametrizations.weight_norm(net.get_submodule("c1")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stage_that_was_replaced_is_asked(change: str) -> None:
    """In place of the pass in C, which knows the paper's stages alone."""
    torch.manual_seed(0)
    net, images = create_model("lenet5", seed=0).eval(), randn(2, 1, 32, 32)
    CHANGES[change](net)
    x = images
    for stage in (*FEATURES, "output"):
        x = net.get_submodule(stage)(x)
    near(net(images), x.detach().double(), 1e-5)


def test_autocast_computes_in_bfloat16() -> None:
    net, images = create_model("lenet5", seed=0).eval(), randn(2, 1, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(images), net(images, {}))


def test_who_waits_for_every_layer_sees_them() -> None:
    net, seen = create_model("lenet5", seed=0).eval(), list[nn.Module]()
    hook = nn.modules.module.register_module_forward_hook(lambda module, *others: seen.append(module))
    try:
        net(randn(2, 1, 32, 32))
    finally:
        hook.remove()
    assert {net.get_submodule(stage) for stage in FEATURES} <= set(seen)


def test_a_table_that_is_none_is_not_read() -> None:
    """C would read maps that aren't there; of connections in another order it would make other sums."""
    images, weights, outputs, inputs = arguments(2)
    turned = [*weights[:4], weights[4].flip(0), *weights[5:]]
    assert not lenet5.available(images, turned, outputs.flip(0), inputs.flip(0))
    expected = plain_lenet5(images, weights, outputs, inputs).double()
    near(by_ops(images, turned, outputs.flip(0), inputs.flip(0)), expected, 1e-6)
    for wrong in (inputs + 1, inputs - 1, inputs.int()):
        assert not lenet5.available(images, weights, outputs, wrong)
    net = create_model("lenet5", seed=0).eval()
    net.c3 = TanhSparseConv2d(8, ((0, 7),) * 16, 5)  # of more maps than S2 has
    for stages in (None, {}):
        with pytest.raises(RuntimeError, match="8 channels"):
            net(images, stages)


def test_many_gradients_at_once_are_those_one_by_one() -> None:
    images, weights, *table = arguments(3)
    own = [each.requires_grad_() for each in weights]
    features = by_ops(images, own, *table)
    seeds = randn(4, *features.shape, seed=3)
    together = torch.autograd.grad(features, own, seeds, is_grads_batched=True, retain_graph=True)
    for i, each in enumerate(seeds):
        for found, expected in zip(together, torch.autograd.grad(features, own, each, retain_graph=True), strict=True):
            near(found[i], expected.double(), 1e-5)


def test_what_is_kept_may_come_back_anywhere_in_memory() -> None:
    images, weights, *table = arguments(3)
    own = [each.requires_grad_() for each in weights]

    def moved(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=x.dtype), x.detach().flatten()])[1:].view(x.shape)

    expected = torch.autograd.grad(by_ops(images, own, *table).sum(), own)
    with torch.autograd.graph.saved_tensors_hooks(moved, lambda x: x):
        features = by_ops(images, own, *table)
    for one, other in zip(torch.autograd.grad(features.sum(), own), expected, strict=True):
        near(one, other.double(), 1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.*is deprecated")
def test_in_training_torchs_tools_give_the_same_gradients() -> None:
    net, images = create_model("lenet5", seed=0).train(), randn(2, 1, 32, 32)
    weights = dict(net.named_parameters())

    def slopes(module: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(module(images).square().mean(), list(weights.values())))

    expected = slopes(net)
    compiled_net = torch.compile(net, backend="aot_eager", fullgraph=True)
    traced = torch.jit.trace(net, (images,), check_trace=False)  # its check has no gradients: other convolutions
    for form in (traced, compiled_net):
        for one, other in zip(slopes(form), expected, strict=True):
            near(one, other.double(), 1e-5)
    torch.compiler.reset()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (images,)).square().mean()

    by_func = torch.func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
    for (name, _), other in zip(weights.items(), expected, strict=True):
        near(by_func[name], other.double(), 1e-5)


def steps(change: Callable[[Net], object] = lambda net: None, **settings: object) -> EagerSteps:
    net = create_model("lenet5", seed=0)
    change(net)
    recipe = replace(load_recipe("lenet5_small"), **settings)
    return EagerSteps(FP32.take(net), recipe, FP32)


def outcome(step: EagerSteps, n: int, number: int = 0) -> list[Tensor]:
    """Loss, how many are wrong, and the gradients of a batch of n pictures."""
    images, labels = randn(n, 1, 32, 32), torch.arange(n) % 10
    step.net.train()
    loss, wrong = step.gradients(images, labels, number)
    return [loss, wrong, *(each.grad for each in step.net.parameters() if each.grad is not None)]


def shared(net: Net) -> None:
    net.get_submodule("s2").bias = net.get_submodule("c1").bias


def frozen(net: Net) -> None:
    for name in ("c1.weight", "s4.bias"):
        net.get_parameter(name).requires_grad_(False)


@needs_compiler
@pytest.mark.parametrize("change", [lambda net: None, shared, frozen])
@pytest.mark.parametrize("n", [1, 11, 16, 37])
def test_a_training_step_without_autograd_is_autograds(
    n: int, change: Callable[[Net], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(torch.autograd, "backward", lambda *given: pytest.fail("autograd was asked"))
        found = outcome(steps(change), n)
    monkeypatch.setattr(LeNet5, "loss_and_gradients", lambda *given: None)
    expected = outcome(steps(change), n)
    assert len(found) == len(expected) == 14 - {shared: 1, frozen: 2}.get(change, 0)
    for one, other in zip(found, expected, strict=True):
        close(one, other)
        assert one.stride() == other.stride()


def close(found: Tensor, expected: Tensor) -> None:
    """Eq. 9 sums and takes exponentials in another order than torch: some roundings of the largest value."""
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@needs_compiler
@pytest.mark.parametrize("j", [20.0, float("inf")])
def test_eq_9_is_the_plain_one(j: float) -> None:
    """Near codes and so far from all that only the rubbish class counts; NaN stays; a label that is none is told."""
    codes, labels = digit_codes(), torch.arange(12) % 10
    features = codes[labels] + torch.linspace(0, 3, 12)[:, None] * randn(12, 84)
    exact = features.double().requires_grad_()
    expected = rbf_loss(-(exact[:, None] - codes.double()).square().sum(2), labels, j)
    expected.backward()
    mean, wrong, slope = lenet5.loss(features, codes, labels, j)
    close(mean.double(), expected.detach())
    assert exact.grad is not None
    close(slope.double(), exact.grad)
    assert int(wrong) == int((torch.cdist(exact, codes.double()).argmin(1) != labels).sum()) > 0
    features[3, 5] = float("nan")
    assert lenet5.loss(features, codes, labels, j)[0].isnan()
    with pytest.raises(IndexError, match="labels must be 0 to 9, got 1 to 10"):
        lenet5.loss(features, codes, labels + 1, j)


@needs_compiler
def test_gradients_lie_as_weights_and_add_up_where_they_are() -> None:
    """As autograd's do: C1's kernels of coloured pictures lie channels-last, and who holds a gradient sees the sum."""
    net, other = (FP32.take(create_model("lenet5", in_channels=3, seed=0)).train() for _ in range(2))
    assert not net.get_parameter("c1.weight").is_contiguous()
    held: list[list[Tensor | None]] = []
    for seed in range(2):
        images, labels = randn(11, 3, 32, 32, seed=seed), torch.arange(11) % 10
        assert net.loss_and_gradients(images, labels, 20.0) is not None
        rbf_loss(other(images), labels, 20.0).backward()
        for one, two in zip(net.parameters(), other.parameters(), strict=True):
            assert one.grad is not None
            assert two.grad is not None
            close(one.grad, two.grad)
            assert one.grad.stride() == two.grad.stride()
        held.append([weight.grad for weight in net.parameters()])
    assert all(map(torch.equal, *held))


def turned(net: Net) -> None:
    """F6's weights lie column by column."""
    weight = net.get_parameter("f6.weight")
    weight.data = weight.detach().t().contiguous().t()


class Own(LeNet5):
    """A net of somebody's own."""


WATCHED: dict[str, Callable[[Net], object]] = {
    **{name: change for name, change in CHANGES.items() if name not in ("padding", "none")},
    "a hook of the net": lambda net: net.register_forward_hook(lambda *given: None),
    "a hook of a stage": lambda net: net.get_submodule("c3").register_full_backward_hook(lambda *given: None),
    "a hook of the output": lambda net: net.get_submodule("output").register_forward_hook(lambda *given: None),
    "a hook of a weight": lambda net: net.get_parameter("c5.bias").register_hook(lambda g: 2 * g),
    "a hook of a gradient": lambda net: net.get_parameter("c1.weight").register_post_accumulate_grad_hook(
        lambda weight: None
    ),
    "another output": lambda net: setattr(net, "output", nn.Linear(84, 10)),
    "codes that are learned": lambda net: net.get_buffer("output.codes").requires_grad_(),
    "weights that lie otherwise": turned,
    "a class of its own": lambda net: setattr(net, "__class__", Own),
}


@pytest.mark.parametrize("change", WATCHED)
def test_who_looks_on_gets_autograds_step(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, asked = steps(WATCHED[change]), []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda loss: (asked.append(loss), backward(loss)))
    outcome(step, 4)
    assert asked


def test_a_net_of_which_nothing_learns_is_refused_as_by_autograd() -> None:
    step = steps(lambda net: net.requires_grad_(False))
    with pytest.raises(RuntimeError, match="does not require grad"):
        outcome(step, 4)


def test_micro_batches_and_anomaly_detection_are_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = steps(), steps()
    pieces.micro_batch = 3
    for one, other in zip(outcome(pieces, 8), outcome(whole, 8), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(torch, "is_anomaly_enabled", lambda: True)
    monkeypatch.setattr(torch.autograd, "backward", lambda loss: pytest.fail("autograd"))
    with pytest.raises(pytest.fail.Exception):
        outcome(whole, 8)


def test_a_loss_that_is_not_finite_moves_no_weight() -> None:
    step = steps()
    before = {name: weight.clone() for name, weight in step.net.state_dict().items()}
    images = randn(16, 1, 32, 32)
    images[3, 0, 0, 0] = math.nan
    step.forward_backward(Batch(images, torch.zeros(16, dtype=torch.int64), np.arange(16)), 0)
    (result,) = step.update(0.1)
    assert math.isnan(result.loss)
    assert all(torch.equal(weight, before[name]) for name, weight in step.net.state_dict().items())
