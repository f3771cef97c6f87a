"""The flat update in one pass, and its plain form, against the rule that trains (optim.py)."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convnet.kernels import sgd
from convnet.kernels.sgd import places, plain_step, step, view
from convnet.optim import Momentum
from kernel_place import PLACE, needs_kernels, randn

FORMS = [plain_step, pytest.param(step, marks=needs_kernels)]


def net() -> nn.Module:
    """Weights and biases of odd sizes, one of them channels-last."""
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1, bias=False), nn.Linear(9, 11)).to(PLACE)
    for seed, parameter in enumerate(layers.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("factor", "decays"), [(1.0, True), (2.0, False)])
def test_it_is_the_rule_that_trains(form, dtype: torch.dtype, factor: float, decays: bool) -> None:  # type: ignore[no-untyped-def]
    layers = net()
    parameters = dict(layers.named_parameters())
    rule = Momentum(parameters.items(), momentum=0.8, decay=0.01, bias_lr_factor=factor, decay_biases=decays)
    where, first_bias, length = places(parameters)
    weights, velocity, gradient = (torch.zeros(length, device=PLACE) for _ in range(3))
    copy = torch.zeros(length, device=PLACE, dtype=torch.bfloat16)
    gradient = gradient.to(dtype)
    for name, parameter in parameters.items():
        view(weights, where[name], parameter).copy_(parameter.detach())

    how = {"momentum": 0.8, "decay": 0.01, "bias_lr_factor": factor, "bias_decay": 0.01 if decays else 0.0}
    for i, lr in enumerate((0.1, 0.1, 0.02)):
        for name, parameter in parameters.items():
            drawn = randn(*parameter.shape, seed=10 + i).to(dtype)
            parameter.grad = drawn.float()
            view(gradient, where[name], parameter).copy_(drawn)
        rule.step(lr)
        form(weights, velocity, gradient, copy, torch.tensor(lr, device=PLACE), first_bias=first_bias, **how)

    for name, parameter in parameters.items():
        torch.testing.assert_close(view(weights, where[name], parameter), parameter.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(view(velocity, where[name], parameter), rule.velocity[name], rtol=1e-5, atol=1e-6)
        assert view(weights, where[name], parameter).stride() == parameter.stride()
    assert torch.equal(copy, weights.bfloat16())


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(0, 2100),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    has_copy=st.booleans(),
)
@example(n=1025, share=0.5, dtype=torch.bfloat16, has_copy=True)
@example(n=1, share=1.0, dtype=torch.float32, has_copy=False)
@pytest.mark.parametrize("form", FORMS[1:])
def test_the_fast_form_is_the_plain_one(form, n: int, share: float, dtype: torch.dtype, has_copy: bool) -> None:  # type: ignore[no-untyped-def]
    gradient = randn(n, seed=2, dtype=dtype)
    found: list[tuple[Tensor, ...]] = []
    for each in (plain_step, form):
        weights, velocity = randn(n, seed=0), randn(n, seed=1)
        copy = torch.zeros(n, device=PLACE, dtype=torch.bfloat16) if has_copy else None
        how = {"momentum": 0.9, "decay": 0.1, "bias_lr_factor": 3.0, "bias_decay": 0.01}
        lr = torch.tensor(0.25, device=PLACE)
        each(weights, velocity, gradient, copy, lr, first_bias=int(share * n), **how)
        assert copy is None or torch.equal(copy, weights.bfloat16())
        found.append((weights, velocity))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-6)


def test_where_parameters_lie() -> None:
    parameters = dict(net().named_parameters())
    where, first_bias, length = places(parameters)
    assert where == {"0.weight": 0, "1.weight": 192, "2.weight": 256, "0.bias": 384, "2.bias": 448}
    assert (first_bias, length) == (384, 512)
    assert places({}) == ({}, 0, 0)


def test_what_is_available() -> None:
    assert not sgd.available(torch.zeros(3, dtype=torch.bfloat16, device=PLACE))
