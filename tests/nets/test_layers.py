"""Every layer against its formula, written as loops in float64."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.kernels.cpu.response_norm import blocked_response_norm
from convnet.kernels.ops import response_norm
from convnet.kernels.plain import plain_response_norm
from convnet.nets import layers
from convnet.nets.cifar import LocallyConnected2d
from convnet.nets.convolutions import Columns
from convnet.nets.initial import contiguous
from convnet.nets.layers import PAPER_LRN, within_map_norm
from convnet.nets.lenet5 import RBF, TABLE, SparseConv2d, SubSampling, rbf_loss, scaled_tanh
from convnet.nets.nin import NINNet
from pools import ceil_avg_pool, ceil_max_pool, max_pool


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fill(module: nn.Module) -> None:
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))


def brute_norm(x: Tensor, n: int, k: float, alpha: float, beta: float) -> Tensor:
    maps = x.shape[1]
    y = torch.empty_like(x)
    for where in itertools.product(*map(range, x.shape)):
        i = where[1]
        window = range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1)
        total = sum(float(x[(where[0], j, *where[2:])]) ** 2 for j in window)
        y[where] = float(x[where]) / (k + alpha * total) ** beta
    return y


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    maps=st.integers(1, 9),
    n=st.integers(1, 7),
    constants=st.sampled_from([(2.0, 1e-4, 0.75), (1.0, 0.5, 0.75), (1.5, 0.3, 0.5)]),
)
def test_response_norm_is_the_formula(
    shape: list[int], maps: int, n: int, constants: tuple[float, float, float]
) -> None:
    x = randn(2, maps, *shape)
    expected = brute_norm(x, n, *constants)
    torch.testing.assert_close(response_norm(x, n, *constants), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(plain_response_norm(x, n, *constants), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("maps", "n", "beta"), [(7, 5, 0.75), (3, 5, 0.75), (6, 4, 0.6), (5, 1, 1.0)])
def test_response_norm_has_the_formulas_gradient(maps: int, n: int, beta: float) -> None:
    x = randn(2, maps, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: response_norm(x, n, 2.0, 0.5, beta), x)
    assert torch.autograd.gradcheck(lambda x: plain_response_norm(x, n, 2.0, 0.5, beta), x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fast_response_norm_equals_plain_across_blocks(
    dtype: torch.dtype, tolerance: float, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnet.kernels.cpu.response_norm.BLOCK", 100)  # several blocks, the last one short
    x = (40 * randn(3, 12, 5, 7)).to(dtype).to(memory_format=layout)
    g = randn(3, 12, 5, 7, seed=1).to(dtype)
    fast, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_fast, y_plain = blocked_response_norm(fast, *PAPER_LRN), plain_response_norm(plain)
    y_fast.backward(g)
    y_plain.backward(g)
    assert y_fast.dtype == dtype
    torch.testing.assert_close(y_fast, y_plain, rtol=tolerance, atol=0)
    torch.testing.assert_close(fast.grad, plain.grad, rtol=tolerance, atol=tolerance * 0.1)


def test_response_norm_sums_bfloat16_in_float32() -> None:
    x = (40 * randn(2, 96, 4, 4)).bfloat16()
    exact = response_norm(x.double())
    assert torch.equal(response_norm(x), exact.bfloat16())


def test_torchs_alpha_is_n_times_the_papers() -> None:
    x = 30 * randn(2, 9, 3, 3)
    torch.testing.assert_close(response_norm(x), F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0))


def test_alpha_divided_by_n_has_torchs_constants() -> None:
    x = 30 * randn(2, 9, 3, 3)
    for n, alpha in ((9, 1e-3), (5, 1e-4)):
        torch.testing.assert_close(response_norm(x, n, 1.0, alpha / n), F.local_response_norm(x, n, alpha, 0.75, 1.0))
        torch.testing.assert_close(response_norm(x, n, 1.0, alpha / n), brute_norm(x, n, 1.0, alpha / n, 0.75))


def brute_within_map_norm(x: Tensor, size: int, k: float, alpha: float, beta: float) -> Tensor:
    """Written as a graph of scalars, so that its gradient is autograd's."""
    rows = []
    for n, c, i, j in itertools.product(*map(range, x.shape)):
        total = x.new_zeros(())
        for a, b in itertools.product(range(size), repeat=2):
            above, left = i - size // 2 + a, j - size // 2 + b
            if 0 <= above < x.shape[2] and 0 <= left < x.shape[3]:
                total = total + x[n, c, above, left] ** 2
        rows.append(x[n, c, i, j] / (k + alpha * total) ** beta)
    return torch.stack(rows).view_as(x)


