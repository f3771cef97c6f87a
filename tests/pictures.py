"""Pictures for tests, written by Pillow or by hand, and folders of them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encoded(picture: Image.Image | NDArray[np.uint8], kind: str, **options: object) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes], interlaced: bool = False
) -> bytes:
    """A PNG written by hand."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def photo(number: int, width: int = 24, height: int = 18) -> NDArray[np.uint8]:
    """uint8 (height, width, 3), smooth and noisy as photos are; another for each number."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    return (smooth + random.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


def write_photos(root: Path, names: dict[str, int], first: int = 0) -> Path:
    """`names` is {folder: how many}: wide, tall and square photos, by turns PNG and JPEG."""
    number = first
    for folder, n in names.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            kind = ("PNG", "JPEG")[k % 2]
            sides = [(24, 18), (17, 29), (16, 16), (12, 40), (31, 30)][number % 5]
            (root / folder / f"{k:04d}.{kind.lower()}").write_bytes(encoded(photo(number, *sides), kind))
            number += 1
    return root


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
