"""TIFF: its first page, in any layout of planes, strips, tiles and bits, or why it is not read.

compression                             bytes unpacked by     damage is found by
none                                    numpy                 strips that leave the file
Deflate                                 zlib                  zlib's sum of each strip
LZW                                     libtiff (Pillow)      its codes, counted (lzw.py)
PackBits, LZMA, Zstandard               libtiff               libtiff
JPEG; CCITT (one bit a pixel)           Pillow, pixels too    libjpeg, the walked scan (jpeg.py); libtiff

libtiff only unpacks: it is given the page as a grey picture of bytes. What the bytes mean is read here: 1 to 16 bits a
sample, both byte orders, chunky or in planes, horizontal differences, white as 0, palettes, CMYK, alpha. Classic TIFF
and BigTIFF. The directory is rebuilt from the tags that pixels need, each within the file: nothing to warn of.
Source: TIFF 6.0; BigTIFF as libtiff has it; DNG 1.7 and TIFF/EP for what marks a raw photo.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from convnet.data.image_formats import DEFLATE, BadPicture, PictureInfo
from convnet.data.jpeg import jpeg_pixels
from convnet.data.lzw import lzw_damage

TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
BYTES = {5: 8, 10: 8, 11: 4, 12: 8} | {kind: int(name[1]) for kind, name in TYPES.items()}  # of one value
DEFAULTS = {258: 1, 259: 1, 266: 1, 277: 1, 284: 1, 317: 1, 339: 1}
SINGLE = (256, 257, 259, 262, 266, 274, 277, 278, 284, 317, 322, 323)  # tags with one value
UNPACKED = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions of bytes
# bytes of samples that one byte stands for at most: LZW's longest code of 12 bits is 3,838; JPEG has two bits a block;
# PackBits 128 bytes by two, LZMA 273 by 14 choices, Zstandard 128 KiB by four. CCITT: a bit for any row, so no bound
RATIOS = {1: 1, 5: 2560, 7: 2048, 8: DEFLATE, 32773: 64, 32946: DEFLATE, 34925: 7100, 50000: 1 << 15}
BY_PILLOW = {2: "CCITT", 3: "CCITT", 4: "CCITT", 7: "JPEG"}
FOR_PILLOW = (*SINGLE, 258, 273, 279, 292, 293, 320, 324, 325, 338, 347, 530, 532)
CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # samples of a pixel, for each photometric interpretation
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
NUMBERS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
COLOURS = {4: "a mask", 8: "Lab colours", 9: "Lab colours", 10: "Lab colours", 32844: "LogL", 32845: "LogLuv"}
RAW_COLOURS = (32803, 34892)  # a sensor's pixels: colour filter array, linear raw
RAW_TAGS = (50706, 37398, 33422)  # DNG's version, TIFF/EP's, a colour filter array's pattern
RAW = "a raw photo (DNG, NEF, CR2 or the like), which is not read; develop it to JPEG, or to a TIFF of 8 or 16 bits"
GROUP = 1 << 26  # bytes that are unpacked at a time
BAND = 1 << 22  # samples that are worked on at a time
MOST_PAGES = 10_000

Values = NDArray[np.int64]
Directory = dict[int, tuple[int, int, int]]  # tag: type, number of values, place of the first


@dataclass(frozen=True, slots=True)
class Page:
    """The tags of one page; `values` are read when they are asked for."""

    data: bytes
    order: str
    tags: Directory

    def values(self, tag: int) -> Values:
        """Raises: BadPicture when they lie outside of the file, or are no integers."""
        kind, count, place = self.tags[tag]
        if kind not in TYPES or not count or (tag in SINGLE and count > 1):
            raise BadPicture(f"damaged TIFF: tag {tag} has {count} values of type {kind}")
        if place + count * BYTES[kind] > len(self.data):
            raise BadPicture("truncated TIFF")
        return np.frombuffer(self.data, self.order + TYPES[kind], count, place).astype(np.int64)

    def value(self, tag: int, default: int = 0) -> int:
        """The first value of a tag; what the format says, or `default`, where it is missing."""
        return int(self.values(tag)[0]) if tag in self.tags else DEFAULTS.get(tag, default)


def parse_tiff(data: bytes) -> PictureInfo:
    """The first page's size, bits, orientation, and notes. Raises: BadPicture for raw photos and what isn't read."""
    order = "<" if data[:2] == b"II" else ">"
    pages = list(_pages(data, order))
    page = pages[0]
    _refuse_raw(data, pages)
    info = PictureInfo(data, (page.value(256), page.value(257)), bits=int(page.value(258)))
    if 274 in page.tags:
        info.orientation = page.value(274)
        if not 1 <= info.orientation <= 8:
            info.orientation = 1
            info.notes.append("broken EXIF ignored")
    _refuse(page)
    info.most_pixels = _most_pixels(page)
    if len(pages) > 1:
        info.notes.append(f"first page of {len(pages)}")
    info.page = page
    return info


def _pages(data: bytes, order: str) -> Iterator[Page]:
    """The directories in the chain; a chain that bites its tail or leaves the file ends."""
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    seen: set[int] = set()
    while start and start not in seen and len(seen) < MOST_PAGES:
        seen.add(start)
        try:
            page, start = _directory(data, order, big, start)
        except struct.error:
            if len(seen) == 1:
                raise BadPicture("truncated TIFF") from None
            return
        yield page
    if not seen:
        raise BadPicture("a TIFF without a page")


def _directory(data: bytes, order: str, big: bool, start: int) -> tuple[Page, int]:
    """The directory at `start`, and where the next one is. Raises: struct.error."""
    number, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (n_tags,) = struct.unpack_from(order + number, data, start)
    place, step = start + struct.calcsize(order + number), 12 + inline // 8 * 8 if big else 12
    tags: Directory = {}
    if place + n_tags * step > len(data):
        raise struct.error
    for at in range(place, place + n_tags * step, step):
        tag, kind, count = struct.unpack_from(order + entry, data, at)
        where = at + struct.calcsize(order + entry)
        if BYTES.get(kind, 0) * count > inline:
            (where,) = struct.unpack_from(order + ("Q" if big else "I"), data, where)
        tags.setdefault(tag, (kind, count, where))
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, place + n_tags * step)
    return Page(data, order, tags), following


def _refuse_raw(data: bytes, pages: list[Page]) -> None:
    """A raw photo's first page is a thumbnail: it must not be taken for the photo. Raises: BadPicture."""
    first = pages[0]
    if data[8:10] == b"CR" or any(tag in first.tags for tag in RAW_TAGS):
        raise BadPicture(RAW)
    if any(page.value(262) in RAW_COLOURS for page in [*pages, *_below(first)] if 262 in page.tags):
        raise BadPicture(RAW)
    if first.value(254) & 1 and (len(pages) > 1 or 330 in first.tags):
        raise BadPicture("its first page is a thumbnail of another one, as in " + RAW)


