# mypy: disable-error-code="no-untyped-def, assignment, misc"
"""ReLU, local response normalisation and 3x3 max-pooling with stride 2 as one, in one pass over memory each way.

The order is the paper's (ReLU, norm, pool: `relu_before`), the released net's (norm, pool, ReLU: `relu_after`), or
without ReLU. Of a window's equal values the first in reading order counts, and NaN is larger than all, as in torch.

Plain form: relu, `plain_response_norm` (plain.py) on each group of maps, max_pool, relu.

Traffic: forward reads x, and writes the pooled values and, for the gradient, a byte each: which of its window's 9
pixels it was. Backward reads x, the bytes and g, and writes dx. For AlexNet's norm1 and pool1 (1024 x 96 x 55 x 55,
bf16) that's 0.81 and 1.40 GB, at 4.3 TB/s (an H200's copy) 0.19 and 0.33 ms; for norm2 and pool2 (1024 x 256 x 27 x 27)
0.51 and 0.90 GB, 0.12 and 0.21 ms (computed). The bytes are 5 to 9 % of it; without them backward would normalise 25
pixels for each.

How: forward, a lane goes down a strip of windows, two side by side, with a group of maps (norm.py). It normalises each
row of 5 pixels once and keeps its largest values, as the row may belong to the next window too. Backward, a lane has
2 x 2 pixels, which lie in 4 windows at most, and gathers from these: nothing is added atomically, so the bits are
always the same.
"""

import torch
from torch import Tensor

from convnet.kernels.cuda import norm
from convnet.kernels.cuda.norm import gradient, group_of, load_span, normalise, store_group
from convnet.kernels.cuda.triton import LANES, jit, launch, tl
from convnet.kernels.plain import Block, empty

SIZE, STRIDE = 3, 2  # pixels, of the windows
ROWS = 8  # windows of a strip, at most


def available(x: Tensor, block: Block) -> bool:
    """Whether `forward` takes this tensor (N, C, H, W) and what is to be done to it."""
    if not block.n or x.ndim != 4 or not norm.available(x, block.n, block.groups):
        return False
    pools = (block.size, block.stride) == (SIZE, STRIDE) and min(x.shape[2:]) >= SIZE - block.ceil
    return pools or _alone(block)


