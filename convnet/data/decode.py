"""The bytes of one picture -> uint8 (H, W, 3) RGB, or the reason why not.

format   read by                                         looked at here; damage is found by
JPEG     simplejpeg (libjpeg-turbo); CMYK made RGB here  EXIF, ICC, MPO; libjpeg's remarks and the walked scan (jpeg.py)
PNG      Pillow, from IHDR, PLTE, tRNS, IDAT, IEND only  every CRC; EXIF, also in text chunks; iCCP, acTL
GIF      Pillow, the whole file                          every block, the number of frames; LZW's codes, counted
TIFF     tiff.py; libtiff unpacks                        every tag; zlib's sums, LZW's codes, JPEG's scans (tiff.py)
WEBP     Pillow, the whole file                          size, EXIF, ICC, frames; bytes left over (webp.py)
BMP      Pillow, the whole file                          its length, its runs; alpha of zeros only is none
PPM      Pillow, the whole file (16-bit RGB: read here)  its length

Pillow's plugins are called directly on what has been looked at, so that it has nothing to warn of (warnings can't be
caught in several threads) and its own global limits play no part. Alpha is composited over white. 16-bit values are
shifted right by 8. CMYK is inverted where Adobe's marker says so. ICC profiles are not applied. `check`, `prepare`,
`predict` and `show` all judge by `open_picture`.

Memory: at most about 16 bytes a pixel while a picture is decoded (docs/pictures.md), and at no time more than
`max_pixels` pixels in all threads together: a large picture waits until there is room.

What `prepare` stored needs no look: `decode_stored`.
"""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, PngImagePlugin, PpmImagePlugin, WebPImagePlugin

from convnet.data.image_formats import (
    MAX_PIXELS,
    BadPicture,
    PictureInfo,
    check_png,
    not_read,
    parse_bmp,
    parse_gif,
    parse_png,
    parse_ppm,
    read_metadata,
    sniff,
)
from convnet.data.jpeg import jpeg_rgb, parse_jpeg
from convnet.data.tiff import parse_tiff, tiff_picture
from convnet.data.webp import check_webp, parse_webp

__all__ = ["MAX_PIXELS", "BadPicture", "decode", "decode_stored", "open_picture", "stored_by"]

WHITE = (255, 255, 255)
TURN = Image.Transpose
TURNS = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE}
TURNS |= {6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}  # by EXIF's orientation
BAND = 1 << 22  # pixels that are composited at a time
KNOWN = {  # what the first bytes say of files that are no pictures
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"%!PS": "PostScript",
    b"\x89HDF": "HDF5 data",
    b"\x93NUMPY": "a numpy array",
}


def decode(data: bytes | NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The pixels, uint8 (H, W, 3), C-contiguous, and notes such as "first frame of 12".

    Raises: BadPicture for any bytes that are no whole picture, or one of more than `max_pixels` pixels.
    """
    with open_picture(data, max_pixels) as (pixels, notes):
        return np.array(pixels), notes


@contextmanager
def open_picture(
    data: bytes | NDArray[np.uint8], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[NDArray[np.uint8], tuple[str, ...]]]:
    """As `decode`; an array is taken as it is.

    While it is open it takes its room of `max_pixels` among all threads: leave when it is scaled.
    """
    if not isinstance(data, bytes):
        yield data, ()
        return
    kind = sniff(data[:32])
    if kind is None:
        raise BadPicture(_stranger(data))
    with _blamed(kind):
        info = _PARSERS[kind](data)
        read_metadata(info)
        width, height = info.size or _size(kind, info)
        _limit(width, height, max_pixels)
        if width * height > info.most_pixels:
            raise BadPicture(f"truncated {kind}: {width} x {height} pixels cannot be in {len(data):,} bytes")
    with _ROOM.reserved(width * height, max_pixels):
        with _blamed(kind):
            pixels = _pixels(kind, info)
        yield pixels, tuple(info.notes)


@contextmanager
def _blamed(kind: str) -> Iterator[None]:
    """The decoders raise whatever their parsers stumble over; the bytes are to blame."""
    try:
        yield
    except BadPicture:
        raise
    except Exception as error:
        raise BadPicture(_blame(kind, error)) from error


class _Room:
    """Pixels that all threads decode at a time; whoever finds no room waits, but one picture always goes."""

    def __init__(self) -> None:
        self._pixels = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, n_pixels: int, most: int) -> Iterator[None]:
        """Waits until `n_pixels` more are no more than `most`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pixels or self._pixels + n_pixels <= most)
            self._pixels += n_pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= n_pixels
                self._changed.notify_all()


_ROOM = _Room()


def _remark(picture: Image.Image, info: PictureInfo) -> None:
    """Notes what is odd about 16-bit values."""
    if info.bits == 16 and 0 < max(high for _, high in picture.getextrema()) < 16:  # type: ignore[misc]
        info.notes.append("its 16-bit values are at most 4095, as of 12-bit data: it is dark")


