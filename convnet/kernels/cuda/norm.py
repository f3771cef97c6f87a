# mypy: disable-error-code="no-untyped-def, assignment, misc"
"""Local response normalisation across maps, in one pass over memory each way.

    S_i  = k + alpha * sum over j in W(i) of x_j^2         W(i): the maps i - n//2 .. i + n//2 of i's column that exist
    y_i  = x_i S_i^-beta
    dx_i = g_i S_i^-beta - 2 alpha beta x_i * sum over j in W(i) of g_j y_j / S_j      (i is in W(j) where j is in W(i))

Plain form: `plain_response_norm` (plain.py), on each column by itself.

Traffic: forward reads x and writes y, backward reads x and g and writes dx; nothing is kept for the gradient but x.
In bf16 that's 4 and 6 bytes an element: at 4.3 TB/s (an H200's copy) AlexNet's norm1, 1024 x 96 x 55 x 55, takes 0.28
and 0.41 ms (computed). All sums are float32.

How: a lane holds a group of up to 8 neighbouring maps of one pixel, and reads what the windows overhang on both sides
with it, so that lanes exchange nothing and memory is read once. The windows are unrolled; they reach up to 8 maps to
each side, which is n = 17.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convnet.kernels.cuda.triton import LANES, Kernel, is_float, jit, launch, power_of_two, runs_on, tl
from convnet.kernels.plain import Block

REACH = 8  # maps: half of the largest window
GROUP = 8  # maps of a lane: 16 bytes of 16-bit numbers, which it reads at once


@dataclass(frozen=True)
class Sizes:
    """What the compiler is to know of a normalisation.

    columns   equal parts of a pixel's maps
    maps      of a column
    width     maps of a group, a power of two
    groups    of a column; the last may be partial
    half      how far windows reach to each side
    halo      maps read on each side of a group for that, a power of two unless it is 0
    roots     whether beta is 0.75, which two square roots do
    block     lanes of a program
    """

    columns: int
    maps: int
    width: int
    groups: int
    half: int
    halo: int
    roots: bool
    block: int = LANES


def available(x: Tensor, n: int = 5, columns: int = 1) -> bool:
    """Whether `forward` takes this tensor (N, C, ...) and this window."""
    maps = x.shape[1] // columns if x.ndim > 1 else 0
    return runs_on(x.device) and is_float(x) and maps > 0 and _reach(n, maps) <= REACH


def forward(x: Tensor, block: Block) -> Tensor:
    """The response norm of `block` alone, of each of its groups of maps; `x`'s shape and dtype, channels-last."""
    pixels = x.movedim(1, -1).contiguous()
    y = torch.empty_like(pixels)
    _launch(_norm_forward, block, pixels, y)
    return y.movedim(-1, 1)


def backward(x: Tensor, g: Tensor, block: Block) -> Tensor:
    """The gradient of x from that of the result."""
    pixels, slopes = x.movedim(1, -1).contiguous(), g.movedim(1, -1).contiguous()
    dx = torch.empty_like(pixels)
    _launch(_norm_backward, block, pixels, slopes, dx)
    return dx.movedim(-1, 1)


