"""Counter-based random numbers, not carried: each is a function of a seed and of where it is used.

`uniform(seed, epoch, picture, k)` never depends on what was sampled before it, so workers, ranks, resuming and
evaluation in between can't change a run, and no generator's state has to be saved. The mixer is splitmix64 (Steele, Lea
and Flood, OOPSLA 2014), applied once per counter; our own, so that a new version of numpy or torch can't change a run.
"""

import zlib
from copy import copy
from math import isqrt

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's increment
MASK = (1 << 64) - 1
SORTED = 1 << 22  # numbers: an order of more is computed part by part
ROUNDS = 8  # of the network that computes it
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


def order(n: int, seed: int, *counters: int) -> "NDArray[np.int64] | Order":
    """A random order of 0 .. n-1, of which parts are asked for: `permutation`, of more than SORTED an `Order`.

    Two ways: sorting 15 million random numbers takes 2 s and 240 MB before the first picture, but it is what runs of
    ordinary size have always done, and their order must not change.
    """
    return permutation(n, seed, *counters) if n <= SORTED else Order(n, seed, *counters)


class Order:
    """A random order of 0 .. n-1 whose parts are computed when they are asked for: order[i:j], order[positions].

    A Feistel network over pairs of digits (Black and Rogaway, CT-RSA 2002): position = left * side + right with side^2
    just above n, and ROUNDS times (left, right) becomes (right, left + random(round, right) modulo side). That can be
    undone, so it is a bijection of 0 .. side^2 - 1; what falls on n or above goes round again until it doesn't, which
    makes it one of 0 .. n-1.
    """

    def __init__(self, n: int, seed: int, *counters: int) -> None:
        self.places, self.side = range(n), isqrt(max(n - 1, 0)) + 1
        rounds = np.arange(ROUNDS)[:, None]
        self.shifts = integers(self.side, seed, *counters, rounds, np.arange(self.side))  # (ROUNDS, side): 0.2 MB

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: int | slice | NDArray[np.int64]) -> NDArray[np.int64]:
        if isinstance(at, slice):
            part = self.places[at]
            positions = np.arange(part.start, part.stop, part.step)
        else:
            positions = self.places.start + np.asarray(at, np.int64)
        return self._sent(positions)

    def after(self, n: int) -> "Order":
        """The order without its first n numbers."""
        rest = copy(self)
        rest.places = self.places[n:]
        return rest

    def _sent(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the network makes of positions, those that fall on `places.stop` or above sent again."""
        left, right = np.divmod(positions, self.side)
        for shifts in self.shifts:
            left, right = right, (left + shifts[right]) % self.side
        numbers = np.asarray(left * self.side + right)
        if (beyond := numbers >= self.places.stop).any():
            numbers[beyond] = self._sent(numbers[beyond])
        return numbers


def stream(name: str) -> int:
    """A counter for a named use of randomness, so that two uses with the same seed are independent."""
    return zlib.crc32(name.encode())


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        x = x + np.uint64(GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
