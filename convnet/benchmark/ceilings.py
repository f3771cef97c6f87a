"""What can this machine do at best? Products of large random matrices in bf16 and fp32, and a copy."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from convnet import device
from convnet.errors import UsageError

BF16, FP32, COPY = "bf16 product", "fp32 product", "copy"


class Sizes(NamedTuple):
    """sides of the square matrices; bytes of what is copied."""

    bf16: int
    fp32: int
    copied: int


QUICK = Sizes(256, 256, 1 << 22)
SIZES = {"cpu": Sizes(4096, 2048, 1 << 28), "cuda": Sizes(8192, 8192, 1 << 30), "mps": Sizes(4096, 4096, 1 << 28)}


class Tops(NamedTuple):
    """What to call, what a call does (FLOP, or bytes read and written), and why something is left out, by name."""

    works: dict[str, Callable[[], object]]
    amounts: dict[str, float]
    left_out: dict[str, str]


def tops(place: torch.device, sizes: Sizes) -> Tops:
    """The works whose rates are the device's ceilings. A device that doesn't do bf16 well has no product in it."""
    generator = torch.Generator().manual_seed(1)
    found = Tops({}, {}, {})
    try:
        device.choose("bf16", place.type)
        found.works[BF16] = _product(sizes.bf16, torch.bfloat16, place, generator)
        found.amounts[BF16] = 2.0 * sizes.bf16**3
    except UsageError as error:
        found.left_out[BF16] = str(error).partition(";")[0]
    found.works[FP32] = _product(sizes.fp32, torch.float32, place, generator)
    found.amounts[FP32] = 2.0 * sizes.fp32**3
    source = torch.randn(sizes.copied // 4, generator=generator).to(place)
    target = torch.empty_like(source)
    found.works[COPY] = lambda: target.copy_(source)
    found.amounts[COPY] = 2.0 * sizes.copied
    return found


def _product(side: int, dtype: torch.dtype, place: torch.device, generator: torch.Generator) -> Callable[[], Tensor]:
    a, b = (torch.randn(side, side, generator=generator).to(place, dtype) for _ in range(2))
    out = torch.empty(side, side, device=place, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)
