"""The nets' pools as functions: of nets that tests make, and to be held against loops."""

import torch.nn.functional as F
from torch import Tensor

from convnet.kernels import ops
from convnet.kernels.plain import Block


def max_pool(x: Tensor, size: int = 3, stride: int = 2, ceil: bool = False) -> Tensor:
    """ceil: partial windows at the right and bottom edges are kept."""
    return ops.norm_pool(x, Block(size=size, stride=stride, ceil=ceil))


def ceil_max_pool(x: Tensor, size: int = 3, stride: int = 2) -> Tensor:
    """A side s of at least stride pixels gives ceil((s - size) / stride) + 1; with 3 and 2 that's s // 2."""
    return max_pool(x, size, stride, ceil=True)


def ceil_avg_pool(x: Tensor, size: int = 3, stride: int = 2) -> Tensor:
    """Of partial windows only the pixels inside count, as in cuda-convnet."""
    return F.avg_pool2d(x, size, stride, ceil_mode=True, count_include_pad=False)