@settings(max_examples=15, deadline=None)
@given(
    side=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.integers(1, 5),
    constants=st.sampled_from([(1.0, 5e-5 / 9, 0.75), (1.0, 0.4, 0.75), (2.0, 0.3, 0.5)]),
)
def test_within_map_norm_is_the_formula_and_its_gradient(
    side: tuple[int, int], size: int, constants: tuple[float, float, float]
) -> None:
    x = randn(2, 2, *side).requires_grad_()
    g = randn(2, 2, *side, seed=1)
    y, expected = within_map_norm(x, size, *constants), brute_within_map_norm(x, size, *constants)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    (dx,), (dx_expected,) = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(dx, dx_expected, rtol=1e-10, atol=1e-12)


def test_within_map_norm_sums_bfloat16_in_float32() -> None:
    x = (40 * randn(2, 6, 5, 4)).bfloat16()
    y = within_map_norm(x, 3, 1.0, 1e-3, 0.75)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, within_map_norm(x.double(), 3, 1.0, 1e-3, 0.75).bfloat16())


def test_even_n_reaches_as_far_on_both_sides() -> None:
    x = 30 * randn(2, 9, 3, 3)
    assert torch.equal(response_norm(x, n=4), response_norm(x, n=5))


@pytest.mark.parametrize(("side", "size", "stride"), [(9, 3, 2), (10, 3, 2), (6, 2, 2), (7, 3, 1)])
def test_max_pool_is_the_largest_of_each_window(side: int, size: int, stride: int) -> None:
    x = randn(2, 2, side, side)
    out = (side - size) // stride + 1
    y = max_pool(x, size, stride)
    assert y.shape == (2, 2, out, out)
    for n, c, i, j in itertools.product(range(2), range(2), range(out), range(out)):
        top, left = i * stride, j * stride
        window = [x[n, c, top + a, left + b] for a in range(size) for b in range(size)]
        assert y[n, c, i, j] == max(window)


def brute_ceil_pool(x: Tensor, size: int, stride: int, kind: str) -> Tensor:
    n, c, height, width = x.shape
    rows = [math.ceil((side - size) / stride) + 1 for side in (height, width)]
    values = []
    for a, b, i, j in itertools.product(range(n), range(c), *map(range, rows)):
        window = x[a, b, i * stride : i * stride + size, j * stride : j * stride + size]  # a slice ends at the edge
        values.append(window.max() if kind == "max" else window.sum() / window.numel())
    return torch.stack(values).view(n, c, *rows)


@settings(max_examples=30, deadline=None)
@given(
    side=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    shape=st.sampled_from([(3, 2), (2, 2), (3, 3), (3, 1), (2, 1)]),
    kind=st.sampled_from(["max", "average"]),
)
def test_ceil_pooling_is_the_formula_and_its_gradient(side: tuple[int, int], shape: tuple[int, int], kind: str) -> None:
    x = randn(1, 2, *side).requires_grad_()
    pool = ceil_max_pool if kind == "max" else ceil_avg_pool
    y, expected = pool(x, *shape), brute_ceil_pool(x, *shape, kind)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    g = randn(*y.shape, seed=1)
    (dx,), (dx_expected,) = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(dx, dx_expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("side", "out"), [(32, 16), (16, 8), (8, 4), (24, 12), (12, 6), (110, 55), (26, 13), (13, 6)])
def test_ceil_pooling_has_the_papers_sizes(side: int, out: int) -> None:
    x = torch.empty(1, 1, side, side, device="meta")
    assert ceil_max_pool(x).shape[2:] == ceil_avg_pool(x).shape[2:] == (out, out)


def brute_local(layer: LocallyConnected2d, x: Tensor) -> Tensor:
    padded = F.pad(x, (layer.padding,) * 4)
    maps, height, width = layer.bias.shape
    rows = []
    for n, o, i, j in itertools.product(range(len(x)), range(maps), range(height), range(width)):
        window = padded[n, :, i : i + layer.size, j : j + layer.size]
        rows.append((layer.weight[i, j, o] * window).sum() + layer.bias[o, i, j])
    return torch.stack(rows).view(len(x), maps, height, width)


@pytest.mark.parametrize(("side", "size", "padding"), [(5, 3, 1), (4, 3, 0), (3, 2, 1), (2, 1, 0)])
def test_local_connection_is_the_formula_and_its_gradient(side: int, size: int, padding: int) -> None:
    layer = LocallyConnected2d(2, 3, side, size, padding).double()
    fill(layer)
    x = randn(2, 2, side, side, seed=9).requires_grad_()
    y, expected = layer(x), brute_local(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs, g = (x, layer.weight, layer.bias), randn(*y.shape, seed=1)
    for found, wanted in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, x)


