"""What does a file of torch.save hold? Its pickle is read as data (`io/pickles.py`), the numbers where they lie.

A pickle is a program that may name functions. Here only the few that put tensors and plain records together mean
something, and what they mean is ours; a file that names any other is refused with that name, and nothing is run.

zip (since PyTorch 1.6)   NAME/data.pkl, NAME/data/KEY for each storage, stored without compression
legacy                    pickles of magic, protocol, system, the object, the storages' keys; then for each storage the
                          number of its elements (8 bytes) and them
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnet.errors import DataError
from convnet.io.atomic import regular
from convnet.io.pickles import Global, Machine, RefusedError
from convnet.weights.archives import MAX_TENSORS, zip_errors
from convnet.weights.found import Found, Part

MAX_PICKLE = 16 << 20  # bytes of the program in a .pth; 1,000 tensors have about 100 KB
MAX_OPCODES = 1_000_000  # of it; 1,000 tensors have about 40,000
MAX_DEPTH = 4  # of dicts in dicts in which tensors are looked for
MAX_SIDES = 8
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, lengths of its name and of its extra field
ELEMENTS: Mapping[str, torch.dtype] = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
PLAIN = (  # records that training checkpoints hold beside the weights; nothing of them is made
    "argparse Namespace",
    "datetime datetime",
    "datetime timedelta",
    "numpy dtype",
    "numpy ndarray",
    "torch Size",
    "torch device",
    "_codecs encode",
    *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("set", "frozenset", "bytearray")),
    *(f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("list", "dict", "int", "float")),
    *(f"pathlib{local} {kind}Path" for local in ("", "._local") for kind in ("", "Pure", "Posix", "Windows")),
    *(f"torch {str(dtype).removeprefix('torch.')}" for dtype in ELEMENTS.values()),
)
MAPPINGS = (
    "collections defaultdict",
    "lightning_fabric.utilities.data AttributeDict",
    "lightning.fabric.utilities.data AttributeDict",
    "pytorch_lightning.utilities.parsing AttributeDict",
)


@dataclass(frozen=True)
class _Storage:
    """`n` numbers end to end, of which tensors are parts; `key` says where the file has them."""

    key: str
    dtype: torch.dtype
    n: int


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it: a part of a storage."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Record:
    """In place of a value that is no tensor and isn't made."""

    kind: str


@dataclass
class _Places:
    """Where the storages of a file lie: {key: (first byte, bytes)}."""

    path: Path
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, view: _View) -> Tensor:
        """The numbers of a view, in memory of their own."""
        begin, _ = self.places[view.storage.key]
        width = view.storage.dtype.itemsize
        first, last = begin + view.first * width, begin + (view.first + _reach(view)) * width
        if first == last:
            return torch.empty(view.shape, dtype=view.storage.dtype)
        data = torch.from_file(str(self.path), shared=False, size=last, dtype=torch.uint8)[first:]  # mapped, not read
        return data.clone().view(view.storage.dtype).as_strided(view.shape, view.strides).contiguous()


def read_torch(path: Path) -> list[Part]:
    """The tensors in a file that torch.save wrote: the top's, and those of each dict in it that holds some.

    Raises: DataError for everything else, with the reason: a name that isn't allowed, an object that is no tensor.
    """
    with open(path, "rb", opener=regular) as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # what torch goes by
    try:
        content, places = _read_zip(path) if is_zip else _read_legacy(path)
    except RefusedError as error:
        raise DataError(
            f"refused, nothing was run: {error}; only plain tensors are read: save model.state_dict() alone"
        ) from error
    except (DataError, OSError):
        raise
    except Exception as error:  # genops and a wrong order of opcodes raise whatever they stumble over
        text = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(f"not a file of torch.save, or damaged: {text}") from error
    if type(content) is not dict:
        kind = {_View: "Tensor", _Record: "record"}.get(type(content), type(content).__name__)
        raise DataError(f"it holds a {kind}, not a dict of tensors")
    return list(_parts(content, places))


