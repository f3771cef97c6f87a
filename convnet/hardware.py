"""What is this machine? Processor, cores, memory and versions, as the system tells them; nothing is measured here.

A container may be allowed less than the machine has: the limits of its control group (cgroup) count too.
"""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path("/")
DISTRIBUTION = "convnet-classics"  # as pip knows us; the name convnet there is somebody else's
VECTORS = (  # the flags of processors that matter to a net's arithmetic, x86's and then ARM's
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
    *("asimd", "sve", "sve2", "bf16", "svebf16"),
)
UNLIMITED = 1 << 60  # bytes: above this a control group's number stands for "no limit"


@dataclass(frozen=True)
class Processor:
    """A processor's name ("" where the system doesn't tell it), those of its flags that are in `VECTORS`, whether it
    says itself that it is a virtual machine's, and who made it, as "GenuineIntel" ("" where it isn't told)."""

    name: str
    flags: tuple[str, ...]
    virtual: bool
    vendor: str = ""


@dataclass(frozen=True)
class Cores:
    """machine: processors that the system sees; physical: cores that they are of, where it is told (two processors may
    share one); usable: processors that this process may run on; quota: of their time, where a control group limits it.
    """

    machine: int
    physical: int | None
    usable: int
    quota: float | None

    @property
    def n(self) -> int:
        """How many processors this process may use at once: at least 1."""
        return max(1, min(self.usable, int(self.quota) if self.quota is not None else self.usable))


@dataclass(frozen=True)
class Memory:
    """Bytes: what the machine has, what is free for a new process, and a control group's limit; None is not known."""

    total: int | None
    available: int | None
    limit: int | None

    @property
    def free(self) -> int | None:
        """What this process may still take."""
        known = [each for each in (self.available, self.limit) if each is not None]
        return min(known) if known else None


def processor(root: Path = ROOT) -> Processor:
    """The first processor that /proc/cpuinfo tells of; elsewhere its name only."""
    text = _text(root / "proc/cpuinfo")
    rows = [line.partition(":")[::2] for line in text.splitlines()]
    values: dict[str, str] = {}
    for key, value in rows:
        values.setdefault(key.strip(), value.strip())
    flags = set((values.get("flags") or values.get("Features") or "").split())
    name = values.get("model name") or platform.processor() or platform.machine()
    vectors = tuple(flag for flag in VECTORS if flag in flags)
    return Processor(name, vectors, "hypervisor" in flags, values.get("vendor_id", ""))


def cores(root: Path = ROOT) -> Cores:
    """The cores that there are, and those that may be used."""
    machine = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else machine
    quotas = [_quota(folder) for folder in _groups(root, "cpu")]
    return Cores(
        machine,
        _physical(_text(root / "proc/cpuinfo")),
        usable,
        min((quota for quota in quotas if quota is not None), default=None),
    )


def memory(root: Path = ROOT) -> Memory:
    """The memory that there is, and what may be taken of it. `limit` is what a control group still leaves."""
    rows = dict(line.partition(":")[::2] for line in _text(root / "proc/meminfo").splitlines())
    total, available = (_kilobytes(rows.get(name, "")) for name in ("MemTotal", "MemAvailable"))
    if total is None and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [_left(folder) for folder in _groups(root, "memory")]
    return Memory(total, available, min((each for each in left if each is not None), default=None))


def load() -> float | None:
    """Threads that wanted to run in the last minute, on the whole machine; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def version(package: str) -> str | None:
    """The version of an installed package, which is not imported; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """What the results of a run depend on, by name."""
    return {
        "python": platform.python_version(),
        "convnet": version(DISTRIBUTION),
        **{name: version(name) for name in ("torch", "numpy", "pillow")},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, in the layout of version 1 or 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if names else "")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        yield from (top.joinpath(*parts[:n]) for n in range(len(parts), -1, -1))


def _physical(text: str) -> int | None:
    """How many different cores the processors in /proc/cpuinfo belong to."""
    found, package = set(), ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "physical id":
            package = value.strip()
        elif key.strip() == "core id":
            found.add((package, value.strip()))
    return len(found) or None


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use at once."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _left(folder: Path) -> int | None:
    """Bytes that a control group may still take."""
    for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit, taken = (_text(folder / name).strip() for name in (most, used))
        if limit.isdigit() and int(limit) < UNLIMITED:
            return max(0, int(limit) - (int(taken) if taken.isdigit() else 0))
    return None


def _kilobytes(text: str) -> int | None:
    words = text.split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