def forward(x: Tensor, block: Block, keep: bool) -> tuple[Tensor, Tensor]:
    """The pooled maps, channels-last and in `x`'s dtype; with `keep` also uint8 of their shape: which pixel of its
    window, 0 to 8; else an empty tensor."""
    y = empty(x, block)
    places = torch.empty_like(y, dtype=torch.uint8) if keep else y.new_empty(0, dtype=torch.uint8)
    if _alone(block):
        return norm.forward(x, block), places
    of, (height, width) = norm.sizes(block.n, block.beta, x.shape[1], block.groups), y.shape[2:]
    strips, pairs = -(-height // ROWS), -(-width // 2)
    blocks = -(-strips * pairs * block.groups * of.groups // LANES)
    if y.numel():
        sides = (*x.shape[2:], height, width, strips, pairs)
        constants = (block.k, block.alpha, block.beta, of, _order(block), block.ceil, -(-height // strips))
        launch(_norm_pool_forward, (len(x), blocks), x.device, x, y, places if keep else None, *sides, *constants)
    return y, places


def backward(x: Tensor, places: Tensor, g: Tensor, block: Block) -> Tensor:
    """The gradient of x from that of the result."""
    if _alone(block):
        return norm.backward(x, g, block)
    g = g.contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    of, (height, width) = norm.sizes(block.n, block.beta, x.shape[1], block.groups), x.shape[2:]
    down, across = -(-height // 2), -(-width // 2)
    blocks = -(-down * across * block.groups * of.groups // LANES)
    if x.numel():
        sides = (height, width, *g.shape[2:], down, across)
        constants = (block.k, block.alpha, block.beta, of, _order(block))
        launch(_norm_pool_backward, (len(x), blocks), x.device, x, places, g, dx, *sides, *constants)
    return dx


def _alone(block: Block) -> bool:
    """Whether the norm is all that is asked for."""
    return block.size == block.stride == 1 and not (block.relu_before or block.relu_after)


def _order(block: Block) -> int:
    """0: ReLU before the norm, 1: after the pooling, 2: none."""
    return 0 if block.relu_before else 1 if block.relu_after else 2


# Triton; of: norm.Sizes, order: of the ReLU (`_order`), h and w: rows and columns, H2 and W2: the pooled maps' sides


@jit
def _norm_pool_forward(
    x,
    y,
    places,
    H,
    W,
    H2,
    W2,
    strips,
    pairs,
    k,
    alpha,
    beta,
    of: tl.constexpr,
    order: tl.constexpr,
    ceil: tl.constexpr,
    rows: tl.constexpr,
):
    C: tl.constexpr = of.columns * of.maps
    picture = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * of.block + tl.arange(0, of.block)
    first, place = group_of(lane, of)
    pair = lane // (of.columns * of.groups)
    h, w = pair // pairs * rows, pair % pairs * 2
    inside = pair < strips * pairs
    pixels = x + picture * H * W * C + (2 * h * W + 2 * w) * C + place
    place += picture * H2 * W2 * C + (h * W2 + w) * C

    left, left_at = _nothing(of)
    right, right_at = left, left_at
    for row in range(2 * rows + 1):
        exists = inside & (2 * h + row < H)
        a, a_at, b, b_at = _row(pixels + row * W * C, first, exists, W - 2 * w, k, alpha, beta, C, of, order, ceil)
        shift = 6 - 3 * (row % 2)
        left, left_at = _larger(left, left_at, a, a_at, shift, of.width)
        right, right_at = _larger(right, right_at, b, b_at, shift, of.width)
        if row % 2 == 0:  # a window ends, and the next begins
            exists = inside & (row > 0) & (h + row // 2 <= H2)
            window = place + (row // 2 - 1) * W2 * C
            _store(y, places, window, first, exists, left, left_at, of, order)
            _store(y, places, window + C, first, exists & (w + 1 < W2), right, right_at, of, order)
            left, left_at, right, right_at = a, a_at, b, b_at


@jit
def _nothing(of: tl.constexpr):
    """A group of values that is smaller than any, and its places."""
    width: tl.constexpr = of.width
    block: tl.constexpr = of.block
    values = ()
    at = ()
    for _ in tl.static_range(width):
        values = values + (tl.full((block,), float("-inf"), tl.float32),)
        at = at + (tl.full((block,), 0, tl.int32),)
    return values, at


@jit
def _row(
    pixels,
    first,
    inside,
    room,
    k,
    alpha,
    beta,
    C: tl.constexpr,
    of: tl.constexpr,
    order: tl.constexpr,
    ceil: tl.constexpr,
):
    """Of 5 pixels in a row the largest values of the first 3 and of the last 3, each with its place; `room` exist."""
    width: tl.constexpr = of.width
    zeros = _nothing(of)[1]
    values = ()
    for dw in tl.static_range(5):
        exists = inside & (dw < room)
        span = load_span(pixels + dw * C, first, exists, of.half, of.halo, tl.float32, of)
        if order == 0:
            span = _rectified(span, width + 2 * of.half)
        value = normalise(span, k, alpha, beta, of)
        values = values + (_rounded(value, exists, pixels.dtype.element_ty, ceil, width),)
    left, left_at = _larger(values[0], zeros, values[1], zeros, 1, width)
    left, left_at = _larger(left, left_at, values[2], zeros, 2, width)
    right, right_at = _larger(values[2], zeros, values[3], zeros, 1, width)
    right, right_at = _larger(right, right_at, values[4], zeros, 2, width)
    return left, left_at, right, right_at


@jit
def _rounded(values, exists, kind: tl.constexpr, ceil: tl.constexpr, n: tl.constexpr):
    """n numbers as the plain form has them, so that the same ones are equal; of a pixel outside of the picture -inf."""
    result = ()
    for i in tl.static_range(n):
        value = values[i].to(kind).to(tl.float32)
        if ceil:
            value = tl.where(exists, value, float("-inf"))
        result = result + (value,)
    return result


@jit
def _larger(values, at, others, others_at, shift, n: tl.constexpr):
    """Of n pairs the larger value and its place: the first, unless the other is larger or NaN."""
    result = ()
    result_at = ()
    for i in tl.static_range(n):
        other_wins = (others[i] > values[i]) | (others[i] != others[i])
        result = result + (tl.where(other_wins, others[i], values[i]),)
        result_at = result_at + (tl.where(other_wins, others_at[i] + shift, at[i]),)
    return result, result_at


@jit
def _rectified(values, n: tl.constexpr):
    """max(0, x) of n numbers; NaN stays."""
    result = ()
    for i in tl.static_range(n):
        result = result + (tl.maximum(values[i], 0.0, propagate_nan=tl.PropagateNan.ALL),)
    return result


@jit
def _store(y, places, place, first, inside, values, at, of: tl.constexpr, order: tl.constexpr):
    width: tl.constexpr = of.width
    if order == 1:
        values = _rectified(values, width)
    store_group(y + place, first, inside, values, of)
    if places is not None:
        store_group(places + place, first, inside, at, of)


@jit
def _norm_pool_backward(
    x, places, g, dx, H, W, H2, W2, down, across, k, alpha, beta, of: tl.constexpr, order: tl.constexpr
):
    C: tl.constexpr = of.columns * of.maps
    picture = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * of.block + tl.arange(0, of.block)
    first, place = group_of(lane, of)
    square = lane // (of.columns * of.groups)
    h, w = square // across, square % across
    inside = h < down
    pixel = picture * H * W * C + (2 * h * W + 2 * w) * C + place

    window = picture * H2 * W2 * C + (h * W2 + w) * C + place  # that begins in this square; and the three before
    own, own_at = _window(g, places, window, first, inside & (h < H2) & (w < W2), of)
    left, left_at = _window(g, places, window - C, first, inside & (h < H2) & (w > 0), of)
    above, above_at = _window(g, places, window - W2 * C, first, inside & (h > 0) & (w < W2), of)
    corner, corner_at = _window(g, places, window - (W2 + 1) * C, first, inside & (h > 0) & (w > 0), of)
    n: tl.constexpr = of.width + 2 * of.half
    for dh in tl.static_range(2):
        for dw in tl.static_range(2):
            slopes = _chosen(own, own_at, 3 * dh + dw, n)
            if dw == 0:
                slopes = _sum(slopes, _chosen(left, left_at, 3 * dh + 2, n), n)
            if dh == 0:
                slopes = _sum(slopes, _chosen(above, above_at, 6 + dw, n), n)
            if dh + dw == 0:
                slopes = _sum(slopes, _chosen(corner, corner_at, 8, n), n)
            exists = inside & (2 * h + dh < H) & (2 * w + dw < W)
            at = pixel + (dh * W + dw) * C
            values = load_span(x + at, first, exists, 2 * of.half, 2 * of.halo, tl.float32, of)
            slopes = _slopes(values, slopes, k, alpha, beta, of, order)
            store_group(dx + at, first, exists, slopes, of)


@jit
def _window(g, places, window, first, inside, of: tl.constexpr):
    """A window's gradient and the place of its largest value, of a group and `half` maps on both sides."""
    slopes = load_span(g + window, first, inside, of.half, of.halo, tl.float32, of)
    return slopes, load_span(places + window, first, inside, of.half, of.halo, tl.int32, of)


@jit
def _chosen(slopes, at, place, n: tl.constexpr):
    """n gradients, 0 where the window's largest value is in another place."""
    result = ()
    for i in tl.static_range(n):
        result = result + (tl.where(at[i] == place, slopes[i], 0.0),)
    return result


@jit
def _sum(a, b, n: tl.constexpr):
    result = ()
    for i in tl.static_range(n):
        result = result + (a[i] + b[i],)
    return result


@jit
def _slopes(values, slopes, k, alpha, beta, of: tl.constexpr, order: tl.constexpr):
    """The gradient of a group of x, from that of y there and `half` maps on both sides."""
    width: tl.constexpr = of.width
    half: tl.constexpr = of.half
    if order == 0:
        values = _rectified(values, width + 4 * half)
    if order == 1:
        slopes = _gated(slopes, values, half, width + 2 * half)
    slopes = gradient(values, slopes, k, alpha, beta, of)
    if order == 0:
        slopes = _gated(slopes, values, 2 * half, width)
    return slopes


@jit
def _gated(slopes, values, skip: tl.constexpr, n: tl.constexpr):
    """n gradients, 0 where the value isn't positive; the first one's is values[skip]."""
    result = ()
    for i in tl.static_range(n):
        result = result + (tl.where(values[i + skip] <= 0, 0.0, slopes[i]),)
    return result
