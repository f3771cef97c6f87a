"""A convolution on the CPU in float32 with fewer multiplications: Winograd's F(4x4, 3x3), a quarter of them for 3 x 3,
and F(4x4, 5x5), a sixth for 5 x 5; at stride 2 a 5 x 5 one is four of 3 x 3, with 36 %.

A tile of 4 x 4 results is A^T [sum over maps of (G w G^T) * (B^T d B)] A, d being the 6 x 6 or 8 x 8 pixels that it
reads: 36 or 64 products where the definition has 144 or 400, and over many tiles they are as many products of matrices.
The pictures' gradient is such a convolution of the results' gradients with the kernels turned; the kernels' is
G^T [sum over tiles of (A g A^T) * (B^T d B)] G. At stride 2 each of the four pictures of every other row and column is
convolved with every other row and column of the kernel. Plain form: F.conv2d.

In the mean it rounds by 6e-7 to 7e-7 of the results' mean size (3 x 3) and 2.2e-6 to 2.5e-6 (5 x 5), at 64 to 256 maps;
the kernels' gradient by 7e-7 and 2.5e-6. Direct sums round by 2e-7 to 1e-6, as the processor adds them up. Of whole
nets on photos, the largest error of a logit against float64, as a part of the largest logit: VGG-D 1.3e-6 (direct on
AVX-512: 2.4e-6), AlexNet 1.1e-6 (1.5e-6), ZFNet 1.0e-6 (1.5e-6), GoogLeNet 7e-7 (6e-7), the 13 % net 1.9e-6 (1.5e-6).

Paper: Lavin and Gray, Fast algorithms for convolutional neural networks (2015). The points: 0, +-3/4, +-3/2, infinity
for 3 x 3; 0, +-1/2, +-1, +-2, infinity for 5 x 5.
"""

import ctypes
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.compiled import function
from convnet.kernels.cpu.parts import call, in_parts, pixels
from convnet.kernels.plain import Context
from convnet.kernels.register import OPS, constant, kernel, operation

TILE = 4
KERNELS = {(3, 1): 3, (5, 1): 5, (5, 2): 3}  # (size, stride) -> the size at stride 1
FEWEST = 16  # maps: a whole vector on every processor
TRANSFORM = 20  # multiply-adds that take as long as the transform of a value of a tile, of a map in or out
KERNEL_TRANSFORM = 55  # and as that of a kernel's: measured with AVX2 and AVX-512
BF16_RATE = 3  # at which direct sums are done, in times float32's, with what the casts take
TILES = 48  # at once, a multiple of 8: their values stay in a core's cache, and all kernels are read each time
SUMS = 2**25  # floats: of a kernel's gradients at once, where threads are many
KERNEL_VALUES, WORK, VECTORS = range(3)  # what winograd.c counts


def serves(x: Tensor, weight: Tensor, padding: int, stride: int = 1) -> bool:
    """Whether `forward` takes these and is faster: (N, C, H, W) on the CPU, weight (K, C, s, s), both float32; bfloat16
    too, computed in float32, where the processor sums that twice as fast as float32 and not ten times, as with AMX."""
    if not takes(x, weight, padding, stride) or not _compiled():
        return False
    return saves(x.shape, weight.shape, padding, stride, 1 if x.dtype == torch.float32 else BF16_RATE)


@constant
def _compiled() -> bool:
    return compiled.available()


@constant
def _has_slow_bf16() -> bool:
    return compiled.has("avx512_bf16") and not compiled.has("amx_bf16")


def takes(x: Tensor, weight: Tensor, padding: int, stride: int = 1) -> bool:
    autocast = torch.is_autocast_enabled("cpu")
    in_bf16 = x.dtype == torch.bfloat16 and (autocast or weight.dtype == torch.bfloat16) and _has_slow_bf16()
    fits = in_bf16 or (x.dtype == weight.dtype == torch.float32 and not autocast)
    fits = fits and x.device.type == weight.device.type == "cpu" and x.ndim == 4
    maps_out, maps_in, size, width = map(int, weight.shape)  # in a trace they are tensors, which no dict finds
    if not fits or size != width or (size, stride) not in KERNELS:
        return False
    if x.shape[1] != maps_in or min(maps_in, maps_out) < FEWEST:
        return False
    return 0 <= padding < size and padding % stride == 0 and len(x) > 0 and min(x.shape[2:]) + 2 * padding >= size


