import builtins
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convnet import checkpoint
from convnet.errors import DataError, DiskError, UsageError
from convnet.io import atomic
from convnet.training import metrics_log


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new folder" / "a"
    atomic.write_atomic(path, b"old")
    with atomic.atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    atomic.write_atomic(path, (piece for piece in (b"in ", b"pieces")))
    assert path.read_bytes() == b"in pieces"
    assert [entry.name for entry in path.parent.iterdir()] == ["a"]


def test_an_error_in_the_block_leaves_the_former_file(tmp_path):
    path = tmp_path / "a"
    atomic.write_atomic(path, b"old")

    def work():
        with atomic.atomic(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_the_order_is_write_fsync_rename_fsync_the_folder(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    atomic.write_atomic(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


class Failing:
    """A file whose writes fail."""

    def __init__(self, path, mode, number):
        self.file, self.number = builtins.open(path, mode), number  # noqa: SIM115 - closed by __exit__
        self.flush, self.fileno = self.file.flush, self.file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "a: disk full; free some space and run the same command again"),
        (errno.EDQUOT, "a: disk full"),
        (errno.EIO, "a: cannot be written: Input/output error"),
    ],
)
@pytest.mark.parametrize("where", ["write", "fsync", "replace", "open", "mkdir"])
def test_every_failure_of_the_disk_names_the_path(tmp_path, monkeypatch, number, text, where):
    path, fired = tmp_path / "a", []
    atomic.write_atomic(path, b"old")

    def fail(*_, **__):
        fired.append(where)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(
                atomic, "open", lambda path, mode: fired.append(1) or Failing(path, mode, number), raising=False
            )
        elif where == "open":
            patch.setattr(atomic, "open", fail, raising=False)
        elif where == "mkdir":
            patch.setattr(type(path), "mkdir", fail)
        else:
            patch.setattr(os, where, fail)
        with pytest.raises(DiskError, match=text) as caught:
            atomic.write_atomic(path, b"new")
    assert fired
    assert caught.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_new_file_whose_name_cannot_be_made_durable_is_not_left(tmp_path, monkeypatch):
    """What writes only where nothing is must find nothing when it is tried again."""

    def fail(folder):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(atomic, "sync_folder", fail)
    for name in ("old", "new"):
        with pytest.raises(DiskError, match=f"{name}: cannot be written"):
            atomic.write_atomic(tmp_path / name, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"new"}


def test_sha256_of_a_file(tmp_path):
    data, told = os.urandom(atomic.CHUNK * 2 + 5), []
    (tmp_path / "a").write_bytes(data)
    assert atomic.sha256_file(tmp_path / "a", told.append) == hashlib.sha256(data).hexdigest()
    assert sum(told) == len(data)


HOLD = """
import sys, pathlib
from convnet.io.atomic import lock
with lock(pathlib.Path(sys.argv[1]), "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_free(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        text = rf"is in use by process {holder.pid} \(training\); wait for it, or choose another folder"
        with pytest.raises(UsageError, match=text), atomic.lock(tmp_path, "preparing"):
            pass
        holder.kill()
        holder.communicate()
    with atomic.lock(tmp_path, "preparing"):
        assert (tmp_path / ".lock").read_text(encoding="utf-8") == f"process {os.getpid()} (preparing)\n"
        with pytest.raises(UsageError, match="in use by process"), atomic.lock(tmp_path, "again"):
            pass
    assert list(tmp_path.iterdir()) == []
    with atomic.lock(tmp_path / "made", "preparing"):
        pass


def test_a_lock_that_cannot_be_taken_or_written_says_why(tmp_path, monkeypatch):
    def fail(number):
        def call(*_):
            raise OSError(number, os.strerror(number))

        return call

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", fail(errno.ENOLCK))
        with pytest.raises(DiskError, match="cannot be locked: No locks available"), atomic.lock(tmp_path, "x"):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail(errno.ENOSPC))
        with pytest.raises(DiskError, match=r"\.lock: disk full"), atomic.lock(tmp_path, "x"):
            pass
    with pytest.raises(OSError, match="of the work"), atomic.lock(tmp_path, "x"):
        raise OSError("of the work inside, not of the lock")


def test_nothing_is_written_through_a_link(tmp_path):
    """A stranger's folder may hold links under the names that we write, to files outside it."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    folder.mkdir()
    outside.write_bytes(b"mine")
    for name in (".a.part", "a", "rows", ".lock"):
        (folder / name).symlink_to(outside)
    atomic.write_atomic(folder / "a", b"new")
    assert ((folder / "a").read_bytes(), (folder / "a").is_symlink()) == (b"new", False)
    with pytest.raises(DataError, match="rows is a link, pipe or device, through which nothing is written; remove it"):
        metrics_log.append(folder / "rows", {"a": 1})
    with pytest.raises(DataError, match=r"\.lock is a link"), atomic.lock(folder, "training"):
        pass
    assert outside.read_bytes() == b"mine"
    outside.unlink()
    with pytest.raises(DataError, match=r"\.lock is a link"), atomic.lock(folder, "training"):
        pass
    assert not outside.exists()


def test_a_pipe_in_a_locks_or_a_records_place_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    os.mkfifo(tmp_path / "rows")
    with pytest.raises(DataError, match=r"\.lock is a link, pipe or device"), atomic.lock(tmp_path, "training"):
        pass
    with pytest.raises((DataError, DiskError), match="rows"):
        metrics_log.append(tmp_path / "rows", {"a": 1})


def test_a_part_of_a_killed_process_is_in_nobodys_way(tmp_path):
    (tmp_path / ".a.part").write_bytes(b"half")
    atomic.write_atomic(tmp_path / "a", b"whole")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_path_is_text_or_a_path():
    assert atomic.as_path("a/b", "x") == atomic.as_path(Path("a/b"), "x") == Path("a/b")
    for wrong in (3, None, b"a"):
        with pytest.raises(UsageError, match=f"the checkpoint is {wrong!r}, a {type(wrong).__name__}; it must be"):
            checkpoint.load(wrong)


def test_who_shares_a_lock_waits_for_the_last_holder_that_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of several holders has the lock for itself while it removes the file: nobody is refused for that."""
    path = tmp_path / ".lock"
    path.write_text(f"{atomic.SHARERS} (working)\n", encoding="utf-8")
    last = os.open(path, os.O_RDWR)
    fcntl.flock(last, fcntl.LOCK_EX)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            path.unlink()
            os.close(last)

    monkeypatch.setattr(atomic, "sleep", sleep)
    with atomic.lock(tmp_path, "working", shared=True):
        assert len(waits) == 3
        with atomic.lock(tmp_path, "working", shared=True):
            pass
