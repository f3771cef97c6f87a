# mypy: disable-error-code="no-untyped-def"
"""Dropout from a counter on CUDA, in Triton. The plain form is `plain_dropout` of dropout.py.

Traffic: forward reads x and writes y, backward reads g and writes dx: in bf16 4 bytes an element each way, which is 4
microseconds for AlexNet's fc6 at 1024 pictures and 4.3 TB/s (computed). Torch's own keeps a byte an element besides.
The state is read from memory, so that a captured CUDA graph draws anew at each step.
"""

import torch
from torch import Tensor

from convnet.kernels.cuda.triton import is_float, jit, launch, runs_on, tl
from convnet.kernels.dropout import scale, threshold

BLOCK = 1024  # elements of a program


def available(x: Tensor) -> bool:
    """Whether `forward` takes this tensor."""
    return runs_on(x.device) and is_float(x)


def forward(x: Tensor, p: float, state: Tensor, first: int) -> Tensor:
    """`plain_dropout`, contiguous, of what `available` says yes to."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        grid = (-(-x.numel() // BLOCK),)
        launch(_dropout, grid, x.device, x, y, state, x.numel(), first, threshold(p), scale(p), BLOCK)
    return y


# Triton


@jit
def _dropout(x, y, state, n, first, threshold, scale, block: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = position < n
    bits = _mixed(tl.load(state).to(tl.uint64) ^ _mixed((position + first).to(tl.uint64) + 1))
    keep = (bits >> 11) >= threshold
    value = tl.load(x + position, mask=inside, other=0).to(tl.float32) * scale
    tl.store(y + position, tl.where(keep, value, 0.0), mask=inside)


@jit
def _mixed(x):
    """splitmix64; the numbers are GOLDEN, FIRST and SECOND of io/rng.py and kernels/dropout.py."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
