"""Compiles every kernel for a GPU, without one: run by test_kernels.py in its own process.

    python tests/kernel_compiler.py [80 | 90 | ...]

Each launch at the sizes of the nets becomes a compilation, by Triton's own way from the arguments. It prints a line for
each: the kernel's name and its bytes of shared memory.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from convnet.kernels.cuda import augment as augmentation
from convnet.kernels.cuda import dropout as dropout_cuda
from convnet.kernels.cuda import norm, norm_pool
from convnet.kernels.cuda import update as sgd
from convnet.kernels.plain import Block


class Absent:
    """What Triton asks of a GPU before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def maps(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)


def launch_all() -> None:
    """The nets' sizes; for fp32 other instructions are chosen, so one of each kind is compiled in that, too."""
    paper = Block(5, 2.0, 1e-4, 0.75, size=3, stride=2, relu_before=True)
    released = replace(paper, groups=2, ceil=True, relu_before=False, relu_after=True)
    for x, block in (
        (maps(1, 96, 55, 55), paper),
        (maps(1, 256, 27, 27), released),
        (maps(1, 6, 7, 7, dtype=torch.float32), replace(paper, beta=0.5, relu_before=False)),
    ):
        norm.backward(x, norm.forward(x, block), block)
        y, places = norm_pool.forward(x, block, True)
        norm_pool.backward(x, places, y, block)
    dropout_cuda.forward(torch.empty(1, 9216, dtype=torch.bfloat16), 0.5, torch.zeros((), dtype=torch.int64), 0)
    buffers = [torch.empty(4096, dtype=dtype) for dtype in [torch.float32] * 2 + [torch.bfloat16] * 2]
    sgd.step(*buffers, torch.zeros(()), torch.zeros(()))
    sgd.step(*buffers[:2], None, None, torch.zeros(()))
    pictures, how = torch.empty(2, 256, 256, 3, dtype=torch.uint8), [torch.zeros(2, dtype=torch.int64)]
    how += [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool), torch.zeros(2, 3)]
    for mean in (None, torch.zeros(3), torch.zeros(256, 256, 3)):
        augmentation.augment(pictures, *how, mean, crop=224, dtype=torch.bfloat16)
    augmentation.augment(pictures, *how, None, crop=224)
    augmentation.augment(pictures.new_empty(2, 98304), *how, torch.zeros(3), crop=224, dtype=torch.bfloat16)


def main() -> None:
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        kernel = run(self, *arguments, grid=grid, warmup=True, **named)
        print(self.fn.__name__, kernel.metadata.shared, flush=True)

    JITFunction.run = compile_only
    driver.set_active(Absent(int(sys.argv[1]) if len(sys.argv) > 1 else 90))
    launch_all()


if __name__ == "__main__":
    main()