def test_local_connection_with_equal_weights_is_a_convolution() -> None:
    layer, conv = LocallyConnected2d(3, 4, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.expand_as(layer.weight))
        layer.bias.copy_(conv.bias[:, None, None].expand_as(layer.bias))
    x = randn(2, 3, 6, 6, dtype=torch.float32)
    torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), conv(x), atol=1e-5, rtol=1e-5)


def test_local_connection_under_autocast_is_bfloat16_and_close() -> None:
    layer, x = LocallyConnected2d(8, 4, 6, 3, padding=1), randn(2, 8, 6, 6, dtype=torch.float32)
    fill(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.sum().backward()
    exact = layer(x)
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert float((y.float() - exact).detach().norm() / exact.detach().norm()) < 0.01


def test_local_connection_names_the_side_it_has_weights_for() -> None:
    with pytest.raises(UsageError, match="has weights for 6 x 6 pixels, got 6 x 7"):
        LocallyConnected2d(1, 1, 6, 3)(torch.zeros(1, 1, 6, 7))


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(lambda: LocallyConnected2d(8, 40, 6, 3), 72), (lambda: SparseConv2d(8, [(0, 1, 5)] * 60, 5), 75)],
)
def test_layers_alone_begin_like_torchs_convolutions(layer: Callable[[], nn.Module], fan_in: int) -> None:
    torch.manual_seed(0)
    made = layer()
    for parameter in made.parameters():
        assert float(parameter.detach().abs().max()) <= fan_in**-0.5
        assert float(parameter.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.2)


def test_sizes_that_can_not_be_are_named() -> None:
    with pytest.raises(UsageError, match="8 maps in and 6 out can't be split into 3 equal columns"):
        Columns(3, 8, 6, 3)
    for table in ([(0, 8)], [(-1,)], [()], []):
        with pytest.raises(UsageError, match="must name some of the input maps 0 to 7, got"):
            SparseConv2d(8, table, 3)
    with pytest.raises(UsageError, match="a kernel of 5 x 5 doesn't fit 2 x 2 pixels with padding 1"):
        LocallyConnected2d(8, 4, 2, 5, padding=1)


def test_mlpconv_is_a_perceptron_at_each_place() -> None:
    net, x, names = NINNet(5, 2), randn(2, 2, 5, 4, seed=9).requires_grad_(), ("conv", "cccp1", "cccp2")
    net.add_mlpconv(names, 2, (4, 3, 5), 3, stride=2, padding=1)
    fill(net.double())
    weights = list(net.parameters())
    padded, columns = F.pad(x, (1, 1, 1, 1)), []
    for n, i, j in itertools.product(range(2), range(3), range(2)):
        h = padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten()
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            h = (weight.flatten(1) @ h + bias).clamp(min=0)
        columns.append(h)
    expected = torch.stack(columns).view(2, 3, 2, 5).permute(0, 3, 1, 2)
    stages: dict[str, Tensor] = {}
    y = net.run(x, stages, *names)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert {name: tuple(h.shape) for name, h in stages.items()} == {
        "conv": (2, 4, 3, 2), "cccp1": (2, 3, 3, 2), "cccp2": (2, 5, 3, 2),
    }  # fmt: skip
    inputs, g = (x, *weights), randn(*y.shape, seed=1)
    for found, wanted in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_sub_sampling_is_coefficient_times_mean_plus_bias() -> None:
    layer, x = SubSampling(3).double(), randn(2, 3, 6, 4, seed=5)
    fill(layer)
    y = layer(x).detach()
    for n, c, i, j in itertools.product(range(2), range(3), range(3), range(2)):
        mean = sum(float(x[n, c, 2 * i + a, 2 * j + b]) for a in (0, 1) for b in (0, 1)) / 4
        assert float(y[n, c, i, j]) == pytest.approx(layer.weight[c].item() * mean + layer.bias[c].item(), abs=1e-12)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_sparse_convolution_sums_over_the_tables_connections() -> None:
    layer, x = SparseConv2d(6, TABLE, 5).double(), randn(2, 6, 7, 6, seed=5)
    fill(layer)
    assert sum(p.numel() for p in layer.parameters()) == 1516
    expected = torch.empty(2, 16, 3, 2, dtype=torch.float64)
    for n, o, i, j in itertools.product(range(2), range(16), range(3), range(2)):
        first = sum(len(inputs) for inputs in TABLE[:o])
        total = layer.bias[o].clone()
        for connection, source in enumerate(TABLE[o], first):
            total += (layer.weight[connection] * x[n, source, i : i + 5, j : j + 5]).sum()
        expected[n, o, i, j] = total
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_sparse_convolution_has_the_dense_ones_gradient_where_connected() -> None:
    layer, x = SparseConv2d(6, TABLE, 5).double(), randn(2, 6, 7, 6, seed=5)
    fill(layer)
    layer(x).square().sum().backward()
    dense = layer.dense().detach().requires_grad_()
    F.conv2d(x, dense, layer.bias).square().sum().backward()
    assert dense.grad is not None
    expected = [dense.grad[o, i] for o, inputs in enumerate(TABLE) for i in inputs]
    torch.testing.assert_close(layer.weight.grad, torch.stack(expected))


