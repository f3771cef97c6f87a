"""LeNet-5's scaled tanh and sub-sampling in one pass against the plain form in float64, and where it serves."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.kernels.cpu import compiled, tanh_pool
from convnet.kernels.ops import tanh_pool as by_ops
from convnet.kernels.plain import plain_tanh_pool
from convnet.nets import create_model, trace

needs_compiler = pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())
OPS = torch.ops.convnet
ROUNDING = 2.0**-23


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(n: int, maps: int, height: int, width: int, seed: int = 0) -> list[Tensor]:
    return [2 * randn(n, maps, height, width, seed=seed), randn(maps, seed=seed + 1), randn(maps, seed=seed + 2)]


def near(found: Tensor, expected: Tensor, tolerance: float, among: float = 0.0) -> None:
    """among: the size of the numbers whose sums these are; a small sum of large ones is rounded as they are."""
    largest = max(among, float(expected.detach().abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * largest)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(2, 11), st.integers(2, 29)),
    st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]),
    st.integers(0, 2**31),
)
def test_values_and_gradients(shape: tuple[int, int, int, int], factors: tuple[float, float], seed: int) -> None:
    """Forward a few roundings of float32, whose half is 6e-8; gradients are products of four such."""
    own = [x.requires_grad_() for x in inputs(*shape, seed=seed)]
    exact = [x.detach().double().requires_grad_() for x in own]
    found, expected = OPS.tanh_pool(*own), plain_tanh_pool(*exact)
    for one, other in zip(found, expected, strict=True):
        near(one, other, 5e-7)
    gradients = [randn(*y.shape, seed=seed + 5 + i) for i, y in enumerate(found)]
    used = [i for i, factor in enumerate(factors) if factor]  # a result that nobody uses has no gradient
    torch.autograd.backward([found[i] for i in used], [gradients[i] for i in used])
    torch.autograd.backward([expected[i] for i in used], [gradients[i].double() for i in used])
    largest = max(float(gradients[i].abs().max()) for i in used)
    for one, other in zip(own, exact, strict=True):
        given, wanted = (torch.zeros_like(x) if x.grad is None else x.grad for x in (one, other))  # c knows no weight
        near(given, wanted, 2e-6, largest)


@needs_compiler
def test_tanh_is_within_three_roundings_and_keeps_its_range() -> None:
    """The largest error of two million values was 1.92 times 2^-23 of them, with fused products and without."""
    sizes = torch.logspace(-30, 1.2, 50_000)
    x = torch.cat([sizes, -sizes, torch.linspace(-14, 14, 100_000)]).view(1, 1, 4, -1)
    c = tanh_pool.forward(x, torch.ones(1), torch.ones(1))[0]
    exact = 1.7159 * torch.tanh(2 / 3 * x.double())
    assert float(((c.double() - exact) / exact).abs().nan_to_num().max()) < 3 * ROUNDING
    far = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 1e30, -15.0]).view(1, 1, 2, 4)
    c, s = tanh_pool.forward(far, torch.ones(1), torch.ones(1))
    torch.testing.assert_close(
        c, plain_tanh_pool(far, torch.ones(1), torch.ones(1))[0], equal_nan=True, rtol=1e-7, atol=0
    )
    assert torch.equal(torch.signbit(c[~far.isnan()]), torch.signbit(far[~far.isnan()]))
    dx = tanh_pool.backward(c, s, torch.ones(1), torch.ones_like(c), torch.zeros_like(s))[0]
    assert dx.flatten()[[2, 3, 6, 7]].eq(0).all()  # a saturated unit learns nothing, rather than a rounding's sign


@needs_compiler
def test_threads_change_nothing() -> None:
    own, former, results = inputs(7, 3, 9, 8), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 9):
            torch.set_num_threads(n)
            c, s = OPS.tanh_pool_forward(*own)
            results.append((c, s, *OPS.tanh_pool_backward(c, s, own[1], c, s)))
    finally:
        torch.set_num_threads(former)
    assert all(torch.equal(a, b) for each in results[1:] for a, b in zip(each, results[0], strict=True))


@needs_compiler
def test_any_layout_and_parameters_that_are_views() -> None:
    x, weight, bias = inputs(2, 4, 6, 8)
    expected = OPS.tanh_pool(x, weight, bias)
    pairs = torch.stack([weight, bias], 1)
    found = OPS.tanh_pool(x.contiguous(memory_format=torch.channels_last), pairs[:, 0], pairs[:, 1])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (1, 2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_where_no_kernel_serves_it_is_the_plain_form(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    own = [x.to(dtype) for x in (randn(*shape), randn(2), randn(2))]
    if not tanh_pool.available(*own):
        for found, expected in zip(OPS.tanh_pool(*own), plain_tanh_pool(*own), strict=True):
            assert torch.equal(found, expected)
    assert not tanh_pool.available(*(x.double() for x in own))
    assert tanh_pool.available(*own) == (len(own[0]) > 0 and dtype == torch.float32 and compiled.available())
    for found, expected in zip(by_ops(*(x.to("meta") for x in own)), own[:1], strict=False):
        assert found.shape == expected.shape


def test_lenet5_learns_as_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = create_model("lenet5", seed=0).train(), randn(3, 1, 32, 32)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(net(images).square().mean(), list(net.parameters())))

    found = gradients()
    monkeypatch.setattr(tanh_pool, "available", lambda *tensors: False)
    for one, other in zip(found, gradients(), strict=True):
        near(one, other.double(), 1e-5)


def test_testing_is_the_plain_form_to_the_bit() -> None:
    """With gradients too, as pictures of what a net looks at want them."""
    net, images = create_model("lenet5", seed=0).eval(), randn(2, 1, 32, 32)
    c1, s2 = (trace(net, images)[name] for name in ("c1", "s2"))
    before = F.conv2d(images, net.get_parameter("c1.weight"), net.get_parameter("c1.bias"))
    by_hand = plain_tanh_pool(before, net.get_parameter("s2.weight"), net.get_parameter("s2.bias"))
    assert torch.equal(c1, by_hand[0])
    assert torch.equal(s2, by_hand[1])
    assert torch.equal(net(images), net(images.requires_grad_()).detach())


def test_in_training_a_hook_sees_the_sub_sampling() -> None:
    net, images, seen = create_model("lenet5", seed=0).train(), randn(2, 1, 32, 32), []
    stages: dict[str, Tensor] = {}
    net(images, stages)
    net.get_submodule("s2").register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
    net(images)
    ((before, after),) = seen
    near(before, stages["c1"].double(), 1e-6)
    near(after, stages["s2"].double(), 1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.*is deprecated")
def test_in_training_torchs_tools_give_the_same_gradients() -> None:
    net, images = create_model("lenet5", seed=0).train(), randn(2, 1, 32, 32)
    weights = dict(net.named_parameters())

    def gradients(module: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(module(images).square().mean(), list(weights.values())))

    expected = gradients(net)
    compiled_net = torch.compile(net, backend="aot_eager", fullgraph=True)
    traced = torch.jit.trace(net, (images,), check_trace=False)  # its check has no gradients: other convolutions
    for form in (traced, compiled_net):
        for one, other in zip(gradients(form), expected, strict=True):
            near(one, other.double(), 1e-5)
    torch.compiler.reset()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (images,)).square().mean()

    by_func = torch.func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
    for (name, _), other in zip(weights.items(), expected, strict=True):
        near(by_func[name], other.double(), 1e-5)
