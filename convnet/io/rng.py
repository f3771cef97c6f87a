"""Counter-based random numbers, not carried: each is a function of a seed and of where it is used.

`uniform(seed, epoch, picture, k)` never depends on what was sampled before it, so workers, ranks, resuming and
evaluation in between can't change a run, and no generator's state has to be saved. The mixer is splitmix64 (Steele, Lea
and Flood, OOPSLA 2014), applied once per counter; our own, so that a new version of numpy or torch can't change a run.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's increment
MASK = (1 << 64) - 1
Counter = int | NDArray[np.integer]


def bits(seed: int, *counters: Counter) -> NDArray[np.uint64]:
    """64 random bits for each element of the broadcast counters (each an int or an array of ints >= 0)."""
    state = _mix(_mix(np.asarray(seed & MASK, np.uint64)))  # twice, or seed 5 at 2 would be seed 3 at 4
    for counter in counters:
        state = _mix(state ^ _mix(np.asarray(counter).astype(np.uint64) + np.uint64(1)))
    return state


def uniform(seed: int, *counters: Counter) -> NDArray[np.float64]:
    """Uniform in [0, 1), 53 bits, of the counters' broadcast shape.

    >>> float(uniform(0, 1, 2)) == float(uniform(0, 1, np.array([2]))[0])
    True
    """
    return np.asarray((bits(seed, *counters) >> np.uint64(11)) * 2.0**-53, np.float64)


def integers(n: int, seed: int, *counters: Counter) -> NDArray[np.int64]:
    """Integers in 0 .. n-1, of the counters' broadcast shape."""
    return np.minimum((uniform(seed, *counters) * n).astype(np.int64), n - 1)


def normal(seed: int, *counters: Counter) -> NDArray[np.float64]:
    """Standard normal by Box and Muller, of the counters' broadcast shape."""
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform(seed, *counters, 0)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(seed, *counters, 1)))


def permutation(n: int, seed: int, *counters: int) -> NDArray[np.int64]:
    """A random order of 0 .. n-1."""
    return np.argsort(bits(seed, *counters, np.arange(n)), kind="stable").astype(np.int64)


def stream(name: str) -> int:
    """A counter for a named use of randomness, so that two uses with the same seed are independent."""
    return zlib.crc32(name.encode())


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        x = x + np.uint64(GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