def test_table_is_the_papers() -> None:
    rows = ["".join("X" if i in inputs else "." for inputs in TABLE) for i in range(6)]
    assert rows == [
        "X...XXX..XXXX.XX",
        "XX...XXX..XXXX.X",
        "XXX...XXX..X.XXX",
        ".XXX..XXXX..X.XX",
        "..XXX..XXXX.XX.X",
        "...XXX..XXXX.XXX",
    ]


def test_rbf_is_minus_the_squared_distance() -> None:
    codes, x = randn(3, 5).sign(), randn(4, 5, seed=1)
    y = RBF(codes)(x)
    for n, k in itertools.product(range(4), range(3)):
        assert float(y[n, k]) == pytest.approx(-sum(float(x[n, d] - codes[k, d]) ** 2 for d in range(5)))
    assert torch.autograd.gradcheck(RBF(codes), x.requires_grad_())


def test_rbf_loss_is_equation_9() -> None:
    logits, labels = -randn(4, 3).square(), torch.tensor([0, 2, 1, 1])
    for j in (0.5, 3.0, math.inf):
        losses = [
            -float(row[label]) + math.log(math.exp(-j) + sum(math.exp(float(v)) for v in row))
            for row, label in zip(logits, labels, strict=True)
        ]
        assert float(rbf_loss(logits, labels, j)) == pytest.approx(sum(losses) / 4)


def test_scaled_tanh_keeps_one() -> None:
    y = scaled_tanh(torch.tensor([-1.0, 0.0, 1.0, 100.0]))
    torch.testing.assert_close(y, torch.tensor([-1.0, 0.0, 1.0, 1.7159]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_columns_are_a_grouped_convolution(n: int) -> None:
    columns, x = Columns(n, 8, 12, 3, padding=1), randn(2, 8, 5, 5, dtype=torch.float32)
    grouped = nn.Conv2d(8, 12, 3, padding=1, groups=n)
    with torch.no_grad():
        grouped.weight.copy_(torch.cat([conv.weight for conv in columns]))
        grouped.bias.copy_(torch.cat([conv.bias for conv in columns]))
    torch.testing.assert_close(columns(x), grouped(x), atol=1e-5, rtol=1e-5)
    assert next(iter(columns.state_dict())) == "0.weight"


def test_columns_with_weights_of_anothers_making() -> None:
    """Whose first parameter is another one."""
    columns, x = Columns(2, 8, 12, 3, padding=1).bfloat16(), randn(2, 8, 5, 5).bfloat16()
    expected = columns(x)
    for conv in columns:
        nn.utils.parametrizations.weight_norm(conv)
    torch.testing.assert_close(columns(x), expected, atol=0.02, rtol=0.02)


def test_check_images_names_what_it_got_and_the_rule() -> None:
    three, one = layers.Net(), layers.Net()
    three.in_channels, one.in_channels = 3, 1
    for net in (three, one):
        net.fc = nn.Linear(1, 1)
    three.name, three.sides = "alexnet", range(224, 256)
    one.name, one.sides = "lenet5", range(32, 33)
    layers.check_images(torch.zeros(1, 3, 224, 230), three)
    with pytest.raises(UsageError, match=r"takes pictures \(N, C, H, W\), got a tensor of shape \(3, 224, 224\)"):
        layers.check_images(torch.zeros(3, 224, 224), three)
    with pytest.raises(UsageError, match=r"alexnet takes 3 channel\(s\), got 1"):
        layers.check_images(torch.zeros(1, 1, 224, 224), three)
    with pytest.raises(UsageError, match=r"sides of 224 to 255 pixels, got 223 x 224"):
        layers.check_images(torch.zeros(1, 3, 223, 224), three)
    with pytest.raises(UsageError, match=r"sides of 32 pixels, got 28 x 28"):
        layers.check_images(torch.zeros(1, 1, 28, 28), one)
    with pytest.raises(UsageError, match=r"alexnet is on cpu, the pictures on meta; move one: net.to\(images.device\)"):
        layers.check_images(torch.zeros(1, 3, 224, 224, device="meta"), three)


def test_weights_lie_as_before_after_an_error() -> None:
    """They are filled contiguously; an error in between leaves their values and their order in memory."""
    net = nn.Conv2d(3, 4, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stride = net.weight.stride()

    def interrupted() -> None:
        with contiguous(net):
            net.weight.data.fill_(2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert net.weight.stride() == stride
    assert bool((net.weight == 2).all())
