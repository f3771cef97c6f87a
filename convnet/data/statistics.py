"""Data set statistics: mean picture, mean colour, principal components; sums of integers, so exact in any order.

The paper subtracts the mean of the training set (section 2) and shifts colours along the eigenvectors of the covariance
of RGB (section 4.1). The covariance divides by the number of pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnet.io.strict_json import Json
from convnet.kernels.cpu.pictures import sums as cpu_sums

AT_ONCE = 257  # pictures whose uint16 sums of 0..255 can't overflow
BLOCK = 66051  # pixels whose uint32 sums of products 0..255 x 255 can't overflow


@dataclass(frozen=True)
class Statistics:
    """Of the training pictures as stored, central size x size pixels, on the scale 0..255.

    `eigenvalues` (3,) in falling order and `eigenvectors` (3, 3), one in each column, are those of `covariance`.
    """

    n: int
    mean_rgb: NDArray[np.float64]
    covariance: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]


@dataclass
class Sums:
    """Integer sums over n pictures: of each pixel (size, size, 3), and of products of channels (3, 3)."""

    n: int
    pixels: NDArray[np.int64] | NDArray[np.uint16]
    products: NDArray[np.int64]

    @classmethod
    def zero(cls, size: int) -> "Sums":
        """For any number of pictures."""
        return cls(0, np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64))

    @classmethod
    def small(cls, size: int) -> "Sums":
        """For up to AT_ONCE pictures: adding one is several times as fast."""
        return cls(0, np.zeros((size, size, 3), np.uint16), np.zeros((3, 3), np.int64))

    def add(self, other: "Sums") -> None:
        self.n += other.n
        self.pixels += other.pixels
        self.products += other.products

    def count(self, square: NDArray[np.uint8]) -> None:
        """Takes up one picture (size, size, 3)."""
        self.n += 1
        if self.pixels.dtype == np.uint16 and cpu_sums.available():
            self.products += cpu_sums.count(square, self.pixels)
        else:
            self.pixels += square
            self.products += channel_products(square)


def channel_products(square: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(3, 3): the sums over all pixels of the products of two channels. A product fits a uint16."""
    flat = square.reshape(-1, 3)  # twice as fast to take planes from
    out = np.zeros((3, 3), np.int64)
    for start in range(0, len(flat), BLOCK):
        planes = [flat[start : start + BLOCK, c].astype(np.uint16) for c in range(3)]
        for i in range(3):
            for j in range(i, 3):
                out[i, j] += np.multiply(planes[i], planes[j]).sum(dtype=np.uint32)
    return np.maximum(out, out.T)


def mean_picture(sums: Sums) -> NDArray[np.float32]:
    """float32 (size, size, 3), 0..255."""
    return (sums.pixels / sums.n).astype(np.float32)


def statistics(sums: Sums) -> Json:
    """The numbers that store.json keeps: n, mean_rgb, covariance, eigenvalues, eigenvectors (in columns)."""
    n_pixels = sums.n * sums.pixels.shape[0] * sums.pixels.shape[1]
    totals = [int(t) for t in sums.pixels.sum((0, 1))]
    products = [[int(p) for p in row] for row in sums.products]
    covariance = [
        [(products[i][j] * n_pixels - totals[i] * totals[j]) / n_pixels**2 for j in range(3)] for i in range(3)
    ]
    values, vectors = np.linalg.eigh(np.array(covariance))
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(0), range(3)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)  # one sign, for all machines
    return {
        "n": sums.n,
        "mean_rgb": [t / n_pixels for t in totals],
        "covariance": covariance,
        "eigenvalues": values.tolist(),
        "eigenvectors": vectors.tolist(),
    }
