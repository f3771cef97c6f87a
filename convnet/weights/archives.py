"""What tensors do the files of PyTorch, numpy and safetensors hold? Nothing in them is executed.

A `.pth` is a program for a stack machine that may name functions. Its names are read first, as text; a file that names
anything but the few that put a tensor together is refused with that name. Only then torch.load reads it, with
weights_only, which holds to a list of its own.
"""

import io
import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnet import tensors
from convnet.errors import DataError
from convnet.files import CHUNK
from convnet.weights.found import Found

MAX_PICKLE = 16 << 20  # bytes of the program in a .pth; 1,000 tensors have about 100 KB
MAX_TENSORS = 10_000
MAX_HEADER = 10_000  # bytes of the header of an array
LEGACY_PICKLES = 5  # in a .pth from before PyTorch 1.6: magic, protocol, system, the object, its storages
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in such a file
ELEMENTS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    (
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {element}Storage" for element in ELEMENTS),
    )
)
HEADER = re.compile(
    r"\{'descr': '([<|])([fiu])([1248])', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\),? *\} *\n?"
)


def read_torch(path: Path) -> list[Found]:
    """The tensors of a `.pth`, `.pt` or `.pkl` that torch.save wrote from a dict of tensors.

    Raises: DataError for everything else, with the reason: a name that isn't allowed, an object that is no tensor.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # what torch goes by
    if is_zip:
        _check_zip(path)
    else:
        _check_legacy(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # what a damaged file raises inside torch has no common type
        lines = str(error).strip().split("\n")
        raise DataError(f"torch can't read it: {lines[0][:200]}") from error
    return _state_dict(content, path.stat().st_size)


def read_safetensors(path: Path) -> list[Found]:
    """The tensors of a `.safetensors`. Raises: DataError."""
    return [_of_tensor(name, tensor) for name, tensor in _safetensors(path)[0].items()]


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that the writer of a `.safetensors` added to it, by name. Raises: DataError."""
    return _safetensors(path)[1]


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = path.stat().st_size
    if not size:
        raise DataError("empty file")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # mapped, not read
    try:
        return tensors.parse_all(data)
    except DataError as error:
        raise DataError(f"not a whole .safetensors: {error}") from error


