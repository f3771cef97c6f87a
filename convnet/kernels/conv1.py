"""A first convolution with a large stride as one with stride 1 on blocks of pixels: plain torch, on any device.

AlexNet's conv1 reads 3 maps with 11 x 11 kernels at stride 4, which leaves matrix units idle: they want many maps. A
block of 4 x 4 pixels as one pixel with 48 maps, and the kernel padded with zeros to 12 x 12 and cut up the same way,
(96, 48, 3, 3), give the same sums of products at stride 1: the zeros add nothing. 224 pixels and the 3 zeros that conv1
reads past the right and bottom edges are 57 blocks, of which the last is zero.

Plain form: `plain_conv1`.

Traffic: the blocks take the bytes of the pixels, 57^2 / 56^2 of them with the zero blocks, and cost a pass over them.
Arithmetic: 144 / 121 = 1.19 times that of the plain form.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.kernels.ops import layer_by_layer, to_blocks

MAPS = 4  # more maps keep matrix units busy by themselves


def available(images: Tensor) -> bool:
    """Whether blocks are worth it: few maps, in bfloat16, where matrix units are at work, with a gradient to come.

    AlexNet's conv1 with 32 pictures on one core of an Intel Xeon with AMX, forward and backward: 24 instead of 44 ms in
    bfloat16, of which 3 make the blocks; in float32 107 instead of 96 ms. Forward alone 12 instead of 11 ms.
    """
    if layer_by_layer(images):
        return False
    if images.device.type not in ("cpu", "cuda") or images.shape[1] > MAPS or not torch.is_grad_enabled():
        return False
    return in_bf16(images)


def in_bf16(x: Tensor) -> bool:
    """Whether a convolution of `x` computes in bfloat16: by its dtype, or under autocast."""
    device = x.device.type
    return (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype) == torch.bfloat16


def plain_conv1(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4, edge: int = 3) -> Tensor:
    """The convolution of pictures (N, C, H, W) that reads `edge` zeros past their right and bottom edges.

    weight: (O, C, h, w). Gives (N, O, H', W') with H' = (H + edge - h) // stride + 1.
    """
    return F.conv2d(F.pad(images, (0, edge, 0, edge)), weight, bias, stride)


def conv1(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4, edge: int = 3) -> Tensor:
    """`plain_conv1` by blocks, with its gradients; another order of the sums."""
    rows = n_blocks(images.shape[2], weight.shape[2], stride, edge)
    columns = n_blocks(images.shape[3], weight.shape[3], stride, edge)
    return F.conv2d(to_blocks(images, stride, rows, columns), block_kernel(weight, stride), bias)


def n_blocks(side: int, kernel: int, stride: int = 4, edge: int = 3) -> int:
    """Blocks along a side of so many pixels: as many as the convolution reads.

    >>> n_blocks(224, kernel=11)
    57
    """
    n_out = (side + edge - kernel) // stride + 1
    return n_out - 1 + -(-kernel // stride)


def block_kernel(weight: Tensor, stride: int = 4) -> Tensor:
    """The kernel (O, C, h, w) for blocks, (O, stride^2 C, ceil(h / stride), ceil(w / stride))."""
    rows, columns = (-(-side // stride) for side in weight.shape[2:])
    return to_blocks(weight, stride, rows, columns)