def decode_stored(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels, uint8 (H, W, 3), of a JPEG that `prepare` made, from its bytes. Raises: BadPicture."""
    with _blamed("JPEG"):
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
        return pixels


def stored_by() -> str:
    """The name and version of what `decode_stored` uses."""
    return f"simplejpeg {simplejpeg.__version__}"


def _size(kind: str, info: PictureInfo) -> tuple[int, int]:
    """Width and height, by Pillow."""
    with _PLUGINS[kind](io.BytesIO(info.data)) as picture:
        return picture.size


def _pixels(kind: str, info: PictureInfo) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB, as it is meant to be seen: EXIF's orientation says where its first row and column lie."""
    if kind == "JPEG" and info.orientation not in TURNS:
        return jpeg_rgb(info)
    picture = Image.fromarray(jpeg_rgb(info)) if kind == "JPEG" else _picture(kind, info)
    picture = picture.transpose(TURNS[info.orientation]) if info.orientation in TURNS else picture
    _remark(picture, info)
    return np.asarray(picture)


def _picture(kind: str, info: PictureInfo) -> Image.Image:
    """The picture in RGB, before it is turned; of other formats than JPEG."""
    if kind == "TIFF":
        return _rgb(tiff_picture(info), info)
    with _PLUGINS[kind](io.BytesIO(info.data)) as picture:
        if kind == "PPM" and (deep := _deep_ppm(info, picture.size)) is not None:
            return Image.fromarray(deep)
        low = _low_bytes(info) if info.key is not None and info.bits == 16 and picture.mode == "RGB" else None
        picture.load()
        if kind == "WEBP":
            check_webp(info.data)
        if kind == "PNG" and _may_lack_rows(picture):
            check_png(info.data)
        if kind == "BMP" and picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
            return picture.convert("RGB")
        if info.box is not None and info.box != (0, 0, *picture.size):
            white = Image.new("RGB", picture.size, WHITE)
            white.paste(_rgb(picture.crop(info.box), info), info.box)
            return white
        return _rgb(picture, info, low)


def _rgb(picture: Image.Image, info: PictureInfo, low: NDArray[np.uint8] | None = None) -> Image.Image:
    """RGB, without any metadata, of a loaded picture in any of the modes that are understood.

    low: the low bytes (H, W, 3) of a picture of 16 bits, where its transparent colour must be compared.
    """
    clear = None
    if picture.mode.startswith("I;16") or picture.mode == "I":  # 16 bits of grey, from PNG or PPM
        grey = np.asarray(picture)
        clear = grey == int.from_bytes(info.key[:2], "big") if info.key is not None else None
        picture = Image.fromarray((grey >> 8).astype(np.uint8))
    elif picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB")
    elif picture.mode == "LA":
        picture = picture.convert("RGBA")
    elif picture.mode not in ("1", "L", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise BadPicture(f"its pixels are {picture.mode}, which are not read; convert it to 8 or 16 bits")
    if picture.mode == "RGBA":
        picture = _over_white(picture)
    picture.info.clear()  # or Pillow would write comments and the like into a copy
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if info.key is not None and clear is None:
        clear = (np.asarray(picture) == _key_colour(info)).all(axis=2)
        if low is not None:
            clear &= (low == np.frombuffer(info.key, np.uint8)[1::2]).all(axis=2)
    if clear is not None:
        picture.paste(WHITE, mask=Image.fromarray(clear))
    return picture


def _may_lack_rows(picture: Image.Image) -> bool:
    """Whether a PNG's last row is of zeros, as where it is missing; the last of an interlaced one lies anywhere."""
    last = picture.crop((0, picture.height - 1, *picture.size))
    return bool(picture.info.get("interlace")) or not any(last.tobytes())


def _over_white(picture: Image.Image) -> Image.Image:
    white, n = Image.new("RGB", picture.size, WHITE), max(1, BAND // picture.width)
    for top in range(0, picture.height, n):
        part = picture.crop((0, top, picture.width, min(top + n, picture.height)))
        white.paste(part.convert("RGB"), (0, top), part.getchannel("A"))
    return white


def _low_bytes(info: PictureInfo) -> NDArray[np.uint8]:
    """The low bytes (H, W, 3) of a PNG of 16-bit colours: Pillow takes high bytes, here those of the other order."""
    with PngImagePlugin.PngImageFile(io.BytesIO(info.data)) as picture:
        picture.tile = [tile._replace(args="RGB;16L") for tile in picture.tile]
        picture.load()
        return np.asarray(picture)


def _key_colour(info: PictureInfo) -> NDArray[np.uint8]:
    """The transparent colour of a PNG without a palette, in 8 bits."""
    values = np.frombuffer(info.key or b"", ">u2").astype(np.int64)
    values = values >> 8 if info.bits == 16 else values * 255 // ((1 << info.bits) - 1)
    return values.astype(np.uint8)


def _deep_ppm(info: PictureInfo, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A raw RGB picture of 16-bit values, which Pillow would round instead of shifting; else None."""
    header = re.match(rb"P([56])(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+65535\s", info.data)
    info.bits = 16 if header is not None else 8
    if header is None or header[1] == b"5":
        return None
    width, height = size
    if len(info.data) - header.end() < 6 * width * height:
        raise BadPicture("truncated PPM")
    values = np.frombuffer(info.data, ">u2", 3 * width * height, header.end())
    return (values >> 8).astype(np.uint8).reshape(height, width, 3)


def _limit(width: int, height: int, most: int) -> None:
    if width < 1 or height < 1:
        raise BadPicture(f"{width} x {height} pixels: it is empty")
    if width * height > most:
        raise BadPicture(
            f"{width} x {height} pixels are more than the {most:,} allowed: a decompression bomb? "
            f"If it is none: --max-pixels {-(-width * height // 1_000_000)}"
        )


def _stranger(data: bytes) -> str:
    """What these bytes are, when they are no picture that is read."""
    if not data:
        return "empty file"
    if (name := not_read(data[:512])) is not None:
        return f"{name}, which is not read; convert it to JPEG or PNG"
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


_PARSERS = {
    "JPEG": parse_jpeg,
    "PNG": parse_png,
    "GIF": parse_gif,
    "TIFF": parse_tiff,
    "WEBP": parse_webp,
    "BMP": parse_bmp,
    "PPM": parse_ppm,
}
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
