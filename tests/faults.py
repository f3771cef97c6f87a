"""A disk that fails at the k-th change below a folder, and what it holds after a loss of power.

`Disk` stands in front of every way by which Python changes a folder: the functions of `os`, and `open`, whose raw file
is `Raw`. It counts the changes; at the k-th one it raises, writes half, or stops everything as a loss of power does.
Beside that it knows what an fsync has made durable, so that `lose_power` can leave what a disk may hold afterwards:

    file data       what the last fsync of the file has written; other data may be there, cut, zeros or missing
    names           those of the folder's last fsync, or of any moment since

Linux alone promises more; a program that is right here is right there.
"""

import builtins
import errno
import io
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOM = ("open", "write", "mkdir", "link", "rename", "fsync")  # what may need room on the disk
CHANGES = ("open", "write", "mkdir", "link", "rename", "unlink", "rmdir", "truncate")
KINDS: dict[str, tuple[int, tuple[str, ...], bool]] = {  # the error, what it may hit, whether it lasts
    "ENOSPC": (errno.ENOSPC, ROOM, True),
    "EDQUOT": (errno.EDQUOT, ROOM, True),
    "EROFS": (errno.EROFS, CHANGES, True),
    "EIO": (errno.EIO, (*CHANGES, "fsync"), False),
}
POWER = ("power: least", "power: names", "power: mixed")
EVERY = (*KINDS, "short", *POWER)


class PowerLoss(BaseException):
    """Nothing runs after it: every later change raises it too."""


@dataclass(eq=False)
class Data:
    """A file's content on the disk since its last fsync; names point to it."""

    synced: bytes = b""


Names = dict[str, Data | None]  # None: a folder


