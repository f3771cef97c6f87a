"""A folder of features, read: activations as arrays on the disk, the pictures' names and classes in the same order.

features.json   what was asked of which net, each array's place, and the sha256 of every other file; written last
STAGE.npy       float32 or float16 (n, C, H, W) or (n, D); or all stages in features.h5, or in features.parquet
pictures.jsonl  a line for each row: its key, and where classes are known its label and class
left_out.jsonl  what was skipped, could not be read, or is odd: status, key and reason

docs/features.md says what the stages are, and how others' programs take the arrays.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnet.errors import DataError, UsageError, unknown
from convnet.io import atomic, strict_json
from convnet.io.strict_json import Json

FORMAT = "convnet features 1"
META, PICTURES, LEFT_OUT = "features.json", "pictures.jsonl", "left_out.jsonl"
DTYPES = ("float32", "float16")
LARGEST = 1 << 32  # bytes of the lines about pictures


@dataclass(frozen=True, eq=False)
class Features:
    """The features of n pictures, one row each.

    folder   where they are
    meta     what features.json says
    keys     the pictures' names
    labels   int64 (n,), places in `classes`; None where nobody told classes
    classes  their names
    """

    folder: Path
    meta: Json
    keys: tuple[str, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]

    @property
    def stages(self) -> list[str]:
        return list(self.meta["arrays"])

    def array(self, stage: str) -> NDArray[np.floating]:
        """(n, C, H, W) or (n, D), mapped from the disk. Raises: UsageError for another stage, and for Parquet."""
        if stage not in self.meta["arrays"]:
            raise UsageError(unknown("stage", stage, self.stages))
        row = self.meta["arrays"][stage]
        if row["offset"] is None:
            raise UsageError(f"{self.folder} holds Parquet, which pyarrow reads; extract with --format npy or hdf5")
        dtype, shape = np.dtype(self.meta["asked"]["dtype"]), tuple(row["shape"])
        return np.memmap(self.folder / row["file"], dtype, "r", row["offset"], shape)


def open_features(folder: atomic.PathLike) -> Features:
    """The features in a folder, every byte of it held against its sha256.

    Raises: UsageError when there are none; DataError naming what is damaged.
    """
    folder = atomic.as_path(folder, "the folder of features")
    if not (folder / META).is_file():
        raise UsageError(f"{folder} holds no features (it has no {META}); convnet extract writes them")
    try:
        meta = strict_json.unseal(atomic.read(folder / META, atomic.TEXT))
        if meta["format"] != FORMAT or not {PICTURES, LEFT_OUT} <= meta["files"].keys():
            raise DataError(f"{META} is not of the format {FORMAT!r}")
        for name, row in meta["files"].items():
            _check(folder, name, row)
        _check_arrays(meta)
        lines = atomic.read(folder / PICTURES, LARGEST).splitlines()
        rows = [strict_json.parse(line) for line in lines]
        if len(rows) != meta["n"]:
            raise DataError(f"{PICTURES} has {len(rows):,} lines and not {meta['n']:,}")
        labels = np.array([row["label"] for row in rows], np.int64) if "label" in rows[0] else None
        return Features(folder, meta, tuple(str(row["key"]) for row in rows), labels, tuple(meta["classes"]))
    except OSError as error:
        raise DataError(f"{folder}: {error.filename} can't be read: {error.strerror}; extract again") from error
    except (DataError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{folder}: {error}; extract again, into another folder") from error


def _check(folder: Path, name: str, row: Json) -> None:
    path = folder / name
    if Path(name).name != name or path.stat().st_size != row["bytes"] or atomic.sha256_file(path) != row["sha256"]:
        raise DataError(f"{name} is damaged: its length or sha256 does not match")


def _check_arrays(meta: Json) -> None:
    """Of a stranger's features too each array lies within its file."""
    if meta["asked"]["dtype"] not in DTYPES:
        raise DataError(f"the type {meta['asked']['dtype']!r}; known: {', '.join(DTYPES)}")
    for stage, row in meta["arrays"].items():
        size = math.prod(row["shape"]) * np.dtype(meta["asked"]["dtype"]).itemsize
        numbers = [*row["shape"], 1 if row["offset"] is None else row["offset"]]
        if not all(type(number) is int and number > 0 for number in numbers) or row["shape"][0] != meta["n"]:
            raise DataError(f"{stage} is said to have the shape {row['shape']} at {row['offset']}")
        if row["offset"] is not None and row["offset"] + size > meta["files"][row["file"]]["bytes"]:
            raise DataError(f"{stage} does not lie within {row['file']}")


def lines(rows: list[Json]) -> bytes:
    """A line of JSON for each row."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
