"""How many threads does the arithmetic get, and how do they wait for each other?

torch's threads (OpenMP) wait in a loop for the slowest of them. On a machine with other work the slowest has lost its
processor to that work, and the loops keep it from getting one back: a training can take ten times as long as with
threads that sleep instead (docs/speed.md, "A busy machine"). OpenMP reads its variables when torch is loaded, so the
command sets them first thing; the library sets nothing in its user's process.

Other work doesn't change the number of threads: sleeping threads get their fair share, more of them a larger one, and
the same command has the same numbers whatever else runs.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from convnet import hardware
from convnet.errors import UsageError

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of OpenMP, of GNU's library, of Intel's and LLVM's
MOMENT = "10000"  # turns of a loop, some 0.1 ms; the library's own are 300,000
VARIABLE = "CONVNET_THREADS"
WORTH = 100_000_000  # multiply-adds of a batch's forward pass for which a thread more pays (docs/speed.md)
MOST_RECORDED = 4096  # threads; a checkpoint that says more is not believed


@dataclass(frozen=True)
class Threads:
    """How many, and why, in words."""

    n: int
    reason: str

    def __str__(self) -> str:
        return f"{self.n} thread{'' if self.n == 1 else 's'} ({self.reason})"


def sleep_while_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has OpenMP's threads sleep while they wait, unless its user chose otherwise, or torch is loaded already.

    GNU's first wait awake for a moment: to wake one costs more than most waits last (docs/speed.md).
    """
    if "torch" not in sys.modules and not any(name in environment for name in WAITING):
        environment.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": MOMENT})


def spin(environment: Mapping[str, str]) -> bool:
    """Whether OpenMP's threads wait in a loop: its default, where nothing is set."""
    policy = environment.get("OMP_WAIT_POLICY", "")
    return policy.upper() == "ACTIVE" or not any(name in environment for name in WAITING)


def requested() -> int | None:
    """What CONVNET_THREADS says; None when it isn't set. Raises: UsageError when it is no number of threads."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_RECORDED:
        return int(text)
    raise UsageError(f"{VARIABLE}={text}: it must be a number of threads, 1 to {MOST_RECORDED:,}")


def most() -> int:
    """Threads for work of which each has its own part, as decoding: those asked for, or one for each processor."""
    return requested() or hardware.cores().n


def configure(multiply_adds: int | None = None, recorded: object = None) -> Threads:
    """Gives torch its threads in this process, and says how many.

    multiply_adds: of the forward pass of a batch, where small nets are to have fewer. recorded: those of the run that
    goes on, whose numbers depend on them.
    """
    import torch

    chosen = _chosen(torch.get_num_threads(), multiply_adds, recorded)
    if chosen.n != torch.get_num_threads():
        torch.set_num_threads(chosen.n)
    return chosen


def _chosen(present: int, multiply_adds: int | None, recorded: object) -> Threads:
    cores = hardware.cores()
    if (n := requested()) is not None:
        return Threads(n, f"by {VARIABLE}")
    if os.environ.get("OMP_NUM_THREADS"):
        return Threads(present, "by OMP_NUM_THREADS")
    if isinstance(recorded, int) and 1 <= recorded <= MOST_RECORDED:
        return Threads(recorded, "as the run began")
    if (beside := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > 1:  # of torchrun
        return Threads(max(1, cores.n // beside), f"a part of {cores.n} processors, for {beside} processes")
    useful = cores.n if multiply_adds is None else max(1, multiply_adds // WORTH)
    if useful < cores.n:
        return Threads(useful, "more don't make so small a net faster")
    limit = ", by the container's limit" if cores.n < cores.usable else ""
    return Threads(cores.n, f"of {cores.machine} processors{limit}")
