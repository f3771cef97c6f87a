"""Where do Triton's kernels run in this process: on a CUDA device, by the interpreter on the CPU, or not at all?"""

import numpy as np
import pytest
import torch
from torch import Tensor

from convnet.kernels.cuda import triton as cuda

PLACE = torch.device("cpu" if cuda.INTERPRETED or not torch.cuda.is_available() else "cuda")
WHY_NOT = "no Triton" if cuda.triton is None else "no CUDA device; test_kernels.py has Triton interpret it"
needs_kernels = [pytest.mark.cuda, pytest.mark.skipif(not cuda.runs_on(PLACE), reason=WHY_NOT)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(PLACE)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance of `found`'s dtype, relative to the value or to a hundredth of the largest one."""
    assert found.shape == expected.shape
    rtol = TOLERANCE[found.dtype]
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=rtol * largest / 100)


def round_as_hardware() -> None:
    """Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds to the nearest."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(value, source, target, mode):  # type: ignore[no-untyped-def]
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(value, source, target, mode)
        return torch.from_numpy(np.ascontiguousarray(value)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = rounded


def call_directly() -> None:
    """Triton's interpreter prepares its whole language anew for each call of a kernel's part: most of its time."""
    from triton.runtime import interpreter

    interpreter.InterpretedFunction.__call__ = lambda self, *args, **named: self.rewrite()(*args, **named)


if cuda.INTERPRETED and cuda.triton is not None:
    round_as_hardware()
    call_directly()
