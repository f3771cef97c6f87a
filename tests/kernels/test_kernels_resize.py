"""Bicubic resizing in C against Pillow's, and against the formula in float64."""

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from convnet.data.resize import bicubic
from convnet.kernels.cpu.pictures import resize as cpu_resize

NEEDED = pytest.mark.skipif(not cpu_resize.available(), reason="needs a C compiler")
# Elsewhere Pillow's compiler may join a product and a sum, which moves a weight by a unit in its last place
MOST = 0 if platform.machine() in ("x86_64", "AMD64") else 1  # grey levels
SIDES = st.integers(1, 90)


def picture(height: int, width: int, kind: str) -> NDArray[np.uint8]:
    generator = np.random.default_rng(height * 1000 + width)
    pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
    return pixels if kind == "noise" else (pixels // 128 * 255).astype(np.uint8)  # black and white: sums beyond 0..255


def pillows(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Rows first, in every version."""
    wide = Image.fromarray(pixels).resize((width, len(pixels)), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC))


@NEEDED
@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["noise", "black and white"]))
def test_pixels_are_pillows(height: int, width: int, new_height: int, new_width: int, kind: str) -> None:
    pixels = picture(height, width, kind)
    found, wanted = cpu_resize.resize(pixels, new_height, new_width), pillows(pixels, new_height, new_width)
    assert found.shape == (new_height, new_width, 3)
    assert np.abs(found.astype(int) - wanted).max() <= MOST


@NEEDED
@pytest.mark.parametrize(
    "sizes", [(375, 500, 256, 341), (224, 224, 256, 256), (1200, 900, 341, 256), (50, 2000, 8, 320)]
)
def test_photos_of_usual_sizes(sizes: tuple[int, int, int, int]) -> None:
    pixels = picture(*sizes[:2], "noise")
    assert np.abs(cpu_resize.resize(pixels, *sizes[2:]).astype(int) - pillows(pixels, *sizes[2:])).max() <= MOST


@NEEDED
def test_a_side_that_stays_is_not_touched_and_views_are_read_rightly() -> None:
    pixels = picture(40, 30, "noise")
    assert np.array_equal(cpu_resize.resize(pixels, 40, 30), pixels)
    for height, width in ((40, 17), (17, 30)):
        assert np.array_equal(
            cpu_resize.resize(pixels[::-1], height, width), pillows(pixels[::-1].copy(), height, width)
        )


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_what_is_used_is_the_pillow_that_is_installed(height: int, width: int, new_height: int, new_width: int) -> None:
    pixels = picture(height, width, "noise")
    wanted = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BICUBIC)
    assert np.abs(bicubic(pixels, new_height, new_width).astype(int) - np.asarray(wanted)).max() <= MOST


@NEEDED
@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.integers(1, 150), st.integers(1, 150), st.data())
def test_a_part_is_that_of_the_whole(
    height: int, width: int, new_height: int, new_width: int, data: st.DataObject
) -> None:
    pixels = picture(height, width, "noise")
    top, left = data.draw(st.integers(0, new_height - 1)), data.draw(st.integers(0, new_width - 1))
    n_rows, n_columns = data.draw(st.integers(1, new_height - top)), data.draw(st.integers(1, new_width - left))
    out = np.empty((n_rows, n_columns, 3), np.uint8)
    cpu_resize.resize_part(pixels, new_height, new_width, (top, left), out)
    whole = cpu_resize.resize(pixels, new_height, new_width)
    assert np.array_equal(out, whole[top : top + n_rows, left : left + n_columns])


@NEEDED
def test_the_filter_is_keys() -> None:
    """Enlarged by 2, a pixel lies a quarter from the nearest: weights of |x| = 1/4, 3/4, 5/4, 7/4."""
    row = np.zeros((1, 9, 3), np.uint8)
    row[0, 4] = 100
    found = cpu_resize.resize(row, 1, 18)[0, :, 0]
    x = np.array([1.75, 1.25, 0.75, 0.25])
    keys = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * 100
    wanted = np.clip(np.floor(keys + 0.5), 0, 255)
    assert found[5:9].tolist() == wanted.tolist()
    assert found[9:13].tolist() == wanted[::-1].tolist()
