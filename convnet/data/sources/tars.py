"""Which pictures lie in a tar? Members are found by their headers and read by offset; nothing is ever unpacked.

Only regular members are used. Links, devices, sparse members, absolute names, `..` and names that occur twice are never
followed or written; each is listed with its reason. A header whose checksum is wrong stops the listing: what would come
after it can't be known.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from convnet.data.sources.listing import (
    SNIFFED,
    File,
    Parts,
    Place,
    Problem,
    ReadAt,
    is_hidden,
    judge,
    pread,
    shown,
    stamp_of,
)
from convnet.errors import DataError
from convnet.io import atomic
from convnet.io.atomic import CHUNK, lock, regular

BLOCK = 512  # bytes: the unit of a tar
LONGEST = 1 << 20  # bytes of a long name or a pax header
SWELLING = 100  # a compressed tar of pictures grows far less than this
KINDS = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a fifo",
    b"S": "a sparse member",
}
NAMING = (b"L", b"K", b"x", b"g")  # headers that describe the next member
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
OPENERS: dict[str, Callable[[Path], io.BufferedIOBase]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name (bytes as they are), what it is (b"0" a file, b"5" a folder), where its bytes lie.

    `packed` is what a zip needs to know besides; `problem` says why its bytes can't be used.
    """

    name: str
    kind: bytes
    offset: int
    length: int
    packed: tuple[int, ...] = ()
    problem: str | None = None


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these bytes (512) is a tar, plain or compressed."""
    return compression(head) is not None or _checksum_fits(head)


def compression(head: bytes) -> str | None:
    """The compression of a file that begins with these bytes: gzip, bzip2, xz or none."""
    return next((name for start, name in PACKED.items() if head.startswith(start)), None)


def list_tar(path: Path, name: str | None = None) -> tuple[list[File], list[Parts]]:
    """The files and folders of a plain tar; `name` is what errors call it.

    Raises: DataError when it is damaged.
    """
    with open(path, "rb", opener=regular) as file:
        status = os.fstat(file.fileno())
        read = partial(pread, file.fileno())
        return list_nested(read, 0, status.st_size, name or shown(path), path, stamp_of(status))


def list_nested(
    read: ReadAt, start: int, end: int, name: str, path: Path, stamp: str
) -> tuple[list[File], list[Parts]]:
    """The files and folders of a tar that lies at start .. end of the file at `path`."""
    members = list(tar_members(read, start, end, name))
    return sort_members(members, path, stamp, lambda member: read(min(SNIFFED, member.length), member.offset))


def sort_members(
    members: list[Member], path: Path, stamp: str, head: Callable[[Member], bytes], what: str = "tar"
) -> tuple[list[File], list[Parts]]:
    """Members of a tar or a zip as files, each usable, skipped or failed, and the folders among them."""
    files: list[File] = []
    folders: list[Parts] = []
    count: dict[str, int] = {}
    for member in members:
        text = shown(member.name).replace("\0", "\\x00")
        parts = tuple(part for part in text.split("/") if part not in ("", "."))
        problem = _problem(member, text, parts, what)
        if problem is None and member.kind == b"5":
            if parts and not any(map(is_hidden, parts)):
                folders.append(parts)
            continue
        key = "/".join(parts) or "(no name)"
        count[key] = count.get(key, 0) + 1
        if count[key] > 1:
            problem = ("failed", f"duplicate name in the {what}")
            parts = (*parts[:-1], f"{key.rsplit('/', 1)[-1]} (number {count[key]})")
        if problem is None and any(map(is_hidden, parts)):
            problem = ("skipped", "hidden")
        if problem is None:
            problem = judge(parts[-1], partial(head, member))
        stamps = stamp, member.offset, member.length, *member.packed
        place = Place(path, member.offset, member.length, member.packed)
        files.append(File(parts or (key,), place, ":".join(map(str, stamps)), problem))
    return files, folders


def _problem(member: Member, text: str, parts: Parts, what: str) -> Problem | None:
    if text.startswith("/"):
        return "failed", "an absolute name; not read"
    if ".." in parts:
        return "failed", f"its name leaves the {what} (..); not read"
    if not parts and member.kind != b"5":
        return "failed", "it has no name"
    if member.kind not in (b"0", b"5"):
        return "failed", f"{KINDS.get(member.kind, f'a member of type {member.kind!r}')} in a {what}; not followed"
    return ("failed", member.problem) if member.problem else None


def tar_members(read: ReadAt, start: int, end: int, name: str) -> Iterator[Member]:
    """The members of a tar that lies at start .. end of what `read` reads; memory is bounded whatever it claims.

    Raises: DataError when a header is damaged or the tar is cut short.
    """
    place = start
    extra: dict[str, bytes] = {}
    while place < end:
        header = read(BLOCK, place)
        if len(header) == BLOCK and not any(header):
            return
        if place + BLOCK > end or len(header) < BLOCK:
            raise DataError(f"{name} is cut short at byte {place:,}; get it again")
        if not _checksum_fits(header):
            raise DataError(f"{name} is damaged: no tar header at byte {place:,}; get it again")
        kind, length, offset = header[156:157], _number(header[124:136], name, place), place + BLOCK
        if kind in b"123456":
            length = 0  # whatever the header says: no bytes follow
        elif kind not in NAMING and "size" in extra:
            length = _number(extra["size"], name, place, base=10)
        if offset + length > end:
            raise DataError(f"{name} is cut short: the member at byte {offset:,} needs {length:,} bytes; get it again")
        place = offset + -(-length // BLOCK) * BLOCK
        if kind in NAMING:
            extra |= _extra(kind, read, length, offset, name)
            continue
        yield _member(header, kind, extra, offset, length)
        extra = {}
    raise DataError(f"{name} is cut short: it has no end mark; get it again")


def _extra(kind: bytes, read: ReadAt, length: int, offset: int, name: str) -> dict[str, bytes]:
    """The fields of a header that only describes the next member."""
    if length > LONGEST:
        raise DataError(f"{name} is damaged: a name of {length:,} bytes at byte {offset:,}")
    body = read(length, offset)
    if kind == b"L":
        return {"path": body.split(b"\0")[0]}
    return _pax(body, name, offset) if kind == b"x" else {}


def _member(header: bytes, kind: bytes, extra: dict[str, bytes], offset: int, length: int) -> Member:
    path = extra.get("path", _name(header))
    kind = {b"\0": b"0", b"7": b"0"}.get(kind, kind)
    if any(key.startswith("GNU.sparse") for key in extra):
        kind = b"S"
    elif kind == b"0" and path.endswith(b"/"):
        kind = b"5"  # as tars of before 1988 have it
    return Member(os.fsdecode(path), kind, offset, length)


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name


def _checksum_fits(header: bytes) -> bool:
    if len(header) < BLOCK:
        return False
    try:
        written = int(header[148:156].strip(b"\0 ") or b"-1", 8)
    except ValueError:
        return False
    blank = header[:148] + b" " * 8 + header[156:BLOCK]
    return written in (sum(blank), sum(struct.unpack("512b", blank)))


def _number(field: bytes, name: str, place: int, base: int = 8) -> int:
    """A size: octal, or binary when the first bit is set; decimal in a pax header."""
    if field[:1] >= b"\x80":
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        try:
            value = int(field.strip(b"\0 ") or b"0", base)
        except ValueError:
            value = -1
    if not 0 <= value < 1 << 62:
        raise DataError(f"{name} is damaged: no size in the header at byte {place:,}")
    return value


def _pax(body: bytes, name: str, place: int) -> dict[str, bytes]:
    """The records `length key=value` of a pax header."""
    records, start = {}, 0
    while start < len(body) and body[start : start + 1] != b"\0":
        digits = body[start : start + 12].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length < 5 or len(record) < length or not equals:
            raise DataError(f"{name} is damaged: a broken pax header at byte {place:,}")
        records[key.decode("utf-8", "replace")] = value
        start += length
    return records


def unpack(path: Path, kind: str, target: Path) -> Path:
    """Decompresses a tar to `target`, anew each time: one that lies there already may be damaged. It bears the
    original's time.

    Raises: DataError when it is damaged, no tar, or grows beyond all measure; DiskError when the disk is full;
    UsageError when another process unpacks it.
    """
    status = path.stat()
    limit = SWELLING * status.st_size + (64 << 20)
    with lock(target, "unpacking", is_folder=False), atomic.atomic(target) as copy:
        try:
            with OPENERS[kind](path) as source:
                _copy(source, copy, limit, path)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise DataError(f"{shown(path)} is damaged or cut short ({error}); get it again") from error
        copy.flush()
        os.fchmod(copy.fileno(), stat.S_IMODE(status.st_mode))
        os.utime(copy.fileno(), ns=(status.st_mtime_ns, status.st_mtime_ns))  # before anybody sees it
    return target


def _copy(source: io.BufferedIOBase, copy: IO[bytes], limit: int, path: Path) -> None:
    n_bytes = 0
    while True:
        try:
            piece = source.read(CHUNK)
        except OSError as error:  # bz2 raises it for bad data; the copy's own are DiskErrors
            raise DataError(f"{shown(path)} is damaged ({error}); get it again") from error
        if not piece:
            return
        if n_bytes == 0 and not _checksum_fits(piece[:BLOCK]):
            raise DataError(f"{shown(path)} is compressed, but holds no tar")
        n_bytes += len(piece)
        if n_bytes > limit:
            raise DataError(f"{shown(path)} grows more than {SWELLING} times when unpacked: a decompression bomb?")
        copy.write(piece)
