"""A convolution at stride 1 on the CPU in float32 with fewer multiplications: Winograd's F(4x4, 3x3), a quarter of them
for 3 x 3, 36 % for 5 x 5.

A tile of 4 x 4 results is A^T [sum over maps of (G w G^T) * (B^T d B)] A, d being the 6 x 6 pixels that it reads: 36
products where the definition has 144, and over many tiles they are 36 products of matrices. The pictures' gradient is
such a convolution of the results' gradients with the kernels turned; the kernels' is G^T [sum over tiles of
(A g A^T) * (B^T d B)] G. A kernel of 5 x 5 is four pieces of 3 x 3, with zeros where it ends, over four times as many
maps: each piece reads the pixels at its own place. Plain form: F.conv2d.

It rounds by 1.2e-6 of the results' size in the mean at 256 maps. Direct sums round by 2e-7 or 9e-7, as the processor
adds them up (AVX2, AVX-512). Of whole nets on photos, the largest error of a logit against float64, as a part of the
largest logit: VGG-D 1.3e-6 (direct on AVX-512: 2.2e-6), VGG-A 9e-7 (1.7e-6), ZFNet 1.3e-6 (1.4e-6), GoogLeNet 6e-7
(6e-7). For 5 x 5 the mean is 7e-7 to 8e-7 at 64 to 256 maps (direct 3e-7 to 7e-7).

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
from convnet.kernels.cpu.compiled import function
from convnet.kernels.cpu.parts import in_parts

PIECE, TILE, PRODUCTS = 3, 4, 36
SIZES = (3, 5)  # of kernels
FINITE = (0.0, 0.75, -0.75, 1.5, -1.5)  # the points, as winograd.c has them
FEWEST = 16  # maps: a whole vector on every processor
TRANSFORM = 72  # multiply-adds that take as long as a value's transform, of a tile's 36 of a map in or out
KERNEL_TRANSFORM = 4600  # and as a kernel's: measured with AVX2 and AVX-512
BYTES = 2**24  # of the tiles that are worked on at once, with their products: in the cache
LEAST = 256  # tiles at once: each time all kernels are read


def serves(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether `forward` takes these and is faster: float32 (N, C, H, W) on the CPU, weight (K, C, s, s) of `SIZES`."""
    return takes(x, weight, padding) and saves(x.shape, weight.shape, padding) and compiled.available()


def takes(x: Tensor, weight: Tensor, padding: int) -> bool:
    fits = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.ndim == 4
    maps_out, maps_in, size, width = weight.shape
    if not fits or size != width or size not in SIZES or torch.is_autocast_enabled("cpu"):
        return False
    if x.shape[1] != maps_in or min(maps_in, maps_out) < FEWEST:
        return False
    return 0 <= padding < size and len(x) > 0 and min(x.shape[2:]) + 2 * padding >= size