@dataclass
class Disk:
    """Counts the changes below `root` within its `with` block, and fails at the `at`-th one (0: never) as `kind` says.

    `fired` is how often it failed; `changes` what was done, in order.
    """

    root: Path
    kind: str = ""
    at: int = 0
    fired: int = 0
    changes: list[str] = field(default_factory=list)
    _data: dict[int, Data] = field(default_factory=dict)  # by inode
    _names: dict[Path, list[Names]] = field(default_factory=dict)  # of each folder since its last fsync
    _open: dict[int, Path] = field(default_factory=dict)  # by handle
    _patch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)

    def __enter__(self) -> "Disk":
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                self._data[path.stat().st_ino] = Data(path.read_bytes())
            self._names[Path(folder)] = []
            self._moved(Path(folder))
        for name, change in (("mkdir", "mkdir"), ("rmdir", "rmdir"), ("unlink", "unlink"), ("remove", "unlink")):
            self._replace(name, change, lambda path, *_, **__: [path])
        for name, change in (("rename", "rename"), ("replace", "rename"), ("link", "link")):
            self._replace(name, change, lambda path, other, **_: [path, other])
        for name, change in (("write", "write"), ("pwrite", "write"), ("ftruncate", "truncate"), ("fsync", "fsync")):
            self._replace(name, change, lambda handle, *_: [handle])
        self._replace("open", "open", lambda path, *_, **__: [path])
        self._patch.setattr(builtins, "open", partial(self._file, builtins.open))
        self._patch.setattr(io, "open", builtins.open)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def change(self, name: str, path: Path) -> None:
        """Counts a change that is about to be made; fails if it is its turn."""
        self.changes.append(f"{name} {path.relative_to(self.root)}")
        if not 0 < self.at <= len(self.changes):
            return
        if self.kind in POWER:
            self.fired += 1
            raise PowerLoss
        number, hits, lasts = KINDS.get(self.kind, (0, (), False))
        if name in hits and (lasts or not self.fired):
            self.fired += 1
            raise OSError(number, os.strerror(number), str(path))

    def length(self, n: int) -> int:
        """How many of `n` bytes a write takes."""
        if self.kind != "short" or self.fired or len(self.changes) < self.at or n < 2:
            return n
        self.fired += 1
        return n // 2

    def lose_power(self, seed: int) -> None:
        """Leaves below `root` what a disk may hold after a loss of power at this moment."""
        choose = random.Random(seed)
        files = [path for path in self.root.rglob("*") if path.is_file()]
        now = {self._data.setdefault(path.stat().st_ino, Data()): path.read_bytes() for path in files}
        shutil.rmtree(self.root)
        self._leave(self.root, now, choose)

    def _leave(self, folder: Path, now: dict[Data, bytes], choose: random.Random) -> None:
        folder.mkdir()
        states = self._names[folder]
        names = {"power: least": states[0], "power: names": states[-1]}.get(self.kind) or (
            choose.choice(states) if self.kind == "power: mixed" else {}
        )
        for name, data in names.items():
            if data is None:
                self._leave(folder / name, now, choose)
                continue
            synced, there = data.synced, now.get(data, data.synced)
            contents = [synced]
            if self.kind == "power: mixed" and there != synced:
                first = len(synced) if there.startswith(synced) else 0  # what is appended leaves the rest
                contents += [there, there[: choose.randint(first, len(there))], synced.ljust(len(there), b"\0")]
            (folder / name).write_bytes(choose.choice(contents))

    def _file(
        self, real: Callable[..., Any], file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any
    ) -> Any:
        """What `open` gives: of a file that is written below `root` one whose raw file is `Raw`."""
        place = self._path(file)
        if place is None or "b" not in mode or not set(mode) & set("wxa+"):
            opened = real(file, mode, buffering, *rest, **more)
            self._handle(opened.fileno(), place)
            return opened
        raw = Raw(file, mode.replace("b", ""), opener=more.get("opener", partial(os.open, mode=0o666)))
        raw.disk = self
        buffered: Any = io.BufferedRandom if "+" in mode else io.BufferedWriter
        return buffered(raw) if buffering else raw

    def _path(self, file: Any, folder: int | None = None) -> Path | None:
        """Of a path or a handle, if it lies below `root`."""
        if isinstance(file, int):
            return self._open.get(file)
        path = Path(self._open.get(folder, Path()) if folder is not None else Path(), os.fsdecode(file)).absolute()
        return path if path.is_relative_to(self.root) else None

    def _handle(self, handle: int, place: Path | None) -> None:
        """Which file below `root` a handle is of; None: of one elsewhere, whatever it was of before."""
        self._open.pop(handle, None)
        if place is not None:
            self._open[handle] = place

    def _moved(self, folder: Path) -> None:
        """The folder's names are others now; durable once it is told to the disk."""
        names: Names = {}
        for entry in os.scandir(folder):
            inode = entry.inode()
            names[entry.name] = None if entry.is_dir() else self._data.setdefault(inode, Data())
        self._names[folder].append(names)

    def _replace(self, name: str, change: str, paths: Callable[..., list[Any]]) -> None:
        real = getattr(os, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            places = [self._path(file, named.get("dir_fd")) for file in paths(*arguments, **named)]
            place = places[-1]
            if place is None:
                outcome = real(*arguments, **named)
                if change == "open":
                    self._handle(outcome, None)
                return outcome
            if change == "open":
                return self._opened(real, place, *arguments, **named)
            if (change, os.path.lexists(place)) in (("unlink", False), ("mkdir", True)):
                return real(*arguments, **named)  # changes nothing
            self.change(change, place)
            if change == "write" and (n := self.length(len(arguments[1]))) < len(arguments[1]):
                arguments = (arguments[0], arguments[1][:n], *arguments[2:])
            outcome = None if change == "fsync" else real(*arguments, **named)  # the disk is ours: nothing to wait for
            self._after(change, place, arguments[0])
            return outcome

        self._patch.setattr(os, name, counted)

    def _opened(self, real: Callable[..., int], place: Path, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        new = bool(flags & os.O_CREAT) and not os.path.lexists(place)
        if new or flags & os.O_TRUNC:
            self.change("open", place)
        handle = real(path, flags, *rest, **named)
        self._handle(handle, place)
        if new:
            self._data[os.fstat(handle).st_ino] = Data()
            self._moved(place.parent)
        return handle

    def _after(self, change: str, place: Path, file: Any) -> None:
        if change == "fsync" and place.is_dir():
            self._names[place] = self._names[place][-1:]
        elif change == "fsync":
            self._data[os.fstat(file).st_ino].synced = place.read_bytes()
        elif change == "mkdir":
            self._names[place] = [{}]
        if change in ("mkdir", "rmdir", "unlink", "rename", "link") and place != self.root:
            self._moved(place.parent)


class Raw(io.FileIO):
    """A file whose writes the disk counts."""

    disk: Disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.disk.change("write", self.disk._open[self.fileno()])
        return super().write(view[: self.disk.length(len(view))])

    def truncate(self, size: int | None = None) -> int:
        self.disk.change("truncate", self.disk._open[self.fileno()])
        return super().truncate(size)
