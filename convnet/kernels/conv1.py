"""A first convolution with a large stride as one with stride 1 on blocks of pixels: plain torch, on any device.

AlexNet's conv1 reads 3 maps with 11 x 11 kernels at stride 4, which leaves matrix units idle: they want many maps. A
block of 4 x 4 pixels as one pixel with 48 maps, and the kernel padded with zeros to 12 x 12 and cut up the same way,
(96, 48, 3, 3), give the same sums of products at stride 1: the zeros add nothing. 224 pixels and the 3 zeros that conv1
reads past the right and bottom edges are 57 blocks, of which the last is zero.

Plain form: `plain_conv1`.

Traffic: the blocks take the bytes of the pixels, 57^2 / 56^2 of them with the zero blocks. Arithmetic: 144 / 121 = 1.19
times that of the plain form. `augmentation.augment` writes the blocks itself; from pictures they cost a pass over them.
"""

import torch.nn.functional as F
from torch import Tensor


def plain_conv1(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4, edge: int = 3) -> Tensor:
    """The convolution of pictures (N, C, H, W) that reads `edge` zeros past their right and bottom edges.

    weight: (O, C, h, w). Gives (N, O, H', W') with H' = (H + edge - h) // stride + 1.
    """
    return F.conv2d(F.pad(images, (0, edge, 0, edge)), weight, bias, stride)


def conv1(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4, edge: int = 3) -> Tensor:
    """`plain_conv1` by blocks, with its gradients; another order of the sums."""
    rows = n_blocks(images.shape[2], weight.shape[2], stride, edge)
    columns = n_blocks(images.shape[3], weight.shape[3], stride, edge)
    return conv1_of_blocks(to_blocks(images, stride, rows, columns), weight, bias, stride)


def conv1_of_blocks(blocks: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4) -> Tensor:
    """`plain_conv1` of pictures that are blocks already, (N, stride^2 C, rows, columns): `to_blocks` says how."""
    return F.conv2d(blocks, block_kernel(weight, stride), bias)


def n_blocks(side: int, kernel: int, stride: int = 4, edge: int = 3) -> int:
    """Blocks along a side of so many pixels: as many as the convolution reads.

    >>> n_blocks(224, kernel=11)
    57
    """
    n_out = (side + edge - kernel) // stride + 1
    return n_out - 1 + -(-kernel // stride)


def to_blocks(images: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """Pictures (N, C, H, W) as (N, stride^2 C, rows, columns), channels-last.

    Map (dy stride + dx) C + c of a block is map c of its pixel in row dy, column dx: as they lie in memory. What is
    missing at the right and bottom edges is 0, what is too much is left out.
    """
    n, maps, height, width = images.shape
    images = F.pad(images, (0, columns * stride - width, 0, rows * stride - height))
    cut = images.view(n, maps, rows, stride, columns, stride)
    blocks = cut.permute(0, 2, 4, 3, 5, 1).reshape(n, rows, columns, stride**2 * maps)
    return blocks.permute(0, 3, 1, 2)


def block_kernel(weight: Tensor, stride: int = 4) -> Tensor:
    """The kernel (O, C, h, w) for blocks, (O, stride^2 C, ceil(h / stride), ceil(w / stride))."""
    rows, columns = (-(-side // stride) for side in weight.shape[2:])
    return to_blocks(weight, stride, rows, columns)
