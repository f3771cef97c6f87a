"""A file from a stranger is read or refused by our own errors, soon and in little memory, whatever its bytes are.

`readers.py` has the table of readers. Each is given files with flipped bits, changed, lost and doubled bytes, ends cut
off and lengths without measure: 60 of them, at night 10,000, or as many as CONVNET_MUTATIONS says.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from convnet.data.image_formats import BadPicture
from convnet.errors import ConvnetError
from readers import READERS, Reader

OURS = (ConvnetError, BadPicture)
LENGTHS = [b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\xff" * 4, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 5 + b"\1\0\0"]
TEXTS = [b"9" * 30, b"-1", b"1e999", b"null", b'"', b"{", b"[" * 40, b"\\u0000", b"\n", b",", b"\x1b[2J", b"\xff\xfe"]
MOST = 64 << 20  # bytes of memory beside twice the file, and what its pixels take
PATIENCE = 30  # seconds until a read that waits for something is said to hang; most take 1 ms


def mutated(data: bytes, choice: random.Random) -> bytes:
    """One to four damages, half of them near the ends, where headers and tables lie."""
    out = bytearray(data)
    for _ in range(choice.choice((1, 1, 2, 4))):
        near = choice.choice((min(len(out), 256), len(out), len(out)))
        at, n = choice.randrange(near or 1), choice.randint(1, 20)
        at = len(out) - 1 - at if choice.random() < 0.3 and out else at
        match choice.randrange(8):
            case 0 if out:
                out[at] ^= 1 << choice.randrange(8)
            case 1:
                out[at : at + 1] = bytes([choice.choice((0, 255, choice.randrange(256)))])
            case 2:
                out[at : at + n] = choice.randbytes(n)
            case 3:
                del out[at : at + n]
            case 4:
                out[at:at] = out[at : at + n] * choice.choice((1, 1, 50))
            case 5:
                length = choice.choice(LENGTHS)
                out[at : at + len(length)] = length[:: choice.choice((1, -1))]
            case 6:
                out[at : at + choice.choice((0, 1, 4))] = choice.choice(TEXTS)
            case _:
                del out[choice.randrange(len(out) or 1) :]
    return bytes(out)


@contextmanager
def patience(name: str) -> Iterator[None]:
    """Ends what waits for ever."""

    def ended(_: int, frame: FrameType | None) -> None:
        pytest.fail(f"{name}: hangs")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def made(reader: Reader, folder: Path) -> tuple[bytes, Path]:
    """The whole file's bytes and its place, where it has been read."""
    whole, path = reader.make(folder), folder / reader.name
    reader.write(path, whole)
    reader.read(path)
    return whole, path


def peak() -> int:
    """Bytes that this process had at most since this was asked last; 0 where the system can't tell."""
    try:
        most = int(Path("/proc/self/status").read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) << 10
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, IndexError):
        return 0
    return most


def attack(name: str, folder: Path, n: int) -> Path:
    """`n` mutated files for one reader; gives their place."""
    reader, choice, n_refused, longest = READERS[name], random.Random(name), 0, 0.0
    whole, path = made(reader, folder)
    peak()
    first = before = peak()
    for number in range(n):
        reader.write(path, mutated(whole, choice))
        began = time.process_time()
        try:
            with patience(name):
                reader.read(path)
        except OURS:
            n_refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, mutation {number}: {type(error).__name__}, see {path}") from error
        longest = max(longest, time.process_time() - began)
        after, allowed = peak(), 2 * path.stat().st_size + MOST + reader.pixels(path)
        assert after - before < allowed, (
            f"{name}, mutation {number}: {after - before:,} bytes of {allowed:,}, see {path}"
        )
        peak()
        before = peak()
    print(f"{name}: {n:,} mutated files, {n_refused:,} refused, the longest took {longest:.3f} s")
    assert n_refused > 0
    assert longest < 5  # a hang, not a figure
    assert before - first < MOST  # nothing is kept
    return path


def refuse_what_is_no_file(name: str, path: Path) -> None:
    """A pipe without a writer, and a device without an end, in the file's place."""
    for put in (os.mkfifo, lambda place: os.symlink("/dev/zero", place)):
        path.unlink()
        put(path)
        with patience(name), pytest.raises(OURS):
            READERS[name].read(path)


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_pipes_and_devices_end_in_our_own_errors(name: str, tmp_path: Path, capfd) -> None:
    path = attack(name, tmp_path, 60)
    refuse_what_is_no_file(name, path)


@pytest.mark.large
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_mutated_files(name: str, tmp_path: Path, capfd) -> None:
    attack(name, tmp_path, int(os.environ.get("CONVNET_MUTATIONS", "10000")))
