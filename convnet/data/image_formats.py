"""Containers of pictures, before pixels are decoded: format, size, orientation, frames; is it whole?

Each format is walked here from its first byte to its last, so that Pillow, which decodes the pixels, is given only what
pixels need: it then has nothing to warn of and no metadata to stumble over.
"""

import math
import re
import struct
import zlib
from dataclasses import dataclass, field

from convnet.data.lzw import lzw_damage
from convnet.errors import DataError

MAX_PIXELS = 1 << 28  # of a picture, unless another limit is given: 268 megapixels; phones take 200
DEFLATE = 1032  # bytes that one byte of Deflate's data stands for at most: 258 bytes for two bits


class BadPicture(DataError):  # noqa: N818 - what the picture is
    """A picture that cannot be used; the text is the short reason, without the file's name."""


@dataclass(slots=True)
class PictureInfo:
    """What a picture's container says besides its pixels."""

    data: bytes  # for the decoder
    size: tuple[int, int] | None = None  # (W, H) where it is known before the decoder looks
    exif: bytes | None = None
    profile: bytes | None = None
    key: bytes | None = None  # PNG: the colour that is transparent
    bits: int = 8
    channels: int = 3  # 4 of a JPEG in CMYK; 0 of a PNG with a palette
    inverted: bool = False  # JPEG: Adobe's CMYK, where 0 is full ink
    page: object = None  # TIFF: the first page's tags
    box: tuple[int, int, int, int] | None = None  # GIF: the part of the picture that the first frame fills
    most_pixels: float = math.inf  # that its bytes can stand for
    orientation: int = 1
    notes: list[str] = field(default_factory=list)


# pictures that people mean, and that are not read: by the first bytes, or those from the fifth on
NOT_READ = {
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL"),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    **dict.fromkeys((b"8BPS", b"8BPB"), "a Photoshop picture"),
    b"gimp xcf": "a GIMP picture",
    b"\0\0\1\0": "an icon (ICO)",
    b"DDS ": "a DDS texture",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"P7\n": "PAM",
    **dict.fromkeys((b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM"), "a raw photo"),
}
SIGNATURES = {  # of formats that are read
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"), "TIFF"),
}
BRANDS = {  # of ISO media files: what stands after "ftyp"
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "a raw photo",
}
SUFFIXES = frozenset(  # of what is meant to be a picture
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp"),
        *(".tif", ".tiff", ".btf", ".tf8", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc", ".jxl", ".jxr"),
        *(".psd", ".psb", ".xcf", ".svg", ".svgz", ".tga", ".exr", ".hdr", ".pam", ".pcx", ".dds"),
        *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef"),
        *(".srw", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".x3f", ".mrw", ".rwl", ".gpr"),
    )
)


def not_read(head: bytes) -> str | None:
    """The name of a picture format that is known and not read, by the first bytes (32 are enough), or None."""
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12])
    if re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<svg", head):
        return "SVG, a drawing"
    return next((name for start, name in NOT_READ.items() if head.startswith(start)), None)


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
    return next((name for start, name in SIGNATURES.items() if head.startswith(start)), None)


def read_metadata(info: PictureInfo) -> None:
    """Reads EXIF's orientation and looks at the ICC profile; what is broken is ignored with a note."""
    if info.exif is not None:
        try:
            info.orientation = _exif_orientation(info.exif.removeprefix(b"Exif\0\0"))
        except (ValueError, struct.error):
            info.notes.append("broken EXIF ignored")
    profile = info.profile
    if profile is not None and (profile[36:40] != b"acsp" or int.from_bytes(profile[:4], "big") != len(profile)):
        info.notes.append("broken ICC profile ignored")


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


def parse_png(data: bytes) -> PictureInfo:
    """Walks the chunks; Pillow is given only those that pixels need. Raises: BadPicture."""
    info, pieces, place, names = PictureInfo(data), [data[:8]], 8, set[bytes]()
    while b"IEND" not in names:
        if place + 12 > len(data):
            raise BadPicture("truncated PNG")
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise BadPicture("truncated PNG")
        body = data[place + 8 : end - 4]
        whole = zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if not whole and (not name[0] & 32 or name == b"tRNS"):
            raise BadPicture(f"damaged PNG: wrong CRC in {name.decode('ascii', 'backslashreplace')}")
        names.add(name)
        if name == b"tRNS" and info.channels:
            info.key = body
        elif name in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            pieces.append(data[place:end])
        if name == b"IHDR":
            width, height, info.bits, colour = struct.unpack_from(">IIBB", body)
            info.size, info.channels = (width, height), 0 if colour == 3 else 3
            n_bits = max(1, info.bits * {2: 3, 4: 2, 6: 4}.get(colour, 1))  # of a pixel
            info.most_pixels = 8 * DEFLATE * len(data) // n_bits
        elif name in (b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"acTL") or not whole:
            _png_extra(info, name, body if whole else None)
        place = end
    if info.channels == 0 and b"PLTE" not in names:
        raise BadPicture("damaged PNG: its palette is missing")
    info.data = b"".join(pieces)
    return info


