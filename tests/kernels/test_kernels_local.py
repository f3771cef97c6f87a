"""Locally connected layers against their definition in float64, and where the kernel in C serves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.kernels import local, ops
from convnet.kernels.cpu import compiled

pytestmark = pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())
CLOSE = 3e-6  # of the root of the number of products, of normal numbers, that a value sums: float32's 6e-8, some times


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def definition(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    size = weight.shape[-1]
    windows = torch.nn.functional.pad(x, (padding,) * 4).unfold(2, size, 1).unfold(3, size, 1)
    return torch.einsum("nchwij,hwkcij->nkhw", windows, weight) + bias


def near(found: Tensor, expected: Tensor, products: float) -> None:
    assert found.shape == expected.shape
    assert float((found.detach().double() - expected.detach()).abs().max()) <= CLOSE * products**0.5


@settings(max_examples=25, deadline=None)
@given(
    *(st.integers(1, 35), st.integers(1, 20), st.sampled_from((16, 48))),
    *(st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.integers(0, 2**31)),
)
def test_values_and_gradients(
    n: int, maps_in: int, maps_out: int, side: int, size: int, padding: int, seed: int
) -> None:
    """Any number of pictures and maps in; windows that lie beyond the edges, even all of them."""
    out = side + 2 * padding - size + 1
    if out < 1:
        side, out = size, 2 * padding + 1
    x, weight = randn(n, maps_in, side, side, seed=seed), randn(out, out, maps_out, maps_in, size, size, seed=seed + 1)
    own = [x, weight, randn(maps_out, out, out, seed=seed + 2)]
    exact = [each.double().requires_grad_() for each in own]
    own = [each.requires_grad_() for each in own]
    assert local.serves(*own, padding)
    found, expected = ops.locally_connected(*own, padding), definition(*exact, padding)
    near(found, expected, 30 * (size**2 * maps_in + 1))
    g = randn(*found.shape, seed=seed + 3)
    gradients = torch.autograd.grad(found, own, g), torch.autograd.grad(expected, exact, g.double())
    for one, other, products in zip(*gradients, (size**2 * maps_out, n, n), strict=True):
        near(one, other, 30 * products)


def test_only_what_is_wanted_is_computed() -> None:
    x, weight, bias = randn(2, 16, 6, 6), randn(6, 6, 16, 16, 3, 3, seed=1).requires_grad_(), randn(16, 6, 6, seed=2)
    ops.locally_connected(x, weight, bias, 1).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    (dx,) = torch.autograd.grad(ops.locally_connected(x.requires_grad_(), weight.detach(), bias, 1).sum(), x)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(definition(exact, weight.detach().double(), bias.double(), 1).sum(), exact)
    near(dx, expected, 30 * 144)


def test_the_bias_stays_as_it_is() -> None:
    """Results begin as biases; of one picture and one place these would lie as the results do."""
    for n, out in ((1, 1), (1, 3), (2, 1)):
        x, weight = randn(n, 16, 4, 4), randn(out, out, 16, 16, 5 - out, 5 - out, seed=1)
        bias = randn(out, out, 16, seed=2).permute(2, 0, 1)
        before = bias.clone()
        found = ops.locally_connected(x, weight, bias)
        assert torch.equal(bias, before)
        near(found, definition(x.double(), weight.double(), bias.double(), 0), 30 * 256)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ((2, 32, 6, 6), (6, 6, 16, 16, 3, 3), (16, 6, 6)),  # more maps than the weights have
        ((2, 3, 6, 6), (6, 6, 16, 16, 3, 3), (16, 6, 6)),
        ((2, 16, 5, 5), (6, 6, 16, 16, 3, 3), (16, 6, 6)),
        ((2, 16, 6, 5), (6, 6, 16, 16, 3, 3), (16, 6, 6)),
        ((2, 16, 6, 6), (6, 6, 16, 16, 3, 3), (32, 6, 6)),
    ],
)
def test_what_does_not_fit_together_is_refused(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]
                                               ) -> None:  # fmt: skip
    """By torch: C would read what lies behind."""
    own = randn(*x), randn(*weight), randn(*bias)
    assert not local.serves(*own, 1)
    with pytest.raises(RuntimeError):
        ops.locally_connected(*own, 1)
    assert not local.serves(own[0], own[1].to("meta"), own[2], 1)


def test_bfloat16() -> None:
    """Computed in float32: a result is rounded once, to 8 bits."""
    x, weight, bias = randn(3, 16, 6, 6).bfloat16(), randn(6, 6, 32, 16, 3, 3, seed=1), randn(32, 6, 6, seed=2)
    own = [each.clone().requires_grad_() for each in (x, weight, bias)]
    exact = [each.detach().double().requires_grad_() for each in own]
    found, expected = ops.locally_connected(*own, 1), definition(*exact, 1)
    g = randn(*found.shape, seed=3).bfloat16()
    for one, other in zip(
        (found, *torch.autograd.grad(found, own, g)),
        (expected, *torch.autograd.grad(expected, exact, g.double())),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-4)
    assert [each.dtype for each in (found, *torch.autograd.grad(ops.locally_connected(*own, 1), own, g))] == [
        torch.bfloat16, torch.bfloat16, torch.float32, torch.float32
    ]  # fmt: skip


def test_second_derivatives_and_transforms() -> None:
    x, weight, bias = randn(2, 16, 4, 4), randn(4, 4, 16, 16, 3, 3, seed=1) / 12, randn(16, 4, 4, seed=2)

    def energy(x: Tensor, form: object) -> Tensor:
        y: Tensor = form(x, weight.to(x.dtype), bias.to(x.dtype), 1)  # type: ignore[operator]
        return y.pow(3).sum()

    found = []
    for own, form in ((x.clone(), ops.locally_connected), (x.double(), definition)):
        own.requires_grad_()
        (slope,) = torch.autograd.grad(energy(own, form), own, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), own)[0])
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-3, atol=1e-4 * float(found[1].abs().max()))
    (expected,) = torch.autograd.grad(energy(exact := x.double().requires_grad_(), definition), exact)
    gradient = torch.func.grad(lambda x: energy(x, ops.locally_connected))(x)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    compiled_net = torch.compile(
        lambda x: ops.locally_connected(x, weight, bias, 1), backend="aot_eager", fullgraph=True
    )
    near(compiled_net(x), definition(x.double(), weight.double(), bias.double(), 1), 30)
    torch.compiler.reset()


def test_where_it_serves() -> None:
    x, weight, bias = randn(2, 16, 6, 6), randn(6, 6, 16, 16, 3, 3), randn(16, 6, 6)
    assert local.serves(x, weight, bias, 1)
    assert not local.serves(x.double(), weight.double(), bias.double(), 1)
    assert not local.serves(x[:0], weight, bias, 1)
    assert not local.serves(x, randn(6, 6, 10, 16, 3, 3), bias[:10], 1)  # no whole vectors of maps
    with torch.autocast("cpu", torch.bfloat16):
        assert not local.serves(x, weight, bias, 1)
        assert local.serves(x.bfloat16(), weight, bias, 1)
    bias = randn(10, 6, 6)
    near(
        ops.locally_connected(x, randn(6, 6, 10, 16, 3, 3), bias, 1),
        definition(x.double(), randn(6, 6, 10, 16, 3, 3).double(), bias.double(), 1),
        30 * 144,
    )