def read_npz(path: Path) -> list[Found]:
    """The arrays of a `.npz`, each read when it's asked for. Raises: DataError."""
    with _zip_errors("a whole .npz"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members) or len(members) > MAX_TENSORS:
                raise DataError(f"two members of one name, or more than {MAX_TENSORS:,}")
            return [_member(path, archive, member) for member in members]


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a `.npy`. Raises: DataError."""
    with open(path, "rb") as file:
        shape, dtype, fortran = _array_header(file)
        rest = path.stat().st_size - file.tell()
        if rest != math.prod(shape) * dtype.itemsize:
            raise DataError(f"an array of shape {shape} can't have {rest:,} bytes")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")


# .pth


def _check_zip(path: Path) -> None:
    """Holds against the rules a file as torch.save writes it since PyTorch 1.6. Raises: DataError."""
    with _zip_errors("a whole file of torch.save"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(name.endswith("/constants.pkl") for name in names):
                raise DataError("a TorchScript program, not weights; save model.state_dict() instead")
            programs = [member for member in members if member.filename.endswith(".pkl")]
            if len(programs) != 1 or len(set(names)) < len(names):
                raise DataError("not a file of torch.save: it must hold one data.pkl and no name twice")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise DataError("not a file of torch.save: it has compressed members")
            if programs[0].file_size > MAX_PICKLE:
                raise DataError(f"its data.pkl has {programs[0].file_size:,} bytes, at most {MAX_PICKLE:,} are allowed")
            _scan(io.BytesIO(archive.read(programs[0])))


def _check_legacy(path: Path) -> None:
    """Holds against the rules a file from before PyTorch 1.6: pickles one after the other. Raises: DataError."""
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE))
    for i in range(LEGACY_PICKLES):
        value = _scan(stream)
        if i == 0 and value != LEGACY_MAGIC:
            raise DataError("a pickle, but not a file of torch.save")


def _scan(program: io.BytesIO) -> Any:
    """Reads one pickle as text, without running it; the last value that it pushes.

    Raises: DataError when it names what isn't allowed.
    """
    value = None
    try:
        for code, argument, _ in pickletools.genops(program):
            if code.name in ("GLOBAL", "INST") and argument not in ALLOWED:
                name = str(argument).replace(" ", ".")[:100]
                raise DataError(f"refused, nothing was run: it wants to import {name!r}; only plain tensors are read")
            if code.name == "STACK_GLOBAL" or code.name.startswith("EXT"):
                raise DataError(f"refused, nothing was run: it imports by {code.name}, whose name can't be checked; "
                                "save it again with torch.save")  # fmt: skip
            value = value if argument is None else argument
    except DataError:
        raise
    except Exception as error:  # genops has no common type of error for bad bytes
        raise DataError(f"not a file of torch.save, or damaged: {str(error)[:100]}") from error
    return value


def _state_dict(content: Any, size: int) -> list[Found]:
    """The tensors of what torch.load gave. Together they may not be larger than the file."""
    if not isinstance(content, Mapping):
        raise DataError(f"it holds a {type(content).__name__}, not a dict of tensors")
    if len(content) > MAX_TENSORS:
        raise DataError(f"it holds more than {MAX_TENSORS:,} tensors")
    found, n_bytes = [], 0
    for name, tensor in content.items():
        if not isinstance(name, str) or not name.isprintable():
            raise DataError("a name in its dict is no printable text")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            kind = type(tensor).__name__
            raise DataError(f"{name!r} is a {kind}, not a plain tensor; save model.state_dict() alone")
        n_bytes += tensor.numel() * tensor.element_size()
        found.append(_of_tensor(name, tensor.detach()))
    if n_bytes > size:
        raise DataError(f"its tensors have {n_bytes:,} bytes, more than the file's {size:,}: parts are used repeatedly")
    return found


def _of_tensor(name: str, tensor: Tensor) -> Found:
    return Found(
        name,
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        lambda: tensor.clone(memory_format=torch.contiguous_format),
    )


@contextmanager
def _zip_errors(what: str) -> Iterator[None]:
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
            shape, dtype, fortran = _array_header(file)
        except DataError as error:
            raise DataError(f"{name!r}: {error}") from error
        begin, n_bytes = file.tell(), math.prod(shape) * dtype.itemsize
    if member.file_size - begin != n_bytes:
        raise DataError(f"{name!r} of shape {shape} can't have {member.file_size - begin:,} bytes")

    def read() -> Tensor:
        numbers = np.empty(math.prod(shape), dtype)
        rest = numbers.view(np.uint8).data
        with _zip_errors(f"whole at {name!r}"), zipfile.ZipFile(path) as again, again.open(member) as file:
            file.read(begin)
            while rest and (piece := file.read(min(len(rest), CHUNK))):
                rest[: len(piece)] = piece
                rest = rest[len(piece) :]
        if rest:
            raise DataError(f"{name!r}: the file ends within it")
        array = numbers.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.ascontiguousarray(array))

    return Found(name, shape, dtype.name, read)


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """(shape, dtype, whether columns come first) of an array's file. Only numbers in little-endian order are read."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise DataError("not a numpy array")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    header = file.read(min(length, MAX_HEADER + 1)).decode("latin-1")
    if not (match := HEADER.fullmatch(header)):
        raise DataError(f"an array of this kind isn't read, only little-endian numbers: {header.strip()[:80]!r}")
    order, kind, width, fortran, sides = match.groups()
    if (kind, width) == ("f", "1") or (order == "|") != (width == "1"):
        raise DataError(f"an array of type {order}{kind}{width}")
    shape = tuple(int(side) for side in sides.replace(",", " ").split()) if len(sides) < 200 else ()
    if len(shape) > 8 or math.prod(shape) > 1 << 40:
        raise DataError(f"an array of shape {shape}")
    return shape, np.dtype(f"{order}{kind}{width}"), fortran == "True"