def check_png(data: bytes) -> None:
    """Counts what the pixels unpack to: of a stream that ends early Pillow says nothing and leaves rows of zeros.

    Raises: BadPicture.
    """
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    grids = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in grids] if interlaced else []
    n_bits = bits * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    due = sum(high * (1 + (wide * n_bits + 7) // 8) for wide, high in sizes or [(width, height)] if wide)
    unpack, place, n_bytes = zlib.decompressobj(), 8, 0
    while place < len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        packed = data[place + 8 : place + 8 + length] if name == b"IDAT" else b""
        while piece := unpack.decompress(packed, 1 << 20):
            n_bytes, packed = n_bytes + len(piece), unpack.unconsumed_tail
        place += 12 + length
    if n_bytes < due:
        raise BadPicture(f"truncated PNG: its pixels take {due:,} bytes, there are {n_bytes:,}")


def _png_extra(info: PictureInfo, name: bytes, body: bytes | None) -> None:
    """Takes up what a PNG says besides its pixels; None is a chunk whose CRC is wrong."""
    if name == b"eXIf":
        info.exif = body or b""
    elif name == b"iCCP":
        info.profile = _inflated((body or b"").partition(b"\0")[2][1:])
    elif body is None:
        info.notes.append(f"damaged chunk {name.decode('ascii', 'backslashreplace')} ignored")
    elif name == b"acTL" and body[:4] > b"\0\0\0\1":
        info.notes.append(f"first frame of {int.from_bytes(body[:4], 'big')}")
    elif body.startswith((b"Raw profile type exif\0", b"Raw profile type APP1\0")) and info.exif is None:
        info.exif = _raw_profile(name, body[22:])


def _inflated(packed: bytes) -> bytes:
    """At most 16 MiB of zlib's data; nothing when it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, 1 << 24)
    except zlib.error:
        return b""


def _raw_profile(name: bytes, body: bytes) -> bytes | None:
    """The EXIF in a text chunk, as ImageMagick writes it: a name, the number of bytes, the bytes in hexadecimal."""
    if name == b"zTXt":
        body = _inflated(body[1:])
    elif name == b"iTXt":
        packed, rest = body[:1] == b"\1", body[2:].split(b"\0", 2)[-1]
        body = _inflated(rest) if packed else rest
    try:
        _, _, text = body.lstrip().split(b"\n", 2)
        profile = bytes.fromhex(b"".join(text.split()).decode("ascii"))
    except ValueError:
        return b""
    return None if profile.startswith(b"http") else profile  # XMP says APP1 too


def parse_gif(data: bytes) -> PictureInfo:
    """Walks the blocks to the end and counts the frames. Raises: BadPicture, also for damage in the first frame."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    info, place, n_frames = PictureInfo(data, (width, height)), 13 + _gif_palette(flags), 0
    while True:
        block = data[place : place + 1]
        if block == b";":
            break
        if block == b"!":
            place += 2
        elif block == b",":
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, place + 1)
            if n_frames == 0:  # a frame may reach over the screen: Pillow makes room for it
                info.size = (max(width, left + wide), max(height, top + high))
                info.box = (left, top, left + wide, top + high)
            n_frames += 1
            place += 11 + _gif_palette(flags)
            if n_frames == 1 and (damage := _gif_damage(data, place - 1, wide * high)):
                raise BadPicture(f"damaged GIF: {damage}")
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
        info.notes.append(f"first frame of {n_frames}")
    if info.box != (0, 0, *(info.size or ())):
        info.notes.append("its first frame fills a part of it; the rest is white")
    return info


def _gif_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_damage(data: bytes, place: int, n_pixels: int) -> str | None:
    """What is wrong with a frame's pixels; `place` is where the size of its codes stands, blocks follow."""
    bits, place, pieces = data[place], place + 1, []
    while data[place]:
        pieces.append(data[place + 1 : place + 1 + data[place]])
        place += 1 + data[place]
        if place >= len(data):
            raise BadPicture("truncated GIF")
    if not 1 <= bits <= 11 or n_pixels > MAX_PIXELS:
        return f"codes of {bits} bits" if n_pixels <= MAX_PIXELS else None
    return lzw_damage(b"".join(pieces), n_pixels, bits)


def parse_ppm(data: bytes) -> PictureInfo:
    """What a pixel takes; Pillow reads the rest."""
    n_bits = {b"1": 8, b"2": 16, b"3": 48, b"4": 1, b"5": 8, b"6": 24}[data[1:2]]  # of a pixel; a digit and a space
    return PictureInfo(data, most_pixels=8 * len(data) // n_bits)


def parse_bmp(data: bytes) -> PictureInfo:
    """Sees that the pixels lie within the file, whatever its size field says. Raises: BadPicture."""
    info = PictureInfo(data)
    start, head = struct.unpack_from("<II", data, 10)
    if head < 16:  # OS/2
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packed = 0
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        packed = int.from_bytes(data[30:34], "little") if head >= 20 else 0
    info.size = (width, abs(height))
    if packed in (1, 2):
        _walk_runs(data[start:], width, abs(height), packed == 2)
    elif start + (width * bits + 31) // 32 * 4 * abs(height) > len(data):
        raise BadPicture("truncated BMP")
    return info


def _walk_runs(data: bytes, width: int, height: int, nibbles: bool) -> None:
    """A BMP's run lengths: they must stay within the picture and have an end. Raises: BadPicture."""
    place = x = y = 0
    while place + 2 <= len(data):
        n, value = data[place], data[place + 1]
        place += 2
        if n:
            x += n
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return
        elif value == 2:
            x, y, place = x + data[place], y + data[place + 1], place + 2
        else:
            n_bytes = (value + 1) // 2 if nibbles else value
            x, place = x + value, place + n_bytes + n_bytes % 2
        if x > width + nibbles or y > height or (y == height and x):
            raise BadPicture("damaged BMP: its runs leave the picture")
    raise BadPicture("truncated BMP")
