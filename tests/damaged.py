"""Pictures damaged in known ways: what becomes of the pixels, and is it noticed?"""

import random
import struct
from collections import Counter
from collections.abc import Iterator

import numpy as np

from convnet.data.decode import BadPicture, decode
from pictures import encoded, photo

FORMATS: dict[str, tuple[dict[str, object], ...]] = {
    "JPEG": ({"quality": 90}, {"quality": 75, "subsampling": 0}, {"quality": 85, "progressive": True}),
    "PNG": ({}, {"compress_level": 1}),
    "WEBP": ({"quality": 80}, {"quality": 50, "method": 6}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}),
    "GIF": ({},),
    "BMP": ({},),
}
TAIL = {"JPEG": 2, "PNG": 12, "GIF": 2}  # bytes that close a file
VISIBLE = 0.05  # of the pixels are wrong


def harmed(data: bytes, kind: str, choice: random.Random) -> Iterator[tuple[str, bytes]]:
    """The same file with each kind of damage, somewhere behind its first bytes."""
    n, size = len(data), min(choice.choice((16, 64, 512)), len(data) // 8)
    tail = TAIL.get(kind, 0)
    place = choice.randrange(12, n - size - tail)
    for name, n_bits in (("a bit", 1), ("8 bits", 8)):
        copy = bytearray(data)
        for _ in range(n_bits):
            copy[choice.randrange(12, n - tail)] ^= 1 << choice.randrange(8)
        yield name, bytes(copy)
    copy = bytearray(data)
    for _ in range(4):
        copy[choice.randrange(12, n - tail)] = choice.randrange(256)
    yield "4 bytes", bytes(copy)
    yield "a hole of zeros", data[:place] + bytes(size) + data[place + size :]
    yield "a random hole", data[:place] + choice.randbytes(size) + data[place + size :]
    yield "bytes missing", closed(data[:place] + data[place + size :], kind)
    yield "cut and closed", closed(data[:place] + data[n - tail :], kind)


def closed(data: bytes, kind: str) -> bytes:
    """With the sizes that its header states made right."""
    if kind == "WEBP":
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:16] + struct.pack("<I", len(data) - 20) + data[20:]
    return data[:2] + struct.pack("<I", len(data)) + data[6:] if kind == "BMP" else data


def wrong_part(data: bytes, right: np.ndarray) -> float | None:
    """The part of the pixels that are wrong without a word; None when the picture is failed or noted."""
    try:
        pixels, notes = decode(data)
    except BadPicture:
        return None
    if notes:
        return None
    return 1.0 if pixels.shape != right.shape else float((pixels != right).any(axis=2).mean())


def judged(
    kinds: list[str], n_each: int, seed: int = 0, sides: tuple[int, int] = (120, 90)
) -> Counter[tuple[str, ...]]:
    """How many damaged pictures there are, by (format, damage, verdict): noticed, small (at most 5 %) or unnoticed."""
    choice, table = random.Random(seed), Counter[tuple[str, ...]]()
    for kind in kinds:
        for number in range(n_each):
            data = encoded(photo(seed + number, *sides), kind, **FORMATS[kind][number % len(FORMATS[kind])])
            right, _ = decode(data)
            for damage, file in harmed(data, kind, choice):
                part = wrong_part(file, right)
                verdict = "noticed" if part is None else "unnoticed" if part > VISIBLE else "small"
                table[kind, damage, verdict] += 1
    return table


def lines(table: Counter[tuple[str, ...]]) -> list[str]:
    """The table for people, a line each format."""
    rows = ["format    noticed  small  unnoticed  of those that are seen"]
    for kind in dict.fromkeys(key[0] for key in table):
        noticed, small, unnoticed = (
            sum(n for key, n in table.items() if key[0] == kind and key[-1] == verdict)
            for verdict in ("noticed", "small", "unnoticed")
        )
        rows.append(f"{kind:8} {noticed:8,} {small:6,} {unnoticed:10,} {unnoticed / max(1, noticed + unnoticed):10.1%}")
    return rows
