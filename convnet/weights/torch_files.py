"""The tensors in a file of torch.save. Its pickle is read as data (`io/pickles.py`), the numbers where they lie.

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from convnet.errors import DataError
from convnet.io.atomic import regular
from convnet.io.pickles import Global, Machine, RefusedError
from convnet.weights.archives import MAX_TENSORS, zip_errors
from convnet.weights.state_dict import FileTensor, StateDict

MAX_PICKLE = 16 << 20  # bytes of the program in a .pth; 1,000 tensors have about 100 KB
MAX_OPCODES = 1_000_000  # of it; 1,000 tensors have about 40,000
MAX_DEPTH = 4  # of dicts in dicts in which tensors are looked for
MAX_SIDES = 8
BIG_ENDIAN = "its numbers are big-endian; save it again on a little-endian machine"
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

    @property
    def reach(self) -> int:
        """How many elements of the storage lie between the first and the last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class _Record:
    """In place of a value that is no tensor and isn't made."""

    kind: str


Places = dict[str, tuple[int, int]]  # {a storage's key: (first byte, bytes) in the file}


def read_torch(path: Path) -> list[StateDict]:
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
    return list(_state_dicts(path, content, places))


def _read_zip(path: Path) -> tuple[object, Places]:
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
            raise DataError(BIG_ENDIAN)
        program = io.BytesIO(archive.read(programs[0]))
        storages = [member for member in members if member.filename.startswith(f"{top}data/")]
        places = {member.filename.rpartition("/")[2]: _place(archive, member) for member in storages}
    return _machine({}).run(program), places


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


def _read_legacy(path: Path) -> tuple[object, Places]:
    size = path.stat().st_size
    with open(path, "rb", opener=regular) as file:
        stream = io.BytesIO(file.read(MAX_PICKLE))
        if _machine({}).run(stream) != LEGACY_MAGIC:
            raise DataError("a pickle, but not a file of torch.save")
        _machine({}).run(stream)
        system = _machine({}).run(stream)
        if type(system) is not dict or system.get("little_endian") is not True:
            raise DataError(BIG_ENDIAN)
        storages: dict[str, _Storage] = {}
        content, keys = _machine(storages).run(stream), _machine({}).run(stream)
        if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
            raise DataError("not a file of torch.save: its storages are not those that it names")
        places, end = Places(), stream.tell()
        for key in keys:
            file.seek(end)
            n = int.from_bytes(file.read(8), "little")
            places[key] = end + 8, n * storages[key].dtype.itemsize
            end = sum(places[key])
            if end > size:
                raise DataError("not a whole file of torch.save: it ends within its numbers")
    return content, places


# What the names in a pickle stand for


def _machine(storages: dict[str, _Storage]) -> Machine:
    """A machine for one pickle; it puts the storages that the pickle names into `storages`."""
    calls: dict[str, Callable[..., object]] = dict.fromkeys(ELEMENTS, _refuse)
    calls |= {name: partial(_record, name) for name in PLAIN}
    calls |= dict.fromkeys(MAPPINGS, _mapping)
    calls["collections OrderedDict"] = _ordered
    calls["torch._utils _rebuild_tensor"] = calls["torch._utils _rebuild_tensor_v2"] = _view
    calls["torch._utils _rebuild_parameter"] = calls["torch._utils _rebuild_parameter_with_state"] = _parameter
    return Machine(calls, _set_state, partial(_storage, storages), MAX_PICKLE, MAX_OPCODES)


def _refuse(*_: object) -> object:
    raise RefusedError("it makes a storage without a place in the file")


def _record(name: str, *_: object) -> _Record:
    return _Record(name.rpartition(" ")[2])


def _set_state(target: object, _: object) -> int:
    """A state is set on a record, or on a dict of weights as its `_metadata`: nothing that is needed here."""
    if type(target) not in (_Record, dict):
        raise RefusedError(f"it sets the state of a {type(target).__name__}")
    return 0


