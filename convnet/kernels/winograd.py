"""A 3 x 3 convolution at stride 1 on the CPU in float32 with a quarter of the multiplications: Winograd's F(4x4, 3x3).

A tile of 4 x 4 results is A^T [sum over maps of (G w G^T) * (B^T d B)] A, d being the 6 x 6 pixels that it reads: 36
products where the definition has 144, and over many tiles they are 36 products of matrices. The pictures' gradient is
such a convolution of the results' gradients with the kernels turned; the kernels' is G^T [sum over tiles of
(A g A^T) * (B^T d B)] G. Plain form: F.conv2d.

It rounds by 1.2e-6 of the results' size in the mean at 256 maps. Direct sums round by 2e-7 or 9e-7, as the processor
adds them up (AVX2, AVX-512). Of whole nets on photos, the largest error of a logit against float64, as a part of the
largest logit: VGG-D 1.3e-6 (direct on AVX-512: 2.2e-6), VGG-A 9e-7 (1.7e-6), ZFNet 1.3e-6 (1.4e-6), GoogLeNet 6e-7
(6e-7).

Paper: Lavin and Gray, Fast algorithms for convolutional neural networks (2015). The points: 0, +-3/4, +-3/2, infinity.
"""

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache as once
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function, in_parts

KERNEL, TILE, PRODUCTS = 3, 4, 36
FINITE = (0.0, 0.75, -0.75, 1.5, -1.5)  # the points, as winograd.c has them
STEP = 16  # maps come in multiples of it: whole vectors on every processor
TRANSFORM = 72  # multiply-adds that take as long as a value's transform, of a tile's 36 of a map in or out
KERNEL_TRANSFORM = 4600  # and as a kernel's: measured with AVX2 and AVX-512
BYTES = 2**24  # of the tiles that are worked on at once, with their products: in the cache
LEAST = 256  # tiles at once: each time all kernels are read


