"""The bytes of one picture -> uint8 (H, W, 3) RGB, or the reason why not.

format   read by Pillow from                             looked at here first
JPEG     the whole file, its EXIF hidden                 EXIF orientation, ICC, several pictures (MPO)
PNG      IHDR, PLTE, tRNS, IDAT, IEND only               every CRC, eXIf, iCCP, acTL
GIF      the whole file                                  every block; the number of frames
TIFF     a directory with only the tags that pixels need every tag's place and length; orientation, pages
WEBP     the whole file                                  size, EXIF, ICC, the number of frames
BMP      the whole file                                  its length
PPM      the whole file (16-bit RGB: read here)          nothing

Pillow's plugins are called directly on what has been looked at, so that it has nothing to warn of (warnings can't be
caught in several threads) and its own global limits play no part. Alpha is composited over white. 16-bit values are
shifted right by 8. CMYK is inverted where Adobe's marker says so. ICC profiles are not applied.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from convnet.errors import DataError

MAX_PIXELS = (1 << 28) // 3  # more is taken for a bomb: 256 MiB of RGB
WHITE = (255, 255, 255)

KNOWN = {  # what the first bytes say of things that are not read
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"%!PS": "PostScript",
    b"8BPS": "a Photoshop picture",
    b"\x00\x00\x01\x00": "an icon (ICO)",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000, which is not read",
    b"\xff\x4f\xff\x51": "JPEG 2000, which is not read",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL, which is not read",
    b"\xff\x0a": "JPEG XL, which is not read",
    b"\x89HDF": "HDF5 data",
    b"\x93NUMPY": "a numpy array",
}


class BadPicture(DataError):
    """A picture that cannot be used; the text is the short reason, without the file's name."""


@dataclass(slots=True)
class _Facts:
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


def decode(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The pixels, uint8 (H, W, 3), C-contiguous, and notes such as "first frame of 12".

    Raises: BadPicture for any bytes that are no whole picture.
    """
    kind = sniff(data[:32])
    if kind is None:
        raise BadPicture(_stranger(data))
    try:
        facts = _LOOK[kind](data)
        _orient(facts)
        pixels = np.ascontiguousarray(_turned(_pixels(kind, facts), facts.orientation))
    except BadPicture:
        raise
    except Exception as error:  # Pillow raises whatever its parsers stumble over; the bytes are to blame
        raise BadPicture(_blame(kind, error)) from error
    return pixels, tuple(facts.notes)


def _pixels(kind: str, facts: _Facts) -> NDArray[np.uint8]:
    """The pixels as they are stored, before they are turned."""
    if facts.size is not None:
        _limit(*facts.size)
    plugin = _PLUGIN[kind]
    with plugin(io.BytesIO(facts.data)) as picture:
        _limit(*picture.size)
        if kind == "PPM" and (deep := _deep_ppm(facts.data, picture.size)) is not None:
            return deep
        picture.load()
        if kind == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info:
            return _rgb(picture.point(lambda value: 255 - value), kind, facts)
        return _rgb(picture, kind, facts)


def _rgb(picture: Image.Image, kind: str, facts: _Facts) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of a loaded picture in any of the modes that are understood."""
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        grey = np.asarray(picture)
        values = (grey.astype(np.int32) >> max(facts.bits - 8, 0) if mode != "I" else grey >> 8).astype(np.uint8)
        values = 255 - values if facts.inverted else values
        shades: NDArray[np.uint8] = np.repeat(values[:, :, None], 3, axis=2)
        if facts.key is not None:
            shades[grey == int.from_bytes(facts.key[:2], "big")] = 255
        return shades
    if mode in ("P", "PA"):
        clear = mode == "PA" or "transparency" in picture.info
        picture = picture.convert("RGBA" if clear else "RGB")
    elif mode in ("LA", "La", "RGBa"):
        picture = picture.convert({"LA": "RGBA", "La": "LA", "RGBa": "RGBA"}[mode])
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    elif mode not in ("1", "L", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        names = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "Lab colours"}
        raise BadPicture(f"its pixels are {names.get(mode, mode)}, which are not read; convert it to 8 or 16 bits")
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, WHITE)
        white.paste(picture.convert("RGB"), mask=picture.getchannel("A"))
        picture = white
    picture.info.pop("transparency", None)
    pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    if facts.key is not None:
        pixels[(pixels == _key_colour(facts)).all(axis=2)] = 255
    return pixels


def _key_colour(facts: _Facts) -> NDArray[np.uint8]:
    """The transparent colour of a PNG without a palette, in 8 bits."""
    values = np.frombuffer(facts.key or b"", ">u2").astype(np.int64)
    values = values >> 8 if facts.bits == 16 else values * 255 // ((1 << facts.bits) - 1)
    return values.astype(np.uint8)


