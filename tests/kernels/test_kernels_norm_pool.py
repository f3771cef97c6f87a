"""ReLU, norm and pooling as one against the plain form in float64, forward and backward, in every order."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.kernels import ops
from convnet.kernels.cuda import norm_pool
from convnet.kernels.cuda import triton as cuda
from convnet.kernels.plain import Block, plain_response_norm
from kernel_place import PLACE, assert_near, needs_kernels, randn

pytestmark = needs_kernels
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PLAIN = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2)
PAPER = replace(PLAIN, relu_before=True)
RELEASED = replace(PLAIN, groups=2, ceil=True, relu_after=True)
STRONG = replace(PLAIN, k=1.0, alpha=0.5)  # where windows count for much


def normalised(x: Tensor, block: Block) -> Tensor:
    x = F.relu(x) if block.relu_before else x
    parts = [plain_response_norm(part, block.n, block.k, block.alpha, block.beta) for part in x.chunk(block.groups, 1)]
    return torch.cat(parts, 1)


def plain(x: Tensor, block: Block) -> Tensor:
    x = F.max_pool2d(normalised(x, block), 3, 2, ceil_mode=block.ceil)
    return F.relu(x) if block.relu_after else x


def pixels_of(places: Tensor, width: int) -> Tensor:
    """Where in the picture each window's largest value is, as torch's pooling says it."""
    rows = 2 * torch.arange(places.shape[2], device=PLACE)[:, None] + places.long() // 3
    return rows * width + 2 * torch.arange(places.shape[3], device=PLACE) + places.long() % 3


def at_places(x: Tensor, places: Tensor, block: Block) -> Tensor:
    """The plain form with the largest values where `places` says."""
    pixels = pixels_of(places, x.shape[3])
    pooled = normalised(x, block).flatten(2).gather(2, pixels.flatten(2)).view(places.shape)
    return F.relu(pooled) if block.relu_after else pooled


def kept(x: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """The kernel's pooled values and places."""
    return norm_pool.forward(x.contiguous(memory_format=torch.channels_last), block, True)


@settings(max_examples=3 if cuda.INTERPRETED else 30, deadline=None)  # one takes the interpreter a second
@given(
    block=st.builds(
        Block,
        n=st.integers(1, 7),
        k=st.sampled_from([1.0, 2.0]),
        alpha=st.sampled_from([1e-4, 0.5]),
        beta=st.sampled_from([0.75, 0.6]),
        groups=st.integers(1, 2),
        size=st.just(3),
        stride=st.just(2),
        ceil=st.booleans(),
        relu_before=st.booleans(),
        relu_after=st.booleans(),
    ),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(3, 5), st.integers(3, 5)),
    dtype=st.sampled_from(DTYPES),
)
@example(PAPER, (1, 8, 5, 7), torch.bfloat16)
@example(RELEASED, (2, 4, 4, 6), torch.bfloat16)
@example(replace(STRONG, ceil=True), (1, 1, 3, 4), torch.float32)
@example(replace(STRONG, relu_before=True), (1, 2, 37, 3), torch.float32)  # several strips
@example(replace(STRONG, n=4, ceil=True), (1, 3, 2, 2), torch.float32)  # one partial window
def test_the_fused_form_and_its_gradient(block: Block, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pictures, maps, height, width = shape
    x = randn(pictures, maps * block.groups, height, width, dtype=dtype)
    x = x - 1 if block.relu_before else x  # so that in some windows nothing is left
    assert norm_pool.available(x, block)
    y, places = kept(x, block)
    exact = x.double().requires_grad_()
    assert y.dtype == dtype
    assert_near(y, plain(exact.detach(), block))

    chosen = at_places(exact, places, block)
    assert_near(y, chosen.detach())  # the places are those of largest values
    g = randn(*y.shape, seed=1, dtype=dtype)
    chosen.backward(g.double())
    ops.norm_pool(x.requires_grad_(), block).backward(g)
    assert x.grad is not None
    assert exact.grad is not None
    assert_near(x.grad, exact.grad)


@pytest.mark.parametrize(
    "block", [replace(STRONG, relu_before=True), replace(STRONG, ceil=True, relu_after=True), STRONG]
)
def test_of_equal_values_torch_and_the_kernel_choose_the_same(block: Block) -> None:
    """Every pixel is one of three, so that most windows have several largest values, and many only zeros."""
    generator = torch.Generator().manual_seed(2)
    kinds = torch.tensor([[1.0, -2.0, 0.5], [-1.0, -1.0, -0.25], [1.0, 0.5, -2.0]], device=PLACE)
    x = kinds[torch.randint(0, 3, (1, 6, 8), generator=generator).to(PLACE)].permute(0, 3, 1, 2).contiguous()
    _, indices = F.max_pool2d(normalised(x, block), 3, 2, ceil_mode=block.ceil, return_indices=True)
    _, places = kept(x, block)
    assert torch.equal(pixels_of(places, 8), indices)

    expected, found = x.clone().requires_grad_(), x.clone().requires_grad_()
    g = randn(*places.shape, seed=3)
    plain(expected, block).backward(g)
    ops.norm_pool(found, block).backward(g)
    assert expected.grad is not None
    assert found.grad is not None
    assert_near(found.grad, expected.grad)


def test_values_that_are_equal_in_bfloat16_count_as_equal() -> None:
    """The second pixel's value is larger by less than bfloat16 shows; the plain form rounds, and takes the first."""
    pixels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], device=PLACE).bfloat16()
    x = pixels.T[None, :, None].expand(1, 2, 3, 3).contiguous()
    exact = normalised(x.double(), PLAIN)
    assert exact[0, 0, 0, 1] > exact[0, 0, 0, 0]
    assert kept(x, PLAIN)[1].flatten().tolist() == [0, 0]


