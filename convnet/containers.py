"""What does a picture's container say before its pixels are decoded: format, size, orientation, frames; is it whole?

Each format is walked here from its first byte to its last, so that Pillow, which decodes the pixels, is given only what
pixels need: it then has nothing to warn of and no metadata to stumble over.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError


class BadPicture(DataError):  # noqa: N818 - what the picture is
    """A picture that cannot be used; the text is the short reason, without the file's name."""


@dataclass(slots=True)
class Facts:
    """What a picture's container says besides its pixels."""

    data: bytes  # for Pillow
    size: tuple[int, int] | None = None  # (W, H) where it is known before Pillow looks
    exif: bytes | None = None
    profile: bytes | None = None
    key: bytes | None = None  # PNG: the colour that is transparent
    bits: int = 8
    inverted: bool = False  # 0 is white, and Pillow doesn't see to it
    orientation: int = 1
    notes: list[str] = field(default_factory=list)


def sniff(head: bytes) -> str | None:
    """The format that the first bytes (16 are enough) announce, or None.

    >>> sniff(b"GIF89a")
    'GIF'
    """
    if head[:2] == b"BM" and len(head) >= 16 and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if re.match(rb"P[1-6][\s#]", head):
        return "PPM"
    for start, kind in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
    ):
        if head.startswith(start):
            return kind
    return None


def look(kind: str, data: bytes) -> Facts:
    """What the container of this format says.

    Raises: BadPicture; also struct.error, IndexError and the like, when it is damaged.
    """
    facts = _LOOK[kind](data)
    _orient(facts)
    return facts


def _orient(facts: Facts) -> None:
    """Reads EXIF's orientation and looks at the ICC profile; what is broken is ignored with a note."""
    if facts.exif is not None:
        try:
            facts.orientation = _exif_orientation(facts.exif.removeprefix(b"Exif\0\0"))
        except (ValueError, struct.error):
            facts.notes.append("broken EXIF ignored")
    profile = facts.profile
    if profile is not None and (profile[36:40] != b"acsp" or int.from_bytes(profile[:4], "big") != len(profile)):
        facts.notes.append("broken ICC profile ignored")


def _exif_orientation(exif: bytes) -> int:
    """Tag 274 of a TIFF directory, 1 when there is none. Raises: ValueError, struct.error."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("no TIFF header")
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (n_tags,) = struct.unpack_from(order + "H", exif, start)
    for number in range(n_tags):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, start + 2 + 12 * number)
        if tag == 274:
            (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, start + 10 + 12 * number)
            if kind not in (3, 4) or count != 1 or not 1 <= value <= 8:
                raise ValueError("no orientation")
            return int(value)
    return 1


def _look_jpeg(data: bytes) -> Facts:
    """Walks the segments up to the pixels. Pillow would parse the EXIF and warn: it is renamed in a copy."""
    facts, profile, copy = Facts(data), {}, bytearray(data)
    for marker, start, end in _jpeg_segments(data):
        body = data[start:end]
        if marker == 0xE1 and body[:5] == b"Exif\0":
            facts.exif = facts.exif or body
            copy[start : start + 4] = b"exif"
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == 0xE2 and body[:4] == b"MPF\0":
            facts.notes.append("first of several pictures")
        elif marker == 0xED:
            copy[start : start + 4] = b"none"  # Photoshop's resources, which Pillow parses too
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            height, width = struct.unpack_from(">HH", body, 1)
            facts.size = (width, height)
    if profile:
        facts.profile = b"".join(profile[number] for number in sorted(profile))
    facts.data = bytes(copy)
    return facts


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment's body, up to the start of the first scan."""
    place = 2
    while True:
        while place < len(data) and data[place] != 0xFF:
            place += 1  # Pillow and libjpeg pass over stray bytes too
        while place < len(data) and data[place] == 0xFF:
            place += 1
        if place >= len(data):
            raise BadPicture("truncated JPEG")
        marker = data[place]
        place += 1
        if marker == 0xD9:
            raise BadPicture("a JPEG without pixels")
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if place + max(length, 2) > len(data):
            raise BadPicture("truncated JPEG")
        yield marker, place + 2, place + max(length, 2)
        if marker == 0xDA:
            return
        place += max(length, 2)


