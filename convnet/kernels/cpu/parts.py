"""Work in C, in as many parts at once as torch has threads."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once
from itertools import pairwise

import torch
from torch import Tensor

from convnet.kernels.cpu.compiled import function


def in_parts(n: int, part: Callable[[int, int], None]) -> None:
    """Calls `part(first, last)` for parts of 0 .. n - 1, one to a thread; C lets them run at once."""
    n_threads = torch.get_num_threads()
    bounds = [n * i // n_threads for i in range(n_threads + 1)]
    parts = [(a, b) for a, b in pairwise(bounds) if a < b]
    others = [_pool(n_threads - 1).submit(part, *each) for each in parts[1:]]
    for each in parts[:1]:
        part(*each)
    for other in others:
        other.result()


def call(name: str, shape: ctypes.Structure, *values: Tensor | int | None) -> None:
    """A function in C of a structure, the places of tensors (None: NULL) and int64 numbers."""
    places = (
        ctypes.c_int64(v) if isinstance(v, int) else ctypes.c_void_p(None if v is None else v.data_ptr())
        for v in values
    )
    function(name)(ctypes.byref(shape), *places)


def pixels(x: Tensor) -> Tensor:
    """Pictures (N, C, H, W), or kernels, as C reads them: float32, the maps of a pixel together."""
    return x.detach().float().contiguous(memory_format=torch.channels_last)


@once
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "convnet-kernel")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
