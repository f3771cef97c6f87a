import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnet.io import rng

N = 200_000


def splitmix64(state, n):
    """The published generator, in Python's integers."""
    mask, out = (1 << 64) - 1, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_the_mixer_is_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64(0, 3) == published
    assert int(rng.bits(0)) == splitmix64(published[0], 1)[0]  # the seed is mixed twice
    assert int(rng.bits(rng.GOLDEN)) == splitmix64(published[1], 1)[0]


@given(st.integers(-(2**70), 2**70), st.lists(st.integers(0, 2**63 - 1), max_size=4))
def test_bits_equal_the_same_in_python_integers(seed, counters):
    state = splitmix64(splitmix64(seed & rng.MASK, 1)[0], 1)[0]
    for counter in counters:
        state = splitmix64(state ^ splitmix64(counter + 1, 1)[0], 1)[0]
    assert int(rng.bits(seed, *counters)) == state


def test_an_array_of_counters_gives_what_single_ones_give():
    many = rng.bits(5, 2, np.arange(10)[:, None], np.arange(3))
    assert many.shape == (10, 3)
    assert all(many[i, j] == rng.bits(5, 2, i, j) for i in range(10) for j in range(3))


def test_no_two_places_draw_the_same():
    places = [(a,) for a in range(20)] + [(a, b) for a in range(20) for b in range(20)]
    places += [(a, b, c) for a in range(12) for b in range(12) for c in range(12)]
    assert len({int(rng.bits(*place)) for place in places}) == len(places)


def test_uniform_numbers_are_uniform_and_independent():
    u = rng.uniform(1, 2, np.arange(N))
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, 100, (0, 1))[0]
    assert ((counts - N / 100) ** 2).sum() / (N / 100) < 160  # chi-square with 99 degrees: 148 is 1 in 1,000
    for other in (rng.uniform(1, 3, np.arange(N)), rng.uniform(2, 2, np.arange(N)), np.roll(u, 1)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 4 / N**0.5


def test_bits_are_balanced():
    values = rng.bits(0, np.arange(N))
    for bit in range(64):
        share = ((values >> np.uint64(bit)) & np.uint64(1)).mean()
        assert abs(share - 0.5) < 5 * 0.5 / N**0.5, bit


def test_normal_numbers_are_normal():
    z = rng.normal(1, np.arange(N))
    assert np.isfinite(z).all()
    moments = [z.mean(), (z**2).mean() - 1, (z**3).mean(), (z**4).mean() - 3]
    assert np.abs(moments).max() < 0.06
    assert abs((np.abs(z) < 1).mean() - 0.6827) < 0.005
    assert abs((np.abs(z) < 2).mean() - 0.9545) < 0.003


@pytest.mark.parametrize("n", [1, 2, 10, 33])
def test_integers_take_every_value_equally_often(n):
    values = rng.integers(n, 3, np.arange(N))
    assert values.dtype == np.int64
    counts = np.bincount(values, minlength=n)
    assert len(counts) == n
    assert np.abs(counts - N / n).max() < 6 * (N / n) ** 0.5


@given(st.integers(0, 300), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_a_permutation_has_everything_once(n, seed, epoch):
    order = rng.permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


def test_permutations_differ_and_are_even():
    assert not np.array_equal(rng.permutation(50, 0, 1), rng.permutation(50, 0, 2))
    firsts = np.bincount([rng.permutation(5, 0, epoch)[0] for epoch in range(5000)], minlength=5)
    assert np.abs(firsts - 1000).max() < 150


@given(st.integers(0, 3000), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_a_computed_order_has_everything_once_whatever_is_asked_for(n, seed, epoch):
    order = rng.Order(n, seed, epoch)
    whole = order[:]
    assert (whole.dtype, len(order)) == (np.int64, n)
    assert sorted(whole) == list(range(n))
    at = np.arange(n)[::-3]
    np.testing.assert_array_equal(order[at], whole[at])
    np.testing.assert_array_equal(order[n // 3 : n // 2], whole[n // 3 : n // 2])
    rest = order.after(n // 4)
    assert len(rest) == n - n // 4
    for part in (slice(None), slice(1, None, 2), np.arange(len(rest))[:5]):
        np.testing.assert_array_equal(rest[part], whole[n // 4 :][part])
    if n:
        assert int(order[n - 1]) == whole[-1]


def test_15_million_are_computed_where_they_are_asked_for():
    """Numbers that a run of another day, on another machine, must find again; parts that don't meet."""
    n = 15_000_000
    order, other = rng.order(n, 3, rng.stream("order"), 1), rng.order(n, 3, rng.stream("order"), 2)
    assert order[:4].tolist() == [1353372, 13363502, 14868823, 1323045]
    parts = [order[first : first + 1000] for first in range(0, n, n // 100)]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    assert (np.concatenate(parts) < n).all()
    assert (order[:10_000] == other[:10_000]).mean() < 0.001


def test_orders_of_ordinary_size_are_the_sorted_ones(monkeypatch):
    np.testing.assert_array_equal(rng.order(50, 4, 5), rng.permutation(50, 4, 5))
    monkeypatch.setattr(rng, "SORTED", 50)
    assert isinstance(rng.order(50, 4, 5), np.ndarray)
    assert isinstance(rng.order(51, 4, 5), rng.Order)


@pytest.mark.parametrize("n", [5, 12, 49, 50, 97])
def test_a_computed_order_is_even(n):
    """Chi-square over 3,000 seeds: which number is at which position, and which follows which. 5 sigma."""
    at, follows = np.zeros((n, n)), np.zeros((n, n))
    for seed in range(3000):
        order = rng.Order(n, seed, 7)[:]
        at[np.arange(n), order] += 1
        follows[order[:-1], order[1:]] += 1
    between = ~np.eye(n, dtype=bool)
    for counts, freedom in ((at.ravel(), (n - 1) ** 2), (follows[between], n * (n - 1) - 1)):
        expected = counts.sum() / len(counts)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5  # its mean, and its standard deviation


def test_a_large_computed_order_is_even_over_positions():
    """Chi-square: in which sixteenth of 15 million numbers those of each sixteenth of the positions are."""
    n, parts, sampled = 15_000_000, 16, 20_000
    order, counts = rng.Order(n, 1, 2), np.zeros((parts, parts))
    for part in range(parts):
        first = part * n // parts
        counts[part] = np.bincount(order[first : first + sampled] * parts // n, minlength=parts)
    expected, freedom = sampled / parts, parts * (parts - 1)
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5


def test_streams_are_different():
    names = ["crop", "mirror", "colour", "order", "dropout", "init", "split"]
    assert len({rng.stream(name) for name in names}) == len(names)


def test_another_process_draws_the_same():
    code = "from convnet.io import rng; print(rng.permutation(5, 1, rng.stream('order')), rng.normal(1, 2))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout
    assert told == f"{rng.permutation(5, 1, rng.stream('order'))} {rng.normal(1, 2)}\n"
