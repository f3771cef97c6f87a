"""Features in one file: HDF5, which needs no package, or Parquet, by pyarrow.

features.h5       a dataset for each stage; `keys`, UTF-8 texts; `labels`, int64, where classes are known
features.parquet  the columns key and label; for each stage lists of fixed length, whose (C, H, W) the metadata say
"""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet import hardware
from convnet.errors import UsageError
from convnet.io import atomic
from convnet.retrieval import hdf5

BLOCK = 1 << 25  # bytes of an array that are copied at a time
Arrays = Mapping[str, NDArray[np.floating]]


def write_hdf5(path: Path, arrays: Arrays, keys: Sequence[str], labels: Sequence[int] | None) -> dict[str, int | None]:
    """The byte at which each array begins."""
    every: dict[str, NDArray[Any]] = {**arrays, "keys": np.array([key.encode() for key in keys])}
    if labels is not None:
        every["labels"] = np.array(labels, np.dtype("<i8"))
    head, offsets = hdf5.layout({name: (array.shape, array.dtype) for name, array in every.items()})
    atomic.write_atomic(path, (piece for pieces in ([head], *map(_padded, every.values())) for piece in pieces))
    return {stage: offsets[stage] for stage in arrays}


def write_parquet(
    path: Path, arrays: Arrays, keys: Sequence[str], labels: Sequence[int] | None
) -> dict[str, int | None]:
    """A row group for each BLOCK of activations. No array lies whole in the file: their places are None."""
    arrow, parquet = pyarrow()
    step = max(1, BLOCK // sum(array[:1].nbytes for array in arrays.values()))
    shapes = json.dumps({stage: list(array.shape[1:]) for stage, array in arrays.items()})
    with atomic.atomic(path) as file:
        writer = None
        for first in range(0, len(keys), step):
            part = slice(first, first + step)
            columns: dict[str, Any] = {"key": arrow.array(keys[part], arrow.string())}
            if labels is not None:
                columns["label"] = arrow.array(labels[part], arrow.int64())
            for stage, array in arrays.items():
                flat = arrow.array(array[part].reshape(-1))
                columns[stage] = arrow.FixedSizeListArray.from_arrays(flat, array[:1].size)
            table = arrow.table(columns).replace_schema_metadata({"shapes": shapes})
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return dict.fromkeys(arrays)


def pyarrow() -> tuple[Any, Any]:
    """The package and its part for Parquet. Raises: UsageError where it is missing."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        install = f'pip install "{hardware.DISTRIBUTION}[features]", in a checkout pip install -e ".[features]"'
        raise UsageError(f"to write Parquet, {error.name} is missing: {install}") from error


def _padded(array: NDArray[Any]) -> Iterator[bytes]:
    step = max(1, BLOCK // array[:1].nbytes)
    return hdf5.padded(array[first : first + step].tobytes() for first in range(0, len(array), step))