def _ordered(*items: object) -> dict[object, object]:
    """An OrderedDict: empty, as Python 3 begins one, or of a list of pairs, as Python 2 did."""
    pairs = items[0] if items else []
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and type(pair[0]) is str for pair in pairs):
        raise ValueError("an OrderedDict of no pairs with names")
    return dict(pairs)


def _mapping(*_: object) -> dict[object, object]:
    """A dict by another name; its entries follow."""
    return {}


def _storage(storages: dict[str, _Storage], pid: object) -> _Storage:
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


def _view(storage: object, first: int, shape: object, strides: object, *_: object) -> _View:
    if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("a tensor without a storage or sides")
    if not all(type(side) is int and 0 <= side < 1 << 62 for side in (first, *shape, *strides)):
        raise ValueError("a tensor with odd sides")
    if len(shape) != len(strides) or len(shape) > MAX_SIDES:
        raise ValueError(f"a tensor of {len(shape)} sides and {len(strides)} strides")
    return _View(storage, first, shape, strides)


def _parameter(data: object, *_: object) -> _View:
    if type(data) is not _View:
        raise ValueError("a parameter that is no tensor")
    return data


# Tensors in dicts


def _state_dicts(path: Path, content: dict[object, object], places: Places) -> Iterator[StateDict]:
    """The tensors of a dict, then those of the dicts in it. What an optimizer keeps is no net's."""
    seen: set[int] = set()
    level: list[tuple[str, dict[object, object]]] = [("", content)]
    for depth in range(MAX_DEPTH):
        below: list[tuple[str, dict[object, object]]] = []
        for entry, table in level:
            if id(table) in seen:  # the same dict by another name
                continue
            seen.add(id(table))
            views, others = {}, []
            for key, value in table.items():
                if type(value) is _View:
                    views[_name(key)] = value
                    continue
                others.append(_summary(key, value))
                if type(value) is dict and type(key) is str and "param_groups" not in value:
                    below.append((f"{entry}/{_name(key)}" if entry else _name(key), value))
            if len(views) > MAX_TENSORS:
                raise DataError(f"it holds more than {MAX_TENSORS:,} tensors")
            if views or not depth:
                yield StateDict(entry, _tensors(path, views, places), tuple(others))
        level = below


def _summary(key: object, value: object) -> str:
    """An entry that isn't read, in a few words; a stranger's value is never printed."""
    kind = value.kind if type(value) is _Record else type(value).__name__
    return f"{_name(key)[:50] if type(key) is str else type(key).__name__} ({kind})"


def _name(key: object) -> str:
    if type(key) is not str or not key.isprintable():
        raise DataError("a name in its dict is no printable text")
    return key


def _tensors(path: Path, views: dict[str, _View], places: Places) -> list[FileTensor]:
    """The tensors, each within the file. Together they may not be larger than it."""
    size, n_bytes, tensors = path.stat().st_size, 0, []
    for name, view in views.items():
        dtype = view.storage.dtype
        begin, room = places.get(view.storage.key, (0, -1))
        if max(view.storage.n, view.first + view.reach) * dtype.itemsize > room:
            raise DataError(f"not a whole file of torch.save: the numbers of {name[:100]!r} aren't all in it")
        n_bytes += math.prod(view.shape) * dtype.itemsize
        tensors.append(
            FileTensor(name, view.shape, str(dtype).removeprefix("torch."), partial(_read, path, begin, view))
        )
    if n_bytes > size:
        raise DataError(f"its tensors have {n_bytes:,} bytes, more than the file's {size:,}: parts are used repeatedly")
    return tensors


def _read(path: Path, begin: int, view: _View) -> Tensor:
    """The numbers of a view of the storage at byte `begin`, in memory of their own."""
    dtype = view.storage.dtype
    first, last = (begin + n * dtype.itemsize for n in (view.first, view.first + view.reach))
    if first == last:
        return torch.empty(view.shape, dtype=dtype)
    data = torch.from_file(str(path), shared=False, size=last, dtype=torch.uint8)[first:]  # mapped, not read
    return data.clone().view(dtype).as_strided(view.shape, view.strides).contiguous()
