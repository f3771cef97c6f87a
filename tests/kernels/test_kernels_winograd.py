"""Winograd's convolution against its definition in float64, and where it serves."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.kernels import ops, winograd
from convnet.kernels.cpu import compiled
from convnet.nets.convolutions import Conv2d

pytestmark = pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())
COARSE = 5e-4  # of the results' size: of 44,000 examples the worst are 1e-5 (3 x 3), 4e-5 (5 x 5) and, of gradients of
# kernels of 5 x 5 from a result or two, 1e-4; a wrong tile is about 1


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor, products: float) -> None:
    """products: of normal numbers, that each of the values is the sum of: their size is its root."""
    assert found.shape == expected.shape
    assert float((found.detach().double() - expected.detach()).abs().max()) <= COARSE * products**0.5


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.sampled_from((16, 21, 48)), st.integers(1, 14), st.integers(1, 14)),
    *(st.sampled_from((16, 35)), st.sampled_from(list(winograd.KERNELS)), st.integers(0, 4), st.booleans()),
    st.integers(0, 2**31),
)
def test_values_and_gradients(
    shape: tuple[int, int, int, int], maps: int, kernel: tuple[int, int], padding: int, has_bias: bool, seed: int
) -> None:
    """All sides, also those that tiles of 4 don't fill, and maps that are no whole vectors."""
    size, stride = kernel
    padding = min(padding, size - 1) // stride * stride
    shape = (*shape[:2], *(max(side, size - 2 * padding) for side in shape[2:]))
    x, weight = randn(*shape, seed=seed), randn(maps, shape[1], size, size, seed=seed + 1)
    own = [x, weight, *([randn(maps, seed=seed + 2)] if has_bias else [])]
    exact = [each.double().requires_grad_() for each in own]
    own = [each.requires_grad_() for each in own]
    found = ops.tiled_conv(own[0], own[1], own[2] if has_bias else None, padding, stride)
    expected = F.conv2d(exact[0], exact[1], exact[2] if has_bias else None, padding=padding, stride=stride)
    near(found, expected, size**2 * shape[1])
    g = randn(*found.shape, seed=seed + 3)
    gradients = torch.autograd.grad(found, own, g), torch.autograd.grad(expected, exact, g.double())
    summed = size**2 * maps, g[:, 0].numel(), g[:, 0].numel()
    for one, other, products in zip(*gradients, summed, strict=False):
        near(one, other, products)


@pytest.mark.parametrize(("size", "stride"), list(winograd.KERNELS))
def test_many_tiles_go_through_in_parts(size: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = size // 2
    x, weight = randn(3, 16, 9, 10), randn(32, 16, size, size, seed=1)
    at_once = winograd.forward(x, weight, None, padding, stride)
    g = randn(*at_once.shape, seed=2)
    gradients = winograd.backward(x, weight, g, padding, stride)
    monkeypatch.setattr(winograd, "TILES", 8)
    torch.testing.assert_close(
        winograd.forward(x, weight, None, padding, stride), at_once, rtol=0, atol=0
    )  # the same sums
    for one, other in zip(winograd.backward(x, weight, g, padding, stride), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.std()))  # other sums


