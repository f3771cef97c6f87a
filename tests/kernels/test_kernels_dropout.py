"""Dropout from a counter: plain and fast form against io/rng.py, bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.errors import UsageError
from convnet.io import rng
from convnet.kernels.dropout import plain_dropout, state
from convnet.kernels.ops import dropout
from kernel_place import PLACE, needs_kernels, randn

FORMS = [plain_dropout, pytest.param(dropout, marks=needs_kernels)]


def at(seed: int, *where: int) -> Tensor:
    return torch.tensor(state(seed, *where), device=PLACE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.875])
def test_what_stays_is_as_draws_says(form, p: float) -> None:  # type: ignore[no-untyped-def]
    x = randn(9, 301)
    where = (7, rng.stream("dropout"), 12, 1)
    keep = rng.uniform(*where, np.arange(x.numel()).reshape(x.shape)) >= p
    expected = torch.where(torch.from_numpy(keep).to(PLACE), x * (1 / (1 - p)), 0)
    assert torch.equal(form(x, p, at(*where)), expected)
    assert abs(keep.mean() - (1 - p)) < 0.03


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_has_the_same_mask(form) -> None:  # type: ignore[no-untyped-def]
    x, g = randn(5, 7).requires_grad_(), randn(5, 7, seed=1)
    form(x, 0.5, at(1)).backward(g)
    assert x.grad is not None
    assert torch.equal(x.grad, plain_dropout(g, 0.5, at(1)))
    assert 0 < x.grad.count_nonzero() < x.numel()


@pytest.mark.parametrize("form", FORMS)
def test_other_places_draw_anew(form) -> None:  # type: ignore[no-untyped-def]
    x = torch.ones(64, 64, device=PLACE)
    masks = [form(x, 0.5, at(*where)) > 0 for where in ((3, 4), (3, 5), (4, 3), (3, 4, 0))]
    for i, first in enumerate(masks):
        for other in masks[:i]:
            assert abs(float((first == other).float().mean()) - 0.5) < 0.05  # independent: half are equal


@settings(max_examples=10, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), min_size=1, max_size=2),
    p=st.floats(0, 0.999),
    seed=st.integers(0, 2**64 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@example(shape=[1025], p=1e-300, seed=2**64 - 1, dtype=torch.bfloat16)
@pytest.mark.parametrize("form", FORMS[1:])
def test_plain_and_fast_are_equal_to_the_bit(  # type: ignore[no-untyped-def]
    form, shape: list[int], p: float, seed: int, dtype: torch.dtype
) -> None:
    x = randn(*shape, dtype=dtype)
    found = form(x, p, at(seed))
    assert found.dtype == dtype
    assert torch.equal(found, plain_dropout(x, p, at(seed)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_wrong_p(form, p: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=f"dropout with p = {p}: it must be at least 0 and below 1"):
        form(torch.ones(2, device=PLACE), p, at(0))


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own check, from 2.15 on
def test_torch_can_trace_it(form) -> None:  # type: ignore[no-untyped-def]
    torch.library.opcheck(torch.ops.convnet.dropout.default, (randn(3, 5).requires_grad_(), 0.5, at(0), 0))
