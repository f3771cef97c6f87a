"""JPEG: its segments up to the pixels; its pixels by simplejpeg (libjpeg-turbo); is its scan whole?

libjpeg goes on after damage and fills what is missing with grey. What it remarks on fails the picture, but for what
leaves every pixel in its place: a missing end marker, zeros before it. Where there is a C compiler a second reader
walks the scan's codes (kernels/cpu/codes/jpeg_scan.c): of the damage that is seen it finds most of what libjpeg is
content with.
"""

import math
import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from convnet.data.image_formats import BadPicture, PictureInfo
from convnet.kernels.cpu.codes import jpeg_scan as jpeg_scan_cpu

END = b"\xff\xd9"


def parse_jpeg(data: bytes) -> PictureInfo:
    """Walks the segments up to the pixels. Raises: BadPicture."""
    info, profile, end, odd = PictureInfo(data), {}, 2, False
    for marker, start, stop in _segments(data):
        body = data[start:stop]
        if start - 4 > end or (marker == 0xE0 and body[:5] == b"JFIF\0" and body[5:6] != b"\1"):
            odd = True  # stray bytes, or a version that libjpeg would remark on
        end = stop
        if marker == 0xE1 and body[:5] == b"Exif\0":
            info.exif = info.exif or body
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == 0xE2 and body[:4] == b"MPF\0":
            info.notes.append("first of several pictures")
        elif marker == 0xEE and body[:5] == b"Adobe":
            info.inverted = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            height, width = struct.unpack_from(">HH", body, 1)
            info.size, info.channels = (width, height), body[5]
            info.most_pixels = _most_pixels(marker, body, len(data))
    if profile:
        info.profile = b"".join(profile[number] for number in sorted(profile))
    if odd:
        info.data = _tidied(data)
    return info


def _tidied(data: bytes) -> bytes:
    """The same picture without stray bytes between its segments, and of JFIF's version 1."""
    pieces, end = [data[:2]], 2
    for marker, start, end in _segments(data):
        body = data[start:end]
        pieces.append(data[start - 4 : start] + (body if marker != 0xE0 else body[:5] + b"\1" + body[6:]))
    return b"".join(pieces) + data[end:]


def _most_pixels(marker: int, frame: bytes, n_bytes: int) -> float:
    """What so many bytes can stand for: a Huffman code has one bit or more, and a block of 64 one for its mean; in
    baseline also one for its end. Arithmetic codes have no least length."""
    factors = [(value >> 4, value & 15) for value in frame[7 : 6 + 3 * frame[5] : 3]]
    n_blocks = sum(across * down for across, down in factors)  # for each 64 x most x most pixels
    if marker > 0xC7 or not n_blocks:
        return math.inf
    n_pixels = 64 * max(across for across, _ in factors) * max(down for _, down in factors)
    return 8 * n_bytes * n_pixels // (n_blocks * (1 if marker >= 0xC2 else 2))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment's body, up to the start of the first scan."""
    n, place = len(data), 2
    while True:
        place = data.find(b"\xff", place)  # libjpeg passes over stray bytes too
        while 0 <= place < n and data[place] == 0xFF:
            place += 1
        if not 0 <= place < n:
            raise BadPicture("truncated JPEG")
        marker = data[place]
        place += 1
        if marker == 0xD9:
            raise BadPicture("a JPEG without pixels")
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        end = place + max(int.from_bytes(data[place : place + 2], "big"), 2)
        if end > n:
            raise BadPicture("truncated JPEG")
        yield marker, place + 2, end
        if marker == 0xDA:
            return
        place = end


def jpeg_rgb(info: PictureInfo) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB. Raises: BadPicture when the scan is damaged."""
    pixels, notes = jpeg_pixels(info.data, "CMYK" if info.channels == 4 else "RGB")
    info.notes += notes
    if info.channels != 4:
        return pixels
    return np.asarray(Image.fromarray(255 - pixels if info.inverted else pixels, "CMYK").convert("RGB"))


def jpeg_pixels(data: bytes, colours: str = "RGB") -> tuple[NDArray[np.uint8], list[str]]:
    """uint8 (H, W, 3), or (H, W, 4) for CMYK, and notes on what is odd but harmless. Raises: BadPicture."""
    try:
        pixels, notes = simplejpeg.decode_jpeg(data, colours), list[str]()
    except ValueError as error:
        data, note = _mended(data, str(error))
        pixels, notes = simplejpeg.decode_jpeg(data, colours), [note]
    if jpeg_scan_cpu.available() and (damage := jpeg_scan_cpu.scan_damage(data)) is not None:
        raise BadPicture(f"damaged JPEG: {damage}")
    return pixels, notes


def _mended(data: bytes, remark: str) -> tuple[bytes, str]:
    """The same pixels in a JPEG that libjpeg has nothing to remark on, and what was odd. Raises: BadPicture."""
    segments = list(_segments(data))
    if "Premature end of JPEG file" in remark and _has_one_scan(data, segments):
        return data.removesuffix(b"\xff") + END, "its end marker is missing"
    zeros = re.search(r"(\d+) extraneous bytes before marker 0xd9", remark)
    end = data.find(END, segments[-1][2])
    if zeros is not None and not any(data[max(0, end - int(zeros[1])) : end]):
        return data[:end].rstrip(b"\0") + data[end:], "zeros before its end marker"
    raise BadPicture(_blame(remark))


def _has_one_scan(data: bytes, segments: list[tuple[int, int, int]]) -> bool:
    """Whether the first scan holds all there is; of several, the later ones could be missing without a trace."""
    n_components = [data[start + 5] for marker, start, _ in segments if marker in (0xC0, 0xC1)]
    return n_components == [data[segments[-1][1]]]


def _blame(remark: str) -> str:
    text = remark.removeprefix("Corrupt JPEG data: ")
    return f"truncated JPEG: {text}" if re.search("[Pp]remature end", text) else f"damaged JPEG: {text}"