def serves(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether `forward` takes these and is faster: float32 (N, C, H, W) on the CPU, weight (K, C, 3, 3)."""
    return takes(x, weight, padding) and saves(x.shape, weight.shape, padding) and compiled.available()


def takes(x: Tensor, weight: Tensor, padding: int) -> bool:
    fits = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.ndim == 4
    if not fits or weight.shape[2:] != (KERNEL, KERNEL) or torch.is_autocast_enabled("cpu"):
        return False
    maps_out, maps_in = weight.shape[:2]
    if x.shape[1] != maps_in or maps_in % STEP or maps_out % STEP:
        return False
    return padding in (0, 1, 2) and len(x) > 0 and min(x.shape[2:]) + 2 * padding >= KERNEL


def saves(pictures: Sequence[int], kernels: Sequence[int], padding: int) -> bool:
    """Whether products and transforms take less than the direct sums. pictures: (N, C, H, W); kernels: (K, C, 3, 3)."""
    maps_out, maps_in = kernels[:2]
    height, width = (side + 2 * padding - KERNEL + 1 for side in pictures[2:])
    tiles, product = pictures[0] * -(-height // TILE) * -(-width // TILE), maps_in * maps_out
    transforms = PRODUCTS * tiles * TRANSFORM * (maps_in + maps_out) + KERNEL_TRANSFORM * product
    return KERNEL**2 * pictures[0] * height * width * product > PRODUCTS * tiles * product + transforms


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """(N, C, H, W) -> (N, K, H', W'), channels-last, where it `serves`."""
    x = x.contiguous(memory_format=torch.channels_last)
    kernels, bias = _kernels(weight), None if bias is None else bias.detach().contiguous()
    y = empty(x, weight, padding)
    grid = _grid(x, y, padding)
    for tiles in _parts(grid, len(x), sum(weight.shape[:2])):
        taken = _apart("winograd_points", x, grid, tiles)
        products = x.new_empty(len(tiles), PRODUCTS, len(weight))
        for i, kernel in enumerate(kernels):
            torch.mm(taken[:, i], kernel.t(), out=products[:, i])
        _run("winograd_results", y, grid, tiles, products, bias)
    return y


def backward(
    x: Tensor, weight: Tensor, g: Tensor, padding: int, of_x: bool = True, of_weight: bool = True
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight from g, that of the results; what isn't wanted is left empty."""
    x, g = (each.contiguous(memory_format=torch.channels_last) for each in (x, g))
    turned = weight.detach().flip(2, 3).transpose(0, 1)
    dx = forward(g, turned, None, KERNEL - 1 - padding) if of_x else torch.empty_like(x)
    return dx, _of_weight(x, weight, g, padding) if of_weight else torch.empty_like(weight)


def _of_weight(x: Tensor, weight: Tensor, g: Tensor, padding: int) -> Tensor:
    maps_out, maps_in = weight.shape[:2]
    sums, grid = x.new_zeros(PRODUCTS, maps_out, maps_in), _grid(x, g, padding)
    for tiles in _parts(grid, len(x), maps_out + maps_in):
        taken = _apart("winograd_points", x, grid, tiles)
        slopes = _apart("winograd_spread", g, grid, tiles)
        for i in range(PRODUCTS):
            sums[i].addmm_(slopes[:, i].t(), taken[:, i])
    flat = (_squared().t() @ sums.flatten(1)).view(KERNEL, KERNEL, maps_out, maps_in)
    return torch.empty_like(weight).copy_(flat.permute(2, 3, 0, 1))


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same by its definition."""
    return F.conv2d(x, weight, bias, padding=padding)


def empty(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The results (N, K, H', W') without their values, channels-last."""
    height, width = (side + 2 * padding - KERNEL + 1 for side in x.shape[2:])
    return x.new_empty(len(x), height, width, len(weight)).permute(0, 3, 1, 2)


class _Grid(ctypes.Structure):
    """`Grid` of winograd.c."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("height", "width", "maps", "down", "across", "padding"))


def _grid(x: Tensor, y: Tensor, padding: int) -> tuple[int, int, int]:
    """Tiles of a picture's results, down and across, and the zeros around it."""
    return -(-y.shape[2] // TILE), -(-y.shape[3] // TILE), padding


def _parts(grid: tuple[int, int, int], n: int, maps: int) -> Iterator[range]:
    """Tiles of n pictures, of all together, some at a time. maps: of a tile, in and out."""
    tiles = n * grid[0] * grid[1]
    some = max(LEAST, BYTES // (4 * PRODUCTS * maps))
    for first in range(0, tiles, some):
        yield range(first, min(first + some, tiles))


@once
def _squared() -> Tensor:
    """float32 (36, 9): G on rows and columns of a kernel."""
    rows = [[point**k / prod(point - other for other in FINITE if other != point) for k in range(KERNEL)]
            for point in FINITE]  # fmt: skip
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).float()


def _kernels(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> G w G^T, (36, K, C)."""
    flat = weight.detach().permute(2, 3, 0, 1).reshape(KERNEL**2, -1)
    return (_squared() @ flat).view(PRODUCTS, *weight.shape[:2])


def _apart(name: str, pictures: Tensor, grid: tuple[int, int, int], tiles: range) -> Tensor:
    """Pictures (N, C, H, W), channels-last -> (those tiles, 36, C)."""
    out = pictures.new_empty(len(tiles), PRODUCTS, pictures.shape[1])
    _run(name, pictures, grid, tiles, out)
    return out


def _run(name: str, pictures: Tensor, grid: tuple[int, int, int], tiles: range, values: Tensor,
         bias: Tensor | None = None) -> None:  # fmt: skip
    """Between pictures (N, C, H, W), channels-last, and the values of tiles (n, 36, C); each thread takes some."""
    kernel, of_pictures = function(name), _Grid(*pictures.shape[2:], pictures.shape[1], *grid)
    places = ctypes.c_void_p(pictures.data_ptr()), ctypes.c_void_p(None if bias is None else bias.data_ptr())

    def part(first: int, last: int) -> None:
        own = ctypes.c_void_p(values.data_ptr() + first * values[0].nbytes)
        ends = (ctypes.c_int64(tiles.start + each) for each in (first, last))
        kernel(ctypes.byref(of_pictures), *places, own, *ends)

    in_parts(len(tiles), part)
