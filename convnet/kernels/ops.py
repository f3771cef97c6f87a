"""The nets' operations as torch knows them, `torch.ops.convnet`: nets call these functions and know no kernels.

    norm_pool     ReLU, response normalisation and max-pooling as a `Block` says   in C, in Triton
    dropout       from a counter                                                   in C, in Triton
    lenet5        LeNet-5's features from its pictures                             in C
    to_blocks     pictures as blocks of pixels                                     in C
    linear        a fully connected layer on few pictures                          in oneDNN's order
    tiled_conv    a 3 x 3 or 5 x 5 convolution                                     Winograd's, in C
    local         a locally connected layer                                        in C

An operation is composed of torch's own operations and of kernels (`..._forward`, `..._backward`), which are registered
for the CPU and CUDA (LeNet-5's are not: where anybody looks on, it is its plain form). Where no kernel serves (another
device or dtype, no compiler), it is its plain form.
torch.jit.trace, torch.export and torch.compile see one operation. Transforms of torch.func (grad, vmap, jvp) get the
plain form, and so do second derivatives and who looks at torch's functions one by one: torch.fx, function modes, ONNX.
"""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from convnet.kernels import linear as linear_cpu
from convnet.kernels import local, winograd
from convnet.kernels.cpu import blocks as blocks_cpu
from convnet.kernels.cpu import dropout as dropout_cpu
from convnet.kernels.cpu import lenet5 as lenet5_cpu
from convnet.kernels.cpu import norm_pool as norm_pool_cpu
from convnet.kernels.cpu.response_norm import blocked_response_norm
from convnet.kernels.cuda import available as on_cuda
from convnet.kernels.dropout import plain_dropout
from convnet.kernels.plain import (
    Block,
    Context,
    empty,
    plain_lenet5,
    plain_norm_pool,
    plain_response_norm,
    plain_to_blocks,
)
from convnet.kernels.register import OPS, kernel, operation

Fields = tuple[int, float, float, float, int, int, int, bool, bool, bool]  # of a `Block`


def norm_pool(x: Tensor, block: Block) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W') in `x`'s dtype: what `block` says; the norm's sums are float32 or better."""
    if layer_by_layer(x):
        return plain_norm_pool(x, block, response_norm)
    y: Tensor = OPS.norm_pool(x, *block.fields)
    return y