def _launch(kernel: Kernel, block: Block, pixels: Tensor, *others: Tensor) -> None:
    of = sizes(block.n, block.beta, pixels.shape[-1], block.groups)
    groups = pixels.numel() // of.maps * of.groups
    if groups:
        constants = (groups, block.k, block.alpha, block.beta, of)
        launch(kernel, (-(-groups // LANES),), pixels.device, pixels, *others, *constants)


def sizes(n: int, beta: float, maps: int, columns: int) -> Sizes:
    """Of a window of n maps, on so many maps in all."""
    own = maps // columns
    width, half = min(GROUP, power_of_two(own)), _reach(n, own)
    return Sizes(columns, own, width, -(-own // width), half, power_of_two(half) if half else 0, beta == 0.75)


def _reach(n: int, maps: int) -> int:
    return min(n // 2, maps - 1)


# Triton: the two kernels, then their parts, which norm_pool.py shares; of: Sizes


@jit
def _norm_forward(x, y, groups, k, alpha, beta, of: tl.constexpr):
    lane = tl.program_id(0) * of.block + tl.arange(0, of.block)
    inside = lane < groups
    first, place = group_of(lane, of)
    place += (lane // (of.columns * of.groups)).to(tl.int64) * (of.columns * of.maps)
    values = load_span(x + place, first, inside, of.half, of.halo, tl.float32, of)
    store_group(y + place, first, inside, normalise(values, k, alpha, beta, of), of)


@jit
def _norm_backward(x, g, dx, groups, k, alpha, beta, of: tl.constexpr):
    lane = tl.program_id(0) * of.block + tl.arange(0, of.block)
    inside = lane < groups
    first, place = group_of(lane, of)
    place += (lane // (of.columns * of.groups)).to(tl.int64) * (of.columns * of.maps)
    values = load_span(x + place, first, inside, 2 * of.half, 2 * of.halo, tl.float32, of)
    slopes = load_span(g + place, first, inside, of.half, of.halo, tl.float32, of)
    store_group(dx + place, first, inside, gradient(values, slopes, k, alpha, beta, of), of)


@jit
def group_of(lane, of: tl.constexpr):
    """The first map of a lane's group: within its column, and within the pixel."""
    group = lane % (of.columns * of.groups)
    first = group % of.groups * of.width
    return first, group // of.groups * of.maps + first


@jit
def load_span(group, first, inside, half: tl.constexpr, halo: tl.constexpr, kind: tl.constexpr, of: tl.constexpr):
    """The numbers of each lane's group and of `half` maps on both sides, as a tuple; 0 where there is no map.

    group: pointers to the groups' first maps. halo: at least half, and a power of two unless it is 0. kind: a dtype.
    """
    span = split(load_maps(group, first, inside, of.width, kind, of), of.width, of.block)
    if half > 0:
        left = split(load_maps(group - halo, first - halo, inside, halo, kind, of), halo, of.block)
        right = split(load_maps(group + of.width, first + of.width, inside, halo, kind, of), halo, of.block)
        span = left[halo - half :] + span + right[:half]
    return span


@jit
def load_maps(pointers, first, inside, width: tl.constexpr, kind: tl.constexpr, of: tl.constexpr):
    """(block, width): the maps first .. first + width - 1 of each lane, 0 where there is none."""
    along = tl.arange(0, width)[None, :]
    maps = first[:, None] + along
    exists = inside[:, None] & (maps >= 0) & (maps < of.maps)
    return tl.load(pointers[:, None] + along, mask=exists, other=0).to(kind)


@jit
def store_group(group, first, inside, values, of: tl.constexpr):
    """Writes each lane's tuple of `width` numbers, as far as these maps exist."""
    along = tl.arange(0, of.width)[None, :]
    exists = inside[:, None] & (first[:, None] + along < of.maps)
    tl.store(group[:, None] + along, join(values, of.width, of.block), mask=exists)


@jit
def split(tile, width: tl.constexpr, block: tl.constexpr):
    """(block, width) as a tuple of `width` times (block,): no more than names for registers."""
    if width == 1:
        return (tl.reshape(tile, (block,)),)
    else:
        pair = tl.split(tl.reshape(tile, (block, width // 2, 2)))
        evens = split(pair[0], width // 2, block)
        odds = split(pair[1], width // 2, block)
        values = (evens[0], odds[0])
        for i in tl.static_range(1, width // 2):
            values = values + (evens[i], odds[i])
        return values


@jit
def join(values, width: tl.constexpr, block: tl.constexpr):
    """The inverse of `split`."""
    if width == 1:
        return tl.reshape(values[0], (block, 1))
    else:
        evens = join(values[0::2], width // 2, block)
        odds = join(values[1::2], width // 2, block)
        return tl.reshape(tl.join(evens, odds), (block, width))


@jit
def normalise(values, k, alpha, beta, of: tl.constexpr):
    """y of the `width` numbers in the middle of width + 2 half."""
    width: tl.constexpr = of.width
    scales = _scales(values, k, alpha, of.half, width)
    result = ()
    for i in tl.static_range(width):
        power = _inverse_power(scales[i], beta, of.roots)
        result = result + (values[i + of.half] * power[0],)
    return result


@jit
def gradient(values, slopes, k, alpha, beta, of: tl.constexpr):
    """dx of the `width` numbers in the middle of width + 4 half, from the gradient of the width + 2 half y there."""
    width: tl.constexpr = of.width
    half: tl.constexpr = of.half
    scales = _scales(values, k, alpha, half, width + 2 * half)
    scaled = ()
    shares = ()
    for i in tl.static_range(width + 2 * half):
        power = _inverse_power(scales[i], beta, of.roots)
        slope = slopes[i] * power[0]
        scaled = scaled + (slope,)
        shares = shares + (slope * values[i + half] * power[1],)
    others = _window_sums(shares, half, width)
    result = ()
    for i in tl.static_range(width):
        result = result + (scaled[i + half] - 2 * alpha * beta * values[i + 2 * half] * others[i],)
    return result


@jit
def _scales(values, k, alpha, half: tl.constexpr, n: tl.constexpr):
    """S of the n numbers in the middle of n + 2 half."""
    squares = ()
    for i in tl.static_range(n + 2 * half):
        squares = squares + (values[i] * values[i],)
    sums = _window_sums(squares, half, n)
    result = ()
    for i in tl.static_range(n):
        result = result + (k + alpha * sums[i],)
    return result


@jit
def _window_sums(values, half: tl.constexpr, n: tl.constexpr):
    """n sums over 2 half + 1 neighbours each, of n + 2 half numbers."""
    sums = ()
    for i in tl.static_range(n):
        total = values[i]
        for j in tl.static_range(1, 2 * half + 1):
            total = total + values[i + j]
        sums = sums + (total,)
    return sums


@jit
def _inverse_power(scale, beta, roots: tl.constexpr):
    """scale^-beta and 1 / scale."""
    if roots:
        root = tl.rsqrt(scale)
        return root * tl.sqrt(root), root * root
    else:
        return tl.exp2(-beta * tl.log2(scale)), 1.0 / scale
