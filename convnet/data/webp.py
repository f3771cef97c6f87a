"""WebP: its RIFF chunks; and is the first frame's data whole?

WebP has no sum over its data, and libwebp speaks up only when it runs out of them. So a frame is decoded again without
its last bytes: a whole one must then run out, and one that doesn't has bytes left over, as after damage, which mostly
makes a decoder read more or fewer than were written.
"""

import io
import struct
from collections.abc import Iterator

from PIL import WebPImagePlugin

from convnet.data.image_formats import BadPicture, PictureInfo

BLOCK = 256  # pixels of lossy data, for whose prediction and colours a bit or more is needed; lossless needs none
CUT = 6  # bytes: libwebp's encoder ends with up to 3 that its decoder can do without


def parse_webp(data: bytes) -> PictureInfo:
    """Walks the RIFF chunks. Raises: BadPicture."""
    info, n_frames = PictureInfo(data), 0
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise BadPicture("truncated WEBP")
    for name, body in _chunks(data[:end], 12):
        if name == b"VP8X":
            info.size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif name == b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 6)
            info.size = info.size or (width & 0x3FFF, height & 0x3FFF)
            info.most_pixels = BLOCK * 8 * len(body)
        elif name == b"VP8L" and info.size is None:
            (word,) = struct.unpack_from("<I", body, 1)
            info.size = (1 + (word & 0x3FFF), 1 + (word >> 14 & 0x3FFF))
        info.exif = body if name == b"EXIF" else info.exif
        info.profile = body if name == b"ICCP" else info.profile
        n_frames += name == b"ANMF"
    if n_frames > 1:
        info.notes.append(f"first frame of {n_frames}")
    return info


def check_webp(data: bytes) -> None:
    """Raises: BadPicture when the first frame has bytes left over."""
    frame = next((body[16:] for name, body in _chunks(data, 12) if name == b"ANMF"), None)
    for name, body in _chunks(data, 12) if frame is None else _chunks(frame, 0):
        if name in (b"VP8 ", b"VP8L") and any(_decodes(name, cut) for cut in _shortened(name, body)):
            raise BadPicture("damaged WEBP: bytes are left over after its pixels")


def _chunks(data: bytes, place: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, body) of the chunks from `place` on. Raises: BadPicture."""
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        body = data[place + 8 : place + 8 + length]
        if len(body) < length:
            raise BadPicture("truncated WEBP")
        yield name, body
        place += 8 + length + length % 2


def _shortened(name: bytes, body: bytes) -> Iterator[bytes]:
    """The data of a frame without its last bytes; of a lossy one also without the last of its first partition."""
    yield body[:-CUT]
    if name == b"VP8 ":
        tag = int.from_bytes(body[:3], "little")  # from bit 5 on: the size of the first partition, which is at byte 10
        size = tag >> 5
        if size > CUT:
            yield (tag - (CUT << 5)).to_bytes(3, "little") + body[3 : 10 + size - CUT] + body[10 + size :]


def _decodes(name: bytes, body: bytes) -> bool:
    content = b"WEBP" + name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    try:
        with WebPImagePlugin.WebPImageFile(io.BytesIO(b"RIFF" + struct.pack("<I", len(content)) + content)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True