def _read_zip(path: Path) -> tuple[Any, _Places]:
    with zip_errors("a whole file of torch.save"), zipfile.ZipFile(path) as archive:
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
        top = programs[0].filename.rpartition("/")[0] + "/"
        if f"{top}byteorder" in names and archive.read(f"{top}byteorder") != b"little":
            raise DataError("its numbers are big-endian; save it again on a little-endian machine")
        program = io.BytesIO(archive.read(programs[0]))
        found = {m.filename: m for m in members if m.filename.startswith(f"{top}data/")}
        places = _Places(path, {name.rpartition("/")[2]: _place(archive, member) for name, member in found.items()})
    return _machine().run(program), places


def _place(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, int]:
    """(first byte, bytes) of a stored member. Raises: DataError when it isn't within the file."""
    file = archive.fp
    assert file is not None
    file.seek(member.header_offset)
    signature, *lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    begin = member.header_offset + LOCAL_HEADER.size + sum(lengths)
    if signature != b"PK\x03\x04" or begin + member.file_size > file.seek(0, io.SEEK_END):
        raise DataError(f"not a whole file of torch.save: {member.filename!r} is not where it should be")
    return begin, member.file_size


def _read_legacy(path: Path) -> tuple[Any, _Places]:
    size = path.stat().st_size
    with open(path, "rb", opener=regular) as file:
        stream = io.BytesIO(file.read(MAX_PICKLE))
        if _machine().run(stream) != LEGACY_MAGIC:
            raise DataError("a pickle, but not a file of torch.save")
        _machine().run(stream)
        system = _machine().run(stream)
        if type(system) is not dict or system.get("little_endian") is not True:
            raise DataError("its numbers are big-endian; save it again on a little-endian machine")
        storages: dict[str, _Storage] = {}
        content, keys = _machine(storages).run(stream), _machine().run(stream)
        if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
            raise DataError("not a file of torch.save: its storages are not those that it names")
        places, at = _Places(path), stream.tell()
        for key in keys:
            file.seek(at)
            n = int.from_bytes(file.read(8), "little")
            places.places[key] = at + 8, n * storages[key].dtype.itemsize
            at += 8 + places.places[key][1]
            if at > size:
                raise DataError("not a whole file of torch.save: it ends within its numbers")
    return content, places


# What the names in a pickle stand for


def _machine(storages: dict[str, _Storage] | None = None) -> Machine:
    """A machine for one pickle; it puts the storages that the pickle names into `storages`."""
    named = {} if storages is None else storages
    calls: dict[str, Callable[..., Any]] = dict.fromkeys(ELEMENTS, _refuse)
    calls |= {name: partial(_record, name) for name in PLAIN}
    calls |= dict.fromkeys(MAPPINGS, _mapping)
    calls["collections OrderedDict"] = _ordered
    calls["torch._utils _rebuild_tensor"] = calls["torch._utils _rebuild_tensor_v2"] = _view
    calls["torch._utils _rebuild_parameter"] = calls["torch._utils _rebuild_parameter_with_state"] = _parameter
    return Machine(calls, _forget, partial(_storage, named), MAX_PICKLE, MAX_OPCODES)


def _refuse(*_: Any) -> Any:
    raise RefusedError("it makes a storage without a place in the file")


def _record(name: str, *_: Any) -> _Record:
    return _Record(name.rpartition(" ")[2])


def _forget(target: Any, state: Any) -> int:
    """A state is set on a record, or on a dict of weights as its `_metadata`: nothing that is needed here."""
    if type(target) not in (_Record, dict):
        raise RefusedError(f"it sets the state of a {type(target).__name__}")
    return 0


def _ordered(*items: Any) -> dict[Any, Any]:
    """An OrderedDict: empty, as Python 3 begins one, or of a list of pairs, as Python 2 did."""
    pairs = items[0] if items else []
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and type(pair[0]) is str for pair in pairs):
        raise ValueError("an OrderedDict of no pairs with names")
    return dict(pairs)


def _mapping(*_: Any) -> dict[Any, Any]:
    """A dict by another name; its entries follow."""
    return {}


