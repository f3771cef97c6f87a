"""The header of a store, store.json: with its own sha256, and of nothing that can't be.

A store may come from a stranger, whose sha256 is right whatever the header says: so types and sizes are checked too.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from convnet.data.resize import FITS
from convnet.errors import DataError, UsageError
from convnet.io import atomic, strict_json
from convnet.io.strict_json import Json
from convnet.io.urls import Place, Url, is_url

FORMAT = "convnet store"
VERSION = 1
VERSION_OF_FITS = 2  # of padded or squashed pictures, which earlier readers would take for cropped ones
MAX_HEADER = 1 << 26  # bytes: 22,000 classes have about 2 MB
MAX_SIDE, MAX_COUNT = 1 << 16, 1 << 31  # pixels; pictures, classes, shards
KINDS: Mapping[str, type] = {
    "source": dict,
    "encoding": str,
    "size": int,
    "shorter_side": int,
    "classes": list,
    "splits": dict,
    "counts": dict,
    "statistics": dict,
    "listing": str,
    "files": dict,
}
COUNTS = ("seen", "used", "skipped", "failed", "enlarged")
STATISTICS = {"n": (), "mean_rgb": (3,), "covariance": (3, 3), "eigenvalues": (3,), "eigenvectors": (3, 3)}


def shard_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}.tar"


def is_store(path: Place) -> bool:
    """Whether `path` is a committed store; a URL can't be that of anything else."""
    if isinstance(path, Url) or is_url(path):
        return True
    return os.path.isfile(path / "store.json")  # of a run's words too: Path.is_file raises for a name that's too long


def header_bytes(header: Json) -> bytes:
    """store.json: the header and, before it, the sha256 of its exact bytes."""
    body = json.dumps(header, indent=1, ensure_ascii=True, allow_nan=False).encode()
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"store": ' + body + b"}\n"


def read_header(path: Path) -> Json:
    """The header of the store at `path`.

    Raises: UsageError when there is no store; DataError when it is damaged, of another version or impossible.
    """
    file = path / "store.json"
    if not is_store(path):
        what = f"convnet prepare {path} STORE" if os.path.isdir(path) else f"convnet prepare SOURCE {path}"
        raise UsageError(f"{path} is not a store (it has no store.json); make one with: {what}")
    try:
        data = atomic.read(file, MAX_HEADER)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; prepare the store again") from error
    return parse(data, file)


def is_whole(data: bytes) -> bool:
    """Whether these are the bytes of a header under the sha256 that they name."""
    body = _body(data)
    return data == b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"store": ' + body + b"}\n"


def _body(data: bytes) -> bytes:
    return data[data.find(b'"store": ') + len(b'"store": ') : -2]


def parse(data: bytes, file: Place) -> Json:
    """The header in the bytes of `file`. Raises: DataError."""
    if not is_whole(data):
        raise DataError(f"{file} is damaged: its sha256 does not match; prepare the store again")
    try:
        header = strict_json.parse(_body(data))
        if header.get("format") != FORMAT or header.get("version") not in (VERSION, VERSION_OF_FITS):
            raise DataError(
                f"{file} is of format {header.get('format')} {header.get('version')}, this convnet reads {FORMAT} "
                f"{VERSION} and {VERSION_OF_FITS}; prepare the store again"
            )
        _check(header)
    except ValueError as error:
        raise DataError(f"{file}: {error}; prepare the store again") from error
    return header


def _check(header: Json) -> None:
    """Raises: ValueError naming the first field that is not what docs/store.md says."""
    for name, kind in KINDS.items():
        _need(type(header.get(name)) is kind, f"{name} is missing or no {kind.__name__}")
    _need(header["encoding"] in ("raw", "jpeg"), "encoding is neither raw nor jpeg")
    fits = FITS[1:] if header["version"] == VERSION_OF_FITS else ("crop",)
    _need(header.get("fit", "crop") in fits, f"fit is none of {', '.join(fits)}")
    _need(0 < header["size"] <= header["shorter_side"] <= MAX_SIDE, "size or shorter_side is out of range")
    classes = header["classes"]
    _need(len(classes) > 0 and all(type(name) is str for name in classes), "classes are no names")
    for name, split in header["splits"].items():
        _need(name in ("train", "val", "test"), f"split {str(name)[:40]!r} is none of train, val and test")
        _need(_are_counts(split, ("n", "shards")), f"split {name} has no counts")
        numbers = split.get("per_class")
        _need(isinstance(numbers, list) and len(numbers) == len(classes), f"split {name} has no count for each class")
        _need(all(_is_count(n) for n in numbers), f"split {name} has a wrong count of a class")
    _need(_are_counts(header["counts"], COUNTS), "counts are missing or wrong")
    source = header["source"]
    _need(all(type(source.get(name)) is str for name in ("name", "kind")), "source has no name or kind")
    _need(PurePosixPath(source["name"]).name == source["name"], "the source's name is no plain name")
    _need(isinstance(source.get("notes"), list), "source has no notes")
    _need(all(_is_shape(header["statistics"].get(name), shape) for name, shape in STATISTICS.items()), "statistics")
    for name, entry in header["files"].items():
        _need(PurePosixPath(name).name == name and not name.startswith("."), f"file {name[:40]!r} is no plain name")
        _need(_are_counts(entry, ("bytes",), 1 << 62), f"file {name} has no size")
        _need(type(entry.get("sha256", "")) is str, f"file {name} has a wrong sha256")
    n_shards = {name: split["shards"] for name, split in header["splits"].items()}
    _need(sum(n_shards.values()) <= len(header["files"]), "there are more shards than files")
    small = ["mean.npy", "left_out.jsonl", *(name + end for name in n_shards for end in (".index.npy", ".keys.jsonl"))]
    small += [name for split in n_shards if (name := f"{split}.blocks.npy") in header["files"]]
    for name in small + [shard_name(split, k) for split, n in n_shards.items() for k in range(n)]:
        _need(name in header["files"], f"{name} is not among its files")
        _need(name not in small or "sha256" in header["files"][name], f"file {name} has no sha256")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"the header is wrong: {otherwise}")


def _is_count(value: object, most: int = MAX_COUNT) -> bool:
    return type(value) is int and 0 <= value < most


def _are_counts(values: object, names: tuple[str, ...], most: int = MAX_COUNT) -> bool:
    return isinstance(values, dict) and all(_is_count(values.get(name), most) for name in names)


def _is_shape(value: object, shape: tuple[int, ...]) -> bool:
    if not shape:
        return type(value) in (int, float)
    return isinstance(value, list) and len(value) == shape[0] and all(_is_shape(each, shape[1:]) for each in value)
