"""Do the kernels in Triton serve on this device? Triton is loaded, and tried, when a CUDA device is first asked about.

Triton compiles a kernel at its first use, for which it needs a C compiler besides: one small kernel shows whether that
works. Where it doesn't, without Triton, and with CONVNET_KERNELS=plain the plain forms serve; `state` says why.
With TRITON_INTERPRET=1 in the environment the kernels run on the CPU, step by step in Python: for tests, nothing else.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch

from convnet.kernels.cuda import INTERPRETED


def serve(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA devices where they work, or on the CPU when they are interpreted."""
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return False
    return _tried(device.type, device.index)[0]


def state(device: torch.device) -> str:
    """Which forms serve on a CUDA device, and why, as a sentence."""
    return _tried(device.type, device.index)[1]


@cache
def _tried(kind: str, index: int | None) -> tuple[bool, str]:
    if os.environ.get("CONVNET_KERNELS", "") == "plain" and not INTERPRETED:
        return False, "plain forms, as CONVNET_KERNELS=plain asks"
    if find_spec("triton") is None:
        return False, "plain forms: Triton is not installed (pip install triton)"
    from convnet.kernels.cuda import triton as cuda

    version = getattr(cuda.triton, "__version__", "")
    try:
        device = torch.device(kind) if index is None else torch.device(kind, index)
        if not cuda.doubles(device):
            return False, f"plain forms: Triton {version} computes wrong numbers on {kind}"
    except Exception as error:  # no compiler, no headers, a driver that is too old: Triton has a class for none of them
        line = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return False, f"plain forms: Triton {version} failed: {line}"
    return True, f"kernels in Triton {version}"
