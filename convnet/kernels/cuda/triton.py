# mypy: disable-error-code="no-untyped-def"
"""What do the kernels in Triton stand on? Triton, where it is installed. Who imports this loads it: see available.py.

Where `available` of an operation's file says no (another device, another dtype, no Triton), its plain form serves.
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the plain forms serve
    triton, tl = None, SimpleNamespace(constexpr=int)

from convnet.kernels.cuda import INTERPRETED

__all__ = ["INTERPRETED", "tl", "triton"]

LANES = 128  # of a program: four warps


class Kernel(Protocol):
    """A function as Triton compiles it: `kernel[grid](...)` starts it, and kernels call each other."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...

    def __call__(self, *arguments: object) -> Any: ...


def jit(function: Any) -> Kernel:
    """`function` as Triton compiles it; where there is no Triton the function itself, which nobody calls."""
    kernel: Kernel = function if triton is None else triton.jit(function)
    return kernel


def launch(kernel: Kernel, grid: tuple[int, ...], device: torch.device, *arguments: object) -> None:
    """Starts a kernel's programs on a device, behind what runs there already."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, enable_fp_fusion=True)  # products and sums as one, which newer Tritons want said


def runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels run there: on CUDA devices, or on the CPU when they are interpreted."""
    return triton is not None and device.type == ("cpu" if INTERPRETED else "cuda")


def doubles(device: torch.device) -> bool:
    """Whether a kernel that is to double a few numbers does so. Raises: whatever Triton does."""
    x = torch.arange(LANES, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    launch(_double, (1,), device, x, y, LANES)
    return torch.equal(y, 2 * x)  # a device synchronisation, once in a process


def is_float(x: Tensor) -> bool:
    """Whether the kernels take such numbers: float32, bfloat16 or float16."""
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def power_of_two(n: int) -> int:
    """The smallest power of two that isn't below n.

    >>> [power_of_two(n) for n in (1, 2, 3, 8, 9)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (n - 1).bit_length()


@jit
def _double(x, y, n: tl.constexpr):
    place = tl.arange(0, n)
    tl.store(y + place, 2 * tl.load(x + place))
