"""Locally connected layers on the CPU, by products that read the pictures where they lie (cpu/convolutions/local.c).

Plain form: `plain`, one batched product of the windows, which are copied for it. In bfloat16 the kernel computes in
float32 too and rounds its results, where the plain form rounds the weights besides.
"""

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.kernels.cpu import compiled
from convnet.kernels.cpu.parts import call, in_parts, pixels
from convnet.kernels.plain import Context
from convnet.kernels.register import OPS, kernel, operation

WHOLE = 16  # maps and pictures: whole vectors on every processor
AS_READ, BACK = (0, 1, 4, 5, 3, 2), (0, 1, 5, 4, 2, 3)  # weights as (h, w, size, size, maps_in, maps_out); and back


def serves(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> bool:
    """Whether `forward` takes these: (N, C, H, H), and float32 weights (h, h, K, C, s, s) and biases (K, h, h), all on
    the CPU. What doesn't fit together is refused here, as C would read others' memory."""
    if {each.device.type for each in (x, weight, bias)} != {"cpu"} or x.ndim != 4 or padding < 0:
        return False
    n, maps_in, side, width = x.shape
    maps, size = weight.shape[2], weight.shape[-1]
    out = side + 2 * padding - size + 1
    wanted = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    fits = n > 0 and x.dtype in (wanted, torch.bfloat16) and weight.dtype == bias.dtype == torch.float32
    fits = fits and side == width and weight.shape == (out, out, maps, maps_in, size, size)
    return fits and bias.shape == (maps, out, out) and maps % WHOLE == 0 and compiled.available()


def forward(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """(N, C, H, H), weights (h, h, K, C, s, s), bias (K, h, h) -> (N, K, h, h), channels-last."""
    own, lying = pixels(x), _lying(weight)
    y = own.new_empty(len(x), *bias.shape[1:], len(bias)).copy_(bias.detach().permute(1, 2, 0))
    shape = _shape(x, weight, padding)
    in_parts(len(x), lambda first, last: call("local_forward", shape, own, lying, y, first, last))
    return y.permute(0, 3, 1, 2).to(x.dtype)


def backward(x: Tensor, weight: Tensor, g: Tensor, padding: int, of_x: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight from g, that of the results; what isn't wanted is left empty."""
    own, g, lying = pixels(x), pixels(g), _lying(weight)
    shape = _shape(x, weight, padding)
    dx, dweight = empty_gradients(x, weight)
    if of_x:
        lanes = F.pad(g.permute(2, 3, 1, 0), (0, shape.lanes - len(g))).contiguous()
        summed = own.new_zeros(*x.shape[2:], x.shape[1], shape.lanes)
        vectors = shape.lanes // WHOLE
        in_parts(vectors, lambda first, last: call("local_pictures", shape, lanes, lying, summed, first, last))
        dx.copy_(summed[..., : len(x)].permute(3, 2, 0, 1))
    if of_weight:
        dweight.zero_()  # for what is beyond the edges
        in_parts(len(weight) ** 2, lambda first, last: call("local_weights", shape, own, g, dweight, first, last))
    return dx, dweight


def plain(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """The same by torch's operations, in `x`'s dtype."""
    maps, high, wide = bias.shape
    size = weight.shape[-1]
    padded = F.pad(x, (padding,) * 4).permute(2, 3, 0, 1)  # (H, W, N, C): what a place reads lies together
    offsets = ((i, j) for i in range(size) for j in range(size))
    patches = torch.cat([padded[i : i + high, j : j + wide] for i, j in offsets], dim=3).flatten(0, 1)
    kernels = weight.permute(AS_READ).flatten(2, 4).flatten(0, 1)  # (places, size size C, maps)
    biases = bias.permute(1, 2, 0).reshape(high * wide, 1, maps)
    y = torch.baddbmm(biases.to(x.dtype), patches, kernels.to(x.dtype))  # a product for each place
    return y.view(high, wide, -1, maps).permute(2, 3, 0, 1)


def empty_gradients(x: Tensor, weight: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    """What `backward` gives, without its values."""
    dweight = torch.empty_like(weight.permute(AS_READ), memory_format=torch.contiguous_format).permute(BACK)
    return torch.empty_like(x, memory_format=torch.channels_last), dweight


class _Shape(ctypes.Structure):
    """`Local` of local.c."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("n", "side", "maps_in", "maps_out", "size", "padding", "out_side", "lanes")
    )


def _shape(x: Tensor, weight: Tensor, padding: int) -> _Shape:
    lanes = -(-len(x) // WHOLE) * WHOLE
    return _Shape(len(x), x.shape[2], x.shape[1], weight.shape[2], weight.shape[-1], padding, len(weight), lanes)


def _lying(weight: Tensor) -> Tensor:
    return weight.detach().permute(AS_READ).contiguous()


class _Local(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.constants = (padding,)
        y: Tensor = OPS.local_forward(x, weight, bias, padding)
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, bias), (padding,), g, wanted = ctx.saved_tensors, ctx.constants, grads[0], ctx.needs_input_grad
        if torch.is_grad_enabled():  # someone will differentiate the gradient
            inputs = [each for each, wants in zip((x, weight, bias), wanted, strict=False) if wants]
            found = iter(torch.autograd.grad(plain(x, weight, bias, padding), inputs, g, create_graph=True))
            return *(next(found) if wants else None for wants in wanted[:3]), None
        dx, dw = OPS.local_backward(x, weight, g, padding, wanted[0], wanted[1])
        db = g.sum(0, dtype=bias.dtype) if wanted[2] else None
        return dx if wanted[0] else None, dw if wanted[1] else None, db, None


_apply_local: Callable[..., Tensor] = _Local.apply


def _local(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    form = _apply_local if serves(x, weight, bias, padding) else plain
    return form(x, weight, bias, padding)


operation("local(Tensor x, Tensor weight, Tensor bias, int padding) -> Tensor", _local, plain)
kernel(
    "local_forward(Tensor x, Tensor weight, Tensor bias, int padding) -> Tensor",
    forward,
    lambda x, weight, bias, padding: x.new_empty(len(x), *bias.shape[1:], len(bias)).permute(0, 3, 1, 2),
)
kernel(
    "local_backward(Tensor x, Tensor weight, Tensor g, int padding, bool of_x, bool of_weight) -> (Tensor, Tensor)",
    backward,
    empty_gradients,
)
