"""The update in one pass, and its plain form, against the rule that trains on the CPU (optim.py) and the formula."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convnet.kernels.cuda import available as on_cuda
from convnet.kernels.cuda import update as sgd
from convnet.kernels.cuda.update import plain_step, step
from convnet.training.optim import Momentum
from kernel_place import PLACE, needs_kernels, randn

FORMS = [plain_step, pytest.param(step, marks=needs_kernels)]


def net() -> nn.Module:
    """Weights and biases of odd sizes, two of them channels-last."""
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1, bias=False), nn.Linear(9, 11)).to(PLACE)
    for seed, parameter in enumerate(layers.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, device=PLACE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("factor", "decays"), [(1.0, True), (2.0, False)])
def test_it_is_the_rule_that_trains(
    form,  # type: ignore[no-untyped-def]
    factor: float,
    decays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_cuda, "serve", lambda device: False)
    layers, other = net(), net()
    parameters, own = dict(layers.named_parameters()), dict(other.named_parameters())
    rule = Momentum(parameters.items(), momentum=0.8, decay=0.01, bias_lr_factor=factor, decay_biases=decays)
    velocity = {name: torch.zeros_like(weight) for name, weight in own.items()}
    for i, lr in enumerate((0.1, 0.1, 0.02)):
        for parameter in parameters.values():
            parameter.grad = randn(*parameter.shape, seed=10 + i)
        rule.step(lr)
        for name, weight in own.items():
            bias = name.endswith("bias")
            how = {"momentum": 0.8, "decay": 0.0 if bias and not decays else 0.01, "factor": factor if bias else 1.0}
            form(weight.detach(), velocity[name], parameters[name].grad, None, scalar(lr), **how)
    for name, parameter in parameters.items():
        torch.testing.assert_close(own[name], parameter, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(velocity[name], rule.velocity[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("skip_update", "moves"), [(0.0, True), (-0.0, True), (float("nan"), False), (1.0, False)])
def test_nothing_moves_after_a_loss_that_is_not_finite(form, skip_update: float, moves: bool) -> None:  # type: ignore[no-untyped-def]
    weight, velocity = randn(70), randn(70, seed=1)
    copy, before = weight.bfloat16(), (weight.clone(), velocity.clone())
    gradient = torch.full_like(weight, 1.0 if moves else float("nan"))
    form(weight, velocity, gradient, copy, scalar(0.5), scalar(skip_update), momentum=0.5, decay=0.0)
    assert torch.equal(copy, weight.bfloat16())
    expected = 0.5 * before[1] - 0.5 if moves else before[1]
    torch.testing.assert_close(velocity, expected)
    torch.testing.assert_close(weight, before[0] + expected if moves else before[0])


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(0, 2100),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, None]),
    has_copy=st.booleans(),
)
@example(n=1025, dtype=torch.bfloat16, has_copy=True)
@example(n=1, dtype=torch.float32, has_copy=False)
@pytest.mark.parametrize("form", FORMS[1:])
def test_the_fast_form_is_the_plain_one(form, n: int, dtype: torch.dtype | None, has_copy: bool) -> None:  # type: ignore[no-untyped-def]
    gradient = None if dtype is None else randn(n, seed=2, dtype=dtype)
    found: list[tuple[Tensor, ...]] = []
    for each in (plain_step, form):
        weight, velocity = randn(n, seed=0), randn(n, seed=1)
        copy = torch.zeros(n, device=PLACE, dtype=torch.bfloat16) if has_copy else None
        each(weight, velocity, gradient, copy, scalar(0.25), momentum=0.9, decay=0.1, factor=3.0)
        assert copy is None or torch.equal(copy, weight.bfloat16())
        found.append((weight, velocity))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_gradient_in_another_layout(form) -> None:  # type: ignore[no-untyped-def]
    weight = randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    gradient, velocity = randn(4, 3, 2, 2, seed=1), torch.zeros_like(weight)
    assert sgd.available(weight, velocity, gradient, None)
    before = weight.clone()
    form(weight, velocity, gradient, None, scalar(1.0), decay=0.0)
    torch.testing.assert_close(weight, before - gradient)


@pytest.mark.parametrize("form", FORMS[1:])
def test_momentum_uses_it(form) -> None:  # type: ignore[no-untyped-def]
    layers = net()
    parameters = dict(layers.named_parameters())
    copies = {"2.weight": nn.Parameter(parameters["2.weight"].detach().bfloat16())}
    rule = Momentum(parameters.items(), momentum=0.8, decay=0.01, bf16_weights=copies)
    copies["2.weight"].grad = randn(11, 9, seed=5, dtype=torch.bfloat16)
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    rule.step(0.5)
    rule.step(scalar(0.5), scalar(float("nan")))
    for name, weight in parameters.items():
        gradient = copies[name].grad.float() if name in copies else 0.0  # type: ignore[union-attr]
        torch.testing.assert_close(weight.detach(), before[name] - 0.5 * (0.01 * before[name] + gradient))
    assert torch.equal(copies["2.weight"].detach(), parameters["2.weight"].detach().bfloat16())


def test_what_is_available() -> None:
    x = torch.zeros(3, dtype=torch.bfloat16, device=PLACE)
    assert not sgd.available(x, x, x, x)
    weight = randn(4, 4)
    assert not sgd.available(weight, weight.t().contiguous().t(), None, None)
    assert not sgd.available(weight[:, :2], weight[:, :2], None, None)