def _storage(storages: dict[str, _Storage], pid: Any) -> _Storage:
    if type(pid) is not tuple or len(pid) not in (5, 6) or type(pid[0]) is not str or pid[0] != "storage":
        raise RefusedError("it holds a whole module")
    _, kind, key, _, n, *view = pid
    if type(kind) is not Global or kind.name not in ELEMENTS or type(key) is not str or type(n) is not int:
        raise ValueError("a storage of an unknown kind")
    if view not in ([], [None]):
        raise RefusedError("it holds a storage that is a part of another")
    storage = _Storage(key, ELEMENTS[kind.name], n)
    if storages.setdefault(key, storage) != storage:
        raise ValueError("a storage of two kinds")
    return storage


def _view(storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> _View:
    sides = (first, *shape, *strides) if type(shape) is type(strides) is tuple else (None,)
    if type(storage) is not _Storage or not all(type(side) is int and 0 <= side < 1 << 62 for side in sides):
        raise ValueError("a tensor without a storage, or with odd sides")
    if len(shape) != len(strides) or len(shape) > MAX_SIDES:
        raise ValueError(f"a tensor of {len(shape)} sides and {len(strides)} strides")
    return _View(storage, first, shape, strides)


def _parameter(data: Any, *_: Any) -> _View:
    if type(data) is not _View:
        raise ValueError("a parameter that is no tensor")
    return data


# Tensors in dicts


def _parts(content: dict[Any, Any], places: _Places) -> Iterator[Part]:
    """The tensors of a dict, then those of the dicts in it. What an optimizer keeps is no net's."""
    seen: set[int] = set()
    levels = [("", content)]
    for depth in range(MAX_DEPTH):
        inner: list[tuple[str, dict[Any, Any]]] = []
        for entry, table in levels:
            if id(table) in seen:  # the same dict by another name
                continue
            seen.add(id(table))
            views = {_name(key): value for key, value in table.items() if type(value) is _View}
            tables = {_name(key): value for key, value in table.items() if _may_hold_weights(key, value)}
            beside = tuple(_told(key, value) for key, value in table.items() if type(value) is not _View)
            if len(views) > MAX_TENSORS:
                raise DataError(f"it holds more than {MAX_TENSORS:,} tensors")
            if views or not depth:
                yield Part(entry, _found(views, places), beside)
            inner += [(f"{entry}/{name}" if entry else name, value) for name, value in tables.items()]
        levels = inner


def _may_hold_weights(key: Any, value: Any) -> bool:
    return type(value) is dict and type(key) is str and "param_groups" not in value


def _told(key: Any, value: Any) -> str:
    """An entry that isn't read, in a few words; a stranger's value is never printed."""
    kind = value.kind if type(value) is _Record else type(value).__name__
    return f"{_name(key)[:50] if type(key) is str else type(key).__name__} ({kind})"


def _name(key: Any) -> str:
    if type(key) is not str or not key.isprintable():
        raise DataError("a name in its dict is no printable text")
    return key


def _found(views: dict[str, _View], places: _Places) -> list[Found]:
    """The tensors, each within the file. Together they may not be larger than it."""
    size, n_bytes = places.path.stat().st_size, 0
    for name, view in views.items():
        width = view.storage.dtype.itemsize
        _, room = places.places.get(view.storage.key, (0, -1))
        if max(view.storage.n, view.first + _reach(view)) * width > room:
            raise DataError(f"not a whole file of torch.save: the numbers of {name[:100]!r} aren't all in it")
        n_bytes += math.prod(view.shape) * width
    if n_bytes > size:
        raise DataError(f"its tensors have {n_bytes:,} bytes, more than the file's {size:,}: parts are used repeatedly")
    return [
        Found(name, view.shape, str(view.storage.dtype).removeprefix("torch."), partial(places.read, view))
        for name, view in views.items()
    ]


def _reach(view: _View) -> int:
    """How many elements of the storage lie between a view's first and its last, both included."""
    if 0 in view.shape:
        return 0
    return 1 + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides, strict=True))