@pytest.mark.parametrize("block", [replace(PAPER, n=3), replace(PLAIN, n=3, relu_after=True), replace(PLAIN, n=3)])
def test_nan_is_the_largest(block: Block) -> None:
    x = randn(1, 4, 5, 5)
    x[0, 2, 2, 2] = torch.nan
    found = ops.norm_pool(x, block)
    assert torch.equal(found.isnan(), plain(x, block).isnan())
    assert found[:, 1:].isnan().all()
    assert not found[:, 0].isnan().any()


def test_without_a_gradient_nothing_is_kept() -> None:
    x = randn(1, 4, 5, 5)
    assert norm_pool.forward(x.contiguous(memory_format=torch.channels_last), PAPER, False)[1].numel() == 0
    found = ops.norm_pool(x.clone().requires_grad_(), PAPER)
    assert torch.equal(ops.norm_pool(x, PAPER), found.detach())


def test_the_same_bits_every_time() -> None:
    x, g = randn(1, 6, 5, 5, dtype=torch.bfloat16), randn(1, 6, 2, 2, seed=1, dtype=torch.bfloat16)
    grads = []
    for _ in range(2):
        own = x.clone().requires_grad_()
        ops.norm_pool(own, PAPER).backward(g)
        grads.append(own.grad)
    assert torch.equal(*grads)


def test_the_result_is_channels_last_and_takes_any_layout() -> None:
    x = randn(2, 3, 3, 5)
    found = ops.norm_pool(x, PAPER)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, ops.norm_pool(x.to(memory_format=torch.channels_last), PAPER))
    assert ops.norm_pool(x[:0], PAPER).shape == (0, 3, 1, 2)


def test_what_is_available() -> None:
    x = torch.zeros(1, 64, 4, 3, device=PLACE)
    assert norm_pool.available(x, PAPER)
    assert norm_pool.available(x[:, :, :2], RELEASED)
    assert not norm_pool.available(x[:, :, :2], PAPER)  # no window
    assert not norm_pool.available(x[0], PAPER)
    assert not norm_pool.available(x.double(), PAPER)
    assert not norm_pool.available(x, replace(PAPER, size=2))
    assert not norm_pool.available(x, replace(PAPER, n=18))


@given(side=st.integers(2, 60), ceil=st.booleans())
def test_the_pooled_side_is_torchs(side: int, ceil: bool) -> None:
    if side > 2 or ceil:
        expected = F.max_pool2d(torch.zeros(1, side, side), 3, 2, ceil_mode=ceil).shape[1]
        assert Block(size=3, stride=2, ceil=ceil).pooled(side) == expected


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own check, from 2.15 on
def test_torch_can_trace_it() -> None:
    x = randn(1, 2, 3, 3).requires_grad_()
    torch.library.opcheck(torch.ops.convnet.norm_pool.default, (x, *RELEASED.fields))
