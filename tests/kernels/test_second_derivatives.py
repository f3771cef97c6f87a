"""Gradients of gradients: none may be 0 without a word where there is one, in any form of any operation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.kernels import linear as linear_cpu
from convnet.kernels.conv1 import conv1
from convnet.kernels.cpu import norm_pool as norm_pool_cpu
from convnet.kernels.dropout import plain_dropout
from convnet.kernels.ops import dropout, lenet5, norm_pool, response_norm
from convnet.kernels.plain import Block, plain_lenet5, plain_norm_pool, plain_response_norm
from convnet.nets import create_model
from convnet.nets.cifar import LocallyConnected2d
from convnet.nets.convolutions import Columns, ConnectedColumns
from convnet.nets.layers import within_map_norm
from convnet.nets.lenet5 import RBF, SparseConv2d, SubSampling, rbf_loss, scaled_tanh
from pools import ceil_avg_pool
from thin import images_for, new_thin_net


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def learnt(layer: nn.Module) -> Callable[..., Tensor]:
    """The layer as a function of its input and its parameters, whose values are drawn."""
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    function.parameters = [randn(*p.shape, seed=i + 1) for i, p in enumerate(layer.parameters())]  # type: ignore[attr-defined]
    return function


MAPS, ONE = (2, 6, 3, 5), (1, 6, 3, 5)  # one picture: finite differences take a pass for each number
FORMS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "response_norm": (lambda x: response_norm(x, 5, 2.0, 0.1, 0.75), ONE),
    "response_norm, even n, another power": (lambda x: response_norm(x, 4, 1.0, 0.1, 0.6), ONE),
    "plain_response_norm": (lambda x: plain_response_norm(x, 5, 2.0, 0.1, 0.75), ONE),
    "within_map_norm": (lambda x: within_map_norm(x, 3, 1.0, 0.1, 0.75), ONE),
    "relu_norm_pool": (lambda x: norm_pool(x, Block(5, 2.0, 0.1, 0.75, size=3, stride=2, relu_before=True)), ONE),
    "ceil_avg_pool": (ceil_avg_pool, ONE),
    "scaled_tanh": (scaled_tanh, ONE),
    "conv1 by blocks": (lambda x: conv1(x, randn(4, 3, 5, 5), randn(4), 2, 1), (1, 3, 9, 9)),
    "conv1's kernel": (lambda w: conv1(randn(1, 3, 9, 9), w, None, 2, 1), (4, 3, 5, 5)),
    "dropout": (lambda x: plain_dropout(x, 0.5, torch.tensor(7), 3), (3, 8)),
    "RBF and its loss": (
        lambda x: rbf_loss(RBF(torch.ones(4, 6, dtype=torch.float64))(x), torch.tensor([1, 3]), 2.0),
        (2, 6),
    ),
    "SubSampling": (learnt(SubSampling(6)), (2, 6, 4, 4)),
    "SparseConv2d": (learnt(SparseConv2d(3, [[0, 1], [2], [0, 2]], 2)), (2, 3, 4, 4)),
    "LocallyConnected2d": (learnt(LocallyConnected2d(2, 3, 3, 3, padding=1)), (1, 2, 3, 3)),
    "Columns": (learnt(Columns(2, 4, 4, 3, padding=1)), (1, 4, 4, 4)),
    "ConnectedColumns": (learnt(ConnectedColumns(2, 8, 4)), (2, 8)),
}


@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    """In float64, in which every operation takes its plain or its blocked form."""
    function, shape = FORMS[name]
    inputs = [randn(*shape), *getattr(function, "parameters", [])]
    assert torch.autograd.gradgradcheck(function, [x.requires_grad_() for x in inputs])


def second(form: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The gradient of the squared gradients by each input: it holds products of first and second derivatives."""
    own = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(form(*own).float().square().sum(), own, create_graph=True)
    return list(torch.autograd.grad(sum(g.float().square().sum() for g in first), own))


def test_the_compiled_forms_second_derivatives_are_the_plain_ones() -> None:
    """float32 and bfloat16, for which gradgradcheck's differences are too coarse; tolerance: products rounded to the
    eight bits of bfloat16 twice, sums of which are in another order."""
    x, block = randn(*MAPS, dtype=torch.float32), Block(5, 2.0, 0.1, 0.75, size=3, stride=2, relu_before=True)
    if not norm_pool_cpu.available(x, block):
        pytest.skip("no compiler: there are no compiled forms")
    net, pictures = create_model("lenet5", seed=0), randn(2, 1, 32, 32, dtype=torch.float32)
    weights, table = (
        [each.detach() for each in net.parameters()],
        (net.get_buffer("c3.outputs"), net.get_buffer("c3.inputs")),
    )
    pairs: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor], float]] = [
        (lambda x: norm_pool(x, block), lambda x: plain_norm_pool(x, block), [x], 1e-5),
        (lambda x: dropout(x, 0.5, torch.tensor(7), 3), lambda x: plain_dropout(x, 0.5, torch.tensor(7), 3), [x], 1e-6),
        (lambda *own: lenet5(pictures, own, *table), lambda *own: plain_lenet5(pictures, own, *table), weights, 1e-5),
        (linear_cpu.linear, F.linear, [randn(*s, seed=i, dtype=torch.bfloat16) for i, s in
                                       enumerate([(4, 8), (6, 8), (6,)])], 0.05),
    ]  # fmt: skip
    for fast, plain, inputs, tolerance in pairs:
        for found, expected in zip(second(fast, *inputs), second(plain, *inputs), strict=True):
            assert expected.abs().max() > 0
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "cifar_18"])
def test_a_nets_hessian_times_a_vector_is_the_slope_of_its_gradient(name: str) -> None:
    """In float64, against the difference of two gradients a small step apart."""
    net = new_thin_net(name).double().eval()
    images, labels = images_for(net).double(), torch.tensor([1, 3])
    weights = list(net.parameters())
    step = [randn(*w.shape, seed=i) * w.detach().std() for i, w in enumerate(weights)]

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(net(images), labels), weights, create_graph=True)

    along = sum((g * v).sum() for g, v in zip(gradient(), step, strict=True))
    products = torch.autograd.grad(along, weights, allow_unused=True)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, v in zip(weights, step, strict=True):
                w.add_(v, alpha=sign * 1e-6)
        sides.append([g.detach() for g in gradient()])
        with torch.no_grad():
            for w, v in zip(weights, step, strict=True):
                w.add_(v, alpha=-sign * 1e-6)
    largest = max(float(p.abs().max()) for p in products if p is not None)
    assert largest > 0
    for product, up, down in zip(products, *sides, strict=True):
        slope = (up - down) / 2e-6
        torch.testing.assert_close(slope if product is None else product, slope, rtol=1e-4, atol=1e-5 * largest)
        assert product is not None or float(slope.abs().max()) < 1e-9 * largest
