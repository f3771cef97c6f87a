"""Where does the net run, and how? Device, arithmetic and memory layout: chosen once, with the reason as text."""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from convnet.errors import UsageError
from convnet.kernels.cpu import compiled
from convnet.kernels.cuda import available as on_cuda

CPU_BF16 = {"avx512_bf16", "amx_bf16"}  # processor flags: multiplies bf16 in hardware
CUDA_BF16 = (8, 0)  # compute capability (Ampere): the first with bf16 in its tensor cores
Module = TypeVar("Module", bound=nn.Module)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Device:
    """A device and how to use it.

    device         torch's device
    dtype          of the net's arithmetic, float32 or bfloat16; weights stay float32
    memory_format  of pictures and convolution weights
    threads        CPU threads that torch uses
    reason         the choice in words, for the user and the run's record
    """

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    threads: int
    reason: str

    def take(self, net: Module) -> Module:
        """The net on this device, in its memory layout."""
        return net.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def narrowed(self, net: Module) -> tuple[Module, dict[str, nn.Parameter]]:
        """`net` with copies in `dtype` of the weights and biases of its convolutions and linear layers, and the
        copies by name: autocast's arithmetic without its casts. Everything else is the net's own: other parameters,
        buffers. In float32 it's `net` itself."""
        if self.dtype == torch.float32:
            return net, {}
        kept: dict[int, object] = {id(each): each for each in (*net.parameters(), *net.buffers())}
        copies: dict[str, nn.Parameter] = {}
        for path, module in net.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                for name, weight in module.named_parameters(path, recurse=False):
                    if kept[id(weight)] is weight:  # else two layers share it
                        copies[name] = nn.Parameter(weight.detach().to(self.dtype), weight.requires_grad)
                        kept[id(weight)] = copies[name]
        return deepcopy(net, kept), copies

    def forms(self) -> str:
        """Which forms of norm, pooling, dropout and update serve there, and why, as a sentence (kernels/).

        C or Triton's first kernel is compiled, if it isn't yet."""
        if self.device.type == "cuda":
            return on_cuda.state(self.device)
        return compiled.state() if self.device.type == "cpu" else f"plain forms: there are no kernels for {self.device}"

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the net's forward pass computes in `dtype`; it changes nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose(precision: str = "auto", device: str | torch.device = "auto") -> Device:
    """The device to use: "auto", "cpu", "cuda", "cuda:1" or "mps"; auto is the first CUDA device, MPS, or the CPU.

    Raises: UsageError when the device isn't there, or bf16 is asked of one that doesn't do it well.
    """
    place = _place(str(device))
    does_bf16, what = _bf16(place)
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision '{precision}' must be auto, fp32 or bf16")
    if precision == "bf16" and not does_bf16:
        raise UsageError(f"precision bf16 is not for {what}; use fp32 or auto")
    dtype = torch.bfloat16 if does_bf16 and precision != "fp32" else torch.float32
    if place.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # else two runs differ
        if dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # whose products have 10 bits; it is on by default in convolutions
    why = f"{what}; asked for {precision}" if precision != "auto" else what
    return Device(
        device=place,
        dtype=dtype,
        memory_format=torch.channels_last,
        threads=torch.get_num_threads(),
        reason=f"{place}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}: {why}",
    )


def keep_memory() -> None:
    """Lets the C library keep freed blocks for the next use, where it is glibc; memory then stays with the process.

    Otherwise each large tensor of a step is mapped anew and its pages are cleared: 0.64 instead of 0.49 s for a step of
    AlexNet with 32 pictures in bf16 on one core of an Intel Xeon.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _place(name: str) -> torch.device:
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps") from None
    if place.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device '{name}' is not supported; use auto, cpu, cuda, cuda:N or mps")
    n_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}[place.type]
    if (place.index or 0) >= n_devices:
        found = f"{n_devices} of its kind found" if n_devices else "none found"
        raise UsageError(f"device '{name}' is not there: {found}; use auto or cpu")
    if place.type == "cuda":
        return torch.device("cuda", place.index or 0)
    return torch.device(place.type)


def _bf16(place: torch.device) -> tuple[bool, str]:
    """Whether the device does bf16 well, and what it is, in words."""
    if place.type == "cuda":
        capability = torch.cuda.get_device_capability(place)
        name = f"{torch.cuda.get_device_name(place)} (compute capability {capability[0]}.{capability[1]})"
        return capability >= CUDA_BF16, name
    if place.type == "mps":
        return False, "MPS, which is used in fp32"
    flags = sorted(CPU_BF16 & _cpu_flags())
    return bool(flags), f"a CPU with {', '.join(flags)}" if flags else "a CPU without bf16 in hardware"


def _cpu_flags() -> set[str]:
    """The processor's flags as Linux tells them; none elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
