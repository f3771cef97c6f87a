"""Downloading published weights by name: resumed where a connection breaks off, verified, never wrong.

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


def fetch(file: Known, folder: Path, progress: Progress = SILENT) -> Path:
    """The path of the file in `folder`, downloaded if it isn't there; only a verified one gets its name.

    A download that breaks off resumes where it was, also in a later call, when a published digest can prove the whole.

    Raises: DataError when what comes is not the file; ConvnetError when it can't be had; DiskError.
    """
    path = folder / file.file_name
    if path.exists():
        if (digest := _other_digest(path, file)) is not None:
            raise DataError(f"{path}: {digest}; remove it to download it again")
        if not file.digest:
            _verify_own(path, progress)
        return path
    part = folder / f".{file.file_name}.part"
    is_new = not folder.exists()
    try:
        with atomic.disk_errors(path):
            atomic.make_folder(folder)
            if not file.digest:
                part.unlink(missing_ok=True)
        with atomic.lock(folder, f"downloading {file.file_name}"):
            _download(file, part, progress)
            if (digest := _other_digest(part, file)) is not None:
                part.unlink(missing_ok=True)
                raise DataError(f"{file.address}: {digest}; thrown away")
            if not file.digest:
                atomic.write_atomic(_own_digest(path), _sum_line(part, path))
            with atomic.disk_errors(path):
                os.replace(part, path)
                atomic.sync_folder(folder)
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only an empty one goes: nothing has come
    return path


def _download(file: Known, part: Path, progress: Progress) -> None:
    """Gets the file, attempt after attempt as long as something comes. Raises: DataError; ConvnetError; DiskError."""
    failed = 0
    while True:
        before = _size(part)
        try:
            return _attempt(file, part, before, progress)
        except _WrongError as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{file.address}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            failed = 1 if _size(part) > before else failed + 1
            if failed >= ATTEMPTS:
                cause = getattr(error, "reason", error)
                reason = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
                raise ConvnetError(
                    f"{file.address} can't be downloaded: {reason}; run the same command again to go on, "
                    f"or put the file into {part.parent}"
                ) from error
            if not file.digest:
                part.unlink(missing_ok=True)
            time.sleep(PAUSE_SECONDS)
        finally:
            progress.finish()


def _attempt(file: Known, part: Path, have: int, progress: Progress) -> None:
    """Gets what is missing after `have` bytes. Raises: _WrongError; OSError, HTTPException for a bad connection."""
    request = urllib.request.Request(file.address, headers={"User-Agent": "convnet", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing is left to send, or the file is another one
            if error.headers.get("Content-Range") == f"bytes */{have}":
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
    begin, length = 0, response.headers.get("Content-Length", "")
    if response.status == 206:
        text = response.headers.get("Content-Range")
        if not (match := re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", text or "")):
            raise _WrongError(f"the server's Content-Range is {text!r}")
        begin, length = int(match[1]), match[2]
        if begin != have:
            raise _WrongError(f"the server goes on at byte {begin:,}, asked was {have:,}")
    total = int(length) if re.fullmatch(r"[0-9]{1,15}", length) else None
    if total is not None and total > MAX_BYTES:
        raise _WrongError(f"the server announces {total:,} bytes")
    return begin, total


def _receive(
    response: http.client.HTTPResponse, part: Path, begin: int, total: int | None, progress: Progress, name: str
) -> None:
    done, most = begin, total or MAX_BYTES
    progress.start(name, most // MIB, done // MIB, unit="MiB")
    with open(part, "r+b" if begin else "wb", opener=atomic.in_place) as target:
        target.truncate(begin)
        target.seek(begin)
        while piece := response.read1(atomic.CHUNK):
            done += len(piece)
            if done > most:
                raise _WrongError(f"the server sends more than the {most:,} bytes it may")
            with atomic.disk_errors(part):
                target.write(piece)
            progress.update(done // MIB)
    if total is not None and done < total:
        raise OSError(f"the connection broke off at {done:,} of {total:,} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _other_digest(path: Path, file: Known) -> str | None:
    """How the digest differs from the published one; None when it doesn't, or none is published."""
    if not file.digest:
        return None
    kind, _, digits = file.digest.partition(":")
    with open(path, "rb") as stream:
        have = hashlib.file_digest(stream, kind).hexdigest()
    if have.startswith(digits):
        return None
    return f"its {kind} begins with {have[: len(digits)]}, published is {digits}"


def _own_digest(path: Path) -> Path:
    """Where the sha256 of a file without a published one is kept."""
    return path.with_name(f"{path.name}.sha256")


def _sum_line(file: Path, path: Path) -> bytes:
    """What is kept there, as sha256sum writes and checks it."""
    return f"{atomic.sha256_file(file)}  {path.name}\n".encode()


def _verify_own(path: Path, progress: Progress) -> None:
    """Holds a file without a published digest against what was kept when it came."""
    own = _own_digest(path)
    if not own.exists():
        progress.warn(f"{path}: no digest of it is published or kept: damage to it can't be told")
    elif own.read_bytes() != _sum_line(path, path):
        raise DataError(f"{path}: its sha256 is not the one in {own.name}; remove both to download it again")
