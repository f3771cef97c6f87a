"""How does C become a function on this machine? Compiled at its first use, and kept for the next.

The C of this folder and of those in it needs nothing but a C compiler (`cc`, or what CC says, flags included); the
library lands in the user's cache, under a name that stands for source, compiler and processor, and that ends in its own
sha256: one that was cut short or changed is never loaded. A cache that others may write to isn't used: the library is
then compiled for this process alone. Without a compiler, or with CONVNET_KERNELS=plain, the plain forms serve;
`state()` says which and why.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache as once
from pathlib import Path

from convnet.errors import DiskError
from convnet.io import atomic
from convnet.io.cache import own_folder

SOURCES = tuple(sorted(Path(__file__).parent.rglob("*.c")))
HEADERS = tuple(sorted(Path(__file__).parent.rglob("*.h")))
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
FLAGS = ("-O3", "-march=native", *WIDE, "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
SECONDS = 120  # a compiler that takes longer is taken for broken


@once
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled functions, or None; and a sentence about it."""
    if plain_is_asked():
        return None, "plain forms, as CONVNET_KERNELS=plain asks"
    command = compiler()
    if not command:
        return None, "plain forms: no C compiler (cc) was found; one makes AlexNet's training about twice as fast"
    try:
        return _loaded(command), f"compiled forms, by {shlex.join(command)}"
    except (OSError, DiskError, subprocess.SubprocessError) as error:
        text = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
        why = text.strip().splitlines()[-1] if text.strip() else "no reason"
        return None, f"plain forms: {shlex.join(command)} failed: {why}"


def plain_is_asked() -> bool:
    """Whether CONVNET_KERNELS=plain wants no fast form."""
    return os.environ.get("CONVNET_KERNELS", "") == "plain"


def compiler(variable: str = "CC", default: str = "cc") -> list[str]:
    """The C compiler's path and the flags that CC gives it (`gcc -O2`); empty where there is none."""
    try:
        name, *flags = shlex.split(os.environ.get(variable, "")) or [default]
    except ValueError:  # a quotation mark without its second
        return []
    path = shutil.which(name)
    return [path, *flags] if path is not None else []


def available() -> bool:
    """Whether the functions in C can be called."""
    return library()[0] is not None


def function(name: str) -> "ctypes._NamedFuncPointer":
    """A function in C, where they are `available`."""
    loaded = library()[0]
    assert loaded is not None
    called: ctypes._NamedFuncPointer = getattr(loaded, name)
    return called


def state() -> str:
    """Whether fast forms in C are in use on the CPU, and why (not)."""
    return library()[1]


def has(flag: str) -> bool:
    """Whether the processor has it, as Linux tells: "avx512_bf16"."""
    return flag.encode() in _processor().split()


def _loaded(command: list[str]) -> ctypes.CDLL:
    """The library of the cache, or a new one, which the cache then keeps if there is one."""
    folder, identity = own_folder()[0], _identity(command)
    for path in folder.glob(f"{identity}.*.so") if folder is not None else ():
        if path.name == f"{identity}.{atomic.sha256_file(path)}.so" and not path.is_symlink():
            return ctypes.CDLL(str(path))
        path.unlink()  # cut short or changed: loading it could end the process, or give wrong numbers
    writable = folder is not None and os.access(folder, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="convnet-", dir=folder if writable else None) as place:
        made = Path(place) / "made.so"  # where nobody else may write; once loaded it may go
        compiling = [*command, *FLAGS, *map(str, SOURCES), "-o", str(made), "-lm"]
        subprocess.run(compiling, check=True, capture_output=True, timeout=SECONDS)
        if folder is not None:
            with suppress(DiskError):  # then the next process compiles again
                atomic.write_atomic(folder / f"{identity}.{atomic.sha256_file(made)}.so", made.read_bytes())
        return ctypes.CDLL(str(made))


def _identity(command: list[str]) -> str:
    """What the library depends on: the sources, the flags, the compiler, the processor."""
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, timeout=SECONDS).stdout
    parts = [
        *(path.read_bytes() for path in (*SOURCES, *HEADERS)),
        " ".join(FLAGS).encode(),
        os.fsencode(shlex.join(command)),
        version,
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


@once
def _processor() -> bytes:
    """The processor and what it can do: a home directory may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode() + platform.machine().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