def saves(pictures: Sequence[int], kernels: Sequence[int], padding: int) -> bool:
    """Whether products and transforms take less than the direct sums. pictures: (N, C, H, W); kernels: (K, C, s, s)."""
    maps_out, maps_in, size = kernels[:3]
    height, width = (side + 2 * padding - size + 1 for side in pictures[2:])
    tiles, read = pictures[0] * -(-height // TILE) * -(-width // TILE), pieces(size) ** 2 * maps_in
    transforms = PRODUCTS * tiles * TRANSFORM * (read + maps_out) + KERNEL_TRANSFORM * read * maps_out
    return size**2 * pictures[0] * height * width * maps_in * maps_out > PRODUCTS * tiles * read * maps_out + transforms


def pieces(size: int) -> int:
    """Of a kernel's row of so many weights.

    >>> pieces(3), pieces(5)
    (1, 2)
    """
    return -(-size // PIECE)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """(N, C, H, W) -> (N, K, H', W'), channels-last, where it `serves`."""
    x = x.contiguous(memory_format=torch.channels_last)
    kernels, bias = _kernels(weight), None if bias is None else bias.detach().contiguous()
    y = empty(x, weight, padding)
    for tiles in _parts(y, kernels.shape[1] + kernels.shape[2]):
        taken = _points(x, weight, y, padding, tiles)
        products = x.new_empty(len(tiles), PRODUCTS, len(weight))
        for i, kernel in enumerate(kernels):
            torch.mm(taken[:, i], kernel.t(), out=products[:, i])
        _run("winograd_results", y, y, (0, 0), tiles, products, bias)
    return y


def backward(
    x: Tensor, weight: Tensor, g: Tensor, padding: int, of_x: bool = True, of_weight: bool = True
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight from g, that of the results; what isn't wanted is left empty."""
    x, g = (each.contiguous(memory_format=torch.channels_last) for each in (x, g))
    turned = weight.detach().flip(2, 3).transpose(0, 1)
    dx = forward(g, turned, None, weight.shape[2] - 1 - padding) if of_x else torch.empty_like(x)
    return dx, _of_weight(x, weight, g, padding) if of_weight else torch.empty_like(weight)


def _of_weight(x: Tensor, weight: Tensor, g: Tensor, padding: int) -> Tensor:
    maps_out, maps_in, size, _ = weight.shape
    n = pieces(size)
    sums = x.new_zeros(PRODUCTS, maps_out, n * n * maps_in)
    for tiles in _parts(g, maps_out + n * n * maps_in):
        taken, slopes = _points(x, weight, g, padding, tiles), x.new_empty(len(tiles), PRODUCTS, maps_out)
        _run("winograd_spread", g, g, (0, 0), tiles, slopes)
        for i in range(PRODUCTS):
            sums[i].addmm_(slopes[:, i].t(), taken[:, i])
    flat = (_squared().t() @ sums.flatten(1)).view(PIECE, PIECE, maps_out, n, n, maps_in)
    whole = flat.permute(2, 5, 3, 0, 4, 1).reshape(maps_out, maps_in, PIECE * n, PIECE * n)
    return torch.empty_like(weight).copy_(whole[:, :, :size, :size])


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same by its definition."""
    return F.conv2d(x, weight, bias, padding=padding)


def empty(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The results (N, K, H', W') without their values, channels-last."""
    height, width = (side + 2 * padding - weight.shape[2] + 1 for side in x.shape[2:])
    return x.new_empty(len(x), height, width, len(weight)).permute(0, 3, 1, 2)


class _Grid(ctypes.Structure):
    """`Grid` of winograd.c."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("height", "width", "maps", "down", "across", "above", "before", "step")
    )


def _parts(y: Tensor, maps: int) -> Iterator[range]:
    """Tiles of results y, of all pictures together, some at a time. maps: of a tile, in and out."""
    tiles = len(y) * -(-y.shape[2] // TILE) * -(-y.shape[3] // TILE)
    some = max(LEAST, BYTES // (4 * PRODUCTS * maps))
    for first in range(0, tiles, some):
        yield range(first, min(first + some, tiles))


@once
def _squared() -> Tensor:
    """float32 (36, 9): G on rows and columns of a kernel."""
    rows = [[point**k / prod(point - other for other in FINITE if other != point) for k in range(PIECE)]
            for point in FINITE]  # fmt: skip
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).float()


def _kernels(weight: Tensor) -> Tensor:
    """(K, C, s, s) -> G w G^T of the pieces, (36, K, n^2 C)."""
    maps_out, _, size, _ = weight.shape
    n = pieces(size)
    whole = F.pad(weight.detach(), (0, PIECE * n - size) * 2)
    apart: Tensor = whole.unflatten(3, (n, PIECE)).unflatten(2, (n, PIECE))  # type: ignore[no-untyped-call]
    flat = apart.permute(3, 5, 0, 2, 4, 1).reshape(PIECE**2, -1)  # of (3, 3, K, n, n, C)
    return (_squared() @ flat).view(PRODUCTS, maps_out, -1)


def _points(x: Tensor, weight: Tensor, y: Tensor, padding: int, tiles: range) -> Tensor:
    """Pictures (N, C, H, W), channels-last, as the pieces of a kernel read them -> (those tiles of y, 36, n^2 C)."""
    n, maps = pieces(weight.shape[2]), x.shape[1]
    out = x.new_empty(len(tiles), PRODUCTS, n * n * maps)
    for k in range(n * n):  # n of them one below the other, n side by side
        zeros = padding - PIECE * (k // n), padding - PIECE * (k % n)
        _run("winograd_points", x, y, zeros, tiles, out[:, :, k * maps :])
    return out


def _run(name: str, pictures: Tensor, y: Tensor, zeros: tuple[int, int], tiles: range, values: Tensor,
         bias: Tensor | None = None) -> None:  # fmt: skip
    """Between pictures (N, C, H, W), channels-last, and the values (n, 36, C) of tiles of y; each thread takes some.

    zeros: above and left of the pictures."""
    down, across = (-(-side // TILE) for side in y.shape[2:])
    grid = _Grid(*pictures.shape[2:], pictures.shape[1], down, across, *zeros, values.stride(1))
    kernel, tile = function(name), 4 * values.stride(0)
    places = ctypes.c_void_p(pictures.data_ptr()), ctypes.c_void_p(None if bias is None else bias.data_ptr())

    def part(first: int, last: int) -> None:
        own = ctypes.c_void_p(values.data_ptr() + first * tile)
        ends = (ctypes.c_int64(tiles.start + each) for each in (first, last))
        kernel(ctypes.byref(grid), *places, own, *ends)

    in_parts(len(tiles), part)
