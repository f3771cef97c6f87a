"""What tensors do the files of numpy and safetensors hold? `torch_files.py` reads PyTorch's."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet.errors import DataError
from convnet.io import npy, safetensors
from convnet.io.atomic import CHUNK, regular
from convnet.weights.found import Found

MAX_TENSORS = 10_000


def read_safetensors(path: Path) -> list[Found]:
    """The tensors of a `.safetensors`. Raises: DataError."""
    return [_of_tensor(name, tensor) for name, tensor in _safetensors(path)[0].items()]


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that the writer of a `.safetensors` added to it, by name. Raises: DataError."""
    return _safetensors(path)[1]


def is_as_sealed(path: Path, digest: str) -> bool:
    """Whether a `.safetensors` whose metadata say this sha256 is as it was written."""
    return safetensors.is_as_sealed(_mapped(path), digest)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    data = _mapped(path)
    try:
        return safetensors.parse_all(data)
    except DataError as error:
        raise DataError(f"not a whole .safetensors: {error}") from error


def _mapped(path: Path) -> Tensor:
    size = path.stat().st_size
    if not size:
        raise DataError("empty file")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # mapped, not read


def read_npz(path: Path) -> list[Found]:
    """The arrays of a `.npz`, each read when it's asked for. Raises: DataError."""
    with zip_errors("a whole .npz"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members) or len(members) > MAX_TENSORS:
                raise DataError(f"two members of one name, or more than {MAX_TENSORS:,}")
            return [_member(path, archive, member) for member in members]


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a `.npy`. Raises: DataError, OSError."""
    with open(path, "rb", opener=regular) as file:
        shape, dtype, fortran = npy.read_header(file)
        rest = path.stat().st_size - file.tell()
        if rest != math.prod(shape) * dtype.itemsize:
            raise DataError(f"an array of shape {shape} can't have {rest:,} bytes")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")


def _of_tensor(name: str, tensor: Tensor) -> Found:
    return Found(
        name,
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        lambda: tensor.clone(memory_format=torch.contiguous_format),
    )


@contextmanager
def zip_errors(what: str) -> Iterator[None]:
    """Turns what zipfile raises for damaged bytes into a DataError: "not WHAT"."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"not {what}: {error}") from error


# numpy


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Found:
    name = member.filename.removesuffix(".npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name!r} is packed in a way that numpy doesn't use")
    if not name.isprintable():
        raise DataError("a name in it is no printable text")
    with archive.open(member) as file:
        try:
            shape, dtype, fortran = npy.read_header(file)
        except DataError as error:
            raise DataError(f"{name!r}: {error}") from error
        begin, n_bytes = file.tell(), math.prod(shape) * dtype.itemsize
    if member.file_size - begin != n_bytes:
        raise DataError(f"{name!r} of shape {shape} can't have {member.file_size - begin:,} bytes")

    def read() -> Tensor:
        numbers = np.empty(math.prod(shape), dtype)
        rest = numbers.view(np.uint8).data
        with zip_errors(f"whole at {name!r}"), zipfile.ZipFile(path) as again, again.open(member) as file:
            file.read(begin)
            while rest and (piece := file.read(min(len(rest), CHUNK))):
                rest[: len(piece)] = piece
                rest = rest[len(piece) :]
        if rest:
            raise DataError(f"{name!r}: the file ends within it")
        array = numbers.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))

    return Found(name, shape, dtype.name, read)
