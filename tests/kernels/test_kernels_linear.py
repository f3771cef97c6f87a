"""Fully connected layers in the order and by the library that is fast, against products in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.kernels import linear as linear_cpu

ROUNDING = {torch.float32: 5e-6, torch.bfloat16: 2e-2}  # of the largest value: sums of 100 and of n; two roundings


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("n", [2, 7, 64])
def test_values_and_gradients(n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if linear_cpu.BY_ONEDNN is None:
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(linear_cpu, "_onednn_is_faster", lambda: True)
    shapes = [(n, 100), (30, 100), (30,)]
    inputs = [randn(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    assert linear_cpu.available(*inputs[:2])
    found, expected = linear_cpu.linear(*inputs), F.linear(*exact)
    grads = torch.autograd.grad((found * 0.1).square().sum(), inputs)
    wanted = torch.autograd.grad((expected * 0.1).square().sum(), exact)
    for a, b in zip((found, *grads), (expected, *wanted), strict=True):
        assert a.dtype == dtype
        assert (a - b).abs().max() <= ROUNDING[dtype] * b.abs().max()


def test_what_is_not_a_number_stays_so() -> None:
    x, weight = randn(4, 8), randn(3, 8, seed=1)
    x[1, 2] = float("nan")
    if linear_cpu.BY_ONEDNN is not None:
        found = linear_cpu.linear(x, weight, torch.zeros(3))
        assert found.isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("vendor", "instructions", "faster"),
    [
        ("AuthenticAMD", "AVX2", True),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX2", False),
        ("AuthenticAMD", "DEFAULT", False),
    ],
)
def test_which_processors_take_it_in_float32(
    vendor: str, instructions: str, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = linear_cpu.hardware.Processor("a processor", (), False, vendor)
    monkeypatch.setattr(linear_cpu.hardware, "processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(linear_cpu, "BY_ONEDNN", object())
    monkeypatch.delenv("CONVNET_KERNELS", raising=False)
    assert linear_cpu._onednn_is_faster.__wrapped__() == faster
    monkeypatch.setenv("CONVNET_KERNELS", "plain")
    assert not linear_cpu._onednn_is_faster.__wrapped__()
