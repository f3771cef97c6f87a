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

`prepare`'s own JPEGs need no look. Where simplejpeg is installed it decodes them, in two thirds of Pillow's time: there
is the same library in it (libjpeg-turbo), with the same settings, and the pixels are the same.
"""

import io
import os
import re
from functools import cache
from typing import Any

import numpy as np
import PIL
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

from convnet.containers import BadPicture, Facts, look, sniff

try:
    import simplejpeg
except ImportError:  # an optional extra, "fast"
    simplejpeg = None

__all__ = ["MAX_PIXELS", "BadPicture", "decode", "decode_image", "decode_stored", "stored_by"]

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


def decode(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The pixels, uint8 (H, W, 3), C-contiguous, and notes such as "first frame of 12".

    Raises: BadPicture for any bytes that are no whole picture.
    """
    picture, notes = decode_image(data)
    return np.array(picture), notes


def decode_image(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """As `decode`, an RGB picture for Pillow: to resize it, its pixels need not be copied out and in again."""
    kind = sniff(data[:32])
    if kind is None:
        raise BadPicture(_stranger(data))
    try:
        facts = look(kind, data)
        picture = _turned(_picture(kind, facts), facts.orientation)
    except BadPicture:
        raise
    except Exception as error:  # Pillow raises whatever its parsers stumble over; the bytes are to blame
        raise BadPicture(_blame(kind, error)) from error
    return picture, tuple(facts.notes)


def decode_stored(data: NDArray[np.uint8], square: int | None = None) -> NDArray[np.uint8]:
    """The pixels, uint8 (H, W, 3), of a JPEG that `prepare` made, from its bytes: whole, in RGB, upright.

    square: only the central square of so many pixels, as `store.centre_square` cuts it out.

    Raises: BadPicture.
    """
    try:
        if _fast() is not None:
            pixels: NDArray[np.uint8] = _fast().decode_jpeg(data, "RGB")
            left, top, right, bottom = _centre(pixels.shape[1], pixels.shape[0], square)
            return pixels[top:bottom, left:right]
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data.tobytes())) as picture:
            picture.load()
            box = _centre(*picture.size, square)
            part = picture.crop(box) if square else picture  # before Pillow's pixels of 4 bytes become 3
            return np.asarray(part if part.mode == "RGB" else part.convert("RGB"))
    except Exception as error:
        raise BadPicture(_blame("JPEG", error)) from error


def _centre(width: int, height: int, square: int | None) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    if square is None:
        return 0, 0, width, height
    left, top = (width - square) // 2, (height - square) // 2
    return left, top, left + square, top + square


def stored_by() -> str:
    """The name and version of what `decode_stored` uses.

    simplejpeg where it is installed, unless CONVNET_KERNELS=plain asks for Pillow.
    """
    return f"Pillow {PIL.__version__}" if _fast() is None else f"simplejpeg {simplejpeg.__version__}"


@cache
def _fast() -> Any:
    return None if os.environ.get("CONVNET_KERNELS") == "plain" else simplejpeg


def _picture(kind: str, facts: Facts) -> Image.Image:
    """The picture as it is stored, before it is turned."""
    if facts.size is not None:
        _limit(*facts.size)
    plugin = _PLUGIN[kind]
    with plugin(io.BytesIO(facts.data)) as picture:
        _limit(*picture.size)
        if kind == "PPM" and (deep := _deep_ppm(facts.data, picture.size)) is not None:
            return Image.fromarray(deep)
        picture.load()
        if kind == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info:
            return _rgb(picture.point(lambda value: 255 - value), kind, facts)
        return _rgb(picture, kind, facts)


def _rgb(picture: Image.Image, kind: str, facts: Facts) -> Image.Image:
    """RGB, without any metadata, of a loaded picture in any of the modes that are understood."""
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        grey = np.asarray(picture)
        values = (grey.astype(np.int32) >> max(facts.bits - 8, 0) if mode != "I" else grey >> 8).astype(np.uint8)
        values = 255 - values if facts.inverted else values
        shades: NDArray[np.uint8] = np.repeat(values[:, :, None], 3, axis=2)
        if facts.key is not None:
            shades[grey == int.from_bytes(facts.key[:2], "big")] = 255
        return Image.fromarray(shades)
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
    picture.info.clear()  # or Pillow would write comments and the like into a copy
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if facts.key is not None:
        pixels = np.array(picture)
        pixels[(pixels == _key_colour(facts)).all(axis=2)] = 255
        picture = Image.fromarray(pixels)
    return picture


def _key_colour(facts: Facts) -> NDArray[np.uint8]:
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


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is meant to be seen; EXIF's orientation says where its first row and column lie."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def _limit(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadPicture(f"{width} x {height} pixels: it is empty")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed: a decompression bomb?")


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


_PLUGIN: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
