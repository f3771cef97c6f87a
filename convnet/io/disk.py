"""Disk throughput: how fast a folder's disk writes and reads, on a file without a name, gone however this ends.

What was just written still lies in the system's memory, from where it would be read a hundred times as fast. So the
system is asked to drop it, and asked again whether it did; where it did not, there is no reading rate.
"""

import ctypes
import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

PIECE = 8 << 20  # bytes at a time, each flushed to the disk
MOST = 256 << 20  # bytes written at the most
SECONDS = 1.5  # after which writing, and reading, ends
RESIDENT = 0.01  # the share of a file that may still be in memory when its reading is timed


@dataclass(frozen=True)
class Rate:
    """Bytes a second; None is not measured, and `note` says why. size: bytes that were written and read."""

    folder: str
    size: int
    write: float | None
    read: float | None
    note: str


def measure(folder: Path, most: int = MOST) -> Rate:
    """The rates of the disk that `folder` is on. At most `most` bytes, a few seconds; nothing stays."""
    try:
        free = shutil.disk_usage(folder).free
        if free < 2 * most:
            return Rate(str(folder), 0, None, None, f"not measured: only {free >> 20} MB are free")
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            size, writing = _write(file.fileno(), most)
            note = _dropped(file.fileno(), size)
            reading = None if note else _read(file.fileno(), size)
    except OSError as error:
        return Rate(str(folder), 0, None, None, f"not measured: {error.strerror or error}")
    return Rate(str(folder), size, writing, reading, note)


def _write(file: int, most: int) -> tuple[int, float]:
    """(bytes written, bytes a second), up to the disk."""
    piece = os.urandom(min(PIECE, most))
    size, began = 0, perf_counter()
    while size < most and (not size or perf_counter() - began < SECONDS):
        size += os.write(file, piece)
        os.fsync(file)
    return size, size / (perf_counter() - began)


def _read(file: int, size: int) -> float:
    """Bytes a second."""
    piece = bytearray(PIECE)
    os.lseek(file, 0, os.SEEK_SET)
    done, began = 0, perf_counter()
    while done < size and perf_counter() - began < SECONDS:
        done += os.readv(file, [piece])
    return done / (perf_counter() - began)


def _dropped(file: int, size: int) -> str:
    """Has the system drop the file from its memory; "" when it did, or why its reading says nothing about the disk."""
    if not hasattr(os, "posix_fadvise"):
        return "reading not measured: this system has no call that drops a file from its memory"
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    share = _resident(file, size)
    if share is None:
        return "reading not measured: this system does not tell what it keeps in memory"
    if share > RESIDENT:
        return f"reading not measured: {share:.0%} of the file stayed in memory"
    return ""


def _resident(file: int, size: int) -> float | None:
    """The share of a file's pages that are in memory; None where the system doesn't tell."""
    pages = -(-size // mmap.PAGESIZE)
    seen = (ctypes.c_ubyte * pages)()
    with mmap.mmap(file, size) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        try:
            mincore = ctypes.CDLL(None, use_errno=True).mincore
            failed = mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), seen)
        except (OSError, AttributeError, TypeError):
            return None
        finally:
            del address  # a mapping that is pointed into can't be closed
    return None if failed else sum(each & 1 for each in seen) / pages
