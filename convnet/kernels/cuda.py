"""What do the kernels in Triton stand on? Triton, where it is installed, and the devices that it runs on.

Where `available` of an operation's file says no (another device, another dtype, no Triton), its plain form serves. With
TRITON_INTERPRET=1 in the environment the kernels run on the CPU, step by step in Python: that is how they are tested
where there is no GPU, and for nothing else.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the plain forms serve
    triton, tl = None, SimpleNamespace(constexpr=int)

__all__ = ["INTERPRETED", "LANES", "is_float", "jit", "launch", "power_of_two", "runs_on", "tl", "triton"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LANES = 128  # of a program: four warps


def jit(function: Callable[..., Any]) -> Any:
    """`function` as Triton compiles it; where there is no Triton the function itself, which nobody calls."""
    return function if triton is None else triton.jit(function)


def launch(kernel: Any, grid: tuple[int, ...], place: torch.device, *arguments: object) -> None:
    """Starts a kernel's programs on a device, behind what runs there already."""
    with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        kernel[grid](*arguments, enable_fp_fusion=True)  # products and sums as one, which newer Tritons want said


def runs_on(place: torch.device) -> bool:
    """Whether Triton's kernels run there: on CUDA devices, or on the CPU when they are interpreted."""
    return triton is not None and place.type == ("cpu" if INTERPRETED else "cuda")


def is_float(x: Tensor) -> bool:
    """Whether the kernels take such numbers: float32, bfloat16 or float16."""
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def power_of_two(n: int) -> int:
    """The smallest power of two that isn't below n.

    >>> [power_of_two(n) for n in (1, 2, 3, 8, 9)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (n - 1).bit_length()