def _look_png(data: bytes) -> Facts:
    """Walks the chunks; Pillow is given only those that pixels need."""
    facts, kept, place, palette = Facts(data), [data[:8]], 8, False
    while True:
        if place + 12 > len(data):
            raise BadPicture("truncated PNG")
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise BadPicture("truncated PNG")
        body = data[place + 8 : end - 4]
        whole = zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            if not whole:
                raise BadPicture(f"damaged PNG: wrong CRC in {name.decode()}")
            if name == b"IHDR":
                width, height, facts.bits, colour = struct.unpack_from(">IIBB", body)
                facts.size, palette = (width, height), colour == 3
            if name == b"tRNS" and not palette:
                facts.key = body
            else:
                kept.append(data[place:end])
        elif name in (b"eXIf", b"iCCP"):
            _png_extra(facts, name, body if whole else None)
        elif name == b"acTL" and body[:4] > b"\0\0\0\1":
            facts.notes.append(f"first frame of {int.from_bytes(body[:4], 'big')}")
        if name == b"IEND":
            facts.data = b"".join(kept)
            return facts
        place = end


def _png_extra(facts: Facts, name: bytes, body: bytes | None) -> None:
    """Takes up a PNG's EXIF or profile; None is a chunk whose CRC is wrong."""
    if name == b"eXIf":
        facts.exif = body or b""
        return
    try:
        start = (body or b"").index(b"\0") + 2
        facts.profile = zlib.decompressobj().decompress((body or b"")[start:], 1 << 24)
    except (ValueError, zlib.error):
        facts.profile = b""


def _look_gif(data: bytes) -> Facts:
    """Walks the blocks to the end and counts the frames."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    facts, place, n_frames = Facts(data, (width, height)), 13 + _gif_palette(flags), 0
    while True:
        block = data[place : place + 1]
        if block == b";":
            break
        if block == b"!":
            place += 2
        elif block == b",":
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, place + 1)
            if n_frames == 0:  # a frame may reach over the screen: Pillow makes room for it
                facts.size = (max(width, left + wide), max(height, top + high))
            n_frames += 1
            place += 11 + _gif_palette(flags)
        elif block:
            raise BadPicture(f"damaged GIF: no block begins with {block!r}")
        while place < len(data) and data[place]:
            place += 1 + data[place]
        if place >= len(data):
            raise BadPicture("truncated GIF")
        place += 1
    if n_frames == 0:
        raise BadPicture("a GIF without a frame")
    if n_frames > 1:
        facts.notes.append(f"first frame of {n_frames}")
    return facts


def _gif_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


PIXEL_TAGS: dict[
    int, int | None
] = {  # TIFF tags that pixels depend on: the most values that make sense, None for as many as there are
    **dict.fromkeys((256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323), 1),
    **dict.fromkeys((258, 273, 279, 320, 324, 325, 338, 339, 347)),
    530: 2,
    532: 6,
}
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of one value of each type


def _look_tiff(data: bytes) -> Facts:
    """The first directory, rebuilt from the tags that pixels need, each within the file: nothing to warn of."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    facts, kept, n_pages = Facts(data), {}, _tiff_pages(data, order, start)
    (n_tags,) = struct.unpack_from(order + "H", data, start)
    for number in range(n_tags):
        place = start + 2 + 12 * number
        tag, kind, count = struct.unpack_from(order + "HHI", data, place)
        length = TIFF_BYTES.get(kind, 0) * count
        if tag == 274:
            facts.exif = data[:4] + struct.pack(order + "IH", 8, 1) + data[place : place + 12]
        if tag not in PIXEL_TAGS:
            continue
        (offset,) = struct.unpack_from(order + "I", data, place + 8)
        if not length or (length > 4 and offset + length > len(data)):
            raise BadPicture("truncated TIFF" if length else f"damaged TIFF: tag {tag} has no values")
        if PIXEL_TAGS[tag] is not None and count > (PIXEL_TAGS[tag] or 0):
            raise BadPicture(f"damaged TIFF: tag {tag} has {count} values")
        kept[tag] = data[place : place + 12]
    _tiff_facts(facts, order, kept)
    _tiff_whole(data, order, kept)
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept[tag] for tag in sorted(kept)) + bytes(4)
    padding = b"\0" * (len(data) % 2)
    facts.data = data[:4] + struct.pack(order + "I", len(data) + len(padding)) + data[8:] + padding + directory
    if n_pages > 1:
        facts.notes.append(f"first page of {n_pages}")
    return facts