@pytest.mark.parametrize("n_threads", [2, 5])
@pytest.mark.parametrize("most", [0, winograd.SUMS])
@pytest.mark.parametrize(("size", "stride"), list(winograd.KERNELS))
def test_threads_share_the_work(
    size: int, stride: int, n_threads: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tiles, where the sums of each find room, else by maps."""
    monkeypatch.setattr(winograd, "SUMS", most)
    x, weight, padding = randn(9, 17, 31, 30), randn(35, 17, size, size, seed=1), size // 2 // stride * stride
    exact = [each.double().requires_grad_() for each in (x, weight)]
    expected = F.conv2d(exact[0], exact[1], padding=padding, stride=stride)
    g = randn(*expected.shape, seed=2)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        near(winograd.forward(x, weight, None, padding, stride), expected, size**2 * 17)
        dx, dweight = winograd.backward(x, weight, g, padding, stride)
    finally:
        torch.set_num_threads(before)
    wanted = torch.autograd.grad(expected, exact, g.double())
    near(dx, wanted[0], size**2 * 35)
    near(dweight, wanted[1], g[:, 0].numel())


def test_only_what_is_wanted_is_computed() -> None:
    x, weight = randn(1, 16, 8, 8), randn(16, 16, 3, 3, seed=1).requires_grad_()
    y = ops.tiled_conv(x, weight, None, 1)
    y.sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    y = ops.tiled_conv(x.requires_grad_(), weight.detach(), None, 1)
    y.sum().backward()
    near(x.grad, torch.autograd.grad(F.conv2d(x.double(), weight.double(), padding=1).sum(), x)[0].double(), 144)


def test_second_derivatives_and_transforms() -> None:
    x, weight = randn(2, 16, 6, 6), randn(16, 16, 3, 3, seed=1)

    def energy(x: Tensor, form: object) -> Tensor:
        y: Tensor = form(x, weight.to(x.dtype), None, 1)  # type: ignore[operator]
        return y.pow(3).sum()

    exact = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(energy(exact, winograd.plain), exact, create_graph=True)
    (expected,) = torch.autograd.grad(slope.square().sum(), exact)
    own = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(own, ops.tiled_conv), own, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum(), own)
    size = 16 * float(expected.abs().max()) ** 2  # of sums of sums
    near(found, expected, size)
    (expected,) = torch.autograd.grad(energy(exact, winograd.plain), exact)
    near(torch.func.grad(lambda x: energy(x, ops.tiled_conv))(x), expected, float(expected.abs().max()) ** 2)
    compiled_net = torch.compile(lambda x: ops.tiled_conv(x, weight, None, 1), backend="aot_eager", fullgraph=True)
    near(compiled_net(x), winograd.plain(x.double(), weight.double(), None, 1), 144)
    torch.compiler.reset()


def test_second_derivatives_in_bfloat16_of_float32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast leaves them, which is over when gradients are computed."""
    monkeypatch.setattr(winograd, "_has_slow_bf16", lambda: True)
    x, weight = randn(2, 16, 6, 6).bfloat16(), randn(16, 16, 3, 3, seed=1) / 12
    found = []
    for form in (lambda x, w: ops.tiled_conv(x, w, None, 1), lambda x, w: F.conv2d(x, w, padding=1)):
        own = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = form(*own)
        slopes = torch.autograd.grad(y.float().pow(3).sum(), own, create_graph=True)
        energy = torch.stack([slope.float().square().sum() for slope in slopes]).sum()
        found.append(torch.autograd.grad(energy, own))
    for one, other, wanted in zip(*found, own, strict=True):
        assert one.dtype == wanted.dtype
        assert float((one - other).float().norm() / other.float().norm()) < 0.05  # of numbers of 8 bits, summed twice


@pytest.mark.parametrize("training", [True, False])
def test_it_serves_training_and_evaluating(training: bool) -> None:
    layer, x = Conv2d(64, 64, 3, padding=1).train(training), randn(4, 64, 32, 32)
    direct = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert not torch.equal(layer(x), direct)
    near(layer(x), direct.double(), 1)  # torch's first weights are smaller than 1
    with torch.no_grad():
        near(layer(x), direct.double(), 1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.*is deprecated")
def test_torchs_tools_take_it_in_evaluating() -> None:
    """With maps so large that it serves, which those of the other tests' thin nets are not."""
    layer, x = Conv2d(64, 64, 3, padding=1).eval(), randn(4, 64, 32, 32)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1).detach()
    with torch.no_grad():
        traced = torch.jit.trace(layer, (x,))
        assert "convnet::tiled_conv" in str(traced.graph)
        near(traced(x), expected, 1)
        near(torch.export.export(layer, (x,)).module()(x), expected, 1)
        near(torch.func.vmap(lambda image: layer(image[None])[0])(x), expected, 1)
        near(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected, 1)
    torch.compiler.reset()


def test_programs_that_were_kept_before_it_knew_strides_run() -> None:
    """Traces and exported programs hold the call as it was."""
    x, weight = randn(1, 16, 8, 8), randn(16, 16, 3, 3, seed=1)
    for call in (torch.ops.convnet.tiled_conv, torch.ops.convnet.tiled_conv_forward):
        assert torch.equal(call(x, weight, None, 1), call(x, weight, None, 1, 1))


def test_few_tiles_are_summed_directly() -> None:
    """A kernel's transform takes as long as some hundred pixels."""
    assert winograd.saves((4, 512, 28, 28), (512, 512, 3, 3), 1)
    assert not winograd.saves((1, 512, 14, 14), (512, 512, 3, 3), 1)
    assert winograd.saves((4, 96, 27, 27), (256, 96, 5, 5), 2)
    assert not winograd.saves((1, 512, 7, 7), (512, 512, 5, 5), 2)
    assert winograd.saves((4, 96, 55, 55), (256, 96, 5, 5), 0, 2)
    assert not winograd.saves((4, 128, 14, 14), (128, 128, 5, 5), 2, 2)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_where_the_processor_is_slow_at_it(
    slow: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed in float32 from what is rounded to bfloat16, as torch's are, and rounded to 8 bits once."""
    monkeypatch.setattr(winograd, "_has_slow_bf16", lambda: slow)
    x, weight, bias = randn(4, 64, 27, 27).bfloat16(), randn(128, 64, 5, 5, seed=1), randn(128, seed=2)
    own = [each.to(each.dtype if autocast else torch.bfloat16).requires_grad_() for each in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert winograd.serves(own[0], own[1], 2) is slow
        assert not winograd.serves(x[:, :16], own[1][:16, :16], 2)  # as fast directly
        found = ops.tiled_conv(own[0], own[1], own[2], 2)
    exact = [each.detach().bfloat16().double().requires_grad_() for each in own]
    expected = F.conv2d(*exact, padding=2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=0.02)
    g = randn(*found.shape, seed=3).bfloat16()
    gradients = torch.autograd.grad(found, own, g), torch.autograd.grad(expected, exact, g.double())
    for one, other, wanted in zip(*gradients, own, strict=True):
        assert one.dtype == wanted.dtype
        torch.testing.assert_close(one.double(), other, rtol=2**-7, atol=0.02 * float(other.std()))


@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "expected"),
    [
        ((4, 64, 32, 32), (64, 64, 3, 3), 1, True),
        ((4, 32, 32, 32), (32, 32, 3, 3), 1, True),
        ((1, 32, 8, 8), (32, 32, 3, 3), 1, False),  # too few tiles to be worth it
        ((4, 100, 32, 32), (100, 100, 3, 3), 1, True),  # not whole vectors
        ((4, 200, 32, 32), (15, 200, 3, 3), 1, False),  # not even one
        ((4, 96, 32, 32), (96, 96, 5, 5), 2, True),
        ((4, 96, 32, 32), (96, 96, 4, 4), 2, False),
        ((4, 96, 32, 32), (96, 96, 5, 3), 2, False),
        ((4, 64, 32, 32), (64, 64, 3, 3), 3, False),
        ((2, 64, 2, 2), (64, 64, 3, 3), 0, False),  # no room for a kernel: torch says so
        ((0, 64, 8, 8), (64, 64, 3, 3), 1, False),
    ],
)
def test_what_it_takes(shape: tuple[int, ...], kernel: tuple[int, ...], padding: int, expected: bool) -> None:
    x, weight = randn(*shape), randn(*kernel)
    assert winograd.serves(x, weight, padding) is expected
    assert not winograd.serves(x.double(), weight.double(), padding)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.serves(x, weight, padding)


@pytest.mark.parametrize(
    ("size", "padding", "stride", "expected"),
    [(5, 0, 2, True), (5, 2, 2, True), (5, 1, 2, False), (3, 0, 2, False), (3, 1, 2, False), (5, 0, 3, False)],
)
def test_which_strides_it_takes(size: int, padding: int, stride: int, expected: bool) -> None:
    x, weight = randn(4, 64, 65, 64), randn(64, 64, size, size)
    assert winograd.serves(x, weight, padding, stride) is expected
    layer = Conv2d(64, 64, size, stride, padding)
    near(layer(x), F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), stride, padding), 1)
