"""The sums that preparation counts in C, against brute force in int64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convnet.data.statistics import AT_ONCE, Sums, channel_products
from convnet.kernels.cpu.pictures import sums as cpu_sums

NEEDED = pytest.mark.skipif(not cpu_sums.available(), reason="needs a C compiler")


def products(square: NDArray[np.uint8]) -> NDArray[np.int64]:
    flat = square.reshape(-1, 3).astype(np.int64)
    return flat.T @ flat


@NEEDED
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 1000))
def test_sums_are_exact_for_every_size(size: int, n: int, seed: int) -> None:
    squares = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
    small, total = Sums.small(size), Sums.zero(size)
    for square in squares:
        small.count(square)
    total.add(small)
    assert total.n == n
    assert np.array_equal(total.pixels, squares.sum(0, dtype=np.int64))
    assert np.array_equal(total.products, products(squares))


@NEEDED
@pytest.mark.parametrize("size", [1100, 1101])
def test_the_largest_values_of_a_large_picture_do_not_overflow(size: int) -> None:
    """16 pixels at a time are 75,000 turns, more than a sum of 32 bits holds."""
    white = np.full((size, size, 3), 255, np.uint8)
    pixels = np.full_like(white, 0, np.uint16)
    assert (cpu_sums.count(white, pixels) == size**2 * 255**2).all()
    assert (channel_products(white) == size**2 * 255**2).all()
    assert (pixels == 255).all()


@NEEDED
def test_as_many_white_pictures_as_a_uint16_holds_and_a_view() -> None:
    sums = Sums.small(3)
    wide = np.full((3, 7, 3), 255, np.uint8)
    for _ in range(AT_ONCE):
        sums.count(wide[:, 2:5])
    assert (sums.pixels == 65535).all()
    assert (sums.products == AT_ONCE * 9 * 255**2).all()