def _below(page: Page) -> Iterator[Page]:
    """The directories that a page's SubIFDs name."""
    big = page.data[2:4] in (b"+\0", b"\0+")
    for start in page.values(330)[:100].tolist() if 330 in page.tags else ():
        try:
            yield _directory(page.data, page.order, big, start)[0]
        except struct.error:
            return


def _refuse(page: Page) -> None:
    """What is not read, by name. Raises: BadPicture."""
    bits, form, compression = page.value(258), page.value(339), page.value(259)
    if form in NUMBERS or not 1 <= bits <= 16:
        name = NUMBERS[form] if form in NUMBERS and form != 2 else f"{bits}-bit {NUMBERS.get(form, 'integers')}"
        raise BadPicture(f"its pixels are {name}, which are not read; convert it to 8 or 16 bits")
    if 258 in page.tags and (page.values(258) != bits).any():
        raise BadPicture(f"its samples have {page.values(258).tolist()} bits, which is not read; convert it to 8 bits")
    if compression not in UNPACKED and compression not in BY_PILLOW:
        raise BadPicture(f"a TIFF with compression {compression}, which is not read; save it with LZW or Deflate")
    if 262 not in page.tags:
        raise BadPicture("damaged TIFF: nothing says what its samples mean (no tag 262)")
    colours = page.value(262)
    if colours not in CHANNELS:
        name = COLOURS.get(colours, f"of photometric interpretation {colours}")
        raise BadPicture(f"its pixels are {name}, which are not read; convert it to RGB or grey")
    if page.value(277) < CHANNELS[colours]:
        raise BadPicture(f"damaged TIFF: {page.value(277)} samples a pixel, but {CHANNELS[colours]} colours")
    if colours == 6 and compression != 7 and (530 not in page.tags or (page.values(530) != 1).any()):
        raise BadPicture("its colours are stored at less than full size (YCbCr), which is not read; convert it to RGB")
    if colours == 5 and page.value(332, 1) != 1:
        raise BadPicture("its inks are not cyan, magenta, yellow and black, which is not read; convert it to RGB")


