# mypy: disable-error-code="no-untyped-def"
"""Stored pictures to the net's input in one pass: gather, crop, minus mean, colour shift, mirror, scale, offset, cast.

What it computes is `augment.to_input` of `Split.crops`, for pictures in colour; they may be packed (planes.py). It is
written channels-last.

Plain form: `plain_augment`.

Traffic: of a crop of 224 x 224 it reads 150,528 bytes and writes 301,056 in bf16: at 4.3 TB/s 1024 pictures take
0.11 ms (computed); of packed ones it reads half of that. A mean picture of 256 x 256 in float32 is 0.8 MB and stays in
the cache. The stored pictures lie on the device, or in pinned memory of the host, which the device reads itself.
"""

import torch
from torch import Tensor

from convnet.kernels import planes
from convnet.kernels.cuda.triton import is_float, jit, launch, runs_on, tl

BLOCK = 1024  # elements of a program


def available(pictures: Tensor, device: torch.device) -> bool:
    """Whether `augment` takes these pictures, (M, S, S, 3) or packed, to write on the device."""
    reachable = pictures.device.type == device.type or pictures.is_pinned()
    return runs_on(device) and reachable and pictures.dtype == torch.uint8 and pictures.is_contiguous()


def plain_augment(
    pictures: Tensor,
    rows: Tensor,
    corners: Tensor,
    mirrored: Tensor,
    colour: Tensor,
    mean: Tensor | None,
    *,
    crop: int,
    scale: float = 1.0,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N, 3, crop, crop) of the pictures `rows`, channels-last.

    pictures: uint8 (M, S, S, 3), or (M, 3 S^2 / 2) as `planes.pack` writes them. The rest is on one device: rows, int64
    (N,); corners, int64 (N, 2), each crop's first row and column, negative in a padded border, which is black;
    mirrored, bool (N,); colour, float32 (N, 3), what is added in grey levels; mean, float32 (3,) or (S, S, 3), what is
    subtracted (of a mean picture 0 in the border).
    """
    if pictures.ndim == 2:
        pictures = planes.unpack(pictures[rows.to(pictures.device)])
        rows = torch.arange(len(rows), device=rows.device)
    size, device = pictures.shape[1], rows.device
    along = torch.arange(crop, device=device)
    across = torch.where(mirrored[:, None], crop - 1 - along, along)
    ys, xs = corners[:, :1] + along, corners[:, 1:] + across
    inside = ((ys >= 0) & (ys < size))[:, :, None] & ((xs >= 0) & (xs < size))[:, None, :]
    ys, xs = ys.clamp(0, size - 1)[:, :, None], xs.clamp(0, size - 1)[:, None, :]
    at = pictures.device
    images = pictures[rows[:, None, None].to(at), ys.to(at), xs.to(at)].to(device).float() * inside[..., None]
    if mean is not None:
        images = images - (mean if mean.ndim == 1 else mean[ys, xs] * inside[..., None])
    images = (images + colour[:, None, None]) * scale + offset
    return images.to(dtype).permute(0, 3, 1, 2)


def augment(
    pictures: Tensor,
    rows: Tensor,
    corners: Tensor,
    mirrored: Tensor,
    colour: Tensor,
    mean: Tensor | None,
    *,
    crop: int,
    scale: float = 1.0,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`plain_augment` of what `available` says yes to; a crop that no one saw before is compiled first."""
    out = torch.empty((len(rows), crop, crop, 3), dtype=dtype, device=rows.device)
    assert is_float(out)
    if out.numel():
        grid = (len(rows), -(-out[0].numel() // BLOCK))
        sampled = (rows, corners, mirrored, colour)
        kind = 0 if mean is None else mean.ndim  # 1: a colour, 3: a picture
        packed = pictures.ndim == 2
        sizes = (planes.side(pictures) if packed else pictures.shape[1], crop, kind, packed, BLOCK)
        launch(_augment, grid, rows.device, pictures, *sampled, mean, out, scale, offset, *sizes)
    return out.permute(0, 3, 1, 2)


@jit
def _augment(
    pictures,
    rows,
    corners,
    mirrored,
    colour,
    mean,
    out,
    scale,
    offset,
    size: tl.constexpr,
    crop: tl.constexpr,
    kind: tl.constexpr,
    packed: tl.constexpr,
    block: tl.constexpr,
):
    """kind: the dimensions of `mean`, block: elements of a program."""
    picture = tl.program_id(0)
    place = tl.program_id(1) * block + tl.arange(0, block)
    y = place // (3 * crop)
    x = place // 3 % crop
    c = place % 3

    exists = y < crop
    source_y = tl.load(corners + 2 * picture).to(tl.int32) + y
    source_x = tl.load(corners + 2 * picture + 1).to(tl.int32)
    source_x += tl.where(tl.load(mirrored + picture) != 0, crop - 1 - x, x)
    inside = exists & (source_y >= 0) & (source_y < size) & (source_x >= 0) & (source_x < size)
    pixel = (source_y * size + source_x) * 3 + c
    row = tl.load(rows + picture).to(tl.int64)
    if packed:
        value = _unpacked(pictures + row * (size * size * 3 // 2), source_y, source_x, c, inside, size).to(tl.float32)
    else:
        value = tl.load(pictures + row * (size * size * 3) + pixel, mask=inside, other=0).to(tl.float32)
    if kind == 3:
        value = value - tl.load(mean + pixel, mask=inside, other=0)
    if kind == 1:
        value = value - tl.load(mean + c)
    value = (value + tl.load(colour + 3 * picture + c)) * scale + offset
    tl.store(out + picture.to(tl.int64) * (crop * crop * 3) + place, value, mask=exists)


@jit
def _unpacked(luma, y, x, c, inside, size: tl.constexpr):
    """`planes.unpack` of pixel (y, x), map c, of the packed picture that begins at `luma`: int32, 0 to 255."""
    cb = _colour(luma + size * size, y, x, inside & (c > 0), size // 2)
    cr = _colour(luma + size * size * 5 // 4, y, x, inside & (c < 2), size // 2)
    of_cb = tl.where(c == 1, -22554, 116130)  # planes.GREEN and BLUE; for red cb is 0
    of_cr = tl.where(c == 1, -46802, 91881)  # planes.GREEN and RED; for blue cr is 0
    value = (tl.load(luma + y * size + x, mask=inside, other=0).to(tl.int32) << 20) + of_cb * cb + of_cr * cr
    value = tl.minimum(tl.maximum((value + (1 << 19)) >> 20, 0), 255)
    return tl.where(inside, value, 0)


@jit
def _colour(plane, y, x, inside, half: tl.constexpr):
    """A colour at pixel (y, x), less 128, times 16; 0 where it isn't asked for."""
    row, column = y // 2, x // 2
    other_row = tl.minimum(tl.maximum(row + 2 * (y % 2) - 1, 0), half - 1)
    other_column = tl.minimum(tl.maximum(column + 2 * (x % 2) - 1, 0), half - 1)
    own = tl.load(plane + row * half + column, mask=inside, other=128).to(tl.int32)
    above = tl.load(plane + other_row * half + column, mask=inside, other=128).to(tl.int32)
    beside = tl.load(plane + row * half + other_column, mask=inside, other=128).to(tl.int32)
    across = tl.load(plane + other_row * half + other_column, mask=inside, other=128).to(tl.int32)
    return 9 * own + 3 * (above + beside) + across - 2048
