"""ReLU, response normalisation and max-pooling as their formulas read: the truth for the fast forms."""

from dataclasses import dataclass

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


def plain_norm_pool(x: Tensor, block: Block) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): what `block` says, step by step."""
    x = F.relu(x) if block.relu_before else x
    if block.n:
        constants = (block.n, block.k, block.alpha, block.beta)
        x = torch.cat([plain_response_norm(part, *constants) for part in x.chunk(block.groups, 1)], 1)
    x = F.max_pool2d(x, block.size, block.stride, ceil_mode=block.ceil)
    return F.relu(x) if block.relu_after else x


def plain_response_norm(x: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """`response_norm` as the formula reads: the truth that the fast form is held against."""
    x_wide = wide(x)
    squares = x_wide.square().movedim(1, -1)
    return (x_wide * (k + alpha * window_sum(squares, n).movedim(-1, 1)) ** -beta).to(x.dtype)


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
