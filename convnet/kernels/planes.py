"""Pictures in half their bytes: brightness at full resolution, colour at half of it in both directions (4:2:0).

    Y  = 0.299 R + 0.587 G + 0.114 B                        (S, S)
    Cb = 128 + (B - Y) / 1.772                              (S/2, S/2), of the mean of 2 x 2 pixels
    Cr = 128 + (R - Y) / 1.402                              (S/2, S/2)

as JPEG files have it (ITU-R 601, full range). Back, a pixel's colour is 9/16 of its own square's, 3/16 of each of the
two nearest beside it and 1/16 of the nearest across; at the edge the square itself stands for what is missing. All is
integer arithmetic, so that every form of it gives the same bytes. A 256 x 256 picture takes 98,304 bytes.

The pixels are not the same afterwards: docs/speed.md has the loss on photos.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convnet.errors import UsageError

LUMA = (19595, 38470, 7471)  # of 2^16
CB, CR = (-11059, -21709, 32768), (32768, -27439, -5329)  # of 2^16; each adds up to 0
RED, GREEN, BLUE = 91881, (-22554, -46802), 116130  # of 2^16: by which Cr, (Cb, Cr) and Cb enter; 1.402 and so on
SHIFT = 20  # bits after the point of a colour: 16 of the factors, 4 of the weights 9, 3, 3, 1


def n_bytes(size: int) -> int:
    """Of a packed picture of size x size pixels.

    >>> n_bytes(256)
    98304
    """
    return size * size * 3 // 2


def side(packed: Tensor) -> int:
    """The side, in pixels, of packed pictures (N, bytes)."""
    return math.isqrt(packed.shape[1] * 2 // 3)


def pack(pictures: Tensor) -> Tensor:
    """uint8 (N, S, S, 3) -> uint8 (N, 3 S^2 / 2): Y row by row, then Cb, then Cr. Raises: UsageError where S is odd."""
    size = pictures.shape[1]
    if size % 2:
        raise UsageError(f"pictures of {size} pixels can't be packed as 4:2:0: the side must be even")
    pixels = pictures.movedim(-1, 1).to(torch.int32)
    squares = pixels[:, :, 0::2] + pixels[:, :, 1::2]
    squares = squares[..., 0::2] + squares[..., 1::2]
    luma = (_sum(pixels, LUMA) + (1 << 15)) >> 16
    chroma = [((_sum(squares, factors) + (128 << 18) + (1 << 17) - 1) >> 18).clamp(0, 255) for factors in (CB, CR)]
    return torch.cat([each.flatten(1).to(torch.uint8) for each in (luma, *chroma)], 1)


def unpack(packed: Tensor) -> Tensor:
    """uint8 (N, 3 S^2 / 2), as `pack` writes it, -> uint8 (N, S, S, 3)."""
    size = side(packed)
    half = size // 2
    parts = torch.split(packed, [size * size, half * half, half * half], 1)
    luma = parts[0].view(-1, size, size).to(torch.int32) << SHIFT
    cb, cr = (_smooth(part.view(-1, half, half)) - (128 << 4) for part in parts[1:])
    planes = (luma + RED * cr, luma + GREEN[0] * cb + GREEN[1] * cr, luma + BLUE * cb)
    return torch.stack([((plane + (1 << SHIFT - 1)) >> SHIFT).clamp(0, 255).to(torch.uint8) for plane in planes], -1)


def _sum(planes: Tensor, factors: tuple[int, int, int]) -> Tensor:
    return planes[:, 0] * factors[0] + planes[:, 1] * factors[1] + planes[:, 2] * factors[2]


def _smooth(plane: Tensor) -> Tensor:
    """uint8 (N, h, w) -> int32 (N, 2 h, 2 w), times 16."""
    n, height, width = plane.shape
    edged = F.pad(plane[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0].to(torch.int32)
    out = plane.new_empty((n, 2 * height, 2 * width), dtype=torch.int32)
    own = edged[:, 1:-1, 1:-1]
    for dy in (0, 1):
        rows = slice(2 * dy, 2 * dy + height)
        for dx in (0, 1):
            columns = slice(2 * dx, 2 * dx + width)
            beside = edged[:, rows, 1:-1] + edged[:, 1:-1, columns]
            out[:, dy::2, dx::2] = 9 * own + 3 * beside + edged[:, rows, columns]
    return out
