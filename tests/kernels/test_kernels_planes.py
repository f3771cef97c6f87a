"""4:2:0 planes: against the formulas in float64, and what they leave of pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convnet.errors import UsageError
from convnet.kernels.planes import n_bytes, pack, side, unpack


def noise(n: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def weights(size: int, i: int) -> NDArray[np.float64]:
    """How much of each of `size` squares is in the colour of pixel i, along one side."""
    found = np.zeros(size)
    found[i // 2] += 0.75
    found[np.clip(i // 2 + (1 if i % 2 else -1), 0, size - 1)] += 0.25
    return found


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 3), half=st.integers(1, 6), seed=st.integers(0, 99))
def test_packing_is_the_formula(n: int, half: int, seed: int) -> None:
    pixels = noise(n, 2 * half, seed)
    packed = pack(torch.from_numpy(pixels)).numpy().astype(np.float64)
    assert packed.shape == (n, n_bytes(2 * half))
    red, green, blue = np.moveaxis(pixels.astype(np.float64), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = [128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    means = [each.reshape(n, half, 2, half, 2).mean((2, 4)).clip(0, 255) for each in colours]
    expected = np.concatenate([each.reshape(n, -1) for each in (luma, *means)], 1)
    assert np.abs(packed - expected).max() <= 0.51


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 3), half=st.integers(1, 6), seed=st.integers(0, 99))
def test_unpacking_is_the_formula(n: int, half: int, seed: int) -> None:
    size = 2 * half
    packed = np.random.default_rng(seed).integers(0, 256, (n, n_bytes(size)), np.uint8)
    luma = packed[:, : size * size].reshape(n, size, size).astype(np.float64)
    across = np.stack([weights(half, i) for i in range(size)])
    planes = packed[:, size * size :].reshape(n, 2, half, half) - 128.0
    cb, cr = np.moveaxis(across @ planes @ across.T, 1, 0)
    green = luma - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587
    expected = np.stack([luma + 1.402 * cr, green, luma + 1.772 * cb], -1).clip(0, 255)
    found = unpack(torch.from_numpy(packed)).numpy()
    assert found.shape == (n, size, size, 3)
    assert np.abs(found - expected).max() <= 0.51


def test_grey_pictures_come_back_as_they_were() -> None:
    grey = torch.from_numpy(noise(2, 8)[..., :1].repeat(3, -1))
    assert torch.equal(unpack(pack(grey)), grey)


def test_one_colour_comes_back_within_two_levels() -> None:
    """Rounding of three numbers; nothing is lost to the resolution."""
    colours = torch.from_numpy(noise(500, 1)).expand(-1, 4, 4, -1)
    assert int((unpack(pack(colours)).int() - colours.int()).abs().max()) <= 2


def test_sizes() -> None:
    assert n_bytes(256) == 98_304
    assert side(pack(torch.zeros(1, 6, 6, 3, dtype=torch.uint8))) == 6
    with pytest.raises(UsageError, match="pictures of 5 pixels can't be packed as 4:2:0: the side must be even"):
        pack(torch.zeros(1, 5, 5, 3, dtype=torch.uint8))
