"""Which kernel does ReLU, response norm and pooling in one pass here? In Triton on CUDA, in C on the CPU, or none."""

from torch import Tensor

from convnet.kernels.cpu import norm_pool as norm_pool_cpu
from convnet.kernels.cuda import available as on_cuda
from convnet.kernels.plain import Block


def in_one_pass(x: Tensor, block: Block) -> Tensor | None:
    """ReLU, response norm and pooling of (N, C, H, W) by a kernel in C or Triton; None where there is none for it."""
    if block.n and on_cuda.take(x):
        from convnet.kernels.cuda import norm, norm_pool  # which load Triton

        if norm_pool.available(x, block):
            return norm_pool.norm_pool(x, block)
        alone = block.size == 1 and not (block.relu_before or block.relu_after)
        if alone and norm.available(x, block.n, block.groups):
            return norm.response_norm(x, block.n, block.k, block.alpha, block.beta, block.groups)
    return norm_pool_cpu.norm_pool(x, block) if norm_pool_cpu.available(x, block) else None
