"""Batch norm over all processes that share a batch: each channel's mean and variance are those of the whole batch.

torch's SyncBatchNorm does so on GPUs only, and lets no process be without a picture. The sums are float64, so that a
variance can be the mean of the squares less the square of the mean; 16 bytes a channel are sent in each pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnet.io.processes import Processes
from convnet.kernels.plain import wide


class _Normalize(torch.autograd.Function):
    """(x - mean) / deviation of x (N, C, ...) over all processes; also returns mean, variance and how many values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, n_pictures: int, sharing: Processes) -> tuple[Tensor, ...]:
        variance, mean = (each.double() for each in torch.var_mean(wide(x), _all_but_channels(x), correction=0))
        n = n_pictures * x[0, 0].numel()  # 0 of a process that stands in with a picture that isn't of the batch
        sums = sharing.sum(torch.cat([n * mean, n * (variance + mean.square()), mean.new_full((1,), n)]))
        (mean, squares), total = (sums[:-1] / sums[-1]).chunk(2), sums[-1]
        variance = (squares - mean.square()).clamp(min=0)
        scale = (variance + eps).rsqrt()
        y = ((wide(x) - _of_channels(mean, x)) * _of_channels(scale, x)).to(x.dtype)
        ctx.save_for_backward(y, scale, total)
        ctx.sharing, ctx.is_of_batch = sharing, n > 0
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (y, scale, total), grad = ctx.saved_tensors, wide(grads[0])
        sums = torch.cat([each.sum(_all_but_channels(y), dtype=torch.float64) for each in (grad, grad * y)])
        shift, slope = (_of_channels(each, y) for each in (ctx.sharing.sum(sums) / total).chunk(2))
        x_grad = (grad - shift - y * slope) * _of_channels(scale, y)
        return (x_grad * ctx.is_of_batch).to(y.dtype), None, None, None


_normalize: Callable[..., tuple[Tensor, ...]] = _Normalize.apply


class SyncedNorm(_BatchNorm):
    """A batch norm with the parameters and buffers of another one. pictures: of the batch, in the next pass here."""

    def __init__(self, norm: _BatchNorm, sharing: Processes) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias, self.sharing, self.pictures = norm.weight, norm.bias, sharing, 0
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        y, mean, variance, n = _normalize(x, self.eps, self.pictures, self.sharing)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1).clamp(min=1)).to(self.running_var), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        if not self.affine:
            return y
        return (wide(y) * _of_channels(self.weight, x) + _of_channels(self.bias, x)).to(x.dtype)


def has_batch_norm(net: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def sync(net: nn.Module, sharing: Processes) -> list[SyncedNorm]:
    """Puts a `SyncedNorm` in each batch norm's place, where several processes share a batch; returns them."""
    if sharing.n == 1:
        return []
    modules = net.named_modules()
    synced = {name: SyncedNorm(each, sharing) for name, each in modules if isinstance(each, _BatchNorm)}
    for name, norm in synced.items():
        net.set_submodule(name, norm)
    return [*synced.values()]


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    """(C,) in the precision in which x is computed, to be used with x (N, C, ...)."""
    return values.to(wide(x.new_empty(0)).dtype).view(1, -1, *[1] * (x.ndim - 2))
