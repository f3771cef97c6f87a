"""Where are the published weights, and how do they get here whole? Known files by name; resumed, verified, never wrong.

PyTorch's files carry the first eight hexadecimal digits of their sha256 in their names; Caffe's zoo publishes the sha1
of its files; the Oxford group publishes none, so those two are held against their length and the net's shapes only, and
later against FILE.sha256, which is written when they come.
"""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from convnet.errors import ConvnetError, DataError, UsageError, unknown
from convnet.io import atomic
from convnet.nets import MODELS
from convnet.nets.published import Known
from convnet.progress import SILENT, Progress

MIB = 1 << 20
MAX_BYTES = 2 << 30  # the largest known file has 575 MB
STALL_SECONDS = 30.0  # without a byte, then the connection is given up and made anew
ATTEMPTS = 5  # in a row without a byte gained
PAUSE_SECONDS = 1.0  # between attempts
KNOWN: Mapping[str, Known] = MappingProxyType(
    {name: file for net in MODELS.values() for name, file in vars(net).get("published", {}).items()}  # its own alone
)


class _WrongError(Exception):
    """What the server sent is not the file; asking again won't help."""


def known(name: str) -> Known:
    """The published file of this name. Raises: UsageError that lists the known ones."""
    if name not in KNOWN:
        raise UsageError(f"{unknown('file', name, KNOWN)}; a file of your own ends in .caffemodel, .pth, .pt, "
                         ".safetensors or .npz")  # fmt: skip
    return KNOWN[name]


def known_by_digest(sha256: str) -> Known | None:
    """The published file with this sha256 (in full, hexadecimal), as far as its first digits tell."""
    for each in KNOWN.values():
        kind, _, digits = each.digest.partition(":")
        if kind == "sha256" and sha256.startswith(digits):
            return each
    return None


