"""Which pictures lie in a zip? Members are listed by its directory and read in place; nothing is ever unpacked.

Stored and deflated members are read, by any number of threads at once: each opens the file for itself. What a member
will take is known before it is read, and held against what it takes; members that overlap are no zip that a program
makes. Names are UTF-8 where the zip says so or their bytes are, else code page 437.
"""

import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from convnet.data.image_formats import BadPicture
from convnet.data.sources.listing import LARGEST, SNIFFED, Entry, File, Parts, pread, read_file, shown, stamp_of
from convnet.data.sources.tars import SWELLING, Member, sort_members
from convnet.errors import DataError
from convnet.io.atomic import regular

HEADER = 30  # bytes of a local header before name and extra field
ENCRYPTED, UTF8 = 1 << 0, 1 << 11  # flags of a member
DOS, UNIX = 0, 3  # systems that a member was packed on
FREE = 1 << 26  # bytes that a member may swell to, whatever it is packed in


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip."""
    return head.startswith((b"PK\3\4", b"PK\5\6"))


def list_zip(path: Path) -> tuple[list[File], list[Parts]]:
    """The files and folders of a zip.

    Raises: DataError when it is damaged, encrypted or its members overlap.
    """
    try:
        with zipfile.ZipFile(path) as file:
            items = file.infolist()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{shown(path)} is damaged or cut short ({error}); get it again") from error
    secret = next((item for item in items if item.flag_bits & ENCRYPTED), None)
    if secret is not None:
        raise DataError(f"{shown(path)}: {_name(secret)!r} is encrypted; unpack the zip with its password first")
    _check_overlap(items, path)
    with open(path, "rb", opener=regular) as handle:
        status = os.fstat(handle.fileno())
        members = [_member(item) for item in items]
        return sort_members(members, path, stamp_of(status), lambda member: _head(handle.fileno(), member), "zip")


def read_zipped(entry: Entry) -> bytes:
    """The bytes of an entry; its place has the offset of its header, and packed length, method and CRC.

    Raises: BadPicture when it has changed or is damaged.
    """
    path, offset, length, (n_packed, method, crc) = entry.place
    header = read_file(path, entry.stamp, offset, HEADER)
    data = read_file(path, entry.stamp, offset + _before_data(header), n_packed)
    try:
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length + 1)
    except zlib.error as error:
        raise BadPicture(f"damaged in the zip: {error}") from error
    if len(data) != length or zlib.crc32(data) != crc:
        raise BadPicture("damaged in the zip: its checksum does not fit")
    return data


def _member(item: zipfile.ZipInfo) -> Member:
    mode = item.external_attr >> 16
    kind = b"5" if item.is_dir() else b"0"
    if item.create_system == UNIX and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = b"2" if stat.S_ISLNK(mode) else b"3"
    problem = None
    if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = f"packed by method {item.compress_type}; only stored and deflated members are read: unpack the zip"
    elif item.file_size > min(LARGEST, SWELLING * item.compress_size + FREE):
        problem = f"would take {item.file_size:,} bytes from {item.compress_size:,}: a decompression bomb?"
    packed = (item.compress_size, item.compress_type, item.CRC)
    return Member(_name(item), kind, item.header_offset, item.file_size, packed, problem)


def _name(item: zipfile.ZipInfo) -> str:
    """A member's name; programs on macOS and Linux write UTF-8 without saying so."""
    name = item.orig_filename
    if not item.flag_bits & UTF8 and not name.isascii():
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = item.orig_filename
    return name.replace("\\", "/") if item.create_system == DOS else name


def _check_overlap(items: list[zipfile.ZipInfo], path: Path) -> None:
    end, former = 0, ""
    for item in sorted(items, key=lambda item: item.header_offset):
        if item.header_offset < end:
            raise DataError(
                f"{shown(path)}: the members {former!r} and {_name(item)!r} overlap, as in a decompression bomb; "
                "get it again"
            )
        end, former = item.header_offset + HEADER + item.compress_size, _name(item)


def _before_data(header: bytes) -> int:
    """The bytes of a local header with its name and extra field."""
    if header[:4] != b"PK\3\4":
        raise BadPicture("damaged in the zip: no header where the directory says")
    n_name, n_extra = struct.unpack("<HH", header[26:30])
    return HEADER + int(n_name) + int(n_extra)


def _head(handle: int, member: Member) -> bytes:
    """The first bytes of a member, none if it is damaged."""
    try:
        start = member.offset + _before_data(pread(handle, HEADER, member.offset))
        data = pread(handle, min(member.packed[0], 1 << 12), start)
        if member.packed[1] == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, SNIFFED)
    except (BadPicture, struct.error, zlib.error):
        return b""
    return data[:SNIFFED]