def saves(pictures: Sequence[int], kernels: Sequence[int], padding: int, stride: int = 1, rate: float = 1
          ) -> bool:  # fmt: skip
    """Whether products and transforms take less than the direct sums. pictures: (N, C, H, W); kernels: (K, C, s, s).
    rate: of direct sums, in times that of products in float32."""
    maps_out, maps_in, size = map(int, kernels[:3])
    height, width = sides(pictures, size, padding, stride)
    products, read = (KERNELS[size, stride] + TILE - 1) ** 2, stride**2 * maps_in
    tiles = pictures[0] * -(-height // TILE) * -(-width // TILE)
    transforms = stride * TRANSFORM * tiles * (read + maps_out) + KERNEL_TRANSFORM * read * maps_out
    direct = size**2 * pictures[0] * height * width * maps_in * maps_out
    return direct > rate * products * (tiles * read * maps_out + transforms)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1) -> Tensor:
    """(N, C, H, W) -> (N, K, H', W'), channels-last, in `x`'s dtype, where it `serves`."""
    y = empty(x.float(), weight, padding, stride)
    return _convolved(x, weight.to(x.dtype), bias, y, padding // stride, stride, turned=False).to(x.dtype)


def backward(
    x: Tensor, weight: Tensor, g: Tensor, padding: int, stride: int = 1, of_x: bool = True, of_weight: bool = True
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight from g, that of the results; what isn't wanted is left empty."""
    dx, dweight = empty_gradients(x, weight)
    if of_x:
        before = KERNELS[weight.shape[2], stride] - 1 - padding // stride
        dx = _convolved(g, weight.to(x.dtype), None, dx.float(), before, stride, turned=True).to(x.dtype)
    return dx, _of_weight(x, weight, g, padding, stride) if of_weight else dweight


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1) -> Tensor:
    """The same by its definition."""
    return F.conv2d(x, weight, bias, padding=padding, stride=stride)


def sides(pictures: Sequence[int], size: int, padding: int, stride: int) -> tuple[int, int]:
    """Height and width of the results."""
    height, width = ((side + 2 * padding - size) // stride + 1 for side in pictures[2:])
    return height, width


def empty(x: Tensor, weight: Tensor, padding: int, stride: int = 1) -> Tensor:
    """The results (N, K, H', W') without their values, channels-last."""
    return x.new_empty(len(x), *sides(x.shape, weight.shape[2], padding, stride), len(weight)).permute(0, 3, 1, 2)


def empty_gradients(x: Tensor, weight: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    """What `backward` gives, without its values."""
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight)


class _Grid(ctypes.Structure):
    """`Grid` of winograd.c."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("height", "width", "maps", "stride", "before"))


class _Convolution(ctypes.Structure):
    """`Convolution` of winograd.c."""

    _fields_ = (
        *(("x", _Grid), ("y", _Grid)),
        *((name, ctypes.c_int64) for name in ("down", "across", "size", "tiles", "turned")),
    )


def _convolution(x: Tensor, y: Tensor, size: int, before: int, strides: tuple[int, int], turned: bool) -> _Convolution:
    """Of pictures x to y, of which one has a stride. before: zeros above and left of x, in pixels at stride 1."""
    down, across = (-(-side // (strides[1] * TILE)) for side in y.shape[2:])
    grids = (
        _Grid(*each.shape[2:], each.shape[1], s, zeros)
        for each, s, zeros in ((x, strides[0], before), (y, strides[1], 0))
    )
    return _Convolution(*grids, down, across, size, TILES, turned)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, before: int, stride: int, turned: bool
               ) -> Tensor:  # fmt: skip
    """Fills y, channels-last. turned: x are results' gradients and y the pictures'."""
    strides = (1, stride) if turned else (stride, 1)
    c = _convolution(x, y, weight.shape[2], before, strides, turned)
    x, weight = pixels(x), pixels(weight)
    bias = None if bias is None else bias.detach().float().contiguous()
    kernels = x.new_empty(_count(c, KERNEL_VALUES))
    in_parts(_count(c, VECTORS), lambda first, last: call("winograd_kernels", c, weight, kernels, first, last))

    def part(first: int, last: int) -> None:
        call("winograd_forward", c, x, kernels, bias, y, x.new_empty(_count(c, WORK)), first, last)

    in_parts(len(x) * c.down * c.across, part)
    return y


def _of_weight(x: Tensor, weight: Tensor, g: Tensor, padding: int, stride: int) -> Tensor:
    c = _convolution(x, g, weight.shape[2], padding // stride, (stride, 1), False)
    x, g, found = pixels(x), pixels(g), torch.empty_like(pixels(weight))
    n_tiles, vectors, values = len(x) * c.down * c.across, _count(c, VECTORS), _count(c, KERNEL_VALUES)
    n_threads = torch.get_num_threads()
    groups = max(1, min(n_threads, n_tiles // TILES, SUMS // values))  # of tiles, each with sums of its own
    beside = min(vectors, -(-n_threads // groups))  # of maps: each looks at all tiles of its group
    sums = x.new_empty(groups, values)

    def part(first: int, last: int) -> None:
        for job in range(first, last):
            group, k = divmod(job, beside)
            tiles = n_tiles * group // groups, n_tiles * (group + 1) // groups
            maps = vectors * k // beside, vectors * (k + 1) // beside
            call("winograd_weights", c, x, g, sums[group], x.new_empty(_count(c, WORK)), *tiles, *maps)

    in_parts(groups * beside, part)
    total = sums[0] if groups == 1 else sums.sum(0)
    in_parts(len(weight), lambda first, last: call("winograd_gradients", c, total, found, first, last))
    return torch.empty_like(weight).copy_(found)


def _count(c: _Convolution, of: int) -> int:
    """What `winograd_count` counts: `KERNEL_VALUES`, `WORK` or `VECTORS`."""
    count = function("winograd_count")
    count.restype = ctypes.c_int64
    n: int = count(ctypes.byref(c), ctypes.c_int64(of))
    return n


class _TiledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.constants = (padding, stride, bias is not None)
        y: Tensor = OPS.tiled_conv_forward(x, weight, bias, padding, stride)
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (padding, stride, has_bias), g = ctx.saved_tensors, ctx.constants, grads[0]
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # someone will differentiate the gradient
            inputs = [each for each, wants in zip((x, weight), wanted, strict=False) if wants]
            found = iter(
                torch.autograd.grad(plain(x, weight.to(x.dtype), None, padding, stride), inputs, g, create_graph=True)
            )
            dx, dw = (next(found) if wants else None for wants in wanted[:2])
        else:
            dx, dw = OPS.tiled_conv_backward(x, weight, g, padding, stride, wanted[0], wanted[1])
        dx, dw = (each if wants else None for each, wants in zip((dx, dw), wanted, strict=False))
        return dx, dw, g.sum((0, 2, 3)) if has_bias and wanted[2] else None, None, None


_apply_tiled_conv: Callable[..., Tensor] = _TiledConv.apply


def _tiled_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1) -> Tensor:
    """stride: isn't said by programs that were kept before it was known."""
    return _apply_tiled_conv(x, weight, bias, padding, stride)


def _tiled_conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1) -> Tensor:
    return empty(x, weight, padding, stride)


operation(
    "tiled_conv(Tensor x, Tensor weight, Tensor? bias, int padding, int stride=1) -> Tensor",
    _tiled_conv,
    plain,
)
kernel(
    "tiled_conv_forward(Tensor x, Tensor weight, Tensor? bias, int padding, int stride=1) -> Tensor",
    forward,
    _tiled_conv_fake,
)
kernel(
    "tiled_conv_backward(Tensor x, Tensor weight, Tensor g, int padding, int stride, bool of_x, bool of_weight)"
    " -> (Tensor, Tensor)",
    backward,
    empty_gradients,
)
