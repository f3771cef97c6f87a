"""TIFFs in every layout, written here byte for byte, against the samples they were made of."""

import itertools
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from convnet.data.decode import BadPicture, decode
from convnet.data.sources.listing import judge
from pictures import encoded

RNG = np.random.default_rng(3)
HEIGHT, WIDTH = 19, 21
Samples = NDArray[np.uint16]


def samples(n: int, bits: int) -> Samples:
    """Smooth to the right, so that differences matter; (HEIGHT, WIDTH, n)."""
    return (RNG.integers(0, 1 << bits, (HEIGHT, WIDTH, n)) >> RNG.integers(0, 3, (HEIGHT, 1, 1))).astype(np.uint16)


def packed(rows: Samples, bits: int, order: str) -> bytes:
    """Rows (H, n) of samples, each row to the byte."""
    if bits == 16:
        return rows.astype(order + "u2").tobytes()
    fields = rows[:, :, None] >> np.arange(bits)[::-1] & 1
    return np.packbits(fields.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def directory(order: str, big: bool, tags: dict[int, tuple[int, list[int]]], start: int, following: int = 0) -> bytes:
    """A directory that begins at `start`, with its long values behind it; {tag: (type, values)}."""
    entry, number, inline = ("HHQ", "Q", 8) if big else ("HHI", "H", 4)
    end = start + struct.calcsize(order + number) + len(tags) * (20 if big else 12) + inline
    head, rest = struct.pack(order + number, len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}{ {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind] }", *values)
        if len(body) > inline:
            place, rest = end + len(rest), rest + body
            body = struct.pack(order + ("Q" if big else "I"), place)
        head += struct.pack(order + entry, tag, kind, len(values)) + body.ljust(inline, b"\0")
    return head + struct.pack(order + ("Q" if big else "I"), following) + rest


def tiff(
    values: Samples,
    bits: int = 8,
    *,
    order: str = "<",
    big: bool = False,
    planes: bool = False,
    tile: tuple[int, int] | None = None,
    deflate: bool = False,
    differences: bool = False,
    tags: dict[int, tuple[int, list[int]]] | None = None,
) -> bytes:
    """A TIFF of samples (H, W, n): RGB where n is 3 or more, else grey; `tags` are added or replace others."""
    height, width, n = values.shape
    wide, high = tile or (width, 8)
    blocks = []
    for plane in np.split(values, n, axis=2) if planes else [values]:
        down, across = range(0, height, high), range(0, width, wide)
        for top, left in itertools.product(down, across):
            block = plane[top : top + high, left : left + wide].astype(np.int64)
            if tile:
                block = np.pad(block, ((0, high - block.shape[0]), (0, wide - block.shape[1]), (0, 0)))
            if differences:
                block = np.diff(block, axis=1, prepend=0) & ((1 << bits) - 1)
            body = packed(block.reshape(len(block), -1).astype(np.uint16), bits, order)
            blocks.append(zlib.compress(body) if deflate else body)
    start = 16 if big else 8
    places = [start + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    end = start + sum(map(len, blocks))
    all_tags = {256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * n), 259: (3, [8 if deflate else 1])}
    all_tags |= {262: (3, [2 if n >= 3 else 1]), 277: (3, [n]), 284: (3, [2 if planes else 1])}
    lengths = [len(block) for block in blocks]
    kind = 16 if big else 4
    if tile:
        all_tags |= {322: (3, [wide]), 323: (3, [high]), 324: (kind, places), 325: (kind, lengths)}
    else:
        all_tags |= {278: (3, [high]), 273: (kind, places), 279: (kind, lengths)}
    if differences:
        all_tags[317] = (3, [2])
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, end) if big else struct.pack(order + "HI", 42, end))
    return head + b"".join(blocks) + directory(order, big, all_tags | (tags or {}), end)


def eight(values: Samples, bits: int) -> NDArray[np.uint8]:
    """What is right: shifted where there are more than 8 bits, stretched where there are fewer."""
    shown = values >> (bits - 8) if bits >= 8 else values.astype(int) * 255 // ((1 << bits) - 1)
    return np.broadcast_to(shown, (*shown.shape[:2], 3)).astype(np.uint8)


def pixels(data: bytes) -> NDArray[np.uint8]:
    return decode(data)[0]


LAYOUTS = list(itertools.product((1, 2, 4, 8, 12, 16), (1, 3), "<>", (False, True)))


@pytest.mark.parametrize(("bits", "n", "order", "planes"), LAYOUTS)
def test_every_depth_plane_and_byte_order(bits: int, n: int, order: str, planes: bool) -> None:
    values = samples(n, bits)
    for tile, deflate, differences, big in itertools.product(
        (None, (16, 16)), (False, True), (False, True), (False, True)
    ):
        if differences and bits not in (8, 16):
            continue
        data = tiff(
            values, bits, order=order, planes=planes, tile=tile, deflate=deflate, differences=differences, big=big
        )
        np.testing.assert_array_equal(pixels(data), eight(values, bits), f"{tile} {deflate} {differences} {big}")


