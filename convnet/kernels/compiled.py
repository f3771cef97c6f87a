"""How does C become a function on this machine? Compiled at its first use, and kept for the next.

The C of this folder needs nothing but a C compiler (`cc`, or what CC names); the library lands in the user's cache,
under a name that stands for source, compiler and processor. Without a compiler, or with CONVNET_KERNELS=plain, the
plain forms serve; `state()` says which and why.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.c")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
FLAGS = ("-O3", "-march=native", *WIDE, "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
SECONDS = 120  # a compiler that takes longer is taken for broken


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled functions, or None; and a sentence about it."""
    if os.environ.get("CONVNET_KERNELS", "") == "plain":
        return None, "plain forms, as CONVNET_KERNELS=plain asks"
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None, "plain forms: no C compiler (cc) was found; one makes AlexNet's training about twice as fast"
    try:
        path = _built(compiler)
        return ctypes.CDLL(str(path)), f"compiled forms, by {compiler}"
    except (OSError, subprocess.SubprocessError) as error:
        text = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
        return None, f"plain forms: {compiler} failed: {text.strip().splitlines()[-1] if text.strip() else 'no reason'}"


def state() -> str:
    """Whether fast forms in C are in use on the CPU, and why (not)."""
    return library()[1]


def watched(x: Tensor) -> bool:
    """Whether torch traces what is done to `x`, or someone looks at it layer by layer: then the plain forms serve."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter) or has_torch_function_unary(x)


def hooked(layer: nn.Module) -> bool:
    """Whether someone waits for the layer's own call, which a fast form would not make."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


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


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "convnet-kernel")


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _built(compiler: str) -> Path:
    """The library in the cache, compiled if it is not there yet. It takes its name when it is whole."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convnet"
    path = folder / f"{_identity(compiler)}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        try:
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", part, "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            os.replace(part, path)
        finally:
            Path(part).unlink(missing_ok=True)
    return path


def _identity(compiler: str) -> str:
    """What the library depends on: the sources, the flags, the compiler, the processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=SECONDS).stdout
    parts = [
        *(path.read_bytes() for path in (*SOURCES, *HEADERS)),
        " ".join(FLAGS).encode(),
        compiler.encode(),
        version,
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _processor() -> bytes:
    """The processor and what it can do: a home directory may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode() + platform.machine().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