def response_norm(x: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """Local response normalisation across maps, of (N, C, ...); `x`'s shape and dtype; the sums are float32 or better.

    Map i is divided by (k + alpha * sum of x_j^2 over the maps j = i - n//2 .. i + n//2 that exist)^beta. For odd n
    that's n maps; for even n it's n + 1, as the paper's formula says when n/2 is whole.

    torch's `F.local_response_norm` divides alpha by n, so that its `alpha` is n times this one: the paper's 1e-4 is
    torch's 5e-4. For even n its window has n maps, and it raises on bfloat16 on the CPU.

    Paper: AlexNet 3.3.
    """
    if has_torch_function_unary(x):  # who looks inside sees one layer, as with torch's own
        seen: Tensor = handle_torch_function(response_norm, (x,), x, n, k, alpha, beta)
        return seen
    if layer_by_layer(x):
        return plain_response_norm(x, n, k, alpha, beta)
    maps = x if x.ndim == 4 else x.unsqueeze(2).flatten(2).unsqueeze(3)
    y: Tensor = OPS.norm_pool(maps, *Block(n, k, alpha, beta).fields)
    return y if x.ndim == 4 else y.reshape(x.shape)


def dropout(x: Tensor, p: float, state: Tensor, first: int = 0) -> Tensor:
    """`plain_dropout`: `x` with each element 0 with probability p, and otherwise divided by 1 - p."""
    y: Tensor = plain_dropout(x, p, state, first) if layer_by_layer(x) else OPS.dropout(x, p, state, first)
    return y


def lenet5(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> Tensor:
    """`plain_lenet5`: LeNet-5's features (N, 84) of pictures (N, C, 32, 32)."""
    form = plain_lenet5 if layer_by_layer(images) else OPS.lenet5
    features: Tensor = form(images, weights, outputs, inputs)
    return features


def lenet5_step(
    images: Tensor, labels: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor, codes: Tensor, j: float
) -> tuple[Tensor, Tensor, list[Tensor]] | None:
    """The mean loss of eq. 9, how many pictures are wrong, and the weights' gradients, without autograd; None where no
    kernel serves."""
    if not torch.is_grad_enabled() or not lenet5_cpu.available(images, weights, outputs, inputs):
        return None
    if codes.dtype != torch.float32 or codes.device != images.device or len(codes) > lenet5_cpu.CLASSES:
        return None
    known = lenet5_cpu.told(images, weights, outputs, inputs)
    features, kept = lenet5_cpu.forward(images, known)
    loss, wrong, slope = lenet5_cpu.loss(features, codes, labels, j)
    return loss, wrong, lenet5_cpu.backward(known, kept, slope)


def to_blocks(images: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """`plain_to_blocks`: pictures (N, C, H, W) as (N, stride^2 C, rows, columns), channels-last."""
    form = plain_to_blocks if layer_by_layer(images) else OPS.to_blocks
    blocks: Tensor = form(images, stride, rows, columns)
    return blocks


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Features (N, D) times (D', D) and plus (D',) -> (N, D')."""
    if bias is None or layer_by_layer(x) or not linear_cpu.available(x, weight):
        return F.linear(x, weight, bias)
    y: Tensor = OPS.linear(x, weight, bias)
    return y


def tiled_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1) -> Tensor:
    """(N, C, H, W) and weight (K, C, s, s), plus (K,) -> (N, K, H', W'): F.conv2d, where `winograd.serves`."""
    form = winograd.plain if layer_by_layer(x) else OPS.tiled_conv
    y: Tensor = form(x, weight, bias, padding, stride)
    return y


def locally_connected(x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0) -> Tensor:
    """(N, C, H, H), weights (h, h, K, C, s, s), bias (K, h, h) -> (N, K, h, h): at each place a product of its own."""
    if has_torch_function_unary(x):  # as in `response_norm`
        seen: Tensor = handle_torch_function(locally_connected, (x,), x, weight, bias, padding=padding)
        return seen
    y: Tensor = (local.plain if layer_by_layer(x) else OPS.local)(x, weight, bias, padding)
    return y


def layer_by_layer(x: Tensor) -> bool:
    """Whether someone looks at torch's functions one by one, or writes them as ONNX, which knows none of ours."""
    onnx = None if torch.compiler.is_dynamo_compiling() else sys.modules.get("torch.onnx")
    if onnx is not None and onnx.is_in_onnx_export():
        return True
    return has_torch_function_unary(x) and not torch.compiler.is_exporting()  # which has a function mode of its own


def is_proxy(x: object) -> bool:
    """Whether torch.fx has put a proxy in a tensor's place, which has neither shape nor device."""
    return has_torch_function_unary(x) and not isinstance(x, Tensor)


# ReLU, response norm, pooling

FIELDS = "int n, float k, float alpha, float beta, int groups, int size, int stride, bool ceil, bool relu_before"
FIELDS += ", bool relu_after"  # of `Block`


class _NormPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, *fields: *Fields) -> Tensor:
        y: Tensor
        y, places = OPS.norm_pool_forward(x, *fields, True)
        ctx.save_for_backward(x, places)
        ctx.constants = fields
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, places = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone will differentiate the gradient
            (dx,) = torch.autograd.grad(plain_norm_pool(x, Block(*ctx.constants)), x, grads[0], create_graph=True)
        else:
            dx = OPS.norm_pool_backward(x, places, grads[0], *ctx.constants)
        return dx, *[None] * len(ctx.constants)


_apply_norm_pool: Callable[..., Tensor] = _NormPool.apply


def _norm_pool(x: Tensor, *fields: *Fields) -> Tensor:
    block = Block(*fields)
    if _norm_pool_kernels(x, block) is None:
        return plain_norm_pool(x, block, blocked_response_norm if x.device.type == "cpu" else None)
    x = x.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() and x.requires_grad:
        return _apply_norm_pool(x, *fields)
    y: Tensor = OPS.norm_pool_forward(x, *fields, False)[0]
    return y


def _norm_pool_kernels(x: Tensor, block: Block) -> ModuleType | None:
    """The file whose `forward` and `backward` serve here, or None."""
    if on_cuda.serve(x.device):
        from convnet.kernels.cuda import norm_pool as norm_pool_cuda  # which loads Triton

        if norm_pool_cuda.available(x, block):
            return norm_pool_cuda
    return norm_pool_cpu if norm_pool_cpu.available(x, block) else None


def _norm_pool_forward(x: Tensor, *arguments: *tuple[*Fields, bool]) -> tuple[Tensor, Tensor]:
    block, keep = Block(*arguments[:-1]), arguments[-1]
    kernels = _norm_pool_kernels(x, block)
    assert kernels is not None
    pooled: tuple[Tensor, Tensor] = kernels.forward(x, block, keep)
    return pooled


def _norm_pool_backward(x: Tensor, places: Tensor, g: Tensor, *fields: *Fields) -> Tensor:
    block = Block(*fields)
    kernels = _norm_pool_kernels(x, block)
    assert kernels is not None
    dx: Tensor = kernels.backward(x, places, g, block)
    return dx


def _norm_pool_fake(x: Tensor, *arguments: *tuple[*Fields, bool]) -> tuple[Tensor, Tensor]:
    block, keep = Block(*arguments[:-1]), arguments[-1]
    y = empty(x, block)
    return y, torch.empty_like(y, dtype=torch.uint8) if keep else y.new_empty(0, dtype=torch.uint8)


def _plain_norm_pool(x: Tensor, *fields: *Fields) -> Tensor:
    return plain_norm_pool(x, Block(*fields))


operation(f"norm_pool(Tensor x, {FIELDS}) -> Tensor", _norm_pool, _plain_norm_pool)
kernel(f"norm_pool_forward(Tensor x, {FIELDS}, bool keep) -> (Tensor, Tensor)", _norm_pool_forward, _norm_pool_fake)
kernel(
    f"norm_pool_backward(Tensor x, Tensor places, Tensor g, {FIELDS}) -> Tensor",
    _norm_pool_backward,
    lambda x, *others: torch.empty_like(x, memory_format=torch.channels_last),
)


# Dropout


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(state)
        ctx.constants = p, first
        y: Tensor = OPS.dropout_forward(x, p, state, first)
        return y

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        p, first = ctx.constants
        return OPS.dropout(grads[0], p, ctx.saved_tensors[0], first), None, None, None  # which has a gradient too


_apply_dropout: Callable[..., Tensor] = _Dropout.apply


def _dropout(x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
    if _dropout_kernel(x) is None:
        return plain_dropout(x, p, state, first)
    return _apply_dropout(x, p, state, first)


def _dropout_kernel(x: Tensor) -> ModuleType | None:
    """The file whose `forward` serves here, or None."""
    if on_cuda.serve(x.device):
        from convnet.kernels.cuda import dropout as dropout_cuda  # which loads Triton

        if dropout_cuda.available(x):
            return dropout_cuda
    return dropout_cpu if dropout_cpu.available(x) else None


def _dropout_forward(x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
    kernel = _dropout_kernel(x)
    assert kernel is not None
    y: Tensor = kernel.forward(x, p, state, first)
    return y


operation("dropout(Tensor x, float p, Tensor state, int first) -> Tensor", _dropout, plain_dropout)
kernel(
    "dropout_forward(Tensor x, float p, Tensor state, int first) -> Tensor",
    _dropout_forward,
    lambda x, *others: torch.empty_like(x, memory_format=torch.contiguous_format),
)


# LeNet-5


class _LeNet5(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, images: Tensor, outputs: Tensor, inputs: Tensor, *weights: Tensor) -> Tensor:
        features, kept = lenet5_cpu.forward(images, lenet5_cpu.told(images, weights, outputs, inputs))
        ctx.save_for_backward(images, outputs, inputs, kept, *weights)
        return features

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        images, outputs, inputs, kept, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        again = torch.is_grad_enabled()  # someone will differentiate the gradient
        if again or not torch._C._has_storage(grads[0]):  # or asks for many at once
            some = [weight for weight, wants in zip(weights, wanted, strict=True) if wants]
            with torch.enable_grad():
                features = plain_lenet5(images, weights, outputs, inputs)
            found = iter(torch.autograd.grad(features, some, grads[0], create_graph=again))
            return None, None, None, *(next(found) if wants else None for wants in wanted)
        gradients = lenet5_cpu.backward(lenet5_cpu.told(images, weights, outputs, inputs), kept, grads[0])
        return None, None, None, *(g if wants else None for g, wants in zip(gradients, wanted, strict=True))


_apply_lenet5: Callable[..., Tensor] = _LeNet5.apply


def _lenet5(images: Tensor, weights: Sequence[Tensor], outputs: Tensor, inputs: Tensor) -> Tensor:
    if lenet5_cpu.available(images, weights, outputs, inputs):
        return _apply_lenet5(images, outputs, inputs, *weights)
    return plain_lenet5(images, weights, outputs, inputs)


operation("lenet5(Tensor images, Tensor[] weights, Tensor outputs, Tensor inputs) -> Tensor", _lenet5, plain_lenet5)


# Blocks of pixels; fully connected layers


def _to_blocks(images: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    differentiated = torch.is_grad_enabled() and images.requires_grad
    form = plain_to_blocks if differentiated or not blocks_cpu.available(images) else OPS.to_blocks_forward
    blocks: Tensor = form(images, stride, rows, columns)
    return blocks


def _to_blocks_fake(images: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    return images.new_empty(len(images), rows, columns, stride**2 * images.shape[1]).permute(0, 3, 1, 2)


operation("to_blocks(Tensor images, int stride, int rows, int columns) -> Tensor", _to_blocks, plain_to_blocks)
kernel(
    "to_blocks_forward(Tensor images, int stride, int rows, int columns) -> Tensor", blocks_cpu.blocks, _to_blocks_fake
)
operation("linear(Tensor x, Tensor weight, Tensor bias) -> Tensor", linear_cpu.linear, F.linear)
