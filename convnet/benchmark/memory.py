"""The peak memory of training: on the CPU that of a fresh process, on CUDA what torch's allocator counts.

And before a net is measured: how much will it take at least? From a run on torch's meta device, which has shapes only.
"""

import ctypes
import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from convnet import device, hardware
from convnet.benchmark.forms import Case, Precision, build, case_of
from convnet.benchmark.plain import Plain, grouped
from convnet.nets.describe import skeleton

STEPS = 2  # the second has the velocity and the memory that the first left
RESERVE = 1.2  # what is needed for a moment within a step, as a factor


def on_cpu(form: str, case: Case) -> tuple[int | None, str]:
    """(bytes, "") by which a form's training makes a fresh process larger than loading torch did, or (None, why not).

    It has the number of threads that this process has.
    """
    if sys.platform == "win32":
        return None, "not measured: Windows doesn't tell a process's peak in this way"
    arguments = (form, case.name, case.batch, case.recipe.precision, torch.get_num_threads())
    program = f"from convnet.benchmark import memory; memory.write_growth(*{arguments!r})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", errors="replace")
    if ended.returncode:
        said = ended.stderr.strip().splitlines()[-1:] or ["no reason given; killed for want of memory?"]
        return None, f"not measured: the process ended with code {ended.returncode}: {said[0]}"
    return int(ended.stdout), ""


def write_growth(form: str, name: str, batch: int, precision: Precision, threads: int) -> None:
    """Trains a few steps in this, fresh, process and writes to stdout by how many bytes it grew."""
    torch.set_num_threads(threads)
    device.keep_memory()
    before = _peak()
    _train(form, case_of(name, batch, precision, "cpu"))
    sys.stdout.write(str(_peak() - before))


def on_cuda(form: str, case: Case) -> int:
    """Bytes that a form's training takes at its peak, as torch's allocator gives them out."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _train(form, case)
    return torch.cuda.max_memory_allocated() - before


def _train(form: str, case: Case) -> None:
    made = build(form, case)
    for _ in range(STEPS):
        made.step()


def needed(case: Case, dtype: torch.dtype) -> int:
    """Bytes that a training step of the net needs at least: weights, gradients, velocity, and what backward keeps."""
    net = grouped(skeleton(case.name, **dict(case.recipe.net_options))).train()
    images = torch.empty(case.batch, *case.shape, device="meta")
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if not isinstance(x, torch.nn.Parameter):
            seen[storage._cdata] = storage.nbytes()
            kept.append(x)
        return x

    kept: list[Tensor] = []  # so that no storage's number comes twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), Plain():
        net.heads(images)
    parameters = sum(each.numel() for each in net.parameters())
    activations = sum(seen.values()) * (0.5 if dtype == torch.bfloat16 else 1.0)
    return int(RESERVE * (activations + parameters * 12 + images.numel() * 4))


def free(where: torch.device) -> int | None:
    """Bytes that are free on the device; None where it isn't told."""
    gc.collect()  # a net that was measured before
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    if where.type != "cpu":
        return None
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # what `device.keep_memory` kept is free too
    return hardware.memory().free


def does_not_fit(case: Case, dtype: torch.dtype) -> str:
    """Why a net is not measured: "" when its training should fit the free memory, as far as that is known."""
    room, need = free(case.where.device), needed(case, dtype)
    if room is None or need <= room:
        return ""
    return f"its training needs about {need / 2**30:.1f} GiB and {room / 2**30:.1f} GiB are free; try a smaller --batch"


def _peak() -> int:
    """Bytes that this process had at its peak. On Linux `ru_maxrss` would begin with the peak of the process before."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return int(text.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
