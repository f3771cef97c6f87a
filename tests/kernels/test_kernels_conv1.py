"""The convolution by blocks against torch's own, forward and backward."""

import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnet.kernels.conv1 import block_kernel, conv1, n_blocks, plain_conv1
from convnet.kernels.cpu import blocks as blocks_cpu
from convnet.kernels.ops import to_blocks
from convnet.kernels.plain import plain_to_blocks
from convnet.nets import create_model


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(
    maps=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    stride=st.integers(1, 5),
    edge=st.integers(0, 3),
)
@example(maps=3, sides=(20, 21), kernel=(11, 11), stride=4, edge=3)
def test_it_is_the_convolution_with_its_gradients(
    maps: int, sides: tuple[int, int], kernel: tuple[int, int], stride: int, edge: int
) -> None:
    assume(all(side + edge >= own for side, own in zip(sides, kernel, strict=True)))
    tensors = [randn(2, maps, *sides, seed=0), randn(4, maps, *kernel, seed=1), randn(4, seed=2)]
    plain, fast = ([each.clone().requires_grad_() for each in tensors] for _ in range(2))
    expected, found = plain_conv1(*plain, stride, edge), conv1(*fast, stride, edge)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    g = randn(*expected.shape, seed=3)
    expected.backward(g)
    found.backward(g)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-11)


def test_it_is_alexnets_first_layer() -> None:
    net = create_model("alexnet", num_classes=2)
    images = randn(1, 3, 224, 224, seed=0).float().contiguous(memory_format=torch.channels_last)
    found = conv1(images, net.conv1.weight, net.conv1.bias)
    stages: dict[str, Tensor] = {}
    net(images, stages)
    assert found.shape == (1, 96, 55, 55)
    torch.testing.assert_close(found, stages["conv1"], rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    maps=st.integers(1, 4),
    sides=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    stride=st.integers(1, 5),
    counts=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
@example(maps=3, sides=(224, 224), stride=4, counts=(57, 57), dtype=torch.bfloat16)
def test_blocks_in_c_are_the_plain_ones(
    maps: int, sides: tuple[int, int], stride: int, counts: tuple[int, int], dtype: torch.dtype
) -> None:
    images = randn(3, maps, *sides, seed=5).to(dtype).contiguous(memory_format=torch.channels_last)
    if blocks_cpu.available(images):
        assert torch.equal(to_blocks(images, stride, *counts), plain_to_blocks(images, stride, *counts))


def test_blocks_are_rows_columns_and_maps_in_this_order() -> None:
    images = torch.arange(2 * 3 * 5.0).view(1, 2, 3, 5)
    blocks = to_blocks(images, 2, 2, 3)
    assert blocks.shape == (1, 8, 2, 3)
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    for dy, dx, c, row, column in torch.cartesian_prod(*map(torch.arange, (2, 2, 2, 2, 3))).tolist():
        y, x = 2 * row + dy, 2 * column + dx
        expected = float(images[0, c, y, x]) if y < 3 and x < 5 else 0.0
        assert float(blocks[0, (dy * 2 + dx) * 2 + c, row, column]) == expected
    assert torch.equal(to_blocks(images, 2, 1, 2), blocks[:, :, :1, :2])


def test_the_last_blocks_of_224_pixels_are_zero() -> None:
    assert n_blocks(224, 11) == 57
    assert n_blocks(227, 11, edge=0) == 57
    blocks = to_blocks(torch.ones(1, 3, 224, 224), 4, 57, 57)
    assert blocks[:, :, :56, :56].min() == 1
    assert blocks[:, :, 56].max() == blocks[:, :, :, 56].max() == 0
    weight = randn(96, 3, 11, 11, seed=0)
    assert block_kernel(weight).shape == (96, 48, 3, 3)
    found = F.conv2d(blocks.double(), block_kernel(weight))
    torch.testing.assert_close(
        found, F.conv2d(F.pad(torch.ones(1, 3, 224, 224), (0, 3, 0, 3)).double(), weight, stride=4)
    )
