"""Timing by turns: each piece of work in turn, again and again, so that whatever else the machine does hits them all.

A piece of work is called until one turn takes long enough for the clock; the calls before the turns are warm-up.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch

from convnet.errors import UsageError
from convnet.io.strict_json import Json

WARM_UP = 2  # calls of each piece of work that don't count
LEAST_REPEATS = 5
LEAST_SECONDS = 0.1  # of a turn: shorter work is called several times in it
Work = Callable[[], object]


@dataclass(frozen=True)
class Turns:
    """seconds: of each turn; calls: of the work in each of them."""

    seconds: tuple[float, ...]
    calls: int

    def rates(self, amount: float) -> list[float]:
        """What was done in a second, in each turn, when a call does `amount`."""
        return [amount * self.calls / each for each in self.seconds]

    def to_dict(self, pictures: int) -> Json:
        """{"seconds", "calls", "rate"}: every turn, and the spread of pictures a second, a call being so many."""
        return {"seconds": list(self.seconds), "calls": self.calls, "rate": spread(self.rates(pictures))}


@dataclass(frozen=True)
class Budget:
    """How often, and how long at the most.

    repeats: turns. least: seconds of a turn. limit: seconds that the turns of one piece of work may take together.
    Raises: UsageError for fewer than 5 repeats.
    """

    repeats: int = LEAST_REPEATS
    least: float = LEAST_SECONDS
    limit: float = 120.0

    def __post_init__(self) -> None:
        if self.repeats < LEAST_REPEATS:
            raise UsageError(f"--repeats {self.repeats}: must be at least {LEAST_REPEATS}, for a median that means it")


def by_turns(
    works: Mapping[str, Work], budget: Budget, device: torch.device, progress: Callable[[str], None]
) -> tuple[dict[str, Turns], dict[str, str]]:
    """(turns by name, the reason by name for what was left out): too slow, or out of memory.

    progress: is called with a name whenever a call of its warm-up or one of its turns has ended.
    """
    left_out: dict[str, str] = {}
    calls: dict[str, int] = {}
    for name, work in works.items():
        with no_memory(left_out, name):
            for _ in range(WARM_UP):
                seconds = _seconds(work, 1, device)
                progress(name)
                if seconds * budget.repeats > budget.limit:
                    left_out[name] = too_slow(seconds, budget)
                    break
            else:
                calls[name] = max(1, math.ceil(budget.least / max(seconds, 1e-6)))
    timed: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(budget.repeats):
        for name, n_calls in calls.items():
            timed[name].append(_seconds(works[name], n_calls, device))
            progress(name)
    return {name: Turns(tuple(seconds), calls[name]) for name, seconds in timed.items()}, left_out


def spread(values: Sequence[float]) -> dict[str, float]:
    """{"median", "least", "most", "n"}.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'least': 1.0, 'most': 3.0, 'n': 3}
    """
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def too_slow(seconds: float, budget: Budget) -> str:
    """Why something was not measured.

    >>> too_slow(30.0, Budget())
    'one call takes 30.0 s, and 5 would take longer than the 120 s of --limit'
    """
    return (
        f"one call takes {seconds:.1f} s, and {budget.repeats} would take longer than the {budget.limit:g} s of --limit"
    )


@contextmanager
def no_memory(left_out: dict[str, str], name: str) -> Iterator[None]:
    """Within the block running out of memory is the reason why `name` is left out, and ends nothing else."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        left_out[name] = "the memory does not suffice; try a smaller --batch"


def first_line(error: Exception) -> str:
    """The text of an error of somebody else's, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _seconds(work: Work, calls: int, device: torch.device) -> float:
    _synchronize(device)
    began = perf_counter()
    for _ in range(calls):
        work()
    _synchronize(device)
    return perf_counter() - began


def _synchronize(device: torch.device) -> None:
    """A device synchronisation: the clock must not run ahead of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