def _tiff_facts(facts: Facts, order: str, kept: dict[int, bytes]) -> None:
    """Size, bits and polarity, from the directory's entries (12 bytes each)."""

    def value(tag: int, default: int) -> int:
        if tag not in kept:
            return default
        kind, count = struct.unpack_from(order + "HI", kept[tag], 2)
        return int(struct.unpack_from(order + ("I" if kind == 4 else "H"), kept[tag], 8)[0]) if count <= 2 else default

    facts.size = (value(256, 0), value(257, 0))
    facts.bits = value(258, 8)
    facts.inverted = value(262, 1) == 0


def _tiff_whole(data: bytes, order: str, kept: dict[int, bytes]) -> None:
    """Sees that every strip and tile lies within the file."""

    def values(tag: int) -> NDArray[np.int64]:
        kind, count, offset = struct.unpack(order + "HII", kept[tag][2:])
        size = TIFF_BYTES[kind]
        raw = kept[tag][8 : 8 + count * size] if count * size <= 4 else data[offset : offset + count * size]
        return np.frombuffer(raw, f"{order}u{size}").astype(np.int64)

    for places, lengths in ((273, 279), (324, 325)):
        if places in kept and lengths in kept:
            starts, sizes = values(places), values(lengths)
            if len(starts) != len(sizes):
                raise BadPicture(f"damaged TIFF: {len(starts)} strips or tiles, but {len(sizes)} lengths")
            if (starts + sizes > len(data)).any():
                raise BadPicture("truncated TIFF")


def _tiff_pages(data: bytes, order: str, start: int) -> int:
    """The number of directories in the chain; a chain that bites its tail or leaves the file ends."""
    seen: set[int] = set()
    while start and start not in seen and start + 2 <= len(data):
        seen.add(start)
        (n_tags,) = struct.unpack_from(order + "H", data, start)
        place = start + 2 + 12 * n_tags
        if place + 4 > len(data):
            if len(seen) == 1:
                raise BadPicture("truncated TIFF")
            break
        (start,) = struct.unpack_from(order + "I", data, place)
    return len(seen)


def _look_webp(data: bytes) -> Facts:
    """Walks the RIFF chunks."""
    facts, n_frames, place = Facts(data), 0, 12
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise BadPicture("truncated WEBP")
    while place + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, place)
        body = data[place + 8 : place + 8 + length]
        if len(body) < length:
            raise BadPicture("truncated WEBP")
        if name == b"VP8X":
            facts.size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif name == b"VP8 " and facts.size is None:
            width, height = struct.unpack_from("<HH", body, 6)
            facts.size = (width & 0x3FFF, height & 0x3FFF)
        elif name == b"VP8L" and facts.size is None:
            (word,) = struct.unpack_from("<I", body, 1)
            facts.size = (1 + (word & 0x3FFF), 1 + (word >> 14 & 0x3FFF))
        facts.exif = body if name == b"EXIF" else facts.exif
        facts.profile = body if name == b"ICCP" else facts.profile
        n_frames += name == b"ANMF"
        place += 8 + length + length % 2
    if n_frames > 1:
        facts.notes.append(f"first frame of {n_frames}")
    return facts


def _look_bmp(data: bytes) -> Facts:
    if int.from_bytes(data[2:6], "little") > len(data):
        raise BadPicture("truncated BMP")
    return Facts(data)


_LOOK = {
    "JPEG": _look_jpeg,
    "PNG": _look_png,
    "GIF": _look_gif,
    "TIFF": _look_tiff,
    "WEBP": _look_webp,
    "BMP": _look_bmp,
    "PPM": Facts,
}
