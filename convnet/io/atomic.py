"""Atomic writes, file locks, sha256: a crash leaves the old file or the new one, never a torn one.

Write beside the target, fsync, rename over it, fsync the folder. Everything that convnet keeps is written through this
file; a full disk or a failing one becomes a DiskError that names the path. Nothing is written through a link: in a
folder that came from somebody else it may lead anywhere.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import IO

from convnet.errors import DataError, DiskError, UsageError

NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR, errno.EACCES)  # said of a folder
CHUNK = 1 << 20  # bytes read at a time
SHARERS = "one or more processes"  # who holds a shared lock
TEXT = 1 << 26  # bytes of a text that is read whole: names of classes, the rows of a run
FILE_TYPES = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
FILE_TYPES |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
PathLike = str | os.PathLike[str]


def as_path(value: PathLike, what: str) -> Path:
    """A path that was given as text or as a path. Raises: UsageError for anything else; `what` says what it is of."""
    if isinstance(value, str | os.PathLike) and isinstance(text := os.fspath(value), str):
        return Path(text)
    raise UsageError(f"{what} is {value!r}, a {type(value).__name__}; it must be a path: text or a pathlib.Path")


@contextmanager
def reading(path: Path, what: str, again: str) -> Iterator[None]:
    """Whatever fails within, at the disk or in what the file holds, is a DataError that names it.

    what: the file should be, as "index that convnet index wrote"; again: what to do where it isn't.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (DataError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path} is no {what}: {error}; {again}") from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"{path}: disk full; free some space and run the same command again") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DiskError(f"{path}: cannot be written: {reason}; mend that and run the same command again") from error


@contextmanager
def temporary_folder(needed: int = 0) -> Iterator[Path]:
    """An empty folder that is gone when the block ends. needed: bytes that must be free on its disk.

    Raises: DiskError when fewer are, when there is no such folder, or when an OSError leaves the block.
    """
    place = "temporary files"
    try:
        with TemporaryDirectory(prefix="convnet-") as place:
            if (free := shutil.disk_usage(place).free) < needed:
                raise OSError(errno.ENOSPC, f"disk full: {free:,} bytes are free, {needed:,} may be needed")
            yield Path(place)
    except OSError as error:
        advice = "free some space, or let TMPDIR name a folder on another disk, and run the same command again"
        raise DiskError(f"{error.filename or place}: {error.strerror or error}; {advice}") from error


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it doesn't.

    Raises: DiskError when anything on the way to the disk fails; the former file is then untouched, and where there was
    none there is none. Only when its new name can't be made durable the new one may stay in its place.
    """
    part = path.with_name(f".{path.name}.part")
    new = not os.path.lexists(path)
    done = False
    try:
        with disk_errors(path):
            make_folder(path.parent)
            part.unlink(missing_ok=True)  # left by a process that was killed, or a link
            with open(part, "xb") as file:  # never what is there already
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            part = path
            sync_folder(path.parent)
            done = True
    finally:
        if not done and (new or part != path):  # or the same command would find it there
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | bytearray | Iterable[bytes]) -> None:
    """Writes `data` to `path` so that a reader finds either the former file or the whole new one."""
    with atomic(path) as file:
        for piece in [data] if isinstance(data, (bytes, bytearray)) else data:
            file.write(piece)


def write_new(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, where there must be nothing, or just that: left by the same work when it was killed.

    Raises: UsageError; DiskError.
    """
    with disk_errors(path):
        if path.exists() and not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            raise UsageError(f"{path} exists; choose another name, or remove it")
    write_atomic(path, data)


def in_place(path: PathLike, flags: int) -> int:
    """An opener for a file that is written where it stands, as `open` and `os.open` take one.

    Raises: DataError when it is a link, pipe or device, so that a write would go elsewhere; OSError.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
    except OSError:
        if not os.path.islink(path):
            raise
    raise DataError(f"{os.fspath(path)} is a link, pipe or device, through which nothing is written; remove it")


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, durable: each one's name is in the folder above."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_file(path: Path) -> None:
    """Makes what was appended to a file durable. Raises: DiskError."""
    with disk_errors(path), open(path, "rb") as file:
        os.fsync(file.fileno())


def regular(path: PathLike, flags: int) -> int:
    """An opener for a file that is read, as `open` takes one: it waits on no pipe and reads no device without an end.

    Raises: OSError; for what is no regular file its strerror says what it is.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, f"not a regular file but {what_is(mode)}", os.fspath(path))


def read(path: PathLike, most: int) -> bytes:
    """The bytes of a regular file that has at most `most`. Raises: OSError, whose strerror is the reason."""
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes are more than the {most:,} that it may have", os.fspath(path))
        return file.read(size)


def what_is(mode: int) -> str:
    """What a directory entry is when it is no regular file."""
    return FILE_TYPES.get(stat.S_IFMT(mode), "something else")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable (a rename is only durable once its folder is), where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file in hexadecimal; `progress` is told the bytes of each piece."""
    digest = hashlib.sha256()
    with open(path, "rb", opener=regular) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            if progress is not None:
                progress(len(piece))
    return digest.hexdigest()


@contextmanager
def lock(
    held: Path,
    doing: str,
    *,
    is_folder: bool = True,
    shared: bool = False,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Holds a folder, or the name of a file, for one process. The kernel drops the lock of a process that died, so it
    is never stale.

    shared: for any number of processes, all of which say so. waiting: is told when another one holds it, which is then
    waited for.

    Raises: UsageError when another living process holds it; DiskError when the folder can't be locked at all;
    DataError when something else than a lock has its name.
    """
    path, kind = (held / ".lock", "folder") if is_folder else (held.with_name(f".{held.name}.lock"), "file")
    while True:
        with disk_errors(path):
            make_folder(path.parent)
            handle = in_place(path, os.O_RDWR | os.O_CREAT)
        try:
            _flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, held, waiting)
        except BlockingIOError as error:
            owner = _owner(handle)
            os.close(handle)
            if shared and owner.startswith(SHARERS):  # the last of them, for the moment in which it removes the lock
                sleep(0.001)
                continue
            raise UsageError(f"{held} is in use by {owner}; wait for it, or choose another {kind}") from error
        except OSError as error:  # a file system without locks
            os.close(handle)
            raise DiskError(f"{path}: cannot be locked: {error.strerror}; choose a folder on another disk") from error
        if _is_at(handle, path):
            break
        os.close(handle)  # its owner removed it between our open and our flock
    try:
        with disk_errors(path):
            os.ftruncate(handle, 0)
            owner = SHARERS if shared else f"process {os.getpid()}"
            os.pwrite(handle, f"{owner} ({doing})\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            if shared:  # the last one removes it
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        os.close(handle)


def _flock(handle: int, kind: int, held: Path, waiting: Callable[[str], None] | None) -> None:
    """Raises: BlockingIOError when another process holds it and nobody waits for it; OSError."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise
        waiting(f"{held} is in use by {_owner(handle)}: waiting for it")
        fcntl.flock(handle, kind)


def _owner(handle: int) -> str:
    return os.pread(handle, 100, 0).decode(errors="replace").strip() or "another process"


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
