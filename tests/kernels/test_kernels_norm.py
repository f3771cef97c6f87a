"""The norm in one pass against the plain form in float64, forward and backward."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.kernels.cuda import norm
from convnet.kernels.ops import norm_pool
from convnet.kernels.plain import Block, plain_response_norm
from kernel_place import PLACE, assert_near, needs_kernels, randn

pytestmark = needs_kernels
CONSTANTS = [(2.0, 1e-4, 0.75), (1.0, 0.5, 0.75), (1.5, 0.3, 0.6)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def plain(x: Tensor, n: int, k: float, alpha: float, beta: float, columns: int = 1) -> Tensor:
    return torch.cat([plain_response_norm(own, n, k, alpha, beta) for own in x.chunk(columns, 1)], 1)


def fast(x: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, columns: int = 1) -> Tensor:
    """By the kernel, which takes (N, C, H, W); others as such."""
    maps = x if x.ndim == 4 else x.reshape(*x.shape[:2], x.shape[2:].numel(), 1)
    return norm_pool(maps, Block(n, k, alpha, beta, columns)).reshape(x.shape)


@settings(max_examples=12, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    maps=st.integers(1, 19),
    columns=st.integers(1, 3),
    n=st.integers(1, 9),
    constants=st.sampled_from(CONSTANTS),
    dtype=st.sampled_from(DTYPES),
)
@example(shape=[2, 3], maps=8, columns=1, n=5, constants=CONSTANTS[0], dtype=torch.bfloat16)
@example(shape=[], maps=1, columns=1, n=5, constants=CONSTANTS[1], dtype=torch.float32)
@example(shape=[1], maps=9, columns=2, n=17, constants=CONSTANTS[1], dtype=torch.float32)
@example(shape=[65], maps=3, columns=1, n=4, constants=CONSTANTS[1], dtype=torch.float32)
def test_the_norm_and_its_gradient(
    shape: list[int],
    maps: int,
    columns: int,
    n: int,
    constants: tuple[float, float, float],
    dtype: torch.dtype,
) -> None:
    x, g = (randn(2, columns * maps, *shape, seed=seed, dtype=dtype) for seed in range(2))
    assert norm.available(x, n, columns)
    exact = x.double().requires_grad_()
    expected = plain(exact, n, *constants, columns)
    expected.backward(g.double())
    found = fast(x.requires_grad_(), n, *constants, columns)
    assert found.dtype == dtype
    assert_near(found.detach(), expected.detach())
    found.backward(g)
    assert x.grad is not None
    assert exact.grad is not None
    assert_near(x.grad, exact.grad)


def test_the_result_is_channels_last_and_takes_any_layout() -> None:
    x = randn(2, 5, 3, 4)
    last = x.to(memory_format=torch.channels_last)
    found = fast(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, fast(last))
    assert torch.equal(found[:, :, 1:], fast(last[:, :, 1:]))
    assert fast(x[:0]).shape == (0, 5, 3, 4)


def test_nan_stays_in_its_windows() -> None:
    x = randn(1, 9, 2)
    x[0, 4, 0] = torch.nan
    found = fast(x, n=3)
    assert found.isnan().nonzero().tolist() == [[0, 3, 0], [0, 4, 0], [0, 5, 0]]


@pytest.mark.parametrize(
    ("x", "n", "is_available"),
    [
        (torch.zeros(1, 64, 2, device=PLACE), 17, True),
        (torch.zeros(1, 64, 2, device=PLACE), 18, False),  # a window that isn't unrolled
        (torch.zeros(1, 9, 2, device=PLACE), 99, True),  # of which 17 maps are the most
        (torch.zeros(1, 64, 2, device=PLACE, dtype=torch.float64), 5, False),
        (torch.zeros(1, 64, 2, device="meta"), 5, False),
    ],
)
def test_what_is_available(x: Tensor, n: int, is_available: bool) -> None:
    assert norm.available(x, n) == is_available


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own check, from 2.15 on
def test_torch_can_trace_it() -> None:
    x = randn(2, 6, 3, 3).requires_grad_()
    torch.library.opcheck(torch.ops.convnet.norm_pool.default, (x, *Block(5, 2.0, 1e-4, 0.75, 2).fields))
