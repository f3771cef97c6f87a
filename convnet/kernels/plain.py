"""The nets' operations as their formulas read: the truth for the fast forms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """What is done: [ReLU,] response norm (n, 0: none; k, alpha times the plain sum, beta; in `groups` equal parts of
    the maps), max-pooling of size x size with `stride` (1, 1: none; ceil: partial windows are kept) [, ReLU]."""

    n: int = 0
    k: float = 1.0
    alpha: float = 0.0
    beta: float = 0.75
    groups: int = 1
    size: int = 1
    stride: int = 1
    ceil: bool = False
    relu_before: bool = False
    relu_after: bool = False

    @property
    def norm(self) -> tuple[int, float, float, float]:
        return self.n, self.k, self.alpha, self.beta

    @property
    def fields(self) -> tuple[int | float | bool, ...]:
        """The arguments of `torch.ops.convnet.norm_pool`."""
        pooling = self.size, self.stride, self.ceil
        return *self.norm, self.groups, *pooling, self.relu_before, self.relu_after

    def pooled(self, side: int) -> int:
        """Windows along a side of so many pixels. As in torch: with ceil a last partial one counts if it begins inside.

        >>> Block(size=3, stride=2).pooled(56), Block(size=3, stride=2, ceil=True).pooled(56)
        (27, 28)
        """
        room = side - self.size
        n = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        return n - 1 if self.ceil and (n - 1) * self.stride >= side else n


class Context(Protocol):
    """What a torch.autograd.Function keeps from `forward` for `backward`."""

    constants: tuple[Any, ...]
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


Norm = Callable[[Tensor, int, float, float, float], Tensor]


def plain_norm_pool(x: Tensor, block: Block, norm: Norm | None = None) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): what `block` says, step by step, by `plain_response_norm` or another form."""
    x = F.relu(x) if block.relu_before else x
    x = norm_in_groups(x, block, norm or plain_response_norm) if block.n else x
    if block.size > 1 or block.stride > 1:
        x = F.max_pool2d(x, block.size, block.stride, ceil_mode=block.ceil)
    return F.relu(x) if block.relu_after else x


def norm_in_groups(x: Tensor, block: Block, norm: Norm) -> Tensor:
    """Response normalisation of each of the block's equal groups of maps."""
    if block.groups == 1:
        return norm(x, *block.norm)
    parts = x.chunk(block.groups, 1)
    return torch.cat([norm(parts[i], *block.norm) for i in range(block.groups)], 1)


def empty(x: Tensor, block: Block) -> Tensor:
    """Room for the result, channels-last."""
    shape = (*x.shape[:2], *map(block.pooled, x.shape[2:]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def plain_response_norm(x: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """`response_norm` as the formula reads: the truth that the fast form is held against."""
    x_wide = wide(x)
    squares = x_wide.square().movedim(1, x.ndim - 1)
    return (x_wide * (k + alpha * window_sum(squares, n).movedim(x.ndim - 1, 1)) ** -beta).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it has that already."""
    return x if x.dtype == torch.float64 else x.float()


def window_sum(x: Tensor, n: int) -> Tensor:
    """For each i of the last dimension the sum over i - n//2 .. i + n//2, as far as these exist."""
    half, length = n // 2, x.shape[-1]
    padded = F.pad(x, (half, half))
    total = padded[..., :length].clone()
    for first in range(1, 2 * half + 1):
        total += padded[..., first : first + length]
    return total


def scaled_tanh(x: Tensor) -> Tensor:
    """1.7159 tanh(2x/3): it maps -1 and 1 to themselves, where its curvature is largest. Paper: LeNet-5, eq. 6."""
    return 1.7159 * torch.tanh(x * (2 / 3))


def sub_sample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H // 2, W // 2): the mean of each 2x2 square, times weight (C,), plus bias (C,)."""
    return F.avg_pool2d(x, 2) * weight[:, None, None] + bias[:, None, None]


def plain_lenet5(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> Tensor:
    """LeNet-5's features (N, 84) of pictures (N, C, 32, 32). weights: those and the biases of C1, S2, C3, S4, C5, F6;
    C3's kernels (connections, 5, 5) are those of the maps `outputs` from `inputs`, int64 (connections,)."""
    c1, c1_bias, s2, s2_bias, kernels, c3_bias, s4, s4_bias, c5, c5_bias, f6, f6_bias = weights
    x = scaled_tanh(F.conv2d(images, c1, c1_bias))
    x = scaled_tanh(sub_sample(x, s2, s2_bias))
    c3 = kernels.new_zeros(len(c3_bias), x.shape[1], *kernels.shape[1:]).index_put((outputs, inputs), kernels)
    x = scaled_tanh(F.conv2d(x, c3, c3_bias))
    x = scaled_tanh(sub_sample(x, s4, s4_bias))
    x = scaled_tanh(F.linear(x.flatten(1), c5.flatten(1), c5_bias))
    return scaled_tanh(F.linear(x, f6, f6_bias))


def plain_to_blocks(images: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """Pictures (N, C, H, W) as (N, stride^2 C, rows, columns), channels-last.

    Map (dy stride + dx) C + c of a block is map c of its pixel in row dy, column dx: as they lie in memory. What is
    missing at the right and bottom edges is 0, what is too much is left out.
    """
    n, maps, height, width = images.shape
    if height % stride or width % stride:
        images = F.pad(images, (0, -width % stride, 0, -height % stride))
    images = images[:, :, : rows * stride, : columns * stride]
    n_rows, n_columns = (side // stride for side in images.shape[2:])
    cut = images.movedim(1, -1).reshape(n, n_rows, stride, n_columns, stride * maps)
    blocks = cut.new_zeros(n, rows, columns, stride, stride * maps)
    blocks[:, :n_rows, :n_columns] = cut.transpose(2, 3)
    return blocks.view(n, rows, columns, stride**2 * maps).permute(0, 3, 1, 2)