def _most_pixels(page: Page) -> float:
    """What the file's bytes can stand for, each of them once."""
    return 8 * len(page.data) * RATIOS.get(page.value(259), math.inf) / (page.value(258) * page.value(277))


# pixels


def tiff_picture(info: PictureInfo) -> Image.Image:
    """The first page in RGB, or in a mode that becomes RGB. Raises: BadPicture when it is damaged."""
    page = info.page
    assert isinstance(page, Page)
    starts, sizes = _blocks(page)
    compression = page.value(259)
    if compression == 7:
        _walk_jpegs(page, starts, sizes)
    if compression in BY_PILLOW:
        return _loaded(_file(page, {tag: page.values(tag) for tag in FOR_PILLOW if tag in page.tags}))
    width, height, bits, n_samples = page.value(256), page.value(257), page.value(258), page.value(277)
    n_planes = n_samples if page.value(284) == 2 else 1
    per_plane, deep = len(starts) // n_planes, n_samples // n_planes
    values = np.empty((height, width, n_samples), np.uint16 if page.value(262) == 3 and bits > 8 else np.uint8)
    for plane in range(n_planes):
        part = slice(plane * per_plane, (plane + 1) * per_plane)
        rows = _bytes(page, starts[part], sizes[part], (width * deep * bits + 7) // 8, deep)
        n = max(1, BAND // (width * deep))
        for top in range(0, height, n):
            samples = _samples(page, rows[top : top + n], width, deep)
            values[top : top + n, :, plane * deep : plane * deep + deep] = samples
    return _coloured(page, values)


def _blocks(page: Page) -> tuple[Values, Values]:
    """Where the strips or tiles are, and how long; each within the file. Raises: BadPicture."""
    tiled = 322 in page.tags
    places, lengths = (324, 325) if tiled else (273, 279)
    if places not in page.tags:
        raise BadPicture("damaged TIFF: nothing says where its pixels are")
    width, height, high = page.value(256), page.value(257), page.value(323 if tiled else 278, page.value(257))
    wide = page.value(322) if tiled else width
    if wide < 1 or high < 1 or (tiled and wide * high > _most_pixels(page)):
        raise BadPicture(f"damaged TIFF: blocks of {wide} x {high} pixels")
    n_planes = page.value(277) if page.value(284) == 2 else 1
    n_blocks = -(-width // wide) * -(-height // high) * n_planes
    starts = page.values(places)
    sizes = page.values(lengths) if lengths in page.tags else np.zeros(0, np.int64)
    if len(starts) != n_blocks or (len(sizes) != n_blocks and page.value(259) != 1):
        raise BadPicture(f"damaged TIFF: {len(starts)} strips or tiles, {len(sizes)} lengths; it needs {n_blocks}")
    if page.value(259) == 1:
        sizes = _plain_sizes(page, n_blocks // n_planes, wide, high, tiled) * np.ones(n_planes, np.int64)[:, None]
    sizes = sizes.reshape(-1)
    if ((starts < 8) | (sizes < 0) | (starts + sizes > len(page.data))).any():
        raise BadPicture("truncated TIFF")
    return starts, sizes


def _plain_sizes(page: Page, n_blocks: int, wide: int, high: int, tiled: bool) -> Values:
    """The bytes of each block of a plane that is not compressed, whatever the file says of them."""
    samples = 1 if page.value(284) == 2 else page.value(277)
    rows = np.full(n_blocks, min(high, page.value(257)) if not tiled else high, np.int64)
    if not tiled:
        rows[-1] = page.value(257) - (n_blocks - 1) * high
    return rows * ((wide * samples * page.value(258) + 7) // 8)


def _bytes(page: Page, starts: Values, sizes: Values, n_bytes: int, deep: int) -> NDArray[np.uint8]:
    """One plane's rows of bytes, uint8 (H, n_bytes), unpacked some rows of blocks at a time."""
    height, bits = page.value(257), page.value(258)
    tiled = 322 in page.tags
    wide = page.value(322) * deep * bits // 8 if tiled else n_bytes
    high = page.value(323) if tiled else min(page.value(278, height), height)
    across = -(-n_bytes // wide)
    rows = np.empty((height, n_bytes), np.uint8)
    n_down = max(1, GROUP // (wide * high * across))
    for first in range(0, len(starts) // across, n_down):
        part = slice(first * across, (first + n_down) * across)
        inside = rows[first * high : (first + n_down) * high]
        _unpack(page, starts[part], sizes[part], inside, wide, high)
    return rows


def _unpack(page: Page, starts: Values, sizes: Values, rows: NDArray[np.uint8], wide: int, high: int) -> None:
    """Fills `rows` from blocks of wide x high bytes. Raises: BadPicture when one unpacks to anything else."""
    compression, tiled = page.value(259), 322 in page.tags
    across = -(-rows.shape[1] // wide)
    for number, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        top, left = number // across * high, number % across * wide
        n_rows = high if tiled else min(high, len(rows) - top)
        packed = page.data[start : start + size]
        if compression in (1, 8, 32946):
            plain = packed if compression == 1 else _inflated(packed, n_rows * wide)
            block = np.frombuffer(plain, np.uint8, n_rows * wide).reshape(n_rows, wide)
            part = rows[top : top + n_rows, left : left + wide]
            part[:] = block[: part.shape[0], : part.shape[1]]
        elif compression == 5 and page.value(266) == 1 and not _is_old_lzw(packed):
            damage = lzw_damage(packed, n_rows * wide, high_first=True)
            if damage:
                raise BadPicture(f"damaged TIFF: {damage}")
    if page.value(266) == 2 and compression == 1:
        rows[:] = np.packbits(np.unpackbits(rows, bitorder="little").reshape(rows.shape[0], -1), axis=1)
    if compression in (1, 8, 32946):
        return
    tags: dict[int, Sequence[int] | Values] = {256: [rows.shape[1]], 257: [len(rows)], 258: [8], 259: [compression]}
    tags |= {262: [1], 266: [page.value(266)], 277: [1]}
    tags |= {322: [wide], 323: [high], 324: starts, 325: sizes} if tiled else {278: [high], 273: starts, 279: sizes}
    rows[:] = np.asarray(_loaded(_file(page, tags)))


def _is_old_lzw(packed: bytes) -> bool:
    """Whether LZW is as very old programs wrote it, its bits the other way round: libtiff reads that too."""
    return packed[:1] == b"\0" and len(packed) > 1 and bool(packed[1] & 1)


def _inflated(packed: bytes, n_bytes: int) -> bytes:
    """So many bytes of zlib's data, whose end has a sum over them. Raises: BadPicture."""
    unpack = zlib.decompressobj()
    try:
        plain = unpack.decompress(packed, n_bytes + 1)
    except zlib.error as error:
        raise BadPicture(f"damaged TIFF: {error}") from error
    if not unpack.eof or len(plain) != n_bytes:
        raise BadPicture(f"damaged TIFF: a strip or tile of {len(plain):,} instead of {n_bytes:,} bytes")
    return plain


def _samples(page: Page, rows: NDArray[np.uint8], width: int, deep: int) -> NDArray[np.integer]:
    """Rows of bytes as samples (rows, width, deep), 8 bits each (a palette's: as they are)."""
    bits, indexed = page.value(258), page.value(262) == 3
    if bits == 8:
        samples: NDArray[np.integer] = rows
    elif bits == 16:
        samples = rows.view(page.order + "u2").astype(np.uint16)
    else:
        fields = np.unpackbits(rows, axis=1)[:, : width * deep * bits].reshape(len(rows), -1, bits)
        samples = np.zeros(fields.shape[:2], np.uint16)
        for bit in range(bits):
            samples = samples << 1 | fields[:, :, bit]
    samples = samples.reshape(len(rows), width, deep)
    if page.value(317) == 2:
        samples = _summed(samples, page.value(322, width), bits)
    if bits > 8 and not indexed:
        return samples >> (bits - 8)
    return samples if indexed or bits == 8 else samples * 255 // ((1 << bits) - 1)


def _summed(samples: NDArray[np.integer], wide: int, bits: int) -> NDArray[np.integer]:
    """Each sample from its difference to the one on its left, in each tile."""
    parts = [samples[:, left : left + wide] for left in range(0, samples.shape[1], wide)]
    sums = [np.cumsum(part, axis=1, dtype=samples.dtype) & ((1 << bits) - 1) for part in parts]
    return np.concatenate(sums, axis=1)


def _coloured(page: Page, values: NDArray[np.integer]) -> Image.Image:
    """Samples (H, W, samples) as a picture; alpha goes over white."""
    colours, n = page.value(262), CHANNELS[page.value(262)]
    extra = page.values(338).tolist() if 338 in page.tags else []
    alphas = [n + i for i, kind in enumerate(extra) if kind in (1, 2) and n + i < values.shape[2]]
    alpha = values[:, :, alphas[0]] if alphas else None
    if colours == 3:
        values = _palette(page)[np.minimum(values[:, :, 0], (1 << page.value(258)) - 1)]
    else:
        values = values[:, :, :n]
    if colours == 0:
        values = 255 - values
    if alpha is not None and 1 in extra:  # colours that are multiplied by alpha already
        values = np.minimum(values.astype(np.uint16) + (255 - alpha)[:, :, None], 255)
        alpha = None
    plain = np.ascontiguousarray(values.astype(np.uint8, copy=False))
    if plain.shape[2] == 1:
        plain = plain[:, :, 0]
    picture = Image.fromarray(plain, "YCbCr" if colours == 6 else MODES[values.shape[2]]).convert("RGB")
    if alpha is not None:
        picture.putalpha(Image.fromarray(np.ascontiguousarray(alpha.astype(np.uint8))))
    return picture


def _palette(page: Page) -> NDArray[np.uint8]:
    """uint8 (colours, 3); 16 bits a value, but some programs write 8."""
    if 320 not in page.tags or len(page.values(320)) != 3 << page.value(258):
        raise BadPicture("damaged TIFF: its palette is missing, or has another number of colours than its pixels")
    table = page.values(320).reshape(3, -1).T
    return (table >> 8 if table.max() > 255 else table).astype(np.uint8)


def _walk_jpegs(page: Page, starts: Values, sizes: Values) -> None:
    """Sees that each block's JPEG is whole. Raises: BadPicture."""
    tables = page.values(347).astype(np.uint8).tobytes() if 347 in page.tags else b""
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        body = page.data[start : start + size]
        body = tables.removesuffix(b"\xff\xd9") + body[2:] if tables else body
        colours = {1: "GRAY", 3: "RGB", 4: "CMYK"}[1 if page.value(284) == 2 else page.value(277)]
        try:
            jpeg_pixels(body, colours)
        except ValueError as error:
            raise BadPicture(f"damaged TIFF: {error}") from error


# what Pillow and libtiff are given


def _file(page: Page, tags: Mapping[int, Sequence[int] | Values]) -> bytes:
    """A classic TIFF of the same bytes with another directory behind them."""
    place = len(page.data) + len(page.data) % 2
    entries, long = [], b""
    end = place + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind, letter = (7, "B") if tag == 347 else (4, "I") if max(tags[tag]) > 0xFFFF else (3, "H")
        values = struct.pack(f"{page.order}{len(tags[tag])}{letter}", *(int(value) for value in tags[tag]))
        where = values.ljust(4, b"\0")
        if len(values) > 4:
            where = struct.pack(page.order + "I", end + len(long))
            long += values + b"\0" * (len(values) % 2)
        entries.append(struct.pack(page.order + "HHI", tag, kind, len(tags[tag])) + where)
    head = (b"II*\0" if page.order == "<" else b"MM\0*") + struct.pack(page.order + "I", place)
    directory = struct.pack(page.order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return head + page.data[8:].ljust(place - 8, b"\0") + directory + long


def _loaded(data: bytes) -> Image.Image:
    with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as picture:
        picture.load()
        return picture.copy()