def fetch(
    file: Known,
    folder: Path,
    progress: Progress = SILENT,
    *,
    stall_seconds: float = STALL_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Path:
    """The path of the file in `folder`, downloaded if it isn't there; only a verified one gets its name.

    A download that breaks off goes on where it was, also in a later call, when a published digest can prove the whole.

    Raises: DataError when what comes is not the file; ConvnetError when it can't be had; DiskError.
    """
    path = folder / file.file_name
    if path.exists():
        _verify(path, file, path)
        if not file.digest:
            _verify_own(path, progress)
        return path
    part = folder / f".{file.file_name}.part"
    is_new = not folder.exists()
    try:
        _get(file, path, part, progress, stall_seconds, pause_seconds)
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only an empty one goes: nothing has come
    return path


def _get(file: Known, path: Path, part: Path, progress: Progress, stall_seconds: float, pause_seconds: float) -> None:
    """Downloads to `part`, again and again as long as something comes, and gives the verified file its name."""
    folder = path.parent
    with atomic.disk_errors(path):
        atomic.make_folder(folder)
        if not file.digest:
            part.unlink(missing_ok=True)
    with atomic.lock(folder, f"downloading {file.file_name}"):
        failed = 0
        while True:
            before = _size(part)
            try:
                _download(file, part, progress, stall_seconds)
                break
            except _WrongError as error:
                part.unlink(missing_ok=True)
                raise DataError(f"{file.address}: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                failed = 1 if _size(part) > before else failed + 1
                if failed >= ATTEMPTS:
                    raise ConvnetError(
                        f"{file.address} can't be downloaded: {_reason(error)}; run the same command again to go on, "
                        f"or put the file into {folder}"
                    ) from error
                if not file.digest:
                    part.unlink(missing_ok=True)
                time.sleep(pause_seconds)
            finally:
                progress.finish()
        _verify(part, file, path)
        if not file.digest:
            atomic.write_atomic(_own_digest(path), _sum_line(part, path))
        with atomic.disk_errors(path):
            os.replace(part, path)
            atomic.sync_folder(folder)


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or str(cause) or type(error).__name__


def _download(file: Known, part: Path, progress: Progress, stall_seconds: float) -> None:
    """Gets what is missing of the file. Raises: _WrongError; OSError or HTTPException when the connection fails."""
    have = _size(part)
    request = urllib.request.Request(file.address, headers={"User-Agent": "convnet", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing is left to send, or the file is another one
            if _content_total(error.headers.get("Content-Range")) == have:
                return
            part.unlink(missing_ok=True)
            raise OSError("the part that was here didn't fit; starting again") from error
        if error.code in (408, 429) or error.code >= 500:
            raise
        raise _WrongError(f"the server answers {error.code} {error.reason}") from error
    with response:
        begin, total = _announced(response, have)
        _receive(response, part, begin, total, progress, file.file_name)


def _announced(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """(where what comes begins, bytes of the whole file or None when the server doesn't say)."""
    kind = response.headers.get_content_type() if "Content-Type" in response.headers else ""  # not said is not text
    if kind.startswith("text/"):
        raise _WrongError(f"the server sends {kind}, not weights")
    if response.status == 206:
        begin, total = _content_range(response.headers.get("Content-Range"))
        if begin != have:
            raise _WrongError(f"the server goes on at byte {begin:,}, asked was {have:,}")
    else:
        length = response.headers.get("Content-Length")
        begin, total = 0, int(length) if length is not None and length.isdecimal() else None
    if total is not None and total > MAX_BYTES:
        raise _WrongError(f"the server announces {total:,} bytes")
    return begin, total


def _receive(
    response: http.client.HTTPResponse, part: Path, begin: int, total: int | None, progress: Progress, name: str
) -> None:
    done = begin
    progress.start(name, (total or MAX_BYTES) // MIB, done // MIB, unit="MiB")
    with open(part, "r+b" if begin else "wb", opener=atomic.in_place) as target:
        target.truncate(begin)
        target.seek(begin)
        while piece := response.read1(atomic.CHUNK):
            done += len(piece)
            if done > (total or MAX_BYTES):
                raise _WrongError(f"the server sends more than the {total or MAX_BYTES:,} bytes it may")
            with atomic.disk_errors(part):
                target.write(piece)
            progress.update(done // MIB)
    if total is not None and done < total:
        raise OSError(f"the connection broke off at {done:,} of {total:,} bytes")


def _content_range(text: str | None) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", text or "")
    if not match:
        raise _WrongError(f"the server's Content-Range is {text!r}")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _content_total(text: str | None) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d{1,15})", text or "")
    return int(match[1]) if match else None


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _verify(found: Path, file: Known, path: Path) -> None:
    """Holds the bytes against the published digest. A wrong download is removed, a wrong file of the user's is not."""
    if not file.digest:
        return
    kind, _, digits = file.digest.partition(":")
    with open(found, "rb") as stream:
        have = hashlib.file_digest(stream, kind).hexdigest()
    if have.startswith(digits):
        return
    if found != path:
        with suppress(OSError):
            found.unlink()
        raise DataError(
            f"{file.address}: its {kind} begins with {have[: len(digits)]}, published is {digits}; thrown away"
        )
    raise DataError(f"{path}: its {kind} begins with {have[: len(digits)]}, published is {digits}; "
                    "remove it to download it again")  # fmt: skip


def _own_digest(path: Path) -> Path:
    """Where the sha256 of a file without a published one is kept."""
    return path.with_name(f"{path.name}.sha256")


def _sum_line(found: Path, path: Path) -> bytes:
    """What is kept there, as sha256sum writes and checks it."""
    return f"{atomic.sha256_file(found)}  {path.name}\n".encode()


def _verify_own(path: Path, progress: Progress) -> None:
    """Holds a file without a published digest against what was kept when it came."""
    own = _own_digest(path)
    if not own.exists():
        progress.warn(f"{path}: no digest of it is published or kept: damage to it can't be told")
    elif own.read_bytes() != _sum_line(path, path):
        raise DataError(f"{path}: its sha256 is not the one in {own.name}; remove both to download it again")