def test_white_may_be_0() -> None:
    for bits in (1, 4, 8, 16):
        values = samples(1, bits)
        np.testing.assert_array_equal(pixels(tiff(values, bits, tags={262: (3, [0])})), 255 - eight(values, bits))


@pytest.mark.parametrize("scale", [257, 1])
def test_palettes_have_16_bits_a_value_or_8(scale: int) -> None:
    values, table = samples(1, 4), RNG.integers(0, 256, (16, 3))
    data = tiff(values, 4, tags={262: (3, [3]), 320: (3, (table * scale).T.reshape(-1).tolist())})
    np.testing.assert_array_equal(pixels(data), table[values[:, :, 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_goes_over_white_whether_colours_are_multiplied_by_it_or_not(bits: int) -> None:
    values = samples(4, bits)
    plain = eight(values[:, :, :3], bits).astype(float)
    alpha = (values[:, :, 3:] >> (bits - 8)).astype(float)
    separate = plain * alpha / 255 + 255 - alpha
    assert np.abs(pixels(tiff(values, bits, tags={338: (3, [2])})) - separate).max() <= 1  # rounded by Pillow
    np.testing.assert_array_equal(
        pixels(tiff(values, bits, tags={338: (3, [1])})), np.minimum(plain + 255 - alpha, 255)
    )
    np.testing.assert_array_equal(pixels(tiff(values, bits, tags={338: (3, [0])})), plain)


def test_cmyk() -> None:
    values = samples(4, 8)
    cmyk = values.astype(float)
    right = (255 - cmyk[:, :, :3]) * (255 - cmyk[:, :, 3:]) / 255
    assert np.abs(pixels(tiff(values, 8, tags={262: (3, [5])})) - right).max() <= 1


def test_12_bit_data_in_16_bits_is_noted() -> None:
    values = samples(3, 12)
    got, notes = decode(tiff(values, 16))
    np.testing.assert_array_equal(got, values >> 8)
    assert notes == ("its 16-bit values are at most 4095, as of 12-bit data: it is dark",)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({339: (3, [3, 3, 3])}, "floating-point numbers"),
        ({258: (3, [32, 32, 32])}, "32-bit integers"),
        ({258: (3, [5, 6, 5])}, r"samples have \[5, 6, 5\] bits"),
        ({262: (3, [8])}, "Lab colours"),
        ({262: (3, [6])}, "less than full size"),
        ({259: (3, [6])}, "compression 6"),
        ({262: (3, [32803])}, "a raw photo .* develop it"),
        ({50706: (1, [1, 4, 0, 0])}, "a raw photo"),
        ({273: (4, [8])}, "1 strips or tiles"),
        ({277: (3, [2])}, "2 samples a pixel, but 3 colours"),
    ],
)
def test_what_is_not_read_is_named(tags: dict[int, tuple[int, list[int]]], text: str) -> None:
    with pytest.raises(BadPicture, match=text):
        decode(tiff(samples(3, 8), tags=tags))


def test_a_raw_photos_thumbnail_is_not_taken_for_the_photo() -> None:
    """As NEF, ARW and DNG lie: the first page is small, the sensor's data in a directory that it names."""
    body = tiff(samples(3, 8))
    for below in ({262: (3, [32803]), 256: (3, [6000])}, {254: (4, [0]), 256: (3, [6000])}):
        data = tiff(samples(3, 8), tags={254: (4, [1]), 330: (4, [len(body) + 200])})
        data = data.ljust(len(body) + 200, b"\0") + directory("<", False, below, len(body) + 200)
        with pytest.raises(BadPicture, match="a raw photo"):
            decode(data)
    with pytest.raises(BadPicture, match="a raw photo"):
        decode(body[:4] + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + directory("<", False, {256: (3, [9])}, 16))
    for name in ("a.dng", "b.NEF", "c.CR2", "d.arw", "e.HEIC", "f.avif", "g.jp2", "h.jxl", "i.psd", "j.svg", "k.jfif"):
        assert judge(name, lambda: b"") is None, "meant to be a picture"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_damage_in_a_strip_is_noticed(compression: str) -> None:
    """Twenty bytes changed at ten places each."""
    values = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    data = encoded(values, "TIFF", compression=compression)
    first = struct.unpack_from("<I", data, 4)[0] > 100  # the directory stands before or behind the strips
    area = (8, len(data) // 2) if first else (len(data) // 2, len(data))
    for place in np.linspace(area[0] + 60, area[1] - 60, 10).astype(int):
        with pytest.raises(BadPicture, match=r"damaged|truncated"):
            decode(data[:place] + bytes(byte ^ 0x5A for byte in data[place : place + 20]) + data[place + 20 :])
