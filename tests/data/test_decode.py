"""Each kind of picture against its pixels as they were made; each kind of damage against its reason."""

import io
import struct
import threading
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnet.data.decode import MAX_PIXELS, BadPicture, decode, decode_stored, open_picture
from convnet.data.image_formats import sniff
from convnet.data.resize import centre_square
from convnet.data.sources.listing import judge
from pictures import encoded, exif, png

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]
ALPHA = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
LOSSLESS = [
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
    ("WEBP", {"lossless": True}),
    ("PPM", {}),
]
ALL = [*LOSSLESS, ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("WEBP", {})]


def three(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def over_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    part = alpha[:, :, None] / 255
    return colour * part + 255 * (1 - part)


def pixels(data: bytes) -> NDArray[np.uint8]:
    array, _ = decode(data)
    assert array.dtype == np.uint8
    assert array.ndim == 3
    assert array.shape[2] == 3
    assert array.flags.c_contiguous
    return array


def reason(data: bytes) -> str:
    with pytest.raises(BadPicture) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_saved(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(pixels(encoded(COLOUR, kind, **options)), COLOUR)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_every_format_equals_pillow(kind: str, options: dict[str, object]) -> None:
    data = encoded(COLOUR, kind, **options)
    with Image.open(io.BytesIO(data)) as picture:
        assert np.array_equal(pixels(data), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_every_truncation_is_noticed(kind: str, options: dict[str, object]) -> None:
    data = encoded(COLOUR[:9, :11], kind, **options)
    for length in range(len(data) - 2 * (kind == "JPEG")):  # its end marker alone is another matter
        assert "truncated" in (text := reason(data[:length])) or "damaged" in text or "not a" in text or "empty" in text


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG", "PPM"])
def test_grey_is_three_equal_channels(kind: str) -> None:
    got = pixels(encoded(GREY, kind))
    assert np.array_equal(got[:, :, 0], got[:, :, 2])
    assert kind == "JPEG" or np.array_equal(got, three(GREY))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_shifted(kind: str) -> None:
    assert np.array_equal(pixels(encoded(Image.fromarray(DEEP), kind)), three((DEEP >> 8).astype(np.uint8)))


def test_16_bit_colour_is_shifted() -> None:
    deep = RNG.integers(0, 65536, (5, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    right = (deep >> 8).astype(np.uint8)
    assert np.array_equal(pixels(png(4, 5, 16, 2, rows)), right)
    assert np.array_equal(pixels(b"P6 # deep\n4 5\n65535\n" + deep.tobytes()), right)


def test_white_is_zero_in_some_16_bit_tiffs() -> None:
    data = encoded(Image.fromarray(DEEP), "TIFF")
    at = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    turned = data[: at + 8] + b"\0" + data[at + 9 :]
    assert np.array_equal(pixels(turned), three((255 - (DEEP >> 8)).astype(np.uint8)))


@pytest.mark.parametrize(("mode", "text"), [("I", "32-bit signed integers"), ("F", "floating-point")])
def test_numbers_of_32_bits_are_refused(mode: str, text: str) -> None:
    assert text in reason(encoded(Image.fromarray(GREY).convert(mode), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_over_white(kind: str) -> None:
    picture = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    got = pixels(encoded(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.abs(got - over_white(COLOUR, ALPHA)).max() <= 1
    grey = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
    if kind != "WEBP":
        assert np.abs(pixels(encoded(grey, kind)) - over_white(three(GREY), ALPHA)).max() <= 1


def test_palettes_with_transparency() -> None:
    picture = Image.fromarray(COLOUR).quantize(8)
    right = np.array(picture.convert("RGB"))
    index = np.array(picture)
    right[index == 3] = 255
    assert np.array_equal(pixels(encoded(picture, "PNG", transparency=3)), right)
    assert np.array_equal(pixels(encoded(picture, "GIF", transparency=3)), right)
    assert np.array_equal(pixels(encoded(picture, "PNG", transparency=bytes([255, 255, 255, 0]))), right)


def test_a_transparent_colour_is_white() -> None:
    assert (pixels(encoded(GREY, "PNG", transparency=int(GREY[0, 0])))[0, 0] == 255).all()
    got = pixels(encoded(COLOUR, "PNG", transparency=tuple(int(v) for v in COLOUR[0, 0])))
    assert (got[0, 0] == 255).all()
    assert np.array_equal(got[1:], COLOUR[1:])
    four = png(2, 1, 4, 0, b"\0\x12", (b"tRNS", b"\0\1"))
    assert pixels(four)[0, :, 0].tolist() == [255, 34]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit(kind: str) -> None:
    bits = Image.fromarray(GREY).convert("1")
    assert np.array_equal(pixels(encoded(bits, kind)), np.asarray(bits.convert("RGB")))


def test_cmyk_as_adobe_writes_it_and_plain() -> None:
    flat = np.full((16, 16, 4), (10, 200, 60, 30), np.uint8)
    cmyk = Image.frombytes("CMYK", (16, 16), flat.tobytes())
    right = np.asarray(cmyk.convert("RGB")).astype(int)
    adobe = encoded(cmyk, "JPEG", quality=100)
    assert np.abs(pixels(adobe) - right).max() <= 4
    at = adobe.index(b"\xff\xee")
    length = int.from_bytes(adobe[at + 2 : at + 4], "big")
    plain = adobe[:at] + adobe[at + 2 + length :]
    inverse = np.asarray(Image.frombytes("CMYK", (16, 16), (255 - flat).tobytes()).convert("RGB")).astype(int)
    assert np.abs(pixels(plain) - inverse).max() <= 4


def test_ycck() -> None:
    """Adobe stores 255 - C; libjpeg makes it 255 - R of (Y, Cb, Cr). So equal C, M, Y of 80 are stored as Y = 80.

    Pillow stores 255 minus the planes it is given: (175, 127, 127) becomes (80, 128, 128); then transform 2 is set.
    """
    right = np.asarray(Image.frombytes("CMYK", (16, 16), bytes((80, 80, 80, 20)) * 256).convert("RGB")).astype(int)
    planes = Image.frombytes("CMYK", (16, 16), bytes((175, 127, 127, 20)) * 256)
    data = bytearray(encoded(planes, "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    assert np.abs(pixels(bytes(data)) - right).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    tag = Image.Exif()
    tag[274] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = encoded(COLOUR, kind, exif=tag, **options)
    with Image.open(io.BytesIO(data)) as picture:
        right = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert np.array_equal(pixels(data), right)
    assert right.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_both_byte_orders(order: str) -> None:
    data = encoded(COLOUR, "PNG", exif=exif(6, order))
    assert np.array_equal(pixels(data), np.rot90(COLOUR, -1))


@pytest.mark.parametrize("bad", [b"", b"Exif", b"II*\0\xff\xff\xff\xff", exif(9), exif(0), exif(6)[:14], b"x" * 40])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_broken_exif_is_ignored_with_a_note(kind: str, bad: bytes) -> None:
    plain = encoded(COLOUR, kind)
    if kind == "PNG":
        chunk = b"eXIf" + bad
        data = plain[:33] + struct.pack(">I", len(bad)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    else:
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(bad)) + b"Exif\0\0" + bad + plain[2:]
    got, notes = decode(data)
    assert np.array_equal(got, pixels(plain))
    assert notes == ("broken EXIF ignored",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_broken_profile_is_ignored_with_a_note(kind: str) -> None:
    got, notes = decode(encoded(COLOUR, kind, icc_profile=b"nonsense" * 30))
    assert np.array_equal(got, pixels(encoded(COLOUR, kind)))
    assert notes == ("broken ICC profile ignored",)


def test_animations_give_their_first_frame_and_a_note() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        got, notes = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert (got == (255, 0, 0)).all()
        assert notes == ("first frame of 3",)
    _, notes = decode(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert notes == ("first page of 3",)
    _, notes = decode(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert notes == ("first of several pictures",)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (60000, 1)])
def test_odd_shapes(size: tuple[int, int]) -> None:
    assert pixels(encoded(Image.new("RGB", size, "red"), "PNG")).shape == (size[1], size[0], 3)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    side = 1 << 16
    assert "decompression bomb" in reason(png(side, side, 8, 2, b""))
    assert "decompression bomb" in reason(b"P6 60000 60000 255\n")
    gif = bytearray(encoded(GREY, "GIF"))
    gif[6:10] = b"\xff" * 4
    assert f"{MAX_PIXELS:,}" in reason(bytes(gif))
    jpeg = bytearray(encoded(GREY, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff" * 4
    assert "65535 x 65535" in reason(bytes(jpeg))


def stated(data: bytes, kind: str, width: int = 16_000, height: int = 16_000) -> bytes:
    """A picture whose header states another size."""
    out = bytearray(data)
    if kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            at = next(at for k in (3, 4) if (at := data.find(struct.pack("<HHI", tag, k, 1))) >= 0)
            out[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
        return bytes(out)
    before, size = {
        "JPEG": (b"\x00\x11\x08", struct.pack(">HH", height, width)),
        "PPM": (b"P6\n", b"%d %d" % (width, height)),
        "WEBP": (b"\x9d\x01\x2a", struct.pack("<HH", width, height)),
    }[kind]
    at = data.index(before) + len(before)
    out[at : at + len(b"30 20" if kind == "PPM" else size)] = size
    return bytes(out)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("PPM", {})]
    + [
        ("TIFF", {"compression": name})
        for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "jpeg")
    ],
)
def test_pixels_that_the_bytes_cannot_hold_take_no_memory(kind: str, options: dict[str, object]) -> None:
    """Refused by the header: each coding has most pixels that a byte stands for."""
    assert "pixels cannot be in" in reason(stated(encoded(COLOUR, kind, **options), kind))


@pytest.mark.parametrize(("kind", "options"), [*ALL, ("TIFF", {"compression": "lzma"}), ("JPEG", {"optimize": True})])
def test_the_smallest_files_that_are_whole_are_read(kind: str, options: dict[str, object]) -> None:
    black = np.zeros((2000, 2000, 3), np.uint8)
    assert not pixels(encoded(black, kind, **options)).any()


def rows_of(width: int, height: int, n_bytes: int, interlaced: bool) -> bytes:
    """PNG's rows of zeros, in seven grids where they are interlaced."""
    grids = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in grids]
    return bytes(
        sum(high * (1 + wide * n_bytes) for wide, high in (sizes if interlaced else [(width, height)]) if wide)
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("width", "height"), [(30, 20), (31, 21), (3, 1), (300, 200)])
@pytest.mark.parametrize("pixel", [b"\0\0\0", b"\7\7\7"])
def test_a_png_whose_pixels_end_early_is_truncated(width: int, height: int, pixel: bytes, interlaced: bool) -> None:
    """Where a row ends Pillow is content with it, and leaves the rest black."""
    rows = rows_of(width, height, 3, interlaced)
    rows = rows if interlaced or not any(pixel) else (b"\0" + pixel * width) * height
    assert pixels(png(width, height, 8, 2, rows, interlaced=interlaced)).shape == (height, width, 3)
    for n in (1, 1 + 3 * width, 5 * (1 + 3 * width)):
        assert "truncated PNG" in reason(png(width, height, 8, 2, rows[:-n], interlaced=interlaced))


def test_sizes_that_pillow_warns_of_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "truncated" in reason(b"P5 9000 9900 255\n")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty file"),
        (b"<html><body>404", "not a picture: begins with '<html'"),
        (b"hello world, this is text\n", "not a picture: begins with 'hello world"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\0" * 100, "begins with zeros"),
        (b"\x01\x02\x03\x9c", "begins with the bytes 01 02 03 9c"),
        (b"\0\0\0\x20ftypavif" + bytes(20), "AVIF, which is not read"),
        (b"\xff\xd8\xff\xd9", "JPEG"),
    ],
)
def test_strangers_are_named(data: bytes, text: str) -> None:
    assert text in reason(data)


def test_a_wrong_crc_is_named() -> None:
    data = bytearray(encoded(COLOUR, "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    assert reason(bytes(data)) == "damaged PNG: wrong CRC in IDAT"


def test_text_cannot_carry_control_characters() -> None:
    assert "\x1b" not in reason(b"\x1b[31mred")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", b"P6 ", b"BM"]))
def test_any_bytes_are_a_picture_or_a_bad_picture(data: bytes, start: bytes) -> None:
    with suppress(BadPicture):
        decode(start + data)


def test_threads_get_the_same_pixels_and_the_global_limits_stay() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    data = [encoded(COLOUR, kind, **options) for kind, options in ALL]
    right = [pixels(item) for item in data]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            wrong.extend(n for n, item in enumerate(data) if not np.array_equal(decode(item)[0], right[n]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_sniff_knows_what_decode_reads() -> None:
    assert {sniff(encoded(COLOUR, kind)[:32]) for kind, _ in ALL} == {
        "PNG",
        "BMP",
        "TIFF",
        "WEBP",
        "PPM",
        "JPEG",
        "GIF",
    }
    assert sniff(b"BM, what a car") is None


# Odd, but right


def bmp(
    values: NDArray[np.uint8], bits: int, body: bytes, packed: int = 0, header: int = 40, size: int | None = None
) -> bytes:
    """A BMP of `values`' shape whose pixels are `body`, with the masks of 8 bits a channel behind its header."""
    height, width = values.shape[:2]
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, packed, len(body), 0, 0, 0, 0)
    info = (info + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)).ljust(header, b"\0")[: max(header, 40)]
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(body) if size is None else size, 0, 0, start) + info + body


@pytest.mark.parametrize("header", [108, 124])
def test_a_bmp_whose_alpha_is_all_zeros_is_opaque(header: int) -> None:
    for alpha in (np.zeros_like(ALPHA), ALPHA):
        body = np.dstack([COLOUR[..., ::-1], alpha])[::-1].tobytes()
        right = over_white(COLOUR, ALPHA) if alpha.any() else COLOUR
        assert np.abs(pixels(bmp(COLOUR, 32, body, packed=3, header=header)) - right).max() <= bool(alpha.any())


@pytest.mark.parametrize("size", [0, 54, 1 << 30])
def test_a_bmp_is_read_whatever_its_size_field_says(size: int) -> None:
    body = COLOUR[:, :20, ::-1][::-1].tobytes()
    assert np.array_equal(pixels(bmp(COLOUR[:, :20], 24, body, size=size)), COLOUR[:, :20])
    assert "truncated BMP" in reason(bmp(COLOUR[:, :20], 24, body[:-1], size=size))


def test_a_bmps_runs_must_end_within_the_picture() -> None:
    grey, palette = np.zeros((2, 4), np.uint8), bytes(range(256)) * 4

    def packed(runs: bytes) -> bytes:
        data = bmp(grey, 8, runs, packed=1)
        return data[:10] + struct.pack("<I", 54 + 1024) + data[14:54] + palette + runs

    assert pixels(packed(b"\4\7\0\0\4\7\0\1")).shape == (2, 4, 3)
    assert "truncated BMP" in reason(packed(b"\4\7\0\0\4\7"))
    assert "leave the picture" in reason(packed(b"\x09\7\0\0\4\7\0\1"))


def test_a_16_bit_transparent_colour_is_compared_in_16_bits() -> None:
    deep = np.random.default_rng(4).integers(0, 256, (6, 5, 3)).astype(np.uint16) << 8 | 0x10
    for low, clear in ((0, True), (1, False)):
        key = deep[3, 2] ^ low
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
        right = (deep >> 8).astype(np.uint8)
        right[3, 2] = 255 if clear else right[3, 2]
        assert np.array_equal(pixels(png(5, 6, 16, 2, rows, (b"tRNS", key.astype(">u2").tobytes()))), right)
        grey = b"".join(b"\0" + row[:, 0].astype(">u2").tobytes() for row in deep)
        got = pixels(png(5, 6, 16, 0, grey, (b"tRNS", struct.pack(">H", deep[3, 2, 0] ^ low))))
        assert (got[3, 2] == (255 if clear else deep[3, 2, 0] >> 8)).all()


@pytest.mark.parametrize("chunk", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("name", [b"exif", b"APP1"])
def test_orientation_in_a_pngs_raw_profile(chunk: bytes, name: bytes) -> None:
    """As ImageMagick and exiftool write EXIF into text: a name, a length, hexadecimal."""
    body = b"Exif\0\0" + exif(6)
    text = b"\n%s\n%8d\n%s\n" % (name.lower(), len(body), body.hex().encode())
    texts = {b"tEXt": b"\0" + text, b"zTXt": b"\0\0" + zlib.compress(text), b"iTXt": b"\0\0\0\0\0" + text}
    data = png(
        30,
        20,
        8,
        2,
        b"".join(b"\0" + row.tobytes() for row in COLOUR),
        (chunk, b"Raw profile type " + name + texts[chunk]),
    )
    assert np.array_equal(pixels(data), np.rot90(COLOUR, -1))


def test_what_a_png_lost_is_noted_or_failed() -> None:
    plain = png(1, 1, 8, 2, b"\0abc", (b"tEXt", b"a\0b"))
    _, notes = decode(plain.replace(b"a\0b", b"a\0c"))
    assert notes == ("damaged chunk tEXt ignored",)
    assert "its palette is missing" in reason(png(1, 1, 8, 3, b"\0\0"))


def test_a_gifs_first_frame_may_fill_a_part() -> None:
    small = Image.fromarray(COLOUR[:8, :9]).quantize(16)
    data = bytearray(encoded(small, "GIF"))
    data[6:10] = struct.pack("<HH", 20, 15)
    place = data.index(b",\0\0\0\0")
    data[place + 1 : place + 5] = struct.pack("<HH", 3, 2)
    got, notes = decode(bytes(data))
    right = np.full((15, 20, 3), 255, np.uint8)
    right[2:10, 3:12] = np.asarray(small.convert("RGB"))
    assert np.array_equal(got, right)
    assert notes == ("its first frame fills a part of it; the rest is white",)


def test_a_missing_end_marker_is_noted_and_the_pixels_are_whole() -> None:
    data = encoded(COLOUR, "JPEG")
    for odd, note in (
        (data[:-2], "its end marker is missing"),
        (data[:-1], "its end marker is missing"),
        (data[:-2] + bytes(9) + data[-2:], "zeros before its end marker"),
    ):
        got, notes = decode(odd)
        assert np.array_equal(got, pixels(data))
        assert notes == (note,)
    assert "truncated" in reason(encoded(COLOUR, "JPEG", progressive=True)[:-2])  # a scan could be missing


def test_12_bit_data_is_noted() -> None:
    for kind in ("PNG", "PPM"):
        _, notes = decode(encoded(Image.fromarray(DEEP >> 4), kind))
        assert notes == ("its 16-bit values are at most 4095, as of 12-bit data: it is dark",)
        assert decode(encoded(Image.fromarray(DEEP), kind))[1] == ()


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1", "HEIC"),
        (b"\0\0\0\x18ftypcrx ", "a raw photo"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a", "JPEG XL"),
        (b"8BPS", "a Photoshop picture"),
        (b"<?xml version='1.0'?>\n<svg ", "SVG, a drawing"),
        (b"FUJIFILMCCD-RAW", "a raw photo"),
    ],
)
def test_pictures_that_are_not_read_are_named_with_what_to_do(head: bytes, name: str) -> None:
    assert reason(head.ljust(64, b" ")) == f"{name}, which is not read; convert it to JPEG or PNG"
    assert judge("without an extension", lambda: head) is None, "failed, not skipped"


# Memory


def test_the_limit_is_an_option() -> None:
    data = encoded(COLOUR, "PNG")
    assert decode(data, max_pixels=600)[0].shape == (20, 30, 3)
    with pytest.raises(BadPicture, match=r"30 x 20 pixels are more than the 599 allowed.*--max-pixels 1"):
        decode(data, max_pixels=599)


def test_threads_together_decode_no_more_pixels_than_the_limit() -> None:
    """Two pictures of 600 pixels fit into 1,300, a third waits; one always goes."""
    data = encoded(COLOUR, "PNG")
    inside, most, lock, all_in = [0], [0], threading.Lock(), threading.Barrier(2)

    def work() -> None:
        with open_picture(data, 1300):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with suppress(threading.BrokenBarrierError):
                all_in.wait(10)  # both of the two that fit are inside at once
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [2]


# What `prepare` stored


def test_stored_jpegs_are_decoded_as_any_other() -> None:
    """Smooth and noisy, odd sides, any subsampling and quality: equal to the bit, also to Pillow."""
    noise = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 16), (17, 33), (100, 75), (256, 341)):
        coarse = Image.fromarray(noise.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
        noisy = np.asarray(coarse, np.int16) + noise.integers(-40, 41, (height, width, 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        for options in ({"quality": 95}, {"quality": 60, "subsampling": 0}, {"quality": 80, "subsampling": 1}):
            data = encoded(picture, "JPEG", **options)
            found = decode_stored(np.frombuffer(data, np.uint8))
            assert found.shape == (height, width, 3)
            np.testing.assert_array_equal(found, decode(data)[0])
            np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))
            side = min(height, width) * 2 // 3 + 1
            part = centre_square(decode_stored(np.frombuffer(data, np.uint8)), side)
            np.testing.assert_array_equal(part, centre_square(found, side))
    grey = encoded(picture.convert("L"), "JPEG")
    np.testing.assert_array_equal(decode_stored(np.frombuffer(grey, np.uint8)), decode(grey)[0])
    for broken in (data[: len(data) // 2], data[:200], b"", b"no picture at all"):
        with pytest.raises(BadPicture, match=r"JPEG"):
            decode_stored(np.frombuffer(broken, np.uint8))
