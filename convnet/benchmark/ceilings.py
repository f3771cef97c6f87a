"""What this machine can do at best: products of large random matrices in bf16 and fp32, and a copy."""

from typing import NamedTuple

import torch

from convnet.benchmark.timing import Work
from convnet.device import choose
from convnet.errors import UsageError

BF16, FP32, COPY = "bf16 product", "fp32 product", "copy"


class Sizes(NamedTuple):
    """sides of the square matrices; bytes of what is copied."""

    bf16: int
    fp32: int
    copied: int


QUICK = Sizes(256, 256, 1 << 22)
SIZES = {"cpu": Sizes(4096, 2048, 1 << 28), "cuda": Sizes(8192, 8192, 1 << 30), "mps": Sizes(4096, 4096, 1 << 28)}


class Ceilings(NamedTuple):
    """What to call, what a call does (FLOP, or bytes read and written), and why something is left out, by name."""

    works: dict[str, Work]
    amounts: dict[str, float]
    left_out: dict[str, str]


def ceilings(device: torch.device, sizes: Sizes) -> Ceilings:
    """The works whose rates are the device's ceilings. A device that doesn't do bf16 well has no product in it."""
    generator = torch.Generator().manual_seed(1)
    made = Ceilings({}, {}, {})
    try:
        choose("bf16", device.type)
        _add_product(made, BF16, sizes.bf16, torch.bfloat16, device, generator)
    except UsageError as error:
        made.left_out[BF16] = str(error).partition(";")[0]
    _add_product(made, FP32, sizes.fp32, torch.float32, device, generator)
    source = torch.randn(sizes.copied // 4, generator=generator).to(device)
    target = torch.empty_like(source)
    made.works[COPY] = lambda: target.copy_(source)
    made.amounts[COPY] = 2.0 * sizes.copied
    return made


def _add_product(
    made: Ceilings, name: str, side: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    made.works[name] = lambda: torch.mm(a, b, out=out)
    made.amounts[name] = 2.0 * side**3
