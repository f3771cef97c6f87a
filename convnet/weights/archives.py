"""The tensors in files of numpy and safetensors; `torch_files.py` reads PyTorch's, `caffe.py` Caffe's."""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.errors import DataError
from convnet.io import npy, safetensors
from convnet.io.atomic import regular
from convnet.weights.state_dict import FileTensor

MAX_TENSORS = 10_000
Numbers = np.integer | np.floating


@contextmanager
def reading(path: Path, problem: str = "") -> Iterator[None]:
    """Errors within the block are DataErrors that name the file, and begin with `problem` where its data are wrong."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {problem}{error}") from error


@contextmanager
def data_errors(prefix: str) -> Iterator[None]:
    """DataErrors within the block begin with `prefix`: what they are about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{prefix}{error}") from error


@contextmanager
def zip_errors(what: str) -> Iterator[None]:
    """Turns what zipfile raises for damaged bytes into a DataError: "not WHAT"."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"not {what}: {error}") from error


def mapped(path: Path) -> Tensor:
    """The bytes of a file, uint8 (N,), mapped and not read. Raises: DataError for an empty one; OSError."""
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
    if not size:
        raise DataError("empty file")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def read_safetensors(path: Path) -> list[FileTensor]:
    """The tensors of a `.safetensors`. Raises: DataError."""
    return [
        FileTensor(
            name,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            partial(tensor.clone, memory_format=torch.contiguous_format),
        )
        for name, tensor in _safetensors(path)[0].items()
    ]


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that the writer of a `.safetensors` added to it, by name. Raises: DataError."""
    return _safetensors(path)[1]


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    data = mapped(path)
    with data_errors("not a whole .safetensors: "):
        return safetensors.parse_all(data)


def read_npy(path: Path) -> NDArray[Numbers]:
    """The array of a `.npy`. Raises: DataError, OSError."""
    with open(path, "rb", opener=regular) as file:
        shape, dtype, fortran = npy.read_header(file)
        rest = path.stat().st_size - file.tell()
        if rest != math.prod(shape) * dtype.itemsize:
            raise DataError(f"an array of shape {shape} can't have {rest:,} bytes")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")


def read_npz(path: Path) -> list[FileTensor]:
    """The arrays of a `.npz`, each read when it's asked for. Raises: DataError."""
    with zip_errors("a whole .npz"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members) or len(members) > MAX_TENSORS:
            raise DataError(f"two members of one name, or more than {MAX_TENSORS:,}")
        return [_member(path, archive, member) for member in members]


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> FileTensor:
    name = member.filename.removesuffix(".npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name!r} is packed in a way that numpy doesn't use")
    if not name.isprintable():
        raise DataError("a name in it is no printable text")
    with archive.open(member) as file:
        with data_errors(f"{name!r}: "):
            shape, dtype, fortran = npy.read_header(file)
        begin, n_bytes = file.tell(), math.prod(shape) * dtype.itemsize
    if member.file_size - begin != n_bytes:
        raise DataError(f"{name!r} of shape {shape} can't have {member.file_size - begin:,} bytes")

    def read() -> Tensor:
        with zip_errors(f"whole at {name!r}"), zipfile.ZipFile(path) as again, again.open(member) as file:
            file.read(begin)
            data = file.read()  # at most file_size bytes, whose sum zipfile checks
        if len(data) < n_bytes:
            raise DataError(f"{name!r}: the file ends within it")
        return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy())

    return FileTensor(name, shape, dtype.name, read)
