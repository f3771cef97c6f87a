"""Files that can be had again, kept within a bound: the least recently used ones go first.

All processes of a user share one folder and its bound. Who adds a file holds the folder's lock, knows by `SIZE` how
much there is, and makes room first: so the bound holds at every moment. What is read is checked by whoever reads it.
"""

import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from convnet.io import atomic

BLOCK = 4096  # bytes: what a disk gives out at a time
ROOM = 8  # a cache that is full is emptied by a part of so many
PART, SIZE = ".part", ".size"  # the file that is being written; the bytes of all files


def own_folder() -> tuple[Path | None, str]:
    """The user's cache folder for convnet, made if need be; or None and why it isn't used."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convnet"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError) as error:  # a user without a home has no cache either
        return None, f"no folder can be made there ({error})"
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return None, f"{folder} is a link or another user's"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None, f"others may write to {folder}; chmod go-w {shlex.quote(str(folder))}"
    return folder, ""


class Cache:
    """Files in the folders below `folder`, of `most` bytes together; safe to use from several threads and processes."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most

    def get(self, name: str) -> bytes | None:
        """The bytes of the file `FOLDER/FILE`, which is now the last used one; None where there is none."""
        path = self.folder / name
        try:
            with open(path, "rb", opener=atomic.regular) as file:
                os.utime(file.fileno())
                return file.read()
        except OSError:
            return None

    def add(self, name: str, data: bytes) -> None:
        """Keeps a file, in place of one of that name, if it's smaller than the bound. Raises: OSError."""
        path, need = self.folder / name, _on_disk(len(data))
        if need > self.most:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked() as size:
            total = self._total(size)
            with suppress(FileNotFoundError):
                total -= _on_disk(path.lstat().st_size)
                path.unlink()
            if total + need > self.most:
                total = self._make_room(need)
            _write(size, total + need)
            try:
                with open(self.folder / PART, "wb", opener=atomic.in_place) as file:
                    file.write(data)
                path.parent.mkdir(mode=0o700, exist_ok=True)  # under the lock, as making room removes empty ones
                os.replace(self.folder / PART, path)
            except OSError:
                with suppress(OSError):
                    (self.folder / PART).unlink()
                _write(size, total)
                raise

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """The file that says how much there is, held for one thread of one process."""
        with os.fdopen(atomic.in_place(self.folder / SIZE, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as size:
            fcntl.flock(size, fcntl.LOCK_EX)
            yield size

    def _total(self, size: IO[bytes]) -> int:
        """Bytes of all files, counted where nothing says so."""
        total = _read(size)
        return sum(n for _, n, _ in self._files()) if total < 0 else total

    def _files(self) -> list[tuple[int, int, Path]]:
        """(when it was used, bytes, path) of every file."""
        files = []
        for folder in (entry for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)):
            for entry in os.scandir(folder):
                found = entry.stat(follow_symlinks=False)
                files.append((found.st_mtime_ns, _on_disk(found.st_size), Path(entry.path)))
        return files

    def _make_room(self, need: int) -> int:
        """Removes the least recently used files, so that `need` bytes and some more fit; the bytes that are left."""
        files = sorted(self._files())
        total, most = sum(n for _, n, _ in files), max(0, self.most - max(need, self.most // ROOM))
        for _, n, path in files:
            if total <= most:
                break
            path.unlink(missing_ok=True)
            total -= n
            with suppress(OSError):
                path.parent.rmdir()  # only an empty one goes
        return total


def _on_disk(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK) * BLOCK


def _read(size: IO[bytes]) -> int:
    """What the file says; -1 where it says nothing."""
    size.seek(0)
    text = size.read(20)
    return int(text) if text.isdigit() else -1


def _write(size: IO[bytes], total: int) -> None:
    size.seek(0)
    size.write(b"%020d" % total)