def _deep_ppm(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A raw RGB picture of 16-bit values, which Pillow would round instead of shifting; else None."""
    header = re.match(rb"P6(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+65535\s", data)
    if header is None:
        return None
    width, height = size
    if len(data) - header.end() < 6 * width * height:
        raise BadPicture("truncated PPM")
    values = np.frombuffer(data, ">u2", 3 * width * height, header.end())
    return (values >> 8).astype(np.uint8).reshape(height, width, 3)


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The picture as it is meant to be seen; EXIF's orientation says where its first row and column lie."""
    if orientation in (5, 6, 7, 8):  # the stored row is the seen column
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _limit(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadPicture(f"{width} x {height} pixels: it is empty")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed: a decompression bomb?")


def _orient(facts: _Facts) -> None:
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


def _look_jpeg(data: bytes) -> _Facts:
    """Walks the segments up to the pixels. Pillow would parse the EXIF and warn: it is renamed in a copy."""
    facts, profile, copy = _Facts(data), {}, bytearray(data)
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


def _look_png(data: bytes) -> _Facts:
    """Walks the chunks; Pillow is given only those that pixels need."""
    facts, kept, place, palette = _Facts(data), [data[:8]], 8, False
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


def _png_extra(facts: _Facts, name: bytes, body: bytes | None) -> None:
    """Takes up a PNG's EXIF or profile; None is a chunk whose CRC is wrong."""
    if name == b"eXIf":
        facts.exif = body or b""
        return
    try:
        start = (body or b"").index(b"\0") + 2
        facts.profile = zlib.decompressobj().decompress((body or b"")[start:], 1 << 24)
    except (ValueError, zlib.error):
        facts.profile = b""


def _look_gif(data: bytes) -> _Facts:
    """Walks the blocks to the end and counts the frames."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    facts, place, n_frames = _Facts(data, (width, height)), 13 + _gif_palette(flags), 0
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


PIXEL_TAGS = {  # TIFF tags that pixels depend on: the most values that make sense, None for as many as there are
    **dict.fromkeys((256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323), 1),
    **{258: None, 273: None, 279: None, 320: None, 324: None, 325: None, 338: None, 339: None, 347: None, 530: 2, 532: 6},
}
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of one value of each type


def _look_tiff(data: bytes) -> _Facts:
    """Rebuilds the first directory with the tags that pixels need, each within the file; Pillow has nothing to warn of."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    facts, kept, n_pages = _Facts(data), {}, _tiff_pages(data, order, start)
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
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept[tag] for tag in sorted(kept)) + bytes(4)
    padding = b"\0" * (len(data) % 2)
    facts.data = data[:4] + struct.pack(order + "I", len(data) + len(padding)) + data[8:] + padding + directory
    if n_pages > 1:
        facts.notes.append(f"first page of {n_pages}")
    return facts


def _tiff_facts(facts: _Facts, order: str, kept: dict[int, bytes]) -> None:
    """Size, bits and polarity, from the directory's entries (12 bytes each)."""

    def value(tag: int, default: int) -> int:
        if tag not in kept:
            return default
        kind, count = struct.unpack_from(order + "HI", kept[tag], 2)
        return int(struct.unpack_from(order + ("I" if kind == 4 else "H"), kept[tag], 8)[0]) if count <= 2 else default

    facts.size = (value(256, 0), value(257, 0))
    facts.bits = value(258, 8)
    facts.inverted = value(262, 1) == 0


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


def _look_webp(data: bytes) -> _Facts:
    """Walks the RIFF chunks."""
    facts, n_frames, place = _Facts(data), 0, 12
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


def _look_bmp(data: bytes) -> _Facts:
    if int.from_bytes(data[2:6], "little") > len(data):
        raise BadPicture("truncated BMP")
    return _Facts(data)


def _stranger(data: bytes) -> str:
    """What these bytes are, when they are no picture that is read."""
    if not data:
        return "empty file"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "AVIF or HEIC, which are not read; convert it to JPEG or PNG"
    for start, name in KNOWN.items():
        if data.startswith(start):
            return f"not a picture that is read: {name}"
    if not any(data[:64]):
        return "not a picture: begins with zeros"
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:24].split(b">")[0].split(b"\n")[0].strip()
    if head and all(32 <= byte < 127 for byte in head):
        return f"not a picture: begins with '{head.decode('ascii')}'"
    return f"not a picture: begins with the bytes {data[:8].hex(' ')}"


def _blame(kind: str, error: Exception) -> str:
    """The short reason for what Pillow raised."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"damaged {kind}, or too large for the memory"
    if re.search(r"truncat|end of|unexpected EOF|requires a buffer|not enough|Not enough", text):
        return f"truncated {kind}"
    return f"damaged {kind}: {text[:120] or type(error).__name__}"


_LOOK = {
    "JPEG": _look_jpeg,
    "PNG": _look_png,
    "GIF": _look_gif,
    "TIFF": _look_tiff,
    "WEBP": _look_webp,
    "BMP": _look_bmp,
    "PPM": _Facts,
}
_PLUGIN: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
